"""Two pumps: what joins two plain streams until both directions have ended.

The thing to understand first: a raw relay can only pass on what it sees. An end is passed on as a half-close, a reset
as a reset where the neighbour can be told; where a transport cannot carry a half-close, the shutdown towards the
dialled side is withheld, since it would kill the reply that is still to come.

A relay runs in one of two ways. In tasks it can wait for anything. Of two sockets that need no clock, which is nearly
all of them, `Relays` runs any number in one task, as callbacks; whatever does need one is handed to tasks half-way.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import trio

from vsockfwd.engine.poll import ARRIVALS, ROOM, Poll
from vsockfwd.engine.pump import Broken, BufferPool, Needs, Pump
from vsockfwd.errors import Code, from_oserror
from vsockfwd.events import Ending, Outcome, Problem, Report
from vsockfwd.transport.base import SocketStream, Stream

LAST_WORDS = 5.0
"""Seconds of silence after which a stream that takes no more bytes has said what it had to say."""

WITHHELD = 60.0
"""Seconds of silence after which a dialled side that could not be told the end is given up."""

_ENDINGS = {
    Code.REFUSED: Ending.REFUSED,
    Code.RESET: Ending.RESET,
    Code.SHUTTING_DOWN: Ending.STOPPED,
    Code.TIMED_OUT: Ending.TIMED_OUT,
    Code.TRUNCATED: Ending.TRUNCATED,
}


def ending_of(code: Code) -> Ending:
    """The ending that an error's code stands for."""
    return _ENDINGS.get(code, Ending.FAILED)


async def speak_out(over: trio.Event, pump: Pump) -> None:
    """Wait until a direction is over, as long as it still moves bytes."""
    moved = -1
    while moved != pump.bytes and not over.is_set():
        moved = pump.bytes
        with trio.move_on_after(LAST_WORDS):
            await over.wait()


class _Relay:
    """One relay at work."""

    def __init__(self, near: Stream, far: Stream, buffers: BufferPool) -> None:
        self.near = near
        self.far = far
        self.forth = Pump(near, far, buffers)
        self.back = Pump(far, near, buffers)
        self.started = time.monotonic()
        self.finished: list[Stream] = []
        """The streams that said their last, in order."""
        self.failure: tuple[Ending, str, str] | None = None

    @property
    def sent(self) -> int:
        return self.forth.bytes

    @property
    def received(self) -> int:
        return self.back.bytes

    @property
    def clean(self) -> bool:
        return len(self.finished) == 2 and self.failure is None

    def end(self) -> Outcome:
        """Close both streams as they deserve, and say how it went."""
        clean = self.clean
        for stream in (self.near, self.far):
            stream.close() if clean else stream.abort()
        ending, by, why = self.failure or (Ending.COMPLETE, "", "")
        seconds = time.monotonic() - self.started
        return Outcome(ending, by, why, self.forth.bytes, self.back.bytes, seconds)

    def note(self, broken: Broken) -> None:
        if self.failure is None:
            error = from_oserror(broken.error, broken.stream.name)
            self.failure = (ending_of(error.code), broken.stream.name, error.message.partition(": ")[2])

    def has_last_words(self, broken: Broken, pump: Pump) -> bool:
        """Whether the sink takes no more, but may have something to say that is worth hearing: an early refusal."""
        return broken.stream is pump.sink and pump.sink not in self.finished


