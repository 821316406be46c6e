"""`vsockfwd up`, which runs the config file's rules, and the commands that talk to it."""

from __future__ import annotations

import datetime
import os
import tomllib
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import trio
import typer

from vsockfwd.address import Address, UnixAddress
from vsockfwd.cli import config_file
from vsockfwd.cli.call import guest_addresses
from vsockfwd.cli.metrics import Metrics, metered
from vsockfwd.config import Config
from vsockfwd.engine import Engine
from vsockfwd.engine.control_socket import ControlSocket, Request, ask
from vsockfwd.engine.invocation import Invocation
from vsockfwd.engine.rules import Rules, Status
from vsockfwd.errors import ConfigError, Unreachable, UsageError, VsockfwdError, printable
from vsockfwd.events import Problem, Reloaded
from vsockfwd.rule import RuleKind
from vsockfwd.service import Service

DRAIN = 10.0
"""Seconds that connections are given to end by themselves, once we are told to stop."""

Control = Annotated[
    str | None, typer.Option("--control", metavar="PATH", help="the control socket (default: in the runtime directory)")
]


def control_address(path: str | None) -> UnixAddress:
    """The control socket's address: the path that was named, else one in the runtime directory."""
    path = path or os.environ.get("VSOCKFWD_CONTROL")
    if path is None:
        base = os.environ.get("XDG_RUNTIME_DIR") or ("/run" if os.geteuid() == 0 else f"/tmp/vsockfwd-{os.geteuid()}")
        path = f"{base}/vsockfwd/control.sock"
    return UnixAddress(os.fsencode(path))


def up(
    invocation: Invocation,
    config: Annotated[str | None, typer.Option("-c", "--config", metavar="FILE", help="the config file")] = None,
    control: Control = None,
    check: Annotated[bool, typer.Option("--check", help="check the config file, and do nothing else")] = False,
    drain: Annotated[
        float, typer.Option(metavar="SECONDS", help="told to stop, give connections so long to end by themselves")
    ] = DRAIN,
    metrics: Metrics = None,
) -> int:
    """Run every rule of the config file until told to stop; SIGHUP or `vsockfwd reload` reads the file again."""
    kinds = invocation.kinds()
    path = config_file.find(config)
    first = config_file.load(path, kinds, guest_addresses())
    if check:
        print(f"{path}: {len(first.rules)} rules, {len(first.targets)} targets, all well")
        return 0
    process = _Up(path, first, kinds, control_address(control), metrics)
    return invocation.run(process.run, drain=drain, on_hangup=process.hung_up)


class _Up:
    """The process that `up` is."""

    def __init__(
        self, path: Path, first: Config, kinds: dict[str, RuleKind], control: UnixAddress, metrics: str | None
    ) -> None:
        self._path = path
        self._first = first
        self._kinds = kinds
        self._control = control
        self._metrics = metrics
        self._rules: Rules | None = None
        """Those at work, once the first have begun."""

    async def run(self, engine: Engine) -> int:
        _make_directory(self._control)
        async with metered(engine, self._metrics) as engine, _rules_of(engine, self._first) as rules:
            await rules.nursery.start(ControlSocket(rules, self._kinds, self.reload).serve, self._control)
            for named in self._first.rules:
                rules.add(named)
            self._rules = rules
            await engine.service.ready(f"{len(self._first.rules)} rules of {self._path}")
            await engine.stopping.wait()
            await rules.ended()
        return 0

    def reload(self) -> tuple[list[str], list[str]]:
        """Read the file again and apply the difference. Raises ConfigError, and then nothing has changed."""
        assert self._rules is not None  # the control socket answers nobody before the first rules have begun
        guests = guest_addresses()
        config = config_file.load(self._path, self._kinds, guests)
        stopped, started = self._rules.apply(config.rules, _known(config, guests))
        self._rules.engine.report(Reloaded(str(self._path), stopped, started))
        return stopped, started

    def hung_up(self) -> None:
        """SIGHUP: as `reload`, whose error is told in the log. While we start, the file was just read."""
        if self._rules is None:
            return
        engine = self._rules.engine
        try:
            self.reload()
        except VsockfwdError as error:
            engine.report(Problem("reload", f"{error.line()}; nothing was changed"))
        self._rules.nursery.start_soon(_tell_of_reload, engine.service)


def _rules_of(engine: Engine, config: Config) -> Rules:
    return Rules(engine, _known(config, guest_addresses()), patient=True)


def _known(config: Config, guests: Mapping[str, Address]) -> Mapping[str, Address]:
    """What a rule's target may be called: what the file says, else a guest."""
    return ChainMap(config.targets, guests)  # type: ignore[arg-type] # nothing is written to it


async def _tell_of_reload(service: Service) -> None:
    """A manager that sent SIGHUP waits for both words; in between nothing is left to do."""
    await service.reloading()
    await service.ready()


