"""Owners, extended attributes and ACLs: read at the source, given to what lands. It blocks: call it in a thread.

The thing to understand first: what a process may give away depends on who it is. Owners are for root, or a group for
its members; `trusted.` and `security.capability` are for root that keeps owners too, since they give power to who runs
the file, as setuid bits do. What cannot be kept is not an error here but a word in the file's result (`Loss`).
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
from collections.abc import Callable
from enum import IntFlag

from vsockfwd.plugin import BadRequest, printable
from vsockfwd_copy.messages import XATTRS_LIMIT, Extra, Owner
from vsockfwd_copy.options import LandOptions, SendOptions

_ACLS = (b"system.posix_acl_access", b"system.posix_acl_default")
_POWERFUL = (b"trusted.", b"security.capability")
_NOT_THERE = frozenset({errno.ENODATA, errno.ENOTSUP, errno.EPERM, errno.EACCES})

KEEP = -1
"""For chown(2): leave this one as it is."""


class Loss(IntFlag):
    """What of a file could not be kept though it was to be."""

    OWNER = 1
    GROUP = 2
    XATTRS = 4
    ACLS = 8
    SPECIAL_BITS = 16

    @property
    def words(self) -> str:
        names = {1: "owner", 2: "group", 4: "extended attributes", 8: "ACLs", 16: "setuid and setgid bits"}
        return ", ".join(names[loss.value] for loss in Loss if loss in self)


NOTHING_LOST = Loss(0)


class Reader:
    """Reads what is asked for beside content, mode and mtime."""

    def __init__(self, options: SendOptions) -> None:
        self._owners = options.owners
        self._xattrs = options.xattrs
        self._acls = options.acls
        self._users: dict[int, str] = {}
        self._groups: dict[int, str] = {}
        self.mask = 0o7777 if self._owners else 0o777

    def __bool__(self) -> bool:
        return self._owners or self._xattrs or self._acls

    def read(self, found: os.stat_result, path: bytes | int) -> Extra:
        """The rest of what is at `path` (or a descriptor), which is not followed where it is a symlink."""
        owner = self._owner(found) if self._owners else None
        xattrs = self._read_xattrs(path) if self._xattrs or self._acls else []
        return Extra(owner, xattrs)

    def owner_only(self, found: os.stat_result) -> Extra | None:
        """The same for a symlink, which has no attributes of its own that are kept."""
        return Extra(self._owner(found), []) if self._owners else None

    def _owner(self, found: os.stat_result) -> Owner:
        return Owner(
            found.st_uid,
            found.st_gid,
            _name_of(found.st_uid, self._users, lambda number: pwd.getpwuid(number).pw_name),
            _name_of(found.st_gid, self._groups, lambda number: grp.getgrgid(number).gr_name),
        )

    def _read_xattrs(self, path: bytes | int) -> list[tuple[bytes, bytes]]:
        follow = isinstance(path, int)
        xattrs: list[tuple[bytes, bytes]] = []
        try:
            names = [os.fsencode(name) for name in os.listxattr(path, follow_symlinks=follow)]
        except OSError as error:
            if error.errno in _NOT_THERE:
                return []
            raise
        size = 0
        for name in sorted(names):
            if not self._asked(name):
                continue
            try:
                value = os.getxattr(path, name, follow_symlinks=follow)
            except OSError as error:
                if error.errno in _NOT_THERE:
                    continue
                raise
            size += len(name) + len(value)
            if size > XATTRS_LIMIT:
                raise BadRequest(f"has more than {XATTRS_LIMIT} bytes of extended attributes")
            xattrs.append((name, value))
        return xattrs

    def _asked(self, name: bytes) -> bool:
        if name in _ACLS:
            return self._acls
        return self._xattrs and name.startswith((b"user.", *_POWERFUL))


class Writer:
    """Gives what has landed its owner, permissions, attributes and times, in the order that keeps them all."""

    def __init__(self, options: LandOptions, *, uid: int | None = None) -> None:
        """Raises BadRequest for a `chown` that names nobody."""
        self._options = options
        self._root = (os.geteuid() if uid is None else uid) == 0
        self._user, self._group = _parse_chown(options.chown)
        self._users: dict[str, int | None] = {}
        self._groups: dict[str, int | None] = {}
        self.plain = not (options.owner or options.group or options.chown or options.xattrs or options.acls)
        """Whether mode and times are all there is."""

    def dress(self, fd: int, mode: int | None, extra: Extra | None) -> Loss:
        """Owner, permissions, attributes of an open file or directory; times come last. Raises OSError."""
        loss = self._chown(fd, extra, follow=True)
        if extra is not None and (self._options.xattrs or self._options.acls):
            self._remove_others(fd, {name for name, _ in extra.xattrs})
        if mode is not None:
            special = mode & 0o7000
            owned = self._root and self._options.owner and not loss & (Loss.OWNER | Loss.GROUP)
            os.fchmod(fd, mode if special and owned else mode & 0o777)
            if special & 0o6000 and not owned:
                loss |= Loss.SPECIAL_BITS
        if extra is not None and extra.xattrs:
            loss |= self._set_xattrs(fd, extra.xattrs, trusted=not loss & Loss.OWNER)
        return loss

    def dress_symlink(self, name: bytes, extra: Extra | None, *, dir_fd: int) -> Loss:
        """The owner of a symlink. Raises OSError."""
        return self._chown(name, extra, follow=False, dir_fd=dir_fd)

    def _chown(self, what: int | bytes, extra: Extra | None, *, follow: bool, dir_fd: int | None = None) -> Loss:
        """Give it its owner and group. What a command line names (`chown`) must succeed; what is kept, may."""
        if self._user != KEEP or self._group != KEEP:
            os.chown(what, self._user, self._group, dir_fd=dir_fd, follow_symlinks=follow)
        owner = extra.owner if extra is not None else None
        if owner is None:
            return NOTHING_LOST
        uid = self._uid(owner) if self._options.owner and self._user == KEEP else KEEP
        gid = self._gid(owner) if self._options.group and self._group == KEEP else KEEP
        if uid == gid == KEEP:
            return NOTHING_LOST
        try:
            os.chown(what, uid, gid, dir_fd=dir_fd, follow_symlinks=follow)
            return NOTHING_LOST
        except PermissionError:
            found = os.stat(what, dir_fd=dir_fd, follow_symlinks=follow)
        loss = NOTHING_LOST
        if uid not in (KEEP, found.st_uid):
            loss |= Loss.OWNER
        if gid not in (KEEP, found.st_gid):
            try:
                os.chown(what, KEEP, gid, dir_fd=dir_fd, follow_symlinks=follow)
            except PermissionError:
                loss |= Loss.GROUP
        return loss

    def _uid(self, owner: Owner) -> int:
        if self._options.numeric or not owner.user:
            return owner.uid
        number = _number_of(owner.user, self._users, lambda name: pwd.getpwnam(name).pw_uid)
        return owner.uid if number is None else number

    def _gid(self, owner: Owner) -> int:
        if self._options.numeric or not owner.group:
            return owner.gid
        number = _number_of(owner.group, self._groups, lambda name: grp.getgrnam(name).gr_gid)
        return owner.gid if number is None else number

    def _remove_others(self, fd: int, kept: set[bytes]) -> None:
        """Remove attributes that the source has not: what was written into had them, or the directory bequeathed an
        ACL. Before the mode is set, which an ACL is a part of."""
        try:
            names = [os.fsencode(name) for name in os.listxattr(fd)]
        except OSError:
            return  # there are none
        for name in names:
            asked = self._options.acls if name in _ACLS else self._options.xattrs and name.startswith(b"user.")
            if asked and name not in kept:
                os.removexattr(fd, name)

    def _set_xattrs(self, fd: int, xattrs: list[tuple[bytes, bytes]], *, trusted: bool) -> Loss:
        loss = NOTHING_LOST
        for name, value in xattrs:
            is_acl = name in _ACLS
            if not (self._options.acls if is_acl else self._options.xattrs):
                continue
            if not is_acl and not name.startswith((b"user.", *_POWERFUL)):
                continue  # never asked for: what a sender says on its own is not set
            powerful = name.startswith(_POWERFUL)
            if powerful and not (self._root and self._options.owner and trusted):
                loss |= Loss.XATTRS
                continue
            try:
                os.setxattr(fd, name, value)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                    raise
                loss |= Loss.ACLS if is_acl else Loss.XATTRS
        return loss


def _name_of(number: int, known: dict[int, str], look_up: Callable[[int], str]) -> str:
    if number not in known:
        try:
            known[number] = look_up(number)[:64]
        except KeyError:
            known[number] = ""
    return known[number]


def _number_of(name: str, known: dict[str, int | None], look_up: Callable[[str], int]) -> int | None:
    if name not in known:
        try:
            known[name] = look_up(name)
        except (KeyError, ValueError):
            known[name] = None
    return known[name]


def _parse_chown(text: str) -> tuple[int, int]:
    user, _, group = text.partition(":")
    return (
        _named(user, text, "user", lambda name: pwd.getpwnam(name).pw_uid),
        _named(group, text, "group", lambda name: grp.getgrnam(name).gr_gid),
    )


def _named(word: str, text: str, what: str, look_up: Callable[[str], int]) -> int:
    if not word:
        return KEEP
    try:
        return look_up(word)
    except (KeyError, ValueError):
        if word.isascii() and word.isdecimal() and int(word) < (1 << 32) - 1:
            return int(word)
        raise BadRequest(f"--chown {printable(text)}: no {what} {printable(word)!r} where the files land") from None
