"""Events → what a person or a program sees: lines, JSON lines, tqdm bars, a service's log, metrics.

`reporter` chooses by the flags, and by where standard error leads. A reporter is called from the event loop: it formats
and writes, nothing else; it is closed when the command is over, however it ended.
"""

from __future__ import annotations

import io
import sys
from typing import Protocol, TextIO

from vsockfwd.errors import UsageError, printable
from vsockfwd.events import Event, Report
from vsockfwd.report.lines import QUIET, JsonReporter, LineReporter
from vsockfwd.report.log import LogReporter, Severity, is_journal, journal_form, json_form, text_form


class Reporter(Protocol):
    """An events.Report that can be closed."""

    def __call__(self, event: Event) -> None: ...

    def close(self) -> None: ...


LOG_FORMATS = ("text", "json")


def reporter(
    verbosity: int, quiet: bool, json: bool, errors: TextIO | None = None, log_format: str | None = None
) -> Reporter:
    """The reporter that the common flags ask for. Lines and bars go to standard error, JSON to standard output.

    `log_format`, one of LOG_FORMATS: a service's log, on standard error, instead of lines for a person; that is also
    what the journal gets. Raises UsageError for another, and for one beside `json`.
    """
    errors = errors or sys.stderr
    if log_format is not None and log_format not in LOG_FORMATS:
        raise UsageError(f"--log-format {printable(log_format)}: no such format", hint=" or ".join(LOG_FORMATS))
    if log_format is not None and json:
        raise UsageError("--json and --log-format both say where events go", hint="choose one")
    if json:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")  # JSON is, whatever the locale (RFC 8259)
        return JsonReporter(sys.stdout, verbosity)
    journal = is_journal(errors)
    if journal or log_format is not None:
        text = journal_form if journal else text_form
        least = Severity.ERROR if quiet else Severity.DEBUG if verbosity else Severity.INFO
        return LogReporter(errors, json_form if log_format == "json" else text, least)
    if quiet:
        return LineReporter(errors, QUIET)
    lines = LineReporter(errors, verbosity)
    if errors.isatty():
        from vsockfwd.report.bars import BarReporter

        return BarReporter(errors, lines)
    return lines


def both(first: Report, second: Report) -> Report:
    """Tell two reporters of everything."""

    def tell(event: Event) -> None:
        first(event)
        second(event)

    return tell
