"""What `make dist` makes, as a user gets it: wheels in an environment of their own, and the single file for guests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.process import Server

pytestmark = pytest.mark.dist
ROOT = Path(__file__).parent.parent.parent
DIST = ROOT / "dist"
PYZ = DIST / "vsockfwd.pyz"
PYTHON = os.path.realpath(sys.executable)
"""The interpreter itself, which sees nothing that is installed here."""

SMALL = 1_500_000
"""Bytes that the single file has at most."""


def done(*command: str | Path, **more: object) -> str:
    found = subprocess.run(
        [str(word) for word in command], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, **more
    )  # type: ignore[call-overload]
    assert found.returncode == 0, found.stdout + found.stderr
    return str(found.stdout)


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An environment with `vsockfwd[all]` out of the wheels, its dependencies as they are pinned."""
    place = tmp_path_factory.mktemp("fresh")
    venv.create(place, with_pip=True)
    pip = [place / "bin/python", "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    done(*pip, "--require-hashes", "-r", ROOT / "constraints.txt")
    done(*pip, "--no-index", "--find-links", DIST, "vsockfwd[all]")
    return place


def test_the_wheels_bring_every_command_page_and_completion(prefix: Path):
    vsockfwd = prefix / "bin/vsockfwd"
    listed = {row["name"]: row["broken"] for row in json.loads(done(vsockfwd, "plugins", "--json"))["plugins"]}
    assert listed == {"copy": "", "dgram": "", "forward": "", "relay": ""}
    for page in (ROOT / "man").iterdir():
        assert (prefix / f"share/man/man{page.suffix[1:]}/{page.name}").read_bytes() == page.read_bytes()
    for name, place in {
        "vsockfwd.bash": "bash-completion/completions/vsockfwd",
        "_vsockfwd": "zsh/site-functions/_vsockfwd",
        "vsockfwd.fish": "fish/vendor_completions.d/vsockfwd.fish",
    }.items():
        assert (prefix / "share" / place).read_bytes() == (ROOT / "completions" / name).read_bytes()
    assert "ExecStart=/usr/local/bin/vsockfwd serve" in done(vsockfwd, "bootstrap", "systemd")
    assert "vsockfwd" in done(vsockfwd, "--version")


def test_the_single_file_is_an_agent_for_the_wheels_commands(prefix: Path, tmp_path: Path):
    assert PYZ.stat().st_size < SMALL
    vsockfwd = prefix / "bin/vsockfwd"
    target = f"unix:{tmp_path}/agent.sock"
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path / "home")}
    with Server("serve", "--listen", target, command=[PYTHON, "-I", str(PYZ)], env=environment):
        assert "agent answers" in done(vsockfwd, "ping", "-c", "1", target)
        (tmp_path / "one").write_bytes(os.urandom(1 << 20))
        done(vsockfwd, "cp", "-q", tmp_path / "one", f"[{target}]:{tmp_path}/two")
        assert (tmp_path / "two").read_bytes() == (tmp_path / "one").read_bytes()
    assert list(tmp_path.glob("home/**")) == []


def test_the_single_file_needs_no_files_in_memory(tmp_path: Path):
    """A kernel without memfd_create: the machine code is put in a file, which goes again."""
    code = (
        "import os, runpy, sys; del os.memfd_create\n"
        f"sys.argv = ['vsockfwd.pyz', 'plugins']; runpy.run_path({str(PYZ)!r}, run_name='__main__')"
    )
    told = done(PYTHON, "-I", "-c", code, env={"TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin"})
    assert told.startswith("copy ")
    assert list(tmp_path.iterdir()) == []


def test_another_python_is_told_which_one_the_single_file_needs():
    code = (
        "import importlib.machinery, runpy; importlib.machinery.EXTENSION_SUFFIXES[:] = ['.cpython-39-sparc-musl.so']\n"
        f"runpy.run_path({str(PYZ)!r}, run_name='__main__')"
    )
    told = subprocess.run([PYTHON, "-I", "-c", code], capture_output=True, text=True)
    assert told.returncode == 69
    assert f"made for CPython {sys.version_info.major}.{sys.version_info.minor} on Linux" in told.stderr
    assert len(told.stderr.splitlines()) == 1


def test_what_the_single_file_lacks_is_told_where_to_get():
    told = subprocess.run([PYTHON, "-I", str(PYZ), "ping", "3"], capture_output=True, text=True)
    assert (told.returncode, "the agent alone" in told.stderr) == (2, True)
    assert "--read-only" in done(PYTHON, "-I", PYZ, "serve", "--help")
