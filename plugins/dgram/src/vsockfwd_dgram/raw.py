"""Datagrams without an agent: each flow joins a source on one side to a socket of its own on the other.

Either side may be datagram sockets or connections with messages (SOCK_SEQPACKET), where a connection is a flow: it
ends when the connection does, and is made anew for the next datagram.
"""

from __future__ import annotations

import contextlib
import functools
import select
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio

from vsockfwd.plugin import (
    Admitted,
    Denied,
    Listening,
    Problem,
    Report,
    RuleKind,
    State,
    UnixPacketAddress,
    VsockPacketAddress,
    Work,
    until_stopping,
)
from vsockfwd_dgram.batch import BURST
from vsockfwd_dgram.client import granted
from vsockfwd_dgram.drops import Reason
from vsockfwd_dgram.far import Leg, Lookup, sockets_to_spare
from vsockfwd_dgram.flows import Flow, Flows
from vsockfwd_dgram.frames import DATAGRAM_LIMIT
from vsockfwd_dgram.packets import PacketListener, Packets, check_destination
from vsockfwd_dgram.rule import RawDatagramRule
from vsockfwd_dgram.sockets import Bound, End, Place, Reply, Way, bind, places

_RELIEF = 0.1
"""Seconds without accepting, where descriptors have run out."""


class Joint(Flow):
    """A flow: its near end, its far end, and by what its datagrams are known."""

    __slots__ = ("sources", "way")

    def __init__(self, number: int, name: str, now: float, near: End, far: End) -> None:
        super().__init__(number, name, now, near, far)
        self.sources: dict[Way, Joint] = {}
        self.way: Way = b""


