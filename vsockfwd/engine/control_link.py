"""The control connection at work: alive as long as its peer answers, and what is announced over it.

The thing to understand first: nobody waits for its peer to read. What is said over it is posted, and one task sends
it; a peer that reads nothing for long is given up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import trio

from vsockfwd import __version__
from vsockfwd.engine.pump import BufferPool
from vsockfwd.engine.wired import Wire
from vsockfwd.errors import LimitReached, LocalProtocolError, Reset, TimedOut, VsockfwdError
from vsockfwd.transport.base import Stream
from vsockfwd.wire.control import ControlEvent, ControlMachine, Farewell, Pinged, Ponged
from vsockfwd.wire.control import Refused as ControlRefused
from vsockfwd.wire.machine import State

SOFTWARE = f"vsockfwd {__version__}"
"""What both sides call themselves in HELLO."""

HANDSHAKE_DEADLINE = 10.0
"""Seconds from the first byte's chance to READY or OPEN: absolute, so that trickling does not extend it."""

PING_INTERVAL = 30.0
"""Seconds of silence on a control connection after which its peer is asked whether it lives."""

POSTED = 8192
"""Frames that may wait for a peer to read its control connection, before it is given up."""


class ControlLink(Wire[ControlEvent]):
    """A control connection, either side."""

    def __init__(self, stream: Stream, machine: ControlMachine, buffers: BufferPool) -> None:
        super().__init__(stream, machine, buffers)
        self.machine = machine
        self._heard = 0.0
        self._asked: dict[bytes, trio.Event] = {}
        self._posted: list[bytes] = []
        self._post = trio.lowlevel.ParkingLot()

    def _reason_in(self, event: ControlEvent) -> VsockfwdError | None:
        return event.error if isinstance(event, ControlRefused | Farewell) else None

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
            if not self.mid_frame:
                self.stream.try_send(b"".join(self._posted) + self.machine.bye(reason))
        self.close()

    async def live(self, hear: Callable[[ControlEvent], None]) -> None:
        """Answer pings and ask in silence, until the session ends; raises the reason. The only reader meanwhile.

        Whatever else the peer says, `hear` is told at once; what it raises ends the session. While it runs, what is to
        be sent is posted.
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
