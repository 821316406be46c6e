"""What happened, as values. The engine and the modes make them, a reporter turns them into bars, lines and logs.

Nothing here knows how it will be shown. A reporter is a plain function that takes an event: synchronous, never
raising, never blocking. Sizes are bytes, times are seconds. Every event prints as one line of English and encodes as
one JSON object whose `event` field is the class name in lower case.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from enum import StrEnum
from typing import Self

import msgspec

from vsockfwd.errors import VsockfwdError, the_one


class Ending(StrEnum):
    """How a connection, a forward or a copy ended. "It stopped" is not among them."""

    COMPLETE = "complete"
    """Both directions said that they were complete, as far as the last hop can say so."""
    RESET = "reset"
    REFUSED = "refused"
    TIMED_OUT = "timed out"
    TRUNCATED = "truncated"
    FAILED = "failed"
    STOPPED = "stopped"
    """We were told to stop."""


class Event(msgspec.Struct, frozen=True, tag_field="event", tag=str.lower):
    """The base of all events."""


class Outcome(msgspec.Struct, frozen=True):
    """How a relay ended: the ending, which side brought it about, the reason in words, bytes each way, seconds."""

    ending: Ending
    by: str = ""
    why: str = ""
    sent: int = 0
    received: int = 0
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        return self.ending is Ending.COMPLETE

    def __str__(self) -> str:
        text = str(self.ending)
        if self.by:
            text += f" by {self.by}"
        if self.why:
            text += f": {self.why}"
        return text


class Listening(Event, frozen=True):
    """A listener is open. `address` is what was bound, with the port that the kernel chose."""

    address: str
    purpose: str

    def __str__(self) -> str:
        return f"listening on {self.address} {self.purpose}".rstrip()


class Opened(Event, frozen=True):
    """A connection was taken; it is about to be served."""

    rule: str
    peer: str

    def __str__(self) -> str:
        return f"{self.rule}: opened by {self.peer}"


class Closed(Event, frozen=True):
    """A connection is over."""

    rule: str
    peer: str
    outcome: Outcome

    def __str__(self) -> str:
        o = self.outcome
        return f"{self.rule}: {self.peer}: {o}, {o.sent} bytes out, {o.received} bytes in, {o.seconds:.3f} s"


class RuleChanged(Event, frozen=True):
    """A rule is up, down or over. `state` is one of engine.rules.State."""

    rule: str
    state: str
    why: str = ""

    def __str__(self) -> str:
        return f"{self.rule}: {self.state}{': ' if self.why else ''}{self.why}"


class Reloaded(Event, frozen=True):
    """The config file was read again; the names of the rules that were stopped and started."""

    file: str
    stopped: list[str]
    started: list[str]

    def __str__(self) -> str:
        return f"{self.file} read again: {len(self.stopped)} rules stopped, {len(self.started)} started"


class SessionUp(Event, frozen=True):
    """Logged in to an agent, which saw us as `seen_as`."""

    target: str
    seen_as: str

    def __str__(self) -> str:
        return f"{self.target}: logged in as {self.seen_as}"


class SessionDown(Event, frozen=True):
    """The session with an agent is over; the next request logs in again."""

    target: str
    why: str

    def __str__(self) -> str:
        return f"{self.target}: session lost: {self.why}"


class ClientFound(Event, frozen=True):
    """The place that an agent calls has taken its call: a client waits there, or can begin at once."""

    place: str

    def __str__(self) -> str:
        return f"{self.place}: called, ready for a client"


class ClientAway(Event, frozen=True):
    """Nobody takes the calls of an agent at a place, or nobody that is let in; it goes on calling."""

    place: str
    why: str

    def __str__(self) -> str:
        return f"{self.place}: no client there, calling again: {self.why}"


class Denied(Event, frozen=True):
    """Somebody was turned away. `forged`: it showed a key, and that is none of ours."""

    peer: str
    why: str
    forged: bool = False

    def __str__(self) -> str:
        return f"{self.peer} turned away: {self.why}"


class Confined(Event, frozen=True):
    """What this process can do no more."""

    how: str

    def __str__(self) -> str:
        return f"confined: {self.how}"


class Problem(Event, frozen=True):
    """Something failed that ended nothing else. `detail` may hold a traceback, for those who asked for more."""

    where: str
    why: str
    detail: str = ""

    @classmethod
    def of(cls, where: str, caught: BaseException) -> Self:
        """What was caught: an error of ours in its own line, a bug as its kind and words, with the traceback."""
        error = the_one(caught)
        if isinstance(error, VsockfwdError):
            return cls(where, error.line())
        return cls(where, f"{type(error).__name__}: {error}", "".join(traceback.format_exception(caught)))

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


class Planned(Event, frozen=True):
    """A transfer is about to begin: what it is called, how many files and bytes as far as is known (-1: not known)."""

    what: str
    files: int = -1
    bytes: int = -1

    def __str__(self) -> str:
        return f"{self.what}: {self.files} files, {self.bytes} bytes"


class Moved(Event, frozen=True):
    """So many more bytes of a transfer are where they belong, as their receiver knows."""

    bytes: int
    name: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.bytes} bytes more"


class FileMoving(Event, frozen=True):
    """A large file of a transfer has come so far: bytes that are where they belong, of so many."""

    name: str
    position: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.name}: {self.position} of {self.bytes} bytes"


class FileDone(Event, frozen=True):
    """One file of a transfer is complete and verified, or failed for the reason in `error`.

    `done`: new, replaced, unchanged (it stood there already), kept (another stood there, and was not to be replaced)
    or removed. `dry_run`: so it would be.
    """

    name: str
    bytes: int
    error: str = ""
    done: str = "new"
    dry_run: bool = False

    @property
    def would_change(self) -> bool:
        """Whether this is told since it was not done."""
        return self.dry_run and self.done in ("new", "replaced", "removed")

    def __str__(self) -> str:
        if self.error:
            return f"{self.name}: {self.error}"
        if self.would_change:
            return f"{self.name}: would be {self.done}"
        if self.done in ("new", "replaced"):
            return f"{self.name}: {self.bytes} bytes, verified"
        return f"{self.name}: {self.done}"


class Summary(Event, frozen=True):
    """A transfer is over. `files` and `bytes` are those that were transferred; the others are counted beside them."""

    what: str
    files: int
    bytes: int
    failed: int
    seconds: float
    unchanged: int = 0
    kept: int = 0
    removed: int = 0
    dry_run: bool = False

    def __str__(self) -> str:
        rate = self.bytes / self.seconds / 1e6 if self.seconds else 0.0
        others = [f"{count} {word}" for count, word in self._others() if count]
        if self.dry_run:
            return ", ".join([f"{self.what}: would copy {self.files} files, {self.bytes} bytes", *others])
        tail = "" if self.failed else ", all verified"
        moved = f"{self.what}: {self.files} files, {self.bytes} bytes in {self.seconds:.2f} s ({rate:.1f} MB/s)"
        return ", ".join([moved, *others]) + tail

    def _others(self) -> list[tuple[int, str]]:
        return [
            (self.unchanged, "unchanged"), (self.kept, "kept"), (self.removed, "removed"), (self.failed, "failed"),
        ]  # fmt: skip


class Dropped(Event, frozen=True):
    """Datagrams that were not delivered, by reason, since the last such event."""

    rule: str
    reason: str
    count: int

    def __str__(self) -> str:
        return f"{self.rule}: {self.count} datagrams dropped: {self.reason}"


class Carried(Event, frozen=True):
    """What a datagram rule came to: datagrams out and in, those dropped on either side, bytes out and in.

    `reasons`: those dropped, by reason.
    """

    rule: str
    datagrams_out: int
    datagrams_in: int
    dropped: int
    sent: int
    received: int
    seconds: float
    reasons: dict[str, int] = {}

    def __str__(self) -> str:
        counts = f"{self.datagrams_out} datagrams out, {self.datagrams_in} in, {self.dropped} dropped"
        if self.reasons:
            counts += f" ({', '.join(f'{count} {reason}' for reason, count in self.reasons.items())})"
        return f"{self.rule}: {counts}, {self.sent} bytes out, {self.received} bytes in, {self.seconds:.3f} s"


Report = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The reporter of those who want none."""
