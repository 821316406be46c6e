"""What is written about the command line says what the command line does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.peers import need
from vsockfwd.cli.commands import group
from vsockfwd.cli.main import main
from vsockfwd.discovery import command_names
from vsockfwd.errors import Code, from_code

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "plugins").glob("*/README.md"))]


def test_the_table_of_wire_codes_is_the_one_in_the_code():
    rows = re.findall(r"^\| (\d+) \| ([a-z ]+) \| (\d+) \|$", (ROOT / "docs/exit-codes.md").read_text(), re.MULTILINE)
    code = [(str(int(c)), c.name.lower().replace("_", " "), str(from_code(c, "x").exit_code)) for c in Code if c]
    assert rows == code


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file(page: Path):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), link


def test_the_man_page_renders_without_a_warning_and_knows_every_command():
    page = ROOT / "man/vsockfwd.1"
    lint = subprocess.run([need("mandoc"), "-T", "lint", "-W", "warning", str(page)], capture_output=True, text=True)
    assert lint.returncode == 0, lint.stdout
    for name in command_names():
        assert f".It Cm {name}" in page.read_text(), name


def test_the_completions_are_those_of_the_command_line():
    made = subprocess.run(
        [sys.executable, "-c", "import runpy; print(runpy.run_path('packaging/completions.py')['bash'](), end='')"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (ROOT / "completions/vsockfwd.bash").read_text() == made.stdout, "run `make completions`"


def test_bash_completes_commands_options_and_schemes():
    script = (
        f". {ROOT}/completions/vsockfwd.bash\n"
        'try() { COMP_WORDS=(vsockfwd "$@"); COMP_CWORD=$#; _vsockfwd; echo "${COMPREPLY[@]}"; }\n'
        "try forw; try forward --exit; try forward hyb\n"
    )
    done = subprocess.run([need("bash"), "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["forward", "--exit-on-failure", "hybrid:"]


@pytest.mark.parametrize("command", ["cp", "perf"])
def test_a_commands_own_manual_page_has_every_option_and_renders_without_a_warning(
    command: str, capsys: pytest.CaptureFixture[str]
):
    page = ROOT / f"man/vsockfwd-{command}.1"
    lint = subprocess.run([need("mandoc"), "-T", "lint", "-W", "warning", str(page)], capture_output=True, text=True)
    assert lint.returncode == 0, lint.stdout
    main([command, "--help"])
    shown = capsys.readouterr().out
    options = set(re.findall(r"--[a-z][a-z0-9-]+", shown.partition("Options:")[2]))
    assert options
    text = page.read_text()
    assert {option for option in options if f"Fl Fl {option[2:]}" not in text} == set()


def test_every_test_that_the_pages_name_is_there():
    """A table of attacks, or of faults, is worth what its tests are."""
    for page in PAGES:
        for file, name in re.findall(r"`([a-z_/]+\.py)::(\w+)`", page.read_text()):
            assert f"def {name}(" in (ROOT / file).read_text(), f"{page.name}: {file}::{name}"


@pytest.mark.parametrize("command", ["serve", "keygen", "policy"])
def test_the_manual_page_of_a_command_has_every_option_and_renders_without_a_warning(command: str):
    page = ROOT / f"man/vsockfwd-{command}.1"
    lint = subprocess.run([need("mandoc"), "-T", "lint", "-W", "warning", str(page)], capture_output=True, text=True)
    assert lint.returncode == 0, lint.stdout
    shown = group().get_command(None, command)
    options = {word for parameter in shown.params for word in parameter.opts if word.startswith("--")}
    assert "--json" in options
    text = page.read_text()
    assert {option for option in options if f"Fl Fl {option[2:]}" not in text} == set()


def test_the_manual_page_on_security_renders_without_a_warning():
    page = ROOT / "man/vsockfwd-security.7"
    lint = subprocess.run([need("mandoc"), "-T", "lint", "-W", "warning", str(page)], capture_output=True, text=True)
    assert lint.returncode == 0, lint.stdout
