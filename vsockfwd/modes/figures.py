"""What perf found out, as values; encoded they are the object that `--json` prints. Pure.

Sizes are bytes, times are seconds, rates bytes a second. The thing to understand first: programs read this. A field
keeps its name and meaning for as long as VERSION stays; new ones may come beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

VERSION = 1


class Flow(msgspec.Struct):
    """One direction. `bytes`: what its receiver had, or, where the receiver does not tell, what the kernel took.

    `intervals`: bytes a second, one after the other, each over about `interval` seconds.
    """

    bytes: int
    seconds: float
    bytes_per_second: float
    streams: list[int]
    interval: float
    intervals: list[float]


class Throughput(msgspec.Struct):
    """A part that moves bytes. CPU seconds are those of the whole process meanwhile; None: the far side tells none."""

    up: Flow | None
    down: Flow | None
    cpu_seconds: float
    agent_cpu_seconds: float | None
    complete: bool

    @property
    def bytes(self) -> int:
        return sum(flow.bytes for flow in (self.up, self.down) if flow is not None)


class Spread(msgspec.Struct):
    """How a time was distributed over many tries: percentiles are values that were measured (nearest rank)."""

    count: int
    min: float
    median: float
    p90: float
    p99: float
    p99_9: float
    max: float


class RoundTrips(msgspec.Struct):
    """Messages of `size` bytes that went and came back, one after the other."""

    size: int
    seconds: float
    spread: Spread
    complete: bool


class Connections(msgspec.Struct):
    """Streams opened, used once and closed. `one`: each after the other; then `at_once` at a time."""

    one: Spread
    one_per_second: float
    at_once: int
    count: int
    seconds: float
    per_second: float
    cpu_seconds: float
    agent_cpu_seconds: float | None
    complete: bool


class Findings(msgspec.Struct, tag_field="event", tag="perf"):
    """All of it. A part that was not asked for, or not begun, is None; one that was cut short is not `complete`."""

    target: str
    peer: str
    """agent, or what `--raw` was told: echo, discard, source."""
    streams: int
    size: int
    checked: bool
    """Whether what arrived was compared with what was sent."""
    version: int = VERSION
    up: Throughput | None = None
    down: Throughput | None = None
    both: Throughput | None = None
    latency: RoundTrips | None = None
    connections: Connections | None = None
    complete: bool = False
    error: str = ""
    """Why it ended early."""

    @property
    def anything(self) -> bool:
        return any(part is not None for part in (self.up, self.down, self.both, self.latency, self.connections))


def spread(times: Sequence[float]) -> Spread:
    """The distribution of at least one time."""
    ranked = sorted(times)

    def rank(share: float) -> float:
        return ranked[max(0, math.ceil(share * len(ranked)) - 1)]

    return Spread(len(ranked), ranked[0], rank(0.5), rank(0.9), rank(0.99), rank(0.999), ranked[-1])
