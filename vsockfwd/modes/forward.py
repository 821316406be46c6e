"""Forwarding: connections taken here are served there.

*Raw* joins each connection taken on one address with a new one to another; it passes on what it sees. *Local* (`-L`)
goes through an agent, which dials; *remote* (`-R`) has the agent listen, and dials here. Between the two every end is
told, so that a cut never looks like an end.
"""

from __future__ import annotations

import contextlib
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
    Listening,
    NotAllowed,
    Opened,
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


async def serve(call: Call) -> None:
    """Dial at once, so that a server that speaks first is heard; then carry."""
    request = call.arguments(Connect)
    neighbour = await call.connect(request.connect)
    try:
        channel = await call.accept(Connected(str(neighbour.peer)))
    except BaseException:
        neighbour.abort()
        raise
    outcome = await channel.relay(neighbour, dialled=True)
    call.report(Closed(f"forward to {request.connect}", str(call.peer), outcome))


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

        def begin(near: Stream, far: Stream, leave: Callable[[], None]) -> None:
            peer = str(near.peer)

            def ended(outcome: Outcome) -> None:
                engine.report(Closed(name, peer, outcome))
                leave()

            relays.begin(near, far, ended)

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
            engine.report(Opened(name, str(near.peer)))
            begin(near, far, leave)
            return True

        async def handle(near: Stream) -> None:
            with taken(engine, name, near) as told:
                source = await read_header(near) if rule.accept_proxy else near.peer
                far = await engine.network.connect(connect)
                if rule.proxy_protocol:
                    await send_header(far, source, connected_to(near))
                over = trio.Event()
                told.by_another = True
                begin(near, far, over.set)
                await over.wait()

        headers = rule.accept_proxy or rule.proxy_protocol
        await work.serve(listeners, handle, None if headers else at_once)


async def run_local(work: Work, rule: LocalRule) -> None:
    """Carry every connection taken to the agent, which dials `connect`."""
    connect = Connect(str(rule.connect.value))
    purpose = f"→ {rule.connect.value.bare()} through {rule.target}"
    async with work.keeper(rule.target) as keeper:

        async def handle(near: Stream) -> None:
            with taken(work.engine, work.name, near) as told:
                source = await read_header(near) if rule.accept_proxy else near.peer
                opened = await keeper.session.open(NAME, connect)
                if rule.proxy_protocol:
                    await opened.channel.send(header_for(near, source))
                told.outcome = await opened.channel.relay(near, **work.carrying)

        await work.listen_and_serve(keeper, rule.when_down, rule.listen.value, purpose, handle)


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
def connection(engine: Engine, rule: str, peer: Identity, refuse: Callable[[VsockfwdError], None]) -> Iterator[_Told]:
    """Report a connection's begin and end. An error in between is its outcome, and `refuse` tells the peer."""
    told = _Told()
    engine.report(Opened(rule, str(peer)))
    try:
        yield told
    except VsockfwdError as error:
        refuse(error)
        told.outcome = Outcome(ending_of(error.code), "", error.line())
    finally:
        if not told.by_another:
            engine.report(Closed(rule, str(peer), told.outcome))


def taken(engine: Engine, rule: str, near: Stream) -> contextlib.AbstractContextManager[_Told]:
    """`connection`, of a stream that was taken here: its refusal is a reset."""
    return connection(engine, rule, near.peer, lambda _: near.abort())


RAW = RuleKind("raw", RawRule, run_raw)
LOCAL = RuleKind("local", LocalRule, run_local)
REMOTE = RuleKind("remote", RemoteRule, run_remote)
