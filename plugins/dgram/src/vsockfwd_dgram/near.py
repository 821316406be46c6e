"""The side that listens: one socket for all sources, each of which is a flow.

The thing to understand first: this side decides how long a flow lives, since it sees the datagrams of both directions.
A flow ends when it was idle for long enough, or makes room for another.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Sequence
from typing import Any

import trio

from vsockfwd.plugin import PeerBrokeProtocol, Problem, Report
from vsockfwd_dgram.carrier import Carrier, Flow
from vsockfwd_dgram.drops import Reason
from vsockfwd_dgram.frames import DATAGRAM_LIMIT
from vsockfwd_dgram.sockets import BURST, Bound, Way


class Source(Flow):
    """A flow on the side that listens: whose it is, and the way back."""

    __slots__ = ("bound", "sources", "way")

    def __init__(self, number: int, bound: Bound, sources: dict[Way, Source], way: Way, now: float) -> None:
        super().__init__(number, bound.source(way), now)
        self.bound = bound
        self.sources = sources
        self.way = way


class Near(Carrier[Source]):
    """The sockets that one rule listens on, and its flows. The sockets are closed by who bound them."""

    def __init__(
        self,
        rule: str,
        where: str,
        bound: Sequence[Bound],
        idle: float,
        cap: int,
        report: Report,
        live: set[Any] | None = None,
    ) -> None:
        super().__init__(rule, where, cap, report, live)
        self._bound = bound
        self._idle = idle
        self._number = 0
        self._crowded = False

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Take datagrams for the length of a block; `carry` them over a stream in it, or several in a row."""
        async with self.at_work(self._expire):
            for bound in self._bound:
                self.poll.add(bound.sock, functools.partial(self._drain, bound, {}))
            yield

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
        source = sources[way] = Source(self._number, bound, sources, way, now)
        self.begin_flow(source)
        return source

    def transmit(self, flow: Source, datagram: bytes | memoryview) -> None:
        flow.bound.send(datagram, flow.way)

    def peer_opened(self, number: int, name: str) -> None:
        raise PeerBrokeProtocol("the peer announced a flow, which is up to the side that listens")

    def closed(self, flow: Source) -> None:
        del flow.sources[flow.way]

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
