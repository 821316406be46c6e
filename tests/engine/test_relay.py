"""The raw relay: every end is passed on as what it was, nothing is lost, nothing is left open."""

from __future__ import annotations

import errno
import os
import random
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from tests.faults.injector import injected
from vsockfwd.engine.pump import BufferPool
from vsockfwd.engine.relay import relay
from vsockfwd.engine.relays import Relays
from vsockfwd.events import Ending, Outcome
from vsockfwd.identity import OwnPeer
from vsockfwd.transport import tcp, unix
from vsockfwd.transport.base import Features, SocketStream, Stream
from vsockfwd.transport.descriptor import DescriptorStream
from vsockfwd.transport.memory import memory_pair

BIG = 30 << 20


def tcp_pair(name: str) -> tuple[SocketStream, SocketStream]:
    """A stream for the relay, and its neighbour."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    for sock in (near, far):
        sock.setblocking(False)
    features = Features(reset=True)
    return (
        SocketStream(near, features, OwnPeer(name), name),
        SocketStream(far, features, OwnPeer(name), f"neighbour of {name}"),
    )


def unix_pair(name: str) -> tuple[SocketStream, SocketStream]:
    """The same over UNIX sockets, with what their transport says of them."""
    near, far = socket.socketpair(socket.AF_UNIX)
    for sock in (near, far):
        sock.setblocking(False)
    return SocketStream(near, unix.FEATURES, OwnPeer(name), name), SocketStream(
        far, unix.FEATURES, OwnPeer(name), "far"
    )


def transports_tcp_pair(name: str) -> tuple[SocketStream, SocketStream]:
    near, far = tcp_pair(name)
    near.features = far.features = tcp.FEATURES
    return near, far


class Joined:
    """A relay at work between two neighbours."""

    def __init__(self, client: Stream, server: Stream) -> None:
        self.client = client
        self.server = server
        self.outcome: Outcome | None = None


Pair = Callable[[str], tuple[Stream, Stream]]
Run = Callable[..., Awaitable[Outcome]]


@pytest.fixture(params=["tcp", "memory"])
def pair(request: pytest.FixtureRequest) -> Pair:
    return tcp_pair if request.param == "tcp" else lambda name: memory_pair(near=name, far=name)


async def alone(near: Stream, far: Stream, buffers: BufferPool) -> Outcome:
    """`relay`, as what has the process to itself."""
    return await relay(near, far, buffers, alone=True)


async def in_a_group(near: Stream, far: Stream, buffers: BufferPool) -> Outcome:
    """`relay`, by a group that runs its relays without tasks where it can."""
    outcomes, over = list[Outcome](), trio.Event()

    def ended(outcome: Outcome) -> None:
        outcomes.append(outcome)
        over.set()

    async with Relays(buffers, pytest.fail) as relays:
        relays.begin(near, far, ended)
        await over.wait()
    assert len(outcomes) == 1
    return outcomes[0]


@pytest.fixture(params=[relay, alone, in_a_group], ids=["by tasks", "alone", "in a group"])
def run(request: pytest.FixtureRequest) -> Run:
    return request.param


async def start(nursery: trio.Nursery, pair: Pair, run: Run = relay, **how: float) -> Joined:
    near, client = pair("near")
    far, server = pair("far")
    joined = Joined(client, server)

    async def note() -> None:
        joined.outcome = await run(near, far, BufferPool(), **how)

    nursery.start_soon(note)
    return joined


async def read_all(stream: Stream) -> int:
    total = 0
    while data := await stream.receive_some(1 << 20):
        total += len(data)
    return total


@pytest.mark.parametrize("first", ["client", "server"])
async def test_a_reply_after_a_half_close_from_either_side_arrives_whole(pair, run, first):
    async with trio.open_nursery() as nursery:
        joined = await start(nursery, pair, run)
        asks, answers = (joined.client, joined.server) if first == "client" else (joined.server, joined.client)
        await asks.send_all(b"question")
        await asks.send_eof()
        assert await answers.receive_some() == b"question"
        assert await answers.receive_some() == b""

        async def answer() -> None:
            block = bytes(1 << 20)
            for _ in range(BIG >> 20):
                await answers.send_all(block)
            await answers.send_eof()

        nursery.start_soon(answer)
        with trio.fail_after(20):
            assert await read_all(asks) == BIG
    assert joined.outcome is not None
    assert joined.outcome.clean
    assert sorted((joined.outcome.sent, joined.outcome.received)) == [8, BIG]
    joined.client.close()
    joined.server.close()


@pytest.mark.parametrize("far_pair", [unix_pair, transports_tcp_pair], ids=["to unix", "to tcp"])
@pytest.mark.parametrize("near_pair", [unix_pair, transports_tcp_pair], ids=["from unix", "from tcp"])
async def test_bulk_arrives_byte_for_byte_whatever_way_the_kernel_moves_it(near_pair, far_pair, run):
    near, client = near_pair("near")
    far, server = far_pair("far")
    content = random.Random(1).randbytes(1 << 20)
    outcomes: list[Outcome] = []

    async def upload(stream: Stream) -> None:
        for turn in range(BIG >> 20):
            await stream.send_all(content[turn:] + content[:turn])
            if turn % 7 == 0:  # a lull: what comes next comes in small pieces again
                await trio.testing.wait_all_tasks_blocked()
                await stream.send_all(b"small")
        await stream.send_eof()

    async def receive(stream: Stream) -> None:
        expected = b"".join(
            content[turn:] + content[:turn] + (b"small" if turn % 7 == 0 else b"") for turn in range(BIG >> 20)
        )
        at = 0
        while data := await stream.receive_some(300_000 + at % 70_001):
            assert data == expected[at : at + len(data)], f"other bytes from {at} on"
            at += len(data)
        assert at == len(expected)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for stream in (client, server):
                nursery.start_soon(upload, stream)
                nursery.start_soon(receive, stream)
            outcomes.append(await run(near, far, BufferPool()))
    assert outcomes[0].clean
    assert outcomes[0].sent == outcomes[0].received == BIG + 5 * 5
    client.close()
    server.close()


async def test_bulk_goes_into_a_pipe_and_ends_with_its_reader(run):
    near, client = unix_pair("near")
    reading, writing = os.pipe()
    far = DescriptorStream(reading, writing, "itself", own=True)
    content = random.Random(2).randbytes(8 << 20)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, near, far, BufferPool())
            nursery.start_soon(client.send_all, content)
            got = b""
            while len(got) < len(content):
                got += await client.receive_some(1 << 20)
            assert got == content
            client.abort()


async def test_a_relay_that_is_alone_and_never_waits_leaves_others_their_turn(tmp_path, monkeypatch):
    monkeypatch.setattr("vsockfwd.engine.alone.LONGEST", 0.001)
    (tmp_path / "hole").touch()
    os.truncate(tmp_path / "hole", 128 << 20)
    numbers = [os.open(path, os.O_RDWR) for path in (tmp_path / "hole", os.devnull, os.devnull, os.devnull)]
    near, far = (DescriptorStream(*pair, "file", own=True) for pair in (numbers[:2], numbers[2:]))
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        outcome = await alone(near, far, BufferPool())
        nursery.cancel_scope.cancel()
    assert outcome.sent == 128 << 20
    assert turns > 2


async def test_a_server_that_speaks_first_is_heard(pair, run):
    async with trio.open_nursery() as nursery:
        joined = await start(nursery, pair, run)
        await joined.server.send_all(b"220 hello\r\n")
        with trio.fail_after(5):
            assert await joined.client.receive_some() == b"220 hello\r\n"
        joined.client.close()
        joined.server.close()


async def test_a_reset_of_the_server_reaches_the_client_as_a_reset_not_as_an_end(pair, run):
    async with trio.open_nursery() as nursery:
        joined = await start(nursery, pair, run)
        await joined.server.send_all(b"half of it")
        with trio.fail_after(5):
            assert await joined.client.receive_some() == b"half of it"
            joined.server.abort()
            with pytest.raises(trio.BrokenResourceError) as caught:
                await joined.client.receive_some()
            assert isinstance(caught.value.__cause__, OSError)
            assert caught.value.__cause__.errno == errno.ECONNRESET
    assert joined.outcome is not None
    assert joined.outcome.ending is Ending.RESET
    assert joined.outcome.by == "far"
    joined.client.close()


async def test_an_answer_given_before_the_server_stopped_listening_is_delivered(pair, run):
    """HTTP's 413: the server answers an upload it does not want and closes."""
    async with trio.open_nursery() as nursery:
        joined = await start(nursery, pair, run)
        await joined.client.send_all(b"first part of an upload")
        assert await joined.server.receive_some()
        await joined.server.send_all(b"413 too large")
        await joined.server.send_eof()
        with trio.fail_after(5):
            assert await joined.client.receive_some() == b"413 too large"
            assert await joined.client.receive_some() == b""
        joined.server.close()
        with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
            while True:
                await joined.client.send_all(bytes(1 << 16))
    assert joined.outcome is not None
    assert joined.outcome.ending is Ending.RESET
    joined.client.close()


