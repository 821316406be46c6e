"""The `serve` side: who connects, whether they are let in, then the mode's handler.

The thing to understand first: what a client left behind goes with its control connection. Every stream that a session
opened runs in a cancel scope that the session holds; when the control connection ends, for whatever reason, so do they.
"""

from __future__ import annotations

import contextlib
import functools
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec
import trio

from vsockfwd.address import Address, parse_stream
from vsockfwd.contract import Access, Join, Mode, Resource, package_of
from vsockfwd.engine import Engine
from vsockfwd.engine.control_link import HANDSHAKE_DEADLINE, ControlLink
from vsockfwd.engine.door import Door
from vsockfwd.engine.framed import Framed
from vsockfwd.engine.link import Link
from vsockfwd.engine.listening import Lease, LeaseKey, Tenancy
from vsockfwd.engine.quota import Quota
from vsockfwd.engine.reception import GREETING, Reception
from vsockfwd.engine.relays import Relays
from vsockfwd.engine.server import Gate, serve_listeners
from vsockfwd.errors import (
    TEXT_LIMIT,
    AddressError,
    BadRequest,
    Code,
    Gone,
    Internal,
    LocalProtocolError,
    NoSuchMode,
    NotAllowed,
    PeerBrokeProtocol,
    ShuttingDown,
    TimedOut,
    VersionMismatch,
    VsockfwdError,
    printable,
    the_one,
)
from vsockfwd.events import Denied, Outcome, Problem, Report
from vsockfwd.identity import Identity
from vsockfwd.key import Key
from vsockfwd.policy import Decision, Limits, Policy
from vsockfwd.transport.base import Listener, Stream, first_to_answer
from vsockfwd.wire.control import ControlMachine, Greeted
from vsockfwd.wire.frames import (
    CLIENT_PREFACE,
    FRAME_LIMIT,
    PREFACE_LENGTH,
    FrameType,
    check_preface,
    frame_name,
)
from vsockfwd.wire.machine import Role
from vsockfwd.wire.messages import LISTEN, TOKEN_LENGTH, Open, Ready, choose
from vsockfwd.wire.stream import Requested, StreamMachine

DIAL_DEADLINE = 25.0
"""Seconds that a dial on a client's behalf may take in all."""

SESSION_OVER = "the session is over"

STRANGERS = 256
"""Connections at once that have not said who they are; one more, and the one that has been mute longest is closed."""

M = TypeVar("M", bound=msgspec.Struct)


@dataclass(eq=False, slots=True)
class _Session:
    """What the agent keeps for one client: where its token is good, who it is, and the streams that go with it."""

    principal: tuple[str, object]
    who: Identity
    frame: int
    tenancy: Tenancy
    streams: set[_Served | _Joined] = field(default_factory=set)


@dataclass(eq=False, slots=True)
class _Served:
    """A stream that a task serves."""

    link: Link
    scope: trio.CancelScope

    def cancel(self) -> None:
        """End it; its client is told why."""
        if self.link.relaying is not None:
            self.link.relaying.cut(Gone(SESSION_OVER))
        else:
            self.scope.cancel()


@dataclass(eq=False, slots=True)
class _Joined:
    """A stream that needs no task."""

    relays: Relays
    framed: Framed | None = None

    def cancel(self) -> None:
        """As a _Served's."""
        if self.framed is not None:
            self.relays.cut(self.framed, Gone(SESSION_OVER))


class AgentCall:
    """A client's request, as the mode's handler sees it (the contract's Call)."""

    def __init__(self, agent: Agent, link: Link, request: Open, version: int) -> None:
        self.mode = request.mode
        self.version = version
        self.peer: Identity = link.peer
        self.report: Report = agent.engine.report
        self.root = agent.policy.root_of(link.peer)
        self.accepted = False
        self._agent = agent
        self._link = link
        self._arguments = request.arguments

    def arguments(self, kind: type[M]) -> M:
        """The request's arguments. Raises BadRequest."""
        return decode_arguments(self._arguments, kind)

    async def accept(self, reply: msgspec.Struct | None = None) -> Link:
        """Answer OK; the body follows."""
        self.accepted = True
        await self._link.write(self._link.machine.accept(self.version, reply))
        return self._link

    async def connect(self, address: str) -> Stream:
        """Dial an address on the client's behalf. Raises BadRequest, or what the dial failed with."""
        where = to_dial(address)
        try:
            # Whatever the client wrote as its connect-timeout: it has given up by then.
            with trio.fail_after(DIAL_DEADLINE):
                network = self._agent.engine.network
                return await first_to_answer(network.connect, self._checked(where, await network.resolve(where)))
        except trio.TooSlowError:
            raise TimedOut(f"connect to {where.bare()}: no answer within {DIAL_DEADLINE:g} s") from None

    def _checked(self, asked: Address, found: Sequence[Address]) -> list[Address]:
        """Those of the addresses that a name came to which the client may have. Raises NotAllowed where none is left.

        What is dialled is what was checked: nothing looks the name up again.
        """
        if list(found) == [asked]:
            return [asked]
        decisions = [
            (place, self._decide(Resource(Access.CONNECT, place.bare(), asked=asked.bare()))) for place in found
        ]
        allowed = [place for place, decision in decisions if decision.allowed]
        if not allowed:
            decisions[0][1].enforce()
        return allowed

    def _decide(self, resource: Resource) -> Decision:
        return self._agent.policy.permit(self.peer, resource)

    def check(self, resource: Resource) -> None:
        """Ask the policy about what a mode found out by itself. Raises NotAllowed."""
        self._decide(resource).enforce()


