"""`vsockfwd doctor`: what is missing or wrong here, and the command that mends it; with a TARGET, there too."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Mapping
from typing import Annotated

import trio
import typer

from vsockfwd import __version__
from vsockfwd.address import Address
from vsockfwd.contract import Mode, package_of
from vsockfwd.doctor.checks import WAYS_TO_SET_A_CLOCK, examine
from vsockfwd.doctor.finding import Finding, State, fix, note, ok
from vsockfwd.doctor.system import System
from vsockfwd.engine import Engine
from vsockfwd.engine.control_link import SOFTWARE
from vsockfwd.engine.invocation import Invocation
from vsockfwd.engine.session import open_session
from vsockfwd.errors import VsockfwdError, printable
from vsockfwd.option import AgentPort, SharedKey

ROUND_TRIPS = 3

CLOCK_NOTED, CLOCK_WRONG = 1.0, 60.0
"""Seconds by which an agent's clock may be off before it is worth a word, and before it is to be mended."""


def doctor(
    invocation: Invocation,
    target: Annotated[
        str | None, typer.Argument(metavar="[TARGET]", help="an agent to ask, too; without it nothing is connected to")
    ] = None,
    port: AgentPort = None,
    auth_key: SharedKey = None,
) -> int:
    """Say what is missing or wrong on this machine, and the command or flag that mends it.

    Kernel, permissions, Python, containers, the guests that run here and their sockets; nothing is connected to but the
    agent at TARGET, where one is named. Exit 1 if something is to be mended.
    """
    findings = list(examine(System()))
    if target is not None:
        findings += _of_target(invocation, target, port, auth_key)
    if invocation.json:
        invocation.answer("doctor", findings=findings)
    else:
        _print(findings)
    return 1 if any(found.state is State.FIX for found in findings) else 0


# --- the agent that was named


def _of_target(invocation: Invocation, target: str, port: int | None, auth_key: str | None) -> list[Finding]:
    findings: list[Finding] = []
    try:
        invocation.run(_ask, invocation.target(target, port, auth_key), invocation.modes(), findings)
    except VsockfwdError as error:
        findings.append(fix("agent", error.message, *filter(None, [error.hint])))
    return findings


async def _ask(engine: Engine, target: Address, modes: Mapping[str, Mode], findings: list[Finding]) -> None:
    began, earliest = trio.current_time(), time.time()
    async with open_session(engine, target) as session:
        ready = await session.login()
        login, latest = trio.current_time() - began, time.time()
        least = min([await session.ping() for _ in range(ROUND_TRIPS)])
        findings.append(
            ok(
                "agent",
                f"{session.name} answers and lets us in, as {ready.seen_as}; "
                f"login {login * 1e3:.1f} ms, round trip {least * 1e3:.2f} ms",
            )
        )
        if ready.confined:
            findings.append(ok("confined", f"the agent is: {printable(ready.confined)}"))
        findings += of_clock(ready.clock, earliest, latest)
        findings += of_versions(session.software, ready.modes, modes)


def of_clock(there: float, earliest: float, latest: float) -> Iterable[Finding]:
    """What an agent's clock is to ours, in seconds since 1970, read between two moments of ours; 0: it told none."""
    off = min(there - earliest, 0.0) + max(there - latest, 0.0)
    if not there:
        return
    if abs(off) < CLOCK_NOTED:
        yield ok("clock", "the agent's and ours agree")
        return
    told = f"the agent's clock is {_apart(abs(off))} {'ahead of' if off > 0 else 'behind'} ours"
    if abs(off) < CLOCK_WRONG:
        yield note("clock", told)
    else:
        yield fix("clock", f"{told}: certificates and files' times will seem wrong", *WAYS_TO_SET_A_CLOCK)


def _apart(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.1f} seconds"


def of_versions(software: str, there: Mapping[str, tuple[int, ...]], here: Mapping[str, Mode]) -> Iterable[Finding]:
    """What an agent's software and modes are to ours."""
    if software == SOFTWARE:
        yield ok("versions", f"{SOFTWARE} on both sides")
    else:
        yield note(
            "versions", f"the agent is {printable(software) or 'of another make'}, we are vsockfwd {__version__}"
        )
    for name, mode in sorted(here.items()):
        if mode.serve is None:
            continue
        package = "vsockfwd" if name == "forward" else package_of(name)
        if name not in there:
            yield note("modes", f"the agent lacks {name}", f"pip install {package}   # there")
        elif not set(there[name]) & set(mode.versions):
            yield fix(
                "modes", f"no version of {name} is known on both sides", f"pip install -U {package}   # on the older"
            )


# --- showing

_COLOURS = {State.OK: "32", State.NOTE: "33", State.FIX: "1;31"}


def _print(findings: list[Finding]) -> None:
    terminal = sys.stdout.isatty()
    colour = terminal and not os.environ.get("NO_COLOR")
    columns = shutil.get_terminal_size().columns if terminal else 1 << 16
    width = max(len(found.topic) for found in findings)
    indent = " " * (width + 8)
    room = max(40, columns - 1)
    for found in findings:
        mark = f"{found.state.value:<4}"
        if colour:
            mark = f"\x1b[{_COLOURS[found.state]}m{mark}\x1b[m"
        body = textwrap.wrap(found.told, room - len(indent)) or [""]
        print(f" {mark} {found.topic:<{width}}  " + f"\n{indent}".join(body))
        for line in found.mend:
            # What is typed is there to be copied: it breaks between words only, and its remark goes first.
            command, _, remark = line.partition("   # ")
            if remark and len(command) + len(remark) + 12 <= room:
                command, remark = line, ""
            for number, part in enumerate(
                textwrap.wrap(command, room - 9, break_on_hyphens=False, break_long_words=False)
            ):
                print(f"      {' ' if number else '→'} {part}")
            for part in textwrap.wrap(f"# {remark}", room - 11) if remark else ():
                print(f"          {part}")
    broken = sum(found.state is State.FIX for found in findings)
    print(f"\n{broken} to mend" if broken else "\nnothing to mend")
