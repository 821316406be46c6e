"""The receiver's file system: files that appear complete, in their place, or not at all.

It blocks: call it in a thread. The thing to understand first: the sender is not trusted. It names things only inside
the directory that it entered last, each name is checked, and everything is made relative to descriptors that were
opened without following symlinks; so whatever it says, nothing lands outside the destination. What it may not say at
all is PeerBrokeProtocol and ends the copy; what fails for one file is that file's result.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from vsockfwd.plugin import (
    CannotCreate,
    DataError,
    PeerBrokeProtocol,
    VerificationFailed,
    VsockfwdError,
    from_code,
    printable,
)
from vsockfwd_copy.destination import Place
from vsockfwd_copy.directories import Directory, OpenDirectories
from vsockfwd_copy.messages import (
    DEPTH_LIMIT,
    WINDOW,
    Chunk,
    Enter,
    Entries,
    Failure,
    FileDigest,
    Finish,
    GiveUp,
    Hole,
    Large,
    Leave,
    Lost,
    Piece,
    Range,
    Result,
    Small,
    Symlink,
    Want,
    check_name,
    checksum,
    digest,
    failure_of,
    landing_name,
)

_OPEN_TEMPORARY = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

# --- files that are not there yet ----------------------------------------------------------------------------------


class _Temporary:
    """A file under a name of its own, beside the place that it will take once it is complete."""

    def __init__(self, directories: OpenDirectories, directory: Directory) -> None:
        self._directories = directories
        self._directory = directory
        self._name = b".vsockfwd." + secrets.token_hex(6).encode()
        self._fd = os.open(self._name, _OPEN_TEMPORARY, 0o600, dir_fd=directories.fd(directory))

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write all of it. Raises OSError."""
        written = os.pwrite(self._fd, data, offset)
        while written < len(data):
            data, offset = memoryview(data)[written:], offset + written
            written = os.pwrite(self._fd, data, offset)

    def keep(self, entry: Small | Large, name: bytes, size: int) -> None:
        """Make it what was announced, in its place. Raises OSError, and then it has to be discarded."""
        if isinstance(entry, Large):
            os.ftruncate(self._fd, size)  # a hole at the end was not written
        os.fchmod(self._fd, entry.mode)
        os.utime(self._fd, ns=(time.time_ns(), entry.mtime))
        fd, self._fd = self._fd, -1
        os.close(fd)
        there = self._directories.fd(self._directory)
        os.rename(self._name, name, src_dir_fd=there, dst_dir_fd=there)

    def discard(self) -> None:
        """Leave nothing behind, as far as that is possible."""
        # Whatever fails here, the reason why it is discarded matters more.
        with contextlib.suppress(OSError):
            if self._fd >= 0:
                os.close(self._fd)
        with contextlib.suppress(OSError):
            os.unlink(self._name, dir_fd=self._directories.fd(self._directory))


# --- what arrives --------------------------------------------------------------------------------------------------


class _Arrived(Directory):
    """A directory of the destination, made or found, until everything in it has been answered."""

    __slots__ = ("entry", "failure", "fresh", "left", "number", "waiting")

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
        self.failure: Failure | None = None

    def check(self) -> None:
        """Raise, for what should be in it, that it is not there; for the same reason."""
        if self.failure is not None:
            raise from_code(self.failure.code, "its directory could not be made")


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


