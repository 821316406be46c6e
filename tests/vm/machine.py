"""A machine as a test sees it: start processes there, wait for what they print, look at files.

What belongs here is the near end of `inside.py`'s channel. The real machine and every virtual one are the same class:
what differs is only how `inside.py` was started and what its channel is made of.
"""

import itertools
import json
import re
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

LENGTHS = struct.Struct(">II")
# Between two questions: a multiple of what an answer takes, so that asking costs an emulated machine little.
SHORTEST_PAUSE, LONGEST_PAUSE, PAUSE_PER_ANSWER = 0.02, 0.3, 10
# Answers come in milliseconds, but for the import of the command line: half a minute in the nested guest, more if busy.
ANSWER_TIMEOUT = 300.0


class MachineFailed(Exception):
    """A machine did not boot, fell silent or refused a command; the text says what it last had on its console."""


class Channel:
    """Request and answer over the UNIX socket that ends in a machine's `inside.py`. One request at a time."""

    def __init__(self, connection: socket.socket, last_words: Callable[[], str]) -> None:
        self.connection = connection
        self._last_words = last_words
        self._lock = threading.Lock()
        self._took = 0.0  # seconds, the last answer
        self.closed = False
        """The machine was killed, and all that ran there with it."""

    def request(self, body: bytes = b"", **header: Any) -> tuple[dict[str, Any], bytes]:
        encoded = json.dumps(header).encode()
        with self._lock:
            asked = time.monotonic()
            try:
                self.connection.settimeout(ANSWER_TIMEOUT)
                self.connection.sendall(LENGTHS.pack(len(encoded), len(body)) + encoded + body)
                answer, answer_body = self.receive()
            except OSError as error:
                self.connection.close()  # an answer that comes after all would be taken for the next one's
                raise MachineFailed(f"{header['command']}: {error}\n{self._last_words()}") from error
            self._took = time.monotonic() - asked
        if "error" in answer:
            raise MachineFailed(f"{header['command']}: {answer['error']}")
        return answer, answer_body

    def receive(self) -> tuple[dict[str, Any], bytes]:
        header_length, body_length = LENGTHS.unpack(self._exactly(LENGTHS.size))
        return json.loads(self._exactly(header_length)), self._exactly(body_length)

    def close(self) -> None:
        """No more is asked."""
        self.closed = True
        self.connection.close()

    def pause(self) -> None:
        """For a moment, before the same is asked again."""
        time.sleep(min(LONGEST_PAUSE, max(SHORTEST_PAUSE, PAUSE_PER_ANSWER * self._took)))

    def _exactly(self, count: int) -> bytes:
        content = bytearray()
        while len(content) < count:
            piece = self.connection.recv(min(count - len(content), 1 << 20))
            if not piece:
                raise ConnectionError("the machine's command server has gone")
            content += piece
        return bytes(content)


@dataclass(frozen=True)
class Completed:
    """A process that has ended. A negative return code is the signal that killed it."""

    returncode: int
    stdout: bytes
    stderr: bytes


