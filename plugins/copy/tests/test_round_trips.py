"""What is copied arrives as it was, whichever way it goes."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from plugins.copy.tests.world import MIB, World, snapshot
from vsockfwd.plugin import FileDone, Moved, Planned, Summary
from vsockfwd_copy.messages import BATCH_LIMIT, CHUNK_LIMIT, SMALL_LIMIT
from vsockfwd_copy.sending import READ_SIZE

BYTES = random.Random(7).randbytes(2 * MIB)

EDGES = (SMALL_LIMIT, CHUNK_LIMIT, 2 * CHUNK_LIMIT)
SIZES = [0, 1, 4096, *(edge + by for edge in EDGES for by in (-1, 0, 1)), READ_SIZE + 1]

NAMES = [
    b"plain", b"\xff\xfe\x80", b"new\nline", b"-r", b"with space", b"*", b"back\\slash", b"a:b", b"file:stream",
    "ä".encode(), "a\u0308".encode(), b"n" * 255, b"\x1b[31m", b".hidden", b"..."
]  # fmt: skip


def content(size: int) -> bytes:
    return (BYTES * (size // len(BYTES) + 1))[:size]


@pytest.mark.parametrize("size", SIZES)
async def test_a_file_of_any_size_arrives_whole(world: World, towards: str, size: int) -> None:
    (world.source(towards) / "file").write_bytes(content(size))
    assert await world.carry(towards, "file", "") == 0
    assert (world.sink(towards) / "file").read_bytes() == content(size)
    assert [event.bytes for event in world.reported(FileDone)] == [size]


async def test_files_of_all_sizes_arrive_in_one_copy_with_their_modes_and_times(world: World, towards: str) -> None:
    tree = world.source(towards) / "tree"
    for number, size in enumerate(SIZES):
        path = tree / f"level{number % 3}" / "deeper" / f"file{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(size))
        path.chmod((0o600, 0o644, 0o755, 0o000, 0o4755)[number % 5])
        os.utime(path, ns=(0, 1_600_000_000_123_456_789 + number))
    (tree / "empty").mkdir(mode=0o750)
    (tree / "empty").chmod(0o750)
    (tree / "dangling").symlink_to("nowhere/at all")
    (tree / "out").symlink_to("/etc")
    os.utime(tree / "level0", ns=(0, -1_000_000_001))  # before 1970
    os.utime(tree / "level1", ns=(0, 5_000_000_000_000_000_007))  # after 2038
    (tree / "level2").chmod(0o555)
    assert await world.carry(towards, "tree", "", recursive=True) == 0
    assert snapshot(world.sink(towards) / "tree") == snapshot(tree)
    copied = {path.name: path for path in (world.sink(towards) / "tree").rglob("*")}
    assert not any(path.lstat().st_mode & 0o7000 for path in copied.values()), "a setuid bit came along"
    again = await world.carry(towards, "tree", "", recursive=True)
    assert (again, snapshot(world.sink(towards) / "tree")) == (0, snapshot(tree)), "the second copy is like the first"


async def test_every_name_that_a_file_system_takes_arrives_as_its_bytes(world: World, towards: str) -> None:
    tree = os.fsencode(world.source(towards) / "tree")
    for name in NAMES:
        os.makedirs(os.path.join(tree, b"d" + name[:200]), exist_ok=True)
        for path in (os.path.join(tree, name), os.path.join(tree, b"d" + name[:200], name)):
            os.mknod(path)
    assert await world.carry(towards, "tree", "", recursive=True) == 0
    assert snapshot(world.sink(towards) / "tree") == snapshot(tree)


async def test_names_on_the_command_line_need_not_be_text(world: World, towards: str) -> None:
    name = os.fsdecode(b"\xff -n\n")
    (world.source(towards) / name).write_bytes(b"x")
    assert await world.carry(towards, "./" + name, "") == 0
    assert (world.sink(towards) / name).read_bytes() == b"x"


def sparse(path: Path, size: int, *data: tuple[int, int]) -> None:
    with open(path, "wb") as file:
        file.truncate(size)
        for at, length in data:
            file.seek(at)
            file.write(content(length))


@pytest.mark.parametrize(
    ("size", "data"),
    [
        pytest.param(64 * MIB, [(0, 5)], id="hole at the end"),
        pytest.param(64 * MIB, [(64 * MIB - 3, 3)], id="hole at the start"),
        pytest.param(64 * MIB, [], id="nothing but a hole"),
        pytest.param(1 << 40, [(1 << 39, 1)], id="one byte in a tebibyte"),
        pytest.param(10 * MIB + 777, [(12345, 67890), (3 * MIB + 1, 2 * MIB), (9 * MIB - 1, 2)], id="odd offsets"),
    ],
)
async def test_holes_are_neither_sent_nor_filled(
    world: World, towards: str, size: int, data: list[tuple[int, int]]
) -> None:
    sparse(world.source(towards) / "holes", size, *data)
    assert await world.carry(towards, "holes", "") == 0
    arrived = world.sink(towards) / "holes"
    assert arrived.stat().st_size == size
    assert arrived.stat().st_blocks * 512 <= sum(length for _, length in data) + 4096 * 2 * len(data)
    fd = os.open(arrived, os.O_RDONLY)
    for at, length in data:
        assert os.pread(fd, length, at) == content(length)
        assert not any(os.pread(fd, 4096, at + length)), "a hole holds something"
    os.close(fd)


async def test_a_thousand_files_arrive_in_few_batches(world: World, towards: str) -> None:
    tree = world.source(towards) / "tree"
    for number in range(1000):
        path = tree / f"{number % 10}" / f"{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % number * 100)
    assert await world.carry(towards, "tree", "new", recursive=True) == 0
    assert snapshot(world.sink(towards) / "new") == snapshot(tree)
    (summary,) = world.reported(Summary)
    assert (summary.files, summary.failed) == (1000, 0)
    assert summary.bytes == sum(event.bytes for event in world.reported(Moved))
    assert len(world.reported(Moved)) <= summary.bytes / BATCH_LIMIT + 1000 * 256 / BATCH_LIMIT + 2


async def test_more_large_files_than_the_window_has_room_for(
    world: World, towards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vsockfwd_copy.sending.WINDOW", 3)
    monkeypatch.setattr("vsockfwd_copy.walking.BATCH_LIMIT", 500)
    tree = world.source(towards) / "tree"
    tree.mkdir()
    for number in range(20):
        (tree / f"{number}").write_bytes(content(SMALL_LIMIT + 1 + number))
    assert await world.carry(towards, "tree", "", recursive=True) == 0
    assert snapshot(world.sink(towards) / "tree") == snapshot(tree)


async def test_a_tree_deeper_than_any_path_may_be_long(world: World, towards: str) -> None:
    def dive(root: Path, *, make: bool) -> int:
        fd = os.open(root, os.O_RDONLY)
        for _ in range(120):
            if make:
                os.mkdir(b"d" * 50, dir_fd=fd)
            below = os.open(b"d" * 50, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=fd)
            os.close(fd)
            fd = below
        return fd

    source = world.source(towards) / "deep"
    source.mkdir()
    fd = dive(source, make=True)
    os.close(os.open(b"bottom", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    assert await world.carry(towards, "deep", "", recursive=True) == 0
    fd = dive(world.sink(towards) / "deep", make=False)
    assert os.listdir(fd) == ["bottom"]
    os.close(fd)


async def test_the_plan_and_the_progress_add_up_to_the_summary(world: World, towards: str) -> None:
    (world.source(towards) / "big").write_bytes(content(20 * MIB))
    (world.source(towards) / "small").write_bytes(b"x")
    assert await world.carry(towards, "big", "small", "") == 0
    (summary,) = world.reported(Summary)
    assert (summary.files, summary.bytes, summary.failed) == (2, 20 * MIB + 1, 0)
    assert sum(event.bytes for event in world.reported(Moved)) == summary.bytes
    assert (world.reported(Planned)[-1].files, world.reported(Planned)[-1].bytes) == (2, summary.bytes)
