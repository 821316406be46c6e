"""Datagrams without an agent: over connections that keep boundaries, between sockets, and to multicast groups."""

from __future__ import annotations

import contextlib
import socket
import struct
from pathlib import Path

import pytest
import trio

from plugins.dgram.tests.world import Packets, PacketServer, Told, Udp, UnixDatagrams, echoing, settled
from vsockfwd.config import parse_config
from vsockfwd.errors import AddressError, ConfigError, TransportMissing
from vsockfwd.plugin import Carried, Denied, State
from vsockfwd_dgram import MODE
from vsockfwd_dgram.rule import DatagramEnd, RawDatagramRule

LARGEST = 65_507


def to(server: Udp) -> str:
    return f"udp:127.0.0.1:{server.address[1]}"


def at(work) -> tuple[str, int]:
    return "127.0.0.1", int(work.status().listening[0].rpartition(":")[2])


@contextlib.asynccontextmanager
async def tunnel(world, connect: str, far: Told, **keys):
    """Two rules joined by a path, as two machines are by a vsock port: gives where the first listens."""
    way = f"unix-seqpacket:{world.folder}/way"
    async with (
        world.raw(way, connect, far, **keys),
        world.raw("udp:127.0.0.1:0", way, **keys) as work,
    ):
        yield at(work)


async def test_boundaries_are_kept_both_ways_over_connections_from_nothing_to_the_largest(world):
    far = Told()
    with Udp() as server:
        async with tunnel(world, to(server), far) as bound, echoing(server):
            with Udp(to=bound) as client:
                for size in (0, 1, 0, 1472, 1473, LARGEST, 0):
                    client.send(bytes([size % 251]) * size)
                    assert await client.get() == bytes([size % 251]) * size
                many = [b"%d" % number * (number % 30) for number in range(300)]
                client.send(*many)
                assert [await client.get() for _ in many] == many
    for side in (world.near, far):
        (carried,) = side.of(Carried)
        assert (carried.datagrams_out, carried.datagrams_in, carried.dropped) == (307, 307, 0)
        assert carried.sent == carried.received == 1 + 1472 + 1473 + LARGEST + sum(map(len, many))


async def test_each_source_has_a_connection_of_its_own_and_its_own_answers(world):
    path = f"{world.folder}/server"
    with PacketServer(path) as server:
        async with world.raw("udp:127.0.0.1:0", f"unix-seqpacket:{path}") as work:
            with Udp(to=at(work)) as one, Udp(to=at(work)) as two:
                one.send(b"one")
                with await server.accept() as first:
                    two.send(b"two", b"two again")
                    with await server.accept() as second:
                        assert [await first.get(), await second.get(), await second.get()] == [
                            b"one",
                            b"two",
                            b"two again",
                        ]
                        second.send(b"for two")
                        first.send(b"for one")
                        assert (await one.get(), await two.get()) == (b"for one", b"for two")
                        assert work.status().connections == 2


async def test_a_connection_that_ends_ends_its_flow_alone_and_the_next_datagram_makes_another(world):
    path = f"{world.folder}/server"
    with PacketServer(path) as server:
        async with world.raw("udp:127.0.0.1:0", f"unix-seqpacket:{path}") as work:
            with Udp(to=at(work)) as client, Udp(to=at(work)) as other:
                other.send(b"hello")
                with await server.accept() as friend:
                    client.send(b"first")
                    (await server.accept()).sock.close()
                    await settled(lambda: len(world.near.closings()) == 1)
                    client.send(b"second")
                    with await server.accept() as again:
                        assert await again.get() == b"second"
                        friend.send(b"still here")
                        assert await other.get() == b"still here"


async def test_where_nobody_takes_connections_each_datagram_is_counted_as_refused(world):
    path = f"{world.folder}/server"
    PacketServer(path).sock.close()
    async with world.raw("udp:127.0.0.1:0", f"unix-seqpacket:{path}") as work:
        with Udp(to=at(work)) as client:
            for count in range(1, 4):
                client.send(b"x")
                await settled(lambda count=count: world.near.drops() == {"refused": count})


