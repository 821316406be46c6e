"""What an operator may write about an agent: who gets what, and where from. Values; policy.py decides by them.

    [serve]
    listen = ["vsock:any:876"]
    keys = ["/etc/vsockfwd/keys"]
    allow-connect = ["tcp:localhost:80", "tcp:10.0.0.0/8:1-1023", "unix:/run/app/*.sock"]

    [[serve.allow]]
    who = ["key:web"]
    connect = ["tcp:localhost:80"]
    read-only = true

The thing to understand first: [serve] holds for everybody, and an entry of [[serve.allow]] lets in those whom it
names and narrows what they may. Where nothing is written about a thing, whoever was let in may do what the agent's user
may.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Literal

import msgspec

from vsockfwd.address import (
    AbstractAddress,
    Address,
    HybridAddress,
    TcpAddress,
    UdpAddress,
    UnixAddress,
    UnixDatagramAddress,
    UnixPacketAddress,
    VsockAddress,
    VsockPacketAddress,
    parse_stream,
    parse_target,
)
from vsockfwd.amount import bytes_in
from vsockfwd.errors import AddressError, UsageError, printable
from vsockfwd.identity import CID_ANY, CID_HOST, CID_LOCAL
from vsockfwd.rule import Admitted, Written

SLOWEST = 1 << 10
"""Bytes a second that a peer is given at least: with fewer, a frame would take longer than anybody waits."""

_INTERNET = ("tcp", "udp")
_MACHINES = ("vsock", "vsock-seqpacket")
_PATHS = ("unix", "unix-dgram", "unix-seqpacket", "abstract", "hybrid")
_CIDS = {"host": CID_HOST, "local": CID_LOCAL, "*": None}

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

LOOPBACKS: tuple[IpNetwork, ...] = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))

_LABELS = r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})"


def ip_of(host: str) -> IpAddress | None:
    """A literal IP address, an IPv4 one out of its IPv6 disguise; None for a name."""
    try:
        found = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def is_near(address: IpAddress) -> bool:
    """Whether an address leads back to the machine itself, to its link, or to nobody in particular: what a name of
    the outside must not stand for."""
    return (
        address.is_loopback
        or address.is_link_local
        or address.is_unspecified
        or address.is_multicast
        or (address.version == 4 and address in _THIS_NETWORK)
        or (address.version == 4 and int(address) == 0xFFFF_FFFF)
    )


_THIS_NETWORK = ipaddress.ip_network("0.0.0.0/8")


class Place(Written):
    """Where may be connected to, or listened on: an address in which a part may stand for many.

    `tcp:HOST:PORTS`, udp likewise: HOST is a name, `*.example.org`, an address, a network (`10.0.0.0/8`, in brackets
    for IPv6), `localhost` for loopback, or `*`; PORTS a port, `8000-8999` or `*`. `vsock:CID:PORTS`. `unix:PATH` and
    its kin, `*` for a part of one name in it, `**` for any; `hybrid:PATH:PORTS`. `*` is everything.
    """

    value: str
    __slots__ = ("_fits",)

    def __init__(self, value: str) -> None:
        super().__init__(value)
        self._fits = _reader(value)

    @classmethod
    def read(cls, text: str) -> Place:
        return cls(text)

    def fits(self, address: Address, asked: Address | None = None, *, listening: bool = False) -> bool:
        """Whether an address is meant. `asked` is what it was before its name was looked up, if it had one.

        A name alone, not looked up yet, fits what it may turn out to fit.
        """
        return bool(self._fits(address, asked, listening))


def _reader(text: str) -> Any:
    """The test that a place's text stands for: (address, asked, listening) → bool. Raises AddressError."""
    if text == "*":
        return lambda address, asked, listening: True
    scheme, colon, rest = text.partition(":")
    start = len(scheme) + 1
    if not colon or scheme not in (*_INTERNET, *_MACHINES, *_PATHS):
        known = ", ".join((*_INTERNET, *_MACHINES, *_PATHS))
        raise AddressError(
            f"no scheme is called {scheme!r}" if colon else "a scheme and a colon come first",
            text=text or " ",
            hint=f"* is everything; the schemes are {known}",
        )
    if scheme in _PATHS:
        return _path_test(text, scheme, rest, start)
    head, _, tail = rest.rpartition(":")
    ports = _ports(text, tail, len(text) - len(tail))
    if scheme in _MACHINES:
        return _machine_test(text, scheme, head, start, ports)
    return _internet_test(text, scheme, head, start, ports)


