"""The agent's door: who has a control connection proves who it is, and the policy says whether that will do.

The thing to understand first: who is turned away learns nothing that helps, and the log learns all. A wrong key's
answer comes late, later with each from the same place; a right one is never kept waiting by others' wrong ones.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import trio

from vsockfwd.engine.control_link import SOFTWARE, ControlLink
from vsockfwd.errors import NotAuthenticated
from vsockfwd.events import Denied, Report
from vsockfwd.identity import Identity, KeyPeer
from vsockfwd.key import Key
from vsockfwd.policy import Policy
from vsockfwd.wire.auth import NONCE_LENGTH
from vsockfwd.wire.control import Greeted, Proven
from vsockfwd.wire.frames import VERSIONS
from vsockfwd.wire.messages import Hello

KNOWN = 1024
"""Places whose failures are kept apart; of more the one that has been quiet longest is forgotten."""

FIRST_PAUSE, LONGEST_PAUSE = 0.125, 4.0
"""Seconds until a wrong key is answered: the first of a place, doubled with each, and the most."""

FORGIVEN = 600.0
"""Seconds without a wrong key after which a place's are forgotten."""


class Failures:
    """Wrong keys, counted by where they came from."""

    def __init__(self) -> None:
        self.total = 0
        self._of: OrderedDict[tuple[str, object], tuple[int, float]] = OrderedDict()

    def add(self, peer: Identity, now: float) -> int:
        """One more; returns how many there were from there, this one among them."""
        self.total += 1
        count, last = self._of.pop(peer.principal, (0, now))
        count = 1 if now - last > FORGIVEN else count + 1
        self._of[peer.principal] = count, now
        if len(self._of) > KNOWN:
            self._of.popitem(last=False)
        return count


def pause_after(count: int) -> float:
    """Seconds to wait before the answer to so many-th wrong key."""
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(count - 1, 16))


class Door:
    """What stands between a greeting and a session."""

    def __init__(self, policy: Policy, keys: tuple[Key, ...], report: Report, random: Callable[[int], bytes]) -> None:
        self.policy = policy
        self.failures = Failures()
        self.keys = keys
        self._report = report
        self._random = random

    async def admit(self, link: ControlLink, greeted: Greeted) -> bytes:
        """Let a peer in, and know it by its key from then on (`link.peer`); returns what is to be said before READY.

        Raises NotAllowed or NotAuthenticated, which is what the peer is told, after the log was.
        """
        proof = await self._prove(link) if greeted.hello.nonce else b""
        decision = self.policy.admit(link.peer)
        if not decision.allowed:
            self._report(Denied(str(link.peer), decision.reason))
            if self.keys and not isinstance(link.peer, KeyPeer):
                raise NotAuthenticated("a key is needed here", hint="--auth-key FILE shows one")
            decision.enforce()
        return proof or link.machine.hello(Hello(VERSIONS, SOFTWARE))

    async def _prove(self, link: ControlLink) -> bytes:
        if not self.keys:
            self._report(Denied(str(link.peer), "it has a key, and this agent has none to compare"))
            raise NotAuthenticated("this agent knows no keys", hint="is it the one that you mean? if so, no --auth-key")
        await link.write(link.machine.hello(Hello(VERSIONS, SOFTWARE, nonce=self._random(NONCE_LENGTH))))
        event = await link.next()
        assert isinstance(event, Proven)  # the tables have no row for others
        if event.key is None:
            count = self.failures.add(link.peer, trio.current_time())
            why = f"its key is none of ours ({count} such from there, {self.failures.total} in all)"
            self._report(Denied(str(link.peer), why, forged=True))
            await trio.sleep(pause_after(count))
            raise NotAuthenticated("not let in")
        assert not isinstance(link.peer, KeyPeer)
        link.peer = KeyPeer(event.key.name, link.peer)
        return link.machine.prove()
