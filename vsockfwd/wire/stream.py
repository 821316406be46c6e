"""The stream connection: OPEN, its answer, then a body in both directions, each with an end that is said.

                 client                                agent
    START ── OPEN ──▶ ASKED                 START ── OK ──▶ both OPEN
                        │ RESET               │ ERROR
                        ▼                     ▼
                      OVER                  OVER
    OPEN: DATA, a mode's frames · END ──▶ ENDED · RESET ──▶ OVER, the same for both
    ENDED: RESET ──▶ OVER

The thing to understand first: END alone means complete. The end of the bytes without END is truncation, and
`receive_eof` says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import msgspec

from vsockfwd.contract import Data, Ended, Frame, ModeFrame
from vsockfwd.errors import LocalProtocolError, Reset, Truncated, Unreachable, VsockfwdError
from vsockfwd.wire.frames import (
    FIRST_MODE_TYPE,
    FRAME_LIMIT,
    HANDSHAKE_LIMIT,
    HEADER,
    Buffer,
    FrameType,
    RawFrame,
    pack,
)
from vsockfwd.wire.machine import NOT_AN_AGENT, Machine, Role, State
from vsockfwd.wire.messages import Ok, Open, decode, encode, error_of, failure_of

_BODY: dict[int, State] = {
    FrameType.DATA: State.OPEN,
    FIRST_MODE_TYPE: State.OPEN,
    FrameType.END: State.ENDED,
    FrameType.RESET: State.OVER,
}
_AFTER_END: dict[int, State] = {FrameType.RESET: State.OVER}


@dataclass(frozen=True, slots=True)
class Requested:
    """The agent's side: a client asks. Nothing of it has been believed yet."""

    request: Open


@dataclass(frozen=True, slots=True)
class Accepted:
    """The client's side: OK."""

    answer: Ok


@dataclass(frozen=True, slots=True)
class Refused:
    """The client's side: ERROR, as the error it stands for."""

    error: VsockfwdError


@dataclass(frozen=True, slots=True)
class WasReset:
    """The peer abandoned the stream, for the reason in `error`."""

    error: VsockfwdError


StreamEvent = Requested | Accepted | Refused | WasReset | Data | Ended | Frame


class StreamMachine(Machine):
    """One stream connection, either side of it."""

    tables: ClassVar = {
        Role.CLIENT: {
            State.START: {FrameType.OPEN: State.ASKED},
            State.ASKED: {FrameType.RESET: State.OVER},
            State.OPEN: _BODY,
            State.ENDED: _AFTER_END,
        },
        Role.AGENT: {
            State.START: {FrameType.OK: State.OPEN, FrameType.ERROR: State.OVER},
            State.OPEN: _BODY,
            State.ENDED: _AFTER_END,
        },
    }
    opening = frozenset({FrameType.OK})

    def __init__(self, role: Role, frame_limit: int = FRAME_LIMIT) -> None:
        super().__init__(role)
        self.frame_limit = frame_limit
        """The most bytes of payload a frame of the body may have, in either direction."""
        self.received = 0
        """Bytes of DATA that came."""

    # --- verbs: each returns the bytes to send

    def open(self, request: Open) -> bytes:
        """Client: ask for a stream. Raises LocalProtocolError where the request is larger than a stranger's may be."""
        payload = encode(request)
        if len(payload) > HANDSHAKE_LIMIT:
            raise LocalProtocolError(f"a request of {len(payload)} bytes, where {HANDSHAKE_LIMIT} are the limit")
        return self._sending(FrameType.OPEN) + pack(FrameType.OPEN, payload)

    def accept(self, version: int, reply: msgspec.Struct | None = None) -> bytes:
        """Agent: OK. Raises LocalProtocolError where the reply is larger than a client takes at this point."""
        payload = encode(Ok(version, msgspec.Raw(encode(reply))))
        if len(payload) > HANDSHAKE_LIMIT:
            raise LocalProtocolError(f"a reply of {len(payload)} bytes, where {HANDSHAKE_LIMIT} are the limit")
        preface = self._sending(FrameType.OK)
        self.parser.limit = self.frame_limit
        return preface + pack(FrameType.OK, payload)

    def refuse(self, error: VsockfwdError) -> bytes:
        """Agent: ERROR, and nothing after it."""
        return self._sending(FrameType.ERROR) + pack(FrameType.ERROR, failure_of(error), error.code)

    def data_header(self, length: int) -> bytes:
        """The header of a DATA frame whose payload the caller sends right behind it."""
        if length > self.frame_limit:
            raise LocalProtocolError(f"DATA of {length} bytes, where {self.frame_limit} are the limit")
        self._sending(FrameType.DATA)
        return HEADER.pack(FrameType.DATA, 0, 0, length)

    def frame_header(self, kind: int, length: int) -> bytes:
        """The header of a mode's frame whose payload the caller sends right behind it."""
        if kind not in ModeFrame or length > self.frame_limit:
            raise LocalProtocolError(f"a mode's frame of type {kind} with {length} bytes")
        self._sending(kind)
        return HEADER.pack(kind, 0, 0, length)

    def end(self) -> bytes:
        """This direction is complete."""
        return self._sending(FrameType.END) + pack(FrameType.END)

    def reset(self, error: VsockfwdError) -> bytes:
        """Abandon the stream; nothing of ours follows."""
        return self._sending(FrameType.RESET) + pack(FrameType.RESET, failure_of(error), error.code)

    @property
    def may_reset(self) -> bool:
        """Whether a RESET has a place now."""
        return FrameType.RESET in self.tables[self.role].get(self.ours, {})

    # --- events

    @property
    def data_left(self) -> int:
        """Bytes still to come of the DATA frame whose piece was the last event; nothing else comes before them."""
        return self.parser.data_left

    def took(self, size: int) -> None:
        """So many of those were received past this machine."""
        self.parser.took(size)
        self.received += size

    def receive_data(self, data: Buffer) -> list[StreamEvent]:
        """Events of these bytes, in order. Views in them are good until the next call. Raises PeerBrokeProtocol."""
        return list(self.events(data))

    def events(self, data: Buffer) -> Iterator[StreamEvent]:
        """The same one by one, read as they are asked for: a flood of tiny frames takes no memory."""
        return map(self._event, self._frames(data))

    def _event(self, item: RawFrame | memoryview) -> StreamEvent:
        if isinstance(item, memoryview):
            self.received += len(item)
            return Data(item)
        match item.kind:
            case FrameType.END:
                return Ended()
            case FrameType.RESET:
                return WasReset(error_of(item.code, item.payload, f"the {self.role.other.value}"))
            case FrameType.ERROR:
                return Refused(error_of(item.code, item.payload, "the agent"))
            case FrameType.OPEN:
                return Requested(decode(item.payload, Open, "OPEN"))
            case FrameType.OK:
                self.parser.limit = self.frame_limit
                return Accepted(decode(item.payload, Ok, "OK"))
            case _:
                return Frame(item.kind, item.code, item.payload)

    def receive_eof(self) -> None:
        """The bytes are at their end. Returns quietly after END, ERROR or RESET; raises what it means otherwise."""
        if self.theirs in (State.ENDED, State.OVER) and self.parser.between_frames:
            return
        if self.role is Role.CLIENT and self.theirs is State.START:
            if self.heard_nothing:
                raise Unreachable("the connection was closed without a word", hint=NOT_AN_AGENT)
            raise Reset("the agent closed the connection without an answer")
        raise Truncated(f"the {self.role.other.value}'s stream ended without its END, after {self.received} bytes")
