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
_LABEL, _VALUE, _SPARK = 16, 12, 24
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
    lines = [look.paint(_title(found), _BOLD)]
    lines += _throughputs(found, look)
    if found.latency is not None:
        lines += _round_trips(found.latency, look)
    if found.connections is not None:
        lines += _connections(found.connections, look)
    return lines


def at_work(name: str, part: Throughput, look: Look) -> str:
    """One line about a part that is being measured."""
    told = []
    for flow in (part.up, part.down):
        if flow is not None and flow.intervals:
            told.append(f"{rate(flow.intervals[-1]):>11} {look.spark(flow.intervals[-_SPARK:], _SPARK)}")
    return f"{name:<5}{'  '.join(told)}"[: look.width - 1]


def _title(found: Findings) -> str:
    many = f"{found.streams} stream{'s' * (found.streams != 1)}"
    kind = "agent" if found.peer == "agent" else f"plain {found.peer}"
    checked = "every byte checked" if found.checked else "content not checked"
    return f"{printable(found.target)} ({kind}): {many}, messages of {amount(found.size)}, {checked}"


# --- throughput


def _throughputs(found: Findings, look: Look) -> Iterator[str]:
    parts = [(name, part) for name in ("up", "down", "both") if (part := getattr(found, name)) is not None]
    flows = [flow.bytes_per_second for _, part in parts for flow in (part.up, part.down) if flow is not None]
    for name, part in parts:
        for way, flow in (("up", part.up), ("down", part.down)):
            if flow is not None:
                label = name if name == way else f"both at once {'↑' if way == 'up' else '↓'}"
                yield _flow(label, way, flow, max(flows), part.complete, look)
    if found.peer == "discard" and parts:
        yield "what the kernel took, not what arrived: a discard tells nothing"
    if costs := [_cost(name, part) for name, part in parts if part.bytes]:
        heads = "CPU s a GiB, " + ("here + agent" if found.peer == "agent" else "here")
        yield look.paint(f"{heads}: {', '.join(costs)}", _DIM)


def _flow(label: str, way: str, flow: Flow, most: float, complete: bool, look: Look) -> str:
    if look.ascii:
        label = label.replace("↑", "up").replace("↓", "down")
    told = f"{label:<{_LABEL}}{rate(flow.bytes_per_second):>{_VALUE}}"
    short = "" if complete else "  cut short"
    if len(flow.streams) > 1:
        each = [streamed / flow.seconds for streamed in flow.streams]
        short = f"  {rate(min(each))} to {rate(max(each))} each" + short
    columns = look.width - _LABEL - _VALUE - 2 - len(short)
    if not look.bars or columns < _LEAST_BAR:
        return told + short
    sparks = look.spark(flow.intervals, _SPARK) if columns >= _LEAST_BAR + 2 + _SPARK else ""
    columns -= _SPARK + 2 if sparks else 0
    bar = look.bar(flow.bytes_per_second / most if most else 0.0, columns)
    code = _UP if way == "up" else _DOWN
    return f"{told}  {look.paint(bar, code)}{'  ' if sparks else ''}{look.paint(sparks, _DIM)}{short}".rstrip()


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
        told = f"  {name:<{_LABEL - 2}}{span(value):>{_VALUE}}"
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
    cost = f"CPU {span(part.cpu_seconds / count)}"
    if part.agent_cpu_seconds is not None:
        cost += f" + {span(part.agent_cpu_seconds / count)}"
    yield look.paint(f"one takes {span(part.one.median)} (median), {span(part.one.p99)} (p99); {cost}", _DIM)


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
