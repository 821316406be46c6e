"""The end of what has no end of its own."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import trio

from vsockfwd.plugin import Engine, the_one


@contextlib.asynccontextmanager
async def until_stopping(engine: Engine) -> AsyncIterator[trio.Nursery]:
    """Cancel the block when the process is to stop: datagrams have no end that could be waited for."""

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
