"""docs/benchmarks.md and its plots, made from results. Pure but for `write`.

The page is prose, kept by hand, around blocks that are made:

    <!-- bench:NAME -->
    …
    <!-- /bench:NAME -->

NAME is a case, or `targets`. A block of a case that has no results stays as it is, and so does all prose.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench import growth, targets
from bench.plot import Bar, Group, Line, Panel, Ratio, bars, curves, figure, hue, ratios
from bench.results import Figures, Key, Record, Results, spread

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
PLOTS = "benchmarks"
"""The plots' folder, beside the page."""

BLOCK = re.compile(r"(<!-- bench:(?P<name>[\w-]+) -->\n)(.*?)(<!-- /bench:(?P=name) -->)", re.DOTALL)
AIMS = "How many times better than …"
MARKS = "Medians, lowest and highest round; a stroke: what was asked for; a diamond: the goal; hollow: not reached."
SPREAD = "Medians; the whiskers go from the lowest round to the highest."


def _bytes(place: float) -> str:
    for unit, size in (("M", 1 << 20), ("K", 1 << 10)):
        if place >= size:
            return f"{place / size:g}{unit}"
    return f"{place:g}"


def _count(place: float) -> str:
    return f"{place:,.0f}"


def _percentile(place: float) -> str:
    return f"p{place:g}"


@dataclass(frozen=True)
class Curves:
    """A plot of curves: its file, title and panels (subject, metric, or the start of a subject)."""

    title: str
    panels: tuple[tuple[str, str], ...]
    axis: str
    place: Callable[[float], str]
    even: bool = False


CURVES: dict[str, dict[str, Curves]] = {
    "sizes": {
        "sizes": Curves(
            "Throughput by size of message",
            (("TCP → UNIX, by size of message", "MiB/s"), ("TCP → UNIX → UNIX, by size of message", "MiB/s")),
            "bytes in a message",
            _bytes,
            even=True,
        )
    },
    "latency": {
        "latency": Curves(
            "The round trip of one byte",
            (("TCP → UNIX, a byte there and back", "µs"), ("two hops, a byte there and back", "µs")),
            "percentile",
            _percentile,
            even=True,
        )
    },
    "growth": {
        "growth-memory": Curves(
            "Memory by connections", ((growth.MEMORY, growth.TOTAL),), "idle connections", _count, even=True
        ),
        "growth-cost": Curves(
            "Requests beside idle connections",
            ((growth.REQUESTS, growth.RATE), (growth.REQUESTS, growth.CPU)),
            "idle connections",
            _count,
            even=True,
        ),
    },
}


# --- Markdown


def section(name: str, record: Record) -> str:
    """What a block of a case holds: where it was measured, plots, tables."""
    figures = record.figures
    parts = [_setting(record)]
    parts += [f"![{title}]({PLOTS}/{file}.svg)" for file, title in _titles(name, figures).items()]
    tables = figures.text or "\n".join(table(figures, subject) for subject in figures.subjects())
    parts.append(f"<details><summary>All figures</summary>\n\n{tables.strip()}\n\n</details>")
    return "\n\n".join(parts) + "\n"


def _setting(record: Record) -> str:
    taken = record.taken
    versions = "".join(f"; {name} {number}" for name, number in taken["versions"].items())
    rounds = "1 round" if taken["rounds"] == 1 else f"{taken['rounds']} rounds"
    raised = f", at a niceness of {taken['niceness']} beside other work" if taken.get("niceness", 0) < 0 else ""
    return (
        f"{taken['date']}, {rounds}, begun at a load of {taken['load']:.1f}{raised}; Linux {taken['kernel']}, "
        f"{taken['cores']} cores, Python {taken['python']}, vsockfwd {taken['commit']}{versions}."
    )


