"""What stands in control frames: hostile msgpack, unknown fields, texts that would harm a terminal, errors sent."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire import conversation as c
from vsockfwd.errors import (
    Code,
    Internal,
    NotAllowed,
    NotFound,
    PeerBrokeProtocol,
    Refused,
    VsockfwdError,
    from_code,
)
from vsockfwd.identity import GuestPeer, Identity, NetworkPeer, OwnPeer, UnixPeer, VsockPeer
from vsockfwd.wire.control import Announced, ControlMachine, Farewell, ListenGranted
from vsockfwd.wire.frames import AGENT_PREFACE, HANDSHAKE_LIMIT, FrameType, pack
from vsockfwd.wire.machine import Role
from vsockfwd.wire.messages import (
    Deny,
    Failure,
    Fetch,
    Granted,
    Hello,
    Incoming,
    Listen,
    Ok,
    Open,
    OtherNeighbour,
    Ready,
    decode,
    denial_of,
    encode,
    error_of,
    failure_of,
)
from vsockfwd.wire.stream import StreamMachine

STRUCTS = [Hello, Ready, Open, Ok, Failure, Listen, Granted, Incoming, Fetch, Deny]
NEST = 4000


def field(name: str, value: bytes) -> bytes:
    """A map of one field, its value given as raw msgpack."""
    return b"\x81" + encode(name) + value


BOMBS = {
    "nested arrays": b"\x91" * NEST,
    "nested maps": b"\x81\xa1a" * (NEST // 3),
    "nested in an unknown field": field("novelty", b"\x91" * NEST),
    "nested in a Raw field": b"\x82" + encode("version") + b"\x01" + encode("reply") + b"\x91" * NEST,
    "a list of 4 G versions": field("versions", b"\xdd\xff\xff\xff\xff\x01"),
    "a map of 4 G modes": field("modes", b"\xdf\xff\xff\xff\xff\xa1a\x91\x01"),
    "a text of 4 GiB": field("software", b"\xdb\xff\xff\xff\xffxyz"),
    "bytes of 4 GiB": field("token", b"\xc6\xff\xff\xff\xffxyz"),
    "an unknown field of 4 GiB": field("novelty", b"\xc6\xff\xff\xff\xffxyz"),
    "an unknown list of 4 G": field("novelty", b"\xdd\xff\xff\xff\xff\x01"),
    "a map that claims 4 G fields": b"\xdf\xff\xff\xff\xff\xa1a\x01",
    "nothing": b"",
    "the unused byte": b"\xc1",
    "a number": b"\x05",
    "two values": b"\x80\x80",
    "a text that is not UTF-8": b"\x83\xa8software\xa1\xff\xa4text\xa1\xff\xa7seen_as\xa1\xff",
    "a field's name that is not UTF-8 and no end": b"\x82\xa1\xff\x01",
}


@pytest.mark.parametrize("kind", STRUCTS)
@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_hostile_msgpack_is_refused_by_the_name_of_its_frame_and_takes_no_memory(kind: type, bomb: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(PeerBrokeProtocol, match="the peer's THING makes no sense: ") as caught:
            decode(bomb, kind, "THING")
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Hello, {"versions": []}),
        (Hello, {"versions": [-1]}),
        (Hello, {"versions": [0x10000]}),
        (Hello, {"versions": [1] * 33}),
        (Hello, {"versions": "1"}),
        (Hello, {"versions": [1], "software": "x" * 501}),
        (Hello, {"versions": [1], "frame": 4095}),
        (Hello, {"versions": [1], "frame": (1 << 31) + 1}),
        (Ready, {"version": 1, "token": bytes(15)}),
        (Ready, {"version": 1, "token": bytes(17)}),
        (Ready, {"version": 1, "token": c.TOKEN, "modes": {"": [1]}}),
        (Ready, {"version": 1, "token": c.TOKEN, "modes": {"x" * 65: [1]}}),
        (Ready, {"version": 1, "token": c.TOKEN, "modes": {"x": []}}),
        (Ready, {"version": 1, "token": c.TOKEN, "modes": {str(n): [1] for n in range(65)}}),
        (Open, {"token": c.TOKEN, "mode": "", "versions": [1]}),
        (Open, {"token": c.TOKEN, "mode": "m"}),
        (Open, {"mode": "m", "versions": [1]}),
        (Failure, {"text": "x" * 2001}),
        (Failure, {"errno": -1}),
        (Failure, {"errno": 4096}),
        (Listen, {"id": 1, "address": "tcp:1", "lease": bytes(15)}),
        (Listen, {"id": 1, "address": "", "lease": bytes(16)}),
        (Listen, {"id": 1, "address": "x" * 1025, "lease": bytes(16)}),
        (Listen, {"id": -1, "address": "tcp:1", "lease": bytes(16)}),
        (Listen, {"id": 1 << 32, "address": "tcp:1", "lease": bytes(16)}),
        (Granted, {"id": 1, "bound": []}),
        (Granted, {"id": 1, "bound": ["x"] * 17}),
        (Fetch, {"id": 1, "ticket": bytes(17)}),
        (Deny, {"id": 1, "ticket": bytes(17)}),
        (Deny, {"ticket": bytes(16)}),
        (Incoming, {"id": 1, "ticket": bytes(15), "peer": {"type": "other", "name": "x"}}),
        (Incoming, {"id": 1, "ticket": bytes(16), "peer": {"type": "friend", "name": "x"}}),
        (Incoming, {"id": 1, "ticket": bytes(16), "peer": {"type": "net", "host": "a\nb", "port": 1}}),
        (Incoming, {"id": 1, "ticket": bytes(16), "peer": {"type": "net", "host": "::1", "port": 65536}}),
        (Incoming, {"id": 1, "ticket": bytes(16), "peer": {"type": "vsock", "cid": 1 << 32, "port": 1}}),
    ],
)
def test_every_field_of_a_peer_is_bounded(kind: type, value: object) -> None:
    with pytest.raises(PeerBrokeProtocol):
        decode(encode(value), kind, "THING")


def test_a_field_of_a_later_version_is_ignored() -> None:
    assert decode(encode({"versions": [1], "novelty": {"a": [1, 2]}, "software": "x"}), Hello, "HELLO") == Hello(
        (1,), "x"
    )


@pytest.mark.parametrize(
    ("peer", "arrives_as"),
    [
        (VsockPeer(2, 1023), VsockPeer(2, 1023)),
        (UnixPeer(0, 0xFFFFFFFF, 0), UnixPeer(0, 0xFFFFFFFF, 0)),
        (NetworkPeer("127.0.0.1", 80), NetworkPeer("127.0.0.1", 80)),
        (NetworkPeer("fe80::1%eth0", 80), NetworkPeer("fe80::1", 80)),
        (GuestPeer(b"/run/\xff"), OwnPeer(r"guest behind /run/\xff")),
        (OwnPeer("x\x1b" * 400), OwnPeer("x\\x1b" * 100)),
    ],
)
def test_who_came_to_a_listener_is_told_as_far_as_it_can_be(peer: Identity, arrives_as: Identity) -> None:
    machine, client = c.play(c.login, ControlMachine).agent.machine, c.play(c.login, ControlMachine).client.machine
    (event,) = client.receive_data(machine.announce(1, c.TICKET, peer))
    assert event == Announced(1, c.TICKET, arrives_as)


# --- texts

NASTY = "\x1b[31mred\x07 \nvsockfwd: all is well\r\x85\x9b2J‮cod.exe⁦\u2028\x00\x7f end"


def is_harmless(text: str) -> bool:
    return not any(character in text for character in "\x1b\x07\n\r\x85\x9b‮⁦\u2028\x00\x7f")


@pytest.mark.parametrize("kind", [FrameType.ERROR, FrameType.RESET])
def test_escape_sequences_in_a_peers_error_come_out_escaped(kind: FrameType) -> None:
    talk = c.Conversation(StreamMachine)
    if kind is FrameType.RESET:
        c.opened(talk)
    else:
        talk.agent_says(AGENT_PREFACE)
    talk.agent_says(pack(kind, encode({"text": NASTY, "hint": NASTY}), Code.IO))
    _, _, message, hint, _ = talk.client.heard[-1]
    assert is_harmless(message)
    assert is_harmless(hint)
    assert r"\x1b[31mred\x07 \x0avsockfwd" in message
    assert r"\u202ecod.exe\u2066\u2028" in hint


def test_escape_sequences_in_a_farewell_come_out_escaped() -> None:
    talk = c.play(c.login, ControlMachine)
    (event,) = talk.client.machine.receive_data(pack(FrameType.BYE, encode({"text": NASTY}), Code.GONE))
    assert isinstance(event, Farewell)
    assert is_harmless(event.error.line())


def test_escape_sequences_in_where_an_agent_listens_and_who_came_come_out_escaped() -> None:
    client = c.play(c.login, ControlMachine).client.machine
    (granted,) = client.receive_data(pack(FrameType.LISTEN, encode(Granted(1, (NASTY,)))))
    assert isinstance(granted, ListenGranted)
    assert is_harmless(granted.bound[0])
    (announced,) = client.receive_data(pack(FrameType.INCOMING, encode(Incoming(1, c.TICKET, OtherNeighbour(NASTY)))))
    assert isinstance(announced, Announced)
    assert is_harmless(str(announced.peer))


def test_what_a_peer_put_where_msgpack_was_due_is_quoted_harmlessly() -> None:
    with pytest.raises(PeerBrokeProtocol) as caught:
        decode(encode({"versions": {NASTY: NASTY}, NASTY: NASTY}), Hello, "HELLO")
    assert is_harmless(caught.value.line())


# --- errors, there and back

ALL_CODES = [code for code in Code if code is not Code.NONE]


@pytest.mark.parametrize("code", ALL_CODES)
def test_an_error_arrives_as_what_it_was_with_its_exit_code_hint_and_errno(code: Code) -> None:
    error = from_code(code, "it broke", hint="mend it", errno=5)
    assert error.code == code
    back = error_of(error.code, failure_of(error), "the agent")
    assert (type(back), back.message, back.hint, back.errno) == (type(error), "the agent: it broke", "mend it", 5)
    assert back.exit_code == error.exit_code


def test_a_code_of_a_later_version_is_kept_in_the_text() -> None:
    error = error_of(999, encode(Failure("too blue")), "the agent")
    assert isinstance(error, Internal)
    assert error.message == "the agent: too blue (error code 999, unknown to this version)"


def test_an_error_without_code_or_text_is_still_one() -> None:
    assert error_of(0, b"", "the agent").message == "the agent: code 0"
    assert isinstance(error_of(0, b"", "the agent"), Internal)
    assert isinstance(error_of(Code.REFUSED, b"", "the agent"), Refused)


@settings(deadline=None)
@given(st.text(alphabet=st.characters(), max_size=700), st.text(alphabet=st.characters(), max_size=700), st.integers())
def test_any_error_of_ours_fits_a_frame_that_the_peer_takes(message: str, hint: str, errno: int) -> None:
    """Also one about a file whose name is not UTF-8: it holds lone surrogates, which msgpack cannot carry."""
    payload = failure_of(NotFound(message, hint=hint, errno=errno))
    assert len(payload) < len(denial_of(NotFound(message, hint=hint, errno=errno), 1 << 31, c.TICKET))
    assert len(denial_of(NotFound(message, hint=hint, errno=errno), 1 << 31, c.TICKET)) <= HANDSHAKE_LIMIT
    assert isinstance(error_of(Code.NOT_FOUND, payload, "the agent"), NotFound)


def test_the_name_of_a_file_that_is_not_utf8_survives_in_an_error() -> None:
    error: VsockfwdError = NotFound("open caf\udce9: no such file")
    assert error_of(error.code, failure_of(error), "the agent").message == r"the agent: open caf\xe9: no such file"


def test_a_long_text_is_cut_not_refused() -> None:
    machine = ControlMachine(Role.AGENT)
    client = ControlMachine(Role.CLIENT)
    machine.receive_data(client.hello(c.HELLO))
    (refused,) = client.receive_data(machine.refuse(NotAllowed("😀" * 5000, hint="😀" * 5000)))
    assert 400 < len(refused.error.message) < 520
