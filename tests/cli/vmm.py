"""A stand-in for a VMM's hybrid socket, in threads of the test: it dials a UNIX socket as the guest's port.

What it is for: to lose what VMMs have lost. A `Loss` says what becomes of a shutdown, whichever side it comes from; a
close is passed on by all of them.
"""

from __future__ import annotations

import contextlib
import enum
import select
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

Dial = Callable[[socket.socket], socket.socket | None]
"""Given the host's connection, whose CONNECT line was read, answers it: the guest's, or None for no answer ever."""


class Loss(enum.Enum):
    """What the VMM makes of a shutdown."""

    NONE = "passes a shutdown on"
    CLOSES = "makes a shutdown a close"
    SWALLOWS = "swallows a shutdown"


class Vmm:
    """Listens on PATH until the block ends."""

    def __init__(self, path: Path, dial: Dial, loss: Loss = Loss.NONE) -> None:
        self.path = path
        self._dial = dial
        self._loss = loss
        self._open: list[socket.socket] = []

    def __enter__(self) -> Vmm:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sock in (self._listener, *self._open):
            with contextlib.suppress(OSError):  # not connected any more
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # shut down: the block has ended
            while True:
                host, _ = self._listener.accept()
                self._open.append(host)
                threading.Thread(target=self._serve, args=(host,), daemon=True).start()

    def _serve(self, host: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if not host.recv(100).startswith(b"CONNECT "):
                return
            guest = self._dial(host)
            if guest is None:
                return
            self._open.append(guest)
            threads = [threading.Thread(target=self._carry, args=pair) for pair in ((host, guest), (guest, host))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            host.close()
            guest.close()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):  # a side has closed
            while data := source.recv(1 << 16):
                sink.sendall(data)
            if self._loss is Loss.SWALLOWS:
                closed = select.poll()
                closed.register(source, 0)
                closed.poll()  # both directions are over: that is a close
            sink.shutdown(socket.SHUT_WR if self._loss is Loss.NONE else socket.SHUT_RDWR)
            if self._loss is Loss.CLOSES:
                source.shutdown(socket.SHUT_RDWR)


def to(path: Path) -> Dial:
    """The guest's port is this UNIX socket."""

    def dial(host: socket.socket) -> socket.socket:
        guest = connect(path)
        host.sendall(b"OK 1073741824\n")
        return guest

    return dial


def connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    return sock
