"""Files on their way to their names: complete and verified, or not there at all. It blocks: call it in a thread.

Four ways, one face. *Unnamed* (O_TMPFILE): it has no name before it has its own; where it replaces another, it has for
a moment the name of the second way. *Named*, where a file system cannot do that: `.vsockfwd.`, twelve digits made from
the final name, and `.new`; what a killed process leaves is removed by the next copy that replaces the file. *Part*, to
be resumed: the same digits and `.part`, with its journal beside it; the next copy of that file takes it up, or removes
it. *In place*: the file itself.

A journal never stands without its part: it is made after it and removed before it. Whoever touches either holds a lock
on the part, and has looked, with the lock in hand, that it is still the part: it may have got its final name meanwhile.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TypeVar

import msgspec

from vsockfwd.plugin import CannotCreate, printable
from vsockfwd_copy.attributes import NOTHING_LOST, Loss, Writer
from vsockfwd_copy.directories import OPEN_ROOT, Directory, OpenDirectories
from vsockfwd_copy.journal import Journal
from vsockfwd_copy.messages import Extra, checksum
from vsockfwd_copy.options import LandOptions
from vsockfwd_copy.standing import Standing

PREFIX = b".vsockfwd."

_NEW = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_IN_PLACE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LOOK = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NO_TMPFILE = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL})
_NO_LINK = frozenset({errno.ENOENT, errno.EPERM, errno.EXDEV, errno.EOPNOTSUPP, errno.EACCES})
_KEEP_SIZE_AND_PUNCH = 0x01 | 0x02

T = TypeVar("T")

_PRIVATE = 0o600
"""What is made with this is nobody else's to read before it is complete."""

_ATTEMPTS = 8
"""How often a part is opened that goes away under our eyes, since other copies of the same file end."""


class Shape(msgspec.Struct, frozen=True):
    """What a file shall be like when it is complete. `size` is None for one that is as long as what was written."""

    size: int | None
    mode: int
    mtime: int
    extra: Extra | None


def _stem(name: bytes) -> bytes:
    """What the temporary names of a file begin with: short whatever the final one is, the same every time."""
    return PREFIX + b"%012x" % (checksum(name) >> 16)


def part_names(name: bytes) -> tuple[bytes, bytes]:
    """Where a file that may be resumed is meanwhile, and its journal."""
    return _stem(name) + b".part", _stem(name) + b".journal"


def _random_name() -> bytes:
    return PREFIX + secrets.token_hex(6).encode()


def _named_meanwhile(name: bytes, make: Callable[[bytes], T], *, dir_fd: int) -> tuple[bytes, T]:
    """Have a file that this process holds the lock of get a temporary name; that name, and what `make` returned.

    What a killed copy left under it is removed. Where another is at work under it, the name is one that nobody uses.
    Raises OSError.
    """
    temporary = _stem(name) + b".new"
    for _ in range(2):
        try:
            return temporary, make(temporary)
        except FileExistsError:
            _remove_stale(temporary, dir_fd=dir_fd)
    temporary = _random_name()
    return temporary, make(temporary)


def _remove_stale(name: bytes, *, dir_fd: int) -> None:
    """A file that a killed copy has left: ours, and nobody holds its lock. Anything else stays."""
    with contextlib.suppress(OSError, CannotCreate):
        fd = _open_ours(name, _LOOK, dir_fd=dir_fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_there(fd, name, dir_fd=dir_fd):
                os.unlink(name, dir_fd=dir_fd)
        finally:
            os.close(fd)


@contextlib.contextmanager
def link_to_rename(name: bytes, make: Callable[[bytes], None], *, dir_fd: int) -> Iterator[bytes]:
    """Have a symlink or hard link made under a temporary name, which it changes for its own after the block.

    A link has no lock of its own: its directory's is held meanwhile. Who cannot have that, since another copy or a
    directory that may not be read stands in the way, takes a name that nobody uses. Raises OSError.
    """
    temporary = _stem(name) + b".link"
    lock = _lock_directory(dir_fd)
    try:
        if lock < 0 or not _is_free(temporary, dir_fd=dir_fd):
            temporary = _random_name()
        make(temporary)
        try:
            yield temporary
        except BaseException:
            with contextlib.suppress(OSError):  # the reason for it matters more
                os.unlink(temporary, dir_fd=dir_fd)
            raise
        try:
            os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        finally:
            # There still where that failed, and where both were names of one file: rename(2) does nothing then.
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=dir_fd)
    finally:
        if lock >= 0:
            os.close(lock)


