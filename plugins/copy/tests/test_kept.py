"""What is kept beside content, mode and mtime: owners, hard links, attributes, ACLs; what is lost is told."""

from __future__ import annotations

import errno
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from plugins.copy.tests.test_trouble import as_nobody
from plugins.copy.tests.world import MIB, World, snapshot
from vsockfwd.plugin import BadRequest, FileDone, Problem
from vsockfwd_copy.attributes import Loss, Writer
from vsockfwd_copy.messages import SMALL_LIMIT, Extra, Owner
from vsockfwd_copy.options import LandOptions, Symlinks

LARGE = SMALL_LIMIT + 1
"""Bytes of a file whose data does not ride in its announcement."""

CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)
"""security.capability: cap_net_bind_service, effective and permitted."""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="owners are root's to give")


def owners(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_uid, found.st_gid


def acl(*named: tuple[int, int], user: int = 6, group: int = 4, mask: int = 6, other: int = 4) -> bytes:
    """system.posix_acl_access, with these permissions for these users (acl(5), linux/posix_acl_xattr.h)."""
    nobody = 0xFFFFFFFF
    rows = [(0x01, user, nobody), *((0x02, bits, uid) for uid, bits in named), (0x04, group, nobody),
            (0x10, mask, nobody), (0x20, other, nobody)]  # fmt: skip
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *row) for row in rows)


