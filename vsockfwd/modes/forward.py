"""Forwarding: connections taken here are served there.

*Raw* joins each connection taken on one address with a new one to another; it passes on what it sees. *Local* (`-L`)
goes through an agent, which dials; *remote* (`-R`) has the agent listen, and dials here. Between the two every end is
told, so that a cut never looks like an end.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NoReturn

import msgspec
import trio

from vsockfwd.plugin import (
    SCHEMES,
    Access,
    Address,
    AddressError,
    Call,
    Closed,
    Code,
    Ending,
    Engine,
    Incoming,
    Listener,
    Listening,
    Mode,
    Opened,
    Outcome,
    Relays,
    Resource,
    Session,
    Stream,
    VsockfwdError,
    decode_arguments,
    parse_stream,
    serve_listeners,
)

NAME = "forward"

AddressText = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]


class Connect(msgspec.Struct, frozen=True):
    """The request: dial this address, then carry bytes both ways."""

    connect: AddressText


class Connected(msgspec.Struct, frozen=True):
    """The reply: who answered, as the agent saw it."""

    peer: str


# --- the agent's side


def resources(arguments: bytes) -> tuple[Resource, ...]:
    """The address that a request wants dialled."""
    return (Resource(Access.CONNECT, decode_arguments(arguments, Connect).connect),)


async def serve(call: Call) -> None:
    """Dial at once, so that a server that speaks first is heard; then carry."""
    request = call.arguments(Connect)
    neighbour = await call.connect(request.connect)
    try:
        channel = await call.accept(Connected(str(neighbour.peer)))
    except BaseException:
        neighbour.abort()
        raise
    outcome = await channel.relay(neighbour, dialled=True)
    call.report(Closed(f"forward to {request.connect}", str(call.peer), outcome))


MODE = Mode(NAME, "forwards connections, raw or through an agent", serve=serve, resources=resources)


# --- the client's side


@dataclass(frozen=True, slots=True)
class LocalForward:
    """`-L`: listen on this side, connect on the agent's."""

    listen: Address
    connect: Address

    def __str__(self) -> str:
        return f"-L {self.listen} {self.connect}"


def _outcome_of(error: VsockfwdError) -> Outcome:
    ending = {Code.REFUSED: Ending.REFUSED, Code.TIMED_OUT: Ending.TIMED_OUT}.get(error.code, Ending.FAILED)
    return Outcome(ending, "", error.line())


async def raw_forward(engine: Engine, listeners: list[Listener], connect: Address) -> None:
    """Join every connection taken with a new one to `connect`, until cancelled."""
    rule = f"forward to {connect.bare()}"

    async with Relays(engine.buffers, engine.report) as relays:

        def begin(near: Stream, far: Stream, leave: Callable[[], None]) -> None:
            peer = str(near.peer)

            def ended(outcome: Outcome) -> None:
                engine.report(Closed(rule, peer, outcome))
                leave()

            relays.begin(near, far, ended)

        def at_once(near: Stream, leave: Callable[[], None]) -> bool:
            try:
                far = engine.network.connect_now(connect)
            except VsockfwdError as error:
                refuse(near, error)
                leave()
                return True
            if far is None:
                return False
            engine.report(Opened(rule, str(near.peer)))
            begin(near, far, leave)
            return True

        def refuse(near: Stream, error: VsockfwdError) -> None:
            near.abort()
            engine.report(Closed(rule, str(near.peer), _outcome_of(error)))

        async def handle(near: Stream) -> None:
            engine.report(Opened(rule, str(near.peer)))
            try:
                far = await engine.network.connect(connect)
            except VsockfwdError as error:
                refuse(near, error)
                return
            over = trio.Event()
            begin(near, far, over.set)
            await over.wait()

        await serve_listeners(listeners, handle, engine.report, at_once=at_once)


async def local_forward(engine: Engine, session: Session, listeners: list[Listener], connect: Address) -> None:
    """Carry every connection taken to the agent, which dials `connect`, until cancelled."""
    rule = f"forward to {connect.bare()} through {session.name}"

    async def handle(near: Stream) -> None:
        engine.report(Opened(rule, str(near.peer)))
        try:
            opened = await session.open(NAME, Connect(str(connect)))
        except VsockfwdError as error:
            near.abort()
            engine.report(Closed(rule, str(near.peer), _outcome_of(error)))
            return
        engine.report(Closed(rule, str(near.peer), await opened.channel.relay(near)))

    await serve_listeners(listeners, handle, engine.report)


