"""Events → what a person or a program sees: lines, JSON lines, tqdm bars.

`reporter` chooses by the flags. A reporter is called from the event loop: it formats and writes, nothing else; it is
closed when the command is over, however it ended.
"""

from __future__ import annotations

import io
import sys
from typing import Protocol, TextIO

from vsockfwd.events import Event
from vsockfwd.report.lines import QUIET, JsonReporter, LineReporter


class Reporter(Protocol):
    """An events.Report that can be closed."""

    def __call__(self, event: Event) -> None: ...

    def close(self) -> None: ...


def reporter(verbosity: int, quiet: bool, json: bool, errors: TextIO | None = None) -> Reporter:
    """The reporter that the common flags ask for. Lines and bars go to standard error, JSON to standard output."""
    errors = errors or sys.stderr
    if json:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")  # JSON is, whatever the locale (RFC 8259)
        return JsonReporter(sys.stdout, verbosity)
    if quiet:
        return LineReporter(errors, QUIET)
    lines = LineReporter(errors, verbosity)
    if errors.isatty():
        from vsockfwd.report.bars import BarReporter

        return BarReporter(errors, lines)
    return lines
