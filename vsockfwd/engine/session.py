"""A client's session with an agent: one control connection, and a connection of its own for every stream.

The thing to understand first: a session outlives its control connection. When that is lost, or the agent answers that
it does not know the token any more, the next request logs in again and asks once more, by itself.
"""

from __future__ import annotations

import contextlib
import itertools
import secrets
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
from vsockfwd.engine.keys import load_key
from vsockfwd.engine.link import Link
from vsockfwd.engine.poll import ARRIVALS
from vsockfwd.engine.relays import ANSWER_DEADLINE, Relays
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
from vsockfwd.transport.base import SocketStream, Stream
from vsockfwd.wire.auth import NONCE_LENGTH
from vsockfwd.wire.control import (
    Announced,
    ControlEvent,
    ControlMachine,
    Denied,
    Greeted,
    ListenGranted,
    Proven,
    Welcomed,
)
from vsockfwd.wire.control import Refused as LoginRefused
from vsockfwd.wire.frames import VERSIONS
from vsockfwd.wire.machine import Role
from vsockfwd.wire.messages import LISTEN, Fetch, Hello, Listen, Open, Ready, decode, encode
from vsockfwd.wire.stream import Accepted, StreamEvent, StreamMachine

R = TypeVar("R", bound=msgspec.Struct)


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
        # Read anew for each login: a key may be replaced while we run.
        path = self.target.option("auth-key", self.engine.auth_key)
        keys = () if path is None else (load_key(path),)
        stream = await self.engine.network.connect(self.target, privileged=True)
        machine = ControlMachine(Role.CLIENT, keys)
        control = ControlLink(stream, machine, self.engine.buffers)
        try:
            with trio.fail_after(HANDSHAKE_DEADLINE):
                nonce = secrets.token_bytes(NONCE_LENGTH) if keys else b""
                await control.write(machine.hello(Hello(VERSIONS, SOFTWARE, nonce=nonce)))
                while True:
                    event = await control.next()
                    if isinstance(event, Welcomed):
                        return control, event.ready
                    if isinstance(event, LoginRefused):
                        raise event.error
                    if isinstance(event, Greeted):
                        self.software = event.hello.software
                    if isinstance(event, Greeted) and keys:
                        await control.write(machine.prove())
                    elif not isinstance(event, Greeted | Proven):
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

    def begin(
        self,
        mode: str,
        arguments: msgspec.Struct | None,
        relays: Relays,
        answered: Callable[[Opened | VsockfwdError], None],
        otherwise: Callable[[], None],
    ) -> bool:
        """Ask for a stream as `open` does, but without a task: it is `answered` later, with what that would raise. The
        channel is to be joined by the same `relays` then, at once.

        False where it takes one, as it does without a live session; `otherwise` is called where that turns out later.
        """
        ready = self._ready
        if ready is None or mode not in ready.modes:
            return False
        try:
            far = self.engine.network.connect_now(self.target)
        except VsockfwdError:
            return False  # with the task's attempt comes the error
        if far is None:
            return False
        asking = _Asking(self, self._request(ready, mode, arguments, (1,)), (1,), relays, answered, otherwise)
        relays.dialled(far, asking.begin, otherwise)
        return True

    def _request(
        self, ready: Ready, mode: str, arguments: msgspec.Struct | None, versions: tuple[int, ...]
    ) -> tuple[StreamMachine, bytes]:
        """A machine, and the bytes by which it asks. Raises BadRequest."""
        machine = StreamMachine(Role.CLIENT, ready.frame)
        try:
            return machine, machine.open(Open(ready.token, mode, versions, msgspec.Raw(encode(arguments))))
        except LocalProtocolError as error:
            raise BadRequest(f"{self.name}: {error}") from None

    async def _ask(
        self, ready: Ready, mode: str, arguments: msgspec.Struct | None, versions: tuple[int, ...]
    ) -> Opened:
        machine, asking = self._request(ready, mode, arguments, versions)
        link = Link(await self.engine.network.connect(self.target), machine, self.engine.buffers)
        try:
            with trio.fail_after(ANSWER_DEADLINE):
                await link.write(asking)
                return self._opened(link, await link.next(), versions)
        except trio.TooSlowError:
            raise self._failed(link, None) from None
        except (EOFError, VsockfwdError) as error:
            raise self._failed(link, error) from None
        except BaseException:
            link.close()
            raise

    def _opened(self, link: Link, answer: StreamEvent, versions: tuple[int, ...]) -> Opened:
        """What the agent's answer brought. Raises PeerBrokeProtocol, VersionMismatch."""
        if not isinstance(answer, Accepted):
            raise PeerBrokeProtocol("the agent sent something else than its answer")
        if answer.answer.version not in versions:
            raise VersionMismatch(
                f"the agent chose version {answer.answer.version}, of those that it was offered not one"
            )
        self._links.add(link)
        self.opened += 1
        return Opened(link, answer.answer.reply)

    def _failed(self, link: Link, error: VsockfwdError | EOFError | None) -> VsockfwdError:
        """Close a link that was not opened; returns why, None standing for no answer in time."""
        link.close()
        if error is None:
            return TimedOut(f"{self.name}: no answer to a request within {ANSWER_DEADLINE:g} s")
        if isinstance(error, EOFError):
            return PeerBrokeProtocol(f"{self.name}: the agent closed the stream before its answer")
        return error.within(self.name)

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


