"""What a pattern means: the same as in a shell and in rsync, for any bytes, and in a time that nobody can stretch."""

from __future__ import annotations

import fnmatch
import time
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsockfwd_copy.patterns import Filters, is_pattern, literal, matches

NAMES = st.text("ab.-*[]\\\n", max_size=6).map(str.encode)
PATTERNS = st.text("ab.-*?[]!\\\n", max_size=8).map(str.encode)
PATHS = st.lists(st.sampled_from(["a", "b", "ab", "aab", ".", "x"]), min_size=1, max_size=4).map("/".join)
PATH_PATTERNS = st.lists(st.sampled_from(["a", "b", "/", "*", "**", "?", "[ab]", "*a", "**b"]), min_size=1, max_size=7)


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        (b"*", b"name", True),
        (b"*", b".hidden", False),
        (b"?hidden", b".hidden", False),
        (b"[.]hidden", b".hidden", False),
        (b".*", b".hidden", True),
        (b"\\.*", b".hidden", True),
        (b"*", b"new\nline", True),
        (b"*.txt", b"\xff\xfe.txt", True),
        (b"?", b"\xff", True),
        (b"*", b"", True),
        (b"?", b"", False),
        (b"a*", b"b", False),
        (b"[a-c]x", b"bx", True),
        (b"[!a-c]x", b"bx", False),
        (b"[^a-c]x", b"dx", True),
        (b"[]]", b"]", True),
        (b"[!]]", b"]", False),
        (b"[a", b"[a", True),
        (b"[]", b"[]", True),
        (b"[z-a]", b"m", False),
        (b"[z-ab]", b"b", True),
        (b"[a-]", b"-", True),
        (b"[--0]", b".x"[1:], False),
        (b"[--0]", b"0", True),
        (b"[a||b]", b"|", True),
        (b"[a&&b]", b"&", True),
        (b"[[]", b"[", True),
        (b"[\\]", b"\\", True),
        (b"\\*", b"*", True),
        (b"\\*", b"x", False),
        (b"a\\", b"a\\", True),
        (b"a.c", b"abc", False),
        (b"(a|b)+", b"(a|b)+", True),
    ],
)
def test_a_pattern_fits_what_a_shell_says_it_fits(pattern: bytes, name: bytes, fits: bool) -> None:
    assert matches(pattern, name) is fits


@given(PATTERNS.filter(lambda pattern: b"\\" not in pattern), NAMES.filter(lambda name: not name.startswith(b".")))
@settings(max_examples=300, deadline=None)
def test_for_names_without_a_slash_it_is_fnmatch(pattern: bytes, name: bytes) -> None:
    # fnmatch knows no `^`, and so does this alphabet.
    assert matches(pattern, name) == fnmatch.fnmatchcase(name, pattern)


def _by_the_rules(pattern: str, path: str) -> bool:
    """`*` and `?` stop at a slash, `**` does not: read off the definition, without regard for time."""

    @lru_cache(None)
    def fits(at: int, on: int) -> bool:
        if at == len(pattern):
            return on == len(path)
        if pattern.startswith("**", at):
            after = at
            while after < len(pattern) and pattern[after] == "*":
                after += 1
            return any(fits(after, end) for end in range(on, len(path) + 1))
        if pattern[at] == "*":
            ends = path.find("/", on)
            return any(fits(at + 1, end) for end in range(on, (len(path) if ends < 0 else ends) + 1))
        if on == len(path):
            return False
        if pattern.startswith("[ab]", at):
            return path[on] in "ab" and fits(at + 4, on + 1)
        return (path[on] == pattern[at] or (pattern[at] == "?" and path[on] != "/")) and fits(at + 1, on + 1)

    return fits(0, 0)


@given(PATH_PATTERNS.map("".join), PATHS)
@settings(max_examples=500, deadline=None)
def test_for_paths_a_filter_is_what_its_rules_say(pattern: str, path: str) -> None:
    body, only_directories = pattern.rstrip("/") if pattern != "/" else pattern, pattern.endswith("/")
    whole = "/" in body or "**" in body
    held = path if whole else path.rpartition("/")[2]
    starts = [0] if body.startswith("/") or not whole else [0, *(at + 1 for at, b in enumerate(held) if b == "/")]
    expected = any(_by_the_rules(body.lstrip("/"), held[start:]) for start in starts)
    filters = Filters([pattern.encode()])
    assert filters.leaves_out(path.encode(), True) == expected
    assert filters.leaves_out(path.encode(), False) == (expected and not only_directories)


@pytest.mark.parametrize(
    ("exclude", "include", "path", "is_directory", "out"),
    [
        (b"*.o", b"", b"a.o", False, True),
        (b"*.o", b"", b"deep/below/a.o", False, True),
        (b"*.o", b"keep.o", b"deep/keep.o", False, False),
        (b"/a", b"", b"a", False, True),
        (b"/a", b"", b"b/a", False, False),
        (b"b/a", b"", b"b/a", False, True),
        (b"b/a", b"", b"x/b/a", False, True),
        (b"b/a", b"", b"xb/a", False, False),
        (b"a/*", b"", b"a/b", False, True),
        (b"a/*", b"", b"a/b/c", False, False),
        (b"a/**", b"", b"a/b/c", False, True),
        (b"a/**/c", b"", b"a/x/y/c", False, True),
        (b"build/", b"", b"build", True, True),
        (b"build/", b"", b"x/build", True, True),
        (b"build/", b"", b"build", False, False),
        (b"*", b"", b".hidden", False, True),
        (b"*", b"*/", b"dir", True, False),
        (b"\xff*", b"", b"\xff\xfe", False, True),
    ],
)
def test_a_filter_leaves_out_what_rsyncs_would(
    exclude: bytes, include: bytes, path: bytes, is_directory: bool, out: bool
) -> None:
    assert Filters([exclude], [include] if include else []).leaves_out(path, is_directory) is out


@pytest.mark.parametrize(
    "pattern",
    [b"*a" * 500 + b"b", b"?*" * 500 + b"b", b"[ab]*" * 200 + b"c", b"**a" * 300 + b"b", b"*a**a" * 150 + b"b",
     b"**/" * 300 + b"b", b"a*/" * 300 + b"b", b"**a*" * 250 + b"/b"],
)  # fmt: skip
def test_no_pattern_makes_an_agent_think_for_long(pattern: bytes) -> None:
    pattern, name, path = pattern[:1024], b"a" * 255, (b"a" * 15 + b"/") * 16
    before = time.process_time()
    assert not matches(pattern, name)
    assert not Filters([pattern]).leaves_out(path + b"a", False)
    assert time.process_time() - before < 5, "what grows without bound takes hours here"


def test_what_is_a_pattern_and_what_is_a_name() -> None:
    assert [is_pattern(word) for word in (b"a*", b"a?", b"[a]", b"a\\b", b"a]", b"")] == [True] * 3 + [False] * 3
    assert literal(b"a\\*b\\\\") == b"a*b\\"