def _lock_directory(dir_fd: int) -> int:
    """A descriptor that holds a directory's lock; -1 where it cannot be had at once."""
    try:
        fd = os.open(b".", OPEN_ROOT, dir_fd=dir_fd)
    except OSError:
        return -1
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return -1
    return fd


def _is_free(name: bytes, *, dir_fd: int) -> bool:
    """Whether nothing has a name, once what a killed copy left there is gone; its directory's lock is held."""
    try:
        found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        if found.st_uid != os.geteuid():
            return False
        os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def is_part(name: bytes) -> bool:
    """Whether it is the name of a part or of a journal."""
    return name.startswith(PREFIX) and name.endswith((b".part", b".journal"))


def is_at_work(name: bytes, *, dir_fd: int) -> bool:
    """Whether a copy is at work on a part, or on what a journal is about."""
    try:
        fd = _open_ours(name.rpartition(b".")[0] + b".part", _LOOK, dir_fd=dir_fd)
    except (OSError, CannotCreate):
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def back_up(name: bytes, suffix: bytes, *, dir_fd: int) -> None:
    """Keep what is replaced under its name and a suffix; the name itself is never without a file. Raises OSError,
    CannotCreate."""

    def link(temporary: bytes) -> None:
        os.link(name, temporary, src_dir_fd=dir_fd, dst_dir_fd=dir_fd, follow_symlinks=False)

    try:
        with link_to_rename(name + suffix, link, dir_fd=dir_fd):
            pass
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno in _NO_LINK:
            raise CannotCreate("the file system has no hard links, so no backup can be kept") from None
        raise


