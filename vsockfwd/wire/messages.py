"""The typed payloads of control frames: msgpack maps, unknown fields ignored, every field bounded.

HELLO and OPEN keep their encoding for ever, since both sides read them before a version is agreed on; the rest may
follow the version.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

from vsockfwd.errors import TEXT_LIMIT, Code, PeerBrokeProtocol, VsockfwdError, from_code, printable
from vsockfwd.identity import Identity, NetworkPeer, OwnPeer, UnixPeer, VsockPeer
from vsockfwd.wire.auth import NONCE_LENGTH, PROOF_LENGTH
from vsockfwd.wire.frames import FRAME_LIMIT, HANDSHAKE_LIMIT, Buffer

TOKEN_LENGTH = 16
"""Bytes of a session's token, of a ticket and of a lease: 128 random bits."""

Version = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
Versions = Annotated[tuple[Version, ...], msgspec.Meta(min_length=1, max_length=32)]
ModeName = Annotated[str, msgspec.Meta(pattern="^[a-z0-9][a-z0-9_.-]{0,63}$")]
Text = Annotated[str, msgspec.Meta(max_length=TEXT_LIMIT)]
FrameSize = Annotated[int, msgspec.Meta(ge=HANDSHAKE_LIMIT, le=1 << 31)]
Token = Annotated[bytes, msgspec.Meta(min_length=TOKEN_LENGTH, max_length=TOKEN_LENGTH)]
Number = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFF)]
AddressText = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]


class Hello(msgspec.Struct, frozen=True):
    """Who speaks: protocol versions, the software's name, the largest frame taken, a nonce where a key is shown."""

    versions: Versions
    software: Text = ""
    frame: FrameSize = FRAME_LIMIT
    nonce: Annotated[bytes, msgspec.Meta(max_length=NONCE_LENGTH)] = b""
    """A client with a key sends one, and so does an agent that answers it: then AUTH follows."""


class Auth(msgspec.Struct, frozen=True):
    """That this side knows the key (wire/auth.py)."""

    proof: Annotated[bytes, msgspec.Meta(min_length=PROOF_LENGTH, max_length=PROOF_LENGTH)]


class Ready(msgspec.Struct, frozen=True):
    """The agent's welcome: the version chosen, the session's token, what the agent can do and as whom it saw us.

    `clock` is its clock in seconds since 1970; 0: it did not say. `confined`: what it can do no more, in words.
    """

    version: Version
    token: Token
    frame: FrameSize = FRAME_LIMIT
    modes: Annotated[dict[ModeName, Versions], msgspec.Meta(max_length=64)] = {}
    seen_as: Text = ""
    clock: Annotated[float, msgspec.Meta(ge=0, le=1 << 40)] = 0.0
    confined: Text = ""


class Open(msgspec.Struct, frozen=True):
    """A request for one stream: the session's token, the mode, the mode's versions, the mode's own arguments."""

    token: Token
    mode: ModeName
    versions: Versions
    arguments: msgspec.Raw = msgspec.Raw(b"\xc0")


class Ok(msgspec.Struct, frozen=True):
    """The answer to OPEN: the mode's version chosen, the mode's own reply."""

    version: Version
    reply: msgspec.Raw = msgspec.Raw(b"\xc0")


class Listen(msgspec.Struct, frozen=True):
    """A client's LISTEN: listen at this address under this lease. The client numbers what it asks for."""

    id: Number
    address: AddressText
    lease: Token


class Granted(msgspec.Struct, frozen=True):
    """An agent's LISTEN: it listens, at these addresses."""

    id: Number
    bound: Annotated[tuple[AddressText, ...], msgspec.Meta(min_length=1, max_length=16)]


class VsockNeighbour(msgspec.Struct, frozen=True, tag="vsock"):
    """Who came to a listener: a VsockPeer."""

    cid: Number
    port: Number


class UnixNeighbour(msgspec.Struct, frozen=True, tag="unix"):
    """A UnixPeer, in the agent's own numbers."""

    uid: Number
    gid: Number
    pid: Number


class NetworkNeighbour(msgspec.Struct, frozen=True, tag="net"):
    """A NetworkPeer; the host is a literal IP address, without an interface's name."""

    host: Annotated[str, msgspec.Meta(pattern="^[0-9A-Fa-f:.]{2,45}$")]
    port: Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]


class OtherNeighbour(msgspec.Struct, frozen=True, tag="other"):
    """Whoever else: words to call it by."""

    name: Text


