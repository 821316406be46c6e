"""What sender and receiver say to each other: the frames, their payloads, and the rules for names. No IO in here.

The table with its prose is in README.md. The thing to understand first: every entry of a stream has a number, counted
from 1 in the order of announcement, and the sender counts as the receiver does. Data and results name numbers, never
paths; paths exist only as one name inside the directory that was entered last.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, TypeVar

import msgspec
import xxhash

from vsockfwd.plugin import Code, PeerBrokeProtocol, VsockfwdError, from_code, from_oserror, printable

CHUNK_LIMIT = 1 << 20
"""The most bytes of a file that one CHUNK carries."""

SMALL_LIMIT = 1 << 16
"""Files up to this size ride inside their announcement."""

BATCH_LIMIT = 1 << 18
"""Bytes of announcements after which a batch goes out; with one small file more it stays below any frame's limit."""

FRAME_NEEDED = 1 << 19
"""Bytes that a frame must be able to carry, so that any batch fits."""

WINDOW = 4096
"""Files that may be announced and unanswered: what a receiver has to remember at most."""

DEPTH_LIMIT = 8192
"""Directories inside each other: an end for a tree that grows because it is being copied into itself."""

NAME_LIMIT = 255
TEXT_LIMIT = 500
LARGEST = (1 << 63) - 1

Number = Annotated[int, msgspec.Meta(ge=1, le=LARGEST)]
Size = Annotated[int, msgspec.Meta(ge=0, le=LARGEST)]
Name = Annotated[bytes, msgspec.Meta(max_length=NAME_LIMIT)]
Permissions = Annotated[int, msgspec.Meta(ge=0, le=0o777)]
Nanoseconds = Annotated[int, msgspec.Meta(ge=-LARGEST, le=LARGEST)]
Digest = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Path = Annotated[bytes, msgspec.Meta(max_length=4095)]


class Kind(IntEnum):
    """The frames of a copy. 64–71 go from sender to receiver, 72–79 back."""

    ENTRIES = 64
    CHUNK = 65
    HOLE = 66
    FINISH = 67
    GIVE_UP = 68
    WANT = 72
    RESULTS = 73
    PROGRESS = 74


# --- the request ---------------------------------------------------------------------------------------------------


class Put(msgspec.Struct, frozen=True, tag="put", tag_field="do"):
    """The client sends: to this destination as typed, so many sources in all, directories among them or not."""

    destination: Path
    sources: Annotated[int, msgspec.Meta(ge=1)]
    recursive: bool = False


class Get(msgspec.Struct, frozen=True, tag="get", tag_field="do"):
    """The client receives: these sources as typed."""

    sources: Annotated[list[Path], msgspec.Meta(min_length=1)]
    recursive: bool = False


class Request(msgspec.Struct, frozen=True):
    """The arguments of OPEN."""

    copy: Put | Get


class Resolved(msgspec.Struct, frozen=True):
    """The reply to Put: the place that the destination turned out to be."""

    place: Annotated[bytes, msgspec.Meta(max_length=1 << 16)]


# --- announcements -------------------------------------------------------------------------------------------------


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """Why one file is not there: the scope is this file, the copy goes on."""

    code: Annotated[int, msgspec.Meta(ge=1, le=0xFFFF)]
    errno: Annotated[int, msgspec.Meta(ge=0, le=4095)]
    text: Annotated[str, msgspec.Meta(max_length=TEXT_LIMIT)]

    @classmethod
    def of(cls, error: VsockfwdError) -> Failure:
        return cls(error.code, min(max(error.errno, 0), 4095), error.message[:TEXT_LIMIT])

    def error(self, name: str) -> VsockfwdError:
        """As the error that a command may end with."""
        return from_code(self.code, f"{name}: {printable(self.text)}", errno=self.errno)


