"""The agent's side of remote listening: who listens where for whom, who came, and which ticket fetches them.

The thing to understand first: a listener belongs to a *lease*, which a client chose, and not to the session that holds
it. A session of the same identity that asks with the same lease takes the listener over, with everybody who waits at
it, since the agent may not have noticed yet that the client died and came back. Without such a heir the listener goes
with its holder's control connection.

Nothing here waits for a client: what it is told is posted, and how much that may be is bounded by what it has yet to
answer. docs/protocol.md, "Remote listening".
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from vsockfwd.address import Address, parse_stream
from vsockfwd.contract import Access, Call, Mode, Resource
from vsockfwd.engine import Engine
from vsockfwd.engine.control_link import ControlLink
from vsockfwd.engine.relay import ending_of
from vsockfwd.engine.server import Gate, accept_on
from vsockfwd.errors import (
    AddressError,
    BadRequest,
    Gone,
    LimitReached,
    PeerBrokeProtocol,
    ShuttingDown,
    TimedOut,
    VsockfwdError,
    the_one,
)
from vsockfwd.events import Closed, Listening, Outcome, Report
from vsockfwd.policy import Policy
from vsockfwd.transport.base import Listener, Stream
from vsockfwd.wire.control import UNANSWERED, ControlEvent, Denied, ListenAsked
from vsockfwd.wire.messages import LISTEN, TOKEN_LENGTH, Fetch, Granted, Listen

LISTENERS = 64
"""What one session may have listened on at once."""

TICKET_LIFETIME = 30.0
"""Seconds to fetch a connection, before it is reset."""

TOLD = 16
"""Bound addresses that a client is told of: a name may stand for more."""

_NOT_FOR_CLIENTS = frozenset({"stdio", "fd", "hybrid"})

LeaseKey = tuple[tuple[str, object], bytes]
"""Whose lease, and its id."""


@dataclass(eq=False, slots=True)
class _Neighbour:
    """A connection that was announced and not answered yet."""

    stream: Stream
    expires: float
    expired: bool = False


@dataclass(eq=False, slots=True)
class _Holder:
    """The session that a lease's connections are announced to, by the number that it asked with."""

    link: ControlLink
    id: int
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    left: trio.Event = field(default_factory=trio.Event)
    lease: Lease | None = None

    @property
    def overtaken(self) -> bool:
        return self.lease is not None and self.lease.holder is not self


class Lease:
    """Listeners, and who waits at them. All its methods are done at once, but for `serve`."""

    def __init__(self, address: Address, listeners: Sequence[Listener], holder: _Holder, report: Report) -> None:
        self.address = address
        self.listeners = listeners
        self.holder = holder
        self._report = report
        self._gate = Gate(UNANSWERED)
        self._neighbours: dict[bytes, _Neighbour] = {}
        """By ticket, those who came first in front. The expired stay until they are answered: only an answer makes
        room, so that a client never has more than UNANSWERED to deal with."""
        self._arrival = trio.lowlevel.ParkingLot()

    async def serve(self) -> None:
        """Accept and announce, until cancelled. Raises why accepting is no longer possible."""
        bound = tuple(listener.address.bare() for listener in self.listeners)
        self.holder.link.post(self.holder.link.machine.grant(Granted(self.holder.id, bound[:TOLD])))
        self._announce_again()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._expire)
            for listener in self.listeners:
                nursery.start_soon(accept_on, listener, self._announce, self._report, self._gate)

    def _announce(self, stream: Stream) -> None:
        link, ticket = self.holder.link, secrets.token_bytes(TOKEN_LENGTH)
        self._neighbours[ticket] = _Neighbour(stream, trio.current_time() + TICKET_LIFETIME)
        self._arrival.unpark_all()
        link.post(link.machine.announce(self.holder.id, ticket, stream.peer))

    def _announce_again(self) -> None:
        """To a new holder, those who wait: with new tickets, the old ones were another session's."""
        waiting, self._neighbours = self._neighbours, {}
        for neighbour in waiting.values():
            if neighbour.expired:
                self._gate.leave()
            else:
                self._announce(neighbour.stream)

    async def _expire(self) -> None:
        while True:
            first = next((one for one in self._neighbours.values() if not one.expired), None)
            if first is None:
                await self._arrival.park()
                continue
            await trio.sleep_until(first.expires)
            if first in self._neighbours.values():
                first.expired = True
                self.turn_away(first.stream, TimedOut(f"nobody fetched it within {TICKET_LIFETIME:g} s"))

    def answered(self, ticket: bytes) -> Stream | None:
        """The connection that a ticket stood for; the ticket is used up. None where it has expired.

        Raises KeyError where it never was, or was used.
        """
        neighbour = self._neighbours.pop(ticket)
        self._gate.leave()
        return None if neighbour.expired else neighbour.stream

    def turn_away(self, stream: Stream, why: VsockfwdError, by: str = "") -> None:
        """Reset a connection, and say why."""
        stream.abort()
        outcome = Outcome(ending_of(why.code), by, why.message)
        self._report(Closed(self.rule, str(stream.peer), outcome))

    @property
    def rule(self) -> str:
        return f"listen on {self.address.bare()}"

    def close(self) -> None:
        """Stop listening; who still waits is reset."""
        for listener in self.listeners:
            listener.close()
        for neighbour in self._neighbours.values():
            if not neighbour.expired:
                self.turn_away(neighbour.stream, ShuttingDown("the listener is gone"))


