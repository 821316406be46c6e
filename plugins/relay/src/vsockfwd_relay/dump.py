"""`-v` and `-x`: what passes, as socat shows it. Pure: bytes in, text out.

A header with direction, time, length and place in the stream, then the bytes as text, in hexadecimal, or both.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

_WIDTH = 16
_LINES = re.compile(rb"[^\n]{0,15}\n|[^\n]{1,16}")


class Dump:
    """One direction's dump. `write` takes the text, `now` gives seconds since the epoch."""

    def __init__(
        self, mark: str, *, text: bool, hexadecimal: bool, write: Callable[[str], None], now: Callable[[], float]
    ) -> None:
        self._mark = mark
        self._text = text
        self._hexadecimal = hexadecimal
        self._write = write
        self._now = now
        self._passed = 0

    def __call__(self, data: memoryview) -> None:
        """Show a piece that passes."""
        start, self._passed = self._passed, self._passed + len(data)
        now = self._now()
        moment = time.strftime("%Y/%m/%d %H:%M:%S", time.localtime(now)) + f".{int(now % 1 * 1e6):06d}"
        head = f"{self._mark} {moment}  length={len(data)} from={start} to={self._passed - 1}\n"
        self._write(head + self._body(bytes(data)))

    def _body(self, data: bytes) -> str:
        if self._text and self._hexadecimal:
            return "".join(map(_both, _LINES.findall(data))) + "--\n"
        if self._hexadecimal:
            return "".join(map(_hex, data)) + "\n"
        return "".join(map(_character, data))


def _both(line: bytes) -> str:
    return "".join(map(_hex, line)).ljust(3 * _WIDTH) + "  " + "".join(map(_printable, line)) + "\n"


def _hex(byte: int) -> str:
    return f" {byte:02x}"


def _printable(byte: int) -> str:
    return chr(byte) if 0x20 <= byte < 0x7F else "."


def _character(byte: int) -> str:
    return {0x0A: "\n", 0x0D: "\\r", 0x09: "\t", 0x5C: "\\\\"}.get(byte) or _printable(byte)
