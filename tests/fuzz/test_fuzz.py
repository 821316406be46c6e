"""Hostile bytes end in a value or an error of ours: the corpus, and a little of what else hypothesis makes of it."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.corpus import CORPUS
from tests.fuzz.targets import TARGETS, attempt

SLOW = {"agent", "client", "copy_receiver", "copy_sender", "datagrams"}
"""Targets whose inputs take milliseconds."""


@functools.cache
def seeds(target: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_said_for_real_and_what_was_found_once_is_taken_or_refused(target: str) -> None:
    assert seeds(target)
    for data in seeds(target):
        attempt(target, data)


@st.composite
def spoilt(draw: st.DrawFn, target: str) -> bytes:
    """A seed with some of it overwritten, cut out, doubled or mixed with another."""
    data = bytearray(draw(st.sampled_from(seeds(target))))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        size = draw(st.integers(0, 8))
        with_what = draw(
            st.binary(max_size=8)
            | st.just(bytes(data[at : at + size]) * 2)
            | st.sampled_from([b"", b"\xff" * size, b"\0" * size, seeds(target)[0][:64]])
        )
        data[at : at + size] = with_what
    return bytes(data)


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_spoilt_on_its_way_is_taken_or_refused(target: str) -> None:
    @settings(
        max_examples=10 if target in SLOW else 40,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(spoilt(target) | st.binary(max_size=80))
    def hold(data: bytes) -> None:
        attempt(target, data)

    hold()
