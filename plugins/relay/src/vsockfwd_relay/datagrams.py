"""The types whose messages have boundaries: UDP, UNIX datagrams, and SEQPACKET over vsock.

The thing to understand first: one receive is one datagram and one send is one, so a datagram that came whole leaves
whole. What is too large for the other side is dropped, and said; what arrives is never clipped. Nobody says the end of
datagrams, but for SEQPACKET and for `null-eof`: a relay with such an end is over a moment after its other end is.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from vsockfwd.plugin import (
    Address,
    Features,
    Identity,
    Listener,
    NetworkPeer,
    OwnPeer,
    Stream,
    TransportMissing,
    UdpAddress,
    UnixAddress,
    VsockAddress,
    VsockfwdError,
    VsockPeer,
    from_oserror,
    printable,
    stream_over,
    why_unsupported,
)
from vsockfwd_relay.address_type import Situation, Specification
from vsockfwd_relay.admission import Admission
from vsockfwd_relay.options import When
from vsockfwd_relay.socket_options import VSOCK, remove_last, set_options
from vsockfwd_relay.sockets import (
    BACKLOG,
    Place,
    bind_socket,
    connect_vsock_socket,
    connected,
    local_place,
    make_socket,
    own_path,
    persist,
    resolve,
    sockaddr_of,
)

LARGEST = 1 << 16
"""Bytes that every datagram fits into, but for those of a UNIX socket whose buffers were raised."""

PIECE = 8192
"""Bytes of a datagram that is made of a stream, as socat cuts them, unless -b says otherwise."""

QUEUED = 1 << 20
"""Bytes that may wait for one flow, while its other end is slow; what comes beyond is dropped, and said."""

BURST = 64
"""Datagrams taken from a socket in a row before those they are for have their turn."""

BREATH = 0.002
"""Seconds before a UNIX socket whose receiver is slow is tried again: the kernel tells nobody when it has room."""

Data = memoryview | bytes | bytearray


def admission_of(spec: Specification) -> Admission:
    """What an address asks of those who come."""
    return Admission(
        spec.option("range", ()), spec.option("allow"), spec.option("sourceport"), bool(spec.option("lowport"))
    )


def peer_of(family: int, sockaddr: Any) -> Identity:
    """Who sent a datagram, as far as its address tells."""
    if family == socket.AF_UNIX:
        return OwnPeer(printable(os.fsencode(sockaddr).replace(b"\0", b"@")) if sockaddr else "a socket without a name")
    return NetworkPeer(sockaddr[0].removeprefix("::ffff:"), sockaddr[1])


class _Messages(Stream):
    """What all of them share: pieces for a reader whose buffer is small, and messages that are too large."""

    features = Features(half_close=True, boundaries=True)

    def __init__(self, spec: Specification, situation: Situation) -> None:
        self._rest = memoryview(b"")
        self._null_eof = bool(spec.option("null-eof"))
        self._shut_null = bool(spec.option("shut-null"))
        self._note = situation.note

    def _next(self, buffer: memoryview) -> int:
        """Receive one message; 0 where it is empty. Raises BlockingIOError, OSError; EOFError at the end."""
        raise NotImplementedError

    def _send(self, data: Data) -> int:
        raise NotImplementedError

    def try_receive_into(self, buffer: memoryview) -> int:
        if not self._rest:
            if len(buffer) >= LARGEST:
                return self._receive(buffer)
            whole = memoryview(bytearray(LARGEST))
            self._rest = whole[: self._receive(whole)]
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size

    def _receive(self, buffer: memoryview) -> int:
        while True:
            try:
                size = self._next(buffer)
            except EOFError:
                return 0
            if size > len(buffer):
                self._note(1, f"{self.name}: a datagram of {size} bytes came, {len(buffer)} fit: dropped")
            elif size or self._null_eof:
                return size

    def try_send(self, data: Data) -> int:
        try:
            return self._send(data)
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise
            self._note(1, f"{self.name}: a datagram of {len(data)} bytes is too large: dropped")
            return len(data)

    def shutdown_sending(self) -> None:
        if self._shut_null:
            try:
                self._send(b"")
            except OSError:
                pass  # nobody is there to be told


class Datagrams(_Messages):
    """A datagram socket of one's own: connected, or with a place that it sends to. `wants` says whose are taken."""

    empties = True

    def __init__(
        self,
        spec: Specification,
        situation: Situation,
        sock: socket.socket,
        name: str,
        to: Any = None,
        wants: Callable[[Any], bool] | None = None,
    ) -> None:
        super().__init__(spec, situation)
        self.sock: socket.socket = sock
        self.name = name
        self.peer = OwnPeer(name)
        self._to = to
        self._wants = wants

    def _next(self, buffer: memoryview) -> int:
        if self._wants is None:
            return self.sock.recv_into(buffer, 0, socket.MSG_TRUNC)
        while True:
            size, source = self.sock.recvfrom_into(buffer, 0, socket.MSG_TRUNC)
            if self._wants(source):
                return size

    def _send(self, data: Data) -> int:
        return self.sock.send(data) if self._to is None else self.sock.sendto(data, self._to)

    def source_to_poll(self) -> int | None:
        return self.sock.fileno()

    def sink_to_poll(self) -> int | None:
        return self.sock.fileno()

    async def wait_readable(self) -> None:
        await trio.lowlevel.wait_readable(self.sock)

    async def wait_writable(self) -> None:
        await trio.lowlevel.wait_writable(self.sock)

    def close(self) -> None:
        if self.sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self.sock)
            self.sock.close()


