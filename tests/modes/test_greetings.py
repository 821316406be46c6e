"""SOCKS and HTTP CONNECT as bytes: what clients send, cut anywhere, and what they are answered."""

from __future__ import annotations

import errno
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsockfwd.address import TcpAddress
from vsockfwd.errors import Code, VsockfwdError, from_code
from vsockfwd.modes.greeting import Declined, Greeting
from vsockfwd.modes.http_connect import HEAD_LIMIT, HttpConnect
from vsockfwd.modes.socks import Socks4, Socks5

HELLO_5 = b"\x05\x01\x00"
AGREED_5 = b"\x05\x00"
GRANTED_5 = b"\x05\x00\x00\x01" + bytes(6)

ASKED: list[tuple[type[Greeting], bytes, TcpAddress, bytes]] = [
    (Socks5, HELLO_5 + b"\x05\x01\x00\x01\x7f\0\0\1\x00\x50", TcpAddress("127.0.0.1", 80), AGREED_5),
    (Socks5, HELLO_5 + b"\x05\x01\x00\x04" + bytes(15) + b"\1\x01\xbb", TcpAddress("::1", 443), AGREED_5),
    (Socks5, b"\x05\x03\x02\x01\x00\x05\x01\x00\x03\x0bexample.com\x00\x50", TcpAddress("example.com", 80), AGREED_5),
    (Socks5, HELLO_5 + b"\x05\x01\x00\x03\x09localhost\x00\x50", TcpAddress("localhost", 80), AGREED_5),
    (Socks5, HELLO_5 + b"\x05\x01\x00\x03\x03::1\x00\x50", TcpAddress("::1", 80), AGREED_5),
    (Socks4, b"\x04\x01\x00\x50\x7f\0\0\1root\0", TcpAddress("127.0.0.1", 80), b""),
    (Socks4, b"\x04\x01\x00\x50\x7f\0\0\1\0", TcpAddress("127.0.0.1", 80), b""),
    (Socks4, b"\x04\x01\x00\x50\0\0\0\7me\0example.com\0", TcpAddress("example.com", 80), b""),
    (HttpConnect, b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n", TcpAddress("example.com", 443), b""),
    (HttpConnect, b"CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\nA: b\r\n\r\n", TcpAddress("::1", 443), b""),
    (HttpConnect, b"CONNECT 127.0.0.1:1 HTTP/1.0\r\n\r\n", TcpAddress("127.0.0.1", 1), b""),
]


@pytest.mark.parametrize(("kind", "said", "asked", "answered"), ASKED)
@pytest.mark.parametrize("early", [b"", b"\x16\x03\x01 a TLS hello, and \x05\x01\x00 more \r\n\r\n"])
def test_a_request_cut_anywhere_asks_for_the_same_and_loses_nothing_that_follows(kind, said, asked, answered, early):
    whole = said + early
    cuts = [(), *((cut,) for cut in range(1, len(whole))), tuple(range(1, len(whole)))]
    for cut in cuts:
        greeting, answers, passed = kind(), b"", b""
        for start, end in itertools.pairwise((0, *cut, len(whole))):
            if greeting.asked is None:
                answers += greeting.receive(whole[start:end])
            else:  # the relay's by now
                passed += whole[start:end]
        assert (greeting.asked, greeting.early + passed, answers) == (asked, early, answered), cut


FAR_AWAY = HELLO_5 + b"\x05\x01\x00\x03"
HTTP_400 = b"HTTP/1.1 400 Bad Request\r\n"


@pytest.mark.parametrize(
    ("kind", "said", "answer"),
    [
        (Socks5, b"\x05\x01\x02", b"\x05\xff"),
        (Socks5, b"\x05\x00", b"\x05\xff"),
        (Socks5, HELLO_5 + b"\x05\x02\x00\x01\x7f\0\0\1\x00\x50", AGREED_5 + b"\x05\x07\x00\x01" + bytes(6)),  # BIND
        (Socks5, HELLO_5 + b"\x05\x03\x00\x01\0\0\0\0\0\0", AGREED_5 + b"\x05\x07\x00\x01" + bytes(6)),  # UDP ASSOCIATE
        (Socks5, HELLO_5 + b"\x05\x01\x00\x02\x7f\0\0\1\x00\x50", AGREED_5 + b"\x05\x08\x00\x01" + bytes(6)),
        (Socks5, HELLO_5 + b"\x04\x01\x00\x01\x7f\0\0\1\x00\x50", AGREED_5 + b"\x05\x01\x00\x01" + bytes(6)),
        *(
            (Socks5, FAR_AWAY + bytes([len(name)]) + name + b"\x00\x50", AGREED_5 + b"\x05\x04\x00\x01" + bytes(6))
            for name in (
                b"",
                b"*",
                b"x,connect-timeout=9",
                b"a b",
                b"[::1]",
                b"a:1",
                b"\xff",
                b"a\0",
                b"../etc",
                b"fd:3",
            )
        ),
        (Socks4, b"\x04\x02\x00\x50\x7f\0\0\1root\0", b"\x00\x5b" + bytes(6)),
        (Socks4, b"\x04\x01\x00\x50\0\0\0\7me\0a b\0", b"\x00\x5b" + bytes(6)),
        (Socks4, b"\x04\x01\x00\x50\0\0\0\7" + b"u" * 256, b"\x00\x5b" + bytes(6)),
        (Socks4, b"\x04\x01\x00\x50\0\0\0\7u\0" + b"n" * 256, b"\x00\x5b" + bytes(6)),
        (HttpConnect, b"CONNECT example.com HTTP/1.1\r\nHost: x\r\n\r\n", HTTP_400),
        (HttpConnect, b"CONNECT 80 HTTP/1.1\r\nHost: x\r\n\r\n", HTTP_400),
        (HttpConnect, b"CONNECT :80 HTTP/1.1\r\nHost: x\r\n\r\n", HTTP_400),
        (HttpConnect, b"CONNECT x:65536 HTTP/1.1\r\nHost: x\r\n\r\n", HTTP_400),
        (HttpConnect, b"CONNECT x:80,connect-timeout=9 HTTP/1.1\r\nHost: x\r\n\r\n", HTTP_400),
        (HttpConnect, b"CONNECT x,connect-timeout=9:80 HTTP/1.1\r\nHost: x\r\n\r\n", HTTP_400),
        (HttpConnect, b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nGET", HTTP_400),
        (HttpConnect, b"CONNECT x:80 HTTP/1.1\r\n\r\n", HTTP_400),  # no Host, which HTTP/1.1 asks for
        (HttpConnect, b"what is this?\r\n\r\n", HTTP_400),
        (HttpConnect, b"CONNECT x:80 HTTP/1.1\r\nHost: " + b"x" * HEAD_LIMIT, b"HTTP/1.1 431 "),
    ],
)
def test_what_cannot_be_served_is_answered_as_the_protocol_has_it(kind, said: bytes, answer: bytes):
    with pytest.raises(Declined) as caught:
        kind().receive(said)
    assert caught.value.answer.startswith(answer)
    assert caught.value.answer == answer or kind is HttpConnect
    assert caught.value.why.isprintable()


def test_a_client_that_wants_a_page_fetched_is_told_that_this_is_a_tunnel():
    for method in (b"GET", b"HEAD", b"POST", b"OPTIONS"):
        with pytest.raises(Declined) as caught:
            HttpConnect().receive(method + b" http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n")
        head, _, body = caught.value.answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 405 Method Not Allowed\r\nAllow: CONNECT\r\n")
        assert (body == b"") if method == b"HEAD" else b"this is a tunnel" in body


WHYS = {
    Code.REFUSED: (5, 502),
    Code.UNREACHABLE: (4, 502),
    Code.NAME_NOT_RESOLVED: (4, 502),
    Code.NOT_ALLOWED: (2, 403),
    Code.NOT_AUTHENTICATED: (2, 403),
    Code.PERMISSION: (2, 403),
    Code.TIMED_OUT: (6, 504),
}


@pytest.mark.parametrize("code", [code for code in Code if code])
def test_why_there_is_no_connection_is_told_in_each_protocols_words(code: Code):
    error: VsockfwdError = from_code(code, "connect to tcp:there:80: such is life", hint="try – later")
    socks, http = WHYS.get(code, (1, 502))
    assert Socks5().refused(error) == bytes([5, socks, 0, 1]) + bytes(6)
    assert Socks4().refused(error) == b"\0\x5b" + bytes(6)
    head, _, body = HttpConnect().refused(error).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % http)
    assert body.decode() == error.line() + "\n"
    assert f"Content-Length: {len(body)}".encode() in head


def test_an_unreachable_network_is_told_from_an_unreachable_host():
    for number, reply in ((errno.ENETUNREACH, 3), (errno.EHOSTUNREACH, 4), (0, 4)):
        assert Socks5().refused(from_code(Code.UNREACHABLE, "no way", errno=number))[1] == reply


def test_what_a_client_hears_when_its_connection_stands():
    assert Socks5().granted() == GRANTED_5
    assert Socks4().granted() == b"\0\x5a" + bytes(6)
    assert HttpConnect().granted() == b"HTTP/1.1 200 Connection established\r\n\r\n"


SAID = st.sampled_from([said for _, said, _, _ in ASKED])


@given(
    st.sampled_from([Socks5, Socks4, HttpConnect]),
    st.lists(st.binary(max_size=40), max_size=5)
    | st.tuples(SAID, st.integers(0, 60), st.binary(max_size=3)).map(lambda t: [t[0][: t[1]], t[2], t[0][t[1] :]]),
)
def test_garbage_is_waited_on_or_declined_and_nothing_else(kind: type[Greeting], pieces: list[bytes]):
    greeting = kind()
    try:
        for piece in filter(None, pieces):
            greeting.receive(piece)
            if greeting.asked is not None:
                assert greeting.asked.host not in ("", "*")
                assert not greeting.asked.options
                return
    except Declined:
        return