@pytest.fixture
def with_acls(world: World) -> Iterator[tuple[Path, Path]]:
    """Two directories on a file system that has ACLs, since not every one has: a tmpfs does."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        probe = Path(folder) / "probe"
        probe.touch()
        try:
            os.setxattr(probe, "system.posix_acl_access", acl((7, 4)))
            os.setxattr(probe, "user.probe", b"")
        except OSError as error:
            pytest.skip(f"no ACLs on /dev/shm: {error}")
        for name in ("from", "to"):
            (Path(folder) / name).mkdir()
        yield Path(folder) / "from", Path(folder) / "to"


def no_xattrs(*args: object, **keywords: object) -> None:
    """What setxattr(2) says on a file system that has none."""
    raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))


def problems(world: World) -> list[str]:
    return [problem.why for problem in world.reported(Problem)]


# --- owners ------------------------------------------------------------------------------------------------------


@as_root
async def test_owners_and_groups_are_kept_of_all_there_is(world: World, towards: str) -> None:
    tree = world.source(towards) / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "small").write_text("x")
    (tree / "large").write_bytes(bytes(LARGE))
    (tree / "link").symlink_to("nowhere")
    for number, path in enumerate([tree, *sorted(tree.iterdir())]):
        os.lchown(path, 40_000 + number, 50_000 + number)
    assert await world.carry(towards, "tree", "", recursive=True, owner=True, group=True) == 0
    there = world.sink(towards) / "tree"
    assert [owners(path) for path in [there, *sorted(there.iterdir())]] == [
        (40_000 + number, 50_000 + number) for number in range(5)
    ]
    assert await world.carry(towards, "tree/.", "plain", recursive=True) == 0
    assert owners(world.sink(towards) / "plain" / "small") == (0, 0), "nobody asked for owners"


@as_root
async def test_of_owner_and_group_each_is_kept_on_its_own(world: World, towards: str) -> None:
    file = world.source(towards) / "file"
    file.touch()
    os.chown(file, 40_000, 50_000)
    assert await world.carry(towards, "file", "owned", owner=True) == 0
    assert await world.carry(towards, "file", "grouped", group=True) == 0
    assert owners(world.sink(towards) / "owned") == (40_000, 0)
    assert owners(world.sink(towards) / "grouped") == (0, 50_000)


@as_root
def test_an_owner_is_known_by_name_where_one_of_that_name_lives_and_else_by_number(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    said = Extra(Owner(40_000, 50_000, "nobody", "nogroup"), [])
    stranger = Extra(Owner(40_000, 50_000, "nobody-of-this-name", "no-such-group"), [])
    for options, extra, expected in (
        (LandOptions(owner=True, group=True), said, (65534, 65534)),
        (LandOptions(owner=True, group=True, numeric=True), said, (40_000, 50_000)),
        (LandOptions(owner=True, group=True), stranger, (40_000, 50_000)),
        (LandOptions(owner=True, group=True, chown="7:8"), said, (7, 8)),
        (LandOptions(owner=True, group=True, chown=":8"), said, (65534, 8)),
        (LandOptions(chown="nobody"), said, (65534, 0)),
    ):
        os.chown(path, 0, 0)
        fd = os.open(path, os.O_RDONLY)
        assert Writer(options).dress(fd, 0o644, extra) == Loss(0)
        os.close(fd)
        assert owners(path) == expected


@pytest.mark.parametrize("text", ["no-such-user-here", ":no-such-group", "-1", "4294967295", "0:4294967296", "a:b:c"])
def test_an_owner_whom_nobody_knows_is_refused_before_anything_lands(text: str) -> None:
    with pytest.raises(BadRequest, match="--chown"):
        Writer(LandOptions(chown=text))


@as_root
async def test_whom_the_command_line_names_owns_what_lands(world: World, towards: str) -> None:
    tree = world.source(towards) / "tree"
    tree.mkdir()
    (tree / "small").write_text("x")
    (tree / "large").write_bytes(bytes(LARGE))
    (tree / "link").symlink_to("nowhere")
    assert await world.carry(towards, "tree", "", recursive=True, chown="40000:50000") == 0
    there = world.sink(towards) / "tree"
    assert {owners(path) for path in [there, *there.iterdir()]} == {(40_000, 50_000)}


@as_root
def test_who_may_not_give_a_file_away_says_so_and_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    tmp_path.chmod(0o755)
    fd = os.open(path, os.O_RDWR)
    extra = Extra(Owner(40_000, 50_000), [(b"security.capability", CAPABILITY), (b"user.a", b"1")])
    with as_nobody(path):
        loss = Writer(LandOptions(owner=True, group=True, xattrs=True)).dress(fd, 0o4755, extra)
    os.close(fd)
    assert loss == Loss.OWNER | Loss.GROUP | Loss.SPECIAL_BITS | Loss.XATTRS
    assert path.stat().st_mode & 0o7777 == 0o755
    assert os.listxattr(path) == ["user.a"]


@as_root
async def test_setuid_bits_come_along_with_their_owner_and_never_without(world: World, towards: str) -> None:
    tree = world.source(towards) / "tree"
    tree.mkdir()
    (tree / "small").write_text("x")
    (tree / "large").write_bytes(bytes(LARGE))
    for path in (tree / "small", tree / "large"):
        os.chown(path, 40_000, 50_000)
        path.chmod(0o6755)
    tree.chmod(0o2775)
    assert await world.carry(towards, "tree", "owned", recursive=True, owner=True, group=True) == 0
    assert await world.carry(towards, "tree", "plain", recursive=True) == 0
    modes = {
        name: [path.stat().st_mode & 0o7777 for path in (there, there / "small", there / "large")]
        for name in ("owned", "plain")
        for there in [world.sink(towards) / name]
    }
    assert modes == {"owned": [0o2775, 0o6755, 0o6755], "plain": [0o775, 0o755, 0o755]}
    await world.carry(towards, "tree/small", "other", chown="7", owner=True)
    assert (world.sink(towards) / "other").stat().st_mode & 0o7777 in (0o755, 0o6755)


# --- permissions -------------------------------------------------------------------------------------------------


async def test_chmod_changes_what_lands_and_not_what_is_read(world: World, towards: str) -> None:
    tree = world.source(towards) / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "small").write_text("x")
    (tree / "large").write_bytes(bytes(LARGE))
    before = snapshot(tree)
    assert await world.carry(towards, "tree", "", recursive=True, chmod="D751,F640") == 0
    there = world.sink(towards) / "tree"
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in [there, *there.iterdir()]} == {
        "tree": "0o751", "sub": "0o751", "small": "0o640", "large": "0o640",
    }  # fmt: skip
    assert snapshot(tree) == before


@pytest.mark.parametrize("options", [{}, {"inplace": True}, {"xattrs": True}, {"backup": b"~"}], ids=str)
async def test_without_perms_a_file_gets_those_that_any_new_file_gets(
    world: World, towards: str, options: dict[str, object]
) -> None:
    tree, there = world.source(towards) / "tree", world.sink(towards) / "tree"
    for folder in (tree, there):
        folder.mkdir()
    for name, size in (("small", 1), ("large", LARGE), ("old", 1), ("old-large", LARGE)):
        (tree / name).write_bytes(bytes(size))
        (tree / name).chmod(0o700)
    for name in ("old", "old-large"):
        (there / name).write_text("as it was")
        (there / name).chmod(0o604)
    assert await world.carry(towards, "tree/.", "tree", recursive=True, perms=False, **options) == 0
    (world.tmp / "any").touch()
    usual = (world.tmp / "any").stat().st_mode & 0o777
    assert {name: oct((there / name).stat().st_mode & 0o777) for name in ("small", "large", "old", "old-large")} == {
        "small": oct(usual), "large": oct(usual), "old": "0o604", "old-large": "0o604",
    }  # fmt: skip


async def test_without_times_a_file_is_as_new_as_it_is(world: World, towards: str) -> None:
    file = world.source(towards) / "file"
    file.write_text("x")
    os.utime(file, ns=(0, 10**9))
    assert await world.carry(towards, "file", "new", times=False) == 0
    assert (world.sink(towards) / "new").stat().st_mtime_ns > 10**18


# --- hard links --------------------------------------------------------------------------------------------------


def inodes(tree: Path) -> dict[str, str]:
    """Each file's first name, of those that are the same file."""
    first: dict[int, str] = {}
    paths = sorted(path for path in tree.rglob("*") if path.is_file())
    return {
        os.path.relpath(path, tree): first.setdefault(path.stat().st_ino, os.path.relpath(path, tree)) for path in paths
    }


