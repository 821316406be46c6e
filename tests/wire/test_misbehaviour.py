"""A peer that breaks the protocol, after a preface that was right. Strangers who never speak it: test_strangers.py."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from tests.wire import conversation as c
from vsockfwd.errors import LocalProtocolError, PeerBrokeProtocol, Reset, Truncated, VersionMismatch, VsockfwdError
from vsockfwd.wire.control import ControlMachine
from vsockfwd.wire.frames import (
    AGENT_PREFACE,
    CLIENT_PREFACE,
    FRAME_LIMIT,
    HANDSHAKE_LIMIT,
    HEADER,
    FrameParser,
    FrameType,
    RawFrame,
    pack,
)
from vsockfwd.wire.machine import Machine, Role
from vsockfwd.wire.messages import (
    Deny,
    Granted,
    Hello,
    Incoming,
    Listen,
    NetworkNeighbour,
    Open,
    OtherNeighbour,
    choose,
    encode,
)
from vsockfwd.wire.stream import StreamMachine

F = FrameType

BYTEWISE = pytest.mark.parametrize("cut", [c.whole, c.bytewise], ids=["whole", "bytewise"])


def header(kind: int, *, flags: int = 0, code: int = 0, length: int = 0) -> bytes:
    return HEADER.pack(kind, flags, code, length)


def side(kind: type[Machine], role: Role, *, after: c.Script | None = None) -> c.Side:
    """The side that is about to hear something wrong, at a point of a proper conversation."""
    talk = c.Conversation(kind)
    if after is not None:
        after(talk)
    else:
        talk.client.machine.receive_data(AGENT_PREFACE)
        talk.agent.machine.receive_data(CLIENT_PREFACE)
    return talk.client if role is Role.CLIENT else talk.agent


def said_hello(talk: c.Conversation) -> None:
    talk.client_says(talk.client.machine.hello(c.HELLO))
    talk.agent_says(talk.agent.machine.hello(c.HELLO))


def asked(talk: c.Conversation) -> None:
    talk.client_says(talk.client.machine.open(c.OPEN))
    talk.client.machine.receive_data(AGENT_PREFACE)


def ended(talk: c.Conversation) -> None:
    c.opened(talk)
    talk.client_says(talk.client.machine.end())
    talk.agent_says(talk.agent.machine.end())


HELLO = pack(F.HELLO, encode(c.HELLO))
READY = pack(F.READY, encode(c.READY))
OPEN = pack(F.OPEN, encode(c.OPEN))
GRANTED = Granted(1, ("tcp:1",))
DENY = Deny(id=1, ticket=c.TICKET)
LISTEN = pack(F.LISTEN, encode(Listen(1, "tcp:1", c.LEASE)))
INCOMING = pack(F.INCOMING, encode(Incoming(1, c.TICKET, OtherNeighbour("x"))))
DATA = pack(F.DATA, b"x")
EMPTY_DATA = pack(F.DATA)
END = pack(F.END)

OUT_OF_PLACE: list[tuple[str, type[Machine], Role, c.Script | None, bytes]] = [
    # what, which connection, who hears it, after what, the bytes
    ("PING before HELLO", ControlMachine, Role.AGENT, None, pack(F.PING)),
    ("AUTH before HELLO", ControlMachine, Role.AGENT, None, pack(F.AUTH)),
    ("OPEN on a control connection", ControlMachine, Role.AGENT, None, OPEN),
    ("DATA before HELLO", ControlMachine, Role.AGENT, None, DATA),
    ("empty DATA before HELLO", ControlMachine, Role.AGENT, None, EMPTY_DATA),
    ("two HELLOs", ControlMachine, Role.AGENT, None, HELLO + HELLO),
    ("PING after HELLO, before READY", ControlMachine, Role.AGENT, said_hello, pack(F.PING)),
    ("BYE before READY", ControlMachine, Role.AGENT, said_hello, pack(F.BYE)),
    ("READY from a client", ControlMachine, Role.AGENT, said_hello, READY),
    ("ERROR from a client", ControlMachine, Role.AGENT, said_hello, pack(F.ERROR)),
    ("READY before HELLO", ControlMachine, Role.CLIENT, None, READY),
    ("two HELLOs of the agent", ControlMachine, Role.CLIENT, said_hello, HELLO),
    ("two READYs", ControlMachine, Role.CLIENT, c.login, READY),
    ("DATA in a session", ControlMachine, Role.CLIENT, c.login, DATA),
    ("empty DATA in a session", ControlMachine, Role.AGENT, c.login, EMPTY_DATA),
    ("END in a session", ControlMachine, Role.AGENT, c.login, END),
    ("a mode's frame in a session", ControlMachine, Role.AGENT, c.login, pack(64)),
    ("STATUS, which is not spoken yet", ControlMachine, Role.AGENT, c.login, pack(F.STATUS)),
    ("LISTEN before READY", ControlMachine, Role.AGENT, said_hello, LISTEN),
    ("LISTEN before HELLO", ControlMachine, Role.AGENT, None, LISTEN),
    ("LISTEN of the agent before READY", ControlMachine, Role.CLIENT, said_hello, pack(F.LISTEN, encode(GRANTED))),
    ("INCOMING from a client", ControlMachine, Role.AGENT, c.login, INCOMING),
    ("INCOMING before READY", ControlMachine, Role.CLIENT, said_hello, INCOMING),
    ("DENY before READY", ControlMachine, Role.AGENT, said_hello, pack(F.DENY, encode(DENY))),
    ("LISTEN after BYE", ControlMachine, Role.AGENT, c.login_then_farewell, LISTEN),
    ("LISTEN in a stream", StreamMachine, Role.AGENT, c.opened, LISTEN),
    ("INCOMING in a stream", StreamMachine, Role.CLIENT, c.opened, INCOMING),
    ("PING after ERROR", ControlMachine, Role.CLIENT, c.refused_before_hello, pack(F.PING)),
    ("READY after ERROR", ControlMachine, Role.CLIENT, c.refused_before_hello, READY),
    ("PING after BYE", ControlMachine, Role.AGENT, c.login_then_farewell, pack(F.PING)),
    ("BYE after BYE", ControlMachine, Role.AGENT, c.login_then_farewell, pack(F.BYE)),
    ("HELLO on a stream connection", StreamMachine, Role.AGENT, None, HELLO),
    ("DATA before OPEN", StreamMachine, Role.AGENT, None, DATA),
    ("empty DATA before OPEN", StreamMachine, Role.AGENT, None, EMPTY_DATA),
    ("END before OPEN", StreamMachine, Role.AGENT, None, END),
    ("two OPENs", StreamMachine, Role.AGENT, asked, OPEN),
    ("the client's DATA before OK", StreamMachine, Role.AGENT, asked, DATA),
    ("the client's empty DATA before OK", StreamMachine, Role.AGENT, asked, EMPTY_DATA),
    ("the client's END before OK", StreamMachine, Role.AGENT, asked, END),
    ("OK from a client", StreamMachine, Role.AGENT, asked, pack(F.OK, encode(c.READY))),
    ("the agent's DATA before OK", StreamMachine, Role.CLIENT, asked, DATA),
    ("the agent's empty DATA before OK", StreamMachine, Role.CLIENT, asked, EMPTY_DATA),
    ("a mode's frame before OK", StreamMachine, Role.CLIENT, asked, pack(99)),
    ("RESET before OK", StreamMachine, Role.CLIENT, asked, pack(F.RESET)),
    ("two OKs", StreamMachine, Role.CLIENT, c.opened, pack(F.OK, encode({"version": 1}))),
    ("ERROR after OK", StreamMachine, Role.CLIENT, c.opened, pack(F.ERROR)),
    ("PING in a stream", StreamMachine, Role.CLIENT, c.opened, pack(F.PING)),
    ("DATA after END", StreamMachine, Role.CLIENT, ended, DATA),
    ("empty DATA after END", StreamMachine, Role.AGENT, ended, EMPTY_DATA),
    ("a mode's frame after END", StreamMachine, Role.AGENT, ended, pack(64)),
    ("END after END", StreamMachine, Role.AGENT, ended, END),
    ("OK after ERROR", StreamMachine, Role.CLIENT, c.refused_stream, pack(F.OK, encode({"version": 1}))),
    ("DATA after ERROR", StreamMachine, Role.CLIENT, c.refused_stream, DATA),
    ("DATA after RESET", StreamMachine, Role.AGENT, c.client_resets, DATA),
    ("RESET after RESET", StreamMachine, Role.AGENT, c.client_resets, pack(F.RESET)),
]


@BYTEWISE
@pytest.mark.parametrize(
    ("kind", "role", "after", "said"), [row[1:] for row in OUT_OF_PLACE], ids=[row[0] for row in OUT_OF_PLACE]
)
def test_a_frame_out_of_place_is_refused_by_name(
    kind: type[Machine], role: Role, after: c.Script | None, said: bytes, cut: c.Cut
) -> None:
    with pytest.raises(PeerBrokeProtocol, match=r"the peer sent \w+( 99| 64)?") as caught:
        side(kind, role, after=after).hear(said, cut)
    assert caught.value.exit_code == 76


@BYTEWISE
@pytest.mark.parametrize(
    ("said", "message"),
    [
        (header(F.PING, flags=1), "unknown flags 0x01 on PING"),
        (header(F.DATA, flags=0x80, length=4), "unknown flags 0x80 on DATA"),
        (header(200, flags=2), "unknown flags 0x02 on frame 200"),
        (header(0), "unassigned type 0"),
        (header(17), "unassigned type 17"),
        (header(63), "unassigned type 63"),
        (header(F.PING, length=0xFFFF_FFFF), "announced 4294967295 bytes of PING"),
        (header(F.DATA, length=0xFFFF_FFFF), "announced 4294967295 bytes of DATA"),
        (header(250, length=0xFFFF_FFFF), "announced 4294967295 bytes of frame 250"),
        (header(F.DATA, length=FRAME_LIMIT + 1), f"where {FRAME_LIMIT} are the limit"),
        (header(64, length=FRAME_LIMIT + 1), f"where {FRAME_LIMIT} are the limit"),
        (header(F.DATA, code=1, length=1), "put a code on DATA"),
        (header(F.END, code=256), "put a code on END"),
        (header(F.OK, code=1), "put a code on OK"),
        (header(F.END, length=1), "put 1 bytes into END"),
    ],
)
def test_a_header_that_says_what_it_may_not_is_refused_at_once(said: bytes, message: str, cut: c.Cut) -> None:
    with pytest.raises(PeerBrokeProtocol, match=message):
        side(StreamMachine, Role.AGENT, after=c.opened).hear(said, cut)


@pytest.mark.parametrize("kind", range(17, 64))
def test_every_unassigned_type_is_refused_so_that_it_can_be_given_a_meaning_later(kind: int) -> None:
    with pytest.raises(PeerBrokeProtocol, match=f"unassigned type {kind}"):
        list(FrameParser().receive_data(memoryview(header(kind))))


@pytest.mark.parametrize("kind", [F.HELLO, F.AUTH, F.READY, F.OPEN, F.OK, F.PING, F.PONG, F.LISTEN, F.INCOMING])
def test_a_code_where_none_may_be_is_refused(kind: FrameType) -> None:
    with pytest.raises(PeerBrokeProtocol, match=f"put a code on {kind.name}"):
        list(FrameParser().receive_data(memoryview(header(kind, code=7))))


@BYTEWISE
@pytest.mark.parametrize("kind", [128, 200, 255])
def test_a_frame_of_a_later_version_that_may_be_skipped_is_skipped(kind: int, cut: c.Cut) -> None:
    talk = c.Conversation(StreamMachine, cut)
    novelty = pack(kind, b"a novelty" * 50, 77)
    c.opened(talk)
    talk.agent_says(novelty, c.data(talk.agent, b"ab"), novelty, pack(kind), c.data(talk.agent, b"cd"))
    talk.agent_says(talk.agent.machine.end(), novelty)
    assert talk.client.heard[1:] == [("data", b"abcd"), ("end",)]
    talk.client.machine.receive_eof()


def test_a_skipped_frame_that_is_cut_off_is_a_truncation() -> None:
    heard = side(StreamMachine, Role.CLIENT, after=ended)
    heard.hear(header(200, length=10) + b"12345")
    with pytest.raises(Truncated):
        heard.machine.receive_eof()


# --- every bit of every header


def outcome(script: c.Script, kind: type[Machine], spoil: Callable[[int, bytes], bytes]) -> list[Any]:
    """What both sides heard and how it ended, when each thing said is spoilt on its way."""
    talk = c.Conversation(kind)
    counter = iter(range(1000))
    carry = talk._carry
    talk._carry = lambda who, to, data: carry(who, to, spoil(next(counter), data))  # type: ignore[method-assign]
    result: list[Any] = [talk.client.heard, talk.agent.heard]
    try:
        script(talk)
        talk.both_end()
    except VsockfwdError as error:
        result.append((type(error), error.message))
    except LocalProtocolError as error:  # what was to be answered did not come: the script cannot go on
        result.append(str(error))
    return result


def headers(said: list[tuple[Role, bytes]]) -> list[tuple[int, int]]:
    """Where headers stand: the number of the thing said, the offset in it."""
    found = []
    spoken: set[Role] = set()
    for number, (who, data) in enumerate(said):
        at = 0 if who in spoken else 8
        spoken.add(who)
        while at < len(data):
            found.append((number, at))
            at += HEADER.size + HEADER.unpack_from(data, at)[3]
    return found


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (c.both_talk_and_end, StreamMachine),
        (c.a_mode_speaks_its_own_frames, StreamMachine),
        (c.agent_resets_after_its_end, StreamMachine),
        (c.refused_stream, StreamMachine),
        (c.liveness_is_asked_both_ways, ControlMachine),
        (c.who_comes_is_announced_and_some_are_denied, ControlMachine),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_no_flipped_bit_in_a_header_passes_for_what_was_said(script: c.Script, kind: type[Machine]) -> None:
    proper = outcome(script, kind, lambda _, data: data)
    for number, at in headers(c.play(script, kind).said):
        for bit in range(8 * HEADER.size):

            def flip(now: int, data: bytes, number: int = number, at: int = at + bit // 8, bit: int = bit % 8) -> bytes:
                if now != number:
                    return data
                return data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]

            try:
                spoilt = outcome(script, kind, flip)
            except PeerBrokeProtocol:
                continue
            assert spoilt != proper, (number, at, bit)


# --- memory


def test_a_strangers_frame_above_the_handshake_limit_is_refused_before_any_of_it_is_stored() -> None:
    for length in (HANDSHAKE_LIMIT + 1, FRAME_LIMIT, 0xFFFF_FFFF):
        heard = side(StreamMachine, Role.AGENT)
        with pytest.raises(PeerBrokeProtocol, match=f"announced {length} bytes of OPEN, where 4096 are the limit"):
            heard.hear(header(F.OPEN, length=length) + b"x" * 5000)
        assert heard.machine.parser._partial == b""


def test_a_frame_of_the_handshake_limit_is_still_taken() -> None:
    spent = len(encode(Open(c.TOKEN, "m", (1,), Raw(encode(bytes(256)))))) - 256
    request = Open(c.TOKEN, "m", (1,), Raw(encode(bytes(HANDSHAKE_LIMIT - spent))))
    assert len(encode(request)) == HANDSHAKE_LIMIT
    heard = side(StreamMachine, Role.AGENT)
    heard.hear(pack(F.OPEN, encode(request)))
    assert heard.heard[0][0] == "open"


def test_no_frame_of_a_control_connection_exceeds_the_handshake_limit() -> None:
    with pytest.raises(PeerBrokeProtocol, match="where 4096 are the limit"):
        side(ControlMachine, Role.AGENT, after=c.login).hear(header(F.PING, length=4097))


def test_announcing_a_large_frame_takes_no_memory_until_its_bytes_come() -> None:
    heard = side(StreamMachine, Role.AGENT, after=c.opened)
    tracemalloc.start()
    try:
        heard.hear(header(64, length=FRAME_LIMIT) + b"only this")
        heard.hear(b"and this")
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_data_is_never_stored_however_large_its_frame() -> None:
    heard = side(StreamMachine, Role.AGENT, after=c.opened)
    piece = memoryview(bytes(1 << 16))
    heard.machine.receive_data(header(F.DATA, length=FRAME_LIMIT))
    tracemalloc.start()
    try:
        for _ in range(16):
            heard.machine.receive_data(piece)
        assert tracemalloc.get_traced_memory()[1] < 10_000
    finally:
        tracemalloc.stop()
    assert heard.machine.parser.between_frames


def test_an_agent_cannot_choose_larger_frames_than_the_client_offered() -> None:
    """Else it could have a client store what the agent likes: a mode's frame is kept whole."""
    client = ControlMachine(Role.CLIENT)
    client.hello(Hello((1,), frame=8192))
    for frame, fine in ((8192, True), (8193, False), (1 << 31, False)):
        said = AGENT_PREFACE + HELLO + pack(F.READY, encode({"version": 1, "token": c.TOKEN, "frame": frame}))
        if fine:
            ControlMachine(Role.CLIENT).receive_data(said)
        else:
            with pytest.raises(PeerBrokeProtocol, match="8192 were offered"):
                client.receive_data(said)
            client = ControlMachine(Role.CLIENT)
            client.hello(Hello((1,), frame=8192))


