"""The side that sends on: each flow has a socket of its own, connected to where its datagrams go.

The thing to understand first: a connected UDP socket hears what ICMP says of its own datagrams, and only of those, so
that a port where nobody listens ends nothing but the datagrams that were sent to it. What ICMP said comes out of the
socket's *next* call, whatever that is: a send that fails with it has not sent its datagram yet.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import resource
import socket
from typing import Any

import trio

from vsockfwd.plugin import (
    Address,
    Channel,
    PeerBrokeProtocol,
    Report,
    VsockfwdError,
    printable,
)
from vsockfwd_dgram.carrier import Carrier, Flow
from vsockfwd_dgram.drops import Reason
from vsockfwd_dgram.frames import DATAGRAM_LIMIT, FLOWS_LIMIT
from vsockfwd_dgram.sockets import BURST, Place, connect, places

LOOK_UP_AGAIN = 60.0
"""Seconds after which a name is looked up again, for the flows that are opened from then on."""


def sockets_to_spare() -> int:
    """Half of the descriptors that this process may have: the other half is for whoever else is served."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return FLOWS_LIMIT if soft == resource.RLIM_INFINITY else max(1, soft // 2)


class Leg(Flow):
    """A flow on the far side. `turn` says which of the destination's addresses it uses."""

    __slots__ = ("answered", "sock", "turn")

    def __init__(self, number: int, name: str, now: float) -> None:
        super().__init__(number, name, now)
        self.announced = True
        self.sock: socket.socket | None = None
        self.turn = 0
        self.answered = False


class Far(Carrier[Leg]):
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
    ) -> None:
        super().__init__(rule, where, cap, report, live)
        self._address = address
        self._places = found

    async def run(self, channel: Channel) -> None:
        """Carry until the peer says END. Raises why the stream broke."""
        async with self.at_work(self._look_up_again):
            await self.carry(channel)

    async def _look_up_again(self) -> None:
        while True:
            await trio.sleep(LOOK_UP_AGAIN)
            with contextlib.suppress(VsockfwdError):  # the last answer is good until there is another
                self._places = await places(self._address)

    def peer_opened(self, number: int, name: str) -> None:
        if number in self.flows:
            raise PeerBrokeProtocol(f"the peer announced flow {number} twice")
        self.make_room()
        self.begin_flow(Leg(number, printable(name), trio.current_time()))

    def closed(self, flow: Leg) -> None:
        self._hang_up(flow)

    # --- sockets

    def _connect(self, leg: Leg) -> socket.socket:
        """Give a flow a new socket. Raises OSError."""
        self._hang_up(leg)
        place = self._places[leg.turn % len(self._places)]
        try:
            sock = connect(place)
        except OSError as error:
            oldest = next(iter(self.flows.values()))
            if error.errno not in (errno.EMFILE, errno.ENFILE) or oldest is leg:
                raise
            self.close_flow(oldest, "the far side ran out of descriptors")
            sock = connect(place)
        self.poll.add(sock, functools.partial(self._drain, leg))
        leg.sock = sock
        return sock

    def _hang_up(self, leg: Leg) -> None:
        if leg.sock is not None:
            self.poll.forget(leg.sock)
            leg.sock.close()
            leg.sock = None

    def _turn(self, leg: Leg) -> None:
        """Nobody listens there: go on to the name's next address, or look for who took over a path. Raises OSError."""
        if self._places[0][0] == socket.AF_UNIX:
            self._connect(leg)
        elif not leg.answered and len(self._places) > 1:
            leg.turn += 1
            self._connect(leg)

    def transmit(self, flow: Leg, datagram: bytes | memoryview) -> None:
        sock = flow.sock or self._connect(flow)
        try:
            sock.send(datagram)
        except BlockingIOError:
            raise
        except OSError as error:
            self._transmit_again(flow, datagram, error)

    def _transmit_again(self, leg: Leg, datagram: bytes | memoryview, error: OSError) -> None:
        """Send what was not sent, because the socket had to tell of an earlier datagram; that one is lost."""
        if error.errno == errno.ECONNREFUSED:
            self._turn(leg)
        assert leg.sock is not None
        leg.sock.send(datagram)
        if leg.sock.family != socket.AF_UNIX:  # which tells of the datagram in hand, and that has arrived now
            self.failed(error)

    def _drain(self, leg: Leg) -> None:
        now = trio.current_time()
        for _ in range(BURST):
            if leg.sock is None:
                return
            try:
                size = leg.sock.recv_into(self.buffer, 0, socket.MSG_TRUNC)
            except BlockingIOError:
                return
            except OSError as error:
                self.failed(error)
                with contextlib.suppress(OSError):  # the next datagram tries again, and tells
                    self._turn(leg)
                return
            leg.answered = True
            if size > DATAGRAM_LIMIT:
                self.drops.add(Reason.TOO_LONG)
            else:
                self.take(leg, size, now)
