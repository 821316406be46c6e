"""A file that cannot be copied fails by itself, with its reason; the others arrive."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, cast

import pytest
import trio

from plugins.copy.tests.world import MIB, World, snapshot
from tests.faults.injector import injected
from vsockfwd.plugin import Channel, Code, Moved, Reset, ThreadChannel, ignore
from vsockfwd_copy.account import Account
from vsockfwd_copy.arriving import Arriving
from vsockfwd_copy.arriving import _open_ours as open_ours
from vsockfwd_copy.asked import Expected
from vsockfwd_copy.destination import resolve
from vsockfwd_copy.directories import Directory, OpenDirectories
from vsockfwd_copy.incoming import Arrivals
from vsockfwd_copy.landing import Landing
from vsockfwd_copy.messages import (
    BLOCK,
    Blocks,
    Chunk,
    Entries,
    GiveUp,
    Large,
    Lost,
    Piece,
    Range,
    Small,
    block_digest,
    checksum,
    digest_of,
)
from vsockfwd_copy.options import LandOptions, SendOptions
from vsockfwd_copy.reading import Comparison, Reading
from vsockfwd_copy.roots import Root
from vsockfwd_copy.sending import Outgoing, send
from vsockfwd_copy.standing import Standing
from vsockfwd_copy.walking import Tree

NOBODY = 65534


@contextlib.contextmanager
def as_nobody(*owned: Path) -> Iterator[None]:
    """Without root's rights, which would open everything; the paths are given to who is left."""
    if os.geteuid() != 0:
        yield
        return
    for path in owned:
        os.chown(path, NOBODY, -1)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@contextlib.contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """A file system that is full, as far as a test can have one: EFBIG beyond `size` bytes of a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_special_files_are_named_and_skipped_without_being_opened(world: World, towards: str) -> None:
    tree = world.source(towards) / "tree"
    tree.mkdir()
    (tree / "file").write_text("x")
    os.mkfifo(tree / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(tree / "socket"))
        assert await world.carry(towards, "tree", "", recursive=True) == 23
    assert {name.rpartition("/")[2]: why for name, why in world.failures().items()} == {
        "fifo": "is a FIFO, not copied",
        "socket": "is a socket, not copied",
    }
    assert os.listdir(world.sink(towards) / "tree") == ["file"]


@pytest.mark.parametrize("recursive", [False, True])
async def test_special_files_on_the_command_line_are_skipped_too(world: World, towards: str, recursive: bool) -> None:
    os.mkfifo(world.source(towards) / "fifo")
    assert await world.carry(towards, "fifo", "/dev/null", "", recursive=recursive) == 23
    assert list(world.failures().values()) == ["is a FIFO, not copied", "is a device, not copied"]


async def test_an_existing_special_file_is_not_replaced(world: World, towards: str) -> None:
    (world.source(towards) / "tree").mkdir()
    (world.source(towards) / "tree" / "name").write_text("x")
    (world.sink(towards) / "tree").mkdir()
    os.mkfifo(world.sink(towards) / "tree" / "name")
    assert await world.carry(towards, "tree", "", recursive=True) == 23
    assert (world.sink(towards) / "tree" / "name").is_fifo()


async def test_a_symlink_in_the_way_is_replaced_and_never_written_through(world: World, towards: str) -> None:
    outside = world.tmp / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    tree, there = world.source(towards) / "tree", world.sink(towards) / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "file").write_text("new")
    (tree / "sub" / "file").write_text("new")
    there.mkdir()
    (there / "file").symlink_to(outside / "file")
    (there / "sub").symlink_to(outside)
    assert await world.carry(towards, "tree", "", recursive=True) == 23
    assert (there / "file").read_text() == "new"
    assert not (there / "file").is_symlink()
    assert (outside / "file").read_text() == "mine"
    assert {name.rpartition("tree/")[2] for name in world.failures()} == {"sub", "sub/file"}


async def test_one_source_of_two_is_missing(world: World, towards: str) -> None:
    (world.source(towards) / "file").write_text("x")
    assert await world.carry(towards, "nope", "file", "") == 23
    assert world.failures() == {"nope": "cannot be read: no such file or directory"}
    assert (world.sink(towards) / "file").read_text() == "x"


async def test_a_full_disk_fails_the_file_and_says_so(world: World, towards: str) -> None:
    (world.source(towards) / "big").write_bytes(bytes(range(256)) * 4096 * 12)
    (world.source(towards) / "small").write_text("x")
    (world.sink(towards) / "big").write_text("as it was")
    with files_no_larger_than(3 * MIB):
        assert await world.carry(towards, "big", "") == 74
        assert await world.carry(towards, "big", "small", "") == 23
    assert list(world.failures().values()) == ["cannot be written: file too large"]
    assert (world.sink(towards) / "big").read_text() == "as it was"
    assert (world.sink(towards) / "small").read_text() == "x"


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system of its own with so many bytes."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if done.returncode:
        pytest.skip("no file system may be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


async def test_no_room_is_known_before_the_first_byte(world: World, towards: str) -> None:
    source = world.source(towards)
    for name, size in (("big", 3 * MIB), ("first", MIB), ("second", MIB), ("third", MIB)):
        (source / name).write_bytes(os.urandom(size))
    os.truncate(source / "third", 50 * MIB)  # a hole takes no room
    with small_disk(world.tmp / "disk", 5 * MIB // 2) as disk:
        (disk / "big").write_text("as it was")
        assert await world.carry(towards, "big", f"{disk}/big") == 74
        (why,) = world.failures().values()
        assert why.startswith(f"needs {3 * MIB} bytes where ")
        assert sum(event.bytes for event in world.reported(Moved)) == 0
        assert (disk / "big").read_text() == "as it was"
        assert await world.carry(towards, "first", "second", "third", f"{disk}") == 23
        assert set(world.failures()) == {"third"}
        assert sorted(path.name for path in disk.iterdir()) == ["big", "first", "second"]


def test_room_that_a_file_has_taken_is_not_counted_twice(tmp_path: Path) -> None:
    def large(name: bytes, size: int) -> Large:
        return Large(name, 0o644, 0, size, allocated=size)

    data = memoryview(os.urandom(MIB))
    with small_disk(tmp_path / "disk", 9 * MIB // 2) as disk:
        place = resolve(os.fsencode(disk), sources=3, options=LandOptions(), root=Root(b"/"))
        landing = Landing(place, LandOptions(), Expected(3))
        landing.announce(Entries(1, [large(b"a", 3 * MIB)]))
        for at in (0, MIB):
            landing.receive(Chunk(1, at, MIB, checksum(data)), data)
        landing.announce(Entries(2, [large(b"b", MIB), large(b"c", MIB)]))
        answers = landing.take_answers()
        assert [want.file for want in answers.wants] == [1, 2], "b has room, and c has not"
        assert [(result.entry, result.failure and result.failure.code) for result in answers.results] == [
            (3, Code.NO_SPACE)
        ]
        landing.close()
        place.close()


@pytest.mark.parametrize("options", [{}, {"inplace": True}, {"delta": True}], ids=str)
async def test_a_disk_that_fills_up_meanwhile_is_clean_afterwards(
    world: World, towards: str, options: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Arrivals, "_reserve", lambda *_: 0)  # it was not plain before
    (world.source(towards) / "big").write_bytes(os.urandom(4 * MIB))
    (world.source(towards) / "small").write_text("x")
    with small_disk(world.tmp / "disk", 2 * MIB) as disk:
        if "inplace" not in options:
            (disk / "big").write_text("as it was")
        assert await world.carry(towards, "big", "small", f"{disk}", **options) == 23
        assert world.failures() == {"big": "cannot be written: no space left on device"}
        if "inplace" not in options:
            assert (disk / "big").read_text() == "as it was"
        assert sorted(os.listdir(disk)) == ["big", "small"]
        assert (disk / "small").read_text() == "x"


def _is_big(fd: int) -> bool:
    return os.fstat(fd).st_size >= MIB


LATE = {
    "a quota at write": ("pwrite", errno.EDQUOT, "disk quota exceeded", lambda fd, data, at: len(data) >= MIB),
    "no space at fsync": ("fsync", errno.ENOSPC, "no space left on device", _is_big),
    "no space at rename": ("rename", errno.ENOSPC, "no space left on device", lambda old, new, **_: new == b"big"),
}


@pytest.mark.parametrize("case", LATE)
@pytest.mark.parametrize("resume", [False, True])
async def test_no_room_that_is_found_late_fails_one_file_and_harms_nothing(
    world: World, case: str, resume: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File systems with delayed allocation, quotas or full directories find out at any of these calls."""
    name, number, words, is_big = LATE[case]
    real = getattr(os, name)
    options = {"resume": resume, "fsync": name == "fsync"}

    def fails(*arguments: Any, **named: Any) -> Any:
        if is_big(*arguments, **named):
            raise OSError(number, os.strerror(number))
        return real(*arguments, **named) if name != "fsync" else None

    (world.source("put") / "big").write_bytes(os.urandom(2 * MIB))
    (world.source("put") / "small").write_text("x")
    (world.sink("put") / "big").write_text("as it was")
    with monkeypatch.context() as patch:
        patch.setattr(os, name, fails)
        assert await world.carry("put", "big", "small", "", **options) == 23
    (why,) = world.failures().values()
    assert why.endswith(words)
    assert (world.sink("put") / "big").read_text() == "as it was"
    assert (world.sink("put") / "small").read_text() == "x"
    assert sorted(os.listdir(world.sink("put"))) == ["big", "small"], "nothing is left to be resumed"
    assert await world.carry("put", "big", "small", "", resume=resume) == 0
    assert (world.sink("put") / "big").read_bytes() == (world.source("put") / "big").read_bytes()