async def remote_forward(engine: Engine, session: Session, listen: Address, connect: Address, lease: bytes) -> NoReturn:
    """Have the agent listen, and carry every connection taken there to `connect`, until cancelled.

    Dials before it fetches: who came is reset where nothing answers here, and a server that speaks first is heard.
    Raises why the agent does not listen (any more); see Session.listen, there about `lease` as well.
    """
    rule = f"forward to {connect.bare()} from {session.name}"

    async def handle(incoming: Incoming) -> None:
        peer = str(incoming.peer)
        engine.report(Opened(rule, peer))
        try:
            near = await engine.network.connect(connect)
            try:
                channel = await incoming.fetch()
            except BaseException:
                near.abort()
                raise
        except VsockfwdError as error:
            incoming.deny(error)
            engine.report(Closed(rule, peer, _outcome_of(error)))
            return
        engine.report(Closed(rule, peer, await channel.relay(near, dialled=True)))

    def listening(bound: str) -> None:
        engine.report(Listening(bound, f"of {session.name} → {connect.bare()}"))

    await session.listen(listen, lease, handle, listening)


async def listen(engine: Engine, address: Address, purpose: str) -> list[Listener]:
    """Open the listeners of an address, and say so."""
    listeners = list(await engine.network.listen(address))
    for listener in listeners:
        engine.report(Listening(str(listener.address), purpose))
    return listeners


def parse_local(spec: str) -> LocalForward:
    """Read `-L`'s `[bind:]port:host:hostport`, either end of which may be a UNIX path, as ssh spells it.

    Beyond ssh: either end may be a whole address of this grammar, written in brackets as `[vsock:1:5000]`.
    Raises AddressError, which points at the character.
    """
    words = _split(spec)
    listen_words, connect_words = _divide(spec, words)
    return LocalForward(_end(spec, listen_words, listening=True), _end(spec, connect_words, listening=False))


Word = tuple[str, int]


def _split(spec: str) -> list[Word]:
    """Cut at colons outside brackets; each word with its position."""
    words: list[Word] = []
    start, depth = 0, 0
    for at, character in enumerate(spec):
        if character == "[":
            depth += 1
        elif character == "]":
            depth -= 1
            if depth < 0:
                raise AddressError("] without its [", text=spec, position=at)
        elif character == ":" and not depth:
            words.append((spec[start:at], start))
            start = at + 1
    if depth:
        raise AddressError("[ without its ]", text=spec, position=spec.index("["))
    words.append((spec[start:], start))
    return words


def _whole(word: Word) -> bool:
    """Whether a word is an end by itself: a path, or an address of the grammar in brackets."""
    text = word[0]
    if not text.startswith("["):
        return text.startswith("/")
    try:
        ipaddress.IPv6Address(text[1:-1])
    except ValueError:
        return text[1:].partition(":")[0] in SCHEMES
    return False


def _divide(spec: str, words: list[Word]) -> tuple[list[Word], list[Word]]:
    hint = "-L takes [bind:]port:host:hostport; either end may be a UNIX path"
    if _whole(words[0]):
        cut = 1
    elif len(words) > 1 and _whole(words[-1]):
        cut = len(words) - 1
    else:
        cut = len(words) - 2
    near, far = words[:cut], words[cut:]
    if not 1 <= len(near) <= 2 or not 1 <= len(far) <= 2 or (len(far) == 1 and not _whole(far[0])):
        raise AddressError("not a forward", text=spec, position=0, hint=hint)
    return near, far


def _end(spec: str, words: list[Word], *, listening: bool) -> Address:
    if len(words) == 1 and _whole(words[0]):
        text = words[0][0]
        address = text[1:-1] if text.startswith("[") else "unix:" + text.replace("%", "%25").replace(",", "%2C")
        return parse_stream(address)
    if len(words) == 2 and words[0][0] in ("", "*") and listening:
        host = "*:"  # ssh: an empty bind address, or *, means every interface
    else:
        host = f"{words[0][0]}:" if len(words) == 2 and words[0][0] != "localhost" else ""
    text, at = words[-1]
    if not re.fullmatch("[0-9]{1,5}", text) or int(text) > 65535:
        raise AddressError(f"{text!r} is no port", text=spec, position=at)
    try:
        return parse_stream(f"tcp:{host}{int(text)}")
    except AddressError as error:
        raise AddressError(error.message.partition(": ")[2], hint=error.hint, text=spec, position=words[0][1]) from None
