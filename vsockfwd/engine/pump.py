"""One direction of bytes, as fast as the kernel allows.

Little, in big pieces: try the receive first and wait only when the kernel has nothing; borrow a large buffer only
while bytes are in hand, so that an idle connection holds none; let others run after a few rounds that never waited.
Measured against socat and HAProxy in docs/benchmarks.md.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from vsockfwd.transport.base import Stream
from vsockfwd.wire.frames import FRAME_LIMIT, HEADER_LENGTH

BUFFER_SIZE = FRAME_LIMIT + HEADER_LENGTH
"""Bytes: a mebibyte of payload with room for a frame's header in front, so that both go out in one send."""

KEPT_BUFFERS = 16
"""Free buffers that a pool keeps; more are borrowed at once only while as many peers are slow to take their bytes."""

ROUNDS = 8
"""Rounds without a wait after which the others get their turn. A checkpoint costs 2.6 µs, a mebibyte some 200."""


class BufferPool:
    """Large buffers, lent while bytes are in hand."""

    __slots__ = ("_free", "size")

    def __init__(self, size: int = BUFFER_SIZE) -> None:
        self.size = size
        self._free: list[memoryview] = []

    def borrow(self) -> memoryview:
        """A buffer of `size` bytes with any content."""
        return self._free.pop() if self._free else memoryview(bytearray(self.size))

    def give_back(self, buffer: memoryview) -> None:
        """The end of a loan."""
        if len(self._free) < KEPT_BUFFERS:
            self._free.append(buffer)


class Broken(Exception):
    """A stream failed under the pump: which one, and the kernel's reason. Translated by who called the pump."""

    def __init__(self, stream: Stream, error: OSError) -> None:
        super().__init__(f"{stream.name}: {error}")
        self.stream = stream
        self.error = error


class Tally:
    """What one direction has moved, in bytes, and whether a piece of it is half-way out."""

    __slots__ = ("bytes", "half_sent")

    def __init__(self) -> None:
        self.bytes = 0
        self.half_sent = False


async def push(sink: Stream, data: memoryview) -> None:
    """Send everything, waiting only when the kernel is full. Raises Broken."""
    send = sink.try_send
    while True:
        try:
            sent = send(data)
        except BlockingIOError:
            await sink.wait_writable()
            continue
        except OSError as error:
            raise Broken(sink, error) from None
        if sent == len(data):
            return
        data = data[sent:]


async def pump(
    source: Stream,
    sink: Stream,
    buffers: BufferPool,
    tally: Tally,
    frame: Callable[[memoryview, int], memoryview] | None = None,
    most: int = FRAME_LIMIT,
) -> None:
    """Move bytes from `source` to `sink` until the source ends. Raises Broken.

    `frame` turns a piece into what is sent: it is given a buffer with so many bytes behind HEADER_LENGTH free ones, and
    returns the part of the buffer to send. A piece has at most `most` bytes.
    """
    receive, send = source.try_receive_into, sink.try_send
    window = slice(HEADER_LENGTH, HEADER_LENGTH + most) if frame else slice(most)
    rounds = 0
    while True:
        buffer = buffers.borrow()
        try:
            try:
                size = receive(buffer[window])
            except BlockingIOError:
                size = -1
            except OSError as error:
                raise Broken(source, error) from None
            if size > 0:
                tally.bytes += size
                tally.half_sent = True
                data = frame(buffer, size) if frame else buffer[:size]
                # `push`, written out: this is where a small message's time goes.
                while True:
                    try:
                        sent = send(data)
                    except BlockingIOError:
                        rounds = 0
                        await sink.wait_writable()
                        continue
                    except OSError as error:
                        raise Broken(sink, error) from None
                    if sent == len(data):
                        break
                    data = data[sent:]
                tally.half_sent = False
        finally:
            buffers.give_back(buffer)
        if size > 0:
            rounds += 1
            if rounds >= ROUNDS:
                rounds = 0
                await trio.lowlevel.checkpoint()
        elif size == 0:
            return
        else:
            rounds = 0
            await source.wait_readable()
