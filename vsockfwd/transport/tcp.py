"""TCP over IPv4 and IPv6. Names with several addresses are dialled as trio does (happy eyeballs, RFC 8305).

The shortest address is the safe one: without a host it is loopback, both families of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import ipaddress
import itertools
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any

import trio

from vsockfwd.address import TcpAddress
from vsockfwd.errors import NameNotResolved, VsockfwdError
from vsockfwd.identity import NetworkPeer
from vsockfwd.transport.base import (
    BACKLOG,
    CONNECT_TIMEOUT,
    Dial,
    Features,
    SocketListener,
    SocketStream,
    Stream,
    Transport,
    connect_failed,
    connect_socket,
    first_to_answer,
    listen_failed,
    reset_at_close,
)

FEATURES = Features(half_close=True, reset=True, splice_from=True)
KEEPALIVE = 300
"""Seconds of silence after which a peer is asked for a sign of life; after six more questions, a minute apart, it is
dead. A forward that runs for a year would else collect those who left without a word. 0 means never."""

LOOPBACK = ("127.0.0.1", "::1")
LOCALHOST = frozenset({"", "localhost"})
"""Hosts that are loopback without a look-up: RFC 6761, 6.3."""


def network_peer(sockaddr: Any) -> NetworkPeer:
    """The identity in an inet socket address; an IPv4 peer of a dual-stack socket is shown as IPv4."""
    return NetworkPeer(sockaddr[0].removeprefix("::ffff:"), sockaddr[1])


def numeric(host: str) -> tuple[socket.AddressFamily, str] | None:
    """The family of a literal IP address, or None for a name."""
    try:
        literal = ipaddress.ip_address(host)
    except ValueError:
        return None
    return (socket.AF_INET6 if literal.version == 6 else socket.AF_INET), host


def _prepare(sock: socket.socket, address: TcpAddress) -> None:
    """Set what connections are to have; on a listener they inherit it (tcp(7)), which saves system calls for each.

    TCP_NODELAY, since a relay must not add delays of its own.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if keepalive := address.option("keepalive", KEEPALIVE):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, keepalive)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 60)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 6)
    if (linger := address.option("linger", None)) is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, linger))


class TcpListener(SocketListener):
    """A TCP listener."""

    def stream_of(self, sock: socket.socket, peer: Any) -> Stream:
        who = network_peer(peer)
        return SocketStream(sock, FEATURES, who, f"tcp:{who}")


def _was_reset(buffer: memoryview) -> int:
    raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))


class TcpTransport(Transport[TcpAddress]):
    """`tcp:`"""

    def connect_now(self, address: TcpAddress) -> Stream | Dial | None:
        """Of loopback and literal addresses. What is refused over IPv4 may be there over IPv6: `connect` finds out."""
        found = (socket.AF_INET, LOOPBACK[0]) if address.host in LOCALHOST else numeric(address.host)
        if found is None or address.option("connect-timeout") is not None:
            return None
        family, host = found
        try:
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError:
            return None
        try:
            _prepare(sock, address)
            # The kernel answers for loopback before the first call is over, and says so at the second.
            number = sock.connect_ex((host, address.port)) and sock.connect_ex((host, address.port))
        except OSError:
            sock.close()
            return None

        def made(number: int) -> Stream:
            stream = SocketStream(sock, FEATURES, NetworkPeer(host, address.port), address.bare())
            if number == errno.ECONNRESET:
                # It was there, and is gone again: that is no reason to dial anew, and it is told once only.
                stream.try_receive_into = _was_reset  # type: ignore[method-assign]
            elif number not in (0, errno.EISCONN):
                raise OSError(number, "connect failed")
            return stream

        if number in (errno.EALREADY, errno.EINPROGRESS):
            return Dial(sock, made)
        try:
            return made(number)
        except OSError:
            sock.close()
            return None

    async def connect(self, address: TcpAddress, *, privileged: bool = False) -> Stream:
        if address.host == "*":
            raise self.cannot("dialled at every host", address)
        try:
            if address.host in LOCALHOST:
                return await self._connect_loopback(address)
            if found := numeric(address.host):
                return await self._connect_literal(*found, address)
            return await self._connect_name(address)
        except socket.gaierror as error:  # a literal with a scope that is no interface here
            raise name_failed(error, address.host) from None
        except OSError as error:
            raise connect_failed(error, address) from None

    async def _connect_loopback(self, address: TcpAddress) -> Stream:
        try:
            return await self._connect_literal(socket.AF_INET, LOOPBACK[0], address)
        except ConnectionRefusedError as refused:
            try:
                return await self._connect_literal(socket.AF_INET6, LOOPBACK[1], address)
            except OSError:
                raise refused from None

    async def _connect_literal(self, family: socket.AddressFamily, host: str, address: TcpAddress) -> Stream:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            _prepare(sock, address)
            await connect_socket(sock, (host, address.port), address)
        except BaseException:
            reset_at_close(sock)  # who was reached meanwhile must not take nothing at all for all there is
            sock.close()
            raise
        return SocketStream(sock, FEATURES, NetworkPeer(host, address.port), address.bare())

    async def _connect_name(self, address: TcpAddress) -> Stream:
        async def connect(place: TcpAddress) -> Stream:
            stream = await self._connect_literal(*_literal(place), place)
            stream.name = address.bare()
            return stream

        try:
            with trio.fail_after(address.option("connect-timeout", CONNECT_TIMEOUT)):
                return await first_to_answer(connect, await self.resolve(address))
        except trio.TooSlowError:
            raise OSError(errno.ETIMEDOUT, "timed out") from None

    async def resolve(self, address: TcpAddress) -> Sequence[TcpAddress]:
        if address.host in ("", "*") or numeric(address.host):
            return (address,)
        return [dataclasses.replace(address, host=host) for _, host in _in_turn(await _resolve(address))]

    async def listen(self, address: TcpAddress) -> Sequence[TcpListener]:
        try:
            if address.host == "*":
                return [_bind_any(address)]
            if not address.host:
                return _bind_loopback(address)
            if found := numeric(address.host):
                return [_bind(*found, address.port, address)]
            return _bind_all(await _resolve(address), address)
        except socket.gaierror as error:
            raise name_failed(error, address.host) from None
        except OSError as error:
            raise listen_failed(error, address, _listen_hint(error, address)) from None


