"""The sender's file system: walks the sources, reads files and finds their holes. It blocks: call it in a thread.

The thing to understand first: a source may change while it is read. What a file was is noted when it is opened, and
compared when its last byte has been read; a file that was not the same throughout has failed, and the copy goes on.
Nothing but regular files is ever opened for reading, and nothing is waited for.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from vsockfwd.plugin import BadRequest, DataError, VsockfwdError
from vsockfwd_copy.directories import Directory, OpenDirectories
from vsockfwd_copy.messages import (
    BATCH_LIMIT,
    CHUNK_LIMIT,
    DEPTH_LIMIT,
    SMALL_LIMIT,
    Chunk,
    Enter,
    Entry,
    FileDigest,
    Finish,
    GiveUp,
    Hole,
    Large,
    Leave,
    Lost,
    Piece,
    Range,
    Small,
    Symlink,
    checksum,
    digest,
    failure_of,
    landing_name,
)

_OPEN_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

ENTRY_WEIGHT = 256
"""Bytes that an entry is taken to cost beside its content; names are shorter on the whole."""

_SPECIAL = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def special(mode: int) -> str:
    """What something is called that is neither file, directory nor symlink."""
    return _SPECIAL.get(stat.S_IFMT(mode), "of an unknown kind")


class _Type(Enum):
    """What a directory says of an entry, so that nothing is opened to find out."""

    DIRECTORY = auto()
    FILE = auto()
    SYMLINK = auto()
    SPECIAL = auto()


Listing = Iterator[tuple[bytes, _Type]]


@dataclass(frozen=True, slots=True)
class Identity:
    """What a file was, as far as the kernel tells: another inode, size or mtime is another content."""

    device: int
    inode: int
    size: int
    mtime: int

    @classmethod
    def of(cls, found: os.stat_result) -> Identity:
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class Source:
    """Where something is: a name inside a directory, or a path that a person typed, whose symlinks are followed.

    `word` is what a person calls it: the name, or what was typed.
    """

    directory: Directory | None
    name: bytes
    word: bytes

    @property
    def title(self) -> bytes:
        return self.word if self.directory is None else self.directory.title_of(self.word)


@dataclass(frozen=True, slots=True)
class Offer:
    """A numbered entry as its sender remembers it until it is answered: a Large file has an identity."""

    source: Source
    size: int = 0
    is_file: bool = True
    identity: Identity | None = None


Item = tuple[Entry, Offer | None]


class Tree:
    """The sources of one copy, walked once: parents before children, names in the order of their bytes."""

    def __init__(self, sources: Sequence[bytes], *, recursive: bool, base: bytes) -> None:
        """`base` is the directory where relative sources start."""
        self._directories = OpenDirectories()
        self._recursive = recursive
        self._base = base
        self._walk = self._walk_all(sources)

    def close(self) -> None:
        """Let go of what is open."""
        self._directories.close()

    def batch(self) -> list[Item]:
        """The next announcements, and what there is to remember of each; empty at the end."""
        items: list[Item] = []
        weight = 0
        for item in self._walk:
            items.append(item)
            weight += ENTRY_WEIGHT
            if isinstance(item[0], Small):
                weight += len(item[0].content)
            elif isinstance(item[0], Symlink):
                weight += len(item[0].target)
            elif isinstance(item[0], Lost):
                weight += len(item[0].failure.text)
            if weight >= BATCH_LIMIT:
                break
        return items

    def open(self, source: Source) -> tuple[int, os.stat_result]:
        """Open a regular file, without waiting, and see what it is. Raises OSError or BadRequest."""
        if source.directory is None:
            fd = os.open(source.name, _OPEN_FILE)
        else:
            fd = os.open(source.name, _OPEN_FILE | os.O_NOFOLLOW, dir_fd=self._directories.fd(source.directory))
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise BadRequest(f"is {special(found.st_mode)} now, not copied")
        except BaseException:
            os.close(fd)
            raise
        return fd, found

    # --- the walk

    def _walk_all(self, sources: Sequence[bytes]) -> Iterator[Item]:
        for typed in sources:
            source = Source(None, os.path.join(self._base, typed), typed)
            name = landing_name(typed)
            try:
                mode = os.stat(source.name).st_mode
            except OSError as error:
                yield _lost(source, name, error)
                continue
            if stat.S_ISDIR(mode) and self._recursive:
                yield from self._walk_tree(source, name)
            elif stat.S_ISDIR(mode):
                yield _lost(source, name, BadRequest("is a directory, which needs -r"))
            elif stat.S_ISREG(mode):
                yield self._file(source, name)
            else:
                yield _lost(source, name, BadRequest(f"is {special(mode)}, not copied"))

    def _walk_tree(self, source: Source, name: bytes) -> Iterator[Item]:
        levels: list[tuple[Directory, Listing]] = []
        item, entered = self._enter(source, name, 0)
        yield item
        if entered is not None:
            levels.append(entered)
        while levels:
            directory, listing = levels[-1]
            found = next(listing, None)
            if found is None:
                levels.pop()
                self._directories.forget(directory)
                yield Leave(), None
                continue
            name, kind = found
            source = Source(directory, name, name)
            if kind is _Type.DIRECTORY:
                item, entered = self._enter(source, name, len(levels))
                if entered is not None:
                    levels.append(entered)
                yield item
            else:
                yield self._plain(source, name, kind)

    def _enter(self, source: Source, name: bytes, depth: int) -> tuple[Item, tuple[Directory, Listing] | None]:
        directory = Directory(source.directory, source.name, source.word)
        try:
            if depth >= DEPTH_LIMIT:
                raise BadRequest(f"lies more than {DEPTH_LIMIT} directories deep")
            fd = self._directories.fd(directory)
            found = os.fstat(fd)
            listing = _list(fd)
        except (OSError, VsockfwdError) as error:
            return _lost(source, name, error), None
        entry = Enter(name, found.st_mode & 0o777, found.st_mtime_ns)
        return (entry, Offer(source, is_file=False)), (directory, listing)

    def _plain(self, source: Source, name: bytes, kind: _Type) -> Item:
        if kind is _Type.FILE:
            return self._file(source, name)
        assert source.directory is not None
        try:
            fd = self._directories.fd(source.directory)
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if kind is _Type.SPECIAL:
                raise BadRequest(f"is {special(found.st_mode)}, not copied")
            entry = Symlink(name, found.st_mtime_ns, os.readlink(name, dir_fd=fd))
        except (OSError, VsockfwdError) as error:
            return _lost(source, name, error)
        return entry, Offer(source)

    def _file(self, source: Source, name: bytes) -> Item:
        try:
            fd, found = self.open(source)
            try:
                mode, mtime, identity = found.st_mode & 0o777, found.st_mtime_ns, Identity.of(found)
                if found.st_size > SMALL_LIMIT:
                    large = Large(name, mode, mtime, found.st_size)
                    return large, Offer(source, found.st_size, identity=identity)
                content = _read_all(fd, found.st_size)
                if Identity.of(os.fstat(fd)) != identity:
                    raise DataError("changed while it was read")
            finally:
                os.close(fd)
        except (OSError, VsockfwdError) as error:
            return _lost(source, name, error)
        small = Small(name, mode, mtime, content, digest(content))
        return small, Offer(source, len(content))


def _lost(source: Source, name: bytes, error: OSError | VsockfwdError) -> Item:
    entry = Lost(name, failure_of(error, "cannot be read"))
    return entry, Offer(source)


def _list(fd: int) -> Listing:
    """A directory's names with their types, sorted. Raises OSError."""
    with os.scandir(fd) as found:
        return iter(sorted(((os.fsencode(entry.name), _type_of(entry)) for entry in found), key=lambda pair: pair[0]))