class Packets(Datagrams):
    """A connected SEQPACKET socket: messages, and an end."""

    def _next(self, buffer: memoryview) -> int:
        size = self.sock.recv_into(buffer, 0, socket.MSG_TRUNC)
        if not size:
            raise EOFError
        return size

    def shutdown_sending(self) -> None:
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            if error.errno not in (errno.ENOTCONN, errno.EPIPE, errno.ECONNRESET):
                raise


# --- many senders, one socket -------------------------------------------------------------------------------------


class _Shared:
    """A bound socket that several use; closed when the last of them is done with it."""

    def __init__(self, sock: socket.socket, remove: Callable[[], None]) -> None:
        self.sock = sock
        self._remove = remove
        self._users = 0
        self._writing = trio.Lock()

    def join(self) -> None:
        self._users += 1

    def leave(self) -> None:
        self._users -= 1
        if not self._users:
            trio.lowlevel.notify_closing(self.sock)
            self.sock.close()
            self._remove()

    async def wait_writable(self) -> None:
        if self.sock.family == socket.AF_UNIX:
            await trio.sleep(BREATH)
            return
        async with self._writing:
            await trio.lowlevel.wait_writable(self.sock)


class _OfOne(_Messages):
    """The messages of one sender on a shared socket, and the way back to it."""

    def __init__(self, spec: Specification, situation: Situation, shared: _Shared, way: Any) -> None:
        super().__init__(spec, situation)
        shared.join()
        self._shared: _Shared | None = shared
        self._socket = shared
        self._way = way
        self.sock = shared.sock
        self.peer = peer_of(shared.sock.family, way)
        self.name = f"{spec.type.name.lower()} peer {self.peer}"

    def _send(self, data: Data) -> int:
        if not self._way:
            raise OSError(errno.EDESTADDRREQ, "the sender's socket has no name to answer to")
        return self._socket.sock.sendto(data, self._way)

    async def wait_writable(self) -> None:
        await self._socket.wait_writable()

    def close(self) -> None:
        shared, self._shared = self._shared, None
        if shared is not None:
            shared.leave()


class Packet(_OfOne):
    """RECVFROM: one datagram, then the end; answers go to who sent it."""

    def __init__(self, spec: Specification, situation: Situation, shared: _Shared, way: Any, data: bytes) -> None:
        super().__init__(spec, situation, shared, way)
        self._data: bytes | None = data

    def _next(self, buffer: memoryview) -> int:
        if self._data is None:
            raise EOFError
        data, self._data = self._data, None
        buffer[: len(data)] = data
        return len(data)

    async def wait_readable(self) -> None:
        await trio.lowlevel.checkpoint()


