"""The journal of a copy that may be resumed: how far a file has come, in a file beside it. It blocks.

A header says which file of which source it is about; each record behind it how far the file was whole and verified, and
the checksum of the piece that brought it there. Every record carries a check over itself and the one before, so a torn
or foreign tail ends what is believed, and nothing else.

The thing to understand first: what a killed process wrote, the kernel still has; what a machine wrote that lost its
power, perhaps not, whatever the journal says. So after a boot the pieces are read again and held against their
checksums, and otherwise nothing is.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from vsockfwd_copy.messages import CHUNK_LIMIT, checksum

_MAGIC = b"VSFJ\0\0\0\1"
_HEADER = struct.Struct("!8s16sQ16sQ")
"""Magic, the source's stamp, its size, the boot, a check over all that."""

_RECORD = struct.Struct("!QQQ")
"""Where the whole part ends, the checksum of its last piece (0 for a hole), a check over this and the one before."""

_READ_AT_ONCE = _RECORD.size * 4096


@lru_cache(1)
def boot() -> bytes:
    """Which boot of the machine this is."""
    try:
        return bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", ""))
    except (OSError, ValueError):
        return os.urandom(16)  # then no journal is believed without a look


class Journal:
    """One file's journal."""

    def __init__(self, fd: int) -> None:
        """`fd` is its own from here on, a regular file open for reading and writing."""
        self._fd = fd
        self._check = 0

    def close(self) -> None:
        os.close(self._fd)

    def resume(self, part: int, stamp: bytes, size: int) -> int:
        """How much of the file that is open as `part` can be believed; from there on `add` goes on.

        0 where nothing can, and then it has to `begin`. Raises OSError.
        """
        header = os.pread(self._fd, _HEADER.size, 0)
        if len(header) < _HEADER.size or not header.startswith(_about(stamp, size)):
            return 0
        check = int.from_bytes(header[-8:], "big")
        if check != checksum(header[:-8]):
            return 0
        self._check = check
        return self._believe(part, size, same_boot=header[-24:-8] == boot())

    def begin(self, stamp: bytes, size: int) -> None:
        """Forget all, for a file that starts anew. Raises OSError."""
        body = _about(stamp, size) + boot()
        self._check = checksum(body)
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, body + self._check.to_bytes(8, "big"), 0)
        os.lseek(self._fd, _HEADER.size, os.SEEK_SET)

    def add(self, end: int, piece: int) -> None:
        """The file is whole up to `end`; `piece` is the checksum of its last piece. Raises OSError."""
        body = end.to_bytes(8, "big") + piece.to_bytes(8, "big")
        self._check = checksum(self._check.to_bytes(8, "big") + body)
        os.write(self._fd, body + self._check.to_bytes(8, "big"))

    def _believe(self, part: int, size: int, *, same_boot: bool) -> int:
        there = os.fstat(part).st_size
        whole, at = 0, _HEADER.size
        for end, piece, check in self._records():
            body = end.to_bytes(8, "big") + piece.to_bytes(8, "big")
            expected = checksum(self._check.to_bytes(8, "big") + body)
            if check != expected or not whole < end <= size:
                break
            if piece and (end > there or (not same_boot and not _holds(part, whole, end, piece))):
                break
            self._check = check
            whole = end
            at += _RECORD.size
        os.ftruncate(self._fd, at)
        os.lseek(self._fd, at, os.SEEK_SET)
        return whole

    def _records(self) -> Iterator[tuple[int, int, int]]:
        at = _HEADER.size
        while data := os.pread(self._fd, _READ_AT_ONCE, at):
            whole = len(data) - len(data) % _RECORD.size
            yield from _RECORD.iter_unpack(data[:whole])
            if whole < _READ_AT_ONCE:
                return
            at += whole


def _about(stamp: bytes, size: int) -> bytes:
    return _MAGIC + stamp.ljust(16, b"\0") + size.to_bytes(8, "big")


def _holds(part: int, begin: int, end: int, piece: int) -> bool:
    if end - begin > CHUNK_LIMIT:
        return False
    return checksum(os.pread(part, end - begin, begin)) == piece
