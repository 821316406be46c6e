"""What an address type is, what one address of it is, and what surrounds an address when it is opened. Values only.

The thing to understand first: a type either opens a stream, as a context that cleans up behind it (a program is
reaped, a named pipe removed), or it listens. Its `read` makes of the parameters what the opener needs, so that
whatever is wrong with an address is said before anything is opened.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import Flag
from typing import Any

from vsockfwd.plugin import Engine, Event, Listener, Stream, UsageError
from vsockfwd_relay.grammar import Written


class Direction(Flag):
    """What an address is used for: `-u`, `-U` and `!!` leave one of the two."""

    READ = 1
    WRITE = 2
    BOTH = 3


class Note(Event, frozen=True):
    """Something worth telling to who asks: 1 a warning, 2 a notice, 3 information (socat's -d, -d -d, …)."""

    level: int
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Situation:
    """What surrounds an address that is opened.

    `many`: others are opened like it in this process, so what they share must survive its end. `environment` is what
    a program is told about the peer.
    """

    engine: Engine
    direction: Direction = Direction.BOTH
    many: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)

    def reading(self) -> Situation:
        return dataclasses.replace(self, direction=Direction.READ)

    def writing(self) -> Situation:
        return dataclasses.replace(self, direction=Direction.WRITE)

    def note(self, level: int, text: str) -> None:
        self.engine.report(Note(level, text))


Options = Mapping[str, Any]
Open = Callable[["Specification", Situation], AbstractAsyncContextManager[Stream]]
Listen = Callable[["Specification", Situation], Awaitable[Sequence[Listener]]]


@dataclass(frozen=True, slots=True)
class AddressType:
    """One row of the table. `names`: the one that is used here, then its aliases, in capitals.

    `read(*parameters, options)` → the address's subject; raises UsageError. One of `open` and `listen` is there;
    `fewest` is how many parameters must be there, where not all of them.
    """

    names: tuple[str, ...]
    parameters: tuple[str, ...]
    options: tuple[str, ...]
    meaning: str
    read: Callable[..., Any]
    open: Open | None = None
    listen: Listen | None = None
    fewest: int | None = None

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def form(self) -> str:
        """How it is written: `TCP:HOST:PORT`."""
        needed = len(self.parameters) if self.fewest is None else self.fewest
        return self.name + "".join(
            f":{parameter}" if place < needed else f"[:{parameter}]" for place, parameter in enumerate(self.parameters)
        )


@dataclass(frozen=True, slots=True)
class Specification:
    """One address, checked: its type, its subject (what its type's `read` made of the parameters) and its options."""

    type: AddressType
    subject: Any
    options: Options
    written: Written

    def option(self, name: str, default: Any = None) -> Any:
        return self.options.get(name, default)

    def refuse(self, message: str, hint: str = "") -> UsageError:
        return self.written.error(message, hint=hint)

    def __str__(self) -> str:
        return self.written.text


@dataclass(frozen=True, slots=True)
class Dual:
    """`A!!B`: read from the one, write to the other."""

    reading: Specification
    writing: Specification

    def __str__(self) -> str:
        return f"{self.reading}!!{self.writing}"


End = Specification | Dual
"""One end of the relay."""
