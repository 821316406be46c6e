"""What was tried, counted by the commands that tried it: docs/reliability.json.

with counted("fuzz", "address") as counts:
    counts["executions"] = …
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent / "docs"
COUNTS = DOCS / "reliability.json"


@contextlib.contextmanager
def counted(section: str, name: str) -> Iterator[dict[str, Any]]:
    """The counts of one thing, to be changed in the block and written behind it; several processes may."""
    with COUNTS.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        everything = json.loads(file.read() or "{}")
        counts = everything.setdefault(section, {}).setdefault(name, {})
        yield counts
        counts["day"] = time.strftime("%Y-%m-%d")
        file.truncate(0)
        file.write(json.dumps(everything, indent=1, sort_keys=True) + "\n")
