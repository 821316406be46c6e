"""What sender and receiver say to each other: the frames, their payloads, and the rules for names. No IO in here.

The table with its prose is in README.md. The thing to understand first: every entry of a stream has a number, counted
from 1 in the order of announcement, and the sender counts as the receiver does. Data and results name numbers, never
paths; paths exist only as one name inside the directory that was entered last.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Annotated, Any, Literal, TypeVar, final

import msgspec
import xxhash

from vsockfwd.plugin import BadRequest, Code, PeerBrokeProtocol, VsockfwdError, from_code, from_oserror, printable
from vsockfwd_copy.options import Algorithm, LandOptions, SendOptions

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

BLOCK = 1 << 17
"""Bytes of a block by which a file is compared with what stands in its place."""

XATTRS_LIMIT = 1 << 16
"""Bytes of names and values of one file's extended attributes, ACLs among them; Linux takes no value above that."""

DEPTH_LIMIT = 8192
"""Directories inside each other: an end for a tree that grows because it is being copied into itself."""

NAME_LIMIT = 255
TEXT_LIMIT = 500
LARGEST = (1 << 63) - 1

Number = Annotated[int, msgspec.Meta(ge=1, le=LARGEST)]
Size = Annotated[int, msgspec.Meta(ge=0, le=LARGEST)]
Name = Annotated[bytes, msgspec.Meta(max_length=NAME_LIMIT)]
Permissions = Annotated[int, msgspec.Meta(ge=0, le=0o7777)]
Nanoseconds = Annotated[int, msgspec.Meta(ge=-LARGEST, le=LARGEST)]
Digest = Annotated[bytes, msgspec.Meta(min_length=16, max_length=32)]
Path = Annotated[bytes, msgspec.Meta(max_length=4095)]
Id = Annotated[int, msgspec.Meta(ge=0, lt=(1 << 32) - 1)]
AccountName = Annotated[str, msgspec.Meta(max_length=64)]


class Kind(IntEnum):
    """The frames of a copy. 64–71 go from sender to receiver, 72–79 back."""

    ENTRIES = 64
    CHUNK = 65
    HOLE = 66
    FINISH = 67
    GIVE_UP = 68
    SAME = 69
    CONTENTS = 70
    WANT = 72
    RESULTS = 73
    PROGRESS = 74
    BLOCKS = 75
    REMOVED = 76
    SEEN = 79


# --- the request ---------------------------------------------------------------------------------------------------


class Put(msgspec.Struct, frozen=True, tag="put", tag_field="do"):
    """The client sends: to this destination as typed, so many sources in all; 0: as many as will come."""

    destination: Path
    sources: Annotated[int, msgspec.Meta(ge=0)]
    options: LandOptions = LandOptions()


class Get(msgspec.Struct, frozen=True, tag="get", tag_field="do"):
    """The client receives: these sources as typed."""

    sources: Annotated[list[Path], msgspec.Meta(min_length=1)]
    options: SendOptions = SendOptions()


class Look(msgspec.Struct, frozen=True, tag="look", tag_field="do"):
    """The client asks what is there, or has something made or removed: see looking.py. The reply says it."""

    what: Literal["stat", "list", "space", "make", "remove"]
    path: Path
    recursive: bool = False
    """Also what is above (`make`) or below (`remove`); what a symlink leads to (`stat`)."""


class Request(msgspec.Struct, frozen=True):
    """The arguments of OPEN."""

    copy: Put | Get | Look


class Resolved(msgspec.Struct, frozen=True):
    """The reply to Put: the place that the destination turned out to be."""

    place: Annotated[bytes, msgspec.Meta(max_length=1 << 16)]


# --- announcements -------------------------------------------------------------------------------------------------


class Failure(msgspec.Struct, frozen=True, array_like=True, gc=False):
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


