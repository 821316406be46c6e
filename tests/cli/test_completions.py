"""Completions: made from the command line, and used by real shells at a terminal as a person uses them."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers import need

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "completions"
SECONDS = 20.0
READY = "is ready "
"""The prompt: it is shown once the shell reads keys, and not before."""

START = {
    "bash": (["--norc", "--noprofile", "-i"], f". {FOLDER}/vsockfwd.bash; PS1='is ''ready '"),
    "zsh": (["-f", "-i"], f"fpath=({FOLDER} $fpath); autoload -U compinit; compinit -u -D; PS1='is ''ready '"),
    "fish": (["--no-config", "-i"], f"source {FOLDER}/vsockfwd.fish; function fish_prompt; echo -n 'is ''ready '; end"),
}


class Terminal:
    """A shell at a terminal of its own."""

    def __init__(self, shell: str, folder: Path) -> None:
        words, setup = START[shell]
        # What the completion asks for names: a program of that name, as it is installed.
        program = folder / "vsockfwd"
        program.write_text("#!/bin/sh\n[ \"$*\" = 'guests --names' ] && printf 'webserver\\nbackup\\n'\n")
        program.chmod(0o755)
        path = f"{folder}:{os.environ['PATH']}"
        environment = {"PATH": path, "HOME": str(folder), "TERM": "dumb", "LC_ALL": "C.UTF-8", "ZDOTDIR": str(folder)}
        ours, theirs = pty.openpty()
        self.file = ours
        self.said = ""
        self.process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", need(shell), *words],
            stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=folder,
        )  # fmt: skip
        os.close(theirs)
        self.type(f"{setup}\n")
        self.until(READY)

    def type(self, keys: str) -> None:
        os.write(self.file, keys.encode())

    def until(self, text: str) -> None:
        """Read until the terminal shows it."""
        deadline = time.monotonic() + SECONDS
        while text not in self.said:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} never came: {self.said!r}"
            if select.select([self.file], [], [], left)[0]:
                piece = os.read(self.file, 4096).decode("utf-8", "replace")
                self.said += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()=>][B0]?|[\x07\x08\r]", "", piece)

    def completes(self, keys: str, *shown: str) -> None:
        """Type, ask for completion, and see; then take the line back."""
        self.said = ""
        self.type(f"{keys}\t")
        for text in shown:
            self.until(text)
        self.type("\x15")

    def close(self) -> None:
        os.close(self.file)  # its terminal is gone: the shell hears a hangup and ends
        self.process.wait(SECONDS)


@pytest.fixture(params=sorted(START))
def terminal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Terminal]:
    shell = Terminal(request.param, tmp_path)
    yield shell
    shell.close()


def test_a_real_shell_completes_commands_options_schemes_and_guests(terminal: Terminal):
    terminal.completes("vsockfwd forw", "vsockfwd forward")
    terminal.completes("vsockfwd forward --exit", "--exit-on-failure")
    terminal.completes("vsockfwd forward hyb", "hybrid:")
    terminal.completes("vsockfwd ping webs", "ping webserver")
    terminal.completes("vsockfwd cp back", "cp backup")


def test_the_completions_are_those_of_the_command_line():
    """In a process of its own, as `make completions` runs it."""
    made = subprocess.run(
        [sys.executable, "-c",
         "import json, sys; sys.path.insert(0, 'packaging'); import completions as c; print(json.dumps(c.files()))"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name, text in json.loads(made.stdout).items():
        assert (FOLDER / name).read_text() == text, "run `make completions`"
