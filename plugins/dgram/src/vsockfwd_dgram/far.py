"""The side that sends on: each flow has a socket of its own, connected to where its datagrams go.

The thing to understand first: a connected UDP socket hears what ICMP says of its own datagrams, and only of those, so
that a port where nobody listens ends nothing but the datagrams that were sent to it. What ICMP said comes out of the
socket's *next* call, whatever that is: a send that fails with it has not sent its datagram yet.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import resource
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import trio

from vsockfwd.plugin import (
    Address,
    Channel,
    PeerBrokeProtocol,
    Report,
    VsockfwdError,
    printable,
)
from vsockfwd_dgram.batch import NOT_TOGETHER, Batch, segments
from vsockfwd_dgram.carrier import Carriage, Carrier
from vsockfwd_dgram.frames import FLOWS_LIMIT
from vsockfwd_dgram.sockets import CountingPoll, End, Place, connect, places

LOOK_UP_AGAIN = 60.0
"""Seconds after which a name is looked up again, for the flows that are opened from then on."""


def sockets_to_spare() -> int:
    """Half of the descriptors that this process may have: the other half is for whoever else is served."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return FLOWS_LIMIT if soft == resource.RLIM_INFINITY else max(1, soft // 2)


class Leg(End):
    """A socket of a flow's own towards the destination. `turn` says which of its addresses is used."""

    __slots__ = ("_legs", "_refusable", "_to", "answered", "sock", "turn")

    def __init__(self, legs: Legs) -> None:
        super().__init__()
        self._legs = legs
        self._to: Any = None
        self._refusable = 1
        self.sock: socket.socket | None = None
        self.turn = 0
        self.answered = False

    # --- the socket

    def connect(self) -> socket.socket:
        """Take a new socket. Raises OSError."""
        self.hang_up()
        legs = self._legs
        place = legs.places[self.turn % len(legs.places)]
        try:
            sock, self._to = connect(place, legs.interface)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or not legs.spare(self):
                raise
            sock, self._to = connect(place, legs.interface)
        legs.poll.add(sock, functools.partial(legs.drain, self))
        self.together = sock.family != socket.AF_UNIX
        self.sock = sock
        return sock

    def hang_up(self) -> None:
        if self.sock is not None:
            self._legs.poll.forget(self.sock)
            self.sock.close()
            self.sock = None

    def next_turn(self) -> None:
        """Nobody listens there: go on to the name's next address, or look for who took over a path. Raises OSError."""
        if self._legs.places[0][0] == socket.AF_UNIX:
            self.connect()
        elif not self.answered and len(self._legs.places) > 1:
            self.turn += 1
            self.connect()

    # --- receiving

    def heard(self, batch: Batch) -> bool:
        """Receive a batch; False where there was none, or an error instead, which is counted."""
        if self.sock is None:
            return False
        try:
            batch.receive(self.sock)
        except BlockingIOError:
            return False
        except OSError as error:
            self._legs.failed(error, self.refused())
            with contextlib.suppress(OSError):  # the next datagram tries again, and tells
                self.next_turn()
            return False
        if batch.late is not None:
            self._legs.failed(batch.late)
        self.answered = True
        return True

    # --- sending

    def send(self, datagram: bytes | memoryview) -> None:
        if self.sock is None or self._to is not None:
            self._send((datagram,), ())
            return
        try:
            self.sock.send(datagram)
        except BlockingIOError:
            raise
        except OSError as error:
            self._send_again((datagram,), (), error)
        self._refusable = 1

    def send_together(self, run: Sequence[memoryview]) -> None:
        self._send(run, segments(len(run[0])))

    def _send(self, run: Sequence[bytes | memoryview], how: Sequence[tuple[int, int, bytes]]) -> None:
        sock = self.sock or self.connect()
        try:
            self._call(sock, run, how)
        except BlockingIOError:
            raise
        except OSError as error:
            if how and error.errno in NOT_TOGETHER:
                raise
            self._send_again(run, how, error)
        self._refusable = len(run)

    def _call(
        self, sock: socket.socket, run: Sequence[bytes | memoryview], how: Sequence[tuple[int, int, bytes]]
    ) -> None:
        if how:
            sock.sendmsg(run, how, 0, self._to)
        elif self._to is None:
            sock.send(run[0])
        else:
            sock.sendto(run[0], self._to)

    def _send_again(
        self, run: Sequence[bytes | memoryview], how: Sequence[tuple[int, int, bytes]], error: OSError
    ) -> None:
        """Send what was not sent, because the socket had to tell of an earlier datagram; that one is lost."""
        if error.errno == errno.ECONNREFUSED:
            self.next_turn()
        assert self.sock is not None
        refused = self.refused()
        self._call(self.sock, run, how)
        if self.sock.family != socket.AF_UNIX:  # which tells of the datagram in hand, and that has arrived now
            self._legs.failed(error, refused)

    def refused(self) -> int:
        """How many datagrams an error that the socket tells of has cost: what left in one call meets one fate."""
        count, self._refusable = self._refusable, 1
        return count


