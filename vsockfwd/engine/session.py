"""A client's session with an agent: one control connection, and a connection of its own for every stream.

The thing to understand first: a session outlives its control connection. When that is lost, or the agent answers that
it does not know the token any more, the next request logs in again and asks once more, by itself.
"""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import AsyncIterator, Callable
from typing import NoReturn, TypeVar

import msgspec
import trio

from vsockfwd.address import Address
from vsockfwd.contract import package_of
from vsockfwd.engine import Engine
from vsockfwd.engine.control_link import HANDSHAKE_DEADLINE, SOFTWARE, ControlLink
from vsockfwd.engine.incoming import Handle, RemoteListener
from vsockfwd.engine.link import Link
from vsockfwd.errors import (
    BadRequest,
    Gone,
    LocalProtocolError,
    NoSuchMode,
    PeerBrokeProtocol,
    ShuttingDown,
    TimedOut,
    VersionMismatch,
    VsockfwdError,
    the_one,
)
from vsockfwd.events import SessionDown, SessionUp
from vsockfwd.wire.control import Announced, ControlEvent, ControlMachine, Denied, Greeted, ListenGranted, Welcomed
from vsockfwd.wire.control import Refused as LoginRefused
from vsockfwd.wire.frames import VERSIONS
from vsockfwd.wire.machine import Role
from vsockfwd.wire.messages import LISTEN, Fetch, Hello, Listen, Open, Ready, decode, encode
from vsockfwd.wire.stream import Accepted, Refused, StreamMachine

R = TypeVar("R", bound=msgspec.Struct)

ANSWER_DEADLINE = 30.0
"""Seconds for an agent to answer OPEN or LISTEN: it may have to resolve and dial first."""


