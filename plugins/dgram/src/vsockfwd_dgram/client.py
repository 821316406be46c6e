"""The client's side of a rule: its streams, opened through the agent, and opened again when they are lost.

The thing to understand first: what listens here outlives its streams. When one is lost its flows end, and the next
datagram opens another. What listens at the agent's goes with its stream; so there the loss ends the attempt, and the
rule is tried again as any other is, with the port that it had.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import msgspec
import trio

from vsockfwd.plugin import (
    AddressError,
    CannotCreate,
    Listening,
    PeerBrokeProtocol,
    Problem,
    Reset,
    RuleKind,
    Session,
    State,
    UdpAddress,
    VsockfwdError,
    Work,
    parse,
    printable,
    until_stopping,
)
from vsockfwd_dgram.far import Far, sockets_to_spare
from vsockfwd_dgram.frames import CONNECTS, LISTENS, NAME, Connect, Connected, Listen, Listens
from vsockfwd_dgram.near import Near
from vsockfwd_dgram.rule import FLOWS, DatagramRule, RemoteDatagramRule
from vsockfwd_dgram.sockets import Bound, bind, places

WHERE = "at the agent"

INSIST = 30.0
"""Seconds for which a port that the agent's kernel once chose is asked for, where another program has it."""

_PAUSES = (0.1, 5.0)
"""Seconds between two attempts at a new stream: at first, and at most."""

R = TypeVar("R", bound=msgspec.Struct)


async def _open(session: Session, request: msgspec.Struct, version: int, reply: type[R]) -> tuple[Any, R]:
    """A stream's channel and the agent's reply. Raises what the agent answered, or why it could not be asked."""
    opened = await session.open(NAME, request, versions=(version,))
    try:
        return opened.channel, opened.reply(reply)
    except PeerBrokeProtocol:
        opened.channel.close()
        raise


async def _carry_over(channel: Any, carry: Callable[[Any], Awaitable[None]]) -> str:
    """Carry over one stream; returns or raises why that is over."""
    try:
        await carry(channel)
    except PeerBrokeProtocol as error:
        await channel.reset(error.code, error.message)
        raise
    finally:
        channel.close()
    return "the agent ended it"


def granted(work: Work, wanted: int | None, most: int, whose: str) -> int:
    """Flows at once: what is wanted as far as it can be had. That a rule's own wish cannot be met is reported."""
    if wanted is not None and most < wanted:
        why = f"{whose} has descriptors for {most} flows at once, not for {wanted}"
        work.engine.report(Problem(work.name, f"{why} – raise its limit of open files (ulimit -n)"))
    return min(wanted or FLOWS, most)


# --- listening here


async def run_local(work: Work, rule: DatagramRule) -> None:
    """Carry what comes to `listen` to the agent, which sends it on to `connect`."""
    async with until_stopping(work.engine) as nursery, work.keeper(rule.target) as keeper:
        with contextlib.ExitStack() as sockets:
            there = await _answers(keeper.session)
            bound = await bind(rule.listen.value)
            for each in bound:
                sockets.callback(each.close)
            local = _Local(work, rule, keeper.session, bound)
            # What the agent refuses is refused now, not when a datagram is lost to it.
            channel = await local.open() if there else None
            work.listening = tuple(str(each.address) for each in bound)
            for each in bound:
                purpose = f"→ {rule.connect.value.bare()} through {keeper.session.name}"
                work.engine.report(Listening(str(each.address), purpose))
            work.set(State.UP)
            nursery.start_soon(work.follow, keeper)
            await local.run(channel)


async def _answers(session: Session) -> bool:
    """Whether the agent is there. One that is not is waited for: its keeper tries on, and says why."""
    try:
        await session.login()
    except VsockfwdError:
        return False
    return True


