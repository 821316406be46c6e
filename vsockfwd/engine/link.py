"""A wire state machine joined to a stream: the control connection and the stream connection, as awaitable things.

The thing to understand first: reasons must not be lost. Who finds its own send failing reads what the peer had to say
before it raises; who refuses or resets sends its frame, shuts down its sending side, drains a bounded while, and only
then closes, since closing over unread bytes would tear the frame out of the peer's hands.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar

import trio

from vsockfwd import __version__
from vsockfwd.contract import BodyEvent, Data, Ended
from vsockfwd.engine.pump import ROUNDS, Broken, BufferPool, Pump, push
from vsockfwd.engine.relay import WITHHELD, ending_of, silence, speak_out
from vsockfwd.errors import (
    Code,
    LimitReached,
    LocalProtocolError,
    Reset,
    TimedOut,
    VsockfwdError,
    from_code,
    from_oserror,
)
from vsockfwd.events import Ending, Outcome
from vsockfwd.transport.base import Stream
from vsockfwd.wire.control import ControlEvent, ControlMachine, Farewell, Pinged, Ponged
from vsockfwd.wire.control import Refused as ControlRefused
from vsockfwd.wire.frames import HEADER_LENGTH, Buffer
from vsockfwd.wire.machine import State
from vsockfwd.wire.stream import Accepted, Refused, Requested, StreamEvent, StreamMachine, WasReset

SOFTWARE = f"vsockfwd {__version__}"
"""What both sides call themselves in HELLO."""

HANDSHAKE_DEADLINE = 10.0
"""Seconds from the first byte's chance to READY or OPEN: absolute, so that trickling does not extend it."""

PING_INTERVAL = 30.0
"""Seconds of silence on a control connection after which its peer is asked whether it lives."""

LAST_WORDS = 2.0
"""Seconds that a refusal, a reset or a look for the peer's reason may take."""

COALESCE = 1 << 16
"""Frames up to this size go out together with their neighbours, copied; larger ones by themselves, uncopied."""

POSTED = 8192
"""Frames that may wait for a peer to read its control connection, before it is given up."""

EVENTS = 64
"""Events taken in a row after which the others get their turn: a flood of tiny frames must not stop the clock."""

SCRAP = 4096
"""Bytes at a time of what is read only to be thrown away."""

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
        self._buffers = buffers
        self._pending: Iterator[E] = iter(())
        self._loan: memoryview | None = None
        self._reader: object = None
        self._end: VsockfwdError | EOFError | None = None
        self._ended = trio.Event()
        self._mid_frame = False
        self._rounds = self._taken = 0

    def feed(self, data: bytes) -> None:
        """Hand over bytes that were read before there was a link; errors in them come out of `next`."""
        self._pending = self._receiver.events(data)

    async def next(self) -> E:
        """The next event. Views in it are good until the following call.

        Raises what ended the stream: the peer's own reason, Reset, Truncated, PeerBrokeProtocol; EOFError after a
        proper end.
        """
        self._reader = trio.lowlevel.current_task()
        while True:
            if self._end is not None:
                raise self._end
            if self._taken >= EVENTS:
                self._taken = 0
                await trio.lowlevel.checkpoint()
            try:
                event = next(self._pending, None)
            except VsockfwdError as error:
                raise self._finish(error) from None
            if event is None:
                await self._pull()
                continue
            self._taken += 1
            if (reason := self._reason_in(event)) is not None:
                raise self._finish(reason)
            return event

    def _reason_in(self, event: E) -> VsockfwdError | None:
        """The error that an event stands for, if it does."""
        return None

    def _finish(self, end: VsockfwdError | EOFError) -> VsockfwdError | EOFError:
        """Keep the end; the first one stands."""
        if self._end is None:
            self._end = end
            self._ended.set()
        return self._end

    async def _pull(self) -> None:
        """Receive once; no buffer is held while there is nothing to receive, and a flood lets others run."""
        if self._loan is None:
            self._loan = self._buffers.borrow()
        try:
            size = self.stream.try_receive_into(self._loan)
        except BlockingIOError:
            self._release()
            self._rounds = 0
            try:
                await self.stream.wait_readable()
            except trio.ClosedResourceError:
                raise self._finish(Reset(f"{self.stream.name}: closed on this side")) from None
            return
        except OSError as error:
            self._release()
            raise self._finish(from_oserror(error, self.stream.name)) from None
        if not size:
            self._release()
            try:
                self._receiver.receive_eof()
            except VsockfwdError as error:
                raise self._finish(error) from None
            raise self._finish(EOFError())
        self._pending = self._receiver.events(self._loan[:size])
        self._rounds += 1
        if self._rounds >= ROUNDS:
            self._rounds = 0
            await trio.lowlevel.checkpoint()

    def _release(self) -> None:
        if self._loan is not None:
            self._buffers.give_back(self._loan)
            self._loan = None

    async def write(self, *parts: Buffer) -> None:
        """Send whole frames, given in one part or several; one writer at a time.

        Raises the peer's own reason where it gave one, Reset otherwise. Cancelled half-way, the link is of no more
        use for sending: every later write raises Reset.
        """
        if self._mid_frame:
            raise Reset(f"{self.stream.name}: an earlier send was cut off")
        self._mid_frame = True
        try:
            views = [memoryview(part) for part in parts]
            if len(views) > 1:
                views = _gather(self.stream, views)
            for view in views:
                await push(self.stream, view)
        except (Broken, OSError, trio.ClosedResourceError) as error:
            raise await self.reason_for(error) from None
        self._mid_frame = False

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
                if last and not self._mid_frame:
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
        self.stream.close()

    def close(self) -> None:
        """Close at once."""
        self._pending = iter(())
        self._release()
        self.stream.close()

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
    left = []
    for view in views:
        if sent < len(view):
            left.append(view[sent:])
        sent = max(0, sent - len(view))
    return left


