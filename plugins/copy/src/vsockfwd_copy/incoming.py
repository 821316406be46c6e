"""Files whose data comes after their announcement: asked for, compared with what stands there, taken in, verified.

It blocks: call it in a thread. The thing to understand first: one file's data comes at a time, in the order in which it
stands in the file; many may have been asked for. What fails for one file is that file's result, and what else comes of
it is passed over.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from vsockfwd.plugin import DataError, NoSpace, PeerBrokeProtocol, VerificationFailed, VsockfwdError
from vsockfwd_copy.account import Outcome
from vsockfwd_copy.arriving import Arriving, Part
from vsockfwd_copy.attributes import NOTHING_LOST, Loss
from vsockfwd_copy.folders import Folders
from vsockfwd_copy.ground import Ground, Spot
from vsockfwd_copy.links import Linked, Links, not_there
from vsockfwd_copy.messages import (
    BLOCK,
    LARGEST,
    SMALL_LIMIT,
    WINDOW,
    Blocks,
    Chunk,
    Content,
    Contents,
    Done,
    Failure,
    FileDigest,
    Finish,
    Flow,
    GiveUp,
    Hole,
    Large,
    Piece,
    Range,
    Same,
    Want,
    checksum,
    digest_of,
    failure_of,
)
from vsockfwd_copy.placing import Placing
from vsockfwd_copy.standing import Standing


@dataclass(slots=True)
class Incoming:
    """A file whose data is to come, or comes. `arriving` is None before there is any, and once it is answered."""

    spot: Spot
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


class Arrivals:
    """One landing's files on their way."""

    def __init__(self, ground: Ground, placing: Placing, folders: Folders, links: Links) -> None:
        self._ground = ground
        self._options = ground.options
        self._placing = placing
        self._folders = folders
        self._links = links
        self._pending: dict[int, Incoming] = {}
        self._current: Incoming | None = None
        self._comparing: deque[tuple[Incoming, Iterator[list[Blocks]]]] = deque()
        self._reserved = 0
        """Bytes that files on their way will take."""

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

    @property
    def complete(self) -> bool:
        """Whether nothing is to come any more."""
        return not self._current and not self._pending

    @property
    def at_work(self) -> tuple[int, bytes, int, int] | None:
        """Number, title, position and size of the large file at work."""
        current = self._current
        if current is None or current.answered or not isinstance(current.entry, Large):
            return None
        return current.spot.number, current.spot.title, current.position, current.entry.size

    # --- what is wanted

    def want(self, spot: Spot, entry: Large | Flow, old: os.stat_result | None) -> None:
        """Have a file's data come. Raises OSError, VsockfwdError."""
        if len(self._pending) >= 2 * WINDOW:
            raise PeerBrokeProtocol(f"the sender left {len(self._pending)} files without their data")
        incoming = Incoming(spot, entry, old, FileDigest(self._options.algorithm))
        if isinstance(entry, Flow):
            self._ground.answers.wants.append(Want(spot.number, []))
        else:
            position = self._take_up(incoming, entry)
            digest = b""
            try:
                if not incoming.part and self._placing.compares(entry, old):
                    if entry.size <= SMALL_LIMIT:
                        digest = self._placing.digest_of_standing(spot)
                    else:
                        incoming.standing = self._placing.standing(spot)
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
            self._ground.answers.wants.append(Want(spot.number, ranges, incoming.standing is not None, digest))
        if isinstance(entry, Large) and entry.linked:
            self._links.remember(spot.number, None)
        self._pending[spot.number] = incoming
        spot.directory.waiting += 1

    def _take_up(self, incoming: Incoming, entry: Large) -> int:
        """Where to go on with a file that an earlier copy left half done. Raises OSError, CannotCreate."""
        spot = incoming.spot
        if not self._placing.resumes(entry) or spot.directory.fresh:
            return 0
        part = Part.left(self._ground.directories, spot.directory, spot.name, self._options, entry.stamp, entry.size)
        incoming.part = part
        if part is None:
            return 0
        self._ground.answers.moved += part.position
        return part.position

    def _reserve(self, spot: Spot, entry: Large, position: int) -> int:
        """The bytes that a file will take. Raises NoSpace where it is plain before the first that it will not fit."""
        if spot.directory.virtual:
            return 0
        found = os.fstatvfs(self._ground.fd(spot.directory))
        free = (found.f_bfree if os.geteuid() == 0 else found.f_bavail) * found.f_frsize
        needed = max(entry.allocated - position, 0)
        if needed > free - self._reserved:
            raise NoSpace(f"needs {needed} bytes where {max(free - self._reserved, 0)} are free")
        self._reserved += needed
        return needed

    def _took(self, incoming: Incoming, size: int) -> None:
        """So much of what was reserved for a file is taken, and no longer free, or will not be."""
        size = min(size, incoming.reserved)
        incoming.reserved -= size
        self._reserved -= size

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
            self._ground.answers.blocks += next(slices)
        except StopIteration:
            self._comparing.popleft()
        except OSError:
            assert isinstance(incoming.entry, Large)
            self._ground.answers.blocks.append(Blocks(incoming.spot.number, -(-incoming.entry.size // BLOCK), b""))
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

    def _small_turn_of(self, number: int) -> Incoming:
        incoming = self._pending.pop(number, None)
        if incoming is None or incoming.standing is not None or (incoming.size or LARGEST) > SMALL_LIMIT:
            raise PeerBrokeProtocol(f"the sender sent the content of file {number}, which was not asked for")
        return incoming

    def _receive_content(self, incoming: Incoming, content: Content) -> None:
        spot, entry, old = incoming.spot, incoming.entry, incoming.old
        if content.same:
            if old is None or not self._options.checksum:
                raise DataError("is not there, though it is said to be")
            self._settle_incoming(incoming, Done.SAME, self._placing.freshen(spot, entry, old))
            return
        if len(content.content) != incoming.size:
            raise DataError(f"ended after {len(content.content)} of {incoming.size} bytes")
        if digest_of(content.content, self._options.algorithm) != content.digest:
            raise VerificationFailed("was damaged on the way")
        done = Done.NEW if old is None else Done.REPLACED
        if self._options.dry_run:
            self._settle_incoming(incoming, done, NOTHING_LOST)
            return
        loss = self._placing.write(spot, content.content, self._placing.shape(entry, old), old)
        self._ground.answers.moved += len(content.content)
        self._ground.answers.carried += len(content.content)
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

    def _turn_of(self, number: int) -> Incoming:
        if self._current is not None and self._current.spot.number == number:
            return self._current
        if self._current is not None or number not in self._pending:
            raise PeerBrokeProtocol(f"the sender sent data of file {number}, whose turn it is not")
        self._current = incoming = self._pending.pop(number)
        if incoming.part is not None:
            incoming.arriving, incoming.position = incoming.part, incoming.part.position
        return incoming

    def _receive(self, incoming: Incoming, piece: Piece, data: memoryview) -> None:
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
                self._ground.answers.carried += len(data)
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

    def _ready(self, incoming: Incoming) -> Arriving | None:
        """The file that data goes to, made with the first of it; None where nothing more of it is needed."""
        if incoming.arriving is None:
            if self._options.dry_run:
                self._settle_incoming(incoming, Done.REPLACED, NOTHING_LOST)
                return None
            # What is compared starts from what stands there: to compare once more is how it goes on.
            entry = incoming.entry
            if incoming.standing is None and isinstance(entry, Large) and self._placing.resumes(entry):
                incoming.arriving = self._new_part(incoming.spot, entry)
            else:
                shape = self._placing.shape(incoming.entry, incoming.old)
                incoming.arriving = self._placing.arriving(incoming.spot, shape, incoming.old)
            if incoming.standing is not None:
                incoming.arriving.start_from(incoming.standing, incoming.position)
        return incoming.arriving

    def _new_part(self, spot: Spot, entry: Large) -> Part:
        directories, directory = self._ground.directories, spot.directory
        return Part(directories, directory, spot.name, self._options, entry.stamp, entry.size, anew=True)

    def _same(self, incoming: Incoming, piece: Same) -> None:
        if incoming.standing is None:
            raise PeerBrokeProtocol(f"the sender took from what stands in file {piece.file}'s place, unasked")
        for digests in incoming.standing.digests(piece.offset, piece.length):
            for at in range(0, len(digests), 16):
                incoming.digest.update(digests[at : at + 16])
        self._advance(incoming, piece)
        if incoming.arriving is not None:
            incoming.arriving.take(incoming.standing, piece.offset, piece.length)

    def _same_hole(self, incoming: Incoming, piece: Hole) -> bool:
        """Whether all was the same so far, and here is nothing there too."""
        standing = incoming.standing
        if incoming.arriving is not None or standing is None or not standing.has_nothing(piece.offset, piece.length):
            return False
        self._advance(incoming, piece)
        incoming.digest.skip(piece.offset, piece.length)
        return True

    def _finish_file(self, incoming: Incoming, piece: Finish) -> None:
        if incoming.size is not None and incoming.position != incoming.size:
            raise DataError(f"ended after {incoming.position} of {incoming.size} bytes")
        if incoming.digest.digest() != piece.digest:
            raise VerificationFailed("is not what was read at its source")
        if incoming.standing is not None and not self._options.inplace:
            incoming.standing.check()
        old = incoming.old
        if incoming.arriving is None and incoming.standing is not None:
            if old is not None and incoming.size == old.st_size:
                self._settle_incoming(incoming, Done.SAME, self._placing.freshen(incoming.spot, incoming.entry, old))
                return
            if self._ready(incoming) is None:  # it got shorter
                return
        arriving = self._ready(incoming)
        if arriving is None:
            return
        loss = arriving.keep(self._placing.shape(incoming.entry, old), self._ground.writer, replaces=old is not None)
        self._settle_incoming(incoming, Done.NEW if old is None else Done.REPLACED, loss)

    def _complete_part(self, incoming: Incoming, entry: Large, part: Part) -> None:
        """All of a file was there already, but for its name."""
        old = incoming.old
        try:
            loss = part.keep(self._placing.shape(entry, old), self._ground.writer, replaces=old is not None)
        except BaseException:
            part.discard()
            raise
        done = Done.NEW if old is None else Done.REPLACED
        self._ground.done(incoming.spot, entry.size, done, loss)
        if entry.linked:
            self._links.remember(incoming.spot.number, Linked(incoming.spot.directory, incoming.spot.name, done))

    def _advance(self, incoming: Incoming, piece: Chunk | Hole | Same) -> None:
        if piece.offset != incoming.position or (
            incoming.size is not None and piece.length > incoming.size - piece.offset
        ):
            raise DataError("came in pieces that do not fit its size")
        incoming.position += piece.length
        self._ground.answers.moved += piece.length

    def _drop(self, incoming: Incoming, failure: Failure) -> None:
        if incoming.arriving is not None:
            incoming.arriving.discard()
        self._settle_incoming(incoming, Done.NEW, NOTHING_LOST, failure)

    def _settle_incoming(self, incoming: Incoming, done: Done, loss: Loss, failure: Failure | None = None) -> None:
        """A file's data has come, or will not: answer it, and the links that waited for it."""
        incoming.answered = True
        incoming.arriving = None
        if incoming.standing is not None:
            incoming.standing.close()
            incoming.standing = None
        spot, entry = incoming.spot, incoming.entry
        size = incoming.size if incoming.size is not None else incoming.position
        self._took(incoming, incoming.reserved)
        self._ground.answer(spot, Outcome(spot, size, True, failure, done, loss))
        if isinstance(entry, Large) and entry.linked:
            landed = Linked(spot.directory, spot.name, done) if failure is None else not_there(failure)
            self._links.settle(spot.number, landed)
        spot.directory.waiting -= 1
        self._folders.settle(spot.directory)
