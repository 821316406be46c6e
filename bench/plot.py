"""Figures as SVG: bars with their spread, and curves labelled where they end. Pure: values in, a string out.

Written by hand rather than by a plotting library: two kinds of plot are all that the page wants, and these follow the
reader's light or dark theme, say the same bytes for the same values, and differ by the lines whose figures differ.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from bench.results import Spread

WIDTH = 960
FONT = "system-ui, 'Segoe UI', 'DejaVu Sans', Helvetica, sans-serif"

HUES: dict[str, tuple[str, str]] = {
    "ours": ("#0a62c4", "#62aefc"),
    "ours-too": ("#6ba4e4", "#2f73b8"),
    "haproxy": ("#d1600f", "#f2994a"),
    "systemd": ("#2c8a4b", "#62c584"),
    "ssh": ("#8a3fb0", "#c58be4"),
    "rsync": ("#a8325e", "#e8799f"),
    "socat": ("#a3a9b3", "#7d8590"),
    "socat-1m": ("#5d6673", "#b1bac4"),
    "direct": ("#d0b94f", "#a08c34"),
    "direct-too": ("#8f7d2c", "#d9c877"),
    "other": ("#39868c", "#6cc3c9"),
}
"""Colour of a contender, on white and on black."""

INK = {"ink": ("#1f2328", "#e6edf3"), "mute": ("#656d76", "#8d96a0"), "grid": ("#e4e7eb", "#2b313a")}
PAPER = ("#ffffff", "#0d1117")


def hue(who: str, ours: str) -> str:
    """Which colour a contender has, wherever it appears."""
    words = {
        "direct-too": ("direct, UNIX",),
        "direct": ("direct", "cp,", "cp -r", "plain"),
        "ssh": ("ssh", "scp"),
        "haproxy": ("HAProxy",),
        "systemd": ("systemd",),
        "rsync": ("rsync",),
    }
    if who == ours:
        return "ours"
    for name, begins in words.items():
        if who.startswith(begins):
            return name
    if "socat" in who:
        return "socat-1m" if "-b1" in who else "socat"
    return "ours-too" if who.startswith("vsockfwd") else "other"


def figure(value: float) -> str:
    """Three digits that count, or all of a large number's."""
    if value >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


@dataclass(frozen=True)
class Bar:
    who: str
    hue: str
    values: Spread
    note: str = ""


@dataclass(frozen=True)
class Group:
    """Bars on one scale."""

    title: str
    unit: str
    bars: Sequence[Bar]


@dataclass(frozen=True)
class Line:
    who: str
    hue: str
    points: Sequence[tuple[float, Spread]]
    """Places, ascending, and what was measured there."""


@dataclass(frozen=True)
class Panel:
    """Curves on one pair of scales. `place` says what an x is called; `even` puts the places at even distances."""

    title: str
    unit: str
    axis: str
    lines: Sequence[Line]
    place: Callable[[float], str]
    even: bool = False


# --- bars

_ROW = 23
_VALUES = 712
"""Where the values' column ends; notes are to its right, bars to its left."""

_LETTER = 7.3
"""What a letter of a label takes, about: widths of a reader's font are not known here."""


def bars(title: str, groups: Sequence[Group], explained: str = "") -> str:
    """Horizontal bars of medians, whiskers from minimum to maximum, the median and a note beside each."""
    parts, y = [_text(24, 34, title, "title")], 34
    if explained:
        y += 20
        parts.append(_text(24, y, explained, "small mute"))
    begin = 42 + _LETTER * max(len(bar.who) for group in groups for bar in group.bars)
    for group in groups:
        y += 32
        parts.append(_text(24, y, group.title, "head"))
        parts.append(_text(_VALUES, y, group.unit, "small mute end"))
        y += 10
        scale = (_VALUES - 86 - begin) / max(bar.values.high for bar in group.bars)
        parts.append(_line(begin, y, begin, y + _ROW * len(group.bars), "grid"))
        for bar in group.bars:
            parts += _bar(bar, begin, y, scale)
            y += _ROW
    return _document(title, y + 20, parts)


