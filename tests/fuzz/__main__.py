"""Fuzzing for as long as one likes.

    python -m tests.fuzz TARGET SECONDS        one target
    python -m tests.fuzz all SECONDS           every target in its turn, SECONDS in all

With atheris where it is installed (pip install atheris), which sees what an input reaches; without it by spoiling the
corpus at random. What is found is kept beside the corpus, as `found-…`, so that `make test` tries it from then on. How
much was tried is added to docs/reliability.json. Exits with 1 where something was found.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.reliability import counted
from tests.fuzz.corpus import CORPUS
from tests.fuzz.fuzzing import NOBODY
from tests.fuzz.targets import TARGETS


def fuzz(target: str, seconds: int) -> bool:
    """Fuzz one target; whether nothing was found."""
    with tempfile.TemporaryDirectory(prefix="vsockfwd-fuzzing-") as name:
        folder = Path(name)
        shutil.copytree(CORPUS / target, folder / "corpus")
        (folder / "found").mkdir()
        if os.geteuid() == 0:  # what an input may name is nobody's to touch
            for path in (folder, *folder.rglob("*")):
                os.chown(path, NOBODY, NOBODY)
        log = folder / "log"
        with log.open("wb") as told:
            code = subprocess.run(
                [sys.executable, "-m", "tests.fuzz.fuzzing", target, str(seconds), str(folder)],
                stdout=told, stderr=told, timeout=seconds + 600, env={**os.environ, "TMPDIR": name}, check=False,
            ).returncode  # fmt: skip
        text = log.read_text("utf-8", "replace")
        found = sorted((folder / "found").iterdir())
        for path in found:
            data = path.read_bytes()
            kept = CORPUS / target / f"found-{hashlib.sha256(data).hexdigest()[:8]}"
            kept.write_bytes(data)
            print(f"{target}: {path.name.partition('-')[0]}, kept as {kept}")
    executions, peak = (_stat(text, name) for name in ("number_of_executed_units", "peak_rss_mb"))
    print(f"{target}: {executions:,} executions in {seconds} s, {peak} MiB at most", flush=True)
    if code or found:
        print(text[-5000:])
    engine = "atheris" if importlib.util.find_spec("atheris") else "at random"
    with counted("fuzz", target) as counts:
        counts["executions"] = counts.get("executions", 0) + executions
        counts["seconds"] = counts.get("seconds", 0) + seconds
        counts["MiB"] = max(counts.get("MiB", 0), peak)
        counts["found"] = counts.get("found", 0) + len(found)
        counts["by"] = engine
    return not code and not found


def _stat(text: str, name: str) -> int:
    found = re.search(rf"stat::{name}:\s+(\d+)", text)
    return int(found[1]) if found else 0


def main(target: str, seconds: int) -> int:
    """Fuzz; the command's exit code."""
    targets = list(TARGETS) if target == "all" else [target]
    clean = [fuzz(each, max(1, seconds // len(targets))) for each in targets]
    return 0 if all(clean) else 1


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in (*TARGETS, "all"):
        sys.exit(f"usage: python -m tests.fuzz TARGET SECONDS; targets: all, {', '.join(TARGETS)}")
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
