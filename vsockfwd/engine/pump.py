"""One direction of bytes, as fast as the kernel allows.

Little, in big pieces: try the receive first and wait only when the kernel has nothing; borrow a large buffer only
while bytes are in hand, so that an idle connection holds none; let others run after a few rounds that never waited.
Measured against socat and HAProxy in docs/benchmarks.md.

The thing to understand first: a Pump never waits. `step` moves what can be moved now and says what it needs to go on;
who waits for that is a task (`run` below), or the epoll that calls back (engine/poll.py).
"""

from __future__ import annotations

import enum
import errno
import fcntl
import mmap
import os
import select
import stat
from collections.abc import Callable
from typing import NoReturn

import trio

from vsockfwd.transport.base import Stream
from vsockfwd.wire.frames import FRAME_LIMIT, HEADER_LENGTH

BUFFER_SIZE = FRAME_LIMIT + HEADER_LENGTH
"""Bytes: a mebibyte of payload with room for a frame's header in front, so that both go out in one send."""

LARGE_BUFFERS = 16
"""Large buffers that a pool makes at most; who borrows beyond them gets a small one, so that a thousand neighbours who
are slow to take their bytes hold 16 MiB and 64 KiB each, not a gibibyte."""

SMALL_SIZE = 1 << 16
"""Bytes of a buffer beyond those."""

ROUNDS = 8
"""Rounds without a wait after which the others get their turn. A checkpoint costs 2.6 µs, a mebibyte some 200."""


SPLICE_FROM = 1 << 16
"""Bytes of one receive that make a stream one of bulk: what follows is spliced, where it can be, until little comes.

Measured here with UNIX sockets and pipes as sinks: 1.4 to 3 times the bytes a second at a third of the CPU time. With
TCP as the sink it was a loss, and so it is to vsock: see transport's Features.
"""

SPLICE_LEAST = 1 << 14
"""Bytes of one splice that are little: what comes next is received and sent, which costs a call less."""

SPLICE = getattr(os, "SPLICE_F_NONBLOCK", 0x02) | getattr(os, "SPLICE_F_MOVE", 0x01)
_PIPES = 16
"""Pipes that a pool keeps; each is two descriptors."""


class Pipe:
    """A pipe between two sockets, how many bytes stand in it, and what is to be sent before them."""

    __slots__ = ("front", "held", "reading", "writing")

    def __init__(self) -> None:
        """Raises OSError."""
        self.reading, self.writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.held = 0
        self.front = b""
        try:
            fcntl.fcntl(self.writing, fcntl.F_SETPIPE_SZ, FRAME_LIMIT)
        except OSError:
            pass  # the user has too many large ones already (pipe(7)): it is a small one

    def close(self) -> None:
        os.close(self.reading)
        os.close(self.writing)


class BufferPool:
    """Buffers, lent while bytes are in hand.

    Each is a mapping of its own: a page counts as memory once bytes have stood in it, so a pool that carries short
    messages holds a page a buffer, and what is dropped goes back to the kernel whole. (On malloc's heap one burst of
    short connections left 16 MiB and the holes between for good.)
    """

    __slots__ = ("_large", "_made", "_pipes", "_small", "size")

    def __init__(self, size: int = BUFFER_SIZE) -> None:
        self.size = size
        self._large: list[memoryview] = []
        self._small: list[memoryview] = []
        self._made = 0
        self._pipes: list[Pipe] = []

    def borrow_pipe(self) -> Pipe:
        """An empty pipe. Raises OSError."""
        return self._pipes.pop() if self._pipes else Pipe()

    def give_back_pipe(self, pipe: Pipe) -> None:
        """The end of a loan; one that still holds something is closed."""
        if pipe.held or len(self._pipes) >= _PIPES:
            pipe.close()
        else:
            self._pipes.append(pipe)

    def borrow(self) -> memoryview:
        """A buffer with any content: `size` bytes, or SMALL_SIZE where many are lent."""
        # Threads borrow too (engine/threaded.py): what is there is taken, not looked at first.
        try:
            return self._large.pop()
        except IndexError:
            pass
        if self._made < LARGE_BUFFERS:
            self._made += 1
            return memoryview(mmap.mmap(-1, self.size))
        try:
            return self._small.pop()
        except IndexError:
            return memoryview(mmap.mmap(-1, min(SMALL_SIZE, self.size)))

    def give_back(self, buffer: memoryview) -> None:
        """The end of a loan."""
        if len(buffer) == self.size:
            self._large.append(buffer)
        elif len(self._small) < LARGE_BUFFERS:
            self._small.append(buffer)


class Broken(Exception):
    """A stream failed under the pump: which one, and the kernel's reason. Translated by who called the pump."""

    def __init__(self, stream: Stream, error: OSError) -> None:
        super().__init__(f"{stream.name}: {error}")
        self.stream = stream
        self.error = error


