"""`vsockfwd dgram`: the command line of datagrams."""

from __future__ import annotations

import contextlib
from typing import Annotated, Any

import typer

from vsockfwd.plugin import Address, AgentPort, Engine, Invocation, NamedRule, RuleKind, Rules, SharedKey, UsageError
from vsockfwd_dgram.client import DATAGRAM, REMOTE_DATAGRAM
from vsockfwd_dgram.frames import FLOWS_LIMIT
from vsockfwd_dgram.raw import RAW_DATAGRAM
from vsockfwd_dgram.rule import FLOWS, IDLE, RawDatagramRule, RawDestination, RawEnd, parse_spec


def dgram(
    invocation: Invocation,
    addresses: Annotated[
        list[str],
        typer.Argument(metavar="LISTEN CONNECT | TARGET", help="two addresses; or, for -L and -R, the agent's"),
    ],
    local: Annotated[
        list[str] | None,
        typer.Option("-L", metavar="[BIND:]PORT:HOST:HOSTPORT", help="listen here, send on from the agent's machine"),
    ] = None,
    remote: Annotated[
        list[str] | None,
        typer.Option("-R", metavar="[BIND:]PORT:HOST:HOSTPORT", help="the agent listens, send on from this machine"),
    ] = None,
    port: AgentPort = None,
    auth_key: SharedKey = None,
    idle: Annotated[
        float, typer.Option("--idle", metavar="SECONDS", help="without a datagram either way, a flow ends")
    ] = IDLE,
    flows: Annotated[
        int | None,
        typer.Option("--flows", metavar="N", help=f"sources at once (default {FLOWS}, or what the far side can)"),
    ] = None,
    exit_on_failure: Annotated[
        bool, typer.Option("--exit-on-failure", help="end when one of several forwards cannot listen")
    ] = False,
) -> int:
    """Forward datagrams: UDP or UNIX, their boundaries kept, every loss counted.

    Through an agent, vsockfwd dgram -L 5353:localhost:53 3: what comes to UDP port 5353 here goes to port 53 of the
    guest, and the answers come back; -R is the same the other way round. Either end may be udp:HOST:PORT,
    unix-dgram:PATH or a path. Without one, vsockfwd dgram udp:5353 vsock-seqpacket:3:5300: each source has a
    connection of its own, and the other side is anything that takes messages, such as
    vsockfwd dgram vsock-seqpacket:any:5300 udp:localhost:53 in the guest.
    Loopback is listened on unless the address says otherwise; port 0 picks a free one and prints it.
    """
    if not idle > 0:
        raise UsageError(f"--idle {idle:g}: a flow lives for some seconds above 0")
    if flows is not None and not 1 <= flows <= FLOWS_LIMIT:
        raise UsageError(f"--flows {flows}: from 1 to {FLOWS_LIMIT}")
    limits = {"idle": idle, "flows": flows}
    if not local and not remote:
        return _raw(invocation, addresses, port, auth_key, limits)
    if len(addresses) != 1:
        raise UsageError("dgram takes one TARGET with -L and -R", hint="vsockfwd dgram --help")
    target = invocation.target(addresses[0], port, auth_key)
    rules = [
        _named(flag, kind, spec, target, limits)
        for flag, kind, specs in (("-L", DATAGRAM, local), ("-R", REMOTE_DATAGRAM, remote))
        for spec in specs or ()
    ]
    return invocation.run(_until_ended, target, rules, exit_on_failure)


def _raw(
    invocation: Invocation, addresses: list[str], port: int | None, auth_key: str | None, limits: dict[str, Any]
) -> int:
    if len(addresses) != 2:
        raise UsageError(
            "dgram takes LISTEN and CONNECT, or -L SPEC or -R SPEC, once or more, and one TARGET",
            hint="vsockfwd dgram --help",
        )
    if port is not None:
        raise UsageError("-p is the port of an agent, there is none here", hint="write the port into the address")
    if auth_key is not None:
        raise UsageError("--auth-key is for an agent, there is none here", hint="-L SPEC goes through one")
    ends = RawEnd.read(addresses[0]), RawDestination.read(addresses[1])
    rule = RawDatagramRule(listen=ends[0], connect=ends[1], **limits)
    return invocation.run(_until_ended, None, [NamedRule(rule.title(), RAW_DATAGRAM, rule)], False)


def _named(flag: str, kind: RuleKind, spec: str, target: Address, limits: dict[str, Any]) -> NamedRule:
    listen, connect = parse_spec(spec)
    schema: Any = kind.schema
    return NamedRule(f"{flag} {spec}", kind, schema(listen=listen, connect=connect, target=str(target), **limits))


async def _until_ended(engine: Engine, target: Address | None, named: list[NamedRule], exit_on_failure: bool) -> None:
    async with Rules(engine, {}, patient=False) as rules, contextlib.AsyncExitStack() as kept:
        if target is not None:
            keeper = await kept.enter_async_context(rules.keeper(target))
            # A target that is not there when a person asks for it is an error; later it is waited for.
            await keeper.come_up()
        await rules.add_all(named, all_or_none=exit_on_failure)
        await rules.ended()
