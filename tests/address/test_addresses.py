"""The address grammar: what each form means, what is refused and at which character, and that str() reads back."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsockfwd.address import (
    OPTIONS,
    SCHEMES,
    UNIX_PATH_LIMIT,
    VSOCK_PORT_LIMIT,
    AbstractAddress,
    Address,
    FdAddress,
    HybridAddress,
    MemoryAddress,
    StdioAddress,
    TcpAddress,
    UdpAddress,
    UnixAddress,
    UnixDatagramAddress,
    UnixPacketAddress,
    VsockAddress,
    VsockPacketAddress,
    parse,
    parse_stream,
    parse_target,
    with_key,
)
from vsockfwd.errors import AddressError
from vsockfwd.identity import CID_ANY

GOOD: list[tuple[str, Address, str]] = [
    # written, means, canonical ("": as written)
    ("vsock:3:1234", VsockAddress(3, 1234), ""),
    ("vsock:host:80", VsockAddress(2, 80), ""),
    ("vsock:2:80", VsockAddress(2, 80), "vsock:host:80"),
    ("vsock:local:80", VsockAddress(1, 80), ""),
    ("vsock:any:876", VsockAddress(CID_ANY, 876), ""),
    ("vsock:4294967295:0", VsockAddress(CID_ANY, 0), "vsock:any:0"),
    ("vsock:0:4294967294", VsockAddress(0, VSOCK_PORT_LIMIT), ""),
    ("vsock:003:007", VsockAddress(3, 7), "vsock:3:7"),
    ("tcp:8080", TcpAddress("", 8080), ""),
    ("tcp:0", TcpAddress("", 0), ""),
    ("tcp:*:65535", TcpAddress("*", 65535), ""),
    ("tcp:localhost:80", TcpAddress("localhost", 80), ""),
    ("tcp:my_db.example.org.:80", TcpAddress("my_db.example.org.", 80), ""),
    ("tcp:127.0.0.1:80", TcpAddress("127.0.0.1", 80), ""),
    ("tcp:[::1]:80", TcpAddress("::1", 80), ""),
    ("tcp:[FE80::A%Eth0]:80", TcpAddress("fe80::a%Eth0", 80), "tcp:[fe80::a%Eth0]:80"),
    ("tcp:[::ffff:127.0.0.1]:80", TcpAddress("::ffff:127.0.0.1", 80), ""),
    ("unix:/run/a.sock", UnixAddress(b"/run/a.sock"), ""),
    ("unix:relative", UnixAddress(b"relative"), ""),
    ("unix:-", UnixAddress(b"-"), ""),
    ("unix:/a b/ü/=@", UnixAddress("/a b/ü/=@".encode()), ""),
    ("unix:/a%2Cb%3a%5B%5d%25", UnixAddress(b"/a,b:[]%"), "unix:/a%2Cb%3A%5B%5D%25"),
    ("unix:/caf%E9", UnixAddress(b"/caf\xe9"), ""),
    ("unix:/caf\udce9", UnixAddress(b"/caf\xe9"), "unix:/caf%E9"),
    ("unix:/caf%C3%A9", UnixAddress("/café".encode()), "unix:/café"),
    ("unix:/a:b[c]", UnixAddress(b"/a:b[c]"), "unix:/a%3Ab%5Bc%5D"),
    ("unix:/a%0A%1B", UnixAddress(b"/a\n\x1b"), ""),
    ("unix:/" + "x" * 106, UnixAddress(b"/" + b"x" * 106), ""),
    ("unix:/a,mode=0660", UnixAddress(b"/a", options=(("mode", 0o660),)), ""),
    ("unix:/a,mode=660", UnixAddress(b"/a", options=(("mode", 0o660),)), "unix:/a,mode=0660"),
    ("abstract:name", AbstractAddress(b"name"), ""),
    ("abstract:%00a%00", AbstractAddress(b"\0a\0"), ""),
    ("abstract:" + "x" * 107, AbstractAddress(b"x" * 107), ""),
    ("hybrid:/run/vm.vsock:1234", HybridAddress(b"/run/vm.vsock", 1234), ""),
    ("hybrid:/run/a:b:1234", HybridAddress(b"/run/a:b", 1234), "hybrid:/run/a%3Ab:1234"),
    ("stdio", StdioAddress(), ""),
    ("-", StdioAddress(), "stdio"),
    ("stdio:", StdioAddress(), "stdio"),
    ("fd:0", FdAddress(0), ""),
    ("fd:3,backlog=5", FdAddress(3, options=(("backlog", 5),)), ""),
    ("fd:agent", FdAddress("agent"), ""),
    ("fd:a@b\\x2d1.socket,backlog=5", FdAddress("a@b\\x2d1.socket", options=(("backlog", 5),)), ""),
    ("fd:3proxy", FdAddress("3proxy"), ""),
    ("memory:a-b_c.1", MemoryAddress("a-b_c.1"), ""),
    ("udp:53", UdpAddress("", 53), ""),
    ("udp:[::]:53", UdpAddress("::", 53), ""),
    ("udp:239.1.2.3:53,interface=eth0", UdpAddress("239.1.2.3", 53, options=(("interface", "eth0"),)), ""),
    ("unix-dgram:/run/log", UnixDatagramAddress(b"/run/log"), ""),
    ("vsock-seqpacket:any:53", VsockPacketAddress(CID_ANY, 53), ""),
    ("vsock-seqpacket:host:53,buffer=4096", VsockPacketAddress(2, 53, options=(("buffer", 4096),)), ""),
    ("unix-seqpacket:/run/a%2C,mode=0660", UnixPacketAddress(b"/run/a,", options=(("mode", 0o660),)), ""),
    (
        "tcp:1,connect-timeout=0.5,backlog=7",
        TcpAddress("", 1, options=(("backlog", 7), ("connect-timeout", 0.5))),
        "tcp:1,backlog=7,connect-timeout=0.5",
    ),
    ("vsock:3:1,buffer=4M", VsockAddress(3, 1, options=(("buffer", 4 << 20),)), "vsock:3:1,buffer=4194304"),
]


@pytest.mark.parametrize(("written", "address", "canonical"), GOOD, ids=[row[0][:40] for row in GOOD])
def test_an_address_means_what_the_manual_says(written: str, address: Address, canonical: str) -> None:
    assert parse(written) == address
    assert str(address) == (canonical or written)


BAD: list[tuple[str, int, str]] = [
    # written, the character pointed at (from 1), what is said
    ("", 0, "the scheme is missing"),
    (":80", 1, "the scheme is missing"),
    ("8080", 1, "'8080' is no address: a scheme and a colon come first"),
    ("tcp", 4, "tcp is followed by a colon"),
    ("vsock,buffer=1M", 6, "vsock is followed by a colon"),
    ("TCP:80", 1, "no scheme is called 'TCP' – schemes are written small: tcp"),
    ("tcp4:80", 1, "no scheme is called 'tcp4' – that is socat's word, which vsockfwd relay knows; here it is tcp:"),
    ("TCP-LISTEN:80", 1, "socat's word"),
    ("vsok:3:1", 1, "no scheme is called 'vsok' – did you mean vsock?"),
    ("gopher:3:1", 1, "the schemes are vsock, tcp, unix, abstract, hybrid, stdio, fd, udp, unix-dgram"),
    ("vsock-dgram:3:53", 1, "vsock has no datagrams (SOCK_DGRAM) but on VMware – vsock-seqpacket: keeps boundaries"),
    ("VSOCK-DATAGRAM:3:53", 1, "vsock has no datagrams"),
    ("vsock-seqpacket:3", 17, "vsock takes CID:PORT"),
    ("udp:239.1.2.3:53,interface=", 28, "is a network interface's name"),
    (" tcp:80", 1, "no scheme is called ' tcp'"),
    ("vsock:3", 7, "vsock takes CID:PORT – such as vsock:3:1234"),
    ("vsock:", 7, "vsock takes CID:PORT"),
    ("vsock::80", 7, "a CID is missing"),
    ("vsock:3:", 9, "a vsock port is missing"),
    ("vsock:guest:80", 7, "no CID is called 'guest' – a number, host, local or any"),
    ("vsock:Host:80", 7, "a CID must be a number, not 'Host'"),
    ("vsock:-1:80", 7, "a CID must be a number, not '-1'"),
    ("vsock:4294967296:80", 7, "a CID must be between 0 and 4294967295"),
    ("vsock:3:4294967295", 9, "a vsock port must be between 0 and 4294967294"),
    ("vsock:3:+80", 9, "a vsock port must be a number, not '+80'"),
    ("vsock:3: 80", 9, "a vsock port must be a number"),
    ("vsock:3:8_0", 9, "a vsock port must be a number"),
    ("vsock:٣:80", 7, "a CID must be a number"),
    ("vsock:1:2:3", 7, "a CID must be a number, not '1:2'"),
    ("vsock:3:" + "9" * 21, 9, "a vsock port must be a number"),
    ("tcp:", 5, "a port is missing"),
    ("tcp:65536", 5, "a port must be between 0 and 65535"),
    ("tcp:http", 5, "a port must be a number, not 'http'"),
    ("tcp::80", 5, "the host is missing – leave out its colon for loopback, write * for every address"),
    ("tcp:::1:80", 5, "an IPv6 address stands in brackets – such as tcp:[::1]:8080"),
    ("tcp:[::1:80", 5, "[ without its ]"),
    ("tcp:[::g]:80", 6, "'::g' is no IPv6 address"),
    ("tcp:[127.0.0.1]:80", 6, "'127.0.0.1' is no IPv6 address"),
    ("tcp:[fe80::1%]:80", 6, "is no IPv6 address"),
    ("tcp:[fe80::1%\x1b[2J]:80", 6, "'fe80::1%\\x1b[2J' is no IPv6 address"),
    ("tcp:[::1]:", 11, "a port is missing"),
    ("tcp:a b:80", 5, "'a b' is no host name"),
    ("tcp:-a:80", 5, "'-a' is no host name"),
    ("tcp:ü.org:80", 5, "is no host name"),
    ("tcp:a/b:80", 5, "'a/b' is no host name"),
    ("tcp:" + "a" * 254 + ":80", 5, "is no host name"),
    ("unix:", 6, "the path is missing"),
    ("unix:,mode=600", 6, "the path is missing"),
    ("unix:/a%00b", 6, "a path holds no NUL byte – abstract:NAME for the abstract namespace"),
    ("unix:/a%zz", 8, "% starts a byte in hexadecimal: two digits follow it – write %25 for %"),
    ("unix:/a%", 8, "% starts a byte in hexadecimal"),
    ("unix:/a%4,mode=600", 8, "% starts a byte in hexadecimal"),
    ("unix:/a\ud800", 8, "a character that no byte stands for"),
    ("unix:/" + "x" * 107, 6, "the path has 108 bytes, a UNIX socket's holds 107 – use a shorter path"),
    ("unix:/" + "ü" * 54, 6, "the path has 109 bytes"),
    ("unix-dgram:/" + "x" * 107, 12, "the path has 108 bytes"),
    ("abstract:", 10, "the name is missing"),
    ("abstract:" + "x" * 108, 10, "the name has 108 bytes"),
    ("hybrid:/run/vm.vsock", 8, "hybrid takes PATH:PORT – such as hybrid:/run/vm.vsock:1234"),
    ("hybrid::80", 8, "the path is missing"),
    ("hybrid:/run/vm.vsock:x", 22, "a vsock port must be a number, not 'x'"),
    ("hybrid:/a%00:80", 8, "a path holds no NUL byte"),
    ("stdio:1", 7, "stdio takes nothing after it"),
    ("-x", 1, "'-x' is no address"),
    ("fd:", 4, "a descriptor is missing"),
    ("fd:-1", 4, "a descriptor must be a number"),
    ("fd:1048577", 4, "a descriptor must be between 0 and 1048576"),
    ("fd:1.5", 4, "a descriptor must be a number, not '1.5'"),
    ("fd:a b", 4, "a descriptor's name is of letters, digits, '_', '.', '@', '-' and '\\', 255 at most"),
    ("fd:a:b", 4, "a descriptor's name is of letters"),
    ("fd:caf\xe9", 4, "a descriptor's name is of letters"),
    ("fd:" + "x" * 256, 4, "a descriptor's name is of letters"),
    ("memory:", 8, "a memory address takes a NAME"),
    ("memory:a b", 8, "a memory address takes a NAME"),
    ("tcp:80,", 8, "an option is missing after the comma – it takes connect-timeout, backlog"),
    ("tcp:80,,backlog=1", 8, "an option is missing after the comma"),
    ("tcp:80,mode=0600", 8, "tcp has no option 'mode' – it takes connect-timeout, backlog"),
    ("-,backlog=1", 3, "stdio has no option 'backlog' – stdio takes none"),
    ("tcp:80,Backlog=1", 8, "tcp has no option 'Backlog'"),
    ("tcp:80,backlog", 15, "option backlog takes a value – backlog=…"),
    ("tcp:80,backlog=1,backlog=2", 18, "option backlog stands twice"),
    ("tcp:80,backlog=0", 16, "backlog is a whole number above 0"),
    ("tcp:80,backlog=٣", 16, "backlog is a whole number above 0"),
    ("tcp:80,backlog=1,connect-timeout=0", 34, "connect-timeout is a number of seconds above 0, such as 5 or 0.5"),
    ("tcp:80,connect-timeout=-1", 24, "connect-timeout is a number of seconds"),
    ("tcp:80,connect-timeout=٣", 24, "connect-timeout is a number of seconds"),
    ("tcp:80,connect-timeout=inf", 24, "connect-timeout is a number of seconds"),
    ("tcp:80,connect-timeout=1e3", 24, "connect-timeout is a number of seconds"),
    ("vsock:3:1,buffer=0", 18, "buffer is a number of bytes above 0; K, M and G may follow"),
    ("vsock:3:1,buffer=2G", 18, "buffer is at most 1G"),
    ("vsock:3:1,buffer=1T", 18, "buffer is a number of bytes"),
    ("unix:/a,mode=0999", 14, "mode is three octal digits, such as 0660"),
    ("unix:/a,mode=01777", 14, "mode is three octal digits"),
    ("unix:/a,mode=66", 14, "mode is three octal digits"),
]


@pytest.mark.parametrize(("written", "character", "said"), BAD, ids=[row[0][:40].strip() or "empty" for row in BAD])
def test_a_wrong_address_is_refused_and_the_character_pointed_at(written: str, character: int, said: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse(written)
    error = caught.value
    assert said in error.line()
    assert error.exit_code == 2
    assert error.position == max(character - 1, 0)
    if character:
        assert f", character {character}: " in error.message
    assert error.line().isprintable()


def test_a_scheme_for_tests_is_not_offered_to_users() -> None:
    with pytest.raises(AddressError) as caught:
        parse("nonsense:")
    assert "memory" not in caught.value.line()


@pytest.mark.parametrize("text", ["udp:53", "unix-dgram:/a", "unix-seqpacket:/a", "vsock-seqpacket:3:1"])
def test_a_datagram_address_is_refused_where_a_stream_is_needed(text: str) -> None:
    with pytest.raises(AddressError, match="carries datagrams, a stream is needed here") as caught:
        parse_stream(text)
    assert "vsockfwd dgram" in caught.value.hint
    assert parse_stream("tcp:53") == TcpAddress("", 53)


def test_a_hybrid_address_listens_beside_its_path() -> None:
    assert HybridAddress(b"/run/vm.vsock", 1234).listening_path == b"/run/vm.vsock_1234"


def test_an_option_that_is_not_given_has_the_callers_default() -> None:
    address = parse("tcp:80,backlog=3")
    assert address.option("backlog", 9) == 3
    assert address.option("connect-timeout", 9.5) == 9.5
    assert address.bare() == "tcp:80"


# --- round trips

OPTION_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "connect-timeout": st.integers(1, 10**12).map(lambda micros: micros / 1e6),
    "keepalive": st.integers(0, 9999),
    "linger": st.integers(0, 9999),
    "backlog": st.integers(1, 10**9 - 1),
    "buffer": st.integers(1, 1 << 30),
    "auth-key": st.binary(min_size=1).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"/"))),
    "tls": st.just(True),
    "peer-name": st.from_regex(r"[A-Za-z0-9_.:-]{1,50}", fullmatch=True),
    "mode": st.integers(0, 0o777),
    "interface": st.from_regex(r"[A-Za-z0-9_.-]{1,15}", fullmatch=True),
}
OPTION_VALUES |= dict.fromkeys(("cert", "key", "ca"), OPTION_VALUES["auth-key"])
ports = st.integers(0, 65535)
vsock_ports = st.integers(0, VSOCK_PORT_LIMIT)
labels = st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9_-]{0,20}", fullmatch=True)
hosts = st.one_of(
    st.just(""),
    st.just("*"),
    st.lists(labels, min_size=1, max_size=4).map(".".join),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
)
names = st.binary(min_size=1, max_size=UNIX_PATH_LIMIT)
paths = names.map(lambda raw: raw.replace(b"\0", b"/")) | st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=UNIX_PATH_LIMIT // 4
).map(str.encode)

FIELDS: dict[type[Address], tuple[st.SearchStrategy[Any], ...]] = {
    VsockAddress: (st.integers(0, CID_ANY), vsock_ports),
    TcpAddress: (hosts, ports),
    UnixAddress: (paths,),
    AbstractAddress: (names,),
    HybridAddress: (paths, vsock_ports),
    StdioAddress: (),
    FdAddress: (
        st.integers(0, 1 << 20) | st.from_regex(r"[0-9_.@\\-]{0,9}[A-Za-z][A-Z0-9_.@\\-]{0,9}", fullmatch=True),
    ),
    MemoryAddress: (st.from_regex(r"[A-Za-z0-9_.-]{1,20}", fullmatch=True),),
    UdpAddress: (hosts, ports),
    UnixDatagramAddress: (paths,),
    VsockPacketAddress: (st.integers(0, CID_ANY), vsock_ports),
    UnixPacketAddress: (paths,),
}


@st.composite
def addresses(draw: st.DrawFn) -> Address:
    kind = draw(st.sampled_from(list(FIELDS)))
    chosen = draw(st.sets(st.sampled_from(kind.known_options))) if kind.known_options else set()
    chosen |= {"tls"} if chosen & {"cert", "key", "ca", "peer-name"} else set()
    chosen |= {"cert"} if "key" in chosen else set()
    options = tuple((name, draw(OPTION_VALUES[name])) for name in sorted(chosen))
    return kind(*(draw(field) for field in FIELDS[kind]), options=options)


@settings(deadline=None)
@given(addresses())
def test_every_address_reads_back_as_it_was_written(address: Address) -> None:
    text = str(address)
    assert parse(text) == address
    assert str(parse(text)) == text
    assert text.isprintable()


@settings(deadline=None)
@given(st.text(alphabet=st.characters(), max_size=40) | st.text("tcpvsokunixhybrd:[]%,=*-0123456789/", max_size=40))
def test_any_text_is_an_address_or_an_address_error(text: str) -> None:
    for candidate in (text, *(f"{scheme}:{text}" for scheme in SCHEMES)):
        position = 0
        try:
            address = parse(candidate)
        except AddressError as error:
            said, position = error.line(), error.position
        else:
            said = str(address)
            assert parse(said) == address
        assert said.isprintable()
        assert 0 <= position <= len(candidate)


@given(OPTION_VALUES["auth-key"], st.sampled_from(["vsock:3:876", "unix:/a", "tcp:[::1]:5", "accept:vsock:3:9"]))
def test_a_target_keeps_its_key_file_whatever_that_is_called(path: str, text: str) -> None:
    target = with_key(parse_target(text), path)
    assert target.option("auth-key") == path
    assert parse_target(str(target)) == target
    assert target.bare() == text
    assert with_key(target, "/another").option("auth-key") == "/another"


@pytest.mark.parametrize("text", ["tcp:80,auth-key=/k", "unix:/a,auth-key=/k"])
def test_a_key_is_for_targets_alone(text: str) -> None:
    with pytest.raises(AddressError, match="no option 'auth-key'"):
        parse(text)
    assert parse_target(text).option("auth-key") == "/k"


@pytest.mark.parametrize("value", ["", "%", "%2", "a%0"])
def test_a_key_files_path_is_written_as_other_paths_are(value: str) -> None:
    with pytest.raises(AddressError, match="is a file's path"):
        parse_target(f"3,auth-key={value}")


def test_the_property_test_knows_every_scheme_and_every_option() -> None:
    assert {kind.scheme for kind in FIELDS} == set(SCHEMES)
    assert set(OPTION_VALUES) == set(OPTIONS)
