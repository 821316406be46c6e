"""Less to lose: what a process gives up once it listens, so that who breaks into it gets less.

A user of its own, no privileges by way of what it executes (prctl(2), PR_SET_NO_NEW_PRIVS), and files below its roots
alone, where the kernel has Landlock (landlock(7)). The thing to understand first: all of it is the thread's own, and
handed on to threads that it starts. So it is done while there is one; nothing of it can be taken back.
"""

from __future__ import annotations

import ctypes
import errno
import os
import pwd
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import trio

from vsockfwd.errors import NotAllowed, TransportMissing, UsageError, from_oserror, printable

_PR_SET_NO_NEW_PRIVS = 38
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
"""Landlock's system calls, the same on every architecture (asm-generic/unistd.h)."""
_GET_VERSION = 1
_PATH_BENEATH = 1

# linux/landlock.h
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_READ = _READ_FILE | _READ_DIR
_OF_VERSION = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 5: 0xFFFF}
"""What a version can withhold: each knows what the one before did."""
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | 0x4000 | 0x8000
"""What makes sense for a file that is no directory."""

_SYSTEM = (
    "/usr", "/lib", "/lib64", "/etc/resolv.conf", "/etc/hosts", "/etc/host.conf", "/etc/nsswitch.conf", "/etc/gai.conf",
    "/etc/services", "/etc/passwd", "/etc/group", "/etc/localtime", "/etc/ssl", "/etc/ld.so.cache", "/proc/self",
    "/proc/sys/kernel/random/boot_id", "/run/systemd/resolve", "/dev/urandom",
)  # fmt: skip
"""What Python, the resolver and the C library read while they run."""

THREADS_GO = 15.0
"""Seconds until the threads in which names were looked up have gone: trio keeps an idle one for ten."""


@dataclass(frozen=True, slots=True)
class User:
    """Whom to become."""

    name: str
    uid: int
    gid: int


def find_user(name: str) -> User:
    """A user by name or number. Raises UsageError, NotAllowed where we may not become it."""
    try:
        found = pwd.getpwuid(int(name)) if name.isascii() and name.isdigit() else pwd.getpwnam(name)
    except (KeyError, OverflowError):
        raise UsageError(f"--user {printable(name)}: there is no such user") from None
    if os.geteuid() not in (0, found.pw_uid):
        raise NotAllowed(f"--user {printable(name)}: only root can become another user", hint="start it as root")
    return User(found.pw_name, found.pw_uid, found.pw_gid)


def become(user: User) -> None:
    """Be this user, with its groups and no capabilities; there is no way back. Raises PermissionDenied."""
    try:
        if os.geteuid() == 0:
            os.initgroups(user.name, user.gid)
            os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
    except OSError as error:
        raise from_oserror(error, f"--user {user.name}") from None


def no_new_privileges() -> None:
    """Whatever is executed from here on gets no more than we have. Raises OSError."""
    _check(_libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def landlock_version() -> int:
    """What this kernel's Landlock knows; 0 where it has none, or was told not to use it."""
    version: int = _libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_GET_VERSION))
    return max(0, version)


def check_landlock() -> int:
    """The kernel's version of Landlock. Raises TransportMissing where there is none."""
    version = landlock_version()
    if not version:
        why = os.strerror(ctypes.get_errno()).lower()
        raise TransportMissing(
            f"--confine yes: this kernel has no Landlock ({why})",
            hint="Linux 5.13 or later has, with landlock in /sys/kernel/security/lsm; --confine auto does without",
        )
    return version


def confine(roots: Sequence[str], *, read_only: bool) -> None:
    """Leave this process the files below the roots, to read or to read and write, and what its own running needs.

    Raises OSError. Sockets are none of Landlock's business here: the policy's.
    """
    handled = _of_version(landlock_version())
    ruleset = _libc().syscall(_CREATE_RULESET, ctypes.byref(_Ruleset(handled)), ctypes.c_size_t(8), ctypes.c_uint32(0))
    _check(ruleset)
    try:
        for path in _needed():
            _allow(ruleset, path, _READ & handled)
        _allow(ruleset, "/dev/null", (_READ_FILE | _WRITE_FILE) & handled)
        for root in roots:
            _allow(ruleset, root, _READ if read_only else handled & ~_EXECUTE, must=True)
        _check(_libc().syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0)))
    finally:
        os.close(ruleset)


def _of_version(version: int) -> int:
    return max((rights for known, rights in _OF_VERSION.items() if known <= version), default=0)


def _needed() -> Iterable[str]:
    """Modules that were not imported yet are wanted later."""
    return dict.fromkeys([*_SYSTEM, sys.prefix, sys.base_prefix, *filter(None, sys.path)])


class _Ruleset(ctypes.Structure):
    _fields_ = (("handled_access_fs", ctypes.c_uint64),)


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def _allow(ruleset: int, path: str, rights: int, *, must: bool = False) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        if must:
            raise
        return  # this system has no such thing
    try:
        if not os.path.isdir(f"/proc/self/fd/{descriptor}"):
            rights &= _OF_FILES
        rule = _Beneath(rights, descriptor)
        _check(
            _libc().syscall(
                _ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), ctypes.byref(rule), ctypes.c_uint32(0)
            )
        )
    finally:
        os.close(descriptor)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


async def alone() -> None:
    """Wait until this thread is the only one. Raises NotAllowed where it never is: the others would keep everything."""
    with trio.move_on_after(THREADS_GO):
        while len(os.listdir("/proc/self/task")) > 1:  # noqa: ASYNC110 - nobody tells of it
            await trio.sleep(0.05)
        return
    raise NotAllowed(
        "other threads of this process would keep what it gives up",
        hint="listen on addresses, not on names, with --user and --confine",
    )


def give_up(user: User | None, roots: Sequence[str], *, read_only: bool, confined: bool) -> str:
    """Do all of it, in the order in which it can be done; returns what was done, in words. Raises VsockfwdError."""
    done = []
    try:
        if confined:
            no_new_privileges()  # Landlock asks for it, or for a privilege
            confine(roots, read_only=read_only)
            how = "read below" if read_only else "below"
            done.append(f"files {how} {', '.join(map(printable, roots))} alone (Landlock {landlock_version()})")
        if user is not None:
            become(user)
            done.append(f"as {user.name} (uid {user.uid})")
        no_new_privileges()
        done.append("no new privileges")
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise UsageError(f"--root {', '.join(map(printable, roots))}: is gone") from None
        raise from_oserror(error, "giving up privileges") from None
    return ", ".join(reversed(done))
