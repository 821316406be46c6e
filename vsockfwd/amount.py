"""Numbers of bytes as people write them."""

from __future__ import annotations

import re

_SHIFTS = {"": 0, "k": 10, "m": 20, "g": 30}


def bytes_in(text: str) -> int:
    """The bytes that `64`, `1.5k`, `10M`, `4G` or `28KiB` stand for, 1024 at a step; 0 for any other text."""
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)([kKmMgG]?)(?:i?B)?", text)
    if match is None:
        return 0
    whole, _, part = match[1].partition(".")
    shift = _SHIFTS[match[2].lower()]
    size: int = (int(whole) << shift) + (int(part or "0") << shift) // 10 ** len(part)
    return size
