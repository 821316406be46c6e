"""Our own verbs out of order: LocalProtocolError, a bug of ours, never blamed on the peer; nothing is half done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec import Raw

from tests.wire import conversation as c
from vsockfwd.errors import LocalProtocolError, NotAllowed, VsockfwdError
from vsockfwd.identity import OwnPeer
from vsockfwd.wire.control import PING_LIMIT, ControlMachine
from vsockfwd.wire.frames import FRAME_LIMIT
from vsockfwd.wire.machine import Machine, Role
from vsockfwd.wire.messages import Listen, Open, encode
from vsockfwd.wire.stream import StreamMachine

WHY = NotAllowed("no")

CONTROL_VERBS: dict[str, Callable[[Any], bytes]] = {
    "hello": lambda m: m.hello(c.HELLO),
    "ready": lambda m: m.ready(c.READY),
    "refuse": lambda m: m.refuse(WHY),
    "ping": lambda m: m.ping(b"x"),
    "pong": lambda m: m.pong(b"x"),
    "bye": lambda m: m.bye(WHY),
    "listen": lambda m: m.listen(Listen(1, "tcp:1", c.LEASE)),
    "announce": lambda m: m.announce(1, c.TICKET, OwnPeer("x")),
    "deny": lambda m: m.deny(WHY, 1),
}
STREAM_VERBS: dict[str, Callable[[Any], bytes]] = {
    "open": lambda m: m.open(c.OPEN),
    "accept": lambda m: m.accept(1),
    "refuse": lambda m: m.refuse(WHY),
    "data": lambda m: m.data_header(1),
    "frame": lambda m: m.frame_header(64, 1),
    "end": lambda m: m.end(),
    "reset": lambda m: m.reset(WHY),
}


def nothing(talk: c.Conversation) -> None:
    pass


def hello_only(talk: c.Conversation) -> None:
    talk.client_says(talk.client.machine.hello(c.HELLO))
    talk.agent_says(talk.agent.machine.hello(c.HELLO))


def asked(talk: c.Conversation) -> None:
    talk.client_says(talk.client.machine.open(c.OPEN))


def both_ended(talk: c.Conversation) -> None:
    c.opened(talk)
    talk.client_says(talk.client.machine.end())
    talk.agent_says(talk.agent.machine.end())


def agent_said_bye(talk: c.Conversation) -> None:
    c.login(talk)
    talk.agent_says(talk.agent.machine.bye(WHY))


def agent_reset(talk: c.Conversation) -> None:
    c.opened(talk)
    talk.agent_says(talk.agent.machine.reset(WHY))


ALLOWED: list[tuple[type[Machine], c.Script, Role, set[str]]] = [
    # connection, after what, who speaks, the verbs that have a place; all others have none
    (ControlMachine, nothing, Role.CLIENT, {"hello"}),
    (ControlMachine, nothing, Role.AGENT, {"hello", "refuse"}),
    (ControlMachine, hello_only, Role.CLIENT, set()),
    (ControlMachine, hello_only, Role.AGENT, {"ready", "refuse"}),
    (ControlMachine, c.login, Role.CLIENT, {"ping", "pong", "listen", "deny", "bye"}),
    (ControlMachine, c.login, Role.AGENT, {"ping", "pong", "listen", "announce", "deny", "bye"}),
    (ControlMachine, c.refused_before_hello, Role.AGENT, set()),
    (ControlMachine, c.login_then_farewell, Role.CLIENT, set()),
    (ControlMachine, agent_said_bye, Role.AGENT, set()),
    (ControlMachine, agent_said_bye, Role.CLIENT, {"ping", "pong", "listen", "deny", "bye"}),
    (StreamMachine, nothing, Role.CLIENT, {"open"}),
    (StreamMachine, nothing, Role.AGENT, {"accept", "refuse"}),
    (StreamMachine, asked, Role.CLIENT, {"reset"}),
    (StreamMachine, asked, Role.AGENT, {"accept", "refuse"}),
    (StreamMachine, c.opened, Role.CLIENT, {"data", "frame", "end", "reset"}),
    (StreamMachine, c.opened, Role.AGENT, {"data", "frame", "end", "reset"}),
    (StreamMachine, both_ended, Role.CLIENT, {"reset"}),
    (StreamMachine, both_ended, Role.AGENT, {"reset"}),
    (StreamMachine, c.refused_stream, Role.AGENT, set()),
    (StreamMachine, c.client_withdraws_before_the_answer, Role.CLIENT, set()),
    (StreamMachine, agent_reset, Role.AGENT, set()),
    (StreamMachine, agent_reset, Role.CLIENT, {"data", "frame", "end", "reset"}),
]


@pytest.mark.parametrize(
    ("kind", "after", "role", "allowed"),
    ALLOWED,
    ids=[f"{kind.__name__[:-7]}-{after.__name__}-{role.value}" for kind, after, role, _ in ALLOWED],
)
def test_a_verb_has_its_place_and_no_other(kind: type[Machine], after: c.Script, role: Role, allowed: set[str]) -> None:
    for name, verb in (CONTROL_VERBS if kind is ControlMachine else STREAM_VERBS).items():
        talk = c.play(after, kind)
        machine = (talk.client if role is Role.CLIENT else talk.agent).machine
        if name in allowed:
            assert verb(machine)
            continue
        before = (machine.ours, machine.theirs)
        with pytest.raises(LocalProtocolError, match="we sent "):
            verb(machine)
        assert (machine.ours, machine.theirs) == before, name


def test_our_own_mistakes_are_no_errors_of_the_peers() -> None:
    """A handler for VsockfwdError must not swallow a bug."""
    assert not issubclass(LocalProtocolError, VsockfwdError)


@pytest.mark.parametrize(
    ("kind", "length"), [(63, 0), (128, 0), (7, 0), (64, FRAME_LIMIT + 1)], ids=["core", "skipped", "DATA", "too long"]
)
def test_a_mode_sends_frames_of_its_own_kinds_and_within_the_limit_only(kind: int, length: int) -> None:
    machine = c.play(c.opened, StreamMachine).client.machine
    with pytest.raises(LocalProtocolError):
        machine.frame_header(kind, length)


def test_data_beyond_what_the_peer_takes_is_not_announced() -> None:
    machine = c.play(c.opened, StreamMachine).client.machine
    assert len(machine.data_header(FRAME_LIMIT)) == 8
    with pytest.raises(LocalProtocolError, match="1048577 bytes"):
        machine.data_header(FRAME_LIMIT + 1)


def test_a_request_or_a_reply_beyond_the_handshake_limit_stays_here() -> None:
    client, agent = StreamMachine(Role.CLIENT), StreamMachine(Role.AGENT)
    long = c.Question("x" * 5000)
    with pytest.raises(LocalProtocolError, match=r"a request of \d+ bytes, where 4096 are the limit"):
        client.open(Open(c.TOKEN, "m", (1,), Raw(encode(long))))
    agent.receive_data(client.open(c.OPEN))
    with pytest.raises(LocalProtocolError, match=r"a reply of \d+ bytes, where 4096 are the limit"):
        agent.accept(1, long)
    assert agent.refuse(WHY)  # it can still be refused properly


@pytest.mark.parametrize("request_", [Listen(1, "x" * 5000, c.LEASE), Listen(1, "tcp:1", b"short")])
def test_a_listen_that_an_agent_would_not_take_stays_here(request_: Listen) -> None:
    with pytest.raises(LocalProtocolError, match="a request of"):
        c.play(c.login, ControlMachine).client.machine.listen(request_)


def test_a_pings_payload_is_bounded() -> None:
    machine = c.play(c.login, ControlMachine).client.machine
    assert len(machine.ping(bytes(1000))) == 8 + PING_LIMIT
    assert len(machine.pong(bytes(1000))) == 8 + PING_LIMIT
