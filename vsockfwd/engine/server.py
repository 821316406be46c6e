"""Accept loops: a cap that pauses instead of refusing, failures that stay where they happened, no spin on EMFILE.

A listener's loop never awaits a handler: a dial that takes seconds delays nobody else.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Sequence

import trio

from vsockfwd.errors import from_oserror
from vsockfwd.events import Problem, Report
from vsockfwd.transport.base import Listener, Stream

CAP = 16_000
"""Connections at once, in all: below the descriptors that a process usually may have, two for each."""

BURST = 64
"""Accepts in a row after which those who were accepted get their turn."""

_PAUSES = (0.02, 0.1, 0.5)
"""Seconds to wait for descriptors to come free, longer each time in a row."""

_NOT_OURS = frozenset(
    {
        errno.ECONNABORTED, errno.EPROTO, errno.EINTR, errno.ECONNRESET, errno.ENETDOWN, errno.ENOPROTOOPT,
        errno.EHOSTDOWN, errno.ENONET, errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH, errno.EPERM,
    }
)  # fmt: skip
"""Errors of a connection that died before it was accepted, or that a firewall forbade: accept(2) says to go on."""

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})

Handler = Callable[[Stream], Awaitable[None]]

AtOnce = Callable[[Stream, Callable[[], None]], bool]
"""Takes a connection without a task of its own, and calls what it was given when the connection has ended; or, with
False, leaves it to the handler."""

Take = Callable[[Stream], None]
"""Makes a connection its own, at once and without raising."""


class Gate:
    """Counts connections, and lets an accept loop wait while there are too many, here or in all (`within`)."""

    def __init__(self, cap: int = CAP, within: Gate | None = None) -> None:
        self.cap = cap
        self.now = 0
        self._within = within
        self._left = trio.lowlevel.ParkingLot()

    @property
    def full(self) -> bool:
        return self.now >= self.cap or (self._within is not None and self._within.full)

    async def wait_for_room(self) -> None:
        while self.full:
            await (self if self.now >= self.cap or self._within is None else self._within)._left.park()

    async def empty(self) -> None:
        """Wait until nobody is inside."""
        while self.now:
            await self._left.park()

    def enter(self) -> None:
        self.now += 1
        if self._within is not None:
            self._within.enter()

    def leave(self) -> None:
        self.now -= 1
        if self._left:
            self._left.unpark()
        if self._within is not None:
            self._within.leave()


async def serve_listeners(
    listeners: Sequence[Listener],
    handler: Handler,
    report: Report,
    gate: Gate | None = None,
    at_once: AtOnce | None = None,
    stopping: trio.Event | None = None,
) -> None:
    """Accept on every listener, each connection handled in a task of its own, until cancelled.

    The listeners are closed first then, while handlers may still have last words: who dials again must not end up in
    the backlog of what is about to go. What `at_once` takes needs no task. Once `stopping` is set no more are accepted,
    and it returns when all have ended.

    A handler that raises ends its connection alone: the error is reported, with a traceback where it is not one of
    ours. The handler owns its stream; what it leaves open is closed.
    """
    gate = gate or Gate()

    def take(stream: Stream) -> None:
        try:
            if at_once is not None and stream.settled and at_once(stream, gate.leave):
                return
        except Exception as caught:  # noqa: BLE001 - as in `contain`
            report(Problem.of(stream.name, caught))
            stream.abort()
            gate.leave()
            return
        nursery.start_soon(contain, handler, stream, report, gate.leave)

    async def accept(listener: Listener) -> None:
        try:
            await accept_on(listener, take, report, gate)
        finally:
            listener.close()

    async with trio.open_nursery() as nursery, trio.open_nursery() as accepting:
        for listener in listeners:
            accepting.start_soon(accept, listener)
        if stopping is not None:
            await stopping.wait()
            accepting.cancel_scope.cancel()
    await gate.empty()


async def accept_on(listener: Listener, take: Take, report: Report, gate: Gate) -> None:
    """Accept until cancelled, while the gate has room, and enter each connection there: who took it says when it left.

    The listener stays open. Raises why accepting is no longer possible.
    """
    burst = failures = 0
    while True:
        if gate.full:
            await gate.wait_for_room()
        try:
            stream = listener.try_accept()
        except BlockingIOError:
            burst = 0
            await listener.wait()
            continue
        except OSError as error:
            if error.errno in _NOT_OURS:
                await trio.lowlevel.checkpoint()
                continue
            if error.errno not in _EXHAUSTED:
                raise from_oserror(error, f"accept on {listener.address}") from None
            if not failures:
                report(Problem(str(listener.address), from_oserror(error, "accept").message))
            await trio.sleep(_PAUSES[min(failures, len(_PAUSES) - 1)])
            failures += 1
            continue
        failures = 0
        gate.enter()
        take(stream)
        burst += 1
        if burst >= BURST:
            burst = 0
            await trio.lowlevel.checkpoint()


async def contain(handler: Handler, stream: Stream, report: Report, leave: Callable[[], None]) -> None:
    """Run a handler so that its failure is its own. A stream that was not served to its end is aborted, not ended.

    `leave`: of the gate that the connection has entered.
    """
    try:
        await stream.settle()
        await handler(stream)
        stream.close()
    except Exception as caught:  # noqa: BLE001 - a bug in one connection's handling must not end the others
        report(Problem.of(stream.name, caught))
    finally:
        stream.abort()
        leave()