class Raw(Flows[Joint]):
    """The flows of one rule without an agent."""

    def __init__(
        self,
        rule: str,
        near: Sequence[Bound | PacketListener],
        far: Any,
        found: list[Place],
        cap: int,
        report: Report,
        live: set[Any] | None = None,
        allow: tuple[Admitted, ...] = (),
    ) -> None:
        """`far`: the address to send to, and where that is datagrams, `found`: what it stands for."""
        super().__init__(rule, "", cap, report, live)
        self._near = near
        self._far = far
        self._allow = allow
        self._lookup = Lookup(far, found)
        self.interface = self._lookup.interface
        self._relieved = trio.Event()

    @property
    def places(self) -> list[Place]:
        return self._lookup.places

    async def run(self, idle: float) -> None:
        """Carry until cancelled."""
        tasks: list[Callable[[], Awaitable[None]]] = [functools.partial(self.expire, idle), self._accept_again]
        if self.places:
            tasks.append(self._lookup.look_up_again)
        async with self.at_work(*tasks):
            for each in self._near:
                if isinstance(each, PacketListener):
                    self.poll.add(each.sock, functools.partial(self._accept, each))
                else:
                    self.poll.add(each.sock, functools.partial(self._drain, each, {}))
            await trio.sleep_forever()

    # --- flows

    def _begin(self, name: str, near: End) -> Joint:
        self.make_room()
        far = Packets(self, self._far) if self._far.connected else Leg(self)
        flow = Joint(self.next_number(), name, trio.current_time(), near, far)
        self.begin_flow(flow)
        return flow

    def closed(self, flow: Joint) -> None:
        flow.sources.pop(flow.way, None)
        for end in flow.ends:
            if isinstance(end, Leg | Packets):
                end.hang_up()

    def spare(self, leg: Leg) -> bool:
        """End the least recently used flow to have its descriptor; False where that is the one that asks."""
        oldest = next(iter(self.flows.values()))
        if oldest is leg.flow:
            return False
        self.close_flow(oldest, "the descriptors ran out")
        return True

    def _pass_on(self, flow: Joint, end: End, run: list[memoryview], now: float) -> None:
        self.use(flow, now)
        size = sum(map(len, run))
        if end is flow.ends[0]:
            self.datagrams_in += len(run)
            flow.received += size
        else:
            self.datagrams_out += len(run)
            flow.sent += size
        self.deliver(end, run)

    # --- from datagram sockets

    def _drain(self, bound: Bound, sources: dict[Way, Joint]) -> None:
        if not self.arrived(bound.sock):
            return
        batch, runs = self.batch, dict[Joint, list[memoryview]]()
        for at, size, way in zip(batch.places, batch.sizes, bound.ways(batch), strict=False):
            flow = sources.get(way)
            if flow is None:
                flow = sources[way] = self._begin(bound.source(way), Reply(bound, way))
                flow.sources, flow.way = sources, way
            if size > DATAGRAM_LIMIT:
                self.drops.add(Reason.TOO_LONG)
            else:
                runs.setdefault(flow, []).append(batch.view[at : at + size])
        now = trio.current_time()
        for flow, run in runs.items():
            if flow.number in self.flows:
                self._pass_on(flow, flow.ends[1], run, now)
            else:  # it made room for one that came in the same batch
                self.drops.add(Reason.NO_FLOW, len(run))

    def drain(self, leg: Leg) -> None:
        """A leg's socket has something to tell."""
        if leg.heard(self.batch):
            self._pass_whole(leg.flow, leg.flow.ends[0], len(self.batch.sizes))

    def _pass_whole(self, flow: Joint, end: End, count: int) -> None:
        """Pass on the first datagrams of the batch, all of one flow."""
        batch, run = self.batch, []
        for at, size in zip(batch.places, batch.sizes[:count], strict=False):
            if size > DATAGRAM_LIMIT:
                self.drops.add(Reason.TOO_LONG)
            else:
                run.append(batch.view[at : at + size])
        if run:
            self._pass_on(flow, end, run, trio.current_time())

    # --- from connections

    def _accept(self, listener: PacketListener) -> None:
        for _ in range(BURST):
            try:
                sock, peer = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                self.report(Problem(self.rule, f"a connection could not be accepted: {(error.strerror or '').lower()}"))
                if self.flows:
                    self.close_flow(next(iter(self.flows.values())), "the descriptors ran out")
                else:
                    self.poll.change(listener.sock, 0)
                    self._relieved.set()
                return
            if self._allow and not any(admitted.admits(peer) for admitted in self._allow):
                sock.close()
                self.report(Denied(str(peer), f"the rule {self.rule!r} does not allow it"))
                continue
            self._begin(str(peer), Packets(self, listener.address, sock))

    async def _accept_again(self) -> None:
        while True:
            await self._relieved.wait()
            self._relieved = trio.Event()
            await trio.sleep(_RELIEF)
            for each in self._near:
                self.poll.change(each.sock, select.EPOLLIN)

    def drain_packets(self, end: Packets) -> None:
        """A connection has messages, or has ended."""
        assert end.sock is not None
        unix = end.sock.family == socket.AF_UNIX
        try:
            count = self.batch.receive(end.sock)
        except BlockingIOError:
            return
        except OSError as error:
            self.broken(end, (error.strerror or str(error)).lower())
            return
        near, far = end.flow.ends
        told = self.batch.controls(1) if unix else [b""] * count
        whole = next((at for at, size in enumerate(self.batch.sizes) if not size and not told[at]), count)
        self._pass_whole(end.flow, far if end is near else near, whole)
        if whole < count:
            self.broken(end, "the connection was closed")

    def connected(self, end: Packets) -> None:
        """What waited for a connection can go."""
        self.send_held()

    def broken(self, end: Packets, why: str, *, refused: bool = False) -> None:
        """A connection is over, and its flow with it; `refused`: it never came to be."""
        if end.flow.number in self.flows and self.flows[end.flow.number] is end.flow:
            self.close_flow(end.flow, why, Reason.REFUSED if refused else Reason.NO_FLOW)


async def run_raw(work: Work, rule: RawDatagramRule) -> None:
    """Listen on one address, send each flow's datagrams to the other."""
    listen, connect = rule.listen.value, rule.connect.value
    async with until_stopping(work.engine):
        with contextlib.ExitStack() as sockets:
            found: list[Place] = []
            if isinstance(connect, VsockPacketAddress | UnixPacketAddress):
                check_destination(connect)
            else:
                found = await places(connect)
            near: Sequence[Bound | PacketListener]
            if isinstance(listen, VsockPacketAddress | UnixPacketAddress):
                near = [PacketListener(listen)]
            else:
                near = await bind(listen)
            for each in near:
                sockets.callback(each.close)
            work.listening = tuple(str(each.address) for each in near)
            for address in work.listening:
                work.engine.report(Listening(address, f"→ {connect.bare()}"))
            work.set(State.UP)
            # A flow from a connection has two descriptors.
            flows = granted(work, rule.flows, max(1, sockets_to_spare() // (1 + listen.connected)), "this process")
            await Raw(work.name, near, connect, found, flows, work.engine.report, work.live, rule.allow).run(rule.idle)


RAW_DATAGRAM = RuleKind("raw-datagram", RawDatagramRule, run_raw)