def linked_tree(tree: Path) -> None:
    """Small, empty and large files of several names, in one directory and across; and one whose other name is out."""
    (tree / "a").mkdir(parents=True)
    (tree / "b" / "c").mkdir(parents=True)
    for name, size in (("small", 10), ("empty", 0), ("large", 3 * MIB)):
        (tree / "a" / name).write_bytes(os.urandom(size))
        os.link(tree / "a" / name, tree / "a" / f"{name}-again")
        os.link(tree / "a" / name, tree / "b" / "c" / name)
    (tree / "alone").write_text("alone")
    os.link(tree / "alone", tree.parent / "elsewhere")


async def test_files_of_several_names_stay_one_file(world: World, towards: str) -> None:
    tree = world.source(towards) / "tree"
    linked_tree(tree)
    assert await world.carry(towards, "tree", "", recursive=True, hard_links=True) == 0
    there = world.sink(towards) / "tree"
    assert snapshot(there) == snapshot(tree)
    assert inodes(there) == inodes(tree)
    assert (there / "alone").stat().st_nlink == 1
    assert await world.carry(towards, "tree/.", "apart", recursive=True) == 0
    assert {path.stat().st_nlink for path in (world.sink(towards) / "apart").rglob("*") if path.is_file()} == {1}


@pytest.mark.parametrize("options", [{"update": True}, {"checksum": True}, {"delta": True}, {}], ids=str)
async def test_files_of_several_names_are_one_file_after_a_second_copy_too(
    world: World, towards: str, options: dict[str, bool]
) -> None:
    tree, there = world.source(towards) / "tree", world.sink(towards) / "tree"
    linked_tree(tree)
    assert await world.carry(towards, "tree", "", recursive=True, hard_links=True) == 0
    (there / "a" / "small-again").unlink()
    (there / "b" / "c" / "large").unlink()
    (there / "b" / "c" / "large").write_text("another")
    (tree / "a" / "empty").write_text("not any more")
    assert await world.carry(towards, "tree", "", recursive=True, hard_links=True, **options) == 0
    assert snapshot(there) == snapshot(tree)
    assert inodes(there) == inodes(tree)
    assert await world.carry(towards, "tree", "", recursive=True, hard_links=True, **options) == 0
    done = {event.name.rpartition("tree/")[2]: event.done for event in world.reported(FileDone)}
    if options and "delta" not in options:
        assert set(done.values()) == {"unchanged"}


