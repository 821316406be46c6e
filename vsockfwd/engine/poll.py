"""Many sockets watched by one task: an epoll of our own inside trio's.

A task for each socket costs 60 µs to start and end, 15 for each wait, and 8 KiB while it lives; a callback costs none
of it. So what is plain enough to be written as callbacks (a relay's common case, a datagram's flow) is, and everything
else stays a task. epoll(7).
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable

import trio

ARRIVALS = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
"""What there is to know of a socket that is read until it is empty: bytes, an end, a failure, each told once."""

ROOM = select.EPOLLOUT
"""… and that it takes bytes again."""

ENDED = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
"""The events after which no further one need come, so that the end itself must be looked for."""

BATCH = 64
"""Sockets served in one go; the kernel hands them out in turn."""

BATCHES = 8
"""Batches in a row after which the process's other tasks have their turn."""


class Poll:
    """Calls back when a socket has something to tell. Callbacks never wait and never raise.

    `batches`: how many of BATCH in a row before other tasks have their turn.
    """

    def __init__(self, batches: int = BATCHES) -> None:
        self._batches = batches
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[int], None]] = {}
        self._again: list[Callable[[], None]] = []

    def add(self, sock: socket.socket, tell: Callable[[int], None], events: int) -> None:
        """Call `tell` with the events that happened; what is there already is told as well. Raises OSError."""
        fd = sock.fileno()
        self._epoll.register(fd, events)
        self._watched[fd] = tell

    def change(self, sock: socket.socket, events: int) -> None:
        """Watch for other events; what is there already is told as well."""
        self._epoll.modify(sock.fileno(), events)

    def forget(self, sock: socket.socket) -> None:
        """Watch a socket no more. It may be closed afterwards, not before."""
        if self._watched.pop(sock.fileno(), None) is not None:
            self._epoll.unregister(sock.fileno())

    def closing(self, sock: socket.socket) -> None:
        """As `forget`, of a socket that is closed next and was never shared: the kernel forgets it by itself."""
        self._watched.pop(sock.fileno(), None)

    def again(self, call: Callable[[], None]) -> None:
        """Call once more when the others have had their turn."""
        self._again.append(call)

    def close(self) -> None:
        """Watch nothing any more; the sockets are their owners' to close."""
        self._watched.clear()
        self._again.clear()
        self._epoll.close()

    async def run(self) -> None:
        """Tell what happens, until cancelled."""
        poll, fd, watched = self._epoll.poll, self._epoll.fileno(), self._watched
        while True:
            if self._again:
                await trio.lowlevel.checkpoint()
            else:
                await trio.lowlevel.wait_readable(fd)
            for _ in range(self._batches):
                happened = poll(0, BATCH)
                for number, events in happened:
                    if (tell := watched.get(number)) is not None:  # a callback before may have ended this one
                        tell(events)
                waiting, self._again = self._again, []
                for call in waiting:
                    call()
                if not happened and not self._again:
                    break
