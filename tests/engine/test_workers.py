"""Processes that share a forward: which exit code is theirs together."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

WORKERS = """
import os, signal, sys, time
from vsockfwd.engine.workers import Workers

def work():
    {work}
    os.write(1, b"begun\\n")
    time.sleep(20)
    return 1

sys.exit(Workers(2, work, print).run())
"""


@pytest.mark.parametrize(
    ("work", "code"),
    [("pass", 0), ("signal.signal(signal.SIGTERM, lambda *_: os._exit(143))", 143)],
    ids=["before it is at work", "with connections cut off"],
)
def test_told_to_stop_the_exit_code_is_that_of_the_work_alone(work: str, code: int) -> None:
    with subprocess.Popen([sys.executable, "-c", WORKERS.format(work=work)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == [b"begun\n"] * 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == code
