"""The units that packaging/systemd ships, held to systemd's own judgement."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.peers import need

UNITS = Path(__file__).parent.parent.parent / "packaging/systemd"
SERVICES = sorted(UNITS.glob("*/*.service"))
EXPOSURE = 25
"""Tenths of what `systemd-analyze security` calls OK: unconfined is 96, and a network daemon is hardly below 10."""


def name(unit: Path) -> str:
    return str(unit.relative_to(UNITS))


def analyze(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [need("systemd-analyze"), *words],
        env={**os.environ, "XDG_RUNTIME_DIR": os.fspath(folder), "HOME": os.fspath(folder), "SYSTEMD_PAGER": "cat"},
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["system", "user"])
def test_systemd_knows_every_word_of_the_units(kind: str, tmp_path: Path):
    units = []
    for unit in sorted((UNITS / kind).iterdir()):
        made = tmp_path / unit.name
        text = unit.read_text()
        for key in ("ExecStart", "ExecReload"):
            text = text.replace(f"{key}=vsockfwd", f"{key}={sys.executable} -m vsockfwd")
        made.write_text(text)
        units.append(os.fspath(made))
    done = analyze("verify", f"--{kind}", "--man=no", *units, folder=tmp_path)
    told = [line for line in done.stderr.splitlines() if "vsockfwd" in line]
    assert (done.returncode, told) == (0, []), done.stderr


@pytest.mark.parametrize("unit", [unit for unit in SERVICES if unit.parent.name == "system"], ids=name)
def test_a_system_service_is_confined(unit: Path, tmp_path: Path):
    done = analyze("security", "--offline=yes", f"--threshold={EXPOSURE}", os.fspath(unit), folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("unit", SERVICES, ids=name)
def test_a_service_that_is_told_to_stop_has_not_failed_and_may_use_vsock(unit: Path):
    lines = unit.read_text().splitlines()
    assert "Type=notify" in lines
    assert "SuccessExitStatus=143" in lines
    assert any(line.startswith("RestrictAddressFamilies=AF_VSOCK ") for line in lines)
