"""The command: what it prints, how it ends, and that it asks an agent only where one was named."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.process import agent, run
from vsockfwd import __version__
from vsockfwd.cli.doctor import of_clock, of_versions
from vsockfwd.contract import Mode
from vsockfwd.doctor.finding import State


def test_the_agent_that_was_named_is_asked_and_both_versions_are_told(tmp_path: Path):
    with agent(tmp_path):
        asked = run("doctor", f"unix:{tmp_path}/agent.sock", "--json")
        topics = {row["topic"]: row for row in json.loads(asked.stdout.splitlines()[-1])["findings"]}
        assert "answers and lets us in, as uid" in topics["agent"]["told"]
        assert topics["confined"]["told"] == "the agent is: no new privileges"
        assert topics["clock"]["told"] == "the agent's and ours agree"
        assert topics["versions"]["told"] == f"vsockfwd {__version__} on both sides"
    gone = run("doctor", f"unix:{tmp_path}/agent.sock")
    assert gone.returncode == 1
    assert " fix  agent" in gone.stdout
    assert gone.stdout.endswith(" to mend\n")
    assert "\x1b" not in gone.stdout


def test_a_clock_is_off_by_what_the_moments_of_asking_cannot_explain():
    def told(there: float) -> list[tuple[State, str]]:
        return [(found.state, found.told.partition(":")[0]) for found in of_clock(there, 1000.0, 1003.0)]

    assert told(0.0) == []  # an older agent tells none
    assert told(1000.0) == told(1003.9) == told(999.1) == [(State.OK, "the agent's and ours agree")]
    assert told(1033.0) == [(State.NOTE, "the agent's clock is 30.0 seconds ahead of ours")]
    assert told(939.0) == [(State.FIX, "the agent's clock is 61.0 seconds behind ours")]
    assert told(1000.0 + 3 * 86400) == [(State.FIX, "the agent's clock is 3 days ahead of ours")]


async def _serve(*_: object) -> None: ...


def test_modes_that_the_two_sides_have_not_in_common_are_told():
    here = {name: Mode(name=name, summary="", versions=(2,), serve=_serve) for name in ("copy", "relay", "dgram")}  # type: ignore[arg-type]
    found = {f.told: f for f in of_versions("vsockfwd 0.0.9", {"copy": (1,), "relay": (1, 2)}, here)}
    assert found["no version of copy is known on both sides"].state is State.FIX
    assert found["the agent lacks dgram"].mend == ("pip install vsockfwd-dgram   # there",)
    assert not any("relay" in told for told in found)
