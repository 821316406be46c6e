"""What perf found out, as lines for people: figures alone, or with bars beside them on a terminal. Pure.

The thing to understand first: every figure stands in words, so nothing is lost where there are no bars or colours.
Bars of rates are linear and share one scale, so that they can be compared; those of times are logarithmic, since a
largest one of a hundred medians would leave nothing to see of the rest.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vsockfwd.modes.figures import Connections, Findings, Flow, RoundTrips, Throughput
from vsockfwd.plugin import printable

SPARKS = "▁▂▃▄▅▆▇█"
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_LABEL, _VALUE, _SPARK = 16, 12, 20
_LEAST_BAR = 8
_GIB = 1 << 30

_UP, _DOWN, _TIME, _COUNT, _DIM, _BOLD = "32", "36", "33", "35", "2", "1"


@dataclass(frozen=True, slots=True)
class Look:
    """How it is to be shown: in so many columns, with bars and colours or without, and in which letters."""

    width: int = 80
    bars: bool = False
    colour: bool = False
    ascii: bool = False

    def paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and text.strip() else text

    def span(self, seconds: float) -> str:
        """A time, in the letters that there are."""
        return span(seconds).replace("µ", "u" if self.ascii else "µ")

    def bar(self, share: float, columns: int) -> str:
        """A bar of a share of so many columns, to an eighth of one; padded to them."""
        share = min(max(share, 0.0), 1.0)
        if self.ascii:
            return ("#" * round(share * columns)).ljust(columns)
        eighths = round(share * columns * 8)
        return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()).ljust(columns)

    def spark(self, values: Sequence[float], columns: int) -> str:
        """How a value went over time, the highest at full height; at most so many columns."""
        if self.ascii or not values or not max(values) > 0:
            return ""
        if len(values) > columns:
            cuts = [len(values) * at // columns for at in range(columns + 1)]
            values = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(cuts)]
        most = max(values)
        return "".join(SPARKS[min(7, int(value / most * 8))] for value in values)


def picture(found: Findings, look: Look) -> list[str]:
    """All that was found, in lines of at most `look.width` columns where the figures themselves need no more."""
    lines = [look.paint(line, _BOLD) for line in _title(found, look)]
    lines += _throughputs(found, look)
    if found.latency is not None:
        lines += _round_trips(found.latency, look)
    if found.connections is not None:
        lines += _connections(found.connections, look)
    return lines


def at_work(name: str, part: Throughput | None, look: Look) -> str:
    """One line about a part that is being measured."""
    if part is None:
        return f"{name} …" if not look.ascii else f"{name} ..."
    told = [
        f"{rate(flow.intervals[-1]):>11} {look.spark(flow.intervals[-_SPARK:], _SPARK):<{_SPARK}}"
        for flow in (part.up, part.down)
        if flow is not None and flow.intervals
    ]
    return f"{name:<5}{'  '.join(told)}"[: look.width - 1].rstrip()


def _title(found: Findings, look: Look) -> list[str]:
    many = f"{found.streams} stream{'s' * (found.streams != 1)}"
    what = f"{printable(found.target)} ({'agent' if found.peer == 'agent' else f'plain {found.peer}'})"
    checked = "every byte checked" if found.checked else "content not checked"
    how = f"{many}, messages of {amount(found.size)}, {checked}"
    return [what, how] if look.bars and len(what) + 2 + len(how) > look.width else [f"{what}: {how}"]


# --- throughput


def _throughputs(found: Findings, look: Look) -> list[str]:
    parts = [(name, part) for name in ("up", "down", "both") if (part := getattr(found, name)) is not None]
    rows = [
        (name if name == way else f"both at once {_arrow(way, look)}", way, flow, _remark(flow, part.complete))
        for name, part in parts
        for way, flow in (("up", part.up), ("down", part.down))
        if flow is not None
    ]
    if not rows:
        return []
    most = max(flow.bytes_per_second for _, _, flow, _ in rows)
    columns = look.width - _LABEL - _VALUE - 2 - max(len(remark) for *_, remark in rows)
    lines = [_flow(label, way, flow, remark, most, columns, look) for label, way, flow, remark in rows]
    if found.peer == "discard":
        lines.append("what the kernel took, not what arrived: a discard tells nothing")
    if costs := [_cost(name, part) for name, part in parts if part.bytes]:
        heads = "CPU s a GiB, " + ("here + agent" if found.peer == "agent" else "here")
        lines.append(look.paint(f"{heads}: {', '.join(costs)}", _DIM))
    return lines


def _arrow(way: str, look: Look) -> str:
    return way if look.ascii else {"up": "↑", "down": "↓"}[way]


def _remark(flow: Flow, complete: bool) -> str:
    remark = "" if complete else "  cut short"
    if len(flow.streams) > 1:
        each = [moved / flow.seconds for moved in flow.streams]
        remark = f"  each {rate(min(each))} to {rate(max(each))}{remark}"
    return remark


def _flow(label: str, way: str, flow: Flow, remark: str, most: float, columns: int, look: Look) -> str:
    """A direction's figure; its bar, and how it went over time, where that many columns have room for them."""
    told = f"{label:<{_LABEL}}{rate(flow.bytes_per_second):>{_VALUE}}"
    if not look.bars or columns < _LEAST_BAR:
        return told + remark
    sparks = ""
    if columns >= _LEAST_BAR + 2 + _SPARK and not look.ascii:
        columns -= 2 + _SPARK
        sparks = "  " + look.paint(look.spark(flow.intervals, _SPARK).ljust(_SPARK), _DIM)
    bar = look.bar(flow.bytes_per_second / most if most else 0.0, columns)
    return f"{told}  {look.paint(bar, _UP if way == 'up' else _DOWN)}{sparks}{remark}".rstrip()


