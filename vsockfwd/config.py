"""The config file: TOML in, targets and typed rules out. Pure: no file is opened here, nothing is listened on.

    [targets]
    web = "vsock:3"

    [serve]                     # what `vsockfwd serve` does; allow.py has its keys
    listen = ["vsock:any:876"]

    [[forward]]
    kind = "local"              # which keys there are depends on the kind; without a target it is "raw"
    listen = "tcp:8080"
    connect = "tcp:localhost:80"
    target = "web"

What does not fit is an error with the key's path: an unknown key, an address that the grammar does not know, two rules
of one name or on one port.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import re
import tomllib
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import msgspec

from vsockfwd.address import Address, HybridAddress, TcpAddress, VsockAddress, parse_target
from vsockfwd.allow import Serve, is_below
from vsockfwd.errors import AddressError, ConfigError, VsockfwdError, printable
from vsockfwd.rule import Rule, RuleKind, clash, read_field

TOP = ("targets", "forward", "serve")

NAME = r"[A-Za-z_][A-Za-z0-9_.-]{0,63}"
"""A target's name; a guest of another user's has that one's name and a slash in front."""

_NAMED = re.compile(rf"([A-Za-z0-9_][A-Za-z0-9_.-]*\$?/)?{NAME}")


@dataclass(frozen=True, slots=True)
class NamedRule:
    """A rule with the kind that runs it, under the name that it goes by."""

    name: str
    kind: RuleKind
    rule: Rule


@dataclass(frozen=True, slots=True)
class Config:
    """What a file says."""

    targets: Mapping[str, Address] = field(default_factory=dict)
    rules: tuple[NamedRule, ...] = ()
    serve: Serve = field(default_factory=Serve)


def parse_config(
    text: str, source: str, kinds: Mapping[str, RuleKind], guests: Mapping[str, Address] = MappingProxyType({})
) -> Config:
    """Read a file's text; `source` is its name, `guests` are targets by names that the file does not give itself.

    Raises ConfigError: file, key path, what is wrong.
    """
    tables = _tables(text, source)
    for key in tables:
        if key not in TOP:
            raise ConfigError(f"{source}: {printable(key)}: no such table", hint=f"there are {', '.join(TOP)}")
    targets = _targets(tables, source)
    found = tables.get("forward", [])
    if not isinstance(found, list) or not all(isinstance(table, dict) for table in found):
        raise ConfigError(f"{source}: forward: a rule is a table of its own, [[forward]]")
    known = ChainMap(targets, guests)  # type: ignore[arg-type] # nothing is written to it
    rules = tuple(
        read_rule(table, f"{source}: forward[{number}]", kinds, known) for number, table in enumerate(found, 1)
    )
    _check_together(rules, source)
    return Config(targets, rules, _serve(tables, source))


def parse_targets(text: str, source: str) -> dict[str, Address]:
    """The targets of a file's text alone; what else stands there is not looked at. Raises ConfigError."""
    return _targets(_tables(text, source), source)


def parse_serve(text: str, source: str) -> Serve:
    """The table [serve] of a file's text alone; what else stands there is not looked at. Raises ConfigError."""
    return _serve(_tables(text, source), source)


