"""Descriptors of directories, opened downwards from a root, one name at a time, and never through a symlink.

The thing to understand first: nobody here holds a path. A directory is its parent and its name, so that depth is not
bounded by PATH_MAX, and nothing that is swapped for a symlink meanwhile can lead out of the root. Only so many
descriptors are kept; one that was let go is opened again from the nearest ancestor that is still open.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable

KEPT = 48
"""Descriptors that one copy keeps open."""

TITLE_LIMIT = 4096
"""Bytes of a path that are told to a person."""

OPEN_ROOT = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
OPEN_BELOW = OPEN_ROOT | os.O_NOFOLLOW


class Directory:
    """One directory. Where `parent` is None, `name` is a path, whose symlinks are followed: a person typed it.

    `word` is what a person calls it, which differs from the name for what was typed only. `follow`: a symlink of that
    name is followed, since the operator of this side said so.
    """

    __slots__ = ("follow", "name", "parent", "word")

    def __init__(self, parent: Directory | None, name: bytes, word: bytes, *, follow: bool = False) -> None:
        self.parent = parent
        self.name = name
        self.word = word
        self.follow = follow

    def title_of(self, word: bytes) -> bytes:
        """What to call something inside: the words on the way down to it, the nearest of them where they are many.

        Put together when it is asked for: kept with each directory, it would grow with the square of the depth.
        """
        words, size = [word], 0
        at: Directory | None = self
        while at is not None and size < TITLE_LIMIT:
            if at.word:
                words.append(at.word.rstrip(b"/"))
                size += len(words[-1]) + 1
            at = at.parent
        if at is not None:
            words.append("…".encode())
        return b"/".join(reversed(words))


class OpenDirectories:
    """The descriptors of one copy's directories. Not for several threads at once."""

    def __init__(self, open_typed: Callable[[bytes, int], int] = os.open, kept: int = KEPT) -> None:
        """`open_typed` opens what a person typed."""
        self._open_typed = open_typed
        self._kept = kept
        self._open: OrderedDict[Directory, int] = OrderedDict()
        self._pinned: dict[Directory, int] = {}

    def pin(self, directory: Directory, fd: int) -> None:
        """Use a descriptor of the caller's, who keeps it open."""
        self._pinned[directory] = fd

    def fd(self, directory: Directory) -> int:
        """A descriptor, good until the next call. Raises OSError."""
        missing = []
        at: Directory | None = directory
        while at is not None and at not in self._open and at not in self._pinned:
            missing.append(at)
            at = at.parent
        fd = None if at is None else self._known(at)
        for at in reversed(missing):
            if fd is None:
                fd = self._open_typed(at.name, OPEN_ROOT)
            else:
                fd = os.open(at.name, OPEN_ROOT if at.follow else OPEN_BELOW, dir_fd=fd)
            self._open[at] = fd
            if len(self._open) > self._kept:
                os.close(self._open.popitem(last=False)[1])
        assert fd is not None
        return fd

    def _known(self, directory: Directory) -> int:
        if directory in self._pinned:
            return self._pinned[directory]
        self._open.move_to_end(directory)
        return self._open[directory]

    def forget(self, directory: Directory) -> None:
        """It need not be kept open; where it is asked for again after all, it is opened again."""
        fd = self._open.pop(directory, None)
        if fd is not None:
            os.close(fd)

    def close(self) -> None:
        """Close all but the pinned ones."""
        while self._open:
            os.close(self._open.popitem()[1])
