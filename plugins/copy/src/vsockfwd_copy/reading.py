"""A Large file, or a Flow, on its way out: what is wanted, cut into chunks and holes. It blocks: call it in a thread.

The thing to understand first: where the receiver has told what stands there already, a block that is the same is not
sent but named. Its digest may not have come yet; then `read` has nothing to give, and is called again.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Sequence

from vsockfwd.plugin import DataError, PeerBrokeProtocol, VsockfwdError
from vsockfwd_copy.messages import (
    BLOCK,
    CHUNK_LIMIT,
    LARGEST,
    Blocks,
    Chunk,
    FileDigest,
    Finish,
    GiveUp,
    Hole,
    Piece,
    Range,
    Same,
    block_digest,
    checksum,
    failure_of,
)
from vsockfwd_copy.options import Algorithm
from vsockfwd_copy.walking import Identity, Offer, Tree

NOTHING = memoryview(b"")

_PIPE_PIECE = 1 << 16
"""Bytes that a pipe holds: less than that, and there is no more for now."""

DIGEST_LENGTH = 16

Pieces = list[tuple[Piece, memoryview]]


class Comparison:
    """What the receiver has told of the blocks that stand in a file's place, forgotten as reading goes past them."""

    def __init__(self, size: int) -> None:
        self._last = -(-size // BLOCK)
        """The number of blocks that can be the same at all."""
        self._segments: deque[Blocks] = deque()
        self.decided = 0
        """Blocks below this one are told, or will not be."""

    def add(self, blocks: Blocks) -> None:
        """Take in what was told. Raises PeerBrokeProtocol."""
        count, odd = divmod(len(blocks.digests), DIGEST_LENGTH)
        if odd or blocks.first < self.decided or blocks.first + count > self._last:
            raise PeerBrokeProtocol(f"the receiver told of blocks that file {blocks.file} has not")
        if count:
            self._segments.append(blocks)
            self.decided = blocks.first + count
        else:
            self.decided = LARGEST

    def digest(self, block: int) -> bytes | None:
        """The digest of a block that is decided; None where nothing the same can stand. Blocks are asked for in
        rising order."""
        while self._segments:
            segment = self._segments[0]
            at = (block - segment.first) * DIGEST_LENGTH
            if at < 0:
                return None
            if at < len(segment.digests):
                return segment.digests[at : at + DIGEST_LENGTH]
            self._segments.popleft()
        return None


class Reading:
    """The wanted ranges of a Large file."""

    blocking = False
    """Whether `read` may wait for somebody who never says a word."""

    def __init__(
        self,
        tree: Tree,
        number: int,
        offer: Offer,
        ranges: Sequence[Range],
        comparison: Comparison | None = None,
        algorithm: Algorithm = Algorithm.XXH3,
    ) -> None:
        self._tree = tree
        self._number = number
        self._offer = offer
        self._ranges = iter(ranges)
        self._comparison = comparison
        self._digest = FileDigest(algorithm)
        self._fd = -1
        self._at = self._end = 0
        """Where reading stands, and where its range ends."""
        self._data_end = 0
        """Where the data that was found last ends."""
        self.over = False
        """Whether Finish or GiveUp was said."""

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read(self, buffer: memoryview) -> Pieces:
        """The next pieces, each with its data in `buffer`; the last of all is Finish or GiveUp.

        None at all: it has to be told more of what stands there before it can go on.
        """
        try:
            pieces = self._fill(buffer)
        except (OSError, VsockfwdError) as error:
            self.over = True
            pieces = [(GiveUp(self._number, failure_of(error, "cannot be read")), NOTHING)]
        if self.over:
            self.close()
        return pieces

    def _fill(self, buffer: memoryview) -> Pieces:
        if self._fd < 0:
            self._fd, found = self._tree.open(self._offer.source)
            self._compare(found, "changed since it was announced")
        pieces: Pieces = []
        while buffer:
            if self._at >= self._end and not self._next_range():
                self._compare(os.fstat(self._fd), "changed while it was read")
                pieces.append((Finish(self._number, self._digest.digest()), NOTHING))
                self.over = True
                break
            if (start := self._next_data()) > self._at:
                pieces.append((Hole(self._number, self._at, start - self._at), NOTHING))
                self._digest.skip(self._at, start - self._at)
                self._at = start
                continue
            if self._comparison is None:
                data = buffer[: min(CHUNK_LIMIT, self._end - self._at, self._data_end - self._at)]
                self._read_exactly(data)
                pieces.append(self._chunk(data))
                buffer = buffer[len(data) :]
            else:
                used = self._compared(buffer[:CHUNK_LIMIT], pieces)
                if not used:
                    break
                buffer = buffer[used:]
        return pieces

    def _chunk(self, data: memoryview) -> tuple[Piece, memoryview]:
        piece = Chunk(self._number, self._at, len(data), checksum(data))
        self._digest.update(data)
        self._at += len(data)
        return piece, data

    def _compared(self, buffer: memoryview, pieces: Pieces) -> int:
        """Read as far as it is decided, name the blocks that are the same, send the others; how much of the buffer
        that took. Nothing: the next block is not decided, or the rest of the buffer is no room for it."""
        assert self._comparison is not None
        begin = self._at
        end = min(begin + len(buffer), self._end, self._data_end, self._comparison.decided * BLOCK)
        if end % BLOCK and end not in (self._end, self._data_end):
            end -= end % BLOCK
        if end <= begin:
            return 0
        data = buffer[: end - begin]
        self._read_exactly(data)
        while self._at < end:
            start = stop = self._at
            while stop < end:
                block = data[stop - begin : min(stop - stop % BLOCK + BLOCK, end) - begin]
                digest = self._digest_if_same(stop, block)
                if digest is not None:
                    break
                stop += len(block)
            if stop > start:
                pieces.append(self._chunk(data[start - begin : stop - begin]))
            if stop < end:
                assert digest is not None
                self._same(digest, len(block), pieces)
        return end - begin

    def _digest_if_same(self, offset: int, block: memoryview) -> bytes | None:
        assert self._comparison is not None
        if offset % BLOCK or (len(block) < BLOCK and offset + len(block) != self._offer.size):
            return None
        known = self._comparison.digest(offset // BLOCK)
        return known if known is not None and known == block_digest(block) else None

    def _same(self, digest: bytes, length: int, pieces: Pieces) -> None:
        self._digest.update(digest)
        last = pieces[-1][0] if pieces else None
        if isinstance(last, Same):
            pieces[-1] = (Same(self._number, last.offset, last.length + length), NOTHING)
        else:
            pieces.append((Same(self._number, self._at, length), NOTHING))
        self._at += length

    def _next_range(self) -> bool:
        wanted = next(self._ranges, None)
        if wanted is None:
            return False
        self._at = self._data_end = wanted.offset
        self._end = wanted.offset + wanted.length
        return True

    def _next_data(self) -> int:
        """Where data goes on from here: here, behind a hole, or not before the range's end (lseek(2))."""
        if self._at < self._data_end:
            return self._at
        try:
            start = os.lseek(self._fd, self._at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            self._data_end = self._end
            return self._end
        self._data_end = os.lseek(self._fd, start, os.SEEK_HOLE)
        return min(start, self._end)

    def _read_exactly(self, view: memoryview) -> None:
        at = self._at
        while view:
            size = os.preadv(self._fd, [view], at)
            if size == 0:
                raise DataError("shrank while it was read")
            view = view[size:]
            at += size

    def _compare(self, found: os.stat_result, otherwise: str) -> None:
        if Identity.of(found) != self._offer.identity:
            raise DataError(otherwise)


class FlowReading:
    """All that comes from a pipe, a terminal or whatever else has no size."""

    blocking = True

    def __init__(self, number: int, fd: int, algorithm: Algorithm = Algorithm.XXH3) -> None:
        self._number = number
        self._fd = fd
        self._digest = FileDigest(algorithm)
        self.size = 0
        """Bytes so far."""
        self.over = False

    def close(self) -> None:
        """The descriptor is the caller's."""

    def read(self, buffer: memoryview) -> Pieces:
        """As Reading has it. Waits until there is something."""
        buffer = buffer[:CHUNK_LIMIT]
        filled = 0
        try:
            # A pipe gives 64 KiB at a time: what is there is taken together.
            while filled < len(buffer):
                size = os.readv(self._fd, [buffer[filled:]])
                filled += size
                if not size or size < _PIPE_PIECE:
                    break
        except OSError as error:
            self.over = True
            return [(GiveUp(self._number, failure_of(error, "cannot be read")), NOTHING)]
        if not filled:
            self.over = True
            return [(Finish(self._number, self._digest.digest()), NOTHING)]
        data = buffer[:filled]
        self._digest.update(data)
        piece = Chunk(self._number, self.size, filled, checksum(data))
        self.size += filled
        return [(piece, data)]
