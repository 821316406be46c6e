"""The call of a command's function: with an Invocation, and then whatever typer makes of its signature.

The flags that all commands share (-v, -q, --json) become the invocation here, so that no command repeats them.
"""

from __future__ import annotations

import os
from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import Any

from vsockfwd.address import Address
from vsockfwd.contract import Mode
from vsockfwd.discovery import find_modes, working
from vsockfwd.engine.invocation import Invocation
from vsockfwd.events import Problem, Report
from vsockfwd.report import reporter

PROGRAM = "vsockfwd"


class ReaderGone(Exception):
    """A BrokenPipeError, out of reach of a parser that makes an exit code of its own of it."""


def call(
    function: Callable[..., int | None],
    *words: Any,
    verbosity: int = 0,
    quiet: bool = False,
    json: bool = False,
    log_format: str | None = None,
    **own: Any,
) -> int:
    """Call a command's function with the invocation that the common flags ask for; returns the exit code."""
    report = reporter(verbosity, quiet, json, log_format=log_format)
    try:
        invocation = Invocation(report, json, verbosity, lambda: _modes(report), _targets, quiet)
        return function(invocation, *words, **own) or 0
    except BrokenPipeError:
        raise ReaderGone from None
    finally:
        report.close()


def _targets() -> Mapping[str, Address]:
    """What a name may mean: a target of the config file, else a guest."""
    from vsockfwd.cli.config_file import load_targets

    return ChainMap(load_targets(), guest_addresses())  # type: ignore[arg-type] # nothing is written to it


def guest_addresses() -> Mapping[str, Address]:
    """Guests by the names that may be typed for them; they are looked for when a name is, once."""
    from vsockfwd.guests.guest import GuestAddresses
    from vsockfwd.guests.machine import Machine

    return GuestAddresses(Machine().guests, os.geteuid())


def _modes(report: Report) -> Mapping[str, Mode]:
    found = find_modes()
    for item in found:
        if item.broken:
            report(Problem(f"mode {item.name} of {item.source}", f"left out: {item.broken}"))
    return working(found)
