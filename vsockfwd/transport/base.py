"""What a transport is, and what streams and listeners are made of.

The thing to understand first: a Stream is four primitives that never block and never await (`try_receive_into`,
`try_send`, and the two waits that go with them), because trying first and waiting only on BlockingIOError is what
makes a pump fast. trio's own HalfCloseableStream methods are built on these for everyone who is not in a hurry.
The primitives raise plain OSErrors; who opened a stream translates them where they are told to a person.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import trio

from vsockfwd.address import Address
from vsockfwd.errors import UsageError, VsockfwdError, from_oserror
from vsockfwd.identity import Identity, OwnPeer

CONNECT_TIMEOUT = 10.0
"""Seconds a connect may take, unless the address says otherwise."""

BACKLOG = 4096
"""Connections that may wait to be accepted; the kernel cuts it to net.core.somaxconn."""

RECEIVE_SIZE = 1 << 16

NEVER = -1
"""What `source_to_poll` says of a stream that nothing ever comes from."""


@dataclass(frozen=True, slots=True)
class Features:
    """What the engine may count on.

    half_close: the end of one direction reaches the far end and leaves the other direction alive.
    reset: an abort is told to the neighbour, so that it can tell a cut from an end.
    boundaries: one send is one receive.
    splice_from, splice_to: bytes may be moved by splice(2), and that is faster than to receive and send them.
    """

    half_close: bool = True
    reset: bool = False
    boundaries: bool = False
    splice_from: bool = False
    splice_to: bool = False


class Stream(trio.abc.HalfCloseableStream):
    """A duplex stream of bytes: trio's interface over primitives that try first.

    `peer` is who is at the other end, learned when the stream was opened. `name` is what to call it in a sentence.
    """

    features: Features = Features()
    peer: Identity = OwnPeer("this process")
    name: str = ""
    settled = True
    """Whether it is known who the peer is; else `settle` finds out."""
    sock: socket.socket | None = None
    """The socket itself, where there is one: to ask it things, not to send past `try_send`."""
    empties: bool = False
    """Whether a receive that filled just a part of its buffer has most likely left nothing, and whether something is
    left is what `wait_readable` asks the kernel."""
    _busy_sending = _busy_receiving = _sent_eof = False

    @abstractmethod
    def try_receive_into(self, buffer: memoryview) -> int:
        """Receive what is there, at most the buffer's length. 0 is the end. Raises BlockingIOError or OSError."""

    @abstractmethod
    def try_send(self, data: memoryview | bytes | bytearray) -> int:
        """Send as much as fits now. Raises BlockingIOError or OSError."""

    def try_send_parts(self, parts: Sequence[memoryview]) -> int:
        """As `try_send`, of pieces that follow each other: uncopied in one go where the transport can."""
        return self.try_send(parts[0])

    def splice_source(self) -> int | None:
        """A descriptor whose bytes are what a receive would give, to be spliced from; None where there is none."""
        return None

    def splice_sink(self) -> int | None:
        """A descriptor to splice into instead of a send; None where there is none."""
        return None

    def source_to_poll(self) -> int | None:
        """The descriptor that epoll(7) calls readable when a receive may succeed; NEVER where none will, None where it
        takes more than that to know."""
        return None

    def sink_to_poll(self) -> int | None:
        """The descriptor that epoll(7) calls writable when a send may succeed; NEVER where each does, None as above."""
        return None

    @abstractmethod
    async def wait_readable(self) -> None:
        """Wait until a receive may succeed."""

    @abstractmethod
    async def wait_writable(self) -> None:
        """Wait until a send may succeed."""

    @abstractmethod
    def shutdown_sending(self) -> None:
        """Tell the far end that nothing more comes. Never blocks; a far end that is gone already is no error."""

    @abstractmethod
    def close(self) -> None:
        """Close, at once and without a word. Twice is once."""

    def abort(self) -> None:
        """Close so that the neighbour sees a reset, where the transport can say it."""
        self.close()

    async def settle(self) -> None:
        """Find out who the peer is, where accepting did not tell. Raises VsockfwdError: nobody to be served."""

    # --- trio's interface, held to trio.testing's suite; what is in a hurry uses the primitives

    @contextlib.contextmanager
    def _alone(self, direction: str) -> Iterator[None]:
        """One task at a time in a direction, and errors as trio's streams raise them."""
        if getattr(self, direction):
            raise trio.BusyResourceError(f"{self.name}: another task is at it")
        setattr(self, direction, True)
        try:
            yield
        except OSError as error:
            kind = trio.ClosedResourceError if error.errno == errno.EBADF else trio.BrokenResourceError
            raise kind(f"{self.name}: {error.strerror}") from error
        finally:
            setattr(self, direction, False)

    async def send_all(self, data: Any) -> None:
        """Send everything. Raises trio's ClosedResourceError, BrokenResourceError, BusyResourceError."""
        view = memoryview(data)
        with self._alone("_busy_sending"):
            await trio.lowlevel.checkpoint()
            if self._sent_eof:
                raise trio.ClosedResourceError(f"{self.name}: the end was said already")
            while True:
                try:
                    view = view[self.try_send(view) :]  # nothing to send is tried as well: a closed stream says so
                except BlockingIOError:
                    await self.wait_writable()
                    continue
                if not view:
                    return

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until a send may succeed."""
        with self._alone("_busy_sending"):
            await trio.lowlevel.checkpoint()
            try:
                self.try_send(b"")
            except BlockingIOError:
                pass
            await self.wait_writable()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive some bytes; b'' is the end. Raises trio's ClosedResourceError, BrokenResourceError, …"""
        if max_bytes is not None and max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        buffer = bytearray(RECEIVE_SIZE if max_bytes is None else max_bytes)
        with self._alone("_busy_receiving"):
            await trio.lowlevel.checkpoint()
            while True:
                try:
                    return bytes(buffer[: self.try_receive_into(memoryview(buffer))])
                except BlockingIOError:
                    await self.wait_readable()

    async def send_eof(self) -> None:
        """Half-close. Twice is once."""
        with self._alone("_busy_sending"):
            await trio.lowlevel.checkpoint()
            self.shutdown_sending()
            self._sent_eof = True

    async def aclose(self) -> None:
        """Close, then let others run."""
        self.close()
        await trio.lowlevel.checkpoint()


