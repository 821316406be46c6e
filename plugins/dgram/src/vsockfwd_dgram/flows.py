"""Flows on one side: which there are, how long they live, what waits for their sockets, and what was dropped.

The thing to understand first: nobody waits for anybody. Sockets are read whatever becomes of what they bring; where a
socket takes nothing, its own flow's datagrams wait, bounded, and the oldest are dropped. So a flow that floods, or a
socket that is stuck, costs the others nothing.
"""

from __future__ import annotations

import contextlib
import socket
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

import trio

from vsockfwd.plugin import Carried, Closed, Ending, Opened, Outcome, Problem, Report, the_one
from vsockfwd_dgram.batch import BURST, NOT_TOGETHER, Batch, alike
from vsockfwd_dgram.drops import Drops, Reason, reason_for
from vsockfwd_dgram.fair import FairQueue
from vsockfwd_dgram.sockets import CountingPoll, End

REPORT_INTERVAL = 1.0
"""Seconds between two reports of what was dropped."""

COUNTED = 32
"""Sockets whose losses are asked for in a row: each takes some microseconds, in which nothing moves."""

_PAUSES = (0.001, 0.05)
"""Seconds until a socket that took nothing is tried again: at first, and at most."""


class Flow:
    """One source address and its way to the far end and back."""

    __slots__ = ("began", "ends", "name", "number", "received", "sent", "used")

    def __init__(self, number: int, name: str, now: float, *ends: End) -> None:
        self.number = number
        self.name = name
        self.began = self.used = now
        """When it came to be, and when a datagram went either way."""
        self.ends = ends
        """Where its datagrams go on this side."""
        for end in ends:
            end.flow = self
        self.sent = self.received = 0
        """Bytes towards the far end, and from it."""


F = TypeVar("F", bound=Flow)


