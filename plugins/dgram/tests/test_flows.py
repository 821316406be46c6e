"""Datagrams through a forward and a real agent: what arrives, what is lost, and that every loss is counted."""

from __future__ import annotations

import contextlib
import errno
import functools
import socket
import struct

import msgspec
import pytest
import trio

from plugins.dgram.tests.world import DEADLINE, Udp, UnixDatagrams, echoing, settled
from vsockfwd.plugin import (
    BadRequest,
    Call,
    CannotCreate,
    Carried,
    Channel,
    Ended,
    Engine,
    Frame,
    Mode,
    NameNotResolved,
    NotFound,
    Opened,
    PeerBrokeProtocol,
    Problem,
    open_session,
    parse,
)
from vsockfwd.wire.messages import Hello
from vsockfwd_dgram import MODE, far
from vsockfwd_dgram import agent as agent_side
from vsockfwd_dgram import client as client_side
from vsockfwd_dgram.batch import BURST, Batch
from vsockfwd_dgram.frames import CLOSE, DATAGRAMS, DROPS, NAME, OPEN, Connect, Connected, record, records
from vsockfwd_dgram.sockets import bind

LARGEST = 65_507
"""Bytes that UDP over IPv4 carries."""


def to(server: Udp) -> str:
    host, port = server.address[:2]
    return f"udp:[{host}]:{port}" if ":" in host else f"udp:{host}:{port}"


# --- where it listens


@pytest.mark.parametrize(
    ("address", "error", "hint"),
    [
        ("udp:192.0.2.1:0", CannotCreate, "no such address"),
        ("unix-dgram:{folder}/no/where", NotFound, "directory does not exist"),
        ("unix-dgram:{folder}/file", CannotCreate, "stands there already"),
        ("unix-dgram:{folder}/used", CannotCreate, "stands there already"),
    ],
)
async def test_what_cannot_be_listened_on_is_said_with_what_to_do(tmp_path, address, error, hint):
    (tmp_path / "file").touch()
    with UnixDatagrams(f"{tmp_path}/used"), pytest.raises(error) as caught:
        await bind(parse(address.format(folder=tmp_path)))
    assert hint in caught.value.hint
    assert (tmp_path / "file").exists()


async def test_a_socket_left_by_a_killed_run_is_replaced_and_ours_goes_when_we_do(tmp_path):
    path = tmp_path / "left"
    UnixDatagrams(str(path)).sock.close()
    assert path.is_socket()
    (bound,) = await bind(parse(f"unix-dgram:{path}"))
    with UnixDatagrams(to=str(path)) as client:
        client.send(b"x")
        assert bound.sock.recv(10) == b"x"
    bound.close()
    assert not path.exists()


# --- what arrives


async def test_boundaries_are_kept_from_nothing_to_the_largest_datagram(world):
    with Udp() as server:
        async with world.agent(), world.forward(to(server)) as (bound,), echoing(server):
            with Udp(to=bound) as client:
                for size in (0, 1, 1472, 1473, 9000, LARGEST, 0):
                    client.send(bytes([size % 251]) * size)
                    assert await client.get() == bytes([size % 251]) * size


async def test_datagrams_of_a_flow_arrive_in_order_each_by_itself(world):
    sent = [b"%d" % number * (number % 40) for number in range(600)]
    with Udp() as server:
        async with world.agent(), world.forward(to(server)) as (bound,):
            with Udp(to=bound) as client:
                client.send(*sent)
                assert [await server.get() for _ in sent] == sent


async def test_a_burst_of_more_than_a_frame_arrives_though_nothing_follows_it(world):
    with Udp() as server:
        async with world.agent(), world.forward(to(server)) as (bound,):
            with Udp(to=bound) as client:
                client.send(b"first")
                await server.get()
                client.send(*[bytes([number]) * 1400 for number in range(BURST)])
                assert [(await server.get())[0] for _ in range(BURST)] == list(range(BURST))


