"""docs/socat.md and the manual page say what the tables say, and no name of socat's manual is missing."""

from __future__ import annotations

import re
import runpy
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plugins.relay.tests.socat_manual import FLAGS, OPTIONS, TYPES, VARIABLES
from tests.peers import need
from vsockfwd.plugin import UsageError
from vsockfwd_relay.command import _read
from vsockfwd_relay.options import OPTION_OF_NAME, Group
from vsockfwd_relay.table import TYPE_OF_NAME, specify
from vsockfwd_relay.table import TYPES as ROWS

ROOT = Path(__file__).parent.parent.parent.parent
PAGE = (ROOT / "docs/socat.md").read_text()
MANUAL = ROOT / "man/vsockfwd-relay.1"


def rows(title: str) -> dict[str, str]:
    """Name → verdict, of one table of the page."""
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return {
        name: found[2]
        for found in re.finditer(r"^\| `([^`]+)` \| (same|better|not built) \| .*\|$", section, re.MULTILINE)
        for name in found[1].split(", ")
    }


def refusal(text: str) -> str:
    with pytest.raises(UsageError) as raised:
        specify(text)
    return raised.value.line()


@pytest.fixture(scope="module")
def pages() -> Iterator[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "packaging"))
        yield runpy.run_path(str(ROOT / "packaging/relay_pages.py"))


def test_both_pages_are_what_the_tables_make(pages: dict[str, Any]) -> None:
    assert pages["socat"]() == PAGE, "run `make pages`"
    assert pages["manual"]() == MANUAL.read_text(), "run `make pages`"


def test_the_manual_page_renders_without_a_warning_and_knows_every_type_option_and_group() -> None:
    lint = subprocess.run([need("mandoc"), "-T", "lint", "-W", "warning", str(MANUAL)], capture_output=True, text=True)
    assert lint.returncode == 0, lint.stdout
    text = MANUAL.read_text()
    assert all(f".It Cm {row.form}\n" in text for row in ROWS)
    assert all(f"{name}," in text or f"{name}\n" in text for name in OPTION_OF_NAME)
    assert all(f".Ss {group.value[0].upper()}{group.value[1:]}\n" in text for group in Group)


def test_every_type_of_socat_s_is_built_or_refused_by_its_name_as_the_page_says() -> None:
    told = rows("Address types")
    assert not set(TYPES) - set(told)
    for name, verdict in told.items():
        if verdict == "not built":
            assert f"socat's {name} is not built here: " in refusal(f"{name}:a:b:c")
        else:
            assert name in TYPE_OF_NAME
    assert {name for row in ROWS if not row.ours for name in row.names} == set(told) - {
        name for name in told if told[name] == "not built"
    }


def test_every_option_of_socat_s_is_built_or_refused_by_its_name_as_the_page_says() -> None:
    told = rows("Options")
    assert not set(OPTIONS) - set(told)
    for name, verdict in told.items():
        if verdict == "not built":
            assert f"socat's option {name} is not built here: " in refusal(f"TCP:h:1,{name}=1")
        else:
            assert name in OPTION_OF_NAME


def test_every_flag_of_socat_s_is_built_or_refused_by_its_name_as_the_page_says() -> None:
    told = rows("Flags")
    assert set(FLAGS) == set(told)
    for name, verdict in told.items():
        words = [name] if name in ("-ly", "-lm") else [name, "1"]
        if name == "-lp":
            words = ["-lp", "tool"]
        if verdict == "not built":
            with pytest.raises(UsageError, match=f"socat's {name} is not built here: "):
                _read([*words, "-", "-"])
        else:
            assert _read([*words, "-", "-"])[1]


def test_every_variable_of_socat_s_has_its_row() -> None:
    told = rows("Environment variables")
    for name in VARIABLES:
        beginning = name.rstrip("*")
        assert any(row.rstrip("…").startswith(beginning) or beginning.startswith(row.rstrip("…")) for row in told), name
