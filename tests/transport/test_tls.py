"""TLS on stream addresses: both sides show who they are, whatever lies beneath, and every no is one line."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio

from tests.authority import make_authority
from tests.engine.test_session_and_agent import ECHO, Question
from tests.engine.world import World
from vsockfwd.address import AddressError, parse, parse_target
from vsockfwd.allow import Allow, Named
from vsockfwd.engine import Engine
from vsockfwd.engine.session import open_session
from vsockfwd.errors import BadRequest, DataError, NotAllowed, Truncated, UsageError, VsockfwdError
from vsockfwd.events import Event, Problem
from vsockfwd.identity import CertificatePeer
from vsockfwd.modes.forward import Connect
from vsockfwd.policy import Policy
from vsockfwd.transport.base import Listener, Stream
from vsockfwd.transport.memory import MemoryTransport
from vsockfwd.transport.network import Network, system_network
from vsockfwd.transport.tls import HANDSHAKES


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def network() -> Network:
    return Network({**system_network().transports, "memory": MemoryTransport()})


Words = Callable[[str], str]


@pytest.fixture
def server(ca: Path) -> str:
    return f",tls,cert={ca}/server.pem,ca={ca}/ca.pem"


@pytest.fixture
def client(ca: Path) -> str:
    return f",tls,cert={ca}/web.crt,key={ca}/web.key,ca={ca}/ca.pem"


async def accept(listener: Listener) -> Stream:
    stream = await listener.accept()
    await stream.settle()
    return stream


@contextlib.asynccontextmanager
async def joined(network: Network, listen: str, options: str, name: str = "") -> AsyncIterator[tuple[Stream, Stream]]:
    """Both ends of a connection, the caller's first."""
    listeners = await network.listen(parse(listen))
    where = f"{listeners[0].address.bare()}{options}{name}"
    ends: list[Stream] = []
    async with trio.open_nursery() as nursery:

        async def take() -> None:
            ends.append(await accept(listeners[0]))

        nursery.start_soon(take)
        near = await network.connect(parse(where))
    try:
        yield near, ends[0]
    finally:
        for each in (near, ends[0], *listeners):
            each.close()


KINDS = [("tcp:127.0.0.1:0", ""), ("unix:{}/s", ",peer-name=localhost"), ("abstract:{}", ",peer-name=127.0.0.1")]


@pytest.mark.parametrize(("listen", "name"), KINDS, ids=[kind[0].partition(":")[0] for kind in KINDS])
async def test_each_side_knows_the_other_by_its_certificate_over_any_stream(
    network: Network, server: str, client: str, tmp_path: Path, listen: str, name: str
):
    async with joined(network, listen.format(tmp_path) + server, client, name) as (near, far):
        assert isinstance(far.peer, CertificatePeer)
        assert far.peer.names == ("web.example",)
        assert str(far.peer).startswith("certificate web.example (")
        assert isinstance(near.peer, CertificatePeer)
        assert near.peer.names == ("localhost", "127.0.0.1")
        await near.send_all(b"question")
        assert await far.receive_some() == b"question"


async def test_one_end_is_said_and_the_long_answer_arrives_whole(network: Network, server: str, client: str):
    """The half-close that OpenSSL's own unwrap would lose."""
    async with joined(network, "tcp:127.0.0.1:0" + server, client) as (near, far):
        await near.send_all(b"question")
        await near.send_eof()
        assert await far.receive_some() == b"question"
        assert await far.receive_some() == b""
        total = 0

        async def answer() -> None:
            for _ in range(20):
                await far.send_all(bytes(1 << 17))
            await far.send_eof()

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer)
                while data := await near.receive_some(1 << 18):
                    total += len(data)
        assert total == 20 << 17


async def test_a_connection_that_is_cut_is_no_end(network: Network, server: str, client: str):
    async with joined(network, "tcp:127.0.0.1:0" + server, client) as (near, far):
        far.close()
        with pytest.raises((Truncated, trio.BrokenResourceError)):
            await near.receive_some()


REFUSED = [
    # who calls, what the caller hears, what the listener does
    ("tls,ca={ca}/ca.pem", "does not take our certificate", "shows no certificate"),
    ("tls,cert={ca}/stranger.pem,ca={ca}/ca.pem", "does not take our certificate", "is not trusted: self"),
    (
        "tls,cert={ca}/old.pem,ca={ca}/ca.pem",
        "does not take our certificate",
        "certificate has expired",
    ),
]


