"""What a forward rule is: a kind, its typed table, and who may use it. Values only; engine/rules.py runs them.

A rule comes from a `[[forward]]` table of the config file, from `vsockfwd add` or from `forward -L` and its kin; all
become the same struct, so a rule can do the same wherever it was written. Kinds belong to modes (contract.Mode.rules).

The thing to understand first: two rules are the same when their structs are equal. A reload lives by that.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import msgspec

from vsockfwd.address import Address, parse, parse_stream
from vsockfwd.errors import AddressError, VsockfwdError, printable
from vsockfwd.identity import (
    CID_HOST,
    CID_LOCAL,
    CertificatePeer,
    GuestPeer,
    Identity,
    KeyPeer,
    NetworkPeer,
    UnixPeer,
    VsockPeer,
)
from vsockfwd.key import NAME

MOST_CONNECTIONS = 16_000
"""Connections at once, in all: below the descriptors that a process usually may have, two for each."""

WhenDown = Literal["accept", "refuse"]
"""What becomes of a rule's own listener while its agent is away."""

HERE = "here"
"""The side of a rule that listens on this machine; one that listens elsewhere names its target."""

Seconds = Annotated[float, msgspec.Meta(ge=0)]
"""0 means for ever."""


class Written:
    """Something that a table writes as text and a rule uses parsed. Equal when the text means the same."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    @classmethod
    def read(cls, text: str) -> Self:
        """Read a table's text. Raises VsockfwdError."""
        raise NotImplementedError

    def __str__(self) -> str:
        return str(self.value)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))


class StreamEnd(Written):
    """A stream address."""

    value: Address

    @classmethod
    def read(cls, text: str) -> Self:
        address = parse_stream(text)
        if address.scheme == "stdio":
            raise AddressError(
                "stdio can be opened once, a forward serves many", text=text, hint="vsockfwd relay joins two"
            )
        return cls(address)


class AnyEnd(Written):
    """An address of any scheme."""

    value: Address

    @classmethod
    def read(cls, text: str) -> Self:
        return cls(parse(text))


class Admitted(Written):
    """Who is meant: `cid:N` (`cid:host:privileged` for its privileged processes), `uid:N`, `net:NETWORK`, `guest`
    (who is behind a hybrid socket; `guest:PATH`, behind that one) or `cert:NAME` (`cert:*.NAME`), who has shown a
    certificate for that name."""

    value: str
    proven: ClassVar[bool] = False
    """Whether `key:NAME` may be written too: only an agent asks for keys."""

    @classmethod
    def read(cls, text: str) -> Self:
        kind, _, rest = text.partition(":")
        if kind == "cid" and rest in _CIDS:
            return cls(f"cid:{_CIDS[rest]}")
        if text in (f"cid:host{PRIVILEGED}", f"cid:{CID_HOST}{PRIVILEGED}"):
            return cls(f"cid:{CID_HOST}{PRIVILEGED}")
        if kind in ("cid", "uid") and rest.isascii() and rest.isdigit():
            return cls(f"{kind}:{int(rest)}")
        if kind == "net":
            try:
                return cls(f"net:{ipaddress.ip_network(rest)}")
            except ValueError as error:
                raise VsockfwdError(f"{text!r}: {error}") from None
        if kind == "guest" and (text == kind or rest.startswith("/")):
            return cls(text)
        if kind == "cert" and re.fullmatch(r"(\*\.)?[A-Za-z0-9_.:@/-]{1,253}", rest):
            return cls(f"cert:{rest.lower()}")
        if cls.proven and kind == "key" and (rest == "*" or NAME.fullmatch(rest)):
            return cls(text)
        known = f"cid:N, uid:N, net:10.0.0.0/8, guest, cert:NAME{', key:NAME' * cls.proven}"
        raise VsockfwdError(f"{printable(text)!r} names nobody: {known} do")

    def admits(self, peer: Identity) -> bool:
        """Whether a peer is meant."""
        kind, _, rest = self.value.partition(":")
        match peer:
            case VsockPeer(cid=cid):
                number, _, privileged = rest.partition(":")
                return kind == "cid" and int(number) == cid and (peer.privileged or not privileged)
            case UnixPeer(uid=uid):
                return kind == "uid" and int(rest) == uid
            case NetworkPeer(host=host):
                return kind == "net" and ipaddress.ip_address(host.partition("%")[0]) in ipaddress.ip_network(rest)
            case GuestPeer(socket=socket):
                return kind == "guest" and (not rest or os.fsencode(rest) == socket)
            case CertificatePeer(names=names):
                return kind == "cert" and any(_is_for(name.lower(), rest) for name in names)
            case KeyPeer(name=name):
                return kind == "key" and rest in ("*", name)
            case _:
                return False


def _is_for(name: str, wanted: str) -> bool:
    return name.endswith(wanted[1:]) and name != wanted[1:] if wanted.startswith("*.") else name == wanted


PRIVILEGED = ":privileged"

_CIDS = {"host": CID_HOST, "local": CID_LOCAL}


def read_field(kind: type[Any], value: object) -> object:
    """msgspec's hook for the fields that are Written. Raises ValueError, to which msgspec adds the key's path."""
    if not issubclass(kind, Written):
        raise NotImplementedError(kind)
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {type(value).__name__}")
    try:
        return kind.read(value)
    except VsockfwdError as error:
        raise ValueError(error.line()) from None


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """What every rule may say; kinds add their own keys. One that goes through an agent has a `target`."""

    name: Annotated[str, msgspec.Meta(max_length=100)] = ""

    def title(self) -> str:
        """What the rule is called where nobody named it."""
        raise NotImplementedError

    def listens(self) -> tuple[str, Address] | None:
        """Where the rule listens: HERE or a target, and the address."""
        return None


class ForwardRule(Rule, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """A rule that carries connections: how many, whose, and how long they may be silent. Times are seconds."""

    max_connections: Annotated[int, msgspec.Meta(ge=1, le=MOST_CONNECTIONS)] = MOST_CONNECTIONS
    max_connections_per_peer: Annotated[int, msgspec.Meta(ge=0)] = 0
    idle_timeout: Seconds = 0.0
    half_open_timeout: Seconds = 0.0
    allow: tuple[Admitted, ...] = ()


class AgentRule(ForwardRule, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """A rule that goes through an agent."""

    target: str


@dataclass(frozen=True, slots=True)
class RuleKind:
    """A kind of rule: its name in the config file, its table, and what runs it until cancelled.

    `run(work, rule)` is given an engine.rules.Work; it raises a VsockfwdError where the rule cannot go on for now.
    """

    name: str
    schema: type[Rule]
    run: Callable[[Any, Any], Awaitable[None]]


def clash(one: tuple[str, Address] | None, other: tuple[str, Address] | None) -> bool:
    """Whether two rules want the same port of the same side."""
    if one is None or other is None or one[0] != other[0]:
        return False
    a, b = one[1], other[1]
    if a.scheme != b.scheme:
        return False
    if not hasattr(a, "port") or not hasattr(b, "port"):
        return a.bare() == b.bare()
    if a.port != b.port or not a.port:
        return False
    if a.scheme == "hybrid":
        return a.bare() == b.bare()
    places = {_place(a), _place(b)}
    return len(places) == 1 or "any" in places


_PLACES = {"*": "any", "0.0.0.0": "any", "::": "any", "4294967295": "any", "": "127.0.0.1", "localhost": "127.0.0.1"}
"""Hosts and CIDs of one meaning."""


def _place(address: Any) -> str:
    host = str(getattr(address, "host", getattr(address, "cid", "")))
    return _PLACES.get(host, host)
