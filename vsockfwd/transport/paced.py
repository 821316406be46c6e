"""A stream that moves no more bytes in a second than its owner was given, shared with the owner's other streams.

The thing to understand first: the limit is a stream's, so nothing above knows of it. A piece may take more than is
left; nothing moves then until that is made up for. So a piece is as large as a tenth of a second's bytes, and what was
decided in haste, a refusal or a reset, waits no longer than that for its turn; up to a second at the slowest paces.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from vsockfwd.transport.base import Stream

_PIECES = 10
"""To a second."""

_SMALLEST = 1 << 10
"""Bytes of a piece."""


class Pace:
    """So many bytes a second in one direction, for any number of streams. It saves up what a piece may have."""

    def __init__(self, rate: int, clock: Callable[[], float] = trio.current_time) -> None:
        """`rate`: bytes a second."""
        self.piece = max(rate // _PIECES, _SMALLEST)
        """The most bytes that may move at once."""
        self._rate = rate
        self._clock = clock
        self._left = float(self.piece)
        self._then = clock()

    def _now(self) -> float:
        """The bytes that are left; below 0: moved ahead of time."""
        now = self._clock()
        self._left = min(self.piece, self._left + (now - self._then) * self._rate)
        self._then = now
        return self._left

    def check(self) -> None:
        """Raises BlockingIOError where nothing may move now."""
        if self._now() <= 0:
            raise BlockingIOError

    def moved(self, size: int) -> None:
        self._left -= size

    async def wait(self) -> None:
        """Wait until something may move."""
        while True:
            left = self._now()
            if left > 0:
                return
            # A whole byte more, lest a rounded sleep end just before.
            await trio.sleep((1 - left) / self._rate)


class PacedStream(Stream):
    """A stream at a pace of its own in each direction. It has no socket to be watched or spliced: it is to be asked."""

    def __init__(self, stream: Stream, receiving: Pace, sending: Pace) -> None:
        self.features = stream.features
        self.peer = stream.peer
        self.name = stream.name
        self.sock = stream.sock
        self._stream = stream
        self._receiving = receiving
        self._sending = sending

    def try_receive_into(self, buffer: memoryview) -> int:
        self._receiving.check()
        size = self._stream.try_receive_into(buffer[: self._receiving.piece])
        self._receiving.moved(size)
        return size

    def try_send(self, data: memoryview | bytes | bytearray) -> int:
        self._sending.check()
        size = self._stream.try_send(memoryview(data)[: self._sending.piece])
        self._sending.moved(size)
        return size

    async def wait_readable(self) -> None:
        await self._receiving.wait()
        await self._stream.wait_readable()

    async def wait_writable(self) -> None:
        await self._sending.wait()
        await self._stream.wait_writable()

    def shutdown_sending(self) -> None:
        self._stream.shutdown_sending()

    def close(self) -> None:
        self._stream.close()

    def abort(self) -> None:
        self._stream.abort()