class _Asking:
    """A request for a stream at work without a task."""

    __slots__ = ("_answered", "_asked", "_deadline", "_link", "_otherwise", "_relays", "_session", "_versions")

    def __init__(
        self,
        session: Session,
        asked: tuple[StreamMachine, bytes],
        versions: tuple[int, ...],
        relays: Relays,
        answered: Callable[[Opened | VsockfwdError], None],
        otherwise: Callable[[], None],
    ) -> None:
        self._session = session
        self._asked = asked
        self._versions = versions
        self._relays = relays
        self._answered = answered
        self._otherwise = otherwise

    def begin(self, stream: Stream) -> None:
        """Ask, over a connection that was just dialled."""
        machine, asking = self._asked
        poll = self._relays.poll
        self._link = Link(stream, machine, self._session.engine.buffers)
        if not isinstance(stream, SocketStream):
            self._give_up()
            return
        try:
            poll.add(stream.sock, lambda _: self._heard(), ARRIVALS)
            whole = stream.try_send(asking) == len(asking)
        except OSError:
            whole = False
        if not whole:
            poll.forget(stream.sock)
            self._give_up()
            return
        self._link.abandoned = self._heard
        self._session._links.add(self._link)
        self._relays.waiting[self] = self._link.close
        self._deadline = self._relays.answers.add(self._late)

    def _give_up(self) -> None:
        self._link.close()
        self._otherwise()

    def _heard(self) -> None:
        sock = self._link.stream.sock
        assert sock is not None
        found: StreamEvent | VsockfwdError | EOFError
        try:
            while (event := self._link.try_next()) is None:
                pass  # a receive each, of an answer that is small
            found = event
        except BlockingIOError:
            self._relays.poll.change(sock, ARRIVALS)
            return
        except (EOFError, VsockfwdError) as error:
            found = error
        self._relays.answers.call_off(self._deadline)
        del self._relays.waiting[self]
        self._link.abandoned = None
        if not isinstance(found, VsockfwdError | EOFError):
            try:
                self._answered(self._session._opened(self._link, found, self._versions))
                return
            except VsockfwdError as error:
                found = error
        self._relays.poll.forget(sock)
        if isinstance(found, Gone):
            self._give_up()
        else:
            self._answered(self._session._failed(self._link, found))

    def _late(self) -> None:
        assert self._link.stream.sock is not None
        del self._relays.waiting[self]
        self._relays.poll.forget(self._link.stream.sock)
        self._answered(self._session._failed(self._link, None))


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
