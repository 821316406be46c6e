"""What is written about the command line says what the command line does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.peers import need
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


def test_the_manual_page_of_cp_has_every_option_and_renders_without_a_warning():
    page = ROOT / "man/vsockfwd-cp.1"
    lint = subprocess.run([need("mandoc"), "-T", "lint", "-W", "warning", str(page)], capture_output=True, text=True)
    assert lint.returncode == 0, lint.stdout
    shown = subprocess.run(
        [sys.executable, "-m", "vsockfwd", "cp", "--help"], capture_output=True, text=True, check=True
    ).stdout
    options = set(re.findall(r"--[a-z][a-z0-9-]+", shown.partition("Options:")[2]))
    assert options
    text = page.read_text()
    assert {option for option in options if f"Fl Fl {option[2:]}" not in text} == set()
