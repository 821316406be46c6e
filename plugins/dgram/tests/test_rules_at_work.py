"""Datagram rules: what a table may say, listening at the agent's, waiting for it, being counted and stopped."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
import trio

from plugins.dgram.tests.world import DEADLINE, Udp, UnixDatagrams, echoing, settled
from vsockfwd.config import parse_config
from vsockfwd.errors import ConfigError, VersionMismatch
from vsockfwd.plugin import (
    Access,
    BadRequest,
    Carried,
    Closed,
    Ended,
    Engine,
    Frame,
    Mode,
    Opened,
    PeerBrokeProtocol,
    Resource,
    State,
    open_session,
)
from vsockfwd_dgram import MODE
from vsockfwd_dgram import client as client_side
from vsockfwd_dgram.frames import CLOSE, LISTENS, NAME, OPEN, Listen, Listens, record, records
from vsockfwd_dgram.rule import DatagramRule, RemoteDatagramRule

KINDS = {kind.name: kind for kind in MODE.rules}

TARGETS = """
[targets]
web = "vsock:3"
"""

TABLE = """
[[forward]]
kind = "{kind}"
target = "web"
listen = "udp:*:5353"
connect = "udp:dns.example:53"
"""


def to(server: Udp) -> str:
    return f"udp:127.0.0.1:{server.address[1]}"


# --- what a table may say


def test_a_table_becomes_a_typed_rule_under_a_name_of_its_own():
    text = TARGETS + TABLE.format(kind="datagram") + "idle = 5\nflows = 10\n" + TABLE.format(kind="remote-datagram")
    local, remote = parse_config(text, "f.toml", KINDS).rules
    assert isinstance(local.rule, DatagramRule)
    assert (local.rule.idle, local.rule.flows) == (5, 10)
    assert local.name == "datagram udp:*:5353 → udp:dns.example:53 through web"
    assert isinstance(remote.rule, RemoteDatagramRule)
    assert (remote.rule.idle, remote.rule.flows) == (120, None)
    assert remote.name == "remote-datagram udp:*:5353 at web → udp:dns.example:53"


@pytest.mark.parametrize("kind", ["datagram", "remote-datagram"])
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("idle-timeout = 5", "unknown field 'idle-timeout'"),
        ("max-connections = 5", "unknown field 'max-connections'"),
        ("half-open-timeout = 5", "unknown field"),
        ("allow = ['cid:3']", "unknown field 'allow'"),
        ("when-down = 'refuse'", "unknown field 'when-down'"),
        ("idle = 0", "forward[1].idle"),
        ("idle = nan", "forward[1].idle"),
        ("flows = 0", "forward[1].flows"),
        ("flows = 70000", "forward[1].flows"),
    ],
)
def test_a_key_that_would_do_nothing_is_refused_by_name(kind, line, words):
    with pytest.raises(ConfigError) as caught:
        parse_config(TARGETS + TABLE.format(kind=kind) + line, "f.toml", KINDS)
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("udp:*:5353", "tcp:5353", "forward[1].listen: address 'tcp:5353', character 1: tcp carries no datagrams"),
        (
            "udp:dns.example:53",
            "vsock:3:53",
            "forward[1].connect: address 'vsock:3:53', character 1: vsock carries no datagrams",
        ),
        ("udp:dns.example:53", "udp:*:53", "one host and a port above 0"),
        ("udp:dns.example:53", "udp:53x", "a port must be a number"),
        ('target = "web"', 'target = "wep"', "forward[1].target"),
        ('target = "web"', "", "required field 'target'"),
    ],
)
def test_what_carries_no_datagrams_is_refused_with_its_key(old, new, words):
    with pytest.raises(ConfigError) as caught:
        parse_config(TARGETS + TABLE.format(kind="datagram").replace(old, new), "f.toml", KINDS)
    assert words in caught.value.message


def test_two_rules_on_one_port_of_one_side_are_refused_and_on_two_sides_are_not():
    local, remote = TABLE.format(kind="datagram"), TABLE.format(kind="remote-datagram")
    assert len(parse_config(TARGETS + local + remote, "f.toml", KINDS).rules) == 2
    with pytest.raises(ConfigError, match=r"both listen on udp:\*:5353"):
        parse_config(
            TARGETS + local + remote + remote.replace("[[forward]]", '[[forward]]\nname = "b"'), "f.toml", KINDS
        )


# --- listening at the agent's


async def test_flows_come_from_the_agents_side_whole_and_their_answers_go_back(world):
    with Udp() as server, contextlib.ExitStack() as stack:
        async with world.agent(), world.forward(to(server), remote=True) as (bound,), echoing(server):
            for _ in range(20):
                client = stack.enter_context(Udp(to=bound))
                for size in (0, 1, 1473, 65_507):
                    client.send(bytes([size % 251]) * size)
                    assert await client.get() == bytes([size % 251]) * size
            assert len(world.near.of(Opened)) == 20
        await settled(lambda: bool(world.far.of(Carried)))
    for side in (world.near, world.far):
        (carried,) = side.of(Carried)
        assert (carried.datagrams_out, carried.datagrams_in, carried.dropped) == (80, 80, 0)
    assert world.near.problems() == world.far.problems() == ""


async def test_an_idle_flow_from_the_agents_side_ends_on_both(world):
    with Udp() as server:
        async with world.agent(), world.forward(to(server), remote=True, idle=0.1) as (bound,):
            with Udp(to=bound) as client:
                client.send(b"x")
                await server.get()
                await settled(lambda: world.near.closings() == world.far.closings() == ["idle for 0.1 s"])


async def test_a_refusal_here_is_counted_there_and_ends_nothing(world):
    with Udp() as gone:
        nobody = to(gone)
    async with world.agent(), world.forward(nobody, remote=True) as (bound,):
        with Udp(to=bound) as client:
            for count in range(1, 4):
                client.send(b"x")
                await settled(lambda count=count: world.far.drops()["refused, at the client"] == count)
    assert world.near.drops() == {"refused": 3}


async def test_the_agents_listener_goes_when_the_rule_does(world):
    there = world.folder / "there"
    with Udp() as server:
        async with world.agent():
            async with world.forward(to(server), f"unix-dgram:{there}", remote=True) as (path,):
                assert there.stat().st_mode & 0o777 == 0o600
                with UnixDatagrams(to=path) as client:
                    client.send(b"log line")
                    assert await server.get() == b"log line"
            await settled(lambda: not there.exists())


async def test_after_the_agent_was_lost_it_is_asked_to_listen_again(world):
    there = world.folder / "there"
    async with trio.open_nursery() as nursery:
        agent = await world.start_agent(nursery)
        with Udp() as server:
            async with world.at_work(world.rule(to(server), f"unix-dgram:{there}", remote=True)) as work:
                assert work.status().listening == (f"unix-dgram:{there}",)
                agent.cancel()
                await settled(lambda: work.state is State.DOWN)
                assert work.status().listening == ()
                agent = await world.start_agent(nursery)
                await settled(lambda: work.state is State.UP)
                with UnixDatagrams(to=str(there)) as client:
                    client.send(b"after")
                    assert await server.get() == b"after"
        agent.cancel()


async def test_a_port_that_the_agents_kernel_chose_is_the_same_after_a_loss(world):
    async with trio.open_nursery() as nursery:
        agent = await world.start_agent(nursery)
        with Udp() as server:
            async with world.at_work(world.rule(to(server), remote=True)) as work:
                before = work.status().listening
                agent.cancel()
                await settled(lambda: work.state is State.DOWN)
                agent = await world.start_agent(nursery)
                await settled(lambda: work.state is State.UP)
                assert work.status().listening == before
        agent.cancel()


async def test_a_chosen_port_that_somebody_else_has_taken_is_given_up_in_the_end(world, monkeypatch):
    monkeypatch.setattr(client_side, "INSIST", 0.05)
    async with trio.open_nursery() as nursery:
        agent = await world.start_agent(nursery)
        with Udp() as server:
            async with world.at_work(world.rule(to(server), remote=True)) as work:
                (before,) = work.status().listening[:1]
                agent.cancel()
                await settled(lambda: work.state is State.DOWN)
                with Udp(("127.0.0.1", int(before.rpartition(":")[2]))):
                    agent = await world.start_agent(nursery)
                    await settled(lambda: "another program listens there" in work.why)
                    await settled(lambda: work.state is State.UP)
                    assert work.status().listening[0] != before
        agent.cancel()


async def test_what_the_agent_cannot_listen_on_is_said_and_tried_until_it_can(world):
    with Udp() as taken, Udp() as server:
        async with world.agent():
            async with world.at_work(world.rule(to(server), to(taken), remote=True)) as work:
                assert work.state is State.DOWN
                assert "another program listens there" in work.why
                taken.sock.close()
                await settled(lambda: work.state is State.UP)


async def test_an_agent_too_old_to_listen_says_what_to_install(world):
    old = Mode(NAME, "as it was", versions=(1,), serve=MODE.serve)
    async with world.agent(old), world.at_work(world.rule("udp:9", remote=True)) as work:
        assert isinstance(work.error, VersionMismatch)
        assert "install the same on both sides" in work.why


def test_the_policy_is_asked_about_the_address_to_listen_on_and_no_other():
    listen = Listen("udp:[0:0:0:0:0:0:0:1]:053", 5, 60)
    assert MODE.resources(msgspec.msgpack.encode(listen)) == (Resource(Access.LISTEN, "udp:[0:0:0:0:0:0:0:1]:53"),)
    both = {"connect": "udp:9", "listen": "udp:5353", "flows": 5, "idle": 60}
    assert MODE.resources(msgspec.msgpack.encode(both)) == (Resource(Access.LISTEN, "udp:5353"),)


@pytest.mark.parametrize(
    "request_", [Listen("tcp:80", 5, 60), Listen("nonsense", 5, 60), Listen("udp:0", 0, 60), Listen("udp:0", 5, 0)]
)
async def test_nonsense_to_listen_on_is_refused(world, request_):
    async with world.agent(), open_session(Engine(), world.target) as session:
        with pytest.raises(BadRequest):
            await session.open(NAME, request_, versions=(LISTENS,))


async def test_a_client_that_announces_flows_to_an_agent_that_listens_is_told_so(world):
    async with world.agent(), open_session(Engine(), world.target) as session:
        opened = await session.open(NAME, Listen("udp:127.0.0.1:0", 5, 60), versions=(LISTENS,))
        assert opened.reply(Listens).addresses[0].startswith("udp:127.0.0.1:")
        await opened.channel.send_frames((OPEN, record(1, b"a")))
        with pytest.raises(PeerBrokeProtocol, match="announced a flow"), trio.fail_after(DEADLINE):
            while isinstance(await opened.channel.receive(), Frame):
                pass
        opened.channel.close()


async def test_an_agent_that_opens_more_flows_than_were_granted_loses_its_oldest_and_no_descriptor_of_ours(world):
    closed: list[int] = []

    async def serve(call) -> None:
        channel = await call.accept(Listens(("udp:127.0.0.1:1\x1b[2J",)))
        await channel.send_frames((OPEN, b"".join(record(number, b"\x1b[2J") for number in range(1, 5))))
        while not isinstance(event := await channel.receive(), Ended):
            closed.extend(number for number, _ in records(event.payload) if event.kind == CLOSE)

    hostile = Mode(NAME, "opens too many", versions=(1, LISTENS), serve=serve)
    async with world.agent(hostile), world.at_work(world.rule("udp:9", remote=True, flows=2)) as work:
        await settled(lambda: closed == [1, 2])
        assert work.status().connections == 2
        assert "\x1b" not in "".join(work.status().listening) + "".join(map(str, world.near))


# --- at work among other rules


@pytest.mark.parametrize("remote", [False, True])
async def test_a_rule_counts_its_flows_and_bytes_while_they_live_and_after(world, remote):
    with Udp() as server:
        async with (
            world.agent(),
            world.at_work(world.rule(to(server), remote=remote, idle=0.3)) as work,
            echoing(server),
        ):
            bound = ("127.0.0.1", int(work.status().listening[0].rpartition(":")[2]))
            with Udp(to=bound) as one, Udp(to=bound) as two:
                for client, words in ((one, b"12345"), (two, b"123")):
                    client.send(words)
                    assert await client.get() == words
            status = work.status()
            assert (status.state, status.connections, status.connections_total) == (State.UP, 2, 2)
            assert (status.sent, status.received) == (8, 8)
            await settled(lambda: work.status().connections == 0)
            status = work.status()
            assert (status.connections_total, status.sent, status.received) == (2, 8, 8)
    assert len(world.near.of(Opened)) == len(world.near.of(Closed)) == 2


@pytest.mark.parametrize("remote", [False, True])
async def test_status_counts_what_was_dropped_on_either_side_by_reason(world, remote):
    with Udp() as gone:
        nobody = to(gone)
    async with world.agent(), world.at_work(world.rule(nobody, remote=remote)) as work:
        bound = ("127.0.0.1", int(work.status().listening[0].rpartition(":")[2]))
        reason = "refused" if remote else "refused, at the agent"
        with Udp(to=bound) as client:
            for count in range(1, 4):
                client.send(b"x")
                await settled(lambda count=count: work.status().dropped == {reason: count})
    (carried,) = world.near.of(Carried)
    assert carried.reasons == {reason: 3}
    assert f"3 dropped (3 {reason})" in str(carried)


async def test_an_agent_that_is_away_at_the_start_is_waited_for_and_losses_until_then_are_counted(world):
    with Udp() as server:
        async with world.at_work(world.rule(to(server))) as work:
            await settled(lambda: work.state is State.DOWN)
            assert "no such socket" in work.why
            bound = ("127.0.0.1", int(work.status().listening[0].rpartition(":")[2]))
            with Udp(to=bound) as client:
                client.send(b"too early")
                await settled(lambda: world.near.drops() == {"no stream": 1})
                async with world.agent():
                    await settled(lambda: work.state is State.UP)
                    while True:
                        client.send(b"now")
                        with trio.move_on_after(0.2):
                            assert await server.get() == b"now"
                            break


@pytest.mark.parametrize("remote", [False, True])
async def test_told_to_stop_it_ends_at_once_and_both_sides_have_their_last_words(world, remote):
    with Udp() as server:
        async with world.agent(), world.at_work(world.rule(to(server), remote=remote)) as work, echoing(server):
            bound = ("127.0.0.1", int(work.status().listening[0].rpartition(":")[2]))
            with Udp(to=bound) as client:
                client.send(b"x")
                await client.get()
            began = trio.current_time()
            work.engine.stopping.set()
            await settled(lambda: work.state is State.STOPPED)
            assert trio.current_time() - began < 0.5
            await settled(lambda: bool(world.far.of(Carried)))
    assert world.far.problems() == ""
