"""Any number of relays without a task for any, as callbacks over an epoll of our own (engine/poll.py).

The thing to understand first: a relay is two directions that step and never wait (engine/pump.py), so who calls them
when a socket has something to tell is all there is to it. What needs a clock, which an unclean end does, goes on in
tasks from where it stands.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

import trio

from vsockfwd.engine.framed import Framed
from vsockfwd.engine.link import Link
from vsockfwd.engine.poll import ARRIVALS, ENDED, ROOM, Deadlines, Poll
from vsockfwd.engine.pump import Broken, BufferPool, Needs
from vsockfwd.engine.relay import Direction, Plain, Then
from vsockfwd.engine.server import Handler, contain
from vsockfwd.errors import VsockfwdError, from_oserror
from vsockfwd.events import Ending, Outcome, Problem, Report
from vsockfwd.transport.base import Dial, SocketStream, Stream

DIAL_PATIENCE = 5.0
"""Seconds that a dial may take without a task; then one dials anew, and waits as long as the address says."""

ANSWER_DEADLINE = 30.0
"""Seconds for an agent to answer OPEN or LISTEN: it may have to resolve and dial first."""


class Relay(Protocol):
    """What Plain and Framed have in common."""

    near: Stream
    far: Stream

    @property
    def likely(self) -> Sequence[Direction]:
        """The directions in which something is likely to have come, or was received, before it began."""
        ...

    @property
    def forth(self) -> Direction: ...
    @property
    def back(self) -> Direction: ...
    @property
    def sent(self) -> int: ...
    @property
    def received(self) -> int: ...
    @property
    def clean(self) -> bool: ...
    def told(self, tell: Callable[[], None]) -> None: ...
    def ended(self, pump: Any) -> Then: ...
    def failed(self, pump: Any, error: Broken | VsockfwdError) -> Then: ...
    def stop(self) -> None: ...
    def broke(self, why: str) -> None: ...
    def finish(self) -> Outcome: ...
    async def run(self, idle: float, half_open: float) -> Outcome: ...


Over = Callable[[Outcome], None]
"""Called when a relay is over, however that came."""


class Relays:
    """Any number of relays, as callbacks where they can be. A context: what still runs when it is left is aborted."""

    def __init__(
        self,
        buffers: BufferPool,
        report: Report,
        *,
        live: set[Any] | None = None,
        idle: float = 0.0,
        half_open: float = 0.0,
    ) -> None:
        """`live` holds the relays that run, each with `sent` and `received`; `idle` and `half_open` as in `relay`."""
        self.live = set() if live is None else live
        self.poll = Poll()
        self.waiting: dict[object, Callable[[], None]] = {}
        """What waits here without a task and is no relay yet, and how to let go of it when this is left."""
        self._buffers = buffers
        self._report = report
        self._idle = idle
        self._half_open = half_open
        self._watched: dict[Relay, _Watched] = {}
        self._manager = trio.open_nursery()

    async def __aenter__(self) -> Self:
        self._nursery = await self._manager.__aenter__()
        self._nursery.start_soon(self.poll.run)
        self.answers = self.deadlines(ANSWER_DEADLINE)
        """For who waits for a peer's answer without a task."""
        self._dials = self.deadlines(DIAL_PATIENCE)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        # What needs no task first: nothing may happen to it any more when there is nobody left to start one.
        for watched in list(self._watched.values()):
            watched.stop()
        for let_go in list(self.waiting.values()):
            let_go()
        self.poll.close()
        self._nursery.cancel_scope.cancel()
        return await self._manager.__aexit__(kind, error, trace)

    def deadlines(self, seconds: float) -> Deadlines:
        """Deadlines that are kept as long as the context."""
        made = Deadlines(seconds)
        self._nursery.start_soon(made.run)
        return made

    def serve(self, handler: Handler, stream: Stream, leave: Callable[[], None]) -> None:
        """Serve a connection in a task after all: see engine/server.py's `contain`."""
        self.waiting.pop(stream, None)
        self._nursery.start_soon(contain, handler, stream, self._report, leave)

    def dialled(self, far: Stream | Dial, reached: Callable[[Stream], None], otherwise: Callable[[], None]) -> None:
        """Go on with a stream when its dial has been answered; `otherwise` where it failed, or took too long."""
        if not isinstance(far, Dial):
            reached(far)
            return
        dial = far

        def answered(_: int) -> None:
            del self.waiting[dial]
            self._dials.call_off(deadline)
            self.poll.forget(dial.sock)
            try:
                stream = dial.stream()
            except OSError:
                otherwise()
            else:
                reached(stream)

        def late() -> None:
            del self.waiting[dial]
            self.poll.closing(dial.sock)
            dial.sock.close()
            otherwise()

        try:
            self.poll.add(dial.sock, answered, ROOM)
        except OSError:
            dial.sock.close()
            otherwise()
            return
        self.waiting[dial] = dial.sock.close
        deadline = self._dials.add(late)

    def begin(self, near: Stream, far: Stream, ended: Over) -> None:
        """Join two streams as `relay` does, at once."""
        self._begin(Plain(near, far, self._buffers), far.features.half_close, ended)

    def join(self, link: Link, neighbour: Stream, ended: Over, *, dialled: bool = False) -> Framed:
        """Join a link and a stream as the link's own `relay` does, at once."""
        framed = Framed(link, neighbour, dialled=dialled)
        self._begin(framed, True, ended)
        return framed

    def cut(self, framed: Framed, reason: VsockfwdError) -> None:
        """End a relay, and tell its peer why."""
        framed.cut(reason)
        if (watched := self._watched.get(framed)) is not None:
            watched.go_on_in_tasks()

    def _begin(self, relay: Relay, may_be_watched: bool, ended: Over) -> None:
        self.live.add(relay)
        near, far = relay.near, relay.far
        self.waiting.pop(near, None)
        self.waiting.pop(far, None)
        if self._idle or self._half_open:
            may_be_watched = False
        if may_be_watched and isinstance(near, SocketStream) and isinstance(far, SocketStream):
            self._watched[relay] = watched = _Watched(relay, near, far, self, ended)
            watched.begin()
        else:
            for stream in (near, far):
                if stream.sock is not None:
                    self.poll.forget(stream.sock)
            self._nursery.start_soon(self._in_tasks, relay, ended)

    async def _in_tasks(self, relay: Relay, ended: Over) -> None:
        outcome = Outcome(Ending.STOPPED)
        try:
            outcome = await relay.run(self._idle, self._half_open)
        except Exception as bug:  # noqa: BLE001 - it must not end the others
            problem = Problem.of(relay.near.name, bug)
            self._report(problem)
            outcome = Outcome(Ending.FAILED, "", problem.why)
        finally:
            self.live.discard(relay)
            ended(outcome)


