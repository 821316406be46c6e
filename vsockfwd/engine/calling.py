"""An agent that calls its client: where a guest cannot be dialled, or is not to listen, it dials (`serve --connect`).

A few spare connections are kept dialled to the place where a client waits, or will. The thing to understand first: a
spare is nobody's yet, and no deadline runs for it. With the first bytes that arrive it is what an accepted connection
is, the greeting's deadline begins, and another spare is dialled in its stead.
"""

from __future__ import annotations

import trio

from vsockfwd.address import Address
from vsockfwd.engine.agent import Agent
from vsockfwd.engine.backoff import Backoff
from vsockfwd.engine.server import Gate, contain
from vsockfwd.errors import VsockfwdError
from vsockfwd.events import ClientAway, ClientFound
from vsockfwd.transport.base import Stream, is_over

SPARES = 4
"""Connections that wait at a place: so many requests at once need not wait for a dial."""

LONGEST_PAUSE = 5.0
"""Seconds between two calls, at most: a client that starts waits ten for the next one (transport/base.py)."""

_HUNG_UP = "it hung up"


class Calling:
    """The calls of one agent to one place."""

    def __init__(self, agent: Agent, place: Address, gate: Gate) -> None:
        """`gate` counts the connections that are served, wherever they come from."""
        self._agent = agent
        self._engine = agent.engine
        self._place = place
        self._gate = gate
        self._spares = trio.Semaphore(SPARES)
        self._backoff = Backoff(LONGEST_PAUSE)
        self._failed = False
        """Whether a call was in vain since the last pause."""
        self._away: str | None = None
        """What was told last: why no client is there, '' where one is; None before the first call."""

    async def run(self) -> None:
        """Call until cancelled; then the spares are closed, and what is served ends as the agent ends it."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._spares.acquire()
                await self._gate.wait_for_room()
                nursery.start_soon(self._wait, await self._dial())

    async def _dial(self) -> Stream:
        while True:
            if self._failed:
                self._failed = False
                await trio.sleep(self._backoff.next())
            try:
                stream = await self._engine.network.connect(self._place, privileged=True)
            except VsockfwdError as error:
                self._in_vain(error.message)
                continue
            decision = self._agent.policy.admit(stream.peer)
            if decision.allowed or self._agent.door.keys:
                if self._away != _HUNG_UP:  # who always hangs up is told once, not found again each time
                    self._tell("")
                return stream
            stream.close()
            self._in_vain(f"{decision.reason} – {decision.hint}")

    async def _wait(self, stream: Stream) -> None:
        """Keep a spare until it is used or broken."""
        try:
            await stream.wait_readable()
        except BaseException:
            stream.close()
            raise
        finally:
            self._spares.release()
        if is_over(stream):
            stream.close()
            self._in_vain(_HUNG_UP)
            return
        self._backoff.reset()
        self._tell("")
        self._gate.enter()
        await contain(self._agent.handle, stream, self._engine.report, self._gate.leave)

    def _in_vain(self, why: str) -> None:
        self._failed = True
        self._tell(why)

    def _tell(self, away: str) -> None:
        """Report what is another than before."""
        if away != self._away:
            self._away = away
            place = self._place.bare()
            self._engine.report(ClientAway(place, away) if away else ClientFound(place))
