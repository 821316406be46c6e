"""What stands on `cp`'s command line: a local path, or TARGET:PATH. Pure.

As scp has it, a slash before the first colon makes a location local, so `./a:b` is a file here; a target with colons
of its own stands in brackets. Paths are bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from vsockfwd.plugin import SCHEMES, Address, AddressError, UsageError, parse_target, printable


@dataclass(frozen=True, slots=True)
class Location:
    """A path, as typed, here (`target` is None) or where the agent at `target` runs."""

    target: Address | None
    path: bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """What a command line asks for: sources on one side, the destination on the other, and the agent between them."""

    target: Address
    sources: tuple[bytes, ...]
    destination: bytes
    to_agent: bool


ReadTarget = Callable[[str, int | None], Address]
"""Reads a target, its port where `-p` said one. Raises AddressError."""


def parse_location(text: str, port: int | None = None, read_target: ReadTarget = parse_target) -> Location:
    """Read a location; `port` is what `-p` said. Raises AddressError."""
    cut = _colon(text)
    if cut is None:
        return Location(None, os.fsencode(text))
    target = text[1 : cut - 1] if text.startswith("[") else text[:cut]
    if target in SCHEMES and not text.startswith("["):
        raise AddressError(
            f"{target} is a scheme, not a target",
            text=text,
            position=0,
            hint=f"a target with colons stands in brackets, [{target}:…]:PATH; a file of that name is ./{text}",
        )
    return Location(read_target(target, port), os.fsencode(text[cut + 1 :]))


def _colon(text: str) -> int | None:
    """Where the target's colon stands; None for a local path."""
    if not text.startswith("["):
        cut = text.find(":")
        return cut if cut > 0 and "/" not in text[:cut] else None
    depth = 0
    for at, character in enumerate(text):
        depth += (character == "[") - (character == "]")
        if depth == 0:
            return at + 1 if text[at + 1 : at + 2] == ":" else None
    return None


def plan(words: list[str], port: int | None = None, read_target: ReadTarget = parse_target) -> Plan:
    """Read SOURCE… DESTINATION. Raises UsageError for what is no copy between this machine and one agent."""
    if len(words) < 2:
        raise UsageError("cp takes SOURCE… DESTINATION", hint="such as vsockfwd cp notes.txt 3:")
    *sources, destination = [parse_location(word, port, read_target) for word in words]
    for word, location in zip(words, (*sources, destination), strict=True):
        if not location.path and location.target is None:
            raise UsageError("an empty path names no file", hint="write . for this directory")
        if b"\0" in location.path:
            raise UsageError(f"{printable(word)}: a path holds no NUL byte")
    targets = {location.target for location in sources}
    if destination.target is not None and targets == {None}:
        return Plan(destination.target, tuple(s.path for s in sources), destination.path, True)
    if destination.target is None and targets == {None}:
        raise UsageError("both ends are on this machine", hint="cp does that; a far path is written TARGET:PATH")
    if destination.target is not None:
        raise UsageError(
            "both ends are at agents, and a copy has one end on this machine", hint="copy to a local file in between"
        )
    if len(targets) > 1:
        raise UsageError("the sources are on different machines", hint="one cp for each of them")
    (target,) = targets
    assert target is not None
    return Plan(target, tuple(s.path for s in sources), destination.path, False)
