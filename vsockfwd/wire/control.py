"""The control connection: who you are, whether you live, what is announced. It carries no stream's bytes.

                 client                                agent
    START ── HELLO ──▶ ASKED                START ── HELLO ──▶ ASKED ── READY ──▶ both OPEN
                                              │ ERROR            │ ERROR
                                              ▼                  ▼
                                            OVER               OVER
    OPEN: PING, PONG · BYE ──▶ OVER, the same for both

AUTH stands between HELLO and READY, LISTEN, INCOMING, DENY and STATUS in OPEN: their numbers are assigned, their
rows come with what speaks them; until then they are refused as out of place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import msgspec

from vsockfwd.errors import PeerBrokeProtocol, Reset, Unreachable, VersionMismatch, VsockfwdError, printable
from vsockfwd.wire.frames import FRAME_LIMIT, VERSIONS, Buffer, FrameType, RawFrame, pack
from vsockfwd.wire.machine import NOT_AN_AGENT, Machine, Role, State
from vsockfwd.wire.messages import Hello, Ready, choose, decode, encode, error_of, failure_of

PING_LIMIT = 64
"""The most bytes that a PING may carry; its PONG brings them back."""

_UP: dict[int, State] = {FrameType.PING: State.OPEN, FrameType.PONG: State.OPEN, FrameType.BYE: State.OVER}


@dataclass(frozen=True, slots=True)
class Greeted:
    """The peer's HELLO; its versions have been checked."""

    hello: Hello
    version: int


@dataclass(frozen=True, slots=True)
class Welcomed:
    """The client's side: READY."""

    ready: Ready


@dataclass(frozen=True, slots=True)
class Refused:
    """The client's side: ERROR, as the error it stands for."""

    error: VsockfwdError


@dataclass(frozen=True, slots=True)
class Pinged:
    """Asked whether we live; `pong` with the same payload is the answer."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Ponged:
    """The peer lives."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Farewell:
    """The peer ends the session, for the reason in `error`."""

    error: VsockfwdError


ControlEvent = Greeted | Welcomed | Refused | Pinged | Ponged | Farewell


class ControlMachine(Machine):
    """One control connection, either side of it."""

    tables: ClassVar = {
        Role.CLIENT: {State.START: {FrameType.HELLO: State.ASKED}, State.OPEN: _UP},
        Role.AGENT: {
            State.START: {FrameType.HELLO: State.ASKED, FrameType.ERROR: State.OVER},
            State.ASKED: {FrameType.READY: State.OPEN, FrameType.ERROR: State.OVER},
            State.OPEN: _UP,
        },
    }
    opening = frozenset({FrameType.READY})
    offered_frame = FRAME_LIMIT
    """The largest frame, in bytes, that our HELLO offered to take."""

    # --- verbs: each returns the bytes to send

    def hello(self, hello: Hello) -> bytes:
        """Both sides: say who speaks."""
        self.offered_frame = hello.frame
        return self._sending(FrameType.HELLO) + pack(FrameType.HELLO, encode(hello))

    def ready(self, ready: Ready) -> bytes:
        """Agent: welcome the client."""
        return self._sending(FrameType.READY) + pack(FrameType.READY, encode(ready))

    def refuse(self, error: VsockfwdError) -> bytes:
        """Agent: ERROR, and nothing after it."""
        return self._sending(FrameType.ERROR) + pack(FrameType.ERROR, failure_of(error), error.code)

    def ping(self, payload: bytes = b"") -> bytes:
        """Ask whether the peer lives; at most PING_LIMIT bytes."""
        return self._sending(FrameType.PING) + pack(FrameType.PING, payload[:PING_LIMIT])

    def pong(self, payload: bytes) -> bytes:
        """Answer a PING with its own payload."""
        return self._sending(FrameType.PONG) + pack(FrameType.PONG, payload[:PING_LIMIT])

    def bye(self, error: VsockfwdError) -> bytes:
        """End the session, and say why."""
        return self._sending(FrameType.BYE) + pack(FrameType.BYE, failure_of(error), error.code)

    # --- events

    def receive_data(self, data: Buffer) -> list[ControlEvent]:
        """Events of these bytes, in order. Raises PeerBrokeProtocol, or VersionMismatch for a HELLO of no use."""
        return list(self.events(data))

    def events(self, data: Buffer) -> Iterator[ControlEvent]:
        """The same one by one, read as they are asked for: a flood of tiny frames takes no memory."""
        for item in self._frames(data):
            if not isinstance(item, RawFrame):
                raise PeerBrokeProtocol("the peer sent DATA on a control connection, which carries none")
            yield self._event(item)

    def _event(self, frame: RawFrame) -> ControlEvent:
        match frame.kind:
            case FrameType.HELLO:
                hello = decode(frame.payload, Hello, "HELLO")
                version = choose(VERSIONS, hello.versions)
                if version is None:
                    theirs = ", ".join(map(str, hello.versions))
                    raise VersionMismatch(
                        f"the peer speaks protocol version {theirs}, this side {', '.join(map(str, VERSIONS))}",
                        hint="install the same vsockfwd on both sides",
                    )
                return Greeted(hello, version)
            case FrameType.READY:
                return Welcomed(self._check_ready(decode(frame.payload, Ready, "READY")))
            case FrameType.ERROR:
                return Refused(error_of(frame.code, frame.payload, "the agent"))
            case FrameType.PING:
                return Pinged(bytes(frame.payload[:PING_LIMIT]))
            case FrameType.PONG:
                return Ponged(bytes(frame.payload[:PING_LIMIT]))
            case _:
                return Farewell(error_of(frame.code, frame.payload, f"the {self.role.other.value}"))

    def _check_ready(self, ready: Ready) -> Ready:
        """An agent chooses among what the client offered, and its words are fit for a terminal from here on."""
        if ready.version not in VERSIONS:
            raise VersionMismatch(f"the agent chose protocol version {ready.version}, which was not offered")
        if ready.frame > self.offered_frame:
            raise PeerBrokeProtocol(f"the agent chose frames of {ready.frame} bytes, {self.offered_frame} were offered")
        return msgspec.structs.replace(ready, seen_as=printable(ready.seen_as))

    def receive_eof(self) -> None:
        """The bytes are at their end. Returns quietly after ERROR or BYE; raises what it means otherwise."""
        if self.theirs is State.OVER:
            return
        if self.role is Role.CLIENT and self.heard_nothing:
            raise Unreachable("the connection was closed without a word", hint=NOT_AN_AGENT)
        raise Reset(f"the {self.role.other.value} closed the control connection without BYE")
