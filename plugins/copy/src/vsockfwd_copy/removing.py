"""Removes a tree by descriptors, never through a symlink. It blocks: call it in a thread.

However deep the tree is, one descriptor is open: the way back up is `..`, held against what was there on the way down.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from vsockfwd.plugin import DataError
from vsockfwd_copy.directories import OPEN_BELOW


def remove_tree(name: bytes, there: int, tell: Callable[[bytes], None], *, dry_run: bool = False) -> None:
    """Remove `name` in the directory `there`, and all that is in it; each path, `name` first in it, is told when it is
    gone. Raises OSError; DataError where the tree is moved meanwhile."""
    if not stat.S_ISDIR(os.stat(name, dir_fd=there, follow_symlinks=False).st_mode):
        _unlink(name, there, dry_run)
        tell(name)
        return
    fd = os.dup(there)
    levels: list[tuple[bytes, list[bytes], tuple[int, int]]] = []
    """Names on the way down: of the directory, what is left in it, and what the one above it is."""
    try:
        fd = _down(name, fd, levels)
        while levels:
            word, left, above = levels[-1]
            if left:
                below = left.pop()
                if stat.S_ISDIR(os.stat(below, dir_fd=fd, follow_symlinks=False).st_mode):
                    fd = _down(below, fd, levels)
                else:
                    _unlink(below, fd, dry_run)
                    tell(b"/".join([level[0] for level in levels] + [below]))
                continue
            fd = _up(fd, above)
            if not dry_run:
                os.rmdir(word, dir_fd=fd)
            tell(b"/".join([level[0] for level in levels]))
            levels.pop()
    finally:
        os.close(fd)


def _unlink(name: bytes, there: int, dry_run: bool) -> None:
    if not dry_run:
        os.unlink(name, dir_fd=there)


def _down(name: bytes, fd: int, levels: list[tuple[bytes, list[bytes], tuple[int, int]]]) -> int:
    found = os.fstat(fd)
    below = os.open(name, OPEN_BELOW, dir_fd=fd)
    try:
        names = sorted((os.fsencode(word) for word in os.listdir(below)), reverse=True)
    except BaseException:
        os.close(below)
        raise
    levels.append((name, names, (found.st_dev, found.st_ino)))
    os.close(fd)
    return below


def _up(fd: int, expected: tuple[int, int]) -> int:
    above = os.open(b"..", OPEN_BELOW, dir_fd=fd)
    try:
        found = os.fstat(above)
        if (found.st_dev, found.st_ino) != expected:
            raise DataError("was moved elsewhere while it was removed")
    except BaseException:
        os.close(above)
        raise
    os.close(fd)
    return above