_LINGER_NOT = struct.pack("ii", 1, 0)


class SocketStream(Stream):
    """A stream over a connected, non-blocking socket, which it owns."""

    empties = True
    _waited = False
    """Whether a task has waited for the socket, so that trio has to be told when it is closed: a system call more."""

    def __init__(self, sock: socket.socket, features: Features, peer: Identity, name: str) -> None:
        self.sock: socket.socket = sock
        self.features = features
        self.peer = peer
        self.name = name
        # The socket's own methods: a Python frame less for each piece of data.
        self.try_receive_into = sock.recv_into  # type: ignore[method-assign]
        self.try_send = sock.send  # type: ignore[method-assign, assignment]
        self.try_send_parts = sock.sendmsg  # type: ignore[method-assign, assignment]

    def try_receive_into(self, buffer: memoryview) -> int:
        return self.sock.recv_into(buffer)

    def try_send(self, data: memoryview | bytes | bytearray) -> int:
        return self.sock.send(data)

    def splice_source(self) -> int | None:
        return self.sock.fileno() if self.features.splice_from else None

    def splice_sink(self) -> int | None:
        return self.sock.fileno() if self.features.splice_to else None

    def source_to_poll(self) -> int | None:
        return self.sock.fileno()

    def sink_to_poll(self) -> int | None:
        return self.sock.fileno()

    async def wait_readable(self) -> None:
        self._check_open()
        self._waited = True
        await trio.lowlevel.wait_readable(self.sock)

    async def wait_writable(self) -> None:
        self._check_open()
        self._waited = True
        await trio.lowlevel.wait_writable(self.sock)

    def _check_open(self) -> None:
        if self.sock.fileno() < 0:
            raise trio.ClosedResourceError(f"{self.name}: closed on this side")

    def shutdown_sending(self) -> None:
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            # The far end went first: who receives from it finds out how.
            if error.errno not in (errno.ENOTCONN, errno.EPIPE, errno.ECONNRESET, errno.EBADF):
                raise

    def close(self) -> None:
        if self._waited:
            close_socket(self.sock)
        else:
            self.sock.close()

    def abort(self) -> None:
        if self.features.reset:
            reset_at_close(self.sock)
        self.close()


def is_over(stream: Stream) -> bool:
    """Whether a stream that nothing was received from yet has ended or broken, as far as its socket shows already."""
    if stream.sock is None:
        return False
    try:
        return not stream.sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError as error:
        return error.errno != errno.EOPNOTSUPP  # some vsock transports cannot peek: who reads finds out


