"""Many sockets watched without a task for each: an epoll of our own, with trio's inside it. epoll(7).

A task for each socket costs 60 µs to start and end, 15 for each wait, and 8 KiB while it lives; a callback costs none
of it. So what is plain enough to be written as callbacks (a relay's common case, a datagram's flow) is, and everything
else stays a task.

The thing to understand first: trio tells when it is about to wait (Instrument.before_io_wait), and waits in an epoll
that is a descriptor like any other. So instead of trio waiting for ours in a task, which costs 20 µs for each time that
something happens, we wait for all of it, trio's epoll among our sockets, and serve callbacks until that one has
something, or trio's time is up, or a callback has woken a task. Where trio's epoll cannot be found (no /proc), a task
waits for ours.
"""

from __future__ import annotations

import os
import re
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path

import trio

ARRIVALS = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
"""What there is to know of a socket that is read until it is empty: bytes, an end, a failure, each told once."""

ROOM = select.EPOLLOUT
"""… and that it takes bytes again."""

ENDED = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
"""The events after which no further one need come, so that the end itself must be looked for."""

BATCH = 64
"""Sockets served in one go; the kernel hands them out in turn."""

Tell = Callable[[int], None]


class _Loop(trio.abc.Instrument):
    """What all the Polls of one trio run share."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.watched: dict[int, Tell] = {}
        self.again: list[Callable[[], None]] = []
        self.users = 0
        self.failed = trio.Event()
        self.failure: BaseException | None = None
        self._trios = -1
        self._woken = False
        self._settled = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        trio.lowlevel.add_instrument(self)
        trio.lowlevel.spawn_system_task(self._settle)

    async def _settle(self) -> None:
        """Take trio's epoll in; where there is none to be found, wait for ours in a task."""
        found = await _trios_epoll()
        if self.epoll.closed:
            return
        if found is not None:
            self.epoll.register(found, select.EPOLLIN)
            self._trios = found
            return
        try:
            while not self.epoll.closed:
                if self.again:
                    await trio.lowlevel.checkpoint()
                else:
                    await trio.lowlevel.wait_readable(self.epoll.fileno())
                self._turn(0)
        except trio.ClosedResourceError:
            pass
        except Exception as bug:  # noqa: BLE001 - told to those whose callbacks these are
            self._fail(bug)

    # --- trio's instrument

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        self._woken = True

    def before_io_wait(self, timeout: float) -> None:
        if self._trios < 0:
            return
        self._woken = False
        until = time.monotonic() + timeout
        try:
            while not self._turn(timeout):
                timeout = until - time.monotonic() if timeout else 0
                if timeout <= 0 or self._woken:
                    break
            else:
                return
        except BaseException as bug:  # noqa: BLE001 - trio would drop the instrument, and go on without it
            self._fail(bug)
        if self._woken or timeout < 0:
            self._token.run_sync_soon(_nothing)  # trio knows no better than to wait as long as it said

    def _turn(self, timeout: float) -> bool:
        """Wait once, and serve what happened. Returns whether trio is to have its turn."""
        trios_turn = False
        for fd, events in self.epoll.poll(0 if self.again else timeout, BATCH):
            if (tell := self.watched.get(fd)) is not None:  # a callback before may have ended this one
                tell(events)
            elif fd == self._trios:
                trios_turn = True
        if self.again:
            waiting, self.again = self.again, []
            for call in waiting:
                call()
        return trios_turn

    def _fail(self, bug: BaseException) -> None:
        self.failure = bug
        self.failed.set()

    def close(self) -> None:
        trio.lowlevel.remove_instrument(self)
        _LOOP.set(None)
        trio.lowlevel.notify_closing(self.epoll.fileno())
        self.epoll.close()
        self.watched.clear()
        self.again.clear()
        self._trios = -1


_LOOP: trio.lowlevel.RunVar[_Loop | None] = trio.lowlevel.RunVar("loop", None)


def _nothing() -> None:
    pass