class Needs(enum.Enum):
    """What a pump needs before its next step."""

    BYTES = 1
    """The source has nothing now, or gave less than it might have: who waits has to ask whether more is there."""
    ROOM = 2
    """The sink takes nothing now."""
    TURN = 3
    """Nothing, but others should have their turn first."""
    NOTHING = 4
    """The source has ended and the sink has it all."""


# Their own names: Enum looks up a member in Python 3.11 as slowly as a function is called, for each step.
_BYTES, _ROOM, _TURN, _NOTHING = Needs


class Pump:
    """One direction between two streams.

    `header` makes what goes in front of a piece of so many bytes, HEADER_LENGTH long. A piece has at most `most` bytes.
    `last` makes what is sent when the source has ended. `bytes` counts what was received.
    """

    __slots__ = (
        "_buffer", "_buffers", "_bulk", "_header", "_last", "_little", "_most", "_over", "_pipe", "_receive", "_rest",
        "_send", "_splices", "_window",
        "broken", "bytes", "sink", "source",
    )  # fmt: skip

    def __init__(
        self,
        source: Stream,
        sink: Stream,
        buffers: BufferPool,
        header: Callable[[int], bytes] | None = None,
        most: int = FRAME_LIMIT,
        last: Callable[[], bytes] | None = None,
    ) -> None:
        self.source = source
        self.sink = sink
        self.bytes = 0
        self.broken: Broken | None = None
        self._receive = source.try_receive_into
        self._send = sink.try_send
        self._buffers = buffers
        self._header = header
        self._most = min(most, buffers.size)
        self._last = last
        self._over = False
        self._window = slice(HEADER_LENGTH, HEADER_LENGTH + most) if header else slice(most)
        self._little = SPLICE_LEAST if source.empties else 0
        """Bytes of a receive below which another one would be in vain."""
        self._buffer: memoryview | None = None
        self._rest: memoryview | None = None
        self._pipe: Pipe | None = None
        self._bulk = False
        self._splices = True
        """Until it turns out otherwise, when much comes."""

    @property
    def half_sent(self) -> bool:
        """Whether a piece is half-way out, or was lost so."""
        return self._rest is not None or self._pipe is not None

    def step(self) -> Needs:
        """Move what can be moved now. Raises Broken, and raises it again whenever it is called after that."""
        if self.broken is not None:
            raise self.broken
        if self._bulk and self._rest is None and (needs := self._splice()) is not None:
            return needs
        rounds = size = 0
        buffer, data = self._buffer, self._rest
        if buffer is None:
            buffer = self._buffers.borrow()
        try:
            while True:
                if data is None:
                    try:
                        size = self._receive(buffer[self._window])
                    except BlockingIOError:
                        return _BYTES
                    except OSError as error:
                        self.broken = Broken(self.source, error)
                        raise self.broken from None
                    if size:
                        self.bytes += size
                        self._bulk = self._splices and size >= SPLICE_FROM
                        if self._header is None:
                            data = buffer[:size]
                        else:  # in front of the bytes, so that both leave in one send
                            buffer[:HEADER_LENGTH] = self._header(size)
                            data = buffer[: HEADER_LENGTH + size]
                    elif self._last is None:
                        return _NOTHING
                    else:
                        data, self._last, self._over = memoryview(self._last()), None, True
                try:
                    sent = self._send(data)
                except BlockingIOError:
                    return _ROOM
                except OSError as error:
                    self.broken = Broken(self.sink, error)
                    raise self.broken from None
                if sent < len(data):
                    data = data[sent:]
                    continue
                data = None
                if self._over:
                    return _NOTHING
                if self._bulk and (needs := self._splice()) is not None:
                    return needs
                if size < self._little:
                    return _BYTES
                rounds += 1
                if rounds == ROUNDS:
                    return _TURN
        finally:
            self._rest = data
            if data is None or self.broken is not None:
                self._buffers.give_back(buffer)
                self._buffer = None
            else:
                self._buffer = buffer

    def _splice(self) -> Needs | None:
        """Splice as long as much comes, or what stands in the pipe still. None: receive and send again.

        Raises Broken.
        """
        source, sink = self.source.splice_source(), self.sink.splice_sink()
        if source is None or sink is None:
            self._splices = False
            return self._leave_bulk() if self._pipe is None else self._fail(self.sink, OSError(errno.EBADF, "closed"))
        if self._pipe is None:
            kinds = stat.S_IFMT(os.fstat(source).st_mode), stat.S_IFMT(os.fstat(sink).st_mode)
            if self._header is None and stat.S_IFIFO in kinds:
                return self._splice_directly(source, sink, kinds[0] == stat.S_IFIFO)
            if self._header is None and kinds == (stat.S_IFREG, stat.S_IFREG):
                return self._copy(source, sink)
            try:
                self._pipe = self._buffers.borrow_pipe()
            except OSError:
                return self._leave_bulk()  # no descriptors left: it goes without
        pipe = self._pipe
        for _ in range(ROUNDS):
            if not pipe.held:
                try:
                    pipe.held = os.splice(source, pipe.writing, self._most, flags=SPLICE)
                except BlockingIOError:
                    self._give_back_pipe()
                    return _BYTES
                except OSError as error:
                    self._give_back_pipe()
                    if error.errno == errno.EINVAL:  # not this kind of socket after all
                        self._splices = False
                        return self._leave_bulk()
                    return self._fail(self.source, error)
                if not pipe.held:
                    self._give_back_pipe()
                    return self._leave_bulk() if self._last else _NOTHING
                self.bytes += pipe.held
                self._bulk = pipe.held >= SPLICE_LEAST
                if self._header is not None:
                    pipe.front = self._header(pipe.held)
            while pipe.held:
                try:
                    while pipe.front:
                        pipe.front = pipe.front[self._send(pipe.front) :]
                    pipe.held -= os.splice(pipe.reading, sink, pipe.held, flags=SPLICE)
                except BlockingIOError:
                    self._bulk = True  # until the pipe is empty
                    return _ROOM
                except OSError as error:
                    return self._take_back() if self._header is None else self._fail(self.sink, error)
            if not self._bulk:
                self._give_back_pipe()
                return None
        self._give_back_pipe()
        return _TURN

    def _splice_directly(self, source: int, sink: int, from_pipe: bool) -> Needs | None:
        """From or to a pipe: nothing in between. What is wrong with the sink is left to a send to be told of."""
        for _ in range(ROUNDS):
            try:
                size = os.splice(source, sink, self._most, flags=SPLICE)
            except BlockingIOError:
                if not _ready(source, select.POLLIN):
                    return _BYTES
                if not _ready(sink, select.POLLOUT):
                    return _ROOM
                continue  # it came between
            except OSError as error:
                if from_pipe or error.errno in (errno.EPIPE, errno.EINVAL):
                    self._splices = False
                    return self._leave_bulk()
                return self._fail(self.source, error)
            if not size:
                return _NOTHING
            self.bytes += size
            if size < SPLICE_LEAST:
                return self._leave_bulk()
        return _TURN

    def _copy(self, source: int, sink: int) -> Needs | None:
        """From file to file, within the kernel. The end, and what a file system cannot do, is told by a receive."""
        for _ in range(ROUNDS):
            try:
                size = os.copy_file_range(source, sink, self._most)
            except OSError:
                size = 0
            if not size:
                self._splices = False
                return self._leave_bulk()
            self.bytes += size
        return _TURN

    def _take_back(self) -> Needs | None:
        """The sink takes none of this, or failed: a send of what stands in the pipe will tell."""
        self._splices = False
        self._receive = self._receive_from_pipe
        return self._leave_bulk()

    def _receive_from_pipe(self, buffer: memoryview) -> int:
        """As the source's own receive, of what came from it already. Raises OSError."""
        pipe = self._pipe
        assert pipe is not None  # it is given back below, when the receive is the source's again
        size = os.readv(pipe.reading, [buffer])
        pipe.held -= size
        self.bytes -= size  # counted before
        if not pipe.held:
            self._give_back_pipe()
            self._receive = self.source.try_receive_into
        return size

    def _leave_bulk(self) -> Needs | None:
        self._bulk = False
        return None

    def _fail(self, stream: Stream, error: OSError) -> NoReturn:
        self.broken = Broken(stream, error)
        raise self.broken from None

    def _give_back_pipe(self) -> None:
        if self._pipe is not None:
            self._buffers.give_back_pipe(self._pipe)
            self._pipe = None

    def close(self) -> None:
        """Give back what is borrowed; the pump is of no more use."""
        self._give_back_pipe()
        if self._buffer is not None:
            self._buffers.give_back(self._buffer)
            self._buffer = None

    async def run(self) -> None:
        """Step until the source has ended, waiting in this task. Raises Broken."""
        try:
            while True:
                needs = self.step()
                if needs is Needs.BYTES:
                    await self.source.wait_readable()
                elif needs is Needs.ROOM:
                    await self.sink.wait_writable()
                elif needs is Needs.TURN:
                    await trio.lowlevel.checkpoint()
                else:
                    return
        finally:
            self.close()


def _ready(number: int, events: int) -> bool:
    """Whether a descriptor can be read or written now, or has an end or an error to tell."""
    poll = select.poll()
    poll.register(number, events)
    return bool(poll.poll(0))


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
