"""Files that go to stdout, one behind the other, as cat(1) has it: no names, no attributes, no second look.

What was written cannot be taken back: each chunk is verified before it is, the whole at its end, and a file that does
not come to its end is a failure that was seen too late for who reads. It blocks: call it in a thread.
"""

from __future__ import annotations

import os

from vsockfwd.plugin import BadRequest, DataError, PeerBrokeProtocol, VerificationFailed, VsockfwdError
from vsockfwd_copy.account import Outcome
from vsockfwd_copy.asked import Expected
from vsockfwd_copy.ground import Answers
from vsockfwd_copy.messages import (
    Chunk,
    Contents,
    Done,
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
    Want,
    checksum,
    digest_of,
    failure_of,
)
from vsockfwd_copy.options import Algorithm

_ZEROS = memoryview(bytes(1 << 20))


class Pouring:
    """One sender's files on their way out of a descriptor, in their order."""

    comparing = False

    def __init__(self, fd: int, expected: Expected, algorithm: Algorithm = Algorithm.XXH3) -> None:
        self._fd = fd
        self._expected = expected
        self._algorithm = algorithm
        self._next = 1
        self._waiting: list[tuple[int, Large | Small]] = []
        """Announced and not written, in order."""
        self._position = 0
        self._digest = FileDigest(algorithm)
        self.answers = Answers()
        """What there is to tell so far."""
        self._names: dict[int, bytes] = {}

    def compare_some(self) -> None:
        """Nothing stands at the other end of a pipe."""

    def take_answers(self) -> Answers:
        """What there is to tell since the last time."""
        answers, self.answers = self.answers, Answers()
        return answers

    def finish(self) -> None:
        """The sender says that it is complete. Raises PeerBrokeProtocol where it is not."""
        if self._waiting or not self._expected.complete:
            raise PeerBrokeProtocol("the sender ended before all that it had to send")

    def announce(self, batch: Entries) -> None:
        """Take in announcements. Raises PeerBrokeProtocol."""
        if batch.first != self._next:
            raise PeerBrokeProtocol(f"the sender counts {batch.first} where {self._next} comes next")
        for entry in batch.entries:
            number = self._next
            self._next += 1
            if isinstance(entry, Enter | Leave):
                raise PeerBrokeProtocol("the sender sent a directory, which was not asked for")
            word = self._expected.word(entry)
            self.answers.announced += 1
            if isinstance(entry, Lost):
                self.answers.outcomes.append(Outcome(word, failure=entry.failure))
            elif isinstance(entry, Small | Large):
                self._names[number] = word
                self._waiting.append((number, entry))
                self.answers.announced_bytes += entry.size if isinstance(entry, Large) else len(entry.content)
                if isinstance(entry, Large):
                    self.answers.wants.append(Want(number, [Range(0, entry.size)]))
            else:
                self._answer(number, 0, failure_of(BadRequest("is no regular file, which is what stdout takes")))
        self._write_small()

    def _write_small(self) -> None:
        """Small files whose turn it is."""
        while self._waiting and isinstance(entry := self._waiting[0][1], Small):
            number, _ = self._waiting.pop(0)
            if digest_of(entry.content, self._algorithm) != entry.digest:
                self._answer(number, 0, failure_of(VerificationFailed("was damaged on the way")))
                continue
            self._write(memoryview(entry.content))
            self._answer(number, len(entry.content))

    def receive_contents(self, batch: Contents) -> None:
        """Nothing small is announced without its content to who has nothing to compare it with."""
        raise PeerBrokeProtocol("the sender sent content that was not asked for")

    def receive(self, piece: Piece, data: memoryview) -> None:
        """Take in a piece of the file whose turn it is. Raises PeerBrokeProtocol, and OSError from stdout."""
        if not self._waiting or self._waiting[0][0] != piece.file:
            raise PeerBrokeProtocol(f"the sender sent data of file {piece.file}, whose turn it is not")
        entry = self._waiting[0][1]
        assert isinstance(entry, Large)
        match piece:
            case Chunk():
                if checksum(data) != piece.checksum:
                    raise VerificationFailed("was damaged on the way")
                self._advance(piece, entry)
                self._digest.update(data)
                self._write(data)
            case Hole():
                self._advance(piece, entry)
                self._digest.skip(piece.offset, piece.length)
                for at in range(0, piece.length, len(_ZEROS)):
                    self._write(_ZEROS[: piece.length - at])
            case Finish():
                whole = self._position == entry.size and self._digest.digest() == piece.digest
                self._end(None if whole else DataError("is not what was read at its source"), entry.size)
            case GiveUp():
                self._end(piece.failure, 0)
            case _:
                raise PeerBrokeProtocol("the sender took from what stands in a pipe's place")

    def _end(self, failure: Failure | VsockfwdError | None, size: int) -> None:
        number, _ = self._waiting.pop(0)
        self._position, self._digest = 0, FileDigest(self._algorithm)
        self._answer(number, size, failure_of(failure) if isinstance(failure, VsockfwdError) else failure)
        self._write_small()

    def _advance(self, piece: Chunk | Hole, entry: Large) -> None:
        if piece.offset != self._position or piece.length > entry.size - piece.offset:
            raise DataError("came in pieces that do not fit its size")
        self._position += piece.length

    def _write(self, data: memoryview) -> None:
        self.answers.moved += len(data)
        while data:
            data = data[os.write(self._fd, data) :]

    def _answer(self, number: int, size: int, failure: Failure | None = None) -> None:
        self.answers.results.append(Result(number, failure, Done.NEW))
        self.answers.outcomes.append(Outcome(self._names.pop(number, b""), size, True, failure))