class Listener(ABC):
    """Where connections come in. `address` is what was bound, with the port that the kernel chose."""

    address: Address

    @abstractmethod
    def try_accept(self) -> Stream:
        """Accept one connection. Raises BlockingIOError where none waits, or OSError."""

    @abstractmethod
    async def wait(self) -> None:
        """Wait until a connection may be there."""

    @abstractmethod
    def close(self) -> None:
        """Stop listening. Twice is once."""

    def keep_file(self) -> None:  # noqa: B027 - most have none
        """Leave the socket's file where it is when this is closed, where there is one."""

    async def accept(self) -> Stream:
        """Wait for a connection. Raises OSError."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            try:
                return self.try_accept()
            except BlockingIOError:
                await self.wait()


class SocketListener(Listener):
    """A listener over a listening socket, which it owns. A subclass turns an accepted socket into a stream."""

    def __init__(self, sock: socket.socket, address: Address) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.address = address

    def try_accept(self) -> Stream:
        sock, peer = self.sock.accept()
        sock.setblocking(False)
        try:
            return self.stream_of(sock, peer)
        except BaseException:
            sock.close()
            raise

    @abstractmethod
    def stream_of(self, sock: socket.socket, peer: Any) -> Stream:
        """The stream over an accepted, non-blocking socket; `peer` is what accept told."""

    async def wait(self) -> None:
        await trio.lowlevel.wait_readable(self.sock)

    def close(self) -> None:
        close_socket(self.sock)


A = TypeVar("A", bound=Address)


class Dial:
    """A connection on its way: its socket has room when it has been answered, and `stream` makes it one."""

    def __init__(self, sock: socket.socket, made: Callable[[int], Stream]) -> None:
        """`made`: the stream, from the errno that the socket has to tell, or 0; raises OSError where there is none."""
        self.sock = sock
        self._made = made

    def stream(self) -> Stream:
        """The stream, once there is room. Raises OSError, and closes it."""
        try:
            return self._made(self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        except BaseException:
            self.sock.close()
            raise


class Transport(ABC, Generic[A]):
    """One scheme: how its addresses are dialled and listened on."""

    def connect_now(self, address: A) -> Stream | Dial | None:
        """Open a stream without a wait, or begin to; None where it takes more than that.

        Raises as `connect` does. Where a Dial fails, `connect` may still succeed: it tries other ways too.
        """
        return None

    async def connect(self, address: A, *, privileged: bool = False) -> Stream:
        """Open a stream. `privileged`: show, where the transport can and may, that the caller is privileged.

        Raises a VsockfwdError: Refused, Unreachable, TimedOut, NameNotResolved, TransportMissing, PermissionDenied.
        """
        raise self.cannot("dialled", address)

    async def resolve(self, address: A) -> Sequence[A]:
        """The addresses that a name in this one stands for, best first, at least one; without a name, itself.

        Raises NameNotResolved.
        """
        return (address,)

    async def listen(self, address: A) -> Sequence[Listener]:
        """Listen: one listener for each socket that the address stands for, at least one.

        Raises a VsockfwdError: CannotCreate, PermissionDenied, TransportMissing, NameNotResolved.
        """
        raise self.cannot("listened on", address)

    def supported(self) -> str | None:
        """None, or the reason why this machine cannot, in words that a user can act on."""
        return None

    def close(self) -> None:
        """Close what the transport itself keeps open, at the process's end."""

    def cannot(self, what: str, address: Address) -> VsockfwdError:
        """The refusal of something that a scheme has no way to do."""
        return UsageError(f"{address}: a {address.scheme} address cannot be {what}")


HEAD_START = 0.25
"""Seconds after which the next of several addresses is tried beside those that have not answered (RFC 8305, 8)."""


async def first_to_answer(connect: Callable[[A], Awaitable[Stream]], places: Sequence[A]) -> Stream:
    """Dial addresses that are the same to the caller, each a little after the one before or when that has failed; the
    first that answers is the one, and the others are hung up on. Raises what the first failed with, when all have."""
    answered: Stream | None = None
    failures: list[VsockfwdError | OSError] = []

    async def attempt(place: A, failed: trio.Event) -> None:
        nonlocal answered
        try:
            stream = await connect(place)
        except (VsockfwdError, OSError) as error:
            failures.append(error)
            failed.set()
            return
        if answered is None:
            answered = stream
            nursery.cancel_scope.cancel()
        else:
            stream.close()

    async with trio.open_nursery() as nursery:
        for place in places:
            failed = trio.Event()
            nursery.start_soon(attempt, place, failed)
            if place is not places[-1]:
                with trio.move_on_after(HEAD_START):
                    await failed.wait()
    if answered is None:
        raise failures[0]
    return answered


def close_socket(sock: socket.socket) -> None:
    """Close a socket that tasks may be waiting on; they wake with trio.ClosedResourceError."""
    if sock.fileno() >= 0:
        trio.lowlevel.notify_closing(sock)
        sock.close()


def reset_at_close(sock: socket.socket) -> None:
    """Have the neighbour of a TCP socket see a reset instead of an end, when it is closed."""
    if sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)


async def connect_socket(sock: socket.socket, sockaddr: Any, address: Address) -> None:
    """Connect a non-blocking socket within the address's timeout. Raises OSError; ETIMEDOUT where ours ran out."""
    try:
        sock.connect(sockaddr)
    except BlockingIOError as error:
        with trio.move_on_after(address.option("connect-timeout", CONNECT_TIMEOUT)) as scope:
            if error.errno == errno.EAGAIN:  # a UNIX socket whose backlog is full: nothing to wait on but time
                await _retry_connect(sock, sockaddr)
            else:
                await trio.lowlevel.wait_writable(sock)
        if scope.cancelled_caught:
            raise OSError(errno.ETIMEDOUT, "timed out") from None
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise OSError(number, "connect failed") from None


async def _retry_connect(sock: socket.socket, sockaddr: Any) -> None:
    pause = 0.001
    while True:
        await trio.sleep(pause)
        pause = min(pause * 2, 0.1)
        try:
            sock.connect(sockaddr)
        except BlockingIOError:
            continue
        return


def connect_failed(error: OSError, address: Address, hint: str = "") -> VsockfwdError:
    """A failed connect as the error that a user reads."""
    return from_oserror(error, f"connect to {address.bare()}", hint=hint)


def listen_failed(error: OSError, address: Address, hint: str = "") -> VsockfwdError:
    """A failed listen as the error that a user reads."""
    return from_oserror(error, f"listen on {address.bare()}", hint=hint)
