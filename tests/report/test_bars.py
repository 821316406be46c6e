"""What a person sees on a terminal while files are copied, as the terminal shows it."""

from __future__ import annotations

import io

import pytest

from vsockfwd.events import FileDone, FileMoving, Moved, Planned, Summary
from vsockfwd.report.bars import BarReporter
from vsockfwd.report.lines import LineReporter


class Terminal(io.StringIO):
    """What was written, with what a carriage return overwrote taken away."""

    def lines(self) -> list[str]:
        return [line.rpartition("\r")[2].rstrip() for line in self.getvalue().split("\n")]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("COLUMNS", "100")
    return Terminal()


def reporter(terminal: Terminal) -> BarReporter:
    return BarReporter(terminal, LineReporter(terminal, 0))


def test_one_bar_counts_what_two_copies_beside_each_other_have_moved(terminal: Terminal) -> None:
    bars = reporter(terminal)
    for name in ("copy to a", "copy to b"):
        bars(Planned(name, 1, 1 << 20))
    bars(Moved(1 << 20))
    bars(Summary("copy to a", 1, 1 << 20, 0, 1.0))
    assert "1.00M/1.00M" not in terminal.getvalue(), "the bar is that of both"
    bars(Moved(1 << 20))
    bars(Summary("copy to b", 1, 1 << 20, 0, 1.0))
    assert any("2.00M/2.00M" in line for line in terminal.lines())
    assert [line for line in terminal.lines() if "verified" in line] == [
        "vsockfwd: copy to a: 1 files, 1048576 bytes in 1.00 s (1.0 MB/s), all verified",
        "vsockfwd: copy to b: 1 files, 1048576 bytes in 1.00 s (1.0 MB/s), all verified",
    ]
    bars.close()


def test_a_large_file_among_others_has_a_bar_of_its_own_which_goes_with_it(terminal: Terminal) -> None:
    bars = reporter(terminal)
    bars(Planned("copy", 2, 200 << 20))
    bars(FileMoving("disk.img", 50 << 20, 100 << 20))
    assert "disk.img:" in terminal.getvalue()
    before = terminal.getvalue()
    bars(FileDone("disk.img", 100 << 20))
    bars(Moved(100 << 20))
    assert "disk.img" not in terminal.getvalue()[len(before) :]
    bars.close()


def test_a_long_name_keeps_its_end(terminal: Terminal) -> None:
    bars = reporter(terminal)
    bars(Planned("x" * 50 + "the end", 1, 10))
    bars.close()
    assert f"…{'x' * 32}the end:" in terminal.getvalue()