@dataclass(slots=True)
class _Incoming:
    """The Large file whose data is coming. `temporary` is None once it has been answered."""

    spot: _Spot
    entry: Large
    temporary: _Temporary | None = None
    position: int = 0
    digest: FileDigest = field(default_factory=FileDigest)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one entry, for the account. `size` is in bytes."""

    title: bytes
    size: int = 0
    is_file: bool = True
    failure: Failure | None = None


@dataclass(slots=True)
class Answers:
    """What has come of the frames taken in since they were asked for last."""

    wants: list[Want] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    moved: int = 0
    """Bytes written, holes included."""
    announced: int = 0
    """Files."""
    announced_bytes: int = 0


class Landing:
    """One sender's entries and data on their way into a place."""

    def __init__(self, place: Place, count: int, sources: Sequence[bytes] | None = None) -> None:
        """`count` sources will come; where this side asked for them, `sources` tells which, and nothing else may."""
        self._place = place
        self._count = count
        self._sources = sources
        self._directories = OpenDirectories()
        self._stack = [_Arrived(None, b"", b"", 0, None)]
        self._directories.pin(self._stack[0], place.fd)
        self._announced = 0
        """Entries at the top, one for each source."""
        self._next = 1
        self._pending: dict[int, tuple[_Spot, Large]] = {}
        self._current: _Incoming | None = None
        self._answers = Answers()

    def close(self) -> None:
        """Let go of what is open; a file that is not complete leaves nothing behind."""
        if self._current is not None and self._current.temporary is not None:
            self._current.temporary.discard()
            self._current = None
        self._directories.close()

    def take_answers(self) -> Answers:
        """What there is to tell since the last time."""
        answers, self._answers = self._answers, Answers()
        return answers

    def finish(self) -> None:
        """The sender says that it is complete. Raises PeerBrokeProtocol where it is not."""
        if self._current or self._pending or len(self._stack) > 1 or self._announced != self._count:
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

    def _take_in(self, entry: Enter | Small | Large | Symlink | Lost) -> None:
        spot = self._spot_for(entry)
        if isinstance(entry, Enter):
            self._enter(spot, entry)
            return
        size = len(entry.content) if isinstance(entry, Small) else entry.size if isinstance(entry, Large) else 0
        self._answers.announced += 1
        self._answers.announced_bytes += size
        if isinstance(entry, Lost):
            self._answers.outcomes.append(Outcome(spot.title, failure=entry.failure))
            return
        try:
            self._check_room(spot)
            match entry:
                case Small():
                    self._land_small(spot, entry)
                case Symlink():
                    self._land_symlink(spot, entry)
                case Large():
                    self._want(spot, entry)
                    return
            self._answers.moved += size
            failure = None
        except PeerBrokeProtocol:
            raise
        except (OSError, VsockfwdError) as error:
            failure = failure_of(error, "cannot be written")
        self._answer(spot, Outcome(spot.title, size, True, failure))

    def _spot_for(self, entry: Enter | Small | Large | Symlink | Lost) -> _Spot:
        number, directory = self._next, self._stack[-1]
        self._next += 1
        if len(self._stack) > 1:
            return _Spot(number, directory, check_name(entry.name), entry.name)
        at = self._announced
        self._announced += 1
        if at >= self._count:
            raise PeerBrokeProtocol(f"the sender announced more than {self._count} sources")
        word = entry.name if self._sources is None else self._sources[at]
        if self._sources is not None and entry.name != landing_name(word):
            raise PeerBrokeProtocol(
                f"the sender sent {printable(entry.name)!r} where {printable(word)!r} was asked for"
            )
        if self._place.name is not None:
            return _Spot(number, directory, self._place.name, word)
        if entry.name or not isinstance(entry, Enter | Lost):
            check_name(entry.name)
        return _Spot(number, directory, entry.name, word)

    def _check_room(self, spot: _Spot) -> None:
        """Raise where a file cannot take its place. What is replaced is a file or a symlink, never anything else."""
        spot.directory.check()
        if spot.directory.parent is None and self._place.only_directory:
            raise CannotCreate("is no directory, as the slash at the destination's end has it")
        if spot.directory.fresh:
            return
        try:
            mode = os.stat(spot.name, dir_fd=self._directories.fd(spot.directory), follow_symlinks=False).st_mode
        except FileNotFoundError:
            return
        if stat.S_ISDIR(mode):
            raise CannotCreate("a directory stands in its place")
        if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
            raise CannotCreate("what stands in its place is no file, and is not replaced")

    def _land_small(self, spot: _Spot, entry: Small) -> None:
        if digest(entry.content) != entry.digest:
            raise VerificationFailed("was damaged on the way")
        temporary = _Temporary(self._directories, spot.directory)
        try:
            temporary.write(entry.content, 0)
            temporary.keep(entry, spot.name, len(entry.content))
        except BaseException:
            temporary.discard()
            raise

    def _land_symlink(self, spot: _Spot, entry: Symlink) -> None:
        if b"\0" in entry.target:
            raise PeerBrokeProtocol("the sender sent a symlink whose target holds a NUL")
        there = self._directories.fd(spot.directory)
        temporary = b".vsockfwd." + secrets.token_hex(6).encode()
        os.symlink(entry.target, temporary, dir_fd=there)
        try:
            os.utime(temporary, ns=(time.time_ns(), entry.mtime), dir_fd=there, follow_symlinks=False)
            os.rename(temporary, spot.name, src_dir_fd=there, dst_dir_fd=there)
        except BaseException:
            with contextlib.suppress(OSError):  # the reason for it matters more
                os.unlink(temporary, dir_fd=there)
            raise

    def _want(self, spot: _Spot, entry: Large) -> None:
        if len(self._pending) >= 2 * WINDOW:
            raise PeerBrokeProtocol(f"the sender left {len(self._pending)} files without their data")
        self._pending[spot.number] = (spot, entry)
        spot.directory.waiting += 1
        self._answers.wants.append(Want(spot.number, [Range(0, entry.size)]))

    # --- directories

    def _enter(self, spot: _Spot, entry: Enter) -> None:
        if len(self._stack) > DEPTH_LIMIT:
            raise PeerBrokeProtocol(f"the sender put more than {DEPTH_LIMIT} directories into each other")
        arrived = _Arrived(spot.directory, spot.name, spot.word, spot.number, entry if spot.name else None)
        if spot.name:
            try:
                self._make(arrived, spot.directory)
            except (OSError, VsockfwdError) as error:
                arrived.failure = failure_of(error, "cannot be made")
        else:
            self._directories.pin(arrived, self._place.fd)
        spot.directory.waiting += 1
        self._stack.append(arrived)

    def _make(self, arrived: _Arrived, parent: _Arrived) -> None:
        parent.check()
        try:
            os.mkdir(arrived.name, 0o700, dir_fd=self._directories.fd(parent))
            arrived.fresh = True
        except FileExistsError:
            pass  # then it is one to add to, or it cannot be opened as a directory
        try:
            self._directories.fd(arrived)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise CannotCreate("something else than a directory stands in its place") from None
            raise

    def _leave(self) -> None:
        if len(self._stack) == 1:
            raise PeerBrokeProtocol("the sender left a directory that it had not entered")
        left = self._stack.pop()
        left.left = True
        self._settle(left)

    def _settle(self, directory: _Arrived) -> None:
        """Complete a directory that was left and waits for nothing any more, and those above it with it."""
        at = directory
        while at.left and not at.waiting and at.parent is not None:
            self._complete(at)
            at.parent.waiting -= 1
            at = at.parent

    def _complete(self, arrived: _Arrived) -> None:
        if arrived.failure is None and arrived.entry is not None:
            try:
                fd = self._directories.fd(arrived)
                os.utime(fd, ns=(time.time_ns(), arrived.entry.mtime))
                os.fchmod(fd, arrived.entry.mode)
            except OSError as error:
                arrived.failure = failure_of(error, "its mode and time cannot be set")
        self._directories.forget(arrived)
        self._answers.results.append(Result(arrived.number, arrived.failure))
        assert arrived.parent is not None
        self._answers.outcomes.append(Outcome(arrived.parent.title_of(arrived.word), 0, False, arrived.failure))

    # --- data

    def receive(self, piece: Chunk | Hole | Finish | GiveUp, data: memoryview) -> None:
        """Take in a piece of the file whose turn it is. Raises PeerBrokeProtocol."""
        incoming = self._turn_of(piece.file)
        if incoming.temporary is not None:
            try:
                self._receive(incoming, incoming.temporary, piece, data)
            except (OSError, VsockfwdError) as error:
                self._drop(incoming, failure_of(error, "cannot be written"))
        if isinstance(piece, Finish | GiveUp):
            self._current = None

    def _turn_of(self, number: int) -> _Incoming:
        if self._current is not None and self._current.spot.number == number:
            return self._current
        if self._current is not None or number not in self._pending:
            raise PeerBrokeProtocol(f"the sender sent data of file {number}, whose turn it is not")
        self._current = incoming = _Incoming(*self._pending.pop(number))
        try:
            incoming.temporary = _Temporary(self._directories, incoming.spot.directory)
        except OSError as error:
            self._drop(incoming, failure_of(error, "cannot be written"))
        return incoming

    def _receive(self, incoming: _Incoming, temporary: _Temporary, piece: Piece, data: memoryview) -> None:
        match piece:
            case Chunk():
                if checksum(data) != piece.checksum:
                    raise VerificationFailed("was damaged on the way")
                self._advance(incoming, piece)
                temporary.write(data, piece.offset)
                incoming.digest.update(data)
            case Hole():
                self._advance(incoming, piece)
                incoming.digest.skip(piece.offset, piece.length)
            case Finish():
                if incoming.position != incoming.entry.size:
                    raise DataError(f"ended after {incoming.position} of {incoming.entry.size} bytes")
                if incoming.digest.digest() != piece.digest:
                    raise VerificationFailed("is not what was read at its source")
                temporary.keep(incoming.entry, incoming.spot.name, incoming.entry.size)
                self._land(incoming, None)
            case GiveUp():
                self._drop(incoming, piece.failure)

    def _advance(self, incoming: _Incoming, piece: Chunk | Hole) -> None:
        if piece.offset != incoming.position or piece.length > incoming.entry.size - piece.offset:
            raise DataError("came in pieces that do not fit its size")
        incoming.position += piece.length
        self._answers.moved += piece.length

    def _drop(self, incoming: _Incoming, failure: Failure) -> None:
        if incoming.temporary is not None:
            incoming.temporary.discard()
        self._land(incoming, failure)

    def _land(self, incoming: _Incoming, failure: Failure | None) -> None:
        incoming.temporary = None
        spot = incoming.spot
        self._answer(spot, Outcome(spot.title, incoming.entry.size, True, failure))
        spot.directory.waiting -= 1
        self._settle(spot.directory)

    def _answer(self, spot: _Spot, outcome: Outcome) -> None:
        self._answers.results.append(Result(spot.number, outcome.failure))
        self._answers.outcomes.append(outcome)
