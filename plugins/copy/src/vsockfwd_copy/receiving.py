"""The receiver's end of a copy, over a channel: announcements and data in, wants and results out.

The thing to understand first: two tasks. One hears the sender and collects data into buffers; the other takes
whatever has been collected to a thread, all of it in one hop, and then answers. The buffers are the bound between them.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import trio

from vsockfwd.plugin import Channel, Data, Ended, Frame, PeerBrokeProtocol, the_one
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

BUFFERS = 8
"""Chunks in hand: while some are being written in one hop to a thread, others are being filled."""

PROGRESS_INTERVAL = 0.1
"""Seconds between two words about a large file's progress."""

ANSWERS_IN_A_FRAME = 256
"""So that a frame of failures with the longest texts fits."""

REMOVALS_IN_A_FRAME = 64
"""The same for removed paths, with a failure each."""

_PIECES: dict[int, type[Piece]] = {Kind.HOLE: Hole, Kind.SAME: Same, Kind.FINISH: Finish, Kind.GIVE_UP: GiveUp}

NO_DATA = memoryview(b"")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Job:
    """Something to be done in a thread: a batch still encoded, or a piece with its data, which stands in `buffer`."""

    what: bytes | Piece | None
    kind: int = Kind.ENTRIES
    data: memoryview = NO_DATA
    buffer: memoryview | None = None


_COMPARE = _Job(None)


class Sink(Protocol):
    """Where a sender's entries and data go: into files (landing.py) or out of a pipe (pouring.py)."""

    @property
    def comparing(self) -> bool: ...

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
    try:
        await _Receiving(channel, landing, account).run()
    except BaseExceptionGroup as group:
        raise the_one(group) from None


class _Receiving:
    """One copy on its way in."""

    def __init__(self, channel: Channel, landing: Sink, account: Account) -> None:
        self.channel = channel
        self.landing = landing
        self.account = account
        self.moved = 0
        """Bytes written that the sender was not told of yet."""
        self.told = 0.0
        self.give_back, self.buffers = trio.open_memory_channel[memoryview](BUFFERS)
        for _ in range(BUFFERS):
            self.give_back.send_nowait(memoryview(mmap.mmap(-1, CHUNK_LIMIT)))

    async def run(self) -> None:
        put, take = trio.open_memory_channel[_Job](BUFFERS)
        with put, take, self.give_back, self.buffers:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._land, take)
                await self._hear(put)
                put.close()  # here only: an end that was not reached must not look like one

    # --- what comes in

    async def _hear(self, put: trio.MemorySendChannel[_Job]) -> None:
        while not isinstance(event := await self.channel.receive(), Ended):
            if isinstance(event, Data):
                raise PeerBrokeProtocol("the sender sent data that belongs to no file")
            await put.send(await self._job(event))

    async def _job(self, frame: Frame) -> _Job:
        if frame.kind in (Kind.ENTRIES, Kind.CONTENTS):
            return _Job(bytes(frame.payload), frame.kind)
        if frame.kind == Kind.CHUNK:
            return await self._collect(decode(frame.payload, Chunk))
        if frame.kind not in _PIECES:
            raise PeerBrokeProtocol(f"the sender sent a frame of type {frame.kind}")
        return _Job(decode(frame.payload, _PIECES[frame.kind]))

    async def _collect(self, chunk: Chunk) -> _Job:
        """The data that follows a chunk's announcement, in a buffer of ours."""
        buffer = await self.buffers.receive()
        data = buffer[: chunk.length]
        await self.channel.receive_into(data)
        return _Job(chunk, data=data, buffer=buffer)

    # --- what is done with it

    async def _land(self, take: trio.MemoryReceiveChannel[_Job]) -> None:
        while jobs := await self._next_jobs(take):
            answers = await trio.to_thread.run_sync(self._work, jobs)
            for job in jobs:
                if job.buffer is not None:
                    self.give_back.send_nowait(job.buffer)
            self._tell_account(answers)
            await self._tell_sender(answers)
        self.landing.finish()
        await self.channel.send_end()

    async def _next_jobs(self, take: trio.MemoryReceiveChannel[_Job]) -> list[_Job]:
        """What has come; a job that is none while there is comparing to do, and nothing at the end."""
        jobs: list[_Job] = []
        try:
            if not self.landing.comparing:
                jobs.append(await take.receive())
            while True:
                jobs.append(take.receive_nowait())
        except trio.WouldBlock:
            return jobs or [_COMPARE]
        except trio.EndOfChannel:
            return jobs

    def _work(self, jobs: list[_Job]) -> Answers:
        for job in jobs:
            if isinstance(job.what, bytes) and job.kind == Kind.ENTRIES:
                self.landing.announce(decode(job.what, Entries))
            elif isinstance(job.what, bytes):
                self.landing.receive_contents(decode(job.what, Contents))
            elif job.what is not None:
                self.landing.receive(job.what, job.data)
        if self.landing.comparing:
            self.landing.compare_some()
        return self.landing.take_answers()

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
