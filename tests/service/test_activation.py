"""Sockets that somebody else opened: as sd_listen_fds(3) passes them, set up here or by systemd-socket-activate."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.cli.process import DEADLINE, run, wait_until
from tests.peers import need
from vsockfwd.service import take

EXEC = """
import os, sys
count, names, *words = sys.argv[1:]
passed = [int(n) for n in os.environ.pop("PASSED").split(",") if n]
high = [os.dup2(n, 100 + i) for i, n in enumerate(passed)]
for i, n in enumerate(high):
    os.dup2(n, 3 + i)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count, "LISTEN_FDNAMES": names}
os.execv(sys.executable, [sys.executable, *words])
"""
"""Becomes another program, with descriptors passed from 3 on, as a service manager's child does."""


def activated(sockets: Sequence[socket.socket], names: str, *words: str, **more: str) -> subprocess.Popen[str]:
    """`more`: what else stands in the environment."""
    numbers = [sock.fileno() for sock in sockets]
    return subprocess.Popen(
        [sys.executable, "-c", EXEC, str(len(sockets)), names, *words],
        pass_fds=numbers,
        env={**os.environ, "PASSED": ",".join(map(str, numbers)), **more},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def serving(sockets: Sequence[socket.socket], names: str, *words: str) -> subprocess.Popen[str]:
    return activated(sockets, names, "-m", "vsockfwd", "serve", "--json", *words)


def ended(child: subprocess.Popen[str]) -> tuple[str, str]:
    try:
        return child.communicate(timeout=DEADLINE)
    finally:
        child.kill()


@pytest.fixture
def unix_socket(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.fspath(tmp_path / "agent.sock"))
        sock.listen()
        yield sock


@pytest.mark.parametrize("words", [("--listen", "fd:agent"), ()], ids=["named", "by default"])
def test_an_agent_serves_on_the_socket_that_was_passed(
    words: tuple[str, ...], unix_socket: socket.socket, tmp_path: Path
) -> None:
    child = serving([unix_socket], "agent", *words)
    try:
        done = run("ping", f"unix:{tmp_path}/agent.sock")
        assert done.returncode == 0, done.stderr
        assert child.stdout is not None
        assert json.loads(child.stdout.readline())["address"] == f"unix:{tmp_path}/agent.sock"
    finally:
        child.terminate()
        ended(child)
    assert (tmp_path / "agent.sock").exists()  # it belongs to who made it


def test_workers_share_the_socket_that_was_passed_and_its_manager_hears_of_it(
    unix_socket: socket.socket, tmp_path: Path
) -> None:
    path, target = tmp_path / "agent.sock", tmp_path / "server.sock"
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        server.bind(os.fspath(target))
        server.listen()
        manager.bind(os.fspath(tmp_path / "notify"))
        for sock in (server, manager):
            sock.settimeout(DEADLINE)
        words = ("-m", "vsockfwd", "forward", "--workers", "2", "fd:web", f"unix:{target}")
        child = activated([unix_socket], "web", *words, NOTIFY_SOCKET=os.fspath(tmp_path / "notify"))
        try:
            assert manager.recv(4096) == b"READY=1\nSTATUS=1 forwards by 2 processes"
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(os.fspath(path))
                client.sendall(b"question")
                neighbour, _ = server.accept()
                with neighbour:
                    assert neighbour.recv(100) == b"question"
        finally:
            child.terminate()
            said = ended(child)[1]
    assert said == f"vsockfwd: listening on unix:{path} by 2 processes\n"
    assert child.returncode == 0


def test_a_name_that_was_not_passed_is_refused_and_those_that_were_are_named(unix_socket: socket.socket) -> None:
    child = serving([unix_socket, unix_socket], "agent:web", "--listen", "fd:agnet")
    said = ended(child)[1]
    assert child.returncode == 73
    assert said == "vsockfwd: fd:agnet: no descriptor of this name was passed to us – there are agent, web\n"


@pytest.mark.parametrize("address", ["fd:3", "fd:agent"])
def test_an_agent_lets_nobody_in_over_an_inherited_tcp_socket(address: str) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        child = serving([sock], "agent", "--listen", address)
        said = ended(child)[1]
    assert child.returncode == 77
    assert f"vsockfwd: {address}: tcp:127.0.0.1:" in said
    assert "an agent lets nobody in over TCP" in said


def test_an_agent_refuses_an_inherited_socket_where_a_vmm_brings_its_guest(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.fspath(tmp_path / "vm.sock_52"))
        sock.listen()
        child = serving([sock], "agent")
        said = ended(child)[1]
    assert child.returncode == 77
    assert said.startswith(f"vsockfwd: fd:agent: unix:{tmp_path}/vm.sock_52: a path that ends in _NUMBER")


SHOW = """
import json, os
from vsockfwd.service import take
named = take(os.environ, os.getpid()).descriptors
kept = [number for numbers in named.values() for number in numbers if os.get_inheritable(number)]
print(json.dumps([named, kept, [name for name in os.environ if name.startswith("LISTEN")]]))
"""


@pytest.mark.parametrize(
    ("names", "expected"), [("a:b:a", {"a": [3, 5], "b": [4]}), ("", {"unknown": [3, 4, 5]})], ids=["named", "nameless"]
)
def test_what_was_passed_has_its_name_and_reaches_no_program_that_we_start(
    names: str, expected: dict[str, list[int]], unix_socket: socket.socket
) -> None:
    out, said = ended(activated([unix_socket] * 3, names, "-c", SHOW))
    assert said == ""
    assert json.loads(out) == [expected, [], []]


@pytest.mark.parametrize(("count", "names"), [("x", ""), ("-1", ""), ("", "a"), ("0", ""), ("9999999999", "")])
def test_a_count_that_makes_no_sense_passes_nothing(count: str, names: str) -> None:
    assert take({"LISTEN_PID": "7", "LISTEN_FDS": count, "LISTEN_FDNAMES": names}, 7).descriptors == {}


def test_systemd_starts_an_agent_when_the_first_client_calls(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    launcher = subprocess.Popen(
        [
            need("systemd-socket-activate"), "-l", os.fspath(path), "--fdname=agent",
            *(f"-E{name}={os.environ[name]}" for name in ("PYTHONPATH", "PATH") if name in os.environ),
            sys.executable, "-m", "vsockfwd", "serve", "--listen", "fd:agent", "--json",
        ],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_until(path.exists)
        done = run("ping", f"unix:{path}")
        assert done.returncode == 0, done.stderr
    finally:
        launcher.terminate()
        ended(launcher)
