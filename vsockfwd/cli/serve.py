"""`vsockfwd serve`: the agent."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Annotated

import trio

from vsockfwd.address import (
    AGENT_PORT,
    AcceptAddress,
    Address,
    FdAddress,
    HybridAddress,
    TcpAddress,
    UnixAddress,
    VsockAddress,
    parse_stream,
    parse_target,
)
from vsockfwd.cli.metrics import Metrics, metered
from vsockfwd.cli.option import Option
from vsockfwd.contract import Mode
from vsockfwd.engine import Engine
from vsockfwd.engine.agent import Agent
from vsockfwd.engine.calling import Calling
from vsockfwd.engine.invocation import Invocation
from vsockfwd.engine.server import Gate
from vsockfwd.errors import AddressError, NotAllowed, UsageError, VsockfwdError, printable
from vsockfwd.events import Listening
from vsockfwd.identity import CID_ANY, GuestPeer, Identity, VsockPeer
from vsockfwd.policy import Policy
from vsockfwd.transport.base import Listener


def serve(
    invocation: Invocation,
    listen: Annotated[
        list[str] | None,
        Option(
            "-l",
            "--listen",
            metavar="ADDRESS",
            help=f"where to listen (default: the sockets that systemd passes, else vsock:any:{AGENT_PORT})",
        ),
    ] = None,
    connect: Annotated[
        list[str] | None,
        Option(metavar="ADDRESS", help="call there, where a client waits (its TARGET: accept:…)"),
    ] = None,
    allow_cid: Annotated[
        list[str] | None,
        Option("--allow-cid", metavar="host|local|any|N", help="trust every user of this machine"),
    ] = None,
    allow_uid: Annotated[
        list[int] | None, Option("--allow-uid", metavar="UID", help="trust this local user on unix: sockets")
    ] = None,
    allow_guest: Annotated[
        bool, Option("--allow-guest", help="trust the guest behind a hybrid: socket listened on")
    ] = False,
    root: Annotated[
        str | None, Option(metavar="DIR", help="what is copied is below this directory, and paths start there")
    ] = None,
    read_only: Annotated[bool, Option("--read-only", help="files are read, and never written")] = False,
    no_measure: Annotated[bool, Option("--no-measure", help="refuse `vsockfwd perf`")] = False,
    metrics: Metrics = None,
) -> int:
    """Run the agent: what -L forwards, cp and dgram talk to, usually inside the guest.

    On vsock it lets in privileged processes of the host only, on unix: its own user and root; --allow-… widens that.
    With --connect it listens only where --listen says so; who listens where it calls is the client.
    """
    addresses = [parse_stream(text) for text in listen or []]
    places = [parse_target(text) for text in connect or []]
    policy = Policy(
        own_uid=os.geteuid(),
        cids=frozenset(map(_cid, allow_cid or [])),
        uids=frozenset(allow_uid or []),
        guests=allow_guest,
        root=None if root is None else _directory(root),
        read_only=read_only,
        measure=not no_measure,
    )
    for address in addresses:
        check_listening(address, policy)
    for place in places:
        check_calling(place, policy)
    return invocation.run(_serve, addresses, places, policy, invocation.modes(), metrics)


def _directory(path: str) -> str:
    """An absolute path, of a directory that is there."""
    if not os.path.isdir(path):
        raise UsageError(f"--root {printable(path)}: is no directory")
    return os.path.abspath(path)


def _cid(text: str) -> int:
    """`host`, `local`, `any` or a number, by the grammar of vsock addresses."""
    try:
        address = parse_stream(f"vsock:{text}:0")
    except AddressError:
        address = None
    if not isinstance(address, VsockAddress):
        raise UsageError(f"--allow-cid {printable(text)}: not a CID", hint="a number, host, local or any")
    return address.cid


def check_listening(address: Address, policy: Policy) -> None:
    """Refuse what would listen in vain, or for another than it seems."""
    if isinstance(address, TcpAddress):
        raise NotAllowed(
            f"{address}: an agent lets nobody in over TCP, where an IP address proves nothing",
            hint="listen on vsock: or unix:; a raw `vsockfwd forward tcp:PORT unix:PATH` can stand in front",
        )
    if isinstance(address, HybridAddress) and not policy.guests:
        raise NotAllowed(
            f"{address}: the guest behind a hybrid socket is let in by a rule only",
            hint="--allow-guest is that rule",
        )
    if isinstance(address, UnixAddress) and address.vmm is not None:
        raise NotAllowed(
            f"{address}: a path that ends in _NUMBER is where a VMM brings its guest's connections",
            hint=f"write {address.vmm} with --allow-guest, or rename it",
        )
    if address.scheme == "stdio":
        raise UsageError("stdio is one connection, an agent listens for many")


def check_calling(place: Address, policy: Policy) -> None:
    """Refuse to call where nobody who answers would be let in, as far as the address tells."""
    if isinstance(place, AcceptAddress):
        raise UsageError(f"{place}: that is the client's word", hint=f"here it is --connect {place.place}")
    peer: Identity
    match place:
        case TcpAddress():
            raise NotAllowed(
                f"{place}: an agent lets nobody in over TCP, where an IP address proves nothing",
                hint="call vsock: or unix:",
            )
        case VsockAddress():
            if place.cid == CID_ANY:
                raise UsageError(f"{place}: the CID any is for listening", hint=f"such as vsock:host:{place.port}")
            peer = VsockPeer(place.cid, place.port)
        case HybridAddress():
            peer = GuestPeer(place.path)
        case _:
            return  # the kernel tells who listens there
    decision = policy.admit(peer)
    if not decision.allowed:
        raise NotAllowed(f"{place}: who listens there would not be let in: {decision.reason}", hint=decision.hint)


def default_addresses(engine: Engine) -> list[Address]:
    """Where to listen when nothing was said: on what the service manager passed, as everybody does, or on vsock."""
    return [FdAddress(name) for name in engine.service.descriptors] or [VsockAddress(CID_ANY, AGENT_PORT)]


async def _serve(
    engine: Engine,
    addresses: list[Address],
    places: list[Address],
    policy: Policy,
    modes: Mapping[str, Mode],
    metrics: str | None,
) -> None:
    async with metered(engine, metrics) as engine:
        if not addresses and not places:
            addresses = default_addresses(engine)
        listeners = await _listen(engine, addresses, policy)
        agent = Agent(engine, modes, policy)
        names = ", ".join(sorted(agent.modes))
        for listener in listeners:
            engine.report(Listening(str(listener.address), f"for clients; modes: {names}"))
        where = [f"listening on {listener.address}" for listener in listeners]
        where += [f"calling {place}" for place in places]
        await engine.service.ready(", ".join(where))
        gate = Gate()
        async with trio.open_nursery() as nursery:
            for place in places:
                nursery.start_soon(Calling(agent, place, gate).run)
            nursery.start_soon(agent.serve, listeners, gate)


async def _listen(engine: Engine, addresses: list[Address], policy: Policy) -> list[Listener]:
    listeners: list[Listener] = []
    try:
        for address in addresses:
            opened = await engine.network.listen(address)
            listeners += opened
            if isinstance(address, FdAddress):
                _check_inherited(address, opened, policy)
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _check_inherited(address: FdAddress, listeners: Sequence[Listener], policy: Policy) -> None:
    """What is inherited is known when it is opened: it is held to the same rules."""
    for listener in listeners:
        try:
            check_listening(listener.address, policy)
        except VsockfwdError as error:
            raise error.within(str(address)) from None
