"""Forwarding: connections taken here are served there.

*Raw* joins each connection taken on one address with a new one to another; it passes on what it sees. *Local* (`-L`)
goes through an agent, which dials; *remote* (`-R`) has the agent listen, and dials here. Between the two every end is
told, so that a cut never looks like an end.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Annotated, Literal, Unpack

import msgspec
import trio

from vsockfwd.plugin import (
    HERE,
    Access,
    Address,
    AgentRule,
    Call,
    Carrying,
    Closed,
    Ending,
    Engine,
    ForwardRule,
    Identity,
    Incoming,
    Join,
    Listening,
    NotAllowed,
    Opened,
    OpenedStream,
    Outcome,
    Relays,
    Resource,
    RuleKind,
    State,
    Stream,
    StreamEnd,
    VsockfwdError,
    WhenDown,
    Work,
    connected_to,
    decode_arguments,
    ending_of,
    header_for,
    read_header,
    send_header,
)

NAME = "forward"

AddressText = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]


class Connect(msgspec.Struct, frozen=True):
    """The request: dial this address, then carry bytes both ways."""

    connect: AddressText


class Connected(msgspec.Struct, frozen=True):
    """The reply: who answered, as the agent saw it."""

    peer: str


# --- the agent's side


def resources(arguments: bytes) -> tuple[Resource, ...]:
    """The address that a request wants dialled."""
    return (Resource(Access.CONNECT, decode_arguments(arguments, Connect).connect),)


def join(call: Call) -> Join:
    """Dial at once, so that a server that speaks first is heard; then carry."""
    connect = call.arguments(Connect).connect

    def ended(outcome: Outcome) -> None:
        call.report(Closed(f"forward to {connect}", str(call.peer), outcome))

    return Join(connect, lambda reached: Connected(str(reached)), ended)


# --- the client's side


Proxying = Literal["", "v2"]
"""Whether the far end is told who connected, and how: docs/proxy-protocol.md."""


class RawRule(ForwardRule, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """`kind = "raw"`: listen on one address, connect each to the other."""

    listen: StreamEnd
    connect: StreamEnd
    proxy_protocol: Proxying = ""
    accept_proxy: bool = False

    def title(self) -> str:
        return f"{self.listen.value.bare()} → {self.connect.value.bare()}"

    def listens(self) -> tuple[str, Address]:
        return HERE, self.listen.value


class LocalRule(AgentRule, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """`kind = "local"`: listen on this side, connect on the agent's."""

    listen: StreamEnd
    connect: StreamEnd
    when_down: WhenDown = "accept"
    proxy_protocol: Proxying = ""
    accept_proxy: bool = False

    def title(self) -> str:
        return f"{self.listen.value.bare()} → {self.connect.value.bare()} through {self.target}"

    def listens(self) -> tuple[str, Address]:
        return HERE, self.listen.value


