"""The example of docs/copying.md does what it says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
import trio

from plugins.copy.tests.world import World

DOCUMENT = Path(__file__).parents[3] / "docs" / "copying.md"


def example() -> str:
    found = re.search(
        r"<!-- run by plugins/copy/tests/test_library.py -->\n```python\n(.*?)```", DOCUMENT.read_text(), re.S
    )
    assert found is not None
    return found[1]


async def test_the_example_of_the_documentation_runs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (world.here / "site" / "pages").mkdir(parents=True)
    (world.here / "site" / "index.html").write_text("<p>")
    (world.here / "site" / "pages" / "a.html").write_text("<p>a")
    (world.home / "outside").touch()
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(example(), str(DOCUMENT), "exec"), names)
    monkeypatch.chdir(world.here)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), trio.fail_after(10):
        await names["main"](world.address)
    assert printed.getvalue().splitlines() == [
        "2 files, 7 bytes",
        "index.html file 3",
        "pages directory " + str((world.home / "srv" / "pages").stat().st_size),
        "pages/a.html file 4",
        "2 unchanged, 0 removed",
        "True",
    ]
    assert (world.here / "index.html").read_text() == "<p>"