async def test_an_ended_connection_is_told_from_an_empty_message_and_takes_its_flow_along(world):
    path = f"{world.folder}/way"
    with Udp() as server:
        async with world.raw(f"unix-seqpacket:{path}", to(server)) as work:
            with Packets(path) as client:
                client.send(b"", b"x", b"")
                assert [await server.get() for _ in range(3)] == [b"", b"x", b""]
                assert world.near.closings() == []
            await settled(lambda: world.near.closings() == ["the connection was closed"])
            assert work.status().connections == 0


async def test_a_far_end_that_stalls_costs_its_own_flow_the_oldest_and_the_others_nothing(world):
    path = f"{world.folder}/server"
    with PacketServer(path) as server:
        async with world.raw("udp:127.0.0.1:0", f"unix-seqpacket:{path}") as work:
            with Udp(to=at(work)) as loud, Udp(to=at(work)) as quiet:
                loud.send(b"first")
                with await server.accept() as stalled:
                    for number in range(0, 4000, 50):
                        loud.send(*[b"%06d" % (number + more) + bytes(1400) for more in range(50)])
                        await trio.sleep(0.001)
                    await settled(lambda: world.near.drops()["queue full"] > 500)
                    quiet.send(b"me")
                    with await server.accept() as other:
                        assert await other.get() == b"me"
                    heard = []
                    while not heard or heard[-1][:6] != b"003999":
                        heard.append(await stalled.get())
                    assert heard[0] == b"first"
                    assert heard == [heard[0], *sorted(heard[1:])]
                    lost = sum(world.near.drops().values())
                    assert len(heard) + lost == 4001


async def test_beyond_the_cap_the_least_recently_used_connection_makes_room(world):
    path = f"{world.folder}/way"
    with Udp() as server:
        async with world.raw(f"unix-seqpacket:{path}", to(server), flows=2):
            with Packets(path) as one, Packets(path) as two:
                for client, word in ((one, b"1"), (two, b"2"), (one, b"1")):
                    client.send(word)
                    assert await server.get() == word
                with Packets(path) as three:
                    three.send(b"3")
                    assert await server.get() == b"3"
                    assert await two.get() == b"", "it was not the least recently used"
                    one.send(b"still here")
                    assert await server.get() == b"still here"
    assert world.near.closings()[0] == "made room for another"


async def test_an_idle_flow_ends_on_both_sides(world):
    far = Told()
    with Udp() as server:
        async with tunnel(world, to(server), far, idle=0.1) as bound:
            with Udp(to=bound) as client:
                client.send(b"x")
                assert await server.get() == b"x"
                await settled(lambda: len(world.near.closings()) == len(far.closings()) == 1)


async def test_who_is_not_allowed_is_turned_away(world):
    path = f"{world.folder}/way"
    table = f"""[[forward]]
kind = "raw-datagram"
listen = "unix-seqpacket:{path}"
connect = "udp:9"
allow = ["uid:4000000"]
"""
    (named,) = parse_config(table, "f.toml", {kind.name: kind for kind in MODE.rules}).rules
    async with world.at_work(named) as work:
        with Packets(path) as client:
            assert await client.get() == b""
        assert work.state is State.UP
    assert "does not allow it" in str(world.near.of(Denied)[0])


async def test_datagram_sockets_are_joined_without_anything_between(world):
    path = f"{world.folder}/log"
    with UnixDatagrams(path) as server:
        async with world.raw("udp:127.0.0.1:0", f"unix-dgram:{path}") as work, echoing(server):
            with Udp(to=at(work)) as client:
                client.send(b"log line")
                assert await client.get() == b"log line"


# --- what a rule may say

TABLE = '[[forward]]\nkind = "raw-datagram"\nlisten = "{}"\nconnect = "{}"\n'
KINDS = {kind.name: kind for kind in MODE.rules}


