"""What cannot end by itself ends here when the process is to stop."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import trio

from vsockfwd.engine import Engine
from vsockfwd.errors import the_one


@contextlib.asynccontextmanager
async def until_stopping(engine: Engine) -> AsyncIterator[trio.Nursery]:
    """Cancel the block when the process is to stop: it waits for what may never come, or serves what has no end."""

    async def stop(scope: trio.CancelScope) -> None:
        await engine.stopping.wait()
        scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop, nursery.cancel_scope)
            yield nursery
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise the_one(group) from None