@functools.lru_cache(128)
def _parsed(address: str) -> Address:
    """Clients ask for the same again and again, and reading it costs as much as dialling."""
    return parse_stream(address)


def to_dial(address: str) -> Address:
    """The address that a client wants dialled. Raises BadRequest."""
    try:
        where = _parsed(address)
    except AddressError as error:
        raise BadRequest(error.message, hint=error.hint) from None
    if where.scheme in ("stdio", "fd"):
        raise BadRequest(f"{where}: an agent has no {where.scheme} to offer")
    if where.option("tls"):  # its files would be this machine's
        raise BadRequest(f"{where}: an agent speaks no TLS for its clients", hint="the client's own end can")
    return where


def decode_arguments(raw: bytes, kind: type[M]) -> M:
    """A request's arguments, decoded and checked. Raises BadRequest."""
    try:
        return msgspec.msgpack.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the request makes no sense: {printable(str(error), 200)}") from None


def _socket(stream: Stream) -> socket.socket:
    assert stream.sock is not None
    return stream.sock


async def _join(call: AgentCall, join: Join) -> None:
    """Serve a request that comes down to a dial, in this task."""
    neighbour = await call.connect(join.connect)
    try:
        channel = await call.accept(join.reply(neighbour.peer))
    except BaseException:
        neighbour.abort()
        raise
    join.ended(await channel.relay(neighbour, dialled=True))


