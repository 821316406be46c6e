"""A finding: what was looked at, how it stands, and what mends it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """How a thing stands: as it should, worth knowing, or to be mended."""

    OK = "ok"
    NOTE = "note"
    FIX = "fix"


@dataclass(frozen=True, slots=True)
class Finding:
    """`topic` is a word or two, `told` one line, `mend` what to do, a line each; empty where nothing is to be done."""

    state: State
    topic: str
    told: str
    mend: tuple[str, ...] = ()


def ok(topic: str, told: str) -> Finding:
    return Finding(State.OK, topic, told)


def note(topic: str, told: str, *mend: str) -> Finding:
    return Finding(State.NOTE, topic, told, mend)


def fix(topic: str, told: str, *mend: str) -> Finding:
    return Finding(State.FIX, topic, told, mend)