Neighbour = VsockNeighbour | UnixNeighbour | NetworkNeighbour | OtherNeighbour


class Incoming(msgspec.Struct, frozen=True):
    """A connection came in at a listener: who it is, and the ticket that fetches it, once."""

    id: Number
    ticket: Token
    peer: Neighbour


LISTEN = "listen"
"""The core's own mode: its streams fetch who came to a listener. An agent that has it in READY can listen."""


class Fetch(msgspec.Struct, frozen=True):
    """The arguments of an OPEN in the mode LISTEN."""

    id: Number
    ticket: Token


class Failure(msgspec.Struct, frozen=True):
    """The payload of ERROR, RESET and BYE; the code stands in the frame's header."""

    text: Annotated[str, msgspec.Meta(max_length=4 * TEXT_LIMIT)] = ""
    hint: Annotated[str, msgspec.Meta(max_length=4 * TEXT_LIMIT)] = ""
    errno: Annotated[int, msgspec.Meta(ge=0, le=4095)] = 0


class Deny(Failure, frozen=True, kw_only=True):
    """No to one connection (the client, with its ticket), or no more of a listener (either side, without)."""

    id: Number
    ticket: Annotated[bytes, msgspec.Meta(max_length=TOKEN_LENGTH)] = b""


M = TypeVar("M", bound=msgspec.Struct)

_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode


def decode(payload: Buffer, kind: type[M], what: str) -> M:
    """Decode a peer's payload. Raises PeerBrokeProtocol, which names the frame and the field."""
    try:
        # From a copy: a msgspec.Raw in the result is a view, and the payload's buffer is about to be used again.
        return msgspec.msgpack.decode(bytes(payload), type=kind)
    # A msgpack string that is not UTF-8 comes as UnicodeDecodeError, a hostile nesting as RecursionError.
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PeerBrokeProtocol(f"the peer's {what} makes no sense: {printable(str(error), 200)}") from None


def _told(error: VsockfwdError) -> tuple[str, str, int]:
    """What a peer is told of an error, cut to what it will keep."""
    # Made printable on this side too: a file's name in a message may hold surrogates, which msgpack cannot carry.
    text, hint = (printable(words)[:TEXT_LIMIT] for words in (error.message, error.hint))
    return text, hint, max(0, min(error.errno, 4095))


def failure_of(error: VsockfwdError) -> bytes:
    """An error as the payload of ERROR or RESET."""
    return encode(Failure(*_told(error)))


def denial_of(error: VsockfwdError, id: int, ticket: bytes = b"") -> bytes:
    """An error as the payload of DENY."""
    return encode(Deny(*_told(error), id=id, ticket=ticket))


def error_of(code: int, payload: Buffer, who: str) -> VsockfwdError:
    """The error that a peer's ERROR or RESET stands for; its text is made fit for a terminal here."""
    return error_in(decode(payload, Failure, "error") if len(payload) else Failure(), code, who)


def error_in(failure: Failure, code: int, who: str) -> VsockfwdError:
    """The same of a payload that is decoded already."""
    text = printable(failure.text) or f"code {code}"
    return from_code(code or Code.INTERNAL, f"{who}: {text}", hint=printable(failure.hint), errno=failure.errno)


def neighbour_of(peer: Identity) -> Neighbour:
    """An identity as it is announced."""
    match peer:
        case VsockPeer(cid, port):
            return VsockNeighbour(cid, port)
        case UnixPeer(uid, gid, pid):
            return UnixNeighbour(uid, gid, pid)
        case NetworkPeer(host, port):
            return NetworkNeighbour(host.partition("%")[0], port)  # the interface's name means nothing elsewhere
        case _:
            return OtherNeighbour(printable(str(peer))[:TEXT_LIMIT])


def identity_of(neighbour: Neighbour) -> Identity:
    """Who was announced; the agent vouches for it."""
    match neighbour:
        case VsockNeighbour(cid=cid, port=port):
            return VsockPeer(cid, port)
        case UnixNeighbour(uid=uid, gid=gid, pid=pid):
            return UnixPeer(uid, gid, pid)
        case NetworkNeighbour(host=host, port=port):
            return NetworkPeer(host, port)
        case OtherNeighbour(name=name):
            return OwnPeer(printable(name))


def choose(ours: tuple[int, ...], theirs: tuple[int, ...]) -> int | None:
    """The highest version that both sides speak."""
    return max(set(ours) & set(theirs), default=None)
