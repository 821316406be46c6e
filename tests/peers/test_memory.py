"""What a thousand malicious connections can make an agent hold: an agent's process, watched from outside."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tests.cli.process import Server, wait_until
from tests.wire import conversation as c
from vsockfwd.modes.forward import Connect
from vsockfwd.wire.control import ControlMachine
from vsockfwd.wire.frames import AGENT_PREFACE, CLIENT_PREFACE, FRAME_LIMIT, HEADER, FrameType, pack
from vsockfwd.wire.machine import Role
from vsockfwd.wire.messages import Open, encode

MOST = 64
"""MiB that an agent may hold for all of them."""

EACH = 250
"""Connections of each of the four kinds."""


def resident(pid: int) -> float:
    """MiB of a process's memory that are resident."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("it has gone")


@contextlib.contextmanager
def a_server_that_reads_nothing(path: Path) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1024)
        yield


def connected(path: Path, said: bytes) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
        while said:
            said = said[sock.send(said) :]
    return sock


def log_in(path: Path) -> tuple[socket.socket, bytes]:
    """A control connection, and its token."""
    control = socket.socket(socket.AF_UNIX)
    control.connect(str(path))
    machine = ControlMachine(Role.CLIENT)
    control.sendall(machine.hello(c.HELLO))
    seen = b""
    while True:
        seen += control.recv(4096)
        heard = ControlMachine(Role.CLIENT)
        heard.hello(c.HELLO)
        for event in heard.receive_data(seen):
            if (ready := getattr(event, "ready", None)) is not None:
                return control, ready.token


def test_a_thousand_malicious_connections_hold_no_more_than_64_mib(tmp_path: Path) -> None:
    agent_at, server_at = tmp_path / "a.sock", tmp_path / "s.sock"
    with (
        a_server_that_reads_nothing(server_at),
        Server("serve", "-l", f"unix:{agent_at}") as agent,
        contextlib.ExitStack() as held,
    ):
        agent.wait_for("listening")
        control, token = log_in(agent_at)
        held.enter_context(control)
        before = resident(agent.process.pid)
        half_hello = CLIENT_PREFACE + HEADER.pack(FrameType.HELLO, 0, 0, 4096) + b"\x81" * 4000
        half_open = CLIENT_PREFACE + HEADER.pack(FrameType.OPEN, 0, 0, 4096) + b"\x81" * 4000
        connect = msgspec.Raw(encode(Connect(f"unix:{server_at}")))
        # DATA that nobody takes, and a mode's own frame where there is none to take it.
        bodies = [HEADER.pack(kind, 0, 0, FRAME_LIMIT) + bytes(FRAME_LIMIT - 1) for kind in (FrameType.DATA, 64)]
        let_in = CLIENT_PREFACE + pack(FrameType.OPEN, encode(Open(token, "forward", (1,), connect)))
        greedy: list[socket.socket] = []
        for said in (b"", half_hello, half_open, let_in):
            for _ in range(EACH):
                sock = held.enter_context(connected(agent_at, said))
                if said is let_in:
                    greedy.append(sock)
        answered = AGENT_PREFACE + bytes([FrameType.OK])
        wait_until(lambda: all(_peek(sock, len(answered)) == answered for sock in greedy))
        # As much as is taken, until nothing more is.
        waiting = {sock: bodies[number % 2] for number, sock in enumerate(greedy)}
        quiet = time.monotonic()
        most = 0.0
        while waiting and time.monotonic() - quiet < 1:
            for sock in list(waiting):
                try:
                    waiting[sock] = waiting[sock][sock.send(waiting[sock]) :]
                    quiet = time.monotonic()
                except BlockingIOError:
                    continue
                except OSError:
                    waiting[sock] = b""
                if not waiting[sock]:
                    del waiting[sock]
            most = max(most, resident(agent.process.pid) - before)
        assert most < MOST, f"{most:.1f} MiB more"
        log_in(agent_at)[0].close()  # who behaves is served


def _peek(sock: socket.socket, size: int) -> bytes:
    try:
        return sock.recv(size, socket.MSG_PEEK)
    except BlockingIOError:
        return b""