@pytest.mark.parametrize(("options", "caller", "listener"), REFUSED, ids=["none", "another's", "expired"])
async def test_who_has_no_certificate_of_the_ca_is_nobody(
    network: Network, server: str, ca: Path, options: str, caller: str, listener: str
):
    (listening,) = await network.listen(parse("tcp:127.0.0.1:0" + server))
    told: list[VsockfwdError] = []

    async def take() -> None:
        with pytest.raises(NotAllowed) as caught:
            await accept(listening)
        told.append(caught.value)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        with pytest.raises(NotAllowed, match=caller) as heard:
            stream = await network.connect(parse(f"{listening.address.bare()},{options.format(ca=ca)}"))
            with contextlib.closing(stream):
                await stream.receive_some()
        assert "cert= and key=" in heard.value.hint
    assert listener in told[0].message
    listening.close()


async def test_a_listener_that_is_another_than_was_meant_gets_nothing(network: Network, server: str, ca: Path):
    shown = f",cert={ca}/web.pem"
    for options, words, hint in (
        (f"{shown},ca={ca}/ca.pem,peer-name=bank.example", "is not for bank.example", "is for localhost, 127.0.0.1"),
        (f"{shown},ca={ca}/stranger.crt,peer-name=localhost", "is not trusted", "ca= names who is trusted"),
        (f"{shown},peer-name=localhost", "is not trusted", "ca= names who is trusted"),
    ):
        (listening,) = await network.listen(parse("tcp:127.0.0.1:0" + server))

        async def take(listening: Listener = listening) -> None:
            with contextlib.suppress(VsockfwdError):
                (await accept(listening)).close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            with pytest.raises(NotAllowed, match=words) as caught:
                await network.connect(parse(f"{listening.address.bare()},tls{options}"))
            assert hint in caught.value.hint
        listening.close()


WRONG = [
    ("tcp:0,tls,ca={ca}/ca.pem", "cert= is missing"),
    ("tcp:0,tls,cert={ca}/server.pem", "ca= is missing"),
    ("tcp:0,tls,cert={ca}/nothing.pem,ca={ca}/ca.pem", "cert={ca}/nothing.pem: no such file"),
    ("tcp:0,tls,cert={ca}/server.crt,ca={ca}/ca.pem", "cert={ca}/server.crt: "),
    ("tcp:0,tls,cert={ca}/server.pem,ca={ca}/names", "ca={ca}/names: "),
    ("tcp:0,tls,cert={ca}/server.crt,key={ca}/web.key,ca={ca}/ca.pem", "key values mismatch"),
]


@pytest.mark.parametrize(("address", "words"), WRONG)
async def test_a_file_that_is_missing_or_wrong_is_named(network: Network, ca: Path, address: str, words: str):
    with pytest.raises(VsockfwdError) as caught:
        await network.listen(parse(address.format(ca=ca)))
    assert words.format(ca=ca) in caught.value.message
    assert "\n" not in caught.value.line()


async def test_a_private_key_that_everybody_may_read_is_refused(network: Network, ca: Path, tmp_path: Path):
    key = tmp_path / "open.key"
    key.write_bytes((ca / "server.key").read_bytes())
    key.chmod(0o644)
    with pytest.raises(NotAllowed, match="everybody may read it"):
        await network.listen(parse(f"tcp:0,tls,cert={ca}/server.crt,key={key},ca={ca}/ca.pem"))


async def test_where_no_host_stands_the_name_has_to(network: Network, client: str, tmp_path: Path):
    (listening,) = await network.listen(parse(f"unix:{tmp_path}/s"))
    with pytest.raises(UsageError, match="whose certificate"):
        await network.connect(parse(f"unix:{tmp_path}/s{client}"))
    listening.close()


@pytest.mark.parametrize(
    ("text", "character"),
    [("tcp:1,cert=/a", 7), ("tcp:1,tls,key=/a", 11), ("tcp:1,tls=1", 10), ("tcp:1,peer-name=x", 7)],
)
def test_an_option_without_its_other_is_pointed_at(text: str, character: int) -> None:
    with pytest.raises(AddressError, match=f"character {character}:"):
        parse(text)


