"""What answers when it is not vsockfwd: each kind of stranger is told apart by its message, and told early."""

from __future__ import annotations

import pytest

from tests.wire import conversation as c
from vsockfwd.errors import PeerBrokeProtocol, Reset, Truncated, Unreachable
from vsockfwd.wire.control import ControlMachine
from vsockfwd.wire.frames import AGENT_PREFACE, CLIENT_PREFACE
from vsockfwd.wire.machine import Machine, Role
from vsockfwd.wire.stream import StreamMachine

KINDS = pytest.mark.parametrize("kind", [ControlMachine, StreamMachine])


@KINDS
@pytest.mark.parametrize(
    ("greeting", "told"),
    [
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "no vsockfwd agent: it is an SSH server"),
        (b"HTTP/1.1 400 Bad Request\r\nServer: nginx\r\n\r\n", "no vsockfwd agent: it is an HTTP server"),
        (b"\x15\x03\x01\x00\x02\x02\x16", "no vsockfwd agent: it speaks TLS"),
        (b"\x16\x03\x03\x00\x7a\x02\x00", "no vsockfwd agent: it speaks TLS"),
        (b"\x16", "no vsockfwd agent: it speaks TLS"),
        (b"220 mail ESMTP\r\n", "no vsockfwd agent: it began with '220 mail ESMTP"),
        (bytes(8), "no vsockfwd agent: it began with "),
        (b"\xb5", None),
        (b"\xb5VSF\r\n", None),
        (b"\xb5VSF\n", "no vsockfwd agent: it began with "),  # a line discipline dropped the CR
        (b"\xb5VSF\r\nX\n", "no vsockfwd agent: it began with "),
    ],
)
def test_a_client_is_told_what_answers_instead_of_an_agent(
    kind: type[Machine], greeting: bytes, told: str | None
) -> None:
    machine = kind(Role.CLIENT)
    if told is None:
        assert machine.receive_data(greeting) == []
        return
    with pytest.raises(PeerBrokeProtocol, match=f"the peer is {told}") as caught:
        machine.receive_data(greeting)
    assert caught.value.hint == "is this the right port?"
    assert "\n" not in caught.value.line()


@KINDS
@pytest.mark.parametrize(
    ("greeting", "told"),
    [
        (b"GET / HTTP/1.1\r\n", "it is an HTTP client"),
        (b"CONNECT 1234\n", "it is an HTTP client"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", "it speaks TLS"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "it is an SSH server"),
        (b"\x1b]0;owned\x07", r"began with '\\x1b\]0;owned"),
    ],
)
def test_an_agent_is_told_what_called_instead_of_a_client(kind: type[Machine], greeting: bytes, told: str) -> None:
    with pytest.raises(PeerBrokeProtocol, match=told) as caught:
        kind(Role.AGENT).receive_data(greeting)
    assert caught.value.message.startswith("the peer is no vsockfwd client")
    assert "\x1b" not in caught.value.line()


@KINDS
@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("cut", [c.whole, c.bytewise, c.split_at(6), c.split_at(7)])
def test_an_echo_of_ones_own_preface_is_named_as_such(kind: type[Machine], role: Role, cut: c.Cut) -> None:
    own = CLIENT_PREFACE if role is Role.CLIENT else AGENT_PREFACE
    with pytest.raises(PeerBrokeProtocol, match=r"(a client|an agent) too, or an echo") as caught:
        c.Side(kind(role)).hear(own, cut)
    assert caught.value.hint == "one side must be `vsockfwd serve`"


@KINDS
@pytest.mark.parametrize("place", range(8))
def test_a_preface_with_one_wrong_byte_is_refused_at_that_byte(kind: type[Machine], place: int) -> None:
    machine = kind(Role.AGENT)
    wrong = bytearray(CLIENT_PREFACE)
    wrong[place] ^= 0x20
    assert machine.receive_data(wrong[:place]) == []
    with pytest.raises(PeerBrokeProtocol):
        machine.receive_data(wrong[place : place + 1])


@KINDS
def test_silence_and_then_the_end_is_no_agent(kind: type[Machine]) -> None:
    with pytest.raises(Unreachable, match="closed without a word") as caught:
        kind(Role.CLIENT).receive_eof()
    assert "vsockfwd serve" in caught.value.hint
    assert caught.value.exit_code == 69


@KINDS
@pytest.mark.parametrize("heard", [AGENT_PREFACE[:3], AGENT_PREFACE, AGENT_PREFACE + b"\x05\0\0"])
def test_an_agent_that_dies_in_its_first_words_is_not_taken_for_a_stranger(kind: type[Machine], heard: bytes) -> None:
    machine = kind(Role.CLIENT)
    machine.receive_data(heard)
    with pytest.raises(Reset, match="the agent closed"):
        machine.receive_eof()


def test_a_client_that_goes_before_it_asked_is_no_clean_end() -> None:
    with pytest.raises(Truncated):
        StreamMachine(Role.AGENT).receive_eof()
    with pytest.raises(Reset):
        ControlMachine(Role.AGENT).receive_eof()