class _InTasks:
    """A relay run by a task for each direction, from wherever it stands."""

    def __init__(self, relay: _Relay, idle: float, half_open: float) -> None:
        self.relay = relay
        self.idle = idle
        self.half_open = half_open or (0.0 if relay.far.features.half_close else WITHHELD)
        self.last_words: trio.Event | None = None
        """Made by a direction that can send no more, set by the other when it has heard the end."""

    async def run(self) -> Outcome:
        relay = self.relay
        try:
            async with trio.open_nursery() as nursery:
                self.scope = nursery.cancel_scope
                if self.idle or self.half_open:
                    nursery.start_soon(self._watch)
                for pump in (relay.forth, relay.back):
                    if pump.source not in relay.finished:
                        nursery.start_soon(self._carry, pump)
        finally:
            outcome = relay.end()
        return outcome

    async def _carry(self, pump: Pump) -> None:
        relay, sink = self.relay, pump.sink
        try:
            await pump.run()
        except Broken as broken:
            relay.note(broken)
            if relay.has_last_words(broken, pump):
                self.last_words = trio.Event()
                await speak_out(self.last_words, relay.back if sink is relay.far else relay.forth)
            self.scope.cancel()
            return
        except trio.ClosedResourceError:  # whose stream it is has closed it: told to stop
            relay.failure = relay.failure or (Ending.STOPPED, "", "")
            self.scope.cancel()
            return
        relay.finished.append(pump.source)
        if self.last_words is not None:
            self.last_words.set()
        if sink.features.half_close or sink is relay.near or sink in relay.finished:
            sink.shutdown_sending()
        if len(relay.finished) == 2 and (self.idle or self.half_open):
            self.scope.cancel()  # only the watch is left

    async def _watch(self) -> None:
        relay = self.relay
        why = await silence(
            lambda: relay.sent + relay.received, lambda: bool(relay.finished), self.idle, self.half_open
        )
        relay.failure = (Ending.TIMED_OUT, "", why)
        self.scope.cancel()


async def silence(moved: Callable[[], int], half: Callable[[], bool], idle: float, half_open: float) -> str:
    """Wait until nothing moved for as long as is allowed; returns that as words.

    `half` says whether one direction has ended; then `half_open` is the limit, where it is not 0.
    """
    seen, since = (-1, False), trio.current_time()
    while True:
        now = trio.current_time()
        ended = half()
        limit = half_open if ended and half_open else idle
        if (moved(), ended) != seen:
            seen, since = (moved(), ended), now
        elif limit and now - since >= limit:
            return f"{'half-open and idle' if ended else 'idle'} for {limit:g} s"
        shortest = min(filter(None, (idle, half_open)))
        await trio.sleep(max(0.001, min(shortest / 4, (limit or shortest) - (now - since))))


async def relay(
    near: Stream, far: Stream, buffers: BufferPool, *, idle: float = 0.0, half_open: float = 0.0
) -> Outcome:
    """Join two streams until both directions have ended, then close both; `far` is the one that was dialled.

    `idle`: seconds without a byte either way after which the relay ends; `half_open`: the same, once one side has
    ended; 0 means for ever. On any unclean outcome, and when cancelled, both are aborted. `sent` counts near → far.
    """
    return await _InTasks(_Relay(near, far, buffers), idle, half_open).run()


# --- many, in one task


class Relays:
    """Any number of relays, run in one task. A context: what still runs when it is left is aborted."""

    def __init__(
        self,
        buffers: BufferPool,
        report: Report,
        *,
        live: set[Any] | None = None,
        idle: float = 0.0,
        half_open: float = 0.0,
    ) -> None:
        """`live` holds the relays that run, each with `sent` and `received`; `idle` and `half_open` as in `relay`."""
        self.live = set() if live is None else live
        self._buffers = buffers
        self._report = report
        self._idle = idle
        self._half_open = half_open
        self._poll = Poll()
        self._watched: set[_Watched] = set()
        self._manager = trio.open_nursery()

    async def __aenter__(self) -> Self:
        self._nursery = await self._manager.__aenter__()
        self._nursery.start_soon(self._poll.run)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._nursery.cancel_scope.cancel()
        try:
            return await self._manager.__aexit__(kind, error, trace)
        finally:
            for watched in list(self._watched):
                watched.stop()
            self._poll.close()

    def begin(self, near: Stream, far: Stream, ended: Callable[[Outcome], None]) -> None:
        """Join two streams as `relay` does, at once. `ended` is called when it is over, however that came."""
        relay = _Relay(near, far, self._buffers)
        self.live.add(relay)
        plain = isinstance(near, SocketStream) and isinstance(far, SocketStream) and far.features.half_close
        if plain and not self._idle and not self._half_open:
            assert isinstance(near, SocketStream)
            assert isinstance(far, SocketStream)
            watched = _Watched(relay, near, far, self, ended)
            self._watched.add(watched)
            watched.begin()
        else:
            self._nursery.start_soon(self._in_tasks, relay, ended)

    async def _in_tasks(self, relay: _Relay, ended: Callable[[Outcome], None]) -> None:
        outcome = Outcome(Ending.STOPPED)
        try:
            outcome = await _InTasks(relay, self._idle, self._half_open).run()
        except Exception as bug:  # noqa: BLE001 - it must not end the others
            problem = Problem.of(relay.near.name, bug)
            self._report(problem)
            outcome = Outcome(Ending.FAILED, "", problem.why)
        finally:
            self.live.discard(relay)
            ended(outcome)


