"""The call of a command's function: with an Invocation, and then whatever typer makes of its signature.

The flags that all commands share (-v, -q, --json) become the invocation here, so that no command repeats them.
"""

from __future__ import annotations

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
    from vsockfwd.cli.config_file import load_targets

    return load_targets()


def _modes(report: Report) -> Mapping[str, Mode]:
    found = find_modes()
    for item in found:
        if item.broken:
            report(Problem(f"mode {item.name} of {item.source}", f"left out: {item.broken}"))
    return working(found)