@pytest.mark.parametrize("kind", [F.RESET, F.END])
def test_a_frame_that_is_stored_stays_small_in_a_stream_too(kind: FrameType) -> None:
    heard = side(StreamMachine, Role.AGENT, after=c.opened)
    with pytest.raises(PeerBrokeProtocol, match=f"announced 4097 bytes of {kind.name}, where 4096 are the limit"):
        heard.hear(header(kind, length=HANDSHAKE_LIMIT + 1))


def test_a_modes_frame_is_refused_before_any_of_it_is_stored_where_only_data_may_come() -> None:
    heard = side(StreamMachine, Role.AGENT, after=c.opened)
    heard.machine.parser.plain = True
    heard.hear(DATA + pack(200, b"to be skipped") + DATA)
    with pytest.raises(PeerBrokeProtocol, match="sent frame 64, of a mode's own, into a plain stream"):
        heard.hear(header(64, length=FRAME_LIMIT) + b"x")
    assert heard.machine.parser._partial == b""


# --- versions


@pytest.mark.parametrize("role", Role)
def test_without_a_common_version_both_are_named(role: Role) -> None:
    with pytest.raises(VersionMismatch, match="speaks protocol version 2, 7, this side 1") as caught:
        side(ControlMachine, role).hear(pack(F.HELLO, encode(Hello((2, 7)))))
    assert caught.value.hint == "install the same vsockfwd on both sides"
    assert isinstance(caught.value, PeerBrokeProtocol)


