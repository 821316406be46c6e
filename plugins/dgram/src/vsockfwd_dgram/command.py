"""`vsockfwd dgram`: the command line of datagrams."""

from __future__ import annotations

import contextlib
from typing import Annotated

import trio
import typer

from vsockfwd.plugin import (
    Address,
    Engine,
    Invocation,
    Listening,
    OpenedStream,
    Problem,
    Session,
    UsageError,
    VsockfwdError,
    open_session,
)
from vsockfwd_dgram.frames import FLOWS_LIMIT
from vsockfwd_dgram.near import FLOWS, IDLE, Near
from vsockfwd_dgram.rule import LocalForward, parse_local
from vsockfwd_dgram.sockets import bind


def dgram(
    invocation: Invocation,
    addresses: Annotated[list[str], typer.Argument(metavar="TARGET", help="where the agent listens")],
    local: Annotated[
        list[str] | None,
        typer.Option("-L", metavar="[BIND:]PORT:HOST:HOSTPORT", help="listen here, send on from the agent's machine"),
    ] = None,
    remote: Annotated[list[str] | None, typer.Option("-R", hidden=True)] = None,
    port: Annotated[
        int | None, typer.Option("-p", metavar="PORT", help="the agent's port, where it is not 876")
    ] = None,
    idle: Annotated[
        float, typer.Option("--idle", metavar="SECONDS", help="without a datagram either way, a flow ends")
    ] = IDLE,
    flows: Annotated[
        int | None,
        typer.Option("--flows", metavar="N", help=f"sources at once (default {FLOWS}, or what the agent can)"),
    ] = None,
) -> int:
    """Forward datagrams through an agent: UDP or UNIX, their boundaries kept, every loss counted.

    vsockfwd dgram -L 5353:localhost:53 3: what comes to UDP port 5353 here goes to port 53 of the guest, and the
    answers come back. Either end may be udp:HOST:PORT, unix-dgram:PATH or a path. Loopback is listened on unless the
    address says otherwise; port 0 picks a free one and prints it.
    """
    if remote:
        raise UsageError("dgram -R is not built: the agent does not listen for datagrams yet", hint="-L listens here")
    if len(addresses) != 1 or not local:
        if len(addresses) == 2 and not local:
            raise UsageError("dgram LISTEN CONNECT, without an agent, is not built yet", hint="-L SPEC and a TARGET")
        raise UsageError("dgram takes -L SPEC, once or more, and one TARGET", hint="vsockfwd dgram --help")
    if not idle > 0:
        raise UsageError(f"--idle {idle:g}: a flow lives for some seconds above 0")
    if flows is not None and not 1 <= flows <= FLOWS_LIMIT:
        raise UsageError(f"--flows {flows}: from 1 to {FLOWS_LIMIT}")
    target = invocation.target(addresses[0], port)
    return invocation.run(_through_agent, target, [parse_local(spec) for spec in local], idle, flows)


async def _through_agent(
    engine: Engine, target: Address, rules: list[LocalForward], idle: float, flows: int | None
) -> None:
    with contextlib.ExitStack() as sockets:
        async with open_session(engine, target) as session, trio.open_nursery() as nursery:
            for near, opened in await _open_all(engine, session, rules, idle, flows, sockets):
                nursery.start_soon(near.run, opened)


async def _open_all(
    engine: Engine,
    session: Session,
    rules: list[LocalForward],
    idle: float,
    flows: int | None,
    sockets: contextlib.ExitStack,
) -> list[tuple[Near, OpenedStream]]:
    """Each succeeds or fails by itself; at least one must."""
    ready: list[tuple[Near, OpenedStream]] = []
    failed: VsockfwdError | None = None
    for rule in rules:
        try:
            # What the agent refuses is refused now, not when a datagram is lost to it.
            with contextlib.ExitStack() as own:
                bound = await bind(rule.listen)
                for each in bound:
                    own.callback(each.close)
                near = Near(engine, session, bound, rule.connect, idle, flows)
                ready.append((near, await near.open()))
                sockets.enter_context(own.pop_all())
            for each in bound:
                engine.report(Listening(str(each.address), f"→ {rule.connect.bare()} through {session.name}"))
        except VsockfwdError as error:
            failed = failed or error
            if len(rules) > 1:
                engine.report(Problem(str(rule), error.line()))
    if failed and not ready:
        raise failed
    return ready
