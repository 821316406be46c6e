"""docs/reliability.md says what was counted."""

from __future__ import annotations

import json
import re
from pathlib import Path

from bench.reliability import COUNTS, PAGE, ROWS, page
from tests.faults.scenarios import SCENARIOS
from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parent.parent.parent


def test_the_page_is_made_of_what_was_counted():
    counts = json.loads(COUNTS.read_text())
    assert PAGE.read_text() == page(counts), "python -m bench.reliability makes it anew"
    assert set(counts["fuzz"]) == set(TARGETS)
    assert set(counts["faults"]) == set(SCENARIOS)


def test_every_test_that_it_names_is_there():
    for row in ROWS:
        for path in re.findall(r"[\w/]+(?:\.py|/(?=$|,))", row[2]):
            assert (ROOT / path).exists(), path