async def test_a_file_system_that_is_read_only_fails_each_file(world: World, towards: str) -> None:
    (world.source(towards) / "file").write_text("x")
    (world.source(towards) / "large").write_bytes(bytes(3 * MIB))
    with small_disk(world.tmp / "disk", MIB) as disk:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)  # noqa: ASYNC221
        assert await world.carry(towards, "file", f"{disk}") != 0
        assert await world.carry(towards, "file", "large", f"{disk}") != 0
        assert all("read-only" in why for name, why in world.failures().items() if name == "file")
        assert set(world.failures()) == {"file", "large"}


async def test_few_descriptors_are_enough_for_a_tree_of_any_shape(world: World, towards: str) -> None:
    tree = world.source(towards) / "tree"
    for number in range(150):
        (tree / f"{number}" / "x" / "y" / "z").mkdir(parents=True)
        (tree / f"{number}" / "x" / "y" / "z" / "file").write_bytes(b"x")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 130, before[1]))
    try:
        assert await world.carry(towards, "tree", "", recursive=True) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert snapshot(world.sink(towards) / "tree") == snapshot(tree)


async def test_no_descriptor_left_fails_the_file_and_not_the_next(
    world: World, towards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (world.source(towards) / "a").write_text("a")
    (world.source(towards) / "b").write_text("b")
    plain = Arriving.__init__

    def refuse(self: Arriving, directories: OpenDirectories, directory: Directory, name: bytes, *rest: Any) -> None:
        if name == b"a":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        plain(self, directories, directory, name, *rest)

    monkeypatch.setattr(Arriving, "__init__", refuse)
    assert await world.carry(towards, "a", "b", "") == 23
    assert world.failures() == {"a": "cannot be written: too many open files"}
    assert (world.sink(towards) / "b").read_text() == "b"


def vanish(path: Path) -> None:
    path.unlink()


def grow(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"more")


def shrink(path: Path) -> None:
    os.truncate(path, MIB)


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.rename(path)


def rewrite(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def become_a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def become_a_symlink(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


CHANGES = [vanish, grow, shrink, replace, rewrite, become_a_fifo, become_a_symlink]


@pytest.mark.parametrize("change", CHANGES)
async def test_a_file_that_changes_once_it_was_announced_fails_and_the_next_arrives(
    world: World, towards: str, change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = world.source(towards) / "tree"
    tree.mkdir()
    (tree / "a").write_bytes(b"a" * 3 * MIB)
    (tree / "b").write_bytes(b"b" * 3 * MIB)

    class Late(Reading):
        def read(self, buffer: memoryview) -> list[tuple[Piece, memoryview]]:
            if (tree / "a").exists() and not (tree / "changed").exists():
                change(tree / "a")
                (tree / "changed").touch()
            return super().read(buffer)

    monkeypatch.setattr("vsockfwd_copy.sending.Reading", Late)
    assert await world.carry(towards, "tree", "", recursive=True) == 23
    assert [name.rpartition("/")[2] for name in world.failures()] == ["a"]
    assert os.listdir(world.sink(towards) / "tree") == ["b"]


@pytest.mark.parametrize("change", [grow, shrink, rewrite])
def test_a_file_that_changes_while_it_is_read_is_given_up(tmp_path: Path, change: Callable[[Path], None]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 5 * MIB)
    os.utime(path, ns=(0, 0))
    tree = Tree([b"file"], SendOptions(), Root(os.fsencode(tmp_path)))
    ((entry, offer),) = tree.batch()
    assert isinstance(entry, Large)
    assert offer is not None
    out = Reading(tree, 1, offer, [Range(0, entry.size)])
    buffer = memoryview(bytearray(2 * MIB))
    assert [type(piece) for piece, _ in out.read(buffer)] == [Chunk, Chunk]
    change(path)
    pieces = [piece for _ in range(4) if not out.over for piece, _ in out.read(buffer)]
    assert isinstance(pieces[-1], GiveUp)
    late = Reading(tree, 1, offer, [Range(0, entry.size)])
    assert [type(piece) for piece, _ in late.read(buffer)] == [GiveUp], "not a byte of another file goes out"
    tree.close()


def test_a_deep_tree_costs_few_descriptors(tmp_path: Path) -> None:
    at = Directory(None, os.fsencode(tmp_path), b"")
    opened = OpenDirectories(kept=3)
    before = len(os.listdir("/proc/self/fd"))
    chain = [at]
    for _ in range(10):
        os.mkdir(b"d", dir_fd=opened.fd(at))
        at = Directory(at, b"d", b"d")
        chain.append(at)
    for directory in reversed(chain):
        assert os.path.samestat(
            os.fstat(opened.fd(directory)), os.stat(b"/".join([os.fsencode(tmp_path), directory.title_of(b".")]))
        )
        assert len(os.listdir("/proc/self/fd")) <= before + 3
    opened.close()


def test_only_the_wanted_ranges_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)) * 1024)
    tree = Tree([b"file"], SendOptions(), Root(os.fsencode(tmp_path)))
    ((_, offer),) = tree.batch()
    assert offer is not None
    out = Reading(tree, 1, offer, [Range(3, 5), Range(1000, 1)])
    *pieces, _ = out.read(memoryview(bytearray(MIB)))
    tree.close()
    assert [(piece.offset, bytes(data)) for piece, data in pieces if isinstance(piece, Chunk)] == [
        (3, b"\3\4\5\6\7"),
        (1000, b"\xe8"),
    ]


def test_a_file_that_may_not_be_read_fails_and_the_next_is_announced(tmp_path: Path) -> None:
    for name in ("secret", "locked"):
        (tmp_path / name).mkdir()
    (tmp_path / "locked").chmod(0)
    (tmp_path / "secret" / "file").write_text("x")
    (tmp_path / "secret" / "file").chmod(0)
    (tmp_path / "secret" / "open").write_text("x")
    base = os.open(tmp_path, os.O_RDONLY)
    before = os.open(".", os.O_RDONLY)
    os.fchdir(base)
    try:
        with as_nobody(tmp_path, tmp_path / "secret"):
            tree = Tree([b"secret", b"locked"], SendOptions(recursive=True), Root(b""))
            items = tree.batch()
            tree.close()
    finally:
        os.fchdir(before)
        os.close(base)
        os.close(before)
    lost = [entry for entry, _ in items if isinstance(entry, Lost)]
    assert [(entry.name, entry.failure.code) for entry in lost] == [
        (b"file", Code.PERMISSION),
        (b"locked", Code.PERMISSION),
    ]
    assert [entry.name for entry, _ in items if isinstance(entry, Small)] == [b"open"]


def test_a_directory_that_may_not_be_written_is_told_as_a_permission(tmp_path: Path) -> None:
    place = resolve(os.fsencode(tmp_path), sources=1, options=LandOptions(), root=Root(b"/"))
    tmp_path.chmod(0o555)
    landing = Landing(place, LandOptions(), Expected(1))
    with as_nobody():
        landing.announce(Entries(1, [Small(b"file", 0o644, 0, b"x", digest_of(b"x"))]))
    (result,) = landing.take_answers().results
    assert result.failure is not None
    assert result.failure.code == Code.PERMISSION
    landing.close()
    place.close()


async def test_a_tree_copied_into_itself_comes_to_an_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vsockfwd_copy.walking.DEPTH_LIMIT", 20)
    tree = world.home / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "file").write_text("x")
    code = await world.cp(f"{tree}", "@tree/sub", recursive=True)
    assert code in (0, 23)
    assert snapshot(tree / "sub" / "tree")[b"file"] == snapshot(tree)[b"file"]


