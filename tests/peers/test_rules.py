"""The rules of docs/protocol.md, each broken by a peer over a real socket: what the agent does about it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from tests.engine.world import World, settled
from tests.peers.scripted import Said, Scripted
from tests.peers.spoilt import CONTROL, STREAM, answer_all
from tests.wire import conversation as c
from vsockfwd.address import parse
from vsockfwd.engine import Engine
from vsockfwd.engine.control_link import HANDSHAKE_DEADLINE, PING_INTERVAL
from vsockfwd.engine.wired import LAST_WORDS
from vsockfwd.errors import Code
from vsockfwd.events import Event
from vsockfwd.modes.forward import Connect
from vsockfwd.transport.memory import MemoryTransport
from vsockfwd.transport.network import Network, system_network
from vsockfwd.wire.frames import CLIENT_PREFACE, HANDSHAKE_LIMIT
from vsockfwd.wire.frames import FrameType as F
from vsockfwd.wire.machine import Role
from vsockfwd.wire.messages import LISTEN, Failure, Fetch, Open, decode, encode

HELLO, STREAM_OPEN = CONTROL[0], STREAM[0]


class Against:
    """An agent on a real socket, and peers that are played."""

    def __init__(self, world: World, nursery: trio.Nursery) -> None:
        self.world = world
        self._nursery = nursery
        self._peers: list[Scripted] = []

    async def peer(self, *said: Said | bytes) -> Scripted:
        """A client that says this behind its preface."""
        peer = Scripted(await self.world.engine.network.connect(self.world.target), Role.CLIENT)
        self._peers.append(peer)
        self._nursery.start_soon(peer.hear)
        await peer.say(CLIENT_PREFACE, *said)
        return peer

    async def logged_in(self) -> Scripted:
        peer = await self.peer(HELLO)
        await peer.heard_so_many(2)
        return peer

    def close(self) -> None:
        for peer in self._peers:
            peer.stream.close()


@pytest.fixture
async def against(tmp_path: Path) -> AsyncIterator[Against]:
    told: list[Event] = []
    memory = MemoryTransport()
    engine = Engine(Network({**system_network().transports, "memory": memory}), told.append)
    world = World(engine, told, parse(f"unix:{tmp_path}/agent.sock"))
    (server,) = await memory.listen(parse("memory:server"))  # type: ignore[arg-type]
    async with world.agent(token=lambda _: c.TOKEN) as agent, trio.open_nursery() as nursery:
        nursery.start_soon(answer_all, server)
        each = Against(world, nursery)
        yield each
        each.close()
        await settled(lambda: not agent._sessions and not agent._leases and not agent._strangers, 100)
        nursery.cancel_scope.cancel()


def last(peer: Scripted) -> tuple[F, Code, str]:
    kind, code, payload = peer.heard[-1]
    return F(kind), Code(code), decode(payload, Failure, "failure").text


BEFORE = [
    ("a frame above 4 KiB", Said(F.HELLO, b"", length=HANDSHAKE_LIMIT + 1), Code.PROTOCOL),
    ("an unknown flag", Said(F.HELLO, HELLO.payload, flags=1), Code.PROTOCOL),
    ("a code on HELLO", Said(F.HELLO, HELLO.payload, code=1), Code.PROTOCOL),
    ("a HELLO that makes no sense", Said(F.HELLO, b"\xc1"), Code.PROTOCOL),
    ("no common version", Said(F.HELLO, encode({"versions": [7]})), Code.VERSION),
    ("an OPEN that makes no sense", Said(F.OPEN, b"\xc1"), Code.PROTOCOL),
    ("a token that is not known", Said(F.OPEN, encode(Open(b"?" * 16, "forward", (1,)))), Code.GONE),
    (
        "nonsense for a session that is not known",
        Said(F.OPEN, encode(Open(b"?" * 16, "forward", (1,), msgspec.Raw(b"\xc1")))),
        Code.PROTOCOL,
    ),
]


@pytest.mark.parametrize(("said", "code"), [row[1:] for row in BEFORE], ids=[row[0] for row in BEFORE])
async def test_who_begins_wrongly_is_told_why_and_closed(
    against: Against, autojump_clock: MockClock, said: Said, code: Code
) -> None:
    peer = await against.peer(said)
    with trio.fail_after(2 * LAST_WORDS):
        await peer.over.wait()
    assert last(peer)[:2] == (F.ERROR, code)


@pytest.mark.parametrize("kind", [F.AUTH, F.READY, F.OK, F.DATA, F.END, F.PING, F.LISTEN, F.BYE, 64, 127, 200])
async def test_who_begins_with_anything_but_hello_or_open_is_hung_up_on(
    against: Against, autojump_clock: MockClock, kind: int
) -> None:
    peer = await against.peer(Said(kind))
    with trio.fail_after(2 * LAST_WORDS):
        await peer.over.wait()
    assert peer.heard == []


@pytest.mark.parametrize("begin", [b"", bytes(HELLO)[:3], bytes(STREAM_OPEN)[:20]], ids=["preface", "HELLO", "OPEN"])
async def test_trickling_extends_no_handshake(against: Against, autojump_clock: MockClock, begin: bytes) -> None:
    began = trio.current_time()
    peer = await against.peer(begin)
    while not peer.over.is_set():
        await trio.sleep(1)
        await peer.say(b"\x01")
    assert trio.current_time() - began < HANDSHAKE_DEADLINE + 2 * LAST_WORDS


async def test_who_goes_on_talking_after_its_refusal_is_heard_for_a_bounded_while(
    against: Against, autojump_clock: MockClock
) -> None:
    peer = await against.peer(BEFORE[0][1])
    began = trio.current_time()
    while not peer.over.is_set():
        await peer.say(bytes(1 << 12))
        await trio.sleep(0.05)
    assert trio.current_time() - began < 2 * LAST_WORDS + 1


async def test_who_stops_answering_loses_its_session_and_its_streams(
    against: Against, autojump_clock: MockClock
) -> None:
    control = await against.logged_in()
    stream = await against.peer(*STREAM[:2])
    await stream.heard_so_many(1)
    with trio.fail_after(4 * PING_INTERVAL):
        await stream.over.wait()
        await control.over.wait()
    assert control.kinds().count("PING") == 2
    assert "END" not in stream.kinds()


IN_A_STREAM = [
    ("DATA after END", [Said(F.END), Said(F.DATA, b"more")]),
    ("OPEN again", [STREAM_OPEN]),
    ("a frame of the core's", [Said(F.PING)]),
    ("an unassigned frame", [Said(40)]),
    ("a mode's frame in a forward", [Said(64, b"?")]),
    ("DATA above the limit", [Said(F.DATA, b"", length=(1 << 20) + 1)]),
    ("a flag", [Said(F.DATA, b"x", flags=2)]),
    ("a code on DATA", [Said(F.DATA, b"x", code=2)]),
]


@pytest.mark.parametrize("said", [row[1] for row in IN_A_STREAM], ids=[row[0] for row in IN_A_STREAM])
async def test_a_stream_that_breaks_the_rules_is_reset_and_the_session_lives(
    against: Against, said: list[Said]
) -> None:
    control = await against.logged_in()
    stream = await against.peer(*STREAM[:2])
    await stream.heard_so_many(1)
    await stream.say(*said)
    with trio.fail_after(20):
        await stream.over.wait()
    assert stream.kinds()[-1] in ("RESET", "END")  # who had heard all was answered already
    await control.say(Said(F.PING, b"still?"))
    await control.heard_so_many(3)
    assert control.heard[-1] == (F.PONG, 0, b"still?")


ON_CONTROL = [
    ("HELLO again", HELLO),
    ("DATA", Said(F.DATA, b"x")),
    ("READY from a client", Said(F.READY)),
    ("INCOMING from a client", Said(F.INCOMING)),
    ("END", Said(F.END)),
    ("a PING above 4 KiB", Said(F.PING, bytes(HANDSHAKE_LIMIT + 1))),
    ("one number twice", CONTROL[2]),
    ("a ticket of another length", Said(F.DENY, encode({"id": 1, "ticket": b"short"}))),
]


@pytest.mark.parametrize("said", [row[1] for row in ON_CONTROL], ids=[row[0] for row in ON_CONTROL])
async def test_a_control_connection_that_breaks_the_rules_ends_and_all_goes_with_it(
    against: Against, said: Said
) -> None:
    control = await against.logged_in()
    stream = await against.peer(*STREAM[:2])
    await stream.heard_so_many(1)
    await control.say(CONTROL[2])
    await control.heard_so_many(3)
    await control.say(said)
    with trio.fail_after(20):
        await control.over.wait()
        await stream.over.wait()
    assert "END" not in stream.kinds()
    with pytest.raises(Exception, match="nothing listens"):
        await against.world.engine.network.connect(parse("memory:there"))


async def test_a_ticket_is_good_once_and_for_its_own_session_alone(against: Against, autojump_clock: MockClock) -> None:
    control = await against.logged_in()
    await control.say(CONTROL[2])
    await control.heard_so_many(3)
    neighbour = await against.world.engine.network.connect(parse("memory:there"))
    await control.heard_so_many(4)
    ticket = msgspec.msgpack.decode(control.heard[3][2])["ticket"]

    def fetch(ticket: bytes, token: bytes = c.TOKEN) -> Said:
        return Said(F.OPEN, encode(Open(token, LISTEN, (1,), msgspec.Raw(encode(Fetch(1, ticket))))))

    for forged in (fetch(bytes(16)), fetch(ticket, b"!" * 16)):
        peer = await against.peer(forged)
        await peer.over.wait()
        assert last(peer)[:2] == (F.ERROR, Code.GONE)
    first = await against.peer(fetch(ticket))
    await first.heard_so_many(1)
    assert first.kinds() == ["OK"]
    second = await against.peer(fetch(ticket))
    await second.over.wait()
    assert last(second)[:2] == (F.ERROR, Code.GONE)
    neighbour.close()


async def test_a_client_that_reads_nothing_of_its_control_connection_is_given_up(
    against: Against, autojump_clock: MockClock
) -> None:
    stream = await against.world.engine.network.connect(against.world.target)
    await stream.send_all(CLIENT_PREFACE + bytes(HELLO))
    with trio.fail_after(5000), contextlib.suppress(trio.BrokenResourceError):
        while True:
            await stream.send_all(bytes(Said(F.PING, bytes(64))) * 100)
    stream.close()


async def test_what_a_peer_writes_reaches_no_terminal_as_it_is(against: Against, autojump_clock: MockClock) -> None:
    await against.logged_in()
    hostile = "tcp:\x1b[31m\u202ehost\n:1"
    request: Any = Connect(hostile)
    peer = await against.peer(Said(F.OPEN, encode(Open(c.TOKEN, "forward", (1,), msgspec.Raw(encode(request))))))
    await peer.over.wait()
    text = last(peer)[2] + "".join(map(str, against.world.events))
    assert not {"\x1b", "\u202e", "\n"} & set(text)