class Flows(ABC, Generic[F]):
    """The flows of one rule on one side. `where` is what to call the peer's side in reports; `live` holds them."""

    def __init__(self, rule: str, where: str, cap: int, report: Report, live: set[Any] | None = None) -> None:
        self.rule = rule
        self.cap = cap
        self.report = report
        self.flows: OrderedDict[int, F] = OrderedDict()
        """By number, the least recently used first."""
        self.drops = Drops(where)
        self.poll = CountingPoll(lambda count: self.drops.add(Reason.KERNEL, count))
        self.batch = Batch()
        self.datagrams_out = self.datagrams_in = 0
        self._bytes_sent = self._bytes_received = 0
        self._live: set[Any] = set() if live is None else live
        self.held: FairQueue[End] = FairQueue(lambda count: self.drops.add(Reason.QUEUE, count))
        """What waits for a socket that took nothing."""
        self._holding = trio.Event()
        self._explained: set[str] = set()
        self._crowded = False
        self._number = 0
        self._began = trio.current_time()

    @abstractmethod
    def closed(self, flow: F) -> None:
        """A flow is over: let go of what it had."""

    def delivered(self, end: End, size: int) -> None:
        """So many bytes went to an end."""

    def drops_told(self) -> None:
        """What was dropped has been reported; a peer may be told as well."""

    # --- flows

    def next_number(self) -> int:
        """A number that no flow has."""
        while True:
            self._number = (self._number + 1) & 0xFFFF_FFFF
            if self._number not in self.flows:
                return self._number

    def begin_flow(self, flow: F) -> None:
        """Take a new flow."""
        self.flows[flow.number] = flow
        self._live.add(flow)
        self.report(Opened(self.rule, flow.name))

    def use(self, flow: F, now: float) -> None:
        """A datagram went one way or the other."""
        flow.used = now
        self.flows.move_to_end(flow.number)

    def close_flow(self, flow: F, why: str, reason: Reason = Reason.NO_FLOW) -> None:
        """End a flow; what waits is dropped for `reason`."""
        del self.flows[flow.number]
        self._live.discard(flow)
        self.drops.add(reason, sum(map(self.held.forget, flow.ends)))
        self._bytes_sent += flow.sent
        self._bytes_received += flow.received
        self.closed(flow)
        outcome = Outcome(Ending.COMPLETE, "", why, flow.sent, flow.received, flow.used - flow.began)
        self.report(Closed(self.rule, flow.name, outcome))

    def make_room(self) -> None:
        """Close the least recently used flows until one more may be opened."""
        while len(self.flows) >= self.cap:
            if not self._crowded:
                self._crowded = True
                why = f"more than {self.cap} sources at once: the least recently used make room"
                self.report(Problem(self.rule, why))
            self.close_flow(next(iter(self.flows.values())), "made room for another")

    async def expire(self, idle: float) -> None:
        """End the flows that were idle for so many seconds, as long as this runs."""
        while True:
            now, wait = trio.current_time(), idle
            while self.flows:
                oldest = next(iter(self.flows.values()))
                wait = oldest.used + idle - now
                if wait > 0:
                    break
                self.close_flow(oldest, f"idle for {idle:g} s")
                wait = idle
            await trio.sleep(wait)

    # --- from sockets

    def arrived(self, sock: socket.socket) -> bool:
        """Receive a batch; False where there was none, or an error instead, which is counted."""
        try:
            self.batch.receive(sock)
        except BlockingIOError:
            return False
        except OSError as error:
            self.failed(error)
            return False
        if self.batch.late is not None:
            self.failed(self.batch.late)
        return True

    # --- to sockets

    def deliver(self, end: End, run: Sequence[memoryview]) -> None:
        """Send a run of datagrams on, in as few calls as they allow; what its socket does not take now waits."""
        if end in self.held:  # what came before goes before
            self.hold(end, *run)
            return
        at, count = 0, len(run)
        while at < count:
            together = alike(run, at) if end.together and count - at > 1 else 1
            if together > 1:
                part = run[at : at + together]
                try:
                    end.send_together(part)
                except BlockingIOError:
                    self.hold(end, *run[at:])
                    return
                except OSError as error:
                    if error.errno in NOT_TOGETHER:
                        end.together = False
                        continue
                    self.failed(error, together)
                else:
                    self.delivered(end, sum(map(len, part)))
            elif not self._deliver_one(end, run[at]):
                self.hold(end, *run[at:])
                return
            at += together

    def _deliver_one(self, end: End, datagram: bytes | memoryview) -> bool:
        """Send one datagram on, or count it; False where its socket takes none now."""
        try:
            end.send(datagram)
        except BlockingIOError:
            return False
        except OSError as error:
            self.failed(error)
        else:
            self.delivered(end, len(datagram))
        return True

    def hold(self, end: End, *run: memoryview) -> None:
        """Let datagrams wait for their socket."""
        for datagram in run:
            self.held.put(end, bytes(datagram))
        self._holding.set()

    def failed(self, error: OSError, count: int = 1) -> None:
        """Count datagrams that were lost to an error; one that nobody expects is explained, once."""
        reason = reason_for(error)
        self.drops.add(reason, count)
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
            pause = _PAUSES[0] if self.send_held() else min(pause * 2, longest)
            if not self.held:
                self._holding = trio.Event()

    def send_held(self) -> bool:
        """A datagram of each flow in turn, for some rounds or until none gets on; whether any did."""
        progress = False
        for _ in range(BURST):
            moved = False
            for end, datagram in self.held.fronts():
                # A delivery may end other flows, to have their descriptors, or its own.
                if end in self.held and self._deliver_one(end, datagram):
                    if end in self.held:
                        self.held.pop(end)
                    moved = progress = True
            if not moved:
                break
        return progress

    # --- at work

    @contextlib.asynccontextmanager
    async def at_work(self, *tasks: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
        """What goes on all the time, and the side's own tasks, for the length of a block."""
        try:
            async with trio.open_nursery() as nursery:
                for task in (self.poll.run, self._retry, self._count, self._tell, *tasks):
                    nursery.start_soon(task)
                yield
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise the_one(group) from None
        finally:
            self.end_all("the forward ended")
            self.poll.close()
            self.drops.report(self.rule, self.report)
            self.report(self._carried())

    def end_all(self, why: str, reason: Reason = Reason.NO_STREAM) -> None:
        """End all flows."""
        for flow in list(self.flows.values()):
            self.close_flow(flow, why, reason)

    async def _tell(self) -> None:
        """Report what was dropped, and have the peer told: the first at once, the rest now and then."""
        while True:
            await self.drops.news.wait()
            self.drops.report(self.rule, self.report)
            self.drops_told()
            await trio.sleep(REPORT_INTERVAL)

    async def _count(self) -> None:
        """Ask the kernel what it threw away: of few sockets now and then, of a part of many more often."""
        while True:
            await trio.sleep(REPORT_INTERVAL / (8 if len(self.flows) > COUNTED else 1))
            self.poll.count_lost(COUNTED)

    def _carried(self) -> Carried:
        return Carried(
            self.rule,
            self.datagrams_out,
            self.datagrams_in,
            self.drops.total,
            self._bytes_sent,
            self._bytes_received,
            trio.current_time() - self._began,
            dict(self.drops.by_reason),
        )
