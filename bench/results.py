"""What was measured, as values: every round's, kept in docs/benchmarks.json. Pure but for that file.

A figure has a *subject* (one comparison: "TCP → UNIX, the client sends"), a *metric* (its unit), *who* it is of, and,
on a curve, the place *at* which it was taken (bytes, connections, a percentile). Ratios are taken within a round and
told as *gains*: above 1 ours is better, whether more or less of the metric is.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

PATH = Path(__file__).parent.parent / "docs" / "benchmarks.json"

COSTS = re.compile(r"^(CPU|µs|s\b|ms|KiB|MiB RSS|MiB PSS)")
"""Metrics of which less is better; of all others more is."""


class Key(NamedTuple):
    subject: str
    metric: str
    who: str
    at: float | None = None


class Spread(NamedTuple):
    """Of some rounds' values."""

    low: float
    median: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    return Spread(min(values), statistics.median(values), max(values))


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many per cent of them do not exceed (nearest rank)."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(percent / 100 * len(ranked)) - 1)]


def gains(ours: Sequence[float], theirs: Sequence[float], metric: str) -> list[float]:
    """How many times better ours is, round by round."""
    pairs = zip(ours, theirs, strict=True)
    if COSTS.match(metric):
        return [b / a if a else math.nan for a, b in pairs]
    return [a / b if b else math.nan for a, b in pairs]


@dataclass
class Figures:
    """One value a round of each key, in the order in which they came; and which contender of a subject is ours."""

    values: dict[Key, list[float]] = field(default_factory=dict)
    ours: dict[str, str] = field(default_factory=dict)
    text: str = ""
    """What a subject that writes its own tables had to say, as Markdown."""

    def add(self, key: Key, value: float) -> None:
        self.values.setdefault(key, []).append(value)

    def subjects(self) -> list[str]:
        return _unique(key.subject for key in self.values)

    def metrics(self, subject: str) -> list[str]:
        return _unique(key.metric for key in self.values if key.subject == subject)

    def who(self, subject: str, metric: str) -> list[str]:
        return _unique(key.who for key in self.values if key[:2] == (subject, metric))

    def curve(self, subject: str, metric: str, who: str) -> dict[float, list[float]]:
        """Place → values, where there are places."""
        return {key.at: v for key, v in self.values.items() if key[:3] == (subject, metric, who) and key.at is not None}

    def gains(self, key: Key) -> list[float] | None:
        """Of ours over this contender; None where either was not measured in every round."""
        ours = self.values.get(key._replace(who=self.ours[key.subject]))
        theirs = self.values.get(key)
        if ours is None or theirs is None or len(ours) != len(theirs):
            return None
        return gains(ours, theirs, key.metric)


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


@dataclass
class Record:
    """One run of a case."""

    taken: dict[str, Any]
    """Where and when: date, kernel, python, cores, commit, load, versions of peers, rounds, seconds."""

    figures: Figures


Results = dict[str, Record]
"""Case → its last run."""


def load(path: Path = PATH) -> Results:
    if not path.exists():
        return {}
    found: Results = {}
    for name, told in json.loads(path.read_text()).items():
        figures = Figures(ours=told["ours"], text="\n".join(told["text"]))
        for subject, metric, who, at, values in told["figures"]:
            figures.values[Key(subject, metric, who, at)] = values
        found[name] = Record(told["taken"], figures)
    return found


def save(results: Results, path: Path = PATH) -> None:
    """A line for each figure, so that a difference shows which were taken anew."""
    cases = []
    for name, record in sorted(results.items()):
        rows = [
            _compact([*key[:4], [float(f"{value:.5g}") for value in values]])
            for key, values in record.figures.values.items()
        ]
        text = [_compact(line) for line in record.figures.text.splitlines()]
        cases.append(
            f"{_compact(name)}: {{\n"
            f' "taken": {_compact(record.taken)},\n'
            f' "ours": {_compact(record.figures.ours)},\n'
            f' "figures": {_lines(rows)},\n'
            f' "text": {_lines(text)}\n}}'
        )
    path.write_text("{\n" + ",\n".join(cases) + "\n}\n")


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _lines(rows: list[str]) -> str:
    return "[\n  " + ",\n  ".join(rows) + "\n ]" if rows else "[]"
