"""`vsockfwd ssh-config`: blocks for ~/.ssh/config, one a guest: ssh, scp, sftp and rsync know guests by name."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from vsockfwd.address import Address, HybridAddress, VsockAddress
from vsockfwd.cli.call import PROGRAM
from vsockfwd.cli.config_file import load_targets
from vsockfwd.engine.invocation import Invocation
from vsockfwd.errors import UsageError, printable
from vsockfwd.guests.guest import typed_as
from vsockfwd.guests.machine import Machine
from vsockfwd.option import SharedKey

SSH = 22
"""The vsock port on which a guest's sshd listens, where systemd 256 or later or a socket unit has it listen."""


def ssh_config(
    invocation: Invocation,
    targets: Annotated[
        list[str] | None, typer.Argument(metavar="[TARGET]…", help="these alone; else every guest and named target")
    ] = None,
    user: Annotated[str | None, typer.Option("--user", "-l", metavar="NAME", help="log in as this user")] = None,
    port: Annotated[int, typer.Option("--port", "-p", metavar="PORT", help="where the guest's sshd listens")] = SSH,
    agent: Annotated[
        bool, typer.Option("--agent", help="through the guest's agent, to its localhost, where sshd has no vsock")
    ] = False,
    jump: Annotated[
        str | None, typer.Option("--jump", metavar="HOST", help="for another machine: by way of ssh to this one")
    ] = None,
    auth_key: SharedKey = None,
) -> int:
    """Print Host blocks for ~/.ssh/config: ssh, scp, sftp and rsync then know the guests by name.

    vsockfwd ssh-config > ~/.ssh/vsockfwd, and `Include vsockfwd` at the top of ~/.ssh/config. ssh is handed the socket
    itself (ProxyUseFdpass), so that nothing of ours runs on. A CID stands in it as it is now: print it anew for others.
    """
    if not agent and "relay" not in invocation.modes():
        raise UsageError("ssh-config: sockets are handed over by relay", hint="pip install vsockfwd-relay, or --agent")
    if not 0 < port < 1 << 32:
        raise UsageError(f"--port {port}: a port is a number above 0")
    if auth_key is not None and not agent:
        raise UsageError("ssh-config: a key is for agents, and sshd is reached without one", hint="--agent")
    key = [] if auth_key is None else ["--auth-key", os.path.abspath(auth_key)]
    blocks = [
        "\n".join(_block(name, target, address, port, user, agent, jump, key))
        for name, target, address in _places(invocation, targets)
    ]
    print("# Made by `vsockfwd ssh-config`.")
    for block in blocks:
        print(f"\n{block}")
    return 0


def _places(invocation: Invocation, wanted: list[str] | None) -> Iterator[tuple[str, str, Address]]:
    """(the name for ssh, what is typed as TARGET, the address) of those that were asked for, or of all."""
    if wanted:
        for text in wanted:
            yield _name(text), text, invocation.target(text)
        return
    named = load_targets()
    for name, address in named.items():
        yield name, name, address
    guests = Machine().guests()
    for guest in guests:
        target = typed_as(guest, guests, os.geteuid())
        if guest.address is not None and target not in named:
            yield _name(target), target, guest.address


def _name(target: str) -> str:
    """What ssh calls it: a word that is no pattern of ssh_config(5)."""
    return f"vm{target}" if target.isdecimal() else re.sub(r"[^A-Za-z0-9_./-]", "-", target)


def _block(
    name: str, target: str, address: Address, port: int, user: str | None, agent: bool, jump: str | None, key: list[str]
) -> Iterator[str]:
    raw = not agent and isinstance(address, VsockAddress | HybridAddress)
    if raw:
        words = ["relay", *(["--fdpass"] if jump is None else []), "-", _relays_word(address, port)]
    else:
        words = ["forward", *key, "-W", f"localhost:{port}", target]
    command = shlex.join([*_program(jump is not None), *words])
    if jump is not None:
        command = f"ssh {shlex.quote(jump)} {shlex.quote(command)}"
    yield f"Host {name}"
    # A guest's key belongs to its name: its CID may be another's tomorrow.
    yield f"  HostKeyAlias vsockfwd-{name}"
    yield f"  ProxyCommand {command.replace('%', '%%')}"
    if raw and jump is None:
        yield "  ProxyUseFdpass yes"
    if user is not None:
        yield f"  User {printable(user)}"


def _relays_word(address: Address, port: int) -> str:
    """The address in the words of relay, in which a backslash makes a character plain."""
    if isinstance(address, VsockAddress):
        return f"VSOCK-CONNECT:{address.cid}:{port}"
    assert isinstance(address, HybridAddress)
    try:
        path = address.path.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{address.bare()}: ssh's configuration is text, and this path is none") from None
    plain = re.sub(r"([^A-Za-z0-9/._-])", r"\\\1", path)
    return f"HYBRID-CONNECT:{plain}:{port}"


def _program(elsewhere: bool) -> list[str]:
    """How ssh calls us: by name where that is found; on another machine's behalf by name alone."""
    if elsewhere or shutil.which(PROGRAM):
        return [PROGRAM]
    if os.path.basename(sys.argv[0]) == PROGRAM:
        return [os.path.abspath(sys.argv[0])]
    return [sys.executable, "-m", "vsockfwd"]
