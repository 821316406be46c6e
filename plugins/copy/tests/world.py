"""An agent and a client in one process over a UNIX socket, what they copied, and what was reported."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from vsockfwd.plugin import (
    Agent,
    Engine,
    Event,
    FileDone,
    Policy,
    parse,
    serve_listeners,
)
from vsockfwd_copy import MODE
from vsockfwd_copy.command import copy
from vsockfwd_copy.locations import plan
from vsockfwd_copy.options import Options

MIB = 1 << 20


@dataclass
class World:
    """`home` is the agent's, `here` the client's; `near` and `far` of a copy depend on which way it goes."""

    tmp: Path
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.home.mkdir()
        self.here.mkdir()
        self.engine = Engine(report=self.events.append)

    @property
    def home(self) -> Path:
        return self.tmp / "home"

    @property
    def here(self) -> Path:
        return self.tmp / "here"

    @property
    def address(self) -> str:
        return f"unix:{self.tmp}/a.sock"

    async def start(self, nursery: trio.Nursery) -> None:
        """Start the agent."""
        self.agent = Agent(Engine(), {"copy": MODE}, Policy(os.geteuid()))
        listeners = await self.engine.network.listen(parse(self.address))
        nursery.start_soon(serve_listeners, listeners, self.agent.handle, print)

    async def cp(self, *words: str, **options: Any) -> int:
        """Run a command line in which `@` stands for the target, with Options; the exit code."""
        self.events.clear()
        target = f"[{self.address}]:"
        words = tuple(target + word[1:] if word.startswith("@") else word for word in words)
        with trio.fail_after(10):
            return await copy(self.engine, plan(words), Options(**options))

    async def carry(self, towards: str, *words: str, **options: Any) -> int:
        """Copy sources to a destination, from `source(towards)` to `sink(towards)`; an empty one is that directory."""
        *sources, destination = words
        if towards == "put":
            return await self.cp(*sources, "@" + destination, **options)
        return await self.cp(*("@" + source for source in sources), destination or ".", **options)

    def source(self, towards: str) -> Path:
        return self.here if towards == "put" else self.home

    def sink(self, towards: str) -> Path:
        return self.home if towards == "put" else self.here

    def reported(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def failures(self) -> dict[str, str]:
        """The errors that a user was told, by file."""
        return {event.name: event.error for event in self.reported(FileDone) if event.error}


async def settled(condition: Callable[[], bool], otherwise: str, seconds: float = 5.0) -> None:
    """Let other tasks, or another process, run until a condition holds."""
    with trio.move_on_after(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await trio.sleep(0.002)
    assert condition(), otherwise


def temporaries(root: Path) -> list[str]:
    """Temporary files below a path, however deep."""
    return [name for _, _, names, _ in os.fwalk(root) for name in names if name.startswith(".vsockfwd.")]


def snapshot(root: Path | bytes) -> dict[bytes, tuple[object, ...]]:
    """All below a path, and itself: type, permissions, mtime in nanoseconds, content or target, by path."""
    root = os.fsencode(root)
    found = {b"": _state(root)}
    for directory, names, files in os.walk(root):
        for name in names + files:
            path = os.path.join(directory, name)
            found[os.path.relpath(path, root)] = _state(path)
    return found


def _state(path: bytes) -> tuple[object, ...]:
    state = os.lstat(path)
    content: bytes = b""
    if stat.S_ISLNK(state.st_mode):
        content = os.readlink(path)
    elif stat.S_ISREG(state.st_mode):
        with open(path, "rb") as file:
            content = file.read()
    return stat.S_IFMT(state.st_mode), stat.S_IMODE(state.st_mode) & 0o777, state.st_mtime_ns, content
