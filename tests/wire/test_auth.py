"""Challenge and answer: only who knows the key passes, and only with what was made for this one connection."""

from __future__ import annotations

import pytest

from tests.wire import conversation as c
from vsockfwd.errors import LocalProtocolError, NotAuthenticated, PeerBrokeProtocol
from vsockfwd.key import Key
from vsockfwd.wire.auth import proof_of, who_proved
from vsockfwd.wire.control import ControlMachine, Proven
from vsockfwd.wire.frames import AGENT_PREFACE, CLIENT_PREFACE, FrameType, pack
from vsockfwd.wire.machine import Role
from vsockfwd.wire.messages import Auth, Hello, encode

A, C = Role.AGENT, Role.CLIENT
READY = pack(FrameType.READY, encode(c.READY))


def keyed() -> c.Conversation:
    talk = c.Conversation(c.KeyedMachine)
    c.greeted_with_nonces(talk)
    return talk


def auth(proof: bytes) -> bytes:
    return pack(FrameType.AUTH, encode(Auth(proof)))


def test_the_agent_knows_which_of_its_keys_it_was() -> None:
    talk = c.play(c.proven, c.KeyedMachine)
    assert ("proven", c.KEY) in talk.agent.heard
    assert ("proven", c.KEY) in talk.client.heard


def test_a_key_that_is_none_of_the_agents_is_nobodys() -> None:
    talk = keyed()
    stranger = ControlMachine(C, (Key("ours", b"x" * 32),))
    stranger.hello(c.CLIENT_HELLO)
    stranger.receive_data(AGENT_PREFACE + pack(FrameType.HELLO, encode(c.AGENT_HELLO)))
    talk.agent.hear(stranger.prove())
    assert talk.agent.heard[-1] == ("proven", None)
    with pytest.raises(LocalProtocolError):
        talk.agent.machine.prove()
    with pytest.raises(LocalProtocolError):
        talk.agent.machine.ready(c.READY)


def test_an_agent_that_does_not_know_the_key_is_left_before_anything_is_asked_of_it() -> None:
    talk = keyed()
    talk.client_says(talk.client.machine.prove())
    with pytest.raises(NotAuthenticated, match="does not know the key"):
        talk.agent_says(auth(bytes(32)))


def test_ones_own_proof_sent_back_proves_nothing() -> None:
    talk = keyed()
    mine = talk.client.machine.prove()
    with pytest.raises(NotAuthenticated):
        talk.client.hear(mine)


def test_the_agents_proof_is_no_proof_of_a_clients() -> None:
    said = b"hello", b"hello too"
    assert proof_of(c.KEY, A, 1, said) != proof_of(c.KEY, C, 1, said)
    assert who_proved((c.KEY,), proof_of(c.KEY, A, 1, said), C, 1, said) is None
    assert who_proved((c.KEY,), proof_of(c.KEY, C, 2, said), C, 1, said) is None
    # Lengths are part of what is proven: the border between two sayings cannot be moved.
    assert who_proved((c.KEY,), proof_of(c.KEY, C, 1, (b"helloh", b"ello too")), C, 1, said) is None


def test_a_login_that_was_overheard_is_of_no_use_a_second_time() -> None:
    """All that a client said, said again to an agent that drew another nonce."""
    overheard = b"".join(data for who, data in c.play(c.proven, c.KeyedMachine).said if who is C)
    agent = c.KeyedMachine(A)
    at = overheard.index(bytes([FrameType.AUTH, 0, 0, 0]))
    agent.receive_data(overheard[:at])
    agent.hello(Hello((1,), "", nonce=b"\x07" * 32))
    assert agent.receive_data(overheard[at : at + 8 + len(encode(Auth(bytes(32))))]) == [Proven(None)]


