"""The mode `measure`: an agent's streams that a client can be sure of, to find out how fast the way is.

A *sink* takes content and verifies it, a *source* sends it, an *echo* sends back what comes. Each ends with the agent's
own account of it. docs/perf.md says what a client makes of them.

The thing to understand first: nobody can have the agent's time for longer than was agreed. A request says how many
seconds it will take, at most MOST_SECONDS, and is cut off GRACE seconds later whatever its client does.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Literal

import msgspec
import trio

from vsockfwd.modes.content import Check, Content
from vsockfwd.plugin import (
    Access,
    Call,
    Channel,
    Data,
    Ended,
    Mode,
    PeerBrokeProtocol,
    Resource,
    TimedOut,
    decode_arguments,
)

NAME = "measure"
ACCOUNT = 64
"""The type of the frame that carries the agent's Account."""

MOST_SECONDS = 600
"""Seconds that one request may take."""

GRACE = 10.0
"""Seconds beyond those, for what is on its way."""

MOST_SIZE = 1 << 20
"""Bytes of a message."""

TURN = 0.002
"""Seconds after which a sender that never waits lets others run."""

What = Literal["sink", "source", "echo"]
Seed = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]


class Measure(msgspec.Struct, frozen=True):
    """The request. `seed` makes the content; `size`: bytes of the source's messages; it ends after so many `seconds`,
    or, unless they are 0, so many `bytes`. `check`: whether the sink verifies what it takes."""

    what: What
    seconds: Annotated[float, msgspec.Meta(gt=0, le=MOST_SECONDS)]
    seed: Seed = 0
    size: Annotated[int, msgspec.Meta(ge=1, le=MOST_SIZE)] = MOST_SIZE
    bytes: Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)] = 0
    check: bool = True


class Begun(msgspec.Struct, frozen=True):
    """The reply: CPU seconds that the agent's process has used so far."""

    cpu: Annotated[float, msgspec.Meta(ge=0)]


class Account(msgspec.Struct, frozen=True):
    """The agent's last word: bytes that it took or sent, and CPU seconds that its process has used so far."""

    bytes: Annotated[int, msgspec.Meta(ge=0)]
    cpu: Annotated[float, msgspec.Meta(ge=0)]


def resources(arguments: bytes) -> tuple[Resource, ...]:
    """The machine's time."""
    return (Resource(Access.MEASURE, decode_arguments(arguments, Measure).what),)


async def serve(call: Call) -> None:
    """Take, send or echo, give account, and wait for the client's end. Raises VerificationFailed, TimedOut."""
    request = call.arguments(Measure)
    channel = await call.accept(Begun(time.process_time()))
    with trio.move_on_after(request.seconds + GRACE) as scope:
        match request.what:
            case "sink":
                moved = await _sink(channel, request)
            case "source":
                moved = await _source(channel, request)
            case "echo":
                moved = await _echo(channel)
        await channel.send_frames((ACCOUNT, msgspec.msgpack.encode(Account(moved, time.process_time()))))
        await channel.send_end()
        if request.what == "source":
            # The client's END says that it has it all: closed before it came, the connection would be reset.
            await _next(channel)
    if scope.cancelled_caught:
        raise TimedOut(f"{request.what}: not over {GRACE:g} s after the {request.seconds:g} s that were asked for")


async def _next(channel: Channel) -> memoryview | None:
    """The next bytes, or None at the client's END."""
    event = await channel.receive()
    if isinstance(event, Data):
        return event.view
    if isinstance(event, Ended):
        return None
    raise PeerBrokeProtocol(f"the client sent a frame of type {event.kind}, where bytes are due")


async def _sink(channel: Channel, request: Measure) -> int:
    check, taken = Check(request.seed, "the agent's sink"), 0
    while (view := await _next(channel)) is not None:
        if request.check:
            check.feed(view)
        taken += len(view)
    return taken


async def _source(channel: Channel, request: Measure) -> int:
    made = Content(request.seed, request.size)
    await send_content(channel.send, made, request.size, request.seconds, request.bytes)
    return made.position


async def _echo(channel: Channel) -> int:
    echoed = 0
    while (view := await _next(channel)) is not None:
        await channel.send(view)
        echoed += len(view)
    return echoed


async def send_content(
    send: Callable[[memoryview], Awaitable[None]], made: Content, size: int, seconds: float, most: int
) -> None:
    """Send messages of `size` bytes for so many seconds, or until there are `most` bytes, where that is not 0."""
    now = turned = trio.current_time()
    until = now + seconds
    while now < until and (not most or made.position < most):
        await send(made.next(min(size, most - made.position) if most else size))
        now = trio.current_time()
        if now - turned >= TURN:
            await trio.lowlevel.checkpoint()
            turned = now


MODE = Mode(NAME, "sends, takes and echoes content that can be checked, for perf", serve=serve, resources=resources)