def test_a_file_that_cannot_be_looked_at_is_closed_again(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    there = os.open(tmp_path, os.O_RDONLY)
    before = os.listdir("/proc/self/fd")
    attempts: tuple[Callable[[], Any], ...] = (
        lambda: Standing(b"file", dir_fd=there),
        lambda: open_ours(b"file", os.O_RDONLY, dir_fd=there),
    )
    for attempt in attempts:
        with injected() as faults, pytest.raises(OSError, match="injected"):
            faults.arm(1)
            attempt()
    assert os.listdir("/proc/self/fd") == before
    os.close(there)


async def test_somebody_hears_before_the_first_word_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else who finds that word failing would wait for the reason in the place of who hears."""

    class Silent:
        frame_limit = 1 << 20
        heard = False

        async def receive(self) -> NoReturn:
            self.heard = True
            await trio.sleep_forever()
            raise AssertionError

        async def send_frames(self, *_: object, **__: object) -> None:
            raise Reset("in good time" if self.heard else "too early")

    async def in_line(function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    monkeypatch.setattr(trio.to_thread, "run_sync", in_line)
    (tmp_path / "file").write_text("content")
    tree = Tree([b"file"], SendOptions(), Root(os.fsencode(tmp_path)))
    with pytest.raises(Reset, match="in good time"):
        await send(cast(Channel, Silent()), tree, SendOptions(), Account(ignore, "a test"))
    tree.close()


def test_a_file_of_which_nothing_is_sent_gives_others_their_turn_too(tmp_path: Path) -> None:
    """Its blocks are all told to be the same: a thread that went on to its end could not be stopped before."""

    class Idle:
        def flush(self, until: float) -> bool:
            return True

        def send_frames(self, *frames: object, data: bytes = b"", until: float) -> bool:
            assert not data
            return True

    content = os.urandom(4 * MIB)
    (tmp_path / "file").write_bytes(content)
    tree = Tree([b"file"], SendOptions(bare=True), Root(os.fsencode(tmp_path)))
    ((_, offer),) = tree.batch()
    assert offer is not None
    told = Comparison(len(content))
    told.add(Blocks(1, 0, b"".join(block_digest(content[at : at + BLOCK]) for at in range(0, len(content), BLOCK))))
    reading = Reading(tree, 1, offer, [Range(0, len(content))], told)
    outgoing = Outgoing(1, reading, lambda: True, memoryview(bytearray(MIB)), limited=True)
    turns = 0
    while not outgoing.sent:
        outgoing.send_some(cast(ThreadChannel, Idle()))
        turns += 1
    assert turns >= len(content) // MIB
    reading.close()
    tree.close()