class Legs(Protocol):
    """What legs need of the side that they belong to."""

    poll: CountingPoll
    interface: str

    @property
    def places(self) -> list[Place]: ...
    def spare(self, leg: Leg) -> bool: ...
    def drain(self, leg: Leg) -> None: ...
    def failed(self, error: OSError, count: int = 1) -> None: ...


LookUp = Callable[[], Awaitable[list[Place]]]


class Lookup:
    """Where a name's datagrams go: its places, looked up again now and then. The last answer is good until the next."""

    def __init__(self, address: Address, found: list[Place], look_up: LookUp | None = None) -> None:
        """`look_up`: how it is done, where not every answer will do."""
        self.address = address
        self.places = found
        self._look_up = look_up or functools.partial(places, address)
        self.interface: str = address.option("interface", "")

    async def look_up_again(self) -> None:
        """As long as this runs."""
        while True:
            await trio.sleep(LOOK_UP_AGAIN)
            with contextlib.suppress(VsockfwdError):
                self.places = await self._look_up()


class Far(Carrier[Carriage]):
    """The flows of one stream, each with its socket."""

    def __init__(
        self,
        rule: str,
        where: str,
        address: Address,
        found: list[Place],
        cap: int,
        report: Report,
        live: set[Any] | None = None,
        look_up: LookUp | None = None,
    ) -> None:
        super().__init__(rule, where, cap, report, live)
        self._lookup = Lookup(address, found, look_up)
        self.interface = self._lookup.interface

    @property
    def places(self) -> list[Place]:
        return self._lookup.places

    async def run(self, channel: Channel) -> None:
        """Carry until the peer says END. Raises why the stream broke."""
        async with self.at_work(self._lookup.look_up_again):
            await self.carry(channel)

    def peer_opened(self, number: int, name: str) -> None:
        if number in self.flows:
            raise PeerBrokeProtocol(f"the peer announced flow {number} twice")
        self.make_room()
        flow = Carriage(number, printable(name), trio.current_time(), Leg(self))
        flow.announced = True
        self.begin_flow(flow)

    def closed(self, flow: Carriage) -> None:
        leg_of(flow).hang_up()

    def spare(self, leg: Leg) -> bool:
        """End the least recently used flow to have its descriptor; False where that is the one that asks."""
        oldest = next(iter(self.flows.values()))
        if oldest is leg.flow:
            return False
        self.close_flow(oldest, "the far side ran out of descriptors")
        return True

    def drain(self, leg: Leg) -> None:
        """A leg's socket has something to tell."""
        if leg.heard(self.batch):
            self.take(itertools.repeat(leg.flow), trio.current_time())


def leg_of(flow: Carriage) -> Leg:
    """A flow's only end on this side."""
    (leg,) = flow.ends
    assert isinstance(leg, Leg)
    return leg
