"""Datagram sockets: bound ones, connected ones, and many of them watched by one task.

The thing to understand first: an answer must leave by the address that was asked, or its asker throws it away. A
socket bound to one address does so by itself; one bound to every address is told of each datagram which it came to
(IP_PKTINFO, ip(7) and ipv6(7)), and says so again when it answers.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import ipaddress
import os
import select
import socket
import stat
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import trio

from vsockfwd.plugin import (
    Address,
    NameNotResolved,
    Poll,
    UdpAddress,
    UnixDatagramAddress,
    UnixPacketAddress,
    VsockfwdError,
    from_oserror,
    printable,
)
from vsockfwd_dgram.batch import Batch, python_name, raw_length, segments

Place = tuple[socket.AddressFamily, Any]
"""A family and a socket address of it."""

Way = bytes
"""Where a datagram came from, as a bound socket tells it, and enough to send an answer by."""

Answers = tuple[Any, Sequence[tuple[int, int, bytes]]]
"""A socket address, and the ancillary data that goes with what is sent to it."""

BUFFER = 1 << 20
"""Bytes that the kernel may keep for a socket. A datagram counts there with all of the memory that it sits in."""

PRIVATE = 0o600

# Names that Python's socket module lacks: linux/in.h, linux/in6.h, asm-generic/socket.h.
_IP_PKTINFO = 8
_SO_RCVBUFFORCE, _SO_SNDBUFFORCE = 33, 32
_SO_MEMINFO, _MEMINFO = 55, struct.Struct("9I")
_MREQ, _MREQ6 = struct.Struct("4s4si"), struct.Struct("16si")
_PKTINFO, _PKTINFO6 = struct.Struct("i4s4s"), struct.Struct("16si")

_LOOPBACK: list[Place] = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
_ANY: list[Place] = [(socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")]


async def places(address: Address) -> list[Place]:
    """What a datagram address stands for, best first, at least one. Raises NameNotResolved."""
    if isinstance(address, UnixDatagramAddress):
        return [(socket.AF_UNIX, address.path)]
    assert isinstance(address, UdpAddress)
    if address.host in ("", "*"):
        hosts = _ANY if address.host else _LOOPBACK
        return [(family, (host, address.port)) for family, host in hosts]
    try:
        found = await trio.socket.getaddrinfo(address.host, address.port, type=socket.SOCK_DGRAM)
    except socket.gaierror as error:
        why = (error.strerror or str(error)).lower()
        raise NameNotResolved(f"the name {address.host} does not resolve: {why}") from None
    except UnicodeError:  # the codec for names cuts at dots, and wants 1 to 63 characters between them
        raise NameNotResolved(f"the name {address.host} does not resolve: a part is empty or too long") from None
    return list(dict.fromkeys((family, sockaddr) for family, _, _, _, sockaddr in found))


def _datagram_socket(family: socket.AddressFamily) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    for forced, plain in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, BUFFER)  # beyond net.core.rmem_max, for those who may
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, plain, BUFFER)
    return sock


class End(ABC):
    """Where a flow's datagrams go. `together`: whether several of one size may be sent in one call."""

    __slots__ = ("flow", "together")

    flow: Any
    """The flow that it is an end of."""

    def __init__(self, *, together: bool = False) -> None:
        self.together = together

    @abstractmethod
    def send(self, datagram: bytes | memoryview) -> None:
        """Send one. Raises BlockingIOError, or the OSError that it was lost to."""

    def send_together(self, run: Sequence[memoryview]) -> None:
        """Send a run of one size (the last may be shorter), all or none. Raises as `send` does."""
        raise NotImplementedError


def connect(place: Place, interface: str = "") -> tuple[socket.socket, Any]:
    """A socket of its own for one flow, connected, so that what ICMP says reaches that flow alone. Raises OSError.

    One for a multicast group is not connected, since its members answer by their own addresses: the second value
    then says where to send.
    """
    family, sockaddr = place
    sock = _datagram_socket(family)
    try:
        if is_group(place):
            if interface:
                option = (socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF), (socket.IPPROTO_IP, socket.IP_MULTICAST_IF)
                index = socket.if_nametoindex(interface)
                value: Any = index if family == socket.AF_INET6 else _MREQ.pack(bytes(4), bytes(4), index)
                sock.setsockopt(*option[family == socket.AF_INET], value)
            return sock, sockaddr
        if family == socket.AF_UNIX:
            sock.bind("")  # an abstract name of the kernel's choice: an answer needs somewhere to go (unix(7))
        sock.connect(sockaddr)
    except BaseException:
        sock.close()
        raise
    return sock, None


@functools.lru_cache(maxsize=64)  # each new flow asks
def is_group(place: Place) -> bool:
    """Whether a place is a multicast group."""
    family, sockaddr = place
    return family != socket.AF_UNIX and ipaddress.ip_address(sockaddr[0].partition("%")[0]).is_multicast