class Session:
    """What `open_session` gives: requests to one agent."""

    def __init__(self, engine: Engine, target: Address, nursery: trio.Nursery) -> None:
        self.engine = engine
        self.target = target
        self._nursery = nursery
        self._logging_in = trio.Lock()
        self._attempt = 0
        self._failure: VsockfwdError | None = None
        self._control: ControlLink | None = None
        self._ready: Ready | None = None
        self._links: weakref.WeakSet[Link] = weakref.WeakSet()
        self._pings = itertools.count()
        self._came_up, self._lost = trio.Event(), trio.Event()
        self._why: VsockfwdError | None = None
        self.software = ""
        """What the agent says it is, once it was logged in to."""
        self.opened = 0
        """Streams that were opened, in all."""
        self._remote_listeners: dict[int, RemoteListener] = {}
        self._numbers = itertools.count()

    @property
    def name(self) -> str:
        return self.target.bare()

    async def login(self) -> Ready:
        """Be logged in; a live session is kept. Raises why it cannot be.

        Those who waited while an attempt failed share its error: a target that takes seconds to fail is asked once.
        """
        attempt = self._attempt
        async with self._logging_in:
            if self._ready is None:
                if attempt != self._attempt and self._failure is not None:
                    raise self._failure
                self._attempt += 1
                try:
                    control, self._ready = await self._log_in()
                except VsockfwdError as error:
                    self._failure = error
                    raise
                self._control = control
                self._failure = None
                self._came_up.set()
                self.engine.report(SessionUp(self.name, self._ready.seen_as))
                self._nursery.start_soon(self._keep, control)
            return self._ready

    async def _log_in(self) -> tuple[ControlLink, Ready]:
        stream = await self.engine.network.connect(self.target, privileged=True)
        machine = ControlMachine(Role.CLIENT)
        control = ControlLink(stream, machine, self.engine.buffers)
        try:
            with trio.fail_after(HANDSHAKE_DEADLINE):
                await control.write(machine.hello(Hello(VERSIONS, SOFTWARE)))
                while True:
                    event = await control.next()
                    if isinstance(event, Welcomed):
                        return control, event.ready
                    if isinstance(event, LoginRefused):
                        raise event.error
                    if not isinstance(event, Greeted):
                        raise PeerBrokeProtocol("the agent sent something else than its welcome")
                    self.software = event.hello.software
        except trio.TooSlowError:
            control.close()
            raise TimedOut(
                f"{self.name}: connected, but nothing answers",
                hint="is it a vsockfwd agent that listens there, and does it live?",
            ) from None
        except EOFError:
            control.close()
            raise PeerBrokeProtocol(f"{self.name}: the agent closed the connection before its welcome") from None
        except VsockfwdError as error:
            control.close()
            raise error.within(self.name) from None
        except BaseException:
            control.close()
            raise

    async def _keep(self, control: ControlLink) -> None:
        """Keep the control connection alive until it is lost."""
        try:
            await control.live(self._hear)
        except VsockfwdError as reason:
            for listener in self._remote_listeners.values():
                if listener.control is control:
                    listener.end(reason.within(f"{self.name}: session lost"))
            if self._control is control:
                self._why = reason
                self._forget()
                self.engine.report(SessionDown(self.name, reason.message))
            if isinstance(reason, TimedOut) and not isinstance(reason, ShuttingDown):
                # Silence: no end will come on the streams either. Where the agent said or showed that it is gone,
                # its streams tell their own end, and may have been complete.
                for link in list(self._links):
                    link.abandon(reason)
        finally:
            control.close()

    def _forget(self) -> None:
        self._control = self._ready = None
        self._lost.set()
        self._came_up, self._lost = trio.Event(), trio.Event()

    async def came_up(self) -> None:
        """Wait until there is a live session, whoever logs in."""
        await self._came_up.wait()

    async def lost(self) -> VsockfwdError:
        """Wait until the session is lost; returns why."""
        if self._control is not None:
            await self._lost.wait()
        return self._why or Gone("the session was lost")

    def _hear(self, event: ControlEvent) -> None:
        """Take what the control connection brought. Raises PeerBrokeProtocol."""
        assert isinstance(event, ListenGranted | Announced | Denied)  # the tables have no row for others
        listener = self._remote_listeners.get(event.id)
        if listener is None:
            return  # we have stopped, and it had not heard of that yet
        match event:
            case ListenGranted(_, bound):
                listener.granted(bound)
            case Announced(_, ticket, peer):
                self._nursery.start_soon(listener.serve, listener.announced(ticket, peer))
            case Denied(error=error):
                listener.end(error.within(self.name))

    async def listen(
        self, address: Address | str, lease: bytes, handle: Handle, listening: Callable[[str], None]
    ) -> NoReturn:
        """Have the agent listen, and hand each connection that comes in there to `handle`, in a task of its own.

        `lease`: 16 random bytes. Who asks again with the same takes the listener over from its earlier self, with
        those who wait at it: keep it for as long as the listener is wanted. `listening` is called with each address
        that the agent bound, once it is known. What `handle` raises before it fetches is the denial; after that it is
        reported. It fetches or denies: what it does neither with is denied when it returns.

        Runs until cancelled, which ends the handlers too. Raises what the agent answered, or why the session was lost;
        connections that were fetched then go on until they hear their own end.
        """
        ready = await self.login()
        control = self._control
        if control is None:
            raise Gone(f"{self.name}: the session was lost")
        if LISTEN not in ready.modes:
            raise NoSuchMode(
                f"{self.name}: the agent does not listen for its clients",
                hint="install a later vsockfwd where the agent runs, and start it again",
            )
        number = next(self._numbers)

        async def fetch(ticket: bytes) -> Link:
            return (await self._ask(ready, LISTEN, Fetch(number, ticket), (1,))).channel

        listener = RemoteListener(control, number, handle, fetch, self.engine.report)
        try:
            asking = control.machine.listen(Listen(number, str(address), lease))
        except LocalProtocolError as error:
            raise BadRequest(f"{self.name}: {error}") from None
        self._remote_listeners[number] = listener
        try:
            control.post(asking)
            with trio.fail_after(ANSWER_DEADLINE):
                bound = await listener.bound()
            for where in bound:
                listening(where)
            await listener.over()
        except trio.TooSlowError:
            raise TimedOut(f"{self.name}: no answer to a request within {ANSWER_DEADLINE:g} s") from None
        finally:
            del self._remote_listeners[number]
            listener.stop()

    async def open(
        self, mode: str, arguments: msgspec.Struct | None = None, *, versions: tuple[int, ...] = (1,)
    ) -> Opened:
        """Ask for a stream. Raises what the agent answered, or why it could not be asked."""
        for last in (False, True):
            ready = await self.login()
            if mode not in ready.modes:
                raise NoSuchMode(
                    f"{self.name}: the agent has no mode {mode!r}",
                    hint=f"install {package_of(mode)} where the agent runs, and start it again",
                )
            try:
                return await self._ask(ready, mode, arguments, versions)
            except Gone:
                if last:
                    raise
                if self._ready is ready:
                    if self._control is not None:
                        self._control.close()
                    self._forget()
        raise AssertionError("unreachable")

    async def _ask(
        self, ready: Ready, mode: str, arguments: msgspec.Struct | None, versions: tuple[int, ...]
    ) -> Opened:
        request = Open(ready.token, mode, versions, msgspec.Raw(encode(arguments)))
        machine = StreamMachine(Role.CLIENT, ready.frame)
        try:
            asking = machine.open(request)
        except LocalProtocolError as error:
            raise BadRequest(f"{self.name}: {error}") from None
        link = Link(await self.engine.network.connect(self.target), machine, self.engine.buffers)
        try:
            with trio.fail_after(ANSWER_DEADLINE):
                await link.write(asking)
                answer = await link.next()
            if isinstance(answer, Refused):
                raise answer.error
            if not isinstance(answer, Accepted):
                raise PeerBrokeProtocol(f"{self.name}: the agent sent something else than its answer")
            if answer.answer.version not in versions:
                raise VersionMismatch(f"{self.name}: the agent chose version {answer.answer.version} of {mode}")
        except trio.TooSlowError:
            link.close()
            raise TimedOut(f"{self.name}: no answer to a request within {ANSWER_DEADLINE:g} s") from None
        except EOFError:
            link.close()
            raise PeerBrokeProtocol(f"{self.name}: the agent closed the stream before its answer") from None
        except VsockfwdError as error:
            link.close()
            raise error.within(self.name) from None
        except BaseException:
            link.close()
            raise
        self._links.add(link)
        self.opened += 1
        return Opened(link, answer.answer.reply)

    async def ping(self) -> float:
        """Seconds of one round trip over the control connection."""
        await self.login()
        control = self._control
        if control is None:
            raise Gone(f"{self.name}: the session was lost")
        return await control.ping(b"%d" % next(self._pings))

    def leave(self) -> None:
        """Say goodbye as far as that can be done without waiting."""
        if self._control is not None:
            self._control.leave(ShuttingDown("the client is done"))
        self._forget()


class Opened:
    """An open stream of a mode: the channel and the agent's reply."""

    __slots__ = ("_reply", "channel")

    def __init__(self, channel: Link, reply: msgspec.Raw) -> None:
        self.channel = channel
        self._reply = reply

    def reply(self, kind: type[R]) -> R:
        """The agent's reply, decoded and checked. Raises PeerBrokeProtocol."""
        return decode(self._reply, kind, "reply")


@contextlib.asynccontextmanager
async def open_session(engine: Engine, target: Address) -> AsyncIterator[Session]:
    """Log in to the agent at `target` for the length of a block. Raises why that failed."""
    try:
        async with trio.open_nursery() as nursery:
            session = Session(engine, target, nursery)
            await session.login()
            try:
                yield session
            finally:
                session.leave()
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise the_one(group) from None
