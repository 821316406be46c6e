"""Between two agents, and to many: each end verifies, and one that fails is told and stops no other."""

from __future__ import annotations

import os
from typing import Any

import pytest
import trio

from plugins.copy.tests.test_hostile_peers import becomes, entries, script, small
from plugins.copy.tests.world import MIB, World, snapshot
from vsockfwd.plugin import (
    Agent,
    CannotCreate,
    Engine,
    FileDone,
    Mode,
    Moved,
    PeerBrokeProtocol,
    Policy,
    SomeFailed,
    Summary,
    VsockfwdError,
    parse,
    serve_listeners,
)
from vsockfwd_copy import MODE
from vsockfwd_copy.command import _carry_out, copy
from vsockfwd_copy.locations import plan
from vsockfwd_copy.messages import BLOCK, Kind, Resolved, Result, Results, encode
from vsockfwd_copy.options import Options, Symlinks

BYTES = os.urandom(3 * MIB)


class Second:
    """Another agent, whose home is the same directory of this process: its places are absolute."""

    def __init__(self, world: World, name: str, **policy: Any) -> None:
        self.world = world
        self.place = world.tmp / name
        self.place.mkdir()
        self.address = f"unix:{world.tmp}/{name}.sock"
        self.agent = Agent(Engine(), {"copy": MODE}, Policy(os.geteuid(), **policy))

    async def start(self, nursery: trio.Nursery) -> None:
        listeners = await self.world.engine.network.listen(parse(self.address))
        nursery.start_soon(serve_listeners, listeners, self.agent.handle, print)


@pytest.fixture
async def second(world: World, nursery: trio.Nursery) -> Second:
    second = Second(world, "second")
    await second.start(nursery)
    return second


async def across(world: World, second: Second, *words: str, **options: Any) -> int:
    """Copy from the world's agent to a place of the second one's."""
    *sources, destination = words
    world.events.clear()
    froms = [f"[{world.address}]:{source}" for source in sources]
    with trio.fail_after(10):
        return await copy(
            world.engine, plan([*froms, f"[{second.address}]:{second.place}/{destination}"]), Options(**options)
        )


async def test_a_tree_goes_from_one_agent_to_another(world: World, second: Second) -> None:
    tree = world.home / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "small").write_text("small")
    (tree / "large").write_bytes(BYTES)
    (tree / "link").symlink_to("large")
    os.link(tree / "large", tree / "again")
    os.mkfifo(tree / "fifo")
    assert await across(world, second, "tree", "", recursive=True, hard_links=True) == 23
    assert world.failures() == {"tree/fifo": "is a FIFO, not copied"}
    (tree / "fifo").unlink()
    there = second.place / "tree"
    assert {path: state[3] for path, state in snapshot(there).items()} == {
        path: state[3] for path, state in snapshot(tree).items()
    }
    assert (there / "large").stat().st_nlink == 2
    (summary,) = world.reported(Summary)
    assert (summary.files, summary.failed) == (4, 1)
    assert sum(event.bytes for event in world.reported(Moved)) == len(BYTES) + 5
    assert os.listdir(world.here) == []


async def test_patterns_filters_and_deletion_hold_between_agents(world: World, second: Second) -> None:
    (world.home / "tree").mkdir()
    for name in ("a.txt", "b.txt", "tree/a.o", "tree/kept"):
        (world.home / name).write_text(name)
    assert await across(world, second, "*.txt", "") == 0
    assert sorted(os.listdir(second.place)) == ["a.txt", "b.txt"]
    (second.place / "tree").mkdir()
    (second.place / "tree" / "gone").write_text("gone")
    assert await across(world, second, "tree", "", recursive=True, delete=True, exclude=(b"*.o",)) == 0
    assert os.listdir(second.place / "tree") == ["kept"]
    assert [event.done for event in world.reported(FileDone)].count("removed") == 1


async def test_between_agents_only_what_changed_passes(world: World, second: Second) -> None:
    (world.home / "file").write_bytes(BYTES[:MIB] + b"x" + BYTES[MIB + 1 :])
    (second.place / "file").write_bytes(BYTES)
    words = [f"[{world.address}]:file", f"[{second.address}]:{second.place}/file"]
    (copied,) = await _carry_out(world.engine, plan(words), Options(delta=True), ())
    assert copied.totals.carried <= BLOCK
    assert (second.place / "file").read_bytes() == (world.home / "file").read_bytes()


async def test_one_agent_may_be_both(world: World) -> None:
    (world.home / "file").write_bytes(BYTES)
    assert await world.cp("@file", "@copy") == 0
    assert (world.home / "copy").read_bytes() == BYTES


async def test_a_destination_that_is_none_is_told_and_the_source_is_not_asked(world: World, second: Second) -> None:
    (world.home / "file").write_text("x")
    with pytest.raises(CannotCreate):
        await across(world, second, "file", "no/such/place")
    assert await across(world, second, "nope", "name") == 1
    assert os.listdir(second.place) == []


