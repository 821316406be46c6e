"""The control connection: who you are, whether you live, what is announced. It carries no stream's bytes.

                 client                                agent
    START ── HELLO ──▶ ASKED                START ── HELLO ──▶ ASKED ── READY ──▶ both OPEN
                         │ AUTH               │ ERROR            │ AUTH               ▲
                         ▼                    ▼                  ▼                    │
                       PROVED               OVER ◀── ERROR ── PROVED ── READY ────────┘
    OPEN: PING, PONG, LISTEN, DENY · BYE ──▶ OVER, the same for both; INCOMING from the agent alone

LISTEN asks when the client says it and grants when the agent does. DENY names an announced connection (the client
will not have it), or else the listener itself: it is not granted, or is over.

A client that has a key puts a nonce into its HELLO, an agent that has keys answers with one, and AUTH follows: the
client's, then the agent's. To a client with a key nothing else is an agent: one without a nonce, a READY before a
proof, a proof that is wrong. An agent that was asked for a proof says READY only after it has proven.

STATUS stands in OPEN: its number is assigned, its row comes with what speaks it; until then it is refused as out of
place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import msgspec

from vsockfwd.errors import (
    LocalProtocolError,
    NotAuthenticated,
    PeerBrokeProtocol,
    Reset,
    Unreachable,
    VersionMismatch,
    VsockfwdError,
    printable,
)
from vsockfwd.identity import Identity
from vsockfwd.key import Key
from vsockfwd.wire.auth import NONCE_LENGTH, proof_of, who_proved
from vsockfwd.wire.frames import FRAME_LIMIT, HANDSHAKE_LIMIT, VERSIONS, Buffer, FrameType, RawFrame, pack
from vsockfwd.wire.machine import NOT_AN_AGENT, Machine, Role, State
from vsockfwd.wire.messages import (
    TOKEN_LENGTH,
    Auth,
    Deny,
    Granted,
    Hello,
    Incoming,
    Listen,
    Ready,
    choose,
    decode,
    denial_of,
    encode,
    error_in,
    error_of,
    failure_of,
    identity_of,
    neighbour_of,
)

PING_LIMIT = 64
"""The most bytes that a PING may carry; its PONG brings them back."""

UNANSWERED = 64
"""Announcements of one listener that may be unanswered at a time."""

_UNPROVEN = "the agent does not prove that it knows the key"
_NOT_OURS = "it may be another's than you mean; or leave out --auth-key, where that is no matter"

_UP: dict[int, State] = {
    FrameType.PING: State.OPEN,
    FrameType.PONG: State.OPEN,
    FrameType.LISTEN: State.OPEN,
    FrameType.DENY: State.OPEN,
    FrameType.BYE: State.OVER,
}


class Greeted(msgspec.Struct, frozen=True):
    """The peer's HELLO; its versions have been checked."""

    hello: Hello
    version: int


class Proven(msgspec.Struct, frozen=True):
    """The peer's AUTH. The agent's side: the key that it was made with, None where it is none of ours. The client's
    side: its own key, always."""

    key: Key | None


class Welcomed(msgspec.Struct, frozen=True):
    """The client's side: READY."""

    ready: Ready


class Refused(msgspec.Struct, frozen=True):
    """The client's side: ERROR, as the error it stands for."""

    error: VsockfwdError


class Pinged(msgspec.Struct, frozen=True):
    """Asked whether we live; `pong` with the same payload is the answer."""

    payload: bytes


class Ponged(msgspec.Struct, frozen=True):
    """The peer lives."""

    payload: bytes


class Farewell(msgspec.Struct, frozen=True):
    """The peer ends the session, for the reason in `error`."""

    error: VsockfwdError


class ListenAsked(msgspec.Struct, frozen=True):
    """The agent's side: a client wants to be listened for. Nothing of it has been believed yet."""

    request: Listen


class ListenGranted(msgspec.Struct, frozen=True):
    """The client's side: the agent listens. The addresses are fit for a terminal."""

    id: int
    bound: tuple[str, ...]


class Announced(msgspec.Struct, frozen=True):
    """The client's side: a connection came in at a listener, and can be fetched with the ticket."""

    id: int
    ticket: bytes
    peer: Identity


class Denied(msgspec.Struct, frozen=True):
    """No to the connection with this ticket; or, without one, no more of the listener."""

    id: int
    ticket: bytes
    error: VsockfwdError


ControlEvent = (
    Greeted
    | Proven
    | Welcomed
    | Refused
    | Pinged
    | Ponged
    | Farewell
    | ListenAsked
    | ListenGranted
    | Announced
    | Denied
)