def test_a_table_becomes_a_typed_rule():
    text = TABLE.format("vsock-seqpacket:any:53", "udp:localhost:53") + "flows = 5\nallow = ['cid:3']\n"
    (named,) = parse_config(text, "f.toml", KINDS).rules
    assert isinstance(named.rule, RawDatagramRule)
    assert named.name == "raw-datagram vsock-seqpacket:any:53 → udp:localhost:53"


@pytest.mark.parametrize(
    ("listen", "connect", "line", "words"),
    [
        ("vsock:any:53", "udp:53", "", "vsock carries no datagrams – vsock-seqpacket: does"),
        ("udp:53", "unix:/a", "", "unix carries no datagrams"),
        ("udp:53", "udp:*:53", "", "one host and a port above 0"),
        ("udp:53", "vsock-dgram:3:53", "", "vsock has no datagrams (SOCK_DGRAM) but on VMware"),
        ("udp:53", "udp:54", "allow = ['cid:3']", "about connections"),
        ("udp:53", "udp:54", 'target = "3"', "unknown field 'target'"),
    ],
)
def test_what_cannot_be_joined_is_refused_by_name(listen, connect, line, words):
    with pytest.raises(ConfigError) as caught:
        parse_config(TABLE.format(listen, connect) + line, "f.toml", KINDS)
    assert words in caught.value.message


def test_a_connection_is_no_end_of_a_rule_through_an_agent():
    with pytest.raises(AddressError, match="goes without an agent"):
        DatagramEnd.read("vsock-seqpacket:3:53")


async def test_a_machine_without_vsock_says_so(world):
    # The tests' guard takes AF_VSOCK away.
    async with world.raw("udp:127.0.0.1:0", "vsock-seqpacket:2:53") as work:
        assert work.state is State.DOWN
        assert isinstance(work.error, TransportMissing)


# --- multicast

GROUP = "239.255.77.7"


def member() -> Udp:
    """A socket that hears the group on loopback."""
    udp = Udp((GROUP, 0))
    request = struct.pack("4s4si", socket.inet_aton(GROUP), bytes(4), socket.if_nametoindex("lo"))
    udp.sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
    return udp


@pytest.mark.parametrize("through_agent", [False, True])
async def test_a_multicast_group_is_joined_and_its_senders_are_answered(world, through_agent):
    with Udp() as server, contextlib.ExitStack() as stack:
        async with contextlib.AsyncExitStack() as running:
            listen = f"udp:{GROUP}:0,interface=lo"
            if through_agent:
                await running.enter_async_context(world.agent())
                work = await running.enter_async_context(world.at_work(world.rule(to(server), listen)))
            else:
                work = await running.enter_async_context(world.raw(listen, to(server)))
            await running.enter_async_context(echoing(server))
            port = int(work.status().listening[0].rpartition(":")[2])
            client = stack.enter_context(Udp(("0.0.0.0", 0)))  # no member: the group is here only if we joined it
            client.sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
            client.answer(b"anyone?", (GROUP, port))
            assert await client.get() == b"anyone?"


@pytest.mark.parametrize("group", ["[ff02::4242]:0,interface=lo", "[ff02::4242%lo]:0"])
async def test_an_ipv6_group_of_one_link_is_joined_there(world, group):
    async with world.raw(f"udp:{group}", "udp:9"):
        assert ["lo", "ff02" + "4242".rjust(28, "0")] in joined_groups(), world.near.problems()


def joined_groups() -> list[list[str]]:
    """The IPv6 groups that sockets of this machine have joined: interface and address."""
    return [line.split()[1:3] for line in Path("/proc/net/igmp6").read_text().splitlines()]


async def test_members_of_a_group_answer_by_their_own_addresses_and_are_heard(world):
    with member() as hears:
        port = hears.address[1]
        async with world.raw("udp:127.0.0.1:0", f"udp:{GROUP}:{port},interface=lo") as work:
            with Udp(to=at(work)) as client, Udp() as answers:
                client.send(b"anyone?")
                question, peer = await hears.receive()
                assert question == b"anyone?"
                answers.answer(b"I", peer)
                assert await client.get() == b"I"
