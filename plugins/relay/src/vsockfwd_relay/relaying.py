"""Opening both ends and joining them: once, or with `fork` for every connection that comes.

The thing to understand first: the first address is opened before the second, and a listening one is open when somebody
has come; so the second is dialled on the caller's behalf, and whatever fails then is the caller's to feel: a reset.
"""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import trio

from vsockfwd.plugin import (
    Address,
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
    OwnPeer,
    Problem,
    Reset,
    SocketStream,
    Stream,
    TimedOut,
    Truncated,
    UsageError,
    VsockfwdError,
    from_oserror,
    parse_target,
    printable,
    relay,
    serve_listeners,
    the_one,
)
from vsockfwd_relay.address_type import Direction, End, Note, Situation, Specification
from vsockfwd_relay.datagrams import PIECE, admission_of
from vsockfwd_relay.dump import Dump
from vsockfwd_relay.locks import held
from vsockfwd_relay.options import Group, When
from vsockfwd_relay.programs import environment_of
from vsockfwd_relay.socket_options import has_options, set_options
from vsockfwd_relay.streams import (
    Carriage,
    CarriageAndLine,
    ClosedAtEnd,
    Escapable,
    HalfCloseable,
    Halves,
    Persistent,
    Short,
    Silent,
    StandardOutputClosed,
    Watched,
)

if TYPE_CHECKING:
    from vsockfwd.plugin import Relays

Show = Callable[[memoryview], None]
Handler = Callable[[Stream], Awaitable[None]]
AtOnce = Callable[[Stream, Callable[[], None]], bool]

_SHAPES = {"cr", "crnl", "escape", "ignoreeof", "readbytes", "shut-close", "shut-down", "shut-none"}

_ERRORS: dict[Ending, type[VsockfwdError]] = {
    Ending.RESET: Reset,
    Ending.TRUNCATED: Truncated,
    Ending.TIMED_OUT: TimedOut,
}