class PacketListener(Listener):
    """RECVFROM: every datagram is a connection of its own."""

    def __init__(self, spec: Specification, situation: Situation, shared: _Shared, address: Address) -> None:
        self.address = address
        self._spec = spec
        self._situation = situation
        self._shared = shared
        self._open = True
        self._buffer = memoryview(bytearray(LARGEST))
        shared.join()

    def try_accept(self) -> Stream:
        while True:
            size, way = self._shared.sock.recvfrom_into(self._buffer)
            if size:
                break
        return Packet(self._spec, self._situation, self._shared, way, bytes(self._buffer[:size]))

    async def wait(self) -> None:
        await trio.lowlevel.wait_readable(self._shared.sock)

    def close(self) -> None:
        if self._open:
            self._open = False
            self._shared.leave()


class FlowListener(Listener):
    """UDP-LISTEN: every sender is a connection, as long as its flow is open."""

    def __init__(self, spec: Specification, situation: Situation, shared: _Shared, address: Address) -> None:
        self.address = address
        self._spec = spec
        self._situation = situation
        self._shared = shared
        self._open = True
        self._flows: dict[Any, Flow] = {}
        self._fresh: deque[Flow] = deque()
        self._buffer = memoryview(bytearray(LARGEST))
        self._watched = False
        self._sleepers: dict[object, trio.Event] = {}
        shared.join()

    def try_accept(self) -> Stream:
        if not self._fresh:
            self.drain()
        if not self._fresh:
            raise BlockingIOError
        return self._fresh.popleft()

    async def wait(self) -> None:
        await self.wait_for(self, lambda: bool(self._fresh))

    async def wait_for(self, who: object, ready: Callable[[], bool]) -> None:
        """Wait until `ready`. One of those who wait watches the socket for all; who leaves hands that on."""
        while not ready():
            if self._watched:
                event = self._sleepers[who] = trio.Event()
                try:
                    await event.wait()
                finally:
                    del self._sleepers[who]
                    if not self._watched:
                        self._hand_on()
                continue
            self._watched = True
            try:
                await trio.lowlevel.wait_readable(self._shared.sock)
            finally:
                self._watched = False
                self._hand_on()
            self.drain()

    def _hand_on(self) -> None:
        for event in self._sleepers.values():
            event.set()
            return

    def wake(self, who: object) -> None:
        if who in self._sleepers:
            self._sleepers[who].set()

    def drain(self) -> None:
        """Give what has come to those it is for. Raises OSError."""
        for _ in range(BURST):
            try:
                size, way = self._shared.sock.recvfrom_into(self._buffer)
            except BlockingIOError:
                return
            except ConnectionRefusedError:
                continue  # what ICMP says of one sender must not end the others
            flow = self._flows.get(way)
            if flow is None:
                if not self._open:
                    continue
                flow = Flow(self._spec, self._situation, self._shared, way, self)
                self._flows[way] = flow
                self._fresh.append(flow)
                self.wake(self)
            flow.put(bytes(self._buffer[:size]))

    def forget(self, way: Any) -> None:
        self._flows.pop(way, None)

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        for flow in list(self._fresh):
            flow.close()
        self._shared.leave()


class Flow(_OfOne):
    """What one sender says and hears."""

    def __init__(
        self, spec: Specification, situation: Situation, shared: _Shared, way: Any, listener: FlowListener
    ) -> None:
        super().__init__(spec, situation, shared, way)
        self._spec, self._situation = spec, situation
        self._listener = listener
        self._queue: deque[bytes] = deque()
        self._queued = self._dropped = 0

    def put(self, data: bytes) -> None:
        """One more datagram has come."""
        if self._queued + len(data) > QUEUED:
            self._dropped += 1
            return
        self._queue.append(data)
        self._queued += len(data)
        self._listener.wake(self)

    def alone(self) -> Sole:
        """This flow by itself; it takes the place of this stream, which is closed."""
        sole = Sole(self._spec, self._situation, self._socket, self._way, self._queue)
        self.close()
        return sole

    def _next(self, buffer: memoryview) -> int:
        if self._shared is None:
            raise OSError(errno.EBADF, "closed")
        if not self._queue:
            raise BlockingIOError  # who waits for the socket looks what is there
        data = self._queue.popleft()
        self._queued -= len(data)
        buffer[: len(data)] = data
        return len(data)

    async def wait_readable(self) -> None:
        await self._listener.wait_for(self, lambda: bool(self._queue) or self._shared is None)

    def close(self) -> None:
        if self._shared is not None:
            self._listener.forget(self._way)
            if self._dropped:
                self._note(1, f"{self.name}: {self._dropped} datagrams came faster than they left: dropped")
        super().close()
        self._listener.wake(self)


