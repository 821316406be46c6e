"""Events → what a person or a program sees: lines, JSON lines, tqdm bars.

`reporter` chooses by the flags. A reporter is called from the event loop: it formats and writes, nothing else.
"""

from __future__ import annotations

import sys
from typing import TextIO

from vsockfwd.events import Report, ignore
from vsockfwd.report.lines import JsonReporter, LineReporter


def reporter(verbosity: int, quiet: bool, json: bool, errors: TextIO | None = None) -> Report:
    """The reporter that the common flags ask for. Lines and bars go to standard error, JSON to standard output."""
    errors = errors or sys.stderr
    if json:
        return JsonReporter(sys.stdout, verbosity)
    if quiet:
        return ignore
    lines = LineReporter(errors, verbosity)
    if errors.isatty():
        from vsockfwd.report.bars import BarReporter

        return BarReporter(errors, lines)
    return lines