class Tenancy:
    """What one session has listened on for it. `mode` serves the streams that fetch.

    `leases` are all of the agent's.
    """

    def __init__(
        self, engine: Engine, policy: Policy, leases: dict[LeaseKey, Lease], link: ControlLink, nursery: trio.Nursery
    ) -> None:
        self.mode = Mode(LISTEN, "hands over connections that came in", serve=self._hand_over)
        self.unknown = 0
        """Answers to announcements that were not, or not any more, this session's."""
        self._engine = engine
        self._policy = policy
        self._leases = leases
        self._link = link
        self._nursery = nursery
        self._holders: dict[int, _Holder] = {}
        self._held: dict[int, Lease] = {}

    def hear(self, event: ControlEvent) -> None:
        """Take what a control connection brought. Raises PeerBrokeProtocol."""
        match event:
            case ListenAsked(request):
                if request.id in self._holders:
                    raise PeerBrokeProtocol(f"the client asked twice to be listened for as number {request.id}")
                holder = self._holders[request.id] = _Holder(self._link, request.id)
                self._nursery.start_soon(self._serve, request, holder)
            case Denied(id, b"", _):
                if id in self._holders:
                    self._holders[id].scope.cancel()
            case Denied(id, ticket, error):
                try:
                    lease, stream = self._answered(id, ticket)
                except KeyError:
                    self.unknown += 1
                    return
                if stream is not None:
                    lease.turn_away(stream, error, by=str(self._link.peer))

    def _answered(self, id: int, ticket: bytes) -> tuple[Lease, Stream | None]:
        """Use a ticket of this session's. Raises KeyError where it is none."""
        lease = self._holders[id].lease
        if lease is None:
            raise KeyError(id)
        return lease, lease.answered(ticket)

    async def _hand_over(self, call: Call) -> None:
        """Serve the stream that presents a ticket: the connection that it stands for is the body."""
        request = call.arguments(Fetch)
        try:
            lease, stream = self._answered(request.id, request.ticket)
        except KeyError:
            raise Gone("that ticket was used already, or is not of this session") from None
        if stream is None:
            raise Gone(f"that ticket has expired: nobody fetched within {TICKET_LIFETIME:g} s")
        try:
            channel = await call.accept()
        except BaseException:
            stream.abort()
            raise
        call.report(Closed(lease.rule, str(stream.peer), await channel.relay(stream)))

    async def _serve(self, request: Listen, holder: _Holder) -> None:
        """Listen, as long as the client wants, the session lives and no other takes it over."""
        error: VsockfwdError | None = None
        try:
            with holder.scope:
                if len(self._holders) > LISTENERS:
                    raise LimitReached(f"a session may have {LISTENERS} listeners")
                await self._hold(request, holder)
        except VsockfwdError as caught:
            error = caught
        except ExceptionGroup as group:
            one = the_one(group)
            if not isinstance(one, VsockfwdError):
                raise
            error = one
        finally:
            del self._holders[request.id]
            holder.left.set()
        if holder.overtaken:
            error = Gone("a later session took the listener over with its lease")
        if error is not None:
            self._link.deny(error, request.id)

    async def _hold(self, request: Listen, holder: _Holder) -> None:
        key = (self._link.peer.principal, request.lease)
        address = self._address(request.address)
        if (lease := self._leases.get(key)) is None:
            listeners = await self._engine.network.listen(address)
            if (lease := self._leases.get(key)) is None:
                lease = self._leases[key] = Lease(address, listeners, holder, self._engine.report)
                holder.lease = lease
            else:  # while a name was looked up, another session did the same
                for listener in listeners:
                    listener.close()
        try:
            if lease.holder is not holder:
                await self._take_over(lease, address, holder)
            for listener in lease.listeners:
                self._engine.report(Listening(listener.address.bare(), f"for {self._link.peer}"))
            await lease.serve()
        finally:
            if lease.holder is holder:
                del self._leases[key]
                lease.close()

    async def _take_over(self, lease: Lease, address: Address, holder: _Holder) -> None:
        if lease.address != address:
            raise BadRequest(f"that lease is for {lease.address}, not for {address}")
        before, lease.holder, holder.lease = lease.holder, holder, lease
        before.scope.cancel()
        # Shielded: a third session may take over from this one, and must not find the first still at the listeners.
        with trio.CancelScope(shield=True):
            await before.left.wait()
        await trio.lowlevel.checkpoint_if_cancelled()  # it may have: then this one never begins

    def _address(self, text: str) -> Address:
        """Where the client wants to be listened for. Raises BadRequest, NotAllowed."""
        try:
            address = parse_stream(text)
        except AddressError as error:
            raise BadRequest(error.message, hint=error.hint) from None
        if address.scheme in _NOT_FOR_CLIENTS:
            raise BadRequest(
                f"{address}: an agent listens on no {address.scheme} for its clients",
                hint="it listens on tcp, unix, abstract and vsock addresses",
            )
        if address.option("tls"):  # its files would be this machine's
            raise BadRequest(f"{address}: an agent speaks no TLS for its clients", hint="the client's own end can")
        self._policy.permit_mode(self._link.peer, LISTEN).enforce()
        self._policy.permit(self._link.peer, Resource(Access.LISTEN, str(address))).enforce()
        return address