def _tables(text: str, source: str) -> Mapping[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: {error}") from None


def _serve(tables: Mapping[str, Any], source: str) -> Serve:
    try:
        serve = msgspec.convert(tables.get("serve", {}), Serve, dec_hook=read_field)
    except msgspec.ValidationError as error:
        raise ConfigError(_told(str(error), f"{source}: serve")) from None
    for number, entry in enumerate(serve.allow, 1):
        if serve.root is not None and entry.root is not None and not is_below(entry.root, serve.root):
            raise ConfigError(f"{source}: serve.allow[{number}].root: {printable(entry.root)} is not below serve.root")
    return serve


def _targets(tables: Mapping[str, Any], source: str) -> dict[str, Address]:
    table = tables.get("targets", {})
    if not isinstance(table, dict):
        raise ConfigError(f"{source}: targets: not a table")
    targets = {}
    for name, text in table.items():
        where = f"{source}: targets.{printable(name)}"
        if not re.fullmatch(NAME, name):
            raise ConfigError(f"{where}: a target's name is a letter, then letters, digits, '.', '_' and '-'")
        if not isinstance(text, str):
            raise ConfigError(f"{where}: expected text, got {type(text).__name__}")
        try:
            targets[name] = parse_target(text)
        except VsockfwdError as error:
            raise ConfigError(f"{where}: {error.message}", hint=error.hint) from None
    return targets


def read_rule(
    table: Mapping[str, Any], where: str, kinds: Mapping[str, RuleKind], targets: Mapping[str, Address]
) -> NamedRule:
    """Read one rule's table; `where` stands in front of its errors. Raises ConfigError."""
    fields = dict(table)
    name = fields.pop("kind", "local" if "target" in fields else "raw")
    kind = kinds.get(name) if isinstance(name, str) else None
    if kind is None:
        known = ", ".join(sorted(kinds))
        raise ConfigError(f"{where}.kind: no kind is called {printable(str(name))!r}", hint=f"there are {known}")
    try:
        rule = msgspec.convert(fields, kind.schema, dec_hook=read_field)
    except msgspec.ValidationError as error:
        raise ConfigError(_told(str(error), where)) from None
    if (target := getattr(rule, "target", None)) is not None:
        try:
            find_target(target, targets)
        except VsockfwdError as error:
            raise ConfigError(f"{where}.target: {error.message}", hint=error.hint) from None
    return NamedRule(rule.name or f"{kind.name} {rule.title()}", kind, rule)


def _told(complaint: str, where: str) -> str:
    """msgspec says `Object contains unknown field `x``, or `Expected … - at `$.listen``: the path goes in front."""
    message, _, path = complaint.partition(" - at `$")
    path = re.sub(
        r"\[(\d+)\]", lambda match: f"[{int(match[1]) + 1}]", path.rstrip("`")
    )  # counted from 1, as rules are
    message = message[:1].lower() + message[1:].replace("`", "'")
    return f"{where}{path}: {message.replace('object', 'the table')}"


def is_name(text: str) -> bool:
    """Whether a TARGET is written as a name, and not as an address: `web`, or another user's guest `bob/web`."""
    return _NAMED.fullmatch(text) is not None and text != "stdio"


def find_target(text: str, targets: Mapping[str, Address], port: int | None = None) -> Address:
    """The address of a target: by a name that `targets` knows, or what `parse_target` reads. Raises AddressError.

    `port` is the agent's where it is not that of the name's address.
    """
    if not is_name(text):
        return parse_target(text, port)
    found = targets.get(text)
    if found is None:
        close = difflib.get_close_matches(text, targets, 1)
        raise AddressError(
            f"no target is called {printable(text)!r}",
            text=text,
            hint=f"did you mean {close[0]}?" if close else "vsockfwd guests lists them; a CID such as 3 is one, too",
        )
    if port is None:
        return found
    if not isinstance(found, VsockAddress | HybridAddress | TcpAddress):
        raise AddressError(
            f"-p {port} does not fit: {printable(text)} is {found.bare()}", text=text, hint="leave out -p"
        )
    return dataclasses.replace(found, port=port)


def _check_together(rules: Sequence[NamedRule], source: str) -> None:
    for (i, a), (j, b) in itertools.combinations(enumerate(rules, 1), 2):
        if complaint := quarrel(a, b):
            raise ConfigError(f"{source}: forward[{i}] and forward[{j}] {complaint}")


def quarrel(one: NamedRule, other: NamedRule) -> str:
    """Why two rules cannot be at work together, or nothing."""
    if one.name == other.name:
        return f"are both called {printable(one.name)!r}"
    place = other.rule.listens()
    if place is not None and clash(one.rule.listens(), place):
        return f"both listen on {place[1].bare()}"
    return ""