def _join(sock: socket.socket, place: Place, interface: str) -> None:
    """Join a multicast group, on an interface or on the one that the routes name. Raises OSError."""
    family, (host, *_, last) = place
    index = socket.if_nametoindex(interface) if interface else 0
    if family == socket.AF_INET:
        request = _MREQ.pack(socket.inet_aton(host), bytes(4), index)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
    else:
        request = _MREQ6.pack(socket.inet_pton(family, host.partition("%")[0]), index or last)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)


# --- bound sockets


class Bound:
    """A bound socket: tells of each datagram where it came from, and answers by the same way."""

    def __init__(self, sock: socket.socket, address: Address) -> None:
        self.sock = sock
        self.address = address

    def ways(self, batch: Batch) -> list[Way]:
        """Where each datagram of a batch came from."""
        return batch.names()

    def answers(self, way: Way) -> Answers:
        """How to answer by a way: the socket address, and the ancillary data that goes with it."""
        return python_name(way), ()

    def source(self, way: Way) -> str:
        """Who is at the other end of a way, for people."""
        name = python_name(way)
        host, port = name[0].removeprefix("::ffff:"), name[1]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def close(self) -> None:
        """Close. Twice is once."""
        self.sock.close()


class _BoundToAny(Bound):
    """A socket bound to every address: a way is the peer's address and the address of ours that it wrote to."""

    def __init__(self, sock: socket.socket, address: Address) -> None:
        super().__init__(sock, address)
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            self._info = slice(4, 8)  # of in_pktinfo, the address to answer from: a broadcast or a group is none
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            self._info = slice(0, 16)
        self._length = self._info.stop - self._info.start

    def ways(self, batch: Batch) -> list[Way]:
        own = self._info
        return [
            name + info[own]
            for name, info in zip(batch.names(), batch.controls(own.stop), strict=True)
        ]  # fmt: skip

    def _cut(self, way: Way) -> tuple[bytes, bytes]:
        length = raw_length(self.sock.family)
        return way[:length], way[length:]

    def answers(self, way: Way) -> Answers:
        name, own = self._cut(way)
        if len(own) == 4:
            return python_name(name), ((socket.IPPROTO_IP, _IP_PKTINFO, _PKTINFO.pack(0, own, bytes(4))),)
        if len(own) == 16 and own[0] != 0xFF:  # sent to a group: nobody answers by that name
            return python_name(name), ((socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _PKTINFO6.pack(own, 0)),)
        return python_name(name), ()

    def source(self, way: Way) -> str:
        return super().source(self._cut(way)[0])


class _BoundToPath(Bound):
    """A UNIX datagram socket; takes its file with it when it closes, if it is still its own.

    Senders that have no name are one flow, since nothing tells them apart, and cannot be answered.
    """

    def __init__(self, sock: socket.socket, address: UnixDatagramAddress) -> None:
        super().__init__(sock, address)
        self._path = address.path
        self._file: os.stat_result | None = os.stat(address.path)

    def source(self, way: Way) -> str:
        name = python_name(way)
        return printable(os.fsdecode(name)) if name else "a socket without a name"

    def close(self) -> None:
        file, self._file = self._file, None
        with contextlib.suppress(OSError):  # somebody else took the file away, or its directory
            if file is not None and os.path.samestat(os.stat(self._path), file):
                os.unlink(self._path)
        super().close()


class Reply(End):
    """A flow's way back through the socket that its datagrams came to."""

    __slots__ = ("_sock", "_to")

    def __init__(self, bound: Bound, way: Way) -> None:
        super().__init__(together=bound.sock.family != socket.AF_UNIX)
        self._sock = bound.sock
        self._to: Answers = bound.answers(way)

    def send(self, datagram: bytes | memoryview) -> None:
        name, own = self._to
        if name is None:
            raise OSError(errno.EDESTADDRREQ, "the sender's socket has no name to answer to")
        if own:
            self._sock.sendmsg((datagram,), own, 0, name)
        else:
            self._sock.sendto(datagram, name)

    def send_together(self, run: Sequence[memoryview]) -> None:
        name, own = self._to
        self._sock.sendmsg(run, (*own, *segments(len(run[0]))), 0, name)


async def bind(address: Address) -> list[Bound]:
    """Bind what an address stands for: at least one socket, all on one port. Raises VsockfwdError."""
    try:
        if isinstance(address, UnixDatagramAddress):
            return [_bind_path(address)]
        assert isinstance(address, UdpAddress)
        return _bind_all(await places(address), address)
    except OSError as error:
        raise bind_failed(error, address) from None


def _bind_all(found: list[Place], address: UdpAddress) -> list[Bound]:
    """A family that this machine lacks is left out, unless it is the only one.

    With port 0 the kernel chooses for the first; a later one that finds it taken makes all start again.
    """
    attempts = 1 if address.port else 8
    while True:
        attempts -= 1
        bound: list[Bound] = []
        port = address.port
        try:
            for family, sockaddr in found:
                try:
                    bound.append(_bind(family, (sockaddr[0], port, *sockaddr[2:]), address))
                except OSError as error:
                    if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                        raise
                    continue
                port = bound[0].sock.getsockname()[1]
            if not bound:
                raise OSError(errno.EADDRNOTAVAIL, "no such address")
            return bound
        except OSError as error:
            for each in bound:
                each.close()
            if error.errno != errno.EADDRINUSE or not attempts:
                raise


