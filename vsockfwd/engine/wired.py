"""What both kinds of link share: a wire machine joined to a stream, as awaitable events in and frames out.

The thing to understand first: reasons must not be lost. Who finds its own send failing reads what the peer had to say
before it raises; who refuses or resets sends its frame, shuts down its sending side, drains a bounded while, and only
then closes, since closing over unread bytes would tear the frame out of the peer's hands.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

import trio

from vsockfwd.engine.pump import ROUNDS, Broken, BufferPool, push
from vsockfwd.errors import Reset, VsockfwdError, from_oserror
from vsockfwd.transport.base import Stream
from vsockfwd.wire.frames import Buffer

LAST_WORDS = 2.0
"""Seconds that a refusal, a reset or a look for the peer's reason may take."""

EVENTS = 64
"""Events taken in a row after which the others get their turn: a flood of tiny frames must not stop the clock."""

SCRAP = 4096
"""Bytes at a time of what is read only to be thrown away."""

GLANCE = SCRAP
"""Bytes received to learn what comes next, where that is likely to be bulk that goes elsewhere."""

E = TypeVar("E")
E_co = TypeVar("E_co", covariant=True)


class _Receiving(Protocol[E_co]):
    def events(self, data: Buffer) -> Iterator[E_co]: ...
    def receive_eof(self) -> None: ...


