"""`python -m bench [CASE…] [--rounds N]`: measure, keep the figures, make the page anew.

A run of some cases replaces their sections alone. Afterwards docs/benchmarks.json has every round's value, and
docs/benchmarks.md its tables and plots; what was asked for is printed with what came of it.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time

from bench import page, results, targets
from bench.cases import CASES, RUNS_OF_TARGETS, measure


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure, side by side with peers.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help="of --list; all where none is named")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of each case (5)")
    parser.add_argument("--list", action="store_true", help="the cases, and how long they take")
    parser.add_argument("--page", action="store_true", help="make the page from the figures that there are, no more")
    told = parser.parse_args()
    known = {*CASES, RUNS_OF_TARGETS}
    if unknown := [name for name in told.cases if name not in known]:
        parser.error(f"no case is called {', '.join(unknown)}: {', '.join(sorted(known))}")
    if told.rounds < 1:
        parser.error("--rounds: at least 1")
    return told


def chosen(names: list[str]) -> list[str]:
    """The cases that are meant, in the order in which they run."""
    wanted = set(names or CASES)
    if RUNS_OF_TARGETS in wanted:
        wanted |= {name for name, case in CASES.items() if case.aimed_at}
    return [name for name in CASES if name in wanted]


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started ends too
    told = _arguments()
    names = chosen(told.cases)
    if told.list:
        for name in names:
            took = _minutes(CASES[name].expected(told.rounds))
            print(f"{name:14} {took:>7}  {CASES[name].summary}{' *' if CASES[name].aimed_at else ''}")
        print(f"* {RUNS_OF_TARGETS}: what the targets ask for")
        return 0
    failed = [] if told.page else _measure(names, told.rounds)
    found = results.load()
    for name in page.write(found):
        _say(f"{page.PAGE.name} has no block for {name}: add <!-- bench:{name} --> and <!-- /bench:{name} -->")
    every = [*targets.TARGETS, *(target for those in targets.OTHERS.values() for target in those)]
    if asked := [target for target in every if target.case in names]:
        print(targets.markdown(found, asked))
    return 1 if failed else 0


def _measure(names: list[str], rounds: int) -> list[str]:
    """Run them, each of them kept at once; who failed."""
    able = {name: CASES[name].missing() for name in names}
    for name, reason in able.items():
        if reason:
            _say(f"{name}: left out: {reason}")
    names = [name for name, reason in able.items() if not reason]
    expected = {name: CASES[name].expected(rounds) for name in names}
    _say(f"{len(names)} cases, {rounds} rounds: about {_minutes(sum(expected.values()))}")
    failed = []
    for number, name in enumerate(names, 1):
        _say(f"{time.strftime('%H:%M:%S')} [{number}/{len(names)}] {name}: about {_minutes(expected[name])}")
        try:
            record = measure(name, rounds)
        except Exception as error:  # noqa: BLE001  the others' figures are worth having
            _say(f"{name}: failed, its figures stay as they were: {type(error).__name__}: {error}")
            failed.append(name)
            continue
        _say(f"{' ' * 8} {name}: took {_minutes(record.taken['seconds'])}")
        results.save(results.load() | {name: record})
    return failed


if __name__ == "__main__":
    sys.exit(main())
