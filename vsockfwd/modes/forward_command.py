"""`vsockfwd forward`: the command line of forwarding. It makes rules, as the config file does, and runs them."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable
from typing import Annotated, Any

import trio
import typer

from vsockfwd.modes.forward import LOCAL, RAW, REMOTE, LocalRule, RawRule, RemoteRule
from vsockfwd.modes.spelling import parse_bind, parse_forward
from vsockfwd.modes.stdio import join_stdio
from vsockfwd.plugin import (
    Address,
    AgentPort,
    Engine,
    Invocation,
    NamedRule,
    Network,
    Rules,
    SharedKey,
    StreamEnd,
    UsageError,
    Workers,
    bind,
    open_session,
    read_rule,
    unsaid,
    until_stopping,
)

DATAGRAMS = "/udp"
"""What stands behind a spec whose ports are UDP's."""

DRAIN = 5.0
"""Seconds that connections are given to end by themselves, once we are told to stop."""


def forward(
    invocation: Invocation,
    addresses: Annotated[
        list[str],
        typer.Argument(
            metavar="LISTEN CONNECT | TARGET [COMMAND…]",
            help="two addresses; or with -L and its kin the agent's target, and a command to run meanwhile",
        ),
    ],
    local: Annotated[
        list[str] | None,
        typer.Option(
            "-L", metavar="[BIND:]PORT:HOST:HOSTPORT[/udp]", help="listen here, connect from the agent's side"
        ),
    ] = None,
    remote: Annotated[
        list[str] | None,
        typer.Option("-R", metavar="[BIND:]PORT:HOST:HOSTPORT[/udp]", help="listen at the agent's, connect here"),
    ] = None,
    dynamic: Annotated[
        list[str] | None,
        typer.Option("-D", metavar="[BIND:]PORT", help="listen here for SOCKS and HTTP CONNECT, connect from there"),
    ] = None,
    stdio: Annotated[
        str | None, typer.Option("-W", metavar="HOST:PORT", help="join standard input and output to it, by the agent")
    ] = None,
    port: AgentPort = None,
    auth_key: SharedKey = None,
    exit_on_failure: Annotated[
        bool, typer.Option("--exit-on-failure", help="end when one of several forwards cannot listen")
    ] = False,
    when_down: Annotated[
        str, typer.Option("--when-down", metavar="accept|refuse", help="the listeners, while the agent is away")
    ] = "accept",
    max_connections: Annotated[int | None, typer.Option(metavar="N", help="at once, for each forward")] = None,
    idle_timeout: Annotated[float, typer.Option(metavar="SECONDS", help="end a connection that is silent so long")] = 0,
    half_open_timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="the same, once one of its directions has ended")
    ] = 0,
    drain: Annotated[
        float, typer.Option(metavar="SECONDS", help="told to stop, give connections so long to end by themselves")
    ] = DRAIN,
    workers: Annotated[int, typer.Option(metavar="N", help="share the listeners among so many processes")] = 1,
    background: Annotated[bool, typer.Option("-f", help="go to the background once the forwards listen")] = False,
) -> int:
    """Forward connections: LISTEN CONNECT joins two addresses, -L … TARGET goes through an agent.

    Raw: vsockfwd forward tcp:8080 vsock:3:80. Through an agent: vsockfwd forward -L 8080:localhost:80 3.
    Loopback is listened on unless the address says otherwise; port 0 picks a free one and prints it.
    With a COMMAND after TARGET the forwards live as long as it runs, and its exit code is ours.
    """
    limits: dict[str, Any] = {"idle_timeout": idle_timeout, "half_open_timeout": half_open_timeout}
    if max_connections is not None:
        limits["max_connections"] = max_connections
    _check(when_down, idle_timeout, half_open_timeout, max_connections, drain)
    if stdio is not None:
        return _stdio(invocation, addresses, stdio, port, auth_key, bool(local or remote or dynamic or background))
    if local or remote or dynamic:
        target = invocation.target(addresses[0], port, auth_key)
        through = {"target": str(target), **limits}
        listening = {"when_down": when_down, **through}
        rules = [_local(invocation, spec, listening) for spec in local or ()]
        rules += [_remote(invocation, spec, through) for spec in remote or ()]
        rules += [_dynamic(spec, listening) for spec in dynamic or ()]
        if background and addresses[1:]:
            raise UsageError("-f and a COMMAND exclude each other", hint="the command's own & puts all in background")
        run = _Run(invocation, rules, target, exit_on_failure, addresses[1:], drain)
    else:
        if len(addresses) != 2:
            raise UsageError(
                f"forward takes LISTEN and CONNECT, not {len(addresses)} address{'es' * (len(addresses) != 1)}",
                hint="or -L SPEC and a TARGET",
            )
        if port is not None:
            raise UsageError(
                "-p is the port of an agent, a raw forward has none", hint="write the port into the address"
            )
        if auth_key is not None:
            raise UsageError("--auth-key is for an agent, a raw forward has none", hint="-L goes through one")
        run = _Run(invocation, [_raw(addresses[0], addresses[1], limits)], None, exit_on_failure, [], drain)
    if workers != 1:
        if workers < 1 or remote or addresses[1 if local or dynamic else 2 :] or background:
            raise UsageError("--workers N, above 0, goes with LISTEN CONNECT, -L and -D alone")
        return _by_workers(run, workers)
    return _in_background(run) if background else run()