class Process:
    """A process in a machine, in a session of its own. Its output is kept in files there, from the first byte on.

    A machine that is killed takes it along, and its output.
    """

    def __init__(self, machine: "Machine", argv: Sequence[str], *, pid: int, stdout: str, stderr: str) -> None:
        self.pid = pid
        self._machine = machine
        self._channel = machine.channel  # which ends with this boot of the machine, as the process does
        self._argv = argv
        self._paths = {"stdout": stdout, "stderr": stderr}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """A process used as a context is gone after it, however the test went."""
        self.kill()

    def __repr__(self) -> str:
        return f"<{' '.join(self._argv)[:200]} in {self._machine.name}, pid {self.pid}>"

    def poll(self) -> int | None:
        """The return code, or None as long as it runs."""
        if self._channel.closed:
            return -signal.SIGKILL
        answer, _ = self._channel.request(command="poll", pid=self.pid)
        returncode: int | None = answer["returncode"]
        return returncode

    def wait(self, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while (returncode := self.poll()) is None:
            self._pause(deadline, f"still runs after {timeout} s")
        return returncode

    def wait_output(
        self, pattern: str, timeout: float, *, stream: Literal["stdout", "stderr"] | None = None
    ) -> re.Match[bytes]:
        """Waits until the regular expression is found in what it wrote to `stream`, by default either of the two."""
        deadline = time.monotonic() + timeout
        wanted = re.compile(pattern.encode(), re.MULTILINE)
        while True:
            ended = self.poll() is not None
            for name in [stream] if stream else ["stdout", "stderr"]:
                if found := wanted.search(self._machine.read(self._paths[name])):
                    return found
            if ended:
                raise AssertionError(f"{self} ended and never said {pattern!r}\n{self._said()}")
            self._pause(deadline, f"has not said {pattern!r} in {timeout} s")

    def signal(self, number: int) -> None:
        """Sends a signal to this process alone; one that has ended is left in peace."""
        if not self._channel.closed:
            self._channel.request(command="kill", pid=self.pid, number=int(number))

    def kill(self, timeout: float = 60) -> int:
        """SIGKILL, and the return code that comes of it."""
        self.signal(signal.SIGKILL)
        return self.wait(timeout)

    def stdout(self) -> bytes:
        return self._machine.read(self._paths["stdout"])

    def stderr(self) -> bytes:
        return self._machine.read(self._paths["stderr"])

    def completed(self, timeout: float) -> Completed:
        """Waits for the end. One that does not come in time is killed, so that it disturbs no later test."""
        try:
            returncode = self.wait(timeout)
        except BaseException:
            self.signal(signal.SIGKILL)
            raise
        return Completed(returncode, self.stdout(), self.stderr())

    def _pause(self, deadline: float, complaint: str) -> None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{self} {complaint}\n{self._said()}")
        self._channel.pause()

    def _said(self) -> str:
        return "".join(
            f"--- {name} ---\n{self._machine.read(path)[-4000:].decode(errors='replace')}\n"
            for name, path in self._paths.items()
        )


class Machine:
    """One machine of a level. Times are seconds, paths are those inside it."""

    def __init__(self, name: str, channel: Channel, tmp: str) -> None:
        self.name = name
        self.channel = channel
        self.tmp = f"{tmp}/files"
        self._fresh = itertools.count()
        self.mkdir(self.tmp, mode=0o1777)

    def __repr__(self) -> str:
        return f"<machine {self.name}>"

    def start(
        self,
        argv: Sequence[str],
        *,
        user: str | None = None,
        env: dict[str, str] | None = None,
        cwd: str | None = None,
        stdin: bytes | None = None,
    ) -> Process:
        """Starts a program. `stdin` comes through a pipe that then ends; None is an empty one."""
        return self._start(argv, command_line=False, user=user, env=env, cwd=cwd, stdin=stdin)

    def cli(
        self,
        argv: Sequence[str],
        *,
        user: str | None = None,
        env: dict[str, str] | None = None,
        cwd: str | None = None,
        stdin: bytes | None = None,
    ) -> Process:
        """Starts `vsockfwd ARGV…`, as a process like any other but without the seconds its imports cost."""
        return self._start(argv, command_line=True, user=user, env=env, cwd=cwd, stdin=stdin)

    def import_cli(self) -> None:
        """What else the first `cli` would do, so that no test waits for it."""
        self.channel.request(command="import_command_line")

    def run(self, argv: Sequence[str], *, timeout: float, **options: Any) -> Completed:
        """`start` and wait for the end; takes the same options."""
        return self.start(argv, **options).completed(timeout)

    def run_cli(self, argv: Sequence[str], *, timeout: float, **options: Any) -> Completed:
        """`cli` and wait for the end; takes the same options."""
        return self.cli(argv, **options).completed(timeout)

    def python(self, source: str, *argv: str, timeout: float = 120, **options: Any) -> Completed:
        """Runs a script with the interpreter the tests run under, which has all that they have."""
        return self.run([sys.executable, "-c", source, *argv], timeout=timeout, **options)

    def wait_for(self, argv: Sequence[str], timeout: float, **options: Any) -> Completed:
        """Runs a program again and again until it succeeds."""
        deadline = time.monotonic() + timeout
        while (completed := self.run(argv, timeout=timeout, **options)).returncode != 0:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{argv} does not succeed in {self}: {completed}")
            self.channel.pause()
        return completed

    def make_tmp(self) -> str:
        """A new empty directory below `tmp`, in memory, that every user may write to."""
        return self.mkdir(f"{self.tmp}/{next(self._fresh)}", mode=0o1777)

    def mkdir(self, path: str, *, mode: int = 0o755) -> str:
        self.channel.request(command="mkdir", path=path, mode=mode)
        return path

    def write(self, path: str, content: bytes, *, mode: int = 0o644) -> None:
        self.channel.request(content, command="write", path=path, mode=mode)

    def read(self, path: str) -> bytes:
        return self.channel.request(command="read", path=path)[1]

    def exists(self, path: str) -> bool:
        return bool(self.channel.request(command="exists", path=path)[0]["exists"])

    def listdir(self, path: str) -> list[str]:
        names: list[str] = self.channel.request(command="listdir", path=path)[0]["names"]
        return names

    def random_file(self, path: str, size: int, seed: int = 0) -> None:
        """A file of `size` bytes that looks random and is the same wherever it is made from the same seed."""
        self.channel.request(command="random_file", path=path, size=size, seed=seed)

    def sha256(self, path: str) -> str:
        return self.run(["sha256sum", path], timeout=300).stdout.split(maxsplit=1)[0].decode()

    def _start(
        self,
        argv: Sequence[str],
        *,
        command_line: bool,
        user: str | None,
        env: dict[str, str] | None,
        cwd: str | None,
        stdin: bytes | None,
    ) -> Process:
        answer, _ = self.channel.request(
            stdin or b"",
            command="start",
            argv=list(argv),
            command_line=command_line,
            user=user,
            env=env,
            cwd=cwd,
            has_stdin=stdin is not None,
        )
        return Process(self, ["vsockfwd", *argv] if command_line else argv, **answer)