def test_the_highest_common_version_is_chosen() -> None:
    heard = side(ControlMachine, Role.AGENT)
    heard.hear(pack(F.HELLO, encode(Hello((9, 1, 0)))))
    assert heard.heard[0][2] == 1
    assert choose((1, 2, 3), (2, 3, 4)) == 3
    assert choose((1,), (2,)) is None


def test_an_agent_that_chooses_a_version_nobody_offered_is_not_followed() -> None:
    with pytest.raises(VersionMismatch, match="chose protocol version 9"):
        side(ControlMachine, Role.CLIENT, after=said_hello).hear(
            pack(F.READY, encode({"version": 9, "token": c.TOKEN}))
        )


# --- the end of the bytes


@pytest.mark.parametrize(
    ("role", "after", "said"),
    [
        (Role.CLIENT, c.opened, b""),
        (Role.AGENT, c.opened, b""),
        (Role.CLIENT, c.opened, DATA),
        (Role.CLIENT, c.opened, header(F.DATA, length=5) + b"1234"),
        (Role.AGENT, c.opened, header(F.END)[:7]),
        (Role.AGENT, c.opened, pack(64, b"frame")[:-1]),
        (Role.AGENT, asked, b""),
        (Role.CLIENT, ended, header(F.DATA, length=5)),
    ],
)
def test_the_end_of_the_bytes_without_end_is_a_truncation(role: Role, after: c.Script, said: bytes) -> None:
    heard = side(StreamMachine, role, after=after)
    heard.hear(said)
    with pytest.raises(Truncated, match=r"stream ended without its END, after \d+ bytes") as caught:
        heard.machine.receive_eof()
    assert caught.value.exit_code == 74


