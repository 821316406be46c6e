"""The receiver's file system: files that appear complete, in their place, or not at all.

It blocks: call it in a thread. The thing to understand first: the sender is not trusted. It names things only inside
the directory that it entered last, each name is checked, and everything is made relative to descriptors that were
opened without following symlinks; so whatever it says, nothing lands outside the destination. What it may not say at
all is PeerBrokeProtocol and ends the copy; what fails for one file is that file's result.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from vsockfwd.plugin import (
    CannotCreate,
    Code,
    DataError,
    NoSpace,
    PeerBrokeProtocol,
    VerificationFailed,
    VsockfwdError,
    from_code,
    printable,
)
from vsockfwd_copy.account import Outcome
from vsockfwd_copy.arriving import (
    Arriving,
    Part,
    Shape,
    back_up,
    is_at_work,
    is_part,
    link_to_rename,
    part_names,
    remove_part,
    umask,
)
from vsockfwd_copy.asked import Expected, Wanted
from vsockfwd_copy.attributes import NOTHING_LOST, Loss, Writer
from vsockfwd_copy.destination import Place
from vsockfwd_copy.directories import OPEN_BELOW, Directory, OpenDirectories
from vsockfwd_copy.messages import (
    BLOCK,
    DEPTH_LIMIT,
    LARGEST,
    SMALL_LIMIT,
    WINDOW,
    Blocks,
    Chunk,
    Content,
    Contents,
    Done,
    Enter,
    Entries,
    Failure,
    FileDigest,
    Finish,
    Flow,
    GiveUp,
    HardLink,
    Hole,
    Landed,
    Large,
    Leave,
    Lost,
    Piece,
    Range,
    Result,
    Same,
    Small,
    Symlink,
    Want,
    check_name,
    checksum,
    digest_of,
    failure_of,
)
from vsockfwd_copy.options import LandOptions
from vsockfwd_copy.patterns import Filters
from vsockfwd_copy.removing import remove_tree
from vsockfwd_copy.standing import Standing

LINKS_LIMIT = 1 << 20
"""Files of several names that a sender may make a receiver remember."""


def _not_there(failure: Failure) -> Failure:
    """What becomes of other names of a file that failed."""
    return Failure(failure.code, 0, "the file that it is another name of did not come")


_KEPT = Failure(Code.EXISTS, 0, "the file that it is another name of was kept as it stood, and may be another")

# --- what arrives --------------------------------------------------------------------------------------------------


class _Arrived(Directory):
    """A directory of the destination, made or found, until everything in it has been answered."""

    __slots__ = ("announced", "entry", "failure", "fresh", "left", "number", "virtual", "waiting", "wanted")

    parent: _Arrived | None

    def __init__(self, parent: _Arrived | None, name: bytes, word: bytes, number: int, entry: Enter | None) -> None:
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

    def check(self) -> None:
        """Raise, for what should be in it, that it is not there; for the same reason."""
        if self.failure is not None:
            raise from_code(self.failure.code, "its directory could not be made")

    def path_of(self, name: bytes) -> bytes:
        """The path of something inside, from the top."""
        parts = [name]
        at: _Arrived | None = self
        while at is not None and at.parent is not None:
            parts.append(at.name)
            at = at.parent
        return b"/".join(reversed([part for part in parts if part]))


@dataclass(frozen=True, slots=True)
class _Spot:
    """Where an entry goes. `word` is what a person calls it: the name, or what was typed."""

    number: int
    directory: _Arrived
    name: bytes
    word: bytes

    @property
    def title(self) -> bytes:
        return self.directory.title_of(self.word)


@dataclass(frozen=True, slots=True)
class _Linked:
    """A file that gets more names, in its place, and what was done with it."""

    directory: _Arrived
    name: bytes
    done: Done


@dataclass(slots=True)
class _Incoming:
    """A file whose data is to come, or comes. `arriving` is None before there is any, and once it is answered."""

    spot: _Spot
    entry: Large | Flow
    old: os.stat_result | None
    digest: FileDigest
    part: Part | None = None
    """What an earlier copy has left of it."""
    standing: Standing | None = None
    """What it is compared with."""
    arriving: Arriving | None = None
    position: int = 0
    reserved: int = 0
    """Bytes that it will still take."""
    answered: bool = False

    @property
    def size(self) -> int | None:
        return self.entry.size if isinstance(self.entry, Large) else None


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


class Landing:
    """One sender's entries and data on their way into a place."""

    def __init__(
        self,
        place: Place,
        options: LandOptions,
        expected: Expected,
        wanted: Wanted | None = None,
    ) -> None:
        """`wanted`: what below the one source was asked for. Raises BadRequest for options that cannot be met."""
        FileDigest(options.algorithm)
        self._place = place
        self._options = options
        self._expected = expected
        self._wanted = wanted
        self._writer = Writer(options)
        self._filters = Filters(options.exclude, options.include)
        self._directories = OpenDirectories()
        self._stack = [_Arrived(None, b"", b"", 0, None)]
        self._stack[0].virtual = place.virtual
        self._directories.pin(self._stack[0], place.fd)
        self._tops: set[bytes] = set()
        """Names at the top that came, where there are several."""
        self._next = 1
        self._pending: dict[int, _Incoming] = {}
        self._current: _Incoming | None = None
        self._comparing: deque[tuple[_Incoming, Iterator[list[Blocks]]]] = deque()
        self._links: dict[int, _Linked | Failure | None] = {}
        """Files that get more names: where they are, why they are not there, or None while they are on their way."""
        self._links_waiting: dict[int, list[_Spot]] = {}
        self._reserved = 0
        """Bytes that files on their way will take."""
        self._answers = Answers()

    def close(self) -> None:
        """Let go of what is open; a file that is not complete leaves nothing behind but what can be resumed."""
        for incoming in (*self._pending.values(), *([self._current] if self._current else [])):
            if incoming.standing is not None:
                incoming.standing.close()
            arriving = incoming.arriving or incoming.part
            if arriving is not None and not incoming.answered:
                arriving.abandon()
        self._pending.clear()
        self._current = None
        self._directories.close()

    def take_answers(self) -> Answers:
        """What there is to tell since the last time."""
        answers, self._answers = self._answers, Answers()
        current = self._current
        if current is not None and not current.answered and isinstance(current.entry, Large):
            spot = current.spot
            answers.at_work = (spot.number, spot.title, current.position, current.entry.size)
        return answers

    def finish(self) -> None:
        """The sender says that it is complete. Raises PeerBrokeProtocol where it is not."""
        if self._current or self._pending or len(self._stack) > 1 or not self._expected.complete:
            raise PeerBrokeProtocol("the sender ended before all that it had to send")

    # --- announcements

    def announce(self, batch: Entries) -> None:
        """Take in announcements. Raises PeerBrokeProtocol."""
        if batch.first != self._next:
            raise PeerBrokeProtocol(f"the sender counts {batch.first} where {self._next} comes next")
        for entry in batch.entries:
            if isinstance(entry, Leave):
                self._leave()
            else:
                self._take_in(entry)

    def _take_in(self, entry: Enter | Small | Large | Symlink | Lost | HardLink | Flow) -> None:
        spot = self._spot_for(entry)
        if spot.directory.announced is not None:
            spot.directory.announced.add(spot.name)
        if isinstance(entry, Enter):
            self._enter(spot, entry)
            return
        size = len(entry.content) if isinstance(entry, Small) else entry.size if isinstance(entry, Large) else 0
        self._answers.announced += 1
        self._answers.announced_bytes += size
        if isinstance(entry, Lost):
            self._answers.outcomes.append(Outcome(spot, failure=entry.failure))
            return
        try:
            done, loss = self._land(spot, entry)
        except PeerBrokeProtocol:
            raise
        except (OSError, VsockfwdError) as error:
            self._fail(spot, size, error)
            if isinstance(entry, Small | Large) and entry.linked:
                self._remember(spot.number, _not_there(failure_of(error)))
            return
        if done is not None:
            self._settle_file(spot, size, done, loss, linked=isinstance(entry, Small | Large) and entry.linked)

    def _land(self, spot: _Spot, entry: Landed | Symlink | HardLink) -> tuple[Done | None, Loss]:
        """Make an entry what it shall be, or have its data come (None). Raises OSError, VsockfwdError."""
        if isinstance(entry, HardLink):
            return self._land_link(spot, entry)
        resumes = self._resumes(entry)
        old = self._clear(spot, keeps_part=resumes)
        if old is not None and self._options.no_clobber:
            if resumes:
                self._remove_part(spot)
            return Done.KEPT, NOTHING_LOST
        done = Done.NEW if old is None else Done.REPLACED
        if old is not None and isinstance(entry, Symlink) and self._same_symlink(spot, entry, old):
            return Done.SAME, NOTHING_LOST
        if old is not None and not isinstance(entry, Symlink) and self._unchanged(old, entry):
            if resumes:
                self._remove_part(spot)
            return Done.SAME, self._freshen(spot, entry)
        if isinstance(entry, Large | Flow):
            if self._options.dry_run and not self._compares(entry, old):
                return done, NOTHING_LOST
            self._want(spot, entry, old)
            return None, NOTHING_LOST
        if self._options.dry_run:
            return done, NOTHING_LOST
        if isinstance(entry, Symlink):
            return done, self._land_symlink(spot, entry, replaces=old is not None)
        loss = self._land_small(spot, entry, old)
        self._answers.carried += len(entry.content)
        self._answers.moved += len(entry.content)
        return done, loss

    def _spot_for(self, entry: Enter | Small | Large | Symlink | Lost | HardLink | Flow) -> _Spot:
        number, directory = self._next, self._stack[-1]
        self._next += 1
        if len(self._stack) > 1:
            name = check_name(entry.name)
            if directory.wanted is not None and name not in directory.wanted:
                raise PeerBrokeProtocol(f"the sender sent {printable(name)!r}, which was not asked for")
            return _Spot(number, directory, name, name)
        word = self._expected.word(entry)
        if self._place.name is not None:
            if self._tops:
                raise PeerBrokeProtocol("the sender sent several files for one name")
            self._tops.add(b"")
            return _Spot(number, directory, self._place.name, word)
        if entry.name or not isinstance(entry, Enter | Lost | Flow):
            check_name(entry.name)
        return _Spot(number, directory, entry.name, word)

    # --- what stands there

    def _clear(self, spot: _Spot, *, keeps_part: bool = False) -> os.stat_result | None:
        """What stands in a file's place and may be replaced: a file or a symlink. Raises where the file cannot go.

        What an interrupted copy has left of it goes, unless that is to be resumed.
        """
        spot.directory.check()
        top = spot.directory.parent is None
        if top and self._place.only_directory:
            raise CannotCreate("is no directory, as the slash at the destination's end has it")
        if top and not spot.name:
            raise CannotCreate("what comes from stdin has no name: write the file's name, not a directory's")
        if top:
            self._claim(spot.name)
        if spot.directory.virtual or spot.directory.fresh:
            return None
        there = self._directories.fd(spot.directory)
        try:
            found = os.stat(spot.name, dir_fd=there, follow_symlinks=False)
        except FileNotFoundError:
            found = None
        if found is not None and stat.S_ISDIR(found.st_mode):
            if not self._options.delete:
                raise CannotCreate("a directory stands in its place")
            self._remove(spot.directory, spot.name, there)
            found = None
        if found is not None and not stat.S_ISREG(found.st_mode) and not stat.S_ISLNK(found.st_mode):
            raise CannotCreate("what stands in its place is no file, and is not replaced")
        if not keeps_part and not self._options.dry_run:
            remove_part(spot.name, dir_fd=there)
        return found

    def _remove_part(self, spot: _Spot) -> None:
        """What was left of a file that will not come after all."""
        if not spot.directory.fresh and not spot.directory.virtual and not self._options.dry_run:
            remove_part(spot.name, dir_fd=self._directories.fd(spot.directory))

    def _resumes(self, entry: Landed | Symlink) -> bool:
        """Whether it is a file that is resumed where it was interrupted, and can be if it is now."""
        if not isinstance(entry, Large) or entry.size <= SMALL_LIMIT or not entry.stamp:
            return False
        return self._options.resume and not self._options.inplace and not self._options.dry_run

    def _claim(self, name: bytes) -> None:
        """Each name at the top is for one source. Raises CannotCreate."""
        if name in self._tops and self._place.name is None:
            raise CannotCreate("another source of that name came already")
        if self._expected.several:
            self._tops.add(name)

    def _unchanged(self, old: os.stat_result, entry: Landed) -> bool:
        """Whether what stands there need not be looked at to know that it is what comes."""
        if isinstance(entry, Flow) or not stat.S_ISREG(old.st_mode):
            return False
        size = entry.size if isinstance(entry, Large) else len(entry.content)
        if old.st_size != size:
            return False
        if self._options.update and old.st_mtime_ns == entry.mtime:
            return True
        return self._options.checksum and not size

    def _same_symlink(self, spot: _Spot, entry: Symlink, old: os.stat_result) -> bool:
        """Whether the same symlink stands there, as far as that is asked."""
        asked = self._options.checksum or (self._options.update and old.st_mtime_ns == entry.mtime)
        if not asked or not stat.S_ISLNK(old.st_mode):
            return False
        return os.readlink(spot.name, dir_fd=self._directories.fd(spot.directory)) == entry.target

    def _compares(self, entry: Large | Flow, old: os.stat_result | None) -> bool:
        """Whether a file is compared with what stands in its place."""
        if old is None or not stat.S_ISREG(old.st_mode) or not old.st_size or isinstance(entry, Flow):
            return False
        if self._options.checksum and old.st_size == entry.size:
            return True
        return self._options.delta and entry.size > SMALL_LIMIT

    def _freshen(self, spot: _Spot, entry: Landed) -> Loss:
        """Permissions, owner, attributes and times for what has the content already. Raises OSError."""
        if self._options.dry_run:
            return NOTHING_LOST
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        there = self._directories.fd(spot.directory)
        if self._writer.plain:
            found = os.stat(spot.name, dir_fd=there, follow_symlinks=False)
            mode_fits = not self._options.perms or found.st_mode & 0o777 == entry.mode & 0o777
            if mode_fits and (not self._options.times or found.st_mtime_ns == entry.mtime):
                return NOTHING_LOST
        fd = os.open(spot.name, flags, dir_fd=there)
        try:
            extra = entry.extra if isinstance(entry, Small | Large) else None
            loss = self._writer.dress(fd, entry.mode if self._options.perms else None, extra)
            if self._options.times:
                os.utime(fd, ns=(time.time_ns(), entry.mtime))
            return loss
        finally:
            os.close(fd)

    # --- files

    def _shape(self, entry: Landed, old: os.stat_result | None) -> Shape:
        # A hole at the end of a large file is not written; a small one is as long as what was, unless it is in place.
        size = entry.size if isinstance(entry, Large) else None
        if isinstance(entry, Small) and self._options.inplace:
            size = len(entry.content)
        mode = entry.mode
        if not self._options.perms:
            stands = old is not None and stat.S_ISREG(old.st_mode)
            mode = old.st_mode & 0o777 if old is not None and stands else 0o666 & ~umask()
        extra = entry.extra if isinstance(entry, Small | Large) else None
        return Shape(size, mode, entry.mtime, extra)

    def _arriving(self, spot: _Spot, shape: Shape, old: os.stat_result | None) -> Arriving:
        mode = shape.mode & 0o777
        if not self._writer.plain:
            mode = 0o600  # nobody else reads it before it is its owner's
        options = self._options
        if options.inplace and old is not None and not stat.S_ISREG(old.st_mode):
            options = msgspec.structs.replace(options, inplace=False)  # a symlink cannot be written into
        return Arriving(self._directories, spot.directory, spot.name, options, mode)

    def _land_small(self, spot: _Spot, entry: Small, old: os.stat_result | None) -> Loss:
        if digest_of(entry.content, self._options.algorithm) != entry.digest:
            raise VerificationFailed("was damaged on the way")
        return self._write_small(spot, entry.content, self._shape(entry, old), old)

    def _write_small(self, spot: _Spot, content: bytes, shape: Shape, old: os.stat_result | None) -> Loss:
        arriving = self._arriving(spot, shape, old)
        try:
            arriving.write(content, 0)
            return arriving.keep(shape, self._writer, replaces=old is not None)
        except BaseException:
            arriving.discard()
            raise

    def _land_symlink(self, spot: _Spot, entry: Symlink, *, replaces: bool) -> Loss:
        if b"\0" in entry.target:
            raise PeerBrokeProtocol("the sender sent a symlink whose target holds a NUL")
        there = self._directories.fd(spot.directory)
        link = functools.partial(os.symlink, entry.target, dir_fd=there)
        with link_to_rename(spot.name, link, dir_fd=there) as temporary:
            loss = self._writer.dress_symlink(temporary, entry.extra, dir_fd=there)
            if self._options.times:
                os.utime(temporary, ns=(time.time_ns(), entry.mtime), dir_fd=there, follow_symlinks=False)
            if replaces and self._options.backup:
                back_up(spot.name, self._options.backup, dir_fd=there)
        return loss

    def _land_link(self, spot: _Spot, entry: HardLink) -> tuple[Done | None, Loss]:
        if entry.file not in self._links:
            raise PeerBrokeProtocol(f"the sender sent another name for file {entry.file}, which has one only")
        target = self._links[entry.file]
        if target is None:
            waiting = self._links_waiting.setdefault(entry.file, [])
            waiting.append(spot)
            spot.directory.waiting += 1
            return None, NOTHING_LOST
        return self._link(spot, target), NOTHING_LOST

    def _link(self, spot: _Spot, target: _Linked | Failure) -> Done:
        """Give a file that has landed another name. Raises OSError, VsockfwdError."""
        old = self._clear(spot)
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
        source = os.dup(self._directories.fd(target.directory))
        try:
            there = self._directories.fd(spot.directory)
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

    def _has_name(self, target: _Linked, old: os.stat_result) -> bool:
        """Whether what stands in a name's place is that file already; would be, where nothing is done."""
        if self._options.dry_run and target.done is not Done.SAME and not self._options.inplace:
            return False
        try:
            fd = self._directories.fd(target.directory)
            found = os.stat(target.name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == (old.st_dev, old.st_ino)

    def _want(self, spot: _Spot, entry: Large | Flow, old: os.stat_result | None) -> None:
        if len(self._pending) >= 2 * WINDOW:
            raise PeerBrokeProtocol(f"the sender left {len(self._pending)} files without their data")
        incoming = _Incoming(spot, entry, old, FileDigest(self._options.algorithm))
        if isinstance(entry, Flow):
            self._answers.wants.append(Want(spot.number, []))
        else:
            position = self._take_up(incoming, entry)
            digest = b""
            try:
                if not incoming.part and self._compares(entry, old):
                    if entry.size <= SMALL_LIMIT:
                        digest = self._digest_of_standing(spot)
                    else:
                        incoming.standing = self._standing(spot)
                if incoming.standing is not None:
                    self._comparing.append((incoming, incoming.standing.told(spot.number, entry.size)))
                elif not self._options.inplace:
                    incoming.reserved = self._reserve(spot, entry, position)
            except BaseException:
                if incoming.part is not None:
                    incoming.part.abandon()
                raise
            ranges = [Range(position, entry.size - position)] if position < entry.size else []
            if incoming.part is not None and not ranges:
                self._complete_part(incoming, entry, incoming.part)
                return
            self._answers.wants.append(Want(spot.number, ranges, incoming.standing is not None, digest))
        if isinstance(entry, Large) and entry.linked:
            self._remember(spot.number, None)
        self._pending[spot.number] = incoming
        spot.directory.waiting += 1

    def _take_up(self, incoming: _Incoming, entry: Large) -> int:
        """Where to go on with a file that an earlier copy left half done. Raises OSError, CannotCreate."""
        spot = incoming.spot
        if not self._resumes(entry) or spot.directory.fresh:
            return 0
        part = Part.left(self._directories, spot.directory, spot.name, self._options, entry.stamp, entry.size)
        incoming.part = part
        if part is None:
            return 0
        self._answers.moved += part.position
        return part.position

    def _digest_of_standing(self, spot: _Spot) -> bytes:
        """The digest of a small file that stands there; nothing where it cannot be read."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(spot.name, flags, dir_fd=self._directories.fd(spot.directory))
        except OSError:
            return b""
        try:
            return digest_of(os.read(fd, SMALL_LIMIT + 1), self._options.algorithm)
        except OSError:
            return b""
        finally:
            os.close(fd)

    def _standing(self, spot: _Spot) -> Standing | None:
        """What stands in a file's place, where it can be read."""
        try:
            return Standing(spot.name, dir_fd=self._directories.fd(spot.directory))
        except OSError:
            return None

    def _reserve(self, spot: _Spot, entry: Large, position: int) -> int:
        """The bytes that a file will take. Raises NoSpace where it is plain before the first that it will not fit."""
        if spot.directory.virtual:
            return 0
        found = os.fstatvfs(self._directories.fd(spot.directory))
        free = (found.f_bfree if os.geteuid() == 0 else found.f_bavail) * found.f_frsize
        needed = max(entry.allocated - position, 0)
        if needed > free - self._reserved:
            raise NoSpace(f"needs {needed} bytes where {max(free - self._reserved, 0)} are free")
        self._reserved += needed
        return needed

    def _took(self, incoming: _Incoming, size: int) -> None:
        """So much of what was reserved for a file is taken, and no longer free, or will not be."""
        size = min(size, incoming.reserved)
        incoming.reserved -= size
        self._reserved -= size

    # --- what was done

    def _settle_file(self, spot: _Spot, size: int, done: Done, loss: Loss, *, linked: bool) -> None:
        if linked:
            kept = done is Done.KEPT
            self._remember(spot.number, _KEPT if kept else _Linked(spot.directory, spot.name, done))
        self._answer(spot, Outcome(spot, size, True, None, done, loss))

    def _fail(self, spot: _Spot, size: int, error: OSError | VsockfwdError) -> None:
        self._answer(spot, Outcome(spot, size, True, failure_of(error, "cannot be written")))

    def _remember(self, number: int, where: _Linked | Failure | None) -> None:
        if len(self._links) >= LINKS_LIMIT:
            raise PeerBrokeProtocol(f"the sender announced more than {LINKS_LIMIT} files of several names")
        self._links[number] = where

    def _answer(self, spot: _Spot, outcome: Outcome) -> None:
        self._answers.results.append(Result(spot.number, outcome.failure, outcome.done, int(outcome.lost)))
        self._answers.outcomes.append(outcome)

    # --- directories

    def _enter(self, spot: _Spot, entry: Enter) -> None:
        if len(self._stack) > DEPTH_LIMIT:
            raise PeerBrokeProtocol(f"the sender put more than {DEPTH_LIMIT} directories into each other")
        arrived = _Arrived(spot.directory, spot.name, spot.word, spot.number, entry if spot.name else None)
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

    def _make(self, arrived: _Arrived, parent: _Arrived) -> None:
        parent.check()
        if parent.parent is None:
            self._claim(arrived.name)
        if self._options.dry_run:
            self._would_make(arrived, parent)
            return
        there = self._directories.fd(parent)
        try:
            os.mkdir(arrived.name, 0o700, dir_fd=there)
            arrived.fresh = True
        except FileExistsError:
            if self._options.delete and not stat.S_ISDIR(
                os.stat(arrived.name, dir_fd=there, follow_symlinks=False).st_mode
            ):
                self._remove(parent, arrived.name, there)
                os.mkdir(arrived.name, 0o700, dir_fd=there)
                arrived.fresh = True
            # else it is one to add to, or it cannot be opened as a directory
        try:
            self._directories.fd(arrived)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise CannotCreate("something else than a directory stands in its place") from None
            raise

    def _go_into(self, arrived: _Arrived) -> None:
        """The content of a source goes into the destination itself. Raises CannotCreate."""
        if self._options.delete and self._expected.several:
            raise CannotCreate("its content goes where the other sources go, which --delete would remove")
        arrived.virtual = self._place.virtual
        self._directories.pin(arrived, self._place.fd)

    def _would_make(self, arrived: _Arrived, parent: _Arrived) -> None:
        if parent.virtual:
            arrived.virtual = True
            return
        try:
            found = os.stat(arrived.name, dir_fd=self._directories.fd(parent), follow_symlinks=False)
        except FileNotFoundError:
            arrived.virtual = True
            return
        if not stat.S_ISDIR(found.st_mode):
            if not self._options.delete:
                raise CannotCreate("something else than a directory stands in its place")
            self._tell_removed(parent.path_of(arrived.name), None)
            arrived.virtual = True

    def _leave(self) -> None:
        if len(self._stack) == 1:
            raise PeerBrokeProtocol("the sender left a directory that it had not entered")
        left = self._stack.pop()
        left.left = True
        if left.announced is not None and left.failure is None:
            self._remove_others(left, left.announced)
            left.announced = None
        self._settle(left)

    def _settle(self, directory: _Arrived) -> None:
        """Complete a directory that was left and waits for nothing any more, and those above it with it."""
        at = directory
        while at.left and not at.waiting and at.parent is not None:
            self._complete(at)
            at.parent.waiting -= 1
            at = at.parent

    def _complete(self, arrived: _Arrived) -> None:
        loss = NOTHING_LOST
        if arrived.failure is None and arrived.entry is not None and not arrived.virtual and not self._options.dry_run:
            try:
                loss = self._dress_directory(arrived, arrived.entry)
            except OSError as error:
                arrived.failure = failure_of(error, "its mode and time cannot be set")
        self._directories.forget(arrived)
        done = Done.NEW if arrived.fresh or arrived.virtual else Done.SAME
        self._answers.results.append(Result(arrived.number, arrived.failure, done, int(loss)))
        assert arrived.parent is not None
        title = arrived.parent.title_of(arrived.word)
        self._answers.outcomes.append(Outcome(title, 0, False, arrived.failure, done, loss))

    def _dress_directory(self, arrived: _Arrived, entry: Enter) -> Loss:
        fd = self._directories.fd(arrived)
        loss = NOTHING_LOST
        mode: int | None = entry.mode
        if not self._options.perms:
            mode = 0o777 & ~umask() if arrived.fresh else None
        if not self._writer.plain:
            loss = self._writer.dress(fd, mode, entry.extra)
        elif mode is not None:
            os.fchmod(fd, mode & 0o777)
        if self._options.times:
            os.utime(fd, ns=(time.time_ns(), entry.mtime))
        if self._options.fsync:
            os.fsync(fd)
        return loss

    # --- what the sender does not have

    def _remove_others(self, directory: _Arrived, announced: set[bytes]) -> None:
        """Remove what stands in a directory and did not come, but for what the filters leave out."""
        try:
            # The destination's own descriptor need not be one to read from: it may be a directory to write into only.
            there = os.open(b".", OPEN_BELOW, dir_fd=self._directories.fd(directory))
            try:
                with os.scandir(there) as found:
                    names = sorted((os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in found)
            finally:
                os.close(there)
        except OSError as error:
            self._tell_removed(directory.path_of(b""), failure_of(error, "what is in it cannot be listed"))
            return
        parts = [name for name, _ in names if is_part(name)]
        kept = announced | {part for name in (announced if parts else ()) for part in part_names(name)}
        kept |= {name for name in parts if is_at_work(name, dir_fd=self._directories.fd(directory))}
        for name, is_directory in names:
            if name in kept:
                continue
            if self._options.backup and name.endswith(self._options.backup):
                continue
            if self._filters and self._filters.leaves_out(self._below_source(directory, name), is_directory):
                continue
            self._remove(directory, name, self._directories.fd(directory))

    def _below_source(self, directory: _Arrived, name: bytes) -> bytes:
        """The path of something as filters see it: from its source down."""
        path = directory.path_of(name)
        source = self._stack[1] if len(self._stack) > 1 else directory
        return path.partition(b"/")[2] if source.name else path

    def _remove(self, directory: _Arrived, name: bytes, there: int) -> None:
        above = directory.path_of(b"")
        prefix = above + b"/" if above else b""
        try:
            dry_run = self._options.dry_run
            remove_tree(name, there, lambda path: self._tell_removed(prefix + path, None), dry_run=dry_run)
        except (OSError, VsockfwdError) as error:
            self._tell_removed(prefix + name, failure_of(error, "cannot be removed"))

    def _tell_removed(self, path: bytes, failure: Failure | None) -> None:
        self._answers.removed.append((path[-4095:], failure))

    # --- comparing

    @property
    def comparing(self) -> bool:
        """Whether there is more to be told of what stands there."""
        return bool(self._comparing)

    def compare_some(self) -> None:
        """Tell a slice more. A file that cannot be read is sent whole, so nothing fails here."""
        incoming, slices = self._comparing[0]
        if incoming.answered:
            self._comparing.popleft()
            return
        try:
            self._answers.blocks += next(slices)
        except StopIteration:
            self._comparing.popleft()
        except OSError:
            assert isinstance(incoming.entry, Large)
            self._answers.blocks.append(Blocks(incoming.spot.number, -(-incoming.entry.size // BLOCK), b""))
            self._comparing.popleft()

    # --- data

    def receive_contents(self, batch: Contents) -> None:
        """Take in whole small files that were wanted. Raises PeerBrokeProtocol."""
        if self._current is not None:
            raise PeerBrokeProtocol("the sender sent small files amid a large one")
        for content in batch.files:
            incoming = self._small_turn_of(content.file)
            try:
                self._receive_content(incoming, content)
            except (OSError, VsockfwdError) as error:
                self._drop(incoming, failure_of(error, "cannot be written"))
        for given_up in batch.given_up:
            self._drop(self._small_turn_of(given_up.file), given_up.failure)

    def _small_turn_of(self, number: int) -> _Incoming:
        incoming = self._pending.pop(number, None)
        if incoming is None or incoming.standing is not None or (incoming.size or LARGEST) > SMALL_LIMIT:
            raise PeerBrokeProtocol(f"the sender sent the content of file {number}, which was not asked for")
        return incoming

    def _receive_content(self, incoming: _Incoming, content: Content) -> None:
        spot, entry, old = incoming.spot, incoming.entry, incoming.old
        if content.same:
            if old is None or not self._options.checksum:
                raise DataError("is not there, though it is said to be")
            self._settle_incoming(incoming, Done.SAME, self._freshen(spot, entry))
            return
        if len(content.content) != incoming.size:
            raise DataError(f"ended after {len(content.content)} of {incoming.size} bytes")
        if digest_of(content.content, self._options.algorithm) != content.digest:
            raise VerificationFailed("was damaged on the way")
        done = Done.NEW if old is None else Done.REPLACED
        if self._options.dry_run:
            self._settle_incoming(incoming, done, NOTHING_LOST)
            return
        loss = self._write_small(spot, content.content, self._shape(entry, old), old)
        self._answers.moved += len(content.content)
        self._answers.carried += len(content.content)
        self._settle_incoming(incoming, done, loss)

    def receive(self, piece: Piece, data: memoryview) -> None:
        """Take in a piece of the file whose turn it is. Raises PeerBrokeProtocol."""
        incoming = self._turn_of(piece.file)
        if not incoming.answered:
            try:
                self._receive(incoming, piece, data)
            except PeerBrokeProtocol:
                raise
            except (OSError, VsockfwdError) as error:
                self._drop(incoming, failure_of(error, "cannot be written"))
        if isinstance(piece, Finish | GiveUp):
            self._current = None

    def _turn_of(self, number: int) -> _Incoming:
        if self._current is not None and self._current.spot.number == number:
            return self._current
        if self._current is not None or number not in self._pending:
            raise PeerBrokeProtocol(f"the sender sent data of file {number}, whose turn it is not")
        self._current = incoming = self._pending.pop(number)
        if incoming.part is not None:
            incoming.arriving, incoming.position = incoming.part, incoming.part.position
        return incoming

    def _receive(self, incoming: _Incoming, piece: Piece, data: memoryview) -> None:
        match piece:
            case Chunk():
                if checksum(data) != piece.checksum:
                    raise VerificationFailed("was damaged on the way")
                arriving = self._ready(incoming)
                if arriving is None:
                    return
                self._advance(incoming, piece)
                arriving.write(data, piece.offset)
                self._took(incoming, len(data))
                self._answers.carried += len(data)
                incoming.digest.update(data)
                arriving.note(incoming.position, piece.checksum)
            case Hole():
                if self._same_hole(incoming, piece):
                    return
                arriving = self._ready(incoming)
                if arriving is None:
                    return
                self._advance(incoming, piece)
                arriving.hole(piece.offset, piece.length)
                incoming.digest.skip(piece.offset, piece.length)
                arriving.note(incoming.position, 0)
            case Same():
                self._same(incoming, piece)
            case Finish():
                self._finish_file(incoming, piece)
            case GiveUp():
                self._drop(incoming, piece.failure)

    def _ready(self, incoming: _Incoming) -> Arriving | None:
        """The file that data goes to, made with the first of it; None where nothing more of it is needed."""
        if incoming.arriving is None:
            if self._options.dry_run:
                self._settle_incoming(incoming, Done.REPLACED, NOTHING_LOST)
                return None
            # What is compared starts from what stands there: to compare once more is how it goes on.
            if incoming.standing is None and isinstance(incoming.entry, Large) and self._resumes(incoming.entry):
                incoming.arriving = self._new_part(incoming.spot, incoming.entry)
            else:
                shape = self._shape(incoming.entry, incoming.old)
                incoming.arriving = self._arriving(incoming.spot, shape, incoming.old)
            if incoming.standing is not None:
                incoming.arriving.start_from(incoming.standing, incoming.position)
        return incoming.arriving

    def _new_part(self, spot: _Spot, entry: Large) -> Part:
        directories, directory = self._directories, spot.directory
        return Part(directories, directory, spot.name, self._options, entry.stamp, entry.size, anew=True)

    def _same(self, incoming: _Incoming, piece: Same) -> None:
        if incoming.standing is None:
            raise PeerBrokeProtocol(f"the sender took from what stands in file {piece.file}'s place, unasked")
        for digests in incoming.standing.digests(piece.offset, piece.length):
            for at in range(0, len(digests), 16):
                incoming.digest.update(digests[at : at + 16])
        self._advance(incoming, piece)
        if incoming.arriving is not None:
            incoming.arriving.take(incoming.standing, piece.offset, piece.length)

    def _same_hole(self, incoming: _Incoming, piece: Hole) -> bool:
        """Whether all was the same so far, and here is nothing there too."""
        standing = incoming.standing
        if incoming.arriving is not None or standing is None or not standing.has_nothing(piece.offset, piece.length):
            return False
        self._advance(incoming, piece)
        incoming.digest.skip(piece.offset, piece.length)
        return True

    def _finish_file(self, incoming: _Incoming, piece: Finish) -> None:
        if incoming.size is not None and incoming.position != incoming.size:
            raise DataError(f"ended after {incoming.position} of {incoming.size} bytes")
        if incoming.digest.digest() != piece.digest:
            raise VerificationFailed("is not what was read at its source")
        if incoming.standing is not None and not self._options.inplace:
            incoming.standing.check()
        old = incoming.old
        if incoming.arriving is None and incoming.standing is not None:
            if old is not None and incoming.size == old.st_size:
                self._settle_incoming(incoming, Done.SAME, self._freshen(incoming.spot, incoming.entry))
                return
            if self._ready(incoming) is None:  # it got shorter
                return
        arriving = self._ready(incoming)
        if arriving is None:
            return
        loss = arriving.keep(self._shape(incoming.entry, old), self._writer, replaces=old is not None)
        self._settle_incoming(incoming, Done.NEW if old is None else Done.REPLACED, loss)

    def _complete_part(self, incoming: _Incoming, entry: Large, part: Part) -> None:
        """All of a file was there already, but for its name."""
        old = incoming.old
        try:
            loss = part.keep(self._shape(entry, old), self._writer, replaces=old is not None)
        except BaseException:
            part.discard()
            raise
        done = Done.NEW if old is None else Done.REPLACED
        self._settle_file(incoming.spot, entry.size, done, loss, linked=entry.linked)

    def _advance(self, incoming: _Incoming, piece: Chunk | Hole | Same) -> None:
        if piece.offset != incoming.position or (
            incoming.size is not None and piece.length > incoming.size - piece.offset
        ):
            raise DataError("came in pieces that do not fit its size")
        incoming.position += piece.length
        self._answers.moved += piece.length

    def _drop(self, incoming: _Incoming, failure: Failure) -> None:
        if incoming.arriving is not None:
            incoming.arriving.discard()
        self._settle_incoming(incoming, Done.NEW, NOTHING_LOST, failure)

    def _settle_incoming(self, incoming: _Incoming, done: Done, loss: Loss, failure: Failure | None = None) -> None:
        """A file's data has come, or will not: answer it, and the links that waited for it."""
        incoming.answered = True
        incoming.arriving = None
        if incoming.standing is not None:
            incoming.standing.close()
            incoming.standing = None
        spot, entry = incoming.spot, incoming.entry
        size = incoming.size if incoming.size is not None else incoming.position
        self._took(incoming, incoming.reserved)
        self._answer(spot, Outcome(spot, size, True, failure, done, loss))
        if isinstance(entry, Large) and entry.linked:
            landed = _Linked(spot.directory, spot.name, done) if failure is None else _not_there(failure)
            self._links[spot.number] = landed
            self._settle_links(spot.number, landed)
        spot.directory.waiting -= 1
        self._settle(spot.directory)

    def _settle_links(self, number: int, target: _Linked | Failure) -> None:
        for spot in self._links_waiting.pop(number, ()):
            try:
                self._answer(spot, Outcome(spot, done=self._link(spot, target)))
            except (OSError, VsockfwdError) as error:
                self._fail(spot, 0, error)
            spot.directory.waiting -= 1
            self._settle(spot.directory)
