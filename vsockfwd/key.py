"""A key: a name and 256 secret bits, and the text of the files that hold keys. Pure; engine/keys.py opens the files.

One key a line, `vsockfwd-key-1 NAME SECRET`; what follows `#` is a comment. The thing to understand first: no error, no
`repr` and no log line ever holds a line of such a file, nor a part of one: it may be the secret.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field

from vsockfwd.errors import ConfigError, printable

SECRET_LENGTH = 32
"""Bytes of a secret."""

MOST_KEYS = 1024
"""Keys that an agent knows: each is tried on a proof, some microseconds each."""

KIND = "vsockfwd-key-1"

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}")


@dataclass(frozen=True, slots=True)
class Key:
    """One key. The name is what the policy and the log call its holders; it is not secret."""

    name: str
    secret: bytes = field(repr=False)


def parse_keys(text: str, source: str) -> tuple[Key, ...]:
    """The keys of a file's text; `source` is the file's name. Raises ConfigError: file, line, what is wrong."""
    keys: dict[str, Key] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        key = _parse_line(words, f"{source}: line {number}")
        if key.name in keys:
            raise ConfigError(f"{source}: line {number}: a second key is called {key.name}")
        keys[key.name] = key
    if not keys:
        raise ConfigError(f"{source}: there is no key in it", hint="vsockfwd keygen FILE makes one")
    return tuple(keys.values())


def _parse_line(words: list[str], where: str) -> Key:
    if words[0] != KIND:
        raise ConfigError(f"{where}: a key's line begins with {KIND}", hint="vsockfwd keygen FILE makes one")
    if len(words) != 3:
        raise ConfigError(f"{where}: {KIND} is followed by a name and a secret, nothing else")
    check_name(words[1], where)
    try:
        secret = base64.b64decode(words[2], validate=True)
    except ValueError:  # binascii.Error is one, and so is what is no ASCII
        secret = b""
    if len(secret) != SECRET_LENGTH:
        raise ConfigError(f"{where}: the secret is not {SECRET_LENGTH} bytes in base64", hint="is the line whole?")
    return Key(words[1], secret)


def check_name(name: str, where: str) -> None:
    """Raise ConfigError for what cannot be a key's name."""
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{where}: {printable(name[:64])!r} is no key's name: letters, digits, '_', '.', '@' and '-', 64 at most"
        )


def format_key(key: Key) -> str:
    """The text of a file for one key."""
    secret = base64.b64encode(key.secret).decode()
    return f"# Who can read this is let in wherever this key is. Keep it to yourself.\n{KIND} {key.name} {secret}\n"


def joined(groups: list[tuple[str, tuple[Key, ...]]]) -> tuple[Key, ...]:
    """The keys of several files, given with their names. Raises ConfigError for a name or a secret of two keys."""
    names: dict[str, str] = {}
    secrets: dict[bytes, str] = {}
    found: list[Key] = []
    for source, keys in groups:
        for key in keys:
            if key.name in names:
                raise ConfigError(f"{source} and {names[key.name]} both have a key called {key.name}")
            if key.secret in secrets:
                raise ConfigError(
                    f"the keys {secrets[key.secret]} and {key.name} have one secret: whose it is, is lost"
                )
            names[key.name], secrets[key.secret] = source, key.name
            found.append(key)
    if len(found) > MOST_KEYS:
        raise ConfigError(f"{len(found)} keys, {MOST_KEYS} at most")
    return tuple(found)
