"""Lines for a service's log: everything that happened, by how much it matters, one line a connection at its end.

On standard error, as text or as JSON with the time in it. Where that is the journal, each line says its priority
(sd-daemon(3)), and neither the time nor the program's name, which the journal knows.

The thing to understand first: a stranger must not be able to fill a disk. What one can cause without being let in,
being turned away and failing to say hello, is counted per source, and past `LINES` in `WINDOW` seconds only the count
is written, when the window is over. Nothing here has a clock of its own: a count is told with the next event after it,
or at the end, and says what span it is about.
"""

from __future__ import annotations

import datetime
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import TextIO

import msgspec

from vsockfwd.errors import printable
from vsockfwd.events import (
    ClientAway,
    Closed,
    Denied,
    Dropped,
    Ending,
    Event,
    FileDone,
    Moved,
    Opened,
    Planned,
    Problem,
    RuleChanged,
    SessionDown,
)
from vsockfwd.report.lines import LINE_LIMIT, json_of, put_line

LINES = 10
"""Lines of one kind that a source may cause in a window."""

WINDOW = 10.0
"""Seconds."""

SOURCES = 256
"""Sources that are counted apart; those beyond share one count."""


class Severity(IntEnum):
    """How much an event matters, in the numbers of syslog(3)."""

    ERROR = 3
    WARNING = 4
    INFO = 6
    DEBUG = 7


class Repeated(Event, frozen=True):
    """Lines that were left out: more of one kind, from one source, within so many seconds."""

    kind: str
    source: str
    count: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.source}: {self.count} more {self.kind} like this within {self.seconds:.1f} s"


def severity(event: Event) -> Severity:
    """How much an event matters to who runs the service."""
    match event:
        case Problem():
            return Severity.ERROR
        case FileDone(error=error) if error:
            return Severity.ERROR
        case Closed(outcome=outcome):
            return Severity.INFO if outcome.ending in (Ending.COMPLETE, Ending.STOPPED) else Severity.WARNING
        case ClientAway() | Denied() | Dropped() | SessionDown() | Repeated():
            return Severity.WARNING
        case RuleChanged(why=why) if why:
            return Severity.WARNING
        case Opened() | Planned() | Moved():
            return Severity.DEBUG
        case _:
            return Severity.INFO


def is_journal(out: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether `out` leads to the journal: JOURNAL_STREAM holds the device and inode of that (systemd.exec(5))."""
    try:
        found = os.fstat(out.fileno())
    except (OSError, ValueError):
        return False
    return environment.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


Form = Callable[[Event, Severity], str]


def journal_form(event: Event, severity: Severity) -> str:
    """Text for the journal: each line is an entry of its own, so each begins with the priority."""
    return "\n".join(f"<{severity:d}>{line}" for line in _text(event).split("\n"))


def text_form(event: Event, severity: Severity) -> str:
    """Text for any other log."""
    return f"{_now()} vsockfwd: {_text(event)}"


def json_form(event: Event, severity: Severity) -> str:
    """One JSON object: the time, the level, and what the event holds."""
    head = msgspec.json.encode({"time": _now(), "level": severity.name.lower()}).decode()
    return f"{head[:-1]},{json_of(event)[1:]}"


def _text(event: Event) -> str:
    """The event in words, and a bug's traceback in lines of its own."""
    lines = [str(event)]
    if isinstance(event, Problem) and event.detail:
        lines += event.detail.rstrip().split("\n")
    return "\n".join(printable(line, LINE_LIMIT) for line in lines)


def _now() -> str:
    """RFC 3339, in UTC, to the millisecond."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class LogReporter:
    """Writes what matters at least as much as `least`."""

    def __init__(
        self, out: TextIO, form: Form, least: Severity = Severity.INFO, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.out = out
        self.form = form
        self.least = least
        self._clock = clock
        self._tallies: dict[tuple[str, str], _Tally] = {}
        """The windows that are open, in the order in which they end."""

    def __call__(self, event: Event) -> None:
        if severity(event) > self.least:
            return
        now = self._clock()
        while self._tallies and now - next(iter(self._tallies.values())).began >= WINDOW:
            self._tell_next()
        if not isinstance(event, Denied | Problem) or self._counted(event, now):
            self._write(event)

    def _counted(self, event: Denied | Problem, now: float) -> bool:
        """Count an event that a stranger may have caused; whether it is still to be written."""
        key = type(event).__name__.lower(), source(event)
        if key not in self._tallies and len(self._tallies) >= SOURCES:
            key = key[0], "others"
        tally = self._tallies.setdefault(key, _Tally(now))
        tally.count += 1
        tally.last = now
        return tally.count <= LINES

    def _tell_next(self) -> None:
        (kind, where), tally = next(iter(self._tallies.items()))
        del self._tallies[kind, where]
        if tally.count > LINES:
            self._write(Repeated(kind, where, tally.count - LINES, round(tally.last - tally.began, 3)))

    def _write(self, event: Event) -> None:
        put_line(self.out, self.form(event, severity(event)))

    def close(self) -> None:
        """Write the counts that are still to be told."""
        while self._tallies:
            self._tell_next()


@dataclass(slots=True)
class _Tally:
    """What one source caused of one kind since its window began."""

    began: float
    last: float = 0.0
    count: int = 0


_OF_THE_MOMENT = re.compile(r":\d+$| \(pid \d+\)$")


def source(event: Denied | Problem) -> str:
    """Who or what an event is about, without what is new in each connection: a port, a process."""
    return printable(_OF_THE_MOMENT.sub("", event.peer if isinstance(event, Denied) else event.where), 200)
