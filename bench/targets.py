"""What was asked for, and what came of it: a comparison each, judged by the median of its rounds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from bench import copy, dgram, growth, peers, requests, rig, streams
from bench.results import Key, Results, Spread, spread


@dataclass(frozen=True)
class Target:
    """A contender that is to be beaten so many times: `asked` at least, `goal` hoped for. Or, where there is no
    contender, a cost that may be so much at most.
    """

    case: str
    subject: str
    metric: str
    against: str | None
    asked: float | None
    goal: float | None

    def measured(self, results: Results) -> Spread | None:
        """The gain over the contender, or the cost itself; None where nothing was measured."""
        record = results.get(self.case)
        ours = record.figures.ours.get(self.subject) if record else None
        if record is None or ours is None:
            return None
        if self.against:
            gains = record.figures.gains(Key(self.subject, self.metric, self.against))
            return spread(gains) if gains and not any(map(math.isnan, gains)) else None
        curve = record.figures.curve(self.subject, self.metric, ours)
        return spread(curve[max(curve)]) if curve else None

    def verdict(self, found: Spread) -> str:
        asked = self._reached(self.asked, found.median)
        goal = self._reached(self.goal, found.median)
        if goal:
            return "**goal met**"
        if asked is None:
            return "goal missed"
        return ("met" + ("; goal missed" if goal is False else "")) if asked else "**missed**"

    def _reached(self, mark: float | None, median: float) -> bool | None:
        if mark is None:
            return None
        return round(median, 2) >= mark if self.against else round(median, 2) <= mark


def _both(
    case: str, pair: str, marks: dict[str, tuple[float | None, float | None]], metric: str = streams.RATE
) -> list[Target]:
    return [
        Target(case, f"{pair}, {way}", metric, against, *mark)
        for way in (streams.CLIENT, streams.SERVER)
        for against, mark in marks.items()
    ]


TARGETS: tuple[Target, ...] = (
    *_both(
        "raw-streams",
        "TCP → UNIX",
        {
            peers.SOCAT_1M: (1.1, 1.6),
            peers.HAPROXY: (1.8, None),
            peers.DIRECT_TCP: (None, 0.9),
            peers.DIRECT_UNIX: (None, 0.9),
        },
    ),
    Target("raw-requests", f"TCP → UNIX, {requests.CONNECTIONS}", requests.RATE, peers.SOCAT, 3.3, 5.0),
    Target("raw-requests", f"TCP → UNIX, {requests.CONNECTIONS}", requests.RATE, peers.HAPROXY, 0.6, 1.0),
    Target("raw-requests", f"TCP → UNIX, {requests.ONE}", requests.RATE, peers.HAPROXY, 0.7, 1.0),
    Target("raw-requests", f"TCP → UNIX, {requests.MANY}", requests.RATE, peers.SOCAT, 0.95, 1.4),
    Target("raw-requests", f"TCP → UNIX, {requests.MANY}", requests.RATE, peers.HAPROXY, 0.6, 1.0),
    *_both(
        "hops-streams",
        streams.HOPS,
        {
            peers.SOCATS_1M: (1.0, 1.3),
            peers.SSH: (3.0, None),
            peers.DIRECT_TCP: (None, 0.7),
            peers.DIRECT_UNIX: (None, 0.7),
        },
    ),
    Target("hops-requests", f"two hops, {requests.CONNECTIONS}", requests.RATE, peers.SOCATS, 2.0, 4.0),
    *_both("rig", rig.PAIR, {peers.SOCATS_1M: (1.0, None), rig.PLAIN: (None, 1.0)}, rig.RATE),
    Target("growth", growth.MEMORY, growth.EACH, None, 20.0, 12.0),
)


OTHERS: dict[str, tuple[Target, ...]] = {
    "copy": (
        Target("copy", "2 GiB, one file", "GiB/s", copy.RSYNC, 1.3, None),
        Target("copy", "2 GiB, one file", "GiB/s", copy.SCP, 2.5, None),
        Target("copy", "2 GiB, one file", "GiB/s", copy.SOCAT, None, 1.0),
        Target("copy", "10,000 files of 2 KB", "files/s", f"{copy.SCP} -r", 4.0, None),
        Target("copy", "10,000 files of 2 KB", "files/s", copy.RSYNC, 0.67, None),
        Target("copy", "The same tree again, unchanged", "files/s", copy.RSYNC, 0.67, None),
        Target("copy", "1 MiB changed in 2 GiB", "GiB/s", f"{copy.RSYNC}, --no-whole-file", 1.0, None),
    ),
    "datagrams": tuple(
        Target("datagrams", f"1,000 flows, {size} bytes", "datagrams/s", against, 5.0, None)
        for size in ("64", "1,400")
        for against in (dgram.LISTEN, dgram.RECEIVE)
    ),
}
"""What was asked for elsewhere, by case."""


def markdown(results: Results, asked: Iterable[Target] = TARGETS) -> str:
    """A row for each comparison."""
    lines = ["| case | against | asked | goal | measured, median (min – max) | |", "|---|---|---|---|---|---|"]
    for target in asked:
        found = target.measured(results)
        unit = "×" if target.against else " KiB"
        marks = " | ".join("" if mark is None else f"{mark:g}{unit}" for mark in (target.asked, target.goal))
        told = f"{found.median:.2f}{unit} ({found.low:.2f} – {found.high:.2f})" if found else ""
        verdict = target.verdict(found) if found else "not measured"
        against = target.against or f"{target.metric}, at most"
        lines.append(f"| {target.subject} | {against} | {marks} | {told} | {verdict} |")
    return "\n".join(lines) + "\n"