forward.runs_command_with = ("-L", "-R", "-D")  # type: ignore[attr-defined] # what follows TARGET is a program's


def _check(when_down: str, idle: float, half_open: float, most: int | None, drain: float) -> None:
    if when_down not in ("accept", "refuse"):
        raise UsageError(f"--when-down {when_down}: accept or refuse")
    for name, value in (("idle-timeout", idle), ("half-open-timeout", half_open), ("drain", drain)):
        if not value >= 0:
            raise UsageError(f"--{name} {value:g}: a number of seconds, 0 for none")
    if most is not None and most < 1:
        raise UsageError(f"--max-connections {most}: a whole number above 0")


def _local(invocation: Invocation, spec: str, through: dict[str, Any]) -> NamedRule:
    if spec.endswith(DATAGRAMS):
        return _datagrams(invocation, "-L", spec, "datagram", through["target"])
    listen, connect = parse_forward(spec)
    return NamedRule(f"-L {spec}", LOCAL, LocalRule(listen=StreamEnd(listen), connect=StreamEnd(connect), **through))


def _remote(invocation: Invocation, spec: str, through: dict[str, Any]) -> NamedRule:
    if spec.endswith(DATAGRAMS):
        return _datagrams(invocation, "-R", spec, "remote-datagram", through["target"])
    listen, connect = parse_forward(spec)
    return NamedRule(f"-R {spec}", REMOTE, RemoteRule(listen=StreamEnd(listen), connect=StreamEnd(connect), **through))


def _datagrams(invocation: Invocation, flag: str, spec: str, kind: str, target: str) -> NamedRule:
    """`/udp` behind a spec: a rule of a kind that the plugin dgram brings."""
    ends = [str(end).replace("tcp:", "udp:", 1) for end in parse_forward(spec.removesuffix(DATAGRAMS))]
    if not all(end.startswith("udp:") for end in ends):
        raise UsageError(f"{flag} {spec}: {DATAGRAMS} goes with ports alone", hint="vsockfwd dgram knows more")
    kinds = invocation.kinds()
    if kind not in kinds:
        raise UsageError(f"{flag} {spec}: datagrams are carried by a plugin", hint="install vsockfwd-dgram")
    table = {"kind": kind, "name": f"{flag} {spec}", "listen": ends[0], "connect": ends[1], "target": target}
    return read_rule(table, f"{flag} {spec}", kinds, {})


def _dynamic(spec: str, through: dict[str, Any]) -> NamedRule:
    from vsockfwd.modes.dynamic import DYNAMIC, DynamicRule

    return NamedRule(f"-D {spec}", DYNAMIC, DynamicRule(listen=StreamEnd(parse_bind(spec)), **through))


