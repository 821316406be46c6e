"""What is there, and what can be done about it without copying: the requests behind `vsockfwd fs`. It blocks.

Paths are what an operator typed, resolved below the root. Names that a directory holds are never followed: what is
listed is told as it is, a removal goes down by descriptors and removes symlinks, not what they lead to.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterator

import msgspec

from vsockfwd.plugin import BadRequest, CannotCreate, from_oserror, printable
from vsockfwd_copy.directories import OPEN_ROOT
from vsockfwd_copy.messages import Look
from vsockfwd_copy.removing import remove_tree
from vsockfwd_copy.roots import Root
from vsockfwd_copy.walking import special

PAGE = 1 << 18
"""Bytes of names, targets and attributes that are told at once."""


class Status(msgspec.Struct, frozen=True, array_like=True):
    """What stat(2) says of a name. `mode` holds the type too; `mtime` is nanoseconds since 1970."""

    name: bytes
    mode: int
    size: int
    mtime: int
    links: int
    uid: int
    gid: int
    user: str = ""
    group: str = ""
    target: bytes = b""
    """Where a symlink leads."""

    @property
    def kind(self) -> str:
        """directory, file, symlink, or what else it is."""
        if stat.S_ISDIR(self.mode):
            return "directory"
        if stat.S_ISREG(self.mode):
            return "file"
        return "symlink" if stat.S_ISLNK(self.mode) else special(self.mode)


class Space(msgspec.Struct, frozen=True, array_like=True):
    """A file system's size, what is free, and what is free for who is not root: bytes."""

    size: int
    free: int
    available: int


class Seen(msgspec.Struct, frozen=True):
    """What a Look has found, or a part of it."""

    found: list[Status] = []
    space: Space | None = None
    removed: int = 0


def look(request: Look, root: Root) -> Iterator[Seen]:
    """Do what is asked, and tell it in pieces. Raises VsockfwdError."""
    told = printable(request.path or root.full(request.path))
    try:
        match request.what:
            case "stat":
                found = root.stat(request.path, follow=request.recursive)
                yield Seen([_status(request.path, found, root, request.path)])
            case "list":
                yield from _list(request, root)
            case "space":
                yield _space(request, root)
            case "make":
                _make(request, root)
            case "remove":
                yield _remove(request, root, told)
    except OSError as error:
        raise from_oserror(error, told) from None


def _status(name: bytes, found: os.stat_result, root: Root, path: bytes) -> Status:
    target = b""
    if stat.S_ISLNK(found.st_mode):
        above, last = os.path.split(root.full(path).rstrip(b"/"))
        fd = root.open(above or b"/", os.O_PATH | os.O_DIRECTORY)
        try:
            target = os.readlink(last, dir_fd=fd)
        finally:
            os.close(fd)
    return _told(name, found, target)


def _told(name: bytes, found: os.stat_result, target: bytes) -> Status:
    return Status(
        name,
        found.st_mode,
        found.st_size,
        found.st_mtime_ns,
        found.st_nlink,
        found.st_uid,
        found.st_gid,
        _user(found.st_uid),
        _group(found.st_gid),
        target,
    )


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return ""


def _list(request: Look, root: Root) -> Iterator[Seen]:
    fd = root.open(request.path, OPEN_ROOT)
    try:
        found: list[Status] = []
        weight = 0
        for name in sorted(os.fsencode(name) for name in os.listdir(fd)):
            try:
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                target = os.readlink(name, dir_fd=fd) if stat.S_ISLNK(status.st_mode) else b""
            except FileNotFoundError:
                continue  # it has gone meanwhile
            found.append(_told(name, status, target))
            weight += len(name) + len(target) + 100
            if weight >= PAGE:
                yield Seen(found)
                found, weight = [], 0
        yield Seen(found)
    finally:
        os.close(fd)


def _space(request: Look, root: Root) -> Seen:
    fd = root.open(request.path, os.O_PATH)
    try:
        found = os.fstatvfs(fd)
    finally:
        os.close(fd)
    size = found.f_frsize
    return Seen(space=Space(found.f_blocks * size, found.f_bfree * size, found.f_bavail * size))


def _make(request: Look, root: Root) -> None:
    if request.recursive:
        root.make_directories(request.path)
        return
    fd, name = root.parent(request.path)
    try:
        os.mkdir(name, dir_fd=fd)
    except FileExistsError:
        raise CannotCreate(f"{printable(request.path)}: is there already") from None
    finally:
        os.close(fd)


def _remove(request: Look, root: Root, told: str) -> Seen:
    above, name = os.path.split(root.full(request.path).rstrip(b"/"))
    if name in (b"", b".", b".."):
        raise BadRequest(f"{told}: is not removed", hint="name what is in it")
    gone: list[bytes] = []
    fd = root.open(above or b"/", OPEN_ROOT)
    try:
        found = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode) and not request.recursive:
            raise BadRequest(f"{told}: is a directory", hint="-r removes it with all that is in it")
        remove_tree(name, fd, gone.append)
    finally:
        os.close(fd)
    return Seen(removed=len(gone))
