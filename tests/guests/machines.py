"""Machines to look at: a tree of files as /proc has them, and real processes with a VMM's command line."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.cli.process import wait_until
from vsockfwd.guests.machine import Machine

ME = 1000
OTHER = 1001


@dataclass
class Tree:
    """A machine made of files below a folder."""

    root: Path
    pids: list[int] = field(default_factory=list)

    def machine(self) -> Machine:
        return Machine(self.root, str(self.root / "user"))

    def write(self, path: str, text: str | bytes) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        return file

    def process(
        self,
        *words: str,
        uids: Sequence[int] = (ME,) * 4,
        gids: Sequence[int] | None = None,
        directory: str = "/home/me",
        root: str = "/",
    ) -> int:
        """A process; the four ids are the real one, the effective, the saved and the file system's."""
        pid = 100 + len(self.pids)
        self.pids.append(pid)
        self.write(f"proc/{pid}/cmdline", b"".join(word.encode() + b"\0" for word in words))
        numbers = ["\t".join(map(str, ids)) for ids in (uids, gids or uids)]
        self.write(f"proc/{pid}/status", f"Name:\tany\nUid:\t{numbers[0]}\nGid:\t{numbers[1]}\n")
        (self.root / f"proc/{pid}/cwd").symlink_to(directory)
        (self.root / f"proc/{pid}/root").symlink_to(root)
        return pid


@contextlib.contextmanager
def process(*words: str, directory: Path | None = None) -> Iterator[int]:
    """A real process with such a command line, as far as it goes: a shell's own words stand behind the first."""
    shell = [words[0], "-c", "read line", *words[1:]]
    running = subprocess.Popen(shell, executable="/bin/sh", stdin=subprocess.PIPE, cwd=directory)
    try:
        # The kernel says that the program is executed a moment before its words are to be read.
        wait_until(lambda: Path(f"/proc/{running.pid}/cmdline").read_bytes() != b"")
        yield running.pid
    finally:
        assert running.stdin is not None
        running.stdin.close()
        running.wait()