def _bar(bar: Bar, begin: float, y: float, scale: float) -> list[str]:
    middle = y + _ROW / 2
    low, median, high = (begin + value * scale for value in bar.values)
    ours = " strong" if bar.hue == "ours" else ""
    parts = [
        _text(begin - 10, middle + 4, bar.who, f"label end{ours}"),
        f'<rect x="{begin:.1f}" y="{y + 4:.1f}" width="{max(1.0, median - begin):.1f}" height="{_ROW - 8}" rx="2" '
        f'class="f-{bar.hue}"/>',
        _line(low, middle, high, middle, "whisker"),
        _line(low, middle - 4, low, middle + 4, "whisker"),
        _line(high, middle - 4, high, middle + 4, "whisker"),
    ]
    parts.append(_text(_VALUES, middle + 4, figure(bar.values.median), "label end strong"))
    if bar.note:
        parts.append(_text(_VALUES + 14, middle + 4, bar.note, "small mute"))
    return parts


# --- ratios against marks


@dataclass(frozen=True)
class Ratio:
    """A comparison: how many times better ours is, and the marks that it was given."""

    title: str
    against: str
    values: Spread
    asked: float | None
    goal: float | None

    @property
    def reached(self) -> bool:
        """What was asked for; where nothing was, the goal."""
        mark = self.goal if self.asked is None else self.asked
        return mark is None or round(self.values.median, 2) >= mark


_NEAR, _FAR = 470.0, 850.0
"""Where the smallest and the largest ratio stand."""


def ratios(title: str, rows: Sequence[Ratio], explained: str = "") -> str:
    """A dot for each median on one axis of ratios, whiskers, and the marks; hollow where a mark was not reached."""
    marks = [mark for row in rows for mark in (row.asked, row.goal) if mark]
    ticks = log_ticks(min(row.values.low for row in rows), max(*marks, *(row.values.high for row in rows)))
    low, high = math.log(ticks[0]), math.log(ticks[-1])

    def at(value: float) -> float:
        return _NEAR + (_FAR - _NEAR) * (math.log(value) - low) / (high - low)

    parts = [_text(24, 34, title, "title"), _text(24, 54, explained, "small mute")]
    top, bottom = 92.0, 92.0 + _ROW * len(rows)
    for tick in ticks:
        parts.append(_line(at(tick), top - 4, at(tick), bottom, "axis" if tick == 1 else "grid"))
        parts.append(_text(at(tick), top - 12, f"{tick:g}×", "small mute middle"))
    before = ""
    for number, row in enumerate(rows):
        y = top + _ROW * (number + 0.5)
        if row.title != before:
            parts.append(_text(24, y + 4, row.title, "small strong"))
            if number:
                parts.append(_line(24, y - _ROW / 2, WIDTH - 24, y - _ROW / 2, "grid"))
        before = row.title
        parts += [_text(_NEAR - 14, y + 4, row.against, "small mute end"), *_ratio(row, at, y)]
    return _document(title, bottom + 22, parts)


def _ratio(row: Ratio, at: Callable[[float], float], y: float) -> list[str]:
    low, median, high = map(at, row.values)
    parts = [_line(low, y, high, y, "s-ours curve")]
    if row.asked:
        parts.append(_line(at(row.asked), y - 8, at(row.asked), y + 8, "mark"))
    if row.goal:
        x = at(row.goal)
        parts.append(f'<path d="M{x:.1f},{y - 6:.1f} l6,6 l-6,6 l-6,-6 z" class="goal"/>')
    full = "f-ours" if row.reached else "hollow s-ours"
    parts.append(f'<circle cx="{median:.1f}" cy="{y:.1f}" r="4.6" class="{full}"/>')
    parts.append(_text(WIDTH - 24, y + 4, f"{row.values.median:.2f}×", "label end strong"))
    return parts


# --- curves

_TALL, _SIDE, _NAMES = 250, 58, 198