def _ports(text: str, part: str, at: int) -> tuple[int, int]:
    """Both ends of a range of ports."""
    if part == "*":
        return 0, 0xFFFF_FFFF
    match = re.fullmatch(r"([0-9]{1,10})(?:-([0-9]{1,10}))?", part)
    if not match:
        raise AddressError("ports are a number, a range such as 8000-8999, or *", text=text, position=at)
    first, last = int(match[1]), int(match[2] or match[1])
    limit = 65535 if text.startswith(_INTERNET) else 0xFFFF_FFFE
    if not first <= last <= limit:
        raise AddressError(f"the range goes upwards, to {limit} at most", text=text, position=at)
    return first, last


def _machine_test(text: str, scheme: str, part: str, at: int, ports: tuple[int, int]) -> Any:
    if part in _CIDS:
        cid = _CIDS[part]
    elif re.fullmatch(r"[0-9]{1,10}", part) and int(part) <= CID_ANY:
        cid = int(part)
    else:
        raise AddressError("a CID is a number, host, local, or * for all", text=text, position=at)

    def test(address: Address, asked: Address | None, listening: bool) -> bool:
        if not isinstance(address, VsockAddress | VsockPacketAddress) or address.scheme != scheme:
            return False
        return cid in (None, address.cid) and ports[0] <= address.port <= ports[1]

    return test


def _path_test(text: str, scheme: str, rest: str, at: int) -> Any:
    ports = (0, 0xFFFF_FFFF)
    if scheme == "hybrid":
        rest, _, tail = rest.rpartition(":")
        ports = _ports(text, tail, len(text) - len(tail))
    if not rest:
        raise AddressError("the path is missing", text=text, position=at)
    if scheme != "abstract" and not rest.startswith(("/", "*")):
        raise AddressError("a path begins with /", text=text, position=at)
    pattern = _glob(rest)

    def test(address: Address, asked: Address | None, listening: bool) -> bool:
        if address.scheme != scheme:
            return False
        match address:
            case AbstractAddress(name=name):
                return pattern.fullmatch(name) is not None
            case UnixAddress(path=path) | UnixDatagramAddress(path=path) | UnixPacketAddress(path=path):
                return _straight(path) and pattern.fullmatch(path) is not None
            case HybridAddress(path=path, port=port):
                return _straight(path) and pattern.fullmatch(path) is not None and ports[0] <= port <= ports[1]
        return False

    return test


def _straight(path: bytes) -> bool:
    """Whether a path is absolute and goes nowhere but down: what `..` means, a symlink decides, no pattern knows."""
    return path.startswith(b"/") and not {b"..", b".", b""} & set(path.split(b"/")[1:])


def _glob(text: str) -> re.Pattern[bytes]:
    """`*`: any part of one name of a path; `**`: anything."""
    parts = re.split(r"(\*\*?)", text)
    means = {"*": b"[^/]*", "**": b".*"}
    raw = [means.get(part) or re.escape(part.encode("utf-8", "surrogateescape")) for part in parts]
    return re.compile(b"".join(raw), re.DOTALL)


def _internet_test(text: str, scheme: str, host: str, at: int, ports: tuple[int, int]) -> Any:
    networks, name = _hosts(text, host, at)

    def test(address: Address, asked: Address | None, listening: bool) -> bool:
        if not isinstance(address, TcpAddress | UdpAddress) or address.scheme != scheme:
            return False
        if not ports[0] <= address.port <= ports[1]:
            return False
        if address.host == "*":
            return name == "*"
        # What loopback is called is never looked up: the engine may dial it at once.
        ip = ip_of("127.0.0.1" if address.host in ("", "localhost") else address.host)
        if ip is None:
            if listening:  # looked up when it is bound, and nobody binds what is not this machine's
                return _is_called(name, address.host)
            return bool(networks) or _is_called(name, address.host)  # not looked up yet
        if any(ip.version == network.version and ip in network for network in networks):
            return True
        if listening:
            return name == "*"
        called = asked.host if isinstance(asked, TcpAddress | UdpAddress) else address.host
        return _is_called(name, called) and not is_near(ip)

    return test


