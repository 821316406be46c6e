"""What a mode is: values and protocols only, so that the engine and a plugin can both name it.

A mode is one `Mode` value, found through the entry-point group `vsockfwd.modes`. Its commands are entry points of
their own (group `vsockfwd.commands`), so that typing one command imports one module.

The thing to understand first: on the agent's side, a request for a mode becomes a `Call`. The mode either accepts it,
and has a `Channel` for the body from then on, or raises a VsockfwdError, which reaches the client as its own error.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, TypeVar

import msgspec

from vsockfwd.errors import Code
from vsockfwd.events import Outcome, Report
from vsockfwd.identity import Identity
from vsockfwd.rule import RuleKind

CONTRACT = 1
"""The version of this contract. A mode made for another is listed as broken."""

RESERVED_MODES = frozenset({"listen", "measure", "status", "control", "session", "core"})
"""Names of the core's own requests, present and to come: no plugin may take them."""

ModeFrame = range(64, 128)
"""The frame types that belong to a mode, in the body of its streams."""

M = TypeVar("M", bound=msgspec.Struct)
T = TypeVar("T")


class Access(StrEnum):
    """What a request wants to do with a resource."""

    CONNECT = "connect"
    LISTEN = "listen"
    READ = "read"
    WRITE = "write"
    MEASURE = "measure"


@dataclass(frozen=True, slots=True)
class Resource:
    """Something that a request touches: an address to connect to or to listen on, a path to read or write; or, to
    measure, the time of the agent's machine.

    `asked` is the address as it was asked for, where its name was looked up and came to `name`.
    """

    access: Access
    name: str
    asked: str = ""


@dataclass(frozen=True, slots=True)
class Data:
    """A piece of the body, as it came: not a frame's boundary. `view` is valid until the next receive."""

    view: memoryview


@dataclass(frozen=True, slots=True)
class Ended:
    """The peer's direction is complete."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A mode's own frame, whole. `kind` is one of ModeFrame, `payload` is valid until the next receive."""

    kind: int
    code: int
    payload: memoryview


BodyEvent = Data | Ended | Frame


SLICE = 0.05
"""Seconds that a thread works with a channel before others learn what came of it."""

PATIENCE = 0.01
"""Seconds that a thread waits for bytes or for room before a task does: bulk comes and goes with shorter pauses."""


class ThreadChannel(Protocol):
    """What a thread may call of a Channel: it waits until a moment of time.monotonic() at most."""

    def receive(self, until: float) -> BodyEvent | None:
        """As Channel.receive; None: nothing came by then."""
        ...

    def receive_into(self, buffer: memoryview, until: float) -> int:
        """Fill a buffer with the next bytes of the body, which have to come in pieces that end with it.

        Returns how many bytes came by then: with the rest of the buffer it goes on there. Raises as `receive` does,
        and PeerBrokeProtocol where anything else comes.
        """
        ...

    def send_frames(
        self,
        *frames: tuple[int, bytes | bytearray | memoryview],
        data: bytes | bytearray | memoryview = b"",
        until: float,
    ) -> bool:
        """As Channel.send_frames; False: some of it is left by then. It is for `flush`, before anything else is sent,
        and is to stay as it is until then."""
        ...

    def flush(self, until: float) -> bool:
        """Send what is left; False: still not all of it."""
        ...


