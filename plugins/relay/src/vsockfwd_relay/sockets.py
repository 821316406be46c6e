"""The types that are sockets: what their parameters mean, how they are dialled and listened on, retries.

Every socket but a bound TCP client is opened through the engine's network, so what it knows of errors, time-outs,
left-over socket files and hybrid sockets holds here too. socat's meanings hold where they differ from those of the
core's own addresses: a listener without `bind` is on every interface, and TCP-LISTEN speaks IPv4.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import trio

from vsockfwd.plugin import (
    AbstractAddress,
    Address,
    Features,
    HybridAddress,
    Listener,
    NameNotResolved,
    NetworkPeer,
    SocketStream,
    Stream,
    TcpAddress,
    TimedOut,
    TransportMissing,
    UnixAddress,
    UsageError,
    VsockAddress,
    VsockfwdError,
    from_oserror,
    parse_stream,
    printable,
)
from vsockfwd_relay.address_type import Listen, Open, Options, Situation, Specification

CONNECT_TIMEOUT = 10.0
INTERVAL = 1.0

T = TypeVar("T")

# --- parameters ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TcpPlace:
    """A TCP address before its name is looked up, and where to bind a client; '' and 0 are any."""

    address: TcpAddress
    family: socket.AddressFamily
    source: tuple[str, int] | None = None

    @property
    def port(self) -> int:
        return self.address.port


def tcp_client(family: socket.AddressFamily) -> Callable[[str, str, Options], TcpPlace]:
    """The reader of `HOST:PORT`; family AF_UNSPEC is both."""

    def read(host: str, port: str, options: Options) -> TcpPlace:
        if not host:
            raise UsageError("the host is missing")
        source = _host_port(options["bind"]) if "bind" in options else None
        address = TcpAddress(_host(host), _port(port), options=_kept(options, "connect-timeout"))
        return TcpPlace(address, family, source)

    return read


def tcp_server(family: socket.AddressFamily) -> Callable[[str, Options], TcpPlace]:
    """The reader of `PORT`, on every interface unless `bind` says otherwise."""

    def read(port: str, options: Options) -> TcpPlace:
        host, bound = _host_port(options.get("bind", ""))
        if not host:
            host = "0.0.0.0" if family == socket.AF_INET else "::" if options.get("ipv6only") else "*"
        return TcpPlace(TcpAddress(host, bound or _port(port), options=_kept(options, "backlog")), family)

    return read


def unix(path: str, options: Options) -> Address:
    """A UNIX socket's path."""
    return _with(UnixAddress(_path(path)), options)


def abstract(name: str, options: Options) -> Address:
    """A name in the abstract namespace, written without its NUL."""
    return _with(AbstractAddress(_path(name)), options)


def hybrid(path: str, port: str, options: Options) -> Address:
    """A VMM's vsock socket and a port, in the guest when dialling, of the host when listening."""
    return _with(HybridAddress(_path(path), _vsock("2", port).port), options)


def vsock_client(cid: str, port: str, options: Options) -> Address:
    """`CID:PORT`."""
    return _with(_vsock(cid, port), options)


def vsock_server(port: str, options: Options) -> Address:
    """`PORT`, on every CID of this machine unless `bind` names one."""
    return _with(_vsock(options.get("bind", "any"), port), options)


def _vsock(cid: str, port: str) -> VsockAddress:
    address = parse_stream(f"vsock:{cid}:{port}")
    assert isinstance(address, VsockAddress)  # the scheme says so
    return address


def _path(path: str) -> bytes:
    raw = os.fsencode(path)
    # The core's grammar knows what fits into a socket's address; there a path is quoted.
    parse_stream("unix:" + re.sub(rb"[^A-Za-z0-9/._-]", lambda byte: b"%%%02X" % byte[0][0], raw).decode())
    return raw


def _host(host: str) -> str:
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def _port(text: str) -> int:
    """A number or a service's name (services(5))."""
    if text.isascii() and text.isdigit() and int(text) <= 0xFFFF:
        return int(text)
    if text and not text[0].isdigit():
        with suppress(OSError):
            return socket.getservbyname(text, "tcp")
    raise UsageError(f"{printable(text)!r} is no port: a number up to 65535 or a service's name" if text else "no port")


def _host_port(text: str) -> tuple[str, int]:
    """`[HOST][:PORT]`."""
    match = re.fullmatch(r"(\[[^]]*\]|[^:]*)(?::([^:]+))?", text)
    if match is None:
        raise UsageError(f"bind={printable(text)} is no [HOST][:PORT]", hint="an IPv6 address stands in brackets")
    return _host(match[1]), _port(match[2]) if match[2] else 0


