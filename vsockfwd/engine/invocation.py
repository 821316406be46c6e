"""How a command was called, and the one place where trio is started: signals in, exit code out."""

from __future__ import annotations

import gc
import os
import resource
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import trio

from vsockfwd.address import Address, with_key
from vsockfwd.config import find_target, is_name
from vsockfwd.contract import Mode
from vsockfwd.engine import Engine
from vsockfwd.errors import Interrupted, the_one
from vsockfwd.events import Report
from vsockfwd.rule import RuleKind
from vsockfwd.service import Service, take
from vsockfwd.transport.network import Network, system_network

YOUNG_OBJECTS = 5_000
"""Objects more than before that make the collector look: a burst of connections is no garbage, and reference counts
free what each leaves. With Python's 700 it looked once in 35 connections, which cost each of them 3 µs."""

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Invocation:
    """What the command line makes of the flags that all commands share, handed to the command's function.

    `modes` finds the modes that are installed; what is broken has been reported by then. `targets` are the names that
    the config file gives, and guests.
    """

    report: Report
    json: bool
    verbosity: int
    modes: Callable[[], Mapping[str, Mode]]
    targets: Callable[[], Mapping[str, Address]] = dict
    quiet: bool = False

    def kinds(self) -> dict[str, RuleKind]:
        """Every kind of rule that the installed modes bring, by name."""
        return {kind.name: kind for mode in self.modes().values() for kind in mode.rules}

    def target(self, text: str, port: int | None = None, auth_key: str | None = None) -> Address:
        """Read a TARGET: an address, a CID, a name of the config file's or a guest. Raises UsageError, ConfigError.

        `auth_key` is what `--auth-key` said: the file of the key, instead of one that the target names.
        """
        target = find_target(text, self.targets() if is_name(text) else {}, port)
        # A forward in the background, and a service, may go to another directory.
        return target if auth_key is None else with_key(target, os.path.abspath(auth_key))

    def answer(self, event: str, **fields: Any) -> None:
        """Print the object that `--json` promises as a command's answer (docs/json.md): its name, version and fields.

        Text that is not UTF-8 is escaped.
        """
        import json  # msgspec's own refuses what is not UTF-8

        print(json.dumps(msgspec.to_builtins({"event": event, "version": 1} | fields), separators=(",", ":")))

    def run(
        self,
        main: Callable[..., Awaitable[int | None]],
        *arguments: Any,
        drain: float = 0.0,
        on_hangup: Callable[[], None] | None = None,
        network: Network | None = None,
    ) -> int:
        """Run `main(engine, *arguments)` until it returns its exit code (None: 0, or what it was told to stop by).

        SIGINT, SIGTERM and SIGHUP cancel it and raise Interrupted; one more ends the process at once. With `drain`
        the first sets `engine.stopping`, and cancels `drain` seconds later; a second cancels at once. `on_hangup` is
        called for SIGHUP instead. `network` stands in for the system's. A service manager is told that we live and when
        we stop; that all is ready is for `main` to say (engine.service).
        """
        service = take(os.environ, os.getpid())
        # Two descriptors a connection: the soft limit is for programs that use select, the hard one is ours to use.
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        # What is imported stays: the collector need not look through it again and again.
        gc.freeze()
        gc.set_threshold(YOUNG_OBJECTS)
        gc.enable()
        try:
            return trio.run(self._main, service, main, arguments, drain, on_hangup, network) or 0
        except BaseExceptionGroup as group:
            raise the_one(group) from None

    async def _main(
        self,
        service: Service,
        main: Callable[..., Awaitable[int | None]],
        arguments: tuple[Any, ...],
        drain: float,
        on_hangup: Callable[[], None] | None,
        network: Network | None,
    ) -> int | None:
        engine = Engine(
            network or system_network(service.descriptors),
            self.report,
            service=service,
            auth_key=os.environ.get("VSOCKFWD_AUTH_KEY") or None,
        )
        stopped_by: int | None = None
        cut_off = False
        result: int | None = None

        async def stop_on_signal(scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
            nonlocal stopped_by
            # What is ignored already stays so: a command started by nohup outlives its terminal.
            heeded = [number for number in _STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
            with trio.open_signal_receiver(*heeded) as signals:
                task_status.started()
                async for number in signals:
                    if number == signal.SIGHUP and on_hangup is not None:
                        on_hangup()
                        continue
                    if stopped_by is None:
                        service.stopping()
                    if stopped_by is None and drain:
                        stopped_by = number
                        engine.stopping.set()
                        scope.deadline = trio.current_time() + drain
                    elif scope.cancel_called:
                        os._exit(128 + number)
                    else:
                        stopped_by = number
                        scope.cancel()

        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                await nursery.start(stop_on_signal, scope)
                nursery.start_soon(service.keep_alive)
                try:
                    result = await main(engine, *arguments)
                finally:
                    engine.network.close()
            cut_off = scope.cancelled_caught
            nursery.cancel_scope.cancel()
        if stopped_by is not None and (cut_off or result is None):
            raise Interrupted(stopped_by)
        return result
