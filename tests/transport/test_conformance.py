"""Every stream is held to trio's own suite: what a library of trio's expects of a stream, ours do."""

from __future__ import annotations

import os
import pty
import socket
import tty
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from vsockfwd.address import TcpAddress, UnixAddress
from vsockfwd.transport.base import SocketStream, Stream
from vsockfwd.transport.descriptor import DescriptorStream
from vsockfwd.transport.memory import memory_pair
from vsockfwd.transport.tcp import TcpTransport
from vsockfwd.transport.unix import UnixTransport

Pair = tuple[Stream, Stream]
Maker = Callable[[], Awaitable[Pair]]


async def memory() -> Pair:
    return memory_pair()


async def tcp() -> Pair:
    (listener, *_) = await TcpTransport().listen(TcpAddress("127.0.0.1", 0))
    try:
        dialled = await TcpTransport().connect(listener.address)
        return dialled, await listener.accept()
    finally:
        listener.close()


async def pipes() -> Pair:
    one, two = os.pipe(), os.pipe()
    return DescriptorStream(one[0], two[1], "near", own=True), DescriptorStream(two[0], one[1], "far", own=True)


async def inherited_socket() -> Pair:
    near, far = (sock.detach() for sock in socket.socketpair())
    return DescriptorStream(near, near, "near", own=True), DescriptorStream(far, far, "far", own=True)


async def fill(stream: Stream) -> None:
    """Send until the kernel takes no more, and still takes none a moment later."""
    body, refused = bytes(1 << 20), 0
    while refused < 2:
        try:
            stream.try_send(body)
            refused = 0
        except BlockingIOError:
            refused += 1
            await trio.sleep(0.01)


def clogged(maker: Maker) -> Maker:
    """The same pair, but neither end can send until the other has received."""

    async def make() -> Pair:
        pair = await maker()
        for stream in pair:
            if isinstance(stream, SocketStream):
                # Small, and fixed: TCP would enlarge them by and by, and take more.
                stream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
                stream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for stream in pair:
            await fill(stream)
        return pair

    return make


@pytest.mark.parametrize("maker", [memory, tcp, pipes, inherited_socket])
async def test_a_stream_keeps_all_of_trios_promises(maker: Maker) -> None:
    with trio.fail_after(20):
        await trio.testing.check_half_closeable_stream(maker, clogged(maker))


async def test_a_unix_stream_keeps_all_of_trios_promises(tmp_path: Path) -> None:
    async def unix() -> Pair:
        address = UnixAddress(os.fsencode(tmp_path / "s"))
        (listener,) = await UnixTransport().listen(address)
        try:
            dialled = await UnixTransport().connect(address)
            return dialled, await listener.accept()
        finally:
            listener.close()

    with trio.fail_after(20):
        await trio.testing.check_half_closeable_stream(unix, clogged(unix))


async def test_who_waits_for_a_stream_that_was_closed_is_told_so() -> None:
    for wait in (SocketStream.wait_readable, SocketStream.wait_writable):
        near, far = await tcp()
        assert isinstance(near, SocketStream)
        near.close()
        with pytest.raises(trio.ClosedResourceError):
            await wait(near)
        far.close()


async def test_a_terminal_carries_bytes_both_ways() -> None:
    """Without half-close, which a terminal cannot do: the suite cannot be asked."""
    near, far = pty.openpty()
    tty.setraw(far)
    async with (
        DescriptorStream(near, near, "near", own=True) as one,
        DescriptorStream(far, far, "far", own=True) as other,
    ):
        with trio.fail_after(5):
            await one.send_all(b"typed\n")
            assert await other.receive_some(100) == b"typed\n"
            await other.send_all(b"shown\n")
            assert await one.receive_some(100) == b"shown\n"
