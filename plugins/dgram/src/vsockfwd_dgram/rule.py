"""What `-L` says: `[BIND:]PORT:HOST:HOSTPORT`, as ssh spells it, with datagrams at both ends.

The thing to understand first: a spec is cut at its colons outside brackets, then its far end is taken off from the
right, since that always has a host; what is left is the near end. An end may also be a path (a UNIX datagram socket),
or a whole address of the grammar, `udp:HOST:PORT` or `unix-dgram:PATH`, in brackets where its path has colons.
"""

from __future__ import annotations

from dataclasses import dataclass

from vsockfwd.plugin import Address, AddressError, UdpAddress, parse

_HINT = "-L takes [bind:]port:host:hostport; either end may be udp:…, unix-dgram:PATH or a path"


@dataclass(frozen=True, slots=True)
class LocalForward:
    """Listen on this side, send on from the agent's."""

    listen: Address
    connect: Address

    def __str__(self) -> str:
        return f"-L {self.listen} {self.connect}"


def parse_local(spec: str) -> LocalForward:
    """Read a `-L`. Raises AddressError, which points at the character."""
    cuts = _cuts(spec)
    words = [spec[a + 1 : b] for a, b in zip([-1, *cuts], [*cuts, len(spec)], strict=True)]
    if len(words) > 3 and words[-3] == "udp":
        far = 3
    elif words[-1].startswith(("/", "[")) and words[-2:-1] != ["unix-dgram"]:
        far = 1
    else:
        far = 2
    if len(words) <= far:
        raise AddressError("not a forward", text=spec, position=0, hint=_HINT)
    cut = cuts[-far]
    connect = _end(spec, cut + 1, len(spec))
    if isinstance(connect, UdpAddress) and (connect.host == "*" or not connect.port):
        raise AddressError("one host and a port above 0 are sent to", text=spec, position=cut + 1, hint=_HINT)
    return LocalForward(_end(spec, 0, cut, listening=True), connect)


def _cuts(spec: str) -> list[int]:
    """Where the colons outside brackets stand."""
    cuts = []
    opened = -1
    for at, character in enumerate(spec):
        if character == "[" and opened < 0:
            opened = at
        elif character == "]":
            if opened < 0:
                raise AddressError("] without its [", text=spec, position=at)
            opened = -1
        elif character == ":" and opened < 0:
            cuts.append(at)
    if opened >= 0:
        raise AddressError("[ without its ]", text=spec, position=opened)
    return cuts


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
    if not address.datagrams:
        raise AddressError(f"{address.scheme} carries no datagrams", text=spec, position=start, hint=_HINT)
    return address
