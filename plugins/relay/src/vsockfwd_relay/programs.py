"""EXEC and SYSTEM: a program at one end, and what it is told about the peer at the other.

The thing to understand first: the program is ours until its address is closed. It may finish for a moment after its
streams have ended; then it is told to stop, then killed, and reaped in any case. It runs in a process group of its own,
so that what it started goes with it, except under a terminal, where a background group could not ask for a password.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import re
import signal
import socket
import subprocess
import termios
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

from vsockfwd.plugin import (
    Features,
    NetworkPeer,
    OwnPeer,
    SocketStream,
    Stream,
    UsageError,
    VsockfwdError,
    VsockPeer,
    __version__,
    from_oserror,
    printable,
)
from vsockfwd_relay.address_type import Direction, Options, Situation, Specification
from vsockfwd_relay.grammar import words
from vsockfwd_relay.streams import Halves, over_descriptors
from vsockfwd_relay.terminals import make_terminal, set_modes, wants_terminal

FINISH = 1.0
"""Seconds that a program has after both its streams have ended, and again after it was told to stop."""

OURS = "VSOCKFWD"
"""How our own variables begin; those that begin as socat's are the same but for that."""

_SEND_BUFFER = 1 << 20
"""Bytes on their way to a program, as to any UNIX socket; see docs/benchmarks.md for the other way."""

_TOLD = ("PEER", "PEERADDR", "PEERPORT", "SOCKADDR", "SOCKPORT", "OPENSSL_X509", "OPENSSL_X509V3")

# --- parameters ---------------------------------------------------------------------------------------------------


def command(text: str, options: Options) -> list[str]:
    """EXEC's words."""
    found = words(text)
    if not found[0]:
        raise UsageError("the program is missing")
    return _whole(found, options)


def system_command(text: str, options: Options) -> list[str]:
    """SYSTEM's command, for /bin/sh."""
    if not text:
        raise UsageError("the command is missing")
    return _whole(["/bin/sh", "-c", text], options)


def shell_command(text: str, options: Options) -> list[str]:
    """SHELL's command, for the user's shell; without one the shell itself."""
    shell = options.get("shell") or os.environ.get("SHELL") or "/bin/sh"
    return _whole([shell, "-c", text] if text else [shell], options)


def _whole(arguments: list[str], options: Options) -> list[str]:
    if any("\0" in argument for argument in arguments):
        raise UsageError("a program's argument holds no NUL byte")
    if options.get("pty") and options.get("pipes"):
        raise UsageError("pty and pipes exclude each other")
    if options.get("ctty") and not (options.get("pty") and options.get("setsid")):
        raise UsageError("ctty needs a terminal and a session", hint="pty,setsid,ctty")
    if wants_terminal(options) and not options.get("pty"):
        raise UsageError("raw, rawer and echo are for a terminal", hint="add pty")
    return arguments


# --- what a program is told ---------------------------------------------------------------------------------------


def environment_of(stream: Stream) -> dict[str, str]:
    """Who called, for a stream that was accepted: what socat tells, without the words' beginning, and PEER."""
    told = {"PEER": str(stream.peer)}
    match stream.peer:
        case NetworkPeer(host, port):
            told |= {"PEERADDR": _shown(host), "PEERPORT": str(port)}
        case VsockPeer(cid, port):
            told |= {"PEERADDR": str(cid), "PEERPORT": str(port)}
        case OwnPeer(name) if stream.features.boundaries:
            told["PEERADDR"] = name
        case _:
            told["PEERADDR"] = "<anon>"
    told |= getattr(stream, "told", {})
    return told | (_own_address(stream.sock) if stream.sock is not None else {})


def _own_address(sock: socket.socket) -> dict[str, str]:
    own: Any = sock.getsockname()
    if isinstance(own, tuple):
        host = own[0] if isinstance(own[0], int) else _shown(own[0].removeprefix("::ffff:"))
        return {"SOCKADDR": str(host), "SOCKPORT": str(own[1])}
    return {"SOCKADDR": os.fsdecode(own).replace("\0", "@")}


def _shown(host: str) -> str:
    """socat writes IPv6 addresses in full."""
    try:
        return f"[{ipaddress.IPv6Address(host.partition('%')[0]).exploded}]"
    except ValueError:
        return host


def _environment(spec: Specification, situation: Situation) -> dict[str, str]:
    beginnings = (situation.program.upper(), OURS)
    stale = re.compile(rf"({'|'.join(map(re.escape, beginnings))})_({'|'.join(_TOLD)})(_\w+)?")
    environment = {name: value for name, value in os.environ.items() if not stale.fullmatch(name)}
    told = {**situation.environment, "PID": str(os.getpid()), "PPID": str(os.getpid()), "VERSION": __version__}
    for beginning in beginnings:
        environment |= {f"{beginning}_{name}": value for name, value in told.items()}
    if beginnings[0] != OURS:  # socat has none of that name
        environment.pop(f"{beginnings[0]}_PEER", None)
    if spec.option("shell"):
        environment["SHELL"] = spec.option("shell")
    return environment | ({"PATH": spec.option("path")} if spec.option("path") else {})


