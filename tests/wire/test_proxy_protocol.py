"""The PROXY header: what was written is read, whatever the pieces; what is no header is refused, whatever it is."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsockfwd.errors import PeerBrokeProtocol
from vsockfwd.identity import GuestPeer, Identity, NetworkPeer, OwnPeer, UnixPeer, VsockPeer
from vsockfwd.wire.proxy_protocol import HEADER_LIMIT, Header, crc32c, header, parse

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
V4, V6 = NetworkPeer("192.168.0.1", 56324), NetworkPeer("fe80::1", 0)

WRITTEN: list[tuple[Identity, bytes, Identity | None]] = [
    (V4, header(V4, NetworkPeer("192.168.0.11", 443)), V4),
    (V4, header(V4), V4),
    (V4, header(V4, NetworkPeer("::1", 443)), V4),
    (V6, header(V6, NetworkPeer("::1", 443)), V6),
    (V6, header(V6, NetworkPeer("127.0.0.1", 443)), V6),
    (V6, header(V6), V6),
    (p := UnixPeer(1000, 100, 4242), header(p, b"/run/vsockfwd.sock"), p),
    (p, header(p, b"\0abstract"), p),
    (p, header(p), p),
    (v := VsockPeer(3, 0xFFFF_FFFE), header(v), v),
    (g := GuestPeer(b"/run/vm \xff.vsock"), header(g), g),
    (o := OwnPeer("standard input"), header(o), None),
]

LINES: list[tuple[bytes, Identity | None]] = [
    (b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n", V4),
    (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", NetworkPeer("255.255.255.255", 65535)),
    (b"PROXY TCP6 fe80::1 ::1 0 443\r\n", V6),
    (b"PROXY TCP6 ::ffff:192.168.0.1 ::ffff:192.168.0.11 56324 443\r\n", V4),
    (b"PROXY UNKNOWN\r\n", None),
    (b"PROXY UNKNOWN " + b" ".join([b":".join([b"ffff"] * 8)] * 2) + b" 65535 65535\r\n", None),
]

WHOLE = [(written, peer) for _, written, peer in WRITTEN] + LINES


def v2(command: int, family: int, rest: bytes, size: int | None = None) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(rest) if size is None else size) + rest


def test_what_a_header_looks_like_on_the_wire():
    """The bytes of HAProxy's document, not only what our own reader takes."""
    assert header(V4, NetworkPeer("192.168.0.11", 443)) == bytes.fromhex(
        "0d0a0d0a000d0a515549540a 21 11 000c c0a80001 c0a8000b dc04 01bb"
    )
    assert header(V6)[:16] == SIGNATURE + b"\x21\x21\x00\x24"
    assert header(OwnPeer("us")) == SIGNATURE + b"\x20\x00\x00\x00"
    unix = header(UnixPeer(0, 0, 1), b"/run/a")
    assert unix[12:16] == bytes([0x21, 0x31]) + (216 + 15).to_bytes(2)
    assert unix[16:232] == bytes(108) + b"/run/a" + bytes(102)
    # docs/proxy-protocol.md
    assert header(VsockPeer(3, 1024)) == SIGNATURE + bytes.fromhex("21 00 000b e5 0008 00000003 00000400")
    assert unix[232:] == bytes.fromhex("e6 000c 00000000 00000000 00000001")
    assert header(GuestPeer(b"/vm"))[12:] == bytes.fromhex("21 00 0006 e7 0003") + b"/vm"


@pytest.mark.parametrize(("whole", "peer"), WHOLE)
def test_a_header_cut_anywhere_is_read_without_a_byte_of_what_follows(whole: bytes, peer: Identity | None):
    assert parse(whole) == Header(peer, len(whole))
    assert parse(whole + b"\r\nGET / HTTP/1.1\r\n") == Header(peer, len(whole))
    for cut in range(len(whole)):
        lacks = parse(whole[:cut])
        assert isinstance(lacks, int), cut
        assert 0 < lacks <= len(whole) - cut, cut


def test_a_reader_that_takes_what_is_lacking_needs_two_reads_for_version_2():
    seen, reads = b"", 0
    whole = header(V6)
    while isinstance(lacks := parse(seen), int):
        seen += whole[len(seen) : len(seen) + lacks]
        reads += 1
    assert reads <= 3  # fifteen bytes that a version 1 would have too, the sixteenth, the rest


