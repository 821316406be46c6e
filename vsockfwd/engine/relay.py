"""Two pumps: what joins two plain streams until both directions have ended.

The thing to understand first: a raw relay can only pass on what it sees. An end is passed on as a half-close, a reset
as a reset where the neighbour can be told; where a transport cannot carry a half-close, the shutdown towards the
dialled side is withheld, since it would kill the reply that is still to come.

A relay runs in one of two ways. In tasks it can wait for anything; one that is alone in its process begins in a single
one (engine/alone.py). Of two sockets that need no clock, which is nearly all of them, `Relays` (engine/relays.py) runs
any number as callbacks, without a task; whatever does need one is handed to tasks half-way. What joins a plain stream
to a link between two vsockfwd peers is engine/framed.py.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from typing import Protocol

import trio

from vsockfwd.engine.alone import carry
from vsockfwd.engine.pump import Broken, BufferPool, Needs, Pump
from vsockfwd.errors import Code, VsockfwdError, from_oserror
from vsockfwd.events import Ending, Outcome
from vsockfwd.transport.base import Stream

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


class Direction(Protocol):
    """What a relay's direction is to who drives it: engine/pump.py's Pump, or engine/framed.py's Inward."""

    @property
    def source(self) -> Stream: ...
    @property
    def sink(self) -> Stream: ...
    @property
    def bytes(self) -> int: ...
    def step(self) -> Needs: ...


async def speak_out(over: trio.Event, pump: Direction) -> None:
    """Wait until a direction is over, as long as it still moves bytes."""
    moved = -1
    while moved != pump.bytes and not over.is_set():
        moved = pump.bytes
        with trio.move_on_after(LAST_WORDS):
            await over.wait()


class Then(enum.Enum):
    """What becomes of a relay after a step of one of its directions."""

    ON = 1
    OVER = 2
    TASKS = 3
    """It needs a clock, and goes on in tasks."""


_ON, _OVER, _TASKS = Then  # see engine/pump.py
_COMPLETE = Ending.COMPLETE


class Plain:
    """One relay of two plain streams at work, and what becomes of it: driven by `Relays` (engine/relays.py), or run in
    tasks, from wherever it stands."""

    def __init__(self, near: Stream, far: Stream, buffers: BufferPool) -> None:
        self.near = near
        self.far = far
        self.forth = Pump(near, far, buffers)
        self.back = Pump(far, near, buffers)
        self.likely = (self.forth,)
        self._started = time.monotonic()
        self._finished: list[Stream] = []
        """The streams that said their last, in order."""
        self._failure: tuple[Ending, str, str] | None = None
        self._last_words: trio.Event | None = None
        """Made by a direction that can send no more, set by the other when it has heard the end."""

    @property
    def sent(self) -> int:
        return self.forth.bytes

    @property
    def received(self) -> int:
        return self.back.bytes

    @property
    def clean(self) -> bool:
        return len(self._finished) == 2 and self._failure is None

    def finish(self) -> Outcome:
        """Close both streams as they deserve, and say how it went."""
        if self.clean:  # the pumps have given back what they borrowed
            self.near.close()
            self.far.close()
        else:
            self.near.abort()
            self.far.abort()
            self.forth.close()
            self.back.close()
        ending, by, why = self._failure or (_COMPLETE, "", "")
        seconds = time.monotonic() - self._started
        return Outcome(ending, by, why, self.forth.bytes, self.back.bytes, seconds)

    # --- driven by Relays

    def told(self, tell: Callable[[], None]) -> None:
        """Nobody but the kernel tells of a plain stream."""

    def ended(self, pump: Direction) -> Then:
        """A direction has ended."""
        if pump.source in self._finished:
            return _ON
        self._finished.append(pump.source)
        if len(self._finished) == 2:
            return _OVER
        pump.sink.shutdown_sending()
        return _ON

    def failed(self, pump: Direction, error: Broken | VsockfwdError) -> Then:
        """A direction failed: one whose sink takes no more may still hear what that has to say, an early refusal."""
        if not isinstance(error, Broken):
            self.broke(error.message)
        elif self._has_last_words(error, pump):
            return _TASKS
        else:
            self._note(error)
        return _OVER

    def stop(self) -> None:
        """It was told to stop."""
        self._failure = (Ending.STOPPED, "", "")

    def broke(self, why: str) -> None:
        """A bug of ours in it."""
        self._failure = (Ending.FAILED, "", why)

    def _note(self, broken: Broken) -> None:
        if self._failure is None:
            error = from_oserror(broken.error, broken.stream.name)
            self._failure = (ending_of(error.code), broken.stream.name, error.message.partition(": ")[2])

    def _has_last_words(self, broken: Broken, pump: Direction) -> bool:
        return broken.stream is pump.sink and pump.sink not in self._finished

    # --- in tasks

    async def run(self, idle: float, half_open: float, alone: bool = False) -> Outcome:
        """Until both directions have ended. `idle`, `half_open`, `alone`: see `relay`."""
        half_open = half_open or (0.0 if self.far.features.half_close else WITHHELD)
        self._scope = trio.CancelScope()
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    if idle or half_open:
                        nursery.start_soon(self._watch, idle, half_open)
                    pumps = [pump for pump in (self.forth, self.back) if pump.source not in self._finished]
                    while alone and (over := await carry(pumps)) is not None:
                        pumps.remove(over)
                        self._carried(over, bool(idle or half_open))
                    for pump in pumps:
                        nursery.start_soon(self._carry, pump, bool(idle or half_open))
        finally:
            outcome = self.finish()
        return outcome

    async def _carry(self, pump: Pump, watched: bool) -> None:
        sink = pump.sink
        try:
            await pump.run()
        except Broken as broken:
            self._note(broken)
            if self._has_last_words(broken, pump):
                self._last_words = trio.Event()
                await speak_out(self._last_words, self.back if sink is self.far else self.forth)
            self._scope.cancel()
            return
        except trio.ClosedResourceError:  # whose stream it is has closed it: told to stop
            self._failure = self._failure or (Ending.STOPPED, "", "")
            self._scope.cancel()
            return
        self._carried(pump, watched)

    def _carried(self, pump: Pump, watched: bool) -> None:
        sink = pump.sink
        self._finished.append(pump.source)
        if self._last_words is not None:
            self._last_words.set()
        if sink.features.half_close or sink is self.near or sink in self._finished:
            sink.shutdown_sending()
        if len(self._finished) == 2 and watched:
            self._scope.cancel()  # only the watch is left

    async def _watch(self, idle: float, half_open: float) -> None:
        why = await silence(lambda: self.sent + self.received, lambda: bool(self._finished), idle, half_open)
        self._failure = (Ending.TIMED_OUT, "", why)
        self._scope.cancel()


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
    near: Stream, far: Stream, buffers: BufferPool, *, idle: float = 0.0, half_open: float = 0.0, alone: bool = False
) -> Outcome:
    """Join two streams until both directions have ended, then close both; `far` is the one that was dialled.

    `idle`: seconds without a byte either way after which the relay ends; `half_open`: the same, once one side has
    ended; 0 means for ever. On any unclean outcome, and when cancelled, both are aborted. `sent` counts near → far.
    `alone`: this process has nothing else to do, see engine/alone.py.
    """
    return await Plain(near, far, buffers).run(idle, half_open, alone)
