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
from socket import AddressFamily
from typing import Any

from vsockfwd.plugin import Address, Engine, Event, Listener, Stream, UsageError, parse_target
from vsockfwd_relay.grammar import Written
from vsockfwd_relay.options import OPTIONS, Group


class Direction(Flag):
    """What an address is used for: `-u`, `-U` and `!!` leave one of the two."""

    READ = 1
    WRITE = 2
    BOTH = 3


class Note(Event, frozen=True):
    """Something worth telling to who asks: 1 a warning, 2 a notice, 3 information (socat's -d0, -d, -ddd)."""

    level: int
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Situation:
    """What surrounds an address that is opened.

    `many`: others are opened like it in this process, so what they share must survive its end. `environment` is what
    a program is told about the peer, in variables that begin with `program`, in capitals. `sloppy`: an option that
    cannot be set is a warning. `target` reads the name of an agent.
    """

    engine: Engine
    direction: Direction = Direction.BOTH
    many: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    program: str = "socat"
    sloppy: bool = False
    target: Callable[[str], Address] = parse_target

    def reading(self) -> Situation:
        return dataclasses.replace(self, direction=Direction.READ)

    def writing(self) -> Situation:
        return dataclasses.replace(self, direction=Direction.WRITE)

    def note(self, level: int, text: str) -> None:
        self.engine.report(Note(level, text))


@dataclass(frozen=True, slots=True)
class Families:
    """What -4, -6 and -0, or the environment, say about names and listeners that leave open which IP they mean.

    `listen`: the family of a listener; None: both. `first`: the one of a name's addresses that is tried first.
    """

    listen: AddressFamily | None = AddressFamily.AF_INET
    first: AddressFamily | None = None


Options = Mapping[str, Any]
Open = Callable[["Specification", Situation], AbstractAsyncContextManager[Stream]]
Listen = Callable[["Specification", Situation], Awaitable[Sequence[Listener]]]
Greet = Callable[["Specification", Situation, Stream], Awaitable[Stream]]


@dataclass(frozen=True, slots=True)
class AddressType:
    """One row of the table. `names`: the one that is used here, then its aliases, in capitals.

    `read(*parameters, options)` → the address's subject; raises UsageError. One of `open` and `listen` is there;
    `greet` makes the stream of a connection that was accepted, where there is more to it than the connection.
    `direction`: all that it can be used for. `fewest` is how many parameters must be there, where not all of them;
    `rest`: the last one takes the colons that come after it. `unending`: nobody says there that nothing more comes;
    `boundaries`: what is sent at once is received at once; `at_once`: to connect may take no time at all.
    `better` and `ours` as in an option's row.
    """

    names: tuple[str, ...]
    parameters: tuple[str, ...]
    groups: tuple[Group, ...]
    meaning: str
    read: Callable[..., Any]
    open: Open | None = None
    listen: Listen | None = None
    greet: Greet | None = None
    fewest: int | None = None
    rest: bool = False
    unending: bool = False
    boundaries: bool = False
    at_once: bool = False
    direction: Direction = Direction.BOTH
    better: str = ""
    ours: bool = False

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

    @property
    def options(self) -> tuple[str, ...]:
        """The names of the options of all its groups, sorted."""
        return tuple(sorted(option.name for option in OPTIONS if set(option.groups) & set(self.groups)))


@dataclass(frozen=True, slots=True)
class Specification:
    """One address, checked: its type, its subject (what its type's `read` made of the parameters) and its options."""

    type: AddressType
    subject: Any
    options: Options
    written: Written
    families: Families = Families()

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
