"""`vsockfwd bootstrap`: what starts the agent in a guest, ready to be put there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vsockfwd.bootstrap import PROGRAM, cloud_init, how, openrc, systemd
from vsockfwd.cli.option import NotPlain, read_words
from vsockfwd.cli.serve import serve
from vsockfwd.engine.invocation import Invocation
from vsockfwd.errors import UsageError, from_oserror, printable

KINDS = ("systemd", "openrc", "cloud-init")


def bootstrap(
    invocation: Invocation,
    kind: Annotated[str, typer.Argument(metavar="systemd|openrc|cloud-init", help="what starts services in the guest")],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[-- SERVE-OPTION…]", help="options of `vsockfwd serve`")
    ] = None,
    program: Annotated[
        str, typer.Option("--program", metavar="PATH", help="where vsockfwd is, in the guest")
    ] = PROGRAM,
    pyz: Annotated[
        str | None, typer.Option("--pyz", metavar="FILE", help="cloud-init: bring this vsockfwd.pyz along")
    ] = None,
) -> int:
    """Print what starts the agent in a guest: a systemd unit, an OpenRC script or cloud-init's user data.

    vsockfwd bootstrap systemd -- --allow-cid host. cloud-init installs from the package index, or brings --pyz along.
    """
    if kind not in KINDS:
        raise UsageError(f"bootstrap {printable(kind)}: no such kind", hint=f"there are {', '.join(KINDS)}")
    if pyz is not None and kind != "cloud-init":
        raise UsageError("--pyz goes with cloud-init, which carries files", hint=f"copy it to {program} in the guest")
    words = options or []
    try:
        read_words(serve, words)
    except NotPlain as error:
        raise UsageError(f"bootstrap: serve would not take it: {error}", hint="vsockfwd serve --help") from None
    if any(character in word for word in (program, *words) for character in "\n\r\0"):
        raise UsageError("a path or an option with a line break cannot stand in a service's file")
    match kind:
        case "systemd":
            text = systemd(program, words)
        case "openrc":
            text = openrc(program, words)
        case _:
            text = cloud_init(program, words, None if pyz is None else _read(pyz))
    sys.stdout.write(text)
    if sys.stdout.isatty() and (hint := how(kind)):
        print(f"# {hint}", file=sys.stderr)
    return 0


def _read(pyz: str) -> bytes:
    try:
        return Path(pyz).read_bytes()
    except OSError as error:
        raise from_oserror(error, printable(pyz), hint="make pyz makes it") from None