class Enter(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A directory; what follows is in it, until its Leave. An empty name at the top: the destination itself."""

    name: Name
    mode: Permissions
    mtime: Nanoseconds


class Leave(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The directory entered last is complete. The only entry without a number."""


class Small(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """A file with its content and the digest of it."""

    name: Name
    mode: Permissions
    mtime: Nanoseconds
    content: Annotated[bytes, msgspec.Meta(max_length=SMALL_LIMIT)]
    digest: Digest


class Large(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """A file whose data goes out when the receiver has said which bytes it wants."""

    name: Name
    mode: Permissions
    mtime: Nanoseconds
    size: Annotated[int, msgspec.Meta(ge=1, le=LARGEST)]


class Symlink(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """A symbolic link, as such."""

    name: Name
    mtime: Nanoseconds
    target: Annotated[bytes, msgspec.Meta(min_length=1, max_length=4095)]


class Lost(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Something that the sender cannot or will not send, and why."""

    name: Name
    failure: Failure


Entry = Enter | Leave | Small | Large | Symlink | Lost


class Entries(msgspec.Struct, frozen=True, array_like=True):
    """A batch; `first` is the number of its first numbered entry."""

    first: Number
    entries: list[Entry]


# --- data ----------------------------------------------------------------------------------------------------------


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """`length` bytes of DATA follow; `checksum` is their xxh3_64."""

    file: Number
    offset: Size
    length: Annotated[int, msgspec.Meta(ge=1, le=CHUNK_LIMIT)]
    checksum: Annotated[int, msgspec.Meta(ge=0)]


class Hole(msgspec.Struct, frozen=True, array_like=True):
    """So many bytes of nothing."""

    file: Number
    offset: Size
    length: Annotated[int, msgspec.Meta(ge=1, le=LARGEST)]


class Finish(msgspec.Struct, frozen=True, array_like=True):
    """All that was wanted of a file was sent; `digest` is that of a FileDigest fed with it."""

    file: Number
    digest: Digest


class GiveUp(msgspec.Struct, frozen=True, array_like=True):
    """The rest of an announced file will not come."""

    file: Number
    failure: Failure


Piece = Chunk | Hole | Finish | GiveUp

# --- answers -------------------------------------------------------------------------------------------------------


class Range(msgspec.Struct, frozen=True, array_like=True):
    """A part of a file."""

    offset: Size
    length: Annotated[int, msgspec.Meta(ge=1, le=LARGEST)]


class Want(msgspec.Struct, frozen=True, array_like=True):
    """The bytes of a Large file that are wanted: ranges in rising order, at least one."""

    file: Number
    ranges: Annotated[list[Range], msgspec.Meta(min_length=1)]


class Wants(msgspec.Struct, frozen=True, array_like=True):
    """Several wants."""

    wants: list[Want]


class Result(msgspec.Struct, frozen=True, array_like=True):
    """What became of an entry: in its place, complete and verified, or the failure. Each gets exactly one."""

    entry: Number
    failure: Failure | None = None


class Results(msgspec.Struct, frozen=True, array_like=True):
    """Several results."""

    results: list[Result]


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """So many bytes more, holes included, have been written since the last Progress."""

    bytes: Size


# --- encoding ------------------------------------------------------------------------------------------------------

M = TypeVar("M", bound=msgspec.Struct)

encode = msgspec.msgpack.Encoder().encode


def decode(payload: bytes | bytearray | memoryview, kind: type[M]) -> M:
    """Decode a payload. Raises PeerBrokeProtocol."""
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    # A msgpack string that is not UTF-8 comes as UnicodeDecodeError, a hostile nesting as RecursionError.
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PeerBrokeProtocol(
            f"the peer's {kind.__name__.lower()} makes no sense: {printable(str(error), 200)}"
        ) from None


class FileDigest:
    """xxh3_128 over a file's bytes in order, each hole standing in as its offset and length, big-endian, 8 bytes each.

    How the bytes were cut into chunks does not matter; where the holes were does.
    """

    __slots__ = ("_state", "digest", "update")

    def __init__(self) -> None:
        self._state = xxhash.xxh3_128()
        self.update = self._state.update
        self.digest = self._state.digest

    def skip(self, offset: int, length: int) -> None:
        """A hole."""
        self._state.update(offset.to_bytes(8, "big") + length.to_bytes(8, "big"))


checksum = xxhash.xxh3_64_intdigest
digest = xxhash.xxh3_128_digest


# --- names ---------------------------------------------------------------------------------------------------------


def check_name(name: bytes) -> bytes:
    """A peer's name for something inside a directory. Raises PeerBrokeProtocol for one that leads elsewhere."""
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise PeerBrokeProtocol(f"the peer sent {printable(name)!r} for a file's name")
    return name


def landing_name(source: bytes) -> bytes:
    """The name that a source, as typed, gets inside a directory; empty where its content goes there instead (`a/.`)."""
    name = source.rstrip(b"/").rpartition(b"/")[2]
    return b"" if name in (b".", b"..") else name


def failure_of(error: OSError | VsockfwdError, doing: str = "") -> Failure:
    """An error as the failure of one file; `doing` says at what, for the operating system's errors."""
    return Failure.of(from_oserror(error, doing) if isinstance(error, OSError) else error)


BROKEN_OFF = Failure(Code.RESET, 0, "the receiver had given it up")
"""What a sender says of a file that its receiver failed with meanwhile."""
