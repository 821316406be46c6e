"""An agent that calls: its spares become connections, both sides come back, and whoever waits there harms nobody."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.engine.world import World, settled
from vsockfwd.address import AcceptAddress, UnixAddress
from vsockfwd.engine import Engine
from vsockfwd.engine.agent import Agent
from vsockfwd.engine.calling import SPARES, Calling
from vsockfwd.engine.control_link import HANDSHAKE_DEADLINE
from vsockfwd.engine.server import Gate
from vsockfwd.engine.session import Session, open_session
from vsockfwd.events import ClientAway, ClientFound
from vsockfwd.modes.forward import Connect
from vsockfwd.modes.mode import MODE as FORWARD
from vsockfwd.policy import Decision, Policy
from vsockfwd.transport.base import Stream
from vsockfwd.transport.network import system_network


@pytest.fixture
def place(tmp_path: Path) -> UnixAddress:
    return UnixAddress(os.fsencode(tmp_path / "home"))


@contextlib.asynccontextmanager
async def calling(world: World, place: UnixAddress, policy: Policy | None = None) -> AsyncIterator[Gate]:
    """An agent that calls, for the length of a block; its loss is total, as a kill would be."""
    gate = Gate()
    agent = Agent(world.engine, {"forward": FORWARD}, policy or Policy(os.geteuid()))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Calling(agent, place, gate).run)
        try:
            yield gate
        finally:
            nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def client(world: World, place: UnixAddress) -> AsyncIterator[Session]:
    """A client's process with a session: a network of its own, closed at its end."""
    engine: Engine = dataclasses.replace(world.engine, network=system_network())
    try:
        async with open_session(engine, AcceptAddress(place)) as session:
            yield session
    finally:
        engine.network.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextlib.asynccontextmanager
async def echo(world: World, path: Path) -> AsyncIterator[Connect]:
    """Something for a forward to lead to."""
    (listener,) = await world.engine.network.listen(UnixAddress(os.fsencode(path)))

    async def serve() -> None:
        while True:
            nursery.start_soon(answer, await listener.accept())

    async def answer(stream: Stream) -> None:
        async with stream:
            async for piece in stream:
                await stream.send_all(piece)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        yield Connect(f"unix:{path}")
        nursery.cancel_scope.cancel()
    listener.close()


async def test_more_streams_at_once_than_there_are_spares_are_all_served_and_none_is_left_over(
    world: World, place: UnixAddress, tmp_path: Path
) -> None:
    async with echo(world, tmp_path / "echo") as where, calling(world, place) as gate, client(world, place) as session:
        await settled(lambda: gate.now == 1)
        await session.ping()
        before = descriptors()
        for _ in range(3):
            served = []

            async def talk(served: list[str] = served) -> None:
                channel = (await session.open("forward", where)).channel
                await channel.send(b"hello")
                event = await channel.receive()
                assert bytes(event.view) == b"hello"  # type: ignore[union-attr]
                served.append(channel.stream.name)
                channel.close()

            with trio.fail_after(10):
                async with trio.open_nursery() as nursery:
                    for _ in range(5 * SPARES):
                        nursery.start_soon(talk)
            assert len(served) == 5 * SPARES
            await settled(lambda: gate.now == 1)
        await settled(lambda: descriptors() <= before)


async def test_a_client_that_was_stopped_finds_the_agent_again_and_one_line_says_each_change(
    world: World, place: UnixAddress
) -> None:
    async with calling(world, place):
        for _ in range(3):
            async with client(world, place) as session:
                await session.ping()
            await settled(lambda: isinstance(world.events[-1], ClientAway))
        told = [event for event in world.events if isinstance(event, ClientFound | ClientAway)]
        assert len(told) <= 3 * 4


async def test_an_agent_that_was_restarted_is_found_by_the_same_session(world: World, place: UnixAddress) -> None:
    async def agent(scope: trio.CancelScope) -> None:
        with scope:
            async with calling(world, place):
                await trio.sleep_forever()

    first, second = trio.CancelScope(), trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(agent, first)
        async with client(world, place) as session:
            await session.ping()
            first.cancel()
            with trio.fail_after(10):
                await session.lost()
                nursery.start_soon(agent, second)
                await session.ping()
        second.cancel()


async def test_a_spare_waits_for_its_client_longer_than_a_stranger_may(
    world: World, place: UnixAddress, mock_clock: trio.testing.MockClock
) -> None:
    mock_clock.rate = 1.0
    network = system_network()
    (listener,) = await network.listen(place)
    async with calling(world, place) as gate:
        silent = [await listener.accept() for _ in range(SPARES)]
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(10 * HANDSHAKE_DEADLINE)
        await trio.testing.wait_all_tasks_blocked(0.05)
        with pytest.raises(BlockingIOError):  # neither hung up nor dialled again
            listener.try_accept()
        for stream in silent:
            with pytest.raises(BlockingIOError):
                stream.try_receive_into(memoryview(bytearray(1)))
        assert gate.now == 0
    for stream in silent:
        stream.close()
    listener.close()


async def test_whoever_hangs_up_on_every_call_is_called_ever_more_seldom_and_told_of_once(
    world: World, place: UnixAddress
) -> None:
    (listener,) = await system_network().listen(place)
    calls = 0
    async with calling(world, place):
        with trio.move_on_after(1.2):
            while True:
                (await listener.accept()).close()
                calls += 1
    listener.close()
    assert 2 <= calls <= 4 * SPARES
    assert world.reported(ClientAway) == [ClientAway(place.bare(), "it hung up")]
    assert len(world.reported(ClientFound)) == 1


async def test_who_would_not_be_let_in_is_no_client_however_often_called(world: World, place: UnixAddress) -> None:
    class Nobody(Policy):
        __slots__ = ()

        def admit(self, peer: object) -> Decision:
            return Decision(False, f"{type(peer).__name__} is nobody", "be somebody")

    (listener,) = await system_network().listen(place)
    async with calling(world, place, Nobody(os.geteuid())):
        await settled(lambda: bool(world.reported(ClientAway)))
        stream = await listener.accept()
        assert await stream.receive_some() == b""
        stream.close()
    listener.close()
    assert world.reported(ClientAway) == [ClientAway(place.bare(), "UnixPeer is nobody – be somebody")]
