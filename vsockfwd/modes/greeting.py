"""What the ways to ask a proxy for a connection have in common. No IO: bytes in, the destination and answers out.

A Greeting is one client's way: SOCKS (socks.py) or HTTP CONNECT (http_connect.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from vsockfwd.plugin import AddressError, BadRequest, TcpAddress, VsockfwdError, parse_stream, printable


class Declined(Exception):
    """The client asked in a way, or for a thing, that is not served here: what to answer, and why for the log."""

    def __init__(self, answer: bytes, why: str) -> None:
        super().__init__(why)
        self.answer = answer
        self.why = why


class Greeting(ABC):
    """The proxy's side of one client's request, as far as it was heard."""

    asked: TcpAddress | None = None
    """Where the client wants to be connected, once it has said so."""
    early: bytes = b""
    """What the client sent behind its request: the first bytes of the connection that it asked for."""

    @abstractmethod
    def receive(self, data: bytes) -> bytes:
        """Take what the client sent; returns what to answer at once. Not to be called once `asked` is known.

        Raises Declined.
        """

    @abstractmethod
    def granted(self) -> bytes:
        """The answer when the connection stands."""

    @abstractmethod
    def refused(self, error: VsockfwdError) -> bytes:
        """The answer when the connection cannot be had, for this reason."""


def destination(host: str, port: int) -> TcpAddress:
    """The address of a host as a stranger writes it: a name, or a literal without brackets. Raises BadRequest.

    Names are not looked up here: whoever dials does that, on its side.
    """
    try:
        address = parse_stream(f"tcp:[{host}]:{port}" if ":" in host else f"tcp:{host}:{port}")
    except AddressError:
        address = None
    # What a stranger writes must not become an option, or this machine's "every address".
    if not isinstance(address, TcpAddress) or address.options or not address.host or address.host == "*":
        raise BadRequest(f"{printable(host)!r} is no host")
    return address