class Arriving:
    """A file on its way to `name` in a directory."""

    def __init__(
        self, directories: OpenDirectories, directory: Directory, name: bytes, options: LandOptions, mode: int
    ) -> None:
        """`mode` is what it is made with, before the umask. Raises OSError."""
        self._directories = directories
        self._directory = directory
        self.name = name
        self._options = options
        self._temporary: bytes | None = None
        """Its name meanwhile, if it has one."""
        self._journal: Journal | None = None
        self._dirty = False
        """Whether there may be something where nothing was written by us."""
        self._has_all = False
        """Whether what stood in its place is in it."""
        there = directories.fd(directory)
        if options.inplace:
            self._fd = os.open(name, _IN_PLACE, _PRIVATE, dir_fd=there)
            self._dirty = True
            return
        try:
            if not _has_proc():
                raise OSError(errno.EOPNOTSUPP, "an unnamed file gets its name through /proc")
            self._fd = os.open(b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=there)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
            self._temporary, self._fd = _named_meanwhile(
                name, lambda new: _make_locked(new, mode, dir_fd=there), dir_fd=there
            )

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write all of it. Raises OSError."""
        written = os.pwrite(self._fd, data, offset)
        while written < len(data):
            data, offset = memoryview(data)[written:], offset + written
            written = os.pwrite(self._fd, data, offset)

    def hole(self, offset: int, length: int) -> None:
        """Nothing is here. Raises OSError."""
        if self._dirty and offset < (end := os.fstat(self._fd).st_size):
            length = min(length, end - offset)
            if not _punch(self._fd, offset, length):
                zeros = bytes(1 << 20)
                for at in range(offset, offset + length, len(zeros)):
                    self.write(zeros[: offset + length - at], at)

    def start_from(self, standing: Standing, position: int) -> None:
        """Take what stands there up to `position`; all of it, where blocks can be shared. Raises OSError, DataError."""
        self._has_all = self._options.inplace or standing.clone_into(self._fd)
        self._dirty |= self._has_all
        self.take(standing, 0, position)

    def take(self, standing: Standing, offset: int, length: int) -> None:
        """Take a range of what stands there. Raises OSError, DataError."""
        if not self._has_all:
            standing.copy_into(self._fd, offset, length)

    def note(self, end: int, piece: int) -> None:
        """The file is whole and verified up to `end`: remember that, where it may be resumed. Raises OSError."""
        if self._journal is not None:
            self._journal.add(end, piece)

    def keep(self, shape: Shape, writer: Writer, *, replaces: bool) -> Loss:
        """Make it what it shall be, under its name. Raises OSError, and then it has to be discarded."""
        fd = self._fd
        if shape.size is not None:
            os.ftruncate(fd, shape.size)  # a hole at the end was not written, and what stood there may be longer
        loss = NOTHING_LOST
        if not writer.plain:
            loss = writer.dress(fd, shape.mode, shape.extra)
        elif self._dirty or shape.mode & umask():
            os.fchmod(fd, shape.mode & 0o777)
        if self._options.times:
            os.utime(fd, ns=(time.time_ns(), shape.mtime))
        if self._options.fsync:
            os.fsync(fd)
        self._remove_journal()
        if not self._options.inplace:
            self._take_name(replaces=replaces)
        self._fd = -1
        os.close(fd)
        return loss

    def _remove_journal(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part_names(self.name)[1], dir_fd=self._directories.fd(self._directory))

    def _take_name(self, *, replaces: bool) -> None:
        there = self._directories.fd(self._directory)
        if replaces and self._options.backup:
            back_up(self.name, self._options.backup, dir_fd=there)
        if self._temporary is None:
            itself = f"/proc/self/fd/{self._fd}"
            if not replaces:
                try:
                    os.link(itself, self.name, dst_dir_fd=there, follow_symlinks=True)
                    return
                except FileExistsError:
                    pass  # it has come meanwhile: it is replaced like what was there before
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody takes it for what a killed copy left
            self._temporary, _ = _named_meanwhile(
                self.name, lambda new: os.link(itself, new, dst_dir_fd=there, follow_symlinks=True), dir_fd=there
            )
        os.rename(self._temporary, self.name, src_dir_fd=there, dst_dir_fd=there)
        self._temporary = None

    def abandon(self) -> None:
        """The copy is broken off: what can be resumed stays, anything else goes."""
        if self._journal is None:
            self.discard()
            return
        self._let_go()

    def _let_go(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        os.close(self._fd)
        self._fd = -1

    def discard(self) -> None:
        """Leave nothing behind, as far as that is possible."""
        # Whatever fails here, the reason why it is discarded matters more. The descriptor, and with it the lock of a
        # part, goes last.
        with contextlib.suppress(OSError):
            self._remove_journal()
        with contextlib.suppress(OSError):
            if self._temporary is not None:
                os.unlink(self._temporary, dir_fd=self._directories.fd(self._directory))
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1


class Part(Arriving):
    """The same, for a file that is resumed if it does not come to its end."""

    def __init__(
        self,
        directories: OpenDirectories,
        directory: Directory,
        name: bytes,
        options: LandOptions,
        stamp: bytes,
        size: int,
        *,
        anew: bool = False,
    ) -> None:
        """`position` is how far it has come already, `anew`: nowhere, whatever is there.

        Raises OSError; CannotCreate while another copy works on it, or where it is not what a copy has left.
        """
        self._directories = directories
        self._directory = directory
        self.name = name
        self._options = options
        self._dirty = True
        self._has_all = False
        self._journal = None
        part, journal = part_names(name)
        there = directories.fd(directory)
        self._temporary = part
        self._fd = _open_part(part, dir_fd=there)
        try:
            self._journal = _open_journal(journal, dir_fd=there)
            self.position = 0 if anew else self._journal.resume(self._fd, stamp, size)
            if not self.position:
                self._journal.begin(stamp, size)
            os.ftruncate(self._fd, self.position)
        except BaseException:
            if not os.fstat(self._fd).st_size:
                self.discard()  # it was made just now, or is of no use
            else:
                self._let_go()
            raise

    @classmethod
    def left(
        cls,
        directories: OpenDirectories,
        directory: Directory,
        name: bytes,
        options: LandOptions,
        stamp: bytes,
        size: int,
    ) -> Part | None:
        """What an earlier copy has left of a file, if any of it is of use. Raises as Part does.

        Where there is none, none is made: thousands of files may be waiting for their turn.
        """
        try:
            os.stat(part_names(name)[0], dir_fd=directories.fd(directory), follow_symlinks=False)
        except FileNotFoundError:
            return None
        part = cls(directories, directory, name, options, stamp, size)
        if part.position:
            return part
        part.discard()
        return None


def _make_locked(name: bytes, mode: int, *, dir_fd: int) -> int:
    """Make a file that nobody takes for what a killed copy left. Raises OSError, FileExistsError where somebody did."""
    fd = os.open(name, _NEW | os.O_RDWR, mode, dir_fd=dir_fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_there(fd, name, dir_fd=dir_fd):
            return fd
    except BlockingIOError:
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


def _open_part(name: bytes, *, dir_fd: int) -> int:
    """Open or make a part, and lock it. Raises OSError, CannotCreate."""
    for _ in range(_ATTEMPTS):
        fd = _open_ours(name, _IN_PLACE, dir_fd=dir_fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_there(fd, name, dir_fd=dir_fd):
                return fd
        except BlockingIOError:
            os.close(fd)
            break
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # it has got its final name, or is gone
    raise CannotCreate("another copy is at work on it")


def _open_journal(name: bytes, *, dir_fd: int) -> Journal:
    return Journal(_open_ours(name, _IN_PLACE, dir_fd=dir_fd))


def _open_ours(name: bytes, flags: int, *, dir_fd: int) -> int:
    """Open a file that is nobody else's, by no other name either. Raises OSError, CannotCreate."""
    try:
        fd = os.open(name, flags, _PRIVATE, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise CannotCreate(_foreign(name)) from None
        raise
    try:
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and found.st_nlink <= 1:
            return fd
        raise CannotCreate(_foreign(name))
    except BaseException:
        os.close(fd)
        raise


def _foreign(name: bytes) -> str:
    return f"{printable(name)} stands there, and is not what a copy of this user left"


def _is_there(fd: int, name: bytes, *, dir_fd: int) -> bool:
    """Whether a name still leads to an open file."""
    try:
        there, found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False), os.fstat(fd)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (found.st_dev, found.st_ino)


