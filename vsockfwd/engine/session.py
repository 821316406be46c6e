"""A client's session with an agent: one control connection, and a connection of its own for every stream.

The thing to understand first: a session outlives its control connection. When that is lost, or the agent answers that
it does not know the token any more, the next request logs in again and asks once more, by itself.
"""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import AsyncIterator
from typing import TypeVar

import msgspec
import trio

from vsockfwd.address import Address
from vsockfwd.contract import package_of
from vsockfwd.engine import Engine
from vsockfwd.engine.link import HANDSHAKE_DEADLINE, SOFTWARE, ControlLink, Link
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
from vsockfwd.wire.control import ControlMachine, Greeted, Welcomed
from vsockfwd.wire.control import Refused as LoginRefused
from vsockfwd.wire.frames import VERSIONS
from vsockfwd.wire.machine import Role
from vsockfwd.wire.messages import Hello, Open, Ready, decode, encode
from vsockfwd.wire.stream import Accepted, Refused, StreamMachine

R = TypeVar("R", bound=msgspec.Struct)

ANSWER_DEADLINE = 30.0
"""Seconds for an agent to answer OPEN: it may have to resolve and dial first."""


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
        self._lost = trio.Event()
        self._why: VsockfwdError | None = None
        self.opened = 0
        """Streams that were opened, in all."""

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
            # Shielded: streams that are cancelled as well have their last words first. `leave` ends it.
            with trio.CancelScope(shield=True):
                await control.live()
        except VsockfwdError as reason:
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
        self._lost = trio.Event()

    async def lost(self) -> VsockfwdError:
        """Wait until the session is lost; returns why."""
        if self._control is not None:
            await self._lost.wait()
        return self._why or Gone("the session was lost")

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
            with contextlib.suppress(OSError, LocalProtocolError):
                self._control.stream.try_send(self._control.machine.bye(ShuttingDown("the client is done")))
            self._control.close()
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