def _kept(options: Options, *names: str) -> tuple[tuple[str, Any], ...]:
    return tuple((name, options[name]) for name in sorted(names) if name in options)


def _with(address: Address, options: Options) -> Address:
    return dataclasses.replace(address, options=_kept(options, *address.known_options))


# --- opening ------------------------------------------------------------------------------------------------------


def dial(connect: Callable[[Situation, Any], Awaitable[Stream]]) -> Open:
    """The opener of a type that connects, with its retries."""

    @asynccontextmanager
    async def opened(spec: Specification, situation: Situation) -> AsyncIterator[Stream]:
        stream = await _persist(spec, situation, lambda: connect(situation, spec.subject))
        try:
            yield stream
        finally:
            stream.close()

    return opened


async def connect(situation: Situation, address: Address) -> Stream:
    """Connect through the engine's network."""
    return await situation.engine.network.connect(address)


async def connect_tcp(situation: Situation, place: TcpPlace) -> Stream:
    """Connect to the first address of the name's that answers, of the family and from the source that are asked for."""
    if place.family == socket.AF_UNSPEC and place.source is None:
        return await connect(situation, place.address)
    failure: VsockfwdError | None = None
    for family, host in await _resolve(place):
        address = dataclasses.replace(place.address, host=host)
        try:
            if place.source is None:
                return await connect(situation, address)
            return await _connect_from(place.source, family, address)
        except VsockfwdError as error:
            failure = failure or error
    raise failure or NameNotResolved(f"the name {place.address.host} has no address of that family")


async def _resolve(place: TcpPlace) -> list[tuple[socket.AddressFamily, str]]:
    host, port = place.address.host, place.address.port
    try:
        found = await trio.socket.getaddrinfo(host, port, place.family, socket.SOCK_STREAM)
    except OSError as error:  # gaierror among them
        why = (error.strerror or str(error)).lower()
        raise NameNotResolved(f"the name {printable(host)} does not resolve: {why}") from None
    return [(family, str(sockaddr[0])) for family, _, _, _, sockaddr in found]


async def _connect_from(source: tuple[str, int], family: socket.AddressFamily, address: TcpAddress) -> Stream:
    what = f"connect to {address.bare()} from {source[0] or '*'}:{source[1]}"
    sock = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with trio.fail_after(address.option("connect-timeout", CONNECT_TIMEOUT)):
            await sock.bind((source[0] or ("::" if family == socket.AF_INET6 else "0.0.0.0"), source[1]))
            await sock.connect((address.host, address.port))
    except BaseException as error:
        sock.close()
        if isinstance(error, trio.TooSlowError):
            raise TimedOut(f"{what}: timed out") from None
        if isinstance(error, OSError):
            raise from_oserror(error, what) from None
        raise
    raw = socket.socket(family, socket.SOCK_STREAM, fileno=sock.detach())
    raw.setblocking(False)
    peer = NetworkPeer(address.host, address.port)
    return SocketStream(raw, Features(half_close=True, reset=True), peer, address.bare())


def listen_on(spread: Callable[[TcpPlace], Awaitable[Address]] | None = None) -> Listen:
    """The opener of a type that listens, with its retries; `spread` looks a name up first."""

    async def listen(spec: Specification, situation: Situation) -> Sequence[Listener]:
        async def attempt() -> Sequence[Listener]:
            address = await spread(spec.subject) if spread else spec.subject
            if spec.option("unlink-early"):
                _unlink(address)
            return await situation.engine.network.listen(address)

        return await _persist(spec, situation, attempt)

    return listen


async def local_place(place: TcpPlace) -> Address:
    """The address to listen on: a name stands for its first address of the family."""
    host = place.address.host
    if host in ("*", "0.0.0.0", "::"):
        return place.address
    return dataclasses.replace(place.address, host=(await _resolve(place))[0][1])


def _unlink(address: Address) -> None:
    path = address.listening_path if isinstance(address, HybridAddress) else getattr(address, "path", b"")
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass  # nothing to remove is what was asked for
    except OSError as error:
        raise from_oserror(error, f"remove {printable(path)}") from None


async def _persist(spec: Specification, situation: Situation, attempt: Callable[[], Awaitable[T]]) -> T:
    """Try as often as `retry` and `forever` say, `interval` seconds apart."""
    left = math.inf if spec.option("forever") else spec.option("retry", 0)
    interval = spec.option("interval", INTERVAL)
    while True:
        try:
            return await attempt()
        except (UsageError, TransportMissing):
            raise  # no later attempt would do better
        except VsockfwdError as error:
            if not left:
                raise
            situation.note(1, f"{error.line()}; trying again in {interval:g} s")
        left -= 1
        await trio.sleep(interval)
