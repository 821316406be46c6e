"""The client's side of measuring: streams that are opened, filled, emptied and timed, part by part.

`Far` is what is measured against, an agent or a plain peer (`--raw`); `Way` is one stream to it. The thing to
understand first: whatever the far side does, each part is over GRACE seconds after its time; and what a part has found
out is noted also when it is cut short.
"""

from __future__ import annotations

import contextlib
import math
import secrets
import time
from array import array
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
import trio

from vsockfwd.modes.content import Check, Content
from vsockfwd.modes.figures import Connections, Findings, Flow, RoundTrips, Throughput, spread
from vsockfwd.modes.measure import ACCOUNT, GRACE, NAME, Account, Begun, Measure, What, send_content
from vsockfwd.plugin import (
    Address,
    BufferPool,
    Channel,
    Data,
    Ended,
    Engine,
    OpenedStream,
    PeerBrokeProtocol,
    Session,
    Stream,
    TimedOut,
    Truncated,
    VerificationFailed,
    from_oserror,
    the_one,
)

INTERVAL = 0.1
"""Seconds between two looks at what has moved."""

AT_ONCE = 16
"""Connections that are opened beside each other."""

MOST_CONNECTIONS = 10_000
"""Connections of a part: over TCP each holds a port for a minute, and there are 28,000."""

MOST_ROUND_TRIPS = 1_000_000

_ROUNDS = 8
"""Receives of a plain stream in a row after which others run."""


class Way(Protocol):
    """One stream to the far side."""

    async def send(self, data: memoryview) -> None: ...

    async def receive(self) -> memoryview | None:
        """The next bytes, good until the following call; None at the far side's end."""
        ...

    async def confirm(self, sent: int) -> None:
        """Say that all is sent, and hear that it arrived where the far side can tell. Raises VerificationFailed."""
        ...

    async def finish(self, received: int) -> None:
        """Hear whether that was all, and say that we have it. Raises VerificationFailed."""
        ...

    async def use(self) -> None:
        """Make sure that the far side serves the stream, at the least cost."""
        ...

    def close(self) -> None: ...


class Far(Protocol):
    """What is measured against."""

    cpu: list[float]
    """CPU seconds that the far process had used, each time it told them. Who measures a part clears it first."""

    async def open(self, request: Measure) -> Way: ...


class AgentFar:
    """An agent, by its mode `measure`."""

    def __init__(self, session: Session) -> None:
        self.cpu: list[float] = []
        self._session = session

    async def open(self, request: Measure) -> Way:
        opened = await self._session.open(NAME, request)
        try:
            self.cpu.append(opened.reply(Begun).cpu)
        except BaseException:
            opened.channel.close()
            raise
        return AgentWay(self, opened, self._session.name)


class AgentWay:
    """A stream of the mode `measure`."""

    def __init__(self, far: AgentFar, opened: OpenedStream, name: str) -> None:
        self.send = opened.channel.send
        self._far = far
        self._opened = opened
        self._channel: Channel = opened.channel
        self._name = name
        self._account: Account | None = None

    async def receive(self) -> memoryview | None:
        while not isinstance(event := await self._channel.receive(), Data):
            if isinstance(event, Ended):
                return None
            if event.kind != ACCOUNT or self._account is not None:
                raise PeerBrokeProtocol(f"{self._name}: a frame of type {event.kind} in the midst of a measurement")
            try:
                self._account = msgspec.msgpack.decode(event.payload, type=Account)
            except (msgspec.DecodeError, UnicodeDecodeError):
                raise PeerBrokeProtocol(f"{self._name}: the agent's account makes no sense") from None
            self._far.cpu.append(self._account.cpu)
        return event.view

    async def confirm(self, sent: int) -> None:
        await self._channel.send_end()
        if await self.receive() is not None:
            raise PeerBrokeProtocol(f"{self._name}: the agent sent more than was due")
        self._compare(sent, "were sent, the agent had")

    async def finish(self, received: int) -> None:
        self._compare(received, "arrived, the agent sent")
        await self._channel.send_end()

    def _compare(self, ours: int, words: str) -> None:
        if self._account is None:
            raise PeerBrokeProtocol(f"{self._name}: the agent gave no account of what it took or sent")
        if self._account.bytes != ours:
            raise VerificationFailed(f"{self._name}: {ours} bytes {words} {self._account.bytes}")

    async def use(self) -> None:
        await self.confirm(0)

    def close(self) -> None:
        self._opened.channel.close()


