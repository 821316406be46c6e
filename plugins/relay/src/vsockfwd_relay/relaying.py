"""Opening both ends and joining them: once, or with `fork` for every connection that comes.

The thing to understand first: the first address is opened before the second, and a listening one is open when somebody
has come; so the second is dialled on the caller's behalf, and whatever fails then is the caller's to feel: a reset.
"""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec
import trio

from vsockfwd.plugin import (
    BufferPool,
    Closed,
    DataError,
    Ending,
    Engine,
    Gate,
    Listener,
    Listening,
    Opened,
    Outcome,
    Reset,
    Stream,
    TimedOut,
    Truncated,
    VsockfwdError,
    from_oserror,
    relay,
    serve_listeners,
    the_one,
)
from vsockfwd_relay.address_type import Direction, End, Note, Situation, Specification
from vsockfwd_relay.dump import Dump
from vsockfwd_relay.programs import environment_of
from vsockfwd_relay.streams import Halves, Persistent, StandardOutputClosed, Watched

_ERRORS: dict[Ending, type[VsockfwdError]] = {
    Ending.RESET: Reset,
    Ending.TRUNCATED: Truncated,
    Ending.TIMED_OUT: TimedOut,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What the command line asks for. `first` and `second` are used in their `*_direction`s.

    `idle`: seconds without a byte after which the relay ends; `half_open`: the same once one side has ended; 0: never.
    `block`: the most bytes that are moved at once, 0: the engine's own. `dump_text`, `dump_hexadecimal`: what passes is
    shown to `write`.
    """

    first: End
    second: End
    first_direction: Direction = Direction.BOTH
    second_direction: Direction = Direction.BOTH
    idle: float = 0.0
    half_open: float = 0.0
    block: int = 0
    dump_text: bool = False
    dump_hexadecimal: bool = False

    def __str__(self) -> str:
        return f"{self.first} {self.second}"


async def run(engine: Engine, plan: Plan, write: Callable[[str], None]) -> int:
    """Do what the plan says; returns the exit code. Raises VsockfwdError. `write` takes what -v and -x show."""
    if plan.block:
        engine = dataclasses.replace(engine, buffers=BufferPool(plan.block))
    work = _Relaying(engine, plan, write)
    if isinstance(plan.first, Specification) and plan.first.option("fork"):
        await work.serve(plan.first)
        return 0
    try:
        await work.once()
    except StandardOutputClosed:
        return 128 + signal.SIGPIPE  # in silence, as every program that a pipe's reader has left
    return 0


class _Relaying:
    def __init__(self, engine: Engine, plan: Plan, write: Callable[[str], None]) -> None:
        self.engine = engine
        self.plan = plan
        self.write = write

    async def once(self) -> None:
        situation = Situation(self.engine, self.plan.first_direction)
        async with _opened(self.plan.first, situation) as near:
            accepted = isinstance(self.plan.first, Specification) and self.plan.first.type.listen is not None
            await self._relay(near, accepted=accepted, many=False)

    async def serve(self, first: Specification) -> None:
        listeners = await _listen(first, Situation(self.engine), "")
        gate = Gate(first.option("max-children")) if first.option("max-children") else None

        async def handle(stream: Stream) -> None:
            await self._relay(_prepared(first, self.plan.first_direction, stream), accepted=True, many=True)

        await serve_listeners(listeners, handle, self.engine.report, gate)

    async def _relay(self, near: Stream, *, accepted: bool, many: bool) -> None:
        """Open the second end for the first, join them, and say how it ended."""
        self.engine.report(Opened(str(self.plan), str(near.peer)))
        told = environment_of(near) if accepted else {}
        try:
            async with _opened(self.plan.second, Situation(self.engine, self.plan.second_direction, many, told)) as far:
                outcome = await self._join(near, far, swap=not accepted and not near.features.half_close)
                _judge(outcome)
        except BaseException:
            near.abort()
            raise
        self.engine.report(Closed(str(self.plan), str(near.peer), outcome))

    async def _join(self, near: Stream, far: Stream, *, swap: bool) -> Outcome:
        plan = self.plan
        if plan.dump_text or plan.dump_hexadecimal:
            near, far = Watched(near, self._dump(">")), Watched(far, self._dump("<"))
        if swap:  # the engine withholds a half-close that would kill the reply from its second stream only
            near, far = far, near
        try:
            outcome = await relay(near, far, self.engine.buffers, idle=plan.idle, half_open=plan.half_open)
        except BaseExceptionGroup as group:  # a write that is final, out of the engine's nursery
            raise the_one(group) from None
        if swap:
            outcome = msgspec.structs.replace(outcome, sent=outcome.received, received=outcome.sent)
        return outcome

    def _dump(self, mark: str) -> Dump:
        plan = self.plan
        return Dump(mark, text=plan.dump_text, hexadecimal=plan.dump_hexadecimal, write=self.write, now=time.time)


def _judge(outcome: Outcome) -> None:
    """Raise what an outcome that is not clean stands for. To be cut after -t or -T is what was asked for."""
    if outcome.clean or (outcome.ending is Ending.TIMED_OUT and not outcome.by):
        return
    raise _ERRORS.get(outcome.ending, DataError)(str(outcome))


# --- ends ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _opened(end: End, situation: Situation) -> AsyncIterator[Stream]:
    """The stream of one end, for the direction that is asked for."""
    if isinstance(end, Specification):
        situation.note(3, f"opening {end}")
        async with end.type.open(end, situation) if end.type.open else _accepted(end, situation) as stream:
            yield _prepared(end, situation.direction, stream)
    elif situation.direction is not Direction.BOTH:
        async with _opened(end.reading if situation.direction is Direction.READ else end.writing, situation) as stream:
            yield stream
    else:
        async with _opened(end.reading, situation.reading()) as reading:
            async with _opened(end.writing, situation.writing()) as writing:
                yield Halves(reading, writing)


@asynccontextmanager
async def _accepted(spec: Specification, situation: Situation) -> AsyncIterator[Stream]:
    stream = await _first_of(await _listen(spec, situation, "for one connection"))
    try:
        yield stream
    finally:
        stream.close()


def _prepared(spec: Specification, direction: Direction, stream: Stream) -> Stream:
    """The stream as the address's options and its direction want it."""
    if spec.option("ignoreeof"):
        stream = Persistent(stream)
    if direction is Direction.BOTH:
        return stream
    return Halves(stream, None) if direction is Direction.READ else Halves(None, stream)


async def _listen(spec: Specification, situation: Situation, purpose: str) -> Sequence[Listener]:
    assert spec.type.listen is not None  # asked of listening types only
    listeners = await spec.type.listen(spec, situation)
    for listener in listeners:
        said = Listening(str(listener.address), purpose)
        # A port that the kernel chose is told in any case: nobody could come otherwise.
        chosen = getattr(spec.subject, "port", None) == 0
        situation.engine.report(said if not chosen else Note(0, str(said)))
    return listeners


async def _first_of(listeners: Sequence[Listener]) -> Stream:
    """The first connection on any of them; then nobody listens any more."""
    taken: list[Stream] = []

    async def take(listener: Listener, scope: trio.CancelScope) -> None:
        try:
            stream = await listener.accept()
        except OSError as error:
            raise from_oserror(error, f"accept on {listener.address}") from None
        if taken:
            stream.abort()
            return
        taken.append(stream)
        scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            for listener in listeners:
                nursery.start_soon(take, listener, nursery.cancel_scope)
    finally:
        for listener in listeners:
            listener.close()
    return taken[0]