class RemoteRule(AgentRule, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """`kind = "remote"`: the agent listens, and each connection taken there is joined to `connect` here."""

    listen: StreamEnd
    connect: StreamEnd
    proxy_protocol: Proxying = ""

    def title(self) -> str:
        return f"{self.listen.value.bare()} of {self.target} → {self.connect.value.bare()}"

    def listens(self) -> tuple[str, Address]:
        return self.target, self.listen.value


async def run_raw(work: Work, rule: RawRule) -> None:
    """Join every connection taken with a new one to `connect`."""
    engine, name, connect = work.engine, work.name, rule.connect.value
    listeners = await work.listen(rule.listen.value, f"→ {connect.bare()}")

    async with Relays(engine.buffers, engine.report, **work.carrying) as relays:

        def at_once(near: Stream, leave: Callable[[], None]) -> bool:
            try:
                far = engine.network.connect_now(connect)
            except VsockfwdError as error:
                with taken(engine, name, near):
                    raise error
                leave()
                return True
            if far is None:
                return False
            peer = str(near.peer)
            engine.report(Opened(name, peer))
            relays.waiting[near] = near.abort
            relays.dialled(
                far,
                lambda stream: relays.begin(near, stream, closing(engine, name, peer, leave)),
                lambda: relays.serve(functools.partial(handle, opened=True), near, leave),
            )
            return True

        async def handle(near: Stream, *, opened: bool = False) -> None:
            with taken(engine, name, near, opened) as told:
                source = await read_header(near) if rule.accept_proxy else near.peer
                far = await engine.network.connect(connect)
                if rule.proxy_protocol:
                    await send_header(far, source, connected_to(near))
                over = trio.Event()
                told.by_another = True
                relays.begin(near, far, closing(engine, name, str(near.peer), over.set))
                await over.wait()

        headers = rule.accept_proxy or rule.proxy_protocol
        await work.serve(listeners, handle, None if headers else at_once)


async def run_local(work: Work, rule: LocalRule) -> None:
    """Carry every connection taken to the agent, which dials `connect`."""
    engine, name, connect = work.engine, work.name, Connect(str(rule.connect.value))
    purpose = f"→ {rule.connect.value.bare()} through {rule.target}"
    async with (
        work.keeper(rule.target) as keeper,
        Relays(engine.buffers, engine.report, **work.carrying) as relays,
    ):

        def at_once(near: Stream, leave: Callable[[], None]) -> bool:
            def answered(answer: OpenedStream | VsockfwdError) -> None:
                if isinstance(answer, VsockfwdError):
                    del relays.waiting[near]
                    with taken(engine, name, near, True):
                        raise answer
                    leave()
                else:
                    relays.join(answer.channel, near, closing(engine, name, peer, leave))

            def otherwise() -> None:
                relays.serve(functools.partial(handle, opened=True), near, leave)

            peer = str(near.peer)
            engine.report(Opened(name, peer))
            relays.waiting[near] = near.abort
            if not keeper.session.begin(NAME, connect, relays, answered, otherwise):
                otherwise()
            return True

        async def handle(near: Stream, *, opened: bool = False) -> None:
            with taken(engine, name, near, opened) as told:
                source = await read_header(near) if rule.accept_proxy else near.peer
                far = await keeper.session.open(NAME, connect)
                if rule.proxy_protocol:
                    await far.channel.send(header_for(near, source))
                over = trio.Event()
                told.by_another = True
                relays.join(far.channel, near, closing(engine, name, str(near.peer), over.set))
                await over.wait()

        headers = rule.accept_proxy or rule.proxy_protocol
        await work.listen_and_serve(
            keeper, rule.when_down, rule.listen.value, purpose, handle, None if headers else at_once
        )


def closing(engine: Engine, rule: str, peer: str, leave: Callable[[], None]) -> Callable[[Outcome], None]:
    """What reports a connection's end, and leaves."""

    def ended(outcome: Outcome) -> None:
        engine.report(Closed(rule, peer, outcome))
        leave()

    return ended


async def run_remote(work: Work, rule: RemoteRule) -> None:
    """Have the agent listen, and join every connection taken there to a new one to `connect`."""
    engine, connect = work.engine, rule.connect.value

    async def handle(incoming: Incoming) -> None:
        with work.admitted(incoming.peer) as why:
            if why:
                incoming.deny(NotAllowed(why))
            else:
                await carry_incoming(engine, work.name, incoming, connect, bool(rule.proxy_protocol), **work.carrying)

    def listening(bound: str) -> None:
        work.listening += (bound,)
        engine.report(Listening(bound, f"of {rule.target} → {connect.bare()}"))
        work.set(State.UP)

    async with work.keeper(rule.target) as keeper, trio.open_nursery() as nursery:

        async def listen() -> None:
            await work.until_up(keeper)
            await keeper.session.listen(rule.listen.value, work.lease, handle, listening)

        nursery.start_soon(listen)
        await engine.stopping.wait()
        await work.idle()
        nursery.cancel_scope.cancel()


async def carry_incoming(
    engine: Engine,
    rule: str,
    incoming: Incoming,
    connect: Address,
    introduced: bool = False,
    **carrying: Unpack[Carrying],
) -> None:
    """Join a connection that was taken at the agent's to a new one to `connect`.

    Dials before it fetches: who came is reset where nothing answers here, and a server that speaks first is heard.
    `carrying` is what the channel's `relay` takes.
    """
    with connection(engine, rule, incoming.peer, incoming.deny) as told:
        near = await engine.network.connect(connect)
        try:
            if introduced:
                await send_header(near, incoming.peer)
            channel = await incoming.fetch()
        except BaseException:
            near.abort()
            raise
        told.outcome = await channel.relay(near, dialled=True, **carrying)


class _Told:
    """What becomes of a connection, until it is reported."""

    def __init__(self) -> None:
        self.outcome = Outcome(Ending.STOPPED)
        self.by_another = False
        """Somebody else reports the end."""


@contextlib.contextmanager
def connection(
    engine: Engine, rule: str, peer: Identity, refuse: Callable[[VsockfwdError], None], opened: bool = False
) -> Iterator[_Told]:
    """Report a connection's begin and end. An error in between is its outcome, and `refuse` tells the peer.

    `opened`: its begin was reported already.
    """
    told = _Told()
    if not opened:
        engine.report(Opened(rule, str(peer)))
    try:
        yield told
    except VsockfwdError as error:
        refuse(error)
        told.outcome = Outcome(ending_of(error.code), "", error.line())
    finally:
        if not told.by_another:
            engine.report(Closed(rule, str(peer), told.outcome))


def taken(engine: Engine, rule: str, near: Stream, opened: bool = False) -> contextlib.AbstractContextManager[_Told]:
    """`connection`, of a stream that was taken here: its refusal is a reset."""
    return connection(engine, rule, near.peer, lambda _: near.abort(), opened)


RAW = RuleKind("raw", RawRule, run_raw)
LOCAL = RuleKind("local", LocalRule, run_local)
REMOTE = RuleKind("remote", RemoteRule, run_remote)