class Channel(Protocol):
    """The body of a stream connection between two vsockfwd peers, the same on both sides."""

    @property
    def frame_limit(self) -> int:
        """The most bytes of payload that a frame may carry."""
        ...

    async def receive(self) -> BodyEvent:
        """The next event. Raises Reset (or what the peer's code says), Truncated when the stream ends without END."""
        ...

    async def in_thread(self, work: Callable[[ThreadChannel], T]) -> T:
        """Run `work` in a thread, which has one direction to itself meanwhile. Raises what it raises.

        For who works on bulk as it comes, or makes it: in slices of SLICE seconds, since a thread cannot be cancelled.
        `wait_readable`, `wait_writable`: between two slices, where the first could not go on.
        """
        ...

    async def wait_readable(self) -> None: ...

    async def wait_writable(self) -> None: ...

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes of the body, in as many DATA frames as it takes."""
        ...

    async def send_frames(
        self, *frames: tuple[int, bytes | bytearray | memoryview], data: bytes | bytearray | memoryview = b""
    ) -> None:
        """Send whole frames of the mode's own kinds, (kind, payload) each, coalesced into few writes.

        `data`: bytes of the body that follow them, as `send` would send them, in the same write where they fit.
        """
        ...

    def try_send_frames(self, *frames: tuple[int, bytes | bytearray | memoryview]) -> bool:
        """The same for a callback, which cannot wait; not while `send_frames` is under way.

        False: some of it is left over, and goes before what the next `send_frames` sends, be that nothing.
        """
        ...

    async def send_end(self) -> None:
        """This direction is complete."""
        ...

    async def reset(self, code: Code, text: str) -> None:
        """Abandon the stream and tell the peer why, within a bounded while."""
        ...

    async def relay(
        self,
        neighbour: Any,
        *,
        dialled: bool = False,
        idle: float = 0.0,
        half_open: float = 0.0,
        live: set[Any] | None = None,
    ) -> Outcome:
        """Join the channel to a plain stream until both directions have ended; both are told how, and closed.

        `dialled`: we called the neighbour, it did not call us. `idle`: seconds without a byte after which it ends;
        `half_open`: the same, once one direction has ended; 0 means for ever. `live` holds the relay while it runs.
        """
        ...

    async def aclose(self) -> None: ...


class Call(Protocol):
    """A client's request to an agent, decoded as far as the core can."""

    mode: str
    version: int
    peer: Identity
    report: Report
    root: str | None
    """The directory that paths are below, and start at, for this client; None: the whole file system."""

    def arguments(self, kind: type[M]) -> M:
        """The request's arguments, decoded and checked. Raises BadRequest."""
        ...

    async def accept(self, reply: msgspec.Struct | None = None) -> Channel:
        """Answer OK; the body follows."""
        ...

    async def connect(self, address: str) -> Any:
        """Dial an address on the client's behalf. The policy was asked about the address before; what a name in it
        comes to, it is asked here. Raises NotAllowed, or what the dial failed with."""
        ...

    def check(self, resource: Resource) -> None:
        """Ask the policy about what a mode found out by itself: where a name led. Raises NotAllowed."""
        ...


Serve = Callable[[Call], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Join:
    """What a request may come down to: an address to dial, and what is reached there is the body.

    `reply` makes the answer, from who was reached; `ended` is told how it ended.
    """

    connect: str
    reply: Callable[[Identity], msgspec.Struct | None]
    ended: Callable[[Outcome], None]


def touches_nothing(arguments: bytes) -> tuple[Resource, ...]:
    """For modes whose requests touch nothing that a policy names."""
    return ()


@dataclass(frozen=True, slots=True)
class Mode:
    """One mode. Everything but the name and the summary is there as far as the mode has it.

    `serve` handles requests to the agent. Or `join` does: it says what to dial for a request, or raises BadRequest, and
    leaves the rest to the engine, which needs no task for it. `resources` tells, from a request's raw arguments
    (msgpack), which resources it touches, so that the policy can be asked before; it raises BadRequest for nonsense.
    `rules` are the kinds of `[[forward]]` rule that it brings.
    """

    name: str
    summary: str
    contract: int = CONTRACT
    versions: tuple[int, ...] = (1,)
    serve: Serve | None = None
    join: Callable[[Call], Join] | None = None
    resources: Callable[[bytes], tuple[Resource, ...]] = touches_nothing
    rules: tuple[RuleKind, ...] = ()


def package_of(mode: str) -> str:
    """What brings a mode: the core, or a distribution by the naming rule of the project's own plugins."""
    return "a later vsockfwd" if mode in RESERVED_MODES else f"vsockfwd-{mode}"
