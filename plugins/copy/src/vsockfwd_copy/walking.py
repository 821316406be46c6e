"""The sender's file system: walks the sources and says what is there. It blocks: call it in a thread.

The thing to understand first: a source may change while it is read. What a file was is noted when it is announced, and
compared when its last byte has been read; a file that was not the same throughout has failed, and the copy goes on.
Nothing but regular files is ever opened for reading, and nothing is waited for.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto

import msgspec

from vsockfwd.plugin import BadRequest, DataError, VsockfwdError
from vsockfwd_copy.asked import Wanted, wanted
from vsockfwd_copy.attributes import Reader
from vsockfwd_copy.directories import OPEN_ROOT, Directory, OpenDirectories
from vsockfwd_copy.messages import (
    BATCH_LIMIT,
    DEPTH_LIMIT,
    SMALL_LIMIT,
    Enter,
    Entry,
    Extra,
    Flow,
    HardLink,
    Large,
    Leave,
    Lost,
    Small,
    Symlink,
    digest_of,
    failure_of,
    landing_name,
    stamp_of,
)
from vsockfwd_copy.options import SendOptions, Symlinks
from vsockfwd_copy.patterns import Filters, is_pattern, literal, matches
from vsockfwd_copy.permissions import Chmod
from vsockfwd_copy.roots import Root

_OPEN_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

ENTRY_WEIGHT = 256
"""Bytes that an entry is taken to cost beside its content; names are shorter on the whole."""

_SPECIAL = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}

_STAMP = struct.Struct("!QQQqq")


def special(mode: int) -> str:
    """What something is called that is neither file, directory nor symlink."""
    return _SPECIAL.get(stat.S_IFMT(mode), "of an unknown kind")


class _Type(Enum):
    """What a directory says of an entry, so that nothing is opened to find out."""

    DIRECTORY = auto()
    FILE = auto()
    SYMLINK = auto()
    SPECIAL = auto()


_TYPES = {stat.S_IFDIR: _Type.DIRECTORY, stat.S_IFREG: _Type.FILE, stat.S_IFLNK: _Type.SYMLINK}

Listing = Iterator[tuple[bytes, _Type]]


class Identity(msgspec.Struct, frozen=True):
    """What a file was, as far as the kernel tells: another inode, size or mtime is another content."""

    device: int
    inode: int
    size: int
    mtime: int

    @classmethod
    def of(cls, found: os.stat_result) -> Identity:
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


class Source(msgspec.Struct, frozen=True):
    """Where something is: a name inside a directory, or a path that a person typed, whose symlinks are followed.

    `word` is what a person calls it: the name, or what was typed. `follow`: a symlink of that name is followed.
    """

    directory: Directory | None
    name: bytes
    word: bytes
    follow: bool = False

    @property
    def title(self) -> bytes:
        return self.word if self.directory is None else self.directory.title_of(self.word)


class Offer(msgspec.Struct, frozen=True):
    """A numbered entry as its sender remembers it until it is answered: a Large file has an identity, a Flow a
    descriptor."""

    source: Source
    size: int = 0
    is_file: bool = True
    identity: Identity | None = None
    flow: int | None = None


Item = tuple[Entry, Offer | None]


@dataclass(slots=True)
class _Level:
    """A directory that is being walked."""

    directory: Directory
    listing: Listing
    path: bytes
    """Below the source, with a slash behind; empty for the source itself."""
    wanted: Wanted | None
    key: tuple[int, int]


class Tree:
    """The sources of one copy, walked once: parents before children, names in the order of their bytes."""

    def __init__(self, sources: Sequence[bytes], options: SendOptions, root: Root, *, flow: int | None = None) -> None:
        """`flow` is the descriptor that the source `-` stands for, where it stands for one.

        Raises UsageError or BadRequest for options that make no sense.
        """
        self._root = root
        self._options = options
        self._directories = OpenDirectories(root.open)
        self._filters = Filters(options.exclude, options.include)
        self._chmod = Chmod(options.chmod)
        self._reader = Reader(options)
        self._extra = bool(self._reader)
        self._follow = options.symlinks == Symlinks.ALL
        self._links: dict[tuple[int, int], int] = {}
        """Files of several names that were announced: their numbers."""
        self._next = 1
        self._flow = flow
        self._walk = self._walk_below(sources) if options.below else self._walk_all(sources)

    def close(self) -> None:
        """Let go of what is open."""
        self._directories.close()

    def batch(self) -> list[Item]:
        """The next announcements, and what there is to remember of each; empty at the end."""
        items: list[Item] = []
        weight = 0
        for item in self._walk:
            items.append(item)
            entry = item[0]
            weight += ENTRY_WEIGHT
            if item[1] is not None:
                self._next += 1
            if type(entry) is Small:
                weight += len(entry.content)
            elif type(entry) is Symlink:
                weight += len(entry.target)
            elif type(entry) is Lost:
                weight += len(entry.failure.text)
            if self._extra and isinstance(entry, Small | Large | Enter) and entry.extra is not None:
                weight += sum(len(name) + len(value) for name, value in entry.extra.xattrs)
            if weight >= BATCH_LIMIT:
                break
        return items

    def content(self, offer: Offer) -> bytes:
        """A small file's content, as it was when it was announced. Raises OSError, VsockfwdError."""
        fd, found = self.open(offer.source)
        try:
            if Identity.of(found) != offer.identity:
                raise DataError("changed since it was announced")
            content = _read_all(fd, offer.size)
            if Identity.of(os.fstat(fd)) != offer.identity:
                raise DataError("changed while it was read")
            return content
        finally:
            os.close(fd)

    def open(self, source: Source) -> tuple[int, os.stat_result]:
        """Open a regular file, without waiting, and see what it is. Raises OSError or BadRequest."""
        if source.directory is None:
            fd = self._root.open(source.name, _OPEN_FILE)
        else:
            flags = _OPEN_FILE if source.follow else _OPEN_FILE | os.O_NOFOLLOW
            fd = os.open(source.name, flags, dir_fd=self._directories.fd(source.directory))
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise BadRequest(f"is {special(found.st_mode)} now, not copied")
        except BaseException:
            os.close(fd)
            raise
        return fd, found

    # --- the sources

    def _walk_all(self, sources: Sequence[bytes]) -> Iterator[Item]:
        for typed in sources:
            if typed == b"-" and self._flow is not None:
                yield self._flow_item(self._flow)
                continue
            for source in self._found(typed):
                yield from self._walk_one(source, landing_name(source.word))

    def _found(self, typed: bytes) -> Iterator[Source]:
        """What a source stands for: itself, or what a pattern finds; itself too where that is nothing."""
        if self._options.glob and is_pattern(typed):
            try:
                self._root.stat(typed, follow=False)
            except OSError:
                paths = sorted(self._expand(typed))
                if paths:
                    for path in paths:
                        if not self._filters.leaves_out(path.rpartition(b"/")[2], False):
                            yield Source(None, path, path)
                    return
        yield Source(None, typed, typed)

    def _expand(self, typed: bytes) -> list[bytes]:
        start = b"/" if typed.startswith(b"/") else b""
        found = [start]
        parts = [part for part in typed.split(b"/") if part]
        for position, part in enumerate(parts):
            last = position == len(parts) - 1
            found = [path for above in found for path in self._expand_part(above, part, last)]
        return [path + b"/" for path in found] if typed.endswith(b"/") else found

    def _expand_part(self, above: bytes, part: bytes, last: bool) -> Iterator[bytes]:
        if not is_pattern(part):
            path = above + literal(part)
            if not last or self._is_there(path):
                yield path if last else path + b"/"
            return
        try:
            fd = self._root.open(above, OPEN_ROOT)
        except OSError:
            return
        try:
            for name, _ in _list(fd):
                if matches(part, name):
                    yield above + name + (b"" if last else b"/")
        finally:
            os.close(fd)

    def _is_there(self, path: bytes) -> bool:
        try:
            self._root.stat(path, follow=False)
        except OSError:
            return False
        return True

    def _walk_one(self, source: Source, name: bytes) -> Iterator[Item]:
        try:
            found = self._root.stat(source.name, follow=self._options.symlinks != Symlinks.NONE)
        except OSError as error:
            yield _lost(source, name, error)
            return
        mode = found.st_mode
        if stat.S_ISDIR(mode) and self._options.recursive:
            yield from self._walk_tree(source, name, None)
        elif stat.S_ISDIR(mode):
            yield _lost(source, name, BadRequest("is a directory, which needs -r"))
        elif stat.S_ISREG(mode):
            yield self._file(source, name)
        elif stat.S_ISLNK(mode):
            yield self._typed_symlink(source, name)
        else:
            yield _lost(source, name, BadRequest(f"is {special(mode)}, not copied"))

    def _walk_below(self, sources: Sequence[bytes]) -> Iterator[Item]:
        typed, *paths = sources
        yield from self._walk_tree(Source(None, typed, typed), b"", wanted(paths))

    def _flow_item(self, flow: int) -> Item:
        found = os.fstat(flow)
        entry = Flow(b"", self._chmod(0o644, False), found.st_mtime_ns)
        return entry, Offer(Source(None, b"-", b"-"), flow=flow)

    # --- trees

    def _walk_tree(self, source: Source, name: bytes, only: Wanted | None) -> Iterator[Item]:
        levels: list[_Level] = []
        item, entered = self._enter(source, name, levels, b"", only)
        yield item
        if entered is not None:
            levels.append(entered)
        while levels:
            level = levels[-1]
            found = next(level.listing, None)
            if found is None:
                levels.pop()
                self._directories.forget(level.directory)
                yield Leave(), None
                continue
            name, kind = found
            path = level.path + name if self._filters else b""
            if self._filters and self._filters.leaves_out(path, kind is _Type.DIRECTORY):
                continue
            source = Source(level.directory, name, name, self._follow)
            if kind is _Type.SYMLINK and self._follow:
                kind = self._followed(source)
            if kind is _Type.DIRECTORY:
                below = level.wanted[name] if level.wanted is not None else None
                if level.wanted is not None and below is None and not self._options.recursive:
                    yield _lost(source, name, BadRequest("is a directory, which needs -r"))
                    continue
                item, entered = self._enter(source, name, levels, path + b"/", below)
                if entered is not None:
                    levels.append(entered)
                yield item
            else:
                yield self._plain(source, name, kind)

    def _followed(self, source: Source) -> _Type:
        """What a symlink leads to; a symlink still where it leads nowhere."""
        assert source.directory is not None
        try:
            mode = os.stat(source.name, dir_fd=self._directories.fd(source.directory)).st_mode
        except OSError:
            return _Type.SYMLINK
        return _TYPES.get(stat.S_IFMT(mode), _Type.SPECIAL)

    def _enter(
        self, source: Source, name: bytes, levels: list[_Level], path: bytes, only: Wanted | None
    ) -> tuple[Item, _Level | None]:
        directory = Directory(source.directory, source.name, source.word, follow=source.follow)
        try:
            if len(levels) >= DEPTH_LIMIT:
                raise BadRequest(f"lies more than {DEPTH_LIMIT} directories deep")
            fd = self._directories.fd(directory)
            found = os.fstat(fd)
            key = (found.st_dev, found.st_ino)
            if self._follow and any(level.key == key for level in levels):
                raise BadRequest("leads back to a directory that it is in")
            listing = _list(fd) if only is None else self._list_wanted(only, fd)
            extra = self._reader.read(found, fd) if self._extra else None
        except (OSError, VsockfwdError) as error:
            return _lost(source, name, error), None
        entry = Enter(name, self._chmod(found.st_mode & self._reader.mask, True), found.st_mtime_ns, extra)
        return (entry, Offer(source, is_file=False)), _Level(directory, listing, path, only, key)

    def _list_wanted(self, only: Wanted, fd: int) -> Listing:
        found = []
        for name in sorted(only):
            try:
                mode = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
            except OSError:
                mode = stat.S_IFREG  # which is told when it is opened
            found.append((name, _TYPES.get(stat.S_IFMT(mode), _Type.SPECIAL)))
        return iter(found)

    # --- what is no directory

    def _plain(self, source: Source, name: bytes, kind: _Type) -> Item:
        if kind is _Type.FILE:
            return self._file(source, name)
        assert source.directory is not None
        try:
            fd = self._directories.fd(source.directory)
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if kind is _Type.SPECIAL:
                raise BadRequest(f"is {special(found.st_mode)}, not copied")
            return self._symlink(source, name, found, os.readlink(name, dir_fd=fd))
        except (OSError, VsockfwdError) as error:
            return _lost(source, name, error)

    def _typed_symlink(self, source: Source, name: bytes) -> Item:
        """A symlink that was named, where none is followed."""
        try:
            above, last = os.path.split(self._root.full(source.name))
            fd = self._root.open(above, os.O_PATH | os.O_DIRECTORY)
            try:
                found = os.stat(last, dir_fd=fd, follow_symlinks=False)
                return self._symlink(source, name, found, os.readlink(last, dir_fd=fd))
            finally:
                os.close(fd)
        except OSError as error:
            return _lost(source, name, error)

    def _symlink(self, source: Source, name: bytes, found: os.stat_result, target: bytes) -> Item:
        extra = self._reader.owner_only(found)
        return Symlink(name, found.st_mtime_ns, target, extra), Offer(source)

    def _file(self, source: Source, name: bytes) -> Item:
        try:
            if self._options.bare and source.directory is not None and not source.follow:
                fd = self._directories.fd(source.directory)
                found = os.stat(source.name, dir_fd=fd, follow_symlinks=False)
                if not stat.S_ISREG(found.st_mode):
                    raise BadRequest(f"is {special(found.st_mode)} now, not copied")
                if found.st_size:  # what calls itself empty has to be read to be believed
                    path = b"/proc/self/fd/%d/%s" % (fd, source.name)
                    return self._announced(source, name, found, path, None)
            fd, found = self.open(source)
            try:
                return self._announced(source, name, found, fd, fd)
            finally:
                os.close(fd)
        except (OSError, VsockfwdError) as error:
            return _lost(source, name, error)

    def _announced(
        self, source: Source, name: bytes, found: os.stat_result, where: bytes | int, fd: int | None
    ) -> Item:
        """A regular file's announcement, with its content where it is small and may ride along."""
        linked = self._options.hard_links and found.st_nlink > 1
        if linked and (number := self._links.get((found.st_dev, found.st_ino))) is not None:
            return HardLink(name, number), Offer(source)
        mode = self._chmod(found.st_mode & self._reader.mask, False)
        extra: Extra | None = self._reader.read(found, where) if self._extra else None
        identity = Identity.of(found)
        size = found.st_size
        if size > SMALL_LIMIT or (size and self._options.bare):
            stamp = _stamp(found) if size > SMALL_LIMIT else b""  # a small one is never resumed
            allocated = min(size, found.st_blocks * 512)
            self._remember(linked, found)
            large = Large(name, mode, found.st_mtime_ns, size, linked, extra, allocated, stamp)
            return large, Offer(source, size, identity=identity)
        assert fd is not None
        content = _read_all(fd, size)
        if Identity.of(os.fstat(fd)) != identity:
            raise DataError("changed while it was read")
        self._remember(linked, found)
        small = Small(
            name, mode, found.st_mtime_ns, content, digest_of(content, self._options.algorithm), linked, extra
        )
        return small, Offer(source, len(content))

    def _remember(self, linked: bool, found: os.stat_result) -> None:
        if linked:
            self._links[found.st_dev, found.st_ino] = self._next


