"""The PROXY protocol: a header in front of a connection's bytes that says whose connection it is.

Version 2 is written, versions 1 and 2 are read, as HAProxy's doc/proxy-protocol.txt has them. What that document has
no place for (CIDs, guests, user ids) travels in custom TLVs of ours: docs/proxy-protocol.md.

The thing to understand first: the bytes behind the header belong to somebody else. So `parse` says how many bytes are
*certainly* still the header's; who reads no more than that can read from anything, and never has a byte too many.

What a header says is the sender's claim: it is as good as the rule that says who may connect.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import struct
from dataclasses import dataclass

from vsockfwd.errors import PeerBrokeProtocol, printable
from vsockfwd.identity import CertificatePeer, GuestPeer, Identity, KeyPeer, NetworkPeer, OwnPeer, UnixPeer, VsockPeer

HEADER_LIMIT = 4096
"""Bytes of the longest header taken; version 2 could announce 64 KiB, nobody sends more than some hundreds."""

V1_LIMIT = 107
"""Bytes of the longest line of version 1, its CRLF included."""

VSOCK_TLV = 0xE5
"""Our TLV for a VsockPeer: CID and port. 0xE0, 0xEA and 0xEE are Google's, Amazon's and Microsoft's."""
UNIX_TLV = 0xE6
"""Our TLV for a UnixPeer: uid, gid and pid."""
GUEST_TLV = 0xE7
"""Our TLV for a GuestPeer: the path of its VMM's socket."""

_CRC32C_TLV = 0x03

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED = struct.Struct("!12sBBH")
_LOCAL, _PROXY = 0x20, 0x21
_UNSPEC, _TCP4, _TCP6, _UNIX_STREAM = 0x00, 0x11, 0x21, 0x31
_IN4, _IN6, _UN = struct.Struct("!4s4sHH"), struct.Struct("!16s16sHH"), struct.Struct("!108s108s")
_LAYOUTS = {_UNSPEC: struct.Struct(""), 0x11: _IN4, 0x12: _IN4, 0x21: _IN6, 0x22: _IN6, 0x31: _UN, 0x32: _UN}
"""The addresses of each family and protocol that there is: source, destination, and the two ports."""
_VSOCK = struct.Struct("!II")
_CREDENTIALS = struct.Struct("!III")
_PATH_LIMIT = 108

_V1_START = b"PROXY "
_V1_SHORTEST = len(b"PROXY UNKNOWN\r\n")
_V1_LINE = (
    rb"PROXY (?:UNKNOWN(?: [^\r\n]*)?"
    rb"|(TCP[46]) ([0-9A-Fa-f.:]+) ([0-9A-Fa-f.:]+) (0|[1-9]\d{0,4}) (0|[1-9]\d{0,4}))\r\n"
)
"""A pattern that is compiled when the first line comes: every command imports this module."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a header said. `source` is None where the connection's own peer is to be taken; `length` is in bytes."""

    source: Identity | None
    length: int


# --- writing


def header(source: Identity, destination: NetworkPeer | bytes | None = None) -> bytes:
    """The header of version 2 that introduces `source`, to be sent in one go before anything else.

    `destination` is where it connected to: an address, or a UNIX socket's path. What is not known, or does not fit
    the source's family, is sent as zeros.
    """
    match source:
        case NetworkPeer():
            return _inet(source, destination if isinstance(destination, NetworkPeer) else None)
        case UnixPeer():
            # The source of a UNIX connection has no path, as good as always; who it is, is its credentials.
            path = destination if isinstance(destination, bytes) and len(destination) <= _PATH_LIMIT else b""
            tlv = _tlv(UNIX_TLV, _CREDENTIALS.pack(source.uid, source.gid, source.pid))
            return _v2(_PROXY, _UNIX_STREAM, _UN.pack(b"", path) + tlv)
        case VsockPeer():
            return _v2(_PROXY, _UNSPEC, _tlv(VSOCK_TLV, _VSOCK.pack(source.cid, source.port)))
        case KeyPeer(seen=seen) | CertificatePeer(seen=seen):
            return header(seen, destination)
        case GuestPeer():
            return _v2(_PROXY, _UNSPEC, _tlv(GUEST_TLV, source.socket))
        case OwnPeer():
            return _v2(_LOCAL, _UNSPEC, b"")


def _inet(source: NetworkPeer, destination: NetworkPeer | None) -> bytes:
    near = ipaddress.ip_address(source.host)
    far = ipaddress.ip_address(destination.host) if destination else None
    ports = source.port, destination.port if destination else 0
    if near.version == 4 and (far is None or far.version == 4):
        return _v2(_PROXY, _TCP4, _IN4.pack(near.packed, far.packed if far else b"", *ports))
    return _v2(_PROXY, _TCP6, _IN6.pack(_sixteen(near), _sixteen(far) if far else b"", *ports))


