"""What was typed stays below the root whatever it says, by openat2 and by the walk that stands in for it alike."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vsockfwd_copy import roots
from vsockfwd_copy.roots import Root

HOW = {"openat2": False, "walk": True}


@pytest.fixture(params=HOW)
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Root]:
    """A root with a home in it, and beside it what nobody may reach."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "secret").write_text("outside")
    top = tmp_path / "root"
    (top / "home" / "sub").mkdir(parents=True)
    (top / "secret").write_text("inside")
    (top / "home" / "file").write_text("home/file")
    (top / "home" / "sub" / "file").write_text("sub/file")
    for name, target in (
        ("to-file", "file"), ("to-sub", "sub"), ("up", ".."), ("absolute", "/home/file"), ("far-up", "../../../secret"),
        ("dangling", "sub/new"), ("dangling-out", "../../outside/new"), ("loop", "loop"), ("one", "other"),
        ("other", "one"), ("with-slash", "file/"), ("sub-with-slash", "sub/"), ("chain", "to-sub"),
        ("real", f"{tmp_path}/secret"),
    ):  # fmt: skip
        (top / "home" / name).symlink_to(target)
    if not HOW[request.param]:
        assert roots._openat2_works(), "this kernel has no openat2, so that only the walk is tested"
    before = len(os.listdir("/proc/self/fd"))
    root = Root(b"/home", os.fsencode(top), walk=HOW[request.param])
    yield root
    root.close()
    assert len(os.listdir("/proc/self/fd")) == before, "a descriptor was left open"


READ = [
    ("file", "home/file"),
    ("./sub/../file", "home/file"),
    ("/home/file", "home/file"),
    ("//home///file", "home/file"),
    ("to-file", "home/file"),
    ("to-sub/file", "sub/file"),
    ("chain/file", "sub/file"),
    ("sub-with-slash/file", "sub/file"),
    ("absolute", "home/file"),
    ("../secret", "inside"),
    ("../../../../secret", "inside"),
    ("/../secret", "inside"),
    ("far-up", "inside"),
    ("up/secret", "inside"),
    ("up/up/../../secret", errno.ENOENT),
    ("up/../../secret", "inside"),
    ("real", errno.ENOENT),
    ("nope", errno.ENOENT),
    ("nope/../file", errno.ENOENT),
    ("dangling", errno.ENOENT),
    ("dangling-out", errno.ENOENT),
    ("loop", errno.ELOOP),
    ("one/x", errno.ELOOP),
    ("file/", errno.ENOTDIR),
    ("file/.", errno.ENOTDIR),
    ("file/..", errno.ENOTDIR),
    ("file/x", errno.ENOTDIR),
    ("with-slash", errno.ENOTDIR),
    ("to-file/", errno.ENOTDIR),
]


@pytest.mark.parametrize(("typed", "expected"), READ, ids=[typed for typed, _ in READ])
def test_a_path_leads_to_what_is_below_the_root(root: Root, typed: str, expected: str | int) -> None:
    found: str | int | None
    try:
        with open(root.open(typed.encode(), os.O_RDONLY)) as file:
            found = file.read()
    except OSError as error:
        found = error.errno
    assert found == expected


DIRECTORIES = [("", "home"), ("..", ""), ("/", ""), ("../../..", ""), ("up", ""), ("sub/", "home/sub"),
               ("to-sub", "home/sub"), ("to-sub/", "home/sub"), ("to-sub/..", "home"), ("sub/../..", "")]  # fmt: skip


@pytest.mark.parametrize(("typed", "where"), DIRECTORIES)
def test_a_directory_is_one_below_the_root_or_the_root(root: Root, tmp_path: Path, typed: str, where: str) -> None:
    fd = root.open(typed.encode(), os.O_RDONLY | os.O_DIRECTORY)
    assert os.path.samestat(os.fstat(fd), os.stat(tmp_path / "root" / where))
    os.close(fd)