@pytest.mark.parametrize(
    "nonsense",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01\x02\x00",
        b"PROXY_",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\n",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324\r\n",
        b"PROXY TCP4  192.168.0.1 192.168.0.11 56324 443\r\n",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 65536\r\n",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 056324 443\r\n",
        b"PROXY TCP4 192.168.0.256 192.168.0.11 56324 443\r\n",
        b"PROXY TCP4 ::1 ::1 56324 443\r\n",
        b"PROXY TCP6 fe80::1%eth0 ::1 56324 443\r\n",
        b"PROXY UDP4 192.168.0.1 192.168.0.11 56324 443\r\n",
        b"PROXY UNKNOWN\rX\r\n",
        b"PROXY UNKNOWN " + b"x" * 93,
        v2(0x11, 0x11, bytes(12)),  # version 1
        v2(0x22, 0x11, bytes(12)),  # a command of tomorrow
        v2(0x21, 0x41, bytes(12)),
        v2(0x21, 0x13, bytes(12)),
        v2(0x21, 0x10, bytes(12)),
        v2(0x21, 0x11, bytes(11)),
        v2(0x21, 0x21, bytes(35)),
        v2(0x21, 0x31, bytes(215)),
        v2(0x21, 0x11, bytes(12) + b"\x04\x00"),
        v2(0x21, 0x11, bytes(12) + b"\x04\x00\x05abcd"),
        v2(0x21, 0x00, b"\xe5\x00\x07" + bytes(7)),
        v2(0x21, 0x00, b"\xe6\x00\x0d" + bytes(13)),
        v2(0x21, 0x11, b"", size=HEADER_LIMIT - 15),
        v2(0x20, 0x00, b"", size=0xFFFF),
    ],
)
def test_what_is_no_header_is_refused(nonsense: bytes):
    with pytest.raises(PeerBrokeProtocol):
        parse(nonsense)


def test_a_header_that_names_nobody_leaves_the_connections_own_peer():
    for whole in (
        v2(0x20, 0x11, bytes(12)),  # LOCAL: whatever else it says
        v2(0x20, 0x00, b"no TLV at all"),
        v2(0x21, 0x00, b""),
        v2(0x21, 0x00, b"\xe0\x00\x08" + bytes(8)),  # Google's, of the same size as ours
        v2(0x21, 0x31, bytes(216)),
    ):
        assert parse(whole) == Header(None, len(whole))


def test_a_checksum_is_held_to():
    assert crc32c(b"123456789") == 0xE306_9283  # the check value that everybody gives
    bare = v2(0x21, 0x11, bytes(range(12)) + b"\x04\x00\x01x" + b"\x03\x00\x04" + bytes(4))
    whole = bare[:-4] + crc32c(bare).to_bytes(4)
    assert isinstance(parse(whole), Header)
    for at in range(16, len(whole)):
        if at not in (28, 29, 30, 32, 33, 34):  # kinds and lengths: then there may be no checksum to be found
            flipped = bytearray(whole)
            flipped[at] ^= 1
            with pytest.raises(PeerBrokeProtocol, match="checksum"):
                parse(bytes(flipped))


HEADERS = st.sampled_from([whole for whole, _ in WHOLE])


@given(
    st.binary(max_size=300)
    | st.binary(max_size=300).map(lambda rest: SIGNATURE + rest)
    | st.binary(max_size=300).map(lambda rest: SIGNATURE + b"\x21" + rest)
    | st.binary(max_size=120).map(lambda rest: b"PROXY " + rest)
    | st.tuples(HEADERS, st.integers(0, 300), st.binary(max_size=4)).map(lambda t: t[0][: t[1]] + t[2] + t[0][t[1] :])
)
def test_whatever_comes_is_a_header_or_lacks_a_bounded_while_or_is_refused(seen: bytes):
    try:
        found = parse(seen)
    except PeerBrokeProtocol:
        return
    if isinstance(found, int):
        assert 0 < found <= HEADER_LIMIT - len(seen)
    else:
        assert found.length <= len(seen)
