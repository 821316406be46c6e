"""Dynamic forwarding (`-D`): clients say themselves where they want to go, by SOCKS 5, 4, 4a or HTTP CONNECT.

One port speaks them all, told apart by a client's first byte. The agent resolves and dials, as with `-L`.

The thing to understand first: what a client sends right behind its request belongs to the connection it asked for, and
goes into it before anything that comes later.
"""

from __future__ import annotations

from typing import Unpack

import msgspec
import trio

from vsockfwd.modes.forward import NAME, Connect, taken
from vsockfwd.modes.greeting import Declined, Greeting
from vsockfwd.modes.http_connect import HEAD_LIMIT, HttpConnect
from vsockfwd.modes.socks import VERSION_4, VERSION_5, Socks4, Socks5
from vsockfwd.plugin import (
    HERE,
    Address,
    AgentRule,
    Carrying,
    Channel,
    Code,
    Ending,
    Engine,
    Outcome,
    PeerBrokeProtocol,
    Problem,
    RuleKind,
    Session,
    Stream,
    StreamEnd,
    TcpAddress,
    TimedOut,
    VsockfwdError,
    WhenDown,
    Work,
)

GREETING_DEADLINE = 10.0
"""Seconds for a client to say what it wants: absolute, so that trickling does not extend it."""

LAST_WORDS = 2.0
"""Seconds that a refusal may take to be sent and read."""


class DynamicRule(AgentRule, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """`kind = "dynamic"`: listen on this side; clients say where the agent is to connect."""

    listen: StreamEnd
    when_down: WhenDown = "accept"

    def title(self) -> str:
        return f"SOCKS at {self.listen.value.bare()} through {self.target}"

    def listens(self) -> tuple[str, Address]:
        return HERE, self.listen.value


async def run_dynamic(work: Work, rule: DynamicRule) -> None:
    """Carry every connection taken to the agent, which dials where its client asks to go."""
    async with work.keeper(rule.target) as keeper:

        async def handle(near: Stream) -> None:
            await serve_client(work.engine, keeper.session, near, work.name, **work.carrying)

        purpose = f"for SOCKS and HTTP CONNECT through {rule.target}"
        await work.listen_and_serve(keeper, rule.when_down, rule.listen.value, purpose, handle)


DYNAMIC = RuleKind("dynamic", DynamicRule, run_dynamic)


async def serve_client(engine: Engine, session: Session, near: Stream, rule: str, **carrying: Unpack[Carrying]) -> None:
    """Serve one client to its end; what is reported of it is the rule's, "to" where it went.

    `carrying` is what the channel's `relay` takes: `idle`, `half_open`, `live`. Raises TimedOut and PeerBrokeProtocol
    for a client that did not ask, rightly or in time.
    """
    try:
        greeting, asked = await _hear(near)
    except Declined as declined:
        engine.report(Problem(near.name, declined.why))
        await _part(near, declined.answer)
        return
    except (EOFError, trio.BrokenResourceError):
        return  # gone before it asked, as those do who look whether a port is open
    with taken(engine, f"{rule} to {asked.bare()}", near) as told:
        channel = await _open(session, near, greeting, asked)
        told.outcome = await _carry(channel, near, greeting, carrying)


async def _hear(near: Stream) -> tuple[Greeting, TcpAddress]:
    """Let a client say where it wants to go. Raises Declined, TimedOut, PeerBrokeProtocol; EOFError when it leaves."""
    greeting: Greeting | None = None
    room = HEAD_LIMIT
    try:
        with trio.fail_after(GREETING_DEADLINE):
            while room:
                data = await near.receive_some(room)
                if not data:
                    raise EOFError
                room -= len(data)
                if greeting is None:
                    greeting = _greeting_of(data[0])
                answer = greeting.receive(data)
                if answer:
                    await near.send_all(answer)
                if greeting.asked is not None:
                    return greeting, greeting.asked
    except trio.TooSlowError:
        raise TimedOut(f"no whole request within {GREETING_DEADLINE:g} s") from None
    raise PeerBrokeProtocol(f"no whole request in {HEAD_LIMIT} bytes")


def _greeting_of(first: int) -> Greeting:
    if first == VERSION_5:
        return Socks5()
    if first == VERSION_4:
        return Socks4()
    if chr(first).isascii() and chr(first).isalpha():
        return HttpConnect()
    raise PeerBrokeProtocol(f"a client that speaks neither SOCKS nor HTTP: it began with the byte {first:#04x}")


async def _open(session: Session, near: Stream, greeting: Greeting, asked: TcpAddress) -> Channel:
    """Open what the client asked for. Raises why that failed; the client was told, and is closed."""
    try:
        await session.login()
    except VsockfwdError as error:
        # That the agent cannot be reached says nothing about the destination: its words are told, not its code.
        await _part(near, greeting.refused(VsockfwdError(error.message, hint=error.hint)))
        raise
    try:
        return (await session.open(NAME, Connect(str(asked)))).channel
    except VsockfwdError as error:
        await _part(near, greeting.refused(error))
        raise


async def _carry(channel: Channel, near: Stream, greeting: Greeting, carrying: Carrying) -> Outcome:
    """Tell the client that its connection stands, and carry."""
    early = greeting.early
    try:
        await near.send_all(greeting.granted())
        await channel.send(early)
        outcome = await channel.relay(near, **carrying)
    except trio.BrokenResourceError:
        why = "gone before it was answered"
        await channel.reset(Code.RESET, f"{near.name}: {why}")
        return Outcome(Ending.RESET, near.name, why)
    finally:
        await channel.aclose()
    return msgspec.structs.replace(outcome, sent=outcome.sent + len(early))


async def _part(near: Stream, answer: bytes) -> None:
    """Send a last answer and close once it was read: closing over unread bytes would tear it out of their hands."""
    with trio.move_on_after(LAST_WORDS):
        try:
            await near.send_all(answer)
            await near.send_eof()
            while await near.receive_some():
                pass
        except trio.BrokenResourceError:
            pass  # the client is gone: nobody is left to tell
    near.close()
