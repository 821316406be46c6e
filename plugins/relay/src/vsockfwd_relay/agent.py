"""AGENT: an address that a vsockfwd agent dials, as `forward -L` has it dial.

The thing to understand first: an agent's stream tells an end from a cut. So it is joined to one end of a socket pair by
the engine's own relay, and the other end, ours, passes a cut on as an error.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec
import trio

from vsockfwd.plugin import (
    SCHEMES,
    Features,
    OwnPeer,
    SocketStream,
    Stream,
    parse_stream,
    the_one,
)
from vsockfwd_relay.address_type import Options, Situation, Specification

if TYPE_CHECKING:
    from vsockfwd.plugin import OpenedStream

_MODE = "forward"


class _Connect(msgspec.Struct, frozen=True):
    """The forward mode's request: dial this address, then carry bytes both ways."""

    connect: str


class Through(msgspec.Struct, frozen=True):
    """An agent, and what it is to dial."""

    target: str
    connect: str


def through(target: str, address: str, options: Options) -> Through:
    """`TARGET:ADDRESS`, as `forward -L` has them: a target with colons stands in brackets; HOST:PORT is TCP's, a path
    a UNIX socket's, and any other address begins with its scheme."""
    where = _bare(address)
    if where.startswith("/"):
        where = f"unix:{where}"
    elif where.partition(":")[0] not in SCHEMES:
        where = f"tcp:{where}"
    return Through(_bare(target), str(parse_stream(where)))


def _bare(text: str) -> str:
    return text[1:-1] if text.startswith("[") and text.endswith("]") else text


class _Near(SocketStream):
    """Our end of the pair. What the far one's relay found broken is an error here, not an end."""

    broken = False

    def __init__(self, sock: socket.socket, name: str) -> None:
        super().__init__(sock, Features(half_close=True, reset=True), OwnPeer(name), name)
        self.carrying = trio.CancelScope()
        self.try_receive_into = self._receive_into  # type: ignore[method-assign]

    def _receive_into(self, buffer: memoryview) -> int:
        size = self.sock.recv_into(buffer)
        if not size and self.broken:
            raise OSError(errno.ECONNRESET, "cut off")
        return size

    def source_to_poll(self) -> int | None:
        """None: who carries for the pair's other end is in this process too."""
        return None

    def abort(self) -> None:
        """Have the agent's stream reset."""
        self.carrying.cancel()
        self.close()


class _Far(SocketStream):
    """The pair's other end, which the channel is joined to."""

    def __init__(self, sock: socket.socket, name: str, near: _Near) -> None:
        super().__init__(sock, Features(half_close=True), OwnPeer(name), name)
        self._near = near

    def abort(self) -> None:
        self._near.broken = True
        self.close()


@asynccontextmanager
async def open_through(spec: Specification, situation: Situation) -> AsyncIterator[Stream]:
    """Log in, have the agent dial, and carry. Raises why it could not."""
    from vsockfwd.plugin import open_session  # what needs no agent starts sooner without

    wanted: Through = spec.subject
    target = situation.target(wanted.target)
    name = f"{wanted.connect} through {target.bare()}"
    async with open_session(situation.engine, target) as session:
        opened = await session.open(_MODE, _Connect(wanted.connect))
        pair = socket.socketpair()
        for sock in pair:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        near = _Near(pair[0], name)
        over = trio.Event()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_carry, opened, _Far(pair[1], name, near), near.carrying, over)
                try:
                    yield near
                    near.close()
                    await over.wait()  # the agent has yet to hear our end
                finally:
                    near.close()
                    nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise the_one(group) from None


async def _carry(opened: OpenedStream, far: _Far, scope: trio.CancelScope, over: trio.Event) -> None:
    try:
        with scope:
            await opened.channel.relay(far)
    finally:
        over.set()