class ControlMachine(Machine):
    """One control connection, either side of it."""

    tables: ClassVar = {
        Role.CLIENT: {
            State.START: {FrameType.HELLO: State.ASKED},
            State.ASKED: {FrameType.AUTH: State.PROVED},
            State.OPEN: _UP,
        },
        Role.AGENT: {
            State.START: {FrameType.HELLO: State.ASKED, FrameType.ERROR: State.OVER},
            State.ASKED: {FrameType.AUTH: State.PROVED, FrameType.READY: State.OPEN, FrameType.ERROR: State.OVER},
            State.PROVED: {FrameType.READY: State.OPEN, FrameType.ERROR: State.OVER},
            State.OPEN: {**_UP, FrameType.INCOMING: State.OPEN},
        },
    }
    opening = frozenset({FrameType.READY})
    offered_frame = FRAME_LIMIT
    """The largest frame, in bytes, that our HELLO offered to take."""

    def __init__(self, role: Role, keys: tuple[Key, ...] = ()) -> None:
        """`keys`: a client has one or none; an agent those that it trusts."""
        super().__init__(role)
        self._keys = keys
        self._version = 0
        self._hellos: dict[Role, bytes] = {}
        self._nonces: dict[Role, bytes] = {}
        self._proof = b""
        """The client's."""
        self._proven: Key | None = None
        """The key that the peer has proven to know."""

    # --- verbs: each returns the bytes to send

    def hello(self, hello: Hello) -> bytes:
        """Both sides: say who speaks. With a nonce: that a proof is to follow."""
        self.offered_frame = hello.frame
        payload = encode(hello)
        self._note(self.role, hello, payload)
        return self._sending(FrameType.HELLO) + pack(FrameType.HELLO, payload)

    def _note(self, role: Role, hello: Hello, payload: bytes) -> None:
        self._hellos[role], self._nonces[role] = payload, hello.nonce

    def prove(self) -> bytes:
        """Client: AUTH, after the agent's HELLO. Agent: AUTH, after the client's, whose key it knows."""
        if self.role is Role.CLIENT:
            (key,) = self._keys
            self._proof = proof_of(key, self.role, self._version, self._said())
            proof = self._proof
        elif self._proven is None:
            raise LocalProtocolError("nothing can be proven to who has proven nothing")
        else:
            proof = proof_of(self._proven, self.role, self._version, (*self._said(), self._proof))
        return self._sending(FrameType.AUTH) + pack(FrameType.AUTH, encode(Auth(proof)))

    def _said(self) -> tuple[bytes, ...]:
        return self._hellos[Role.CLIENT], self._hellos[Role.AGENT]

    def ready(self, ready: Ready) -> bytes:
        """Agent: welcome the client."""
        if self._nonces.get(self.role) and self.ours is not State.PROVED:
            raise LocalProtocolError("a proof was asked for and not waited for")
        return self._sending(FrameType.READY) + pack(FrameType.READY, encode(ready))

    def refuse(self, error: VsockfwdError) -> bytes:
        """Agent: ERROR, and nothing after it."""
        return self._sending(FrameType.ERROR) + pack(FrameType.ERROR, failure_of(error), error.code)

    def ping(self, payload: bytes = b"") -> bytes:
        """Ask whether the peer lives; at most PING_LIMIT bytes."""
        return self._sending(FrameType.PING) + pack(FrameType.PING, payload[:PING_LIMIT])

    def pong(self, payload: bytes) -> bytes:
        """Answer a PING with its own payload."""
        return self._sending(FrameType.PONG) + pack(FrameType.PONG, payload[:PING_LIMIT])

    def listen(self, request: Listen) -> bytes:
        """Client: ask to be listened for. Raises LocalProtocolError where the request is larger than an agent takes."""
        payload = encode(request)
        if len(payload) > HANDSHAKE_LIMIT or len(request.lease) != TOKEN_LENGTH:
            raise LocalProtocolError(f"a request of {len(payload)} bytes with a lease of {len(request.lease)}")
        return self._sending(FrameType.LISTEN) + pack(FrameType.LISTEN, payload)

    def grant(self, granted: Granted) -> bytes:
        """Agent: it listens."""
        return self._sending(FrameType.LISTEN) + pack(FrameType.LISTEN, encode(granted))

    def announce(self, id: int, ticket: bytes, peer: Identity) -> bytes:
        """Agent: a connection came in."""
        incoming = Incoming(id, ticket, neighbour_of(peer))
        return self._sending(FrameType.INCOMING) + pack(FrameType.INCOMING, encode(incoming))

    def deny(self, error: VsockfwdError, id: int, ticket: bytes = b"") -> bytes:
        """Client: no to the connection with this ticket. Both, without one: this listener is not, or no more."""
        return self._sending(FrameType.DENY) + pack(FrameType.DENY, denial_of(error, id, ticket), error.code)

    def bye(self, error: VsockfwdError) -> bytes:
        """End the session, and say why."""
        return self._sending(FrameType.BYE) + pack(FrameType.BYE, failure_of(error), error.code)

    # --- events

    def receive_data(self, data: Buffer) -> list[ControlEvent]:
        """Events of these bytes, in order. Raises PeerBrokeProtocol, or VersionMismatch for a HELLO of no use."""
        return list(self.events(data))

    def events(self, data: Buffer) -> Iterator[ControlEvent]:
        """The same one by one, read as they are asked for: a flood of tiny frames takes no memory."""
        for item in self._frames(data):
            if not isinstance(item, RawFrame):
                raise PeerBrokeProtocol("the peer sent DATA on a control connection, which carries none")
            yield self._event(item)

    def _event(self, frame: RawFrame) -> ControlEvent:
        match frame.kind:
            case FrameType.HELLO:
                hello = decode(frame.payload, Hello, "HELLO")
                self._note(self.role.other, hello, bytes(frame.payload))
                version = choose(VERSIONS, hello.versions)
                if version is None:
                    theirs = ", ".join(map(str, hello.versions))
                    raise VersionMismatch(
                        f"the peer speaks protocol version {theirs}, this side {', '.join(map(str, VERSIONS))}",
                        hint="install the same vsockfwd on both sides",
                    )
                self._version = version
                self._check_nonce(hello)
                return Greeted(hello, version)
            case FrameType.AUTH:
                return self._check_proof(decode(frame.payload, Auth, "AUTH").proof)
            case FrameType.READY:
                if self._keys and self._proven is None:
                    raise NotAuthenticated(_UNPROVEN, hint=_NOT_OURS)
                return Welcomed(self._check_ready(decode(frame.payload, Ready, "READY")))
            case FrameType.ERROR:
                return Refused(error_of(frame.code, frame.payload, "the agent"))
            case FrameType.PING:
                return Pinged(bytes(frame.payload[:PING_LIMIT]))
            case FrameType.PONG:
                return Ponged(bytes(frame.payload[:PING_LIMIT]))
            case FrameType.LISTEN if self.role is Role.AGENT:
                return ListenAsked(decode(frame.payload, Listen, "LISTEN"))
            case FrameType.LISTEN:
                granted = decode(frame.payload, Granted, "LISTEN")
                return ListenGranted(granted.id, tuple(map(printable, granted.bound)))
            case FrameType.INCOMING:
                incoming = decode(frame.payload, Incoming, "INCOMING")
                return Announced(incoming.id, incoming.ticket, identity_of(incoming.peer))
            case FrameType.DENY:
                return self._denied(frame.code, decode(frame.payload, Deny, "DENY"))
            case _:
                return Farewell(error_of(frame.code, frame.payload, f"the {self.role.other.value}"))

    def _check_nonce(self, hello: Hello) -> None:
        if hello.nonce and len(hello.nonce) != NONCE_LENGTH:
            raise PeerBrokeProtocol(f"the peer's HELLO makes no sense: a nonce of {len(hello.nonce)} bytes")
        if self.role is Role.CLIENT and bool(hello.nonce) != bool(self._keys):
            if self._keys:
                raise NotAuthenticated(_UNPROVEN, hint=_NOT_OURS)
            raise PeerBrokeProtocol("the agent asks for a proof that was not offered")

    def _check_proof(self, proof: bytes) -> Proven:
        """Whose proof it is. A client is told of no other than its own key's: it raises."""
        agent = self.role is Role.AGENT
        if not self._nonces.get(self.role) or self.ours is not (State.ASKED if agent else State.PROVED):
            raise PeerBrokeProtocol("the peer proves what it was not asked")
        said = self._said() if agent else (*self._said(), self._proof)
        self._proven = who_proved(self._keys, proof, self.role.other, self._version, said)
        if agent:
            self._proof = proof
        elif self._proven is None:
            raise NotAuthenticated("the agent does not know the key", hint=_NOT_OURS)
        return Proven(self._proven)

    def _denied(self, code: int, deny: Deny) -> Denied:
        if deny.ticket and (self.role is Role.CLIENT or len(deny.ticket) != TOKEN_LENGTH):
            raise PeerBrokeProtocol("the peer's DENY makes no sense: its ticket is none of ours")
        return Denied(deny.id, deny.ticket, error_in(deny, code, f"the {self.role.other.value}"))

    def _check_ready(self, ready: Ready) -> Ready:
        """An agent chooses among what the client offered, and its words are fit for a terminal from here on."""
        if ready.version not in VERSIONS:
            raise VersionMismatch(f"the agent chose protocol version {ready.version}, which was not offered")
        if ready.frame > self.offered_frame:
            raise PeerBrokeProtocol(f"the agent chose frames of {ready.frame} bytes, {self.offered_frame} were offered")
        return msgspec.structs.replace(ready, seen_as=printable(ready.seen_as))

    def receive_eof(self) -> None:
        """The bytes are at their end. Returns quietly after ERROR or BYE; raises what it means otherwise."""
        if self.theirs is State.OVER:
            return
        if self.role is Role.CLIENT and self.heard_nothing:
            raise Unreachable("the connection was closed without a word", hint=NOT_AN_AGENT)
        raise Reset(f"the {self.role.other.value} closed the control connection without BYE")
