"""The policy where requests come in: what a name comes to, how many streams, how fast, which modes."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest
import trio

from tests.engine.test_session_and_agent import ECHO, Question
from tests.engine.world import World
from vsockfwd.address import TcpAddress, parse
from vsockfwd.allow import Allow, Named, Place
from vsockfwd.contract import Mode
from vsockfwd.engine.quota import Quota
from vsockfwd.engine.session import open_session
from vsockfwd.errors import LimitReached, NotAllowed
from vsockfwd.identity import NetworkPeer, UnixPeer
from vsockfwd.modes.forward import Connect, Connected
from vsockfwd.policy import Limits, Policy


class Resolver(trio.abc.HostnameResolver):
    """Names that come to what a test says, and another answer each time."""

    def __init__(self) -> None:
        self.answers: list[list[str]] = []
        self.asked = 0

    async def getaddrinfo(self, host: Any, port: Any, *rest: Any, **more: Any) -> Any:
        self.asked += 1
        return [
            (socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port))
            for ip in self.answers.pop(0)
        ]

    async def getnameinfo(self, *words: Any) -> Any:
        raise NotImplementedError


@pytest.fixture
async def resolver() -> Resolver:
    made = Resolver()
    trio.socket.set_custom_hostname_resolver(made)  # for this run of trio, which is this test's
    return made


@pytest.fixture
async def server() -> Any:
    """A port of loopback's where somebody listens."""
    listener = trio.socket.socket()
    await listener.bind(("127.0.0.1", 0))
    listener.listen()
    yield listener.getsockname()[1]
    listener.close()


def connecting(*places: str) -> Policy:
    return Policy(own_uid=os.geteuid(), connect=tuple(map(Place.read, places)))


async def connect(world: World, address: str) -> str:
    async with open_session(world.engine, world.target) as session:
        opened = await session.open("forward", Connect(address))
        opened.channel.close()
        return opened.reply(Connected).peer


async def test_a_name_that_points_back_at_loopback_is_not_followed(world: World, resolver: Resolver, server: int):
    resolver.answers = [["127.0.0.1", "::1"]]
    async with world.agent(policy=connecting(f"tcp:*:{server}")):
        with pytest.raises(NotAllowed, match=f"tcp:127.0.0.1:{server}, which tcp:rebound.test:{server} came to"):
            await connect(world, f"tcp:rebound.test:{server}")


async def test_what_was_checked_is_what_is_dialled_and_nothing_looks_the_name_up_again(
    world: World, resolver: Resolver, server: int
):
    """A resolver that answers well once, and with another address the next time, is asked once."""
    resolver.answers = [["127.0.0.1"], ["192.0.2.1"]]
    async with world.agent(policy=connecting(f"tcp:localhost:{server}")):
        assert await connect(world, f"tcp:inside.test:{server}") == f"127.0.0.1:{server}"
    assert resolver.asked == 1


async def test_of_several_addresses_those_that_are_allowed_are_dialled(world: World, resolver: Resolver, server: int):
    resolver.answers = [["192.0.2.9", "169.254.169.254", "127.0.0.1"]]
    async with world.agent(policy=connecting(f"tcp:127.0.0.0/8:{server}")):
        with trio.fail_after(5):
            assert await connect(world, f"tcp:mixed.test:{server}") == f"127.0.0.1:{server}"


async def test_an_address_that_does_not_answer_delays_the_next_and_does_not_stop_it(
    world: World, resolver: Resolver, server: int, autojump_clock
):
    """Happy eyeballs, without a policy as with one."""
    resolver.answers = [["::1", "127.0.0.1"]]
    peer = await world.engine.network.connect(TcpAddress("both.test", server))
    assert peer.peer == NetworkPeer("127.0.0.1", server)
    assert peer.name == f"tcp:both.test:{server}"
    peer.close()


async def test_without_a_list_a_name_may_come_to_what_the_client_could_have_written(
    world: World, resolver: Resolver, server: int
):
    resolver.answers = [["127.0.0.1"]]
    async with world.agent():
        assert await connect(world, f"tcp:inside.test:{server}") == f"127.0.0.1:{server}"


