"""`vsockfwd_copy` as a library: what is there, and what is made and removed, without a copy."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from plugins.copy.tests.test_hostile_peers import becomes, script
from plugins.copy.tests.world import World
from vsockfwd.plugin import BadRequest, CannotCreate, DataError, NotFound, PeerBrokeProtocol, VsockfwdError
from vsockfwd_copy.looking import Seen
from vsockfwd_copy.messages import Kind, Progress
from vsockfwd_copy.options import Options
from vsockfwd_copy.removing import remove_tree
from vsockfwd_copy.target import open_target


async def test_what_is_there_is_told_as_it_is(world: World) -> None:
    (world.home / "file").write_text("four")
    os.utime(world.home / "file", ns=(0, -1_000_000_007))
    (world.home / "link").symlink_to("file")
    (world.home / "dangling").symlink_to("nowhere")
    os.mkfifo(world.home / "fifo")
    async with open_target(world.address) as target:
        status = await target.stat("file")
        assert (status.kind, status.size, status.mtime, status.links) == ("file", 4, -1_000_000_007, 1)
        assert (status.uid, status.user) == (os.geteuid(), status.user)
        assert stat.S_ISREG(status.mode)
        assert (await target.stat("link")).kind == "file"
        link = await target.stat("link", follow=False)
        assert (link.kind, link.target) == ("symlink", b"file")
        assert (await target.stat("")).kind == "directory"
        assert [(found.name, found.kind, found.target) for found in await target.list(world.home)] == [
            (b"dangling", "symlink", b"nowhere"),
            (b"fifo", "a FIFO", b""),
            (b"file", "file", b""),
            (b"link", "symlink", b"file"),
        ]
        for missing in (target.stat("dangling"), target.stat("nope"), target.list("nope")):
            with pytest.raises(NotFound):
                await missing
        with pytest.raises(VsockfwdError, match="not a directory"):
            await target.list("file")
        with pytest.raises(BadRequest, match="NUL"):
            await target.stat(b"a\0b")
        space = await target.space("file")
        assert 0 < space.available <= space.free <= space.size


async def test_a_directory_of_any_size_and_any_names_is_listed(world: World) -> None:
    names = sorted([b"%04d" % number + b"n" * 240 for number in range(1500)] + [b"\xff\n", b"-r", b"*"])
    for name in names:
        os.mknod(os.path.join(os.fsencode(world.home), name))
    async with open_target(world.address) as target:
        assert [found.name for found in await target.list("")] == names


async def test_a_walk_tells_all_below_and_follows_no_symlink(world: World) -> None:
    for name in ("a/x", "b/c/y", "b/z"):
        (world.home / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (world.home / "tree" / name).touch()
    (world.home / "tree" / "up").symlink_to("..")
    async with open_target(world.address) as target:
        found = [(entry.path, entry.status.kind) async for entry in target.walk("tree")]
    assert [path for path, _ in found] == [b"a", b"b", b"up", b"a/x", b"b/c", b"b/z", b"b/c/y"]
    assert dict(found)[b"up"] == "symlink"


async def test_directories_are_made(world: World) -> None:
    async with open_target(world.address) as target:
        await target.make_directory("one")
        await target.make_directory("a/b/c", parents=True)
        await target.make_directory("a/b/c", parents=True)
        with pytest.raises(CannotCreate, match="is there already"):
            await target.make_directory("one")
        with pytest.raises(NotFound):
            await target.make_directory("no/such")
    assert (world.home / "one").is_dir()
    assert (world.home / "a" / "b" / "c").is_dir()


async def test_what_is_removed_is_what_was_named(world: World) -> None:
    (world.home / "keep").mkdir()
    (world.home / "keep" / "file").touch()
    (world.home / "tree" / "sub").mkdir(parents=True)
    (world.home / "tree" / "sub" / "file").touch()
    (world.home / "tree" / "link").symlink_to("../keep")
    (world.home / "link").symlink_to("keep")
    async with open_target(world.address) as target:
        with pytest.raises(BadRequest, match="is a directory"):
            await target.remove("tree")
        assert await target.remove("tree", recursive=True) == 4
        assert await target.remove("link/", recursive=True) == 1
        assert await target.remove("keep/file") == 1
        for path in (".", "..", "keep/..", "/", ""):
            with pytest.raises(VsockfwdError):
                await target.remove(path)
        with pytest.raises(NotFound):
            await target.remove("nope")
    assert sorted(os.listdir(world.home)) == ["keep"]


async def test_a_tree_of_any_depth_is_removed_with_one_descriptor(world: World) -> None:
    fd = os.open(world.home, os.O_RDONLY)
    for name in ["deep", *["d" * 100] * 200]:
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    async with open_target(world.address) as target:
        assert await target.remove("deep", recursive=True) == 201
    assert os.listdir(world.home) == []


def test_a_tree_that_is_moved_while_it_is_removed_takes_nothing_else_along(tmp_path: Path) -> None:
    (tmp_path / "tree" / "a" / "b").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").touch()
    fd = os.open(tmp_path, os.O_RDONLY)
    before = len(os.listdir("/proc/self/fd"))

    def tell(path: bytes) -> None:
        if path == b"tree/a/b":
            (tmp_path / "tree" / "a").rename(tmp_path / "elsewhere" / "a")

    with pytest.raises(DataError, match="moved"):
        remove_tree(b"tree", fd, tell)
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(fd)
    assert (tmp_path / "elsewhere" / "precious").exists()


async def test_an_agent_that_says_something_else_is_told(world: World) -> None:
    for steps, asks in (
        ([(Kind.PROGRESS, Progress(1))], "what was not asked for"),
        ([(Kind.SEEN, b"\xc1")], "makes no sense"),
        ([b"data"], "what was not asked for"),
        ([(Kind.SEEN, Seen())], "said nothing"),
        ([], "said nothing"),
    ):
        becomes(world, script(steps))
        async with open_target(world.address) as target:
            with pytest.raises(PeerBrokeProtocol, match=asks):
                await target.stat("file")
            with pytest.raises(PeerBrokeProtocol):
                await target.space("file")


async def test_copies_return_what_they_came_to_and_run_beside_each_other(world: World) -> None:
    import trio

    for name in ("a", "b"):
        (world.here / name).write_text(name)
    async with open_target(world.address) as target:
        async with trio.open_nursery() as nursery:
            for name in ("a", "b"):
                nursery.start_soon(target.put, [name], name)
        copied = await target.get([Path("a"), b"b"], world.here / ".", Options(checksum=True))
        assert copied.check() is copied
        assert (copied.totals.unchanged, copied.totals.new, copied.totals.failed) == (2, 0, 0)
        assert (await target.put(["nope"], "x")).error is not None