class Sole(_OfOne):
    """The one sender that is heard on its socket, which is read without a listener in between."""

    def __init__(
        self, spec: Specification, situation: Situation, shared: _Shared, way: Any, come: deque[bytes]
    ) -> None:
        super().__init__(spec, situation, shared, way)
        self.empties = len(come) < 2
        self._come = come
        self.sock: socket.socket = shared.sock

    def _next(self, buffer: memoryview) -> int:
        if self._come:
            data = self._come.popleft()
            buffer[: len(data)] = data
            return len(data)
        while True:
            size, way = self.sock.recvfrom_into(buffer, 0, socket.MSG_TRUNC)
            if way == self._way:
                return size

    def source_to_poll(self) -> int | None:
        return self.sock.fileno()

    def sink_to_poll(self) -> int | None:
        return self.sock.fileno()

    async def wait_readable(self) -> None:
        await trio.lowlevel.wait_readable(self.sock)


async def settle(spec: Specification, situation: Situation, stream: Stream) -> Stream:
    """UDP-LISTEN without fork: nobody but the first sender is heard any more."""
    return stream.alone() if isinstance(stream, Flow) and not spec.option("fork") else stream


# --- opening ------------------------------------------------------------------------------------------------------


def _udp(place: Place) -> str:
    return f"udp:{place.address.rest()}"


@asynccontextmanager
async def open_udp(spec: Specification, situation: Situation) -> AsyncIterator[Stream]:
    """UDP: a socket that is connected, so that what ICMP says is heard."""
    place: Place = spec.subject

    async def attempt() -> Stream:
        failure: VsockfwdError | None = None
        for family, sockaddr in await resolve(place, socket.SOCK_DGRAM, spec.families.first):
            try:
                source = place.source and _any(place.source, family)
                what = f"connect to {_udp(place)}"
                sock = await connected(spec, situation, family, socket.SOCK_DGRAM, sockaddr, source, what)
                return Datagrams(spec, situation, sock, _udp(place))
            except VsockfwdError as error:
                failure = failure or error
        assert failure is not None  # a name that resolves has an address
        raise failure

    async with _closing(spec, situation, await persist(spec, situation, attempt)) as stream:
        yield stream


def open_udp_to(*, anybody: bool) -> Any:
    """UDP-SENDTO, and UDP-DATAGRAM, which hears anybody whom `range` lets in."""

    @asynccontextmanager
    async def opened(spec: Specification, situation: Situation) -> AsyncIterator[Stream]:
        place: Place = spec.subject
        family, to = (await resolve(place, socket.SOCK_DGRAM, spec.families.first))[0]
        admission = admission_of(spec)

        def wants(source: Any) -> bool:
            if not anybody and source[:2] != to[:2]:
                return False
            return not anybody or not admission.why_not(peer_of(family, source))

        what = f"open {_udp(place)}"
        sock = make_socket(spec, situation, family, socket.SOCK_DGRAM, what)
        try:
            # An answer needs somewhere to go, also one that comes before anything was sent.
            bind_socket(sock, _any(place.source or ("", 0), family), spec, what)
        except OSError as error:
            sock.close()
            raise from_oserror(error, what) from None
        async with _closing(spec, situation, Datagrams(spec, situation, sock, _udp(place), to, wants)) as stream:
            yield stream

    return opened


@asynccontextmanager
async def open_udp_receiver(spec: Specification, situation: Situation) -> AsyncIterator[Stream]:
    """UDP-RECV: what anybody sends."""
    family, address, sock = await _bind_udp(spec, situation)
    admission = admission_of(spec)
    stream = Datagrams(
        spec, situation, sock, str(address), None, lambda source: not admission.why_not(peer_of(family, source))
    )
    situation.note(0 if spec.subject.port == 0 else 2, f"receiving on {address}")
    async with _closing(spec, situation, stream):
        yield stream


