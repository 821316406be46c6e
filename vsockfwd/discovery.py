"""Finding what is installed: modes and commands, by entry points. Built-in ones come through the same door.

A mode that fails to import, or was made for another contract, is listed with its reason and stops nothing else; two of
one name are refused, both named; the core's own names stay the core's. Nothing is imported that is not asked for, and
importlib.metadata, a tenth of a command's start, only where there is more to say than where a command is.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vsockfwd.contract import CONTRACT, RESERVED_MODES, Mode, package_of
from vsockfwd.errors import UsageError, printable

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

MODES = "vsockfwd.modes"
COMMANDS = "vsockfwd.commands"
CORE = "vsockfwd"

_COMMAND_OF_PACKAGE = {"relay": "relay", "cp": "copy", "dgram": "dgram"}


@dataclass(frozen=True, slots=True)
class Found:
    """One entry point and what became of it. `mode` is None where `broken` says why."""

    name: str
    source: str
    mode: Mode | None = None
    broken: str = ""


def find_modes(points: Iterable[EntryPoint] | None = None) -> list[Found]:
    """Every mode that is installed, working or not, by name."""
    found = []
    by_name = _by_name(_entry_points(MODES) if points is None else points)
    for name, candidates in sorted(by_name.items()):
        ours = [point for point in candidates if _is_core(point)]
        strangers = [point for point in candidates if not _is_core(point)]
        found += [_found(point) for point in ours]
        if strangers and (ours or name in RESERVED_MODES):
            found += [Found(name, _source(point), broken=f"the name {name!r} is the core's") for point in strangers]
        elif len(strangers) > 1:
            both = " and ".join(map(_source, strangers))
            found.append(Found(name, both, broken=f"two of one name: {both}; remove one of them"))
        else:
            found += [_found(point) for point in strangers]
    return found


def working(found: Iterable[Found]) -> Mapping[str, Mode]:
    """The modes among them that can be used."""
    return {item.name: item.mode for item in found if item.mode is not None}


def _found(point: EntryPoint) -> Found:
    mode, broken = _load_mode(point)
    return Found(point.name, _source(point), mode, broken)


def _load_mode(point: EntryPoint) -> tuple[Mode | None, str]:
    try:
        mode = point.load()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a stranger's import raises is its own affair
        return None, f"import failed: {type(error).__name__}: {printable(str(error), 200)}"
    if not isinstance(mode, Mode):
        return None, f"{point.value} is no Mode but {type(mode).__name__}"
    if mode.contract != CONTRACT:
        return None, f"made for plugin contract {mode.contract}, this is {CONTRACT}"
    if mode.name != point.name:
        return None, f"its mode is called {mode.name!r}, its entry point {point.name!r}"
    return mode, ""


def _is_core(point: EntryPoint) -> bool:
    return point.dist is not None and point.dist.name == CORE


def _source(point: EntryPoint) -> str:
    distribution = point.dist
    return f"{distribution.name} {distribution.version}" if distribution is not None else point.value


def _by_name(points: Iterable[EntryPoint]) -> dict[str, list[EntryPoint]]:
    """Entry points by name; one that is seen twice by way of sys.path is one."""
    by_name: dict[str, list[EntryPoint]] = {}
    for point in points:
        same = by_name.setdefault(point.name, [])
        if all((point.value, _source(point)) != (other.value, _source(other)) for other in same):
            same.append(point)
    return by_name


def command_names() -> list[str]:
    """The commands that are installed, in the order in which they are listed."""
    return sorted(_by_name(_entry_points(COMMANDS)))


def load_command(name: str) -> Any:
    """The function of a command. Raises UsageError: no such command, two of one name, or its import failed."""
    written = set(_written(name))
    if len(written) == 1:
        module, _, function = written.pop().partition(":")
        with contextlib.suppress(Exception, SystemExit):  # said below, with whose it is
            return getattr(importlib.import_module(module), function)
    candidates = _by_name(_entry_points(COMMANDS, name)).get(name, [])
    if not candidates:
        raise UsageError(f"no command is called {printable(name)!r}", hint=_command_hint(name))
    core = [point for point in candidates if _is_core(point)]
    if len(candidates) > 1 and not core:
        raise UsageError(f"two packages bring a command {name!r}: " + " and ".join(map(_source, candidates)))
    point = (core or candidates)[0]
    try:
        return point.load()
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"the command {name!r} of {_source(point)} does not import: {type(error).__name__}: {error}",
            hint="vsockfwd plugins lists what is installed",
        ) from error


def _written(name: str) -> Iterator[str]:
    """What the entry points of installed distributions say of a command, as it is written there, once for each."""
    for folder in dict.fromkeys(sys.path):
        try:
            found = os.listdir(folder or os.curdir)
        except OSError:
            continue
        for info in found:
            if not info.endswith((".dist-info", ".egg-info")):
                continue
            try:
                with open(os.path.join(folder, info, "entry_points.txt"), encoding="utf-8") as file:
                    lines = file.read().partition(f"[{COMMANDS}]\n")[2].partition("\n[")[0].splitlines()
            except (OSError, UnicodeDecodeError):
                continue
            for line in lines:
                key, _, value = line.partition("=")
                if key.strip() == name:
                    yield value.strip()


def _entry_points(group: str, name: str = "") -> Iterable[EntryPoint]:
    from importlib.metadata import entry_points

    return entry_points(group=group, name=name) if name else entry_points(group=group)


def _command_hint(name: str) -> str:
    import difflib

    if name in _COMMAND_OF_PACKAGE:
        return f"pip install {package_of(_COMMAND_OF_PACKAGE[name])}"
    if importlib.util.find_spec("typer") is None:
        return "this file is the agent alone; elsewhere: pip install 'vsockfwd[all]'"
    close = difflib.get_close_matches(name, command_names(), 1, 0.5)
    return f"did you mean {close[0]}?" if close else "vsockfwd --help lists them"