async def test_the_shutdown_is_withheld_from_a_dialled_side_that_cannot_carry_it(run):
    near, client = memory_pair()
    far, server = memory_pair(Features(half_close=False))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, near, far, BufferPool())
        await client.send_all(b"question")
        await client.send_eof()
        assert await server.receive_some() == b"question"
        with trio.move_on_after(0.05) as scope:
            await server.receive_some()
        assert scope.cancelled_caught, "the server saw an end that would have killed its reply"
        await server.send_all(b"reply")
        server.close()
        with trio.fail_after(5):
            assert await client.receive_some() == b"reply"
            assert await client.receive_some() == b""
    client.close()


async def test_the_end_of_the_server_reaches_a_client_whose_transport_cannot_carry_a_half_close(run):
    near, client = memory_pair(Features(half_close=False))
    far, server = memory_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, near, far, BufferPool())
        await server.send_all(b"all there is")
        await server.send_eof()
        with trio.fail_after(5):
            assert await client.receive_some() == b"all there is"
            assert await client.receive_some() == b""
        client.close()
        server.close()


async def test_idle_relays_end_when_asked_to(pair):
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            joined = await start(nursery, pair, idle=0.1)
    assert joined.outcome is not None
    assert joined.outcome.ending is Ending.TIMED_OUT
    joined.client.close()
    joined.server.close()


