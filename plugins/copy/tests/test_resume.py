"""--resume: an interrupted copy goes on where it stopped, and never from what cannot be believed."""

from __future__ import annotations

import fcntl
import functools
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from plugins.copy.tests.world import MIB, World, settled, temporaries
from vsockfwd_copy import arriving, journal
from vsockfwd_copy.arriving import Arriving, Part, Shape, link_to_rename, part_names, remove_part
from vsockfwd_copy.attributes import Writer
from vsockfwd_copy.directories import Directory, OpenDirectories
from vsockfwd_copy.journal import Journal
from vsockfwd_copy.messages import checksum
from vsockfwd_copy.options import LandOptions, Options, Symlinks
from vsockfwd_copy.target import Copied, open_target

NAME = "file"
PIECES = 7
CONTENT = os.urandom(PIECES * MIB)
SLOW = 64 * MIB
"""Bytes a second: so slow that a piece goes out alone, and who stops a copy is heard before the next."""

HEADER, RECORD = 56, 24
NOBODY = 65534


def part_of(folder: Path, name: str = NAME) -> Path:
    return folder / os.fsdecode(part_names(os.fsencode(name))[0])


def journal_of(folder: Path, name: str = NAME) -> Path:
    return folder / os.fsdecode(part_names(os.fsencode(name))[1])


def pieces_noted(folder: Path) -> int:
    return (journal_of(folder).stat().st_size - HEADER) // RECORD


def start(command: list[str], where: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, cwd=where)


def is_free(path: Path) -> bool:
    """Whether nobody holds the lock on a part."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@dataclass
class Ends:
    """A file to be copied, with --resume where nothing else is said, and the directory that it goes to."""

    world: World
    towards: str
    monkeypatch: pytest.MonkeyPatch

    def __post_init__(self) -> None:
        self.source.write_bytes(CONTENT)

    @property
    def source(self) -> Path:
        return self.world.source(self.towards) / NAME

    @property
    def sink(self) -> Path:
        return self.world.sink(self.towards)

    async def carry(self, name: str = NAME, **options: Any) -> Copied:
        asked = Options(**{"resume": True, **options})
        with trio.fail_after(10):
            async with open_target(self.world.address, report=self.world.events.append) as target:
                if self.towards == "put":
                    return await target.put([self.world.here / name], "", asked)
                return await target.get([name], self.world.here, asked)

    async def interrupt(self, after: int = 3, rate: int = SLOW) -> int:
        """Stop a copy in mid-file, once `after` pieces have been noted; how many were in the end."""
        noted = 0
        note = Journal.add

        def stop_after(journal: Journal, end: int, piece: int) -> None:
            nonlocal noted
            note(journal, end, piece)
            noted += 1
            if noted == after:
                trio.from_thread.run_sync(scope.cancel)

        with self.monkeypatch.context() as patch, trio.CancelScope() as scope:
            patch.setattr(Journal, "add", stop_after)
            await self.carry(rate=rate)
        await settled(lambda: is_free(part_of(self.sink)), "the receiver has not let go of it")
        assert scope.cancelled_caught
        assert not (self.sink / NAME).exists()
        return pieces_noted(self.sink)


@pytest.fixture
def ends(world: World, towards: str, monkeypatch: pytest.MonkeyPatch) -> Ends:
    return Ends(world, towards, monkeypatch)


# --- it goes on where it stopped


async def test_a_cancelled_copy_goes_on_where_it_stopped(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = await ends.interrupt()
    assert 3 <= pieces < PIECES
    copied = await ends.carry()
    assert copied.totals.carried == (PIECES - pieces) * MIB
    assert (ends.sink / NAME).read_bytes() == CONTENT
    assert (ends.sink / NAME).stat().st_mtime_ns == ends.source.stat().st_mtime_ns


async def test_a_copy_that_is_interrupted_again_and_again_gets_on(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await ends.interrupt(after=1)
    second = await ends.interrupt(after=1)
    assert first < second < PIECES
    assert (await ends.carry()).totals.carried == (PIECES - second) * MIB
    assert (ends.sink / NAME).read_bytes() == CONTENT


async def test_a_killed_client_was_not_in_vain(ends: Ends) -> None:
    """Of the two ways, one kills the receiver and the other the sender."""
    far = f"[{ends.world.address}]:"
    words = [NAME, far] if ends.towards == "put" else [far + NAME, "."]
    command = [sys.executable, "-m", "vsockfwd", "cp", "-q", "--resume", "--bwlimit", "16M", *words]
    with start(command, ends.world.here) as client:
        try:
            await settled(
                lambda: journal_of(ends.sink).exists() and pieces_noted(ends.sink) >= 2, "nothing arrives", 10
            )
        finally:
            client.send_signal(signal.SIGKILL)
    await settled(lambda: is_free(part_of(ends.sink)), "the agent has not let go of it")
    assert not (ends.sink / NAME).exists()
    pieces = pieces_noted(ends.sink)
    copied = await ends.carry()
    assert copied.totals.carried == (PIECES - pieces) * MIB
    assert (ends.sink / NAME).read_bytes() == CONTENT


async def test_a_file_that_lacked_only_its_name_gets_it_and_nothing_is_sent(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await ends.interrupt(after=PIECES, rate=16 * MIB) == PIECES
    assert (await ends.carry()).totals.carried == 0
    assert (ends.sink / NAME).read_bytes() == CONTENT


async def test_holes_stay_holes_in_what_is_resumed(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data, a hole, data, a hole to the end; stopped behind the first hole."""
    size = 1 << 30
    with ends.source.open("wb") as file:
        file.write(CONTENT[: 3 * MIB])
        file.seek(512 * MIB + 4096)
        file.write(CONTENT[3 * MIB :])
        file.truncate(size)
    pieces = await ends.interrupt(after=5)
    assert (await ends.carry()).totals.carried == (PIECES + 1 - pieces) * MIB
    arrived = ends.sink / NAME
    assert arrived.stat().st_size == size
    assert arrived.stat().st_blocks == ends.source.stat().st_blocks
    for offset, length in ((0, 4 * MIB), (512 * MIB, 5 * MIB), (size - MIB, MIB)):
        with ends.source.open("rb") as one, arrived.open("rb") as other:
            assert os.pread(other.fileno(), length, offset) == os.pread(one.fileno(), length, offset)