def _stamp(found: os.stat_result) -> bytes:
    """The same as long as a file was not touched."""
    return stamp_of(_STAMP.pack(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))


def _lost(source: Source, name: bytes, error: OSError | VsockfwdError) -> Item:
    entry = Lost(name, failure_of(error, "cannot be read"))
    return entry, Offer(source)


def _list(fd: int) -> Listing:
    """A directory's names with their types, sorted. Raises OSError."""
    with os.scandir(fd) as found:
        return iter(sorted(((os.fsencode(entry.name), _type_of(entry)) for entry in found), key=lambda pair: pair[0]))


def _type_of(entry: os.DirEntry[str]) -> _Type:
    if entry.is_file(follow_symlinks=False):
        return _Type.FILE
    if entry.is_dir(follow_symlinks=False):
        return _Type.DIRECTORY
    return _Type.SYMLINK if entry.is_symlink() else _Type.SPECIAL


def _read_all(fd: int, size: int) -> bytes:
    """A small file's content. What /proc and /sys say of sizes is not to be believed: the end is where it is."""
    content = os.read(fd, size + 1)
    if len(content) != size:
        while len(content) <= SMALL_LIMIT and (more := os.read(fd, SMALL_LIMIT + 1 - len(content))):
            content += more
    if len(content) > SMALL_LIMIT:
        raise DataError("holds more than its size says")
    return content
