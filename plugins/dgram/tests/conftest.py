"""The guard, and the fixtures of the datagram tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from plugins.dgram.tests.world import World
from tests import guard

if not guard.inside_rig():
    guard.install()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A place for an agent and a client, whose reports come often; afterwards no descriptor is left open."""
    monkeypatch.setattr("vsockfwd_dgram.flows.REPORT_INTERVAL", 0.02)
    before = len(os.listdir("/proc/self/fd"))
    yield World(tmp_path)
    assert len(os.listdir("/proc/self/fd")) <= before, "a descriptor was left open"
