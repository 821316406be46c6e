"""Patterns of names: `--include`, `--exclude`, and globs on the far side. Pure; everything is bytes.

`*` and `?` stop at a slash, `**` does not, `[…]` is a set, a backslash takes the next byte as it is. For filters, as
in rsync: a pattern with a slash inside, or one in front, is held against the whole path below the source, else against
the last name; a slash behind makes it one for directories.

The thing to understand first: the order of filters does not matter. What matches an exclude and no include stays out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

_SPECIAL = re.compile(rb"[*?\[]")


def is_pattern(name: bytes) -> bool:
    """Whether a name could be a pattern."""
    return _SPECIAL.search(name) is not None


def matches(pattern: bytes, name: bytes) -> bool:
    """Whether a single name fits a pattern, as a shell has it: a leading dot must be written."""
    if name.startswith(b".") and not pattern.startswith((b".", b"\\.")):
        return False
    return _compiled(pattern).fullmatch(name) is not None


def literal(pattern: bytes) -> bytes:
    """What a pattern stands for that has nothing special in it but backslashes."""
    return re.sub(rb"\\(.)", rb"\1", pattern, flags=re.DOTALL)


@lru_cache(256)
def _compiled(pattern: bytes) -> re.Pattern[bytes]:
    return re.compile(_translate(pattern), re.DOTALL)


def _translate(pattern: bytes) -> bytes:
    out = b""
    at = 0
    while at < len(pattern):
        byte = pattern[at : at + 1]
        at += 1
        if byte == b"*":
            if pattern[at : at + 1] == b"*":
                while pattern[at : at + 1] == b"*":
                    at += 1
                out += b".*"
            else:
                out += b"[^/]*"
        elif byte == b"?":
            out += b"[^/]"
        elif byte == b"[" and (end := _end_of_set(pattern, at)):
            inside = pattern[at:end]
            negated = inside[:1] in (b"!", b"^")
            inside = inside[1:] if negated else inside
            inside = (
                inside.replace(b"\\", b"\\\\").replace(b"[", b"\\[").replace(b"&&", b"&\\&").replace(b"~~", b"~\\~")
            )
            inside = b"\\]" + inside[1:] if inside[:1] == b"]" else inside
            inside = b"\\^" + inside[1:] if inside[:1] == b"^" else inside
            out += b"(?!/)[" + (b"^" if negated else b"") + inside + b"]"
            at = end + 1
        else:
            if byte == b"\\" and at < len(pattern):
                byte = pattern[at : at + 1]
                at += 1
            out += re.escape(byte)
    try:
        re.compile(out)
    except re.error:  # a range that runs backwards, such as [z-a], fits nothing
        return rb"(?!)"
    return out


def _end_of_set(pattern: bytes, at: int) -> int:
    """Where a set that begins at `at` ends; 0 where it does not, and the bracket is one like any byte."""
    first = at + 1 if pattern[at : at + 1] in (b"!", b"^") else at
    end = pattern.find(b"]", first + 1)
    return max(end, 0)


class Filters:
    """What a copy leaves out."""

    def __init__(self, exclude: Iterable[bytes] = (), include: Iterable[bytes] = ()) -> None:
        self._exclude = [_Filter(pattern) for pattern in exclude]
        self._include = [_Filter(pattern) for pattern in include]

    def __bool__(self) -> bool:
        return bool(self._exclude)

    def leaves_out(self, path: bytes, is_directory: bool) -> bool:
        """Whether something stays out; `path` is relative to the source, without a slash at its ends."""
        return any(filter_.fits(path, is_directory) for filter_ in self._exclude) and not any(
            filter_.fits(path, is_directory) for filter_ in self._include
        )


class _Filter:
    __slots__ = ("_only_directories", "_pattern", "_whole")

    def __init__(self, text: bytes) -> None:
        self._only_directories = text.endswith(b"/") and text != b"/"
        text = text.rstrip(b"/") if self._only_directories else text
        self._whole = b"/" in text or b"**" in text
        anchored = text.startswith(b"/")
        body = _translate(text.lstrip(b"/"))
        self._pattern = re.compile(body if anchored or not self._whole else rb"(?:.*/)?" + body, re.DOTALL)

    def fits(self, path: bytes, is_directory: bool) -> bool:
        if self._only_directories and not is_directory:
            return False
        return self._pattern.fullmatch(path if self._whole else path.rpartition(b"/")[2]) is not None