class Owner(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Who owns a file: the numbers, and the names that they have where it comes from, as far as they have one."""

    uid: Id
    gid: Id
    user: AccountName = ""
    group: AccountName = ""


class Extra(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What is kept beside content, permissions and mtime, as far as it was asked for."""

    owner: Owner | None = None
    xattrs: list[tuple[Annotated[bytes, msgspec.Meta(max_length=255)], bytes]] = []


@final
class Enter(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A directory; what follows is in it, until its Leave. An empty name at the top: the destination itself."""

    name: Name
    mode: Permissions
    mtime: Nanoseconds
    extra: Extra | None = None


@final
class Leave(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The directory entered last is complete. The only entry without a number."""


@final
class Small(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=3):
    """A file with its content and the digest of it. `linked`: a HardLink to it may come later."""

    name: Name
    mode: Permissions
    mtime: Nanoseconds
    content: Annotated[bytes, msgspec.Meta(max_length=SMALL_LIMIT)]
    digest: Digest
    linked: bool = False
    extra: Extra | None = None


@final
class Large(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=4):
    """A file whose data goes out when the receiver has said which bytes it wants.

    `allocated` is what its data takes without the holes; `stamp` is the same as long as the file was not touched.
    """

    name: Name
    mode: Permissions
    mtime: Nanoseconds
    size: Annotated[int, msgspec.Meta(ge=1, le=LARGEST)]
    linked: bool = False
    extra: Extra | None = None
    allocated: Size = 0
    stamp: Annotated[bytes, msgspec.Meta(max_length=16)] = b""


@final
class Symlink(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=5):
    """A symbolic link, as such."""

    name: Name
    mtime: Nanoseconds
    target: Annotated[bytes, msgspec.Meta(min_length=1, max_length=4095)]
    extra: Extra | None = None


@final
class HardLink(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=7):
    """Another name for the file of that number, which said that it was `linked`."""

    name: Name
    file: Number


@final
class Flow(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """A file whose size nobody knows before its end, such as a pipe's content."""

    name: Name
    mode: Permissions
    mtime: Nanoseconds


@final
class Lost(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Something that the sender cannot or will not send, and why."""

    name: Name
    failure: Failure


Landed = Small | Large | Flow
"""What becomes a file."""

Numbered = Enter | Small | Large | Symlink | Lost | HardLink | Flow

Entry = Numbered | Leave


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


class Same(msgspec.Struct, frozen=True, array_like=True):
    """So many bytes, whole blocks but for the file's end, are those that stand in the file's place at this offset."""

    file: Number
    offset: Size
    length: Annotated[int, msgspec.Meta(ge=1, le=LARGEST)]


class Content(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A whole small file that was announced without its content and is wanted. `same`: it is what the receiver has,
    by its digest, and is not sent."""

    file: Number
    content: Annotated[bytes, msgspec.Meta(max_length=SMALL_LIMIT)]
    digest: Digest
    same: bool = False


class Contents(msgspec.Struct, frozen=True, array_like=True):
    """Several small files, and those of them that cannot be read after all."""

    files: list[Content]
    given_up: list[GiveUp] = []


Piece = Chunk | Hole | Same | Finish | GiveUp

# --- answers -------------------------------------------------------------------------------------------------------


class Range(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A part of a file."""

    offset: Size
    length: Annotated[int, msgspec.Meta(ge=1, le=LARGEST)]


class Want(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The bytes of a Large file that are wanted: ranges in rising order, at least one; of a Flow all, without a range.

    `compared`: Blocks will tell what stands there already, and what is the same need not be sent. Of a small file
    `digest` tells it at once, if anything does.
    """

    file: Number
    ranges: list[Range]
    compared: bool = False
    digest: Annotated[bytes, msgspec.Meta(max_length=32)] = b""


class Blocks(msgspec.Struct, frozen=True, array_like=True):
    """Digests (xxh3_128, 16 bytes each) of consecutive blocks, from block `first` on, of what stands in a file's place.

    They come in rising order. What is left out between them stands for blocks that are not the same in any case, as
    do those from `first` on where there are no digests: that is the last word.
    """

    file: Number
    first: Size
    digests: Annotated[bytes, msgspec.Meta(max_length=1 << 18)]


class Wants(msgspec.Struct, frozen=True, array_like=True):
    """Several wants."""

    wants: list[Want]


class Done(IntEnum):
    """What was done with an entry that has not failed."""

    NEW = 0
    REPLACED = 1
    SAME = 2
    """It stood there already."""
    KEPT = 3
    """Something else stood there, and was not to be replaced."""


class Result(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What became of an entry: in its place, complete and verified, or the failure. Each gets exactly one.

    `lost` is an attributes.Loss: what could not be kept.
    """

    entry: Number
    failure: Failure | None = None
    done: Done = Done.NEW
    lost: Annotated[int, msgspec.Meta(ge=0, le=255)] = 0


class Results(msgspec.Struct, frozen=True, array_like=True):
    """Several results."""

    results: list[Result]


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """So many bytes more, holes included, have been written since the last Progress.

    `file` is the Large file at work, if one is, and `position` how far it is.
    """

    bytes: Size
    file: Annotated[int, msgspec.Meta(ge=0, le=LARGEST)] = 0
    position: Size = 0


class Removed(msgspec.Struct, frozen=True, array_like=True):
    """Paths below the destination that were removed, since the sender has nothing there, or why they could not be."""

    paths: list[tuple[Path, Failure | None]]


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
    """xxh3_128, or blake3, over a file's bytes in order; a hole stands in as its offset and length, 8 big-endian bytes
    each, and a block that was the same as its xxh3_128.

    How the bytes were cut into chunks does not matter; where the holes were does.
    """

    __slots__ = ("_state", "digest", "update")

    def __init__(self, algorithm: Algorithm = Algorithm.XXH3) -> None:
        """Raises BadRequest where the algorithm is not there."""
        self._state = _hasher(algorithm)
        self.update = self._state.update
        self.digest: Callable[[], bytes] = self._state.digest

    def skip(self, offset: int, length: int) -> None:
        """A hole."""
        self._state.update(offset.to_bytes(8, "big") + length.to_bytes(8, "big"))


def _hasher(algorithm: Algorithm) -> Any:
    if algorithm == Algorithm.XXH3:
        return xxhash.xxh3_128()
    try:
        from blake3 import blake3
    except ImportError:
        raise BadRequest("blake3 is not installed here", hint="pip install 'vsockfwd-copy[blake3]'") from None
    return blake3()


def digest_of(content: bytes, algorithm: Algorithm = Algorithm.XXH3) -> bytes:
    """The digest of a small file's content."""
    if algorithm == Algorithm.XXH3:
        return xxhash.xxh3_128_digest(content)
    state = _hasher(algorithm)
    state.update(content)
    return bytes(state.digest())


checksum = xxhash.xxh3_64_intdigest
block_digest = xxhash.xxh3_128_digest
stamp_of = xxhash.xxh3_128_digest


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
