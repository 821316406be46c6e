"""Every fault point there is, and every step at which something can be told to stop.

    python -m bench.faults [SCENARIO]

Each call that the product makes of the kernel in an exchange fails once in each way that it can (tests/faults), and
each half of each service is cancelled before each step of any of its tasks. What was counted goes to
docs/reliability.json. Exits with 1 where an outcome was wrong.
"""

from __future__ import annotations

import functools
import sys
import tempfile
import time
from pathlib import Path

from bench.reliability import counted
from tests import guard

guard.install()

from tests.faults.scenarios import SCENARIOS  # noqa: E402 - nothing before the guard
from tests.faults.sweep import Tally, sweep_cancellations, sweep_faults  # noqa: E402
from tests.peers.spoilt import ANSWER, CONTROL, STREAM, WELCOME, against_agent, against_client, every  # noqa: E402


def note(section: str, tally: Tally) -> None:
    """Print what came of a sweep, and count it."""
    print(
        f"{section}, {tally.scenario}: {tally.points} points, {tally.complete} got through, {tally.failed} failed and "
        f"said so, {len(tally.wrong)} wrong",
        flush=True,
    )
    for line in tally.wrong:
        print(f"  {line}")
    with counted(section, tally.scenario) as counts:
        counts.update(points=tally.points, complete=tally.complete, failed=tally.failed, wrong=len(tally.wrong))
        counts.update({"ways": dict(tally.ways)} if tally.ways else {})


def spoil_all() -> int:
    """A peer that spoils every field of every frame; how many scripts came to a wrong end."""
    wrong = 0
    for what, script, run in (
        ("a client's control connection", CONTROL, functools.partial(against_agent, script=CONTROL)),
        ("a client's stream", STREAM, functools.partial(against_agent, script=STREAM)),
        ("an agent's control connection", WELCOME, functools.partial(against_client, stream=False)),
        ("an agent's stream", ANSWER, functools.partial(against_client, stream=True)),
    ):
        cases = every(script)
        failed = ""
        with tempfile.TemporaryDirectory(prefix="vsockfwd-faults-") as folder:
            try:
                run(Path(folder), cases=cases)
            except (AssertionError, Exception) as error:  # noqa: BLE001 - whatever it is, it is wrong
                failed = f"{type(error).__name__}: {error}"
        wrong += bool(failed)
        print(f"spoilt, {what}: {len(cases)} ways, {failed or 'none wrong'}", flush=True)
        with counted("spoilt", what) as counts:
            counts.update(points=len(cases), wrong=int(bool(failed)))
    return wrong


def main(names: list[str]) -> int:
    """Sweep; the command's exit code."""
    began, wrong = time.monotonic(), 0
    for name in names or list(SCENARIOS):
        make = SCENARIOS[name]
        tallies = [("faults", sweep_faults(name, make))]
        for half in make.halves:
            tally = sweep_cancellations(name, make, half)
            tally.scenario = f"{name}, {'the agent' if half == 'agent_scope' else 'the client'}"
            tallies.append(("cancellations", tally))
        for section, tally in tallies:
            note(section, tally)
            wrong += len(tally.wrong)
    if not names:
        wrong += spoil_all()
    print(f"{time.monotonic() - began:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
