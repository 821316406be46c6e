"""Who is let in: `range`, `allow`, `sourceport` and `lowport` of a listening address. Values; files are read here too.

A range is of IP addresses or of CIDs. The thing to understand first: whoever is in any of the ranges is let in, those
of `range` and those of `allow`'s file; where neither stands, everybody is.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from vsockfwd.plugin import Identity, NetworkPeer, VsockPeer, printable

_CIDS = {"hypervisor": 0, "local": 1, "host": 2}
_LOW = 1024

Range = ipaddress.IPv4Network | ipaddress.IPv6Network | range


def read_range(text: str | None) -> Range:
    """`ADDRESS/BITS`, `ADDRESS:MASK`, `[ADDRESS6]/BITS`, one address, a CID, or `CID-CID`. Raises ValueError."""
    text = text or ""
    if match := re.fullmatch(r"(\d{1,10}|host|local|hypervisor)(?:-(\d{1,10}))?", text):
        first = _CIDS[match[1]] if match[1] in _CIDS else int(match[1])
        return range(first, (int(match[2]) if match[2] else first) + 1)
    address, colon, mask = text.partition(":") if text.count(":") == 1 else (text, "", "")
    try:
        network = f"{address}/{mask}" if colon else text.replace("[", "").replace("]", "")
        return ipaddress.ip_network(network, strict=False)
    except ValueError:
        raise ValueError("is ADDRESS/BITS, ADDRESS:MASK, a CID, or two with - between them") from None


def read_ranges(path: bytes) -> list[Range]:
    """The ranges of a file, one a line; # begins a comment. Raises OSError, ValueError."""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        lines = [line.partition("#")[0].strip() for line in file]
    return [read_range(line) for line in lines if line]


@dataclass(frozen=True, slots=True)
class Admission:
    """What a listening address asks of who connects. `port`: where the peer must come from; `low`: below 1024."""

    ranges: Sequence[Range] = ()
    file: bytes | None = None
    port: int | None = None
    low: bool = False

    def why_not(self, peer: Identity) -> str:
        """Why a peer is not let in, or ''."""
        port = peer.port if isinstance(peer, NetworkPeer | VsockPeer) else None
        if self.port is not None and port != self.port:
            return f"it does not come from port {self.port}"
        if self.low and (port is None or port >= _LOW):
            return f"it does not come from a port below {_LOW}"
        ranges = list(self.ranges)
        if self.file is not None:
            try:
                ranges += read_ranges(self.file)
            except (OSError, ValueError) as error:
                why = error.strerror if isinstance(error, OSError) else f"a line {error}"
                return f"{printable(os.fsdecode(self.file))}: {why}"
        elif not ranges:
            return ""
        return "" if any(_is_in(peer, each) for each in ranges) else "it is in none of the ranges"


def _is_in(peer: Identity, which: Range) -> bool:
    if isinstance(which, range):
        return isinstance(peer, VsockPeer) and peer.cid in which
    if not isinstance(peer, NetworkPeer):
        return False
    return ipaddress.ip_address(peer.host.partition("%")[0]) in which
