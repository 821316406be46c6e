"""The receiver's end of a copy, over a channel: announcements and data in, wants and results out.

The thing to understand first: two tasks. One hears the sender and collects data into buffers; the other takes
whatever has been collected to a thread, all of it in one hop, and then answers. The buffers are the bound between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import trio

from vsockfwd.plugin import Channel, Data, Ended, Frame, PeerBrokeProtocol, the_one
from vsockfwd_copy.account import Account
from vsockfwd_copy.landing import Answers, Landing
from vsockfwd_copy.messages import (
    CHUNK_LIMIT,
    FRAME_NEEDED,
    Chunk,
    Entries,
    Finish,
    GiveUp,
    Hole,
    Kind,
    Piece,
    Progress,
    Results,
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

_PIECES: dict[int, type[Piece]] = {Kind.HOLE: Hole, Kind.FINISH: Finish, Kind.GIVE_UP: GiveUp}

NO_DATA = memoryview(b"")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Job:
    """Something to be done in a thread: a batch still encoded, or a piece with its data, which stands in `buffer`."""

    what: bytes | Piece
    data: memoryview = NO_DATA
    buffer: memoryview | None = None


async def receive(channel: Channel, landing: Landing, account: Account) -> None:
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

    def __init__(self, channel: Channel, landing: Landing, account: Account) -> None:
        self.channel = channel
        self.landing = landing
        self.account = account
        self.moved = 0
        """Bytes written that the sender was not told of yet."""
        self.told = 0.0
        self.give_back, self.buffers = trio.open_memory_channel[memoryview](BUFFERS)
        for _ in range(BUFFERS):
            self.give_back.send_nowait(memoryview(bytearray(CHUNK_LIMIT)))

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
        if frame.kind == Kind.ENTRIES:
            return _Job(bytes(frame.payload))
        if frame.kind == Kind.CHUNK:
            return await self._collect(decode(frame.payload, Chunk))
        if frame.kind not in _PIECES:
            raise PeerBrokeProtocol(f"the sender sent a frame of type {frame.kind}")
        return _Job(decode(frame.payload, _PIECES[frame.kind]))

    async def _collect(self, chunk: Chunk) -> _Job:
        """The data that follows a chunk's announcement, in a buffer of ours."""
        buffer = await self.buffers.receive()
        filled = 0
        while filled < chunk.length:
            event = await self.channel.receive()
            if not isinstance(event, Data) or len(event.view) > chunk.length - filled:
                raise PeerBrokeProtocol("the sender announced a chunk of another length than it sent")
            buffer[filled : filled + len(event.view)] = event.view
            filled += len(event.view)
        return _Job(chunk, buffer[:filled], buffer)

    # --- what is done with it

    async def _land(self, take: trio.MemoryReceiveChannel[_Job]) -> None:
        async for job in take:
            jobs = [job]
            try:
                while True:
                    jobs.append(take.receive_nowait())
            except (trio.WouldBlock, trio.EndOfChannel):
                pass
            answers = await trio.to_thread.run_sync(self._work, jobs)
            for job in jobs:
                if job.buffer is not None:
                    self.give_back.send_nowait(job.buffer)
            self._tell_account(answers)
            await self._tell_sender(answers)
        self.landing.finish()
        await self.channel.send_end()

    def _work(self, jobs: list[_Job]) -> Answers:
        for job in jobs:
            if isinstance(job.what, bytes):
                self.landing.announce(decode(job.what, Entries))
            else:
                self.landing.receive(job.what, job.data)
        return self.landing.take_answers()

    def _tell_account(self, answers: Answers) -> None:
        self.account.plan(answers.announced, answers.announced_bytes)
        self.account.moved(answers.moved)
        for outcome in answers.outcomes:
            self.account.answered(outcome.title, outcome.size, outcome.is_file, outcome.failure)

    async def _tell_sender(self, answers: Answers) -> None:
        frames: list[tuple[int, bytes]] = []
        self.moved += answers.moved
        if self.moved and (answers.results or trio.current_time() - self.told >= PROGRESS_INTERVAL):
            frames.append((Kind.PROGRESS, encode(Progress(self.moved))))
            self.moved, self.told = 0, trio.current_time()
        frames += [(Kind.WANT, encode(Wants(wants))) for wants in _cut(answers.wants)]
        frames += [(Kind.RESULTS, encode(Results(results))) for results in _cut(answers.results)]
        if frames:
            await self.channel.send_frames(*frames)


def _cut(answers: Sequence[T]) -> Iterator[list[T]]:
    for at in range(0, len(answers), ANSWERS_IN_A_FRAME):
        yield list(answers[at : at + ANSWERS_IN_A_FRAME])