def _raw(listen: str, connect: str, limits: dict[str, Any]) -> NamedRule:
    near, far = StreamEnd.read(listen), StreamEnd.read(connect)
    if far.value.scheme == "fd":
        raise UsageError(f"{far}: a descriptor can be connected once, a forward dials for every connection")
    rule = RawRule(listen=near, connect=far, **limits)
    return NamedRule(f"forward to {far.value.bare()}", RAW, rule)


class _Run:
    """The rules of one command line, run to their end."""

    def __init__(
        self,
        invocation: Invocation,
        rules: list[NamedRule],
        target: Address | None,
        exit_on_failure: bool,
        command: list[str],
        drain: float,
    ) -> None:
        self.network: Network | None = None
        self.ready: Callable[[], None] = lambda: None
        self.invocation = invocation
        self.rules = rules
        self._target = target
        self._exit_on_failure = exit_on_failure
        self._command = command
        self._drain = drain

    def __call__(self) -> int:
        return self.invocation.run(self._main, drain=self._drain, network=self.network)

    async def _main(self, engine: Engine) -> int | None:
        async with Rules(engine, {}, patient=False) as rules:
            if self._target is None:
                return await self._until_ended(rules)
            async with rules.keeper(self._target) as keeper:
                # A target that is not there when a person asks for it is an error; later it is waited for.
                async with until_stopping(engine):
                    await keeper.come_up()
                if not keeper.up and self.network is None:
                    return None  # told to stop before there was anything to end; a worker's forwards are up elsewhere
                return await self._until_ended(rules)

    async def prepare(self, engine: Engine, purpose: str) -> None:
        """Listen, for those who share it, and log in, to see whether that can be done. Raises why not."""
        if self._target is not None:
            async with open_session(engine, self._target):
                pass
        addresses = [place[1] for named in self.rules if (place := named.rule.listens()) is not None]
        self.network = await bind(engine, addresses, purpose)
        # Here, since the manager hears the process alone that it started.
        await engine.service.ready(f"{len(self.rules)} forwards {purpose}")

    async def _until_ended(self, rules: Rules) -> int:
        await rules.add_all(self.rules, all_or_none=self._exit_on_failure)
        await rules.engine.service.ready(f"{len(self.rules)} forwards")
        self.ready()
        if self._command:
            return await self._run_command(rules.engine)
        await rules.ended()
        return 0

    async def _run_command(self, engine: Engine) -> int:
        """The forwards live as long as it does: it is what is told to stop."""
        try:
            process = await trio.lowlevel.open_process(self._command)
        except OSError as error:
            raise UsageError(f"{self._command[0]}: {(error.strerror or '').lower()}") from None
        try:
            async with until_stopping(engine):
                await process.wait()
        finally:
            if process.returncode is None:
                process.terminate()
                with trio.move_on_after(5, shield=True):
                    await process.wait()
                process.kill()
        code = await process.wait()
        return code if code >= 0 else 128 - code


def _by_workers(run: _Run, count: int) -> int:
    """The forwards on several processes that share their listeners."""
    invocation = run.invocation
    invocation.run(run.prepare, f"by {count} processes")  # what would fail in each of them is told once
    run.invocation = dataclasses.replace(invocation, report=unsaid(invocation.report))
    return Workers(count, run, invocation.report).run()


def _in_background(run: _Run) -> int:
    """Return when the forwards listen, and leave a process behind that serves them; its failure until then is ours."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        told = os.read(reading, 1)
        if told:
            return 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(reading)
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def ready() -> None:
        os.write(writing, b"\0")
        os.close(writing)
        null = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(null, number)
        os.close(null)

    run.ready = ready
    return run()


def _stdio(
    invocation: Invocation, addresses: list[str], where: str, port: int | None, auth_key: str | None, others: bool
) -> int:
    if others or len(addresses) != 1:
        raise UsageError("-W HOST:PORT takes one TARGET and nothing else", hint="vsockfwd forward -W localhost:22 3")
    return invocation.run(join_stdio, invocation.target(addresses[0], port, auth_key), where)
