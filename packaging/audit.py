"""What is installed is what was chosen: `make audit`. Asks nobody, so that it runs anywhere; a test holds it to that.

Each distribution of the environment is one that constraints.txt or dev-constraints.txt pins, in that version and with a
hash; its files are those that its RECORD lists, with the hashes that stand there; what it requires is there too (`pip
check`); and what users run has a licence that goes with ours. Known vulnerabilities are not looked up: that takes a
service that knows them (`pip-audit -r constraints.txt` asks one).
"""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILES = ("constraints.txt", "dev-constraints.txt")
OWN = frozenset({"vsockfwd", "vsockfwd-relay", "vsockfwd-copy", "vsockfwd-dgram"})
TOOLS = frozenset({"pip", "setuptools", "wheel"})
"""Python's own, which come with a virtual environment."""

LICENCES = re.compile(r"MIT|BSD|Apache|PSF|ISC|MPL|0BSD|Python Software", re.IGNORECASE)
"""What goes with ours, as distributions name it."""


def canonical(name: str) -> str:
    """A distribution's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(text: str, source: str) -> tuple[dict[str, str], list[str]]:
    """Versions by name, and what is wrong with a file of constraints."""
    versions: dict[str, str] = {}
    wrong = []
    for line in text.replace("\\\n", " ").splitlines():
        words = line.partition(" #")[0].split()
        if not words or words[0].startswith(("#", "--")):
            continue
        match = re.fullmatch(r"([A-Za-z0-9_.-]+)(?:\[[a-z,]+\])?==([^;]+);?", words[0])
        if not match:
            wrong.append(f"{source}: {words[0]}: not pinned to one version")
            continue
        if not any(word.startswith("--hash=sha256:") for word in words):
            wrong.append(f"{source}: {words[0]}: without a hash")
        versions[canonical(match[1])] = match[2]
    return versions, wrong


def unpinned(found: Iterable[Distribution], versions: dict[str, str]) -> Iterator[str]:
    """Distributions that nobody chose, or in another version."""
    for each in found:
        name = canonical(each.metadata["Name"])
        if name in OWN | TOOLS:
            continue
        if name not in versions:
            yield f"{name} {each.version}: installed, and not pinned"
        elif versions[name] != each.version:
            yield f"{name} {each.version}: installed, and {versions[name]} is pinned"


def changed(each: Distribution) -> Iterator[str]:
    """Files that are not what the distribution's RECORD says: changed since it was installed, or gone."""
    for file in each.files or ():
        if file.hash is None or file.parent.name == "bin":  # pip writes the scripts there itself, for this environment
            continue
        path = Path(str(file.locate()))
        try:
            digest = hashlib.new(file.hash.mode, path.read_bytes()).digest()
        except OSError:
            yield f"{each.metadata['Name']}: {file}: gone"
            continue
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
            yield f"{each.metadata['Name']}: {file}: changed since it was installed"


def licence(each: Distribution) -> str:
    """What a distribution says of its licence, in a few words."""
    told = each.metadata.get("License-Expression") or each.metadata.get("License") or ""
    classifiers = [
        line.rpartition(" :: ")[2] for line in each.metadata.get_all("Classifier", []) if line.startswith("License ::")
    ]
    if not told or "\n" in told or len(told) > 60:
        told = ", ".join(classifiers)
    return told or "UNKNOWN"


def main() -> int:
    """Print what is installed and what is wrong with it; 1 where something is."""
    wrong: list[str] = []
    versions: dict[str, str] = {}
    run: dict[str, str] = {}
    for name in FILES:
        found, complaints = pinned((ROOT / name).read_text(), name)
        run = run or found
        versions |= found
        wrong += complaints
    there = sorted(distributions(), key=lambda each: canonical(each.metadata["Name"]))
    wrong += unpinned(there, versions)
    for each in there:
        name = canonical(each.metadata["Name"])
        if name not in OWN | TOOLS:
            wrong += changed(each)
        if name in run:
            told = licence(each)
            print(f"{name} {each.version}: {told}")
            if not LICENCES.search(told):
                wrong.append(f"{name}: its licence is {told}")
    checked = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    if checked.returncode:
        wrong += checked.stdout.splitlines()
    for line in wrong:
        print(f"WRONG: {line}", file=sys.stderr)
    print(
        f"{len(there)} distributions, {len(run)} of which users run: pinned, with hashes, unchanged, complete"
        if not wrong
        else f"{len(wrong)} things are wrong"
    )
    print("Known vulnerabilities were not looked up: pip-audit -r constraints.txt asks a service that knows them.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
