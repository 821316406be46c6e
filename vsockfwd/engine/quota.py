"""How many streams each peer has, how fast it asks for new ones, and how fast bytes move on all of them.

A peer is who it is to the policy: a key, a uid, a machine, an address. The thing to understand first: what is kept of a
peer goes when it has no stream and its pace is forgotten, so that ever new peers take no memory.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import trio

from vsockfwd.errors import LimitReached
from vsockfwd.identity import Identity
from vsockfwd.policy import Limits
from vsockfwd.transport.paced import Pace


@dataclass(eq=False, slots=True)
class _Use:
    """What one peer has: streams, and what it may still ask for, as of then.

    `paces`: its bytes' in each direction, by how many it has in a second, since one rule may name all of a machine and
    another its privileged processes. `seen`: when one of its streams last began or ended.
    """

    streams: int = 0
    left: float = 0.0
    then: float = 0.0
    seen: float = 0.0
    paces: dict[int, tuple[Pace, Pace]] = field(default_factory=dict)


class Quota:
    """Counts the streams of peers."""

    def __init__(self, clock: Callable[[], float] = trio.current_time) -> None:
        self._clock = clock
        self._of: dict[tuple[str, object], _Use] = {}

    @contextlib.contextmanager
    def stream(self, peer: Identity, limits: Limits) -> Iterator[tuple[Pace, Pace] | None]:
        """Count a stream while the block runs; gives its pace receiving and sending, where it has one.

        Raises LimitReached where it is one too many, or comes too soon.
        """
        if limits == _NONE:
            yield None
            return
        key, now = peer.principal, self._clock()
        use = self._of.get(key) or _Use(left=float(limits.rate or 0), then=now)
        if limits.connections is not None and use.streams >= limits.connections:
            raise LimitReached(f"{peer} has {use.streams} streams, and may have no more", hint="end one, or ask later")
        if limits.rate is not None:
            use.left = min(limits.rate, use.left + (now - use.then) * limits.rate)
            use.then = now
            if use.left < 1:
                raise LimitReached(f"{peer} asks for more than {limits.rate} streams a second", hint="ask later")
            use.left -= 1
        use.streams += 1
        use.seen = now
        self._of[key] = use
        try:
            yield None if limits.bandwidth is None else self._paces(use, limits.bandwidth)
        finally:
            use.streams -= 1
            use.seen = self._clock()
            self._tidy()

    def _paces(self, use: _Use, bandwidth: int) -> tuple[Pace, Pace]:
        if bandwidth not in use.paces:
            use.paces[bandwidth] = Pace(bandwidth, self._clock), Pace(bandwidth, self._clock)
        return use.paces[bandwidth]

    def _tidy(self) -> None:
        """Forget who has nothing and may begin anew: what it was given is whole again after a second."""
        now = self._clock()
        over = (key for key, use in self._of.items() if not use.streams and now - use.seen >= 1.0)
        for key in list(itertools.islice(over, 2)):
            del self._of[key]


_NONE = Limits()
