"""What is copied: far patterns, filters, paths from a list, stdin and stdout; and how fast it may go."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from plugins.copy.tests.world import MIB, World, snapshot
from vsockfwd.plugin import BadRequest, CannotCreate, FileDone, NotFound, PeerBrokeProtocol, UsageError, VsockfwdError
from vsockfwd_copy.asked import Expected
from vsockfwd_copy.command import copy
from vsockfwd_copy.locations import plan
from vsockfwd_copy.messages import Chunk, Entries, FileDigest, Finish, Hole, Large, Small, checksum, digest_of
from vsockfwd_copy.options import Algorithm, Options
from vsockfwd_copy.pouring import Pouring
from vsockfwd_copy.sending import READ_SIZE, SMALLEST_PIECE, Pace
from vsockfwd_copy.target import open_target

BYTES = random.Random(13).randbytes(3 * MIB)


# --- far patterns ----------------------------------------------------------------------------------------------------


def fill(home: Path) -> None:
    for name in ("a.txt", "b.txt", "c.log", ".hidden.txt", "d[1].txt", "-r"):
        (home / name).write_text(name)
    for name in ("one", "two"):
        (home / "dirs" / name).mkdir(parents=True)
        (home / "dirs" / name / f"{name}.txt").write_text(name)
        (home / "dirs" / name / "same").write_text(name)


GLOBS: dict[str, tuple[tuple[str, ...], dict[str, Any], set[str]]] = {
    "some": (("*.txt",), {}, {"a.txt", "b.txt", "d[1].txt"}),
    "a set": (("[ab].txt",), {}, {"a.txt", "b.txt"}),
    "what is called so wins": (("d[1].txt",), {}, {"d[1].txt"}),
    "escaped": (("d\\[1].tx?",), {}, {"d[1].txt"}),
    "several": (("*.log", "a*", "?.txt"), {"fails": {"a.txt"}}, {"a.txt", "b.txt", "c.log"}),
    "beside names": (("c.log", "?.txt", "-r"), {}, {"c.log", "a.txt", "b.txt", "-r"}),
    "hidden": ((".h*",), {}, {".hidden.txt"}),
    "a dash": (("-*",), {}, {"-r"}),
    "in the way": (("dirs/*/one.txt",), {}, {"one.txt"}),
    "twice in the way": (("d*/*/*.txt",), {}, {"one.txt", "two.txt"}),
    "of one name": (("dirs/*/same",), {"fails": {"same"}}, {"same"}),
    "absolute": (("/HOME/?.txt",), {}, {"a.txt", "b.txt"}),
    "directories": (("d*s/t*",), {"recursive": True}, {"two/two.txt", "two/same"}),
    "filtered": (("*.txt",), {"exclude": (b"a*",)}, {"b.txt", "d[1].txt"}),
}


@pytest.mark.parametrize(("words", "options", "makes"), GLOBS.values(), ids=GLOBS)
async def test_a_far_pattern_stands_for_all_that_fits(
    world: World, words: tuple[str, ...], options: dict[str, Any], makes: set[str]
) -> None:
    fill(world.home)
    fails = options.get("fails", set())
    options = {name: value for name, value in options.items() if name != "fails"}
    words = tuple("@" + word.replace("/HOME", str(world.home)) for word in words)
    assert await world.cp(*words, ".", **options) == (23 if fails else 0)
    assert set(world.failures()) == fails
    made = {os.fspath(path.relative_to(world.here)) for path in world.here.rglob("*") if path.is_file()}
    assert made == makes


async def test_a_pattern_that_nothing_fits_is_told_by_its_name(world: World) -> None:
    fill(world.home)
    assert await world.cp("@*.zip", ".") == 1
    assert world.failures() == {"*.zip": "cannot be read: no such file or directory"}
    assert await world.cp("@*.zip", "@*.log", "@x/*", ".") == 23
    assert sorted(world.failures()) == ["*.zip", "x/*"]
    assert os.listdir(world.here) == ["c.log"]


async def test_what_fits_a_pattern_and_cannot_be_copied_fails_alone(world: World) -> None:
    fill(world.home)
    os.mkfifo(world.home / "a-fifo.txt")
    (world.home / "d.txt").mkdir()
    assert await world.cp("@*.txt", "@c.log", ".") == 23
    assert set(world.failures()) == {"a-fifo.txt", "d.txt"}
    assert sorted(os.listdir(world.here)) == ["a.txt", "b.txt", "c.log", "d[1].txt"]


async def test_a_local_name_is_no_pattern(world: World) -> None:
    (world.here / "a.txt").write_text("x")
    assert await world.cp("*.txt", "@") == 1
    (world.here / "*.txt").write_text("star")
    assert await world.cp("*.txt", "@") == 0
    assert os.listdir(world.home) == ["*.txt"]


async def test_several_that_fit_need_a_directory(world: World) -> None:
    fill(world.home)
    with pytest.raises(CannotCreate):
        await world.cp("@*.txt", "new")


# --- filters ---------------------------------------------------------------------------------------------------------


async def test_filters_hold_below_the_sources(world: World, towards: str) -> None:
    tree = world.source(towards) / "tree"
    for name in ("a.o", "a.c", "keep.o", "build/x", "src/build/y", "src/a.o", "src/deep/only", "tree/a.c"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    options: dict[str, Any] = {"exclude": (b"*.o", b"/build/", b"deep/*"), "include": (b"keep.o",)}
    assert await world.carry(towards, "tree", "", recursive=True, **options) == 0
    there = world.sink(towards) / "tree"
    assert {os.fspath(path.relative_to(there)) for path in there.rglob("*") if path.is_file()} == {
        "a.c", "keep.o", "src/build/y", "tree/a.c",
    }  # fmt: skip
    assert (there / "src" / "deep").is_dir()
    assert await world.carry(towards, "tree/a.o", "", **options) == 0
    assert (world.sink(towards) / "a.o").exists(), "what is named is copied"


async def test_more_patterns_than_a_request_holds_are_refused_by_name(world: World, towards: str) -> None:
    (world.source(towards) / "file").write_text("x")
    with pytest.raises(UsageError, match="do not fit one request"):
        await world.carry(towards, "file", "", exclude=(b"x" * 1000,) * 4)


# --- from a list -----------------------------------------------------------------------------------------------------


async def below(world: World, towards: str, paths: list[bytes], destination: str = "", **options: Any) -> int:
    target = f"[{world.address}]:"
    words = ("tree", target + destination) if towards == "put" else (target + "tree", destination or ".")
    world.events.clear()
    with trio.fail_after(10):
        return await copy(world.engine, plan(words), Options(**options), paths)


async def test_only_what_a_list_names_is_copied_with_what_leads_there(world: World, towards: str) -> None:
    tree = world.source(towards) / "tree"
    for name in ("a", "b/c", "b/d", "e/f/g", "e/f/h", "new\nline"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    (tree / "e" / "f").chmod(0o710)
    (tree / "link").symlink_to("a")
    paths = [b"a", b"b/c", b"e/f", b"link", b"new\nline", b"nope", b"b/nada"]
    assert await below(world, towards, paths, "to", recursive=True, mkpath=True) == 23
    there = world.sink(towards) / "to"
    assert {os.fspath(path.relative_to(there)) for path in there.rglob("*") if not path.is_dir()} == {
        "a", "b/c", "e/f/g", "e/f/h", "link", "new\nline",
    }  # fmt: skip
    assert (there / "e" / "f").stat().st_mode & 0o777 == 0o710
    assert {name.rpartition("/")[2] for name in world.failures()} == {"nope", "nada"}
    assert await below(world, towards, [b"e/f"], "again", mkpath=True) == 23, "a directory as a whole needs -r"
    assert list(world.failures().values()) == ["is a directory, which needs -r"]


async def test_a_list_may_be_longer_than_a_request(world: World, towards: str) -> None:
    tree = world.source(towards) / "tree"
    names = [f"{number % 3}/{number:03}" + "n" * 100 for number in range(90)]
    for name in names:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    assert await below(world, towards, [os.fsencode(name) for name in names], "new") == 0
    assert snapshot(world.sink(towards) / "new").keys() == snapshot(tree).keys()


async def test_a_list_is_not_followed_through_symlinks_out_of_the_source(world: World, towards: str) -> None:
    (world.source(towards) / "secret").mkdir()
    (world.source(towards) / "secret" / "file").write_text("secret")
    tree = world.source(towards) / "tree"
    tree.mkdir()
    (tree / "out").symlink_to("../secret")
    assert await below(world, towards, [b"out/file"], "new", recursive=True) == 0
    assert {path.name: path.is_symlink() for path in (world.sink(towards) / "new").iterdir()} == {"out": True}


# --- stdin and stdout ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 65_536, 2 * MIB + 7])
async def test_what_comes_from_a_pipe_lands_whole(world: World, size: int) -> None:
    read, write = os.pipe()
    (world.home / "file").write_text("old and much longer than what comes" * 100)

    def feed() -> None:
        with open(write, "wb") as pipe:
            pipe.write(BYTES[:size])

    async with open_target(world.address.replace("unix:", "unix:"), engine=world.engine) as target:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, feed)
            copied = await target.put(["-"], "file", Options(chmod="600"), stdin=read)
    os.close(read)
    assert copied.error is None
    assert (world.home / "file").read_bytes() == BYTES[:size]
    assert (world.home / "file").stat().st_mode & 0o777 == 0o600
    assert (copied.totals.bytes, copied.totals.carried) == (size, size)


async def test_what_comes_from_a_pipe_needs_a_name(world: World) -> None:
    read, write = os.pipe()
    os.close(write)
    async with open_target(world.address, engine=world.engine) as target:
        copied = await target.put(["-"], "", Options(), stdin=read)
    os.close(read)
    assert copied.error is not None
    assert "stdin has no name" in copied.error.line()
    assert os.listdir(world.home) == []


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """What stands in for stdout: a file, so that nobody has to read meanwhile."""
    fd = os.memfd_create("stdout")
    yield fd, fd
    os.close(fd)


def content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


async def test_files_go_to_stdout_one_behind_the_other(world: World, pipe: tuple[int, int]) -> None:
    (world.home / "small").write_bytes(b"small")
    (world.home / "large").write_bytes(BYTES)
    with open(world.home / "holes", "wb") as file:  # noqa: ASYNC230
        file.truncate(MIB)
        file.seek(500_000)
        file.write(b"data")
    os.mkfifo(world.home / "fifo")
    out, read = pipe
    async with open_target(world.address, engine=world.engine) as target:
        copied = await target.pour(["small", "large", "holes", "nope", "small"], out)
        assert content(read) == b"small" + BYTES + (world.home / "holes").read_bytes() + b"small"
        assert isinstance(copied.error, VsockfwdError)
        assert (copied.totals.new, copied.totals.failed) == (4, 1)
        copied = await target.pour(["s*", "[kl]*"], out, glob=True)
        assert content(read).endswith(b"small" + BYTES)
        assert copied.error is None
        assert (await target.pour(["fifo"], out)).totals.failed == 1


def test_a_pipe_gets_nothing_that_was_not_asked_for_or_is_damaged(pipe: tuple[int, int]) -> None:
    def large(name: bytes = b"a") -> Large:
        return Large(name, 0o644, 0, 4)

    def small(content: bytes = b"x", digest: bytes = digest_of(b"x")) -> Small:
        return Small(b"a", 0o644, 0, content, digest)

    out, read = pipe
    with pytest.raises(PeerBrokeProtocol, match="more than 1 sources"):
        Pouring(out, Expected(1, [b"a"])).announce(Entries(1, [small(), small()]))
    assert content(read) == b""
    pouring = Pouring(out, Expected(1, [b"a"]))
    pouring.announce(Entries(1, [small(digest=digest_of(b"y"))]))
    assert pouring.take_answers().results[0].failure is not None
    pouring = Pouring(out, Expected(1, [b"a"]))
    pouring.announce(Entries(1, [large()]))
    with pytest.raises(PeerBrokeProtocol, match="ended before"):
        pouring.finish()
    data = memoryview(b"datas")
    with pytest.raises(VsockfwdError, match="damaged"):
        pouring.receive(Chunk(1, 0, 4, 0), data[:4])
    with pytest.raises(VsockfwdError, match="do not fit"):
        pouring.receive(Chunk(1, 0, 5, checksum(data)), data)
    with pytest.raises(VsockfwdError, match="do not fit"):
        pouring.receive(Hole(1, 0, 1 << 60), data[:0])
    pouring.receive(Finish(1, FileDigest().digest()), data[:0])
    assert pouring.take_answers().results[-1].failure is not None
    assert content(read) == b""


# --- digests, pace ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"delta": True}, {"checksum": True}], ids=str)
async def test_blake3_verifies_where_it_is_asked_to(
    world: World, towards: str, options: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("blake3")
    tree = world.source(towards) / "tree"
    tree.mkdir()
    (tree / "small").write_bytes(b"small")
    (tree / "large").write_bytes(BYTES)
    (world.sink(towards) / "tree").mkdir()
    (world.sink(towards) / "tree" / "large").write_bytes(BYTES[:MIB])
    assert await world.carry(towards, "tree", "", recursive=True, algorithm=Algorithm.BLAKE3, **options) == 0
    assert snapshot(world.sink(towards) / "tree") == snapshot(tree)


async def test_a_digest_that_is_not_installed_is_refused_before_anything_is_sent(
    world: World, towards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (world.source(towards) / "file").write_bytes(b"x")
    monkeypatch.setitem(__import__("sys").modules, "blake3", None)
    with pytest.raises(BadRequest, match="blake3"):
        await world.carry(towards, "file", "", algorithm=Algorithm.BLAKE3)
    assert os.listdir(world.sink(towards)) == [] or world.sink(towards) is world.home


async def test_a_limited_rate_is_kept_to() -> None:
    clock = trio.testing.MockClock(autojump_threshold=0)

    async def send(rate: int, pieces: int) -> float:
        pace = Pace(rate)
        begin = trio.current_time()
        for _ in range(pieces):
            await pace.sent(pace.piece)
        return trio.current_time() - begin

    taken: list[float] = []

    async def main() -> None:
        taken.extend([await send(0, 100), await send(10 * MIB, 16), await send(1000, 2)])

    await trio.to_thread.run_sync(lambda: trio.run(main, clock=clock))
    assert taken[0] == 0
    assert taken[1] == pytest.approx(16 * Pace(10 * MIB).piece / (10 * MIB))
    assert taken[2] == pytest.approx(2 * SMALLEST_PIECE / 1000)
    assert Pace(1 << 40).piece == READ_SIZE


async def test_every_byte_counts_towards_the_rate(world: World, towards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    paced: list[int] = []

    async def sent(self: Pace, size: int) -> None:
        paced.append(size)

    monkeypatch.setattr(Pace, "sent", sent)
    tree = world.source(towards) / "tree"
    tree.mkdir()
    (tree / "large").write_bytes(BYTES)
    (tree / "small").write_bytes(BYTES[:50_000])
    assert await world.carry(towards, "tree", "", recursive=True, rate=4 * MIB) == 0
    assert sum(paced) >= len(BYTES) + 50_000
    assert max(paced) <= MIB
    assert len(paced) > len(BYTES) / (4 * MIB / 8)


async def test_a_source_that_is_gone_is_told_by_the_librarys_own_error(world: World) -> None:
    async with open_target(world.address, engine=world.engine) as target:
        copied = await target.get(["nope"], ".")
        with pytest.raises(NotFound):
            copied.check()
        assert [event.name for event in world.reported(FileDone)] == ["nope"]
