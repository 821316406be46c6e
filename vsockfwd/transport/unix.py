"""UNIX stream sockets, in the file system and in Linux's abstract namespace.

The thing to understand first: a socket's file is made with its final permissions (0600 unless the address says
`mode=`), not narrowed afterwards, and the file that a killed run left behind is told from one that is in use by
connecting to it.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar

from vsockfwd.address import AbstractAddress, Address, UnixAddress
from vsockfwd.errors import CannotCreate, Refused, Unreachable, VsockfwdError
from vsockfwd.identity import Identity, UnixPeer
from vsockfwd.transport.base import (
    BACKLOG,
    Dial,
    Features,
    SocketListener,
    SocketStream,
    Stream,
    Transport,
    connect_failed,
    connect_socket,
    listen_failed,
)

A = TypeVar("A", UnixAddress, AbstractAddress)

FEATURES = Features(half_close=True, reset=False, splice_from=True, splice_to=True)
PRIVATE = 0o600

SEND_BUFFER = 1 << 20
"""Bytes that may be on their way: the kernel's default, 208 KiB, wakes both sides eight times a mebibyte. It counts on
the sending side alone (unix(7)), is cut to net.core.wmem_max without CAP_NET_ADMIN, and takes memory only when used."""

_CREDENTIALS = struct.Struct("iII")


def credentials(sock: socket.socket) -> UnixPeer:
    """Who connected a UNIX socket, or who listened (SO_PEERCRED, unix(7))."""
    pid, uid, gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return UnixPeer(uid, gid, pid)


class UnixListener(SocketListener):
    """A listener on a UNIX socket; takes its file with it when it closes, if it is still its own."""

    def __init__(self, sock: socket.socket, address: Address, path: bytes | None) -> None:
        super().__init__(sock, address)
        self._path = path
        self._inode = os.stat(path) if path is not None else None

    def stream_of(self, sock: socket.socket, peer: Any) -> Stream:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        who = self.identify(sock)
        return SocketStream(sock, FEATURES, who, f"{self.address.scheme} peer {who}")

    def identify(self, sock: socket.socket) -> Identity:
        return credentials(sock)

    def keep_file(self) -> None:
        self._path = None

    def close(self) -> None:
        if self._path is not None and self._inode is not None:
            try:
                if os.path.samestat(os.stat(self._path), self._inode):
                    os.unlink(self._path)
            except OSError:
                pass  # somebody else took the file away, or its directory
            self._inode = None
        super().close()


def connect_unix_now(sockaddr: bytes, address: Address) -> socket.socket | None:
    """Connect to a UNIX socket, or None where its backlog is full. Raises VsockfwdError."""
    sock = _new_socket(address)
    try:
        sock.connect(sockaddr)
    except BlockingIOError:
        sock.close()
        return None
    except OSError as error:
        sock.close()
        raise _connect_error(error, address) from None
    return sock


async def connect_unix(sockaddr: bytes, address: Address) -> socket.socket:
    """Connect to a UNIX socket. Raises VsockfwdError."""
    sock = _new_socket(address)
    try:
        await connect_socket(sock, sockaddr, address)
    except OSError as error:
        sock.close()
        raise _connect_error(error, address) from None
    except BaseException:
        sock.close()
        raise
    return sock


def _new_socket(address: Address) -> socket.socket:
    """A socket to connect. Raises VsockfwdError."""
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    except OSError as error:
        raise connect_failed(error, address) from None
    return sock


def _connect_error(error: OSError, address: Address) -> VsockfwdError:
    if error.errno == errno.ENOENT:
        return Unreachable(f"connect to {address.bare()}: no such socket", hint="is its server running?")
    if error.errno == errno.ECONNREFUSED:
        return Refused(f"connect to {address.bare()}: nothing listens on that socket", hint="is its server running?")
    hint = "the socket belongs to another user" if error.errno in (errno.EACCES, errno.EPERM) else ""
    return connect_failed(error, address, hint)


def listen_unix(path: bytes, address: Address) -> socket.socket:
    """Bind and listen on a path. Raises OSError; EADDRINUSE only where somebody answers there, or no socket stands."""
    mode = address.option("mode", PRIVATE)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    bound = False
    try:
        # Linux gives the file the mode that the socket's own inode has, less the umask (af_unix.c, unix_bind_bsd):
        # so there is no moment in which it is open to more than it should be.
        os.fchmod(sock.fileno(), mode)
        try:
            sock.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _left_behind(path):
                raise
            os.unlink(path)
            sock.bind(path)
        bound = True
        if mode != PRIVATE:
            os.chmod(path, mode)
        sock.listen(address.option("backlog", BACKLOG))
    except BaseException:
        sock.close()
        if bound:
            os.unlink(path)
        raise
    return sock


def _left_behind(path: bytes) -> bool:
    """Whether a socket's file stands there that nobody listens on any more."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        return probe.connect_ex(path) == errno.ECONNREFUSED


def listen_unix_failed(error: OSError, address: Address) -> VsockfwdError:
    """A failed listen as the error that a user reads."""
    hint = "something stands there already: a server that runs, or a file" if error.errno == errno.EADDRINUSE else ""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return CannotCreate(f"listen on {address.bare()}: its directory does not exist", errno=error.errno)
    return listen_failed(error, address, hint)


class _Transport(Transport[A]):
    """What the two have in common: all but their names, and what listening takes."""

    @abstractmethod
    def sockaddr(self, address: A) -> bytes:
        """The name that the kernel is given."""

    def connect_now(self, address: A) -> Stream | Dial | None:
        sock = connect_unix_now(self.sockaddr(address), address)
        return None if sock is None else _stream(sock, address)

    async def connect(self, address: A, *, privileged: bool = False) -> Stream:
        return _stream(await connect_unix(self.sockaddr(address), address), address)


def _stream(sock: socket.socket, address: Address) -> Stream:
    return SocketStream(sock, FEATURES, credentials(sock), address.bare())


class UnixTransport(_Transport[UnixAddress]):
    """`unix:`"""

    def sockaddr(self, address: UnixAddress) -> bytes:
        return address.path

    async def listen(self, address: UnixAddress) -> Sequence[UnixListener]:
        try:
            return [UnixListener(listen_unix(address.path, address), address, address.path)]
        except OSError as error:
            raise listen_unix_failed(error, address) from None


class AbstractTransport(_Transport[AbstractAddress]):
    """`abstract:`"""

    def sockaddr(self, address: AbstractAddress) -> bytes:
        return b"\0" + address.name

    async def listen(self, address: AbstractAddress) -> Sequence[UnixListener]:
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            raise listen_unix_failed(error, address) from None
        try:
            sock.bind(self.sockaddr(address))
            sock.listen(address.option("backlog", BACKLOG))
        except OSError as error:
            sock.close()
            raise listen_unix_failed(error, address) from None
        return [UnixListener(sock, address, None)]
