"""A tqdm bar for a transfer, on a terminal; lines of other events are written above it."""

from __future__ import annotations

from typing import Any, TextIO

from tqdm import tqdm

from vsockfwd.errors import printable
from vsockfwd.events import Event, FileDone, FileMoving, Moved, Planned, Summary
from vsockfwd.report.lines import LineReporter, level

NAME_WIDTH = 40
"""Columns for what a bar is about."""


class BarReporter:
    """A bar for the whole transfer and one for the large file at work, fed by what the receiver knows; everything else
    as lines."""

    def __init__(self, out: TextIO, lines: LineReporter) -> None:
        self.out = out
        self.lines = lines
        self._bar: tqdm[Any] | None = None
        self._file: tqdm[Any] | None = None
        self._file_name = ""
        self._plans: dict[str, Planned] = {}
        """Transfers beside each other: they share the bar until the last is over."""
        self._over: set[str] = set()
        self._files = 0
        self._total_files = -1

    def __call__(self, event: Event) -> None:
        match event:
            case Planned():
                self._plan(event)
            case Moved():
                if self._bar is not None:
                    self._bar.update(event.bytes)
            case FileMoving():
                self._move(event)
            case Summary():
                self._over.add(event.what)
                if self._over >= self._plans.keys():
                    self.close()
                    self._plans.clear()
                self._above(event)
            case _:
                if isinstance(event, FileDone) and self._bar is not None:
                    self._done(event.name)
                    self._files += 1
                    if self._total_files > 1:
                        self._bar.set_postfix_str(f"{self._files}/{self._total_files} files", refresh=False)
                if level(event) <= self.lines.verbosity:
                    self._above(event)

    def _plan(self, event: Planned) -> None:
        self._plans[event.what] = event
        plans = self._plans.values()
        total = sum(plan.bytes for plan in plans) if all(plan.bytes >= 0 for plan in plans) else None
        self._total_files = sum(plan.files for plan in plans)
        if self._bar is None:
            self._bar = self._new_bar(event.what, total, leave=True)
        else:
            self._bar.total = total
            self._bar.refresh()

    def _new_bar(self, what: str, total: int | None, *, leave: bool) -> tqdm[Any]:
        return tqdm(
            total=total, unit="B", unit_scale=True, unit_divisor=1024, file=self.out, dynamic_ncols=True,
            desc=_short(printable(what)), mininterval=0.1, leave=leave,
        )  # fmt: skip

    def _move(self, event: FileMoving) -> None:
        if self._bar is None or self._total_files == 1:
            return  # the whole is this one file
        if self._file is None or event.name != self._file_name:
            self._done(self._file_name)
            self._file, self._file_name = self._new_bar(event.name, event.bytes, leave=False), event.name
        self._file.update(event.position - self._file.n)

    def _done(self, name: str) -> None:
        if self._file is not None and name == self._file_name:
            self._file.close()
            self._file = None

    def _above(self, event: Event) -> None:
        if self._bar is None:
            self.lines(event)
        else:
            self._bar.write(self.lines.text(event), file=self.out)

    def close(self) -> None:
        """Take the bar off the screen's last line, also where the transfer failed."""
        self._done(self._file_name)
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _short(name: str) -> str:
    """The end of a name, which tells most."""
    return name if len(name) <= NAME_WIDTH else "…" + name[1 - NAME_WIDTH :]
