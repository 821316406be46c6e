"""What stands at the destination already: left, kept, compared, taken from, written into, removed; and only that."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from plugins.copy.tests.world import MIB, World, snapshot
from vsockfwd.plugin import Engine, FileDone, Summary
from vsockfwd_copy.account import Totals
from vsockfwd_copy.command import _carry_out
from vsockfwd_copy.locations import plan
from vsockfwd_copy.messages import BLOCK
from vsockfwd_copy.options import Options
from vsockfwd_copy.standing import Standing

BYTES = random.Random(11).randbytes(2 * MIB + 4096)


async def carried(world: World, towards: str, name: str, **options: Any) -> Totals:
    """What copying one file to the same name came to."""
    target = f"[{world.address}]:"
    words = (name, target + name) if towards == "put" else (target + name, name)
    world.events.clear()
    (copied,) = await _carry_out(world.engine, plan(words), Options(**options), ())
    assert copied.error is None
    return copied.totals


def done(world: World) -> dict[str, str]:
    """What became of each file, by its last name."""
    return {event.name.rpartition("/")[2]: event.done for event in world.reported(FileDone) if not event.error}


# --- left alone, kept ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2 * MIB])
async def test_no_clobber_leaves_whatever_stands_there(world: World, towards: str, size: int) -> None:
    tree, there = world.source(towards) / "tree", world.sink(towards) / "tree"
    for folder in (tree, there):
        folder.mkdir()
    for name in ("file", "to-link", "new"):
        (tree / name).write_bytes(bytes(size))
    (tree / "link").symlink_to("file")
    (there / "file").write_text("as it was")
    (there / "link").write_text("no link")
    (there / "to-link").symlink_to("nowhere")
    before = snapshot(there)
    assert await world.carry(towards, "tree/.", "tree", recursive=True, no_clobber=True) == 0
    after = snapshot(there)
    assert {path: after[path] for path in before if path} == {path: before[path] for path in before if path}
    assert after[b"new"][3] == bytes(size)
    assert done(world) == {"file": "kept", "link": "kept", "to-link": "kept", "new": "new"}
    (summary,) = world.reported(Summary)
    assert (summary.files, summary.kept, summary.bytes) == (1, 3, size)


@pytest.mark.parametrize("size", [3, 2 * MIB])
@pytest.mark.parametrize("options", [{}, {"delta": True}, {"hard_links": True}], ids=str)
async def test_a_backup_is_what_stood_there(world: World, towards: str, size: int, options: dict[str, bool]) -> None:
    tree, there = world.source(towards) / "tree", world.sink(towards) / "tree"
    for folder in (tree, there):
        folder.mkdir()
    (tree / "file").write_bytes(BYTES[:size])
    os.link(tree / "file", tree / "second")
    (tree / "link").symlink_to("file")
    for name in ("file", "second", "link"):
        (there / name).write_text(f"old {name}")
    (there / "file.bak").write_text("older")
    assert await world.carry(towards, "tree/.", "tree", recursive=True, backup=b".bak", **options) == 0
    assert {path.name: path.read_text() for path in there.glob("*.bak")} == {
        f"{name}.bak": f"old {name}" for name in ("file", "second", "link")
    }
    assert snapshot(there / "file") == snapshot(tree / "file")
    assert (there / "link").is_symlink()


@pytest.mark.parametrize("size", [3, 2 * MIB])
async def test_a_backup_that_cannot_be_made_fails_the_file_and_leaves_it(world: World, towards: str, size: int) -> None:
    (world.source(towards) / "file").write_bytes(BYTES[:size])
    (world.sink(towards) / "file").write_text("as it was")
    (world.sink(towards) / "file~").mkdir()
    assert await world.carry(towards, "file", "", backup=b"~") != 0
    assert (world.sink(towards) / "file").read_text() == "as it was"


async def test_a_backup_that_is_the_same_file_already_leaves_no_temporary(world: World, towards: str) -> None:
    (world.source(towards) / "file").write_text("new")
    (world.sink(towards) / "file").write_text("old")
    os.link(world.sink(towards) / "file", world.sink(towards) / "file~")
    assert await world.carry(towards, "file", "", backup=b"~") == 0
    assert (world.sink(towards) / "file~").read_text() == "old"
    assert len(os.listdir(world.sink(towards))) == 2 + (world.sink(towards) is world.tmp)


# --- in place, on disk -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"delta": True}, {"checksum": True}], ids=str)
@pytest.mark.parametrize("old", [1, 5 * MIB])
async def test_inplace_writes_into_the_file_itself(
    world: World, towards: str, old: int, options: dict[str, bool]
) -> None:
    source, sink = world.source(towards), world.sink(towards)
    sparse(source / "file", 4 * MIB, (0, MIB), (2 * MIB + 777, MIB))
    (sink / "file").write_bytes(os.urandom(old))
    (source / "small").write_text("small")
    (sink / "small").write_text("longer than that")
    inode = (sink / "file").stat().st_ino
    assert await world.carry(towards, "file", "small", "", inplace=True, **options) == 0
    assert (sink / "file").stat().st_ino == inode
    for name in ("file", "small"):
        assert snapshot(sink / name) == snapshot(source / name)
    assert (sink / "file").stat().st_blocks * 512 < 3 * MIB, "the holes were not punched"


async def test_inplace_replaces_a_symlink_and_never_writes_through_it(world: World, towards: str) -> None:
    tree, there = world.source(towards) / "tree", world.sink(towards) / "tree"
    for folder in (tree, there):
        folder.mkdir()
    (tree / "file").write_text("new")
    (there / "mine").write_text("mine")
    (there / "file").symlink_to("mine")
    assert await world.carry(towards, "tree/.", "tree", recursive=True, inplace=True) == 0
    assert not (there / "file").is_symlink()
    assert ((there / "file").read_text(), (there / "mine").read_text()) == ("new", "mine")


async def test_fsync_has_it_on_disk_before_it_has_its_name(
    world: World, towards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[bool, list[str]]] = []
    sync, there = os.fsync, world.sink(towards) / "tree"

    def watched(fd: int) -> None:
        synced.append((os.path.isdir(f"/proc/self/fd/{fd}"), os.listdir(there)))
        sync(fd)

    monkeypatch.setattr("os.fsync", watched)
    (world.source(towards) / "tree").mkdir()
    (world.source(towards) / "tree" / "file").write_bytes(BYTES)
    assert await world.carry(towards, "tree", "", recursive=True) == 0
    assert synced == []
    (there / "file").unlink()
    assert await world.carry(towards, "tree", "", recursive=True, fsync=True) == 0
    assert synced == [(False, []), (True, ["file"])]


# --- compared --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 2 * MIB])
async def test_update_skips_what_has_its_size_and_mtime(world: World, towards: str, size: int) -> None:
    source, sink = world.source(towards) / "file", world.sink(towards) / "file"
    source.write_bytes(bytes(size))
    assert (await carried(world, towards, "file", update=True)).new == 1
    os.utime(sink, ns=(0, source.stat().st_mtime_ns))
    sink.chmod(0o600)
    totals = await carried(world, towards, "file", update=True)
    assert (totals.unchanged, totals.carried, totals.bytes) == (1, 0, 0)
    assert sink.stat().st_mode == source.stat().st_mode, "permissions are freshened all the same"
    os.utime(sink, ns=(0, source.stat().st_mtime_ns + 1))
    assert (await carried(world, towards, "file", update=True)).replaced == 1
    os.truncate(sink, size + 1)
    os.utime(sink, ns=(0, source.stat().st_mtime_ns))
    assert (await carried(world, towards, "file", update=True)).replaced == 1
    assert snapshot(sink) == snapshot(source)


@pytest.mark.parametrize("size", [0, 1, 2 * MIB + 1])
async def test_checksum_skips_what_has_its_content(world: World, towards: str, size: int) -> None:
    source, sink = world.source(towards) / "file", world.sink(towards) / "file"
    source.write_bytes(BYTES[:size])
    sink.write_bytes(BYTES[:size])
    inode = sink.stat().st_ino
    totals = await carried(world, towards, "file", checksum=True)
    assert (totals.unchanged, totals.carried) == (1, 0)
    assert sink.stat().st_ino == inode
    assert snapshot(sink) == snapshot(source), "mode and mtime are made the same"
    if size:
        sink.write_bytes(changed(size - 1, 1)(BYTES[:size]))
        os.utime(sink, ns=(0, source.stat().st_mtime_ns))
        assert (await carried(world, towards, "file", checksum=True)).replaced == 1
        assert snapshot(sink) == snapshot(source)


async def test_a_symlink_that_is_the_same_is_unchanged(world: World, towards: str) -> None:
    for where, target in ((world.source(towards), "same"), (world.sink(towards), "same")):
        (where / "tree").mkdir()
        (where / "tree" / "link").symlink_to(target)
        (where / "tree" / "other").symlink_to(where)
    assert await world.carry(towards, "tree/.", "tree", recursive=True, checksum=True) == 0
    assert done(world) == {"link": "unchanged", "other": "replaced"}


def changed(at: int, length: int) -> Callable[[bytes], bytes]:
    return lambda old: old[:at] + bytes(byte ^ 0xFF for byte in old[at : at + length]) + old[at + length :]


EDITS: dict[str, tuple[Callable[[bytes], bytes], int]] = {
    "nothing": (lambda old: old, 0),
    "a byte": (changed(MIB // 2 + 5, 1), BLOCK),
    "across a block's edge": (changed(3 * BLOCK - 1, 2), 2 * BLOCK),
    "the first and the last byte": (lambda old: changed(len(old) - 1, 1)(changed(0, 1)(old)), 2 * BLOCK),
    "grown by a little": (lambda old: old + b"more", BLOCK),
    "grown by blocks": (lambda old: old + BYTES[: 2 * BLOCK], 3 * BLOCK),
    "shrunk to a block's edge": (lambda old: old[: 5 * BLOCK], 0),
    "shrunk to somewhere": (lambda old: old[: 5 * BLOCK + 77], 0),
    "shrunk to one byte": (lambda old: old[:1], 1),
    "everything": (changed(0, 4 * MIB), 4 * MIB),
}


@pytest.mark.parametrize(("edit", "most"), EDITS.values(), ids=EDITS)
async def test_delta_sends_the_blocks_that_changed(
    world: World, towards: str, edit: Callable[[bytes], bytes], most: int
) -> None:
    old = BYTES[: MIB + 12_345]
    (world.source(towards) / "file").write_bytes(edit(old))
    (world.sink(towards) / "file").write_bytes(old)
    totals = await carried(world, towards, "file", delta=True)
    assert snapshot(world.sink(towards) / "file") == snapshot(world.source(towards) / "file")
    assert totals.carried <= most
    assert (totals.unchanged, totals.replaced) == ((1, 0) if edit(old) == old else (0, 1))


def sparse(path: Path, size: int, *data: tuple[int, int]) -> None:
    with open(path, "wb") as file:
        file.truncate(size)
        for at, length in data:
            file.seek(at)
            file.write(BYTES[:length])


HOLES: dict[str, tuple[list[tuple[int, int]], list[tuple[int, int]], int]] = {
    "the same": ([(MIB, MIB)], [(MIB, MIB)], 0),
    "nothing but holes": ([], [], 0),
    "data where a hole was": ([(0, MIB), (3 * MIB, 5000)], [(0, MIB)], BLOCK),
    "a hole where data was": ([(0, MIB)], [(0, MIB), (3 * MIB + 7, MIB)], BLOCK),
    "at odd offsets": ([(12_345, MIB), (3 * MIB + 999, 7)], [(12_345, MIB), (4 * MIB + 3, 77)], 3 * BLOCK),
    "a hole inside a block": ([(0, 4096), (BLOCK - 4096, 8192)], [(0, 2 * BLOCK)], 2 * BLOCK),
}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(("new", "old", "most"), HOLES.values(), ids=HOLES)
async def test_delta_knows_holes_on_either_side(
    world: World, towards: str, new: list[tuple[int, int]], old: list[tuple[int, int]], most: int, inplace: bool
) -> None:
    source, sink = world.source(towards) / "file", world.sink(towards) / "file"
    sparse(source, 6 * MIB + 5, *new)
    sparse(sink, 6 * MIB + 5, *old)
    totals = await carried(world, towards, "file", delta=True, inplace=inplace)
    assert snapshot(sink) == snapshot(source)
    assert totals.carried <= most
    assert sink.stat().st_blocks <= source.stat().st_blocks + 16, "a hole was filled"
    assert totals.unchanged == (new == old)


async def test_what_stood_there_and_is_changed_meanwhile_fails_the_file(
    world: World, towards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = world.sink(towards) / "file"
    (world.source(towards) / "file").write_bytes(changed(0, 1)(BYTES))
    sink.write_bytes(BYTES)
    os.utime(sink, ns=(0, 0))
    told = Standing.told

    def late(self: Standing, number: int, size: int) -> Any:
        *slices, last = told(self, number, size)
        yield from slices
        sink.write_bytes(bytes(len(BYTES)))
        yield last

    monkeypatch.setattr(Standing, "told", late)
    code = await world.carry(towards, "file", "file", delta=True)
    assert code == 74
    assert world.failures() == {"file": "what stood in its place was changed meanwhile"}
    assert sink.read_bytes() == bytes(len(BYTES)), "somebody else's bytes were touched"


@pytest.mark.parametrize("where", ["os.preadv", "vsockfwd_copy.placing.Standing"])
async def test_what_stands_there_and_cannot_be_read_is_replaced_by_the_whole(
    world: World, towards: str, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    (world.source(towards) / "file").write_bytes(BYTES)
    (world.sink(towards) / "file").write_bytes(changed(0, 1)(BYTES))
    standing = (world.sink(towards) / "file").stat().st_ino
    preadv = os.preadv

    def refuse(*args: Any, **keywords: Any) -> int:
        if where == "os.preadv" and os.fstat(args[0]).st_ino != standing:
            return preadv(*args, **keywords)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(where, refuse)
    totals = await carried(world, towards, "file", delta=True)
    assert (totals.carried, totals.replaced) == (len(BYTES), 1)
    assert (world.sink(towards) / "file").read_bytes() == BYTES


async def test_where_blocks_can_be_shared_they_are_and_what_differs_is_written(
    world: World, towards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FICLONE is for file systems that few have; a copy of the whole stands in for what it does."""

    def clone_into(self: Standing, fd: int) -> bool:
        data = os.pread(self.fd, self.found.st_size, 0)
        return os.pwrite(fd, data, 0) == len(data)

    monkeypatch.setattr(Standing, "clone_into", clone_into)
    monkeypatch.setattr(Standing, "copy_into", None)
    source, sink = world.source(towards) / "file", world.sink(towards) / "file"
    sparse(source, 3 * MIB, (0, MIB), (2 * MIB + 5, 100))
    sink.write_bytes(BYTES)
    totals = await carried(world, towards, "file", delta=True)
    assert totals.carried <= BLOCK
    assert snapshot(sink) == snapshot(source)
    assert sink.stat().st_blocks * 512 < 3 * MIB // 2