async def test_a_thousand_sources_each_get_their_own_answers(world):
    with Udp() as server, contextlib.ExitStack() as stack:
        async with world.agent(), world.forward(to(server)) as (bound,), echoing(server):
            clients = [stack.enter_context(Udp(to=bound)) for _ in range(1000)]
            for number, client in enumerate(clients):
                client.send(b"%d" % number)
            for number, client in enumerate(clients):
                assert await client.get() == b"%d" % number
    assert world.near.drops() == world.far.drops() == {}


async def test_ten_thousand_sources_are_answered_each_while_few_may_live_at_once(world):
    # One socket that writes by ten thousand addresses of 127.0.0.0/8 is ten thousand clients (IP_PKTINFO, ip(7)).
    with Udp() as server, Udp(("0.0.0.0", 0)) as client:
        async with world.agent(), world.forward(to(server), flows=500) as (bound,), echoing(server):
            for first in range(0, 10_000, 100):
                sent = {}
                for number in range(first, first + 100):
                    source = bytes((127, 2, number >> 8, number & 0xFF))
                    info = (socket.IPPROTO_IP, 8, struct.pack("=i4s4s", 0, source, bytes(4)))
                    client.sock.sendmsg([b"%d" % number], [info], 0, bound)
                    sent[b"%d" % number] = source
                assert {await client.get() for _ in sent} == sent.keys()
    assert world.near.drops() == world.far.drops() == {}
    assert world.near.closings().count("made room for another") == 9_500


async def test_a_source_that_makes_room_within_one_batch_is_counted_not_mixed_up(world):
    gate = trio.Event()
    with Udp() as server, contextlib.ExitStack() as stack:
        async with world.agent(slow_at_first(gate)), world.forward(to(server), flows=1) as (bound,):
            clients = [stack.enter_context(Udp(to=bound)) for _ in range(10)]
            for number, client in enumerate(clients):  # without a pause: they are read as one batch
                client.send(b"%d" % number)
            gate.set()
            assert await server.get() in {b"%d" % number for number in range(10)}
            await settled(lambda: sum(world.near.drops().values()) >= 8)


async def test_what_a_source_has_sent_goes_before_the_end_of_its_flow(world):
    # Its two sockets are read in one go, before the stream is written to.
    with Udp() as server:
        async with world.agent(), world.forward(to(server), "udp:0", flows=1) as (four, six):
            with Udp(to=four) as one, Udp(("::1", 0), to=six) as two:
                one.send(b"one")
                two.send(b"two")
                assert {await server.get(), await server.get()} == {b"one", b"two"}
                await settled(lambda: len(world.near.closings()) == len(world.far.closings()) == 1)
    assert world.near.drops() == world.far.drops() == {}


@pytest.mark.parametrize("size", [10, 1400])
async def test_where_the_kernel_cannot_send_a_run_in_one_call_each_goes_by_itself(world, monkeypatch, size):
    def without_checksums(place: far.Place, interface: str) -> tuple[socket.socket, object]:
        sock, where = far_connect(place, interface)
        sock.setsockopt(socket.SOL_SOCKET, 11, 1)  # SO_NO_CHECK, with which UDP_SEGMENT is EINVAL
        return sock, where

    far_connect = far.connect
    monkeypatch.setattr(far, "connect", without_checksums)
    sent = [b"%06d" % number + bytes(size) for number in range(50)]
    with Udp() as server:
        async with world.agent(), world.forward(to(server)) as (bound,):
            with Udp(to=bound) as client:
                client.send(*sent)
                assert [await server.get() for _ in sent] == sent
    assert world.near.drops() == {}


async def test_without_the_call_for_many_datagrams_each_is_received_by_itself_all_the_same(world, monkeypatch):
    monkeypatch.setattr("vsockfwd_dgram.flows.Batch", functools.partial(Batch, lambda: None))
    with Udp() as server:
        async with world.agent(), world.forward(to(server), "udp:*:0") as bound, echoing(server):
            for own in ("127.0.0.1", "::1"):
                port = next(where[1] for where in bound)
                with Udp((own, 0), to=(own, port)) as client:
                    for size in (0, 1, 1472, LARGEST):
                        client.send(bytes(size))
                        assert await client.get() == bytes(size)
        here = f"{world.folder}/here"
        async with world.agent(), world.forward(to(server), f"unix-dgram:{here}"), echoing(server):
            with UnixDatagrams(f"{world.folder}/client", to=here) as client:
                client.send(b"log line", bytes(LARGEST + 1), bytes(70_000))
                assert await client.get() == b"log line"
                await settled(lambda: world.near.drops() == {"too long": 1, "too long, at the agent": 1})


