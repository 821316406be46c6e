"""What a reader of docs/benchmarks.md would be told wrongly if ratios, percentiles or the kept figures were wrong."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from bench.cases import CASES, written
from bench.harness import Table
from bench.results import Figures, Key, Record, gains, load, percentile, save, spread
from bench.targets import OTHERS, TARGETS, Target
from bench.traffic import Batch

OURS, PEER = "vsockfwd forward", "socat"


def figures(metric: str = "GiB/s", **values: list[float]) -> Figures:
    return Figures({Key("a stream", metric, who): each for who, each in values.items()}, {"a stream": "ours"})


def test_a_gain_above_one_means_ours_is_better_for_rates_and_for_costs_alike():
    assert gains([3.0, 4.0], [2.0, 4.0], "GiB/s") == [1.5, 1.0]
    assert gains([2.0, 4.0], [3.0, 4.0], "µs") == [1.5, 1.0]
    assert gains([2.0], [3.0], "CPU s a GiB") == gains([2.0], [3.0], "KiB RSS each") == [1.5]
    assert gains([3.0], [2.0], "a second") == gains([3.0], [2.0], "datagrams/s") == [1.5]


def test_ratios_are_taken_round_by_round_and_never_of_medians():
    found = figures(ours=[1.0, 2.0, 9.0], peer=[1.0, 4.0, 3.0]).gains(Key("a stream", "GiB/s", "peer"))
    assert found is not None
    assert spread(found) == (0.5, 1.0, 3.0)


def test_a_contender_that_missed_a_round_has_no_ratio():
    assert figures(ours=[1.0, 2.0], peer=[1.0]).gains(Key("a stream", "GiB/s", "peer")) is None


@pytest.mark.parametrize(("percent", "found"), [(50, 50), (90, 90), (99, 99), (99.9, 100), (1, 1)])
def test_percentiles_are_values_that_were_measured(percent: float, found: float):
    assert percentile(list(range(100, 0, -1)), percent) == found


def test_every_rounds_value_survives_being_kept(tmp_path: Path):
    kept = Figures(
        {Key("memory", "MiB PSS", "ours → ×", 1000.0): [1.5, 2.25]}, {"memory": "ours → ×"}, "### A\n\n| b |"
    )
    save({"growth": Record({"date": "today", "rounds": 2}, kept)}, tmp_path / "figures.json")
    found = load(tmp_path / "figures.json")
    assert found == {"growth": Record({"date": "today", "rounds": 2}, kept)}


def test_the_tables_of_a_subject_that_writes_its_own_section_are_kept_with_all_their_values(tmp_path: Path):
    def tell(rounds: int) -> str:
        table = Table("bulk", "GiB/s", OURS)
        for turn in range(rounds):
            table.add(OURS, 2.0 + turn, 0.5)
            table.add(PEER, 1.0, 0.25)
        return f"## A heading\n\nwhere and when\n\n{table.markdown()}"

    found = written(tell)(tmp_path, 2)
    assert found.values[Key("bulk", "GiB/s", OURS)] == [2.0, 3.0]
    assert found.values[Key("bulk", "CPU s a GiB", OURS)] == [0.5, 0.5]
    assert found.text.startswith("### bulk")


def test_a_target_is_judged_by_the_median_of_its_ratios():
    target = Target("case", "a stream", "GiB/s", "peer", asked=1.1, goal=1.6)
    for ours, verdict in (
        ([1.0, 1.0, 9.0], "**missed**"),
        ([1.1, 1.2, 0.1], "met; goal missed"),
        ([2.0, 2.0, 2.0], "**goal met**"),
    ):
        found = target.measured({"case": Record({}, figures(ours=ours, peer=[1.0] * 3))})
        assert found is not None
        assert target.verdict(found) == verdict
    assert target.measured({}) is None


def test_a_limit_of_memory_is_met_from_below_and_read_where_connections_are_most():
    target = Target("case", "memory", "KiB", None, asked=20.0, goal=12.0)
    kept = Figures({Key("memory", "KiB", "ours", 10): [99.0], Key("memory", "KiB", "ours", 1000): [15.0]})
    kept.ours["memory"] = "ours"
    found = target.measured({"case": Record({}, kept)})
    assert found == (15.0, 15.0, 15.0)
    assert target.verdict(found) == "met; goal missed"


def test_every_target_asks_for_a_case_that_exists_and_is_run_with_the_targets():
    assert {target.case for target in TARGETS} == {name for name, case in CASES.items() if case.aimed_at}
    assert OTHERS.keys() <= CASES.keys()


@pytest.mark.parametrize("size", [64, 4096, 1 << 20])
def test_a_batch_says_how_much_it_sent(size: int):
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        far.setblocking(False)
        sent, got = Batch(near, size).send(), 0
        while got < sent:
            got += len(far.recv(1 << 20))
        with pytest.raises(BlockingIOError):
            far.recv(1)
