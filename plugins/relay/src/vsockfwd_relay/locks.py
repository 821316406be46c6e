"""Lock files, as -L, -W, `lockfile` and `waitlock` have them: there while somebody works, with the process's number."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator

import trio

from vsockfwd.plugin import CannotCreate, from_oserror, printable

LOOK_AGAIN = 0.2
"""Seconds after which a lock that somebody holds is tried again."""


@contextlib.asynccontextmanager
async def held(path: bytes | None, *, wait: bool = False) -> AsyncIterator[None]:
    """Hold a lock file for the length of a block; without a path nothing is held. Raises CannotCreate."""
    if path is None:
        yield
        return
    while True:
        try:
            number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            break
        except FileExistsError:
            if not wait:
                hint = "its holder removes it; after a crash: you"
                raise CannotCreate(f"the lock file {printable(path)} is there", hint=hint) from None
        except OSError as error:
            raise from_oserror(error, f"make the lock file {printable(path)}") from None
        await trio.sleep(LOOK_AGAIN)
    try:
        os.write(number, b"%d\n" % os.getpid())
        os.close(number)
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)