def _make_directory(control: UnixAddress) -> None:
    directory = os.path.dirname(control.path)
    try:
        os.makedirs(directory or b".", mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{printable(directory)}: {(error.strerror or '').lower()}", hint="--control PATH") from None


# --- the commands that talk to it


def _ask(invocation: Invocation, control: str | None, request: Request) -> Any:
    answer: list[Any] = []

    async def main(engine: Engine) -> int:
        address = control_address(control)
        try:
            answer.append(await ask(engine, address, request))
        except Unreachable as error:
            raise Unreachable(
                f"{error.message}: is `vsockfwd up` running?", hint="--control PATH names its socket"
            ) from None
        return 0

    invocation.run(main)
    return answer[0]


def status(
    invocation: Invocation,
    name: Annotated[str | None, typer.Argument(metavar="RULE", help="one rule alone")] = None,
    control: Control = None,
) -> int:
    """Show each rule of the running `up`: state, since when, connections, bytes each way, the last error.

    Exit code 1 if one of them is not up.
    """
    rows = msgspec.convert(_ask(invocation, control, Request("status")), list[Status])
    if name is not None:
        rows = [row for row in rows if row.name == name]
        if not rows:
            raise UsageError(f"no rule is called {printable(name)!r}", hint="vsockfwd status lists them")
    if invocation.json:
        invocation.answer("status", rules=rows)
    else:
        for row in rows:
            print(_described(row))
    return 0 if all(row.state == "up" for row in rows) else 1


def _described(row: Status) -> str:
    since = datetime.datetime.fromtimestamp(row.since).astimezone().isoformat(" ", "seconds")
    through = f" through {row.target}" if row.target else ""
    lines = [
        f"{row.name}",
        f"  {row.state} since {since}{': ' if row.why else ''}{row.why}",
        f"  {row.kind}{through}, listening on {', '.join(row.listening) or 'nothing'}",
        f"  {row.connections} connections now, {row.connections_total} in all, "
        f"{amount(row.sent)} out, {amount(row.received)} in",
    ]
    if row.dropped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(row.dropped.items()))
        lines.append(f"  {sum(row.dropped.values())} datagrams dropped: {reasons}")
    if row.last_error:
        lines.append(f"  last error: {row.last_error}")
    return "\n".join(map(printable, lines))


def amount(size: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def add(
    invocation: Invocation,
    words: Annotated[
        list[str], typer.Argument(metavar="KIND KEY=VALUE…", help="as in the config file: raw listen=tcp:8080 …")
    ],
    control: Control = None,
) -> int:
    """Add a rule to the running `up`, until it ends or the file is read again.

    vsockfwd add raw name=web listen=tcp:8080 connect=vsock:3:80
    """
    kind, *pairs = words
    table: dict[str, Any] = {"kind": kind}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"{printable(pair)!r} is no KEY=VALUE", hint="vsockfwd add raw listen=tcp:8080 connect=…")
        table[key] = _value(value)
    row = msgspec.convert(_ask(invocation, control, Request("add", rule=table)), Status)
    invocation.answer("add", rule=row) if invocation.json else print(_described(row))
    return 0


def _value(text: str) -> Any:
    """A number or a list as TOML has them, and text without its quotes."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, int | float | list) else text


def remove(
    invocation: Invocation,
    name: Annotated[str, typer.Argument(metavar="RULE", help="its name, as status shows it")],
    control: Control = None,
) -> int:
    """Stop a rule of the running `up`; its connections are reset."""
    removed = _ask(invocation, control, Request("remove", name=name))
    invocation.answer("remove", name=removed) if invocation.json else print(f"removed {printable(removed)}")
    return 0


def reload(invocation: Invocation, control: Control = None) -> int:
    """Have the running `up` read its file again: what changed is applied, the rest lives on."""
    changed = _ask(invocation, control, Request("reload"))
    if invocation.json:
        invocation.answer("reload", **changed)
    else:
        for verb in ("stopped", "started"):
            for name in changed[verb]:
                print(f"{verb} {printable(name)}")
        if not changed["stopped"] and not changed["started"]:
            print("nothing changed")
    return 0


def top(
    invocation: Invocation,
    interval: Annotated[float, typer.Option("-d", "--interval", metavar="SECONDS", help="between two looks")] = 1.0,
    count: Annotated[int, typer.Option("-n", metavar="N", help="look so often and end; 0: until told to stop")] = 0,
    control: Control = None,
) -> int:
    """Show the rules of the running `up` as a live table: connections, and bytes a second each way."""
    if not interval > 0:
        raise UsageError(f"--interval {interval:g}: a number of seconds above 0")
    return invocation.run(_top, control_address(control), interval, count)


async def _top(engine: Engine, address: UnixAddress, interval: float, count: int) -> None:
    from rich.console import Console
    from rich.live import Live

    before: dict[str, Status] = {}
    shown = 0
    with Live(console=Console(), auto_refresh=False, screen=count == 0) as live:
        while True:
            rows = msgspec.convert(await ask(engine, address, Request("status")), list[Status])
            live.update(_table(rows, before, interval), refresh=True)
            before = {row.name: row for row in rows}
            shown += 1
            if shown == count:
                return
            await trio.sleep(interval)


def _table(rows: list[Status], before: dict[str, Status], interval: float) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(expand=True, box=SIMPLE_HEAD)
    table.add_column("rule", overflow="ellipsis", no_wrap=True, ratio=2)
    table.add_column("state", no_wrap=True)
    for heading in ("now", "in all", "out/s", "in/s", "out", "in"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("last error", overflow="ellipsis", no_wrap=True, ratio=3)
    for row in rows:
        old = before.get(row.name, row)
        style = {"up": "green", "down": "red"}.get(row.state, "yellow")
        table.add_row(
            Text(printable(row.name)),
            Text(row.state, style=style),
            str(row.connections),
            str(row.connections_total),
            amount(max(0, row.sent - old.sent) / interval),
            amount(max(0, row.received - old.received) / interval),
            amount(row.sent),
            amount(row.received),
            Text(printable(row.why or row.last_error)),
        )
    return table
