"""`--files-from`: paths become a tree of names, and none of them leads out of the source."""

from __future__ import annotations

import pytest

from vsockfwd.plugin import UsageError
from vsockfwd_copy.asked import wanted


def test_paths_become_the_tree_that_leads_to_them() -> None:
    assert wanted([b"a", b"b/c", b"b/d/e", b"./f//g/."]) == {
        b"a": None,
        b"b": {b"c": None, b"d": {b"e": None}},
        b"f": {b"g": None},
    }


@pytest.mark.parametrize("paths", [[b"a", b"a/b"], [b"a/b", b"a"], [b"a/b/c", b"a/b", b"a"], [b"a/", b"a/b"]])
def test_what_is_wanted_as_a_whole_is_wanted_whatever_else_is_said(paths: list[bytes]) -> None:
    assert wanted(paths) == {b"a": None}


@pytest.mark.parametrize("path", [b"/a", b"..", b"a/../b", b"../a", b"a\0b"])
def test_a_path_that_leads_out_is_refused(path: bytes) -> None:
    with pytest.raises(UsageError, match="relative"):
        wanted([b"fine", path])
