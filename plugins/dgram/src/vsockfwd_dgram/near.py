"""The side that listens: one socket for all sources, each of which is a flow.

The thing to understand first: this side decides how long a flow lives, since it sees the datagrams of both directions.
A flow ends when it was idle for long enough, or makes room for another. The listening socket and the forward outlive
the stream: when that is lost, its flows end, and the next datagram opens another.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import trio

from vsockfwd.plugin import (
    Address,
    Closed,
    Ending,
    Engine,
    Opened,
    OpenedStream,
    Outcome,
    PeerBrokeProtocol,
    Problem,
    Session,
    VsockfwdError,
)
from vsockfwd_dgram.carrier import Carrier, Flow
from vsockfwd_dgram.drops import Reason
from vsockfwd_dgram.frames import DATAGRAM_LIMIT, NAME, Connect, Connected
from vsockfwd_dgram.sockets import BURST, Bound, Way

IDLE = 120.0
"""Seconds without a datagram either way after which a flow ends: RFC 4787 asks for two minutes at least."""

FLOWS = 1024
"""Flows at once: beyond what the agent has descriptors for, the least recently used make room."""

_PAUSES = (0.1, 5.0)
"""Seconds between two attempts at a new stream: at first, and at most."""


class Source(Flow):
    """A flow on the side that listens: whose it is, and the way back."""

    __slots__ = ("bound", "sources", "way")

    def __init__(self, number: int, bound: Bound, sources: dict[Way, Source], way: Way, now: float) -> None:
        super().__init__(number, bound.source(way), now)
        self.bound = bound
        self.sources = sources
        self.way = way


class Near(Carrier[Source]):
    """One `-L`: the sockets that it listens on, its flows, and a stream to the agent when there is one."""

    def __init__(
        self, engine: Engine, session: Session, bound: Sequence[Bound], connect: Address, idle: float, flows: int | None
    ) -> None:
        super().__init__(
            f"dgram to {connect.bare()} through {session.name}", "at the agent", flows or FLOWS, engine.report
        )
        self._session = session
        self._bound = bound
        self._request = Connect(str(connect), flows or FLOWS)
        self._insists = flows is not None
        self._idle = idle
        self._number = 0
        self._crowded = False

    async def open(self) -> OpenedStream:
        """Open a stream for the flows. Raises what the agent answered, or why it could not be asked."""
        opened = await self._session.open(NAME, self._request)
        granted = opened.reply(Connected).flows
        self.cap = min(self._request.flows, granted)
        if self._insists and self.cap < self._request.flows:
            why = f"the agent has descriptors for {granted} flows at once, not for {self._request.flows}"
            self.report(Problem(self.rule, f"{why} – raise its limit of open files (ulimit -n)"))
        return opened

    async def run(self, opened: OpenedStream) -> None:
        """Forward until cancelled. The sockets are closed by who bound them."""
        try:
            async with self.at_work(self._expire):
                for bound in self._bound:
                    self.poll.add(bound.sock, functools.partial(self._drain, bound, {}))
                await self._carry_on(opened)
        finally:
            self.report(Closed(self.rule, self._session.name, self.outcome(Ending.STOPPED)))

    # --- streams

    async def _carry_on(self, opened: OpenedStream | None) -> None:
        """Carry, and when the stream is lost open another with the next datagram."""
        told, pause = "", 0.0
        while True:
            heard, began = self.received, trio.current_time()
            try:
                opened = opened or await self._open_again()
                began = trio.current_time()
                why = await self._carry_over(opened)
            except VsockfwdError as error:
                why = error.line()
            opened = None
            useful = self.received > heard or trio.current_time() - began > _PAUSES[1]
            if useful:
                told, pause = "", 0.0
            if why != told:
                self.report(Problem(self.rule, f"no stream: {why}; the next datagram opens another"))
                told = why
            await trio.sleep(pause)
            self.close_flows("the stream was lost", Reason.NO_STREAM)
            pause = min(max(pause * 2, _PAUSES[0]), _PAUSES[1])

    async def _open_again(self) -> OpenedStream:
        while not self.outward:
            self.awake = trio.Event()
            await self.awake.wait()
        return await self.open()

    async def _carry_over(self, opened: OpenedStream) -> str:
        """Carry over one stream; returns or raises why that is over."""
        channel = opened.channel
        try:
            await self.carry(channel)
        except PeerBrokeProtocol as error:
            await channel.reset(error.code, error.message)
            raise
        finally:
            channel.close()
        return "the agent ended it"

    # --- flows

    def _drain(self, bound: Bound, sources: dict[Way, Source]) -> None:
        now = trio.current_time()
        for _ in range(BURST):
            try:
                size, way = bound.receive_into(self.buffer)
            except BlockingIOError:
                return
            except OSError as error:
                self.failed(error)
                return
            if size > DATAGRAM_LIMIT:
                self.drops.add(Reason.TOO_LONG)
                continue
            self.take(sources.get(way) or self._new(bound, sources, way, now), size, now)

    def _new(self, bound: Bound, sources: dict[Way, Source], way: Way, now: float) -> Source:
        if len(self.flows) >= self.cap and not self._crowded:
            self._crowded = True
            self.report(Problem(self.rule, f"more than {self.cap} sources at once: the least recently used make room"))
        self.make_room()
        self._number = (self._number + 1) & 0xFFFF_FFFF
        while self._number in self.flows:
            self._number = (self._number + 1) & 0xFFFF_FFFF
        source = sources[way] = self.flows[self._number] = Source(self._number, bound, sources, way, now)
        self.report(Opened(self.rule, source.name))
        return source

    def transmit(self, flow: Source, datagram: bytes | memoryview) -> None:
        flow.bound.send(datagram, flow.way)

    def peer_opened(self, number: int, name: str) -> None:
        raise PeerBrokeProtocol("the agent announced a flow, which is the client's to do")

    def closed(self, flow: Source, why: str) -> None:
        del flow.sources[flow.way]
        seconds = flow.used - flow.began
        outcome = Outcome(Ending.COMPLETE, "", why, flow.sent, flow.received, seconds)
        self.report(Closed(self.rule, flow.name, outcome))

    async def _expire(self) -> None:
        """End the flows that were idle for too long."""
        while True:
            now, wait = trio.current_time(), self._idle
            while self.flows:
                oldest = next(iter(self.flows.values()))
                wait = oldest.used + self._idle - now
                if wait > 0:
                    break
                self.close_flow(oldest, f"idle for {self._idle:g} s")
                wait = self._idle
            await trio.sleep(wait)