@pytest.mark.parametrize(
    ("typed", "makes"),
    [
        ("new", "home/new"),
        ("../new", "new"),
        ("../../../new", "new"),
        ("to-sub/new", "home/sub/new"),
        ("dangling", "home/sub/new"),
        ("dangling-out", errno.ENOENT),
        ("real", errno.ENOENT),
        ("new/", errno.EISDIR),
        ("no/new", errno.ENOENT),
        ("loop", errno.ELOOP),
        ("file/new", errno.ENOTDIR),
    ],
)
def test_what_is_made_is_made_below_the_root(root: Root, tmp_path: Path, typed: str, makes: str | int) -> None:
    before = set(tmp_path.rglob("*"))
    failed = None
    try:
        os.close(root.open(typed.encode(), os.O_WRONLY | os.O_CREAT, 0o640))
    except OSError as error:
        failed = error.errno
    made = {f"{path.relative_to(tmp_path / 'root')}" for path in set(tmp_path.rglob("*")) - before}
    assert (failed, made) == ((makes, set()) if isinstance(makes, int) else (None, {makes}))


def test_a_symlink_can_be_looked_at_and_not_be_followed(root: Root) -> None:
    assert root.stat(b"to-file", follow=False).st_size == len("file")
    assert root.stat(b"to-file").st_size == len("home/file")
    with pytest.raises(OSError) as caught:
        root.open(b"to-file", os.O_RDONLY | os.O_NOFOLLOW)
    assert caught.value.errno == errno.ELOOP


@pytest.mark.parametrize(
    ("typed", "where", "name"),
    [
        ("new", "home", "new"),
        ("new/", "home", "new"),
        ("../new", "", "new"),
        ("../../../new", "", "new"),
        ("dangling", "home/sub", "new"),
        ("absolute", "home", "file"),
        ("far-up", "", "secret"),
        ("..", "home", ".."),
        ("real", None, ""),
        ("dangling-out", None, ""),
        ("loop", None, ""),
    ],
)
def test_where_a_new_file_would_be(root: Root, tmp_path: Path, typed: str, where: str | None, name: str) -> None:
    if where is None:
        with pytest.raises(OSError):
            root.parent(typed.encode())
        return
    fd, found = root.parent(typed.encode())
    assert found == name.encode()
    assert os.path.samestat(os.fstat(fd), os.stat(tmp_path / "root" / where))
    os.close(fd)


@pytest.mark.parametrize(
    ("typed", "makes"),
    [
        ("a/b/c", ["a", "a/b", "a/b/c"]),
        ("a/b/", ["a", "a/b"]),
        ("a//./b", ["a", "a/b"]),
        ("sub/x", ["sub/x"]),
        ("to-sub/x", ["sub/x"]),
        ("sub", []),
        ("../../../home/x", ["x"]),
    ],
)
def test_directories_that_are_missing_are_made(root: Root, tmp_path: Path, typed: str, makes: list[str]) -> None:
    before = set(tmp_path.rglob("*"))
    root.make_directories(typed.encode())
    assert set(tmp_path.rglob("*")) - before == {tmp_path / "root" / "home" / path for path in makes}


LEADING_OUT = ["new/../../../made", "/new/../../made", "a/../../../../made/x", "dangling/made", "file/made", "loop/x"]


@pytest.mark.parametrize("typed", LEADING_OUT)
def test_directories_are_never_made_above_the_root(root: Root, tmp_path: Path, typed: str) -> None:
    with pytest.raises(OSError):
        root.make_directories(typed.encode())
    assert not list(tmp_path.rglob("made"))


def test_without_a_root_paths_are_the_processs_own(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    root = Root(os.fsencode(tmp_path))
    assert root.stat(b"link").st_size == 1
    assert root.full(b"/x") == b"/x"
    root.make_directories(b"a/b")
    assert (tmp_path / "a" / "b").is_dir()
