"""The sender's end of a copy, over a channel: announcements and data out, wants and results in.

The thing to understand first: two tasks. One says and one hears. Announcing goes on as long as the window has room;
data goes out for what was wanted meanwhile, so that nothing waits for an answer but the end. A large file is read and
sent by a thread, in slices of time.
"""

from __future__ import annotations

import mmap
import time
from collections import deque
from collections.abc import Callable
from enum import Enum

import msgspec
import trio

from vsockfwd.plugin import (
    PATIENCE,
    SLICE,
    Channel,
    Data,
    Ended,
    PeerBrokeProtocol,
    ThreadChannel,
    VsockfwdError,
    the_one,
)
from vsockfwd_copy.account import Account, Outcome
from vsockfwd_copy.attributes import NOTHING_LOST, Loss
from vsockfwd_copy.messages import (
    BATCH_LIMIT,
    BLOCK,
    BROKEN_OFF,
    CHUNK_LIMIT,
    FRAME_NEEDED,
    SMALL_LIMIT,
    WINDOW,
    Blocks,
    Chunk,
    Content,
    Contents,
    Entries,
    Entry,
    Finish,
    GiveUp,
    Hole,
    Kind,
    Lost,
    Piece,
    Progress,
    Range,
    Removed,
    Result,
    Results,
    Same,
    Small,
    Want,
    Wants,
    decode,
    digest_of,
    encode,
    failure_of,
)
from vsockfwd_copy.options import SendOptions
from vsockfwd_copy.reading import NOTHING, Comparison, FlowReading, Reading
from vsockfwd_copy.walking import Item, Offer, Tree

READ_SIZE = CHUNK_LIMIT
"""Bytes that are read, and then sent: what the processor's cache holds."""

_KINDS: dict[type[Piece], Kind] = {
    Chunk: Kind.CHUNK,
    Hole: Kind.HOLE,
    Finish: Kind.FINISH,
    GiveUp: Kind.GIVE_UP,
    Same: Kind.SAME,
}

RATE_PIECES = 8
"""Pieces a second into which a limited rate is cut."""

SMALLEST_PIECE = 2 * BLOCK


async def send(channel: Channel, tree: Tree, options: SendOptions, account: Account) -> None:
    """Send a tree to the receiver at the other end, until it has answered everything.

    Raises what the receiver or the stream failed with; failures of single files go to the account.
    """
    if channel.frame_limit < FRAME_NEEDED:
        raise PeerBrokeProtocol(f"the peer takes frames of {channel.frame_limit} bytes, a copy needs {FRAME_NEEDED}")
    try:
        await _Sending(channel, tree, options, account).run()
    except BaseExceptionGroup as group:
        raise the_one(group) from None


class Pace:
    """Keeps sending to so many bytes a second; 0: no limit."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self.limited = bool(rate)
        self._due = 0.0
        self.piece = min(READ_SIZE, max(rate // RATE_PIECES, SMALLEST_PIECE)) if rate else READ_SIZE
        """Bytes to read at once."""

    async def sent(self, size: int) -> None:
        """So much went out; return when more may."""
        if self._rate:
            self._due = max(self._due, trio.current_time()) + size / self._rate
            await trio.sleep_until(self._due)


class _Needs(Enum):
    """What a file needs before more of it can be sent."""

    ROOM = 1
    """The receiver takes no more for now."""
    NEWS = 2
    """It has to tell more of what stands there."""
    TURN = 3
    """Others have theirs first."""


class Outgoing:
    """A Large file's data on its way out, in a thread: read, then sent, a buffer at a time."""

    def __init__(
        self, number: int, reading: Reading, wanted: Callable[[], bool], buffer: memoryview, *, limited: bool
    ) -> None:
        """`wanted`: whether the receiver needs more of it still; `limited`: its rate is, so a buffer will do."""
        self._number = number
        self._wanted = wanted
        self._reading = reading
        self._buffer = buffer
        self._pieces: deque[tuple[Piece, memoryview]] = deque()
        self._slice = 0.0 if limited else SLICE
        self.carried = 0
        """Bytes of content that were sent."""
        self.sent = False

    def send_some(self, channel: ThreadChannel) -> _Needs:
        """For a slice of time, or until it is sent."""
        end = time.monotonic() + self._slice
        patience = end + PATIENCE
        begun = False
        while True:
            if not channel.flush(patience):
                return _Needs.ROOM
            if not self._pieces:
                if self._reading.over:
                    self.sent = True
                    return _Needs.TURN
                if begun and time.monotonic() >= end:
                    return _Needs.TURN
                begun = True
                if self._wanted():
                    self._pieces += self._reading.read(self._buffer)
                else:
                    self._pieces.append((GiveUp(self._number, BROKEN_OFF), NOTHING))
                    self._reading.over = True
                if not self._pieces:
                    return _Needs.NEWS
            frames: list[tuple[int, bytes]] = []
            data = NOTHING
            while self._pieces and not data:
                piece, data = self._pieces.popleft()
                frames.append((_KINDS[type(piece)], encode(piece)))
            self.carried += len(data)
            channel.send_frames(*frames, data=data, until=patience)


