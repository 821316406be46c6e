"""The stream connection at work: from OK on it is a mode's channel, which can be joined to a plain stream.

The thing to understand first: of the two tasks of such a join, the inward one alone reads the link, from beginning to
end, so it is the one that hears how the peer's side ended.
"""

from __future__ import annotations

import time
from typing import Any

import trio

from vsockfwd.contract import BodyEvent, Data, Ended
from vsockfwd.engine.pump import Broken, BufferPool, Pump, push
from vsockfwd.engine.relay import WITHHELD, ending_of, silence, speak_out
from vsockfwd.engine.wired import Wire
from vsockfwd.errors import Code, LocalProtocolError, TimedOut, VsockfwdError, from_code, from_oserror
from vsockfwd.events import Ending, Outcome
from vsockfwd.transport.base import Stream
from vsockfwd.wire.frames import HEADER_LENGTH, Buffer
from vsockfwd.wire.stream import Accepted, Refused, Requested, StreamEvent, StreamMachine, WasReset

COALESCE = 1 << 16
"""Frames up to this size go out together with their neighbours, copied; larger ones by themselves, uncopied."""


class Link(Wire[StreamEvent]):
    """A stream connection, either side; from OK on it is the contract's Channel."""

    def __init__(self, stream: Stream, machine: StreamMachine, buffers: BufferPool) -> None:
        super().__init__(stream, machine, buffers)
        self.machine = machine

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
            event = await self.next()
        except EOFError:
            return Ended()
        if isinstance(event, Requested | Accepted):  # the tables have no row for these in a body
            raise LocalProtocolError("a body was received before its stream was open")
        assert not isinstance(event, Refused | WasReset)  # `next` raised what they stand for
        return event

    async def send(self, data: Buffer) -> None:
        """Send bytes of the body. Raises the peer's reason where it gave one, Reset otherwise."""
        view = memoryview(data)
        for at in range(0, len(view), self.frame_limit):
            piece = view[at : at + self.frame_limit]
            await self._write_frame(self.machine.data_header(len(piece)), piece)

    async def send_frames(self, *frames: tuple[int, Buffer]) -> None:
        """Send whole frames of the mode's own kinds, the small ones together."""
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
        if pending:
            await self.write(b"".join(pending))

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
        framed = _FramedRelay(self, neighbour, dialled, idle, half_open)
        live = set() if live is None else live
        live.add(framed)
        try:
            return await framed.run()
        finally:
            live.discard(framed)


class _FramedRelay:
    """A link and a plain stream joined, at work. The inward task alone reads the link, from beginning to end."""

    def __init__(self, link: Link, neighbour: Stream, dialled: bool, idle: float, half_open: float) -> None:
        self.link = link
        self.neighbour = neighbour
        self.idle = idle
        self.half_open = half_open
        self.received_before = link.machine.received
        self.withhold = dialled and not neighbour.features.half_close
        self.outward_ended = self.inward_ended = False
        self.outward_over = trio.Event()
        self.out = Pump(neighbour, link.stream, link._buffers, self._frame, link.frame_limit)
        self.failure: VsockfwdError | None = None
        self.ours = False
        """Whether the failure is the neighbour's, so that the peer has to be told."""

    async def run(self) -> Outcome:
        started = time.monotonic()
        try:
            async with trio.open_nursery() as nursery:
                self.scope = nursery.cancel_scope
                if self.idle or self.half_open:
                    nursery.start_soon(self._watch)
                nursery.start_soon(self._outward)
                await self._inward(nursery)
                if self.idle or self.half_open:
                    await self.outward_over.wait()
                    nursery.cancel_scope.cancel()  # only the watch is left
        finally:
            clean = self.outward_ended and self.inward_ended and self.failure is None
            self.neighbour.close() if clean else self.neighbour.abort()
            if self.failure is not None and self.ours:
                await self.link.part_with(self.failure)
            self.link.close()
        seconds = time.monotonic() - started
        if self.failure is None:
            return Outcome(Ending.COMPLETE, "", "", self.sent, self.received, seconds)
        by = self.neighbour.name if self.ours else self.link.stream.name
        return Outcome(ending_of(self.failure.code), by, self.failure.message, self.sent, self.received, seconds)

    @property
    def sent(self) -> int:
        return self.out.bytes

    @property
    def received(self) -> int:
        return self.link.machine.received - self.received_before

    async def _watch(self) -> None:
        why = await silence(
            lambda: self.sent + self.received,
            lambda: self.outward_ended or self.inward_ended,
            self.idle,
            self.half_open,
        )
        self._fail(TimedOut(f"{self.neighbour.name}: {why}"), ours=True)

    async def _outward(self) -> None:
        link = self.link
        try:
            await self.out.run()
            await link.write(link.machine.end())
            self.outward_ended = True
            if self.inward_ended:
                self.scope.cancel()  # both have said END: nobody need wait for the other to close
        except VsockfwdError as error:
            self._fail(error, ours=False)
        except (Broken, trio.ClosedResourceError) as error:
            if isinstance(error, Broken) and error.stream is self.neighbour:
                self._fail(from_oserror(error.error, error.stream.name), ours=True)
            else:
                self._fail(await link.reason_for(error), ours=False)
        finally:
            link._mid_frame |= self.out.half_sent
        self.outward_over.set()

    def _frame(self, buffer: memoryview, size: int) -> memoryview:
        """A DATA frame in the buffer: its header goes in front of the bytes, so that both leave in one send."""
        buffer[:HEADER_LENGTH] = self.link.machine.data_header(size)
        return buffer[: HEADER_LENGTH + size]

    async def _inward(self, nursery: trio.Nursery) -> None:
        try:
            while isinstance(event := await self.link.receive(), Data):
                await push(self.neighbour, event.view)
            if not isinstance(event, Ended):
                raise from_code(Code.PROTOCOL, f"{self.link.stream.name}: a frame of its own kind in a plain stream")
            self.inward_ended = True
            if not self.withhold:
                self.neighbour.shutdown_sending()
            elif not self.outward_ended:
                nursery.start_soon(self._bound_silence)
            while not self.outward_ended:
                await self.link.next()  # a RESET may still come, or the session's loss
        except EOFError:
            pass  # the peer has closed after its END; what is still to be sent will find out
        except Broken as broken:
            await speak_out(self.outward_over, self.out)
            self._fail(from_oserror(broken.error, broken.stream.name), ours=True)
        except VsockfwdError as error:
            self._fail(error, ours=error.code is Code.PROTOCOL)
        finally:
            self.link._release()  # nobody reads any more, while the other direction may take its time

    async def _bound_silence(self) -> None:
        """The neighbour was not told that nothing more comes: it may wait for that for ever."""
        moved = -1
        while moved != self.out.bytes:
            moved = self.out.bytes
            await trio.sleep(WITHHELD)
        self._fail(
            TimedOut(f"{self.neighbour.name}: nothing came for {WITHHELD:g} s after the question's end"), ours=True
        )

    def _fail(self, error: VsockfwdError, *, ours: bool) -> None:
        if self.failure is None:
            self.failure = error
            self.ours = ours
        self.scope.cancel()
