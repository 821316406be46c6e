"""What the two state machines share: the preface, a direction each, and a table of what may be sent when.

A direction is what one side sends. Its table maps (state, frame type) to the state after; what is not in the table
is a LocalProtocolError when we are about to send it and PeerBrokeProtocol when the peer did.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum, auto
from typing import ClassVar

from vsockfwd.errors import LocalProtocolError, PeerBrokeProtocol
from vsockfwd.wire.frames import (
    AGENT_PREFACE,
    CLIENT_PREFACE,
    FIRST_MODE_TYPE,
    FIRST_SKIPPED_TYPE,
    PREFACE_LENGTH,
    Buffer,
    FrameParser,
    FrameType,
    RawFrame,
    check_preface,
    frame_name,
)


class Role(Enum):
    """Who asks and who serves; it does not matter who dialled."""

    CLIENT = "client"
    AGENT = "agent"

    __hash__ = object.__hash__  # an Enum's own is Python's, by the name, and is asked for each frame

    @property
    def other(self) -> Role:
        return Role.AGENT if self is Role.CLIENT else Role.CLIENT


class State(Enum):
    """Where a direction stands."""

    __hash__ = object.__hash__  # as Role's
    START = auto()
    """Nothing was sent yet."""
    ASKED = auto()
    """HELLO or OPEN was sent; the answer is awaited."""
    PROVED = auto()
    """AUTH was sent."""
    OPEN = auto()
    """READY or OK was said: both directions are free."""
    ENDED = auto()
    """END was sent: complete."""
    OVER = auto()
    """ERROR, RESET or BYE was sent: nothing follows."""


NOT_AN_AGENT = "is it an agent (`vsockfwd serve`) that listens there?"

Table = Mapping[State, Mapping[int, State]]

_PREFACE = {Role.CLIENT: CLIENT_PREFACE, Role.AGENT: AGENT_PREFACE}


class Machine:
    """The base of both machines. A subclass gives the tables and says what a frame means."""

    tables: ClassVar[Mapping[Role, Table]]
    opening: ClassVar[frozenset[int]]
    """Frames that set both directions to OPEN."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.ours = State.START
        self.theirs = State.START
        self.parser = FrameParser()
        self._preface = bytearray()
        self._sent_preface = False

    # --- sending

    def _sending(self, kind: int) -> bytes:
        """Check and note that we are about to send a frame; returns the preface if it is still owed."""
        self.ours = self._next(self.role, self.ours, kind, LocalProtocolError, "we")
        if kind in self.opening:
            self._open()
        if self._sent_preface:
            return b""
        self._sent_preface = True
        return _PREFACE[self.role]

    # --- receiving

    def _frames(self, data: Buffer) -> Iterator[RawFrame | memoryview]:
        """Take the preface off the front, then yield what the parser finds, each frame checked against the table."""
        view = memoryview(data)
        if len(self._preface) < PREFACE_LENGTH:
            take = PREFACE_LENGTH - len(self._preface)
            self._preface += view[:take]
            check_preface(self._preface + view[take : take + 64], _PREFACE[self.role.other])
            view = view[take:]
        for item in self.parser.receive_data(view):
            if isinstance(item, RawFrame):
                self._received(item.kind)
            elif self.theirs is not State.OPEN:
                self._received(FrameType.DATA)
            yield item

    def _received(self, kind: int) -> None:
        self.theirs = self._next(self.role.other, self.theirs, kind, PeerBrokeProtocol, "the peer")
        if kind in self.opening:
            self._open()

    def _open(self) -> None:
        """Set both directions free, but for one that is over already: a RESET and an OK may cross."""
        self.ours = self.ours if self.ours is State.OVER else State.OPEN
        self.theirs = self.theirs if self.theirs is State.OVER else State.OPEN

    def _next(self, role: Role, state: State, kind: int, error: type[Exception], who: str) -> State:
        row = self.tables[role].get(state, {})
        found = row.get(FIRST_MODE_TYPE if FIRST_MODE_TYPE <= kind < FIRST_SKIPPED_TYPE else kind)
        if found is None:
            raise error(f"{who} sent {frame_name(kind)} where the protocol has no place for it ({state.name.lower()})")
        return found

    @property
    def heard_nothing(self) -> bool:
        """Whether not a byte came from the peer."""
        return not self._preface
