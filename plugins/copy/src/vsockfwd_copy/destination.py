"""What a destination means: decided by the side that owns it, the same on both. It blocks: call it in a thread."""

from __future__ import annotations

import os
import stat

from vsockfwd.plugin import CannotCreate, from_oserror, printable

_OPEN = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class Place:
    """Where a copy lands: inside a directory under the sources' own names, or there under one `name`."""

    def __init__(self, fd: int, name: bytes | None, path: bytes, *, only_directory: bool = False) -> None:
        self.fd = fd
        self.name = name
        self.path = path
        self.only_directory = only_directory
        """Whether it ended in a slash, so that no file may get that name."""

    def close(self) -> None:
        os.close(self.fd)


def resolve(destination: bytes, *, sources: int, recursive: bool, base: bytes) -> Place:
    """What a destination as typed means, as cp(1) and scp(1) have it; `base` is where a relative one starts.

    A directory that is there takes the sources in; anything else is the name that a single source gets. Symlinks in
    what was typed are followed. Raises CannotCreate or PermissionDenied.
    """
    path = os.path.join(base, destination)
    told = printable(destination or path)
    try:
        kind = _kind_of(path)
        if kind is not None and stat.S_ISDIR(kind):
            return Place(os.open(path, _OPEN), None, path)
        if sources > 1:
            raise CannotCreate(f"{told}: is no directory", hint="several sources need one that is there")
        if kind is not None and not stat.S_ISREG(kind):
            raise CannotCreate(f"{told}: is neither a file nor a directory, and is not replaced")
        slash = path.endswith(b"/")
        if slash and not recursive:
            raise CannotCreate(f"{told}: no such directory", hint="leave out the slash to make a file of that name")
        parent, name = os.path.split(os.path.realpath(path))
        return Place(os.open(parent, _OPEN), name, path.rstrip(b"/"), only_directory=slash)
    except PermissionError as error:
        raise from_oserror(error, told) from None
    except OSError as error:
        hint = "the directory that it is to be in must be there" if isinstance(error, FileNotFoundError) else ""
        raise CannotCreate(from_oserror(error, told).message, hint=hint) from None


def _kind_of(path: bytes) -> int | None:
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return None
