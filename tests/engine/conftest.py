"""The engine's fixtures."""

from __future__ import annotations

import pytest

from tests.engine.world import World
from vsockfwd.engine import Engine
from vsockfwd.events import Event
from vsockfwd.transport.memory import MemoryTransport
from vsockfwd.transport.network import Network, system_network


@pytest.fixture
def world() -> World:
    network = Network({**system_network().transports, "memory": MemoryTransport()})
    events: list[Event] = []
    return World(Engine(network, events.append), events)
