"""What stands in a file's place already: its blocks' digests, and a file made from it. It blocks: call it in a thread.

The thing to understand first: it is compared with the source, and read again later, when what did not change is taken
from it. If somebody writes to it in between, the copy of this file fails: it was not what it had been.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections import deque
from collections.abc import Iterator

import xxhash

from vsockfwd.plugin import DataError
from vsockfwd_copy.messages import BLOCK, Blocks
from vsockfwd_copy.walking import Identity

SLICE = 1 << 20
"""Bytes that are read at once: what fits a processor's cache is hashed there. Whole blocks."""

SLICES = 32
"""Slices in a row, so that what has come meanwhile gets its turn."""

_FICLONE = 0x40049409
"""ioctl_ficlone(2)."""

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Standing:
    """A regular file in a file's place, open for reading."""

    def __init__(self, name: bytes, *, dir_fd: int) -> None:
        """Raises OSError."""
        self.fd = os.open(name, _OPEN, dir_fd=dir_fd)
        try:
            self.found = os.fstat(self.fd)
        except BaseException:
            os.close(self.fd)
            raise
        self._identity = Identity.of(self.found)
        self._compared = 0
        """Bytes that a sender is told of."""
        self._digests: deque[tuple[int, bytes]] = deque()
        """First block → the digests from there on; they go when `digests` has passed them."""
        self._data = range(0)
        """Where data was found last: to ask for its end again would have the kernel look at every page up to it."""

    def close(self) -> None:
        os.close(self.fd)

    def check(self) -> None:
        """Raise DataError where it is not what it was."""
        if Identity.of(os.fstat(self.fd)) != self._identity:
            raise DataError("what stood in its place was changed meanwhile")

    def told(self, number: int, size: int) -> Iterator[list[Blocks]]:
        """Tell a sender's file of `size` bytes what stands here, some slices at a time. Raises OSError."""
        end = self._compared = min(self.found.st_size, size)
        buffer = memoryview(bytearray(min(SLICE, end)))
        at = 0
        while at < end:
            some: list[Blocks] = []
            while len(some) < SLICES and (at := self._next_data(at, end)) < end:
                length = min(SLICE, end - at)
                if os.preadv(self.fd, [buffer[:length]], at) < length:
                    at = end  # it shrinks under our eyes: `check` will find out
                    break
                some.append(self._digested(number, at // BLOCK, buffer[:length]))
                at += length
            yield _joined(some)
        yield [Blocks(number, -(-end // BLOCK), b"")]

    def _digested(self, number: int, first: int, data: memoryview) -> Blocks:
        digest = xxhash.xxh3_128_digest
        joined = b"".join([digest(data[at : at + BLOCK]) for at in range(0, len(data), BLOCK)])
        self._digests.append((first, joined))
        return Blocks(number, first, joined)

    def _next_data(self, at: int, end: int) -> int:
        """Where data goes on, at the beginning of its block; `end` where there is none."""
        try:
            return max(at, os.lseek(self.fd, at, os.SEEK_DATA) // BLOCK * BLOCK)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return end
            raise

    def digests(self, offset: int, length: int) -> Iterator[bytes]:
        """The digests of the blocks in a range that the sender says is the same; asked for in rising order.

        Raises DataError for blocks that it was never told.
        """
        block, end = offset // BLOCK, -(-(offset + length) // BLOCK)
        if offset % BLOCK or (length % BLOCK and offset + length != self._compared):
            raise DataError("was said to be the same where it was not compared")
        while self._digests:
            first, digests = self._digests[0]
            beyond = first + len(digests) // 16
            if beyond <= block:
                self._digests.popleft()
                continue
            if first > block:
                break
            stop = min(beyond, end)
            yield digests[(block - first) * 16 : (stop - first) * 16]
            block = stop
            if block == end:
                return
        raise DataError("was said to be the same where it was not compared")

    def has_nothing(self, offset: int, length: int) -> bool:
        """Whether a range is a hole, or lies behind the end. Raises OSError."""
        return self._data_at(offset, offset + length) >= offset + length

    def clone_into(self, fd: int) -> bool:
        """Make a file one with the same content, blocks shared; whether the file system can."""
        try:
            fcntl.ioctl(fd, _FICLONE, self.fd)
        except OSError:
            return False
        return True

    def copy_into(self, fd: int, offset: int, length: int) -> None:
        """Copy a range, holes left out. Raises OSError, DataError."""
        end = offset + length
        while offset < end:
            if offset not in self._data:
                start = self._data_at(offset, end)
                if start >= end:
                    return
                self._data = range(start, os.lseek(self.fd, start, os.SEEK_HOLE))
                offset = start
            stop = min(self._data.stop, end)
            self._copy_data(fd, offset, stop)
            offset = stop

    def _data_at(self, offset: int, end: int) -> int:
        try:
            return os.lseek(self.fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return end
            raise

    def _copy_data(self, fd: int, start: int, stop: int) -> None:
        while start < stop:
            try:
                moved = os.copy_file_range(self.fd, fd, stop - start, start, start)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
                moved = self._copy_by_hand(fd, start, stop)
            if not moved:
                raise DataError("what stood in its place was changed meanwhile")
            start += moved

    def _copy_by_hand(self, fd: int, start: int, stop: int) -> int:
        data = os.pread(self.fd, min(stop - start, 1 << 20), start)
        return os.pwrite(fd, data, start) if data else 0


def _joined(some: list[Blocks]) -> list[Blocks]:
    """The same in fewer frames: those that follow each other as one."""
    joined: list[Blocks] = []
    for blocks in some:
        last = joined[-1] if joined else None
        if last is not None and last.first + len(last.digests) // 16 == blocks.first:
            joined[-1] = Blocks(last.file, last.first, last.digests + blocks.digests)
        else:
            joined.append(blocks)
    return joined
