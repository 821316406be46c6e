"""What the rooms of a landing stand on: the place, what was asked for, and what has been answered so far.

It blocks: call it in a thread. The thing to understand first: a spot is a name in a directory that was entered, never a
path; what may stand there, and whether it may go, is decided in one place, `clear`.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field

import msgspec

from vsockfwd.plugin import CannotCreate, VsockfwdError, from_code
from vsockfwd_copy.account import Outcome
from vsockfwd_copy.arriving import is_part, remove_part
from vsockfwd_copy.asked import Wanted
from vsockfwd_copy.attributes import NOTHING_LOST, Loss, Writer
from vsockfwd_copy.destination import Place
from vsockfwd_copy.directories import OPEN_BELOW, Directory, OpenDirectories
from vsockfwd_copy.messages import Blocks, Done, Enter, Failure, Result, Want, failure_of
from vsockfwd_copy.options import LandOptions
from vsockfwd_copy.removing import remove_tree

FEW = 8
"""Files of one directory that are looked at one by one for what an earlier copy has left of them; for more it is listed
once, which costs less."""


class Arrived(Directory):
    """A directory of the destination, made or found, until everything in it has been answered."""

    __slots__ = (
        "announced", "entry", "failure", "fresh", "left", "looked", "number", "parts", "virtual", "waiting", "wanted",
    )  # fmt: skip

    parent: Arrived | None

    def __init__(self, parent: Arrived | None, name: bytes, word: bytes, number: int, entry: Enter | None) -> None:
        super().__init__(parent, name, word)
        self.number = number
        self.entry = entry
        """What it shall be like in the end; None for one that is left as it stood."""
        self.waiting = 0
        """Large files and directories in it that are not answered yet."""
        self.left = False
        self.fresh = False
        """Whether it was made here, so that nothing but ours stands in it."""
        self.virtual = False
        """Whether it would only be made."""
        self.failure: Failure | None = None
        self.announced: set[bytes] | None = None
        """The names that came, where others are to be removed."""
        self.wanted: Wanted | None = None
        """What in it was asked for; None: all of it."""
        self.looked = 0
        self.parts: bool | None = None
        """Whether something that an earlier copy has left was in it when it was listed; None: it was not."""

    def check(self) -> None:
        """Raise, for what should be in it, that it is not there; for the same reason."""
        if self.failure is not None:
            raise from_code(self.failure.code, "its directory could not be made")

    def path_of(self, name: bytes) -> bytes:
        """The path of something inside, from the top."""
        parts = [name]
        at: Arrived | None = self
        while at is not None and at.parent is not None:
            parts.append(at.name)
            at = at.parent
        return b"/".join(reversed([part for part in parts if part]))


class Spot(msgspec.Struct, frozen=True):
    """Where an entry goes. `word` is what a person calls it: the name, or what was typed."""

    number: int
    directory: Arrived
    name: bytes
    word: bytes

    @property
    def title(self) -> bytes:
        return self.directory.title_of(self.word)


@dataclass(slots=True)
class Answers:
    """What has come of the frames taken in since they were asked for last."""

    wants: list[Want] = field(default_factory=list)
    blocks: list[Blocks] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    removed: list[tuple[bytes, Failure | None]] = field(default_factory=list)
    carried: int = 0
    """Bytes of content that came."""
    moved: int = 0
    """Bytes written, holes included."""
    announced: int = 0
    """Files."""
    announced_bytes: int = 0
    at_work: tuple[int, bytes, int, int] | None = None
    """Number, title, position and size of the large file at work."""

    @property
    def awaited(self) -> int:
        """How many of these the sender may be waiting for."""
        return len(self.wants) + len(self.blocks) + len(self.results)


class Ground:
    """One landing's place, options and descriptors, and the answers that were not taken yet."""

    def __init__(self, place: Place, options: LandOptions, *, several: bool) -> None:
        """`several`: whether more than one source may come. Raises BadRequest for options that cannot be met."""
        self.several = several
        self.place = place
        self.options = options
        self.writer = Writer(options)
        self.directories = OpenDirectories()
        self.answers = Answers()
        self.tops: set[bytes] = set()
        """Names at the top that came, where there are several."""

    def fd(self, directory: Directory) -> int:
        """A directory's descriptor, good until the next call. Raises OSError."""
        return self.directories.fd(directory)

    # --- what stands there

    def clear(self, spot: Spot, *, keeps_part: bool = False) -> os.stat_result | None:
        """What stands in a file's place and may be replaced: a file or a symlink. Raises where the file cannot go.

        What an interrupted copy has left of it goes, unless that is to be resumed.
        """
        spot.directory.check()
        top = spot.directory.parent is None
        if top and self.place.only_directory:
            raise CannotCreate("is no directory, as the slash at the destination's end has it")
        if top and not spot.name:
            raise CannotCreate("what comes from stdin has no name: write the file's name, not a directory's")
        if top:
            self.claim(spot.name)
        if spot.directory.virtual or spot.directory.fresh:
            return None
        there = self.fd(spot.directory)
        try:
            found = os.stat(spot.name, dir_fd=there, follow_symlinks=False)
        except FileNotFoundError:
            found = None
        if found is not None and stat.S_ISDIR(found.st_mode):
            if not self.options.delete:
                raise CannotCreate("a directory stands in its place")
            self.remove(spot.directory, spot.name, there)
            found = None
        if found is not None and not stat.S_ISREG(found.st_mode) and not stat.S_ISLNK(found.st_mode):
            raise CannotCreate("what stands in its place is no file, and is not replaced")
        if not keeps_part and not self.options.dry_run and self._may_have_parts(spot.directory, there):
            remove_part(spot.name, dir_fd=there)
        return found

    def _may_have_parts(self, directory: Arrived, there: int) -> bool:
        """Whether a directory may hold what a copy that was interrupted before this one has left."""
        if directory.parts is None:
            directory.looked += 1
            if directory.looked <= FEW:
                return True
            directory.parts = True
            try:
                # The destination's own descriptor need not be one to read from.
                fd = os.open(b".", OPEN_BELOW, dir_fd=there)
                try:
                    directory.parts = any(is_part(os.fsencode(name)) for name in os.listdir(fd))
                finally:
                    os.close(fd)
            except OSError:
                pass  # it cannot be listed: they are looked for one by one
        return directory.parts

    def claim(self, name: bytes) -> None:
        """Each name at the top is for one source. Raises CannotCreate."""
        if name in self.tops and self.place.name is None:
            raise CannotCreate("another source of that name came already")
        if self.several:
            self.tops.add(name)

    def remove_part(self, spot: Spot) -> None:
        """What was left of a file that will not come after all."""
        if not spot.directory.fresh and not spot.directory.virtual and not self.options.dry_run:
            remove_part(spot.name, dir_fd=self.fd(spot.directory))

    def remove(self, directory: Arrived, name: bytes, there: int) -> None:
        """Remove what stands in a directory that `there` is open for; what cannot be removed is told."""
        above = directory.path_of(b"")
        prefix = above + b"/" if above else b""
        try:
            dry_run = self.options.dry_run
            remove_tree(name, there, lambda path: self.tell_removed(prefix + path, None), dry_run=dry_run)
        except (OSError, VsockfwdError) as error:
            self.tell_removed(prefix + name, failure_of(error, "cannot be removed"))

    # --- what is told

    def tell_removed(self, path: bytes, failure: Failure | None) -> None:
        """Something is gone, or could not be removed."""
        self.answers.removed.append((path[-4095:], failure))

    def answer(self, spot: Spot, outcome: Outcome) -> None:
        """What became of an entry."""
        self.answers.results.append(Result(spot.number, outcome.failure, outcome.done, int(outcome.lost)))
        self.answers.outcomes.append(outcome)

    def done(self, spot: Spot, size: int, done: Done, loss: Loss = NOTHING_LOST) -> None:
        """A file is in its place."""
        self.answer(spot, Outcome(spot, size, True, None, done, loss))

    def fail(self, spot: Spot, size: int, error: OSError | VsockfwdError) -> None:
        """A file is not there."""
        self.answer(spot, Outcome(spot, size, True, failure_of(error, "cannot be written")))
