"""Where the paths that an operator typed start, and how they are opened: below a root, whatever they say.

Relative paths start at `home`, absolute ones at the root; `..` and symlinks are followed, but the root is as far up as
they lead (openat2(2), RESOLVE_IN_ROOT, Linux 5.6; without it a walk by descriptors, one name at a time). Without a root
of its own a process resolves paths as it always does.

The thing to understand first: this is for what was typed. Names that a peer chose are never resolved, only opened, one
by one, inside a directory that is open already: see directories.py.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from functools import lru_cache

_OPENAT2 = 437
"""The system call's number, the same on every architecture (asm-generic/unistd.h)."""

_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_IN_ROOT = 0x10
_AT_EINTR_TRIES = 64

_SYMLINKS = 40
"""Symlinks on the way of one path, as the kernel has it (path_resolution(7))."""

_STEP = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class _OpenHow(ctypes.Structure):
    """struct open_how of openat2(2)."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class Root:
    """Where typed paths are resolved: below `path`, or in the whole file system where it is None."""

    def __init__(self, home: bytes, path: bytes | None = None, *, walk: bool = False) -> None:
        """`walk`: do without openat2. Raises OSError where the root is no directory."""
        self.home = home
        self._walk = walk
        self._fd = None if path is None else os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Let go of the root."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def full(self, typed: bytes) -> bytes:
        """A typed path as an absolute one, as seen from the root."""
        return os.path.join(self.home, typed)

    def open(self, typed: bytes, flags: int, mode: int = 0o777) -> int:
        """Open what was typed; symlinks on the way, and at its end unless O_NOFOLLOW, are followed. Raises OSError."""
        path = self.full(typed)
        if self._fd is None:
            return os.open(path, flags | os.O_CLOEXEC, mode)
        if not self._walk and _openat2_works():
            return _openat2(self._fd, path, flags | os.O_CLOEXEC, mode)
        return _walk(self._fd, path, flags | os.O_CLOEXEC, mode)

    def stat(self, typed: bytes, *, follow: bool = True) -> os.stat_result:
        """What is there. Raises OSError."""
        if self._fd is None:
            return os.stat(self.full(typed), follow_symlinks=follow)
        fd = self.open(typed, os.O_PATH if follow else os.O_PATH | os.O_NOFOLLOW)
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def parent(self, typed: bytes) -> tuple[int, bytes]:
        """The directory that a file of this path is in, as a descriptor, and the file's name there.

        A symlink in the file's own place is followed, whether it leads to something or not. Raises OSError.
        """
        path = self.full(typed).rstrip(b"/")
        for _ in range(_SYMLINKS):
            above, name = os.path.split(path)
            fd = self.open(above or b"/", os.O_PATH | os.O_DIRECTORY)
            try:
                target = _readlink(name, fd) if name not in (b"", b".", b"..") else None
                if target is None:
                    return os.dup(fd), name
            finally:
                os.close(fd)
            path = os.path.join(above, target)
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))

    def make_directories(self, typed: bytes, *, dry_run: bool = False) -> bool:
        """Make a directory and those above it that are not there; whether there were any.

        Raises OSError, also where `..` follows one that is missing: it would lead past the root.
        """
        path = self.full(typed).rstrip(b"/") or b"/"
        missing: list[bytes] = []
        while True:
            try:
                fd = self.open(path, os.O_PATH | os.O_DIRECTORY)
                break
            except FileNotFoundError:
                path, name = os.path.split(path)
                if name == b"..":
                    raise
                missing.append(name)
        try:
            for name in () if dry_run else reversed(missing):
                try:
                    os.mkdir(name, dir_fd=fd)
                except FileExistsError:
                    pass  # somebody else's, made just now
                below = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
                os.close(fd)
                fd = below
        finally:
            os.close(fd)
        return bool(missing)


def _readlink(name: bytes, fd: int) -> bytes | None:
    try:
        return os.readlink(name, dir_fd=fd)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):
            return None
        raise


# --- openat2 -------------------------------------------------------------------------------------------------------


@lru_cache(1)
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


@lru_cache(1)
def _openat2_works() -> bool:
    """Whether the kernel has it, and no seccomp filter hides it."""
    fd = os.open(b"/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.close(_openat2(fd, b".", os.O_PATH | os.O_CLOEXEC, 0))
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _openat2(root: int, path: bytes, flags: int, mode: int) -> int:
    # O_PATH takes few flags beside itself, and a mode only goes with O_CREAT: openat2 refuses what open ignores.
    how = _OpenHow(flags, mode if flags & os.O_CREAT else 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    for _ in range(_AT_EINTR_TRIES):
        fd = _libc().syscall(_OPENAT2, root, path, ctypes.byref(how), ctypes.sizeof(how))
        if fd >= 0:
            return int(fd)
        number = ctypes.get_errno()
        # EAGAIN: something was renamed while `..` was resolved; openat2(2) says to try again.
        if number not in (errno.EINTR, errno.EAGAIN):
            break
    raise OSError(number, os.strerror(number), path)


# --- the same by a walk --------------------------------------------------------------------------------------------


def _walk(root: int, path: bytes, flags: int, mode: int) -> int:
    """Resolve name by name; the stack of descriptors is the way back up, so that `..` leads where we came from."""
    stack = [os.dup(root)]
    left = [part for part in path.split(b"/") if part and part != b"."]
    directory_wanted = path.endswith((b"/", b"/.")) or not left
    symlinks = 0
    try:
        while left:
            name = left.pop(0)
            if name == b"..":
                if len(stack) > 1:
                    os.close(stack.pop())
                continue
            if not left and flags & os.O_CREAT and not _exists(name, stack[-1]):
                if directory_wanted:
                    raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
                return os.open(name, flags | os.O_NOFOLLOW, mode, dir_fd=stack[-1])
            fd = os.open(name, _STEP, dir_fd=stack[-1])
            kind = os.fstat(fd).st_mode
            last = not left and not directory_wanted
            if stat.S_ISLNK(kind) and not (last and flags & os.O_NOFOLLOW):
                os.close(fd)
                symlinks += 1
                if symlinks > _SYMLINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                target = os.readlink(name, dir_fd=stack[-1])
                if target.startswith(b"/"):
                    while len(stack) > 1:
                        os.close(stack.pop())
                directory_wanted |= not left and target.endswith((b"/", b"/."))
                left = [part for part in target.split(b"/") if part and part != b"."] + left
                continue
            stack.append(fd)
            if not stat.S_ISDIR(kind) and (left or directory_wanted):
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        if flags & os.O_PATH:
            return os.dup(stack[-1])
        # What an O_PATH descriptor stands for is opened through it: nothing can be swapped in between.
        return os.open(f"/proc/self/fd/{stack[-1]}", flags & ~os.O_NOFOLLOW, mode)
    finally:
        for fd in stack:
            os.close(fd)


def _exists(name: bytes, fd: int) -> bool:
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