MOMENT = 0.5
"""Seconds of silence that end a relay whose one end is over and whose other one nobody can end: socat's default -t."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the command line asks for. `first` and `second` are used in their `*_direction`s.

    `idle`: seconds without a byte after which the relay ends; `half_open`: the same once one side has ended; 0: never.
    `block`: the most bytes that are moved at once, 0: the engine's own. `dump_text`, `dump_hexadecimal`: what passes is
    shown to `write`; `copy_forth`, `copy_back`: files that it is added to as it is. `lock`: a file held all the while,
    `wait_for_lock`: once it is gone. `hand_over`: the second end's descriptor goes to standard output, no byte does.
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
    copy_forth: str = ""
    copy_back: str = ""
    statistics: bool = False
    lock: bytes | None = None
    wait_for_lock: bool = False
    hand_over: bool = False
    sloppy: bool = False
    program: str = "socat"
    target: Callable[[str], Address] = parse_target

    def __str__(self) -> str:
        return f"{self.first} {self.second}"


async def run(engine: Engine, plan: Plan, write: Callable[[str], None]) -> int:
    """Do what the plan says; returns the exit code. Raises VsockfwdError. `write` takes what -v and -x show."""
    if plan.block or _boundaries(plan.first) != _boundaries(plan.second):
        # A piece of a stream becomes a datagram, which has to fit.
        engine = dataclasses.replace(engine, buffers=BufferPool(plan.block or PIECE))
    async with held(plan.lock, wait=plan.wait_for_lock):
        with _copy(plan.copy_forth) as forth, _copy(plan.copy_back) as back:
            work = _Relaying(engine, plan, write, forth, back)
            async with _asked_for_figures(work):
                if plan.hand_over:
                    await work.hand_over()
                elif isinstance(plan.first, Specification) and plan.first.option("fork"):
                    await work.serve(plan.first)
                else:
                    try:
                        await work.once()
                    except StandardOutputClosed:
                        return 128 + signal.SIGPIPE  # in silence, as every program that a pipe's reader has left
    return 0


def _specifications(end: End) -> tuple[Specification, ...]:
    return (end,) if isinstance(end, Specification) else (end.reading, end.writing)


def _boundaries(end: End) -> bool:
    return any(part.type.boundaries for part in _specifications(end))


def _unending(end: End) -> bool:
    """Whether nobody can say there that nothing more comes."""
    return any(
        (part.type.unending or part.option("pty")) and not part.option("null-eof") for part in _specifications(end)
    )


@contextmanager
def _copy(path: str) -> Iterator[Show | None]:
    """What -r and -R do with what passes. Raises VsockfwdError."""
    if not path:
        yield None
        return
    try:
        file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed below
    except OSError as error:
        raise from_oserror(error, f"open {printable(path)}") from None

    def write(data: memoryview) -> None:
        try:
            file.write(data)
        except OSError as error:
            raise from_oserror(error, f"write to {printable(path)}") from None

    with file:
        yield write


class Figures:
    """What passed in one direction, in bytes and in blocks, as --statistics tells it."""

    def __init__(self) -> None:
        self.bytes = self.blocks = 0

    def __call__(self, data: memoryview) -> None:
        self.bytes += len(data)
        self.blocks += 1

    def __str__(self) -> str:
        return f"{self.bytes} bytes in {self.blocks} blocks"


@asynccontextmanager
async def _asked_for_figures(work: _Relaying) -> AsyncIterator[None]:
    """With --statistics: tell them at the end, and whenever SIGUSR1 comes."""
    if not work.plan.statistics:
        yield
        return

    async def answer() -> None:
        with trio.open_signal_receiver(signal.SIGUSR1) as signals:
            async for _ in signals:
                work.tell_figures()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        try:
            yield
        finally:
            work.tell_figures()
            nursery.cancel_scope.cancel()


class _Relaying:
    def __init__(
        self, engine: Engine, plan: Plan, write: Callable[[str], None], forth: Show | None, back: Show | None
    ) -> None:
        self.engine = engine
        self.plan = plan
        self.write = write
        self.figures = (Figures(), Figures())
        counted: tuple[Show, ...] = self.figures if plan.statistics else ()
        self._forth: list[Show] = [*filter(None, [forth]), *counted[:1]]
        self._back: list[Show] = [*filter(None, [back]), *counted[1:]]
        self._watched = bool(self._forth or self._back or plan.dump_text or plan.dump_hexadecimal)
        self._half_open = plan.half_open or (MOMENT if _unending(plan.first) or _unending(plan.second) else 0.0)
        self._situation = Situation(
            engine, plan.first_direction, program=plan.program, sloppy=plan.sloppy, target=plan.target
        )

    def tell_figures(self) -> None:
        forth, back = self.figures
        self.engine.report(Note(0, f"statistics: {forth} from left to right, {back} from right to left"))

    async def once(self) -> None:
        async with _opened(self.plan.first, self._situation) as near:
            accepted = isinstance(self.plan.first, Specification) and self.plan.first.type.listen is not None
            await self._relay(near, accepted=accepted, many=False)

    async def hand_over(self) -> None:
        """Open the second end, and give its descriptor to who reads standard output: ssh, with ProxyUseFdpass."""
        async with _opened(self.plan.second, self._situation) as stream:
            # What is a program's or an agent's ends with us.
            if not isinstance(stream, SocketStream) or isinstance(stream.peer, OwnPeer):
                raise UsageError(f"{self.plan.second}: no socket that could be handed over", hint="leave out --fdpass")
            stream.sock.setblocking(True)  # as who opened it itself would have it
            try:
                with socket.socket(fileno=os.dup(1)) as out:
                    socket.send_fds(out, [b"\0"], [stream.sock.fileno()])
            except OSError as error:
                if error.errno == errno.ENOTSOCK:
                    hint = "--fdpass is for ssh -o ProxyUseFdpass=yes"
                    raise UsageError("standard output is no socket that takes a descriptor", hint=hint) from None
                raise from_oserror(error, "hand the descriptor over") from None

    async def serve(self, first: Specification) -> None:
        from vsockfwd.plugin import Relays  # what serves one alone starts sooner without

        listeners = await _listen(first, self._situation, "")
        gate = Gate(first.option("max-children")) if first.option("max-children") else None
        plan = self.plan
        plain = not self._watched and not self._half_open and plan.first_direction is Direction.BOTH

        async def handle(stream: Stream) -> None:
            taken = await _taken(first, self._situation, stream)
            if taken is None:
                stream.abort()
                return
            near = _prepared(first, plan.first_direction, taken)
            if plain and isinstance(near, SocketStream):
                await self._relay_in(relays, near)
            else:
                await self._relay(near, accepted=True, many=True)

        async with (
            held(first.option("lockfile")),
            held(first.option("waitlock"), wait=True),
            Relays(self.engine.buffers, self.engine.report, idle=plan.idle) as relays,
        ):
            at_once = self._at_once(relays, first, handle) if plain else None
            await serve_listeners(listeners, handle, self.engine.report, gate, at_once)

    def _at_once(self, relays: Relays, first: Specification, handle: Handler) -> AtOnce | None:
        """How a connection is served without a task of its own, where there is nothing to wait for."""
        second, engine = self.plan.second, self.engine
        if (
            not isinstance(second, Specification)
            or not second.type.at_once
            or set(second.options) - {"connect-timeout"}
        ):
            return None
        if first.type.greet or has_options(first, When.MADE, When.CONNECTED) or _shaped(first) or _asks(first):
            return None

        def at_once(near: Stream, leave: Callable[[], None]) -> bool:
            far = engine.network.connect_now(second.subject)
            if far is None:
                return False
            relays.dialled(
                far,
                lambda stream: self._begin(relays, near, stream, leave),
                lambda: relays.serve(handle, near, leave),
            )
            return True

        return at_once

    def _begin(self, relays: Relays, near: Stream, far: Stream, over: Callable[[], None]) -> None:
        rule, peer = str(self.plan), str(near.peer)
        self.engine.report(Opened(rule, peer))

        def ended(outcome: Outcome) -> None:
            self.engine.report(Closed(rule, peer, outcome))
            try:
                _judge(outcome)
            except VsockfwdError as error:
                self.engine.report(Problem(near.name, error.line()))
            over()

        relays.begin(near, far, ended)

    async def _relay_in(self, relays: Relays, near: SocketStream) -> None:
        """As `_relay`, of two plain sockets: as callbacks of one task, which costs less for each."""
        situation = dataclasses.replace(
            self._situation, direction=self.plan.second_direction, many=True, environment=environment_of(near)
        )
        async with _opened(self.plan.second, situation) as far:
            if isinstance(far, SocketStream) and far.features.half_close:
                over = trio.Event()
                self._begin(relays, near, far, over.set)
                await over.wait()
                return
            self.engine.report(Opened(str(self.plan), str(near.peer)))
            outcome = await self._join(near, far, swap=False, alone=False)
            _judge(outcome)
        self.engine.report(Closed(str(self.plan), str(near.peer), outcome))

    async def _relay(self, near: Stream, *, accepted: bool, many: bool) -> None:
        """Open the second end for the first, join them, and say how it ended."""
        self.engine.report(Opened(str(self.plan), str(near.peer)))
        situation = dataclasses.replace(
            self._situation,
            direction=self.plan.second_direction,
            many=many,
            environment=environment_of(near) if accepted else {},
        )
        try:
            async with _opened(self.plan.second, situation) as far:
                swap = not accepted and not near.features.half_close
                outcome = await self._join(near, far, swap=swap, alone=not many)
                _judge(outcome)
        except BaseException:
            near.abort()
            raise
        self.engine.report(Closed(str(self.plan), str(near.peer), outcome))

    async def _join(self, near: Stream, far: Stream, *, swap: bool, alone: bool) -> Outcome:
        plan = self.plan
        if self._watched:
            near, far = Watched(near, self._shows(">", self._forth)), Watched(far, self._shows("<", self._back))
        if swap:  # the engine withholds a half-close that would kill the reply from its second stream only
            near, far = far, near
        try:
            outcome = await relay(
                near, far, self.engine.buffers, idle=plan.idle, half_open=self._half_open, alone=alone
            )
        except BaseExceptionGroup as group:  # a write that is final, out of the engine's nursery
            raise the_one(group) from None
        if swap:
            outcome = msgspec.structs.replace(outcome, sent=outcome.received, received=outcome.sent)
        return outcome

    def _shows(self, mark: str, more: list[Show]) -> list[Show]:
        plan = self.plan
        if not plan.dump_text and not plan.dump_hexadecimal:
            return more
        dump = Dump(mark, text=plan.dump_text, hexadecimal=plan.dump_hexadecimal, write=self.write, now=time.time)
        return [dump, *more]


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
        _check_direction(end, situation.direction)
        situation.note(3, f"opening {end}")
        async with held(end.option("lockfile")), held(end.option("waitlock"), wait=True):
            async with end.type.open(end, situation) if end.type.open else _accepted(end, situation) as stream:
                yield _prepared(end, situation.direction, stream)
    elif situation.direction is not Direction.BOTH:
        async with _opened(end.reading if situation.direction is Direction.READ else end.writing, situation) as stream:
            yield stream
    else:
        async with _opened(end.reading, situation.reading()) as reading:
            async with _opened(end.writing, situation.writing()) as writing:
                yield Halves(reading, writing)


def _check_direction(spec: Specification, direction: Direction) -> None:
    """Refuse an address that cannot be used for what it is wanted for."""
    missing = direction & ~spec.type.direction
    if missing & Direction.READ:
        raise spec.refuse(f"{spec.type.name} is only written", "-u reads the first and writes the second; !! joins two")
    if missing & Direction.WRITE:
        raise spec.refuse(f"{spec.type.name} is only read", "-u reads the first and writes the second; !! joins two")


@asynccontextmanager
async def _accepted(spec: Specification, situation: Situation) -> AsyncIterator[Stream]:
    listeners = await _listen(spec, situation, "for one connection")
    timeout = spec.option("accept-timeout", math.inf)
    with trio.move_on_after(timeout) as waiting:
        stream = await _first_of(listeners, spec, situation)
    if waiting.cancelled_caught:
        raise TimedOut(f"{spec}: nobody connected within {timeout:g} s")
    try:
        if spec.type.greet is not None:
            stream = await spec.type.greet(spec, situation, stream)
        yield stream
    finally:
        stream.close()


async def _taken(spec: Specification, situation: Situation, stream: Stream) -> Stream | None:
    """The stream of a connection that was accepted, with its options set and its greeting done; None for who is not let
    in. Raises VsockfwdError."""
    if not _let_in(spec, situation, stream):
        return None
    return await spec.type.greet(spec, situation, stream) if spec.type.greet is not None else stream


def _let_in(spec: Specification, situation: Situation, stream: Stream) -> bool:
    if _asks(spec) and (why := admission_of(spec).why_not(stream.peer)):
        situation.note(1, f"{spec}: {stream.peer} is refused: {why}")
        return False
    if stream.sock is not None and has_options(spec, When.MADE, When.CONNECTED):
        try:
            set_options(stream.sock, spec, situation, When.MADE, When.CONNECTED)
        except VsockfwdError:
            stream.abort()
            raise
    return True


def _asks(spec: Specification) -> bool:
    """Whether an address asks who it is that connects."""
    return Group.ADMIT in spec.type.groups and bool({"range", "allow", "sourceport", "lowport"} & set(spec.options))


def _shaped(spec: Specification) -> bool:
    """Whether anything is done with what passes."""
    return bool(set(spec.options) & _SHAPES)


def _prepared(spec: Specification, direction: Direction, stream: Stream) -> Stream:
    """The stream as the address's options and its direction want it."""
    if _shaped(spec):
        if spec.option("shut-down"):
            stream = HalfCloseable(stream)
        if spec.option("ignoreeof"):
            stream = Persistent(stream)
        if spec.option("readbytes"):
            stream = Short(stream, spec.option("readbytes"))
        if "escape" in spec.options:
            stream = Escapable(stream, spec.option("escape"))
        if spec.option("crnl"):
            stream = CarriageAndLine(stream)
        elif spec.option("cr"):
            stream = Carriage(stream)
        if spec.option("shut-close"):
            stream = ClosedAtEnd(stream)
        if spec.option("shut-none"):
            stream = Silent(stream)
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


async def _first_of(listeners: Sequence[Listener], spec: Specification, situation: Situation) -> Stream:
    """The first connection on any of them that is let in; then nobody listens any more."""
    taken: list[Stream] = []

    async def take(listener: Listener, scope: trio.CancelScope) -> None:
        while not taken:
            try:
                stream = await listener.accept()
            except OSError as error:
                raise from_oserror(error, f"accept on {listener.address}") from None
            if taken or not _let_in(spec, situation, stream):
                stream.abort()
                continue
            taken.append(stream)
            scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            for listener in listeners:
                nursery.start_soon(take, listener, nursery.cancel_scope)
    except BaseExceptionGroup as group:
        raise the_one(group) from None
    finally:
        for listener in listeners:
            listener.close()
    return taken[0]
