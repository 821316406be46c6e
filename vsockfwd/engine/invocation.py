"""How a command was called, and the one place where trio is started: signals in, exit code out."""

from __future__ import annotations

import gc
import os
import resource
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import trio

from vsockfwd.contract import Mode
from vsockfwd.engine import Engine
from vsockfwd.errors import Interrupted, the_one
from vsockfwd.events import Report

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Invocation:
    """What the command line makes of the flags that all commands share, handed to the command's function.

    `modes` finds the modes that are installed; what is broken has been reported by then.
    """

    report: Report
    json: bool
    verbosity: int
    modes: Callable[[], Mapping[str, Mode]]

    def run(self, main: Callable[..., Awaitable[int | None]], *arguments: Any) -> int:
        """Run `main(engine, *arguments)` until it returns its exit code (None: 0).

        SIGINT, SIGTERM and SIGHUP cancel it and raise Interrupted; a second one ends the process at once.
        """
        # Two descriptors a connection: the soft limit is for programs that use select, the hard one is ours to use.
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        # What is imported stays: the collector need not look through it again and again.
        gc.freeze()
        try:
            return trio.run(self._main, main, arguments) or 0
        except BaseExceptionGroup as group:
            raise the_one(group) from None

    async def _main(self, main: Callable[..., Awaitable[int | None]], arguments: tuple[Any, ...]) -> int | None:
        engine = Engine(report=self.report)
        stopped_by: int | None = None
        result: int | None = None

        async def stop_on_signal(scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
            nonlocal stopped_by
            # What is ignored already stays so: a command started by nohup outlives its terminal.
            heeded = [number for number in _STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
            with trio.open_signal_receiver(*heeded) as signals:
                task_status.started()
                async for number in signals:
                    if stopped_by is not None:
                        os._exit(128 + number)
                    stopped_by = number
                    scope.cancel()

        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                await nursery.start(stop_on_signal, scope)
                result = await main(engine, *arguments)
            nursery.cancel_scope.cancel()
        if stopped_by is not None:
            raise Interrupted(stopped_by)
        return result