class _Sending:
    """One copy on its way out."""

    def __init__(self, channel: Channel, tree: Tree, options: SendOptions, account: Account) -> None:
        self.channel = channel
        self.tree = tree
        self.algorithm = options.algorithm
        self.pace = Pace(options.rate)
        self.account = account
        self.next = 1
        self.offers: dict[int, Offer] = {}
        """Announced and not answered."""
        self.files = 0
        """Those of them that are no directories."""
        self.wanted: deque[Want] = deque()
        self.asked: set[int] = set()
        """Files whose Want has come, until they are answered."""
        self.comparisons: dict[int, Comparison] = {}
        """What the receiver tells of those that it compares."""
        self.news = trio.Event()
        self.complete = False
        self.buffer = memoryview(mmap.mmap(-1, READ_SIZE))  # which costs nothing before it is used

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(self._hear)  # first: who finds a send failing is told why by who hears
            await self._say()
            self.complete = True
            await self.channel.send_end()

    # --- what goes out

    async def _say(self) -> None:
        """Announce while there is room, send what is wanted, until everything is answered."""
        walking = True
        while walking or self.offers:
            if walking and self.files < WINDOW:
                items = await trio.to_thread.run_sync(self.tree.batch)
                walking = bool(items)
                if items:
                    await self._send(Kind.ENTRIES, encode(self._announce(items)))
            elif self.wanted and self._is_whole(self.wanted[0]):
                await self._send(Kind.CONTENTS, encode(await self._read_small()))
            elif self.wanted:
                await self._send_file(self.wanted.popleft())
            else:
                self.news = trio.Event()
                await self.news.wait()

    def _announce(self, items: list[Item]) -> Entries:
        first, files, size = self.next, 0, 0
        entries: list[Entry] = []
        for entry, offer in items:
            entries.append(entry)
            if offer is None:
                continue
            if type(entry) is Small:
                self.account.carried += len(entry.content)
            files += offer.is_file
            size += offer.size
            if type(entry) is Lost:  # it gets no answer
                self.account.answered(Outcome(offer.source, failure=entry.failure))
            else:
                self.offers[self.next] = offer
                self.files += offer.is_file
            self.next += 1
        self.account.plan(files, size)
        return Entries(first, entries)

    def _is_whole(self, want: Want) -> bool:
        """Whether a want is for a small file that nothing is known of but its digest."""
        offer = self.offers.get(want.file)
        return (
            offer is not None
            and offer.flow is None
            and offer.size <= SMALL_LIMIT
            and not want.compared
            and want.ranges == [Range(0, offer.size)]
        )

    async def _read_small(self) -> Contents:
        """As many of the small files that are wanted as go out together, read in one hop."""
        wants: list[tuple[Want, Offer]] = []
        size = 0
        while self.wanted and size < BATCH_LIMIT and self._is_whole(self.wanted[0]):
            want = self.wanted.popleft()
            wants.append((want, self.offers[want.file]))
            size += self.offers[want.file].size
        contents = await trio.to_thread.run_sync(self._contents, wants)
        self.account.carried += sum(len(one.content) for one in contents.files)
        return contents

    def _contents(self, wants: list[tuple[Want, Offer]]) -> Contents:
        contents = Contents([], [])
        for want, offer in wants:
            try:
                content = self.tree.content(offer)
            except (OSError, VsockfwdError) as error:
                contents.given_up.append(GiveUp(want.file, failure_of(error, "cannot be read")))
                continue
            digest = digest_of(content, self.algorithm)
            same = digest == want.digest
            contents.files.append(Content(want.file, b"" if same else content, digest, same))
        return contents

    async def _send_file(self, want: Want) -> None:
        offer = self.offers.get(want.file)
        if offer is None:
            return
        if offer.flow is not None:
            await self._send_flow(want.file, offer, offer.flow)
            return
        reading = Reading(self.tree, want.file, offer, want.ranges, self.comparisons.get(want.file), self.algorithm)
        buffer = self.buffer[: self.pace.piece]
        data = Outgoing(want.file, reading, lambda: want.file in self.offers, buffer, limited=self.pace.limited)
        try:
            while not data.sent:
                news = self.news = trio.Event()
                needs = await self.channel.in_thread(data.send_some)
                self.account.carried += data.carried
                await self.pace.sent(data.carried)
                data.carried = 0
                if needs is _Needs.ROOM:
                    await self.channel.wait_writable()
                elif needs is _Needs.NEWS:
                    await news.wait()
        finally:
            reading.close()

    async def _send_flow(self, number: int, offer: Offer, fd: int) -> None:
        flow = FlowReading(number, fd, self.algorithm)
        while not flow.over:
            if number not in self.offers:
                await self._send(Kind.GIVE_UP, encode(GiveUp(number, BROKEN_OFF)))
                return
            # Who waits for a terminal's next word must be able to stop; the thread ends with the process then.
            buffer = self.buffer[: self.pace.piece]
            ((piece, data),) = await trio.to_thread.run_sync(flow.read, buffer, abandon_on_cancel=True)
            await self._send(_KINDS[type(piece)], encode(piece), data)
            self.account.carried += len(data)
            if number in self.offers:
                self.offers[number] = msgspec.structs.replace(offer, size=flow.size)

    async def _send(self, kind: Kind, payload: bytes, data: memoryview = NOTHING) -> None:
        await self.channel.send_frames((kind, payload), data=data)
        await self.pace.sent(len(data) or len(payload))

    # --- what comes back

    async def _hear(self, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        while True:
            event = await self.channel.receive()
            if isinstance(event, Ended):
                break
            if isinstance(event, Data):
                raise PeerBrokeProtocol("the receiver sent data")
            match event.kind:
                case Kind.WANT:
                    for want in decode(event.payload, Wants).wants:
                        self._check_want(want)
                        self.wanted.append(want)
                case Kind.RESULTS:
                    for result in decode(event.payload, Results).results:
                        self._answered(result)
                case Kind.PROGRESS:
                    self._progress(decode(event.payload, Progress))
                case Kind.BLOCKS:
                    self._compare(decode(event.payload, Blocks))
                case Kind.REMOVED:
                    for path, failure in decode(event.payload, Removed).paths:
                        self.account.removed(path, failure)
                case _:
                    raise PeerBrokeProtocol(f"the receiver sent a frame of type {event.kind}")
            self.news.set()
        if not self.complete:
            raise PeerBrokeProtocol("the receiver ended before it had answered everything")

    def _check_want(self, want: Want) -> None:
        """A receiver may want what it was offered, once."""
        offer = self.offers.get(want.file)
        wantable = offer is not None and (offer.identity is not None or offer.flow is not None)
        if offer is None or not wantable or want.file in self.asked:
            raise PeerBrokeProtocol(f"the receiver wants file {want.file}, which it was not offered")
        if (offer.flow is None) != bool(want.ranges):
            raise PeerBrokeProtocol(f"the receiver wants file {want.file} in ranges that make no sense")
        at = 0
        for part in want.ranges:
            if part.offset < at or part.length > offer.size - part.offset:
                raise PeerBrokeProtocol(f"the receiver wants bytes of file {want.file} that it has not")
            at = part.offset + part.length
        self.asked.add(want.file)
        if want.compared and offer.flow is None:
            self.comparisons[want.file] = Comparison(offer.size)

    def _compare(self, blocks: Blocks) -> None:
        if blocks.file in self.comparisons:
            self.comparisons[blocks.file].add(blocks)
        elif blocks.file >= self.next:  # one that is answered already may be told of still
            raise PeerBrokeProtocol(f"the receiver compares file {blocks.file}, which it was not offered")

    def _progress(self, progress: Progress) -> None:
        offer = self.offers.get(progress.file)
        self.account.moved(progress.bytes)
        if offer is not None:
            self.account.at_work(offer.source.title, progress.position, offer.size)

    def _answered(self, result: Result) -> None:
        offer = self.offers.pop(result.entry, None)
        if offer is None:
            raise PeerBrokeProtocol(f"the receiver answered entry {result.entry}, which it was not asked about")
        self.asked.discard(result.entry)
        self.comparisons.pop(result.entry, None)
        self.files -= offer.is_file
        lost = Loss(result.lost) if result.lost else NOTHING_LOST
        self.account.answered(Outcome(offer.source, offer.size, offer.is_file, result.failure, result.done, lost))
