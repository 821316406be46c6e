"""Every shell block of the documentation is run, or says why not.

In front of it stands `<!-- run -->`, `<!-- run, needs: program -->` for what must be there, or `<!-- not run: why -->`.
The blocks of a page that are run are one session: what one starts in the background, the next one uses.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.peers import need

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted(
    page
    for pattern in ("README.md", "docs/**/*.md", "plugins/*/README.md", "packaging/**/README.md")
    for page in ROOT.glob(pattern)
)
SECONDS = 60.0

PORTS = ("8000", "8080", "8081", "6380", "51820", "51821")
"""Ports that the pages use; in a test they are whichever are free."""


@dataclass(frozen=True)
class Block:
    """A shell block, and the remark in front of it."""

    text: str
    remark: str

    @property
    def is_run(self) -> bool:
        return re.match(r"run(,|$)", self.remark) is not None

    @property
    def needs(self) -> list[str]:
        return self.remark.partition("needs: ")[2].split()


def blocks(page: Path) -> list[Block]:
    found = []
    for match in re.finditer(
        r"(?:^ *<!-- ([^\n]*?) -->\n)?^( *)```sh\n(.*?)^\2```", page.read_text(), re.MULTILINE | re.DOTALL
    ):
        text = re.sub(rf"^{match[2]}", "", match[3], flags=re.MULTILINE)
        found.append(Block(text, match[1] or ""))
    return found


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


RUN = [page for page in PAGES if any(block.is_run for block in blocks(page))]


def test_no_shell_block_hides_from_this_test():
    """Other words for shell would leave a block out."""
    for page in PAGES:
        others = re.findall(r"^ *```(?:bash|shell|console|zsh|sh .*)$", page.read_text(), re.MULTILINE)
        assert not others, f"{name(page)}: write ```sh, and a remark in front of it"
        written = len(re.findall(r"^ *```sh$", page.read_text(), re.MULTILINE))
        assert len(blocks(page)) == written
        for block in blocks(page):
            told = block.is_run or re.fullmatch(r"not run: \S.*", block.remark)
            assert told, f"{name(page)}: in front of a block stands <!-- run --> or <!-- not run: why -->: {block.text}"


def test_a_shell_knows_every_block_for_its_language(tmp_path: Path):
    """Also those that are not run: ellipses aside, they are commands."""
    for page in PAGES:
        for block in blocks(page):
            done = subprocess.run(["bash", "-n"], input=block.text.replace("…", "x"), text=True, capture_output=True)
            assert done.returncode == 0, f"{name(page)}: {done.stderr}"


@pytest.mark.dist
@pytest.mark.parametrize("page", RUN, ids=name)
def test_what_a_page_says_to_type_works(page: Path, tmp_path: Path):
    session = [block for block in blocks(page) if block.is_run]
    for program in {program for block in session for program in block.needs}:
        need(program)
    script = "\n".join(block.text for block in session)
    held = [socket.create_server(("127.0.0.1", 0)) for _ in PORTS]
    for port, free in zip(PORTS, held, strict=True):
        script = re.sub(rf"\b{port}\b", str(free.getsockname()[1]), script)
        free.close()
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(tmp_path), "LC_ALL": "C.UTF-8",
    }  # fmt: skip
    # Its own processes end with it, by their numbers; the shell waits for each.
    frame = f"set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\n{script}"
    done = subprocess.run(
        ["bash", "-c", frame], cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