class RawFar:
    """A plain peer that echoes, discards or sends."""

    def __init__(self, engine: Engine, address: Address, kind: str) -> None:
        self.cpu: list[float] = []
        self._engine = engine
        self._address = address
        self._kind = kind

    async def open(self, request: Measure) -> Way:
        stream = await self._engine.network.connect(self._address)
        return RawWay(stream, self._engine.buffers, self._kind, self._address.bare())


class RawWay:
    """A plain stream: what arrived at the other side is known only where it comes back."""

    def __init__(self, stream: Stream, buffers: BufferPool, kind: str, name: str) -> None:
        self._stream = stream
        self._buffers = buffers
        self._kind = kind
        self._name = name
        self._buffer = buffers.borrow()
        self._rounds = 0

    async def send(self, data: memoryview) -> None:
        while data:
            try:
                data = data[self._stream.try_send(data) :]
            except BlockingIOError:
                await self._stream.wait_writable()
            except OSError as error:
                raise from_oserror(error, self._name) from None

    async def receive(self) -> memoryview | None:
        self._rounds += 1
        if self._rounds % _ROUNDS == 0:
            await trio.lowlevel.checkpoint()
        while True:
            try:
                size = self._stream.try_receive_into(self._buffer)
            except BlockingIOError:
                await self._stream.wait_readable()
            except OSError as error:
                raise from_oserror(error, self._name) from None
            else:
                return self._buffer[:size] if size else None

    async def confirm(self, sent: int) -> None:
        """A plain peer tells nothing."""

    async def finish(self, received: int) -> None:
        """A plain peer asks nothing."""

    async def use(self) -> None:
        if self._kind == "echo":
            await self.send(memoryview(b"?"))
        if self._kind != "discard" and await self.receive() is None:
            raise Truncated(f"{self._name}: closed instead of an answer", hint=f"is it {_article(self._kind)}?")

    def close(self) -> None:
        self._stream.close()
        self._buffers.give_back(self._buffer)


def _article(kind: str) -> str:
    return f"an {kind}" if kind == "echo" else f"a {kind}"


# --- what moves


class Moving(Protocol):
    """One direction of a stream, at work. `moved`: bytes so far; `ended`: when it was over, 0 until then."""

    ended: float

    @property
    def moved(self) -> int: ...

    async def run(self) -> None: ...


class _Up:
    """Fills a stream."""

    def __init__(self, way: Way, made: Content, asked: Asked, share: int) -> None:
        self.ended = 0.0
        self._way = way
        self._made = made
        self._asked = asked
        self._share = share

    @property
    def moved(self) -> int:
        return self._made.position

    async def run(self) -> None:
        await send_content(self._way.send, self._made, self._asked.size, self._asked.moving_seconds, self._share)
        await self._way.confirm(self.moved)
        self.ended = trio.current_time()


class _Down:
    """Empties a stream, for at most so many seconds where it may have no end of its own."""

    def __init__(self, way: Way, check: Check | None, seconds: float) -> None:
        self.ended = 0.0
        self.moved = 0
        self._way = way
        self._check = check
        self._seconds = seconds

    async def run(self) -> None:
        with trio.move_on_after(self._seconds):
            while (view := await self._way.receive()) is not None:
                if self._check is not None:
                    self._check.feed(view)
                self.moved += len(view)
            await self._way.finish(self.moved)
        self.ended = trio.current_time()


