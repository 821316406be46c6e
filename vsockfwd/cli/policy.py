"""`vsockfwd policy`: what an agent's flags and config file come to, asked without an agent."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated

import typer

from vsockfwd.address import Address, TcpAddress, UdpAddress, parse
from vsockfwd.allow import Named, ip_of
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
from vsockfwd.contract import Access, Resource
from vsockfwd.engine import Engine
from vsockfwd.engine.invocation import Invocation
from vsockfwd.errors import NameNotResolved, NotAllowed, UsageError, VsockfwdError, printable
from vsockfwd.identity import GuestPeer, Identity, KeyPeer, NetworkPeer, OwnPeer, UnixPeer, VsockPeer
from vsockfwd.key import Key
from vsockfwd.policy import Decision, Policy
from vsockfwd.rule import PRIVILEGED

UNPRIVILEGED = 50000
"""A source port of anybody's."""


class What(StrEnum):
    """What `policy` does."""

    CHECK = "check"


def policy(
    invocation: Invocation,
    what: Annotated[What, typer.Argument(metavar="check", help="what to do")],
    identity: Annotated[
        str,
        typer.Argument(metavar="IDENTITY", help="cid:N, cid:host:privileged, uid:N, net:IP, guest or key:NAME"),
    ],
    request: Annotated[
        list[str],
        typer.Argument(metavar="REQUEST", help="login, connect|listen ADDRESS, read|write PATH or mode NAME"),
    ],
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
    max_connections_per_peer: PerPeer = None,
    max_rate: MaxRate = None,
    max_bandwidth: MaxBandwidth = None,
) -> int:
    """Say whether an agent with these flags and this config file would let somebody do something, and by which rule.

    Such as vsockfwd policy check key:web connect tcp:db.example:5432. A name is looked up here, and each address that
    it comes to is decided by itself. Exit code 0: it would, 77: it would not.
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
    )
    keys, decided = rights.decided(rights.table())
    who = read_identity(identity)
    decisions = [_admit(decided, keys, who)]
    allowed = decisions[0].allowed
    if allowed and request != ["login"]:
        asked = _asked(invocation, decided, who, request)
        allowed = any(decision.allowed for decision in asked)
        decisions += asked
    _show(invocation, allowed, who, decided, decisions)
    return 0 if allowed else NotAllowed.exit_code


def read_identity(text: str) -> Identity:
    """Somebody, as rules name them. Raises UsageError."""
    try:
        kind, _, rest = Named.read(text).value.partition(":")
    except VsockfwdError as error:
        raise UsageError(f"IDENTITY {error.message}") from None
    match kind:
        case "cid":
            return VsockPeer(int(rest.removesuffix(PRIVILEGED)), 1 if rest.endswith(PRIVILEGED) else UNPRIVILEGED)
        case "uid":
            return UnixPeer(int(rest), int(rest), 0)
        case "net":
            return NetworkPeer(rest.partition("/")[0], UNPRIVILEGED)
        case "guest":
            return GuestPeer(rest.encode("utf-8", "surrogateescape"))
        case "key" if rest != "*":
            return KeyPeer(rest, OwnPeer("anywhere"))
        case _:
            raise UsageError(f"IDENTITY {printable(text)}: one is asked about", hint="such as key:web")


def _admit(decided: Policy, keys: Iterable[Key], who: Identity) -> Decision:
    if isinstance(who, KeyPeer) and who.name not in {key.name for key in keys}:
        return Decision(False, f"no key is called {who.name}", "--auth-keys, or keys of [serve], names files", "keys")
    return decided.admit(who)


def _asked(invocation: Invocation, decided: Policy, who: Identity, request: list[str]) -> list[Decision]:
    match request:
        case ["mode", name]:
            return [decided.permit_mode(who, name)]
        case [("read" | "write") as access, path]:
            return [decided.permit(who, Resource(Access(access), path))]
        case ["listen", text]:
            return [decided.permit(who, Resource(Access.LISTEN, parse(text).bare()))]
        case ["connect", text]:
            address = parse(text)
            first = decided.permit(who, Resource(Access.CONNECT, address.bare()))
            if not first.allowed:
                return [first]
            found = _looked_up(invocation, address)
            return [decided.permit(who, Resource(Access.CONNECT, place, asked=address.bare())) for place in found] or [
                first
            ]
        case _:
            raise UsageError(
                f"no request is called {printable(' '.join(request))!r}",
                hint="login, connect ADDRESS, listen ADDRESS, read PATH, write PATH or mode NAME",
            )


def _looked_up(invocation: Invocation, address: Address) -> list[str]:
    """The addresses that a name in it comes to; none where there is no name."""
    if not isinstance(address, TcpAddress | UdpAddress) or address.host in ("", "*") or ip_of(address.host) is not None:
        return []
    wanted = TcpAddress(address.host, address.port)
    found: list[Address] = []

    async def main(engine: Engine) -> None:
        try:
            found.extend(await engine.network.resolve(wanted))
        except NameNotResolved as error:
            hint = "what it comes to decides; --allow-connect with a network needs no name"
            raise NameNotResolved(error.message, hint=hint) from None

    invocation.run(main)
    return [place.bare().replace("tcp:", f"{address.scheme}:", 1) for place in found]


def _show(invocation: Invocation, allowed: bool, who: Identity, decided: Policy, decisions: list[Decision]) -> None:
    limits = decided.limits_of(who)
    if invocation.json:
        invocation.answer(
            "policy",
            allowed=allowed,
            decisions=[
                {"allowed": one.allowed, "rule": one.rule, "reason": one.reason, "hint": one.hint} for one in decisions
            ],
            root=decided.root_of(who),
            max_connections=limits.connections,
            max_rate=limits.rate,
            max_bandwidth=limits.bandwidth,
        )
        return
    for one in decisions:
        print(f"{'yes' if one.allowed else 'no'}: {one.reason} [{one.rule}]" + (f" – {one.hint}" if one.hint else ""))
    if allowed and limits.connections is not None:
        print(f"at most {limits.connections} streams at once")
    if allowed and limits.rate is not None:
        print(f"at most {limits.rate} new streams a second")
    if allowed and limits.bandwidth is not None:
        print(f"at most {limits.bandwidth} bytes a second in each direction")
