"""`vsockfwd keygen`: a key that two sides share."""

from __future__ import annotations

import os
import re
from typing import Annotated

import typer

from vsockfwd.engine.invocation import Invocation
from vsockfwd.engine.keys import SUFFIX, create_key
from vsockfwd.errors import printable


def keygen(
    invocation: Invocation,
    file: Annotated[str, typer.Argument(metavar="[FILE]", help="the file to make")] = f"vsockfwd{SUFFIX}",
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="what the agent calls who has it (default: the file's)")
    ] = None,
) -> int:
    """Make a key, 256 random bits, in a file that nobody else may read (mode 0600); what stands there is left alone.

    Give both sides a copy: vsockfwd serve --auth-key FILE there, --auth-key FILE on the commands here. Who has it may
    do what the agent lets its name do. It is never shown, here or on the wire.
    """
    if name is None:
        name = re.sub(r"[^A-Za-z0-9_.@-]+", "-", os.path.basename(file).removesuffix(SUFFIX)).strip(".-@") or "key"
    key = create_key(file, name[:64])
    if invocation.json:
        invocation.answer("keygen", name=key.name)
    else:
        print(f"{printable(file)}: a key called {key.name}")
    return 0
