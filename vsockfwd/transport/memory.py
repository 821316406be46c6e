"""Streams inside one process, with the same primitives as sockets: the engine's tests run on them without a kernel.

A pipe holds at most `CAPACITY` bytes, so that senders meet a full one. `MemoryTransport` is a little world of its own:
what listens in one instance is dialled in the same.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Sequence

import trio

from vsockfwd.address import MemoryAddress
from vsockfwd.errors import CannotCreate, Refused
from vsockfwd.identity import Identity, OwnPeer
from vsockfwd.transport.base import Features, Listener, Stream, Transport

CAPACITY = 1 << 16
FEATURES = Features(half_close=True, reset=True)


class _Pipe:
    """One direction: bytes, whether its sender has finished, whether it was torn down."""

    def __init__(self) -> None:
        self.bytes = bytearray()
        self.ended = False
        self.reset = False
        self.unread = False
        self.changed = trio.lowlevel.ParkingLot()

    def change(self) -> None:
        self.changed.unpark_all()


class MemoryStream(Stream):
    """One end of a pair. `abort` reads as ECONNRESET at the other end, as it does over TCP."""

    def __init__(self, receiving: _Pipe, sending: _Pipe, peer: Identity, features: Features) -> None:
        self._receiving = receiving
        self._sending = sending
        self._closed = False
        self.peer = peer
        self.name = str(peer)
        self.features = features

    def try_receive_into(self, buffer: memoryview) -> int:
        self._check_open()
        pipe = self._receiving
        if pipe.reset:
            raise ConnectionResetError(errno.ECONNRESET, "reset in memory")
        if not pipe.bytes:
            if pipe.ended:
                return 0
            raise BlockingIOError(errno.EAGAIN, "empty")
        size = min(len(buffer), len(pipe.bytes))
        buffer[:size] = pipe.bytes[:size]
        del pipe.bytes[:size]
        pipe.change()
        return size

    def try_send(self, data: memoryview | bytes | bytearray) -> int:
        self._check_open()
        pipe = self._sending
        if pipe.reset:
            raise ConnectionResetError(errno.ECONNRESET, "reset in memory")
        if pipe.ended or pipe.unread:
            raise BrokenPipeError(errno.EPIPE, "broken in memory")
        room = CAPACITY - len(pipe.bytes)
        if room <= 0:
            raise BlockingIOError(errno.EAGAIN, "full")
        size = min(room, len(data))
        pipe.bytes += data[:size]
        pipe.change()
        return size

    def _check_open(self) -> None:
        if self._closed:
            raise OSError(errno.EBADF, "closed")

    def _check_waiting(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError(f"{self.name}: closed")

    async def wait_readable(self) -> None:
        while not (self._receiving.bytes or self._receiving.ended or self._receiving.reset):
            self._check_waiting()
            await self._receiving.changed.park()
        self._check_waiting()
        await trio.lowlevel.checkpoint()

    async def wait_writable(self) -> None:
        while len(self._sending.bytes) >= CAPACITY and not (self._sending.unread or self._sending.reset):
            self._check_waiting()
            await self._sending.changed.park()
        self._check_waiting()
        await trio.lowlevel.checkpoint()

    def shutdown_sending(self) -> None:
        self._sending.ended = True
        self._sending.change()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.shutdown_sending()
            self._receiving.unread = True
            self._receiving.change()

    def abort(self) -> None:
        if not self._closed:
            self._sending.reset = self._receiving.reset = self.features.reset
            self.close()


def memory_pair(
    features: Features = FEATURES, near: str = "near", far: str = "far"
) -> tuple[MemoryStream, MemoryStream]:
    """Two ends of one stream."""
    there, back = _Pipe(), _Pipe()
    return MemoryStream(back, there, OwnPeer(far), features), MemoryStream(there, back, OwnPeer(near), features)


class MemoryListener(Listener):
    """Where dialled memory streams arrive."""

    def __init__(self, transport: MemoryTransport, address: MemoryAddress) -> None:
        self.address: MemoryAddress = address
        self.waiting: deque[MemoryStream] = deque()
        self.arrived = trio.lowlevel.ParkingLot()
        self._transport = transport

    def try_accept(self) -> Stream:
        if not self.waiting:
            raise BlockingIOError(errno.EAGAIN, "none waits")
        return self.waiting.popleft()

    async def wait(self) -> None:
        if not self.waiting:
            await self.arrived.park()

    def close(self) -> None:
        self._transport.listeners.pop(self.address.name, None)
        while self.waiting:
            self.waiting.popleft().abort()


class MemoryTransport(Transport[MemoryAddress]):
    """`memory:`, inside this one instance."""

    def __init__(self, features: Features = FEATURES) -> None:
        self.features = features
        self.listeners: dict[str, MemoryListener] = {}

    async def connect(self, address: MemoryAddress, *, privileged: bool = False) -> Stream:
        await trio.lowlevel.checkpoint()
        listener = self.listeners.get(address.name)
        if listener is None:
            raise Refused(f"connect to {address}: nothing listens there")
        ours, theirs = memory_pair(self.features, near=f"client of {address}", far=str(address))
        listener.waiting.append(theirs)
        listener.arrived.unpark_all()
        return ours

    async def listen(self, address: MemoryAddress) -> Sequence[Listener]:
        await trio.lowlevel.checkpoint()
        if address.name in self.listeners:
            raise CannotCreate(f"listen on {address}: something listens there already")
        listener = self.listeners[address.name] = MemoryListener(self, address)
        return [listener]
