"""A copy between two agents: what one sends is passed on to the other, and back, and looked at in passing.

The thing to understand first: sender and receiver talk to each other here, as in any copy, so what arrives was verified
against what was read. Who stands between decodes only what an account needs.
"""

from __future__ import annotations

import trio

from vsockfwd.plugin import Channel, Data, Ended, PeerBrokeProtocol, the_one
from vsockfwd_copy.account import Account, Outcome
from vsockfwd_copy.asked import Expected
from vsockfwd_copy.attributes import Loss
from vsockfwd_copy.messages import (
    Contents,
    Enter,
    Entries,
    Entry,
    Kind,
    Large,
    Leave,
    Lost,
    Progress,
    Removed,
    Results,
    Small,
    decode,
)


async def pass_on(sender: Channel, receiver: Channel, expected: Expected, account: Account) -> None:
    """Pass everything on until both have ended. Raises what either failed with; PeerBrokeProtocol for a source that
    was not asked for, before the receiver hears of it."""
    passing = _Passing(expected, account)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(passing.carry, sender, receiver)
            nursery.start_soon(passing.carry, receiver, sender)
    except BaseExceptionGroup as group:
        raise the_one(group) from None


class _Passing:
    """What is on its way between the two."""

    def __init__(self, expected: Expected, account: Account) -> None:
        self._expected = expected
        self._account = account
        self._next = 1
        self._offers: dict[int, tuple[bytes, int, bool]] = {}
        """Announced and not answered: path, size, whether it is no directory."""
        self._stack: list[bytes] = []

    async def carry(self, source: Channel, sink: Channel) -> None:
        """One direction."""
        while not isinstance(event := await source.receive(), Ended):
            if isinstance(event, Data):
                self._account.carried += len(event.view)
                await sink.send(event.view)
                continue
            payload = bytes(event.payload)
            self._look_at(event.kind, payload)
            await sink.send_frames((event.kind, payload))
        await sink.send_end()

    def _look_at(self, kind: int, payload: bytes) -> None:
        match kind:
            case Kind.ENTRIES:
                for entry in decode(payload, Entries).entries:
                    self._announced(entry)
            case Kind.CONTENTS:
                self._account.carried += sum(len(one.content) for one in decode(payload, Contents).files)
            case Kind.RESULTS:
                for result in decode(payload, Results).results:
                    offer = self._offers.pop(result.entry, None)
                    if offer is None:
                        raise PeerBrokeProtocol(f"the receiver answered entry {result.entry}, which it was not sent")
                    title, size, is_file = offer
                    loss = Loss(result.lost)
                    self._account.answered(Outcome(title, size, is_file, result.failure, result.done, loss))
            case Kind.PROGRESS:
                progress = decode(payload, Progress)
                self._account.moved(progress.bytes)
                if progress.file in self._offers:
                    title, size, _ = self._offers[progress.file]
                    self._account.at_work(title, progress.position, size)
            case Kind.REMOVED:
                for path, failure in decode(payload, Removed).paths:
                    self._account.removed(path, failure)

    def _announced(self, entry: Entry) -> None:
        if isinstance(entry, Leave):
            if self._stack:
                self._stack.pop()
            return
        number = self._next
        self._next += 1
        if not self._stack:
            self._expected.word(entry)
        title = b"/".join([*self._stack[-16:], entry.name])
        size = len(entry.content) if isinstance(entry, Small) else entry.size if isinstance(entry, Large) else 0
        if isinstance(entry, Enter):
            self._stack.append(entry.name)
        else:
            self._account.plan(1, size)
            if isinstance(entry, Small):
                self._account.carried += size
        if isinstance(entry, Lost):
            self._account.answered(Outcome(title, failure=entry.failure))
        else:
            self._offers[number] = (title, size, not isinstance(entry, Enter))
