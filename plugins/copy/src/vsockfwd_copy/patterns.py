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
    """A regular expression for the same, which takes no longer than name times pattern, or a path's square.

    What follows a star need never be looked for again once it was found: whatever comes then fits behind the first
    place where it stands if it fits behind any. So each stands in a group that is not entered again ((?>…)), the last
    before the end alone excepted, which has to reach it.
    """
    *parts, last = ([_fixed(chunk) for chunk in part] for part in _cut_at_stars(pattern))
    if not parts:
        return _joined(last, to_the_end=True)
    first, *between = (_joined(part, to_the_end=False) for part in parts)
    return first + b"".join(b"(?>.*?%s)" % part for part in between) + b".*?" + _joined(last, to_the_end=True)


def _joined(chunks: list[bytes], *, to_the_end: bool) -> bytes:
    first, *others = chunks
    words = [b"(?>[^/]*?%s)" % chunk for chunk in others]
    if to_the_end and others:
        words[-1] = b"[^/]*?" + others[-1]
    return first + b"".join(words)


def _cut_at_stars(pattern: bytes) -> list[list[list[bytes]]]:
    """The parts between `**`, each of them the chunks between `*`, each of them what stands for one byte each."""
    parts: list[list[list[bytes]]] = [[[]]]
    at = 0
    while at < len(pattern):
        begin, byte = at, pattern[at : at + 1]
        at += 1
        if byte == b"*":
            while pattern[at : at + 1] == b"*":
                at += 1
            if at - begin > 1:
                parts.append([[]])
            else:
                parts[-1].append([])
            continue
        if byte == b"[" and (end := _end_of_set(pattern, at)):
            at = end + 1
        elif byte == b"\\" and at < len(pattern):
            at += 1
        parts[-1][-1].append(pattern[begin:at])
    return parts


def _fixed(words: list[bytes]) -> bytes:
    return b"".join(map(_one_byte, words))


def _one_byte(word: bytes) -> bytes:
    if word == b"?":
        return b"[^/]"
    if word.startswith(b"[") and len(word) > 1:
        return _set(word[1:-1])
    return re.escape(word[-1:])


def _set(inside: bytes) -> bytes:
    """One of these bytes and ranges; a range that runs backwards, such as z-a, holds nothing."""
    negated = inside[:1] in (b"!", b"^")
    inside = inside[1:] if negated else inside
    ranges = b""
    at = 0
    while at < len(inside):
        low = high = inside[at]
        if inside[at + 1 : at + 2] == b"-" and at + 2 < len(inside):
            high = inside[at + 2]
            at += 2
        at += 1
        if low <= high:
            ranges += b"\\x%02x-\\x%02x" % (low, high)
    if not ranges:
        return b"[^/]" if negated else b"(?!)"
    return b"(?!/)[%s%s]" % (b"^" if negated else b"", ranges)


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
