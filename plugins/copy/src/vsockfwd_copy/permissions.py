"""`--chmod`: changes to permissions as chmod(1) writes them, `u=rwX,go-w` or octal, and rsync's `D…`, `F…`. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from vsockfwd.plugin import UsageError, printable

_CLAUSE = re.compile(r"([DF]?)(?:([0-7]{3,4})|([ugoa]*)((?:[-+=][rwxXst]*)+))")
_ACTION = re.compile(r"([-+=])([rwxXst]*)")
_READ, _WRITE, _EXECUTE = 4, 2, 1
_SHIFT = {"u": 6, "g": 3, "o": 0}


@dataclass(frozen=True, slots=True)
class _Clause:
    only: str
    """`D` for directories, `F` for everything else, empty for both."""
    change: Callable[[int, bool], int]


class Chmod:
    """Changes to permissions, in the order in which they stand."""

    def __init__(self, text: str) -> None:
        """Raises UsageError."""
        self._clauses = [_clause(word, text) for word in text.split(",")] if text else []

    def __call__(self, mode: int, is_directory: bool) -> int:
        """The permissions (twelve bits) after the changes."""
        for clause in self._clauses:
            if clause.only in ("", "D" if is_directory else "F"):
                mode = clause.change(mode, is_directory)
        return mode


def _clause(word: str, text: str) -> _Clause:
    found = _CLAUSE.fullmatch(word)
    if found is None:
        raise UsageError(
            f"--chmod {printable(text)}: {printable(word)!r} is no change of permissions",
            hint="such as u=rwX,go-w, D755,F644 or 600",
        )
    only, octal, who, actions = found.groups()
    if octal is not None:
        absolute = int(octal, 8)
        return _Clause(only, lambda mode, is_directory: absolute)
    return _Clause(only, _symbolic(who or "ugo", _ACTION.findall(actions)))


def _symbolic(who: str, actions: list[tuple[str, str]]) -> Callable[[int, bool], int]:
    classes = "ugo" if "a" in who else who
    # Of directories `=` leaves the special bits, as chmod(1) does.
    special = sum(bit for name, bit in (("u", 0o4000), ("g", 0o2000), ("o", 0o1000)) if name in classes)

    def change(mode: int, is_directory: bool) -> int:
        for sign, letters in actions:
            bits = 0
            everyone = 0
            for name in classes:
                everyone |= 7 << _SHIFT[name]
                bits |= _bits(letters, mode, is_directory) << _SHIFT[name]
            if "s" in letters:
                bits |= (0o4000 if "u" in classes else 0) | (0o2000 if "g" in classes else 0)
            if "t" in letters:
                bits |= 0o1000
            if sign == "=":
                mode &= ~(everyone if is_directory else everyone | special)
            mode = mode & ~bits if sign == "-" else mode | bits
        return mode

    return change


def _bits(letters: str, mode: int, is_directory: bool) -> int:
    """What letters mean for one class: `X` is execution where there is some already, or for directories."""
    bits = 0
    for letter, bit in (("r", _READ), ("w", _WRITE), ("x", _EXECUTE)):
        bits |= bit if letter in letters else 0
    if "X" in letters and (is_directory or mode & 0o111):
        bits |= _EXECUTE
    return bits
