"""What an agent gives up: what it cannot do any more, tried in a process that has given it up."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vsockfwd.cli.serve import check_confinement
from vsockfwd.engine import confine
from vsockfwd.errors import NotAllowed, TransportMissing, UsageError
from vsockfwd.policy import Policy

TRIES = """
import os, socket, sys
from vsockfwd.engine.confine import give_up
root, outside, read_only = sys.argv[1], sys.argv[2], sys.argv[3] == "True"
print(give_up(None, [root], read_only=read_only, confined=True))
def tries(what):
    try:
        what()
    except OSError as error:
        return type(error).__name__
    return "done"
print(
    tries(lambda: open(f"{root}/in").read()),
    tries(lambda: open(f"{root}/new", "w").write("x")),
    tries(lambda: os.mkdir(f"{root}/dir")),
    tries(lambda: os.truncate(f"{root}/in", 0)),
    tries(lambda: open(f"{outside}/out").read()),
    tries(lambda: open(f"{root}/link").read()),
    tries(lambda: os.listdir(outside)),
    tries(lambda: open(f"{outside}/new", "w")),
    tries(lambda: os.unlink(f"{outside}/out")),
    tries(lambda: os.rename(f"{outside}/out", f"{root}/out")),
    tries(lambda: os.link(f"{outside}/out", f"{root}/out2")),
    tries(lambda: socket.socket(socket.AF_UNIX).bind(f"{outside}/s")),
    tries(lambda: os.execv(f"{root}/program", ["program"])),
)
import wave, socket  # what was not imported yet still can be
socket.getaddrinfo("localhost", 1)
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("NoNewPrivs")])
"""


def gives_up(root: Path, outside: Path, read_only: bool) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", TRIES, str(root), str(outside), str(read_only)],
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


@pytest.mark.parametrize("read_only", [False, True])
def test_a_confined_agent_has_the_files_below_its_root_and_no_others(tmp_path: Path, read_only: bool):
    """Whoever breaks into it finds no more, root or not, by no link, rename or program."""
    assert confine.landlock_version(), "this kernel has no Landlock, so that this cannot be shown here"
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "in").write_text("in")
    (outside / "out").write_text("out")
    (root / "link").symlink_to(outside / "out")
    (root / "program").write_text("#!/bin/sh\n")
    (root / "program").chmod(0o755)
    how, tried, status = gives_up(root, outside, read_only)
    assert how.startswith("no new privileges, files ")
    writes = "PermissionError" if read_only else "done"
    did = tried.split()
    # Moving from another hierarchy may be EXDEV to Landlock (landlock(7), "Reparenting").
    moved = [did.pop(9), did.pop(9)]
    assert set(moved) <= {"PermissionError", "OSError"}
    assert did == ["done", writes, writes, writes, *["PermissionError"] * 7]
    assert status == "['1']"
    assert (outside / "out").read_text() == "out"


def test_what_the_kernel_lacks_is_said_and_yes_does_not_mean_perhaps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    here = Policy(own_uid=0, root=str(tmp_path))
    assert check_confinement("no", here) is False
    assert check_confinement("auto", Policy(own_uid=0)) is False
    with pytest.raises(UsageError, match="to which directory"):
        check_confinement("yes", Policy(own_uid=0))
    with pytest.raises(UsageError, match="auto, yes or no"):
        check_confinement("maybe", here)
    for name in ("vsockfwd.engine.confine.landlock_version", "vsockfwd.cli.serve.landlock_version"):
        monkeypatch.setattr(name, lambda: 0)
    assert check_confinement("auto", here) is False
    with pytest.raises(TransportMissing, match="no Landlock") as caught:
        check_confinement("yes", here)
    assert caught.value.exit_code == 69


async def test_while_other_threads_live_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch):
    """They would keep what this one gives up."""
    monkeypatch.setattr(confine, "THREADS_GO", 0.1)
    hold = threading.Event()
    thread = threading.Thread(target=hold.wait)
    thread.start()
    with pytest.raises(NotAllowed, match="other threads"):
        await confine.alone()
    hold.set()
    thread.join()


def test_a_user_that_is_not_there_or_not_ours_to_be_is_refused(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UsageError, match="no such user"):
        confine.find_user("nobody-of-this-name")
    assert confine.find_user(str(os.geteuid())).uid == os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(NotAllowed, match="only root"):
        confine.find_user("root")