class _Local:
    """What listens here, and the streams that it has one after the other."""

    def __init__(self, work: Work, rule: DatagramRule, session: Session, bound: Sequence[Bound]) -> None:
        cap = rule.flows or FLOWS
        self._near = Near(work.name, WHERE, bound, rule.idle, cap, work.engine.report, work.live)
        self._request = Connect(str(rule.connect), cap)
        self._work = work
        self._wanted = rule.flows
        self._session = session

    async def open(self) -> Any:
        """A stream's channel. Raises what the agent answered, or why it could not be asked."""
        channel, connected = await _open(self._session, self._request, CONNECTS, Connected)
        self._near.cap = granted(self._work, self._wanted, connected.flows, "the agent")
        return channel

    async def run(self, channel: Any) -> None:
        """Carry until cancelled; when a stream is lost, or there is none yet, the next datagram opens another."""
        near, told, pause = self._near, "", 0.0
        async with near.listening():
            while True:
                heard, began = near.datagrams_in, trio.current_time()
                try:
                    channel = channel or await self._open_again()
                    began = trio.current_time()
                    why = await _carry_over(channel, near.carry)
                except VsockfwdError as error:
                    why = error.line()
                channel = None
                useful = near.datagrams_in > heard or trio.current_time() - began > _PAUSES[1]
                if useful:
                    told, pause = "", 0.0
                if why != told:
                    near.report(Problem(near.rule, f"no stream: {why}; the next datagram opens another"))
                    told = why
                await trio.sleep(pause)
                near.lost()
                pause = min(max(pause * 2, _PAUSES[0]), _PAUSES[1])

    async def _open_again(self) -> Any:
        await self._near.something_waits()
        return await self.open()


# --- listening at the agent's


async def run_remote(work: Work, rule: RemoteDatagramRule) -> None:
    """Have the agent listen, and send on to `connect` from here. Raises why the stream is over."""
    async with until_stopping(work.engine), work.keeper(rule.target) as keeper:
        session, address = keeper.session, rule.connect.value
        found = await places(address)
        flows = granted(work, rule.flows, sockets_to_spare(), "this process")
        channel, listens = await _listen(work, session, rule, flows)
        work.listening = tuple(map(printable, listens.addresses))
        for each in work.listening:
            work.engine.report(Listening(each, f"at {session.name} → {address.bare()}"))
        work.set(State.UP)
        far = Far(work.name, WHERE, address, found, flows, work.engine.report, work.live)
        raise Reset(f"{session.name}: {await _carry_over(channel, far.run)}")


class _Chosen:
    """A port that the agent's kernel chose for port 0: asked for again after a loss, so that clients find it.

    The agent may still hold it for the stream that was lost: that passes. Who has it after INSIST is somebody else.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self._taken_at: float | None = None

    def is_gone(self) -> bool:
        """It was taken, once more: whether that has lasted too long."""
        now = trio.current_time()
        self._taken_at = now if self._taken_at is None else self._taken_at
        return now - self._taken_at > INSIST


async def _listen(work: Work, session: Session, rule: RemoteDatagramRule, flows: int) -> tuple[Any, Listens]:
    address, chosen = rule.listen.value, work.kept
    if isinstance(address, UdpAddress) and chosen is not None:
        address = dataclasses.replace(address, port=chosen.port)
    try:
        channel, listens = await _open(session, Listen(str(address), flows, rule.idle), LISTENS, Listens)
    except CannotCreate:
        if chosen is not None and chosen.is_gone():
            work.kept = None
        raise
    if isinstance(address, UdpAddress) and (port := _port_of(listens)):
        work.kept = _Chosen(port)
    return channel, listens


def _port_of(listens: Listens) -> int:
    """The port of the first of what was bound; 0 where that has none."""
    with contextlib.suppress(AddressError):
        address = parse(listens.addresses[0])
        return address.port if isinstance(address, UdpAddress) else 0
    return 0


DATAGRAM = RuleKind("datagram", DatagramRule, run_local)
REMOTE_DATAGRAM = RuleKind("remote-datagram", RemoteDatagramRule, run_remote)
