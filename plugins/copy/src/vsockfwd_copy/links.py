"""Files of several names: where the first of them landed, and the names that wait for it.

It blocks: call it in a thread.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass

from vsockfwd.plugin import Code, PeerBrokeProtocol, VsockfwdError, from_code
from vsockfwd_copy.account import Outcome
from vsockfwd_copy.arriving import back_up, link_to_rename
from vsockfwd_copy.ground import Arrived, Ground, Spot
from vsockfwd_copy.messages import Done, Failure, HardLink

LINKS_LIMIT = 1 << 20
"""Files of several names that a sender may make a receiver remember."""

KEPT = Failure(Code.EXISTS, 0, "the file that it is another name of was kept as it stood, and may be another")


def not_there(failure: Failure) -> Failure:
    """What becomes of other names of a file that failed."""
    return Failure(failure.code, 0, "the file that it is another name of did not come")


@dataclass(frozen=True, slots=True)
class Linked:
    """A file that gets more names, in its place, and what was done with it."""

    directory: Arrived
    name: bytes
    done: Done


class Links:
    """One landing's files of several names."""

    def __init__(self, ground: Ground, settle: Callable[[Arrived], None]) -> None:
        """`settle` is told of a directory in which something that it waited for was answered."""
        self._ground = ground
        self._options = ground.options
        self._settle = settle
        self._known: dict[int, Linked | Failure | None] = {}
        """Where they are, why they are not there, or None while they are on their way."""
        self._waiting: dict[int, list[Spot]] = {}

    def remember(self, number: int, where: Linked | Failure | None) -> None:
        """A file that will have other names. Raises PeerBrokeProtocol for too many of them."""
        if len(self._known) >= LINKS_LIMIT:
            raise PeerBrokeProtocol(f"the sender announced more than {LINKS_LIMIT} files of several names")
        self._known[number] = where

    def settle(self, number: int, target: Linked | Failure) -> None:
        """A file that was on its way has come, or will not: give it the names that waited."""
        self._known[number] = target
        for spot in self._waiting.pop(number, ()):
            try:
                self._ground.answer(spot, Outcome(spot, done=self._link(spot, target)))
            except (OSError, VsockfwdError) as error:
                self._ground.fail(spot, 0, error)
            spot.directory.waiting -= 1
            self._settle(spot.directory)

    def land(self, spot: Spot, entry: HardLink) -> Done | None:
        """Another name for a file; None where that is still on its way. Raises OSError, VsockfwdError."""
        if entry.file not in self._known:
            raise PeerBrokeProtocol(f"the sender sent another name for file {entry.file}, which has one only")
        target = self._known[entry.file]
        if target is None:
            waiting = self._waiting.setdefault(entry.file, [])
            waiting.append(spot)
            spot.directory.waiting += 1
            return None
        return self._link(spot, target)

    def _link(self, spot: Spot, target: Linked | Failure) -> Done:
        """Give a file that has landed another name. Raises OSError, VsockfwdError."""
        old = self._ground.clear(spot)
        if old is not None and self._options.no_clobber:
            return Done.KEPT
        if isinstance(target, Failure):
            raise from_code(target.code, target.text)
        if old is not None and self._has_name(target, old):
            return Done.SAME
        done = Done.NEW if old is None else Done.REPLACED
        if self._options.dry_run:
            return done
        # Each descriptor is good until the next is asked for.
        source = os.dup(self._ground.fd(target.directory))
        try:
            there = self._ground.fd(spot.directory)
            link = functools.partial(os.link, target.name, src_dir_fd=source, dst_dir_fd=there, follow_symlinks=False)
            if old is None:
                link(spot.name)
                return done
            if self._options.backup:
                back_up(spot.name, self._options.backup, dir_fd=there)
            with link_to_rename(spot.name, link, dir_fd=there):
                pass
            return done
        finally:
            os.close(source)

    def _has_name(self, target: Linked, old: os.stat_result) -> bool:
        """Whether what stands in a name's place is that file already; would be, where nothing is done."""
        if self._options.dry_run and target.done is not Done.SAME and not self._options.inplace:
            return False
        try:
            fd = self._ground.fd(target.directory)
            found = os.stat(target.name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == (old.st_dev, old.st_ino)