def test_a_truncation_says_how_many_bytes_had_come() -> None:
    heard = side(StreamMachine, Role.CLIENT, after=c.opened)
    heard.hear(DATA * 7 + header(F.DATA, length=5) + b"123")
    with pytest.raises(Truncated, match="the agent's stream ended without its END, after 10 bytes"):
        heard.machine.receive_eof()


def test_a_control_connection_that_ends_without_bye_is_a_lost_session() -> None:
    for role, other in ((Role.CLIENT, "agent"), (Role.AGENT, "client")):
        with pytest.raises(Reset, match=f"the {other} closed the control connection without BYE"):
            side(ControlMachine, role, after=c.login).machine.receive_eof()
    side(ControlMachine, Role.AGENT, after=c.login_then_farewell).machine.receive_eof()


# --- who asks and who announces


@pytest.mark.parametrize(
    ("role", "said"),
    [
        (Role.CLIENT, LISTEN),  # a client is asked for nothing
        (Role.AGENT, pack(F.LISTEN, encode(GRANTED))),  # an agent is granted nothing
        (Role.CLIENT, pack(F.DENY, encode(DENY))),  # an agent has no tickets of a client to deny
        (Role.AGENT, pack(F.DENY, encode(Deny(id=1, ticket=b"short")))),
        (Role.AGENT, pack(F.DENY)),
    ],
)
def test_listening_is_asked_by_the_client_and_granted_by_the_agent_alone(role: Role, said: bytes) -> None:
    with pytest.raises(PeerBrokeProtocol, match="makes no sense"):
        side(ControlMachine, role, after=c.login).hear(said)