class Wire(Generic[E]):
    """What both links share: events in, bytes out, and one end, kept, which every later call raises again.

    One task reads, and one writes; they may be the same. Who writes never reads in the reader's place: a view that the
    reader was given stands in the buffer that a receive would overwrite.
    """

    def __init__(self, stream: Stream, machine: _Receiving[E], buffers: BufferPool) -> None:
        self.stream = stream
        self.peer = stream.peer
        self._receiver = machine
        self.buffers = buffers
        self._pending: Iterator[E] = iter(())
        self._loan: memoryview | None = None
        self._most = buffers.size
        self._reader: object = None
        self.abandoned: Callable[[], None] | None = None
        """Called when this is abandoned, just before it is closed: for a reader that is no task."""
        self._end: VsockfwdError | EOFError | None = None
        self._ended = trio.Event()
        self._emptied = False
        """Whether a further receive would most likely be in vain."""
        self.mid_frame = False
        """Whether a frame was left half sent."""
        self._left = b""
        """What `try_write` has taken and the stream has not."""
        self._rounds = self._taken = 0
        self._threads = 0
        """How many threads are at work on the stream: it is closed when none is, since its number is another's then."""
        self._closing = False

    def feed(self, data: bytes) -> None:
        """Hand over bytes that were read before there was a link; errors in them come out of `next`."""
        self._pending = self._receiver.events(data)

    async def next(self) -> E:
        """The next event. Views in it are good until the following call.

        Raises what ended the stream: the peer's own reason, Reset, Truncated, PeerBrokeProtocol; EOFError after a
        proper end.
        """
        self.claim()
        while True:
            if self._taken >= EVENTS or self._rounds >= ROUNDS:
                self._taken = self._rounds = 0
                await trio.lowlevel.checkpoint()
            try:
                event = self.try_next()
            except BlockingIOError:
                self._rounds = 0
                await self.wait_readable()
                continue
            if event is not None:
                self._taken += 1
                return event

    def claim(self) -> None:
        """From now on this task is the one that reads: who finds a send failing waits for what it hears."""
        self._reader = trio.lowlevel.current_task()

    async def wait_readable(self) -> None:
        """Wait until something may be received. Raises Reset where the stream is closed meanwhile, on this side."""
        try:
            await self.stream.wait_readable()
        except trio.ClosedResourceError:
            raise self._finish(Reset(f"{self.stream.name}: closed on this side")) from None

    def try_next(self) -> E | None:
        """The next event without a wait, by one receive at most; None where that did not complete one.

        Raises BlockingIOError where there was nothing to receive; otherwise as `next`.
        """
        if self._end is not None:
            raise self._end
        try:
            event = next(self._pending, None)
            if event is None:
                if self._emptied:
                    self._emptied = False
                    self.read_no_more()
                    raise BlockingIOError
                self._receive()
                event = next(self._pending, None)
        except VsockfwdError as error:
            raise self._finish(error) from None
        if event is not None and (reason := self._reason_in(event)) is not None:
            raise self._finish(reason)
        return event

    def _reason_in(self, event: E) -> VsockfwdError | None:
        """The error that an event stands for, if it does."""
        return None

    def _finish(self, end: VsockfwdError | EOFError) -> VsockfwdError | EOFError:
        """Keep the end; the first one stands."""
        if self._end is None:
            self._end = end
            if not self._threads:
                self._ended.set()
        return self._end

    def glance(self) -> None:
        """Have the next receive take little, to learn what comes: what follows may be bulk that goes elsewhere."""
        self._most = GLANCE

    def _receive(self) -> None:
        """Receive once; no buffer is held while there is nothing to receive."""
        if self._loan is None:
            self._loan = self.buffers.borrow()
        loan = self._loan
        size = self._receive_into(loan[: self._most])
        self._emptied = self.stream.empties and size < SCRAP
        self._most = self.buffers.size
        self._pending = self._receiver.events(loan[:size])

    def _receive_into(self, buffer: memoryview) -> int:
        """Receive once into a buffer, which may be the loan."""
        try:
            size = self.stream.try_receive_into(buffer)
        except BlockingIOError:
            self.read_no_more()
            raise
        except OSError as error:
            self.read_no_more()
            raise self._finish(from_oserror(error, self.stream.name)) from None
        if not size:
            self.read_no_more()
            self._receiver.receive_eof()
            raise self._finish(EOFError())
        self._rounds += 1
        return size

    def read_no_more(self) -> None:
        """Give back the buffer; what was received and not yet taken is lost."""
        if self._loan is not None:
            self.buffers.give_back(self._loan)
            self._loan = None

    async def write(self, *parts: Buffer) -> None:
        """Send whole frames, given in one part or several; one writer at a time.

        Raises the peer's own reason where it gave one, Reset otherwise. Cancelled half-way, the link is of no more
        use for sending: every later write raises Reset.
        """
        left = self.begin_sending()
        try:
            views = [memoryview(part) for part in (left, *parts) if part]
            if len(views) > 1:
                views = _gather(self.stream, views)
            for view in views:
                await push(self.stream, view)
        except (Broken, OSError, trio.ClosedResourceError) as error:
            raise await self.reason_for(error) from None
        self.mid_frame = False

    def begin_sending(self) -> bytes:
        """From now on a frame is half out, until who sends it has done so; returns what is to go before it.

        Raises Reset where an earlier one was left half out.
        """
        if self.mid_frame:
            raise Reset(f"{self.stream.name}: an earlier send was cut off")
        self.mid_frame = True
        left, self._left = self._left, b""
        return left

    def try_write(self, data: Buffer) -> bool:
        """Send whole frames without waiting, while no `write` is under way; False: some of it goes before the next."""
        view = memoryview(data)
        try:
            while view and not self._left:
                view = view[self.stream.try_send(view) :]
        except OSError:
            pass  # it takes no more; or it is broken, as the next write will find
        self._left += view
        return not self._left

    async def reason_for(self, error: Exception) -> VsockfwdError:
        """Why a send failed: what the peer had to say before it stopped listening, where it said something."""
        with trio.move_on_after(LAST_WORDS):
            if self._reader in (None, trio.lowlevel.current_task()):
                try:
                    while True:
                        await self.next()
                except (EOFError, VsockfwdError):
                    pass  # kept
            else:
                await self._ended.wait()
        if isinstance(self._end, VsockfwdError):
            return self._end
        cause = error.error if isinstance(error, Broken) else error
        if isinstance(cause, OSError):
            return from_oserror(cause, self.stream.name)
        return Reset(f"{self.stream.name}: closed on this side")

    async def part(self, last: bytes = b"") -> None:
        """Send a last frame, if there is one and it can still be told from what went before, then close."""
        with trio.move_on_after(LAST_WORDS, shield=True):
            try:
                if last and not self.mid_frame and not self._left:
                    await push(self.stream, memoryview(last))
                self.stream.shutdown_sending()
                await self._drain()
            except (Broken, OSError, trio.ClosedResourceError, trio.BusyResourceError):
                pass  # the peer is gone: nobody is left to tell
        self.close()

    async def _drain(self) -> None:
        scrap = memoryview(bytearray(SCRAP))
        while True:
            try:
                if not self.stream.try_receive_into(scrap):
                    return
            except BlockingIOError:
                await self.stream.wait_readable()
            else:
                await trio.lowlevel.checkpoint()

    def abandon(self, reason: VsockfwdError) -> None:
        """Close at once; whoever is waiting on the link gets this reason."""
        self._finish(reason)
        if self.abandoned is not None:
            self.abandoned()
        if self._threads:
            self._stop_threads()
        else:
            self.stream.close()

    def close(self) -> None:
        """Close at once."""
        if self._threads:
            self._stop_threads()
            return
        self._pending = iter(())
        self.read_no_more()
        self.stream.close()

    # --- threads at work (engine/threaded.py)

    def _stop_threads(self) -> None:
        """Have them find the stream at its end; the last closes it."""
        self._closing = True
        if self.stream.sock is not None:
            with contextlib.suppress(OSError):
                self.stream.sock.shutdown(socket.SHUT_RDWR)

    def thread_begins(self) -> None:
        """From now on a thread is at work in one direction."""
        self._threads += 1

    def thread_ended(self) -> None:
        """It is no more: what it found out is told to who waits, which is for trio's own thread to do."""
        self._threads -= 1
        if not self._threads:
            if self._end is not None:
                self._ended.set()
            if self._closing:
                self.close()

    async def aclose(self) -> None:
        """Close, then let others run."""
        self.close()
        await trio.lowlevel.checkpoint()


def _gather(stream: Stream, views: list[memoryview]) -> list[memoryview]:
    """Send as much as goes in one call, and return what is left. Raises OSError."""
    try:
        sent = stream.try_send_parts(views)
    except BlockingIOError:
        return views
    return past(views, sent)


def past(views: list[memoryview], sent: int) -> list[memoryview]:
    """What is left of pieces of which so many bytes were sent."""
    left = []
    for view in views:
        if sent < len(view):
            left.append(view[sent:])
        sent = max(0, sent - len(view))
    return left