class ControlLink(Wire[ControlEvent]):
    """A control connection, either side."""

    def __init__(self, stream: Stream, machine: ControlMachine, buffers: BufferPool) -> None:
        super().__init__(stream, machine, buffers)
        self.machine = machine
        self._writing = trio.Lock()
        self._heard = 0.0
        self._asked: dict[bytes, trio.Event] = {}
        self._posted: list[bytes] = []
        self._post = trio.lowlevel.ParkingLot()

    def _reason_in(self, event: ControlEvent) -> VsockfwdError | None:
        return event.error if isinstance(event, ControlRefused | Farewell) else None

    async def write(self, *parts: Buffer) -> None:
        """Send whole frames; several tasks may."""
        async with self._writing:
            await super().write(*parts)

    def post(self, frame: bytes) -> None:
        """Have `live` send a whole frame as soon as it can, in order; never waits. Lost where the session is over."""
        if self._end is None:
            self._posted.append(frame)
            self._post.unpark_all()
            if len(self._posted) > POSTED:
                self.abandon(LimitReached(f"{self.stream.name}: it does not read what it is told"))

    def deny(self, error: VsockfwdError, id: int, ticket: bytes = b"") -> None:
        """Post a DENY; after our BYE there is nobody to hear it."""
        if self.machine.ours is State.OPEN:
            self.post(self.machine.deny(error, id, ticket))

    def leave(self, reason: VsockfwdError) -> None:
        """Say what was posted, and goodbye, as far as that takes no waiting; then it is closed."""
        with contextlib.suppress(OSError, LocalProtocolError):
            if not self._mid_frame:
                self.stream.try_send(b"".join(self._posted) + self.machine.bye(reason))
        self.close()

    async def live(self, hear: Callable[[ControlEvent], None]) -> None:
        """Answer pings and ask in silence, until the session ends; raises the reason. The only reader meanwhile.

        Whatever else the peer says, `hear` is told at once; what it raises ends the session.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, nursery.cancel_scope)
                nursery.start_soon(self._deliver, nursery.cancel_scope)
                try:
                    await self._answer(hear)
                except EOFError:
                    self._end = Reset(f"{self.stream.name}: the session was closed")
                except VsockfwdError as error:
                    self._finish(error)
                nursery.cancel_scope.cancel()
        finally:
            for answered in self._asked.values():
                answered.set()
        raise self._over()

    def _over(self) -> VsockfwdError:
        return self._end if isinstance(self._end, VsockfwdError) else Reset(f"{self.stream.name}: the session is over")

    async def _answer(self, hear: Callable[[ControlEvent], None]) -> None:
        self._heard = trio.current_time()
        while True:
            event = await self.next()
            self._heard = trio.current_time()
            if isinstance(event, Pinged):
                if self.machine.ours is State.OPEN:
                    self.post(self.machine.pong(event.payload))
            elif not isinstance(event, Ponged):
                hear(event)
            elif event.payload in self._asked:
                self._asked.pop(event.payload).set()

    async def _deliver(self, scope: trio.CancelScope) -> None:
        """Send what is posted: the only writer while `live` runs."""
        while True:
            if not self._posted:
                await self._post.park()
            posted, self._posted = b"".join(self._posted), []
            try:
                await self.write(posted)
            except VsockfwdError as error:
                self._finish(error)
                scope.cancel()
                return

    async def _watch(self, scope: trio.CancelScope) -> None:
        """In silence ask; after two questions without an answer the peer is dead."""
        unanswered = 0
        while True:
            heard = self._heard
            await trio.sleep_until(max(heard, trio.current_time()) + PING_INTERVAL)
            if self._heard > heard:
                unanswered = 0
                continue
            if unanswered == 2:
                silent = trio.current_time() - heard
                self._finish(TimedOut(f"{self.stream.name}: no sign of life for {silent:.0f} s"))
                scope.cancel()
                return
            unanswered += 1
            if self.machine.ours is State.OPEN:  # after our BYE nobody is asked
                self.post(self.machine.ping())

    async def ping(self, payload: bytes) -> float:
        """Seconds of one round trip to the peer's engine. `live` must be running. Payloads must differ.

        Raises why the session ended, where it ends before the answer.
        """
        asked, answered = trio.current_time(), trio.Event()
        self._asked[payload] = answered
        try:
            self.post(self.machine.ping(payload))
            await answered.wait()
            if payload in self._asked:
                raise self._over()
        finally:
            self._asked.pop(payload, None)
        return trio.current_time() - asked


class Link(Wire[StreamEvent]):
    """A stream connection, either side; from OK on it is the contract's Channel."""

    def __init__(self, stream: Stream, machine: StreamMachine, buffers: BufferPool) -> None:
        super().__init__(stream, machine, buffers)
        self.machine = machine

    @property
    def frame_limit(self) -> int:
        """The most bytes of payload that a frame may carry."""
        return self.machine.frame_limit

    def _reason_in(self, event: StreamEvent) -> VsockfwdError | None:
        return event.error if isinstance(event, Refused | WasReset) else None

    # --- the contract's Channel

    async def receive(self) -> BodyEvent:
        """The next event of the body. Raises Reset (or what the peer's code says), Truncated, PeerBrokeProtocol."""
        try:
            event = await self.next()
        except EOFError:
            return Ended()
        if isinstance(event, Requested | Accepted):  # the tables have no row for these in a body
            raise LocalProtocolError("a body was received before its stream was open")
        assert not isinstance(event, Refused | WasReset)  # `next` raised what they stand for
        return event

    async def send(self, data: Buffer) -> None:
        """Send bytes of the body. Raises the peer's reason where it gave one, Reset otherwise."""
        view = memoryview(data)
        for at in range(0, len(view), self.frame_limit):
            piece = view[at : at + self.frame_limit]
            await self._write_frame(self.machine.data_header(len(piece)), piece)

    async def send_frames(self, *frames: tuple[int, Buffer]) -> None:
        """Send whole frames of the mode's own kinds, the small ones together."""
        pending: list[Buffer] = []
        size = 0
        for kind, payload in frames:
            header = self.machine.frame_header(kind, len(payload))
            if len(payload) > COALESCE:
                if pending:
                    await self.write(b"".join(pending))
                    pending, size = [], 0
                await self._write_frame(header, memoryview(payload))
                continue
            pending += (header, payload)
            size += len(header) + len(payload)
            if size > COALESCE:
                await self.write(b"".join(pending))
                pending, size = [], 0
        if pending:
            await self.write(b"".join(pending))

    async def _write_frame(self, header: bytes, payload: memoryview) -> None:
        """A header and its payload in one send: copied together while that is cheap, gathered otherwise."""
        if len(payload) <= COALESCE:
            await self.write(header + payload)
        else:
            await self.write(header, payload)

    async def send_end(self) -> None:
        """This direction is complete."""
        await self.write(self.machine.end())

    async def reset(self, code: Code, text: str) -> None:
        """Abandon the stream and tell the peer why, within a bounded while; then it is closed."""
        await self.part_with(from_code(code, text))

    async def part_with(self, error: VsockfwdError) -> None:
        """RESET with this reason, where it has a place, and close."""
        await self.part(self.machine.reset(error) if self.machine.may_reset else b"")

    async def relay(
        self,
        neighbour: Stream,
        *,
        dialled: bool = False,
        idle: float = 0.0,
        half_open: float = 0.0,
        live: set[Any] | None = None,
    ) -> Outcome:
        """Join the channel to a plain stream until both directions have ended; both are closed then.

        On any unclean outcome the peer gets RESET, where it is not the peer that brought it about, and the neighbour
        is aborted. `dialled`: we called the neighbour, it did not call us (see engine/relay.py on half-close).
        `sent` counts neighbour → channel. `idle`, `half_open`: as in engine/relay.py; `live` holds it while it runs.
        """
        framed = _FramedRelay(self, neighbour, dialled, idle, half_open)
        live = set() if live is None else live
        live.add(framed)
        try:
            return await framed.run()
        finally:
            live.discard(framed)


