"""What is written about the command line says what the command line does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vsockfwd.errors import Code, from_code

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "plugins").glob("*/README.md"))]


def test_the_table_of_wire_codes_is_the_one_in_the_code():
    rows = re.findall(r"^\| (\d+) \| ([a-z ]+) \| (\d+) \|$", (ROOT / "docs/exit-codes.md").read_text(), re.MULTILINE)
    code = [(str(int(c)), c.name.lower().replace("_", " "), str(from_code(c, "x").exit_code)) for c in Code if c]
    assert rows == code


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file(page: Path):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), link


def test_every_test_that_the_pages_name_is_there():
    """A table of attacks, or of faults, is worth what its tests are."""
    for page in PAGES:
        for file, name in re.findall(r"`([a-z_/]+\.py)::(\w+)`", page.read_text()):
            assert f"def {name}(" in (ROOT / file).read_text(), f"{page.name}: {file}::{name}"


def links(page: Path) -> set[Path]:
    """The pages that a page leads to."""
    found = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    return {(page.parent / link).resolve() for link in found if "://" not in link}


def test_each_of_the_twenty_questions_is_answered_within_two_links_of_the_readme():
    questions = ROOT / "docs/questions.md"
    near = {ROOT / "README.md"} | links(ROOT / "README.md")
    near |= {further for page in near if page.suffix == ".md" for further in links(page)}
    asked = re.findall(r"^(\d+)\. \*.+\?\*|^(\d+)\. \*.+\.\*", questions.read_text(), re.MULTILINE)
    assert len(asked) == 20
    for line in questions.read_text().splitlines():
        if re.match(r"\d+\. ", line):
            answers = re.findall(r"\]\(([^)#]+)\)", line)
            assert answers, line
            assert all((questions.parent / answer).resolve() in near for answer in answers), line


def test_every_page_of_the_documentation_is_reached_from_the_readme():
    reached, further = set(), {ROOT / "README.md"}
    while further:
        page = further.pop()
        if page not in reached and page.suffix == ".md" and page.exists():
            reached.add(page)
            further |= links(page)
    assert set((ROOT / "docs").rglob("*.md")) <= reached
