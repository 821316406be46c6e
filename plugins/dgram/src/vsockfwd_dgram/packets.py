"""SOCK_SEQPACKET: connections that keep boundaries, over AF_VSOCK and UNIX sockets. One datagram is one message.

The thing to understand first: an empty message and the end both read as nothing. On UNIX sockets a message brings its
sender's credentials along and an end does not (SO_PASSCRED, unix(7)), which tells them apart; vsock carries no empty
message at all, so that one is dropped, and counted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
from typing import Protocol

from vsockfwd.plugin import (
    CID_ANY,
    CID_LOCAL,
    Identity,
    TransportMissing,
    UnixPacketAddress,
    UnixPeer,
    UsageError,
    VsockPacketAddress,
    VsockPeer,
    from_oserror,
    why_no_loopback,
    why_unsupported,
)
from vsockfwd_dgram.batch import Batch
from vsockfwd_dgram.sockets import CountingPoll, End, bind_failed, bind_path

PacketAddress = VsockPacketAddress | UnixPacketAddress

BACKLOG = 4096
"""Connections that may wait to be accepted."""

BUFFER = 1 << 20
"""Bytes that may be on their way in one connection; the largest message that vsock takes."""

# linux/vm_sockets.h
_BUFFER_SIZE, _BUFFER_MAX_SIZE = 0, 2
_PORT_ANY = 0xFFFF_FFFF
_CREDENTIALS = struct.Struct("iII")


def check(address: PacketAddress) -> None:
    """Raises TransportMissing where this machine cannot, UsageError for a CID that nobody can dial."""
    if isinstance(address, VsockPacketAddress):
        if (reason := why_unsupported()) is not None:
            raise TransportMissing(f"{address.bare()}: no vsock", hint=reason)
        with _packet_socket(address):
            pass


def check_destination(address: PacketAddress) -> None:
    """As `check`, for an address to connect to."""
    if isinstance(address, VsockPacketAddress) and address.cid == CID_ANY:
        raise UsageError(f"{address}: the CID any can be listened on, not connected to")
    check(address)
    local = isinstance(address, VsockPacketAddress) and address.cid == CID_LOCAL
    if local and (reason := why_no_loopback()) is not None:
        raise TransportMissing(f"connect to {address.bare()}: no loopback", hint=reason)


def _packet_socket(address: PacketAddress) -> socket.socket:
    """A socket for an address. Raises TransportMissing where the kernel has none with messages."""
    kind = socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK
    if isinstance(address, UnixPacketAddress):
        sock = socket.socket(socket.AF_UNIX, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        return sock
    try:
        sock = socket.socket(socket.AF_VSOCK, kind)
    except OSError as error:
        hint = "SOCK_SEQPACKET needs Linux 5.14 on both sides; vsockfwd dgram -L goes over streams"
        raise TransportMissing(f"{address.bare()}: {(error.strerror or '').lower()}", hint=hint) from None
    size = address.option("buffer", BUFFER)
    sock.setsockopt(socket.AF_VSOCK, _BUFFER_MAX_SIZE, size)
    sock.setsockopt(socket.AF_VSOCK, _BUFFER_SIZE, size)
    return sock


class PacketListener:
    """Where connections come in; `address` is what was bound."""

    def __init__(self, address: PacketAddress) -> None:
        """Listen. Raises VsockfwdError."""
        check(address)
        self._unix = isinstance(address, UnixPacketAddress)
        self._file: os.stat_result | None = None
        sock = _packet_socket(address)
        try:
            if isinstance(address, UnixPacketAddress):
                bind_path(sock, address.path, address.option("mode", 0o600))
                self._file = os.stat(address.path)
                self.address: PacketAddress = address
            else:
                sock.bind((address.cid, address.port or _PORT_ANY))
                self.address = VsockPacketAddress(address.cid, sock.getsockname()[1], options=address.options)
            sock.listen(address.option("backlog", BACKLOG))
        except OSError as error:
            sock.close()
            raise bind_failed(error, address) from None
        self.sock = sock

    def accept(self) -> tuple[socket.socket, Identity]:
        """A connection, which has the listener's options, and who it is from. Raises BlockingIOError, or OSError."""
        sock, peer = self.sock.accept()
        sock.setblocking(False)
        if not self._unix:
            return sock, VsockPeer(*peer)
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, gid = _CREDENTIALS.unpack(raw)
        return sock, UnixPeer(uid, gid, pid)

    def close(self) -> None:
        """Close; a socket's file goes along, if it is still its own. Twice is once."""
        file, self._file = self._file, None
        if file is not None and isinstance(self.address, UnixPacketAddress):
            with contextlib.suppress(OSError):  # somebody else took it away
                if os.path.samestat(os.stat(self.address.path), file):
                    os.unlink(self.address.path)
        self.sock.close()


class Side(Protocol):
    """What connections need of the side that they belong to."""

    poll: CountingPoll
    batch: Batch

    def drain_packets(self, end: Packets) -> None: ...
    def connected(self, end: Packets) -> None: ...
    def broken(self, end: Packets, why: str, *, refused: bool = False) -> None: ...


class Packets(End):
    """A connection with messages: one that was accepted, or one to an address, made when something is to be sent."""

    __slots__ = ("_address", "_ready", "_side", "over", "sock")

    def __init__(self, side: Side, address: PacketAddress, sock: socket.socket | None = None) -> None:
        super().__init__()
        self._side = side
        self._address = address
        self._ready = sock is not None
        self.sock = sock
        self.over = False
        if sock is not None:
            side.poll.add(sock, self._drain)

    def _connect(self) -> socket.socket:
        """Raises BlockingIOError where that takes its time, OSError."""
        sock = _packet_socket(self._address)
        unix = isinstance(self._address, UnixPacketAddress)
        try:
            sock.connect(self._address.path if unix else (self._address.cid, self._address.port))  # type: ignore[union-attr]
        except BlockingIOError:
            if unix:  # its backlog is full: there is nothing to wait on but time
                sock.close()
                raise
            self.sock = sock
            self._side.poll.add(sock, self._answered, select.EPOLLOUT)
            raise
        except BaseException:
            sock.close()
            raise
        self.sock, self._ready = sock, True
        self._side.poll.add(sock, self._drain)
        return sock

    def _answered(self) -> None:
        """A connect that took its time is over, and later the connection has something to read."""
        if self._ready:
            self._drain()
            return
        assert self.sock is not None
        number = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self._side.broken(self, from_oserror(OSError(number, os.strerror(number)), "connect").message, refused=True)
            return
        self._ready = True
        self._side.poll.change(self.sock, select.EPOLLIN)
        self._side.connected(self)

    def _drain(self) -> None:
        if self.sock is not None:
            self._side.drain_packets(self)

    def send(self, datagram: bytes | memoryview) -> None:
        if self.over:
            raise OSError(errno.EPIPE, "the connection is over")
        sock = self.sock or self._connect()
        if not self._ready:
            raise BlockingIOError
        if not len(datagram) and sock.family != socket.AF_UNIX:
            raise OSError(errno.ENOMSG, "vsock carries no empty messages")
        try:
            sock.send(datagram)
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                self._side.broken(self, (error.strerror or str(error)).lower())
            raise

    def hang_up(self) -> None:
        """Close for good."""
        self.over = True
        if self.sock is not None:
            self._side.poll.forget(self.sock)
            self.sock.close()
            self.sock = None
