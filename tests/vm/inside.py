"""The one long-lived process in each machine of the rig: takes commands over a byte channel, runs them, answers.

In a virtual machine it is the first process of all, and the channel is a virtio-serial port; on the real machine it is
a child of pytest with a socket as its standard input. Only the standard library is imported here at the start: under
emulation everything else costs seconds, and machines that never run the command line should not pay for it.

The one thing to understand first: every process is made by `fork` of this one. A plain command then calls exec; the
`vsockfwd` command line does not, it finds trio and the rest already imported. So this process has no threads, and
it never unwinds past `serve` except in such a child, which thereby ends as any Python program ends.

A message, either way: two big-endian 32-bit lengths, a JSON object, bytes. One answer to each request, in order.
"""

import contextlib
import ctypes
import errno
import functools
import hashlib
import importlib
import itertools
import json
import os
import pkgutil
import pwd
import resource
import select
import shutil
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

LENGTHS = struct.Struct(">II")
PR_SET_PDEATHSIG = 1
THIRD_PARTY_IMPORTS = ("trio", "typer", "typer.rich_utils", "rich.console", "msgspec", "xxhash", "tqdm")
OWN_PACKAGES = ("vsockfwd", "vsockfwd_relay", "vsockfwd_copy", "vsockfwd_dgram")
RANDOM_BLOCK = 1 << 20

Answer = tuple[dict[str, Any], bytes]


class Channel:
    """The two directions of bytes to the test run, in whole messages."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def receive(self) -> Answer:
        header_length, body_length = LENGTHS.unpack(self._exactly(LENGTHS.size))
        return json.loads(self._exactly(header_length)), self._exactly(body_length)

    def send(self, header: dict[str, Any], body: bytes = b"") -> None:
        encoded = json.dumps(header).encode()
        rest = memoryview(LENGTHS.pack(len(encoded), len(body)) + encoded + body)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def _exactly(self, count: int) -> bytes:
        pieces = []
        while count:
            piece = os.read(self._descriptor, min(count, 1 << 20))
            if not piece:
                raise EOFError("the test run has gone")
            pieces.append(piece)
            count -= len(piece)
        return b"".join(pieces)


class Commands:
    """What a test can ask of a machine: a public method a command, keywords and bytes in, JSON and bytes out."""

    def __init__(self, tmp: Path) -> None:
        self._tmp = tmp
        self._statuses: dict[int, int | None] = {}
        self._numbers = itertools.count()

    def __call__(self, header: dict[str, Any], body: bytes) -> Answer:
        self._reap()
        command: Callable[..., Answer] = getattr(self, header.pop("command"))
        return command(body=body, **header)

    # processes

    def start(
        self,
        *,
        argv: list[str],
        command_line: bool,
        user: str | None,
        env: dict[str, str] | None,
        cwd: str | None,
        has_stdin: bool,
        body: bytes,
    ) -> Answer:
        if command_line:
            import_command_line()
        output = self._tmp / f"process-{next(self._numbers)}"
        output.mkdir()
        stdin = feeding_pipe(body) if has_stdin else os.open("/dev/null", os.O_RDONLY)
        stdout, stderr = (
            os.open(output / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) for name in ("stdout", "stderr")
        )
        pid = os.fork()
        if pid == 0:
            become(stdin, stdout, stderr, user=user, env=env or {}, cwd=cwd)
            if command_line:
                run_command_line(argv)
            execute(argv)
        for descriptor in (stdin, stdout, stderr):
            os.close(descriptor)
        self._statuses[pid] = None
        return {"pid": pid, "stdout": str(output / "stdout"), "stderr": str(output / "stderr")}, b""

    def poll(self, *, pid: int, body: bytes) -> Answer:
        status = self._statuses[pid]
        return {"returncode": None if status is None else os.waitstatus_to_exitcode(status)}, b""

    def kill(self, *, pid: int, number: int, body: bytes) -> Answer:
        if self._statuses[pid] is None:
            os.kill(pid, number)
        return {}, b""

    def import_command_line(self, *, body: bytes) -> Answer:
        import_command_line()
        return {}, b""

    # files

    def read(self, *, path: str, body: bytes) -> Answer:
        return {}, Path(path).read_bytes()

    def write(self, *, path: str, mode: int, body: bytes) -> Answer:
        Path(path).write_bytes(body)
        os.chmod(path, mode)
        return {}, b""

    def mkdir(self, *, path: str, mode: int, body: bytes) -> Answer:
        Path(path).mkdir(parents=True, exist_ok=True)
        os.chmod(path, mode)
        return {}, b""

    def exists(self, *, path: str, body: bytes) -> Answer:
        return {"exists": os.path.lexists(path)}, b""

    def listdir(self, *, path: str, body: bytes) -> Answer:
        return {"names": sorted(os.listdir(path))}, b""

    def random_file(self, *, path: str, size: int, seed: int, body: bytes) -> Answer:
        # One random block, rotated a little further each time: no two blocks of the file are alike, and it costs
        # copies only, which emulation does not slow.
        block = hashlib.shake_128(str(seed).encode()).digest(RANDOM_BLOCK) if size else b""
        with open(path, "wb") as file:
            for number in range(-(-size // RANDOM_BLOCK)):
                turn = number * 4099 % RANDOM_BLOCK
                file.write((block[turn:] + block[:turn])[: size - number * RANDOM_BLOCK])
        return {}, b""

    def _reap(self) -> None:
        # As first process this one is given every orphan of the machine as well; those are nobody's to ask for.
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                if found[0] in self._statuses:
                    self._statuses[found[0]] = found[1]

    def end(self) -> None:
        self._reap()
        running = [pid for pid, status in self._statuses.items() if status is None]
        for pid in running:
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                os.kill(pid, signal.SIGKILL)  # started just now, it has no group of its own yet
        for pid in running:
            os.waitpid(pid, 0)
        shutil.rmtree(self._tmp, ignore_errors=True)


@functools.cache
def import_command_line() -> None:
    """All that any command could come to import. What fails here fails in the child too, and is said there."""
    with contextlib.suppress(Exception):
        for name in THIRD_PARTY_IMPORTS:
            importlib.import_module(name)
    for package in OWN_PACKAGES:
        with contextlib.suppress(Exception):
            path = importlib.import_module(package).__path__
            for module in pkgutil.walk_packages(path, f"{package}.", onerror=lambda _: None):
                with contextlib.suppress(Exception):
                    importlib.import_module(module.name)


def feeding_pipe(content: bytes) -> int:
    """The reading end of a pipe that a process of its own fills: stdin is a pipe for most users, a file for few."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(reading)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(writing, rest) :]
        os._exit(0)
    os.close(writing)
    return reading


