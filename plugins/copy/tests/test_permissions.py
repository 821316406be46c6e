"""`--chmod` does to a mode what chmod(1) does to a file."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from vsockfwd.plugin import UsageError
from vsockfwd_copy.permissions import Chmod

MODES = (0o000, 0o644, 0o755, 0o4755, 0o6711, 0o1777, 0o640)

AS_CHMOD_HAS_THEM = [
    "600", "0755", "4755", "u=rwX,go-w", "a+x", "a=r", "go=", "u-w,g+w", "ug=rw,o=", "a+X", "a-x+X", "u+s", "g+s",
    "ug-s", "a-s", "+t", "o+t", "u=rw", "g=r", "o=r", "a=rwx", "u=rwxs", "u+r-w", "a=,u+r", "a-rwxst", "u=s", "a+st",
]  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("modes")
    paths = [folder / f"{mode:o}" for mode in MODES]
    for path in paths:
        path.touch()
    return paths


@pytest.mark.parametrize("changes", AS_CHMOD_HAS_THEM)
def test_changes_are_those_of_chmod(files: list[Path], changes: str) -> None:
    for path, mode in zip(files, MODES, strict=True):
        os.chmod(path, mode)
    # Without letters for whom chmod(1) asks the umask, and --chmod, which is about another machine's files, does not.
    subprocess.run(["chmod", "--", changes, *files], check=True, umask=0)
    expected = [path.stat().st_mode & 0o7777 for path in files]
    assert [f"{Chmod(changes)(mode, False):o}" for mode in MODES] == [f"{mode:o}" for mode in expected]


@pytest.mark.parametrize(
    ("changes", "of_a_directory", "of_a_file"),
    [
        ("", 0o640, 0o640),
        ("D755,F644", 0o755, 0o644),
        ("Du+x,Fa-r", 0o740, 0o200),
        ("a+X", 0o751, 0o640),
        ("F600,a+r", 0o644, 0o644),
        ("D2770", 0o2770, 0o640),
    ],
)
def test_changes_may_be_for_directories_only_or_for_files_only(
    changes: str, of_a_directory: int, of_a_file: int
) -> None:
    assert (oct(Chmod(changes)(0o640, True)), oct(Chmod(changes)(0o640, False))) == (
        oct(of_a_directory),
        oct(of_a_file),
    )


@pytest.mark.parametrize("text", [",", "u=rw,", "9", "64", "12345", "u", "z+x", "u+q", "u=g", "D", "d755", "+x;"])
def test_what_is_no_change_of_permissions_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--chmod"):
        Chmod(text)
