"""Whoever is killed in the middle of a file: the other side says so, and no half file stands under its name."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SIZE = 128 << 20
DEADLINE = 15.0


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Poll, since other processes tell nobody."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.001)


@dataclass
class Processes:
    """An agent and a client, as a user's shells run them; `home` is the agent's, `here` the client's."""

    home: Path
    here: Path
    agent: subprocess.Popen[str]

    def cp(self, *words: str) -> subprocess.Popen[str]:
        target = f"[unix:{self.home}/a.sock]:"
        words = tuple(target + word[1:] if word.startswith("@") else word for word in words)
        return start(["cp", *words], self.here, self.home)


def start(words: list[str], where: Path, home: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vsockfwd", *words],
        cwd=where, env={**os.environ, "HOME": str(home)}, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@contextlib.contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    with ended(start(["serve", "-l", f"unix:{home}/a.sock"], home, home)) as agent:
        wait_until((home / "a.sock").exists, "the agent does not listen")
        yield Processes(home, here, agent)


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that takes a while."""
    path = tmp_path_factory.mktemp("big") / "big"
    path.write_bytes(os.urandom(1 << 20) * (SIZE >> 20))
    return path


def half_files(pid: int, folder: Path) -> list[str]:
    """Files below a folder that a process has open for writing, and that have no name, or a temporary one."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            name = os.readlink(link)
            if name.startswith(f"{folder}/") and (name.endswith(" (deleted)") or ".vsockfwd." in name):
                found.append(name)
    return found


def stop_in_mid_file(receiver: subprocess.Popen[str], sink: Path) -> None:
    """Freeze the receiver while it holds a part of the file, so that what follows follows in mid-file."""
    wait_until(lambda: half_files(receiver.pid, sink) or (sink / "big").exists(), "nothing arrives")
    os.kill(receiver.pid, signal.SIGSTOP)
    assert half_files(receiver.pid, sink), "too late: the file was complete before the receiver could be stopped"
    assert not (sink / "big").exists()


def test_a_killed_agent_that_was_sending_ends_the_client_with_74_and_leaves_nothing(
    processes: Processes, big: Path
) -> None:
    os.link(big, processes.home / "big")
    with ended(processes.cp("@big", ".")) as client:
        stop_in_mid_file(client, processes.here)
        processes.agent.kill()
        processes.agent.wait()
        os.kill(client.pid, signal.SIGCONT)
        _, told = client.communicate(timeout=DEADLINE)
    assert client.returncode == 74, told
    assert "Traceback" not in told
    assert os.listdir(processes.here) == []


def test_a_killed_agent_that_was_receiving_ends_the_client_with_74(processes: Processes, big: Path) -> None:
    os.link(big, processes.here / "big")
    with ended(processes.cp("big", "@")) as client:
        stop_in_mid_file(processes.agent, processes.home)
        processes.agent.kill()
        processes.agent.wait()
        _, told = client.communicate(timeout=DEADLINE)
    assert client.returncode == 74, told
    assert "Traceback" not in told
    assert not (processes.home / "big").exists()


def test_a_client_that_is_killed_while_sending_leaves_nothing_at_the_agent(processes: Processes, big: Path) -> None:
    os.link(big, processes.here / "big")
    with ended(processes.cp("big", "@")) as client:
        stop_in_mid_file(processes.agent, processes.home)
        client.kill()
        os.kill(processes.agent.pid, signal.SIGCONT)
        client.communicate(timeout=DEADLINE)
        wait_until(lambda: not half_files(processes.agent.pid, processes.home), "the agent keeps a half file")
    assert os.listdir(processes.home) == ["a.sock"]


def test_a_client_that_is_interrupted_while_receiving_leaves_nothing(processes: Processes, big: Path) -> None:
    os.link(big, processes.home / "big")
    with ended(processes.cp("@big", ".")) as client:
        stop_in_mid_file(client, processes.here)
        client.send_signal(signal.SIGTERM)
        os.kill(client.pid, signal.SIGCONT)
        _, told = client.communicate(timeout=DEADLINE)
    assert (client.returncode, told) == (143, "")
    assert os.listdir(processes.here) == []
