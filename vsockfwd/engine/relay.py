"""Two pumps: what joins two plain streams until both directions have ended.

The thing to understand first: a raw relay can only pass on what it sees. An end is passed on as a half-close, a reset
as a reset where the neighbour can be told; where a transport cannot carry a half-close, the shutdown towards the
dialled side is withheld, since it would kill the reply that is still to come.
"""

from __future__ import annotations

import time

import trio

from vsockfwd.engine.pump import Broken, BufferPool, Tally, pump
from vsockfwd.errors import Code, from_oserror
from vsockfwd.events import Ending, Outcome
from vsockfwd.transport.base import Stream

LAST_WORDS = 5.0
"""Seconds of silence after which a stream that takes no more bytes has said what it had to say."""

WITHHELD = 60.0
"""Seconds of silence after which a dialled side that could not be told the end is given up."""

_ENDINGS = {Code.RESET: Ending.RESET, Code.TIMED_OUT: Ending.TIMED_OUT, Code.TRUNCATED: Ending.TRUNCATED}


def ending_of(code: Code) -> Ending:
    """The ending that an error's code stands for."""
    return _ENDINGS.get(code, Ending.FAILED)


async def speak_out(over: trio.Event, tally: Tally) -> None:
    """Wait until a direction is over, as long as it still moves bytes."""
    moved = -1
    while moved != tally.bytes and not over.is_set():
        moved = tally.bytes
        with trio.move_on_after(LAST_WORDS):
            await over.wait()


class _Relay:
    """One relay at work."""

    def __init__(self, near: Stream, far: Stream, buffers: BufferPool, idle: float, half_open: float) -> None:
        self.near = near
        self.far = far
        self.buffers = buffers
        self.idle = idle
        self.half_open = half_open or (0.0 if far.features.half_close else WITHHELD)
        self.forth = Tally()
        self.back = Tally()
        self.finished: list[Stream] = []
        """The streams that said their last, in order."""
        self.failure: tuple[Ending, str, str] | None = None
        self.last_words: trio.Event | None = None
        """Made by a direction that can send no more, set by the other when it has heard the end."""

    async def run(self) -> Outcome:
        started = time.monotonic()
        try:
            async with trio.open_nursery() as nursery:
                self.scope = nursery.cancel_scope
                if self.idle or self.half_open:
                    nursery.start_soon(self._watch)
                nursery.start_soon(self._carry, self.far, self.near, self.back)
                await self._carry(self.near, self.far, self.forth)
        finally:
            clean = len(self.finished) == 2 and self.failure is None
            for stream in (self.near, self.far):
                stream.close() if clean else stream.abort()
        ending, by, why = self.failure or (Ending.COMPLETE, "", "")
        return Outcome(ending, by, why, self.forth.bytes, self.back.bytes, time.monotonic() - started)

    async def _carry(self, source: Stream, sink: Stream, tally: Tally) -> None:
        try:
            await pump(source, sink, self.buffers, tally)
        except Broken as broken:
            self._note(broken)
            if broken.stream is sink and sink not in self.finished:
                # It takes no more, but what it had to say may be an answer worth hearing: an early refusal, say.
                self.last_words = trio.Event()
                await speak_out(self.last_words, self.back if sink is self.far else self.forth)
            self.scope.cancel()
            return
        self.finished.append(source)
        if self.last_words is not None:
            self.last_words.set()
        if sink.features.half_close or sink is self.near or sink in self.finished:
            sink.shutdown_sending()
        if len(self.finished) == 2 and (self.idle or self.half_open):
            self.scope.cancel()  # only the watch is left

    def _note(self, broken: Broken) -> None:
        if self.failure is None:
            error = from_oserror(broken.error, broken.stream.name)
            self.failure = (ending_of(error.code), broken.stream.name, error.message.partition(": ")[2])

    async def _watch(self) -> None:
        """End the relay when nothing moved for as long as is allowed."""
        seen, since = -1, trio.current_time()
        while True:
            limit = self.half_open if self.finished and self.half_open else self.idle
            moved = self.forth.bytes + self.back.bytes + len(self.finished)
            now = trio.current_time()
            if moved != seen:
                seen, since = moved, now
            elif limit and now - since >= limit:
                what = "half-open and idle" if self.finished else "idle"
                self.failure = (Ending.TIMED_OUT, "", f"{what} for {limit:g} s")
                self.scope.cancel()
                return
            shortest = min(filter(None, (self.idle, self.half_open)))
            await trio.sleep(max(0.001, min(shortest / 4, (limit or shortest) - (now - since))))


async def relay(
    near: Stream, far: Stream, buffers: BufferPool, *, idle: float = 0.0, half_open: float = 0.0
) -> Outcome:
    """Join two streams until both directions have ended, then close both; `far` is the one that was dialled.

    `idle`: seconds without a byte either way after which the relay ends; `half_open`: the same, once one side has
    ended; 0 means for ever. On any unclean outcome, and when cancelled, both are aborted. `sent` counts near → far.
    """
    return await _Relay(near, far, buffers, idle, half_open).run()
