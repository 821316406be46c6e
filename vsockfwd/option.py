"""How a command's signature declares its options, and those that several commands share.

The thing to understand first: a declaration is a value, not a parser's. Who reads the words (cli/option.py, or the full
parser that cli/commands.py makes of it) knows it; who declares imports neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True, slots=True, init=False)
class Option:
    """One option: its names (none: made of the parameter's), what its value is called, and a line of help."""

    names: tuple[str, ...]
    metavar: str | None
    help: str
    count: bool

    def __init__(self, *names: str, metavar: str | None = None, help: str = "", count: bool = False) -> None:
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "metavar", metavar)
        object.__setattr__(self, "help", help)
        object.__setattr__(self, "count", count)


AgentPort = Annotated[int | None, Option("-p", metavar="PORT", help="the agent's port, where it is not 876")]
"""Of a command that asks an agent: for Invocation.target."""

SharedKey = Annotated[str | None, Option("--auth-key", metavar="FILE", help="the key that is shared with the agent")]
"""Of a command that asks an agent: for Invocation.target."""
