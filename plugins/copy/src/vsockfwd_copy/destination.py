"""What a destination means: decided by the side that owns it, the same on both. It blocks: call it in a thread."""

from __future__ import annotations

import os
import stat

from vsockfwd.plugin import CannotCreate, from_oserror, printable
from vsockfwd_copy.options import LandOptions
from vsockfwd_copy.roots import Root

_DIRECTORY = os.O_PATH | os.O_DIRECTORY


class Place:
    """Where a copy lands: inside a directory under the sources' own names, or there under one `name`."""

    def __init__(
        self, fd: int, name: bytes | None, path: bytes, *, only_directory: bool = False, virtual: bool = False
    ) -> None:
        self.fd = fd
        self.name = name
        self.path = path
        self.only_directory = only_directory
        """Whether it ended in a slash, so that no file may get that name."""
        self.virtual = virtual
        """Whether its directory would only be made; then `fd` stands for nothing in particular."""

    def close(self) -> None:
        os.close(self.fd)


def resolve(destination: bytes, *, sources: int, options: LandOptions, root: Root) -> Place:
    """What a destination as typed means for so many sources (0: several), as cp(1) and scp(1) have it.

    A directory that is there takes the sources in; anything else is the name that a single source gets. With `plain`
    it is that name also where a directory stands, with `directory` always the directory; with `mkpath` what is missing
    on the way is made. Symlinks in what was typed are followed. Raises CannotCreate or PermissionDenied.
    """
    told = printable(destination or root.full(destination))
    try:
        return _resolve(destination, told, sources, options, root)
    except PermissionError as error:
        raise from_oserror(error, told) from None
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        hint = "the directory that it is to be in must be there; --mkpath makes it" if missing else ""
        raise CannotCreate(from_oserror(error, told).message, hint=hint) from None


def _resolve(destination: bytes, told: str, sources: int, options: LandOptions, root: Root) -> Place:
    path = root.full(destination)
    if options.mkpath:
        into = options.directory or sources != 1 or (path.endswith(b"/") and not options.plain)
        missing = root.make_directories(path if into else os.path.dirname(path.rstrip(b"/")), dry_run=options.dry_run)
        if missing and options.dry_run:
            _check_slash(path, told, options, into)
            name = None if into else os.path.basename(path.rstrip(b"/"))
            return Place(
                root.open(b"/", _DIRECTORY), name, path, only_directory=not into and path.endswith(b"/"), virtual=True
            )
    kind = _kind_of(destination, root)
    is_directory = kind is not None and stat.S_ISDIR(kind)
    if is_directory and not options.plain:
        return Place(root.open(destination, _DIRECTORY), None, path)
    if options.directory:
        raise CannotCreate(f"{told}: is no directory that is there", hint="--mkpath makes it")
    if sources != 1:
        hint = "-T takes one source" if options.plain else "several sources need one that is there"
        raise CannotCreate(f"{told}: is no directory", hint=hint)
    if kind is not None and not is_directory and not stat.S_ISREG(kind):
        raise CannotCreate(f"{told}: is neither a file nor a directory, and is not replaced")
    _check_slash(path, told, options, False)
    fd, name = root.parent(destination)
    if name in (b"", b".", b".."):
        os.close(fd)
        raise CannotCreate(f"{told}: names no file that could be made", hint="without -T the sources go into it")
    return Place(fd, name, path.rstrip(b"/"), only_directory=path.endswith(b"/"))


def _check_slash(path: bytes, told: str, options: LandOptions, into: bool) -> None:
    if path.endswith(b"/") and not into and not options.recursive:
        raise CannotCreate(f"{told}: no such directory", hint="leave out the slash to make a file of that name")


def _kind_of(destination: bytes, root: Root) -> int | None:
    try:
        return root.stat(destination).st_mode
    except FileNotFoundError:
        return None
