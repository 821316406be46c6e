"""A link and a plain stream joined: the framed counterpart of engine/relay.py.

The thing to understand first: the inward direction alone reads the link, from beginning to end, so it is the one that
hears how the peer's side ended; and it goes on reading after the peer's END, since a RESET may still come.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from vsockfwd.contract import Data, Ended
from vsockfwd.engine.pump import ROUNDS, SPLICE, SPLICE_FROM, Broken, Needs, Pipe, Pump
from vsockfwd.engine.relay import WITHHELD, Then, ending_of, silence, speak_out
from vsockfwd.errors import Code, TimedOut, VsockfwdError, from_code, from_oserror
from vsockfwd.events import Ending, Outcome
from vsockfwd.transport.base import Stream

if TYPE_CHECKING:
    from vsockfwd.engine.link import Link


class Inward:
    """The body that comes over a link, taken out of its frames: steps as a Pump's.

    Beside Broken a step raises what ended the link. After the peer's END it needs NOTHING, and further steps look for
    what may come after that.
    """

    __slots__ = ("_before", "_bulk", "_link", "_pipe", "_rest", "_splices", "broken", "ended", "sink", "source")

    def __init__(self, link: Link, sink: Stream) -> None:
        self.source = link.stream
        self.sink = sink
        self.ended = False
        self.broken: Broken | None = None
        self._link = link
        self._before = link.machine.received
        self._rest: memoryview | None = None
        self._pipe: Pipe | None = None
        self._bulk = False
        """Whether frames come so large that the most of each is spliced (see SPLICE_FROM)."""
        self._splices = True
        """Until it turns out otherwise, when much comes."""

    @property
    def bytes(self) -> int:
        return self._link.machine.received - self._before

    def step(self) -> Needs:
        """Move what can be moved now. Raises Broken, again whenever it is called after that, or VsockfwdError."""
        if self.broken is not None:
            raise self.broken
        link, data = self._link, self._rest
        for _ in range(ROUNDS):
            if data is None:
                if self._bulk and (needs := self._splice()) is not None:
                    return needs
                try:
                    event = link.try_next()
                except BlockingIOError:
                    return Needs.NOTHING if self.ended else Needs.BYTES
                except EOFError:  # the peer has closed after its END; what is still to be sent will find out
                    return Needs.NOTHING
                if event is None:
                    continue
                if isinstance(event, Ended):
                    self.ended = True
                    continue
                if not isinstance(event, Data):
                    raise from_code(Code.PROTOCOL, f"{self.source.name}: a frame of its own kind in a plain stream")
                data = event.view
                self._bulk = len(data) + link.machine.data_left >= SPLICE_FROM and self._may_splice()
                if self._bulk:
                    link.glance()
            while data:
                try:
                    sent = self.sink.try_send(data)
                except BlockingIOError:
                    self._rest = data
                    return Needs.ROOM
                except OSError as error:
                    self._rest = None
                    self.broken = Broken(self.sink, error)
                    raise self.broken from None
                data = data[sent:]
            data = self._rest = None
        return Needs.TURN

    def _may_splice(self) -> bool:
        self._splices &= self.source.splice_source() is not None and self.sink.splice_sink() is not None
        return self._splices

    def _splice(self) -> Needs | None:
        """Splice what is left of the frame in hand, if anything is. None: go on and receive. Raises Broken."""
        machine = self._link.machine
        source, sink = self.source.splice_source(), self.sink.splice_sink()
        if not (machine.data_left or self._pipe) or source is None or sink is None:
            return None
        if self._pipe is None:
            try:
                self._pipe = self._link.buffers.borrow_pipe()
            except OSError:
                return None  # no descriptors left: it goes without
        pipe = self._pipe
        while pipe.held or machine.data_left:
            if not pipe.held:
                try:
                    pipe.held = os.splice(source, pipe.writing, machine.data_left, flags=SPLICE)
                except BlockingIOError:
                    self._give_back_pipe()
                    return Needs.BYTES
                except OSError:
                    pipe.held = 0
                if not pipe.held:  # the end, or what else a receive will tell
                    self._splices = self._bulk = False
                    break
                machine.took(pipe.held)
            try:
                pipe.held -= os.splice(pipe.reading, sink, pipe.held, flags=SPLICE)
            except BlockingIOError:
                return Needs.ROOM
            except OSError as error:
                self.broken = Broken(self.sink, error)
                raise self.broken from None
        self._give_back_pipe()
        return None

    def _give_back_pipe(self) -> None:
        if self._pipe is not None:
            self._link.buffers.give_back_pipe(self._pipe)
            self._pipe = None

    def close(self) -> None:
        """Give back what is borrowed."""
        self._rest = None
        self._give_back_pipe()
        self._link.read_no_more()

    async def run(self) -> None:
        """Step until the peer's END, waiting in this task. Raises Broken, VsockfwdError."""
        self._link.claim()
        try:
            while (needs := self.step()) is not Needs.NOTHING:
                if needs is Needs.BYTES:
                    await self._link.wait_readable()
                elif needs is Needs.ROOM:
                    await self.sink.wait_writable()
                else:
                    await trio.lowlevel.checkpoint()
        except BaseException:
            self.close()
            raise


