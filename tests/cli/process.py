"""The command line as a user's shell runs it: real processes, their words and exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

COMMAND = [sys.executable, "-m", "vsockfwd"]
DEADLINE = 20.0


def run(*words: str, env: dict[str, str] | None = None, timeout: float = DEADLINE) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*COMMAND, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **(env or {})},
    )


def error_of(*words: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """The exit code and the one line of a command that must fail: more than a line, or a traceback, is a failure."""
    done = run(*words, env=env)
    assert done.returncode != 0, f"{words} succeeded: {done.stdout}"
    lines = done.stderr.splitlines()
    assert len(lines) == 1, f"not one line: {done.stderr}"
    assert lines[0].startswith("vsockfwd: ")
    return done.returncode, lines[0].removeprefix("vsockfwd: ")


class Server:
    """A command that stays; ended, by its own process id, when the block ends."""

    def __init__(
        self,
        *words: str,
        env: dict[str, str] | None = None,
        first: str = "listening",
        command: Sequence[str] = COMMAND,
    ) -> None:
        """`first`: the event by which it shows that it is at work."""
        self.words = words
        self.first = first
        self.process = subprocess.Popen(
            [*command, *words, "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self.events: list[dict[str, object]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                self.events.append(json.loads(line))
            except ValueError as error:
                raise AssertionError(f"no JSON: {line!r}") from error

    def of(self, kind: str) -> list[dict[str, object]]:
        return [event for event in self.events if event["event"] == kind]

    def wait_for(self, kind: str, count: int = 1) -> list[dict[str, object]]:
        """Events of a kind, once there are so many."""

        def there() -> bool:
            assert self.process.poll() is None or len(self.of(kind)) >= count, self.errors()
            return len(self.of(kind)) >= count

        wait_until(there)
        return self.of(kind)

    def errors(self) -> str:
        if self.process.poll() is None:
            return "still running"
        assert self.process.stderr is not None
        return self.process.stderr.read()

    @property
    def address(self) -> str:
        return str(self.wait_for("listening")[0]["address"])

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def signal(self, number: int) -> int:
        """Send a signal; returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(DEADLINE)

    def __enter__(self) -> Server:
        self.wait_for(self.first)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join(DEADLINE)
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


def wait_until(condition: Callable[[], bool], seconds: float = DEADLINE) -> None:
    """Poll a condition that belongs to another process."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@contextlib.contextmanager
def agent(folder: Path, *words: str, env: dict[str, str] | None = None) -> Iterator[Server]:
    """An agent on a UNIX socket in `folder`."""
    with Server("serve", "--listen", f"unix:{folder}/agent.sock", *words, env=env) as server:
        yield server
