"""The agent's policy where datagrams go out: a name is held to what it comes to, now and when it is looked up again."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from plugins.dgram.tests.world import World
from vsockfwd.allow import Place
from vsockfwd.plugin import Engine, NotAllowed, Policy, UdpAddress, open_session
from vsockfwd_dgram import agent as agent_side
from vsockfwd_dgram import far
from vsockfwd_dgram.frames import NAME, Connect


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def coming_to(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    async def places(address: UdpAddress) -> list[far.Place]:
        return [(socket.AF_INET, (host, address.port)) for host in hosts]

    monkeypatch.setattr(agent_side, "places", places)


async def refusal(world: World, address: str, *places: str) -> str:
    """What the agent says to a client that wants datagrams sent there; nothing where it may."""
    policy = Policy(os.geteuid(), connect=tuple(map(Place.read, places)))
    async with world.agent(policy=policy), open_session(Engine(), world.target) as session:
        try:
            (await session.open(NAME, Connect(address, 5))).channel.close()
        except NotAllowed as error:
            return error.message
    return ""


async def test_a_name_that_points_back_at_loopback_gets_no_datagrams(world: World, monkeypatch: pytest.MonkeyPatch):
    coming_to(monkeypatch, "127.0.0.1", "169.254.169.254")
    said = await refusal(world, "udp:dns.test:53", "udp:*:53")
    assert "udp:127.0.0.1:53, which udp:dns.test:53 came to" in said
    assert "may connect to" in await refusal(world, "udp:127.0.0.1:53", "udp:*:53")
    assert await refusal(world, "udp:dns.test:53", "udp:127.0.0.0/8:53") == ""


async def test_of_a_names_addresses_only_those_that_are_allowed_are_sent_to(monkeypatch: pytest.MonkeyPatch):
    class Asked:
        """A call whose client may have one of them."""

        def check(self, resource: object) -> None:
            if "192.0.2.1" not in str(resource):
                raise NotAllowed("no")

    coming_to(monkeypatch, "127.0.0.1", "192.0.2.1")
    found = await agent_side._places(Asked(), UdpAddress("dns.test", 53))  # type: ignore[arg-type]
    assert [where for _, where in found] == [("192.0.2.1", 53)]
