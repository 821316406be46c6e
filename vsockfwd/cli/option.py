"""Options as a command's signature declares them, and reading plain words by it without a parser's import.

A command whose options are all declared with `Option`, and that takes no arguments, starts without typer: `serve`,
which a guest may run from a single file without it. What is not plain (a mistake, --help) is for the parser of
commands.py, which reads the same declarations, where it is installed.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from vsockfwd.option import Option


def _common_flags(
    verbose: Annotated[int, Option("-v", "--verbose", count=True, help="say more; twice: everything")] = 0,
    quiet: Annotated[bool, Option("-q", "--quiet", help="say nothing but errors")] = False,
    json: Annotated[bool, Option("--json", help="events and answers as JSON lines on standard output")] = False,
    log_format: Annotated[
        str | None, Option("--log-format", metavar="text|json", help="log as services do, with times or as JSON")
    ] = None,
) -> None:
    """Only the signature matters: it stands behind every command's own."""


COMMON: Mapping[str, inspect.Parameter] = inspect.signature(_common_flags, eval_str=True).parameters
"""The flags that all commands share."""


class NotPlain(Exception):
    """Words that are for the full parser: the text says why."""


@dataclass(frozen=True, slots=True)
class _Known:
    """How an option's words become a parameter's value."""

    parameter: str
    option: Option
    names: tuple[str, ...]
    read: Callable[[str], Any] | None
    several: bool


def declared(parameter: inspect.Parameter) -> Option | None:
    """The option that a parameter declares, or None where it declares another thing."""
    for item in getattr(parameter.annotation, "__metadata__", ()):
        if isinstance(item, Option):
            return item
    return None


def _known(function: Callable[..., Any]) -> list[_Known]:
    """Raises NotPlain where the function takes more than options of ours."""
    found = []
    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    for parameter in [*own, *COMMON.values()]:
        option = declared(parameter)
        if option is None:
            raise NotPlain(f"{parameter.name} is no plain option")
        kind = typing.get_args(parameter.annotation)[0]
        if isinstance(kind, types.UnionType):
            (kind,) = (part for part in typing.get_args(kind) if part is not type(None))
        several = typing.get_origin(kind) is list
        value = typing.get_args(kind)[0] if several else kind
        names = option.names or (f"--{parameter.name.replace('_', '-')}",)
        found.append(_Known(parameter.name, option, names, None if value is bool or option.count else value, several))
    return found


def read_words(function: Callable[..., Any], words: Sequence[str]) -> dict[str, Any]:
    """The values that the words give a command's parameters. Raises NotPlain."""
    by_name = {name: known for known in _known(function) for name in known.names}
    values: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if name not in by_name and word[:1] == "-" and word[1:2] != "-" and word[:2] in by_name:
            # -vq and -lADDRESS: what follows a letter is its value, or more letters.
            name = word[:2]
            if by_name[name].read is None:
                rest.insert(0, f"-{word[2:]}")
            else:
                equals, value = "=", word[2:]
        known = by_name.get(name)
        if known is None:
            raise NotPlain(f"{word!r} is no option of it" if word.startswith("-") else f"{word!r} is one word too many")
        if known.read is None:
            if equals:
                raise NotPlain(f"{name} takes no value")
            values[known.parameter] = values.get(known.parameter, 0) + 1 if known.option.count else True
            continue
        if not equals:
            if not rest:
                raise NotPlain(f"{name} needs a value")
            value = rest.pop(0)
        try:
            read = known.read(value)
        except ValueError:
            raise NotPlain(f"{name} {value!r} is not a {known.read.__name__}") from None
        values[known.parameter] = [*values.get(known.parameter, []), read] if known.several else read
    return values


def help_text(name: str, function: Callable[..., Any]) -> str:
    """What --help says where the full parser is missing."""
    lines = [f"Usage: vsockfwd {name} [OPTIONS]", "", inspect.getdoc(function) or "", "", "Options:"]
    for known in _known(function):
        told = ", ".join(known.names) + (f" {known.option.metavar or 'TEXT'}" if known.read else "")
        lines.append(f"  {told:<34} {known.option.help}")
    return "\n".join(lines)
