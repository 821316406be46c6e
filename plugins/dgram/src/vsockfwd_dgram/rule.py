"""What a rule of datagrams says: its tables in the config file, and `[BIND:]PORT:HOST:HOSTPORT` as ssh spells it.

The thing to understand first: a flow is no connection, so such a rule has none of the keys that are about connections,
and they are refused by name. A spec is cut at its colons outside brackets, then its far end is taken from the right,
since that always has a host; what is left is the near end. An end may also be a path (a UNIX datagram socket), or a
whole address of the grammar, `udp:HOST:PORT` or `unix-dgram:PATH`, in brackets where its path has colons.
"""

from __future__ import annotations

from typing import ClassVar, Self

from vsockfwd.plugin import HERE, Address, AddressError, Admitted, Rule, UdpAddress, Written, parse, split_spec
from vsockfwd_dgram.frames import Flows, Idle

IDLE = 120.0
"""Seconds without a datagram either way after which a flow ends: RFC 4787 asks for two minutes at least."""

FLOWS = 1024
"""Flows at once: beyond what the far side has descriptors for, the least recently used make room."""

_SENT_TO = "one host and a port above 0 are sent to"


def _hint(address: Address) -> str:
    if address.scheme == "vsock":
        return "vsock-seqpacket: does without an agent; -L and -R do over vsock's streams"
    return "udp:, unix-dgram:, vsock-seqpacket: and unix-seqpacket: do"


class DatagramEnd(Written):
    """An address that datagrams come to. `connections`: whether it may be one with connections."""

    value: Address
    connections: ClassVar[bool] = False

    @classmethod
    def read(cls, text: str) -> Self:
        address = parse(text)
        if not address.datagrams:
            raise AddressError(f"{address.scheme} carries no datagrams", text=text, position=0, hint=_hint(address))
        if address.connected and not cls.connections:
            why = f"{address.scheme} goes without an agent"
            raise AddressError(why, text=text, position=0, hint="vsockfwd dgram LISTEN CONNECT, or kind raw-datagram")
        return cls(address)


class Destination(DatagramEnd):
    """An address that datagrams are sent to."""

    @classmethod
    def read(cls, text: str) -> Self:
        end = super().read(text)
        if _is_many(end.value):
            raise AddressError(_SENT_TO, text=text, position=0)
        return end


class RawEnd(DatagramEnd):
    """An address that datagrams come to where there is no agent."""

    connections = True


class RawDestination(Destination):
    """An address that datagrams are sent to where there is no agent."""

    connections = True


def _is_many(address: Address) -> bool:
    return isinstance(address, UdpAddress) and (address.host == "*" or not address.port)


class DatagramRule(Rule, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """`kind = "datagram"`: listen on this side, send on from the agent's.

    `idle`: seconds after which a flow ends. `flows`: how many at once; None: a thousand, or what the far side can.
    """

    listen: DatagramEnd
    connect: Destination
    target: str
    idle: Idle = IDLE
    flows: Flows | None = None

    def title(self) -> str:
        return f"{self.listen.value.bare()} → {self.connect.value.bare()} through {self.target}"

    def listens(self) -> tuple[str, Address]:
        return HERE, self.listen.value


class RemoteDatagramRule(DatagramRule, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """`kind = "remote-datagram"`: listen on the agent's side, send on from this one."""

    def title(self) -> str:
        return f"{self.listen.value.bare()} at {self.target} → {self.connect.value.bare()}"

    def listens(self) -> tuple[str, Address]:
        return self.target, self.listen.value


class RawDatagramRule(Rule, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """`kind = "raw-datagram"`: listen on one address, send each source's datagrams to the other, without an agent.

    `allow`: whose connections are taken, where what is listened on has connections.
    """

    listen: RawEnd
    connect: RawDestination
    idle: Idle = IDLE
    flows: Flows | None = None
    allow: tuple[Admitted, ...] = ()

    def __post_init__(self) -> None:
        if self.allow and not self.listen.value.connected:
            raise ValueError(f"`allow` is about connections, which {self.listen.value.scheme} has none of")

    def title(self) -> str:
        return f"{self.listen.value.bare()} → {self.connect.value.bare()}"

    def listens(self) -> tuple[str, Address]:
        return HERE, self.listen.value


# --- ssh's spelling

_HINT = "[bind:]port:host:hostport; either end may be udp:…, unix-dgram:PATH or a path"


def parse_spec(spec: str) -> tuple[DatagramEnd, Destination]:
    """Read what stands behind `-L` or `-R`: where to listen, where to send. Raises AddressError with the character."""
    words = split_spec(spec)
    texts = [text for text, _ in words]
    if len(texts) > 3 and texts[-3] == "udp":
        far = 3
    elif texts[-1].startswith(("/", "[")) and texts[-2:-1] != ["unix-dgram"]:
        far = 1
    else:
        far = 2
    if len(words) <= far:
        raise AddressError("not a forward", text=spec, position=0, hint=_HINT)
    at = words[-far][1]
    connect = _end(spec, at, len(spec))
    if _is_many(connect):
        raise AddressError(_SENT_TO, text=spec, position=at, hint=_HINT)
    return DatagramEnd(_end(spec, 0, at - 1, listening=True)), Destination(connect)


def _end(spec: str, start: int, end: int, *, listening: bool = False) -> Address:
    text = spec[start:end]
    if text.startswith("[") and text.endswith("]"):
        start, text, prefix, written = start + 1, text[1:-1], "", text[1:-1]
    elif text.startswith(("udp:", "unix-dgram:")):
        prefix, written = "", text
    elif text.startswith("/"):
        prefix, written = "unix-dgram:", text.replace("%", "%25").replace(",", "%2C")
    else:
        host, colon, port = text.rpartition(":")
        if listening and colon and not host:
            host = "*"  # as for ssh: an empty bind address means every one
        prefix, written = "udp:", port if host == "localhost" else f"{host}{colon}{port}"
    try:
        address = parse(prefix + written)
    except AddressError as error:
        _, _, message = error.message.partition(f"character {error.position + 1}: ")
        at = start + min(max(error.position - len(prefix), 0), len(text))
        raise AddressError(message, hint=error.hint, text=spec, position=at) from None
    if not address.datagrams or address.connected:
        why = "goes without an agent" if address.datagrams else "carries no datagrams"
        raise AddressError(f"{address.scheme} {why}", text=spec, position=start, hint=_HINT)
    return address