class _FramedRelay:
    """A link and a plain stream joined, at work. The inward task alone reads the link, from beginning to end."""

    def __init__(self, link: Link, neighbour: Stream, dialled: bool, idle: float, half_open: float) -> None:
        self.link = link
        self.neighbour = neighbour
        self.idle = idle
        self.half_open = half_open
        self.received_before = link.machine.received
        self.withhold = dialled and not neighbour.features.half_close
        self.outward_ended = self.inward_ended = False
        self.outward_over = trio.Event()
        self.out = Pump(neighbour, link.stream, link._buffers, self._frame, link.frame_limit)
        self.failure: VsockfwdError | None = None
        self.ours = False
        """Whether the failure is the neighbour's, so that the peer has to be told."""

    async def run(self) -> Outcome:
        started = time.monotonic()
        try:
            async with trio.open_nursery() as nursery:
                self.scope = nursery.cancel_scope
                if self.idle or self.half_open:
                    nursery.start_soon(self._watch)
                nursery.start_soon(self._outward)
                await self._inward(nursery)
                if self.idle or self.half_open:
                    await self.outward_over.wait()
                    nursery.cancel_scope.cancel()  # only the watch is left
        finally:
            clean = self.outward_ended and self.inward_ended and self.failure is None
            self.neighbour.close() if clean else self.neighbour.abort()
            if self.failure is not None and self.ours:
                await self.link.part_with(self.failure)
            self.link.close()
        seconds = time.monotonic() - started
        if self.failure is None:
            return Outcome(Ending.COMPLETE, "", "", self.sent, self.received, seconds)
        by = self.neighbour.name if self.ours else self.link.stream.name
        return Outcome(ending_of(self.failure.code), by, self.failure.message, self.sent, self.received, seconds)

    @property
    def sent(self) -> int:
        return self.out.bytes

    @property
    def received(self) -> int:
        return self.link.machine.received - self.received_before

    async def _watch(self) -> None:
        why = await silence(
            lambda: self.sent + self.received,
            lambda: self.outward_ended or self.inward_ended,
            self.idle,
            self.half_open,
        )
        self._fail(TimedOut(f"{self.neighbour.name}: {why}"), ours=True)

    async def _outward(self) -> None:
        link = self.link
        try:
            await self.out.run()
            await link.write(link.machine.end())
            self.outward_ended = True
            if self.inward_ended:
                self.scope.cancel()  # both have said END: nobody need wait for the other to close
        except VsockfwdError as error:
            self._fail(error, ours=False)
        except (Broken, trio.ClosedResourceError) as error:
            if isinstance(error, Broken) and error.stream is self.neighbour:
                self._fail(from_oserror(error.error, error.stream.name), ours=True)
            else:
                self._fail(await link.reason_for(error), ours=False)
        finally:
            link._mid_frame |= self.out.half_sent
        self.outward_over.set()

    def _frame(self, buffer: memoryview, size: int) -> memoryview:
        """A DATA frame in the buffer: its header goes in front of the bytes, so that both leave in one send."""
        buffer[:HEADER_LENGTH] = self.link.machine.data_header(size)
        return buffer[: HEADER_LENGTH + size]

    async def _inward(self, nursery: trio.Nursery) -> None:
        try:
            while isinstance(event := await self.link.receive(), Data):
                await push(self.neighbour, event.view)
            if not isinstance(event, Ended):
                raise from_code(Code.PROTOCOL, f"{self.link.stream.name}: a frame of its own kind in a plain stream")
            self.inward_ended = True
            if not self.withhold:
                self.neighbour.shutdown_sending()
            elif not self.outward_ended:
                nursery.start_soon(self._bound_silence)
            while not self.outward_ended:
                await self.link.next()  # a RESET may still come, or the session's loss
        except EOFError:
            pass  # the peer has closed after its END; what is still to be sent will find out
        except Broken as broken:
            await speak_out(self.outward_over, self.out)
            self._fail(from_oserror(broken.error, broken.stream.name), ours=True)
        except VsockfwdError as error:
            self._fail(error, ours=error.code is Code.PROTOCOL)
        finally:
            self.link._release()  # nobody reads any more, while the other direction may take its time

    async def _bound_silence(self) -> None:
        """The neighbour was not told that nothing more comes: it may wait for that for ever."""
        moved = -1
        while moved != self.out.bytes:
            moved = self.out.bytes
            await trio.sleep(WITHHELD)
        self._fail(
            TimedOut(f"{self.neighbour.name}: nothing came for {WITHHELD:g} s after the question's end"), ours=True
        )

    def _fail(self, error: VsockfwdError, *, ours: bool) -> None:
        if self.failure is None:
            self.failure = error
            self.ours = ours
        self.scope.cancel()
