"""The guard, and the fixtures of the copy tests."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from plugins.copy.tests.world import World, settled, temporaries
from tests import guard

if not guard.inside_rig():
    guard.install()


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery) -> AsyncIterator[World]:
    """An agent with a home, a client with a directory to be in; afterwards no descriptor and no temporary is left."""
    world = World(tmp_path)
    monkeypatch.setenv("HOME", str(world.home))
    monkeypatch.chdir(world.here)
    await world.start(nursery)
    before = len(os.listdir("/proc/self/fd"))
    yield world
    await settled(lambda: len(os.listdir("/proc/self/fd")) <= before, "a descriptor was left open")
    assert not temporaries(tmp_path), "a temporary file was left behind"


@pytest.fixture(params=["put", "get"])
def towards(request: pytest.FixtureRequest) -> str:
    """Which way a copy goes: whatever holds one way must hold the other."""
    return str(request.param)
