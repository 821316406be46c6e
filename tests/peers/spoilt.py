"""Every field of every frame spoilt, from either side, against the real agent and the real client over real sockets.

Whatever a peer says: no bug shows, the other side comes to an end in bounded time, nothing of it is left, and who
behaves is served meanwhile and afterwards. What fails an assertion here is a finding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import trio
from trio.testing import MockClock

from tests.engine.world import World
from tests.peers.scripted import Said, Scripted, Spoiling, spoilings
from tests.wire import conversation as c
from vsockfwd.address import parse
from vsockfwd.engine import Engine
from vsockfwd.engine.session import open_session
from vsockfwd.errors import VsockfwdError
from vsockfwd.events import Event, Problem
from vsockfwd.modes.forward import Connect
from vsockfwd.transport.base import Stream
from vsockfwd.transport.memory import MemoryTransport, memory_pair
from vsockfwd.transport.network import Network, system_network
from vsockfwd.wire.frames import FrameType as F
from vsockfwd.wire.machine import Role
from vsockfwd.wire.messages import Deny, Failure, Granted, Incoming, Listen, NetworkNeighbour, Ok, Open, encode

BOUND = 200.0
"""Seconds of a clock that jumps: what any peer can make us wait; two unanswered pings are 90."""

CONTROL = (
    Said(F.HELLO, encode(c.HELLO)),
    Said(F.PING, b"1", wait=2),
    Said(F.LISTEN, encode(Listen(1, "memory:there", c.LEASE))),
    Said(F.DENY, encode(Deny("no more", id=1)), code=21, wait=4),
    Said(F.BYE, encode(Failure("done", "", 0)), code=21),
)
"""What a client says on its control connection."""

STREAM = (
    Said(F.OPEN, encode(Open(c.TOKEN, "forward", (1,), msgspec.Raw(encode(Connect("memory:server")))))),
    Said(F.DATA, b"a question", wait=1),
    Said(F.DATA, b""),
    Said(F.END),
)
"""What a client says on a stream."""

WELCOME = (
    Said(F.HELLO, encode(c.HELLO), wait=1),
    Said(F.READY, encode({"version": 1, "token": c.TOKEN, "modes": {"forward": [1], "listen": [1]}, "seen_as": "you"})),
    Said(F.LISTEN, encode(Granted(0, ("tcp:127.0.0.1:1",))), wait=2),
    Said(F.INCOMING, encode(Incoming(0, c.TICKET, NetworkNeighbour("::1", 80)))),
    Said(F.PING, b"?"),
    Said(F.DENY, encode(Deny("gone", id=0)), code=19),
    Said(F.BYE, encode(Failure("stopping", "", 0)), code=21),
)
"""What an agent says on the control connection."""

ANSWER = (
    Said(F.OK, encode(Ok(1, msgspec.Raw(encode({"peer": "x"})))), wait=1),
    Said(F.DATA, b"an answer"),
    Said(F.END, wait=2),
)
"""What an agent says on a stream."""


def no_bug_in(told: list[Event]) -> None:
    for event in told:
        assert not (isinstance(event, Problem) and event.detail), event.detail


Case = tuple[int, str, Spoiling]
"""Which frame is spoilt, and how."""


def every(script: Sequence[Said]) -> list[Case]:
    """All that can be done to a script."""
    return [(number, name, spoil) for number, frame in enumerate(script) for name, spoil in spoilings(frame)]


def against_agent(folder: Path, script: Sequence[Said], cases: Sequence[Case]) -> None:
    """A client that says a script, spoilt in each of these ways, to one agent that serves another client as well."""
    told: list[Event] = []

    async def main() -> None:
        memory = MemoryTransport()
        network = Network({**system_network().transports, "memory": memory})
        world = World(Engine(network, told.append), told, parse(f"unix:{folder}/agent.sock"))
        (server,) = await memory.listen(parse("memory:server"))  # type: ignore[arg-type]
        tokens = iter([c.TOKEN, *(number.to_bytes(16) for number in range(1 << 20, (1 << 20) + len(cases)))])
        async with world.agent(token=lambda _: next(tokens)) as agent, trio.open_nursery() as nursery:
            nursery.start_soon(answer_all, server)
            async with open_session(world.engine, world.target) as good:
                for number, name, spoil in cases:
                    with trio.move_on_after(BOUND) as scope:
                        peer = Scripted(await network.connect(world.target), Role.CLIENT)
                        async with trio.open_nursery() as talk:
                            talk.start_soon(peer.hear)
                            await peer.play(script, number, spoil)
                            await peer.say(None)
                            await peer.over.wait()
                        peer.stream.close()
                    assert not scope.cancelled_caught, (number, name, peer.kinds())
                    assert await good.ping() < BOUND
                    with trio.fail_after(BOUND):
                        while len(agent._sessions) > 1 or agent._leases or agent._strangers:  # noqa: ASYNC110
                            await trio.sleep(0.1)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))
    no_bug_in(told)


async def answer_all(server: Any) -> None:
    """A server that takes a question to its end, and answers."""

    async def answer(neighbour: Any) -> None:
        try:
            while await neighbour.receive_some():
                pass
            await neighbour.send_all(b"an answer")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        neighbour.close()

    async with trio.open_nursery() as nursery:
        while True:
            nursery.start_soon(answer, await server.accept())


def against_client(folder: Path, cases: Sequence[Case], *, stream: bool) -> set[str]:
    """An agent that says WELCOME, or with `stream` ANSWER, spoilt in each of these ways; how the clients ended."""
    told: list[Event] = []
    endings = set()

    async def main() -> None:
        engine = Engine(report=told.append)
        for number, name, spoil in cases:
            (listener,) = await engine.network.listen(parse(f"unix:{folder}/agent.sock"))
            scripts = iter([(WELCOME, not stream), *[(ANSWER, stream)] * 1000])

            async def agent(connection: Stream, script: Sequence[Said], at: int, spoil: Spoiling) -> None:
                try:
                    peer = Scripted(connection, Role.AGENT)
                    async with trio.open_nursery() as talk:
                        talk.start_soon(peer.hear)
                        await peer.play(script, at, spoil)
                        if script is ANSWER:  # a stream that stalls may do so for ever
                            await peer.say(None)
                        await peer.over.wait()
                finally:
                    connection.close()

            with trio.move_on_after(3 * BOUND) as scope:
                async with trio.open_nursery() as nursery, trio.open_nursery() as serving:

                    async def serve(number: int, spoil: Spoiling) -> None:
                        while True:
                            connection = await listener.accept()  # noqa: B023 - it ends with the round
                            script, spoilt = next(scripts)  # noqa: B023
                            serving.start_soon(agent, connection, script, number if spoilt else -1, spoil)

                    nursery.start_soon(serve, number, spoil)
                    endings.add(await use(engine, f"unix:{folder}/agent.sock"))
                    serving.cancel_scope.cancel()
                    nursery.cancel_scope.cancel()
            listener.close()
            assert not scope.cancelled_caught, (number, name)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    no_bug_in(told)
    return endings


async def use(engine: Engine, target: str) -> str:
    """What a client does with an agent: forward once, be listened for once. How that ended."""

    async def handle(incoming: Any) -> None:
        near, far = memory_pair()
        await (await incoming.fetch()).relay(near)
        far.close()

    try:
        async with open_session(engine, parse(target)) as session:
            channel = (await session.open("forward", Connect("tcp:x:1"))).channel
            near, far = memory_pair()
            await far.send_all(b"a question")
            await far.send_eof()
            outcome = await channel.relay(near)
            far.close()
            if not outcome.clean:
                return str(outcome.ending)
            await session.listen("tcp:1", bytes(16), handle, lambda _: None)
    except VsockfwdError as error:
        return type(error).__name__
    return "left"
