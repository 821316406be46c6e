"""A sample of the sweeps: whatever fails, and wherever it is told to stop, nothing passes for complete that is not.

`make faults` goes through every point, and writes what it counted into docs/reliability.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.scenarios import SCENARIOS
from tests.faults.sweep import sweep_cancellations, sweep_faults


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A UNIX socket's path has to be short.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def some(count: int, most: int) -> Iterator[int]:
    """A few of so many, spread over all of them."""
    step = max(1, count // most)
    return iter(range(step // 2, count, step))


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_failure_of_the_kernels_is_no_false_success_and_leaves_nothing_behind(name: str) -> None:
    tally = sweep_faults(name, SCENARIOS[name], lambda count: some(count, 5))
    assert not tally.wrong, "\n".join(tally.wrong)
    assert tally.points >= 5


@pytest.mark.parametrize(("name", "half"), [(name, half) for name, make in SCENARIOS.items() for half in make.halves])
def test_who_is_told_to_stop_stops_and_leaves_nothing_half(name: str, half: str) -> None:
    tally = sweep_cancellations(name, SCENARIOS[name], half, lambda count: some(count, 3))
    assert not tally.wrong, "\n".join(tally.wrong)