async def test_half_open_relays_are_bounded_by_inactivity_only_when_asked_to(pair):
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            joined = await start(nursery, pair, half_open=0.1)
            await joined.client.send_eof()
            assert await joined.server.receive_some() == b""
    assert joined.outcome is not None
    assert joined.outcome.ending is Ending.TIMED_OUT
    joined.client.close()
    joined.server.close()


async def test_a_cancelled_relay_resets_both_neighbours_and_keeps_no_socket(pair, run):
    async with trio.open_nursery() as nursery:
        joined = await start(nursery, pair, run)
        await joined.client.send_all(b"x")
        assert await joined.server.receive_some() == b"x"
        nursery.cancel_scope.cancel()
    for stream in (joined.client, joined.server):
        with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        stream.close()


async def test_an_idle_relay_holds_no_buffer(pair, run):
    class Counting(BufferPool):
        lent = 0

        def borrow(self) -> memoryview:
            Counting.lent += 1
            return super().borrow()

        def give_back(self, buffer: memoryview) -> None:
            Counting.lent -= 1
            super().give_back(buffer)

    near, client = pair("near")
    far, server = pair("far")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, near, far, Counting())
        await client.send_all(b"x")
        assert await server.receive_some() == b"x"
        await trio.testing.wait_all_tasks_blocked()
        assert Counting.lent == 0
        nursery.cancel_scope.cancel()
    client.close()
    server.close()


