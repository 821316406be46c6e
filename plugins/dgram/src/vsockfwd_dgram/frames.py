"""The mode's frames and its requests: values and bytes only, no socket and no clock.

All four frames are runs of *records*: a number (u32), a length (u16), so many bytes. What they say differs:

    64 OPEN       near → far   flow number, the source's address as text
    65 DATAGRAMS  both ways    flow number, the datagram
    66 CLOSE      both ways    flow number, why, as text
    67 DROPS      both ways    reason (drops.Reason), how many since the last such frame (u32)

*Near* is the side that listens: the client's after Connect, the agent's after Listen.

The thing to understand first: a flow is a source address, announced once by OPEN and a number from then on. A number
is not used again while its flow lives, and a datagram for a flow that was closed meanwhile is no error: it crossed
the CLOSE on its way, and is counted.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Annotated

import msgspec

from vsockfwd.plugin import PeerBrokeProtocol

NAME = "dgram"

OPEN, DATAGRAMS, CLOSE, DROPS = 64, 65, 66, 67

RECORD = struct.Struct("!IH")
COUNT = struct.Struct("!I")

DATAGRAM_LIMIT = 0xFFFF
"""The most bytes of a datagram that a record can hold; UDP over IPv4 carries 65,507."""

TEXT_LIMIT = 120
"""The most bytes of a source's address or of a reason: a UNIX socket's path has 107."""

FLOWS_LIMIT = 1 << 16
"""The most flows that a client may ask for."""

CONNECTS, LISTENS = 1, 2
"""The versions of the mode: the second adds Listen, for which it must be asked, and changes nothing else."""

AddressText = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
Flows = Annotated[int, msgspec.Meta(ge=1, le=FLOWS_LIMIT)]
Idle = Annotated[float, msgspec.Meta(gt=0)]
"""Seconds without a datagram either way after which a flow ends."""


class Connect(msgspec.Struct, frozen=True):
    """A request: send each flow's datagrams to this address, from a socket of the flow's own."""

    connect: AddressText
    flows: Flows


class Connected(msgspec.Struct, frozen=True):
    """Its reply: how many flows at once the agent has sockets for, at most as many as were asked for."""

    flows: Flows


class Listen(msgspec.Struct, frozen=True):
    """The other request: listen on this address, as long as the stream lives; each source is a flow."""

    listen: AddressText
    flows: Flows
    idle: Idle


class Listens(msgspec.Struct, frozen=True):
    """Its reply: the addresses that were bound, with the port that the kernel chose."""

    addresses: Annotated[tuple[AddressText, ...], msgspec.Meta(min_length=1, max_length=64)]


def record(number: int, payload: bytes) -> bytes:
    """One record as bytes."""
    return RECORD.pack(number, len(payload)) + payload


def records(payload: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The records of a frame, as views of it. Raises PeerBrokeProtocol where the last one is cut off."""
    at, end, head, unpack = 0, len(payload), RECORD.size, RECORD.unpack_from
    while at < end:
        start = at + head
        if start > end:
            raise PeerBrokeProtocol("the peer sent a frame of datagrams that ends within a record's header")
        number, length = unpack(payload, at)
        at = start + length
        if at > end:
            raise PeerBrokeProtocol(f"the peer announced a datagram of {length} bytes and sent {end - start}")
        yield number, payload[start:at]
