"""What the command line has, for what is made from it: completions and manual pages."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Any

from vsockfwd.cli.commands import group
from vsockfwd.discovery import command_names, load_command


@dataclass(frozen=True, slots=True)
class Flag:
    """An option: its names, short ones first; what its value is called, '' for one without; its help."""

    names: tuple[str, ...]
    value: str
    help: str


@dataclass(frozen=True, slots=True)
class Command:
    """A command. `arguments` is how its synopsis writes them; one that reads its own words has neither."""

    name: str
    summary: str
    flags: tuple[Flag, ...]
    arguments: str
    own_words: bool

    @property
    def takes_target(self) -> bool:
        return self.own_words or bool(re.search(r"TARGET|DESTINATION|CONNECT|PATH", self.arguments))


def read_command_line() -> list[Command]:
    """Every command that is installed, by name."""
    root: Any = group()
    return [_command(root, name) for name in command_names()]


def _command(root: Any, name: str) -> Command:
    function = load_command(name)
    summary = (inspect.getdoc(function) or "").partition("\n")[0]
    if getattr(function, "takes_argv", False):
        return Command(name, summary, (), "", True)
    params = root.get_command(None, name).params
    flags = tuple(_flag(each) for each in params if each.param_type_name == "option")
    words = [each.metavar or each.name.upper() for each in params if each.param_type_name == "argument"]
    return Command(
        name, summary, (*flags, Flag(("-h", "--help"), "", "show what it takes, and end")), " ".join(words), False
    )


def _flag(parameter: Any) -> Flag:
    names = tuple(sorted((*parameter.opts, *parameter.secondary_opts), key=len))
    help = " ".join((parameter.help or "").split())
    if parameter.is_flag or parameter.count:
        return Flag(names, "", help)
    default = parameter.default
    if isinstance(default, str | int | float) and "default" not in help:
        help += f" (default {default:g})" if isinstance(default, float) else f" (default {default})"
    return Flag(names, parameter.metavar or "VALUE", help)
