"""Pauses between attempts at what failed, for all who dial by themselves and again."""

from __future__ import annotations

import random

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 30.0
"""Seconds between two attempts: at first, and at most."""


class Backoff:
    """Growing pauses with jitter, so that a hundred clients do not come back in one moment."""

    def __init__(self, longest: float = LONGEST_PAUSE) -> None:
        """`longest`: seconds that a pause grows to."""
        self._longest = longest
        self._pause = FIRST_PAUSE

    def reset(self) -> None:
        """It was of use: begin anew."""
        self._pause = FIRST_PAUSE

    def next(self) -> float:
        """Seconds to wait before the next attempt."""
        pause = self._pause
        self._pause = min(2 * pause, self._longest)
        return random.uniform(0.5, 1.0) * pause
