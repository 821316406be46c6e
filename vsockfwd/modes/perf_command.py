"""`vsockfwd perf`: how fast is the way to an agent, or to a plain peer, and is what it carries what was sent?"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import Annotated, TextIO

import msgspec
import typer

from vsockfwd.modes.figures import Findings, Throughput
from vsockfwd.modes.measure import MOST_SECONDS, MOST_SIZE
from vsockfwd.modes.measuring import AgentFar, Asked, Far, Measuring, RawFar
from vsockfwd.modes.picture import Look, at_work, picture
from vsockfwd.plugin import (
    Address,
    AgentPort,
    Engine,
    Invocation,
    SharedKey,
    UsageError,
    VsockfwdError,
    bytes_in,
    ignore,
    open_session,
    parse_stream,
)

SECONDS = 2.0
"""Seconds of a part: ten in all."""

SMALL = 64
"""Bytes of a message that goes and comes back."""

MOST_STREAMS = 256

PARTS = {
    "agent": ("up", "down", "both", "latency", "connections"),
    "echo": ("both", "latency", "connections"),
    "discard": ("up", "connections"),
    "source": ("down", "connections"),
}
"""What can be measured against whom, in the order in which it is."""


def perf(
    invocation: Invocation,
    target: Annotated[
        str,
        typer.Argument(metavar="TARGET", help="where the agent listens, as with ping; with --raw any stream address"),
    ],
    seconds: Annotated[
        float | None, typer.Option("-t", "--seconds", metavar="N", help=f"time for each part (default: {SECONDS:g})")
    ] = None,
    amount: Annotated[
        str | None, typer.Option("--bytes", metavar="SIZE", help="move so much in each direction instead, such as 4G")
    ] = None,
    streams: Annotated[int, typer.Option("-P", "--streams", metavar="N", help="streams beside each other")] = 1,
    size: Annotated[
        str | None, typer.Option(metavar="SIZE", help=f"of a message (default: 1M, and {SMALL} for round trips)")
    ] = None,
    up: Annotated[bool, typer.Option("--up", help="how much goes there")] = False,
    down: Annotated[bool, typer.Option("--down", help="how much comes from there")] = False,
    both: Annotated[bool, typer.Option("--both", help="how much goes both ways at once")] = False,
    latency: Annotated[bool, typer.Option("--latency", help="how long a round trip takes")] = False,
    connections: Annotated[bool, typer.Option("--connections", help="how many streams a second are opened")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="without an agent: TARGET echoes, discards or sends")] = False,
    echo: Annotated[bool, typer.Option("--echo", help="with --raw: it sends back what it gets (the default)")] = False,
    discard: Annotated[
        bool, typer.Option("--discard", help="with --raw: it takes everything and sends nothing")
    ] = False,
    source: Annotated[bool, typer.Option("--source", help="with --raw: it sends for ever")] = False,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="do not compare what arrives with what was sent")
    ] = False,
    port: AgentPort = None,
    auth_key: SharedKey = None,
) -> int:
    """Measure the way to an agent: throughput, round trips, connections; every byte is checked.

    All parts, unless --up, --down, --both, --latency or --connections pick some; two seconds each.
    A byte that is lost, doubled or changed ends it with exit code 74, and its offset is told.
    With --raw TARGET is a plain server: an echo, a discard or a source, on any stream address.
    """
    kinds = [name for name, said in (("echo", echo), ("discard", discard), ("source", source)) if said]
    if len(kinds) > 1 or (kinds and not raw):
        raise UsageError("--echo, --discard and --source go with --raw, one of them", hint="vsockfwd perf --help")
    kind = (kinds or ["echo"])[0] if raw else "agent"
    chosen = {"up": up, "down": down, "both": both, "latency": latency, "connections": connections}
    parts = _parts(kind, [name for name, said in chosen.items() if said])
    if raw and auth_key is not None:
        raise UsageError("--auth-key is for an agent, --raw has none", hint="leave out one of them")
    address = _raw_address(target, port) if raw else invocation.target(target, port, auth_key)
    asked = _asked(seconds, amount, streams, size, not no_check)
    found = Findings(address.bare(), kind, streams, asked.size, asked.check and kind in ("agent", "echo"))
    return _Run(invocation, address, kind, asked, found, parts)()


def _parts(kind: str, chosen: Sequence[str]) -> Sequence[str]:
    possible = PARTS[kind]
    for name in chosen:
        if name not in possible:
            what = "an echo" if kind == "echo" else f"a {kind}"
            raise UsageError(
                f"--{name}: that cannot be measured against {what}",
                hint=f"what can: {', '.join(f'--{part}' for part in possible)}",
            )
    return [name for name in possible if name in chosen] or possible


def _raw_address(text: str, port: int | None) -> Address:
    address = parse_stream(text)
    if port is not None:
        raise UsageError("-p is the port of an agent, --raw has none", hint="write the port into the address")
    if address.scheme in ("stdio", "fd"):
        raise UsageError(f"{address}: a descriptor is one connection, perf opens several")
    return address


def _asked(seconds: float | None, amount: str | None, streams: int, size: str | None, check: bool) -> Asked:
    if seconds is not None and not 0 < seconds <= MOST_SECONDS:
        raise UsageError(f"--seconds {seconds:g}: a number of seconds above 0, at most {MOST_SECONDS}")
    if not 1 <= streams <= MOST_STREAMS:
        raise UsageError(f"--streams {streams}: a whole number from 1 to {MOST_STREAMS}")
    message = MOST_SIZE if size is None else _bytes("--size", size)
    if message > MOST_SIZE:
        raise UsageError(f"--size {size}: a message has at most {MOST_SIZE >> 20} MiB")
    most = 0 if amount is None else _bytes("--bytes", amount)
    if 0 < most < streams:
        raise UsageError(f"--bytes {amount}: less than a byte for each of {streams} streams")
    moving = MOST_SECONDS if seconds is None and most else seconds or SECONDS
    return Asked(seconds or SECONDS, moving, most, streams, message, SMALL if size is None else message, check)


def _bytes(flag: str, text: str) -> int:
    size = bytes_in(text)
    if not 1 <= size < 1 << 62:
        raise UsageError(f"{flag} {text}: a number of bytes above 0, such as 64, 28k, 1M or 4G")
    return size


class _Run:
    """One call of the command: measures, and shows what was found, however it ends."""

    def __init__(
        self,
        invocation: Invocation,
        address: Address,
        kind: str,
        asked: Asked,
        found: Findings,
        parts: Sequence[str],
    ) -> None:
        self.invocation = invocation
        self.address = address
        self.kind = kind
        self.asked = asked
        self.found = found
        self.parts = parts
        self.live = not (invocation.json or invocation.quiet) and sys.stderr.isatty()

    def __call__(self) -> int:
        try:
            return self.invocation.run(self._measure)
        except VsockfwdError as error:
            self.found.error = error.line()
            raise
        finally:
            self._clear()
            self._show()

    async def _measure(self, engine: Engine) -> None:
        if self.kind != "agent":
            await self._against(RawFar(engine, self.address, self.kind))
            return
        if self.invocation.json:
            engine = dataclasses.replace(engine, report=ignore)  # one object, and nothing beside it
        async with open_session(engine, self.address) as session:
            await self._against(AgentFar(session))

    async def _against(self, far: Far) -> None:
        await Measuring(far, self.asked, self.found, self._look).run(self.parts)

    def _look(self, name: str, part: Throughput | None) -> None:
        if self.live:
            look = look_of(sys.stderr)
            _put(sys.stderr, f"\r\x1b[K{at_work(name, part, look)}")

    def _clear(self) -> None:
        if self.live:
            _put(sys.stderr, "\r\x1b[K")

    def _show(self) -> None:
        if self.invocation.json:
            print(msgspec.json.encode(self.found).decode(), flush=True)
        elif self.found.anything:
            print("\n".join(picture(self.found, look_of(sys.stdout))), flush=True)


def look_of(out: TextIO) -> Look:
    """How a stream is to be written to: bars on a terminal alone, colours there where nobody minds (NO_COLOR)."""
    if not out.isatty():
        return Look(ascii=not _takes_blocks(out))
    width = os.get_terminal_size(out.fileno()).columns or 80
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    return Look(max(width, 40), True, not plain, not _takes_blocks(out))


def _takes_blocks(out: TextIO) -> bool:
    return (out.encoding or "").lower().replace("-", "") == "utf8"


def _put(out: TextIO, text: str) -> None:
    try:
        out.write(text)
        out.flush()
    except (OSError, ValueError):
        pass  # nobody watches any more: the measurement goes on