def _type_of(entry: os.DirEntry[str]) -> _Type:
    if entry.is_symlink():
        return _Type.SYMLINK
    if entry.is_dir(follow_symlinks=False):
        return _Type.DIRECTORY
    return _Type.FILE if entry.is_file(follow_symlinks=False) else _Type.SPECIAL


def _read_all(fd: int, size: int) -> bytes:
    """A small file's content. What /proc and /sys say of sizes is not to be believed: the end is where it is."""
    content = os.read(fd, SMALL_LIMIT + 1)
    if len(content) != size:
        while len(content) <= SMALL_LIMIT and (more := os.read(fd, SMALL_LIMIT + 1 - len(content))):
            content += more
    if len(content) > SMALL_LIMIT:
        raise DataError("holds more than its size says")
    return content


# --- one Large file ------------------------------------------------------------------------------------------------

_NOTHING = memoryview(b"")


class Reading:
    """One Large file on its way out: the wanted ranges, cut into chunks and holes."""

    def __init__(self, tree: Tree, number: int, offer: Offer, ranges: Sequence[Range]) -> None:
        self._tree = tree
        self._number = number
        self._offer = offer
        self._ranges = iter(ranges)
        self._digest = FileDigest()
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

    def read(self, buffer: memoryview) -> list[tuple[Piece, memoryview]]:
        """The next pieces, each with its data in `buffer`; the last of all is Finish or GiveUp."""
        try:
            pieces = self._fill(buffer)
        except (OSError, VsockfwdError) as error:
            self.over = True
            pieces = [(GiveUp(self._number, failure_of(error, "cannot be read")), _NOTHING)]
        if self.over:
            self.close()
        return pieces

    def _fill(self, buffer: memoryview) -> list[tuple[Piece, memoryview]]:
        if self._fd < 0:
            self._fd, found = self._tree.open(self._offer.source)
            self._compare(found, "changed since it was announced")
        pieces: list[tuple[Piece, memoryview]] = []
        while buffer:
            if self._at >= self._end and not self._next_range():
                self._compare(os.fstat(self._fd), "changed while it was read")
                pieces.append((Finish(self._number, self._digest.digest()), _NOTHING))
                self.over = True
                break
            if (start := self._next_data()) > self._at:
                pieces.append((Hole(self._number, self._at, start - self._at), _NOTHING))
                self._digest.skip(self._at, start - self._at)
                self._at = start
                continue
            data = buffer[: min(CHUNK_LIMIT, self._end - self._at, self._data_end - self._at)]
            self._read_exactly(data)
            pieces.append((Chunk(self._number, self._at, len(data), checksum(data)), data))
            self._digest.update(data)
            self._at += len(data)
            buffer = buffer[len(data) :]
        return pieces

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
