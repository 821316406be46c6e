"""`up` and the commands that talk to it, as processes: what changes changes, the rest lives on, the socket is ours."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.process import Server, error_of, run, wait_until

RULE = """
[[forward]]
name = "{name}"
listen = "unix:{folder}/{name}.sock"
connect = "unix:{folder}/server.sock"
"""


class Running:
    """An `up`, its config file and its control socket."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "vsockfwd.toml"
        self.control = folder / "run" / "control.sock"
        self.env = {"VSOCKFWD_CONTROL": str(self.control)}

    def write(self, *names: str) -> None:
        self.file.write_text("".join(RULE.format(name=name, folder=self.folder) for name in names))

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return run(*words, env=self.env)

    def status(self) -> dict[str, dict[str, object]]:
        return {row["name"]: row for row in json.loads(self.run("status", "--json").stdout)["rules"]}

    def connect(self, name: str) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(self.folder / f"{name}.sock"))
        sock.settimeout(10)
        return sock


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path)
    running.write("a", "b")
    with Server("up", "-c", str(running.file), env=running.env) as server:
        server.wait_for("listening", 2)
        running.server = server  # type: ignore[attr-defined]
        yield running


@pytest.fixture
def served(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "server.sock"))
        server.listen()
        server.settimeout(10)
        yield server


def test_status_tells_of_each_rule_what_it_carries(up: Running, served: socket.socket):
    with up.connect("a") as client:
        neighbour, _ = served.accept()
        with neighbour:
            client.sendall(b"question")
            assert neighbour.recv(100) == b"question"
            row = up.status()["a"]
            assert (row["state"], row["connections"], row["sent"]) == ("up", 1, 8)
            shown = up.run("status", "a").stdout
            assert "1 connections now, 1 in all, 8 B out, 0 B in" in shown


def test_add_and_remove_at_run_time(up: Running):
    done = up.run("add", "raw", "name=c", f"listen=unix:{up.folder}/c.sock", "connect=tcp:9", "max-connections=3")
    assert done.returncode == 0
    assert done.stdout.startswith("c\n  up since")
    assert (up.folder / "c.sock").exists()
    assert up.run("remove", "c").returncode == 0
    wait_until(lambda: not (up.folder / "c.sock").exists())
    assert list(up.status()) == ["a", "b"]


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["add", "raw", "name=a", "listen=tcp:0", "connect=tcp:9"], 78, "both called 'a'"),
        (["add", "raw", "listen=unix:{}/a.sock", "connect=tcp:9"], 78, "both listen on"),
        (["add", "raw", "listen=unix:/nowhere/x.sock", "connect=tcp:9"], 73, "its directory does not exist"),
        (["add", "raw", "listen=tcp:0", "conect=tcp:9"], 78, "unknown field 'conect'"),
        (["add", "raw", "listen"], 2, "is no KEY=VALUE"),
        (["remove", "nobody"], 1, "vsockfwd status lists them"),
        (["status", "nobody"], 2, "no rule is called 'nobody'"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_told_and_nothing_has_changed(up: Running, words: list[str], code: int, told: str):
    seen, line = error_of(*(word.format(up.folder) for word in words), env=up.env)
    assert told in line
    assert seen == code
    assert list(up.status()) == ["a", "b"]


@pytest.mark.parametrize("how", ["the command", "SIGHUP"])
def test_a_reload_changes_what_changed_and_leaves_connections_of_the_rest_alone(
    up: Running, served: socket.socket, how: str
):
    with up.connect("a") as client:
        neighbour, _ = served.accept()
        up.write("a", "c")
        if how == "SIGHUP":
            up.server.process.send_signal(signal.SIGHUP)  # type: ignore[attr-defined]
        else:
            assert up.run("reload").stdout == "stopped b\nstarted c\n"
        wait_until(lambda: (up.folder / "c.sock").exists())
        wait_until(lambda: not (up.folder / "b.sock").exists())
        client.sendall(b"still here")
        assert neighbour.recv(100) == b"still here"
        neighbour.close()


def test_a_reload_that_is_asked_for_while_it_starts_does_not_end_it(tmp_path: Path):
    code = (
        "import os, signal, sys\n"
        "make = os.makedirs\n"
        "def hang_up(*how, **more):\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    make(*how, **more)\n"
        "os.makedirs = hang_up\n"
        "from vsockfwd.cli.main import main\n"
        "sys.exit(main())\n"
    )
    early = Running(tmp_path)
    early.write("a", "b")
    words = ("up", "-c", str(early.file), "--metrics", "tcp:localhost:0")  # where to listen is asked of a thread
    with Server(*words, env=early.env, command=[sys.executable, "-c", code]) as server:
        server.wait_for("listening", 3)
        assert list(early.status()) == ["a", "b"]
        assert server.signal(signal.SIGTERM) == 0


def test_a_bad_file_changes_nothing(up: Running):
    up.file.write_text(RULE.format(name="a", folder=up.folder) + "lisen = 1\n")
    code, line = error_of("reload", env=up.env)
    assert code == 78
    assert "forward[1]: the table contains unknown field 'lisen'" in line
    assert list(up.status()) == ["a", "b"]


def test_the_control_socket_is_for_its_owner_and_goes_with_up(up: Running):
    assert stat.S_IMODE(os.stat(up.control).st_mode) == 0o600
    assert up.server.signal(signal.SIGTERM) == 0  # type: ignore[attr-defined]
    assert not up.control.exists()
    code, line = error_of("status", env=up.env)
    assert code == 69
    assert "is `vsockfwd up` running?" in line


@pytest.mark.parametrize("sent", [b"nonsense\n", b'{"do": "explode"}\n', b"{}\n", b"\xff\n", b"x" * 2_000_000, b""])
def test_nonsense_on_the_control_socket_harms_nobody(up: Running, sent: bytes):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(up.control))
        try:
            sock.sendall(sent)
            sock.shutdown(socket.SHUT_WR)
            answer = sock.recv(4096)
        except (BrokenPipeError, ConnectionResetError):
            answer = b""
    assert not answer or "error" in json.loads(answer)
    assert list(up.status()) == ["a", "b"]


def test_top_shows_a_table(up: Running):
    shown = up.run("top", "-n", "2", "-d", "0.1").stdout
    assert "rule" in shown
    assert re.search(r"^ +a +\w+ +\d", shown, re.MULTILINE)


def test_check_validates_and_does_nothing_else(tmp_path: Path):
    running = Running(tmp_path)
    running.write("a")
    done = run("up", "--check", "-c", str(running.file))
    assert (done.returncode, done.stdout) == (0, f"{running.file}: 1 rules, 0 targets, all well\n")
    assert not (tmp_path / "a.sock").exists()
    code, line = error_of("up", "--check", "-c", str(tmp_path / "nowhere.toml"))
    assert code == 78
    assert "no such file" in line


def test_a_target_is_known_by_the_name_that_the_file_gives_it(tmp_path: Path):
    file = tmp_path / "vsockfwd.toml"
    file.write_text(f'[targets]\nguest = "unix:{tmp_path}/agent.sock"\n')
    env = {"VSOCKFWD_CONFIG": str(file)}
    with Server("serve", "-l", f"unix:{tmp_path}/agent.sock") as agent:
        agent.wait_for("listening")
        assert run("ping", "-c", "1", "guest", env=env).returncode == 0
    code, line = error_of("ping", "gast", env=env)
    assert code == 2
    assert "no target is called 'gast'" in line
