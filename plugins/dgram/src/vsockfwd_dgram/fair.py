"""Datagrams that wait, by flow: each flow in turn, bounded in bytes and in number, the oldest dropped first.

The thing to understand first: for a datagram, late is worse than lost. So a queue that is full makes room at its old
end; and it is the flow with too much waiting that pays, so that a flood leaves those who trickle alone.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")

FLOW_COUNT = 1024
"""Datagrams of one flow that may wait."""

FLOW_BYTES = 1 << 20
"""Bytes of one flow that may wait, while few flows do."""

TOTAL_BYTES = 16 << 20
"""Bytes of all flows together; each may have its share of it."""

OVERHEAD = 64
"""Bytes that a waiting datagram costs beside its own: empty ones take memory, too."""


class _Lane:
    """The datagrams of one flow, oldest first."""

    __slots__ = ("bytes", "items")

    def __init__(self) -> None:
        self.items: deque[bytes] = deque()
        self.bytes = 0


class FairQueue(Generic[K]):
    """A queue of datagrams, served round robin by flow. `dropped` is told how many were dropped to make room."""

    def __init__(self, dropped: Callable[[int], None]) -> None:
        self._lanes: OrderedDict[K, _Lane] = OrderedDict()
        """The flows that have something waiting, in the order of their turns."""
        self._bytes = 0
        self._dropped = dropped

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def __contains__(self, key: K) -> bool:
        return key in self._lanes

    def put(self, key: K, datagram: bytes) -> None:
        """Append a datagram to its flow's; drops older ones where that is too much."""
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane()
        lane.items.append(datagram)
        size = len(datagram) + OVERHEAD
        lane.bytes += size
        self._bytes += size
        share = min(FLOW_BYTES, TOTAL_BYTES // len(self._lanes))
        while (lane.bytes > share or len(lane.items) > FLOW_COUNT) and len(lane.items) > 1:
            self._take(lane)  # and keep its turn: else a flood that goes on would never have one
            self._dropped(1)
        while self._bytes > TOTAL_BYTES:  # many flows came while few had much: the next in turn has waited longest
            self.pop(next(iter(self._lanes)))
            self._dropped(1)

    def turn(self) -> tuple[K, bytes] | None:
        """Whose turn it is, and the datagram that it is about; None while nothing waits."""
        for key, lane in self._lanes.items():
            return key, lane.items[0]
        return None

    def pop(self, key: K) -> None:
        """Take a flow's oldest datagram off the queue; the others have their turn now."""
        lane = self._lanes[key]
        self._take(lane)
        if lane.items:
            self._lanes.move_to_end(key)
        else:
            del self._lanes[key]

    def _take(self, lane: _Lane) -> None:
        size = len(lane.items.popleft()) + OVERHEAD
        lane.bytes -= size
        self._bytes -= size

    def fronts(self) -> list[tuple[K, bytes]]:
        """The oldest datagram of each flow, in the order of their turns."""
        return [(key, lane.items[0]) for key, lane in self._lanes.items()]

    def forget(self, key: K) -> int:
        """Drop all that a flow has waiting, and say how many those were."""
        lane = self._lanes.pop(key, None)
        if lane is None:
            return 0
        self._bytes -= lane.bytes
        return len(lane.items)
