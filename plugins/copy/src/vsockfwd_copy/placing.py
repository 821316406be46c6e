"""A file's or a symlink's content and attributes, put in its place; and whether that is there already.

It blocks: call it in a thread. All of it is about one entry and one spot at a time; nothing is remembered here.
"""

from __future__ import annotations

import functools
import os
import stat
import time

import msgspec

from vsockfwd.plugin import PeerBrokeProtocol, VerificationFailed
from vsockfwd_copy.arriving import Arriving, Shape, back_up, link_to_rename, umask
from vsockfwd_copy.attributes import NOTHING_LOST, Loss
from vsockfwd_copy.ground import Ground, Spot
from vsockfwd_copy.messages import SMALL_LIMIT, Flow, Landed, Large, Small, Symlink, digest_of
from vsockfwd_copy.standing import Standing

_LOOK = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Placing:
    """How one landing's files get into their place."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._options = ground.options
        self._writer = ground.writer

    # --- what is there already

    def resumes(self, entry: Landed) -> bool:
        """Whether it is a file that is resumed where it was interrupted, and can be if it is now."""
        if type(entry) is not Large or entry.size <= SMALL_LIMIT or not entry.stamp:
            return False
        return self._options.resume and not self._options.inplace and not self._options.dry_run

    def unchanged(self, old: os.stat_result, entry: Landed) -> bool:
        """Whether what stands there need not be looked at to know that it is what comes."""
        if type(entry) is Flow or not stat.S_ISREG(old.st_mode):
            return False
        size = len(entry.content) if type(entry) is Small else entry.size
        if old.st_size != size:
            return False
        if self._options.update and old.st_mtime_ns == entry.mtime:
            return True
        return self._options.checksum and not size

    def same_symlink(self, spot: Spot, entry: Symlink, old: os.stat_result) -> bool:
        """Whether the same symlink stands there, as far as that is asked."""
        asked = self._options.checksum or (self._options.update and old.st_mtime_ns == entry.mtime)
        if not asked or not stat.S_ISLNK(old.st_mode):
            return False
        return os.readlink(spot.name, dir_fd=self._ground.fd(spot.directory)) == entry.target

    def compares(self, entry: Large | Flow, old: os.stat_result | None) -> bool:
        """Whether a file is compared with what stands in its place."""
        if old is None or not stat.S_ISREG(old.st_mode) or not old.st_size or isinstance(entry, Flow):
            return False
        if self._options.checksum and old.st_size == entry.size:
            return True
        return self._options.delta and entry.size > SMALL_LIMIT

    def freshen(self, spot: Spot, entry: Landed, old: os.stat_result) -> Loss:
        """Permissions, owner, attributes and times for what has the content already. Raises OSError."""
        if self._options.dry_run:
            return NOTHING_LOST
        if self._writer.plain:
            mode_fits = not self._options.perms or old.st_mode & 0o777 == entry.mode & 0o777
            if mode_fits and (not self._options.times or old.st_mtime_ns == entry.mtime):
                return NOTHING_LOST
        fd = os.open(spot.name, _LOOK, dir_fd=self._ground.fd(spot.directory))
        try:
            extra = None if type(entry) is Flow else entry.extra
            loss = self._writer.dress(fd, entry.mode if self._options.perms else None, extra)
            if self._options.times:
                os.utime(fd, ns=(time.time_ns(), entry.mtime))
            return loss
        finally:
            os.close(fd)

    def digest_of_standing(self, spot: Spot) -> bytes:
        """The digest of a small file that stands there; nothing where it cannot be read."""
        try:
            fd = os.open(spot.name, _LOOK, dir_fd=self._ground.fd(spot.directory))
        except OSError:
            return b""
        try:
            return digest_of(os.read(fd, SMALL_LIMIT + 1), self._options.algorithm)
        except OSError:
            return b""
        finally:
            os.close(fd)

    def standing(self, spot: Spot) -> Standing | None:
        """What stands in a file's place, where it can be read."""
        try:
            return Standing(spot.name, dir_fd=self._ground.fd(spot.directory))
        except OSError:
            return None

    # --- what comes

    def shape(self, entry: Landed, old: os.stat_result | None) -> Shape:
        # A hole at the end of a large file is not written; a small one is as long as what was, unless it is in place.
        size = entry.size if type(entry) is Large else None
        if type(entry) is Small and self._options.inplace:
            size = len(entry.content)
        mode = entry.mode
        if not self._options.perms:
            stands = old is not None and stat.S_ISREG(old.st_mode)
            mode = old.st_mode & 0o777 if old is not None and stands else 0o666 & ~umask()
        extra = None if type(entry) is Flow else entry.extra
        return Shape(size, mode, entry.mtime, extra)

    def arriving(self, spot: Spot, shape: Shape, old: os.stat_result | None) -> Arriving:
        mode = shape.mode & 0o777
        if not self._writer.plain:
            mode = 0o600  # nobody else reads it before it is its owner's
        options = self._options
        if options.inplace and old is not None and not stat.S_ISREG(old.st_mode):
            options = msgspec.structs.replace(options, inplace=False)  # a symlink cannot be written into
        return Arriving(self._ground.directories, spot.directory, spot.name, options, mode)

    def small(self, spot: Spot, entry: Small, old: os.stat_result | None) -> Loss:
        if digest_of(entry.content, self._options.algorithm) != entry.digest:
            raise VerificationFailed("was damaged on the way")
        return self.write(spot, entry.content, self.shape(entry, old), old)

    def write(self, spot: Spot, content: bytes, shape: Shape, old: os.stat_result | None) -> Loss:
        arriving = self.arriving(spot, shape, old)
        try:
            arriving.write(content, 0)
            return arriving.keep(shape, self._writer, replaces=old is not None)
        except BaseException:
            arriving.discard()
            raise

    def symlink(self, spot: Spot, entry: Symlink, *, replaces: bool) -> Loss:
        if b"\0" in entry.target:
            raise PeerBrokeProtocol("the sender sent a symlink whose target holds a NUL")
        there = self._ground.fd(spot.directory)
        link = functools.partial(os.symlink, entry.target, dir_fd=there)
        with link_to_rename(spot.name, link, dir_fd=there) as temporary:
            loss = self._writer.dress_symlink(temporary, entry.extra, dir_fd=there)
            if self._options.times:
                os.utime(temporary, ns=(time.time_ns(), entry.mtime), dir_fd=there, follow_symlinks=False)
            if replaces and self._options.backup:
                back_up(spot.name, self._options.backup, dir_fd=there)
        return loss
