"""Rules at work: they come back by themselves, count what they do, keep to their limits, and are changed one by one."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
import trio.testing

from tests.engine.world import World, settled
from vsockfwd.address import parse
from vsockfwd.config import NamedRule
from vsockfwd.engine import Engine
from vsockfwd.engine.backoff import Backoff
from vsockfwd.engine.proxied import read_header
from vsockfwd.engine.rules import Rules, State, Work
from vsockfwd.errors import ConfigError, NotFound
from vsockfwd.events import Closed, Denied, Ending, RuleChanged
from vsockfwd.identity import NetworkPeer
from vsockfwd.modes.forward import LOCAL, RAW, REMOTE, LocalRule, RawRule, RemoteRule
from vsockfwd.rule import Admitted, StreamEnd
from vsockfwd.transport.base import Stream
from vsockfwd.wire.proxy_protocol import header


def raw(listen: str = "memory:client", connect: str = "memory:server", name: str = "raw", **more: Any) -> NamedRule:
    rule = RawRule(listen=StreamEnd(parse(listen)), connect=StreamEnd(parse(connect)), **more)
    return NamedRule(name, RAW, rule)


def local(name: str = "local", **more: Any) -> NamedRule:
    rule = LocalRule(
        listen=StreamEnd(parse("memory:client")),
        connect=StreamEnd(parse("memory:server")),
        target="memory:agent",
        **more,
    )
    return NamedRule(name, LOCAL, rule)


def remote(name: str = "remote", **more: Any) -> NamedRule:
    rule = RemoteRule(
        listen=StreamEnd(parse("memory:entrance")),
        connect=StreamEnd(parse("memory:server")),
        target="memory:agent",
        **more,
    )
    return NamedRule(name, REMOTE, rule)


@contextlib.asynccontextmanager
async def at_work(world: World, *named: NamedRule, patient: bool = True) -> AsyncIterator[Rules]:
    with trio.fail_after(20):
        async with Rules(world.engine, {}, patient=patient) as rules:
            for each in named:
                rules.add(each)
            await rules.settled()
            yield rules


async def dial(world: World, where: str = "memory:client") -> Stream:
    return await world.engine.network.connect(parse(where))


async def serving(world: World):
    return (await world.engine.network.listen(parse("memory:server")))[0]


async def is_reset(stream: Stream) -> bool:
    try:
        await stream.receive_some()
    except trio.BrokenResourceError:
        stream.close()
        return True
    return False


async def test_a_rule_counts_its_connections_and_bytes_while_they_run_and_after(world: World):
    server = await serving(world)
    async with at_work(world, raw()) as rules:
        client = await dial(world)
        neighbour = await server.accept()
        await client.send_all(b"question")
        assert await neighbour.receive_some() == b"question"
        await neighbour.send_all(b"a longer answer")
        assert await client.receive_some() == b"a longer answer"
        (status,) = rules.status()
        assert (status.connections, status.connections_total, status.sent, status.received) == (1, 1, 8, 15)
        client.close()
        neighbour.close()
        await settled(lambda: rules.status()[0].connections == 0)
        (status,) = rules.status()
        assert (status.state, status.connections_total, status.sent, status.received) == (State.UP, 1, 8, 15)
        assert status.listening == ("memory:client",)


async def test_a_listener_that_cannot_be_had_is_tried_until_it_can(world: World, autojump_clock):
    taken = (await world.engine.network.listen(parse("memory:client")))[0]
    async with at_work(world, raw()) as rules:
        (status,) = rules.status()
        assert status.state is State.DOWN
        assert "memory:client" in status.why
        taken.close()
        await up(rules.works["raw"])
        assert [event.state for event in world.reported(RuleChanged)] == ["down", "up"]


async def test_without_patience_a_rule_that_cannot_begin_has_failed_and_the_others_go_on(world: World):
    taken = (await world.engine.network.listen(parse("memory:client")))[0]
    async with at_work(world, raw(), raw("memory:other", name="other"), patient=False) as rules:
        assert [status.state for status in rules.status()] == [State.FAILED, State.UP]
    taken.close()


async def test_an_agent_that_comes_late_and_goes_is_waited_for_and_said(world: World, autojump_clock):
    server = await serving(world)
    async with at_work(world, local()) as rules:
        work = rules.works["local"]
        assert await is_reset(await dial(world))
        async with world.agent():
            await up(work)
            client = await dial(world)
            neighbour = await server.accept()
            await neighbour.send_all(b"served")
            assert await client.receive_some() == b"served"
        assert await is_reset(client)
        await settled(lambda: work.state is State.DOWN)
        async with world.agent():
            await up(work)
            client = await dial(world)
            (await server.accept()).close()
            client.close()


async def test_when_down_refuse_closes_the_listener_while_the_agent_is_away(world: World, autojump_clock):
    async with at_work(world, raw("memory:another")) as rules:
        work = rules.add(local(when_down="refuse"))
        await settled(lambda: work.state is State.DOWN)
        assert work.status().listening == ()
        with pytest.raises(Exception, match="memory:client"):
            await dial(world)
        async with world.agent():
            await up(work)
            (await dial(world)).close()
        await settled(lambda: work.state is State.DOWN)
        with pytest.raises(Exception, match="memory:client"):
            await dial(world)


async def test_a_remote_listener_is_there_again_whenever_its_agent_is_and_other_rules_never_notice(
    world: World, autojump_clock
):
    server = await serving(world)
    async with at_work(world, raw(), remote()) as rules:
        work = rules.works["remote"]
        for _ in range(2):
            assert work.state is State.DOWN
            async with world.agent():
                await up(work)
                client = await dial(world, "memory:entrance")
                neighbour = await server.accept()
                await neighbour.send_all(b"served")
                assert await client.receive_some() == b"served"
            assert await is_reset(client)
            neighbour.close()
            await settled(lambda: work.state is State.DOWN)
            assert work.why
        assert rules.works["raw"].state is State.UP


async def test_a_listener_that_cannot_be_had_anew_after_its_agent_was_away_is_tried_until_it_can(
    world: World, autojump_clock
):
    taken = (await world.engine.network.listen(parse("memory:client")))[0]
    async with world.agent(), at_work(world, local(when_down="refuse")) as rules:
        work = rules.works["local"]
        await settled(lambda: "memory:client" in work.why)
        taken.close()
        await up(work)


async def test_an_agent_that_a_connection_finds_back_is_back_for_its_rules_at_once(world: World, autojump_clock):
    server = await serving(world)
    async with at_work(world, local()) as rules:
        work = rules.works["local"]
        await settled(lambda: work.state is State.DOWN)
        async with world.agent():
            client = await dial(world)
            (await server.accept()).close()
            client.close()
            await trio.testing.wait_all_tasks_blocked()
            assert work.state is State.UP


async def test_the_pauses_grow_have_jitter_and_begin_anew_after_useful_traffic():
    backoff = Backoff()
    pauses = [backoff.next() for _ in range(20)]
    assert all(0.1 <= pause <= 30 for pause in pauses)
    assert pauses[-1] >= 15
    assert len(set(pauses[-5:])) > 1
    backoff.reset()
    assert backoff.next() <= 0.2


async def test_a_cap_for_each_peer_resets_who_comes_over_it_and_no_other(world: World):
    server = await serving(world)
    async with at_work(world, raw(max_connections_per_peer=1)) as rules:
        first = await dial(world)
        neighbour = await server.accept()
        assert await is_reset(await dial(world))
        assert len(world.reported(Denied)) == 1
        first.close()
        neighbour.close()
        await settled(lambda: rules.status()[0].connections == 0)
        again = await dial(world)
        (await server.accept()).close()
        again.close()


async def test_a_cap_in_all_makes_the_next_wait_its_turn(world: World):
    server = await serving(world)
    async with at_work(world, raw(max_connections=1)):
        first, second = [await dial(world) for _ in range(2)]
        neighbour = await server.accept()
        await second.send_all(b"second")
        await trio.testing.wait_all_tasks_blocked()
        first.close()
        neighbour.close()
        neighbour = await server.accept()
        assert await neighbour.receive_some() == b"second"
        second.close()
        neighbour.close()


async def test_who_is_not_allowed_is_reset_and_reported(world: World):
    async with at_work(world, raw(allow=(Admitted("cid:3"),))):
        assert await is_reset(await dial(world))
        assert "does not allow" in world.reported(Denied)[0].why


@pytest.mark.parametrize("kind", [raw, local])
async def test_a_silent_connection_ends_after_the_rules_idle_timeout(world: World, autojump_clock, kind):
    server = await serving(world)
    async with world.agent(), at_work(world, kind(idle_timeout=6)):
        client = await dial(world)
        neighbour = await server.accept()
        began = trio.current_time()
        assert await is_reset(client)
        assert 5.9 < trio.current_time() - began < 10
        neighbour.close()
    assert Ending.TIMED_OUT in [event.outcome.ending for event in world.reported(Closed)]


async def test_a_reload_applies_the_difference_and_the_rest_lives_on(world: World):
    server = await serving(world)
    stays, goes, changes = raw(name="stays"), raw("memory:b", name="goes"), raw("memory:c", name="changes")
    async with at_work(world, stays, goes, changes) as rules:
        client = await dial(world)
        neighbour = await server.accept()
        gone = await dial(world, "memory:b")
        await server.accept()
        after = [stays, raw("memory:c", "memory:elsewhere", name="changes"), raw("memory:d", name="comes")]
        assert rules.apply(after, {}) == (["goes", "changes"], ["changes", "comes"])
        assert await is_reset(gone)
        await rules.settled()
        await client.send_all(b"still here")
        assert await neighbour.receive_some() == b"still here"
        (await dial(world, "memory:d")).close()
        assert {status.name for status in rules.status()} == {"stays", "changes", "comes"}
        client.close()


async def test_a_target_whose_address_changed_is_another_rule(world: World):
    named = local()
    async with world.agent(), at_work(world, named) as rules:
        rules.targets = {"memory:agent": parse("memory:agent")}
        assert rules.apply([named], {"memory:agent": parse("memory:moved")}) == (["local"], ["local"])


async def test_rules_that_quarrel_are_refused_and_what_is_not_there_cannot_be_removed(world: World):
    async with at_work(world, raw()) as rules:
        with pytest.raises(ConfigError, match="both called 'raw'"):
            rules.add(raw("memory:x"))
        with pytest.raises(ConfigError, match="both listen on memory:client"):
            rules.add(raw(name="another"))
        with pytest.raises(NotFound, match="'nobody'"):
            rules.remove("nobody")


@pytest.mark.parametrize("kind", [raw, local, remote])
async def test_told_to_stop_before_it_came_up_nobody_waits_for_that(world: World, kind):
    world.engine.stopping.set()
    with trio.fail_after(20):
        async with Rules(world.engine, {}, patient=False) as rules:
            await rules.add_all([kind()], all_or_none=True)
            await rules.ended()
            assert [status.state for status in rules.status()] == [State.STOPPED]


async def test_removed_before_it_came_up_nobody_waits_for_that(world: World):
    with trio.fail_after(20):
        async with Rules(world.engine, {}, patient=False) as rules:  # no agent: it would never come up
            work = rules.add(remote())
            rules.remove(work.name)
            await work.settled.wait()
            assert work.state is State.STARTING


@pytest.mark.parametrize("kind", [raw, local])
async def test_told_to_stop_it_takes_no_more_and_ends_when_the_last_connection_does(world: World, kind):
    server = await serving(world)
    async with world.agent(), at_work(world, kind()) as rules:
        client = await dial(world)
        neighbour = await server.accept()
        engine: Engine = world.engine
        engine.stopping.set()
        await settled(lambda: not _listens(world))
        await client.send_all(b"last")
        assert await neighbour.receive_some() == b"last"
        assert rules.status()[0].state is State.UP
        client.close()
        neighbour.close()
        await rules.ended()
        assert rules.status()[0].state is State.STOPPED


@pytest.mark.parametrize("when_down", ["accept", "refuse", "no listener"])
async def test_told_to_stop_while_it_waits_for_something_it_ends_at_once(world: World, autojump_clock, when_down: str):
    taken = (await world.engine.network.listen(parse("memory:taken")))[0]
    named = raw("memory:taken") if when_down == "no listener" else local(when_down=when_down)
    async with at_work(world, named) as rules:
        await settled(lambda: rules.status()[0].state is State.DOWN)
        await trio.sleep(3)  # of the clock that jumps: it is in a long pause by now
        began = trio.current_time()
        world.engine.stopping.set()
        await rules.ended()
        assert trio.current_time() - began < 0.1
    taken.close()


def _listens(world: World) -> bool:
    memory: Any = world.engine.network.transports["memory"]
    return "client" in memory.listeners


async def up(work: Work) -> None:
    await settled(lambda: work.state is State.UP, 60)


# --- who it is


@pytest.mark.parametrize("kind", [raw, local])
async def test_the_far_end_is_told_who_connected_and_a_header_that_came_is_passed_on(world: World, kind):
    server = await serving(world)
    who = NetworkPeer("192.0.2.7", 4711)
    async with world.agent(), at_work(world, kind(proxy_protocol="v2", accept_proxy=True)):
        client = await dial(world)
        await client.send_all(header(who, NetworkPeer("192.0.2.1", 443)) + b"question")
        neighbour = await server.accept()
        assert await read_header(neighbour) == who
        assert await neighbour.receive_some() == b"question"
        client.close()
        neighbour.close()


@pytest.mark.parametrize("kind", [raw, local])
async def test_who_sends_no_header_where_one_is_due_is_reset(world: World, kind):
    async with world.agent(), at_work(world, kind(accept_proxy=True)):
        client = await dial(world)
        await client.send_all(b"GET / HTTP/1.1\r\n\r\n")
        assert await is_reset(client)


async def test_a_remote_rule_tells_who_connected_at_the_agents(world: World):
    server = await serving(world)
    rule = RemoteRule(
        listen=StreamEnd(parse("memory:far")),
        connect=StreamEnd(parse("memory:server")),
        target="memory:agent",
        proxy_protocol="v2",
    )
    async with world.agent(), at_work(world, NamedRule("remote", REMOTE, rule)) as rules:
        await up(rules.works["remote"])
        client = await dial(world, "memory:far")
        await client.send_all(b"question")
        neighbour = await server.accept()
        await read_header(neighbour)
        assert await neighbour.receive_some() == b"question"
        client.close()
        neighbour.close()


async def test_a_far_end_that_takes_no_header_is_not_left_open(world: World, monkeypatch: pytest.MonkeyPatch):
    server = await serving(world)
    monkeypatch.setattr("vsockfwd.transport.memory.CAPACITY", 0)
    async with at_work(world, raw(proxy_protocol="v2")):
        gone = await dial(world)
        (await server.accept()).abort()
        assert await is_reset(gone)
        client = await dial(world)
        (closed,) = world.reported(Closed)
        assert closed.outcome.ending is Ending.RESET
        assert "telling it who connects" in closed.outcome.why
        neighbour = await server.accept()
        await trio.testing.wait_all_tasks_blocked()
    with trio.fail_after(5):
        assert await is_reset(client)
        assert await is_reset(neighbour)
