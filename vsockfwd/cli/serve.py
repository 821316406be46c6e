"""`vsockfwd serve`: the agent."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from vsockfwd.cli.rights import (
    AllowCid,
    AllowConnect,
    AllowGuest,
    AllowListen,
    AllowMode,
    AllowUid,
    AuthKey,
    AuthKeys,
    Config,
    MaxBandwidth,
    MaxRate,
    PerPeer,
    ReadOnly,
    Rights,
    Root,
)
from vsockfwd.contract import Mode
from vsockfwd.engine import Engine
from vsockfwd.engine.agent import Agent
from vsockfwd.engine.calling import Calling
from vsockfwd.engine.confine import User, alone, check_landlock, find_user, give_up, landlock_version
from vsockfwd.engine.invocation import Invocation
from vsockfwd.engine.server import CAP, Gate
from vsockfwd.errors import NotAllowed, UsageError, VsockfwdError, printable
from vsockfwd.events import Confined, Listening
from vsockfwd.identity import CID_ANY, GuestPeer, Identity, NetworkPeer, VsockPeer
from vsockfwd.key import Key
from vsockfwd.option import Option
from vsockfwd.policy import Policy
from vsockfwd.transport.base import Listener
from vsockfwd.wire.messages import LISTEN


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
    config: Config = None,
    allow_cid: AllowCid = None,
    allow_uid: AllowUid = None,
    allow_guest: AllowGuest = False,
    auth_key: AuthKey = None,
    auth_keys: AuthKeys = None,
    allow_connect: AllowConnect = None,
    allow_listen: AllowListen = None,
    allow_mode: AllowMode = None,
    root: Root = None,
    read_only: ReadOnly = False,
    max_connections: Annotated[
        int | None, Option("--max-connections", metavar="N", help="connections at once, in all")
    ] = None,
    max_connections_per_peer: PerPeer = None,
    max_rate: MaxRate = None,
    max_bandwidth: MaxBandwidth = None,
    user: Annotated[
        str | None, Option("--user", metavar="NAME", help="become this user once it listens (as root)")
    ] = None,
    confinement: Annotated[
        str | None,
        Option("--confine", metavar="auto|yes|no", help="leave it no file but those below --root (Landlock)"),
    ] = None,
    no_measure: Annotated[bool, Option("--no-measure", help="refuse `vsockfwd perf`")] = False,
    metrics: Metrics = None,
) -> int:
    """Run the agent: what -L forwards, cp and dgram talk to, usually inside the guest.

    On vsock it lets in privileged processes of the host only, on unix: its own user and root; --allow-… widens that.
    With --auth-key, who is not named by an --allow-… has to have the key, and may come over tcp: too.
    With --connect it listens only where --listen says so; who listens where it calls is the client.
    """
    rights = Rights(
        config=config,
        allow_cid=allow_cid,
        allow_uid=allow_uid,
        allow_guest=allow_guest,
        auth_key=auth_key,
        auth_keys=auth_keys,
        allow_connect=allow_connect,
        allow_listen=allow_listen,
        allow_mode=allow_mode,
        root=root,
        read_only=read_only,
        per_peer=max_connections_per_peer,
        max_rate=max_rate,
        max_bandwidth=max_bandwidth,
        measure=not no_measure,
    )
    table = rights.table()
    wanted = table.user if user is None else user
    whom = None if wanted is None else find_user(wanted)
    keys, policy = rights.decided(table, None if whom is None else whom.uid)
    confined = check_confinement(table.confine if confinement is None else confinement, policy)
    most = max_connections if max_connections is not None else table.max_connections or CAP
    if most < 1:
        raise UsageError(f"--max-connections {most}: a whole number above 0")
    modes = invocation.modes()
    check_modes(policy, modes)
    addresses = [parse_stream(text) for text in listen or []]
    places = [parse_target(text) for text in connect or []]
    if listen is None and connect is None:
        addresses, places = [one.value for one in table.listen], [one.value for one in table.connect]
    for address in addresses:
        check_listening(address, policy)
    for place in places:
        check_calling(place, policy)
        if whom is not None and whom.uid != 0 and isinstance(place, VsockAddress):
            raise UsageError(
                f"--user {whom.name} and --connect {place}: it calls from a privileged port each time",
                hint="User= and AmbientCapabilities=CAP_NET_BIND_SERVICE of a systemd unit can do both",
            )
    return invocation.run(Serving(addresses, places, policy, keys, most, whom, confined, modes, metrics).run)


def check_confinement(word: str, policy: Policy) -> bool:
    """Whether to leave the process its roots alone. Raises UsageError, TransportMissing where `yes` cannot be."""
    if word not in ("auto", "yes", "no"):
        raise UsageError(f"--confine {printable(word)}: auto, yes or no")
    if word == "yes":
        if policy.root is None:
            raise UsageError("--confine yes: to which directory?", hint="--root DIR says")
        check_landlock()
    return word != "no" and policy.root is not None and landlock_version() > 0


def check_modes(policy: Policy, modes: Mapping[str, Mode]) -> None:
    """Refuse a mode that is not there: what was meant to be allowed would not be. Raises UsageError."""
    known = {LISTEN, *modes}
    wanted = [("--allow-mode", policy.modes)]
    wanted += [(f"serve.allow[{number}].modes", entry.modes) for number, entry in enumerate(policy.allow, 1)]
    for where, names in wanted:
        for name in names or ():
            if name not in known:
                raise UsageError(f"{where} {name}: there is no such mode", hint=f"there are {', '.join(sorted(known))}")


def check_listening(address: Address, policy: Policy) -> None:
    """Refuse what would listen in vain, or for another than it seems."""
    if isinstance(address, TcpAddress) and not policy.keyed and not address.option("tls"):
        raise NotAllowed(
            f"{address}: an agent lets nobody in over TCP without a key or TLS, where an IP address proves nothing",
            hint="--auth-key FILE asks for one (vsockfwd keygen makes it); ,tls,cert=,key=,ca= asks for a certificate",
        )
    if isinstance(address, HybridAddress) and not policy.guests and not policy.keyed and not address.option("tls"):
        raise NotAllowed(
            f"{address}: the guest behind a hybrid socket is let in by a rule or a key only",
            hint="--allow-guest is that rule, --auth-key FILE asks for a key",
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
    if place.option("tls"):
        raise UsageError(f"{place}: an agent that calls speaks no TLS", hint="a key proves both sides: --auth-key")
    peer: Identity
    match place:
        case TcpAddress():
            peer = NetworkPeer(place.host, place.port)
        case VsockAddress():
            if place.cid == CID_ANY:
                raise UsageError(f"{place}: the CID any is for listening", hint=f"such as vsock:host:{place.port}")
            peer = VsockPeer(place.cid, place.port)
        case HybridAddress():
            peer = GuestPeer(place.path)
        case _:
            return  # the kernel tells who listens there
    decision = policy.admit(peer)
    if not decision.allowed and not policy.keyed:
        raise NotAllowed(f"{place}: who listens there would not be let in: {decision.reason}", hint=decision.hint)


def default_addresses(engine: Engine) -> list[Address]:
    """Where to listen when nothing was said: on what the service manager passed, as everybody does, or on vsock."""
    return [FdAddress(name) for name in engine.service.descriptors] or [VsockAddress(CID_ANY, AGENT_PORT)]


@dataclass(frozen=True, slots=True)
class Serving:
    """An agent as it was asked for. `most`: connections at once; `user`: whom it becomes once it listens; `confined`:
    whether it then has its root's files alone."""

    addresses: list[Address]
    places: list[Address]
    policy: Policy
    keys: tuple[Key, ...]
    most: int
    user: User | None
    confined: bool
    modes: Mapping[str, Mode]
    metrics: str | None

    async def run(self, engine: Engine) -> None:
        """Serve until told to stop."""
        async with metered(engine, self.metrics) as engine:
            addresses = self.addresses
            if not addresses and not self.places:
                addresses = default_addresses(engine)
            listeners = await _listen(engine, addresses, self.policy)
            given_up = await self._give_up(listeners)
            agent = Agent(engine, self.modes, self.policy, keys=self.keys)
            names = ", ".join(sorted(agent.modes))
            for listener in listeners:
                engine.report(Listening(str(listener.address), f"for clients; modes: {names}"))
            engine.report(Confined(given_up))
            agent.confined = given_up
            where = [f"listening on {listener.address}" for listener in listeners]
            where += [f"calling {place}" for place in self.places]
            where.append(given_up)
            await engine.service.ready(", ".join(where))
            gate = Gate(self.most)
            async with trio.open_nursery() as nursery:
                for place in self.places:
                    nursery.start_soon(Calling(agent, place, gate).run)
                nursery.start_soon(agent.serve, listeners, gate)

    async def _give_up(self, listeners: Sequence[Listener]) -> str:
        """Keep what serving needs; returns what is left, in words."""
        roots = [] if self.policy.root is None else [self.policy.root]
        if self.user is not None or self.confined:
            await alone()
        if self.user is not None and os.geteuid() == 0:
            for listener in listeners:
                _hand_over(listener.address, self.user)
        how = give_up(self.user, roots, read_only=self.policy.read_only, confined=self.confined)
        if not self.confined and roots:
            how += ", files by its own checks alone"
        return how


def _hand_over(address: Address, user: User) -> None:
    """Whose agent it is may connect to it: the file of its socket is the user's."""
    match address:
        case UnixAddress(path=path):
            os.chown(path, user.uid, user.gid, follow_symlinks=False)
        case HybridAddress():
            os.chown(address.listening_path, user.uid, user.gid, follow_symlinks=False)
        case _:
            pass


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
