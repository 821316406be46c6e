"""What is said while it runs: one line or one JSON object an event, whatever stands in a name."""

from __future__ import annotations

import fcntl
import io
import json
import os
import threading

import pytest

from vsockfwd.events import Closed, Ending, FileDone, Moved, Outcome, Problem
from vsockfwd.report.lines import JsonReporter, LineReporter


def lines(verbosity: int, *events) -> str:
    out = io.StringIO()
    for event in events:
        LineReporter(out, verbosity)(event)
    return out.getvalue()


def test_a_name_cannot_write_to_the_terminal():
    assert lines(1, FileDone("a\x1b[2Jb\nc", 1)) == "vsockfwd: a\\x1b[2Jb\\x0ac: 1 bytes, verified\n"


def test_clean_ends_are_for_those_who_asked_and_cuts_for_everybody():
    clean, cut = (Closed("forward", "peer", Outcome(ending)) for ending in (Ending.COMPLETE, Ending.TRUNCATED))
    assert lines(0, clean) == ""
    assert "complete" in lines(1, clean)
    assert "truncated" in lines(0, cut)


def test_a_traceback_is_for_those_who_asked_twice():
    problem = Problem("here", "why", "Traceback: …")
    assert "Traceback" not in lines(1, problem)
    assert "Traceback" in lines(2, problem)


def test_every_event_is_one_json_object_even_when_its_name_is_not_utf_8():
    out = io.StringIO()
    for event in (FileDone("plain", 3), FileDone("\udcff", 3), Moved(1)):
        JsonReporter(out, 0)(event)
    rows = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [row["name"] for row in rows] == ["plain", "\\xff"]
    assert rows[0]["event"] == "filedone"


def test_a_reader_that_went_away_ends_nothing():
    out = io.StringIO()
    out.close()
    LineReporter(out, 0)(Problem("here", "why"))
    JsonReporter(out, 0)(Problem("here", "why"))


@pytest.mark.parametrize("blocking", [True, False])
def test_a_reader_that_is_slow_misses_words_for_people_and_no_json_object(blocking: bool):
    reading, writing = os.pipe()
    size = fcntl.fcntl(writing, fcntl.F_GETPIPE_SZ)
    os.write(writing, bytes(size))
    os.set_blocking(writing, blocking)
    with open(reading, "rb") as pipe:
        with open(writing, "w") as out:
            LineReporter(out, 0)(Problem("here", "dropped"))
            told = threading.Thread(target=JsonReporter(out, 0), args=[Problem("here", "kept")], daemon=True)
            told.start()
            told.join(0.05)
            assert told.is_alive()
            assert pipe.read(size) == bytes(size)
            told.join(10)
        assert json.loads(pipe.read())["why"] == "kept"
