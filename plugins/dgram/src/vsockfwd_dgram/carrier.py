"""One side of a stream with flows on it: what the side that listens and the side that sends on share.

Datagrams from sockets wait in one fair queue, from which a single writer fills the stream; datagrams from the stream go
out at once, and wait in another queue only while their socket takes nothing.

The thing to understand first: nobody waits for anybody. Sockets are read and the stream is read whatever becomes of
what they bring; where something does not get on, its own flow's oldest datagrams are dropped. So a flow that floods,
or a socket that is stuck, costs the others nothing. And batches make themselves: the writer takes what is there, so
a lone datagram leaves at once and many leave together.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Generic, TypeVar

import trio

from vsockfwd.plugin import (
    Carried,
    Channel,
    Closed,
    Ended,
    Ending,
    Frame,
    Opened,
    Outcome,
    PeerBrokeProtocol,
    Problem,
    Report,
    VsockfwdError,
    the_one,
)
from vsockfwd_dgram.drops import Drops, Reason, reason_for
from vsockfwd_dgram.fair import FairQueue
from vsockfwd_dgram.frames import CLOSE, DATAGRAM_LIMIT, DATAGRAMS, DROPS, OPEN, RECORD, TEXT_LIMIT, record, records
from vsockfwd_dgram.sockets import BURST, CountingPoll

BATCH = 1 << 16
"""Bytes after which a batch goes out, whatever else is waiting: what the engine still copies into one send."""

REPORT_INTERVAL = 1.0
"""Seconds between two reports of what was dropped."""

FAREWELL = 1.0
"""Seconds that the last counts and END may take, both ways."""

ROUNDS = 8
"""Frames, or BURST datagrams, after which a stream that always has more lets others run."""

_PAUSES = (0.001, 0.05)
"""Seconds until a socket that took nothing is tried again: at first, and at most."""


class Flow:
    """One source address and its way to the far end and back."""

    __slots__ = ("announced", "began", "name", "number", "received", "sent", "used")

    def __init__(self, number: int, name: str, now: float) -> None:
        self.number = number
        self.name = name
        self.began = self.used = now
        """When it came to be, and when a datagram went either way."""
        self.announced = False
        """Whether the peer knows the number."""
        self.sent = self.received = 0
        """Bytes towards the peer, and from it."""


F = TypeVar("F", bound=Flow)


class Carrier(ABC, Generic[F]):
    """The flows of one rule, on one side. `where` is what to call the peer's side in reports; `live` holds them."""

    def __init__(self, rule: str, where: str, cap: int, report: Report, live: set[Any] | None = None) -> None:
        self.rule = rule
        self.cap = cap
        self.report = report
        self.flows: OrderedDict[int, F] = OrderedDict()
        """By number, the least recently used first."""
        self.drops = Drops(where)
        self.poll = CountingPoll(lambda count: self.drops.add(Reason.KERNEL, count))
        self.buffer = memoryview(bytearray(DATAGRAM_LIMIT + 1))
        self.outward: FairQueue[F] = FairQueue(lambda count: self.drops.add(Reason.QUEUE, count))
        """What waits for the stream."""
        self.awake = trio.Event()
        """Set when the writer has something to do."""
        self.received = 0
        """Datagrams that came from the stream."""
        self._sent = self._bytes_sent = self._bytes_received = 0
        self._live: set[Any] = set() if live is None else live
        self._held: FairQueue[F] = FairQueue(lambda count: self.drops.add(Reason.QUEUE, count))
        """What came from the stream and waits for a socket that took nothing."""
        self._holding = trio.Event()
        self._closings: list[bytes] = []
        self._explained: set[str] = set()
        self._began = trio.current_time()

    # --- what the two sides do differently

    @abstractmethod
    def transmit(self, flow: F, datagram: bytes | memoryview) -> None:
        """Hand a datagram to the flow's socket. Raises BlockingIOError or OSError."""

    @abstractmethod
    def peer_opened(self, number: int, name: str) -> None:
        """The peer announced a flow. Raises PeerBrokeProtocol."""

    @abstractmethod
    def closed(self, flow: F) -> None:
        """A flow is over: let go of what it had."""

    # --- flows

    def begin_flow(self, flow: F) -> None:
        """Take a new flow."""
        self.flows[flow.number] = flow
        self._live.add(flow)
        self.report(Opened(self.rule, flow.name))

    def use(self, flow: F, now: float) -> None:
        """A datagram went one way or the other."""
        flow.used = now
        self.flows.move_to_end(flow.number)

    def close_flow(self, flow: F, why: str, *, tell: bool = True, reason: Reason = Reason.NO_FLOW) -> None:
        """End a flow. The peer is told, unless it was the peer that ended it; what waits is dropped for `reason`."""
        del self.flows[flow.number]
        self._live.discard(flow)
        self.drops.add(reason, self.outward.forget(flow) + self._held.forget(flow))
        self._bytes_sent += flow.sent
        self._bytes_received += flow.received
        if tell and flow.announced:
            self._closings.append(record(flow.number, why.encode()[:TEXT_LIMIT]))
            self.awake.set()
        self.closed(flow)
        outcome = Outcome(Ending.COMPLETE, "", why, flow.sent, flow.received, flow.used - flow.began)
        self.report(Closed(self.rule, flow.name, outcome))

    def lost(self, why: str = "the stream was lost") -> None:
        """End all flows; there is no peer to tell."""
        for flow in list(self.flows.values()):
            self.close_flow(flow, why, tell=False, reason=Reason.NO_STREAM)
        self._closings.clear()

    def make_room(self) -> None:
        """Close the least recently used flows until one more may be opened."""
        while len(self.flows) >= self.cap:
            self.close_flow(next(iter(self.flows.values())), "made room for another")

    # --- sockets → stream

    def take(self, flow: F, size: int, now: float) -> None:
        """A datagram of `size` bytes stands in the buffer: let it wait for the stream."""
        self.use(flow, now)
        flow.sent += size
        self.outward.put(flow, bytes(self.buffer[:size]))
        self.awake.set()

    async def something_waits(self) -> None:
        """Until a datagram waits for the stream."""
        while not self.outward:
            self.awake = trio.Event()
            await self.awake.wait()

    async def _write(self, channel: Channel) -> None:
        """The stream's only writer."""
        self.awake.set()
        while True:
            await self.awake.wait()
            self.awake = trio.Event()
            while frames := self._frames(
                channel.frame_limit
            ):  # which ends: nobody adds to it but while the stream is full
                await channel.send_frames(*frames)

    def _frames(self, limit: int) -> list[tuple[int, bytes | bytearray]]:
        """What is to be said next, in the order in which the peer must hear it; a frame has at most `limit` bytes."""
        frames: list[tuple[int, bytes | bytearray]] = []
        if self._closings:
            most = min(BATCH, limit) // (RECORD.size + TEXT_LIMIT)
            frames.append((CLOSE, b"".join(self._closings[:most])))
            del self._closings[:most]
        opens, datagrams = self._batch(limit)
        if opens:
            frames.append((OPEN, opens))
        if datagrams:
            frames.append((DATAGRAMS, datagrams))
        if counts := self.drops.to_tell():
            frames.append((DROPS, counts))
        return frames

    def _batch(self, limit: int) -> tuple[bytearray, bytearray]:
        """Datagrams off the queue, each flow in its turn, and what announces the new ones among them.

        A flow is announced when its first datagram leaves, so that sources which come and go while the stream is
        stuck leave nothing behind.
        """
        opens, datagrams = bytearray(), bytearray()
        batch = min(BATCH, limit)
        queue = self.outward
        while (turn := queue.turn()) is not None and len(opens) <= batch - RECORD.size - TEXT_LIMIT:
            flow, datagram = turn
            size = RECORD.size + len(datagram)
            if datagrams and len(datagrams) + size > batch:
                break
            queue.pop(flow)
            if size > limit:
                self.drops.add(Reason.TOO_LONG)
                continue
            if not flow.announced:
                flow.announced = True
                opens += record(flow.number, flow.name.encode()[:TEXT_LIMIT])
            datagrams += RECORD.pack(flow.number, len(datagram))
            datagrams += datagram
            self._sent += 1
        return opens, datagrams

    # --- stream → sockets

    async def _read(self, channel: Channel) -> None:
        """Until the peer's END."""
        let_others, frames = self.received + BURST, 0
        while not isinstance(event := await channel.receive(), Ended):
            if not isinstance(event, Frame):
                raise PeerBrokeProtocol("the peer sent plain data, where datagrams stand in frames")
            self._heed(event)
            frames += 1
            # A receive that finds something does not yield, and to yield for each lone datagram would double its cost.
            if self.received >= let_others or frames >= ROUNDS:
                await trio.lowlevel.checkpoint()
                let_others, frames = self.received + BURST, 0

    def _heed(self, frame: Frame) -> None:
        if frame.kind == DATAGRAMS:
            self._deliver_all(frame.payload)
        elif frame.kind == OPEN:
            for number, name in records(frame.payload):
                self.peer_opened(number, str(name, "utf-8", "replace"))
        elif frame.kind == CLOSE:
            for number, why in records(frame.payload):
                if (flow := self.flows.get(number)) is not None:
                    self.close_flow(flow, str(why, "utf-8", "replace"), tell=False)
        elif frame.kind == DROPS:
            self.drops.told(frame.payload)
        else:
            raise PeerBrokeProtocol(f"the peer sent a frame of type {frame.kind}, unknown to this version")

    def _deliver_all(self, payload: memoryview) -> None:
        now = trio.current_time()
        for number, datagram in records(payload):
            self.received += 1
            flow = self.flows.get(number)
            if flow is None:
                self.drops.add(Reason.NO_FLOW)
                continue
            self.use(flow, now)
            # What came before it goes before it, within a flow.
            if flow in self._held or not self._deliver(flow, datagram):
                self._held.put(flow, bytes(datagram))
                self._holding.set()

    def _deliver(self, flow: F, datagram: bytes | memoryview) -> bool:
        """Send one datagram on, or count it; False where its socket takes none now."""
        try:
            self.transmit(flow, datagram)
            flow.received += len(datagram)
        except BlockingIOError:
            return False
        except OSError as error:
            self.failed(error)
        return True

    def failed(self, error: OSError) -> None:
        """Count a datagram that was lost to an error; one that nobody expects is explained, once."""
        reason = reason_for(error)
        self.drops.add(reason)
        why = (error.strerror or str(error)).lower()
        if reason is Reason.FAILED and why not in self._explained:
            self._explained.add(why)
            self.report(Problem(self.rule, f"a datagram could not be sent: {why}"))

    async def _retry(self) -> None:
        """Try again what waits for its socket. By the clock: an unconnected socket always counts as writable."""
        pause, longest = _PAUSES
        while True:
            await self._holding.wait()
            await trio.sleep(pause)
            pause = _PAUSES[0] if self._send_held() else min(pause * 2, longest)
            if not self._held:
                self._holding = trio.Event()

    def _send_held(self) -> bool:
        """A datagram of each flow in turn, for some rounds or until none gets on; whether any did."""
        progress = False
        for _ in range(BURST):
            moved = False
            for flow, datagram in self._held.fronts():
                # A delivery may end other flows, to have their descriptors.
                if flow in self._held and self._deliver(flow, datagram):
                    self._held.pop(flow)
                    moved = progress = True
            if not moved:
                break
        return progress

    # --- at work

    @contextlib.asynccontextmanager
    async def at_work(self, *tasks: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
        """What goes on whether there is a stream or not, and the side's own tasks, for the length of a block."""
        try:
            async with trio.open_nursery() as nursery:
                for task in (self.poll.run, self._retry, self._tell, *tasks):
                    nursery.start_soon(task)
                yield
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise the_one(group) from None
        finally:
            self.lost("the forward ended")
            self.poll.close()
            self.drops.report(self.rule, self.report)
            self.report(self._carried())

    async def _tell(self) -> None:
        """Report what was dropped, and have the peer told: the first at once, the rest now and then."""
        while True:
            with trio.move_on_after(REPORT_INTERVAL):
                await self.drops.news.wait()
            self.poll.count_lost()
            if self.drops.news.is_set():
                self.drops.report(self.rule, self.report)
                self.awake.set()
                await trio.sleep(REPORT_INTERVAL)

    async def carry(self, channel: Channel) -> None:
        """Move datagrams over a stream until the peer ends it; raises why it broke. Cancelled, it says END."""
        ended = broken = False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, channel)
                await self._read(channel)
                ended = True
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            reason = the_one(group)
            broken = isinstance(reason, VsockfwdError)
            raise reason from None
        finally:
            if not broken:
                with trio.move_on_after(FAREWELL, shield=True):
                    await self._part(channel, ended)

    async def _part(self, channel: Channel, ended: bool) -> None:
        """The last counts, ours and the peer's, and END."""
        try:
            self.poll.count_lost()
            if counts := self.drops.to_tell():
                await channel.send_frames((DROPS, counts))
            await channel.send_end()
            while not ended:
                event = await channel.receive()
                ended = isinstance(event, Ended)
                if isinstance(event, Frame) and event.kind == DROPS:
                    self.drops.told(event.payload)
        except VsockfwdError:
            pass  # the peer has gone: nobody is left to tell, or to be told by

    def _carried(self) -> Carried:
        seconds = trio.current_time() - self._began
        counts = (self._sent, self.received, self.drops.total)
        return Carried(self.rule, *counts, self._bytes_sent, self._bytes_received, seconds)
