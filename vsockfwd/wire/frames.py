"""The preface, the frame header, the frame types and the limits: what turns bytes into frames and back.

The thing to understand first: DATA is never assembled. Its payload comes out in the pieces in which it came in, as
views of the caller's own buffer, so a mebibyte in flight costs no copy and no memory here. Every other frame comes
out whole, and its length is checked against the limit before a byte of it is stored.

All integers are big-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from vsockfwd.errors import PeerBrokeProtocol, printable

VERSIONS = (1,)
"""Versions of the protocol that this side speaks, best first."""

PREFACE_LENGTH = 8
CLIENT_PREFACE = b"\xb5VSF\r\nC\n"
AGENT_PREFACE = b"\xb5VSF\r\nA\n"

HANDSHAKE_LIMIT = 4096
"""The largest payload before a session is known."""

FRAME_LIMIT = 1 << 20
"""The largest payload after that, unless both sides offered more."""

HEADER = struct.Struct("!BBHI")
HEADER_LENGTH = HEADER.size

Buffer = bytes | bytearray | memoryview


class FrameType(IntEnum):
    """The core's frame types. 64–127 are the mode's own; 128–255 may be skipped by who does not know them."""

    HELLO = 1
    AUTH = 2
    READY = 3
    OPEN = 4
    OK = 5
    ERROR = 6
    DATA = 7
    END = 8
    RESET = 9
    PING = 10
    PONG = 11
    LISTEN = 12
    INCOMING = 13
    DENY = 14
    STATUS = 15
    BYE = 16


FIRST_MODE_TYPE = 64
FIRST_SKIPPED_TYPE = 128

_KNOWN = frozenset(int(kind) for kind in FrameType) | frozenset(range(FIRST_MODE_TYPE, FIRST_SKIPPED_TYPE))
_CODED = frozenset(
    {FrameType.ERROR, FrameType.RESET, FrameType.DENY, FrameType.BYE, *range(FIRST_MODE_TYPE, FIRST_SKIPPED_TYPE)}
)
_EMPTY = frozenset({FrameType.END})
_DATA = int(FrameType.DATA)


@dataclass(frozen=True, slots=True)
class RawFrame:
    """A whole frame that is not DATA."""

    kind: int
    code: int
    payload: memoryview


def pack(kind: int, payload: Buffer = b"", code: int = 0) -> bytes:
    """A whole frame as bytes. For small payloads: large ones go out beside their header, uncopied."""
    return HEADER.pack(kind, 0, code, len(payload)) + payload


def frame_name(kind: int) -> str:
    """A frame type as a person reads it."""
    try:
        return FrameType(kind).name
    except ValueError:
        return f"frame {kind}"


class FrameParser:
    """Bytes in, frames out: RawFrame values, and views of DATA payloads as they come.

    `limit` is the most bytes of payload a frame may announce; who drives the parser raises it once the peer is known.
    It is for DATA and a mode's own frames: the core's others, which are stored until they are whole, stay within
    HANDSHAKE_LIMIT. `plain`: nothing but DATA may come, so that nothing of a mode's frame is stored to be refused.
    """

    __slots__ = ("_data_left", "_partial", "_skip_left", "limit", "plain")

    def __init__(self, limit: int = HANDSHAKE_LIMIT) -> None:
        self.limit = limit
        self.plain = False
        self._data_left = 0
        self._skip_left = 0
        self._partial = bytearray()

    @property
    def between_frames(self) -> bool:
        """Whether the bytes so far end with a whole frame."""
        return not (self._data_left or self._skip_left or self._partial)

    @property
    def data_left(self) -> int:
        """Bytes of the DATA frame in hand that are still to come."""
        return self._data_left

    def took(self, size: int) -> None:
        """So many of those went elsewhere."""
        self._data_left -= size

    def receive_data(self, data: memoryview) -> Iterator[RawFrame | memoryview]:
        """Yield what the bytes complete, in order. Raises PeerBrokeProtocol at the first offending header.

        Every yielded view borrows from `data` or from the parser, and is good until the next call.
        """
        at, size = 0, len(data)
        while at < size:
            if self._data_left:
                take = min(self._data_left, size - at)
                self._data_left -= take
                yield data[at : at + take]
                at += take
                continue
            if self._skip_left:
                take = min(self._skip_left, size - at)
                self._skip_left -= take
                at += take
                continue
            if self._partial:
                at += self._collect(data[at:])
                if (frame := self._collected()) is not None:
                    yield frame
                continue
            if size - at < HEADER_LENGTH:
                self._partial += data[at:]
                return
            kind, code, length = self._header(data, at)
            at += HEADER_LENGTH
            if kind == _DATA:
                self._data_left = length
                if not length:
                    yield data[at:at]  # so that an empty DATA out of place is seen as well
            elif kind >= FIRST_SKIPPED_TYPE:
                self._skip_left = length
            elif size - at >= length:
                yield RawFrame(kind, code, data[at : at + length])
                at += length
            else:
                self._partial += data[at - HEADER_LENGTH :]
                return

    def _header(self, data: Buffer, at: int) -> tuple[int, int, int]:
        kind, flags, code, length = HEADER.unpack_from(data, at)
        if flags:
            raise PeerBrokeProtocol(f"the peer set unknown flags {flags:#04x} on {frame_name(kind)}")
        if kind not in _KNOWN and kind < FIRST_SKIPPED_TYPE:
            raise PeerBrokeProtocol(f"the peer sent a frame of the unassigned type {kind}")
        limit = self.limit
        if kind < FIRST_MODE_TYPE and kind != _DATA:
            limit = HANDSHAKE_LIMIT
        elif self.plain and FIRST_MODE_TYPE <= kind < FIRST_SKIPPED_TYPE:
            raise PeerBrokeProtocol(f"the peer sent {frame_name(kind)}, of a mode's own, into a plain stream")
        if length > limit:
            raise PeerBrokeProtocol(
                f"the peer announced {length} bytes of {frame_name(kind)}, where {limit} are the limit"
            )
        if code and kind not in _CODED and kind < FIRST_SKIPPED_TYPE:
            raise PeerBrokeProtocol(f"the peer put a code on {frame_name(kind)}, which has none")
        if length and kind in _EMPTY:
            raise PeerBrokeProtocol(f"the peer put {length} bytes into {frame_name(kind)}, which has none")
        return kind, code, length

    def _collect(self, data: memoryview) -> int:
        """Store what the frame in hand still lacks; returns how many bytes that took."""
        have = len(self._partial)
        if have < HEADER_LENGTH:
            need = HEADER_LENGTH - have
        else:
            need = HEADER_LENGTH + HEADER.unpack_from(self._partial)[3] - have
        take = min(need, len(data))
        self._partial += data[:take]
        return take

    def _collected(self) -> RawFrame | memoryview | None:
        """The frame in hand, if it is whole now; a header just completed is checked here."""
        have = len(self._partial)
        if have < HEADER_LENGTH:
            return None
        kind, code, length = self._header(self._partial, 0)
        if kind == _DATA:
            self._data_left, self._partial = length, bytearray()
            return None if length else memoryview(b"")
        if kind >= FIRST_SKIPPED_TYPE:
            self._skip_left, self._partial = length, bytearray()
            return None
        if have - HEADER_LENGTH < length:
            return None
        whole, self._partial = self._partial, bytearray()
        return RawFrame(kind, code, memoryview(whole)[HEADER_LENGTH:])


def check_preface(data: Buffer, expected: bytes) -> None:
    """Compare the first bytes of a peer with the preface it owes, as far as they go.

    Raises PeerBrokeProtocol, which names what answers there instead, at the first byte that does not fit.
    """
    start = bytes(data[:PREFACE_LENGTH])
    if expected.startswith(start):
        return
    ours = CLIENT_PREFACE if expected == AGENT_PREFACE else AGENT_PREFACE
    if ours.startswith(start):
        who = "a client" if ours == CLIENT_PREFACE else "an agent"
        raise PeerBrokeProtocol(f"the peer is {who} too, or an echo", hint="one side must be `vsockfwd serve`")
    raise PeerBrokeProtocol(
        f"the peer is no vsockfwd {'agent' if expected == AGENT_PREFACE else 'client'}: it {describe_stranger(data)}",
        hint="is this the right port?" if expected == AGENT_PREFACE else "",
    )


def describe_stranger(data: Buffer) -> str:
    """What a peer that does not speak this protocol seems to be, from its first bytes."""
    start = bytes(data[:64])
    if start.startswith(b"SSH-"):
        return "is an SSH server"
    if start.startswith(b"HTTP/"):
        return "is an HTTP server"
    if start[:1] in (b"\x15", b"\x16") and (len(start) < 2 or start[1] == 3):
        return "speaks TLS"
    if start.split(b" ")[0] in (b"GET", b"POST", b"HEAD", b"PUT", b"CONNECT", b"OPTIONS"):
        return "is an HTTP client"
    return f"began with '{printable(start[:32])}'"
