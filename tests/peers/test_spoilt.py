"""A peer that spoils what it says, a sample of it: `make faults` tries every field of every frame."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from tests.engine.world import World
from tests.peers.scripted import Said, Scripted
from tests.peers.spoilt import ANSWER, CONTROL, STREAM, WELCOME, against_agent, against_client, answer_all, every
from tests.wire import conversation as c
from vsockfwd.address import parse
from vsockfwd.engine import Engine
from vsockfwd.events import Event
from vsockfwd.transport.memory import MemoryTransport
from vsockfwd.transport.network import Network, system_network
from vsockfwd.wire.machine import Role

STRIDE = 5
"""Every so many of them are tried."""


@pytest.mark.parametrize("script", [CONTROL, STREAM], ids=["control", "stream"])
def test_an_agent_takes_no_harm_from_a_client_whatever_it_says(tmp_path: Path, script: tuple[Said, ...]) -> None:
    against_agent(tmp_path, script, every(script)[::STRIDE])


@pytest.mark.parametrize("stream", [False, True], ids=["control", "stream"])
def test_a_client_takes_no_harm_from_an_agent_whatever_it_says(tmp_path: Path, stream: bool) -> None:
    assert against_client(tmp_path, every(ANSWER if stream else WELCOME)[::STRIDE], stream=stream)


def test_the_proper_scripts_are_proper(tmp_path: Path) -> None:
    """What is spoilt above ends well when nothing is."""
    told: list[Event] = []

    async def main() -> None:
        memory = MemoryTransport()
        network = Network({**system_network().transports, "memory": memory})
        world = World(Engine(network, told.append), told, parse(f"unix:{tmp_path}/agent.sock"))
        (server,) = await memory.listen(parse("memory:server"))  # type: ignore[arg-type]
        async with world.agent(token=lambda _: c.TOKEN), trio.open_nursery() as nursery:
            nursery.start_soon(answer_all, server)
            control = Scripted(await network.connect(world.target), Role.CLIENT)
            nursery.start_soon(control.hear)
            await control.play(CONTROL[:3])
            stream = Scripted(await network.connect(world.target), Role.CLIENT)
            nursery.start_soon(stream.hear)
            await stream.play(STREAM)
            await stream.over.wait()
            assert stream.kinds() == ["OK", "DATA", "END"]
            await control.say(*CONTROL[3:])
            await control.over.wait()
            assert control.kinds()[:4] == ["HELLO", "READY", "PONG", "LISTEN"]
            for each in (control, stream):
                each.stream.close()
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert os.listdir(tmp_path) == []