async def _trios_epoll() -> int | None:
    """The descriptor of the epoll that trio waits in, or None where it does not show. proc(5): /proc/pid/fdinfo."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.wait_readable, reading)
            for _ in range(2):  # until that task waits
                await trio.lowlevel.checkpoint()
            found = _epoll_that_watches(reading)
            nursery.cancel_scope.cancel()
        return found
    finally:
        trio.lowlevel.notify_closing(reading)
        os.close(reading)
        os.close(writing)


def _epoll_that_watches(fd: int) -> int | None:
    watched = re.compile(rf"^tfd:\s+{fd} ", re.MULTILINE)
    try:
        names = os.listdir("/proc/self/fdinfo")
    except OSError:
        return None
    for name in names:
        try:
            if watched.search(Path("/proc/self/fdinfo", name).read_text(errors="replace")):
                return int(name)
        except OSError:
            pass  # the descriptor by which they were listed
    return None


class Poll:
    """Calls back when a socket has something to tell. Callbacks never wait and never raise.

    To be made, and closed, within one trio run.
    """

    def __init__(self) -> None:
        loop = _LOOP.get()
        if loop is None:
            loop = _Loop()
            _LOOP.set(loop)
        loop.users += 1
        self._loop = loop
        self._watched: set[int] = set()
        self._closed = False

    def add(self, sock: socket.socket, tell: Tell, events: int) -> None:
        """Call `tell` with the events that happened; what is there already is told as well. Raises OSError.

        A socket that is watched already tells nobody else any more.
        """
        fd = sock.fileno()
        if fd in self._watched:
            self._loop.epoll.modify(fd, events)
        else:
            self._loop.epoll.register(fd, events)
            self._watched.add(fd)
        self._loop.watched[fd] = tell

    def change(self, sock: socket.socket, events: int) -> None:
        """Watch for other events; what is there already is told as well."""
        self._loop.epoll.modify(sock.fileno(), events)

    def forget(self, sock: socket.socket) -> None:
        """Watch a socket no more. It may be closed afterwards, not before."""
        fd = sock.fileno()
        if fd in self._watched:
            self._loop.epoll.unregister(fd)
            self.closing(sock)

    def closing(self, sock: socket.socket) -> None:
        """As `forget`, of a socket that is closed next and was never shared: the kernel forgets it by itself."""
        fd = sock.fileno()
        if fd in self._watched:
            self._watched.discard(fd)
            del self._loop.watched[fd]

    def again(self, call: Callable[[], None]) -> None:
        """Call once more when the others have had their turn."""
        self._loop.again.append(call)

    def close(self) -> None:
        """Watch nothing any more; the sockets are their owners' to close."""
        if self._closed:
            return
        self._closed = True
        for fd in self._watched:
            del self._loop.watched[fd]
            try:
                self._loop.epoll.unregister(fd)
            except OSError:
                pass  # closed
        self._watched.clear()
        self._loop.users -= 1
        if not self._loop.users:
            self._loop.close()

    async def run(self) -> None:
        """Until cancelled. Raises what a callback raised, which none should."""
        await self._loop.failed.wait()
        assert self._loop.failure is not None
        raise self._loop.failure


class Deadlines:
    """Calls back what was not called off within so many seconds, the same for all, so that a queue will do."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._waiting: dict[object, tuple[float, Callable[[], None]]] = {}
        self._some = trio.lowlevel.ParkingLot()

    def add(self, call: Callable[[], None]) -> object:
        """Call so many seconds from now; returns by what it is called off."""
        key = object()
        self._waiting[key] = (trio.current_time() + self.seconds, call)
        if self._some:
            self._some.unpark()
        return key

    def call_off(self, key: object) -> None:
        """Not to be called any more; nothing where it was."""
        self._waiting.pop(key, None)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            while not self._waiting:
                await self._some.park()
            key, (when, call) = next(iter(self._waiting.items()))
            if when > trio.current_time():
                await trio.sleep_until(when)  # what is called off meanwhile costs one look, later
            else:
                del self._waiting[key]
                call()
