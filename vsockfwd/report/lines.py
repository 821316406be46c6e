"""One line an event: plain text for people, JSON for programs; which events, by how often `-v` was said."""

from __future__ import annotations

import select
from typing import TextIO

import msgspec

from vsockfwd.errors import printable
from vsockfwd.events import Closed, Event, FileDone, FileMoving, Moved, Opened, Planned, Problem, RuleChanged, SessionUp

LINE_LIMIT = 2000

QUIET = -1
"""The level of those who want nothing but errors."""


def level(event: Event) -> int:
    """How often `-v` must have been said for an event to be shown."""
    match event:
        case Opened():  # these two first, as they come by the thousand
            return 2
        case Closed():
            return 1 if event.outcome.clean else 0
        case Moved() | FileMoving():
            return 3
        case Planned():
            return 2
        case FileDone(error=error):
            return QUIET if error else 0 if event.would_change else 1
        case Problem():
            return QUIET
        case SessionUp():
            return 1
        case RuleChanged(state=state, why=why):
            return 0 if why and state != "failed" else 1  # a failure at the start is the command's own error
        case _:
            return 0


class LineReporter:
    """Text lines, each with the program's name in front; a problem's traceback only where it was asked for."""

    def __init__(self, out: TextIO, verbosity: int) -> None:
        self.out = out
        self.verbosity = verbosity

    def __call__(self, event: Event) -> None:
        if level(event) <= self.verbosity:
            self.write(self.text(event))

    def text(self, event: Event) -> str:
        line = f"vsockfwd: {printable(str(event), LINE_LIMIT)}"
        if isinstance(event, Problem) and event.detail and self.verbosity >= 2:
            line += "\n" + event.detail
        return line

    def write(self, line: str) -> None:
        put_line(self.out, line)

    def close(self) -> None:
        """Nothing is held back."""


class JsonReporter:
    """One JSON object a line. None is dropped: a program that asked for them is waited for."""

    def __init__(self, out: TextIO, verbosity: int) -> None:
        self.out = out
        self.verbosity = max(verbosity, 1)

    def __call__(self, event: Event) -> None:
        if level(event) <= self.verbosity:
            put_line(self.out, json_of(event), wait=True)

    def close(self) -> None:
        """Nothing is held back."""


def put_line(out: TextIO, line: str, *, wait: bool = False) -> None:
    """Write a line. Where the reader has no room for it now it is waited for, or else the line is dropped.

    What is said to people is dropped: who does not read it must not stop the work.
    """
    if not _takes_more(out, wait):
        return
    try:
        out.write(line + "\n")  # in one piece: other processes may write there too
        out.flush()
    except (OSError, ValueError):
        pass  # nobody reads our words any more: the work goes on


def _takes_more(out: TextIO, wait: bool) -> bool:
    """Whether a line can be written without waiting for a reader: poll(2) says so for PIPE_BUF bytes."""
    try:
        number = out.fileno()
    except (OSError, ValueError):
        return True
    poll = select.poll()
    poll.register(number, select.POLLOUT)
    return bool(poll.poll(None if wait else 0))


def json_of(event: Event) -> str:
    """The event as JSON; names that are not UTF-8, which JSON cannot hold, with their odd bytes escaped."""
    try:
        return msgspec.json.encode(event).decode()
    except UnicodeEncodeError:
        fields = msgspec.to_builtins(event)
        return msgspec.json.encode(
            {name: printable(value) if isinstance(value, str) else value for name, value in fields.items()}
        ).decode()