def _sixteen(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bytes:
    """An address as IPv6 has it; of a dual-stack socket's two ends one may be shown as IPv4."""
    return address.packed if address.version == 6 else b"\0" * 10 + b"\xff\xff" + address.packed


def _v2(command: int, family: int, rest: bytes) -> bytes:
    return _FIXED.pack(_SIGNATURE, command, family, len(rest)) + rest


def _tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


# --- reading


def parse(seen: bytes) -> Header | int:
    """Read a header from the first bytes of a connection: the header, or how many bytes it certainly still lacks.

    Raises PeerBrokeProtocol as soon as it is seen that no header will come of them.
    """
    if not seen:
        return _V1_SHORTEST
    if _SIGNATURE.startswith(seen[: len(_SIGNATURE)]):
        return _parse_v2(seen)
    if _V1_START.startswith(seen[: len(_V1_START)]):
        return _parse_v1(seen)
    raise PeerBrokeProtocol(
        f"no PROXY header, it began with '{printable(seen[:32])}'", hint="is the sender told to send one?"
    )


def _parse_v1(seen: bytes) -> Header | int:
    end = seen.find(b"\n", 0, V1_LIMIT) + 1
    if not end:
        if len(seen) >= V1_LIMIT:
            raise PeerBrokeProtocol(f"a PROXY line without an end in its first {V1_LIMIT} bytes")
        return max(_V1_SHORTEST - len(seen), 1 if seen.endswith(b"\r") else 2)
    nonsense = PeerBrokeProtocol(f"a PROXY line that makes no sense: '{printable(seen[:end])}'")
    match = re.fullmatch(_V1_LINE, seen[:end])
    if match is None:
        raise nonsense
    if match[1] is None:
        return Header(None, end)
    kind = ipaddress.IPv4Address if match[1] == b"TCP4" else ipaddress.IPv6Address
    try:
        source, _ = kind(match[2].decode()), kind(match[3].decode())
    except ValueError:
        raise nonsense from None
    if int(match[4]) > 0xFFFF or int(match[5]) > 0xFFFF:
        raise nonsense
    return Header(_network_peer(source.packed, int(match[4])), end)


def _parse_v2(seen: bytes) -> Header | int:
    if len(seen) < _FIXED.size:
        return _FIXED.size - len(seen)
    _, command, family, size = _FIXED.unpack_from(seen)
    if command not in (_LOCAL, _PROXY):
        raise PeerBrokeProtocol(f"a PROXY header of the unknown version and command {command:#04x}")
    layout = _LAYOUTS.get(family)
    if layout is None:
        raise PeerBrokeProtocol(f"a PROXY header of the unknown family and protocol {family:#04x}")
    length: int = _FIXED.size + size
    if length > HEADER_LIMIT:
        raise PeerBrokeProtocol(f"a PROXY header of {length} bytes, where {HEADER_LIMIT} are the limit")
    if len(seen) < length:
        return length - len(seen)
    if command == _LOCAL:
        return Header(None, length)
    if size < layout.size:
        raise PeerBrokeProtocol(f"a PROXY header with {size} bytes for addresses that take {layout.size}")
    whole = seen[:length]
    tlvs = _tlvs(whole, _FIXED.size + layout.size)
    if _CRC32C_TLV in tlvs:
        _check_crc32c(whole, tlvs[_CRC32C_TLV])
    if layout in (_IN4, _IN6):
        source, _, port, _ = layout.unpack_from(whole, _FIXED.size)
        return Header(_network_peer(source, port), length)
    return Header(_peer_in({kind: whole[where] for kind, where in tlvs.items()}), length)


def _tlvs(whole: bytes, at: int) -> dict[int, slice]:
    """Where the values of a header's TLVs are, by kind; of a kind that stands twice, the last."""
    found = {}
    while at < len(whole):
        end = at + 3
        if end <= len(whole):
            end += int.from_bytes(whole[at + 1 : at + 3])
        if end > len(whole):
            raise PeerBrokeProtocol("a PROXY header with a TLV that is longer than the header")
        found[whole[at]] = slice(at + 3, end)
        at = end
    return found


def _network_peer(packed: bytes, port: int) -> NetworkPeer:
    """The peer at an address; an IPv4 address in IPv6's clothes is shown as IPv4, as everywhere."""
    address = ipaddress.ip_address(packed)
    return NetworkPeer(str(getattr(address, "ipv4_mapped", None) or address), port)


def _peer_in(tlvs: dict[int, bytes]) -> Identity | None:
    """The peer that one of our TLVs names. Sizes that we never send make no sense."""
    try:
        if VSOCK_TLV in tlvs:
            return VsockPeer(*_VSOCK.unpack(tlvs[VSOCK_TLV]))
        if UNIX_TLV in tlvs:
            return UnixPeer(*_CREDENTIALS.unpack(tlvs[UNIX_TLV]))
    except struct.error:
        raise PeerBrokeProtocol("a PROXY header that names its peer in too few or too many bytes") from None
    return GuestPeer(tlvs[GUEST_TLV]) if GUEST_TLV in tlvs else None


def _check_crc32c(whole: bytes, where: slice) -> None:
    """A checksum need not be there; where it is, a receiver that knows of it must hold the header to it (2.2.3)."""
    zeroed = whole[: where.start] + bytes(where.stop - where.start) + whole[where.stop :]
    if whole[where] != crc32c(zeroed).to_bytes(4):
        raise PeerBrokeProtocol("a PROXY header that does not fit its checksum")


def crc32c(data: bytes) -> int:
    """The checksum of RFC 4960, appendix B (Castagnoli's polynomial, reflected)."""
    table, value = _crc32c_table(), 0xFFFF_FFFF
    for byte in data:
        value = table[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFF_FFFF


@functools.cache  # made when the first checksum comes
def _crc32c_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F6_3B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)