def remove_part(name: bytes, *, dir_fd: int) -> None:
    """What an interrupted copy of this file has left, and no copy is at work on.

    What cannot be removed, or is not ours, stays: the copy at hand does not need its name.
    """
    part, journal = part_names(name)
    if not os.access(part, os.F_OK, dir_fd=dir_fd):  # what all but one in thousands comes to: it raises nothing
        return
    try:
        fd = _open_ours(part, _LOOK, dir_fd=dir_fd)
    except (OSError, CannotCreate):
        return
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_there(fd, part, dir_fd=dir_fd):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(journal, dir_fd=dir_fd)
                os.unlink(part, dir_fd=dir_fd)
    finally:
        os.close(fd)


@lru_cache(1)
def _has_proc() -> bool:
    return os.path.isdir("/proc/self/fd")


@lru_cache(1)
def umask() -> int:
    """The process's umask, as the kernel tells it: asking by umask(2) would change it for other threads."""
    with open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    return 0o777  # then permissions are always set


@lru_cache(1)
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _punch(fd: int, offset: int, length: int) -> bool:
    """Make a hole (fallocate(2)); whether the file system can."""
    return bool(_libc().fallocate(fd, _KEEP_SIZE_AND_PUNCH, ctypes.c_longlong(offset), ctypes.c_longlong(length)) == 0)