class _Watched:
    """A relay of two sockets as callbacks. What raises in them ends this relay alone."""

    __slots__ = ("_ended", "_far", "_group", "_near", "_poll", "_waiting_for_room", "relay")

    def __init__(
        self, relay: _Relay, near: SocketStream, far: SocketStream, group: Relays, ended: Callable[[Outcome], None]
    ) -> None:
        self.relay = relay
        self._near = near.sock
        self._far = far.sock
        self._group = group
        self._poll = group._poll
        self._ended = ended
        self._waiting_for_room: set[Stream] = set()

    def begin(self) -> None:
        self._poll.add(self._near, self._near_told, ARRIVALS)
        self._poll.add(self._far, self._far_told, ARRIVALS)
        self._step(self.relay.forth)

    def _near_told(self, events: int) -> None:
        if events & ROOM:
            self._step(self.relay.back)
        if events & ~ROOM:
            self._step(self.relay.forth)

    def _far_told(self, events: int) -> None:
        if events & ROOM:
            self._step(self.relay.forth)
        if events & ~ROOM:
            self._step(self.relay.back)

    def _step(self, pump: Pump) -> None:
        relay = self.relay
        if self not in self._group._watched or pump.source in relay.finished:
            return
        try:
            needs = pump.step()
            if needs is Needs.BYTES:
                return
            if needs is Needs.ROOM:
                self._watch_room(pump.sink)
            elif needs is Needs.TURN:
                self._poll.again(functools.partial(self._step, pump))
            else:
                relay.finished.append(pump.source)
                if len(relay.finished) == 2:
                    self._over()
                else:
                    pump.sink.shutdown_sending()
        except Broken as broken:
            if relay.has_last_words(broken, pump):
                self._go_on_in_tasks()
            else:
                relay.note(broken)
                self._over()
        except Exception as bug:  # noqa: BLE001 - it must not end the others
            problem = Problem.of(relay.near.name, bug)
            self._group._report(problem)
            relay.failure = (Ending.FAILED, "", problem.why)
            self._over()

    def _watch_room(self, sink: Stream) -> None:
        """From the first time that a socket was full on it is told whenever it has room again: that costs nothing."""
        if sink not in self._waiting_for_room:
            self._waiting_for_room.add(sink)
            self._poll.change(self._near if sink is self.relay.near else self._far, ARRIVALS | ROOM)

    def stop(self) -> None:
        self.relay.failure = (Ending.STOPPED, "", "")
        self._over()

    def _over(self) -> None:
        self._group._watched.discard(self)
        self._group.live.discard(self.relay)
        self._poll.closing(self._near)
        self._poll.closing(self._far)
        self.relay.forth.close()
        self.relay.back.close()
        if self.relay.clean:
            # No task waits on these, so trio need not be told: two system calls less.
            self._near.close()
            self._far.close()
        self._ended(self.relay.end())

    def _go_on_in_tasks(self) -> None:
        self._group._watched.discard(self)
        self._poll.forget(self._near)
        self._poll.forget(self._far)
        self._group._nursery.start_soon(self._group._in_tasks, self.relay, self._ended)