def table(figures: Figures, subject: str) -> str:
    """One subject's figures: a row for each contender."""
    lines = [f"#### {subject}", ""]
    first, *others = figures.metrics(subject)
    if any(figures.curve(subject, first, who) for who in figures.who(subject, first)):
        return "\n".join([*lines, *(_grid(figures, subject, metric) for metric in (first, *others))])
    heads = [f"{first}: median", "min – max", *others, "ours to it (min – max)"]
    lines += [f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for who in figures.who(subject, first):
        key = Key(subject, first, who)
        low, median, high = spread(figures.values[key])
        more = [figures.values.get(key._replace(metric=metric)) for metric in others]
        cells = [figure(median), f"{figure(low)} – {figure(high)}"]
        cells += [figure(spread(values).median) if values else "" for values in more]
        lines.append(f"| {' | '.join([who, *cells, _gain(figures, key, bold=True)])} |")
    return "\n".join(lines) + "\n"


def _grid(figures: Figures, subject: str, metric: str) -> str:
    """A curve's figures: a column for each place."""
    who = figures.who(subject, metric)
    curves = {name: figures.curve(subject, metric, name) for name in who}
    places = sorted({place for curve in curves.values() for place in curve})
    naming = next((plot.place for plots in CURVES.values() for plot in plots.values()
                   if any(subject == panel[0] for panel in plot.panels)), _count)  # fmt: skip
    lines = [f"| {metric} | {' | '.join(map(naming, places))} |", "|---" * (len(places) + 1) + "|"]
    for name, curve in curves.items():
        cells = []
        for place in places:
            low, median, high = spread(curve[place]) if place in curve else (math.nan,) * 3
            cells.append("" if math.isnan(median) else f"{figure(median)} ({figure(low)} – {figure(high)})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _gain(figures: Figures, key: Key, bold: bool = False) -> str:
    if key.who == figures.ours.get(key.subject):
        return ""
    gains = figures.gains(key)
    if not gains or any(map(math.isnan, gains)):
        return ""
    low, median, high = spread(gains)
    mark = "**" if bold else ""
    return f"{mark}{median:.2f}×{mark} ({low:.2f} – {high:.2f})"


def renewed(page: str, blocks: dict[str, str]) -> str:
    """The page with these blocks in place of what they held; everything else as it was."""

    def renew(match: re.Match[str]) -> str:
        made = blocks.get(match["name"])
        return match[0] if made is None else f"{match[1]}{made}{match[4]}"

    return BLOCK.sub(renew, page)


def blocks(page: str) -> list[str]:
    """The names of a page's blocks."""
    return [match["name"] for match in BLOCK.finditer(page)]


# --- plots


def _titles(name: str, figures: Figures) -> dict[str, str]:
    if name in CURVES:
        return {file: plot.title for file, plot in CURVES[name].items()}
    return {name: TITLES.get(name, name)} if figures.values else {}


TITLES = {
    "raw-streams": "One large stream through a raw relay, TCP → UNIX",
    "raw-pairs": "One large stream through a raw relay, other pairs",
    "raw-requests": "Requests through a raw relay, TCP → UNIX → nginx",
    "hops-streams": "One large stream through two hops: client → forward → agent → server",
    "hops-requests": "Requests through two hops: wrk → forward → agent → nginx",
    "hybrid": "Through a VMM's hybrid socket",
    "rig": "Across a real vsock, inside an emulated virtual machine",
    "perf": "vsockfwd perf beside a plain loop",
    "relay": "vsockfwd relay, pair by pair",
    "copy": "Copies, tmpfs to tmpfs",
    "datagrams": "Datagrams",
}


def plots(name: str, figures: Figures) -> dict[str, str]:
    """File name, without its end → SVG."""
    if name in CURVES:
        return {
            file: curves(plot.title, [_panel(figures, plot, *panel) for panel in plot.panels], SPREAD)
            for file, plot in CURVES[name].items()
        }
    groups = [_group(figures, subject) for subject in figures.subjects()]
    told = f"{SPREAD} Beside them: how many times better ours is, and that ratio's lowest and highest round."
    return {file: bars(title, groups, told) for file, title in _titles(name, figures).items()}


def _panel(figures: Figures, plot: Curves, subject: str, metric: str) -> Panel:
    ours = figures.ours[subject]
    lines = [
        Line(who, hue(who, ours), [(place, spread(v)) for place, v in figures.curve(subject, metric, who).items()])
        for who in figures.who(subject, metric)
    ]
    return Panel(subject, metric, plot.axis, lines, plot.place, plot.even)


def _group(figures: Figures, subject: str) -> Group:
    metric, ours = figures.metrics(subject)[0], figures.ours[subject]
    keys = [Key(subject, metric, who) for who in figures.who(subject, metric)]
    found = [Bar(k.who, hue(k.who, ours), spread(figures.values[k]), _gain(figures, k)) for k in keys]
    return Group(subject, metric, found)


def aimed(results: Results) -> list[Ratio]:
    """The targets that are ratios and were measured."""
    found = [(target, target.measured(results)) for target in targets.TARGETS if target.against]
    return [Ratio(t.subject, t.against or "", spread, t.asked, t.goal) for t, spread in found if spread]


# --- files


def write(results: Results, page: Path = PAGE) -> list[str]:
    """Make the page's blocks and plots anew; what in it has no block, by name."""
    made = {name: section(name, record) for name, record in results.items()}
    aims = aimed(results)
    image = f"![{AIMS}]({PLOTS}/targets.svg)\n\n" if aims else ""
    made["targets"] = image + targets.markdown(results)
    made |= {f"{name}-targets": targets.markdown(results, asked) for name, asked in targets.OTHERS.items()}
    text = page.read_text()
    page.write_text(renewed(text, made))
    folder = page.parent / PLOTS
    folder.mkdir(exist_ok=True)
    if aims:
        (folder / "targets.svg").write_text(ratios(AIMS, aims, MARKS))
    for name, record in results.items():
        for file, svg in plots(name, record.figures).items():
            (folder / f"{file}.svg").write_text(svg)
    return sorted(made.keys() - set(blocks(text)))
