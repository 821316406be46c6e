"""Connections through an agent over real sockets, which take no task: bytes whole, ends told, nothing left behind."""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from tests.engine.world import World, settled
from vsockfwd.address import parse
from vsockfwd.allow import Place
from vsockfwd.config import NamedRule
from vsockfwd.engine import Engine
from vsockfwd.engine.agent import Agent
from vsockfwd.engine.framed import Framed
from vsockfwd.engine.link import Link
from vsockfwd.engine.pump import BufferPool, Needs
from vsockfwd.engine.rules import Rules
from vsockfwd.engine.session import open_session
from vsockfwd.errors import NotAllowed
from vsockfwd.events import Closed, Ending
from vsockfwd.identity import OwnPeer
from vsockfwd.modes.forward import LOCAL, Connect, LocalRule
from vsockfwd.policy import Policy
from vsockfwd.rule import StreamEnd
from vsockfwd.transport.base import Listener, SocketStream, Stream
from vsockfwd.transport.unix import FEATURES
from vsockfwd.wire.machine import Role
from vsockfwd.wire.messages import TOKEN_LENGTH, Open
from vsockfwd.wire.stream import StreamMachine

PIECE = random.Random(3).randbytes(1 << 20)


@dataclass
class Site:
    """An agent, a forward through it and the listener that it leads to."""

    world: World
    agent: Agent
    server: Listener
    near: str

    async def dial(self) -> Stream:
        return await self.world.engine.network.connect(parse(self.near))


@pytest.fixture(params=["unix", "tcp"])
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    async with at_work(tmp_path, request.param) as site:
        yield site


@asynccontextmanager
async def at_work(folder: Path, scheme: str) -> AsyncIterator[Site]:
    world = World(Engine())
    world.engine = Engine(report=world.events.append)
    world.target = parse(f"unix:{folder}/agent")
    (server,) = await world.engine.network.listen(
        parse(f"unix:{folder}/server" if scheme == "unix" else "tcp:127.0.0.1:0")
    )
    rule = LocalRule(
        listen=StreamEnd(parse(f"unix:{folder}/near")), connect=StreamEnd(server.address), target=str(world.target)
    )
    async with world.agent() as agent, Rules(world.engine, {}, patient=True) as rules:
        work = rules.add(NamedRule("forward", LOCAL, rule))
        await work.settled.wait()
        yield Site(world, agent, server, f"unix:{folder}/near")
    server.close()


async def send(stream: Stream) -> None:
    """Large pieces, each followed by a lull and a small one."""
    for turn in range(12):
        await stream.send_all(PIECE[turn:] + PIECE[:turn])
        if turn % 4 == 0:
            await trio.testing.wait_all_tasks_blocked()
            await stream.send_all(b"small")
    await stream.send_eof()


async def receive(stream: Stream) -> None:
    expected = b"".join(PIECE[turn:] + PIECE[:turn] + (b"small" if turn % 4 == 0 else b"") for turn in range(12))
    at = 0
    while data := await stream.receive_some(300_000 + at % 70_001):
        assert data == expected[at : at + len(data)], f"other bytes from {at} on"
        at += len(data)
    assert at == len(expected)


async def test_bulk_both_ways_at_once_arrives_byte_for_byte(site: Site):
    with trio.fail_after(30):
        client = await site.dial()
        served = await site.server.accept()
        async with trio.open_nursery() as nursery:
            for stream in (client, served):
                nursery.start_soon(send, stream)
                nursery.start_soon(receive, stream)
        await settled(lambda: len(site.world.reported(Closed)) == 2)
    assert {event.outcome.ending for event in site.world.reported(Closed)} == {Ending.COMPLETE}
    assert all(event.outcome.sent == event.outcome.received for event in site.world.reported(Closed))
    client.close()
    served.close()


async def test_a_session_that_ends_takes_its_streams_along_and_both_sides_are_told(site: Site):
    with trio.fail_after(30):
        client = await site.dial()
        served = await site.server.accept()
        await client.send_all(b"hello")
        assert await served.receive_some() == b"hello"
        (session,) = site.agent._sessions.values()
        for stream in list(session.streams):
            stream.cancel()
        await settled(lambda: len(site.world.reported(Closed)) == 2)
        endings = [event.outcome for event in site.world.reported(Closed)]
        assert not any(outcome.clean for outcome in endings)
        assert not session.streams
        with pytest.raises((trio.BrokenResourceError, AssertionError)):  # a UNIX neighbour cannot be told more
            assert await served.receive_some() != b""
    client.close()
    served.close()


async def test_a_server_that_is_not_there_costs_its_own_connection_alone(site: Site):
    site.server.close()
    with trio.fail_after(30):
        client = await site.dial()
        await settled(lambda: len(site.world.reported(Closed)) == 1)
        assert site.world.reported(Closed)[0].outcome.ending is Ending.REFUSED or "no such socket" in str(
            site.world.reported(Closed)[0].outcome
        )
    client.close()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
async def test_what_a_policy_forbids_is_not_dialled_without_a_task_either(host: str, tmp_path: Path):
    world = World(Engine())
    world.target = parse(f"unix:{tmp_path}/agent")
    (server,) = await world.engine.network.listen(parse("tcp:127.0.0.1:0"))
    port = server.address.port  # type: ignore[attr-defined]
    policy = Policy(os.geteuid(), connect=(Place.read("tcp:10.0.0.0/8:*"), Place.read(f"tcp:*:{port}")))
    with trio.fail_after(10):
        async with world.agent(policy=policy), open_session(world.engine, world.target) as session:
            with pytest.raises(NotAllowed, match="not among what"):
                await session.open("forward", Connect(f"tcp:{host}:{port}"))
    with pytest.raises(BlockingIOError):
        server.try_accept()
    server.close()


async def test_who_is_cut_off_amid_bulk_that_nobody_takes_leaves_no_descriptor():
    """Of a pipe that still holds bytes, neither end may stay."""
    before = len(os.listdir("/proc/self/fd"))
    pairs = [socket.socketpair(), socket.socketpair()]
    for sock in (*pairs[0], *pairs[1]):
        sock.setblocking(False)
    (peer, ours), (near, neighbour) = pairs
    client, agent = StreamMachine(Role.CLIENT), StreamMachine(Role.AGENT)
    agent.receive_data(client.open(Open(bytes(TOKEN_LENGTH), "forward", (1,))))
    client.receive_data(agent.accept(1))
    link = Link(SocketStream(ours, FEATURES, OwnPeer("peer"), "peer"), agent, BufferPool())
    framed = Framed(link, SocketStream(near, FEATURES, OwnPeer("near"), "near"), dialled=False)
    unsent = b"".join(client.data_header(len(PIECE)) + PIECE for _ in range(8))
    while framed.back._pipe is None:
        with contextlib.suppress(BlockingIOError):
            unsent = unsent[peer.send(unsent) :]
        if framed.back.step() is Needs.ROOM and framed.back._pipe is None:
            neighbour.recv(1 << 20)
    framed.stop()
    assert not framed.finish().clean
    for sock in (*pairs[0], *pairs[1]):
        sock.close()
    assert len(os.listdir("/proc/self/fd")) == before
