"""The flags that say who may do what with an agent, what the config file says of it, and the policy of both.

A flag stands in for the key of [serve] of its name. Whatever is said narrows; only --allow-cid, --allow-uid,
--allow-guest, the keys and the entries of [[serve.allow]] let anybody in.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

from vsockfwd.address import VsockAddress, parse_stream
from vsockfwd.allow import ByteRate, Place, Serve
from vsockfwd.cli.config_file import load_serve
from vsockfwd.engine.keys import load_key, load_keys
from vsockfwd.errors import AddressError, UsageError, printable
from vsockfwd.key import Key, joined
from vsockfwd.option import Option
from vsockfwd.policy import Limits, Policy

NONE = "none"
"""As a place or a mode: there is none."""

Config = Annotated[str | None, Option("-c", "--config", metavar="FILE", help="the config file, for its table [serve]")]
AllowCid = Annotated[
    list[str] | None,
    Option("--allow-cid", metavar="host|local|any|N", help="trust every user of this machine"),
]
AllowUid = Annotated[
    list[int] | None, Option("--allow-uid", metavar="UID", help="trust this local user on unix: sockets")
]
AllowGuest = Annotated[bool, Option("--allow-guest", help="trust the guest behind a hybrid: socket listened on")]
AuthKey = Annotated[
    list[str] | None,
    Option("--auth-key", metavar="FILE", help="trust who has this key; without one nobody else is let in"),
]
AuthKeys = Annotated[
    list[str] | None,
    Option("--auth-keys", metavar="FILE|DIR", help="the same for each key in a file, or in files *.key"),
]
AllowConnect = Annotated[
    list[str] | None,
    Option("--allow-connect", metavar="PLACE|none", help="connect there only, such as tcp:10.0.0.0/8:*"),
]
AllowListen = Annotated[
    list[str] | None,
    Option("--allow-listen", metavar="PLACE|none", help="listen for clients there only, such as tcp:8000-8999"),
]
AllowMode = Annotated[
    list[str] | None,
    Option("--allow-mode", metavar="MODE", help="serve these modes only: forward, listen, copy, dgram"),
]
Root = Annotated[
    str | None,
    Option("--root", metavar="DIR", help="what is copied is below this directory, and paths start there"),
]
ReadOnly = Annotated[bool, Option("--read-only", help="files are read, and never written")]
PerPeer = Annotated[int | None, Option("--max-connections-per-peer", metavar="N", help="streams of one peer at once")]
MaxRate = Annotated[int | None, Option("--max-rate", metavar="N", help="new streams of one peer in a second")]

MaxBandwidth = Annotated[
    str | None,
    Option("--max-bandwidth", metavar="RATE", help="bytes a second of one peer each way, such as 500k or 10M"),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rights:
    """What the flags say, as they were typed."""

    config: str | None
    allow_cid: Sequence[str] | None
    allow_uid: Sequence[int] | None
    allow_guest: bool
    auth_key: Sequence[str] | None
    auth_keys: Sequence[str] | None
    allow_connect: Sequence[str] | None
    allow_listen: Sequence[str] | None
    allow_mode: Sequence[str] | None
    root: str | None
    read_only: bool
    per_peer: int | None
    max_rate: int | None
    max_bandwidth: str | None
    measure: bool = True

    def table(self) -> Serve:
        """What the config file says. Raises ConfigError."""
        return load_serve(self.config)

    def decided(self, table: Serve, own_uid: int | None = None) -> tuple[tuple[Key, ...], Policy]:
        """The keys and the policy, of the file's table and the flags. `own_uid`: whom the agent will run as.

        Raises UsageError, ConfigError, NotAllowed for a key that others may read.
        """
        keys = self._keys(table)
        root = _or(self.root, table.root)
        policy = Policy(
            own_uid=os.geteuid() if own_uid is None else own_uid,
            cids=frozenset(map(_cid, _or(self.allow_cid, [str(word) for word in table.allow_cid]))),
            uids=frozenset(_or(self.allow_uid, table.allow_uid)),
            guests=self.allow_guest or table.allow_guest,
            keyed=bool(keys),
            root=None if root is None else _directory(root),
            read_only=self.read_only or table.read_only,
            measure=self.measure and table.measure,
            connect=_or(_places("--allow-connect", self.allow_connect), table.allow_connect),
            listen=_or(_places("--allow-listen", self.allow_listen), table.allow_listen),
            modes=_or(_words(self.allow_mode), table.allow_mode),
            limits=Limits(
                _or(_most("--max-connections-per-peer", self.per_peer), table.max_connections_per_peer),
                _or(_most("--max-rate", self.max_rate), table.max_rate),
                _bandwidth(self.max_bandwidth, table.max_bandwidth),
            ),
            allow=table.allow,
        )
        for entry in table.allow:
            if entry.root is not None:
                _directory(entry.root)
        return keys, policy

    def _keys(self, table: Serve) -> tuple[Key, ...]:
        """All keys that are to be trusted."""
        if self.auth_key is None and self.auth_keys is None:
            named = os.environ.get("VSOCKFWD_AUTH_KEY")
            single, several = ([named], []) if named else ([], list(table.keys))
        else:
            single, several = list(self.auth_key or ()), list(self.auth_keys or ())
        groups = [(path, (load_key(path),)) for path in single]
        return joined([*groups, *((path, load_keys([path])) for path in several)])


T = TypeVar("T")
D = TypeVar("D")


def _or(said: T | None, table: D) -> T | D:
    return table if said is None else said


def _most(flag: str, number: int | None) -> int | None:
    if number is not None and number < 1:
        raise UsageError(f"{flag} {number}: a whole number above 0")
    return number


def _bandwidth(said: str | None, table: ByteRate | None) -> int | None:
    try:
        rate = table if said is None else ByteRate.read(said)
    except UsageError as error:
        raise UsageError(f"--max-bandwidth {error.message}", hint=error.hint) from None
    return None if rate is None else rate.value


def _words(words: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if words is None else () if list(words) == [NONE] else tuple(words)


def _places(flag: str, words: Sequence[str] | None) -> tuple[Place, ...] | None:
    texts = _words(words)
    try:
        return None if texts is None else tuple(map(Place.read, texts))
    except AddressError as error:
        raise UsageError(f"{flag}: {error.message}", hint=error.hint) from None


def _directory(path: str) -> str:
    """An absolute path, of a directory that is there."""
    if not os.path.isdir(path):
        raise UsageError(f"--root {printable(path)}: is no directory")
    return os.path.abspath(path)


def _cid(text: str) -> int:
    """`host`, `local`, `any` or a number, by the grammar of vsock addresses."""
    try:
        address = parse_stream(f"vsock:{text}:0")
    except AddressError:
        address = None
    if not isinstance(address, VsockAddress):
        raise UsageError(f"--allow-cid {printable(text)}: not a CID", hint="a number, host, local or any")
    return address.cid
