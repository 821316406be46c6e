"""The stream connection at work: from OK on it is a mode's channel, which can be joined to a plain stream.

That join is engine/framed.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import trio

from vsockfwd.contract import BodyEvent, Ended
from vsockfwd.engine.framed import Framed
from vsockfwd.engine.pump import Broken, BufferPool
from vsockfwd.engine.threaded import Threaded, body_event
from vsockfwd.engine.wired import Wire
from vsockfwd.errors import Code, VsockfwdError, from_code
from vsockfwd.events import Outcome
from vsockfwd.transport.base import Stream
from vsockfwd.transport.paced import Pace, PacedStream
from vsockfwd.wire.frames import Buffer
from vsockfwd.wire.stream import Refused, StreamEvent, StreamMachine, WasReset

T = TypeVar("T")

COALESCE = 1 << 16
"""Frames up to this size go out together with their neighbours, copied; larger ones by themselves, uncopied."""


class Link(Wire[StreamEvent]):
    """A stream connection, either side; from OK on it is the contract's Channel."""

    def __init__(self, stream: Stream, machine: StreamMachine, buffers: BufferPool) -> None:
        super().__init__(stream, machine, buffers)
        self.machine = machine
        self.relaying: Framed | None = None
        """What joins it to a plain stream in a task."""
        self._threaded = Threaded(self)

    def keep_to(self, receiving: Pace, sending: Pace) -> None:
        """Move no more in a second than this, from now on; while nobody is at it."""
        self.stream = PacedStream(self.stream, receiving, sending)
        self._threaded = Threaded(self)

    @property
    def frame_limit(self) -> int:
        """The most bytes of payload that a frame may carry."""
        return self.machine.frame_limit

    def _reason_in(self, event: StreamEvent) -> VsockfwdError | None:
        return event.error if isinstance(event, Refused | WasReset) else None

    # --- the contract's Channel

    async def receive(self) -> BodyEvent:
        """The next event of the body. Raises Reset (or what the peer's code says), Truncated, PeerBrokeProtocol."""
        try:
            return body_event(await self.next())
        except EOFError:
            return Ended()

    def try_receive_past(self, buffer: memoryview) -> int:
        """Receive bytes of the DATA frame at hand past the machine; how many. Raises as `try_next`."""
        buffer = buffer[: self.machine.data_left]
        if self._emptied:
            self._emptied = False
            raise BlockingIOError
        try:
            size = self._receive_into(buffer)
        except VsockfwdError as error:
            raise self._finish(error) from None
        self._emptied = self.stream.empties and size < len(buffer)
        self.machine.took(size)
        return size

    async def in_thread(self, work: Callable[[Threaded], T]) -> T:
        """Run `work` in a thread, with the calls that it may make there. Raises what it raises.

        It is for a while of a fraction of a second: who is cancelled waits for its end.
        """
        self.thread_begins()
        try:
            return await trio.to_thread.run_sync(work, self._threaded)
        except Broken as error:
            broken = error
        finally:
            self.thread_ended()
        raise await self.reason_for(broken) from None

    async def wait_writable(self) -> None:
        """Wait until something may be sent."""
        await self.stream.wait_writable()

    async def send(self, data: Buffer) -> None:
        """Send bytes of the body. Raises the peer's reason where it gave one, Reset otherwise."""
        view = memoryview(data)
        for at in range(0, len(view), self.frame_limit):
            piece = view[at : at + self.frame_limit]
            await self._write_frame(self.machine.data_header(len(piece)), piece)

    async def send_frames(self, *frames: tuple[int, Buffer], data: Buffer = b"") -> None:
        """Send whole frames of the mode's own kinds, the small ones together; `data`: bytes of the body behind them."""
        pending: list[Buffer] = []
        size = 0
        for kind, payload in frames:
            header = self.machine.frame_header(kind, len(payload))
            if len(payload) > COALESCE:
                if pending:
                    await self.write(b"".join(pending))
                    pending, size = [], 0
                await self._write_frame(header, memoryview(payload))
                continue
            pending += (header, payload)
            size += len(header) + len(payload)
            if size > COALESCE:
                await self.write(b"".join(pending))
                pending, size = [], 0
        if data:
            first = memoryview(data)[: self.frame_limit]
            await self._write_frame(b"".join((*pending, self.machine.data_header(len(first)))), first)
            await self.send(memoryview(data)[len(first) :])
        elif pending or self._left:
            await self.write(b"".join(pending))

    def try_send_frames(self, *frames: tuple[int, Buffer]) -> bool:
        """As `send_frames`, without waiting; False: some of it is left over, and goes before what that sends next."""
        parts = [part for kind, load in frames for part in (self.machine.frame_header(kind, len(load)), load)]
        return self.try_write(b"".join(parts))

    async def _write_frame(self, header: bytes, payload: memoryview) -> None:
        """A header and its payload in one send: copied together while that is cheap, gathered otherwise."""
        if len(payload) <= COALESCE:
            await self.write(header + payload)
        else:
            await self.write(header, payload)

    async def send_end(self) -> None:
        """This direction is complete."""
        await self.write(self.machine.end())

    async def reset(self, code: Code, text: str) -> None:
        """Abandon the stream and tell the peer why, within a bounded while; then it is closed."""
        await self.part_with(from_code(code, text))

    async def part_with(self, error: VsockfwdError) -> None:
        """RESET with this reason, where it has a place, and close."""
        await self.part(self.machine.reset(error) if self.machine.may_reset else b"")

    async def relay(
        self,
        neighbour: Stream,
        *,
        dialled: bool = False,
        idle: float = 0.0,
        half_open: float = 0.0,
        live: set[Any] | None = None,
    ) -> Outcome:
        """Join the channel to a plain stream until both directions have ended; both are closed then.

        On any unclean outcome the peer gets RESET, where it is not the peer that brought it about, and the neighbour
        is aborted. `dialled`: we called the neighbour, it did not call us (see engine/relay.py on half-close).
        `sent` counts neighbour → channel. `idle`, `half_open`: as in engine/relay.py; `live` holds it while it runs.
        """
        framed = self.relaying = Framed(self, neighbour, dialled=dialled)
        live = set() if live is None else live
        live.add(framed)
        try:
            return await framed.run(idle, half_open)
        finally:
            self.relaying = None
            live.discard(framed)
