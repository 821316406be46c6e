"""The policy where requests come in: what a name comes to, how many streams, how fast, which modes."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.engine.test_session_and_agent import ECHO, Question
from tests.engine.world import World
from vsockfwd.address import TcpAddress, parse, parse_target
from vsockfwd.allow import Allow, Named, Place
from vsockfwd.contract import Data, Mode
from vsockfwd.engine.agent import Agent
from vsockfwd.engine.keys import create_key
from vsockfwd.engine.quota import Quota
from vsockfwd.engine.server import Gate
from vsockfwd.engine.session import Session, open_session
from vsockfwd.errors import LimitReached, NotAllowed
from vsockfwd.identity import NetworkPeer, UnixPeer, VsockPeer
from vsockfwd.modes.forward import Connect, Connected
from vsockfwd.modes.mode import MODE as FORWARD
from vsockfwd.policy import Limits, Policy
from vsockfwd.transport.base import Stream
from vsockfwd.transport.paced import Pace, PacedStream


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
    policy, other = Policy(own_uid=os.geteuid(), modes=("echo",)), Mode("other", "echoes", serve=ECHO["echo"].serve)
    async with world.agent(ECHO | {"other": other}, policy), open_session(world.engine, world.target) as session:
        (await session.open("echo", Question("x"))).channel.close()
        with pytest.raises(NotAllowed, match="the mode other is not for"):
            await session.open("other", Question("x"))
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


@contextlib.asynccontextmanager
async def serving(world: World, policy: Policy, tmp_path: Path) -> AsyncIterator[Agent]:
    """As `vsockfwd serve` does: what needs no task gets none."""
    world.target = parse(f"unix:{tmp_path}/agent.sock")
    agent = Agent(world.engine, {"forward": FORWARD}, policy)
    listeners = await world.engine.network.listen(world.target)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(agent.serve, listeners, Gate())
        yield agent
        nursery.cancel_scope.cancel()


async def test_a_stream_without_a_task_is_counted_as_any_other(world: World, server: int, tmp_path: Path):
    policy = Policy(own_uid=os.geteuid(), limits=Limits(connections=1))
    async with serving(world, policy, tmp_path), open_session(world.engine, world.target) as session:
        first = await session.open("forward", Connect(f"tcp:{server}"))
        with pytest.raises(LimitReached, match="has 1 streams"):
            await session.open("forward", Connect(f"tcp:{server}"))
        first.channel.close()


async def test_a_stream_without_a_task_is_held_to_the_policy_as_any_other(world: World, server: int, tmp_path: Path):
    policy = connecting("tcp:10.0.0.0/8:*", f"tcp:*:{server}", f"unix:{tmp_path}/a*")
    async with serving(world, policy, tmp_path):
        for address in (f"tcp:{server}", f"tcp:localhost:{server}", f"tcp:127.0.0.1:{server}", f"unix:{tmp_path}/x"):
            with pytest.raises(NotAllowed, match="may connect to"):
                await connect(world, address)
    async with serving(world, Policy(own_uid=os.geteuid(), modes=("copy",)), tmp_path):
        with pytest.raises(NotAllowed, match="the mode forward is not for"):
            await connect(world, f"tcp:{server}")


async def test_a_keys_own_rights_hold_for_its_streams_wherever_they_come_from(
    world: World, server: int, tmp_path: Path
):
    """A stream shows a token; whose it is, its session knows."""
    key = create_key(f"{tmp_path}/web.key", "web")
    entry = Allow(who=(Named.read("key:web"),), connect=(Place.read("tcp:1"),))
    world.target = parse_target(f"unix:{tmp_path}/agent.sock,auth-key={tmp_path}/web.key")
    async with world.agent(policy=Policy(own_uid=1, keyed=True, allow=(entry,)), keys=(key,)):
        with pytest.raises(NotAllowed, match=r"key web .* may connect to"):
            await connect(world, f"tcp:{server}")


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


SECOND = 1 << 20
"""Bytes of one, in the tests of how fast they move."""


@pytest.mark.parametrize("through", ["relay", "body"])
async def test_all_streams_of_a_peer_share_its_bytes_of_a_second(autojump_clock, world: World, through: str) -> None:
    """Over memory, where only the pace takes time: its clock stands still while anything moves."""
    policy = Policy(own_uid=os.geteuid(), limits=Limits(bandwidth=SECOND))
    heard: list[float] = []
    """When all that a stream says had come."""

    async def swallow(call: Any) -> None:
        channel = await call.accept()
        size = 0
        while isinstance(event := await channel.receive(), Data):
            size += len(event.view)
        heard.append(trio.current_time())
        await channel.send(bytes(size))
        await channel.send_end()

    async def echo(stream: Stream) -> None:
        size = 0
        while data := await stream.receive_some():
            size += len(data)
        heard.append(trio.current_time())
        await stream.send_all(bytes(size))
        await stream.send_eof()

    async def talk(session: Session) -> None:
        request = ("forward", Connect("memory:server")) if through == "relay" else ("swallow", Question(""))
        channel = (await session.open(*request)).channel
        await channel.send(bytes(2 * SECOND))
        await channel.send_end()
        size = 0
        while isinstance(event := await channel.receive(), Data):
            size += len(event.view)
        assert size == 2 * SECOND
        channel.close()

    modes = {"forward": FORWARD, "swallow": Mode("swallow", "hears, and says as much", serve=swallow)}
    async with trio.open_nursery() as nursery:
        (listener,) = await world.engine.network.listen(parse("memory:server"))

        async def serve() -> None:
            while True:
                nursery.start_soon(echo, await listener.accept())

        nursery.start_soon(serve)
        async with world.agent(modes, policy), open_session(world.engine, world.target) as session:
            began = trio.current_time()
            async with trio.open_nursery() as talking:
                for _ in range(3):
                    talking.start_soon(talk, session)
            # Six seconds' worth there and as much back, but for what a pace has saved up at first.
            assert 5.8 <= heard[2] - began <= 6.5
            assert trio.current_time() - heard[0] >= 5.8
            assert trio.current_time() - heard[2] <= 6.5
        nursery.cancel_scope.cancel()


async def test_a_paced_stream_moves_a_piece_at_most_and_then_nothing_for_a_while(autojump_clock, world: World) -> None:
    (listener,) = await world.engine.network.listen(parse("memory:server"))
    near = await world.engine.network.connect(parse("memory:server"))
    far = await listener.accept()
    paced = PacedStream(near, Pace(100_000), Pace(100_000))
    buffer = memoryview(bytearray(20_000))
    with trio.fail_after(10):
        await far.send_all(bytes(30_000))
        assert paced.try_send(buffer[:5_000]) == paced.try_receive_into(buffer[:5_000]) == 5_000
        for _ in range(2):  # what is left is less than a piece, and may be overdrawn by one
            await far.receive_some()
            assert paced.try_send(buffer) == paced.try_receive_into(buffer) == 10_000
            for blocked in (lambda: paced.try_send(buffer), lambda: paced.try_receive_into(buffer)):
                with pytest.raises(BlockingIOError):
                    blocked()
            await paced.wait_writable()
    near.close()
    far.close()


async def test_what_a_pace_was_overdrawn_by_is_not_forgotten_with_the_stream(autojump_clock) -> None:
    quota, peer, limits = Quota(), UnixPeer(1, 1, 1), Limits(bandwidth=10_000)
    with quota.stream(peer, limits) as paces:
        assert paces is not None
        await trio.sleep(5)
        paces[0].check()
        paces[0].moved(2 * paces[0].piece)
    with quota.stream(peer, limits) as again:
        assert again is paces
        began = trio.current_time()
        await again[0].wait()
        assert trio.current_time() - began == pytest.approx(0.1024, rel=0.01)
        await again[1].wait()
    assert trio.current_time() - began == pytest.approx(0.1024, rel=0.01)


async def test_a_machines_pace_is_not_that_of_its_privileged_processes_where_rules_tell_them_apart() -> None:
    quota, machine, privileged = Quota(), VsockPeer(2, 5000), VsockPeer(2, 700)
    with (
        quota.stream(machine, Limits(bandwidth=10_000)) as slow,
        quota.stream(privileged, Limits(bandwidth=1 << 30)) as fast,
        quota.stream(privileged, Limits(connections=9)) as free,
        quota.stream(machine, Limits(bandwidth=10_000)) as as_slow,
    ):
        assert as_slow is slow
        assert free is None
        assert slow is not None
        assert fast is not None
        assert fast[0].piece > slow[0].piece


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
