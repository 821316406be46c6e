"""Descriptors that this process has already: standard input and output, and what it inherited (`fd:N`, `fd:NAME`).

The thing to understand first: a descriptor may be shared with the shell that started us, and O_NONBLOCK belongs to
the open file, not to the descriptor; to set it would break the terminal for everyone. So a pipe or a terminal is
opened anew through /proc/self/fd, a socket is read with MSG_DONTWAIT, and a regular file, which never blocks, is used
as it is. Only where a pipe cannot be opened anew is O_NONBLOCK set, and taken back at the end.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import trio

from vsockfwd.address import AbstractAddress, Address, FdAddress, StdioAddress, TcpAddress, UnixAddress, VsockAddress
from vsockfwd.errors import CannotCreate, Unreachable, UsageError, VsockfwdError, printable
from vsockfwd.identity import OwnPeer, VsockPeer
from vsockfwd.transport import tcp, unix, vsock
from vsockfwd.transport.base import Features, Listener, SocketListener, SocketStream, Stream, Transport

FEATURES = Features(half_close=True, reset=False)

_PTMX = os.makedev(5, 2)
"""/dev/ptmx (devices.txt in the kernel's documentation): to open it anew makes another terminal."""


class _End:
    """One direction of a descriptor: what it takes to use it without waiting, and to leave it as it was found."""

    def __init__(self, fd: int, reading: bool) -> None:
        self.given = self.fd = fd
        self.sock: socket.socket | None = None
        self.most: int | None = None
        """Bytes that one send may carry."""
        self._restore = self.splices = False
        found = os.fstat(fd)
        mode = found.st_mode
        access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        self.missing = access == (os.O_WRONLY if reading else os.O_RDONLY)
        """The descriptor was not opened for this direction: one end of a pipe, a log file."""
        if stat.S_ISSOCK(mode):
            self.sock = socket.socket(fileno=fd)
            if self.sock.family == vsock.FAMILY:
                self.most = vsock.PACKET
            return
        self.splices = not self.missing and (stat.S_ISFIFO(mode) or stat.S_ISREG(mode))
        """Whether splice(2) may move its bytes."""
        if stat.S_ISREG(mode) or self.missing:
            return
        if stat.S_ISFIFO(mode) or (os.isatty(fd) and found.st_rdev != _PTMX):
            self.fd = self._anew(fd, reading)
        if self.fd == fd and os.get_blocking(fd):
            os.set_blocking(fd, False)
            self._restore = True

    @staticmethod
    def _anew(fd: int, reading: bool) -> int:
        flags = (os.O_RDONLY if reading else os.O_WRONLY) | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            return os.open(f"/proc/self/fd/{fd}", flags)
        except OSError:  # no /proc, a terminal of another user, a pipe without a reader left
            return fd

    def give_back(self) -> None:
        """Use it no more; what we were given stays open."""
        if self.fd < 0:
            return
        trio.lowlevel.notify_closing(self.fd)
        if self._restore:
            os.set_blocking(self.fd, True)
        if self.fd != self.given:
            os.close(self.fd)
        if self.sock is not None:
            self.sock.detach()
        self.fd = -1


async def _wait(wait: Callable[[int], Awaitable[None]], fd: int) -> None:
    try:
        await wait(fd)
    except PermissionError:  # epoll_ctl(2): what never blocks, a file or /dev/null, cannot be waited on
        await trio.lowlevel.checkpoint()


class DescriptorStream(Stream):
    """A stream over one descriptor to read and one to write; they may be the same.

    `own`: close the descriptors themselves when the stream is closed. Without it they are left as they were found,
    but for what `shutdown_sending` must do to be noticed: it closes a writing descriptor that is a pipe.
    A descriptor that was opened for one direction only is at its end in the other.
    """

    def __init__(self, reading: int, writing: int, name: str, *, own: bool = False) -> None:
        self.features = FEATURES
        self.name = name
        self.peer = OwnPeer(name)
        self._in = _End(reading, True)
        try:
            self._out = self._in if reading == writing and self._in.sock else _End(writing, False)
        except BaseException:
            self._in.give_back()
            raise
        self._owned = {reading, writing} if own else set()

    def try_receive_into(self, buffer: memoryview) -> int:
        if self._in.fd < 0:
            raise OSError(errno.EBADF, "closed")
        if self._in.sock is not None:
            return self._in.sock.recv_into(buffer, 0, socket.MSG_DONTWAIT)
        if self._in.missing:
            return 0
        try:
            return os.readv(self._in.fd, [buffer])
        except OSError as error:
            if error.errno == errno.EIO and os.isatty(self._in.fd):
                return 0  # a terminal whose other side hung up: its end
            raise

    def try_send(self, data: memoryview | bytes | bytearray) -> int:
        if self._out.fd < 0:
            raise OSError(errno.EPIPE if self._in.fd >= 0 else errno.EBADF, "closed")
        if self._out.sock is not None:
            return self._out.sock.send(data[: self._out.most], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        return os.write(self._out.fd, data)

    def splice_source(self) -> int | None:
        return self._in.fd if self._in.splices else None

    def splice_sink(self) -> int | None:
        return self._out.fd if self._out.splices else None

    def source_to_poll(self) -> int | None:
        return self._in.fd

    def sink_to_poll(self) -> int | None:
        return self._out.fd

    async def wait_readable(self) -> None:
        await _wait(trio.lowlevel.wait_readable, self._in.fd)

    async def wait_writable(self) -> None:
        await _wait(trio.lowlevel.wait_writable, self._out.fd)

    def shutdown_sending(self) -> None:
        if self._out.fd < 0 or self._out.missing:
            return
        if self._out.sock is not None:
            try:
                self._out.sock.shutdown(socket.SHUT_WR)
            except OSError as error:
                if error.errno not in (errno.ENOTCONN, errno.EPIPE, errno.ECONNRESET):
                    raise
            return
        if self._out.fd == self._in.fd:
            self._out.fd = -1  # one open file for both directions: to close it would cut off the reader
            return
        self._out.give_back()
        given = self._out.given
        if given == self._in.given or not stat.S_ISFIFO(os.fstat(given).st_mode):
            return
        # The reader of a pipe sees the end only when every descriptor is closed, the one we were given too.
        if given in self._owned:
            self._owned.discard(given)
            os.close(given)
            return
        # Its number stays taken, so that nothing else lands on descriptor 1.
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(null, given)
        os.close(null)

    def close(self) -> None:
        self._in.give_back()
        self._out.give_back()
        while self._owned:
            os.close(self._owned.pop())


class StdioTransport(Transport[StdioAddress]):
    """`stdio` and `-`"""

    async def connect(self, address: StdioAddress, *, privileged: bool = False) -> Stream:
        # Descriptors that were closed when we started may be anything by now: Python remembers.
        if sys.__stdin__ is None or sys.__stdout__ is None:
            raise Unreachable("stdio: standard input or output is closed", hint="open it, on /dev/null at least")
        try:
            return DescriptorStream(0, 1, "stdio")
        except OSError as error:
            raise Unreachable(f"stdio: standard input or output is not open: {error.strerror}") from None


class FdTransport(Transport[FdAddress]):
    """`fd:N`: a connected socket, a pipe, a file or a terminal; listening: a socket that listens already.

    `named`: what a service manager passed, by name; `fd:NAME` listens on all of that name, and connects the only one.
    """

    def __init__(self, named: Mapping[str, Sequence[int]] | None = None) -> None:
        self._named = named or {}

    async def connect(self, address: FdAddress, *, privileged: bool = False) -> Stream:
        numbers = self._numbers(address, Unreachable)
        if len(numbers) > 1:
            raise UsageError(f"{address.bare()}: {len(numbers)} descriptors have this name, a stream takes one")
        (number,) = numbers
        try:
            return DescriptorStream(number, number, address.bare(), own=number > 2)
        except OSError as error:
            raise Unreachable(f"{address.bare()}: {(error.strerror or '').lower()}", hint="is it inherited?") from None

    async def listen(self, address: FdAddress) -> Sequence[Listener]:
        listeners: list[Listener] = []
        try:
            for number in self._numbers(address, CannotCreate):
                listeners.append(_listen_on(number, address))
        except BaseException:
            for listener in listeners:
                listener.close()
            raise
        return listeners

    def _numbers(self, address: FdAddress, missing: type[VsockfwdError]) -> Sequence[int]:
        if isinstance(address.descriptor, int):
            return (address.descriptor,)
        if numbers := self._named.get(address.descriptor):
            return numbers
        raise missing(
            f"{address.bare()}: no descriptor of this name was passed to us",
            hint=f"there are {', '.join(map(printable, self._named))}"
            if self._named
            else "a service manager passes them, such as systemd's by a .socket unit with FileDescriptorName=",
        )


def _listen_on(number: int, address: FdAddress) -> SocketListener:
    """A listener over a copy of an inherited descriptor; the descriptor itself stays as it is."""
    try:
        fd = os.dup(number)
        try:
            sock = socket.socket(fileno=fd)
        except OSError:
            os.close(fd)
            raise
    except OSError as error:
        raise CannotCreate(f"{address.bare()}: {(error.strerror or '').lower()}", hint="is it inherited?") from None
    try:
        if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise UsageError(f"{address.bare()}: that socket does not listen for streams")
        if backlog := address.option("backlog"):
            sock.listen(backlog)
        return listener_over(sock, address)
    except BaseException:
        sock.close()
        raise


def listener_over(sock: socket.socket, address: Address) -> SocketListener:
    """A listener over a socket that listens already, of whatever family it is; its address is what was bound.

    Raises UsageError for a family without a transport.
    """
    bound = sock.getsockname()
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        return tcp.TcpListener(sock, TcpAddress(bound[0], bound[1]))
    if sock.family == socket.AF_UNIX:
        path = os.fsencode(bound)
        where = AbstractAddress(path[1:]) if path.startswith(b"\0") else UnixAddress(path)
        return unix.UnixListener(sock, where, None)
    if sock.family == vsock.FAMILY:
        return vsock.VsockListener(sock, VsockAddress(bound[0], bound[1]))
    raise UsageError(f"{address.bare()}: no transport for sockets of the family {sock.family}")


def stream_over(sock: socket.socket, peer: Any, name: str) -> SocketStream:
    """A stream over a non-blocking stream socket that is connected already; `peer` is its address, as `connect` has it.

    Raises UsageError for a family without a transport.
    """
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        return SocketStream(sock, tcp.FEATURES, tcp.network_peer(peer), name)
    if sock.family == socket.AF_UNIX:
        return SocketStream(sock, unix.FEATURES, unix.credentials(sock), name)
    if sock.family == vsock.FAMILY:
        return vsock.VsockStream(sock, VsockPeer(*peer), name, vsock.own_cid)
    raise UsageError(f"{name}: no transport for sockets of the family {sock.family}")
