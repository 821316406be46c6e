"""A link's calls for a thread: bytes in order wherever cut, bounded waits, and an end that finds the thread."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import pytest
import trio

from vsockfwd.contract import Ended, Frame, ThreadChannel
from vsockfwd.engine.link import Link
from vsockfwd.engine.pump import BufferPool
from vsockfwd.errors import Code, Gone, NoSpace, PeerBrokeProtocol, Reset, ShuttingDown, Truncated
from vsockfwd.transport.base import SocketStream, Stream
from vsockfwd.transport.memory import memory_pair
from vsockfwd.transport.unix import FEATURES, credentials
from vsockfwd.wire.frames import AGENT_PREFACE, HEADER, FrameType, pack
from vsockfwd.wire.machine import Role, State
from vsockfwd.wire.messages import Failure, encode
from vsockfwd.wire.stream import StreamMachine

LONG = 5.0
"""Seconds that nothing here takes: who waits that long has not been told."""


def socket_pair() -> tuple[Stream, Stream]:
    """Whose calls a thread makes itself."""
    pair = socket.socketpair()
    for sock in pair:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
    near, far = (SocketStream(sock, FEATURES, credentials(sock), "a pair") for sock in pair)
    return near, far


Pair = Callable[[], tuple[Stream, Stream]]

both = pytest.mark.parametrize("pair", [socket_pair, memory_pair], ids=["socket", "memory"])


def open_link(pair: Pair) -> tuple[Link, Stream]:
    near, far = pair()
    machine = StreamMachine(Role.CLIENT)
    machine.ours = machine.theirs = State.OPEN
    machine.parser.limit = machine.frame_limit
    far.try_send(AGENT_PREFACE)
    return Link(near, machine, BufferPool()), far


async def fill(link: Link, buffer: memoryview, slice_: float = LONG) -> None:
    """In slices of so many seconds."""
    filled = 0
    while filled < len(buffer):
        rest = buffer[filled:]
        filled += await link.in_thread(lambda channel, rest=rest: channel.receive_into(rest, time.monotonic() + slice_))


@both
@pytest.mark.parametrize("cut", [7, 4096, 5000, 100_000])
async def test_a_buffers_bytes_arrive_in_order_wherever_frames_receives_and_slices_were_cut(cut: int, pair: Pair):
    link, far = open_link(pair)
    data = bytes(number * 7 % 251 for number in range(20_000))
    body = b"".join(pack(FrameType.DATA, data[at : at + 9_000]) for at in range(0, len(data), 9_000))
    sent = 2 * (pack(64, b"first") + body) + pack(FrameType.END)

    async def trickle() -> None:
        for at in range(0, len(sent), cut):
            await far.send_all(sent[at : at + cut])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trickle)
        for slice_ in (LONG, 0.0):
            event = await link.receive()
            assert isinstance(event, Frame)
            assert bytes(event.payload) == b"first"
            buffer = bytearray(len(data))
            await fill(link, memoryview(buffer), slice_)
            assert buffer == data
        assert isinstance(await link.in_thread(lambda channel: channel.receive(time.monotonic() + LONG)), Ended)
    assert link.machine.received == 2 * len(data)
    link.close()
    far.close()


@both
@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (pack(FrameType.DATA, bytes(10))[:-4], Truncated),
        (pack(FrameType.DATA, bytes(6)) + pack(64, b"frame"), PeerBrokeProtocol),
        (pack(FrameType.DATA, bytes(6)) + pack(FrameType.END), PeerBrokeProtocol),
        (pack(FrameType.DATA, bytes(11)), PeerBrokeProtocol),
        (HEADER.pack(FrameType.DATA, 0, 0, 11) + bytes(10), PeerBrokeProtocol),
        (pack(FrameType.DATA, bytes(6)) + pack(FrameType.RESET, encode(Failure("gone")), Code.GONE), Gone),
    ],
)
async def test_a_buffer_that_is_not_filled_as_announced_is_never_taken_for_full(
    sent: bytes, error: type[Exception], pair: Pair
):
    for cut in (1, len(sent)):
        link, far = open_link(pair)
        async with trio.open_nursery() as nursery:

            async def trickle(far: Stream = far, cut: int = cut) -> None:
                for at in range(0, len(sent), cut):
                    await far.send_all(sent[at : at + cut])
                far.close()

            nursery.start_soon(trickle)
            with pytest.raises(error):
                await fill(link, memoryview(bytearray(10)))
        link.close()


@both
async def test_patience_has_an_end_and_what_was_left_goes_out_whole(pair: Pair):
    link, far = open_link(pair)

    def impatient(channel: ThreadChannel) -> tuple[object, bool, bool]:
        now = time.monotonic()
        sent = channel.send_frames((70, b"before"), data=bytes(range(256)) * 4000, until=now)
        return channel.receive(now), sent, channel.flush(now)

    assert await link.in_thread(impatient) == (None, False, False)
    with trio.fail_after(LONG), pytest.raises(Reset, match="cut off"):  # a frame is half out: nothing may come between
        await link.send_frames((70, b"between"))
    said, heard = pack(70, b"before") + pack(FrameType.DATA, bytes(range(256)) * 4000), bytearray()

    async def hear() -> None:
        while len(heard) < len(said):
            heard.extend(await far.receive_some())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hear)
        while not await link.in_thread(lambda channel: channel.flush(time.monotonic() + 0.05)):
            await link.wait_writable()
        await link.send_frames()
    assert heard == said
    await link.send_frames((70, b"after"))
    link.close()
    far.close()


@both
async def test_who_sends_in_a_thread_learns_the_peers_own_reason(pair: Pair):
    link, far = open_link(pair)
    far.try_send(pack(FrameType.RESET, encode(Failure("no room left")), Code.NO_SPACE))
    far.close()

    def send(channel: ThreadChannel) -> None:
        while channel.send_frames(data=bytes(1 << 16), until=time.monotonic() + LONG):
            pass

    with pytest.raises(NoSpace, match="no room left"):
        await link.in_thread(send)
    link.close()


async def test_a_thread_that_waits_hears_that_its_link_was_abandoned_and_its_socket_is_closed_after_it():
    link, far = open_link(socket_pair)
    assert link.stream.sock is not None
    begun = trio.Event()

    def wait(channel: ThreadChannel) -> object:
        trio.from_thread.run_sync(begun.set)
        try:
            return channel.receive(time.monotonic() + LONG)
        finally:
            assert link.stream.sock.fileno() >= 0  # type: ignore[union-attr] # nobody else can have got the number

    async with trio.open_nursery() as nursery:

        async def stop() -> None:
            await begun.wait()
            link.abandon(ShuttingDown("the session is over"))

        nursery.start_soon(stop)
        with pytest.raises(ShuttingDown, match="the session is over"):
            await link.in_thread(wait)
    assert link.stream.sock.fileno() == -1
    far.close()


async def test_a_task_that_sends_and_a_thread_that_receives_share_a_socket():
    link, far = open_link(socket_pair)
    frames = [pack(64, bytes([number])) for number in range(200)]

    async def echo() -> None:
        for frame in frames:
            await far.send_all(frame)
            wanted = len(frame)
            while wanted:
                wanted -= len(await far.receive_some(wanted))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo)
        heard: list[int] = []

        def listen(channel: ThreadChannel) -> None:
            while len(heard) < len(frames):
                event = channel.receive(time.monotonic() + LONG)
                assert isinstance(event, Frame)
                heard.append(event.payload[0])
                trio.from_thread.run_sync(said.send_nowait, None)

        said, hear = trio.open_memory_channel[None](len(frames))

        async def answer() -> None:
            for number in range(len(frames)):
                await hear.receive()
                await link.send_frames((64, bytes([number])))

        nursery.start_soon(answer)
        await link.in_thread(listen)
    assert heard == list(range(200))
    link.close()
    far.close()