async def test_datagrams_that_left_in_one_call_to_nobody_are_all_counted_as_refused(world):
    with Udp() as gone:
        nobody = to(gone)
    gate = trio.Event()
    async with world.agent(slow_at_first(gate)), world.forward(nobody) as (bound,):
        with Udp(to=bound) as client:
            client.send(*[b"x" * 10] * 50)
            await settled(lambda: bool(world.near.of(Opened)))
            gate.set()
            await settled(lambda: world.near.drops() == {"refused, at the agent": 50})


async def test_each_source_is_its_own_peer_to_the_far_end(world):
    with Udp() as server:
        async with world.agent(), world.forward(to(server)) as (bound,):
            with Udp(to=bound) as one, Udp(to=bound) as two:
                one.send(b"one")
                _, first = await server.receive()
                two.send(b"two")
                _, second = await server.receive()
                one.send(b"one again")
                assert (await server.receive())[1] == first != second


@pytest.mark.parametrize("own", ["127.0.0.1", "127.9.8.7", "::1"])
async def test_an_answer_comes_from_the_address_that_was_asked_where_all_are_listened_on(world, own):
    with Udp() as server:
        async with world.agent(), world.forward(to(server), "udp:*:0") as bound, echoing(server):
            port = bound[0][1]
            client_at = (own if ":" in own else "127.0.0.1", 0)
            with Udp(client_at, to=(own, port)) as client:  # connected: it hears that address alone
                client.send(b"who?")
                assert await client.get() == b"who?"


async def test_localhost_finds_a_server_that_listens_on_ipv6_alone(world):
    with Udp(("::1", 0)) as server:
        port = server.address[1]
        async with world.agent(), world.forward(f"udp:{port}") as (bound,), echoing(server):
            with Udp(to=bound) as client:
                client.send(b"lost on 127.0.0.1")
                await settled(lambda: world.near.drops()["refused, at the agent"] == 1)
                client.send(b"here?")
                assert await client.get() == b"here?"


async def test_unix_datagrams_pass_both_ways_between_paths(world):
    here, there = f"{world.folder}/here", f"{world.folder}/there"
    with UnixDatagrams(there) as server:
        async with world.agent(), world.forward(f"unix-dgram:{there}", f"unix-dgram:{here}"), echoing(server):
            with UnixDatagrams(f"{world.folder}/client", to=here) as client:
                for datagram in (b"", b"log line", bytes(LARGEST)):
                    client.send(datagram)
                    assert await client.get() == datagram
            with UnixDatagrams(to=here) as nameless:
                nameless.send(b"no answer wanted")
                await settled(lambda: world.near.drops()["sending failed"] == 1)
    assert "no name to answer to" in world.near.problems()
    assert not (world.folder / "here").exists()


async def test_a_unix_server_that_reads_slowly_loses_nothing_and_no_order(world):
    # The kernel keeps ten datagrams for it (net.unix.max_dgram_qlen).
    path = f"{world.folder}/log"
    with UnixDatagrams(path) as server:
        async with world.agent(), world.forward(f"unix-dgram:{path}") as (bound,):
            with Udp(to=bound) as client:
                sent = [b"line %d" % number for number in range(300)]
                client.send(*sent)
                got = []
                for _ in sent:
                    got.append(await server.get())
                    await trio.lowlevel.checkpoint()
                assert got == sent


# --- who pays


class _SlowCall:
    """A call whose channel is read only when the gate opens: a stream that is stuck until then."""

    def __init__(self, call: Call, gate: trio.Event) -> None:
        self._call = call
        self._gate = gate
        self.peer, self.report, self.arguments = call.peer, call.report, call.arguments

    async def accept(self, reply: Connected) -> Channel:
        channel = await self._call.accept(reply)
        await self._gate.wait()
        return channel