class Framed:
    """One such pair at work, and what becomes of it: driven by `Relays`, or run in tasks, from wherever it stands.

    `near` is the neighbour, `far` the link's stream. `dialled`: we called the neighbour, it did not call us.
    """

    def __init__(self, link: Link, neighbour: Stream, *, dialled: bool) -> None:
        self.link = link
        self.near = neighbour
        self.far = link.stream
        self.forth = Pump(
            neighbour, link.stream, link.buffers, link.machine.data_header, link.frame_limit, link.machine.end
        )
        self.back = Inward(link, neighbour)
        # Who was just dialled has most likely not spoken yet; what came with the answer to OPEN is in the link.
        self.likely = (self.back,) if dialled else (self.forth, self.back)
        link.machine.parser.plain = True
        self._withhold = dialled and not neighbour.features.half_close
        self._started = time.monotonic()
        self._outward_ended = self._inward_ended = False
        self._scope: trio.CancelScope | None = None
        """In tasks, what they run in."""
        self._failure: VsockfwdError | None = None
        self._ours = False
        """Whether the failure is the neighbour's, so that the peer has to be told."""

    @property
    def sent(self) -> int:
        return self.forth.bytes

    @property
    def received(self) -> int:
        return self.back.bytes

    @property
    def clean(self) -> bool:
        return self._outward_ended and self._inward_ended and self._failure is None

    # --- driven by Relays

    def told(self, tell: Callable[[], None]) -> None:
        """Call `tell` when the link is abandoned."""
        self.link.abandoned = tell

    def ended(self, pump: Pump | Inward) -> Then:
        """A direction needs nothing more."""
        if pump is self.forth:
            self._outward_ended = True
        elif self.back.ended and not self._inward_ended:
            self._inward_ended = True
            if self._withhold and not self._outward_ended:
                return Then.TASKS
            self.near.shutdown_sending()
        return Then.OVER if self._outward_ended and self._inward_ended else Then.ON

    def failed(self, pump: Pump | Inward, error: Broken | VsockfwdError) -> Then:
        """A direction failed. What has to be told or heard first takes time, and so a task."""
        if isinstance(error, Broken) or error.code is Code.PROTOCOL:
            return Then.TASKS
        self._fail(error, ours=False)
        return Then.OVER

    def cut(self, reason: VsockfwdError) -> None:
        """End it, and tell the peer why; that takes a task, if it runs in none."""
        self._fail(reason, ours=True)

    def stop(self) -> None:
        """It was told to stop: both are closed without a word."""
        self._failure = None
        self._outward_ended = False

    def finish(self) -> Outcome:
        """Close both as they deserve, and say how it went."""
        clean = self.clean
        self.near.close() if clean else self.near.abort()
        self.forth.close()
        self.back.close()
        self.link.close()
        seconds = time.monotonic() - self._started
        if clean:
            return Outcome(Ending.COMPLETE, "", "", self.sent, self.received, seconds)
        if self._failure is None:
            return Outcome(Ending.STOPPED, "", "", self.sent, self.received, seconds)
        by = self.near.name if self._ours else self.far.name
        return Outcome(ending_of(self._failure.code), by, self._failure.message, self.sent, self.received, seconds)

    def broke(self, why: str) -> None:
        """A bug of ours in it."""
        self._fail(from_code(Code.INTERNAL, why), ours=False)

    # --- in tasks

    async def run(self, idle: float, half_open: float) -> Outcome:
        """Until both directions have ended. `idle`, `half_open`: see `relay`."""
        self.link.abandoned = None
        self._outward_over = trio.Event()
        self._scope = trio.CancelScope()
        if self._failure is not None:
            self._scope.cancel()
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    if idle or half_open:
                        nursery.start_soon(self._watch, idle, half_open)
                    nursery.start_soon(self._outward)
                    await self._inward(nursery)
                    if idle or half_open:
                        await self._outward_over.wait()
                        nursery.cancel_scope.cancel()  # only the watch is left
        finally:
            self.near.close() if self.clean else self.near.abort()
            if self._failure is not None and self._ours:
                await self.link.part_with(self._failure)
            outcome = self.finish()
        return outcome

    async def _watch(self, idle: float, half_open: float) -> None:
        why = await silence(
            lambda: self.sent + self.received, lambda: self._outward_ended or self._inward_ended, idle, half_open
        )
        self._fail(TimedOut(f"{self.near.name}: {why}"), ours=True)

    async def _outward(self) -> None:
        link = self.link
        try:
            if not self._outward_ended:
                await self.forth.run()
                self._outward_ended = True
            if self._inward_ended:
                self._cancel()  # both have said END: nobody need wait for the other to close
        except VsockfwdError as error:
            self._fail(error, ours=False)
        except (Broken, trio.ClosedResourceError) as error:
            if isinstance(error, Broken) and error.stream is self.near:
                self._fail(from_oserror(error.error, error.stream.name), ours=True)
            else:
                self._fail(await link.reason_for(error), ours=False)
        finally:
            link.mid_frame |= self.forth.half_sent
        self._outward_over.set()

    async def _inward(self, nursery: trio.Nursery) -> None:
        try:
            await self.back.run()
            withheld = self._withhold and not self._outward_ended
            if not self._inward_ended and not withheld:
                self.near.shutdown_sending()
            self._inward_ended = True
            if withheld:
                nursery.start_soon(self._bound_silence)
            while not self._outward_ended:
                await self.link.next()  # a RESET may still come, or the session's loss
        except EOFError:
            pass  # the peer has closed after its END; what is still to be sent will find out
        except Broken as broken:
            await speak_out(self._outward_over, self.forth)
            self._fail(from_oserror(broken.error, broken.stream.name), ours=True)
        except VsockfwdError as error:
            self._fail(error, ours=error.code is Code.PROTOCOL)
        finally:
            self.back.close()  # nobody reads any more, while the other direction may take its time

    async def _bound_silence(self) -> None:
        """The neighbour was not told that nothing more comes: it may wait for that for ever."""
        moved = -1
        while moved != self.forth.bytes:
            moved = self.forth.bytes
            await trio.sleep(WITHHELD)
        self._fail(TimedOut(f"{self.near.name}: nothing came for {WITHHELD:g} s after the question's end"), ours=True)

    def _fail(self, error: VsockfwdError, *, ours: bool) -> None:
        if self._failure is None:
            self._failure = error
            self._ours = ours
        self._cancel()

    def _cancel(self) -> None:
        if self._scope is not None:
            self._scope.cancel()
