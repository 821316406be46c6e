"""A peer that says exactly what a test wants said, and can spoil any field of it at any point.

Over a real socket, from either side. The thing to understand first: what is proper is written once, as frames in the
order in which they are said (`Said`), and a *spoiling* is a function of one frame; `spoilings` has all there are of a
frame: each field of the header, each field of its payload, its place among the others, the bytes' end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import trio

from vsockfwd.transport.base import Stream
from vsockfwd.wire.frames import AGENT_PREFACE, CLIENT_PREFACE, HEADER, FrameType, frame_name
from vsockfwd.wire.machine import Role

PREFACE = {Role.CLIENT: CLIENT_PREFACE, Role.AGENT: AGENT_PREFACE}


@dataclass(frozen=True, slots=True)
class Said:
    """A frame; `wait`: only after so many frames of the other side have been heard."""

    kind: int
    payload: bytes = b""
    code: int = 0
    flags: int = 0
    length: int | None = None
    wait: int = 0

    def __bytes__(self) -> bytes:
        length = len(self.payload) if self.length is None else self.length
        return HEADER.pack(self.kind, self.flags, self.code, length) + self.payload

    def but(self, **fields: Any) -> Said:
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Said(**values | fields)


Spoilt = Sequence[Said | bytes | None]
"""What is said instead of a frame: frames, bytes, and None for the end of all."""

Spoiling = Callable[[Said], Spoilt]

_INSTEAD: tuple[Any, ...] = (
    None,
    -1,
    1 << 63,
    "",
    "x" * 5000,
    "\x1b[31m\n\u202e",
    b"",
    b"\xff" * 17,
    [],
    {},
    [[]] * 40,
    1.5,
)
"""What may stand in a payload's field instead of what belongs there."""


def spoilings(said: Said) -> Iterator[tuple[str, Spoiling]]:
    """Every way to spoil this frame, with a name."""
    for kind in (0, 17, 63, *(int(each) for each in FrameType), 64, 127, 128, 255):
        if kind != said.kind:
            yield f"as {frame_name(kind)}", lambda frame, kind=kind: [frame.but(kind=kind)]
    for flags in (1, 0x80, 0xFF):
        yield f"flags {flags:#x}", lambda frame, flags=flags: [frame.but(flags=flags)]
    for code in (1, 19, 0xFFFF):
        yield f"code {code}", lambda frame, code=code: [frame.but(code=code)]
    size = len(said.payload)
    for length in sorted({0, 1, max(0, size - 1), size + 1, 4096, 4097, (1 << 20) + 1, 0xFFFF_FFFF} - {size}):
        yield f"length {length}", lambda frame, length=length: [frame.but(length=length)]
    yield "twice", lambda frame: [frame, frame]
    yield "not at all", lambda frame: []
    yield "and then the end", lambda frame: [frame, None]
    yield "the end instead", lambda frame: [None]
    yield "half of it, then the end", lambda frame: [bytes(frame)[: len(bytes(frame)) // 2], None]
    yield "behind one to be skipped", lambda frame: [Said(200, b"of a later version"), frame]
    yield "behind noise", lambda frame: [b"\xa5" * 9, frame]
    yield from _of_payload(said)


def _of_payload(said: Said) -> Iterator[tuple[str, Spoiling]]:
    try:
        fields = msgspec.msgpack.decode(said.payload) if said.kind != FrameType.DATA else None
    except msgspec.DecodeError:
        fields = None
    if not isinstance(fields, dict):
        return
    for garbage in (b"\xc1", b"\x81", b"\xdf\xff\xff\xff\xff", b"\x91" * 4000, msgspec.msgpack.encode([1])):
        yield f"payload {garbage[:4]!r}", lambda frame, garbage=garbage: [frame.but(payload=garbage)]
    for name in fields:
        without = msgspec.msgpack.encode({key: value for key, value in fields.items() if key != name})
        yield f"without {name}", lambda frame, without=without: [frame.but(payload=without)]
        for number, value in enumerate(_INSTEAD):
            other = msgspec.msgpack.encode(fields | {name: value})
            if len(other) <= 1 << 16:
                yield f"{name} is {number}", lambda frame, other=other: [frame.but(payload=other)]


class Scripted:
    """One end of a connection, in a test's hands."""

    def __init__(self, stream: Stream, role: Role) -> None:
        self.stream = stream
        self.role = role
        self.heard: list[tuple[int, int, bytes]] = []
        """Frames: type, code, payload."""
        self.over = trio.Event()
        """Set when the other side's bytes are at their end."""
        self._more = trio.Event()

    async def hear(self) -> None:
        """Take what the other side says, until its end."""
        seen, at = b"", 8
        while True:
            try:
                data = await self.stream.receive_some(1 << 16)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            if not data:
                break
            seen += data
            while len(seen) >= at + HEADER.size and len(seen) >= (
                end := at + HEADER.size + HEADER.unpack_from(seen, at)[3]
            ):
                kind, _, code, _ = HEADER.unpack_from(seen, at)
                self.heard.append((kind, code, seen[at + HEADER.size : end]))
                at = end
                self._more.set()
                self._more = trio.Event()
        self.over.set()
        self._more.set()

    async def heard_so_many(self, count: int) -> None:
        """Wait until so many frames have been heard, or no more will be."""
        while len(self.heard) < count and not self.over.is_set():
            await self._more.wait()

    async def say(self, *said: Said | bytes | None) -> None:
        """Say this; None is the end. What nobody takes any more is not said."""
        for each in said:
            if isinstance(each, Said):
                await self.heard_so_many(each.wait)
            try:
                if each is None:
                    await self.stream.send_eof()
                    return
                await self.stream.send_all(bytes(each))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return

    async def play(self, script: Sequence[Said], spoil_at: int = -1, spoiling: Spoiling | None = None) -> None:
        """The preface, then all of it in order, the one frame spoilt."""
        await self.say(PREFACE[self.role])
        for number, frame in enumerate(script):
            if number == spoil_at and spoiling is not None:
                await self.heard_so_many(frame.wait)
                spoilt = spoiling(frame)
                await self.say(*spoilt)
                if None in spoilt:
                    return
            else:
                await self.say(frame)

    def kinds(self) -> list[str]:
        return [frame_name(kind) for kind, _, _ in self.heard]
