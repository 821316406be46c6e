"""Who mistypes is told what was meant; who is used to ssh types as ever."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.cli.process import agent, run
from vsockfwd.__main__ import main


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("pnig 3", "ping"), ("ping --cuont 3 3", "--count"), ("serve --lisen x", "--listen"),
        ("forward tcp:1 vsok:3:1", "vsock"), ("forward tcp:1 vsock:hots:1", "host"), ("--versoin", "--version"),
        ("cp --recursiv a 3:", "--recursive"), ("ping webb", "web"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_what_was_meant(
    line: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "c.toml").write_text('[targets]\nweb = "vsock:3"\n')
    monkeypatch.setenv("VSOCKFWD_CONFIG", os.fspath(tmp_path / "c.toml"))
    assert main(line.split()) == 2
    said = capsys.readouterr().err
    assert said.endswith(f"did you mean {meant}?\n")
    assert len(said.splitlines()) == 1


def test_a_command_behind_the_target_keeps_its_own_options(tmp_path: Path):
    target = f"unix:{tmp_path}/agent.sock"
    with agent(tmp_path):
        program = "import sys; print(sys.argv[1:]); sys.exit(3)"
        done = run("forward", "-q", "-L", "0:localhost:9", target, sys.executable, "-c", program, "-v", "--json", "-L")
    assert (done.returncode, done.stdout) == (3, "['-v', '--json', '-L']\n")