def _hosts(text: str, host: str, at: int) -> tuple[tuple[IpNetwork, ...], str]:
    """What a host's part means: networks, or a name with its star in front. Raises AddressError."""
    if host in ("", "localhost"):
        return LOOPBACKS, ""
    if host == "*" or (re.fullmatch(rf"(\*\.)?{_LABELS}", host) and not re.fullmatch(r"[0-9.]+", host)):
        return (), host.lower().rstrip(".")
    try:
        return (ipaddress.ip_network(host[1:-1] if re.fullmatch(r"\[.*\]", host) else host),), ""
    except ValueError as error:
        raise AddressError(
            f"{host!r} is no host: {error}",
            text=text,
            position=at,
            hint="a name, *.NAME, an address, a network such as 10.0.0.0/8 or [fd00::/8], localhost, or *",
        ) from None


def _is_called(pattern: str, name: str) -> bool:
    name = name.lower().rstrip(".")
    if pattern.startswith("*."):
        return name.endswith(pattern[1:]) and len(name) > len(pattern) - 1
    return bool(pattern) and pattern in ("*", name)


class Named(Admitted):
    """Who is meant, or `key:NAME` (`key:*`: who has any)."""

    proven = True


class Listened(Written):
    """A stream address that an agent listens on."""

    value: Address

    @classmethod
    def read(cls, text: str) -> Listened:
        return cls(parse_stream(text))


class Called(Written):
    """Where an agent calls its client."""

    value: Address

    @classmethod
    def read(cls, text: str) -> Called:
        return cls(parse_target(text))


class ByteRate(Written):
    """Bytes a second, such as `500k` or `10M`."""

    value: int

    @classmethod
    def read(cls, text: str) -> ByteRate:
        rate = bytes_in(text)
        if not SLOWEST <= rate < 1 << 50:
            raise UsageError(f"{printable(text)}: is no rate", hint="bytes a second such as 500k or 10M, at least 1k")
        return cls(rate)


ModeName = Annotated[str, msgspec.Meta(pattern="^[a-z0-9][a-z0-9_.-]{0,63}$")]
Most = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Directory = Annotated[str, msgspec.Meta(pattern="^/")]
Confine = Literal["auto", "yes", "no"]


class Allow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """One entry of [[serve.allow]]: whom it lets in, and what for. What is left out is as [serve] has it.

    `max_connections`: streams at once of each; `max_rate`: new ones a second of each; `max_bandwidth`: of each, in
    each direction.
    """

    who: Annotated[tuple[Named, ...], msgspec.Meta(min_length=1)]
    connect: tuple[Place, ...] | None = None
    listen: tuple[Place, ...] | None = None
    modes: tuple[ModeName, ...] | None = None
    root: Directory | None = None
    read_only: bool = False
    max_connections: Most | None = None
    max_rate: Most | None = None
    max_bandwidth: ByteRate | None = None


class Serve(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """The table [serve]: what the flags of `vsockfwd serve` say as well, and the entries of [[serve.allow]]."""

    listen: tuple[Listened, ...] = ()
    connect: tuple[Called, ...] = ()
    keys: tuple[str, ...] = ()
    allow_cid: tuple[str | int, ...] = ()
    allow_uid: tuple[Annotated[int, msgspec.Meta(ge=0)], ...] = ()
    allow_guest: bool = False
    allow_connect: tuple[Place, ...] | None = None
    allow_listen: tuple[Place, ...] | None = None
    allow_mode: tuple[ModeName, ...] | None = None
    root: Directory | None = None
    read_only: bool = False
    measure: bool = True
    max_connections: Most | None = None
    max_connections_per_peer: Most | None = None
    max_rate: Most | None = None
    max_bandwidth: ByteRate | None = None
    user: str | None = None
    confine: Confine = "auto"
    allow: tuple[Allow, ...] = ()


def is_below(path: str, root: str) -> bool:
    """Whether a directory is another or in it, as both are written."""
    parts, above = ([part for part in text.split("/") if part] for text in (path, root))
    return ".." not in parts and parts[: len(above)] == above
