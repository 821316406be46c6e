"""Every scenario of the protocol, whatever the pieces in which it arrives. What a peer may do wrong is elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire import conversation as c
from vsockfwd.errors import CannotCreate, Gone, NotAllowed, NotAuthenticated, Refused, Reset, ShuttingDown
from vsockfwd.identity import NetworkPeer, UnixPeer, VsockPeer
from vsockfwd.wire.control import ControlMachine
from vsockfwd.wire.frames import AGENT_PREFACE, CLIENT_PREFACE, HEADER, FrameType
from vsockfwd.wire.machine import Role, State
from vsockfwd.wire.messages import Listen, encode
from vsockfwd.wire.stream import StreamMachine

ASKED = ("open", c.TOKEN, "forward", (1, 2), encode(c.Question("tcp:80")))
AGREED = ("ok", 2, encode(c.Answer("127.0.0.1:80")))
GREETED = ("hello", c.HELLO, 1)
DONE = ("bye", ShuttingDown, "the client: the client is done", "", 0)

HEARD: dict[c.Script, tuple[list[Any], list[Any]]] = {
    # scenario: (what the client hears, what the agent hears)
    c.login_then_farewell: (
        [GREETED, ("ready", c.READY)],
        [GREETED, ("bye", ShuttingDown, "the client: the client is done", "", 0)],
    ),
    c.liveness_is_asked_both_ways: (
        [
            GREETED, ("ready", c.READY), ("pong", b"1"), ("ping", b""), ("pong", b"2"),
            ("bye", ShuttingDown, "the agent: the agent stops", "try again", 0),
        ],
        [GREETED, ("ping", b"1"), ("ping", b"2"), ("pong", b"")],
    ),
    c.refused_before_hello: (
        [("refused", NotAllowed, "the agent: uid 7 is a stranger", "--allow-uid 7", 0)],
        [GREETED],
    ),
    c.refused_after_hello: ([GREETED, ("refused", NotAllowed, "the agent: no", "", 13)], [GREETED]),
    c.two_are_listened_for_and_one_is_refused: (
        [
            GREETED, ("ready", c.READY),
            ("deny", 2, b"", CannotCreate, "the agent: listen on unix:/run/a: taken", "", 98),
            ("listens", 1, ("tcp:127.0.0.1:4000", "tcp:[::1]:4000")),
        ],
        [GREETED, ("listen", Listen(1, "tcp:0", c.LEASE)), ("listen", Listen(2, "unix:/run/a", c.TICKET))],
    ),
    c.who_comes_is_announced_and_some_are_denied: (
        [
            GREETED, ("ready", c.READY), ("listens", 1, ("tcp:127.0.0.1:4000",)), ("ping", b"?"),
            ("incoming", 1, c.TICKET, NetworkPeer("127.0.0.1", 55555)),
            ("incoming", 1, c.LEASE, UnixPeer(1000, 100, 7)),
            ("incoming", 1, c.TOKEN, VsockPeer(2, 1023)),
        ],
        [
            GREETED, ("listen", Listen(1, "tcp:0", c.LEASE)), ("pong", b"?"),
            ("deny", 1, c.TICKET, Refused, "the client: nothing listens on tcp:80", "start it", 0),
            ("deny", 1, b"", ShuttingDown, "the client: the client is done", "", 0), ("ping", b""),
        ],
    ),
    c.proven: (
        [("hello", c.AGENT_HELLO, 1), ("proven", c.KEY), ("ready", c.READY)],
        [("hello", c.CLIENT_HELLO, 1), ("proven", c.KEY), DONE],
    ),
    c.refused_for_its_key: (
        [("hello", c.AGENT_HELLO, 1), ("refused", NotAuthenticated, "the agent: not let in", "", 0)],
        [("hello", c.CLIENT_HELLO, 1), ("proven", c.KEY)],
    ),
    c.both_talk_and_end: (
        [AGREED, ("data", b"200" + bytes(300)), ("end",)],
        [ASKED, ("data", b"GET / please"), ("end",)],
    ),
    c.client_half_closes_then_hears_the_answer: (
        [AGREED, ("data", b"the answer, in two parts"), ("end",)],
        [ASKED, ("end",)],
    ),
    c.agent_speaks_first_and_ends_first: (
        [("ok", 1, b"\xc0"), ("data", b"220 hello"), ("end",)],
        [ASKED, ("data", b"QUIT"), ("end",)],
    ),
    c.nothing_but_ends: ([AGREED, ("end",)], [ASKED, ("end",)]),
    c.a_mode_speaks_its_own_frames: (
        [AGREED, ("data", b"x"), ("frame", 99, 0, bytes(600)), ("end",)],
        [ASKED, ("frame", 64, 0, b"entry"), ("frame", 127, 0, b""), ("end",)],
    ),
    c.empty_data_in_place: ([AGREED, ("data", b"ab"), ("end",)], [ASKED, ("data", b""), ("end",)]),
    c.refused_stream: ([("refused", Refused, "the agent: nothing listens on tcp:80", "start it", 111)], [ASKED]),
    c.stream_whose_token_is_gone: (
        [("refused", Gone, "the agent: the session is not known here: log in again", "", 0)],
        [ASKED],
    ),
    c.client_resets: (
        [AGREED, ("data", b"crossing"), ("end",)],
        [ASKED, ("data", b"half of"), ("reset", Reset, "the client: the neighbour went away", "", 0)],
    ),
    c.agent_resets_after_its_end: (
        [AGREED, ("end",), ("reset", Reset, "the agent: the disk broke", "", 5)],
        [ASKED, ("end",)],
    ),
    c.client_withdraws_before_the_answer: (
        [("refused", Refused, "the agent: as you wish", "", 0)],
        [ASKED, ("reset", Reset, "the client: the user went away", "", 0)],
    ),
}  # fmt: skip

scenarios = pytest.mark.parametrize(("script", "kind"), c.SCENARIOS, ids=[script.__name__ for script, _ in c.SCENARIOS])


def heard(talk: c.Conversation) -> tuple[list[Any], list[Any]]:
    return talk.client.heard, talk.agent.heard


@scenarios
def test_each_side_hears_what_the_other_said(script: c.Script, kind: type[c.Machine]) -> None:
    assert heard(c.play(script, kind)) == HEARD[script]


@scenarios
def test_bytes_that_trickle_in_one_by_one_say_the_same(script: c.Script, kind: type[c.Machine]) -> None:
    assert heard(c.play(script, kind, c.bytewise)) == HEARD[script]


@scenarios
def test_a_piece_that_ends_anywhere_says_the_same(script: c.Script, kind: type[c.Machine]) -> None:
    longest = max(len(said) for _, said in c.play(script, kind).said)
    for place in range(1, longest):
        assert heard(c.play(script, kind, c.split_at(place))) == HEARD[script], place


@settings(deadline=None)
@given(st.sampled_from(c.SCENARIOS), st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_any_pieces_say_the_same(scenario: tuple[c.Script, type[c.Machine]], sizes: list[int]) -> None:
    script, kind = scenario
    assert heard(c.play(script, kind, c.in_sizes(sizes))) == HEARD[script]


@pytest.mark.parametrize("script", c.STREAM, ids=lambda script: script.__name__)
def test_the_end_of_the_connection_is_quiet_once_both_have_said_their_last(script: c.Script) -> None:
    talk = c.play(script, StreamMachine)
    if script in (c.refused_stream, c.stream_whose_token_is_gone, c.client_withdraws_before_the_answer):
        talk.client.machine.receive_eof()  # the refused client has nothing more to say
    else:
        talk.both_end()


def test_the_preface_goes_out_once_and_in_front() -> None:
    talk = c.play(c.both_talk_and_end, StreamMachine)
    for who, preface in ((Role.CLIENT, CLIENT_PREFACE), (Role.AGENT, AGENT_PREFACE)):
        said = b"".join(data for speaker, data in talk.said if speaker is who)
        assert said.startswith(preface)
        assert said.count(preface) == 1


def test_preface_and_request_are_one_send_so_that_a_stream_opens_in_one_round_trip() -> None:
    said = StreamMachine(Role.CLIENT).open(c.OPEN)
    assert said[:8] == CLIENT_PREFACE
    assert said[8] == FrameType.OPEN
    assert len(said) == 16 + HEADER.unpack_from(said, 8)[3]


def test_the_preface_tells_text_protocols_and_line_conversions_apart() -> None:
    for preface in (CLIENT_PREFACE, AGENT_PREFACE):
        assert len(preface) == 8
        assert preface[0] > 127
        assert b"\r\n" in preface
    assert CLIENT_PREFACE != AGENT_PREFACE


def test_an_answer_that_crosses_a_reset_does_not_bring_the_stream_back_to_life() -> None:
    client, agent = StreamMachine(Role.CLIENT), StreamMachine(Role.AGENT)
    agent.receive_data(client.open(c.OPEN))
    withdrawn = client.reset(Reset("never mind"))
    client.receive_data(agent.accept(1))
    assert client.ours is State.OVER
    assert not client.may_reset
    late = StreamMachine(Role.AGENT)
    late.receive_data(StreamMachine(Role.CLIENT).open(c.OPEN))
    late.receive_data(withdrawn)
    late.accept(1)
    late.receive_eof()  # the client said RESET: its end is no truncation


def test_a_reply_may_be_read_after_more_bytes_have_come() -> None:
    """The receive buffer belongs to a pool: what is kept of a message must not change when it is used again."""
    client, agent = StreamMachine(Role.CLIENT), StreamMachine(Role.AGENT)
    buffer = bytearray(client.open(c.OPEN))
    (asked,) = agent.receive_data(buffer)
    buffer[:] = bytes(len(buffer))
    assert bytes(asked.request.arguments) == encode(c.Question("tcp:80"))
    buffer = bytearray(agent.accept(1, c.Answer("somebody")))
    (answered,) = client.receive_data(buffer)
    buffer[:] = bytes(len(buffer))
    assert bytes(answered.answer.reply) == encode(c.Answer("somebody"))


def test_data_comes_out_as_views_of_the_callers_buffer_uncopied() -> None:
    talk = c.play(c.opened, StreamMachine)
    buffer = bytearray(c.data(talk.agent, b"x" * 1000))
    (piece,) = talk.client.machine.receive_data(memoryview(buffer))
    assert piece.view.obj is buffer
    assert talk.client.machine.received == 1000


def test_a_frame_larger_than_a_strangers_passes_once_the_stream_is_open() -> None:
    talk = c.play(c.opened, StreamMachine)
    talk.client_says(c.frame(talk.client, 64, bytes(1 << 20)))
    talk.agent_says(c.frame(talk.agent, 65, bytes(1 << 20)))
    assert talk.agent.heard[-1] == ("frame", 64, 0, bytes(1 << 20))
    assert talk.client.heard[-1] == ("frame", 65, 0, bytes(1 << 20))


def test_both_may_log_in_at_once_without_waiting_for_the_other() -> None:
    """The agent's HELLO needs nothing of the client's: neither waits for the other's bytes."""
    client, agent = c.Side(ControlMachine(Role.CLIENT)), c.Side(ControlMachine(Role.AGENT))
    to_agent, to_client = client.machine.hello(c.HELLO), agent.machine.hello(c.HELLO)
    agent.hear(to_agent)
    client.hear(to_client)
    client.hear(agent.machine.ready(c.READY))
    assert [event[0] for event in client.heard] == ["hello", "ready"]
