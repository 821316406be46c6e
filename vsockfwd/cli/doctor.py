"""`vsockfwd doctor`: what is missing or wrong here, and the command that mends it; with a TARGET, there too."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping
from typing import Annotated

import trio
import typer

from vsockfwd import __version__
from vsockfwd.address import Address
from vsockfwd.contract import Mode, package_of
from vsockfwd.doctor.checks import examine
from vsockfwd.doctor.finding import Finding, State, fix, note, ok
from vsockfwd.doctor.system import System
from vsockfwd.engine import Engine
from vsockfwd.engine.control_link import SOFTWARE
from vsockfwd.engine.invocation import Invocation
from vsockfwd.engine.session import open_session
from vsockfwd.errors import VsockfwdError, printable

ROUND_TRIPS = 3


def doctor(
    invocation: Invocation,
    target: Annotated[
        str | None, typer.Argument(metavar="[TARGET]", help="an agent to ask, too; without it nothing is connected to")
    ] = None,
    port: Annotated[
        int | None, typer.Option("-p", metavar="PORT", help="the agent's port, where it is not 876")
    ] = None,
    auth_key: Annotated[
        str | None, typer.Option("--auth-key", metavar="FILE", help="the key that is shared with the agent")
    ] = None,
) -> int:
    """Say what is missing or wrong on this machine, and the command or flag that mends it.

    Kernel, permissions, Python, containers, the guests that run here and their sockets; nothing is connected to but the
    agent at TARGET, where one is named. Exit 1 if something is to be mended.
    """
    findings = list(examine(System()))
    if target is not None:
        findings += _of_target(invocation, target, port, auth_key)
    if invocation.json:
        rows = [
            {"state": found.state.value, "topic": found.topic, "told": found.told, "mend": list(found.mend)}
            for found in findings
        ]
        json.dump({"event": "doctor", "version": 1, "findings": rows}, sys.stdout)
        print()
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
    began = trio.current_time()
    async with open_session(engine, target) as session:
        ready = await session.login()
        login = trio.current_time() - began
        least = min([await session.ping() for _ in range(ROUND_TRIPS)])
        findings.append(
            ok(
                "agent",
                f"{session.name} answers and lets us in, as {ready.seen_as}; "
                f"login {login * 1e3:.1f} ms, round trip {least * 1e3:.2f} ms",
            )
        )
        findings += of_versions(session.software, ready.modes, modes)


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
