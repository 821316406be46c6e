"""The files that hold keys: made with care, and not believed where others may read them."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Sequence

from vsockfwd.errors import CannotCreate, ConfigError, NotAllowed, from_oserror, printable
from vsockfwd.key import SECRET_LENGTH, Key, check_name, format_key, joined, parse_keys

SUFFIX = ".key"
"""How the files of a directory of keys end; others there are passed over."""

SIZE_LIMIT = 1 << 18
"""Bytes of a file of keys."""

_SHARED = stat.S_IRWXG | stat.S_IRWXO


def load_key(path: str | bytes) -> Key:
    """The one key of a file. Raises what `load_keys` does."""
    keys = _load_file(path)
    if len(keys) != 1:
        raise ConfigError(f"{printable(path)}: holds {len(keys)} keys, one is shown", hint="a file for each key")
    return keys[0]


def load_keys(places: Sequence[str | bytes]) -> tuple[Key, ...]:
    """All keys of these files, and of the files *.key of these directories.

    Raises ConfigError, NotAllowed for a file that others may read, NotFound, PermissionDenied.
    """
    files: list[str | bytes] = []
    for place in places:
        if not os.path.isdir(place):
            files.append(place)
            continue
        inside = sorted(name for name in os.listdir(os.fsdecode(place)) if name.endswith(SUFFIX))
        if not inside:
            raise ConfigError(f"{printable(place)}: there is no file *{SUFFIX} in it")
        files += (os.path.join(os.fsdecode(place), name) for name in inside)
    return joined([(printable(file), _load_file(file)) for file in files])


def _load_file(path: str | bytes) -> tuple[Key, ...]:
    name = printable(path)
    try:
        # Not blocking: a FIFO in a key's place must not hold everything up.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise from_oserror(error, f"key {name}") from None
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"key {name}: is no file")
        if found.st_uid not in (0, os.geteuid()):
            raise NotAllowed(f"key {name}: belongs to uid {found.st_uid}, who may change it", hint=f"chown it: {name}")
        if found.st_mode & _SHARED:
            raise NotAllowed(
                f"key {name}: others may read or change it (mode {stat.S_IMODE(found.st_mode):04o}): it is no secret",
                hint=f"make a new one; or, where nobody has read it, chmod 600 {name}",
            )
        raw = file.read(SIZE_LIMIT + 1)
    if len(raw) > SIZE_LIMIT:
        raise ConfigError(f"key {name}: larger than {SIZE_LIMIT} bytes")
    try:
        return parse_keys(raw.decode("ascii"), f"key {name}")
    except UnicodeDecodeError:
        raise ConfigError(f"key {name}: is no text of keys", hint="vsockfwd keygen FILE makes one") from None


def create_key(path: str, name: str) -> Key:
    """Make a key and its file, which nobody else may read. Raises CannotCreate where something stands there."""
    check_name(name, "--name")
    key = Key(name, secrets.token_bytes(SECRET_LENGTH))
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise CannotCreate(
            f"key {printable(path)}: stands there already", hint="another name; a key in use is not written over"
        ) from None
    except OSError as error:
        raise from_oserror(error, f"key {printable(path)}") from None
    try:
        with open(descriptor, "w", encoding="ascii") as file:
            os.fchmod(descriptor, 0o600)  # whatever an ACL of the directory would have it be
            file.write(format_key(key))
            file.flush()
            os.fsync(descriptor)
    except OSError as error:
        os.unlink(path)
        raise from_oserror(error, f"key {printable(path)}") from None
    return key
