"""The directories of a destination: entered, made or found, left, and complete once all in them is answered.

It blocks: call it in a thread. The thing to understand first: a directory gets its permissions and its mtime last, when
nothing is written into it any more, and that may be long after the sender has left it.
"""

from __future__ import annotations

import errno
import os
import stat
import time

from vsockfwd.plugin import CannotCreate, PeerBrokeProtocol, VsockfwdError
from vsockfwd_copy.account import Outcome
from vsockfwd_copy.arriving import is_at_work, is_part, part_names, umask
from vsockfwd_copy.asked import Wanted
from vsockfwd_copy.attributes import NOTHING_LOST, Loss
from vsockfwd_copy.directories import OPEN_BELOW
from vsockfwd_copy.ground import Arrived, Ground, Spot
from vsockfwd_copy.messages import DEPTH_LIMIT, Done, Enter, Result, failure_of
from vsockfwd_copy.patterns import Filters


class Folders:
    """The way down to where the sender is, and the directories that are not complete yet."""

    def __init__(self, ground: Ground, wanted: Wanted | None) -> None:
        """`wanted`: what below the one source was asked for."""
        self._ground = ground
        self._options = ground.options
        self._wanted = wanted
        self._filters = Filters(ground.options.exclude, ground.options.include)
        top = Arrived(None, b"", b"", 0, None)
        top.virtual = ground.place.virtual
        ground.directories.pin(top, ground.place.fd)
        self._stack = [top]

    @property
    def current(self) -> Arrived:
        """The directory that the sender entered last."""
        return self._stack[-1]

    @property
    def at_top(self) -> bool:
        """Whether the sender is in none of its own."""
        return len(self._stack) == 1

    def enter(self, spot: Spot, entry: Enter) -> None:
        """Go into a directory, made where there is none. What cannot be made fails, and all in it. Raises
        PeerBrokeProtocol."""
        if len(self._stack) > DEPTH_LIMIT:
            raise PeerBrokeProtocol(f"the sender put more than {DEPTH_LIMIT} directories into each other")
        arrived = Arrived(spot.directory, spot.name, spot.word, spot.number, entry if spot.name else None)
        if len(self._stack) == 1:
            arrived.wanted = self._wanted
        elif spot.directory.wanted is not None:
            arrived.wanted = spot.directory.wanted[spot.name]
        try:
            if spot.name:
                self._make(arrived, spot.directory)
            else:
                self._go_into(arrived)
        except (OSError, VsockfwdError) as error:
            arrived.failure = failure_of(error, "cannot be made")
        if self._options.delete and not arrived.fresh and not arrived.virtual and arrived.failure is None:
            arrived.announced = set()
        spot.directory.waiting += 1
        self._stack.append(arrived)

    def _make(self, arrived: Arrived, parent: Arrived) -> None:
        parent.check()
        if parent.parent is None:
            self._ground.claim(arrived.name)
        if self._options.dry_run:
            self._would_make(arrived, parent)
            return
        there = self._ground.fd(parent)
        try:
            os.mkdir(arrived.name, 0o700, dir_fd=there)
            arrived.fresh = True
        except FileExistsError:
            if self._options.delete and not stat.S_ISDIR(
                os.stat(arrived.name, dir_fd=there, follow_symlinks=False).st_mode
            ):
                self._ground.remove(parent, arrived.name, there)
                os.mkdir(arrived.name, 0o700, dir_fd=there)
                arrived.fresh = True
            # else it is one to add to, or it cannot be opened as a directory
        try:
            self._ground.fd(arrived)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise CannotCreate("something else than a directory stands in its place") from None
            raise

    def _go_into(self, arrived: Arrived) -> None:
        """The content of a source goes into the destination itself. Raises CannotCreate."""
        if self._options.delete and self._ground.several:
            raise CannotCreate("its content goes where the other sources go, which --delete would remove")
        arrived.virtual = self._ground.place.virtual
        self._ground.directories.pin(arrived, self._ground.place.fd)

    def _would_make(self, arrived: Arrived, parent: Arrived) -> None:
        if parent.virtual:
            arrived.virtual = True
            return
        try:
            found = os.stat(arrived.name, dir_fd=self._ground.fd(parent), follow_symlinks=False)
        except FileNotFoundError:
            arrived.virtual = True
            return
        if not stat.S_ISDIR(found.st_mode):
            if not self._options.delete:
                raise CannotCreate("something else than a directory stands in its place")
            self._ground.tell_removed(parent.path_of(arrived.name), None)
            arrived.virtual = True

    def leave(self) -> None:
        """The sender has said all that is in the directory. Raises PeerBrokeProtocol."""
        if len(self._stack) == 1:
            raise PeerBrokeProtocol("the sender left a directory that it had not entered")
        left = self._stack.pop()
        left.left = True
        if left.announced is not None and left.failure is None:
            self._remove_others(left, left.announced)
            left.announced = None
        self.settle(left)

    def settle(self, directory: Arrived) -> None:
        """Complete a directory that was left and waits for nothing any more, and those above it with it."""
        at = directory
        while at.left and not at.waiting and at.parent is not None:
            self._complete(at)
            at.parent.waiting -= 1
            at = at.parent

    def _complete(self, arrived: Arrived) -> None:
        loss = NOTHING_LOST
        if arrived.failure is None and arrived.entry is not None and not arrived.virtual and not self._options.dry_run:
            try:
                loss = self._dress(arrived, arrived.entry)
            except OSError as error:
                arrived.failure = failure_of(error, "its mode and time cannot be set")
        self._ground.directories.forget(arrived)
        done = Done.NEW if arrived.fresh or arrived.virtual else Done.SAME
        self._ground.answers.results.append(Result(arrived.number, arrived.failure, done, int(loss)))
        assert arrived.parent is not None
        title = arrived.parent.title_of(arrived.word)
        self._ground.answers.outcomes.append(Outcome(title, 0, False, arrived.failure, done, loss))

    def _dress(self, arrived: Arrived, entry: Enter) -> Loss:
        fd = self._ground.fd(arrived)
        loss = NOTHING_LOST
        mode: int | None = entry.mode
        if not self._options.perms:
            mode = 0o777 & ~umask() if arrived.fresh else None
        if not self._ground.writer.plain:
            loss = self._ground.writer.dress(fd, mode, entry.extra)
        elif mode is not None:
            os.fchmod(fd, mode & 0o777)
        if self._options.times:
            os.utime(fd, ns=(time.time_ns(), entry.mtime))
        if self._options.fsync:
            os.fsync(fd)
        return loss

    def _remove_others(self, directory: Arrived, announced: set[bytes]) -> None:
        """Remove what stands in a directory and did not come, but for what the filters leave out."""
        try:
            # The destination's own descriptor need not be one to read from: it may be a directory to write into only.
            there = os.open(b".", OPEN_BELOW, dir_fd=self._ground.fd(directory))
            try:
                with os.scandir(there) as found:
                    names = sorted((os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in found)
            finally:
                os.close(there)
        except OSError as error:
            self._ground.tell_removed(directory.path_of(b""), failure_of(error, "what is in it cannot be listed"))
            return
        parts = [name for name, _ in names if is_part(name)]
        kept = announced | {part for name in (announced if parts else ()) for part in part_names(name)}
        kept |= {name for name in parts if is_at_work(name, dir_fd=self._ground.fd(directory))}
        for name, is_directory in names:
            if name in kept:
                continue
            if self._options.backup and name.endswith(self._options.backup):
                continue
            if self._filters and self._filters.leaves_out(self._below_source(directory, name), is_directory):
                continue
            self._ground.remove(directory, name, self._ground.fd(directory))

    def _below_source(self, directory: Arrived, name: bytes) -> bytes:
        """The path of something as filters see it: from its source down."""
        path = directory.path_of(name)
        source = self._stack[1] if len(self._stack) > 1 else directory
        return path.partition(b"/")[2] if source.name else path
