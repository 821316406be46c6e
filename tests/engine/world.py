"""An agent and a client in one process, joined by memory, and what was reported."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import trio

from vsockfwd.address import Address, parse
from vsockfwd.contract import Mode
from vsockfwd.engine import Engine
from vsockfwd.engine.agent import Agent
from vsockfwd.engine.server import Gate
from vsockfwd.events import Closed, Event
from vsockfwd.modes.mode import MODE as FORWARD
from vsockfwd.policy import Policy
from vsockfwd.transport.base import Stream


@dataclass
class World:
    """A network with memory in it, what was reported, and an agent at `target` once it is started."""

    engine: Engine
    events: list[Event] = field(default_factory=list)
    target: Address = field(default_factory=lambda: parse("memory:agent"))

    def reported(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @contextlib.asynccontextmanager
    async def agent(
        self, modes: Mapping[str, Mode] | None = None, policy: Policy | None = None, **how: Any
    ) -> AsyncIterator[Agent]:
        """Run an agent for the length of a block; its loss is total, as a kill would be."""
        agent = Agent(self.engine, modes or {"forward": FORWARD}, policy or Policy(os.geteuid()), **how)
        async with trio.open_nursery() as nursery:
            listeners = await self.engine.network.listen(self.target)
            nursery.start_soon(agent.serve, listeners, Gate())
            try:
                yield agent
            finally:
                nursery.cancel_scope.cancel()


async def settled(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Let other tasks run until a condition holds."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await trio.sleep(0.001)


async def half_closed(world: World, asks: Stream, answers: Stream) -> None:
    """One end asks and has no more to say: the other hears that, and its long reply arrives whole. Closes both."""

    async def answer() -> None:
        for _ in range(10):
            await answers.send_all(bytes(1 << 20))
        await answers.send_eof()

    with trio.fail_after(20):
        await asks.send_all(b"question")
        await asks.send_eof()
        assert await answers.receive_some() == b"question"
        assert await answers.receive_some() == b""
        total = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            while data := await asks.receive_some(1 << 20):
                total += len(data)
    assert total == 10 << 20
    await settled(lambda: len(world.reported(Closed)) == 2)
    assert all(event.outcome.clean for event in world.reported(Closed))
    asks.close()
    answers.close()