def slow_at_first(gate: trio.Event) -> Mode:
    async def serve(call: Call) -> None:
        await MODE.serve(_SlowCall(call, gate))

    return Mode(NAME, "reads nothing until the gate opens", serve=serve, resources=MODE.resources)


async def test_a_flow_that_floods_costs_those_who_trickle_nothing(world):
    gate = trio.Event()
    flood = [b"%06d" % number + bytes(1400) for number in range(3000)]
    with Udp() as server:
        async with world.agent(slow_at_first(gate)), world.forward(to(server)) as (bound,):
            with Udp(to=bound) as loud, Udp(to=bound) as quiet:
                for at in range(0, len(flood), 100):
                    loud.send(*flood[at : at + 100])
                    quiet.send(b"me %d" % at)
                    await trio.sleep(0.001)
                await settled(lambda: world.near.drops()["queue full"] > 500)
                gate.set()
                heard = []

                async def listen() -> None:
                    while True:
                        heard.append(await server.get())

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(listen)
                    await settled(lambda: len(heard) + sum(world.near.drops().values()) == len(flood) + 30)
                    nursery.cancel_scope.cancel()
    assert [datagram for datagram in heard if datagram.startswith(b"me")] == [
        b"me %d" % at for at in range(0, 3000, 100)
    ]
    louds = [datagram for datagram in heard if not datagram.startswith(b"me")]
    assert louds == sorted(louds)
    assert louds[-1] == flood[-1], "the oldest are dropped, not the newest"
    assert world.near.drops().keys() == {"queue full"}


async def test_what_the_kernel_threw_away_is_counted_too(world):
    with Udp() as server:
        async with world.agent(), world.forward(to(server)) as (bound,):
            with Udp(to=bound) as client:
                client.send(*[b"x" * 1000] * 4000)  # without a pause in which they could be read
                await settled(lambda: world.near.drops()["socket buffer full"] > 0)
                heard = 0
                while heard + sum(world.near.drops().values()) < 4000:
                    await server.get()
                    heard += 1


async def test_what_the_far_side_cannot_carry_is_counted_and_never_clipped(world):
    here = f"{world.folder}/here"
    with Udp() as server:
        async with world.agent(), world.forward(to(server), f"unix-dgram:{here}"):
            with UnixDatagrams(f"{world.folder}/client", to=here) as client:
                client.send(bytes(LARGEST + 1), bytes(70_000), b"small")
                assert await server.get() == b"small"
                await settled(lambda: len(world.near.drops()) == 2)
    assert world.near.drops() == {"too long": 1, "too long, at the agent": 1}
    assert world.far.drops() == {"too long": 1, "too long, at the client": 1}


async def test_a_peer_that_takes_small_frames_only_gets_what_fits_them(world, monkeypatch):
    monkeypatch.setattr("vsockfwd.engine.session.Hello", functools.partial(Hello, frame=4096))
    with Udp() as server:
        async with world.agent(), world.forward(to(server)) as (bound,):
            with Udp(to=bound) as client:
                client.send(bytes(5000), *[bytes(4000)] * 5)
                assert [len(await server.get()) for _ in range(5)] == [4000] * 5
                await settled(lambda: world.near.drops() == {"too long": 1})


# --- how long a flow lives


async def test_an_idle_flow_ends_and_its_source_gets_another(world):
    with Udp() as server:
        async with world.agent(), world.forward(to(server), idle=0.1) as (bound,):
            with Udp(to=bound) as client:
                client.send(b"first")
                _, first = await server.receive()
                await settled(lambda: "idle for 0.1 s" in world.near.closings())
                server.answer(b"too late", first)
                client.send(b"second")
                _, second = await server.receive()
                server.answer(b"in time", second)
                assert await client.get() == b"in time"
                assert first != second


@pytest.mark.parametrize("talks", ["near", "far"])
async def test_a_flow_lives_while_either_side_talks(world, talks):
    with Udp() as server:
        async with world.agent(), world.forward(to(server), idle=0.2) as (bound,):
            with Udp(to=bound) as client:
                client.send(b"hello")
                _, peer = await server.receive()
                for _ in range(6):
                    await trio.sleep(0.05)
                    if talks == "near":
                        client.send(b"still here")
                        assert (await server.receive())[1] == peer
                    else:
                        server.answer(b"still here", peer)
                        assert await client.get() == b"still here"
                assert world.near.closings() == []
                await settled(lambda: world.near.closings() == ["idle for 0.2 s"])


