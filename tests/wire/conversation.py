"""Two state machines joined by a plain loop, and every scenario of the protocol as a script that they play.

No trio, no socket. The thing to understand first: a scenario says what is said, a *cut* says in which pieces it
arrives; what was heard must depend on the first alone. Events are kept as plain values (`plain`), neighbouring pieces
of DATA joined, so that two plays can be compared.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from vsockfwd.contract import Data, Ended, Frame
from vsockfwd.errors import (
    CannotCreate,
    Gone,
    NotAllowed,
    NotAuthenticated,
    Refused,
    Reset,
    ShuttingDown,
    VsockfwdError,
)
from vsockfwd.identity import NetworkPeer, UnixPeer, VsockPeer
from vsockfwd.key import Key
from vsockfwd.wire.control import (
    Announced,
    ControlMachine,
    Denied,
    Farewell,
    Greeted,
    ListenAsked,
    ListenGranted,
    Pinged,
    Ponged,
    Proven,
    Welcomed,
)
from vsockfwd.wire.control import Refused as LoginRefused
from vsockfwd.wire.frames import VERSIONS
from vsockfwd.wire.machine import Role
from vsockfwd.wire.messages import Granted, Hello, Listen, Open, Ready
from vsockfwd.wire.stream import Accepted, Requested, StreamMachine, WasReset
from vsockfwd.wire.stream import Refused as StreamRefused

TOKEN = bytes(range(16))
LEASE, TICKET = b"L" * 16, b"T" * 16
HELLO = Hello(VERSIONS, "somebody 1.0")
KEY, OTHER_KEY = Key("ours", b"k" * 32), Key("theirs", b"o" * 32)
CLIENT_HELLO, AGENT_HELLO = (Hello(VERSIONS, "somebody 1.0", nonce=bytes([n]) * 32) for n in (1, 2))
READY = Ready(1, TOKEN, modes={"forward": (1,)}, seen_as="uid 0 (pid 1)")


class Question(msgspec.Struct, frozen=True):
    """Arguments of some mode."""

    connect: str


class Answer(msgspec.Struct, frozen=True):
    """The reply of some mode."""

    peer: str


OPEN = Open(TOKEN, "forward", (1, 2), msgspec.Raw(msgspec.msgpack.encode(Question("tcp:80"))))

Machine = ControlMachine | StreamMachine
Cut = Callable[[bytes], Iterator[bytes]]
Script = Callable[["Conversation"], None]


def whole(data: bytes) -> Iterator[bytes]:
    """Everything that is said at once arrives at once."""
    yield data


def bytewise(data: bytes) -> Iterator[bytes]:
    """One byte at a time."""
    for at in range(len(data)):
        yield data[at : at + 1]


def split_at(place: int) -> Cut:
    """Everything that is said at once arrives in two pieces, the first of `place` bytes."""

    def cut(data: bytes) -> Iterator[bytes]:
        yield from filter(None, (data[:place], data[place:]))

    return cut


def in_sizes(sizes: list[int]) -> Cut:
    """Pieces of these sizes, over and over."""

    def cut(data: bytes) -> Iterator[bytes]:
        at, size = 0, itertools.cycle(sizes)
        while at < len(data):
            step = next(size)
            yield data[at : at + step]
            at += step

    return cut


def told(error: VsockfwdError) -> tuple[Any, ...]:
    """An error as a value."""
    return (type(error), error.message, error.hint, error.errno)


def plain(event: Any) -> tuple[Any, ...]:
    """An event as a value that borrows nothing and compares."""
    match event:
        case Data(view):
            return ("data", bytes(view))
        case Ended():
            return ("end",)
        case Frame(kind, code, payload):
            return ("frame", kind, code, bytes(payload))
        case LoginRefused(error) | StreamRefused(error):
            return ("refused", *told(error))
        case WasReset(error):
            return ("reset", *told(error))
        case Farewell(error):
            return ("bye", *told(error))
        case Requested(request):
            return ("open", request.token, request.mode, request.versions, bytes(request.arguments))
        case Accepted(answer):
            return ("ok", answer.version, bytes(answer.reply))
        case Greeted(hello, version):
            return ("hello", hello, version)
        case Proven(key):
            return ("proven", key)
        case Welcomed(ready):
            return ("ready", ready)
        case Pinged(payload):
            return ("ping", payload)
        case Ponged(payload):
            return ("pong", payload)
        case ListenAsked(request):
            return ("listen", request)
        case ListenGranted(id, bound):
            return ("listens", id, bound)
        case Announced(id, ticket, peer):
            return ("incoming", id, ticket, peer)
        case Denied(id, ticket, error):
            return ("deny", id, ticket, *told(error))
    raise AssertionError(event)


class Side:
    """One machine and what it has heard."""

    def __init__(self, machine: Machine) -> None:
        self.machine: Any = machine  # a script knows which of the two it speaks to
        self.heard: list[tuple[Any, ...]] = []

    def hear(self, data: bytes, cut: Cut = whole) -> None:
        """Take bytes in pieces. Each piece stands in a buffer that is wiped afterwards, as a pool's would be."""
        for piece in cut(data):
            buffer = bytearray(piece)
            for event in self.machine.receive_data(memoryview(buffer)):
                value = plain(event)
                if value[0] == "data" and self.heard and self.heard[-1][0] == "data":
                    value = ("data", self.heard.pop()[1] + value[1])
                self.heard.append(value)
            buffer[:] = b"\xee" * len(buffer)


