"""What was tried, counted by the commands that tried it (docs/reliability.json), and the page that tells it.

    python -m bench.reliability     writes docs/reliability.md

A command that tries something counts it:

    with counted("fuzz", "address") as counts:
        counts["executions"] = …
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent / "docs"
COUNTS, PAGE = DOCS / "reliability.json", DOCS / "reliability.md"

Counts = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Section → what was tried → figures."""


@contextlib.contextmanager
def counted(section: str, name: str) -> Iterator[dict[str, Any]]:
    """The counts of one thing, to be changed in the block and written behind it; several processes may.

    Nothing is written where CI=true: its short runs count for nothing.
    """
    if os.environ.get("CI"):
        yield {}
        return
    with COUNTS.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        everything = json.loads(file.read() or "{}")
        counts = everything.setdefault(section, {}).setdefault(name, {})
        yield counts
        counts["day"] = time.strftime("%Y-%m-%d")
        file.truncate(0)
        file.write(json.dumps(everything, indent=1, sort_keys=True) + "\n")


# --- the page

HEAD = """# What was tried against it

Made by `python -m bench.reliability` from docs/reliability.json, into which the commands below write what they count. A
*wrong* outcome is a success that is none, an end that looks complete and is not, a descriptor, a task or a file left
behind, a hang, or a bug's traceback; `make test` holds a sample of every sweep to none of these.
"""

FAULTS = "tests/faults/test_faults.py"
ROWS = (
    (
        "a call of the kernel's fails (sockets, polls, pipes, splices, files), or does less than it was asked to",
        "what can go on does, the rest says so: a TCP neighbour sees a reset, never an end, a copy says which file and "
        "leaves none half; descriptors and tasks are as before, and the next exchange goes through",
        f"{FAULTS}: no false success",
        "faults", "points",
    ),
    (
        "either side is told to stop, before any step of any of its tasks",
        "the same, in bounded time",
        f"{FAULTS}: who is told to stop",
        "cancellations", "points",
    ),
    (
        "a peer spoils a field of a frame, drops, doubles or cuts it, from either side",
        "the connection ends with its reason; the agent serves others, the client says what was wrong",
        "tests/peers/test_spoilt.py",
        "spoilt", "points",
    ),
    (
        "a peer breaks a rule of the protocol: out of place, too large, trickling, mute, deaf, a ticket twice",
        "told why and hung up on, within the deadline that the rule has",
        "tests/peers/test_rules.py, tests/wire/",
        "", "",
    ),
    (
        "hostile bytes: addresses, config, frames, sessions, payloads, copies, SOCKS, HTTP, PROXY, socat's words, "
        "datagrams",
        "a value, or an error of ours, in bounded time and memory",
        "tests/fuzz/test_fuzz.py",
        "fuzz", "executions",
    ),
    (
        "a thousand malicious connections: mute, half a HELLO, half an OPEN of 4 KiB, let in with a mebibyte to store",
        "at most 64 MiB more of the agent's memory are resident; who behaves is served",
        "tests/peers/test_memory.py",
        "", "",
    ),
    (
        "an agent or a client is killed at a moment of a copy, and the copy begun again",
        "what is there is whole, the rest is resumed",
        "plugins/copy/tests/test_killed.py, bench/copy_kills.py",
        "", "",
    ),
    (
        "ten thousand connections at once, a thousand a second, slow readers, slow writers, peers that are killed",
        "every answer right; the aim is that nothing is left and the others' p99 stays within 2×; what was measured "
        "stands below",
        "bench/load.py",
        "load", "connections",
    ),
)  # fmt: skip


def page(counts: Counts) -> str:
    """The page, as Markdown."""
    lines = [HEAD, "| fault | outcome | test | tried | wrong |", "|---|---|---|---|---|"]
    for fault, outcome, test, section, unit in ROWS:
        tried, wrong = "", ""
        if section:
            each = counts.get(section, {}).values()
            tried = f"{sum(figures.get(unit, 0) for figures in each):,}"
            wrong = f"{sum(_wrong(figures) for figures in each):,}"
        lines.append(f"| {fault} | {outcome} | {test} | {tried} | {wrong} |")
    lines += ["", *_sweeps(counts), *_fuzzing(counts), *_load(counts)]
    return "\n".join(lines)


def _wrong(figures: Mapping[str, Any]) -> int:
    return int(figures.get("wrong", figures.get("found", 0)))


def _sweeps(counts: Counts) -> Iterator[str]:
    ways: Counter[str] = Counter()
    yield "## Every fault point (`make faults`)\n"
    yield "| exchange | faults | got through | failed, and said so | wrong |"
    yield "|---|---|---|---|---|"
    for section, what in (("faults", ""), ("cancellations", ", told to stop")):
        for name, figures in sorted(counts.get(section, {}).items()):
            ways.update(figures.get("ways", {}))
            row = (figures[key] for key in ("points", "complete", "failed", "wrong"))
            yield f"| {name}{what} | {' | '.join(f'{value:,}' for value in row)} |"
    yield ""
    yield f"By failure: {', '.join(f'{name} {count:,}' for name, count in sorted(ways.items()))}.\n"
    spoilt = counts.get("spoilt", {})
    yield "Spoilt: " + ", ".join(f"{name} in {figures['points']:,} ways" for name, figures in spoilt.items()) + ".\n"


def _fuzzing(counts: Counts) -> Iterator[str]:
    fuzz = counts.get("fuzz", {})
    seconds = sum(figures["seconds"] for figures in fuzz.values())
    yield f"## Fuzzing (`make fuzz`), {seconds / 60:.0f} minutes in all\n"
    yield "| target | by | executions | seconds | MiB at most | found |"
    yield "|---|---|---|---|---|---|"
    for name, figures in sorted(fuzz.items()):
        row = (figures[key] for key in ("executions", "seconds", "MiB", "found"))
        yield f"| {name} | {figures['by']} | {' | '.join(f'{value:,}' for value in row)} |"
    yield ""


def _load(counts: Counts) -> Iterator[str]:
    yield "## Load (`python -m bench.load`)\n"
    yield "| load | connections | killed | wrong answers | left behind | late | p99 of the others with it, to without |"
    yield "|---|---|---|---|---|---|---|"
    for name, figures in sorted(counts.get("load", {}).items()):
        ratio = "{:.2f}× ({:.2f} – {:.2f})".format(*figures["p99"]) if "p99" in figures else ""
        left = "; ".join(figures["left"]) or "nothing"
        killed = figures.get("kills", "")
        late = f"{figures['behind']:.1f} s" if "behind" in figures else ""
        yield f"| {name} | {figures['connections']:,} | {killed} | {figures['wrong']:,} | {left} | {late} | {ratio} |"
    yield ""
    yield "*Late*: how far the load fell behind its own schedule, which it does where other work has the processors."
    yield ""


def main() -> int:
    """Write the page."""
    PAGE.write_text(page(json.loads(COUNTS.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