async def test_who_does_not_speak_tls_is_told_apart_on_both_sides(network: Network, server: str, client: str):
    (listening,) = await network.listen(parse("tcp:127.0.0.1:0" + server))
    async with trio.open_nursery() as nursery:

        async def take() -> None:
            with pytest.raises(DataError, match="TLS handshake"):
                await accept(listening)

        nursery.start_soon(take)
        plain = await network.connect(parse(listening.address.bare()))
        await plain.send_all(b"GET / HTTP/1.1\r\n\r\n")
    plain.close()
    listening.close()
    (listening,) = await network.listen(parse("tcp:127.0.0.1:0"))
    async with trio.open_nursery() as nursery:

        async def answer() -> None:
            stream = await listening.accept()
            await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await stream.receive_some()
            stream.close()

        nursery.start_soon(answer)
        with pytest.raises(DataError, match="wrong version number") as caught:
            await network.connect(parse(f"{listening.address.bare()}{client}"))
        assert "does TLS answer there?" in caught.value.hint
    listening.close()


async def test_callers_who_say_nothing_give_way_to_those_who_do(network: Network, server: str, client: str):
    (listening,) = await network.listen(parse("tcp:127.0.0.1:0" + server))
    mute = [await network.connect(parse(listening.address.bare())) for _ in range(HANDSHAKES + 5)]
    taken = [await listening.accept() for _ in mute]
    assert len(listening._pending) == HANDSHAKES  # type: ignore[attr-defined]
    assert [stream.sock.fileno() < 0 for stream in taken[:6]] == [True] * 5 + [False]  # type: ignore[union-attr]
    for stream in (*mute, *taken):
        stream.close()
    listening.close()


# --- an agent


CERTS = Policy(own_uid=1)


@pytest.fixture
def world(network: Network, server: str) -> World:
    events: list[Event] = []
    return World(Engine(network, events.append), events, parse("tcp:127.0.0.1:0" + server))


@contextlib.asynccontextmanager
async def agent(world: World, policy: Policy) -> AsyncIterator[str]:
    """An agent on TLS, and where it listens."""
    (probe,) = await world.engine.network.listen(world.target)
    where = probe.address
    probe.close()
    world.target = where
    async with world.agent(ECHO, policy):
        yield where.bare()


async def seen_as(world: World, target: str) -> str:
    async with open_session(world.engine, parse_target(target)) as session:
        (await session.open("echo", Question("x"))).channel.close()
        return (await session.login()).seen_as


async def test_an_agent_lets_in_who_holds_a_certificate_of_its_ca(world: World, client: str, ca: Path):
    async with agent(world, CERTS) as where:
        assert (await seen_as(world, where + client)).startswith("certificate web.example (127.0.0.1:")
        with pytest.raises(NotAllowed, match="does not take our certificate"):
            await seen_as(world, f"{where},tls,cert={ca}/stranger.pem,ca={ca}/ca.pem")
    assert any("is not trusted" in event.why for event in world.reported(Problem))


@pytest.mark.parametrize(
    ("who", "let_in"), [("cert:web.example", True), ("cert:*.example", True), ("cert:db.example", False)]
)
async def test_names_in_the_rules_decide_which_of_them(world: World, client: str, who: str, let_in: bool):
    async with agent(world, Policy(own_uid=1, allow=(Allow(who=(Named.read(who),)),))) as where:
        if let_in:
            await seen_as(world, where + client)
        else:
            with pytest.raises(NotAllowed, match="no rule has the name"):
                await seen_as(world, where + client)


async def test_an_agent_reads_no_files_for_the_tls_of_its_clients(world: World, client: str, ca: Path):
    async with agent(world, CERTS) as where, open_session(world.engine, parse_target(where + client)) as session:
        address = f"tcp:1,tls,cert={ca}/server.pem"
        with pytest.raises(BadRequest, match="speaks no TLS for its clients"):
            await session.listen(address, os.urandom(16), None, print)  # type: ignore[arg-type]
    async with World.agent(world, policy=CERTS), open_session(world.engine, parse_target(where + client)) as session:
        with pytest.raises(BadRequest, match="speaks no TLS for its clients"):
            await session.open("forward", Connect(address))