async def test_beyond_the_cap_the_least_recently_used_source_makes_room(world):
    with Udp() as server:
        async with world.agent(), world.forward(to(server), flows=2) as (bound,):
            near = bound
            with Udp(to=near) as one, Udp(to=near) as two, Udp(to=near) as three:
                peers = []
                for client in (one, two, one, three, one):
                    client.send(b"x")
                    peers.append((await server.receive())[1])
                assert peers[0] == peers[2] == peers[4]
                server.answer(b"for two", peers[1])
                server.answer(b"for three", peers[3])
                assert await three.get() == b"for three"
                with pytest.raises(BlockingIOError):
                    two.sock.recv(10)
    assert world.near.closings()[0] == "made room for another"
    assert "more than 2 sources at once" in world.near.problems()


async def test_sources_that_come_while_the_stream_is_stuck_make_room_too(world):
    gate = trio.Event()  # stays shut
    async with world.agent(slow_at_first(gate)), world.forward("udp:9", flows=2) as (bound,):
        for _ in range(5):
            with Udp(to=bound) as client:
                client.send(b"x")
        await settled(lambda: world.near.closings() == ["made room for another"] * 3)


async def test_the_agent_grants_no_more_flows_than_it_has_descriptors_for(world, monkeypatch):
    monkeypatch.setattr(agent_side, "sockets_to_spare", lambda: 3)
    with Udp() as server, contextlib.ExitStack() as stack:
        async with world.agent(), world.forward(to(server), flows=10) as (bound,), echoing(server):
            for _ in range(5):
                client = stack.enter_context(Udp(to=bound))
                client.send(b"x")
                assert await client.get() == b"x"
    assert "for 3 flows at once, not for 10" in world.near.problems()


async def test_an_agent_out_of_descriptors_ends_its_oldest_flow_and_goes_on(world, monkeypatch):
    def scarce(place: far.Place, interface: str) -> tuple[socket.socket, object]:
        if next(misses, None):
            raise OSError(errno.EMFILE, "Too many open files")
        return far_connect(place, interface)

    far_connect, misses = far.connect, iter([False, True])
    monkeypatch.setattr(far, "connect", scarce)
    with Udp() as server:
        async with world.agent(), world.forward(to(server)) as (bound,), echoing(server):
            with Udp(to=bound) as one, Udp(to=bound) as two:
                for client in (one, two, one):
                    client.send(b"x")
                    assert await client.get() == b"x"
    assert "the far side ran out of descriptors" in world.near.closings()


# --- what goes wrong at the far end


async def test_a_refusal_on_one_flow_leaves_the_others_alone(world):
    with Udp() as server:
        async with world.agent(), world.forward(to(server)) as (bound,):
            with Udp(to=bound) as friend, Udp(to=bound) as stranger:
                friend.send(b"hello")
                _, peer = await server.receive()
                server.sock.connect(peer)  # the kernel refuses everyone else from now on
                for number in range(5):
                    stranger.send(b"let me in")
                    await settled(lambda count=number + 1: world.near.drops()["refused, at the agent"] == count)
                    friend.send(b"still here")
                    assert await server.get() == b"still here"
                    server.send(b"so am I")
                    assert await friend.get() == b"so am I"
    assert world.near.drops() == {"refused, at the agent": 5}
    assert world.far.drops() == {"refused": 5}


async def test_a_far_end_that_restarts_is_found_again_by_the_same_flow(world):
    with Udp() as server:
        port = server.address
        async with world.agent(), world.forward(to(server)) as (bound,):
            with Udp(to=bound) as client:
                client.send(b"before")
                _, peer = await server.receive()
                server.sock.close()
                client.send(b"lost", b"lost too")
                await settled(lambda: world.near.drops()["refused, at the agent"] == 2)
                with Udp(port) as again:
                    client.send(b"after")
                    assert await again.receive() == (b"after", peer)


