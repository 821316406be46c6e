"""The sweeps: a fault at each call in turn, a cancellation at each step of each task in turn.

After every fault the service has to be what it was before: as many descriptors, as many tasks, and an exchange that
nothing befalls goes through whole.
"""

from __future__ import annotations

import itertools
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
from trio.testing import MockClock

from tests.faults.injector import HARMLESS, MOST_WAYS, Faults, injected, way_name
from tests.faults.scenarios import Scenario, Wrong

SETTLE = 200.0
"""Seconds of the jumping clock until everything is as it was: a rule's longest pause among them."""


REMOVING = {"unlink", "rmdir", "open", "stat"}
"""Calls without which what is left over cannot be taken away."""


def at_once(hit: tuple[str, int, str]) -> bool:
    """Whether it was an agent's answer, which leaves at once or not at all: it is the first that its socket takes."""
    return hit[0] == "send" and hit[2].startswith("vsockfwd.engine.agent:")


@dataclass
class Tally:
    """What came of a sweep. `wrong` has the fault and what was wrong after it."""

    scenario: str
    points: int = 0
    complete: int = 0
    """Exchanges that got through all the same."""
    failed: int = 0
    """… that did not, and said so."""
    wrong: list[str] = field(default_factory=list)
    ways: Counter[str] = field(default_factory=Counter)
    """How often each failure was tried."""


def tasks() -> int:
    """Tasks that live, in all."""
    root = trio.lowlevel.current_root_task()
    assert root is not None
    waiting, count = [root], 0
    while waiting:
        task = waiting.pop()
        count += 1
        for nursery in task.child_nurseries:
            waiting += nursery.child_tasks
    return count


async def settled(scenario: Scenario, before: tuple[int, int]) -> None:
    """Wait until descriptors and tasks are as many as before. Raises Wrong."""
    pause, until = 0.01, trio.current_time() + SETTLE
    while (now := (scenario.descriptors(), tasks())) != before:
        if trio.current_time() > until:
            raise Wrong(f"descriptors and tasks {before} before, {now} after")
        await trio.sleep(pause)
        pause = min(2 * pause, 5.0)


async def in_line(function: Callable[..., Any], *arguments: Any, **_: Any) -> Any:
    """In place of `trio.to_thread.run_sync`: the clock that jumps would not wait for threads."""
    await trio.lowlevel.checkpoint()
    return function(*arguments)


def run(main: Callable[..., Any], *arguments: Any) -> Any:
    """Run with a clock that jumps to the next deadline when there is nothing to do."""
    threads = trio.to_thread.run_sync
    trio.to_thread.run_sync = in_line  # type: ignore[assignment]
    try:
        return trio.run(main, *arguments, clock=MockClock(autojump_threshold=0))
    finally:
        trio.to_thread.run_sync = threads


# --- faults

Points = Callable[[int], Iterator[int]]
"""Which of so many calls are made to fail."""


def every(count: int) -> Iterator[int]:
    return iter(range(count))


def sweep_faults(name: str, make: type[Scenario], points: Points = every) -> Tally:
    """A fault at each of the points, in each of the ways that the call there has."""
    tally = Tally(name)

    async def main(scenario: Scenario, faults: Faults) -> None:
        async with scenario.service():
            for _ in range(2):
                await once(scenario)  # what is made at first use is there from then on
            before = await steady(scenario)
            faults.arm()
            await once(scenario)
            count = len(faults.calls)
            faults.disarm()
            await settled(scenario, before)
            for at, way in itertools.product(points(count), range(MOST_WAYS)):
                faults.arm(at, way)
                try:
                    await scenario.exchange()
                    faults.disarm()
                    if faults.hit is None:
                        continue  # the call has fewer ways, or this time there were fewer calls
                    tally.points += 1
                    tally.ways[way_name(faults.hit[1])] += 1
                    tally.complete += scenario.complete
                    tally.failed += not scenario.complete
                    if faults.hit[1] in HARMLESS and not scenario.complete and not at_once(faults.hit):
                        raise Wrong("what does no harm was taken for a failure")
                    scenario.bugs()
                    if not scenario.lazy:
                        await settled(scenario, before)
                    if (left := scenario.left()) and faults.hit[0] not in REMOVING:
                        raise Wrong(f"left behind: {left}")
                    await once(scenario)
                    await settled(scenario, before)
                except Wrong as wrong:
                    faults.disarm()
                    tally.wrong.append(f"{name}, call {at}: {faults.told()}: {wrong}")
                    if len(tally.wrong) >= 20:
                        return
                    before = await steady(scenario)

    with tempfile.TemporaryDirectory(prefix="f-") as folder, injected() as faults:
        scenario = make(Path(folder))
        run(main, scenario, faults)
    return tally


async def once(scenario: Scenario) -> None:
    """An exchange that nothing befalls. Raises Wrong where it is not whole."""
    for attempt in range(3):
        await scenario.exchange()
        if scenario.complete:
            return
        await trio.sleep(30 * attempt)  # a rule's pause between two attempts
    raise Wrong("afterwards nothing gets through any more")


async def steady(scenario: Scenario) -> tuple[int, int]:
    """What there is, once it stays the same."""
    seen = (0, 0)
    while seen != (now := (scenario.descriptors(), tasks())):
        seen = now
        await trio.sleep(10)
    return seen


# --- cancellations


class _Cancels(trio.abc.Instrument):
    """Counts the steps of all tasks, and cancels a scope before one of them."""

    def __init__(self, scope: trio.CancelScope, at: int) -> None:
        self.steps = 0
        self._scope = scope
        self._at = at

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.steps == self._at:
            self._scope.cancel()
        self.steps += 1


def sweep_cancellations(name: str, make: type[Scenario], half: str, points: Points = every) -> Tally:
    """One half of the service (`agent_scope`, `client_scope`) is cancelled at each of the points."""
    tally = Tally(name)

    async def attempt(scenario: Scenario, at: int) -> int:
        async with scenario.service():
            canceller = _Cancels(getattr(scenario, half), at)
            trio.lowlevel.add_instrument(canceller)
            try:
                await scenario.exchange()
            finally:
                trio.lowlevel.remove_instrument(canceller)
            scenario.bugs()
        return canceller.steps

    async def within(scenario: Scenario, at: int) -> int:
        with trio.move_on_after(3000):
            return await attempt(scenario, at)
        raise Wrong("it does not end")

    def try_at(at: int) -> int:
        with tempfile.TemporaryDirectory(prefix="f-") as folder:
            scenario = make(Path(folder))
            before = scenario.descriptors()
            try:
                steps: int = run(within, scenario, at)
            finally:
                try_at.complete = scenario.complete  # type: ignore[attr-defined]
            after, left = scenario.descriptors(), scenario.left()
            for pipe in scenario.engine.buffers._pipes:
                pipe.close()
            if after != before:
                raise Wrong(f"{before} descriptors before, {after} after")
            if left:
                raise Wrong(f"left behind: {left}")
            return steps

    count = try_at(-1)
    for at in points(count):
        try:
            try_at(at)
            tally.points += 1
            if try_at.complete:  # type: ignore[attr-defined]
                tally.complete += 1
            else:
                tally.failed += 1
        except BaseException as error:
            wrong: Any = error
            while isinstance(wrong, BaseExceptionGroup):
                wrong = wrong.exceptions[0]
            if isinstance(wrong, KeyboardInterrupt):
                raise
            tally.wrong.append(f"{name}, {half} cancelled at step {at}: {type(wrong).__name__}: {wrong}")
            if len(tally.wrong) >= 20:
                break
    return tally