async def listen_udp(spec: Specification, situation: Situation) -> Sequence[Listener]:
    """UDP-LISTEN and UDP-RECVFROM."""

    async def attempt() -> Sequence[Listener]:
        _, address, sock = await _bind_udp(spec, situation)
        kind = PacketListener if spec.type.name.endswith("RECVFROM") else FlowListener
        return [kind(spec, situation, _Shared(sock, lambda: None), address)]

    return await persist(spec, situation, attempt)


async def _bind_udp(spec: Specification, situation: Situation) -> tuple[int, UdpAddress, socket.socket]:
    family, host, sockaddr = await local_place(spec, socket.SOCK_DGRAM)
    what = f"listen on udp:{host}:{sockaddr[1]}"
    sock = make_socket(spec, situation, family, socket.SOCK_DGRAM, what)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "*")
        bind_socket(sock, sockaddr, spec, what)
    except OSError as error:
        sock.close()
        hint = "another program listens there; port 0 picks a free one" if error.errno == errno.EADDRINUSE else ""
        raise from_oserror(error, what, hint=hint) from None
    except BaseException:
        sock.close()
        raise
    return family, UdpAddress(host, sock.getsockname()[1]), sock


def _any(source: tuple[str, int], family: int) -> tuple[str, int]:
    return source[0] or ("::" if family == socket.AF_INET6 else "0.0.0.0"), source[1]


@asynccontextmanager
async def open_unix_to(spec: Specification, situation: Situation) -> AsyncIterator[Stream]:
    """UNIX-SENDTO: connected, so that the kernel tells when there is room, and only its peer is heard."""

    async def attempt() -> Stream:
        return await _unix_socket(spec, situation, socket.SOCK_DGRAM)

    async with _named(spec, situation, await persist(spec, situation, attempt)) as stream:
        yield stream


@asynccontextmanager
async def open_unix_client(spec: Specification, situation: Situation) -> AsyncIterator[Stream]:
    """UNIX-CLIENT: whatever kind of socket stands there."""

    async def attempt() -> Stream:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            try:
                return await _unix_socket(spec, situation, kind)
            except VsockfwdError as error:
                if error.errno != errno.EPROTOTYPE:
                    raise
        return await _unix_socket(spec, situation, socket.SOCK_SEQPACKET)

    async with _named(spec, situation, await persist(spec, situation, attempt)) as stream:
        yield stream


async def _unix_socket(spec: Specification, situation: Situation, kind: int) -> Stream:
    _, sockaddr = sockaddr_of(spec.subject)
    name = spec.subject.bare()
    # Without a name of its own, one of the kernel's choice: an answer needs somewhere to go (unix(7), autobind).
    source = own_path(spec) if "bind" in spec.options else b"" if kind == socket.SOCK_DGRAM else None
    what = f"connect to {name}"
    sock = await connected(spec, situation, socket.AF_UNIX, kind, sockaddr, source, what)
    if kind == socket.SOCK_STREAM:
        return stream_over(sock, sockaddr, name)
    return (Datagrams if kind == socket.SOCK_DGRAM else Packets)(spec, situation, sock, name)


@asynccontextmanager
async def open_unix_receiver(spec: Specification, situation: Situation) -> AsyncIterator[Stream]:
    """UNIX-RECV: what anybody sends."""
    sock = _bind_unix(spec, situation)
    situation.note(2, f"receiving on {spec.subject.bare()}")
    stream = Datagrams(spec, situation, sock, spec.subject.bare())
    try:
        async with _closing(spec, situation, stream):
            yield stream
    finally:
        _remove_own(spec)


async def listen_unix(spec: Specification, situation: Situation) -> Sequence[Listener]:
    """UNIX-RECVFROM."""

    async def attempt() -> Sequence[Listener]:
        shared = _Shared(_bind_unix(spec, situation), lambda: _remove_own(spec))
        return [PacketListener(spec, situation, shared, spec.subject)]

    return await persist(spec, situation, attempt)