def name_failed(error: socket.gaierror | UnicodeError, host: str) -> VsockfwdError:
    """A resolver's error as the error that a user reads; UnicodeError is how Python refuses a label over 63 bytes."""
    why = (
        "it has a part that is empty or too long" if isinstance(error, UnicodeError) else (error.strerror or str(error))
    )
    return NameNotResolved(f"the name {host} does not resolve: {why.lower()}")


def _in_turn(found: list[tuple[socket.AddressFamily, str]]) -> list[tuple[socket.AddressFamily, str]]:
    """The families by turns, in the resolver's order, so that a broken one costs one head start (RFC 8305, 4)."""
    first = [place for place in found if place[0] == found[0][0]]
    others = [place for place in found if place[0] != found[0][0]]
    return [place for pair in itertools.zip_longest(first, others) for place in pair if place is not None]


def _literal(address: TcpAddress) -> tuple[socket.AddressFamily, str]:
    found = numeric(address.host)
    assert found is not None  # a resolver's answer
    return found


async def _resolve(address: TcpAddress) -> list[tuple[socket.AddressFamily, str]]:
    try:
        found = await trio.socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise name_failed(error, address.host) from None
    return list(dict.fromkeys((family, str(sockaddr[0])) for family, _, _, _, sockaddr in found))


def _bind(
    family: socket.AddressFamily, host: str, port: int, address: TcpAddress, *, both_families: bool = False
) -> TcpListener:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both_families)
        _prepare(sock, address)
        sock.bind((host, port))
        sock.listen(address.option("backlog", BACKLOG))
    except BaseException:
        sock.close()
        raise
    shown = "*" if both_families or address.host == "*" else host
    return TcpListener(sock, TcpAddress(shown, sock.getsockname()[1], options=address.options))


def _bind_any(address: TcpAddress) -> TcpListener:
    try:
        return _bind(socket.AF_INET6, "::", address.port, address, both_families=True)
    except OSError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise
        return _bind(socket.AF_INET, "0.0.0.0", address.port, address)


def _bind_loopback(address: TcpAddress) -> list[TcpListener]:
    return _bind_all([(socket.AF_INET, LOOPBACK[0]), (socket.AF_INET6, LOOPBACK[1])], address)


def _bind_all(places: list[tuple[socket.AddressFamily, str]], address: TcpAddress) -> list[TcpListener]:
    """Bind the same port on every address; a family that this machine lacks is left out, unless it is the only one.

    With port 0 the kernel chooses for the first; a later one that finds it taken makes all start again.
    """
    attempts = 1 if address.port else 8
    while True:
        attempts -= 1
        listeners: list[TcpListener] = []
        try:
            for family, host in places:
                port = listeners[0].address.port if listeners else address.port  # type: ignore[attr-defined]
                try:
                    listeners.append(_bind(family, host, port, address))
                except OSError as error:
                    if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                        raise
            if not listeners:
                raise OSError(errno.EADDRNOTAVAIL, "no such address")
            return listeners
        except OSError as error:
            for listener in listeners:
                with contextlib.suppress(OSError):
                    listener.close()
            if error.errno != errno.EADDRINUSE or not attempts:
                raise


def _listen_hint(error: OSError, address: TcpAddress) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"another program listens there (ss -ltnp 'sport = :{address.port}' names it); port 0 picks a free one"
    if error.errno == errno.EACCES and 0 < address.port < 1024:
        return "ports below 1024 need root or CAP_NET_BIND_SERVICE"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address"
    return ""
