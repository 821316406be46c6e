"""A destination means the same whichever side owns it, and that is what cp and scp mean by it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from plugins.copy.tests.world import World, snapshot
from vsockfwd.plugin import CannotCreate, FileDone, VsockfwdError


def prepare(source: Path, sink: Path) -> None:
    """Sources: file, other, tree/inner, link → file, treelink → tree. At the sink: dir/, old, and links to both."""
    (source / "file").write_text("file")
    (source / "other").write_text("other")
    (source / "tree").mkdir()
    (source / "tree" / "inner").write_text("inner")
    (source / "link").symlink_to("file")
    (source / "treelink").symlink_to("tree")
    (sink / "dir").mkdir()
    (sink / "old").write_text("old")
    (sink / "full").mkdir()
    (sink / "full" / "file").mkdir()
    (sink / "full" / "tree").write_text("a file where a directory should go")
    (sink / "dirlink").symlink_to("dir")
    (sink / "oldlink").symlink_to("old")
    os.mkfifo(sink / "fifo")


@dataclass(frozen=True)
class Case:
    """A command line, and the files that it makes, or the words of its refusal with the exit code."""

    words: tuple[str, ...]
    makes: tuple[str, ...] = ()
    fails: str = ""
    code: int = 0
    recursive: bool = False
    options: str = ""
    """Which of -T, -t and --mkpath are said."""

    @property
    def said(self) -> dict[str, bool]:
        flags = {"-T": "plain", "-t": "directory", "--mkpath": "mkpath"}
        return {flags[word]: True for word in self.options.split()}


CASES = [
    Case(("file", ""), ("file",)),
    Case(("file", "dir"), ("dir/file",)),
    Case(("file", "dir/"), ("dir/file",)),
    Case(("file", "dirlink"), ("dir/file",)),
    Case(("file", "new"), ("new",)),
    Case(("file", "dir/new"), ("dir/new",)),
    Case(("file", "old"), ("old",)),
    Case(("file", "oldlink"), ("old",)),
    Case(("link", "dir"), ("dir/link",)),
    Case(("./tree/../file", "dir"), ("dir/file",)),
    Case(("file", "other", "dir"), ("dir/file", "dir/other")),
    Case(("file", "tree", "dir"), ("dir/file", "dir/tree/inner"), recursive=True),
    Case(("tree", "dir"), ("dir/tree/inner",), recursive=True),
    Case(("tree/", "dir"), ("dir/tree/inner",), recursive=True),
    Case(("treelink", "dir"), ("dir/treelink/inner",), recursive=True),
    Case(("tree/.", "dir"), ("dir/inner",), recursive=True),
    Case(("tree", "new"), ("new/inner",), recursive=True),
    Case(("tree", "new/"), ("new/inner",), recursive=True),
    Case(("tree/.", "new"), ("new/inner",), recursive=True),
    Case(("file", "new/"), fails="no such directory", code=73),
    Case(("file", "new/"), fails="no directory", code=73, recursive=True),
    Case(("file", "no/such"), fails="no such file or directory", code=73),
    Case(("file", "old/"), fails="not a directory", code=73),
    Case(("file", "old/below"), fails="not a directory", code=73),
    Case(("file", "other", "new"), fails="no directory", code=73),
    Case(("file", "other", "old"), fails="no directory", code=73),
    Case(("file", "fifo"), fails="neither a file nor a directory", code=73),
    Case(("file", "full"), fails="a directory stands in its place", code=73),
    Case(("tree", "full"), fails="something else than a directory", code=73, recursive=True),
    Case(("tree", "old"), fails="something else than a directory", code=73, recursive=True),
    Case(("tree", "dir"), fails="needs -r", code=23),
    Case(("nope", "dir"), fails="no such file or directory", code=1),
    Case(("nope", "nada", "dir"), fails="no such file or directory", code=1),
    Case(("file", "new"), ("new",), options="-T"),
    Case(("file", "old"), ("old",), options="-T"),
    Case(("file", "dirlink/new"), ("dir/new",), options="-T"),
    Case(("tree", "new"), ("new/inner",), recursive=True, options="-T"),
    Case(("tree", "dir"), ("dir/inner",), recursive=True, options="-T"),
    Case(("tree/", "dir/"), ("dir/inner",), recursive=True, options="-T"),
    Case(("tree", "dirlink"), ("dir/inner",), recursive=True, options="-T"),
    Case(("tree/.", "dir"), ("dir/inner",), recursive=True, options="-T"),
    Case(("file", "dir"), fails="a directory stands in its place", code=73, options="-T"),
    Case(("file", "dir/"), fails="", code=73, options="-T"),
    Case(("tree", "old"), fails="something else than a directory", code=73, recursive=True, options="-T"),
    Case(("file", "other", "dir"), fails="-T takes one source", code=73, options="-T"),
    Case(("file", "."), fails="names no file", code=73, options="-T"),
    Case(("tree", "dir/.."), fails="names no file", code=73, recursive=True, options="-T"),
    Case(("file", "dir"), ("dir/file",), options="-t"),
    Case(("file", "dir/"), ("dir/file",), options="-t"),
    Case(("file", "other", "dirlink"), ("dir/file", "dir/other"), options="-t"),
    Case(("tree", "dir"), ("dir/tree/inner",), recursive=True, options="-t"),
    Case(("file", "new"), fails="is no directory that is there", code=73, options="-t"),
    Case(("file", "old"), fails="is no directory that is there", code=73, options="-t"),
    Case(("tree", "new"), fails="is no directory that is there", code=73, recursive=True, options="-t"),
    Case(("file", "a/b/new"), ("a/b/new",), options="--mkpath"),
    Case(("file", "a/b/"), ("a/b/file",), options="--mkpath"),
    Case(("file", "dir"), ("dir/file",), options="--mkpath"),
    Case(("file", "new"), ("new",), options="--mkpath"),
    Case(("file", "other", "a/b"), ("a/b/file", "a/b/other"), options="--mkpath"),
    Case(("tree", "a/b"), ("a/b/inner",), recursive=True, options="--mkpath"),
    Case(("tree", "a/b/"), ("a/b/tree/inner",), recursive=True, options="--mkpath"),
    Case(("file", "a/b"), ("a/b/file",), options="--mkpath -t"),
    Case(("tree", "a/b"), ("a/b/tree/inner",), recursive=True, options="--mkpath -t"),
    Case(("file", "a/b"), ("a/b",), options="--mkpath -T"),
    Case(("tree", "a/b"), ("a/b/inner",), recursive=True, options="--mkpath -T"),
    Case(("tree", "a/b/"), ("a/b/inner",), recursive=True, options="--mkpath -T"),
    Case(("file", "a/b/"), fails="no such directory", code=73, options="--mkpath -T"),
    Case(("file", "old/below"), fails="not a directory", code=73, options="--mkpath"),
    Case(("file", "a/../b/new"), fails="no such file or directory", code=73, options="--mkpath"),
]


def name_of(case: Case) -> str:
    return " ".join([*case.words, *(["-r"] if case.recursive else []), case.options]).strip()


async def ended(
    world: World, towards: str, case: Case, *, dry_run: bool = False
) -> tuple[int, str, list[tuple[str, str]]]:
    """How a case ends: the exit code, the words of what failed, and what was done with each file."""
    world.events.clear()
    try:
        code = await world.carry(towards, *case.words, recursive=case.recursive, dry_run=dry_run, **case.said)
        told = " ".join(world.failures().values())
    except VsockfwdError as error:
        code, told = error.exit_code, error.line()
    return code, told, sorted((event.name, event.done) for event in world.reported(FileDone))


@pytest.mark.parametrize("case", CASES, ids=name_of)
async def test_where_a_copy_lands(world: World, towards: str, case: Case) -> None:
    source, sink = world.source(towards), world.sink(towards)
    prepare(source, sink)
    before = snapshot(sink)
    dry = await ended(world, towards, case, dry_run=True)
    assert snapshot(sink) == before, "a dry run changes nothing"
    code, told, files = await ended(world, towards, case)
    assert (code, case.fails in told) == (case.code, True), told
    assert dry == (code, told, files), "a dry run says what the copy does"
    after = {path: state for path, state in snapshot(sink).items() if state != before.get(path)}
    made = {path for path, state in after.items() if state[3]}
    assert made == {os.fsencode(path) for path in case.makes}
    for path in made:
        name = os.path.basename(path)
        assert after[path][3] == (name if name in (b"inner", b"other") else b"file")
    assert (sink / "oldlink").is_symlink()
    assert (sink / "dirlink").is_symlink()


async def test_a_directory_that_stood_at_the_destination_keeps_its_own_mode(world: World, towards: str) -> None:
    (world.source(towards) / "tree").mkdir(mode=0o700)
    (world.source(towards) / "tree" / "inner").write_text("inner")
    (world.sink(towards) / "dir").mkdir()
    (world.sink(towards) / "dir").chmod(0o751)
    assert await world.carry(towards, "tree/.", "dir", recursive=True) == 0
    assert (world.sink(towards) / "dir").stat().st_mode & 0o777 == 0o751


async def test_relative_far_paths_start_at_the_agents_home_and_absolute_ones_at_the_root(world: World) -> None:
    (world.home / "sub").mkdir()
    (world.here / "file").write_text("x")
    assert await world.cp("file", "@sub") == 0
    assert await world.cp("file", f"@{world.tmp}/absolute") == 0
    assert (world.home / "sub" / "file").read_text() == (world.tmp / "absolute").read_text() == "x"
    assert await world.cp("@", "copy", recursive=True) == 0
    assert snapshot(world.here / "copy") == snapshot(world.home)


async def test_the_source_may_be_the_destination(world: World) -> None:
    (world.home / "file").write_text("x" * 100_000)
    assert await world.cp(f"{world.home}/file", "@file") == 0
    assert (world.home / "file").read_text() == "x" * 100_000


async def test_more_far_sources_than_one_request_holds(world: World) -> None:
    names = [f"{number:03}" + "n" * 200 for number in range(60)]
    for name in names:
        (world.home / name).write_text(name)
    (world.here / "dir").mkdir()
    assert await world.cp(*("@" + name for name in names), "dir") == 0
    assert sorted(os.listdir(world.here / "dir")) == names


async def test_a_bad_local_destination_is_told_before_anybody_is_asked_for_data(world: World) -> None:
    (world.home / "file").write_text("x")
    with pytest.raises(CannotCreate):
        await world.cp("@file", "no/such/place")