async def test_a_unix_server_that_restarts_is_found_again_under_its_path(world):
    path = world.folder / "log"
    async with world.agent(), world.forward(f"unix-dgram:{path}") as (bound,):
        with Udp(to=bound) as client:
            client.send(b"nobody there yet")
            await settled(lambda: world.near.drops()["refused, at the agent"] == 1)
            for word in (b"first", b"second"):
                with UnixDatagrams(str(path)) as server:
                    client.send(word)
                    assert await server.get() == word
                path.unlink()
            client.send(b"nobody there any more")
            await settled(lambda: world.near.drops()["refused, at the agent"] == 2)


# --- what goes wrong between


async def test_after_the_agent_was_lost_the_next_datagrams_find_another(world):
    async with trio.open_nursery() as nursery:
        agent = await world.start_agent(nursery)
        with Udp() as server:
            async with world.forward(to(server)) as (bound,):
                with Udp(to=bound) as client:
                    client.send(b"before")
                    assert await server.get() == b"before"
                    agent.cancel()
                    await settled(lambda: "no stream" in world.near.problems())
                    for count in range(1, 4):
                        client.send(b"lost")
                        await settled(lambda count=count: world.near.drops()["no stream"] == count)
                    agent = await world.start_agent(nursery)
                    await settled(lambda: _arrives(client, server))
        agent.cancel()
    assert len([event for event in world.near.of(Problem) if "no stream" in event.why]) == 2, "told again and again"


async def test_what_came_while_there_was_no_stream_is_not_delivered_late(world, monkeypatch):
    monkeypatch.setattr(client_side, "_PAUSES", (0.2, 0.2))
    async with trio.open_nursery() as nursery:
        agent = await world.start_agent(nursery)
        with Udp() as server:
            async with world.forward(to(server)) as (bound,):
                with Udp(to=bound) as client:
                    agent.cancel()
                    await settled(lambda: "no stream" in world.near.problems())
                    client.send(b"lost")
                    await settled(lambda: "no such socket" in world.near.problems())
                    agent = await world.start_agent(nursery)
                    client.send(b"stale")
                    await settled(lambda: world.near.drops()["no stream"] == 2)
                    client.send(b"fresh")
                    assert await server.get() == b"fresh"
        agent.cancel()


def _arrives(client: Udp, server: Udp) -> bool:
    client.send(b"?")
    with contextlib.suppress(BlockingIOError):
        return bool(server.sock.recv(100))
    return False


def speaking(*frames: tuple[int, bytes]) -> Mode:
    """An agent's mode that hears one frame, says these, and then listens until the client is done."""

    async def serve(call: Call) -> None:
        channel = await call.accept(Connected(5))
        await channel.receive()
        await channel.send_frames(*frames)
        while not isinstance(await channel.receive(), Ended):
            pass

    return Mode(NAME, "says what it is told to", serve=serve)


async def test_an_answer_that_crosses_the_end_of_its_flow_is_counted(world):
    async with world.agent(speaking((DATAGRAMS, record(99, b"late")))), world.forward("udp:9") as (bound,):
        with Udp(to=bound) as client:
            client.send(b"x")
            await settled(lambda: world.near.drops() == {"its flow is over": 1})


async def test_a_reason_that_a_later_version_counts_is_shown_by_its_number(world):
    async with world.agent(speaking((DROPS, record(77, b"\0\0\0\5")))), world.forward("udp:9") as (bound,):
        with Udp(to=bound) as client:
            client.send(b"x")
            await settled(lambda: world.near.drops() == {"reason 77, at the agent": 5})


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        ((DATAGRAMS, b"\0\0\0\1\0"), "ends within a record's header"),
        ((DATAGRAMS, b"\0\0\0\1\0\7four"), "announced a datagram of 7 bytes and sent 4"),
        ((OPEN, record(1, b"")), "announced a flow"),
        ((DROPS, record(1, b"")), "a count of 0 bytes"),
        ((90, b""), "a frame of type 90"),
    ],
)
async def test_an_agent_that_breaks_the_protocol_is_named_and_the_forward_lives_on(world, frame, words):
    async with world.agent(speaking(frame)), world.forward("udp:9") as (bound,):
        with Udp(to=bound) as client:
            client.send(b"x")
            await settled(lambda: words in world.near.problems())
            await settled(lambda: words in world.far.problems())


