"""A service's log: a line a connection, how much it matters, and no more of them than a disk can hold."""

from __future__ import annotations

import datetime
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vsockfwd.errors import UsageError
from vsockfwd.events import Closed, Denied, Ending, Event, Listening, Opened, Outcome, Problem, SessionDown
from vsockfwd.report import both, reporter
from vsockfwd.report.lines import LineReporter
from vsockfwd.report.log import LINES, SOURCES, WINDOW, LogReporter, Severity, journal_form, json_form, text_form

DONE = Closed("forward to tcp:80", "vsock host(2):1023", Outcome(Ending.COMPLETE, sent=10, received=20, seconds=1.5))
CUT = Closed("forward to tcp:80", "vsock host(2):1023", Outcome(Ending.RESET, "the client"))


class Clock:
    """A clock that stands still until it is moved."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Log:
    """A log reporter, its clock, and what it wrote."""

    def __init__(self, form=json_form, least: Severity = Severity.INFO) -> None:
        self.out = io.StringIO()
        self.clock = Clock()
        self.report = LogReporter(self.out, form, least, self.clock)

    def lines(self, *events: Event) -> list[str]:
        """The lines that have come since the last call, with those of some more events."""
        for event in events:
            self.report(event)
        written = self.out.getvalue().splitlines()
        self.out.seek(0)
        self.out.truncate()
        return written

    def objects(self, *events: Event) -> list[dict]:
        return [json.loads(line) for line in self.lines(*events)]


def test_a_connection_has_one_line_at_its_end_with_all_that_is_known():
    (line,) = Log().objects(Opened(DONE.rule, DONE.peer), DONE)
    told = datetime.datetime.fromisoformat(line.pop("time"))
    assert told.utcoffset() == datetime.timedelta(0)
    assert abs(told - datetime.datetime.now(datetime.UTC)) < datetime.timedelta(minutes=1)
    assert line == {
        "level": "info", "event": "closed", "rule": "forward to tcp:80", "peer": "vsock host(2):1023",
        "outcome": {"ending": "complete", "by": "", "why": "", "sent": 10, "received": 20, "seconds": 1.5},
    }  # fmt: skip


def test_the_time_is_rfc_3339_in_utc_to_the_millisecond():
    line = Log(text_form).lines(DONE)[0]
    assert datetime.datetime.strptime(line.split()[0], "%Y-%m-%dT%H:%M:%S.%fZ")
    assert len(line.split()[0]) == len("2026-01-01T00:00:00.000Z")
    assert line.split(maxsplit=1)[1] == f"vsockfwd: {DONE}"


def test_the_journal_is_told_how_much_each_line_matters():
    bug = Problem("here", "why", "Traceback:\n  a\x1b[2Jb\n")
    events = (Listening("unix:/a", ""), DONE, CUT, SessionDown("3", "gone"), Denied("x", "y"), bug)
    lines = Log(journal_form).lines(*events)
    assert [line[:3] for line in lines] == ["<6>", "<6>", "<4>", "<4>", "<4>", "<3>", "<3>", "<3>"]
    assert lines[-1] == r"<3>  a\x1b[2Jb"


def test_names_from_strangers_cannot_make_lines_of_their_own():
    assert Log(journal_form).lines(Denied("a\n<0>b", "c")) == [r"<4>a\x0a<0>b turned away: c"]
    (line,) = Log().objects(Denied("caf\udce9\n", "c"))
    assert line["peer"] == r"caf\xe9\x0a"


def test_debug_shows_what_begins_and_errors_alone_show_no_more_than_errors():
    assert len(Log(least=Severity.DEBUG).lines(Opened("r", "p"), DONE)) == 2
    assert Log(least=Severity.ERROR).lines(Opened("r", "p"), DONE, CUT, Denied("x", "y")) == []


def test_a_stranger_who_floods_the_log_gets_a_count_and_hides_nobody():
    log = Log()
    for port in range(1000):
        log.clock.now += 0.005
        log.report(Denied(f"vsock vm(9):{port}", "no"))
    assert len(log.lines()) == LINES
    others = log.objects(Problem("tcp:80", "accept"), Denied("vsock vm(8):5", "no"), DONE)
    assert [line["event"] for line in others] == ["problem", "denied", "closed"]
    log.clock.now += WINDOW
    first, second = log.objects(DONE)
    assert first == {
        "time": first["time"], "level": "warning", "event": "repeated", "kind": "denied", "source": "vsock vm(9)",
        "count": 990, "seconds": pytest.approx(4.995),
    }  # fmt: skip
    assert second["event"] == "closed"
    assert len(log.lines(*[Denied("vsock vm(9):1", "no")] * 20)) == LINES


def test_processes_of_one_user_are_one_source():
    log = Log()
    assert len(log.lines(*(Problem(f"unix peer uid 7 (pid {pid})", "x") for pid in range(100)))) == LINES


def test_more_sources_than_are_kept_share_one_count():
    log = Log()
    written = log.lines(*(Denied(f"10.0.{n >> 8}.{n & 255}:1", "no") for n in range(5000)))
    assert len(written) == SOURCES + LINES
    log.report.close()
    (line,) = log.objects()
    assert (line["source"], line["count"]) == ("others", 5000 - SOURCES - LINES)


def test_a_count_is_told_at_the_end_and_none_where_nothing_was_left_out():
    log = Log(text_form)
    log.lines(*[Denied("a", "no")] * (LINES + 1))
    log.report.close()
    assert log.lines()[0].endswith("vsockfwd: a: 1 more denied like this within 0.0 s")
    log.lines(*[Denied("a", "no")] * LINES)
    log.report.close()
    assert log.lines() == []


def test_standard_error_that_leads_to_the_journal_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with (tmp_path / "journal").open("w") as out:
        found = os.fstat(out.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        reporter(0, False, False, out)(DONE)
        with (tmp_path / "other").open("w") as other:
            assert isinstance(reporter(0, False, False, other), LineReporter)
            assert isinstance(reporter(0, False, False, io.StringIO()), LineReporter)
    assert (tmp_path / "journal").read_text() == f"<6>{DONE}\n"


def test_the_error_that_ends_a_service_is_an_error_in_the_journal(tmp_path: Path):
    with (tmp_path / "journal").open("w") as out:
        found = os.fstat(out.fileno())
        env = {**os.environ, "JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        words = ("serve", "--listen", "tcp:1")
        done = subprocess.run([sys.executable, "-m", "vsockfwd", *words], env=env, stderr=out, timeout=20)
    assert done.returncode == 77
    assert (tmp_path / "journal").read_text().startswith("<3>tcp:1: an agent lets nobody in over TCP")


def test_a_format_that_is_asked_for_is_what_is_written(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    out = io.StringIO()
    reporter(0, False, False, out, "json")(DONE)
    assert json.loads(out.getvalue())["level"] == "info"
    with pytest.raises(UsageError, match="--log-format xml: no such format") as caught:
        reporter(0, False, False, sys.stderr, "xml")
    assert caught.value.hint == "text or json"
    with pytest.raises(UsageError, match="--json and --log-format both say where events go"):
        reporter(0, False, True, sys.stderr, "json")


def test_two_reporters_hear_the_same():
    heard: list[tuple[int, Event]] = []
    both(lambda event: heard.append((1, event)), lambda event: heard.append((2, event)))(DONE)
    assert heard == [(1, DONE), (2, DONE)]
