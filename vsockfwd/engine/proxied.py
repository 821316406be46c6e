"""The PROXY protocol at work: a header sent before a connection's bytes, or taken from in front of them.

The thing to understand first: a header is read in pieces of exactly the length that is certainly the header's
(wire/proxy_protocol.py), so what stands behind it is still the kernel's when the header is complete. That needs no
look ahead, so it works over whatever a stream is made of.
"""

from __future__ import annotations

import socket

import trio

from vsockfwd.engine.pump import Broken, push
from vsockfwd.errors import PeerBrokeProtocol, TimedOut, Truncated, from_oserror
from vsockfwd.identity import Identity, NetworkPeer
from vsockfwd.transport.base import Stream
from vsockfwd.transport.tcp import network_peer
from vsockfwd.wire.proxy_protocol import header, parse

HEADER_DEADLINE = 10.0
"""Seconds for a whole header: absolute, so that trickling does not extend it."""


def header_for(accepted: Stream, source: Identity | None = None) -> bytes:
    """The header that introduces the client of a stream that was accepted here.

    `source`: whose connection it really is, where the client itself said so in a header (`read_header`).
    """
    return header(source or accepted.peer, connected_to(accepted))


def connected_to(accepted: Stream) -> NetworkPeer | bytes | None:
    """Where the client of an accepted stream connected to, as far as a PROXY header has words for it."""
    sock = accepted.sock
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        return None
    try:
        name = sock.getsockname()
    except OSError:
        return None  # closed meanwhile: who sends on finds out
    if sock.family == socket.AF_UNIX:
        return name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")
    return network_peer(name)


async def send_header(stream: Stream, source: Identity, destination: NetworkPeer | bytes | None = None) -> None:
    """Introduce `source` on a stream that was just dialled, before anything else is sent.

    Raises Reset, DataError; the stream is aborted then, and where this is cancelled.
    """
    try:
        await push(stream, memoryview(header(source, destination)))
    except BaseException as error:
        stream.abort()
        if isinstance(error, Broken):
            raise from_oserror(error.error, f"{stream.name}: telling it who connects") from None
        raise


async def read_header(stream: Stream, deadline: float = HEADER_DEADLINE) -> Identity:
    """Take the header off a stream that was just accepted, and not a byte more; returns whose connection it is.

    That is the stream's own peer where the header names nobody. Raises TimedOut after `deadline` seconds,
    PeerBrokeProtocol, Truncated where the stream ends within the header, Reset.
    """
    seen = bytearray()
    try:
        with trio.fail_after(deadline):
            while isinstance(found := parse(bytes(seen)), int):
                seen += await _receive(stream, found)
    except trio.TooSlowError:
        raise TimedOut(f"{stream.name}: no PROXY header within {deadline:g} s") from None
    except PeerBrokeProtocol as error:
        raise error.within(stream.name) from None
    return found.source or stream.peer


async def _receive(stream: Stream, most: int) -> memoryview:
    """Some bytes, at least one."""
    buffer = memoryview(bytearray(most))
    while True:
        try:
            size = stream.try_receive_into(buffer)
        except BlockingIOError:
            await stream.wait_readable()
            continue
        except OSError as error:
            raise from_oserror(error, stream.name) from None
        if not size:
            raise Truncated(f"{stream.name}: ended within its PROXY header")
        return buffer[:size]
