"""What became of each file: events on the way, and in the end how the command ends.

The same on both sides; only the client's account has somebody to tell it to.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from vsockfwd.plugin import (
    Code,
    FileDone,
    FileMoving,
    Moved,
    Planned,
    Problem,
    Report,
    SomeFailed,
    Summary,
    VsockfwdError,
    printable,
)
from vsockfwd_copy.attributes import NOTHING_LOST, Loss
from vsockfwd_copy.messages import Done, Failure

NAME_LIMIT = 5000
"""Characters of a file's path that are told."""

PLAN_INTERVAL = 0.1
"""Seconds between two tellings of a plan that still grows."""

AT_WORK_SIZE = 64 << 20
"""Bytes from which on a file's own progress is told beside the whole's."""

_OWN_EXIT = frozenset({Code.NOT_FOUND, Code.EXISTS, Code.NO_SPACE, Code.PERMISSION, Code.VERIFICATION, Code.IO})
"""Failures that say why a command failed all of whose files failed so; anything else is "some failed"."""

_WORDS = {Done.NEW: "new", Done.REPLACED: "replaced", Done.SAME: "unchanged", Done.KEPT: "kept"}


class HasTitle(Protocol):
    """What can say what a person calls it."""

    @property
    def title(self) -> bytes: ...


Titled = bytes | HasTitle


class Outcome(msgspec.Struct, frozen=True):
    """What became of one entry: what it is called (asked only where it is told), and its size in bytes."""

    what: Titled
    size: int = 0
    is_file: bool = True
    failure: Failure | None = None
    done: Done = Done.NEW
    lost: Loss = NOTHING_LOST

    @property
    def title(self) -> bytes:
        return self.what if isinstance(self.what, bytes) else self.what.title


@dataclass(frozen=True, slots=True)
class Totals:
    """What a copy came to. Files are regular files and symlinks; `bytes` are those of `new` and `replaced` ones, and
    `carried` those of them that had to be sent."""

    new: int = 0
    replaced: int = 0
    unchanged: int = 0
    kept: int = 0
    removed: int = 0
    failed: int = 0
    bytes: int = 0
    carried: int = 0
    seconds: float = 0.0


class Account:
    """The account of one copy. Counts regular files and symlinks; of directories only those that failed."""

    def __init__(
        self,
        report: Report,
        what: str,
        *,
        dry_run: bool = False,
        demanded: bool = False,
        tells_files: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`demanded`: attributes that could not be kept make it fail. `tells_files`: whether each file that did not
        fail is told."""
        self._report = report
        self._clock = clock
        self._began = clock()
        self._told = 0.0
        self._planned_files = self._planned_bytes = 0
        self._entries = 0
        self._first: tuple[str, Failure] | None = None
        self._codes: set[int] = set()
        self._lost: Counter[Loss] = Counter()
        self._demanded = demanded
        self._tells_files = tells_files
        self._dry_run = dry_run
        self._done: Counter[Done] = Counter()
        self.what = what
        self.bytes = self.carried = self.failed = self.removals = 0
        """`carried`: bytes of content that were sent, as far as this side knows."""

    @property
    def totals(self) -> Totals:
        """What it has come to."""
        counts = {_WORDS[done]: self._done[done] for done in Done}
        return Totals(
            **counts,
            removed=self.removals,
            failed=self.failed,
            bytes=self.bytes,
            carried=self.carried,
            seconds=self._clock() - self._began,
        )

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

    def at_work(self, title: bytes, position: int, size: int) -> None:
        """A large file has come so far."""
        if size >= AT_WORK_SIZE:
            self._report(FileMoving(printable(title, NAME_LIMIT), position, size))

    def answered(self, outcome: Outcome) -> None:
        """An entry is in its place, or failed."""
        if outcome.failure is not None:
            self._failed(outcome.title, outcome.failure)
            return
        if outcome.lost:
            self._lost.update(outcome.lost)
        self._entries += 1
        if not outcome.is_file:
            return
        self._done[outcome.done] += 1
        moved = outcome.size if outcome.done in (Done.NEW, Done.REPLACED) else 0
        self.bytes += moved
        if self._tells_files:
            name, word = printable(outcome.title, NAME_LIMIT), _WORDS[outcome.done]
            self._report(FileDone(name, outcome.size, done=word, dry_run=self._dry_run))

    def removed(self, path: bytes, failure: Failure | None) -> None:
        """What the sender does not have was removed at the destination, or could not be."""
        if failure is not None:
            self._failed(path, failure)
            return
        self._entries += 1
        self.removals += 1
        self._report(FileDone(printable(path, NAME_LIMIT), 0, done="removed", dry_run=self._dry_run))

    def _failed(self, title: bytes, failure: Failure) -> None:
        name = printable(title, NAME_LIMIT)
        self.failed += 1
        self._codes.add(failure.code)
        self._first = self._first or (name, failure)
        self._report(FileDone(name, 0, printable(failure.text)))

    def conclude(self) -> VsockfwdError | None:
        """Tell the summary; the error that the command ends with, if it does.

        Where one failure is all there is to tell, it has been told: an error is one line.
        """
        totals = self.totals
        for loss, count in self._lost.items():
            self._report(Problem(self.what, f"{loss.words} of {count} could not be kept"))
        if self._told or self._entries or self.failed > 1:
            self._tell_plan()
            files = totals.new + totals.replaced
            self._report(
                Summary(
                    self.what,
                    files,
                    totals.bytes,
                    totals.failed,
                    totals.seconds,
                    unchanged=totals.unchanged,
                    kept=totals.kept,
                    removed=totals.removed,
                    dry_run=self._dry_run,
                )
            )
        if self._first is None:
            if self._lost and self._demanded:
                return SomeFailed(f"{', '.join(loss.words for loss in self._lost)}: not everywhere kept")
            return None
        name, failure = self._first
        error = failure.error(name)
        if not self._entries and self._codes <= _OWN_EXIT and len(self._codes) == 1:
            return error
        others = f", and {self.failed - 1} more failed" if self.failed > 1 else ""
        return SomeFailed(f"{error.message}{others}")
