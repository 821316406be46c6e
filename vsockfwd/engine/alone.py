"""A relay that has the process to itself: its directions in one task, which looks for more before it waits.

The thing to understand first: to sleep, to be woken and to take a turn of trio's loop is most of what a datagram's way
through a relay takes, some 50 µs. Who looks for more as long as that spends at most twice what it has to, and usually
finds it. Where other tasks have work of their own that would be theft, so `relay` does it only when it is told that
there are none.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Sequence

import trio

from vsockfwd.engine.pump import Broken, Needs, Pump
from vsockfwd.transport.base import NEVER

LOOK = 50e-6
"""Seconds for which it is looked for news; to be woken for them takes as long."""

PATIENCE = 0.001
"""Seconds for which they are waited for then, before trio waits."""

CROWDED = 0.1
"""Seconds for which it is not looked any more, once somebody else had the processor meanwhile."""

LONGEST = 0.005
"""Seconds after which signals, deadlines and whoever else there is have their turn in any case."""

_ENDS = select.EPOLLHUP | select.EPOLLERR
_EVENTS = 4


class _Watch:
    """The streams' descriptors in an epoll of their own, and what each direction waits for there."""

    def __init__(self, pumps: Sequence[Pump]) -> None:
        """Raises OSError."""
        self._epoll = select.epoll()
        self._events: dict[int, int] = {}
        self._waiting: dict[Pump, tuple[int, int]] = {}
        self._crowded = 0.0
        try:
            for pump in pumps:
                self.for_bytes(pump)
        except BaseException:
            self._epoll.close()
            raise

    def for_bytes(self, pump: Pump) -> None:
        """From now on the direction waits for its source, as it does at first."""
        self._wait_for(pump, pump.source.source_to_poll(), select.EPOLLIN)

    def for_room(self, pump: Pump) -> None:
        """From now on it waits for its sink."""
        self._wait_for(pump, pump.sink.sink_to_poll(), select.EPOLLOUT)

    def _wait_for(self, pump: Pump, number: int | None, event: int) -> None:
        new = NEVER if number is None else number, event
        old = self._waiting.get(pump, (NEVER, 0))
        if new != old:
            self._waiting[pump] = new
            self._change(old[0], old[1], 0)
            self._change(new[0], 0, new[1])

    def _change(self, number: int, remove: int, add: int) -> None:
        before = self._events.get(number, 0)
        after = before & ~remove | add
        if number == NEVER or before == after:
            return
        if not after:  # an end or a failure would be told all the same, again and again
            self._epoll.unregister(number)
            del self._events[number]
            return
        try:
            (self._epoll.modify if before else self._epoll.register)(number, after)
        except PermissionError:
            return  # epoll_ctl(2): a file or /dev/null, which is never waited for
        self._events[number] = after

    async def wait(self, turn: float) -> tuple[list[Pump], float]:
        """The directions that there is news for, and when others last had their turn, which was at `turn` before."""
        now, poll = time.monotonic, self._epoll.poll
        if now() - turn > LONGEST:
            await trio.lowlevel.checkpoint()
            turn = now()
        news = self._look() or poll(PATIENCE, _EVENTS)
        while not news:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            turn = now()
            news = poll(0, _EVENTS)
        told = dict(news)
        return [pump for pump, (number, event) in self._waiting.items() if told.get(number, 0) & (event | _ENDS)], turn

    def _look(self) -> list[tuple[int, int]]:
        """Look again and again, unless others want the processor: who yields comes last then, who sleeps does not."""
        now, poll = time.monotonic, self._epoll.poll
        if news := poll(0, _EVENTS):
            return news
        began = at = now()
        while not news and at - began < LOOK and at >= self._crowded:
            os.sched_yield()
            before, at = at, now()
            if at - before > LOOK:
                self._crowded = at + CROWDED
            news = poll(0, _EVENTS)
        return news

    def close(self) -> None:
        self._epoll.close()


async def carry(pumps: Sequence[Pump]) -> Pump | None:
    """Carry until one direction has ended, which is returned. None: they have to go on in another way. One of them
    broke, and says so when it is stepped again, or a stream of theirs cannot be watched here."""
    if not pumps or any(pump.source.source_to_poll() is None or pump.sink.sink_to_poll() is None for pump in pumps):
        return None
    try:
        watch = _Watch(pumps)
    except OSError:
        return None  # no descriptors left
    try:
        turn, now = time.monotonic(), pumps
        while True:
            again = False
            for pump in now:
                try:
                    needs = pump.step()
                except Broken:
                    return None
                if needs is Needs.BYTES:
                    watch.for_bytes(pump)
                elif needs is Needs.ROOM:
                    watch.for_room(pump)
                elif needs is Needs.NOTHING:
                    return pump
                else:
                    again = True
            if not again:
                now, turn = await watch.wait(turn)
                continue
            now = pumps
            if time.monotonic() - turn > LONGEST:
                await trio.lowlevel.checkpoint()
                turn = time.monotonic()
    finally:
        watch.close()