class Conversation:
    """A client and an agent, and the loop that carries what one says to the other."""

    def __init__(self, kind: type[Machine], cut: Cut = whole) -> None:
        self.client = Side(kind(Role.CLIENT))
        self.agent = Side(kind(Role.AGENT))
        self.said: list[tuple[Role, bytes]] = []
        self._cut = cut

    def client_says(self, *parts: bytes) -> None:
        self._carry(Role.CLIENT, self.agent, b"".join(parts))

    def agent_says(self, *parts: bytes) -> None:
        self._carry(Role.AGENT, self.client, b"".join(parts))

    def _carry(self, who: Role, to: Side, data: bytes) -> None:
        self.said.append((who, data))
        to.hear(data, self._cut)

    def both_end(self) -> None:
        """Neither connection carries more. Raises what that means."""
        self.client.machine.receive_eof()
        self.agent.machine.receive_eof()


# --- the control connection


def login(talk: Conversation) -> None:
    talk.client_says(talk.client.machine.hello(HELLO))
    talk.agent_says(talk.agent.machine.hello(HELLO), talk.agent.machine.ready(READY))


def login_then_farewell(talk: Conversation) -> None:
    login(talk)
    talk.client_says(talk.client.machine.bye(ShuttingDown("the client is done")))


def liveness_is_asked_both_ways(talk: Conversation) -> None:
    login(talk)
    talk.client_says(talk.client.machine.ping(b"1"), talk.client.machine.ping(b"2"))
    talk.agent_says(talk.agent.machine.pong(b"1"), talk.agent.machine.ping(), talk.agent.machine.pong(b"2"))
    talk.client_says(talk.client.machine.pong(b""))
    talk.agent_says(talk.agent.machine.bye(ShuttingDown("the agent stops", hint="try again")))


def refused_before_hello(talk: Conversation) -> None:
    talk.client_says(talk.client.machine.hello(HELLO))
    talk.agent_says(talk.agent.machine.refuse(NotAllowed("uid 7 is a stranger", hint="--allow-uid 7")))


def refused_after_hello(talk: Conversation) -> None:
    talk.client_says(talk.client.machine.hello(HELLO))
    talk.agent_says(talk.agent.machine.hello(HELLO), talk.agent.machine.refuse(NotAllowed("no", errno=13)))


def two_are_listened_for_and_one_is_refused(talk: Conversation) -> None:
    login(talk)
    client, agent = talk.client.machine, talk.agent.machine
    talk.client_says(client.listen(Listen(1, "tcp:0", LEASE)), client.listen(Listen(2, "unix:/run/a", TICKET)))
    talk.agent_says(agent.deny(CannotCreate("listen on unix:/run/a: taken", errno=98), 2))
    talk.agent_says(agent.grant(Granted(1, ("tcp:127.0.0.1:4000", "tcp:[::1]:4000"))))


def who_comes_is_announced_and_some_are_denied(talk: Conversation) -> None:
    login(talk)
    client, agent = talk.client.machine, talk.agent.machine
    talk.client_says(client.listen(Listen(1, "tcp:0", LEASE)))
    talk.agent_says(agent.grant(Granted(1, ("tcp:127.0.0.1:4000",))), agent.ping(b"?"))
    talk.agent_says(agent.announce(1, TICKET, NetworkPeer("127.0.0.1", 55555)))
    talk.agent_says(agent.announce(1, LEASE, UnixPeer(1000, 100, 7)), agent.announce(1, TOKEN, VsockPeer(2, 1023)))
    talk.client_says(client.pong(b"?"), client.deny(Refused("nothing listens on tcp:80", hint="start it"), 1, TICKET))
    talk.client_says(client.deny(ShuttingDown("the client is done"), 1), client.ping())


class KeyedMachine(ControlMachine):
    """A side that has a key; the agent has another too."""

    def __init__(self, role: Role) -> None:
        super().__init__(role, (KEY,) if role is Role.CLIENT else (OTHER_KEY, KEY))


def greeted_with_nonces(talk: Conversation) -> None:
    talk.client_says(talk.client.machine.hello(CLIENT_HELLO))
    talk.agent_says(talk.agent.machine.hello(AGENT_HELLO))


def proven(talk: Conversation) -> None:
    greeted_with_nonces(talk)
    talk.client_says(talk.client.machine.prove())
    talk.agent_says(talk.agent.machine.prove(), talk.agent.machine.ready(READY))
    talk.client_says(talk.client.machine.bye(ShuttingDown("the client is done")))


