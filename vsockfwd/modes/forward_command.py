"""`vsockfwd forward`: the command line of forwarding."""

from __future__ import annotations

from typing import Annotated

import trio
import typer

from vsockfwd.modes.forward import LocalForward, listen, local_forward, parse_local, raw_forward
from vsockfwd.plugin import (
    Address,
    AddressError,
    Engine,
    Invocation,
    Listener,
    Problem,
    UsageError,
    VsockfwdError,
    open_session,
    parse_stream,
    parse_target,
)


def forward(
    invocation: Invocation,
    addresses: Annotated[
        list[str],
        typer.Argument(metavar="LISTEN CONNECT | TARGET", help="two addresses, or with -L the agent's target"),
    ],
    local: Annotated[
        list[str] | None,
        typer.Option("-L", metavar="[BIND:]PORT:HOST:HOSTPORT", help="listen here, connect from the agent's machine"),
    ] = None,
    port: Annotated[
        int | None, typer.Option("-p", metavar="PORT", help="the agent's port, where it is not 876")
    ] = None,
    exit_on_failure: Annotated[
        bool, typer.Option("--exit-on-failure", help="end when one of several forwards cannot listen")
    ] = False,
) -> int:
    """Forward connections: LISTEN CONNECT joins two addresses, -L … TARGET goes through an agent.

    Raw: vsockfwd forward tcp:8080 vsock:3:80. Through an agent: vsockfwd forward -L 8080:localhost:80 3.
    Loopback is listened on unless the address says otherwise; port 0 picks a free one and prints it.
    """
    if local:
        if len(addresses) != 1:
            raise UsageError(f"forward -L takes one TARGET, not {len(addresses)} addresses")
        target = parse_target(addresses[0], port)
        return invocation.run(_through_agent, target, [parse_local(spec) for spec in local], exit_on_failure)
    if len(addresses) != 2:
        raise UsageError(
            f"forward takes LISTEN and CONNECT, not {len(addresses)} address{'es' * (len(addresses) != 1)}",
            hint="or -L SPEC and a TARGET",
        )
    if port is not None:
        raise UsageError("-p is the port of an agent, a raw forward has none", hint="write the port into the address")
    near, far = (_stream(text) for text in addresses)
    return invocation.run(_raw, near, far)


def _stream(text: str) -> Address:
    address = parse_stream(text)
    if address.scheme == "stdio":
        raise AddressError(
            "stdio can be opened once, a forward serves many", text=text, hint="vsockfwd relay joins two"
        )
    return address


async def _raw(engine: Engine, near: Address, far: Address) -> None:
    if far.scheme == "fd":
        raise UsageError(f"{far}: a descriptor can be connected once, a forward dials for every connection")
    await raw_forward(engine, await listen(engine, near, f"→ {far.bare()}"), far)


async def _through_agent(engine: Engine, target: Address, forwards: list[LocalForward], exit_on_failure: bool) -> None:
    async with open_session(engine, target) as session, trio.open_nursery() as nursery:
        opened = await _listen_all(engine, forwards, session.name, exit_on_failure)
        for rule, listeners in opened:
            nursery.start_soon(local_forward, engine, session, listeners, rule.connect)


async def _listen_all(
    engine: Engine, forwards: list[LocalForward], through: str, exit_on_failure: bool
) -> list[tuple[LocalForward, list[Listener]]]:
    """Each succeeds or fails by itself; at least one must."""
    opened: list[tuple[LocalForward, list[Listener]]] = []
    failed: VsockfwdError | None = None
    try:
        for rule in forwards:
            try:
                opened.append((rule, await listen(engine, rule.listen, f"→ {rule.connect.bare()} through {through}")))
            except VsockfwdError as error:
                if exit_on_failure:
                    raise
                failed = failed or error
                if len(forwards) > 1:
                    engine.report(Problem(str(rule), error.line()))
    except BaseException:
        for _, listeners in opened:
            for listener in listeners:
                listener.close()
        raise
    if failed and not opened:
        raise failed
    return opened