async def test_without_copy_file_range_blocks_are_taken_by_hand(
    world: World, towards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> int:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr("os.copy_file_range", refuse)
    (world.source(towards) / "file").write_bytes(changed(MIB, 1)(BYTES))
    (world.sink(towards) / "file").write_bytes(BYTES)
    assert (await carried(world, towards, "file", delta=True)).carried == BLOCK
    assert snapshot(world.sink(towards) / "file") == snapshot(world.source(towards) / "file")


# --- removed ---------------------------------------------------------------------------------------------------------


def mirrored(source: Path, sink: Path) -> None:
    """A tree, and another that has more, less and other things of the same names."""
    tree, there = source / "tree", sink / "tree"
    for path in (tree / "sub", tree / "was-file", there / "sub/deep/er", there / "was-dir/x", there / "gone"):
        path.mkdir(parents=True)
    (tree / "same").write_text("same")
    (tree / "was-dir").write_text("a file now")
    (tree / "was-file" / "inner").write_text("inner")
    (tree / "large").write_bytes(BYTES[: 2 * MIB])
    (there / "same").write_text("same")
    (there / "was-file").write_text("a file")
    (there / "was-dir" / "x" / "y").write_text("y")
    (there / "sub" / "extra").write_text("extra")
    (there / "sub" / "deep" / "er" / "est").write_text("deep")
    (there / "gone" / "link").symlink_to("/")
    os.mkfifo(there / "fifo")


async def test_delete_makes_a_mirror(world: World, towards: str) -> None:
    mirrored(world.source(towards), world.sink(towards))
    (world.sink(towards) / "beside").write_text("not in the tree")
    assert await world.carry(towards, "tree", "", recursive=True, delete=True, checksum=True) == 0
    assert snapshot(world.sink(towards) / "tree") == snapshot(world.source(towards) / "tree")
    assert (world.sink(towards) / "beside").exists()
    removed = sorted(event.name for event in world.reported(FileDone) if event.done == "removed")
    assert [name.rpartition("tree/")[2] for name in removed] == [
        "fifo", "gone", "gone/link", "sub/deep", "sub/deep/er", "sub/deep/er/est", "sub/extra", "was-dir", "was-dir/x",
        "was-dir/x/y", "was-file",
    ]  # fmt: skip
    (summary,) = world.reported(Summary)
    assert summary.removed == 11


@pytest.mark.parametrize("options", [{}, {"checksum": True}, {"delta": True}, {"update": True}], ids=str)
async def test_a_dry_run_changes_nothing_and_says_exactly_what_the_real_one_does(
    world: World, towards: str, options: dict[str, bool]
) -> None:
    source, sink = world.source(towards), world.sink(towards)
    mirrored(source, sink)
    (sink / "tree" / "large").write_bytes(BYTES[:MIB])
    (source / "tree" / "link").symlink_to("same")
    os.link(source / "tree" / "large", source / "tree" / "z-large")
    os.link(source / "tree" / "same", source / "tree" / "z-same")
    os.link(sink / "tree" / "same", sink / "tree" / "z-same")
    os.mkfifo(source / "tree" / "fifo")
    before = snapshot(sink)
    lists = []
    for dry_run in (True, False):
        code = await world.carry(
            towards, "tree", "", recursive=True, delete=True, hard_links=True, dry_run=dry_run, **options
        )
        assert code == 23, "a FIFO is not copied"
        told = world.reported(FileDone)
        lists.append(sorted((event.name, event.bytes, event.error, event.done) for event in told))
        assert {event.dry_run for event in told if not event.error} == {dry_run}
        (summary,) = world.reported(Summary)
        assert summary.dry_run is dry_run
        assert (snapshot(sink) == before) is dry_run
    assert lists[0] == lists[1]


async def test_delete_leaves_what_the_filters_leave_out(world: World, towards: str) -> None:
    source, sink = world.source(towards), world.sink(towards)
    mirrored(source, sink)
    (source / "tree" / "a.o").write_text("not copied")
    (sink / "tree" / "sub" / "b.o").write_text("not removed")
    exclude = (b"*.o", b"/gone", b"deep/")
    assert await world.carry(towards, "tree", "", recursive=True, delete=True, exclude=exclude) == 0
    left = {os.fspath(path.relative_to(sink / "tree")) for path in (sink / "tree").rglob("*")}
    assert left == {
        "same", "was-dir", "was-file", "was-file/inner", "large", "sub", "sub/b.o", "gone", "gone/link", "sub/deep",
        "sub/deep/er", "sub/deep/er/est",
    }  # fmt: skip


async def test_delete_removes_nothing_for_what_could_not_be_read(
    world: World, towards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, sink = world.source(towards), world.sink(towards)
    (source / "tree" / "locked").mkdir(parents=True)
    (source / "tree" / "file").write_text("x")
    (sink / "tree" / "locked").mkdir(parents=True)
    (sink / "tree" / "locked" / "precious").write_text("precious")
    (sink / "tree" / "file").mkdir()
    (sink / "tree" / "file" / "precious").write_text("precious")
    scan, locked = os.scandir, os.stat(source / "tree" / "locked").st_ino

    def refuse(fd: Any) -> Any:
        if isinstance(fd, int) and os.fstat(fd).st_ino == locked:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return scan(fd)

    (source / "tree" / "file").unlink()
    os.mkfifo(source / "tree" / "file")
    with monkeypatch.context() as patched:
        patched.setattr("os.scandir", refuse)
        assert await world.carry(towards, "tree", "", recursive=True, delete=True) == 23
    assert (sink / "tree" / "locked" / "precious").exists()
    assert (sink / "tree" / "file" / "precious").exists(), "what is not copied is no reason to remove"


async def test_delete_leaves_backups_of_what_came(world: World, towards: str) -> None:
    tree, there = world.source(towards) / "tree", world.sink(towards) / "tree"
    for folder in (tree, there):
        folder.mkdir()
    (tree / "file").write_text("new")
    (there / "file").write_text("old")
    assert await world.carry(towards, "tree/.", "tree", recursive=True, delete=True, backup=b"~") == 0, world.failures()
    assert sorted(there.iterdir()) == [there / "file", there / "file~"]


async def test_delete_is_for_one_source_whose_content_goes_into_the_destination(world: World, towards: str) -> None:
    for name in ("a", "b"):
        (world.source(towards) / name).mkdir()
        (world.source(towards) / name / name).write_text(name)
    (world.sink(towards) / "into").mkdir()
    assert await world.carry(towards, "a/.", "b/.", "into", recursive=True, delete=True) == 73
    assert os.listdir(world.sink(towards) / "into") == []
    assert await world.carry(towards, "a/.", "b/.", "into", recursive=True) == 0
    assert sorted(os.listdir(world.sink(towards) / "into")) == ["a", "b"]


async def test_delete_goes_as_deep_as_a_tree_is(world: World, towards: str) -> None:
    (world.source(towards) / "tree").mkdir()
    fd = os.open(world.sink(towards), os.O_RDONLY)
    for name in ["tree", *["d" * 50] * 120]:
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    assert await world.carry(towards, "tree", "", recursive=True, delete=True) == 0
    assert os.listdir(world.sink(towards) / "tree") == []
    (summary,) = world.reported(Summary)
    assert summary.removed == 121


async def test_two_copies_to_one_destination_at_once_leave_one_of_them_whole(world: World, towards: str) -> None:
    for name, byte in (("a", b"a"), ("b", b"b")):
        (world.source(towards) / name).write_bytes(byte * 3 * MIB)
    target = f"[{world.address}]:"
    async with trio.open_nursery() as nursery:
        for name in ("a", "b"):
            words = (name, target + "one") if towards == "put" else (target + name, "one")
            nursery.start_soon(_carry_out, Engine(), plan(words), Options(), ())
    found = (world.sink(towards) / "one").read_bytes()
    assert found in (b"a" * 3 * MIB, b"b" * 3 * MIB)