class Agent:
    """Serves connections, wherever they were accepted; `handle` is the handler for a server's accept loop."""

    def __init__(
        self,
        engine: Engine,
        modes: Mapping[str, Mode],
        policy: Policy,
        *,
        keys: tuple[Key, ...] = (),
        token: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self.engine = engine
        self.door = Door(policy, keys, engine.report, token)
        self.modes = {name: mode for name, mode in modes.items() if mode.serve or mode.join}
        self.policy = policy
        self.quota = Quota()
        self.confined = ""
        """What this process can do no more, in words: clients are told."""
        self._token = token
        self._sessions: dict[bytes, _Session] = {}
        self._leases: dict[LeaseKey, Lease] = {}
        self._strangers: dict[object, Callable[[], None]] = {}

    async def serve(self, listeners: Sequence[Listener], gate: Gate) -> None:
        """Accept on every listener, until cancelled."""
        async with Relays(self.engine.buffers, self.engine.report) as relays:
            reception = Reception(self, relays)
            await serve_listeners(listeners, self.handle, self.engine.report, gate, reception.take)

    async def handle(self, stream: Stream, seen: bytes = b"", left: float = HANDSHAKE_DEADLINE) -> None:
        """Serve one connection to its end. `seen` was read from it already, `left` are seconds for its greeting."""
        link: ControlLink | Link | None = None
        event, last = None, b""
        try:
            with trio.fail_after(left), self._stranger():
                link, seen = await self._greet(stream, seen)
                link.feed(seen)
                event = await link.next()
                if isinstance(link, ControlLink):
                    greeted, event = event, None
                    assert isinstance(greeted, Greeted)
                    last = await self.door.admit(link, greeted)
                    event = greeted
        except trio.TooSlowError:
            error = TimedOut(f"no greeting within {HANDSHAKE_DEADLINE:g} s")
            self.engine.report(Problem(stream.name, error.message))
            await self._turn_away(stream, link, error)
            return
        except EOFError:
            return
        except NotAllowed as error:  # the log has heard more
            await self._turn_away(stream, link, error)
            return
        except VsockfwdError as error:
            if error.code not in (Code.RESET, Code.TRUNCATED):
                self.engine.report(Problem(stream.name, error.message))
            await self._turn_away(stream, link, error)
            return
        if event is None:
            return  # crowded out by other strangers
        if isinstance(link, ControlLink):
            assert isinstance(event, Greeted)
            await self._serve_control(link, event, last)
        else:
            assert isinstance(link, Link)
            assert isinstance(event, Requested)
            await self._serve_stream(link, event.request)

    @contextlib.contextmanager
    def _stranger(self) -> Iterator[None]:
        """Count a connection among the strangers while it is one."""
        with trio.CancelScope() as scope:
            self.meet(scope, scope.cancel)
            try:
                yield
            finally:
                self.know(scope)

    def meet(self, stranger: object, turn_out: Callable[[], None]) -> None:
        """Count one among the strangers; who has been one longest gives way when they are too many."""
        self._strangers[stranger] = turn_out
        if len(self._strangers) > STRANGERS:
            next(iter(self._strangers.values()))()

    def know(self, stranger: object) -> None:
        """It is none any more."""
        self._strangers.pop(stranger, None)

    async def _greet(self, stream: Stream, seen: bytes) -> tuple[ControlLink | Link, bytes]:
        """Read until the first frame's type says what kind of connection this is; returns what was read with it."""
        buffer = memoryview(bytearray(GREETING))
        check_preface(seen, CLIENT_PREFACE)
        while len(seen) <= PREFACE_LENGTH:
            try:
                size = stream.try_receive_into(buffer)
            except BlockingIOError:
                await stream.wait_readable()
                continue
            except OSError:
                raise EOFError from None
            if not size:
                raise EOFError
            seen += buffer[:size]
            check_preface(seen, CLIENT_PREFACE)
        kind = seen[PREFACE_LENGTH]
        link: ControlLink | Link
        if kind == FrameType.HELLO:
            link = ControlLink(stream, ControlMachine(Role.AGENT, self.door.keys), self.engine.buffers)
        elif kind == FrameType.OPEN:
            link = Link(stream, StreamMachine(Role.AGENT), self.engine.buffers)
        else:
            raise PeerBrokeProtocol(f"the client began with {frame_name(kind)}, where HELLO or OPEN is due")
        return link, seen

    async def _turn_away(self, stream: Stream, link: ControlLink | Link | None, error: VsockfwdError) -> None:
        """Tell a client why it gets nothing. A stranger who did not even begin rightly is told nothing."""
        if link is None:
            stream.close()
            return
        try:
            last = link.machine.refuse(error)
        except LocalProtocolError:
            last = b""
        await link.part(last)

    # --- control connections

    async def _serve_control(self, link: ControlLink, greeted: Greeted, last: bytes) -> None:
        """Serve who was let in; `last` goes out in front of READY."""
        machine, peer = link.machine, link.peer
        token = self._token(TOKEN_LENGTH)
        frame = min(FRAME_LIMIT, greeted.hello.frame)
        modes = {LISTEN: (1,)} | {name: mode.versions for name, mode in self.modes.items()}
        welcome = Ready(greeted.version, token, frame, modes, str(peer), time.time(), self.confined[:TEXT_LIMIT])
        stopped = True
        try:
            async with trio.open_nursery() as nursery:
                tenancy = Tenancy(self.engine, self.policy, self._leases, link, nursery)
                session = self._sessions[token] = _Session(link.stream.peer.principal, peer, frame, tenancy)
                try:
                    await link.write(last + machine.ready(welcome))
                    await link.live(tenancy.hear)
                except VsockfwdError as error:
                    stopped = False
                    # How a session ends matters to what it left here only, and that ends with it; but for a peer
                    # gone wrong.
                    if error.code is Code.PROTOCOL:
                        self.engine.report(Problem(str(peer), error.message))
                nursery.cancel_scope.cancel()
            if tenancy.unknown:
                self.engine.report(Problem(str(peer), f"it denied {tenancy.unknown} connections that did not wait"))
        finally:
            del self._sessions[token]
            for stream in list(session.streams):
                stream.cancel()
            if stopped:
                await link.part(machine.bye(ShuttingDown("the agent is stopping")))
            link.close()

    # --- stream connections

    def begin_stream(self, link: Link, request: Open, relays: Relays, leave: Callable[[], None]) -> None:
        """Serve a stream without a task where its mode and what it dials allow that, else in one."""

        def in_task() -> None:
            relays.poll.forget(_socket(link.stream))
            relays.serve(lambda _: self._serve_stream(link, request), link.stream, leave)

        session = self._sessions.get(request.token)
        if session is None or session.principal != link.stream.peer.principal:
            in_task()
            return
        link.peer = session.who
        try:
            mode, version = self._mode_for(request, session)
            if mode.join is None or self.policy.limits_of(link.peer) != Limits():
                in_task()
                return
            self._permit(link.peer, mode, request)
            join = mode.join(AgentCall(self, link, request, version))
            far = self.engine.network.connect_now(to_dial(join.connect))
        except Exception:  # noqa: BLE001 - a refusal or a mode's bug: the task finds the same, and tells
            far = None
        if far is None:
            in_task()
            return

        def reached(neighbour: Stream) -> None:
            if self._sessions.get(request.token) is not session:
                neighbour.abort()
                in_task()
                return
            answer = link.machine.accept(version, join.reply(neighbour.peer))
            try:
                whole = link.stream.try_send(answer) == len(answer)
            except OSError:
                whole = False
            if not whole:  # the client is gone: an answer fits where nothing was sent before
                del relays.waiting[link.stream]
                relays.poll.forget(_socket(link.stream))
                neighbour.abort()
                link.close()
                leave()
                return
            link.machine.frame_limit = session.frame
            stream = _Joined(relays)
            session.streams.add(stream)

            def ended(outcome: Outcome) -> None:
                session.streams.discard(stream)
                try:
                    join.ended(outcome)
                finally:
                    leave()

            stream.framed = relays.join(link, neighbour, ended, dialled=True)

        relays.waiting[link.stream] = link.close
        relays.dialled(far, reached, in_task)

    async def _serve_stream(self, link: Link, request: Open) -> None:
        session = self._sessions.get(request.token)
        if session is None or session.principal != link.stream.peer.principal:
            if session is not None:
                self.engine.report(Denied(str(link.peer), "it presented another's token"))
            await self._turn_away(link.stream, link, Gone("the session is not known here: log in again"))
            return
        link.peer, link.machine.frame_limit = session.who, session.frame
        try:
            with trio.CancelScope() as scope:
                served = _Served(link, scope)
                session.streams.add(served)
                try:
                    await self._serve_request(link, request, session)
                finally:
                    session.streams.discard(served)
            if scope.cancelled_caught:
                await self._end(link, Gone(SESSION_OVER))
        finally:
            link.close()

    async def _serve_request(self, link: Link, request: Open, session: _Session) -> None:
        try:
            mode, version = self._mode_for(request, session)
            self._permit(link.peer, mode, request)
            with self.quota.stream(link.peer, self.policy.limits_of(link.peer)) as paces:
                if paces is not None:
                    link.keep_to(*paces)
                call = AgentCall(self, link, request, version)
                if mode.join is not None:
                    await _join(call, mode.join(call))
                else:
                    assert mode.serve is not None
                    await mode.serve(call)
                if not call.accepted:
                    raise Internal(f"the mode {mode.name} neither accepted nor refused")
        except Exception as caught:  # noqa: BLE001 - a mode's bug ends its own stream, and is told to both sides
            error = the_one(caught)
            name = printable(request.mode)
            if isinstance(error, VsockfwdError):
                self.engine.report(Problem(str(link.peer), f"{name}: {error.line()}"))
                await self._end(link, error)
            else:
                self.engine.report(Problem.of(f"mode {name}", caught))
                await self._end(link, Internal(f"the mode {name} failed: see the agent's log"))

    def _permit(self, peer: Identity, mode: Mode, request: Open) -> None:
        """Raises NotAllowed, or BadRequest where the request makes no sense."""
        self.policy.permit_mode(peer, mode.name).enforce()
        for resource in mode.resources(bytes(request.arguments)):
            self.policy.permit(peer, resource).enforce()

    def _mode_for(self, request: Open, session: _Session) -> tuple[Mode, int]:
        mode = session.tenancy.mode if request.mode == LISTEN else self.modes.get(request.mode)
        if mode is None:
            name = printable(request.mode)
            raise NoSuchMode(
                f"no mode {name!r} here",
                hint=f"install {package_of(name)} where the agent runs, and start it again",
            )
        version = choose(mode.versions, request.versions)
        if version is None:
            ours = ", ".join(map(str, mode.versions))
            raise VersionMismatch(f"mode {mode.name} speaks version {ours} here", hint="install the same on both sides")
        return mode, version

    async def _end(self, link: Link, error: VsockfwdError) -> None:
        """ERROR before OK, RESET after it, nothing where the peer has gone or knows already."""
        machine = link.machine
        try:
            last = machine.reset(error) if machine.may_reset else machine.refuse(error)
        except LocalProtocolError:
            last = b""
        await link.part(last)