def refused_for_its_key(talk: Conversation) -> None:
    greeted_with_nonces(talk)
    talk.client_says(talk.client.machine.prove())
    talk.agent_says(talk.agent.machine.refuse(NotAuthenticated("not let in")))


# --- the stream connection


def opened(talk: Conversation) -> None:
    talk.client_says(talk.client.machine.open(OPEN))
    talk.agent_says(talk.agent.machine.accept(2, Answer("127.0.0.1:80")))


def data(side: Side, body: bytes) -> bytes:
    return side.machine.data_header(len(body)) + body


def frame(side: Side, kind: int, body: bytes) -> bytes:
    return side.machine.frame_header(kind, len(body)) + body


def both_talk_and_end(talk: Conversation) -> None:
    opened(talk)
    talk.client_says(data(talk.client, b"GET /"), data(talk.client, b" please"), talk.client.machine.end())
    talk.agent_says(data(talk.agent, b"200"), data(talk.agent, bytes(300)), talk.agent.machine.end())


def client_half_closes_then_hears_the_answer(talk: Conversation) -> None:
    opened(talk)
    talk.client_says(talk.client.machine.end())
    talk.agent_says(data(talk.agent, b"the answer"))
    talk.agent_says(data(talk.agent, b", in two parts"), talk.agent.machine.end())


def agent_speaks_first_and_ends_first(talk: Conversation) -> None:
    talk.client_says(talk.client.machine.open(OPEN))
    talk.agent_says(talk.agent.machine.accept(1), data(talk.agent, b"220 hello"), talk.agent.machine.end())
    talk.client_says(data(talk.client, b"QUIT"), talk.client.machine.end())


def nothing_but_ends(talk: Conversation) -> None:
    opened(talk)
    talk.client_says(talk.client.machine.end())
    talk.agent_says(talk.agent.machine.end())


def a_mode_speaks_its_own_frames(talk: Conversation) -> None:
    opened(talk)
    talk.client_says(frame(talk.client, 64, b"entry"), frame(talk.client, 127, b""), talk.client.machine.end())
    talk.agent_says(data(talk.agent, b"x"), frame(talk.agent, 99, bytes(600)), talk.agent.machine.end())


def empty_data_in_place(talk: Conversation) -> None:
    opened(talk)
    talk.client_says(data(talk.client, b""), talk.client.machine.end())
    talk.agent_says(data(talk.agent, b"a"), data(talk.agent, b""), data(talk.agent, b"b"), talk.agent.machine.end())


def refused_stream(talk: Conversation) -> None:
    talk.client_says(talk.client.machine.open(OPEN))
    talk.agent_says(talk.agent.machine.refuse(Refused("nothing listens on tcp:80", hint="start it", errno=111)))


def stream_whose_token_is_gone(talk: Conversation) -> None:
    talk.client_says(talk.client.machine.open(OPEN))
    talk.agent_says(talk.agent.machine.refuse(Gone("the session is not known here: log in again")))


def client_resets(talk: Conversation) -> None:
    opened(talk)
    talk.client_says(data(talk.client, b"half of"), talk.client.machine.reset(Reset("the neighbour went away")))
    talk.agent_says(data(talk.agent, b"crossing"), talk.agent.machine.end())


def agent_resets_after_its_end(talk: Conversation) -> None:
    opened(talk)
    talk.agent_says(talk.agent.machine.end(), talk.agent.machine.reset(Reset("the disk broke", errno=5)))
    talk.client_says(talk.client.machine.end())


def client_withdraws_before_the_answer(talk: Conversation) -> None:
    talk.client_says(talk.client.machine.open(OPEN), talk.client.machine.reset(Reset("the user went away")))
    talk.agent_says(talk.agent.machine.refuse(Refused("as you wish")))


KEYED: tuple[Script, ...] = (proven, refused_for_its_key)
CONTROL: tuple[Script, ...] = (
    login_then_farewell,
    liveness_is_asked_both_ways,
    refused_before_hello,
    refused_after_hello,
    two_are_listened_for_and_one_is_refused,
    who_comes_is_announced_and_some_are_denied,
)
STREAM: tuple[Script, ...] = (
    both_talk_and_end,
    client_half_closes_then_hears_the_answer,
    agent_speaks_first_and_ends_first,
    nothing_but_ends,
    a_mode_speaks_its_own_frames,
    empty_data_in_place,
    refused_stream,
    stream_whose_token_is_gone,
    client_resets,
    agent_resets_after_its_end,
    client_withdraws_before_the_answer,
)
SCENARIOS: tuple[tuple[Script, type[Machine]], ...] = (
    *((script, ControlMachine) for script in CONTROL),
    *((script, KeyedMachine) for script in KEYED),
    *((script, StreamMachine) for script in STREAM),
)


def play(script: Script, kind: type[Machine], cut: Cut = whole) -> Conversation:
    """Play a scenario with fresh machines."""
    talk = Conversation(kind, cut)
    script(talk)
    return talk
