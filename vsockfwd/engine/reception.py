"""What was accepted and has not said yet what it wants: asked without a task, since what asks for a stream mostly needs
none.

The thing to understand first: only a plain request for a stream is taken here. Whatever else it is, a login, garbage, a
greeting that comes late, a task hears from its first byte on, so there is one place where it is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from vsockfwd.engine.control_link import HANDSHAKE_DEADLINE
from vsockfwd.engine.link import Link
from vsockfwd.engine.poll import ARRIVALS
from vsockfwd.engine.relays import Relays
from vsockfwd.errors import VsockfwdError
from vsockfwd.transport.base import SocketStream, Stream
from vsockfwd.wire.frames import CLIENT_PREFACE, HANDSHAKE_LIMIT, HEADER, HEADER_LENGTH, PREFACE_LENGTH, FrameType
from vsockfwd.wire.machine import Role
from vsockfwd.wire.stream import Requested, StreamMachine

if TYPE_CHECKING:
    from vsockfwd.engine.agent import Agent

GREETING = PREFACE_LENGTH + HEADER_LENGTH + HANDSHAKE_LIMIT
"""Bytes of the longest greeting."""

_FIRST = PREFACE_LENGTH + HEADER_LENGTH
"""Bytes by which the first frame is known."""


class Reception:
    """Takes what was accepted, and asks what it wants without a task: what asks for a stream mostly needs none."""

    def __init__(self, agent: Agent, relays: Relays) -> None:
        self.agent = agent
        self.relays = relays
        self.greetings = relays.deadlines(HANDSHAKE_DEADLINE)
        self.buffer = memoryview(bytearray(GREETING))

    def take(self, stream: Stream, leave: Callable[[], None]) -> bool:
        """For a server's accept loop."""
        if not isinstance(stream, SocketStream):
            return False
        _Greeting(self, stream, leave).begin()
        return True


class _Greeting:
    """A connection that has not said yet what it wants. Whatever is not a plain request for a stream, a task hears."""

    __slots__ = ("_began", "_deadline", "_leave", "_over", "_reception", "_seen", "_stream")

    def __init__(self, reception: Reception, stream: SocketStream, leave: Callable[[], None]) -> None:
        self._reception = reception
        self._stream = stream
        self._leave = leave
        self._seen = b""
        self._over = False

    def begin(self) -> None:
        self._began = trio.current_time()
        self._reception.relays.poll.add(self._stream.sock, self._heard, ARRIVALS)  # which may fail
        self._deadline = self._reception.greetings.add(self._in_task)
        self._reception.relays.waiting[self] = self._turned_out
        self._reception.agent.meet(self, self._turned_out)

    def _heard(self, _: int) -> None:
        if self._over:
            return  # until it is joined
        try:
            size = self._stream.try_receive_into(self._reception.buffer)
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if not size:
            self._turned_out()
            return
        seen = self._seen = self._seen + self._reception.buffer[:size]
        if len(seen) < _FIRST and CLIENT_PREFACE.startswith(seen[:PREFACE_LENGTH]):
            self._reception.relays.poll.change(self._stream.sock, ARRIVALS)
            return
        if not seen.startswith(CLIENT_PREFACE) or seen[PREFACE_LENGTH] != FrameType.OPEN:
            self._in_task()
            return
        length = HEADER.unpack_from(seen, PREFACE_LENGTH)[3]
        if length <= HANDSHAKE_LIMIT and len(seen) < _FIRST + length:
            self._reception.relays.poll.change(self._stream.sock, ARRIVALS)
            return
        link = Link(self._stream, StreamMachine(Role.AGENT), self._reception.agent.engine.buffers)
        link.feed(seen)
        try:
            event = link.try_next()
        except VsockfwdError:
            event = None
        if not isinstance(event, Requested):
            self._in_task()
            return
        self._known()
        self._reception.agent.begin_stream(link, event.request, self._reception.relays, self._leave)

    def _known(self) -> None:
        self._over = True
        self._reception.relays.waiting.pop(self, None)
        self._reception.greetings.call_off(self._deadline)
        self._reception.agent.know(self)

    def _in_task(self) -> None:
        self._known()
        self._reception.relays.poll.forget(self._stream.sock)
        left = max(0.0, self._began + HANDSHAKE_DEADLINE - trio.current_time())
        handle = functools.partial(self._reception.agent.handle, seen=self._seen, left=left)
        self._reception.relays.serve(handle, self._stream, self._leave)

    def _turned_out(self) -> None:
        self._known()
        self._reception.relays.poll.closing(self._stream.sock)
        self._stream.close()
        self._leave()