def _cost(name: str, part: Throughput) -> str:
    own = f"{name} {part.cpu_seconds / part.bytes * _GIB:.2f}"
    if part.agent_cpu_seconds is None:
        return own
    return f"{own} + {part.agent_cpu_seconds / part.bytes * _GIB:.2f}"


# --- round trips


def _round_trips(part: RoundTrips, look: Look) -> Iterator[str]:
    s = part.spread
    short = "" if part.complete else ", cut short"
    head = f"round trip of {amount(part.size)}, {s.count:,} of them{short}"
    ranks = [("min", s.min), ("median", s.median), ("p90", s.p90), ("p99", s.p99), ("p99.9", s.p99_9), ("max", s.max)]
    columns = look.width - _LABEL - _VALUE - 2
    drawn = look.bars and columns >= _LEAST_BAR
    yield head + (" (bars: logarithmic)" if drawn else "")
    base = max(s.min, 1e-9) / 2
    for name, value in ranks:
        told = f"  {name:<{_LABEL - 2}}{look.span(value):>{_VALUE}}"
        if drawn:
            share = math.log(max(value, base) / base) / math.log(max(s.max, 2 * base) / base)
            told += f"  {look.paint(look.bar(share, columns), _TIME)}".rstrip()
        yield told


# --- connections


def _connections(part: Connections, look: Look) -> Iterator[str]:
    count = part.one.count + part.count
    yield f"connections: {count:,} opened, used and closed{'' if part.complete else ', cut short'}"
    most = max(part.one_per_second, part.per_second)
    for label, value in (("one at a time", part.one_per_second), (f"{part.at_once} at a time", part.per_second)):
        told = f"  {label:<{_LABEL - 2}}{f'{value:,.0f}/s':>{_VALUE}}"
        columns = look.width - len(told) - 2
        if look.bars and columns >= _LEAST_BAR:
            told += f"  {look.paint(look.bar(value / most if most else 0.0, columns), _COUNT)}".rstrip()
        yield told
    cost = f"CPU {look.span(part.cpu_seconds / count)} here"
    if part.agent_cpu_seconds is not None:
        cost += f" + {look.span(part.agent_cpu_seconds / count)} agent"
    alone = f"  one takes {look.span(part.one.median)} (median), {look.span(part.one.p99)} (p99)"
    yield look.paint(f"{alone}; {cost}", _DIM)


# --- figures as people read them


def amount(size: float) -> str:
    """Bytes: whole ones without a fraction."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if size == int(size) else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def rate(per_second: float) -> str:
    """Bytes a second."""
    return f"{amount(round(per_second) if per_second < 1024 else per_second)}/s"


def span(seconds: float) -> str:
    """A time, to three digits or so."""
    if seconds < 999.5e-6:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"