def test_an_agent_that_was_overheard_cannot_be_played_to_another_client() -> None:
    overheard = b"".join(data for who, data in c.play(c.proven, c.KeyedMachine).said if who is A)
    client = c.KeyedMachine(C)
    client.hello(Hello((1,), "somebody 1.0", nonce=b"\x07" * 32))
    at = overheard.index(bytes([FrameType.AUTH, 0, 0, 0]))
    client.receive_data(overheard[:at])
    client.prove()
    with pytest.raises(NotAuthenticated):
        client.receive_data(overheard[at:])


@pytest.mark.parametrize("changed", [{"software": "another"}, {"versions": (1, 2)}, {"frame": 5000}])
def test_a_hello_that_was_changed_on_the_way_is_noticed(changed: dict) -> None:
    """Versions above all: nobody between two sides makes them speak an older one."""
    fields = {"versions": (1,), "software": "somebody 1.0", "nonce": b"\x01" * 32}
    client, agent = c.KeyedMachine(C), c.KeyedMachine(A)
    client.hello(Hello(**fields))
    agent.receive_data(CLIENT_PREFACE + pack(FrameType.HELLO, encode(Hello(**fields | changed))))
    client.receive_data(agent.hello(c.AGENT_HELLO))
    assert agent.receive_data(client.prove()) == [Proven(None)]


def test_an_agent_that_asks_for_no_key_is_none_to_a_client_with_one() -> None:
    client = c.KeyedMachine(C)
    client.hello(c.CLIENT_HELLO)
    with pytest.raises(NotAuthenticated, match="does not prove"):
        client.receive_data(AGENT_PREFACE + pack(FrameType.HELLO, encode(c.HELLO)) + READY)


@pytest.mark.parametrize("proves", [False, True], ids=["before", "after"])
def test_a_welcome_without_a_proof_is_none(proves: bool) -> None:
    """Who stands between the two and strips AUTH gets no further."""
    talk = keyed()
    if proves:
        talk.client.machine.prove()
    with pytest.raises(NotAuthenticated, match="does not prove"):
        talk.client.hear(READY)


def test_an_agent_that_asked_for_a_proof_welcomes_nobody_before_it() -> None:
    talk = keyed()
    with pytest.raises(LocalProtocolError, match="waited for"):
        talk.agent.machine.ready(c.READY)


MISPLACED = [
    ("to an agent that did not ask", ControlMachine, A, lambda talk: None),
    ("to a client that has no key", ControlMachine, C, lambda talk: None),
    ("to a client that has not proven yet", c.KeyedMachine, C, lambda talk: None),
    ("a second time", c.KeyedMachine, A, lambda talk: talk.client_says(talk.client.machine.prove())),
]


@pytest.mark.parametrize(("kind", "role", "before"), [m[1:] for m in MISPLACED], ids=[m[0] for m in MISPLACED])
def test_a_proof_out_of_place_is_a_broken_protocol(kind, role, before) -> None:
    talk = c.Conversation(kind)
    hellos = (c.HELLO, c.HELLO) if kind is ControlMachine else (c.CLIENT_HELLO, c.AGENT_HELLO)
    talk.client_says(talk.client.machine.hello(hellos[0]))
    talk.agent_says(talk.agent.machine.hello(hellos[1]))
    before(talk)
    with pytest.raises(PeerBrokeProtocol):
        (talk.agent if role is A else talk.client).hear(auth(bytes(32)))


@pytest.mark.parametrize("length", [1, 31])
def test_a_nonce_of_another_length_is_refused(length: int) -> None:
    agent = c.KeyedMachine(A)
    with pytest.raises(PeerBrokeProtocol, match="nonce"):
        agent.receive_data(CLIENT_PREFACE + pack(FrameType.HELLO, encode(Hello((1,), nonce=bytes(length)))))


def test_no_key_shows_its_secret_when_it_is_printed() -> None:
    assert repr(c.KEY) == "Key(name='ours')"
    assert "kkk" not in f"{c.KEY} {Proven(c.KEY)!r} {c.KEY!s}"