async def test_a_group_lets_a_slow_reader_and_a_burst_share(run):
    """More than the kernel holds, to one who reads late: the others are served meanwhile, and it gets every byte."""
    async with trio.open_nursery() as nursery:
        slow, quick = [await start(nursery, tcp_pair, run) for _ in range(2)]
        sent = trio.Event()

        async def flood() -> None:
            for number in range(BIG >> 20):
                await slow.server.send_all(bytes([number]) * (1 << 20))
            await slow.server.send_eof()
            sent.set()

        nursery.start_soon(flood)
        with trio.fail_after(20):
            for _ in range(100):
                await quick.client.send_all(b"ping")
                assert await quick.server.receive_some() == b"ping"
            assert not sent.is_set()
            got = bytearray()
            while piece := await slow.client.receive_some(1 << 20):
                got += piece
        assert got == b"".join(bytes([number]) * (1 << 20) for number in range(BIG >> 20))
        for joined in (slow, quick):
            joined.client.close()
            joined.server.close()


async def test_many_slow_readers_hold_little_memory():
    pool = BufferPool()
    lent = [pool.borrow() for _ in range(100)]
    assert sum(map(len, lent)) < 25 << 20
    for buffer in lent:
        pool.give_back(buffer)
    assert len(pool.borrow()) == pool.size


async def test_a_bug_in_one_relay_of_a_group_is_reported_and_ends_that_one_alone():
    reported, outcomes = list[Any](), list[Outcome]()

    def broken(buffer: memoryview) -> int:
        raise RuntimeError("a bug")

    async with Relays(BufferPool(), reported.append) as relays:
        pairs = [tcp_pair(name) for name in ("a", "b", "c", "d")]
        (a, client), (b, _), (c, other_client), (d, other_server) = pairs
        a.try_receive_into = broken  # type: ignore[method-assign]
        relays.begin(a, b, outcomes.append)
        relays.begin(c, d, outcomes.append)
        with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
            await client.receive_some()
        await other_client.send_all(b"served")
        with trio.fail_after(5):
            assert await other_server.receive_some() == b"served"
    assert [outcome.ending for outcome in outcomes] == [Ending.FAILED, Ending.STOPPED]
    assert "RuntimeError" in reported[0].detail
    for _, neighbour in pairs:
        neighbour.close()


@pytest.mark.parametrize("which", [0, 1])
async def test_what_the_kernel_will_not_watch_is_reset_and_let_go(which: int):
    (near, client), (far, server) = tcp_pair("near"), tcp_pair("far")
    ended: list[Outcome] = []
    with injected() as faults:
        async with Relays(BufferPool(), pytest.fail) as relays:
            faults.arm(which)
            relays.begin(near, far, ended.append)
            assert faults.hit is not None
            assert faults.hit[0] == "register"
    assert [outcome.ending for outcome in ended] == [Ending.FAILED]
    assert not relays.live
    for neighbour in (client, server):
        with pytest.raises(trio.BrokenResourceError):
            await neighbour.receive_some()
        neighbour.close()


async def test_a_question_and_its_answer_cost_the_calls_that_they_take_and_no_more():
    with injected() as faults:
        (near, client), (far, server) = unix_pair("near"), unix_pair("far")
        over = trio.Event()
        async with Relays(BufferPool(), pytest.fail) as relays:
            await trio.testing.wait_all_tasks_blocked()
            faults.arm()
            client.sock.send(b"question")
            relays.begin(near, far, lambda _: over.set())
            assert server.sock.recv(10) == b"question"
            server.sock.send(b"answer")
            server.close()
            with trio.fail_after(5):
                await client.wait_readable()
                assert client.sock.recv(10) == b"answer"
                await client.wait_readable()
                assert client.sock.recv(10) == b""
                client.close()
                await over.wait()
    moved = ["recv_into", "send"]
    assert faults.calls == [*moved, "register", "register", *moved, "recv_into", "recv_into"]