async def test_a_client_that_breaks_the_protocol_is_told_so(world):
    async with world.agent(), open_session(Engine(), world.target) as session:
        opened = await session.open(NAME, Connect("udp:9", 5))
        assert opened.reply(Connected).flows == 5
        await opened.channel.send_frames((CLOSE, record(7, b"never was")), (OPEN, record(1, b"a") + record(1, b"b")))
        with pytest.raises(PeerBrokeProtocol, match="flow 1 twice"), trio.fail_after(DEADLINE):
            while isinstance(await opened.channel.receive(), Frame):
                pass
        opened.channel.close()


async def test_a_client_that_opens_more_flows_than_it_was_granted_loses_its_oldest(world):
    async with world.agent(), open_session(Engine(), world.target) as session:
        channel = (await session.open(NAME, Connect("udp:9", 2))).channel
        await channel.send_frames((OPEN, b"".join(record(number, b"") for number in (1, 2))))
        await channel.send_frames((DATAGRAMS, record(1, b"used")), (OPEN, record(3, b"")))
        closed: list[int] = []
        with trio.fail_after(DEADLINE):
            while not closed:
                event = await channel.receive()
                assert isinstance(event, Frame)
                if event.kind == CLOSE:
                    closed += [number for number, _ in records(event.payload)]
        assert closed == [2]
        channel.close()


@pytest.mark.parametrize("text", ["tcp:80", "udp:*:53", "udp:0", "nonsense", "udp:a b:1"])
async def test_what_datagrams_cannot_be_sent_to_is_refused_before_the_policy_is_asked(world, text):
    async with world.agent(), open_session(Engine(), world.target) as session:
        with pytest.raises(BadRequest):
            await session.open(NAME, Connect(text, 5))


@pytest.mark.parametrize("name", ["no-such-name.invalid", "a..b"])
async def test_a_name_that_the_agent_cannot_resolve_is_said_at_once(world, name):
    async with world.agent(), open_session(Engine(), world.target) as session:
        with pytest.raises(NameNotResolved, match=name):
            await session.open(NAME, Connect(f"udp:{name}:53", 5))


# --- the end


async def test_at_the_end_both_sides_say_what_became_of_the_datagrams(world):
    with Udp() as server:
        async with world.agent():
            async with world.forward(to(server)) as (bound,), echoing(server):
                with Udp(to=bound) as client:
                    client.send(b"12345")
                    await client.get()
            await settled(lambda: bool(world.far.of(Carried)))
    for side in (world.near, world.far):
        (summary,) = side.of(Carried)
        assert "1 datagrams out, 1 in, 0 dropped, 5 bytes out, 5 bytes in" in str(summary)


async def test_what_was_dropped_last_is_told_at_the_end(world, monkeypatch):
    monkeypatch.setattr("vsockfwd_dgram.flows.REPORT_INTERVAL", 60.0)  # but for the first, only the end tells
    here = f"{world.folder}/here"
    with Udp() as server:
        async with world.agent():
            async with world.forward(to(server), f"unix-dgram:{here}"):
                with UnixDatagrams(f"{world.folder}/client", to=here) as client:
                    client.send(bytes(70_000))
                    await settled(lambda: world.far.drops() == {"too long, at the client": 1})
                    client.send(bytes(70_000), bytes(LARGEST + 1), b"small")
                    assert await server.get() == b"small"
            await settled(lambda: bool(world.far.of(Carried)))
    assert world.near.drops() == {"too long": 2, "too long, at the agent": 1}
    assert world.far.drops() == {"too long, at the client": 2, "too long": 1}


def test_the_policy_is_asked_about_the_address_in_its_one_spelling():
    (asked,) = MODE.resources(msgspec.msgpack.encode(Connect("udp:[0:0:0:0:0:0:0:1]:053", 5)))
    assert asked.name == str(parse("udp:[0:0:0:0:0:0:0:1]:53"))