# Names of their own, see engine/pump.py.
_BYTES, _ROOM, _TURN, _NOTHING = Needs
_ON, _OVER, _TASKS = Then


class _Watched:
    """A relay of two sockets as callbacks. What raises in them ends this relay alone."""

    __slots__ = ("_ended", "_far", "_group", "_left", "_near", "_poll", "_polled", "_roomy", "relay")

    def __init__(self, relay: Relay, near: SocketStream, far: SocketStream, group: Relays, ended: Over) -> None:
        self.relay = relay
        self._near = near.sock
        self._far = far.sock
        self._group = group
        self._poll = group.poll
        self._ended = ended
        self._polled = False
        """Whether the poll calls back; before, it need not be asked to."""
        self._left = False
        """Whether it is over, or goes on in tasks."""
        self._roomy: tuple[Stream, ...] = ()
        """The streams that tell when they have room."""

    def begin(self) -> None:
        """Move what is there before the sockets are watched: whoever is watched anew is told of the rest anyway."""
        relay = self.relay
        relay.told(self._back_told)
        for pump in relay.likely:
            self._step(pump)
        if self._left:
            return
        self._polled = True
        try:
            self._poll.add(self._near, self._near_told, self._events(relay.near))
            self._poll.add(self._far, self._far_told, self._events(relay.far))
        except OSError as error:  # this user watches as much as the kernel lets anyone (epoll(7))
            relay.broke(from_oserror(error, "watching it").message)
            self._over()

    def _back_told(self) -> None:
        self._step(self.relay.back)

    def _near_told(self, events: int) -> None:
        if events & ROOM:
            self._step(self.relay.back)
        if events & ~ROOM:
            self._step(self.relay.forth, events)

    def _far_told(self, events: int) -> None:
        if events & ROOM:
            self._step(self.relay.forth)
        if events & ~ROOM:
            self._step(self.relay.back, events)

    def _step(self, pump: Direction, events: int = 0) -> None:
        """`events`: of the direction's source. Its end needs no asking for: what comes next is it, or leads to it."""
        if self._left:
            return
        try:
            needs = pump.step()
            if needs is _BYTES and events & ENDED:
                needs = pump.step()
            if needs is _BYTES:
                self._ask(pump.source)
                return
            if needs is _NOTHING:
                then = self.relay.ended(pump)
            elif needs is _ROOM:
                self._watch_room(pump.sink)
                return
            else:
                self._poll.again(functools.partial(self._step, pump))
                return
        except (Broken, VsockfwdError) as error:
            then = self.relay.failed(pump, error)
        except Exception as bug:  # noqa: BLE001 - it must not end the others
            problem = Problem.of(self.relay.near.name, bug)
            self._group._report(problem)
            self.relay.broke(problem.why)
            then = _OVER
        if then is _OVER:
            self._over()
        elif then is _TASKS:
            self.go_on_in_tasks()

    def _ask(self, stream: Stream) -> None:
        """Have it told if there is more: cheaper than to receive in vain, and what lies behind an out-of-band byte or a
        passed descriptor, where a receive stops, is not forgotten."""
        if self._polled:
            self._poll.change(self._near if stream is self.relay.near else self._far, self._events(stream))

    def _events(self, stream: Stream) -> int:
        return ARRIVALS | ROOM if stream in self._roomy else ARRIVALS

    def _watch_room(self, sink: Stream) -> None:
        """From the first time that a socket was full on it is told whenever it has room again: that costs nothing."""
        if sink not in self._roomy:
            self._roomy += (sink,)
            self._ask(sink)

    def stop(self) -> None:
        self.relay.stop()
        self._over()

    def _over(self) -> None:
        self._leave()
        self._group.live.discard(self.relay)
        self._poll.closing(self._near)
        self._poll.closing(self._far)
        self._ended(self.relay.finish())

    def go_on_in_tasks(self) -> None:
        self._leave()
        self._poll.forget(self._near)
        self._poll.forget(self._far)
        self._group._nursery.start_soon(self._group._in_tasks, self.relay, self._ended)

    def _leave(self) -> None:
        self._left = True
        del self._group._watched[self.relay]
