"""Contenders, rounds and ratios: every contender is measured in turn, A B A B, and compared within its own round."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

Command = Sequence[str]

# An installed program starts from compiled modules: where an environment forbids Python to write them, every start of
# ours would compile itself anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Memory:
    """KiB that processes hold: each one's resident pages; and with shared pages divided among those who share them."""

    rss: int
    pss: int


@dataclass
class Running:
    """A contender's processes, and what they have used."""

    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    said: BinaryIO | None = None
    """The file that is their standard error."""

    def state(self) -> str:
        """Which of the processes have ended, and what was last said on standard error."""
        ended = [process for process in self.processes if process.poll() is not None]
        told = [f"{process.args!r} ended with {process.returncode}" for process in ended]
        if self.said:  # its offset is theirs too
            said = os.pread(self.said.fileno(), 1 << 20, 0).decode(errors="replace")
            told += said.splitlines()[-5:]
        return "; ".join(told)

    def cpu_seconds(self) -> float:
        """User and system seconds of the processes, of their children that live and of those that were reaped."""
        return cpu_seconds(self._pids())

    def memory(self) -> Memory:
        """Of the processes and of their children that live."""
        each = [_memory(pid) for pid in self._pids()]
        return Memory(sum(one.rss for one in each), sum(one.pss for one in each))

    def _pids(self) -> list[int]:
        return family([process.pid for process in self.processes])


def cpu_seconds(pids: list[int]) -> float:
    """User and system seconds, those of children that were reaped included."""
    return sum(map(_cpu, pids))


def family(pids: list[int]) -> list[int]:
    """The processes and their children that live."""
    found = list(pids)
    for pid in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += [int(word) for word in (task / "children").read_text().split()]
    return found


def _cpu(pid: int) -> float:
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, words[11:15])) / TICK


def _memory(pid: int) -> Memory:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:  # it has ended meanwhile
        return Memory(0, 0)
    sizes = {name: int(size) for name, size, *_ in map(str.split, lines)}
    return Memory(sizes.get("Rss:", 0), sizes.get("Pss:", 0))


@contextlib.contextmanager
def running(*commands: Command, ready: Callable[[], bool], env: dict[str, str] | None = None) -> Iterator[Running]:
    """Start commands, wait until `ready`, and end them, by their own process ids, after the block.

    What they say on standard error (socat says a line for each stream that is cut off) is kept for the error that
    tells that one did not start.
    """
    with tempfile.TemporaryFile() as said:
        started = Running(said=said)
        try:
            for command in commands:
                started.processes.append(
                    subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said, env=env)
                )
            deadline = time.monotonic() + 15
            while not ready():
                if time.monotonic() > deadline or any(process.poll() is not None for process in started.processes):
                    raise RuntimeError(f"did not start: {commands}: {started.state()}")
                time.sleep(0.02)
            yield started
        finally:
            _end(started)


def _end(started: Running) -> None:
    for process in started.processes:
        process.send_signal(signal.SIGTERM)
    for process in started.processes:
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def accepts(family: int, address: object) -> Callable[[], bool]:
    """Whether something listens there."""

    def ready() -> bool:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            return probe.connect_ex(address) == 0  # type: ignore[arg-type]

    return ready


def free_port() -> int:
    """A TCP port of loopback that nothing listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


_recorded: ContextVar[list[Table] | None] = ContextVar("recorded", default=None)


@contextlib.contextmanager
def recorded() -> Iterator[list[Table]]:
    """The tables that are made meanwhile: of a subject that answers with a text, its values."""
    tables: list[Table] = []
    token = _recorded.set(tables)
    try:
        yield tables
    finally:
        _recorded.reset(token)


@dataclass
class Table:
    """Figures of one case: contender → one value a round."""

    title: str
    unit: str
    ours: str
    values: dict[str, list[float]] = field(default_factory=dict)
    more: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (tables := _recorded.get()) is not None:
            tables.append(self)

    def add(self, name: str, value: float, cpu: float | None = None) -> None:
        self.values.setdefault(name, []).append(value)
        if cpu is not None:
            self.more.setdefault(name, []).append(cpu)

    def ratios(self, other: str) -> list[float]:
        """Ours over another's, round by round."""
        return [a / b for a, b in zip(self.values[self.ours], self.values[other], strict=True)]

    def markdown(self) -> str:
        lines = [
            f"### {self.title}",
            "",
            f"| | {self.unit}: median | min – max | {'CPU s a GiB | ' if self.more else ''}ours to it (min – max) |",
            "|---|---|---|---|" + ("---|" if self.more else ""),
        ]
        for name, values in self.values.items():
            cpu = f"{statistics.median(self.more[name]):.2f} | " if self.more else ""
            ratios = self.ratios(name)
            told = (
                ""
                if name == self.ours
                else f"**{statistics.median(ratios):.2f}×** ({min(ratios):.2f} – {max(ratios):.2f})"
            )
            lines.append(
                f"| {name} | {statistics.median(values):,.2f} | {min(values):,.2f} – {max(values):,.2f} | {cpu}{told} |"
            )
        return "\n".join(lines) + "\n"


def vsockfwd(*words: str) -> list[str]:
    """Our own command line, by the interpreter that runs the bench."""
    return [sys.executable, "-m", "vsockfwd", *words]


def version(*command: str) -> str:
    """The first line of what a program says of itself, or that it is missing."""
    if shutil.which(command[0]) is None:
        return f"{command[0]}: not installed"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    text = (done.stdout + done.stderr).strip().splitlines()
    return next((line for line in text if any(map(str.isdigit, line))), command[0])


def setting() -> str:
    """Where the figures come from."""
    return (
        f"{time.strftime('%Y-%m-%d')}, Linux {platform.release()}, Python {platform.python_version()}, "
        f"{os.cpu_count()} cores"
    )
