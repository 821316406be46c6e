"""What stands on `cp`'s command line: a local path, or TARGET:PATH. Pure.

As scp has it, a slash before the first colon makes a location local, so `./a:b` is a file here; a target with colons
of its own stands in brackets. A destination may name several targets, `web,db,3:/opt`. `-` is stdin or stdout. Paths
are bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vsockfwd.plugin import SCHEMES, Address, AddressError, UsageError, parse_target, printable

STANDARD = b"-"
"""Stdin as a source, stdout as the destination."""


@dataclass(frozen=True, slots=True)
class Location:
    """A path, as typed, here (without targets) or where the agents at `targets` run."""

    targets: tuple[Address, ...]
    path: bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """What a command line asks for: sources on one side and a destination on another, with agents at one or both.

    `source` is the agent that has the sources; None: they are here. `destinations` are those that have the
    destination; none: it is here.
    """

    sources: tuple[bytes, ...]
    destination: bytes
    source: Address | None = None
    destinations: tuple[Address, ...] = ()


ReadTarget = Callable[[str, int | None], Address]
"""Reads a target, its port where `-p` said one. Raises AddressError."""


def parse_location(text: str, port: int | None = None, read_target: ReadTarget = parse_target) -> Location:
    """Read a location; `port` is what `-p` said. Raises AddressError."""
    found = _split(text)
    if found is None:
        return Location((), os.fsencode(text))
    words, path = found
    targets = []
    for word in words:
        if word in SCHEMES and not text.startswith("["):
            raise AddressError(
                f"{word} is a scheme, not a target",
                text=text,
                position=0,
                hint=f"a target with colons stands in brackets, [{word}:…]:PATH; a file of that name is ./{text}",
            )
        targets.append(read_target(word, port))
    return Location(tuple(targets), os.fsencode(path))


def _split(text: str) -> tuple[list[str], str] | None:
    """The targets, out of their brackets, and the path behind their colon; None for a local path."""
    words: list[str] = []
    at = start = 0
    while at < len(text):
        if text[at] == "[" and at == start:
            end = _closing(text, at)
            if end is None:
                return None
            word, at = text[at + 1 : end], end + 1
        else:
            while at < len(text) and text[at] not in ":,/":
                at += 1
            word = text[start:at]
        if not word or at == len(text) or text[at] not in ":,":
            return None
        words.append(word)
        if text[at] == ":":
            return words, text[at + 1 :]
        at = start = at + 1
    return None


def _closing(text: str, at: int) -> int | None:
    depth = 0
    for position in range(at, len(text)):
        depth += (text[position] == "[") - (text[position] == "]")
        if depth == 0:
            return position
    return None


def plan(
    words: Sequence[str],
    port: int | None = None,
    read_target: ReadTarget = parse_target,
    *,
    into: str | None = None,
) -> Plan:
    """Read SOURCE… DESTINATION, or SOURCE… where `into` is the destination. Raises UsageError for what is no copy."""
    words = [*words, into] if into is not None else list(words)
    if len(words) < 2:
        raise UsageError("cp takes SOURCE… DESTINATION", hint="such as vsockfwd cp notes.txt 3:")
    *sources, destination = [parse_location(word, port, read_target) for word in words]
    for word, location in zip(words, (*sources, destination), strict=True):
        if not location.path and not location.targets:
            raise UsageError("an empty path names no file", hint="write . for this directory")
        if b"\0" in location.path:
            raise UsageError(f"{printable(word)}: a path holds no NUL byte")
    several = [word for word, location in zip(words, sources, strict=False) if len(location.targets) > 1]
    if several:
        raise UsageError(f"{printable(several[0])}: a source is at one target", hint="a destination may be at many")
    targets = {location.targets for location in sources}
    if len(targets) > 1:
        raise UsageError("the sources are on different machines", hint="one cp for each of them")
    (source,) = targets
    if not source and not destination.targets:
        raise UsageError("both ends are on this machine", hint="cp does that; a far path is written TARGET:PATH")
    if source and len(destination.targets) > 1:
        raise UsageError("from one agent to many is no single copy", hint="fetch it here, and copy it to all of them")
    if len(set(destination.targets)) < len(destination.targets):
        raise UsageError(f"{printable(words[-1])}: one target stands there twice")
    paths = tuple(location.path for location in sources)
    return Plan(paths, destination.path, source[0] if source else None, destination.targets)