async def test_loopback_by_name_is_not_dialled_because_a_network_is_allowed(world: World, server: int):
    async with world.agent(policy=connecting(f"tcp:10.0.0.0/8:{server}", f"tcp:*:{server}")):
        for host in ("localhost:", "", "127.1.1.1:"):
            with pytest.raises(NotAllowed, match="may connect to"):
                await connect(world, f"tcp:{host}{server}")


async def test_what_is_not_on_the_list_is_not_dialled_and_the_client_reads_why(world: World, server: int):
    async with world.agent(policy=connecting("tcp:localhost:1", "unix:/run/app/*")):
        for address in (f"tcp:{server}", f"tcp:127.0.0.1:{server}", "unix:/run/app/../other", "memory:x"):
            with pytest.raises(NotAllowed, match="may connect to") as caught:
                await connect(world, address)
            assert "allow-connect" in caught.value.hint


async def test_a_mode_that_is_not_allowed_is_refused_and_so_is_listening(world: World):
    policy = Policy(own_uid=os.geteuid(), modes=("echo",))
    async with world.agent(ECHO | {"other": ECHO["echo"]}, policy), open_session(world.engine, world.target) as session:
        (await session.open("echo", Question("x"))).channel.close()
        with pytest.raises(NotAllowed, match="the mode listen is not for"):
            await session.listen("tcp:0", bytes(16), None, print)  # type: ignore[arg-type]


async def test_listening_where_it_is_not_allowed_is_refused(world: World):
    policy = Policy(own_uid=os.geteuid(), listen=(Place.read("tcp:8000-8999"),))
    async with world.agent(ECHO, policy), open_session(world.engine, world.target) as session:
        for address in ("tcp:*:8080", "tcp:0", "unix:/run/x"):
            with pytest.raises(NotAllowed, match="may listen on"):
                await session.listen(address, bytes(16), None, print)  # type: ignore[arg-type]


async def test_a_peer_has_so_many_streams_and_another_when_one_has_ended(world: World):
    policy = Policy(own_uid=os.geteuid(), limits=Limits(connections=2))
    async with world.agent(ECHO, policy) as agent, open_session(world.engine, world.target) as session:
        first = await session.open("echo", Question("x"))
        await session.open("echo", Question("x"))
        with pytest.raises(LimitReached, match="has 2 streams"):
            await session.open("echo", Question("x"))
        first.channel.close()
        with trio.fail_after(5):
            while any(use.streams > 1 for use in agent.quota._of.values()):  # noqa: ASYNC110 - it has no event
                await trio.sleep(0.001)
        (await session.open("echo", Question("x"))).channel.close()


async def test_a_peer_asks_so_often_in_a_second(autojump_clock) -> None:
    quota, peer, limits = Quota(), UnixPeer(1, 1, 1), Limits(rate=3)

    def asks() -> bool:
        try:
            with quota.stream(peer, limits):
                return True
        except LimitReached:
            return False

    assert [asks() for _ in range(5)] == [True, True, True, False, False]
    await trio.sleep(0.34)
    assert [asks() for _ in range(2)] == [True, False]
    await trio.sleep(60)
    assert [asks() for _ in range(4)] == [True, True, True, False]


async def test_one_peers_limit_is_not_anothers_and_who_has_gone_is_forgotten(autojump_clock) -> None:
    quota, limits = Quota(), Limits(connections=1, rate=1000)
    with quota.stream(UnixPeer(0, 0, 0), limits), quota.stream(UnixPeer(1, 0, 0), limits):
        pass
    for number in range(3000):
        with quota.stream(NetworkPeer(f"2001:db8::{number:x}", 1), limits):
            pass
        await trio.sleep(0.6)
    assert len(quota._of) < 10


async def test_an_entrys_root_is_what_its_peer_is_served_from(world: World, tmp_path):
    seen: list[str | None] = []

    async def where(call: Any) -> None:
        seen.append(call.root)
        (await call.accept()).close()

    world.target = parse(f"unix:{tmp_path}/agent.sock")
    mine = Allow(who=(Named.read(f"uid:{os.geteuid()}"),), root=f"{tmp_path}")
    policy = Policy(own_uid=1, root="/", allow=(mine,))
    async with world.agent({"where": Mode("where", "", serve=where)}, policy):
        async with open_session(world.engine, world.target) as session:
            (await session.open("where")).channel.close()
    assert seen == [f"{tmp_path}"]
