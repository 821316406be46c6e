"""A link's calls for a thread, which wait there for a bounded while.

For who works on bulk as it comes or goes: a hop from a task to a thread costs as much as a quarter of a mebibyte, and
two threads of one process take each other's turns. The thing to understand first: one direction of a socket knows
nothing of the other, so a thread may have one while a task has the other. What is no plain socket (TLS has one state
for both directions) is called in trio's own thread from here.
"""

from __future__ import annotations

import select
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import trio

from vsockfwd.contract import BodyEvent, Data, Ended
from vsockfwd.engine.pump import Broken
from vsockfwd.engine.wired import past
from vsockfwd.errors import LocalProtocolError, PeerBrokeProtocol
from vsockfwd.transport.base import SocketStream
from vsockfwd.wire.frames import Buffer
from vsockfwd.wire.stream import Accepted, Refused, Requested, StreamEvent, WasReset

if TYPE_CHECKING:
    from vsockfwd.engine.link import Link

T = TypeVar("T")


class Threaded:
    """What a thread may call of a link. Moments are time.monotonic()'s; a call that has nothing to do then returns.

    One thread at a time in a direction, and no task in the same. `Link.in_thread` starts it.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._stream = link.stream
        self._direct = isinstance(link.stream, SocketStream)
        self._rest: list[memoryview] = []
        """What `send_frames` has taken and the stream has not."""

    # --- receiving

    def receive(self, until: float) -> BodyEvent | None:
        """As the channel's; None where nothing came by then."""
        while True:
            try:
                event = self._call(self._link.try_next)
            except BlockingIOError:
                if not self._wait(select.POLLIN, self._stream.wait_readable, until):
                    return None
                continue
            except EOFError:
                return Ended()
            if event is not None:
                return body_event(event)

    def receive_into(self, buffer: memoryview, until: float) -> int:
        """Fill a buffer, uncopied but for what was received already; see contract.py."""
        link, filled = self._link, 0
        while filled < len(buffer):
            rest = buffer[filled:]
            if link.machine.data_left:
                try:
                    size = self._call(self._receive_what_is_there, rest)
                except BlockingIOError:
                    if not self._wait(select.POLLIN, self._stream.wait_readable, until):
                        return filled
                    continue
            else:
                event = self.receive(until)
                if event is None:
                    return filled
                size = len(event.view) if isinstance(event, Data) else 0
                if not isinstance(event, Data) or size > len(rest):
                    raise of_another_length()
                rest[:size] = event.view
            filled += size
        if link.machine.data_left:
            raise of_another_length()
        link.glance()
        return filled

    # --- sending

    def send_frames(self, *frames: tuple[int, Buffer], data: Buffer = b"", until: float) -> bool:
        """As the channel's, all in one write; False: some of it is left by then, for `flush`, and is to stay as it is.

        Nothing may be left of an earlier one.
        """
        link, machine = self._link, self._link.machine
        front: list[Buffer] = []
        for kind, payload in frames:
            front += (machine.frame_header(kind, len(payload)), payload)
        parts: list[Buffer] = []
        view = memoryview(data)
        for at in range(0, len(view), link.frame_limit):
            piece = view[at : at + link.frame_limit]
            front.append(machine.data_header(len(piece)))
            parts += (b"".join(front), piece)
            front = []
        if front:
            parts.append(b"".join(front))
        if parts:
            self._rest = [memoryview(part) for part in (link.begin_sending(), *parts) if part]
        return self.flush(until)

    def flush(self, until: float) -> bool:
        """Send what is left; False: still not all of it. Raises Broken, which `Link.in_thread` makes the reason of."""
        if not self._rest:
            return True
        while self._rest:
            try:
                self._call(self._send_what_fits)
            except BlockingIOError:
                if not self._wait(select.POLLOUT, self._stream.wait_writable, until):
                    return False
            except OSError as error:
                raise Broken(self._stream, error) from None
        self._link.mid_frame = False
        return True

    # --- how

    def _receive_what_is_there(self, buffer: memoryview) -> int:
        """Of the DATA frame at hand; how many bytes. Raises BlockingIOError where there are none."""
        size = 0
        try:
            while size < len(buffer) and self._link.machine.data_left:
                size += self._link.try_receive_past(buffer[size:])
        except BlockingIOError:
            if not size:
                raise
        return size

    def _send_what_fits(self) -> None:
        """Raises BlockingIOError where some is left, OSError."""
        while self._rest:
            self._rest = past(self._rest, self._stream.try_send_parts(self._rest))

    def _call(self, function: Callable[..., T], *arguments: object) -> T:
        return function(*arguments) if self._direct else trio.from_thread.run_sync(function, *arguments)

    def _wait(self, events: int, wait: Callable[[], Awaitable[None]], until: float) -> bool:
        left = until - time.monotonic()
        if left <= 0:
            return False
        if not self._direct:
            return trio.from_thread.run(_in_time, wait, left)
        assert self._stream.sock is not None
        poll = select.poll()
        poll.register(self._stream.sock, events)  # ValueError where it is closed, which nobody does meanwhile
        return bool(poll.poll(left * 1000))


async def _in_time(wait: Callable[[], Awaitable[None]], seconds: float) -> bool:
    with trio.move_on_after(seconds):
        await wait()
        return True
    return False


def body_event(event: StreamEvent) -> BodyEvent:
    """An event of a stream that is open."""
    if isinstance(event, Requested | Accepted):  # the tables have no row for these in a body
        raise LocalProtocolError("a body was received before its stream was open")
    assert not isinstance(event, Refused | WasReset)  # the link raised what they stand for
    return event


def of_another_length() -> PeerBrokeProtocol:
    return PeerBrokeProtocol("the peer announced bytes of another length than it sent")
