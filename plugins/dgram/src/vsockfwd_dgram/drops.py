"""What was not delivered: counted by reason, on both sides, told to the peer and to the reporter.

The thing to understand first: counts travel as differences. Each side counts what it dropped itself, tells the peer
what is new now and then, and reports both: its own, and what the peer told, marked as the peer's.
"""

from __future__ import annotations

import errno
from collections import Counter
from enum import IntEnum

import trio

from vsockfwd.plugin import Dropped, PeerBrokeProtocol, Report
from vsockfwd_dgram.frames import COUNT, record, records

COUNT_LIMIT = 0xFFFF_FFFF


class Reason(IntEnum):
    """Why a datagram was dropped, as a DROPS frame numbers it. A reason of a later version shows as its number."""

    QUEUE = 1
    TOO_LONG = 2
    NO_FLOW = 3
    REFUSED = 4
    NO_STREAM = 5
    KERNEL = 6
    FAILED = 7
    EMPTY = 8


_WORDS: dict[int, str] = {
    Reason.QUEUE: "queue full",
    Reason.TOO_LONG: "too long",
    Reason.NO_FLOW: "its flow is over",
    Reason.REFUSED: "refused",
    Reason.NO_STREAM: "no stream",
    Reason.KERNEL: "socket buffer full",
    Reason.FAILED: "sending failed",
    Reason.EMPTY: "empty",
}

_BY_ERRNO = {
    errno.EMSGSIZE: Reason.TOO_LONG,
    errno.ECONNREFUSED: Reason.REFUSED,
    errno.ENOENT: Reason.REFUSED,  # a UNIX socket's server has gone and taken its name along
    errno.ECONNRESET: Reason.REFUSED,
    errno.ENOBUFS: Reason.QUEUE,
    errno.EPIPE: Reason.NO_FLOW,  # of a connection with messages
    errno.ENOMSG: Reason.EMPTY,
}


def reason_for(error: OSError) -> Reason:
    """Why a datagram is lost whose sending ended in this error."""
    return _BY_ERRNO.get(error.errno or 0, Reason.FAILED)


class Drops:
    """The counts of one rule. `where` is what to call the peer's side in a report, such as "at the agent"."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.total = 0
        self.by_reason: Counter[str] = Counter()
        """All of them, in words, the peer's marked as such."""
        self.news = trio.Event()
        """Set while there is something to report."""
        self._to_tell: Counter[int] = Counter()
        self._to_report: Counter[str] = Counter()

    def add(self, reason: Reason, count: int = 1) -> None:
        """Count what this side dropped."""
        if count:
            self.total += count
            self._to_tell[reason] += count
            self._to_report[_WORDS[reason]] += count
            self.by_reason[_WORDS[reason]] += count
            self.news.set()

    def told(self, payload: memoryview) -> None:
        """Count what the peer's DROPS frame says. Raises PeerBrokeProtocol."""
        for number, view in records(payload):
            if len(view) != COUNT.size:
                raise PeerBrokeProtocol(f"the peer sent a count of {len(view)} bytes, where it has {COUNT.size}")
            (count,) = COUNT.unpack(view)
            words = f"{_WORDS.get(number, f'reason {number}')}, {self.where}"
            self.total += count
            self._to_report[words] += count
            self.by_reason[words] += count
        self.news.set()

    def to_tell(self) -> bytes:
        """The payload of a DROPS frame: what the peer has not been told yet; empty where there is nothing."""
        payload = b"".join(record(why, COUNT.pack(min(n, COUNT_LIMIT))) for why, n in self._to_tell.items())
        self._to_tell.clear()
        return payload

    def report(self, rule: str, report: Report) -> None:
        """Report what is new, an event a reason."""
        news, self._to_report = self._to_report, Counter()
        self.news = trio.Event()
        for words, count in news.items():
            report(Dropped(rule, words, count))
