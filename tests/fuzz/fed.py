"""A peer that has said everything already: a stream that gives bytes in pieces, and swallows what it is sent."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import trio

from vsockfwd.address import Address
from vsockfwd.identity import Identity, UnixPeer
from vsockfwd.transport.base import Listener, Stream, Transport


def pieces(data: bytes, sizes: Sequence[int]) -> Iterator[bytes]:
    """The bytes in pieces of these sizes, over and over."""
    at, size = 0, itertools.cycle(sizes)
    while at < len(data):
        step = next(size)
        yield data[at : at + step]
        at += step


class Fed(Stream):
    """Gives `data`, in pieces of these sizes, once it was sent something `after` times; then it ends."""

    def __init__(self, data: bytes, peer: Identity, *, sizes: Sequence[int] = (1 << 20,), after: int = 0) -> None:
        self.peer = peer
        self.name = "the fed peer"
        self.sent = 0
        self._pieces = pieces(data, sizes)
        self._rest = memoryview(b"")
        self._after = after
        self._closed = False
        self._changed = trio.lowlevel.ParkingLot()

    def try_receive_into(self, buffer: memoryview) -> int:
        if self._closed:
            raise OSError(9, "closed")
        if self._after:
            raise BlockingIOError
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size

    def try_send(self, data: memoryview | bytes | bytearray) -> int:
        if self._closed:
            raise OSError(9, "closed")
        self.sent += len(data)
        self._after = max(0, self._after - 1)
        self._changed.unpark_all()
        return len(data)

    async def wait_readable(self) -> None:
        while self._after and not self._closed:
            await self._changed.park()
        if self._closed:
            raise trio.ClosedResourceError("closed")
        await trio.lowlevel.checkpoint()

    async def wait_writable(self) -> None:
        await trio.lowlevel.checkpoint()

    def shutdown_sending(self) -> None:
        pass

    def close(self) -> None:
        self._closed = True
        self._changed.unpark_all()


class _FedListener(Listener):
    """Where a few come, and then nobody."""

    def __init__(self, address: Address, streams: list[Stream]) -> None:
        self.address = address
        self._streams = streams

    def try_accept(self) -> Stream:
        if not self._streams:
            raise BlockingIOError
        return self._streams.pop()

    async def wait(self) -> None:
        await trio.sleep_forever()

    def close(self) -> None:
        while self._streams:
            self._streams.pop().close()


class FedTransport(Transport[Address]):
    """Whatever is dialled is a new stream of `make`, with `at_once` without a wait; where it listens, three come."""

    def __init__(self, make: Callable[[], Stream], *, at_once: bool = False) -> None:
        self._make = make
        self._at_once = at_once

    def connect_now(self, address: Address) -> Stream | None:
        return self._make() if self._at_once else None

    async def connect(self, address: Address, *, privileged: bool = False) -> Stream:
        await trio.lowlevel.checkpoint()
        return self._make()

    async def listen(self, address: Address) -> Sequence[Listener]:
        await trio.lowlevel.checkpoint()
        return [_FedListener(address, [self._make() for _ in range(3)])]


US = UnixPeer(0, 0, 1)
