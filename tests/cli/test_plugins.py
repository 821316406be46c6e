"""Plugins: a stranger's works through the public contract; a broken one is listed and harms nobody."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from tests.cli.process import agent, error_of, run
from vsockfwd.discovery import command_names, load_command

GUIDE = Path(__file__).parent.parent.parent / "docs/plugins.md"


@pytest.fixture(scope="module")
def shout(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The plugin that the author's guide builds, installed by pip from its folder: the environment that finds it."""
    folder = tmp_path_factory.mktemp("installed")
    source = tmp_path_factory.mktemp("source")
    files: dict[str, str] = {}
    for name, text in re.findall(
        r"^<!-- file: (\S+) -->\n```\w+\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL
    ):
        files[name] = f"{files[name]}\n\n{text}" if name in files else text
    assert sorted(files) == ["pyproject.toml", "vsockfwd_shout.py"]
    for name, text in files.items():
        (source / name).write_text(text)
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation",
         "--disable-pip-version-check", "--target", str(folder), str(source)],
        check=True, capture_output=True,
    )  # fmt: skip
    return found_in(folder)


def found_in(*folders: Path) -> dict[str, str]:
    """The environment that finds what is installed there, before what is found already."""
    before = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([*map(str, folders), *([before] if before else [])])}


def test_a_strangers_plugin_brings_a_mode_and_a_command(shout: dict[str, str], tmp_path: Path):
    listed = {row["name"]: row for row in json.loads(run("plugins", "--json", env=shout).stdout)["plugins"]}
    assert listed["shout"]["source"] == "vsockfwd-shout 1.0"
    assert not listed["shout"]["broken"]
    assert "\n  shout " in run("--help", env=shout).stdout
    with agent(tmp_path, env=shout):
        done = run("shout", f"unix:{tmp_path}/agent.sock", "hello", env=shout)
        assert (done.returncode, done.stdout) == (0, "HELLO\n"), done.stderr
        code, line = error_of("shout", f"unix:{tmp_path}/agent.sock", "", env=shout)
        assert code == 2
        assert "nothing to shout" in line


def test_a_plugin_missing_on_the_far_side_names_the_package_to_install_there(shout: dict[str, str], tmp_path: Path):
    with agent(tmp_path):
        code, line = error_of("shout", f"unix:{tmp_path}/agent.sock", "hello", env=shout)
    assert code == 69
    assert "install vsockfwd-shout where the agent runs" in line


def test_every_command_that_is_listed_is_the_one_that_its_entry_point_names():
    points = entry_points(group="vsockfwd.commands")
    assert {point.name for point in points} == set(command_names())
    for point in points:
        assert load_command(point.name) is point.load()


def test_a_command_starts_without_what_only_a_list_of_all_of_them_needs():
    code = (
        "import sys\n"
        "from vsockfwd.cli.main import main\n"
        "assert main(['cp', 'a', 'b']) == 2\n"
        "print([name for name in ('importlib.metadata', 'vsockfwd_copy.landing', 'rich') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == "[]\n"


def test_a_plugin_missing_on_this_side_names_the_package(tmp_path: Path):
    """An interpreter that finds the core's distribution and nothing else of ours."""
    code = (
        "import sys, importlib.metadata as m\n"
        "real = m.entry_points\n"
        "import vsockfwd.discovery as d\n"
        "d._written = lambda name: []\n"
        "m.entry_points = lambda **how: [p for p in real(**how) if p.dist.name == 'vsockfwd']\n"
        "from vsockfwd.cli.main import main\n"
        "sys.exit(main(['cp', 'a', '3:b']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert done.returncode == 2
    assert done.stderr == "vsockfwd: no command is called 'cp' – pip install vsockfwd-copy\n"


def fake(folder: Path, distribution: str, mode: str, module: str) -> Path:
    """A distribution that is no more than its entry points and a module; returns its folder."""
    info = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[vsockfwd.modes]\n{mode} = {distribution.replace('-', '_')}:MODE\n")
    (folder / f"{distribution.replace('-', '_')}.py").write_text(module)
    return folder


FINE = "from vsockfwd.plugin import Mode\nMODE = Mode({name!r}, 'does nothing')\n"


@pytest.mark.parametrize(
    ("mode", "module", "told"),
    [
        ("broken", "import no_such_module", "No module named 'no_such_module'"),
        ("broken", "raise SystemExit(3)", "SystemExit"),
        ("broken", "1 / 0", "ZeroDivisionError"),
        ("broken", "MODE = 3", "is no Mode"),
        ("broken", "from vsockfwd.plugin import Mode\nMODE = Mode('broken', '', contract=99)", "contract 99"),
        ("broken", FINE.format(name="other"), "its entry point 'broken'"),
        ("status", FINE.format(name="status"), "is the core's"),
        ("forward", FINE.format(name="forward"), "is the core's"),
    ],
)
def test_a_broken_plugin_is_listed_with_its_reason_and_harms_nobody(tmp_path: Path, mode: str, module: str, told: str):
    env = found_in(fake(tmp_path / "installed", "vsockfwd-stranger", mode, module))
    done = run("plugins", "--json", env=env)
    assert done.returncode == 1
    rows = json.loads(done.stdout)["plugins"]
    (stranger,) = [row for row in rows if row["source"] == "vsockfwd-stranger 1.0"]
    assert told in stranger["broken"]
    assert all(not row["broken"] for row in rows if row is not stranger)
    with agent(tmp_path, env=env) as guest:
        assert run("ping", "-c", "1", f"unix:{tmp_path}/agent.sock", env=env).returncode == 0
        assert told in str(guest.of("problem")[0]["why"])


def test_two_plugins_of_one_name_are_refused_both_named(tmp_path: Path):
    folders = [fake(tmp_path / name, f"vsockfwd-{name}", "twin", FINE.format(name="twin")) for name in ("one", "two")]
    done = run("plugins", "--json", env=found_in(*folders))
    (twin,) = [row for row in json.loads(done.stdout)["plugins"] if row["name"] == "twin"]
    assert "vsockfwd-one 1.0" in twin["broken"]
    assert "vsockfwd-two 1.0" in twin["broken"]