def become(stdin: int, stdout: int, stderr: int, *, user: str | None, env: dict[str, str], cwd: str | None) -> None:
    """In the child: a session, standard streams, a user and a directory of its own, nothing left of the server."""
    os.setsid()
    for number, descriptor in enumerate((stdin, stdout, stderr)):
        os.dup2(descriptor, number)
    os.closerange(3, 1024)
    if user is not None:
        entry = pwd.getpwnam(user)
        os.environ.update(HOME=entry.pw_dir, USER=user, LOGNAME=user)
        os.setgroups([])
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    os.environ.update(env)
    os.chdir(cwd or "/")
    # After setuid, which clears it: whoever outlives this server outlives the test run.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def execute(argv: list[str]) -> None:
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores them; a program expects them as they were
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
        os._exit(127 if error.errno == errno.ENOENT else 126)


def run_command_line(argv: list[str]) -> None:
    """Unwinds with SystemExit, or with what `main` raises, through the server's own frames: so ends the child."""
    sys.argv = ["vsockfwd", *argv]
    sys.stdin = os.fdopen(0, "r", encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
    main: Callable[[list[str]], int | None] = importlib.import_module("vsockfwd.__main__").main
    raise SystemExit(main(argv))


def serve(channel: Channel, commands: Commands) -> None:
    server = os.getpid()
    channel.send({"python": sys.version})
    while True:
        try:
            header, body = channel.receive()
        except EOFError:
            return commands.end()
        try:
            answer = commands(header, body)
        except Exception as error:
            if os.getpid() != server:
                raise
            answer = {"error": "".join(traceback.format_exception_only(error)).strip()}, b""
        channel.send(*answer)


def open_port(name: str) -> int:
    """The virtio-serial port of that name, once its other end is known: before, a read would look like an end."""
    for _ in range(1000):
        for entry in Path("/sys/class/virtio-ports").iterdir():
            if (entry / "name").read_text().strip() == name:
                port = os.open(f"/dev/{entry.name}", os.O_RDWR)
                polled = select.poll()
                polled.register(port, select.POLLOUT)
                if not any(event & select.POLLHUP for _, event in polled.poll(0)):
                    return port
                os.close(port)
        time.sleep(0.01)
    raise TimeoutError(f"no virtio-serial port {name} with anybody at its other end")


def main(channel: str, tmp: str) -> None:
    sys.path.pop(0)  # this folder: no command should find the rig's own modules
    hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    serve(Channel(0 if channel == "-" else open_port(channel)), Commands(Path(tmp)))


if __name__ == "__main__":
    main(*sys.argv[1:])
