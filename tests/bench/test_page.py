"""Making docs/benchmarks.md anew loses no word that somebody wrote, and makes plots that can be looked at."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bench import page, targets
from bench.__main__ import chosen
from bench.cases import CASES
from bench.plot import Bar, Group, Line, Panel, Ratio, apart, bars, curves, hue, log_ticks, ratios, ticks_from_zero
from bench.results import Figures, Key, Record, Spread

WRITTEN = """# Prose

<!-- bench:hybrid -->
old
<!-- /bench:hybrid -->
between
<!-- bench:sizes -->
older
<!-- /bench:sizes -->
after
"""
TAKEN = {"date": "2026-01-01", "rounds": 2, "load": 0.5, "kernel": "6", "cores": 2, "python": "3", "commit": "abc"}


def record(subject: str = "a stream", *places: float) -> Record:
    figures = Figures(ours={subject: "vsockfwd forward"})
    for who, place in itertools.product(("vsockfwd forward", "socat"), places or (None,)):
        figures.values[Key(subject, "GiB/s", who, place)] = [1.0, 2.0]
    return Record(TAKEN | {"versions": {"socat": "1.7"}}, figures)


def test_a_run_of_one_case_replaces_its_own_block_and_nothing_else():
    made = page.renewed(WRITTEN, {"hybrid": "new\n"})
    assert made == WRITTEN.replace("old\n", "new\n")
    assert page.renewed(made, {"hybrid": "new\n"}) == made


def test_a_block_may_hold_what_a_regular_expression_would_read_as_its_own():
    assert "a\\1b\n" in page.renewed(WRITTEN, {"hybrid": "a\\1b\n"})


def test_the_page_has_a_block_for_each_case_and_each_list_of_targets():
    wanted = {*CASES, "targets", *(f"{name}-targets" for name in targets.OTHERS)}
    found = page.blocks(page.PAGE.read_text())
    assert sorted(found) == sorted(wanted)


def test_the_word_targets_stands_for_all_cases_that_they_ask_for_and_no_word_for_all():
    assert chosen([]) == list(CASES)
    assert chosen(["targets", "sizes"]) == [name for name, case in CASES.items() if case.aimed_at or name == "sizes"]


def test_writing_the_page_keeps_prose_says_what_has_no_block_and_leaves_plots(tmp_path: Path):
    there = tmp_path / "page.md"
    there.write_text(WRITTEN)
    lost = page.write({"hybrid": record(), "raw-streams": record()}, there)
    text = there.read_text()
    for words in ("# Prose\n", "between\n", "older\n", "after\n"):
        assert words in text
    assert "old\n" not in text
    assert "| socat | 1.50 | 1.00 – 2.00 | **1.00×** (1.00 – 1.00) |" in text
    assert "2 rounds, begun at a load of 0.5; Linux 6, 2 cores" in text
    assert {"raw-streams", "targets"} <= set(lost)
    assert "hybrid" not in lost
    for name in ("hybrid", "raw-streams"):
        ET.fromstring((tmp_path / f"benchmarks/{name}.svg").read_text())


def test_every_curve_that_the_page_shows_is_of_a_subject_that_is_measured():
    for name, plots in page.CURVES.items():
        assert name in CASES
        for plot in plots.values():
            figures = Figures()
            for subject, metric in plot.panels:
                figures.ours[subject] = "vsockfwd forward"
                figures.values[Key(subject, metric, "vsockfwd forward", 1)] = [1.0]
        assert page.plots(name, _all(name)).keys() == plots.keys()


def _all(name: str) -> Figures:
    figures = Figures()
    for plot in page.CURVES[name].values():
        for (subject, metric), place in itertools.product(plot.panels, (1, 64)):
            figures.ours[subject] = "ours"
            figures.add(Key(subject, metric, "ours", place), 3.0)
    return figures


def test_bars_are_well_formed_whatever_contenders_are_called():
    group = Group("a < b & c", "GiB/s", [Bar("socat <&>\"'", "socat", Spread(1, 2, 3), "1.00×")])
    root = ET.fromstring(bars("a & b", [group]))
    assert any(text.text == "socat <&>\"'" for text in root.iter("{http://www.w3.org/2000/svg}text"))


@pytest.mark.parametrize("high", [0.004, 0.9, 3.0, 40_000.0])
@pytest.mark.parametrize("low", [0.003, 0.0])
def test_curves_are_well_formed_and_stay_within_their_picture(low: float, high: float):
    points = [(1.0, Spread(low, low, high)), (1000.0, Spread(low, high, high))]
    lines = [Line(f"peer {number}", "other", points[: 1 + number % 2]) for number in range(9)]
    root = ET.fromstring(curves("title", [Panel("p", "u", "x", lines, str), Panel("q", "u", "x", lines, str, True)]))
    height = float(root.attrib["height"])
    for line in root.iter("{http://www.w3.org/2000/svg}line"):
        assert all(0 <= float(line.attrib[name]) <= height for name in ("y1", "y2"))


def test_a_ratio_that_missed_its_mark_is_hollow_and_one_that_reached_it_is_not():
    made = [ratios("t", [Ratio("a", "b & c", Spread(0.5, median, 2.0), 1.0, 4.0)]) for median in (0.9, 1.0)]
    assert [ET.fromstring(svg).find(".//{*}circle").attrib["class"] for svg in made] == ["hollow s-ours", "f-ours"]


def test_the_same_figures_make_the_same_bytes():
    one, two = (page.plots("hybrid", record().figures) for _ in range(2))
    assert one == two


def test_names_at_the_ends_of_curves_do_not_lie_on_each_other():
    placed = apart([10, 11, 12, 100, 101], 15, 0, 110)
    assert all(b - a >= 15 for a, b in itertools.pairwise(placed))
    assert placed[0] >= 0
    assert placed[-1] <= 110


@pytest.mark.parametrize("high", [0.03, 1, 7.2, 99, 12345])
def test_ticks_enclose_what_is_drawn(high: float):
    assert ticks_from_zero(high)[-1] >= high * 0.999
    assert 3 <= len(ticks_from_zero(high)) <= 7
    ticks = log_ticks(high / 700, high)
    assert ticks[0] <= high / 700
    assert ticks[-1] >= high * 0.999


def test_a_contender_has_one_colour_wherever_it_appears():
    assert hue("vsockfwd forward", "vsockfwd forward") == "ours"
    assert hue("socat -b1M", "x") == hue("two socats -b1M", "x") == hue("socat -b1048576", "x") != hue("socat", "x")
    assert hue("scp -c aes128", "x") == hue("ssh -L, aes128-gcm", "x")
