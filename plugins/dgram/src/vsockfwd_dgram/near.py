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

from vsockfwd.plugin import PeerBrokeProtocol, Report
from vsockfwd_dgram.carrier import Carriage, Carrier
from vsockfwd_dgram.sockets import Bound, Reply, Way


class Source(Carriage):
    """A flow on the side that listens: whose it is."""

    __slots__ = ("sources", "way")

    def __init__(self, number: int, bound: Bound, sources: dict[Way, Source], way: Way, now: float) -> None:
        super().__init__(number, bound.source(way), now, Reply(bound, way))
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

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Take datagrams for the length of a block; `carry` them over a stream in it, or several in a row."""
        async with self.at_work(functools.partial(self.expire, self._idle)):
            for bound in self._bound:
                self.poll.add(bound.sock, functools.partial(self._drain, bound, {}))
            yield

    def _drain(self, bound: Bound, sources: dict[Way, Source]) -> None:
        batch = self.batch
        if not self.arrived(bound.sock):
            return
        now, known = trio.current_time(), sources.get
        self.take([known(way) or self._new(bound, sources, way, now) for way in bound.ways(batch)], now)

    def _new(self, bound: Bound, sources: dict[Way, Source], way: Way, now: float) -> Source:
        self.make_room()
        source = sources[way] = Source(self.next_number(), bound, sources, way, now)
        self.begin_flow(source)
        return source

    def peer_opened(self, number: int, name: str) -> None:
        raise PeerBrokeProtocol("the peer announced a flow, which is up to the side that listens")

    def closed(self, flow: Source) -> None:
        del flow.sources[flow.way]