def _bind(family: socket.AddressFamily, sockaddr: Any, address: UdpAddress) -> Bound:
    sock = _datagram_socket(family)
    group, interface = is_group((family, sockaddr)), address.option("interface", "")
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if group:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # each member of a group hears all of it
            if interface and family == socket.AF_INET6:
                sockaddr = (*sockaddr[:3], socket.if_nametoindex(interface))  # a group of one link is bound to it
        sock.bind(sockaddr)
        if group:
            _join(sock, (family, sockaddr), interface)
        host, port = sock.getsockname()[:2]
        kind = _BoundToAny if host in ("0.0.0.0", "::") else Bound
        return kind(sock, UdpAddress(host, port))
    except BaseException:
        sock.close()
        raise


def _bind_path(address: UnixDatagramAddress) -> Bound:
    sock = _datagram_socket(socket.AF_UNIX)
    try:
        bind_path(sock, address.path, PRIVATE)
        return _BoundToPath(sock, address)
    except BaseException:
        sock.close()
        raise


def bind_path(sock: socket.socket, path: bytes, mode: int) -> None:
    """Bind a UNIX socket where nothing stands, or what a killed run left behind. Raises OSError."""
    # Linux gives the file the mode of the socket's own inode: there is no moment in which it is open to others.
    os.fchmod(sock.fileno(), mode)
    try:
        sock.bind(path)
    except OSError as error:
        if error.errno != errno.EADDRINUSE or not _left_behind(path, sock.type):
            raise
        os.unlink(path)
        sock.bind(path)
    if mode != PRIVATE:
        os.chmod(path, mode)  # what the umask took off


def _left_behind(path: bytes, kind: int) -> bool:
    """Whether a socket's file stands there that nobody holds any more."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK) as probe:
        return probe.connect_ex(path) == errno.ECONNREFUSED


def bind_failed(error: OSError, address: Address) -> VsockfwdError:
    hint = ""
    if isinstance(address, UnixDatagramAddress | UnixPacketAddress):
        if error.errno == errno.EADDRINUSE:
            hint = "something stands there already: a server that runs, or a file"
        elif error.errno == errno.ENOENT:
            hint = "its directory does not exist"
    elif error.errno == errno.EADDRINUSE and isinstance(address, UdpAddress):
        hint = f"another program listens there (ss -lunp 'sport = :{address.port}' names it); port 0 picks a free one"
    elif error.errno == errno.EACCES:
        hint = "ports below 1024 need root or CAP_NET_BIND_SERVICE"
    elif error.errno == errno.EADDRNOTAVAIL:
        hint = "this machine has no such address"
    return from_oserror(error, f"listen on {address.bare()}", hint=hint)


# --- many sockets, one task


class CountingPoll:
    """Watches sockets, so that a flow costs one and no task.

    `lost` is told of datagrams that the kernel threw away because a socket's buffer was full.
    """

    def __init__(self, lost: Callable[[int], None]) -> None:
        self._poll = Poll()
        self._counted: dict[socket.socket, int] = {}
        self._turns: Iterator[socket.socket] = iter(())
        self._lost = lost
        self.run = self._poll.run
        self.again = self._poll.again

    def add(self, sock: socket.socket, tell: Callable[[], None], events: int = select.EPOLLIN) -> None:
        """Call `tell` when the socket has something to read, be it an error, or what else is asked for."""
        self._poll.add(sock, lambda _: tell(), events)
        self._counted[sock] = 0

    def change(self, sock: socket.socket, events: int) -> None:
        """Watch for other events."""
        self._poll.change(sock, events)

    def forget(self, sock: socket.socket) -> None:
        """Watch a socket no more; it is about to be closed."""
        self._count(sock)
        self._poll.forget(sock)
        del self._counted[sock]

    def close(self) -> None:
        """Watch nothing any more; the sockets are their owners' to close."""
        self.count_lost()
        self._poll.close()

    def count_lost(self, most: int = 0) -> None:
        """Ask the kernel what it threw away since it was asked last; of so many sockets in turn, or of all."""
        if not most:
            for sock in self._counted:
                self._count(sock)
            return
        for _ in range(most):
            turn = next(self._turns, None)
            if turn is None:
                self._turns = iter(list(self._counted))
                return
            if turn in self._counted:
                self._count(turn)

    def _count(self, sock: socket.socket) -> None:
        try:
            now = _MEMINFO.unpack(sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))[8]
        except (OSError, struct.error):
            return  # a kernel that keeps no such count
        self._lost((now - self._counted[sock]) & 0xFFFF_FFFF)
        self._counted[sock] = now
