"""`make audit` notices what it says that it notices."""

from __future__ import annotations

import runpy
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

AUDIT = runpy.run_path(str(Path(__file__).parent.parent / "packaging/audit.py"))


@pytest.fixture
def installed(tmp_path: Path) -> PathDistribution:
    info = tmp_path / "thing-1.0.dist-info"
    info.mkdir()
    (tmp_path / "thing.py").write_bytes(b"")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: Thing\nVersion: 1.0\nLicense: MIT\n")
    nothing = "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU"  # what SHA-256 makes of nothing
    (info / "RECORD").write_text(f"thing.py,sha256={nothing},0\nthing-1.0.dist-info/RECORD,,\n")
    return PathDistribution(info)


def test_a_file_that_was_changed_after_it_was_installed_is_noticed(installed: PathDistribution, tmp_path: Path):
    assert list(AUDIT["changed"](installed)) == []
    (tmp_path / "thing.py").write_bytes(b"import evil")
    assert list(AUDIT["changed"](installed)) == ["Thing: thing.py: changed since it was installed"]
    (tmp_path / "thing.py").unlink()
    assert list(AUDIT["changed"](installed)) == ["Thing: thing.py: gone"]


def test_what_nobody_chose_is_noticed(installed: PathDistribution):
    unpinned = AUDIT["unpinned"]
    assert list(unpinned([installed], {"thing": "1.0"})) == []
    assert list(unpinned([installed], {"thing": "2.0"})) == ["thing 1.0: installed, and 2.0 is pinned"]
    assert list(unpinned([installed], {})) == ["thing 1.0: installed, and not pinned"]


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("thing==1.0 --hash=sha256:00", []),
        ("thing==1.0 \\\n    --hash=sha256:00 \\\n    --hash=sha256:01", []),
        ("thing==1.0", ["f: thing==1.0: without a hash"]),
        ("thing>=1.0 --hash=sha256:00", ["f: thing>=1.0: not pinned to one version"]),
        ("thing @ https://example.org/thing.zip", ["f: thing: not pinned to one version"]),
    ],
)
def test_a_constraint_that_leaves_a_choice_is_noticed(line: str, wrong: list[str]):
    assert AUDIT["pinned"](line, "f")[1] == wrong


def test_both_files_of_constraints_are_pinned_with_hashes():
    for name in AUDIT["FILES"]:
        versions, wrong = AUDIT["pinned"]((AUDIT["ROOT"] / name).read_text(), name)
        assert versions
        assert wrong == []
