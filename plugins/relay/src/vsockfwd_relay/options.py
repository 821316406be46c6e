"""The options that addresses take: their names as socat has them, how a value is read, and what it means.

One row an option. Which type takes which option stands in the types' table, not here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Option:
    """`names`: the one that is used here, then its aliases. `read` takes the text after `=`, None where there is
    none, and raises ValueError with a sentence that goes on after the name."""

    names: tuple[str, ...]
    read: Callable[[str | None], Any]
    meaning: str

    @property
    def name(self) -> str:
        return self.names[0]


def _flag(text: str | None) -> bool:
    if text not in (None, "0", "1"):
        raise ValueError("is 0 or 1, or stands alone")
    return text != "0"


def _always(text: str | None) -> bool:
    if not _flag(text):
        raise ValueError("cannot be switched off here")
    return True


def _text(text: str | None) -> str:
    if not text:
        raise ValueError("takes a value")
    return text


def _count(text: str | None) -> int:
    if not (text and text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError("is a whole number")
    return int(text)


def _positive(text: str | None) -> int:
    if not (number := _count(text)):
        raise ValueError("is a whole number above 0")
    return number


def seconds(text: str | None) -> float:
    """A number of seconds, 0 or more. Raises ValueError."""
    try:
        number = float(text or "")
    except ValueError:
        number = -1.0
    if not (number >= 0 and math.isfinite(number)):
        raise ValueError("is a number of seconds, such as 5 or 0.5")
    return number


def _timeout(text: str | None) -> float:
    if not (number := seconds(text)):
        raise ValueError("is a number of seconds above 0")
    return number


def _mode(text: str | None) -> int:
    if not text or len(text) > 4 or set(text) - set("01234567") or int(text, 8) > 0o777:
        raise ValueError("is octal digits, such as 0660")
    return int(text, 8)


OPTIONS = (
    Option(("append", "o-append"), _flag, "write at the end of the file"),
    Option(("backlog",), _positive, "connections that may wait to be accepted (4096, cut by the kernel)"),
    Option(("bind",), _text, "the address of this machine, [HOST][:PORT]; for VSOCK-LISTEN a CID"),
    Option(("connect-timeout",), _timeout, "seconds a connect may take (10)"),
    Option(("creat", "create", "o-creat", "o-create"), _flag, "make the file if it is not there"),
    Option(("excl", "o-excl"), _flag, "with creat: fail if the file is there"),
    Option(("forever",), _flag, "retry without end"),
    Option(("fork",), _flag, "serve every connection, many at once, until told to stop"),
    Option(("ignoreeof",), _flag, "at the end look again every second, as tail -f does"),
    Option(("interval", "intervall"), seconds, "seconds between two attempts (1)"),
    Option(("ipv6only", "ipv6-v6only", "v6only"), _flag, "take no IPv4 connections"),
    Option(("max-children", "maxchildren"), _positive, "with fork: connections at once; more wait (16000)"),
    Option(("mode", "perm"), _mode, "permissions of a file or socket that is made (files 0666, sockets 0600)"),
    Option(("nodelay", "tcp-nodelay"), _always, "always on"),
    Option(("path",), _text, "PATH, to find the program and for it"),
    Option(("pipes",), _flag, "two pipes to the program instead of a socket pair"),
    Option(("rdonly", "o-rdonly"), _flag, "open for reading only"),
    Option(("retry",), _count, "attempts after the first one that failed (0)"),
    Option(("reuseaddr", "so-reuseaddr"), _always, "always on"),
    Option(("setsid", "sid"), _flag, "a session of its own for the program"),
    Option(("stderr",), _flag, "the program's standard error goes where its output goes"),
    Option(("trunc", "o-trunc"), _flag, "empty the file first"),
    Option(("unlink-early",), _flag, "remove what stands at the path first"),
    Option(("wronly", "o-wronly"), _flag, "open for writing only"),
)

OPTION_OF_NAME: Mapping[str, Option] = {name: option for option in OPTIONS for name in option.names}
