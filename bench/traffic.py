"""Clients and servers as load: they move bytes without a pause, or one at a time, and say how fast it went.

    python -m bench.traffic [--vmm] PLACE…     a server on each PLACE: a TCP port of loopback, or a UNIX socket's path

A client's first byte says what the server is to do: SEND, DISCARD or ECHO. With --vmm it is a VMM's hybrid socket
first, that wants `CONNECT PORT` and answers `OK …`.

The thing to understand first: a stream is measured over a stretch of time that begins when it flows already, so that
buffers on the way are as full at its end as at its beginning, and bytes that were sent are bytes that arrived.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.harness import accepts, running

Place = int | str
"""A TCP port of loopback, or the path of a UNIX socket."""

SEND, DISCARD, ECHO = b"s", b"d", b"e"
BLOCK = 1 << 20
GIB = 1 << 30
FIRST, AGAIN = 0.15, 0.04
"""Seconds that a stream flows before it is measured: when it is new, and when it stood still for a while."""

PATIENCE = 20
"""Seconds after which a stream that stands still is an error."""

TYPED = b"CONNECT 52\n"


def listening(place: Place) -> Callable[[], bool]:
    """Whether something listens there."""
    if isinstance(place, int):
        return accepts(socket.AF_INET, ("127.0.0.1", place))
    return accepts(socket.AF_UNIX, place)


def dial(place: Place, typed: bytes = b"") -> socket.socket:
    """A connection; where a line is typed first, once it was answered by one."""
    if isinstance(place, int):
        sock = socket.create_connection(("127.0.0.1", place))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    else:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(place)
    be_patient(sock)
    if typed:
        sock.sendall(typed)
        while sock.recv(1) != b"\n":
            pass
    return sock


def be_patient(sock: socket.socket) -> None:
    """Let calls fail after PATIENCE: by the kernel, since Python's own timeout would ask before each call."""
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", PATIENCE, 0))


# --- the client


@dataclass(frozen=True, slots=True)
class Moved:
    """A stretch of a stream."""

    size: int
    seconds: float
    cpu: float

    def __add__(self, other: Moved) -> Moved:
        return Moved(self.size + other.size, self.seconds + other.seconds, self.cpu + other.cpu)

    @property
    def rate(self) -> float:
        """GiB a second."""
        return self.size / self.seconds / GIB

    @property
    def cpu_a_gib(self) -> float:
        """CPU seconds of the relay for a GiB."""
        return self.cpu / self.size * GIB


Step = Callable[[], int]
"""Moves a piece; how many bytes that was."""


def measure(step: Step, seconds: float, cpu: Callable[[], float], warm_up: float = FIRST) -> Moved:
    """A stretch of a stream; `cpu` tells what the relay has used by now."""
    until = time.monotonic() + warm_up
    while time.monotonic() < until:
        step()
    size, used, began = 0, cpu(), time.monotonic()
    while (now := time.monotonic()) < began + seconds:
        size += step()
    return Moved(size, now - began, cpu() - used)


def pull(sock: socket.socket) -> Step:
    """Receive from a server that sends."""
    sock.sendall(SEND)
    buffer = bytearray(BLOCK)

    def step() -> int:
        count = sock.recv_into(buffer)
        if not count:
            raise RuntimeError("the stream was cut off")
        return count

    return step


def push(sock: socket.socket, size: int = BLOCK) -> Step:
    """Send messages of so many bytes to a server that discards."""
    sock.sendall(DISCARD)
    return Batch(sock, size).send


class Batch:
    """Messages of one size, each handed to the kernel by itself, but many in one call: sendmmsg(2)."""

    _LIBC = ctypes.CDLL(None, use_errno=True)
    _MMSGHDR = struct.Struct(
        "=QI4xQQQQi4xI4x"
    )  # msghdr: name, its length, iov, count, control, its length, flags; sent
    _IOVEC = struct.Struct("=QQ")

    def __init__(self, sock: socket.socket, size: int) -> None:
        self._sock = sock
        self._size = size
        self._count = max(1, min(64, BLOCK // size // 4))
        self._data = ctypes.create_string_buffer(size)
        self._iov = ctypes.create_string_buffer(self._IOVEC.pack(ctypes.addressof(self._data), size))
        header = (0, 0, ctypes.addressof(self._iov), 1, 0, 0, 0, 0)
        headers = self._MMSGHDR.pack(*header) * self._count
        self._headers = ctypes.create_string_buffer(headers, len(headers))  # without a byte more
        self._lengths = memoryview(self._headers).cast("B").cast("I")[14 :: self._MMSGHDR.size // 4]

    def send(self) -> int:
        """Send them all, blocking; how many bytes that were."""
        done = int(self._LIBC.sendmmsg(self._sock.fileno(), self._headers, self._count, socket.MSG_NOSIGNAL))
        if done < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return sum(self._lengths[:done])


def round_trips(sock: socket.socket, seconds: float, begin: bytes = ECHO) -> list[int]:
    """Nanoseconds of each round trip of a byte, one after another."""
    sock.sendall(begin)
    took = []
    until = time.perf_counter_ns() + int(seconds * 1e9)
    before = time.perf_counter_ns()
    while before < until:
        sock.send(b"?")
        if not sock.recv(1):
            raise RuntimeError("the connection was cut off")
        now = time.perf_counter_ns()
        took.append(now - before)
        before = now
    return took[len(took) // 20 :]  # the first ones find caches cold


def calls(place: Place, seconds: float, typed: bytes = b"") -> float:
    """Connections a second that are dialled, answered with a byte and closed, one after another."""
    count, began = 0, time.monotonic()
    while (now := time.monotonic()) < began + seconds:
        with dial(place, typed) as sock:
            sock.sendall(ECHO + b"?")
            if sock.recv(1) != b"?":
                raise RuntimeError("no answer came")
        count += 1
    return count / (now - began)


# --- the server


@contextlib.contextmanager
def server(*places: Place, vmm: bool = False) -> Iterator[None]:
    """A server on each place, all in one process of its own."""
    words = [*(["--vmm"] if vmm else []), *map(str, places)]
    ready = [listening(place) for place in places]
    with running([sys.executable, "-m", "bench.traffic", *words], ready=lambda: all(each() for each in ready)):
        yield


def _answer(sock: socket.socket, vmm: bool) -> None:
    with sock, contextlib.suppress(OSError):
        if vmm:
            while sock.recv(1) not in (b"\n", b""):
                pass
            sock.sendall(b"OK 1073741824\n")
        wanted, block = sock.recv(1), bytearray(BLOCK)
        if wanted == SEND:
            while True:
                sock.sendall(block)
        elif wanted == DISCARD:
            while sock.recv_into(block):
                pass
        elif wanted == ECHO:
            while data := sock.recv(BLOCK):
                sock.sendall(data)


def _accept(listener: socket.socket, vmm: bool) -> None:
    while True:
        sock, _ = listener.accept()
        if listener.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_answer, args=(sock, vmm), daemon=True).start()


def serve(listeners: list[socket.socket], vmm: bool = False) -> None:
    """Accept and answer, a thread for each listener and each connection, without an end."""
    threads = [threading.Thread(target=_accept, args=(listener, vmm), daemon=True) for listener in listeners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def listen(place: Place) -> socket.socket:
    if isinstance(place, int):
        return socket.create_server(("127.0.0.1", place), backlog=4096)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(place)
    listener.listen(4096)
    return listener


def main(words: list[str]) -> None:
    vmm = words[0] == "--vmm"
    serve([listen(int(word) if word.isdigit() else word) for word in words[vmm:]], vmm)


if __name__ == "__main__":
    main(sys.argv[1:])