def curves(title: str, panels: Sequence[Panel], explained: str = "") -> str:
    """Panels below each other in two columns, or one that is as wide as the page."""
    columns = 1 if len(panels) == 1 else 2
    wide = (WIDTH - 24) // columns
    parts, top = [_text(24, 34, title, "title")], 46
    if explained:
        parts.append(_text(24, 54, explained, "small mute"))
        top = 66
    for number, panel in enumerate(panels):
        left, y = 12 + wide * (number % columns), top + (_TALL + 112) * (number // columns)
        parts += _panel(panel, left + _SIDE, y + 54, wide - _SIDE - _NAMES)
    rows = math.ceil(len(panels) / columns)
    return _document(title, top + (_TALL + 112) * rows, parts)


def _panel(panel: Panel, left: float, top: float, wide: float) -> list[str]:
    spreads = [spread for line in panel.lines for _, spread in line.points]
    ticks, at_y = _scale(min(s.low for s in spreads), max(s.high for s in spreads), top + _TALL, top)
    places = sorted({place for line in panel.lines for place, _ in line.points})
    at_x = _places(places, left, wide, panel.even)
    parts = [_text(left - _SIDE + 12, top - 30, panel.title, "head")]
    parts.append(_text(left - _SIDE + 12, top - 14, panel.unit, "small mute"))
    for tick in ticks:
        parts.append(_line(left, at_y(tick), left + wide, at_y(tick), "grid"))
        parts.append(_text(left - 6, at_y(tick) + 4, _tick(tick), "small mute end"))
    last = -math.inf
    for place in places:
        if at_x(place) - last < 34:  # no room for its name
            continue
        last = at_x(place)
        parts.append(_line(last, top + _TALL, last, top + _TALL + 4, "axis"))
        parts.append(_text(last, top + _TALL + 18, panel.place(place), "small mute middle"))
    parts.append(_line(left, top + _TALL, left + wide, top + _TALL, "axis"))
    parts.append(_text(left + wide / 2, top + _TALL + 36, panel.axis, "small mute middle"))
    for line in sorted(panel.lines, key=lambda line: line.hue == "ours"):  # ours on top of the others
        parts += _curve(line, at_x, at_y)
    ends = [(line, at_x(line.points[-1][0]), at_y(line.points[-1][1].median)) for line in panel.lines]
    return parts + _names(ends, left + wide + 18, top, top + _TALL)


def _curve(line: Line, at_x: Callable[[float], float], at_y: Callable[[float], float]) -> list[str]:
    points = [(at_x(place), spread) for place, spread in line.points]
    path = " ".join(f"{x:.1f},{at_y(spread.median):.1f}" for x, spread in points)
    bold = " bold" if line.hue == "ours" else ""
    parts = [_line(x, at_y(spread.low), x, at_y(spread.high), f"s-{line.hue} spread") for x, spread in points]
    parts.append(f'<polyline points="{path}" class="s-{line.hue} curve{bold}"/>')
    parts += [
        f'<circle cx="{x:.1f}" cy="{at_y(spread.median):.1f}" r="{3.4 if bold else 2.6}" class="f-{line.hue}"/>'
        for x, spread in points
    ]
    return parts


def _names(ends: Sequence[tuple[Line, float, float]], x: float, top: float, bottom: float) -> list[str]:
    """Each curve's name and last value at its end's height, or as near as there is room."""
    ranked = sorted(ends, key=lambda end: end[2])
    heights = apart([y for _, _, y in ranked], 15, top, bottom)
    parts = []
    for (line, end, y), height in zip(ranked, heights, strict=True):
        ours = " strong" if line.hue == "ours" else ""
        parts.append(_line(end + 4, y, x - 3, height, f"s-{line.hue} leader"))
        told = f"{line.who}  {figure(line.points[-1][1].median)}"
        parts.append(_text(x, height + 4, told, f"small t-{line.hue}{ours}"))
    return parts


def apart(wanted: Sequence[float], room: float, low: float, high: float) -> list[float]:
    """Ascending positions as near as can be to the wanted ones, each at least `room` from the next, within bounds."""
    placed: list[float] = []
    for value in wanted:
        placed.append(max(value, low, placed[-1] + room if placed else low))
    limit = high
    for number in reversed(range(len(placed))):
        placed[number] = min(placed[number], limit)
        limit = placed[number] - room
    return placed


def _places(places: Sequence[float], left: float, wide: float, even: bool) -> Callable[[float], float]:
    if len(places) == 1:
        return lambda place: left + wide / 2
    inset = 8
    if even:
        return lambda place: left + inset + (wide - 2 * inset) * places.index(place) / (len(places) - 1)
    low, high = math.log(places[0]), math.log(places[-1])
    return lambda place: left + inset + (wide - 2 * inset) * (math.log(place) - low) / (high - low)


def _scale(low: float, high: float, bottom: float, top: float) -> tuple[list[float], Callable[[float], float]]:
    """Ticks and where they are: from zero where values are of a kind, by powers of ten where they are not."""
    if low > 0 and high / low > 12:
        ticks = log_ticks(low, high)
        begin, end = math.log(ticks[0]), math.log(ticks[-1])
        if high / low > 150:  # names for the powers of ten are enough
            ticks = [tick for tick in ticks if math.isclose(math.log10(tick) % 1, 0, abs_tol=1e-9)]
        return ticks, lambda value: bottom - (bottom - top) * (math.log(value) - begin) / (end - begin)
    ticks = ticks_from_zero(high)
    return ticks, lambda value: bottom - (bottom - top) * value / ticks[-1]


def ticks_from_zero(high: float) -> list[float]:
    """Round numbers from 0 to at least `high`, four to seven of them."""
    if high <= 0:
        return [0.0, 1.0]
    power = 10 ** math.floor(math.log10(high / 4))
    step = next(power * times for times in (1, 2, 2.5, 5, 10) if high / (power * times) <= 5)
    return [step * number for number in range(math.ceil(high / step - 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 of each power of ten, from the last that is below both to the first above."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [times * 10.0**power for power, times in itertools.product(powers, (1, 2, 5))]
    first = max((tick for tick in every if tick <= low * 1.0001), default=every[0])
    last = min((tick for tick in every if tick >= high * 0.9999), default=every[-1])
    return [tick for tick in every if first <= tick <= last]


def _tick(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:g}"


# --- the document


def _text(x: float, y: float, words: str, classes: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{classes}">{escape(words)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, classes: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{classes}"/>'


def _colours(dark: bool) -> str:
    ink, mute, grid = (INK[name][dark] for name in ("ink", "mute", "grid"))
    rules = [
        f".paper{{fill:{PAPER[dark]};stroke:{grid}}}.hollow{{fill:{PAPER[dark]}}}.mark,.goal{{stroke:{ink}}}",
        f"text{{fill:{ink}}}.mute{{fill:{mute}}}.grid{{stroke:{grid}}}.axis{{stroke:{mute}}}.whisker{{stroke:{ink}}}",
    ]
    for name, colours in HUES.items():
        colour = colours[dark]
        told = ink if name in ("socat", "direct") else colour  # too pale for words
        rules.append(f".f-{name}{{fill:{colour}}}.s-{name}{{stroke:{colour}}}.t-{name}{{fill:{told}}}")
    return "\n".join(rules)


def _document(title: str, height: float, parts: Sequence[str]) -> str:
    style = (
        f"text{{font-family:{FONT};font-size:13px;font-variant-numeric:tabular-nums}}\n"
        ".title{font-size:17px;font-weight:600}.head{font-size:13.5px;font-weight:600}.small{font-size:11.5px}"
        ".strong{font-weight:600}.end{text-anchor:end}.middle{text-anchor:middle}\n"
        "line{stroke-width:1}.whisker{stroke-width:1.2;opacity:.75}.curve{fill:none;stroke-width:1.8}"
        ".hollow{stroke-width:2}.mark{stroke-width:2}.goal{fill:none;stroke-width:1.3}"
        ".bold{stroke-width:3}.spread{stroke-width:1.4;opacity:.55}.leader{stroke-width:1;opacity:.45;"
        "stroke-dasharray:2 3}\n"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
        f'height="{height:.0f}" role="img">\n<title>{escape(title)}</title>\n'
        f"<style>\n{style}{_colours(False)}\n@media (prefers-color-scheme: dark) {{\n{_colours(True)}\n}}\n</style>\n"
        f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1:.0f}" rx="8" class="paper"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )
