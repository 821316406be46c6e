"""One side of a stream with flows on it: what the side that listens and the side that sends on share.

Datagrams from sockets go into the next frame while the stream takes what it is given, and wait in a fair queue while
it does not. Datagrams from the stream go out at once.

The thing to understand first: batches make themselves. When the sockets that had something were read, what they brought
leaves, without a task that would have to be woken; so a lone datagram leaves at once and many leave together. Once the
stream takes no more a task waits for it, and is its only writer until it has sent all there is. In a frame that came,
the datagrams of one flow are sent on together.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

import trio

from vsockfwd.plugin import Channel, Ended, Frame, PeerBrokeProtocol, Report, VsockfwdError, the_one
from vsockfwd_dgram.batch import BURST
from vsockfwd_dgram.drops import Reason
from vsockfwd_dgram.fair import FairQueue
from vsockfwd_dgram.flows import Flow, Flows
from vsockfwd_dgram.frames import CLOSE, DATAGRAM_LIMIT, DATAGRAMS, DROPS, OPEN, RECORD, TEXT_LIMIT, record, records
from vsockfwd_dgram.sockets import End

BATCH = 1 << 16
"""Bytes after which a batch goes out, whatever else is waiting: what the engine still copies into one send."""

FAREWELL = 1.0
"""Seconds that the last counts and END may take, both ways."""

ROUNDS = 8
"""Frames, or BURST datagrams, after which a stream that always has more lets others run."""

_MOST = RECORD.size + TEXT_LIMIT
"""Bytes of the longest record of text."""


class Carriage(Flow):
    """A flow that goes over a stream. `announced`: whether the peer knows its number."""

    __slots__ = ("announced",)

    def __init__(self, number: int, name: str, now: float, *ends: End) -> None:
        super().__init__(number, name, now, *ends)
        self.announced = False


F = TypeVar("F", bound=Carriage)


class Carrier(Flows[F], Generic[F]):
    """The flows of one rule on one side of a stream."""

    def __init__(self, rule: str, where: str, cap: int, report: Report, live: set[Any] | None = None) -> None:
        super().__init__(rule, where, cap, report, live)
        self.outward: FairQueue[F] = FairQueue(lambda count: self.drops.add(Reason.QUEUE, count))
        """What waits for the stream."""
        self.awake = trio.Event()
        """Set when the writer has something to do."""
        self._ready: list[tuple[int, bytes | bytearray]] = []
        """Frames that the writer takes next, in the order in which the peer must hear them, …"""
        self._opens = bytearray()
        self._next: list[bytes] = []
        """… the records of the two that follow, as far as they are written (the second's in pieces: to join them once
        costs half of what appending each to a bytearray does), …"""
        self._next_count = 0
        """… and how many datagrams are in all of these."""
        self._room = 0
        """Bytes of datagrams that may still be written there: none while there is no stream, or it is stuck."""
        self._limit = 0
        self._stream: Channel | None = None
        """Where frames may be sent without waiting: not while the writer is at work."""
        self._turn_ends = False
        """Whether what the sockets bring is sent when they all have been read."""

    # --- what the two sides do differently

    @abstractmethod
    def peer_opened(self, number: int, name: str) -> None:
        """The peer announced a flow. Raises PeerBrokeProtocol."""

    # --- flows

    def close_flow(self, flow: F, why: str, reason: Reason = Reason.NO_FLOW, *, tell: bool = True) -> None:
        """End a flow. The peer is told, unless it was the peer that ended it."""
        self.drops.add(reason, self.outward.forget(flow))
        if tell and flow.announced:
            self._seal()  # what the flow has sent comes before
            last = record(flow.number, why.encode()[:TEXT_LIMIT])
            kind, records = self._ready[-1] if self._ready else (0, b"")
            if kind == CLOSE and len(records) + len(last) <= self._limit:
                self._ready[-1] = CLOSE, records + last
            else:
                self._ready.append((CLOSE, last))
            self.awake.set()
        super().close_flow(flow, why, reason)

    def lost(self) -> None:
        """End all flows; there is no peer to tell."""
        self.end_all("the stream was lost")
        self._forget_next()

    def _forget_next(self) -> None:
        self.drops.add(Reason.NO_STREAM, self._next_count)
        self._ready, self._opens, self._next = [], bytearray(), []
        self._next_count = self._room = self._limit = 0

    def drops_told(self) -> None:
        self.awake.set()

    def delivered(self, end: End, size: int) -> None:
        end.flow.received += size

    # --- sockets → stream

    def take(self, flows: Iterable[F], now: float) -> None:
        """Let the batch's datagrams, one of each of these flows, go into the next frame, or wait for one."""
        batch, order, write = self.batch, self.flows.move_to_end, self._next.append
        data, room, pack, head = batch.data, self._room, RECORD.pack, RECORD.size
        waiting, count = bool(self.outward), 0
        for flow, at, size in zip(flows, batch.places, batch.sizes, strict=False):
            number = flow.number
            flow.used = now
            try:
                order(number)
            except KeyError:  # it made room for another of the same batch
                self.drops.add(Reason.NO_FLOW)
                continue
            if size > DATAGRAM_LIMIT:
                self.drops.add(Reason.TOO_LONG)
                continue
            flow.sent += size
            if waiting or head + size > room or not (flow.announced or self._announce(flow)):
                self.outward.put(flow, data[at : at + size])
                waiting = True  # what comes now comes after it
                continue
            room -= head + size
            write(pack(number, size))
            write(data[at : at + size])
            count += 1
        self._room = room
        self._next_count += count
        if not self._turn_ends:
            self._turn_ends = True
            self.poll.again(self._send_now)

    def _send_now(self) -> None:
        """The sockets were read: let it go, or have the writer see to it."""
        self._turn_ends = False
        stream = self._stream
        while stream is not None and (frames := self._frames(stream.frame_limit)):
            if not stream.try_send_frames(*frames):
                self._stream = stream = None
        if stream is None:
            self.awake.set()

    def _announce(self, flow: F) -> bool:
        """Announce a flow before its first datagram leaves, if there is room: sources that come and go while the
        stream is stuck leave nothing behind."""
        if len(self._opens) > self._limit - _MOST:
            return False
        flow.announced = True
        self._opens += record(flow.number, flow.name.encode()[:TEXT_LIMIT])
        return True

    def _seal(self) -> None:
        """Let what is written so far go before what comes now."""
        if self._opens:
            self._ready.append((OPEN, self._opens))
            self._opens = bytearray()
        if self._next:
            self._ready.append((DATAGRAMS, b"".join(self._next)))
            self._next = []

    async def something_waits(self) -> None:
        """Until a datagram waits for the stream."""
        while not self.outward:
            self.awake = trio.Event()
            await self.awake.wait()

    async def _write(self, channel: Channel) -> None:
        """The stream's only writer."""
        self._limit = self._room = min(BATCH, channel.frame_limit)
        self.awake.set()
        while True:
            await self.awake.wait()
            self.awake, self._stream = trio.Event(), None
            await channel.send_frames()  # what was left over
            while frames := self._frames(channel.frame_limit):  # which ends: nobody adds but while the stream is full
                await channel.send_frames(*frames)
            self._stream = channel

    def _frames(self, limit: int) -> list[tuple[int, bytes | bytearray]]:
        """What is to be said next, in the order in which the peer must hear it; a frame has at most `limit` bytes."""
        if self.outward:
            self._fill(limit)
        self._seal()
        frames: list[tuple[int, bytes | bytearray]] = [*self._ready]
        self.datagrams_out += self._next_count
        self._ready, self._next_count, self._room = [], 0, self._limit
        if counts := self.drops.to_tell():
            frames.append((DROPS, counts))
        return frames

    def _fill(self, limit: int) -> None:
        """Datagrams off the queue, each flow in its turn, into the next frame."""
        queue = self.outward
        while (turn := queue.turn()) is not None:
            flow, datagram = turn
            size = RECORD.size + len(datagram)
            if self._next and size > self._room:
                break
            if size > limit:
                self.drops.add(Reason.TOO_LONG)
                queue.pop(flow)
                continue
            if not (flow.announced or self._announce(flow)):
                break
            queue.pop(flow)
            self._next += RECORD.pack(flow.number, len(datagram)), datagram
            self._next_count += 1
            self._room -= size

    # --- stream → sockets

    async def _read(self, channel: Channel) -> None:
        """Until the peer's END."""
        let_others, frames = self.datagrams_in + BURST, 0
        while not isinstance(event := await channel.receive(), Ended):
            if not isinstance(event, Frame):
                raise PeerBrokeProtocol("the peer sent plain data, where datagrams stand in frames")
            self._heed(event)
            frames += 1
            # A receive that finds something does not yield, and to yield for each lone datagram would double its cost.
            if self.datagrams_in >= let_others or frames >= ROUNDS:
                await trio.lowlevel.checkpoint()
                let_others, frames = self.datagrams_in + BURST, 0

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
        runs: dict[int, memoryview | list[memoryview]] = {}
        for number, datagram in records(payload):
            run = runs.get(number)
            if run is None:
                runs[number] = datagram
            elif isinstance(run, list):
                run.append(datagram)
            else:
                runs[number] = [run, datagram]
        now, flows, order, held = trio.current_time(), self.flows, self.flows.move_to_end, self.held
        for number, run in runs.items():
            flow = flows.get(number)
            if flow is None:
                count = len(run) if isinstance(run, list) else 1
                self.datagrams_in += count
                self.drops.add(Reason.NO_FLOW, count)
                continue
            flow.used = now
            order(number)
            end = flow.ends[0]
            if isinstance(run, list):
                self.datagrams_in += len(run)
                self.deliver(end, run)
                continue
            self.datagrams_in += 1
            # The way of a lone datagram, without the steps that a run takes.
            if held and end in held:
                self.hold(end, run)
                continue
            try:
                end.send(run)
                flow.received += len(run)
            except BlockingIOError:
                self.hold(end, run)
            except OSError as error:
                self.failed(error)

    # --- at work

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
            self._stream = None
            self._forget_next()
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