async def test_what_stands_there_is_compared_rather_than_begun_anew(ends: Ends) -> None:
    (ends.sink / NAME).write_bytes(CONTENT[:MIB] + bytes(MIB) + CONTENT[2 * MIB :])
    assert (await ends.carry(delta=True)).totals.carried == MIB
    assert (ends.sink / NAME).read_bytes() == CONTENT


async def test_permissions_that_are_not_kept_are_those_of_any_new_file(ends: Ends) -> None:
    await ends.carry(perms=False)
    (ends.sink / "new").touch()
    assert (ends.sink / NAME).stat().st_mode == (ends.sink / "new").stat().st_mode


async def test_many_files_that_may_be_resumed_need_few_descriptors(ends: Ends) -> None:
    count = 100
    tree = ends.source.parent / "tree"
    tree.mkdir()
    for number in range(count):
        (tree / str(number)).write_bytes(CONTENT[: 65 << 10])
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (120, before[1]))
    try:
        copied = await ends.carry("tree", recursive=True)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert (copied.totals.new, copied.error) == (count, None)


# --- what is not believed


@pytest.mark.parametrize("how", ["content", "mtime", "size"])
async def test_a_changed_source_is_begun_anew(ends: Ends, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    await ends.interrupt()
    found = ends.source.stat()
    if how == "mtime":
        os.utime(ends.source, ns=(1, 1))
    else:
        with ends.source.open("r+b" if how == "content" else "ab") as file:
            file.write(b"other")
        os.utime(ends.source, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert (await ends.carry()).totals.carried == ends.source.stat().st_size
    assert (ends.sink / NAME).read_bytes() == ends.source.read_bytes()


async def test_of_a_torn_journal_what_is_whole_is_believed(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = await ends.interrupt()
    os.truncate(journal_of(ends.sink), journal_of(ends.sink).stat().st_size - 5)
    assert (await ends.carry()).totals.carried == (PIECES - pieces + 1) * MIB
    assert (ends.sink / NAME).read_bytes() == CONTENT


@pytest.mark.parametrize("towards", ["get"])
@pytest.mark.parametrize("length", [0, MIB + 1, 2 * MIB])
async def test_a_part_that_is_shorter_than_its_journal_says_is_believed_as_far_as_it_goes(
    ends: Ends, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    await ends.interrupt()
    os.truncate(part_of(ends.sink), length)
    assert (await ends.carry()).totals.carried == (PIECES - length // MIB) * MIB
    assert (ends.sink / NAME).read_bytes() == CONTENT


async def test_what_a_part_holds_beyond_its_journal_is_forgotten(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = await ends.interrupt()
    with part_of(ends.sink).open("r+b") as file:
        file.seek(pieces * MIB)
        file.write(bytes(PIECES * MIB))
    assert (await ends.carry()).totals.carried == (PIECES - pieces) * MIB
    assert (ends.sink / NAME).read_bytes() == CONTENT


@pytest.mark.parametrize("lost", [None, 1])
async def test_after_a_boot_each_piece_is_read_again(
    ends: Ends, monkeypatch: pytest.MonkeyPatch, lost: int | None
) -> None:
    """What a journal says was written may never have reached the disk."""
    pieces = await ends.interrupt()
    if lost is not None:
        with part_of(ends.sink).open("r+b") as file:
            file.seek(lost * MIB + 1000)
            file.write(bytes(4096))
    monkeypatch.setattr(journal, "boot", lambda: b"another boot...!")
    assert (await ends.carry()).totals.carried == (PIECES - (pieces if lost is None else lost)) * MIB
    assert (ends.sink / NAME).read_bytes() == CONTENT


STAMP = b"s" * 16


@pytest.fixture
def part(tmp_path: Path) -> Iterator[int]:
    """A part of four pieces of 1,000 bytes, the third of them a hole, with a whole journal beside it."""
    content = CONTENT[:2000] + bytes(1000) + CONTENT[3000:4000]
    (tmp_path / "part").write_bytes(content)
    noted = open_journal(tmp_path)
    noted.begin(STAMP, 8000)
    for end in (1000, 2000, 3000, 4000):
        noted.add(end, 0 if end == 3000 else checksum(content[end - 1000 : end]))
    noted.close()
    fd = os.open(tmp_path / "part", os.O_RDWR)
    yield fd
    os.close(fd)


def open_journal(folder: Path) -> Journal:
    return Journal(os.open(folder / "journal", os.O_RDWR | os.O_CREAT, 0o600))


def believed(folder: Path, part: int, stamp: bytes = STAMP, size: int = 8000) -> int:
    noted = open_journal(folder)
    try:
        return noted.resume(part, stamp, size)
    finally:
        noted.close()


def test_a_journal_is_about_one_state_of_one_file(tmp_path: Path, part: int) -> None:
    assert believed(tmp_path, part) == 4000
    assert believed(tmp_path, part, stamp=b"t" * 16) == 0
    assert believed(tmp_path, part, size=8001) == 0


def test_no_torn_or_altered_byte_of_a_journal_is_believed(tmp_path: Path, part: int) -> None:
    """At every length, and with every byte changed: never more than what stands before it."""
    whole = (tmp_path / "journal").read_bytes()
    for at in range(len(whole)):
        expected = max(at - HEADER, 0) // RECORD * 1000
        for forged in (whole[:at], whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]):
            (tmp_path / "journal").unlink()
            (tmp_path / "journal").write_bytes(forged)
            assert believed(tmp_path, part) == expected, at


def test_a_record_counts_in_its_own_journal_and_place_only(tmp_path: Path, part: int) -> None:
    whole = (tmp_path / "journal").read_bytes()
    records = [whole[at : at + RECORD] for at in range(HEADER, len(whole), RECORD)]
    for order in ([1], [0, 0], [0, 2], [0, 1, 3], [1, 0]):
        (tmp_path / "journal").write_bytes(whole[:HEADER] + b"".join(records[number] for number in order))
        prefix = next((at for at, number in enumerate(order) if at != number), len(order))
        assert believed(tmp_path, part) == prefix * 1000
    foreign = open_journal(tmp_path)
    foreign.begin(b"t" * 16, 8000)
    foreign.add(5000, 1)
    foreign.close()
    spliced = whole + (tmp_path / "journal").read_bytes()[HEADER:]
    (tmp_path / "journal").write_bytes(spliced)
    assert believed(tmp_path, part) == 4000


# --- somebody else's


async def test_two_copies_of_one_file_do_not_write_into_each_other(ends: Ends) -> None:
    copied: list[Copied] = []

    async def copy(rate: int) -> None:
        copied.append(await ends.carry(rate=rate))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(copy, 16 * MIB)
        await settled(lambda: journal_of(ends.sink).exists() and pieces_noted(ends.sink) >= 1, "nothing arrives")
        nursery.start_soon(copy, 0)
    errors = [str(one.error) for one in copied if one.error]
    assert len(errors) == 1
    assert "another copy is at work on it" in errors[0]
    assert (ends.sink / NAME).read_bytes() == CONTENT


async def test_a_plain_copy_leaves_the_part_that_another_is_at_work_on(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = await ends.interrupt()
    with part_of(ends.sink).open("rb") as at_work:
        fcntl.flock(at_work, fcntl.LOCK_EX)
        assert (await ends.carry(resume=False)).error is None
        assert pieces_noted(ends.sink) == pieces
    (ends.sink / NAME).unlink()
    assert (await ends.carry()).totals.carried == (PIECES - pieces) * MIB


def test_a_part_that_gets_its_name_while_it_is_being_opened_is_not_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between open and lock another copy completes it: then what is open is the final file."""
    lock = fcntl.flock

    def complete_first(fd: int, how: int) -> None:
        if not (tmp_path / NAME).exists():
            part_of(tmp_path).rename(tmp_path / NAME)
        lock(fd, how)

    monkeypatch.setattr(fcntl, "flock", complete_first)
    directories, directory = OpenDirectories(), Directory(None, os.fsencode(tmp_path), b"")
    part_of(tmp_path).write_bytes(CONTENT)
    part = Part(directories, directory, NAME.encode(), LandOptions(), STAMP, 2 * MIB)
    try:
        assert part.position == 0
        assert (tmp_path / NAME).read_bytes() == CONTENT
    finally:
        part.discard()
    assert os.listdir(tmp_path) == [NAME]
    directories.close()


def test_a_part_that_is_begun_while_an_older_one_is_being_removed_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fcntl.flock

    def begin_another_first(fd: int, how: int) -> None:
        part_of(tmp_path).unlink()
        part_of(tmp_path).write_text("another")
        lock(fd, how)

    monkeypatch.setattr(fcntl, "flock", begin_another_first)
    part_of(tmp_path).write_bytes(CONTENT)
    there = os.open(tmp_path, os.O_RDONLY)
    remove_part(NAME.encode(), dir_fd=there)
    os.close(there)
    assert part_of(tmp_path).read_text() == "another"


@pytest.mark.parametrize("unnamed", [True, False])
def test_a_copy_that_ends_while_another_takes_the_same_name_is_not_in_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unnamed: bool
) -> None:
    """The second runs from end to end between the first one's temporary name and its final one."""
    if not unnamed:
        monkeypatch.setattr(arriving, "_has_proc", lambda: False)
    (tmp_path / NAME).write_text("old")
    directories, directory = OpenDirectories(), Directory(None, os.fsencode(tmp_path), b"")
    shape, options = Shape(None, 0o600, 0, None), LandOptions()

    def land(content: bytes) -> None:
        arrives = Arriving(directories, directory, NAME.encode(), options, 0o600)
        arrives.write(content, 0)
        arrives.keep(shape, Writer(options), replaces=True)

    rename = os.rename

    def second_first(*args: Any, **options: Any) -> None:
        monkeypatch.setattr(os, "rename", rename)
        land(b"second")
        assert (tmp_path / NAME).read_bytes() == b"second"
        rename(*args, **options)

    monkeypatch.setattr(os, "rename", second_first)
    land(b"first")
    directories.close()
    assert (tmp_path / NAME).read_bytes() == b"first"
    assert os.listdir(tmp_path) == [NAME]


def test_a_link_that_is_made_while_another_takes_the_same_name_is_not_in_its_way(tmp_path: Path) -> None:
    there = os.open(tmp_path, os.O_RDONLY)
    with link_to_rename(b"link", functools.partial(os.symlink, b"first", dir_fd=there), dir_fd=there):
        with link_to_rename(b"link", functools.partial(os.symlink, b"second", dir_fd=there), dir_fd=there):
            pass
        assert os.readlink(tmp_path / "link") == "second"
    os.close(there)
    assert os.readlink(tmp_path / "link") == "first"
    assert os.listdir(tmp_path) == ["link"]


def _symlink(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def _hard_link(path: Path, outside: Path) -> None:
    path.hardlink_to(outside)


def _fifo(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def _directory(path: Path, outside: Path) -> None:
    path.mkdir()


def _foreign(path: Path, outside: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    path.write_bytes(CONTENT)
    os.chown(path, NOBODY, -1)


@pytest.mark.parametrize("towards", ["put"])  # the receiver is the same
@pytest.mark.parametrize("put_there", [_symlink, _hard_link, _fifo, _directory, _foreign])
@pytest.mark.parametrize("where", [part_of, journal_of])
async def test_what_others_put_in_the_place_of_a_part_is_neither_used_nor_in_the_way(
    ends: Ends,
    where: Callable[[Path], Path],
    put_there: Callable[[Path, Path], None],
) -> None:
    outside = ends.world.tmp / "outside"
    outside.write_bytes(b"mine")
    put_there(where(ends.sink), outside)
    copied = await ends.carry()
    assert copied.error is not None
    assert "is not what a copy of this user left" in str(copied.error)
    assert outside.read_bytes() == b"mine"
    assert temporaries(ends.sink) in ([where(ends.sink).name], [])  # a directory is none
    assert (await ends.carry(resume=False)).error is None
    assert (ends.sink / NAME).read_bytes() == CONTENT
    assert where(ends.sink).name in os.listdir(ends.sink)
    remove = os.rmdir if put_there is _directory else os.unlink
    remove(where(ends.sink))


# --- nothing stale is left


async def test_a_plain_copy_of_many_files_removes_what_was_left_of_the_last_of_them(world: World) -> None:
    """Beyond a few files their directory is listed for it instead."""
    names = [f"file-{number:02}" for number in range(20)]
    for folder in (world.source("put") / "many", world.sink("put") / "many"):
        folder.mkdir()
        for name in names:
            (folder / name).write_text(str(folder))
    there = world.sink("put") / "many"
    for left in (part_of(there, names[-1]), journal_of(there, names[-1])):
        left.write_text("half")
    assert await world.carry("put", "many", "", recursive=True) == 0
    assert sorted(os.listdir(there)) == names


async def test_a_plain_copy_removes_what_an_interrupted_one_left(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    await ends.interrupt()
    assert (await ends.carry(resume=False)).totals.carried == PIECES * MIB
    assert os.listdir(ends.sink).count(NAME) == 1
    assert not temporaries(ends.sink)


@pytest.mark.parametrize("towards", ["put"])
@pytest.mark.parametrize("now", ["small", "symlink", "unchanged", "kept"])
async def test_a_part_that_is_of_no_use_any_more_goes_with_the_next_resume(
    ends: Ends, monkeypatch: pytest.MonkeyPatch, now: str
) -> None:
    await ends.interrupt()
    options = {}
    if now == "small":
        ends.source.write_text("small")
    elif now == "symlink":
        ends.source.unlink()
        ends.source.symlink_to("elsewhere")
        options = {"recursive": True, "symlinks": Symlinks.NONE}
    elif now == "unchanged":
        (ends.sink / NAME).write_bytes(CONTENT)
        os.utime(ends.sink / NAME, ns=(1, ends.source.stat().st_mtime_ns))
        options = {"update": True}
    else:
        (ends.sink / NAME).write_text("kept")
        options = {"no_clobber": True}
    assert (await ends.carry(**options)).error is None
    assert not temporaries(ends.sink)


@pytest.mark.parametrize("left", ["file", "symlink", "directory", "at work"])
@pytest.mark.parametrize("comes", ["file", "named file", "symlink", "hard link"])
async def test_what_a_killed_copy_left_is_removed_by_the_next_that_replaces_the_file(
    ends: Ends, monkeypatch: pytest.MonkeyPatch, left: str, comes: str
) -> None:
    """What no copy left, or one is at work on, stays, and is not in the way."""
    if comes == "named file":  # the file system has no O_TMPFILE
        monkeypatch.setattr(arriving, "_has_proc", lambda: False)
    tree, there = ends.source.parent / "tree", ends.sink / "tree"
    tree.mkdir()
    there.mkdir()
    (tree / "a").write_text("new")
    (there / "z").write_text("old")
    if comes == "symlink":
        (tree / "z").symlink_to("a")
    elif comes == "hard link":
        (tree / "z").hardlink_to(tree / "a")
    else:
        (tree / "z").write_text("new")
    is_link = "link" in comes
    stale = there / (part_of(there, "z").stem + (".link" if is_link else ".new"))
    if left == "symlink":
        stale.symlink_to("elsewhere")
    elif left == "directory":
        stale.mkdir()
    else:
        stale.write_text("half")
    locked = os.open(there if is_link else stale, os.O_RDONLY) if left == "at work" else -1
    if locked >= 0:
        fcntl.flock(locked, fcntl.LOCK_EX)
    copied = await ends.carry("tree", recursive=True, hard_links=True)
    if locked >= 0:
        os.close(locked)
    assert copied.error is None
    assert (there / "z").read_text() == "new"
    stays = left in ("directory", "at work") or (left == "symlink" and not is_link)
    assert (stale.name in os.listdir(there)) == stays
    if left == "at work":
        assert stale.read_text() == "half"
    if stays and left != "directory":
        stale.unlink()


async def test_delete_removes_the_parts_of_files_that_are_no_more(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, there = ends.source.parent / "tree", ends.sink / "tree"
    tree.mkdir()
    there.mkdir()
    (tree / "big").write_bytes(CONTENT)
    for name in ("gone", "at work"):
        part_of(there, name).write_bytes(b"x")
        journal_of(there, name).write_bytes(b"x")
    with part_of(there, "at work").open("rb") as at_work:
        fcntl.flock(at_work, fcntl.LOCK_EX)
        copied = await ends.carry("tree", recursive=True, delete=True)
    assert (copied.totals.removed, copied.error) == (2, None)
    assert sorted(temporaries(there)) == sorted([part_of(there, "at work").name, journal_of(there, "at work").name])
    part_of(there, "at work").unlink()
    journal_of(there, "at work").unlink()


async def test_a_copy_that_is_stopped_before_its_first_piece_leaves_nothing(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()
    begin = Journal.begin

    def stop(self: Journal, stamp: bytes, size: int) -> None:
        begin(self, stamp, size)
        begun.set()
        raise KeyError("stopped")

    monkeypatch.setattr(Journal, "begin", stop)
    with pytest.raises(BaseException):  # noqa: B017 - what stopped it, as either side sees it
        await ends.carry()
    assert begun.is_set()
    await settled(lambda: not temporaries(ends.sink), "an empty part is left")