# --- running ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def run_program(spec: Specification, situation: Situation) -> AsyncIterator[Stream]:
    """The program's standard input and output as a stream. Raises VsockfwdError when it says that it failed."""
    stream, process, stop = await _start(spec, situation)
    situation.note(2, f"{spec}: started as process {process.pid}")
    patience = 0.0
    if isinstance(stream, _OnTerminal):
        stream.process = process
    try:
        yield stream
        patience = FINISH
    finally:
        stream.close()
        with trio.CancelScope(shield=True):
            stopped = await _finish(process, patience, stop) or getattr(stream, "hung_up", False)
        situation.note(2, f"{spec}: {_status(process.returncode)}{', when told to' if stopped else ''}")
    if process.returncode and not stopped:
        raise VsockfwdError(f"{spec}: the program {_status(process.returncode)}")


class _OnTerminal(Halves):
    """Our side of a program's terminal. To leave it tells the program: what it makes of that is no failure of its."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream, stream)
        self.process: trio.Process | None = None
        self.hung_up = False

    def close(self) -> None:
        self.hung_up |= self.process is not None and self.process.poll() is None
        super().close()

    def abort(self) -> None:
        self.close()


Stop = Callable[[int], None]


async def _start(spec: Specification, situation: Situation) -> tuple[Stream, trio.Process, Stop]:
    direction, arguments = situation.direction, spec.subject
    stream, stdin, stdout = _plumb(spec)
    session = bool(spec.option("setsid"))
    group = 0 if not session and not _has_terminal() else None
    name = os.path.basename(arguments[0])
    try:
        process = await trio.lowlevel.open_process(
            [f"-{name}" if spec.option("login") else name, *arguments[1:]],
            executable=arguments[0],
            # With -u only one of the two is ours; the other stays what it is for us, as socat has it.
            stdin=stdin if Direction.WRITE in direction else None,
            stdout=stdout if Direction.READ in direction else None,
            stderr=subprocess.STDOUT if spec.option("stderr") else None,
            cwd=spec.option("cd"),
            umask=spec.option("umask", -1),
            env=_environment(spec, situation),
            start_new_session=session,
            process_group=group,
            preexec_fn=_take_terminal(0 if Direction.WRITE in direction else 1) if spec.option("ctty") else None,
        )
    except OSError as error:
        stream.close()
        where = f" in {printable(spec.option('cd'))}" if "cd" in spec.options else ""
        raise from_oserror(error, f"run {printable(arguments[0])}{where}") from None
    except BaseException:
        stream.close()
        raise
    finally:
        for number in {stdin, stdout}:
            os.close(number)
    whole_group = session or group is not None
    return stream, process, lambda number: _signal(process, number, whole_group)


def _take_terminal(number: int) -> Callable[[], object]:
    """What makes a descriptor the terminal of the session that was just made: after fork, before exec."""
    return lambda: fcntl.ioctl(number, termios.TIOCSCTTY, 0)


def _plumb(spec: Specification) -> tuple[Stream, int, int]:
    """Our stream, and the program's two descriptors, which may be one."""
    name = printable(str(spec))
    if spec.option("pipes"):
        stdin, writing = os.pipe()
        reading, stdout = os.pipe()
        return over_descriptors(reading, writing, name, [reading, writing]), stdin, stdout
    if spec.option("pty"):
        ours, path = make_terminal()
        theirs = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        set_modes(theirs, spec)
        return _OnTerminal(over_descriptors(ours, ours, name, [ours])), theirs, theirs
    ours_, theirs_ = socket.socketpair()
    ours_.setblocking(False)
    # What goes there. The program's own stays small: what it writes is to be in the processor's cache when it is read.
    ours_.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    both = theirs_.detach()
    features = Features(half_close=True, splice_from=True, splice_to=True)
    return SocketStream(ours_, features, OwnPeer(name), name), both, both


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


async def _finish(process: trio.Process, patience: float, stop: Stop) -> bool:
    """Wait, tell it to stop, kill it. Returns whether it had to be told."""
    with trio.move_on_after(patience):
        await process.wait()
        return False
    stop(signal.SIGTERM)
    with trio.move_on_after(FINISH):
        await process.wait()
        return True
    stop(signal.SIGKILL)
    await process.wait()
    return True


def _signal(process: trio.Process, number: int, whole_group: bool) -> None:
    try:
        os.killpg(process.pid, number) if whole_group else os.kill(process.pid, number)
    except ProcessLookupError:
        pass  # it went by itself


def _status(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"exited with status {code}"
