"""The client's side of remote listening: a listener at the agent's, and the connections that it announces.

The thing to understand first: every announcement is answered, with a fetch or a denial. The agent stops accepting
while too many are not, so one that is forgotten would be missing for as long as the listener lives.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NoReturn

import trio

from vsockfwd.engine.control_link import ControlLink
from vsockfwd.engine.link import Link
from vsockfwd.errors import (
    Gone,
    Internal,
    LocalProtocolError,
    PeerBrokeProtocol,
    ShuttingDown,
    VsockfwdError,
    the_one,
)
from vsockfwd.events import Problem, Report
from vsockfwd.identity import Identity
from vsockfwd.wire.control import UNANSWERED

Handle = Callable[["Incoming"], Awaitable[None]]
"""Fetches a connection and serves it, or denies it."""


class Incoming:
    """A connection that came in at a remote listener. `peer` is who it is, as the agent saw it."""

    def __init__(self, listener: RemoteListener, ticket: bytes, peer: Identity) -> None:
        self.peer = peer
        self.answered = False
        self.scope = trio.CancelScope()
        """What it is handled in."""
        self._listener = listener
        self._ticket = ticket

    async def fetch(self) -> Link:
        """The connection, as a channel. Raises Gone where it was not waited with, or why it could not be asked for."""
        if self.answered:
            raise LocalProtocolError("a connection is fetched once, and not after it was denied")
        self._answer()
        try:
            return await self._listener.fetch(self._ticket)
        except Gone:
            raise
        except VsockfwdError as error:
            self._tell(error)
            raise
        except BaseException:
            self._tell(ShuttingDown("the client changed its mind"))
            raise

    def deny(self, error: VsockfwdError) -> None:
        """Have the agent reset the connection, and log why. Nothing where it was answered already."""
        if not self.answered:
            self._answer()
            self._tell(error)

    def _answer(self) -> None:
        self.answered = True
        self._listener.unanswered -= 1

    def _tell(self, error: VsockfwdError) -> None:
        self._listener.control.deny(error, self._listener.number, self._ticket)


class RemoteListener:
    """One listener at the agent's, as the session sees it: what it was told, and who is being handled."""

    def __init__(
        self,
        control: ControlLink,
        number: int,
        handle: Handle,
        fetch: Callable[[bytes], Awaitable[Link]],
        report: Report,
    ) -> None:
        self.control = control
        self.number = number
        self.fetch = fetch
        self.unanswered = 0
        self._handle = handle
        self._report = report
        self._bound: tuple[str, ...] = ()
        self._reason: VsockfwdError | None = None
        self._told = trio.Event()
        self._ended = trio.Event()
        self._handling: set[Incoming] = set()

    # --- what the session hears

    def granted(self, bound: tuple[str, ...]) -> None:
        """The agent listens. Raises PeerBrokeProtocol."""
        if self._bound:
            raise PeerBrokeProtocol("the agent granted a listener twice")
        self._bound = bound
        self._told.set()

    def announced(self, ticket: bytes, peer: Identity) -> Incoming:
        """Somebody came. Raises PeerBrokeProtocol."""
        if not self._bound or self.unanswered >= UNANSWERED:
            raise PeerBrokeProtocol(f"the agent announced a connection with {self.unanswered} unanswered")
        self.unanswered += 1
        incoming = Incoming(self, ticket, peer)
        self._handling.add(incoming)
        return incoming

    def end(self, reason: VsockfwdError) -> None:
        """The agent listens no more."""
        self._reason = self._reason or reason
        self._told.set()
        self._ended.set()

    # --- what the session does

    async def bound(self) -> tuple[str, ...]:
        """Wait until the agent listens; the addresses. Raises why it does not."""
        await self._told.wait()
        if self._reason is not None:
            raise self._reason
        return self._bound

    async def over(self) -> NoReturn:
        """Wait until the agent listens no more; raises why."""
        await self._ended.wait()
        assert self._reason is not None
        raise self._reason

    def stop(self) -> None:
        """Where the agent still listens, have it stop, and end what is being handled."""
        if self._reason is None:
            for incoming in self._handling:
                incoming.scope.cancel()
            self.control.deny(ShuttingDown("the client is done"), self.number)

    async def serve(self, incoming: Incoming) -> None:
        """Have a connection handled. Never raises: one that fails is denied or reported."""
        denial: VsockfwdError = Internal("the client neither fetched nor denied it")
        try:
            with incoming.scope:
                await self._handle(incoming)
        except Exception as caught:  # noqa: BLE001 - a bug in one connection's handling must not end the others
            error = the_one(caught)
            denial = error if isinstance(error, VsockfwdError) else Internal("the client failed: see its log")
            if denial is not error or incoming.answered:
                self._report(Problem.of(str(incoming.peer), caught))
        finally:
            self._handling.discard(incoming)
        if not incoming.scope.cancelled_caught:
            incoming.deny(denial)
