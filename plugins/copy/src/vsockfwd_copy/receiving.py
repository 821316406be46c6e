"""The receiver's end of a copy, over a channel: announcements and data in, wants and results out.

The thing to understand first: one loop, in slices. A thread receives, verifies and writes for a while, all by itself;
then what has come of it is told, and the thread goes on, or somebody waits for the sender. What comes meanwhile stands
in the socket.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

import trio

from vsockfwd.plugin import PATIENCE, SLICE, BodyEvent, Channel, Data, Ended, PeerBrokeProtocol, ThreadChannel
from vsockfwd_copy.account import Account
from vsockfwd_copy.ground import Answers
from vsockfwd_copy.messages import (
    CHUNK_LIMIT,
    FRAME_NEEDED,
    Chunk,
    Contents,
    Entries,
    Finish,
    GiveUp,
    Hole,
    Kind,
    Piece,
    Progress,
    Removed,
    Results,
    Same,
    Wants,
    decode,
    encode,
)

PROGRESS_INTERVAL = 0.1
"""Seconds between two words about a large file's progress."""

ANSWERS_IN_A_FRAME = 256
"""So that a frame of failures with the longest texts fits."""

REMOVALS_IN_A_FRAME = 64
"""The same for removed paths, with a failure each."""

_PIECES: dict[int, type[Piece]] = {Kind.HOLE: Hole, Kind.SAME: Same, Kind.FINISH: Finish, Kind.GIVE_UP: GiveUp}

NO_DATA = memoryview(b"")

T = TypeVar("T")


class Sink(Protocol):
    """Where a sender's entries and data go: into files (landing.py) or out of a pipe (pouring.py)."""

    @property
    def comparing(self) -> bool: ...

    @property
    def answers(self) -> Answers: ...

    def announce(self, batch: Entries) -> None: ...

    def receive_contents(self, batch: Contents) -> None: ...

    def receive(self, piece: Piece, data: memoryview) -> None: ...

    def compare_some(self) -> None: ...

    def take_answers(self) -> Answers: ...

    def finish(self) -> None: ...


async def receive(channel: Channel, landing: Sink, account: Account) -> None:
    """Take in what the sender at the other end has, until it is complete.

    Raises what the sender or the stream failed with; failures of single files go to the account. The landing is the
    caller's to close.
    """
    if channel.frame_limit < FRAME_NEEDED:
        raise PeerBrokeProtocol(f"the peer takes frames of {channel.frame_limit} bytes, a copy needs {FRAME_NEEDED}")
    await _Receiving(channel, landing, account).run()


class _Receiving:
    """One copy on its way in."""

    def __init__(self, channel: Channel, landing: Sink, account: Account) -> None:
        self.channel = channel
        self.landing = landing
        self.account = account
        self.moved = 0
        """Bytes written that the sender was not told of yet."""
        self.told = 0.0
        self.buffer = memoryview(mmap.mmap(-1, CHUNK_LIMIT))  # which costs nothing before it is used
        self.chunk: Chunk | None = None
        """The one whose data comes, and how much of it stands in the buffer."""
        self.filled = 0
        self.over = False

    async def run(self) -> None:
        while not self.over:
            waits = await self.channel.in_thread(self._work)
            answers = self.landing.take_answers()
            self._tell_account(answers)
            await self._tell_sender(answers)
            if waits:
                await self.channel.wait_readable()
        self.landing.finish()
        await self.channel.send_end()

    # --- in a thread

    def _work(self, channel: ThreadChannel) -> bool:
        """Take in what comes, for a slice of time; whether to wait for more."""
        now = time.monotonic()
        end = now + SLICE
        while not self.over and now < end and self.landing.answers.awaited < ANSWERS_IN_A_FRAME:
            waits = self.landing.comparing or self.landing.answers.awaited  # who waits for us goes first
            taken = self._take(channel, now if waits else min(now + PATIENCE, end))
            if self.landing.comparing:
                self.landing.compare_some()
            elif not taken:
                return True
            now = time.monotonic()
        return False

    def _take(self, channel: ThreadChannel, until: float) -> bool:
        """Take in one thing, the data of a chunk with it; False: it has not come, or not all of it, by then."""
        if self.chunk is None:
            event = channel.receive(until)
            if event is None:
                return False
            self._meet(event)
        if self.chunk is not None:
            self.filled += channel.receive_into(self.buffer[self.filled : self.chunk.length], until)
            if self.filled < self.chunk.length:
                return False
            chunk, self.chunk = self.chunk, None
            self.landing.receive(chunk, self.buffer[: chunk.length])
        return True

    def _meet(self, event: BodyEvent) -> None:
        if isinstance(event, Data):
            raise PeerBrokeProtocol("the sender sent data that belongs to no file")
        if isinstance(event, Ended):
            self.over = True
        elif event.kind == Kind.ENTRIES:
            self.landing.announce(decode(event.payload, Entries))
        elif event.kind == Kind.CONTENTS:
            self.landing.receive_contents(decode(event.payload, Contents))
        elif event.kind == Kind.CHUNK:
            self.chunk, self.filled = decode(event.payload, Chunk), 0
        elif event.kind in _PIECES:
            self.landing.receive(decode(event.payload, _PIECES[event.kind]), NO_DATA)
        else:
            raise PeerBrokeProtocol(f"the sender sent a frame of type {event.kind}")

    # --- what is told

    def _tell_account(self, answers: Answers) -> None:
        self.account.plan(answers.announced, answers.announced_bytes)
        self.account.moved(answers.moved)
        self.account.carried += answers.carried
        if answers.at_work is not None:
            _, title, position, size = answers.at_work
            self.account.at_work(title, position, size)
        for outcome in answers.outcomes:
            self.account.answered(outcome)
        for path, failure in answers.removed:
            self.account.removed(path, failure)

    async def _tell_sender(self, answers: Answers) -> None:
        frames: list[tuple[int, bytes]] = []
        self.moved += answers.moved
        if self.moved and (answers.results or trio.current_time() - self.told >= PROGRESS_INTERVAL):
            number, _, position, _ = answers.at_work or (0, b"", 0, 0)
            frames.append((Kind.PROGRESS, encode(Progress(self.moved, number, position))))
            self.moved, self.told = 0, trio.current_time()
        frames += [(Kind.WANT, encode(Wants(wants))) for wants in _cut(answers.wants)]
        frames += [(Kind.BLOCKS, encode(blocks)) for blocks in answers.blocks]
        frames += [(Kind.REMOVED, encode(Removed(paths))) for paths in _cut(answers.removed, REMOVALS_IN_A_FRAME)]
        frames += [(Kind.RESULTS, encode(Results(results))) for results in _cut(answers.results)]
        if frames:
            await self.channel.send_frames(*frames)


def _cut(answers: Sequence[T], most: int = ANSWERS_IN_A_FRAME) -> Iterator[list[T]]:
    for at in range(0, len(answers), most):
        yield list(answers[at : at + most])