class _Back:
    """Takes what comes back from an echo, until that is all that was sent."""

    def __init__(self, way: Way, check: Check | None, up: _Up) -> None:
        self.ended = 0.0
        self.moved = 0
        self._way = way
        self._check = check
        self._up = up

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._take)
            await self._up.run()
            if self.moved == self._up.moved:
                nursery.cancel_scope.cancel()  # it waits for what will not come
        self.ended = trio.current_time()

    async def _take(self) -> None:
        while not self._up.ended or self.moved < self._up.moved:
            view = await self._way.receive()
            if view is None:
                raise Truncated(f"the echo ended after {self.moved} of {self._up.moved} bytes")
            if self._check is not None:
                self._check.feed(view)
            self.moved += len(view)


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be measured: seconds a part, bytes in each direction (0: as many as go), streams, bytes of a message.

    `moving_seconds`: the same for what moves bytes, which may be asked for by their number alone.
    """

    seconds: float
    moving_seconds: float
    bytes: int
    streams: int
    size: int
    small: int
    """Bytes of a message that goes and comes back."""
    check: bool

    def shares(self) -> list[int]:
        """Bytes for each stream."""
        whole, more = divmod(self.bytes, self.streams)
        return [whole + (number < more) for number in range(self.streams)]


class Measuring:
    """Measures part after part against `far`, and notes in `findings` what comes of it.

    `look` is called when a part begins, with its name and None, and, while it moves bytes, every INTERVAL seconds with
    its findings so far.
    """

    def __init__(
        self, far: Far, asked: Asked, findings: Findings, look: Callable[[str, Throughput | None], None]
    ) -> None:
        self._far = far
        self._asked = asked
        self._findings = findings
        self._look = look

    async def run(self, parts: Sequence[str]) -> None:
        """Measure these parts. Raises what the far side, or the way there, did wrong; TimedOut."""
        measures: dict[str, Callable[[], Awaitable[None]]] = {
            "up": lambda: self._throughput("up", ups=True),
            "down": lambda: self._throughput("down", downs=True),
            "both": lambda: self._throughput("both", ups=True, downs=True),
            "latency": self._latency,
            "connections": self._connections,
        }
        for part in parts:
            self._far.cpu.clear()
            self._look(part, None)
            try:
                with trio.fail_after(self._asked.moving_seconds + GRACE):
                    await measures[part]()
            except trio.TooSlowError:
                raise self._too_slow(part) from None
            except BaseExceptionGroup as group:
                raise the_one(group) from None
        self._findings.complete = True

    def _too_slow(self, part: str) -> TimedOut:
        kind = self._findings.peer
        hint = "" if kind == "agent" else f"is it {_article(kind)}? --echo, --discard and --source say what there is"
        return TimedOut(f"{self._findings.target}: {part}: not over {GRACE:g} s after its time", hint=hint)

    def _agent_cpu(self) -> float | None:
        told = self._far.cpu
        return max(told) - min(told) if told else None

    # --- throughput

    async def _throughput(self, name: str, *, ups: bool = False, downs: bool = False) -> None:
        asked, kind = self._asked, self._findings.peer
        up: list[Moving] = []
        down: list[Moving] = []
        with contextlib.ExitStack() as ways:

            async def begin(what: What, share: int) -> tuple[Way, int]:
                seed = secrets.randbits(62)
                request = Measure(what, asked.moving_seconds, seed, asked.size, share, asked.check)
                way = await self._far.open(request)
                ways.callback(way.close)
                return way, seed

            for share in asked.shares():
                if ups:
                    way, seed = await begin("sink", share)
                    filling = _Up(way, Content(seed, asked.size), asked, share)
                    up.append(filling)
                    if kind == "echo":
                        down.append(_Back(way, self._check(seed), filling))
                if downs and kind != "echo":
                    way, seed = await begin("source", share)
                    down.append(_Down(way, self._check(seed), math.inf if kind == "agent" else asked.moving_seconds))
            await self._move(name, up, down)

    def _check(self, seed: int) -> Check | None:
        return Check(seed, self._findings.target) if self._findings.checked else None

    async def _move(self, name: str, up: list[Moving], down: list[Moving]) -> None:
        """Run all that moves to its end, and note what was moved, also when it is cut short."""
        upward, downward = _Meter(up), _Meter(down)
        cpu, complete = time.process_time(), False

        def note() -> Throughput:
            used = time.process_time() - cpu
            agent_used = self._agent_cpu() if complete else None  # it is told at the end
            return Throughput(upward.flow(), downward.flow(), used, agent_used, complete)

        async def look() -> None:
            while True:
                await trio.sleep(INTERVAL)
                upward.look()
                downward.look()
                self._look(name, note())

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(look)
                async with trio.open_nursery() as at_work:
                    for moving in down if self._findings.peer == "echo" else [*up, *down]:
                        at_work.start_soon(moving.run)
                nursery.cancel_scope.cancel()
            complete = True
        finally:
            setattr(self._findings, name, note())

    # --- round trips

    async def _latency(self) -> None:
        asked, seed, began = self._asked, secrets.randbits(62), trio.current_time()
        way = await self._far.open(Measure("echo", asked.seconds))
        made, check = Content(seed, asked.small), Check(seed, self._findings.target)
        times = array("d")
        complete = False
        try:
            until = trio.current_time() + asked.seconds
            while not times or (trio.current_time() < until and len(times) < MOST_ROUND_TRIPS):
                times.append(await self._round_trip(way, made.next(asked.small), check))
            await way.confirm(made.position)
            complete = True
        finally:
            if times:
                seconds = trio.current_time() - began
                self._findings.latency = RoundTrips(asked.small, seconds, spread(times), complete)
            way.close()

    async def _round_trip(self, way: Way, message: memoryview, check: Check) -> float:
        asked = time.perf_counter()
        await way.send(message)
        left = len(message)
        while left > 0:
            view = await way.receive()
            answered = time.perf_counter()
            if view is None:
                raise Truncated(f"{self._findings.target}: the echo ended amid a message")
            check.feed(view)
            left -= len(view)
        return answered - asked

    # --- connections

    async def _connections(self) -> None:
        half, one, many = self._asked.seconds / 2, array("d"), array("d")
        began, cpu, complete = trio.current_time(), time.process_time(), False
        second = began

        async def open_for(seconds: float, times: array[float]) -> None:
            until = trio.current_time() + seconds
            while not times or (trio.current_time() < until and len(times) < MOST_CONNECTIONS // 2):
                times.append(await self._connection())

        try:
            await open_for(half, one)
            second = trio.current_time()
            async with trio.open_nursery() as nursery:
                for _ in range(AT_ONCE):
                    nursery.start_soon(open_for, half, many)
            complete = True
        finally:
            if one:
                ended = trio.current_time()
                seconds = ended - second if second > began else 0.0
                alone = (second if second > began else ended) - began
                self._findings.connections = Connections(
                    spread(one), len(one) / alone, AT_ONCE, len(many), seconds,
                    len(many) / seconds if seconds else 0.0, time.process_time() - cpu, self._agent_cpu(), complete,
                )  # fmt: skip

    async def _connection(self) -> float:
        """Seconds that it takes to open a stream, to be served on it, and to close it."""
        began = time.perf_counter()
        way = await self._far.open(Measure("sink", self._asked.seconds))
        try:
            await way.use()
        finally:
            way.close()
        return time.perf_counter() - began


class _Meter:
    """What moves in one direction, from its making on."""

    def __init__(self, moving: Sequence[Moving]) -> None:
        self.moving = moving
        self.intervals: list[float] = []
        self._began = self._looked = trio.current_time()
        self._seen = 0

    def look(self) -> None:
        """Note how fast it was since the last look."""
        now = trio.current_time()
        moved = sum(one.moved for one in self.moving)
        if now > self._looked and not all(one.ended for one in self.moving):
            self.intervals.append((moved - self._seen) / (now - self._looked))
        self._looked, self._seen = now, moved

    def flow(self) -> Flow | None:
        """What has moved so far; None where nothing is to move."""
        if not self.moving:
            return None
        streams = [one.moved for one in self.moving]
        ends = [one.ended or trio.current_time() for one in self.moving]
        seconds = max(max(ends) - self._began, 1e-9)
        return Flow(sum(streams), seconds, sum(streams) / seconds, streams, INTERVAL, self.intervals)