def _bind_unix(spec: Specification, situation: Situation) -> socket.socket:
    _, sockaddr = sockaddr_of(spec.subject)
    what = f"listen on {spec.subject.bare()}"
    sock = make_socket(spec, situation, socket.AF_UNIX, socket.SOCK_DGRAM, what)
    try:
        try:
            bind_socket(sock, sockaddr, spec, what)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _left_behind(sockaddr):
                raise
            os.unlink(sockaddr)
            bind_socket(sock, sockaddr, spec, what)
    except OSError as error:
        sock.close()
        raise from_oserror(error, what) from None
    except BaseException:
        sock.close()
        raise
    return sock


def _left_behind(path: bytes) -> bool:
    """Whether a datagram socket's file stands there that nobody holds any more."""
    if path.startswith(b"\0") or not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as probe:
        return probe.connect_ex(path) == errno.ECONNREFUSED


def _remove_own(spec: Specification) -> None:
    if isinstance(spec.subject, UnixAddress):
        remove_last(spec, spec.subject.path, default=True)


@asynccontextmanager
async def _named(spec: Specification, situation: Situation, stream: Stream) -> AsyncIterator[Stream]:
    """As `_closing`, of a socket that may have a file of its own."""
    try:
        async with _closing(spec, situation, stream):
            yield stream
    finally:
        if "bind" in spec.options and not (own := own_path(spec)).startswith(b"\0"):
            remove_last(spec, own, default=True)


@asynccontextmanager
async def _closing(spec: Specification, situation: Situation, stream: Stream) -> AsyncIterator[Stream]:
    try:
        if stream.sock is not None:
            set_options(stream.sock, spec, situation, When.CONNECTED)
        yield stream
    finally:
        stream.close()


# --- SEQPACKET over vsock -----------------------------------------------------------------------------------------


@asynccontextmanager
async def open_seqpacket(spec: Specification, situation: Situation) -> AsyncIterator[Stream]:
    """VSOCK-SEQPACKET-CONNECT"""

    async def attempt() -> Stream:
        sock = await connect_vsock_socket(spec, situation, socket.SOCK_SEQPACKET)
        stream = Packets(spec, situation, sock, f"{spec.subject.bare()} (seqpacket)")
        stream.peer = VsockPeer(spec.subject.cid, spec.subject.port)
        return stream

    async with _closing(spec, situation, await persist(spec, situation, attempt)) as stream:
        yield stream


class SeqpacketListener(Listener):
    """A vsock listener for SEQPACKET."""

    def __init__(self, spec: Specification, situation: Situation, sock: socket.socket, address: Address) -> None:
        self.address = address
        self.sock = sock
        self._spec = spec
        self._situation = situation

    def try_accept(self) -> Stream:
        sock, peer = self.sock.accept()
        sock.setblocking(False)
        who = VsockPeer(*peer)
        stream = Packets(self._spec, self._situation, sock, str(who))
        stream.peer = who
        return stream

    async def wait(self) -> None:
        await trio.lowlevel.wait_readable(self.sock)

    def close(self) -> None:
        if self.sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self.sock)
            self.sock.close()


async def listen_seqpacket(spec: Specification, situation: Situation) -> Sequence[Listener]:
    """VSOCK-SEQPACKET-LISTEN"""
    address: VsockAddress = spec.subject
    what = f"listen on {address.bare()} (seqpacket)"

    async def attempt() -> Sequence[Listener]:
        if (reason := why_unsupported()) is not None:
            raise TransportMissing(f"{what}: no vsock", hint=reason)
        sock = make_socket(spec, situation, VSOCK, socket.SOCK_SEQPACKET, what)
        try:
            sock.bind((address.cid, address.port or 0xFFFF_FFFF))
            sock.listen(spec.option("backlog", BACKLOG))
            bound = VsockAddress(address.cid, sock.getsockname()[1])
        except OSError as error:
            sock.close()
            raise from_oserror(error, what) from None
        return [SeqpacketListener(spec, situation, sock, bound)]

    return await persist(spec, situation, attempt)
