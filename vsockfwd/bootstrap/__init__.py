"""What starts an agent in a guest: a systemd unit, an OpenRC script, or cloud-init's user data that brings both. Pure.

The unit and the script are files beside this one, written to be read; here they get the program's place and the
options of `serve` that were asked for.
"""

from __future__ import annotations

import base64
import re
import shlex
import textwrap
from collections.abc import Sequence
from importlib.resources import files

PROGRAM = "/usr/local/bin/vsockfwd"
"""Where the program is in the guest."""

_INTO = {
    "systemd": "> /etc/systemd/system/vsockfwd-agent.service; systemctl enable --now vsockfwd-agent",
    "openrc": "> /etc/init.d/vsockfwd-agent; chmod +x /etc/init.d/vsockfwd-agent; rc-update add vsockfwd-agent",
}


def systemd(program: str, options: Sequence[str]) -> str:
    """A service unit (systemd.service(5))."""
    words = " ".join(map(_systemd_word, [program, "serve", *options]))
    return _file("vsockfwd-agent.service").replace("ExecStart=vsockfwd serve", f"ExecStart={words}")


def _systemd_word(word: str) -> str:
    """A word of a command line, as a unit quotes it (systemd.service(5), COMMAND LINES)."""
    word = word.replace("\\", "\\\\").replace("%", "%%").replace("$", "$$").replace('"', '\\"')
    return word if re.fullmatch(r"[A-Za-z0-9_@%+=:,./$-]+", word) else f'"{word}"'


def openrc(program: str, options: Sequence[str]) -> str:
    """A service script (openrc-run(8)); its arguments are split by a shell."""
    arguments = shlex.join(["serve", *options])
    for character in '\\"$`':
        arguments = arguments.replace(character, f"\\{character}")
    text = _file("vsockfwd-agent.openrc").replace("command=vsockfwd\n", f"command={shlex.quote(program)}\n")
    return text.replace("${command_args:-serve}", arguments) if options else text


def cloud_init(program: str, options: Sequence[str], pyz: bytes | None) -> str:
    """User data (cloud-init, #cloud-config): the unit, and the program, out of `pyz` or from the package index."""
    lines = ["#cloud-config", "write_files:"]
    lines += _written("/etc/systemd/system/vsockfwd-agent.service", "0644", systemd(program, options))
    commands = [["systemctl", "daemon-reload"], ["systemctl", "enable", "--now", "vsockfwd-agent.service"]]
    if pyz is None:
        commands.insert(0, ["ln", "-sf", "/opt/vsockfwd/bin/vsockfwd", program])
        commands.insert(0, ["/opt/vsockfwd/bin/pip", "install", "vsockfwd[all]"])
        commands.insert(0, ["python3", "-m", "venv", "/opt/vsockfwd"])
    else:
        encoded = "\n".join(textwrap.wrap(base64.b64encode(pyz).decode(), 100))
        lines += _written(program, "0755", encoded, encoding="b64")
    lines.append("runcmd:")
    lines += [f"  - [{', '.join(map(_yaml_word, command))}]" for command in commands]
    return "\n".join(lines) + "\n"


def _written(path: str, mode: str, text: str, encoding: str = "") -> list[str]:
    lines = [f"  - path: {_yaml_word(path)}", f"    permissions: '{mode}'"]
    if encoding:
        lines.append(f"    encoding: {encoding}")
    return [*lines, "    content: |", *(f"      {line}".rstrip() for line in text.splitlines())]


def _yaml_word(word: str) -> str:
    return "'" + word.replace("'", "''") + "'"


def _file(name: str) -> str:
    return files(__name__).joinpath(name).read_text(encoding="utf-8")


def how(kind: str) -> str:
    """How what was printed is put to work, for a person who reads it; '' where the file is handed to somebody else."""
    return f"vsockfwd bootstrap {kind} {_INTO[kind]}" if kind in _INTO else ""
