"""What became of each file: events on the way, and in the end how the command ends.

The same on both sides; only the client's account has somebody to tell it to.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from vsockfwd.plugin import Code, FileDone, Moved, Planned, Report, SomeFailed, Summary, VsockfwdError, printable
from vsockfwd_copy.messages import Failure

NAME_LIMIT = 5000
"""Characters of a file's path that are told."""

PLAN_INTERVAL = 0.1
"""Seconds between two tellings of a plan that still grows."""

_OWN_EXIT = frozenset({Code.NOT_FOUND, Code.EXISTS, Code.NO_SPACE, Code.PERMISSION, Code.VERIFICATION, Code.IO})
"""Failures that say why a command failed all of whose files failed so; anything else is "some failed"."""


class Account:
    """The account of one copy. Counts regular files and symlinks; of directories only those that failed."""

    def __init__(self, report: Report, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._report = report
        self._clock = clock
        self._began = clock()
        self._told = 0.0
        self._planned_files = self._planned_bytes = 0
        self._entries = 0
        self._first: tuple[str, Failure] | None = None
        self._codes: set[int] = set()
        self.what = what
        self.files = self.bytes = self.failed = 0

    def plan(self, files: int, size: int) -> None:
        """So many more files and bytes were announced."""
        self._planned_files += files
        self._planned_bytes += size
        if size and self._clock() - self._told >= PLAN_INTERVAL:
            self._tell_plan()

    def _tell_plan(self) -> None:
        self._told = self._clock()
        self._report(Planned(self.what, self._planned_files, self._planned_bytes))

    def moved(self, size: int) -> None:
        """So many more bytes have been written by the receiver."""
        if size:
            self._report(Moved(size))

    def answered(self, title: bytes, size: int, is_file: bool, failure: Failure | None) -> None:
        """An entry is in its place, or failed."""
        name = printable(title, NAME_LIMIT)
        if failure is not None:
            self.failed += 1
            self._codes.add(failure.code)
            self._first = self._first or (name, failure)
            self._report(FileDone(name, 0, printable(failure.text)))
            return
        self._entries += 1
        if is_file:
            self.files += 1
            self.bytes += size
            self._report(FileDone(name, size))

    def conclude(self) -> VsockfwdError | None:
        """Tell the summary; the error that the command ends with, if it does.

        Where one failure is all there is to tell, it has been told: an error is one line.
        """
        if self._told or self._entries or self.failed > 1:
            self._tell_plan()
            self._report(Summary(self.what, self.files, self.bytes, self.failed, self._clock() - self._began))
        if self._first is None:
            return None
        name, failure = self._first
        error = failure.error(name)
        if not self._entries and self._codes <= _OWN_EXIT and len(self._codes) == 1:
            return error
        others = f", and {self.failed - 1} more failed" if self.failed > 1 else ""
        return SomeFailed(f"{error.message}{others}")