# --- anything at all

frames = st.builds(
    lambda kind, flags, code, payload, lie: HEADER.pack(kind, flags, code, (len(payload) + lie) % (1 << 32)) + payload,
    st.integers(0, 255),
    st.sampled_from([0, 0, 0, 0, 1]),
    st.sampled_from([0, 0, 1, 11, 0xFFFF]),
    st.one_of(
        st.binary(max_size=60),
        st.sampled_from(
            [
                c.HELLO,
                c.READY,
                c.OPEN,
                GRANTED,
                DENY,
                Deny(id=2),
                Listen(1, "tcp:1", c.LEASE),
                Incoming(1, c.TICKET, NetworkNeighbour("::1", 80)),
            ]
        ).map(encode),
        st.recursive(
            st.none() | st.integers(-5, 1 << 40) | st.binary(max_size=5) | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
        ).map(encode),
    ),
    st.sampled_from([0, 0, 0, 0, 1, -1, 4096]),
)


@settings(deadline=None)
@given(
    st.sampled_from([ControlMachine, StreamMachine]),
    st.sampled_from(Role),
    st.booleans(),
    st.lists(frames | st.binary(max_size=20), max_size=6).map(b"".join),
    st.lists(st.integers(1, 30), min_size=1, max_size=5),
)
def test_garbage_raises_nothing_but_that_the_peer_broke_the_protocol(
    kind: type[Machine], role: Role, open_already: bool, said: bytes, sizes: list[int]
) -> None:
    ready = c.login if kind is ControlMachine else c.opened
    heard = side(kind, role, after=ready if open_already else None)
    try:
        heard.hear(said, c.in_sizes(sizes))
    except PeerBrokeProtocol:
        return
    try:
        heard.machine.receive_eof()
    except VsockfwdError:
        pass


@settings(deadline=None)
@given(st.binary(max_size=200), st.lists(st.integers(1, 30), min_size=1, max_size=5))
def test_the_parser_alone_finds_the_same_in_any_pieces(said: bytes, sizes: list[int]) -> None:
    def found(cut: c.Cut) -> list[Any]:
        parser, items = FrameParser(limit=100), []
        try:
            for piece in cut(said):
                for item in parser.receive_data(memoryview(piece)):
                    if isinstance(item, RawFrame):
                        items.append((item.kind, item.code, bytes(item.payload)))
                    elif items and isinstance(items[-1], bytes):
                        items[-1] += bytes(item)
                    else:
                        items.append(bytes(item))
            items.append(parser.between_frames)
        except PeerBrokeProtocol as error:
            items.append(error.message)
        return items

    assert found(c.in_sizes(sizes)) == found(c.whole)
