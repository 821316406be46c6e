"""`accept:PLACE`: a target that is not dialled but dials us, as `vsockfwd serve --connect PLACE` does.

A place is opened on first use and stays open until the process ends; each connect takes the next caller there.

The thing to understand first: who calls becomes the agent, so it gets our bytes and our trust. Whoever may not be that
is hung up on without a word, and the connect goes on waiting. Those who wait to be taken wait in the kernel, at most
CALLERS of them: they cost this process no descriptor, and who has hung up meanwhile is passed over.
"""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Awaitable, Callable, Sequence

import trio

from vsockfwd.address import (
    AbstractAddress,
    AcceptAddress,
    Address,
    HybridAddress,
    MemoryAddress,
    UnixAddress,
    VsockAddress,
)
from vsockfwd.errors import CannotCreate, NotAllowed, TimedOut, from_oserror
from vsockfwd.identity import CID_ANY, GuestPeer, Identity, OwnPeer, UnixPeer, VsockPeer, cid_text
from vsockfwd.transport.base import CONNECT_TIMEOUT, Listener, Stream, Transport, is_over

CALLERS = 64
"""Callers that may wait to be taken, unless the address has a `backlog`."""

ROOT = 0

Listen = Callable[[Address], Awaitable[Sequence[Listener]]]


class _Place:
    """Where callers come in. One task at a time takes from it, in the order in which they asked."""

    def __init__(self, address: AcceptAddress, listen: Listen) -> None:
        self.address = address
        self.turn = trio.Lock()
        self.refusal = ""
        """Why the last caller that was hung up on was."""
        self._listen = listen
        self._listener: Listener | None = None

    async def next(self) -> Stream:
        """The next caller who may be our agent, and is still there."""
        async with self.turn:
            if self._listener is None:
                (self._listener,) = await self._listen(_bound(self.address))
            while True:
                try:
                    stream = await self._listener.accept()
                except OSError as error:
                    if error.errno == errno.ECONNABORTED:
                        continue
                    raise from_oserror(error, f"accept on {self.address.bare()}") from None
                refusal = why_not(self.address, stream.peer)
                if not refusal and not is_over(stream):
                    return stream
                stream.close()
                self.refusal = refusal or self.refusal
                await trio.lowlevel.checkpoint()  # who floods us must not stop the clock

    def close(self) -> None:
        if self._listener is not None:
            self._listener.close()


class AcceptTransport(Transport[AcceptAddress]):
    """`accept:`, over listeners of other schemes."""

    def __init__(self, listen: Listen) -> None:
        self._listen = listen
        self._places: dict[AcceptAddress, _Place] = {}

    async def connect(self, address: AcceptAddress, *, privileged: bool = False) -> Stream:
        """Take the next caller, within the connect's timeout. Raises CannotCreate, NotAllowed, TimedOut too."""
        _check(address)
        place = self._places.setdefault(address, _Place(address, self._listen))
        patience = address.place.option("connect-timeout", CONNECT_TIMEOUT)
        try:
            with trio.fail_after(patience):
                return await place.next()
        except CannotCreate as error:
            if error.errno != errno.EADDRINUSE:
                raise
            hint = "a command that waits for calls needs a place of its own; is another there?"
            raise CannotCreate(error.message, hint=hint, errno=error.errno) from None
        except trio.TooSlowError:
            refusal, place.refusal = place.refusal, ""
            if refusal:
                raise NotAllowed(
                    f"{address.bare()}: who called within {patience:g} s was hung up on: {refusal}"
                ) from None
            raise TimedOut(
                f"{address.bare()}: nobody has called within {patience:g} s",
                hint="is `vsockfwd serve --connect …` running there, with this place's address?",
            ) from None

    def close(self) -> None:
        for place in self._places.values():
            place.close()
        self._places.clear()


def why_not(address: AcceptAddress, peer: Identity) -> str:
    """Why a caller is not to be our agent, or nothing."""
    place = address.place
    match peer:
        case VsockPeer() if isinstance(place, VsockAddress) and peer.cid != place.cid:
            return f"{peer} is not {cid_text(place.cid)}"
        case VsockPeer():
            if address.any_user or peer.privileged:
                return ""
            return f"{peer} is not privileged (a source port below 1024 would show it); ,trust=machine takes it"
        case UnixPeer(uid=uid):
            return "" if uid in (ROOT, os.geteuid()) else f"uid {uid} is neither root nor the user who waits"
        case GuestPeer():
            return "" if address.any_user else "any user of a guest can call a hybrid socket"
        case OwnPeer():
            return ""
        case _:
            return "an IP address proves nothing"


def _check(address: AcceptAddress) -> None:
    """Refuse a place where whoever calls could not be told from a stranger. Raises NotAllowed."""
    place = address.place
    refusal: tuple[str, str] | None = None
    match place:
        case _ if place.option("tls"):
            refusal = ("who is waited for speaks no TLS", "a key proves both sides: --auth-key")
        case UnixAddress() if place.vmm is not None:
            refusal = (
                "a path that ends in _NUMBER is where a VMM brings its guest's connections",
                f"write accept:{place.vmm},trust=machine, or rename it",
            )
        case HybridAddress() if not address.any_user:
            refusal = (
                "any user of the guest can call a hybrid socket, and would be taken for the agent",
                "add ,trust=machine where all of them are trusted",
            )
        case VsockAddress() | UnixAddress() | AbstractAddress() | HybridAddress() | MemoryAddress():
            pass
        case _:
            refusal = (f"over {place.scheme} anybody could call, and would be taken for the agent", "vsock: or unix:")
    if refusal is not None:
        raise NotAllowed(f"{address}: {refusal[0]}", hint=refusal[1])


def _bound(address: AcceptAddress) -> Address:
    """Where to listen: a vsock place is bound on every CID of this machine, since the one written is the caller's."""
    place = address.place
    if isinstance(place, VsockAddress):
        place = dataclasses.replace(place, cid=CID_ANY)
    if place.option("backlog") is None and "backlog" in place.known_options:
        place = dataclasses.replace(place, options=(*place.options, ("backlog", CALLERS)))
    return place