async def test_a_sender_that_breaks_the_rules_is_stopped_by_the_receiver_behind_us(
    world: World, second: Second
) -> None:
    becomes(world, script([entries(small(b"../x"))]))
    with pytest.raises(VsockfwdError) as caught:
        await across(world, second, "file", "")
    assert caught.value.exit_code in (74, 76)
    assert os.listdir(second.place) == []


async def test_a_receiver_that_answers_what_was_never_sent_is_told(world: World, second: Second) -> None:
    async def serve(call: Any) -> None:
        channel = await call.accept(Resolved(b"/somewhere"))
        await channel.receive()
        await channel.send_frames((Kind.RESULTS, encode(Results([Result(77)]))))
        await channel.send_end()

    (world.home / "file").write_text("x")
    second.agent.modes["copy"] = Mode("copy", "a hostile one", serve=serve)
    with pytest.raises(PeerBrokeProtocol, match="77"):
        await across(world, second, "file", "")


# --- many targets ----------------------------------------------------------------------------------------------------


async def to_all(world: World, *targets: Second, source: str = "file", **options: Any) -> int:
    """The same copy, into a directory that each of them has at the same path."""
    where = ",".join(f"[{target.address}]" for target in targets)
    world.events.clear()
    with trio.fail_after(10):
        return await copy(world.engine, plan([source, f"{where}:{world.home}/"]), Options(**options))


async def test_one_source_goes_to_many_targets(world: World, second: Second, nursery: trio.Nursery) -> None:
    third = Second(world, "third")
    await third.start(nursery)
    (world.here / "file").write_bytes(BYTES)
    targets = [f"[{world.address}]", f"[{second.address}]", f"[{third.address}]"]
    assert await copy(world.engine, plan(["file", f"{','.join(targets)}:{world.home}/"]), Options()) == 0
    assert (world.home / "file").read_bytes() == BYTES
    assert len(world.reported(Summary)) == 3


async def test_a_target_that_is_down_stops_no_other(world: World, second: Second) -> None:
    (world.here / "file").write_bytes(BYTES)
    down = Second(world, "down")
    with pytest.raises(SomeFailed) as caught:
        await to_all(world, second, down)
    assert "down.sock" in caught.value.line()
    assert caught.value.exit_code == 23
    assert (world.home / "file").read_bytes() == BYTES


async def test_where_all_targets_are_down_that_is_how_it_ends(world: World) -> None:
    (world.here / "file").write_text("x")
    down, also = Second(world, "down"), Second(world, "also")
    with pytest.raises(VsockfwdError) as alone:
        await to_all(world, down)
    with pytest.raises(VsockfwdError) as caught:
        await to_all(world, down, also)
    assert caught.value.exit_code == alone.value.exit_code != 23


async def test_a_target_that_refuses_fails_by_itself(world: World, second: Second, nursery: trio.Nursery) -> None:
    reader = Second(world, "reader", read_only=True)
    await reader.start(nursery)
    (world.here / "file").write_text("x")
    with pytest.raises(SomeFailed, match="read-only"):
        await to_all(world, reader, second)
    assert (world.home / "file").read_text() == "x"
    with pytest.raises(VsockfwdError, match="read-only"):
        await to_all(world, reader)
    assert await to_all(world, reader, dry_run=True) == 0


# --- a root of its own, and only to be read ------------------------------------------------------------------------


async def test_an_agents_root_is_all_there_is(world: World, nursery: trio.Nursery) -> None:
    top = world.tmp / "top"
    (top / "sub").mkdir(parents=True)
    (top / "sub" / "inside").write_text("inside")
    (world.tmp / "secret").write_text("secret")
    (top / "out").symlink_to(world.tmp / "secret")
    (top / "up").symlink_to("../secret")
    (top / "away").symlink_to(world.tmp)
    rooted = Second(world, "rooted", root=os.fspath(top))
    await rooted.start(nursery)
    target = f"[{rooted.address}]:"

    async def cp(*words: str, **options: Any) -> int:
        world.events.clear()
        return await copy(world.engine, plan(words), Options(**options))

    assert await cp(target + "/sub/inside", target + "sub/../../../../sub/inside", ".") == 23, "one name for two"
    assert (world.here / "inside").read_text() == "inside"
    for path in ("out", "up", "../secret", f"{world.tmp}/secret", "away/secret"):
        assert await cp(target + path, "got") == 1
        assert not (world.here / "got").exists()
    assert await cp(target + "/", "all", recursive=True) == 0
    assert os.readlink(world.here / "all" / "up") == "../secret"
    (world.here / "file").write_text("mine")
    assert await cp("file", target + "../../new") == 0
    assert (top / "new").read_text() == "mine"
    for path in ("out", "away/x", "new2/../../../made"):
        with pytest.raises(VsockfwdError):
            await cp("file", target + path, mkpath=path.endswith("made"))
    assert await cp("file", target + "up") == 0, "../secret is /secret from within"
    assert (top / "secret").read_text() == "mine"
    assert (world.tmp / "secret").read_text() == "secret"
    assert not list(world.tmp.rglob("made"))
    with pytest.raises(VsockfwdError, match="-L cannot be held to --root"):
        await cp(target + "sub", ".", symlinks=Symlinks.ALL, recursive=True)
