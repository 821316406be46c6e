"""The manual: a page for each command with every option of it, made of prose and of the command line itself."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.peers import need

ROOT = Path(__file__).parent.parent.parent
MANUAL = ROOT / "man"
PAGES = sorted(MANUAL.iterdir())

MADE = """
import json, sys
sys.path.insert(0, "packaging")
import man_pages
from command_line import read_command_line
commands = {each.name: [name for flag in each.flags for name in flag.names] for each in read_command_line()}
print(json.dumps([man_pages.files(), commands]))
"""


@pytest.fixture(scope="module")
def made() -> tuple[dict[str, str], dict[str, list[str]]]:
    """The pages as `make pages` writes them, and each command's options."""
    done = subprocess.run([sys.executable, "-c", MADE], cwd=ROOT, capture_output=True, text=True, check=True)
    pages, commands = json.loads(done.stdout)
    return pages, commands


def test_the_pages_are_those_of_the_prose_and_the_command_line(made: tuple[dict[str, str], dict[str, list[str]]]):
    for name, text in made[0].items():
        assert (MANUAL / name).read_text() == text, f"{name}: run `make pages`"


def test_every_command_has_a_page_with_every_option(made: tuple[dict[str, str], dict[str, list[str]]]):
    shared = set(made[1]["plugins"])
    for command, options in made[1].items():
        page = MANUAL / f"vsockfwd-{command}.1"
        text = page.read_text()
        if "Xr vsockfwd-serve 1" in text:  # it takes the agent's flags, which stand there
            text += (MANUAL / "vsockfwd-serve.1").read_text()
        for option in set(options) - shared:
            written = re.escape(option.lstrip("-"))
            assert re.search(rf"^\.It .*\b{written}(?![\w-])", text, re.MULTILINE), f"{page.name} lacks {option}"
    main = (MANUAL / "vsockfwd.1").read_text()
    for option in shared:
        assert f"Fl {option.lstrip('-')}" in main


# What else is installed on this machine is not the pages' affair, and a long line is a matter of taste.
NO_MATTER = ("referenced manual not found", "mandoc.db", "longer than 80 bytes")


def test_every_page_renders_and_mandoc_has_nothing_to_say():
    told = subprocess.run([need("mandoc"), "-T", "lint", *map(str, PAGES)], capture_output=True, text=True)
    assert [line for line in told.stdout.splitlines() if not any(word in line for word in NO_MATTER)] == []


def test_every_page_that_is_referred_to_and_ours_is_there(made: tuple[dict[str, str], dict[str, list[str]]]):
    for page, text in made[0].items():
        for name, section in re.findall(r"\bXr (vsockfwd[\w.-]*) (\d)", text):
            assert (MANUAL / f"{name}.{section}").exists(), f"{page} refers to {name}({section})"