@pytest.mark.parametrize("size", [10, 3 * MIB])
async def test_more_names_of_a_file_that_failed_fail_with_it_and_nothing_else_does(
    world: World, towards: str, size: int
) -> None:
    tree, there = world.source(towards) / "tree", world.sink(towards) / "tree"
    (tree / "z").mkdir(parents=True)
    (tree / "a").write_bytes(os.urandom(size))
    for name in ("b", "z/c"):
        os.link(tree / "a", tree / name)
    (tree / "z" / "other").write_text("other")
    (there / "a").mkdir(parents=True)
    assert await world.carry(towards, "tree", "", recursive=True, hard_links=True) == 23
    assert sorted(name.rpartition("tree/")[2] for name in world.failures()) == ["a", "b", "z/c"]
    assert (there / "z" / "other").read_text() == "other"
    assert not (there / "b").exists()


async def test_more_names_of_a_file_that_was_given_up_before_they_came_fail_too(
    world: World, towards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vsockfwd_copy.walking.BATCH_LIMIT", 1)
    monkeypatch.setattr("vsockfwd_copy.sending.WINDOW", 1)
    tree = world.source(towards) / "tree"
    tree.mkdir()
    (tree / "a").write_bytes(os.urandom(LARGE))
    os.link(tree / "a", tree / "b")
    monkeypatch.setattr("vsockfwd_copy.reading.Reading._read_exactly", _fails)
    assert await world.carry(towards, "tree", "", recursive=True, hard_links=True) == 23
    assert sorted(name.rpartition("tree/")[2] for name in world.failures()) == ["a", "b"]


def _fails(*args: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


async def test_no_name_is_given_to_what_was_kept_and_is_something_else(world: World, towards: str) -> None:
    tree, there = world.source(towards) / "tree", world.sink(towards) / "tree"
    tree.mkdir()
    (tree / "a").write_text("new")
    os.link(tree / "a", tree / "b")
    there.mkdir()
    (there / "a").write_text("as it was")
    code = await world.carry(towards, "tree", "", recursive=True, hard_links=True, no_clobber=True)
    assert (there / "a").read_text() == "as it was"
    assert not (there / "b").exists()
    assert code == 23


# --- extended attributes -----------------------------------------------------------------------------------------


async def test_extended_attributes_are_kept_where_asked_for(world: World, towards: str) -> None:
    tree, there = world.source(towards) / "tree", world.sink(towards) / "tree"
    tree.mkdir()
    (tree / "small").write_text("x")
    (tree / "large").write_bytes(bytes(LARGE))
    names = {"user.a": b"1", "user.\xe4\n": b"\0\xff", "user.empty": b"", "user.long": b"x" * 1000}
    for path in (tree, tree / "small", tree / "large"):
        for name, value in names.items():
            os.setxattr(path, name, value)
    assert await world.carry(towards, "tree", "", recursive=True, xattrs=True) == 0
    for path in (there, there / "small", there / "large"):
        assert {name: os.getxattr(path, name) for name in os.listxattr(path)} == names
    assert await world.carry(towards, "tree", "plain", recursive=True) == 0
    assert os.listxattr(world.sink(towards) / "plain" / "small") == []


async def test_attributes_that_the_source_has_not_any_more_go(world: World, towards: str) -> None:
    source, sink = world.source(towards) / "file", world.sink(towards) / "file"
    source.write_text("x")
    os.setxattr(source, "user.new", b"new")
    for options in ({"inplace": True}, {"checksum": True}):
        sink.write_text("x")
        os.setxattr(sink, "user.old", b"old")
        assert await world.carry(towards, "file", "", xattrs=True, **options) == 0
        assert os.listxattr(sink) == ["user.new"]


@as_root
async def test_what_gives_power_comes_with_its_owner_only(world: World, towards: str) -> None:
    file = world.source(towards) / "file"
    file.write_text("x")
    os.setxattr(file, "security.capability", CAPABILITY)
    os.setxattr(file, "trusted.a", b"1")
    os.setxattr(file, "user.a", b"1")
    assert await world.carry(towards, "file", "without", xattrs=True) == 0
    assert os.listxattr(world.sink(towards) / "without") == ["user.a"]
    assert problems(world) == ["extended attributes of 1 could not be kept"]
    assert await world.carry(towards, "file", "with", xattrs=True, owner=True, group=True) == 0
    assert sorted(os.listxattr(world.sink(towards) / "with")) == ["security.capability", "trusted.a", "user.a"]
    assert problems(world) == []


async def test_attributes_that_cannot_be_kept_are_told_and_fail_what_demanded_them(
    world: World, towards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = world.source(towards) / "tree"
    tree.mkdir()
    for name in ("a", "b"):
        (tree / name).write_text(name)
        os.setxattr(tree / name, "user.a", b"1")
    monkeypatch.setattr("os.setxattr", no_xattrs)
    assert await world.carry(towards, "tree", "", recursive=True, xattrs=True) == 0
    assert problems(world) == ["extended attributes of 2 could not be kept"]
    assert await world.carry(towards, "tree", "", recursive=True, xattrs=True, demanded=True) == 23
    assert world.failures() == {}
    assert (world.sink(towards) / "tree" / "a").read_text() == "a"


async def test_more_attributes_than_are_taken_fail_their_file_only(
    world: World, towards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vsockfwd_copy.attributes.XATTRS_LIMIT", 500)
    tree = world.source(towards) / "tree"
    tree.mkdir()
    for name, size in (("a", 500), ("b", 490)):
        (tree / name).write_text(name)
        os.setxattr(tree / name, "user.x", bytes(size))
    assert await world.carry(towards, "tree", "", recursive=True, xattrs=True) == 23
    assert list(world.failures().values()) == ["has more than 500 bytes of extended attributes"]
    assert os.listdir(world.sink(towards) / "tree") == ["b"]


# --- ACLs --------------------------------------------------------------------------------------------------------


async def test_acls_are_kept_with_the_modes_that_they_mean(
    world: World, towards: str, with_acls: tuple[Path, Path]
) -> None:
    source, sink = with_acls
    tree = source / "tree"
    tree.mkdir()
    (tree / "small").write_text("x")
    (tree / "large").write_bytes(bytes(LARGE))
    (tree / "without").write_text("x")
    for path in (tree, tree / "small", tree / "large"):
        os.setxattr(path, "system.posix_acl_access", acl((40_000, 6), (40_001, 4), mask=4))
    assert await world.carry(towards, f"{tree}", f"{sink}", recursive=True, acls=True) == 0
    there = sink / "tree"
    for name in ("", "small", "large"):
        assert os.getxattr(there / name, "system.posix_acl_access") == acl((40_000, 6), (40_001, 4), mask=4)
    assert snapshot(there) == snapshot(tree)
    assert os.listxattr(there / "without") == []
    assert await world.carry(towards, f"{tree}", f"{sink}/plain", recursive=True) == 0
    assert os.listxattr(sink / "plain" / "small") == []


async def test_a_file_without_an_acl_does_not_inherit_one_where_acls_are_kept(
    world: World, towards: str, with_acls: tuple[Path, Path]
) -> None:
    source, sink = with_acls
    os.setxattr(sink, "system.posix_acl_default", acl((40_000, 6)))
    (source / "tree").mkdir()
    (source / "tree" / "file").write_text("x")
    (source / "tree" / "large").write_bytes(bytes(LARGE))
    (source / "tree" / "file").chmod(0o640)
    assert await world.carry(towards, f"{source}/tree", f"{sink}", recursive=True, acls=True) == 0
    for path in (sink / "tree", sink / "tree" / "file", sink / "tree" / "large"):
        assert os.listxattr(path) == []
    assert (sink / "tree" / "file").stat().st_mode & 0o777 == 0o640


async def test_acls_are_lost_in_words_where_there_are_none(
    world: World, towards: str, with_acls: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, sink = with_acls
    (source / "file").write_text("x")
    os.setxattr(source / "file", "system.posix_acl_access", acl((40_000, 6)))
    monkeypatch.setattr("os.setxattr", no_xattrs)
    assert await world.carry(towards, f"{source}/file", f"{sink}", acls=True) == 0
    assert problems(world) == ["ACLs of 1 could not be kept"]
    assert await world.carry(towards, f"{source}/file", f"{sink}", acls=True, demanded=True) == 23


# --- symlinks ----------------------------------------------------------------------------------------------------


def tree_of_links(source: Path) -> None:
    tree = source / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "file").write_text("file")
    (tree / "sub" / "inner").write_text("inner")
    (tree / "to-file").symlink_to("file")
    (tree / "to-sub").symlink_to("sub")
    (tree / "to-large").symlink_to("../large")
    (tree / "dangling").symlink_to("nowhere")
    (tree / "itself").symlink_to("itself")
    (tree / "sub" / "up").symlink_to("..")
    (source / "large").write_bytes(bytes(LARGE))
    (source / "named").symlink_to("tree")
    (source / "named-file").symlink_to("tree/file")


@pytest.mark.parametrize("how", ["P", "H", "L"])
async def test_which_symlinks_are_followed(world: World, towards: str, how: str) -> None:
    source, sink = world.source(towards), world.sink(towards)
    tree_of_links(source)
    code = await world.carry(towards, "named", "named-file", "tree", "", recursive=True, symlinks=Symlinks(how))
    assert (sink / "named").is_symlink() == (sink / "named-file").is_symlink() == (how == "P")
    links = {path.name for path in (sink / "tree").rglob("*") if path.is_symlink()}
    if how == "L":
        assert code == 23
        assert {name.rpartition("/")[2]: why for name, why in world.failures().items()} == {
            "up": "leads back to a directory that it is in"
        }
        assert links == {"dangling", "itself"}
        assert (sink / "tree" / "to-file").read_text() == "file"
        assert (sink / "tree" / "to-large").stat().st_size == LARGE
        assert (sink / "tree" / "to-sub" / "inner").read_text() == "inner"
    else:
        assert code == 0
        assert links == {"to-file", "to-sub", "to-large", "dangling", "itself", "up"}
        assert snapshot(sink / "tree") == snapshot(source / "tree")


async def test_a_symlink_that_is_named_and_leads_nowhere_is_copied_as_one_or_fails(world: World, towards: str) -> None:
    (world.source(towards) / "dangling").symlink_to("nowhere")
    (world.source(towards) / "loop").symlink_to("loop")
    assert await world.carry(towards, "dangling", "loop", "", symlinks=Symlinks.NONE) == 0
    assert os.readlink(world.sink(towards) / "dangling") == "nowhere"
    assert await world.carry(towards, "dangling", "loop", "", symlinks=Symlinks.NAMED) == 23
    assert await world.carry(towards, "dangling", "there", symlinks=Symlinks.ALL) == 1


async def test_a_file_that_a_symlink_became_meanwhile_is_not_followed(
    world: World, towards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With -P the sender gives a name's own file, also where another stands behind a symlink of that name now."""
    tree = world.source(towards) / "tree"
    tree.mkdir()
    (tree / "a").write_text("a")
    (world.source(towards) / "secret").write_text("secret")
    plain: Callable[..., object] = __import__("vsockfwd_copy.walking", fromlist=["Tree"]).Tree._plain

    def late(self: object, source: object, name: bytes, kind: object) -> object:
        (tree / "a").unlink(missing_ok=True)
        (tree / "a").symlink_to("../secret")
        return plain(self, source, name, kind)

    monkeypatch.setattr("vsockfwd_copy.walking.Tree._plain", late)
    assert await world.carry(towards, "tree", "", recursive=True, symlinks=Symlinks.NONE) == 23
    assert not (world.sink(towards) / "tree" / "a").exists()


def test_a_loss_says_what_it_is_of() -> None:
    assert (Loss.OWNER | Loss.ACLS).words == "owner, ACLs"
    assert Loss(31).words == "owner, group, extended attributes, ACLs, setuid and setgid bits"
