"""What a user reads when something is wrong: one line with what, where, why and what to do; the right exit code."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.cli.process import Server, agent, error_of, run


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["forwrad"], 2, "did you mean forward?"),
        (["forward"], 2, "missing argument"),
        (["forward", "tcp:1"], 2, "takes LISTEN and CONNECT"),
        (["forward", "tcp:8080", "tpc:80"], 2, "did you mean tcp?"),
        (["forward", "tcp:99999", "tcp:80"], 2, "character 5: a port must be between 0 and 65535"),
        (["forward", "tcp:0", "vsock:-3:80"], 2, "character 7: a CID must be a number, not '-3'"),
        (["forward", "tcp:0", "vsock:guest:80"], 2, "no CID is called 'guest'"),
        (["forward", "-", "tcp:80"], 2, "vsockfwd relay joins two"),
        (["forward", "-L", "80", "3"], 2, "[bind:]port:host:hostport"),
        (["forward", "-L", "80:web:http", "3"], 2, "character 8: 'http' is no port"),
        (["forward", "-p", "9", "tcp:0", "tcp:1"], 2, "-p is the port of an agent"),
        (["ping", "web"], 2, "no target is called 'web'"),
        (["ping", "unix:/nowhere/agent.sock"], 69, "is its server running?"),
        (["ping", "tcp:127.0.0.1:1"], 69, "connection refused"),
        (["ping", "tcp:no-such-name.invalid:1"], 69, "does not resolve"),
        (["serve", "--listen", "tcp:0"], 77, "proves nothing"),
        (["serve", "--listen", "hybrid:/tmp/x.sock:1"], 77, "--allow-guest"),
        (["serve", "--listen", "unix:/tmp/vm.sock_52"], 77, "_NUMBER"),
        (["serve", "--listen", "unix:/nowhere/a.sock"], 73, "its directory does not exist"),
        (["serve", "--allow-cid", "guest"], 2, "not a CID"),
        (["serve", "--listen", f"unix:/tmp/{'x' * 110}"], 2, "use a shorter path"),
        (["serve", "--bogus"], 2, "vsockfwd serve --help"),
        (["ssh-config", "--auth-key", "k", "3"], 2, "a key is for agents"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_mistake_is_told_in_one_line_with_its_exit_code(words, code, told):
    seen, line = error_of(*words)
    assert told in line
    assert seen == code


def test_vsock_that_is_missing_is_explained():
    """The tests' guard makes this machine one that forbids AF_VSOCK."""
    code, line = error_of("ping", "3")
    assert code == 69
    assert "forbidden here" in line


@pytest.mark.parametrize(
    ("says", "code", "told"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", 76, "SSH server"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", 76, "HTTP server"),
        (b"", 69, "without a word"),
    ],
)
def test_an_agent_that_is_no_agent_is_named(says: bytes, code: int, told: str):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            sock, _ = server.accept()
            with sock:
                sock.recv(100)
                sock.sendall(says)

        thread = threading.Thread(target=serve)
        thread.start()
        seen, line = error_of("ping", f"tcp:127.0.0.1:{server.getsockname()[1]}")
        thread.join()
    assert seen == code
    assert told in line


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to ask as another user")
def test_another_user_is_refused_and_reads_what_would_let_it_in(tmp_path: Path):
    folder = tmp_path
    while folder.stat().st_uid == 0 and not folder.stat().st_mode & 0o1000:  # up to the sticky /tmp itself
        folder.chmod(0o755)
        folder = folder.parent
    # A first run imports everything: the interpreter may lie where another user cannot read.
    code = (
        "import contextlib, io, os, sys\n"
        "from vsockfwd.cli.main import main\n"
        "with contextlib.redirect_stderr(io.StringIO()): main(['ping', 'unix:/nowhere/a.sock'])\n"
        "os.setuid(65534)\n"
        f"sys.exit(main(['ping', 'unix:{tmp_path}/a.sock']))\n"
    )
    with Server("serve", "--listen", f"unix:{tmp_path}/a.sock,mode=0666"):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert done.returncode == 77, done.stderr
    assert "--allow-uid 65534" in done.stderr
    with Server("serve", "--listen", f"unix:{tmp_path}/a.sock,mode=0666", "--allow-uid", "65534"):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr


def test_ping_says_as_whom_the_agent_sees_us(tmp_path: Path):
    with agent(tmp_path):
        done = run("ping", "-c", "2", f"unix:{tmp_path}/agent.sock")
        assert done.returncode == 0, done.stderr
        assert f"sees us as uid {os.geteuid()}" in done.stdout
        answer = json.loads(run("ping", "-c", "2", "--json", f"unix:{tmp_path}/agent.sock").stdout.splitlines()[-1])
        assert len(answer["round_trip_seconds"]) == 2


def test_help_and_version_are_answers_not_errors():
    assert run("--version").stdout.startswith("vsockfwd ")
    for words in (["--help"], ["forward", "--help"], ["serve", "-h"], ["-h"]):
        done = run(*words)
        assert done.returncode == 0, done.stderr
        assert "Usage: vsockfwd" in done.stdout
    for name in ("forward", "serve", "ping", "plugins", "demo", "cp", "relay", "dgram"):
        assert f"\n  {name} " in done.stdout


def test_a_closed_standard_output_is_no_traceback():
    done = subprocess.run(
        f"{sys.executable} -m vsockfwd --help | head -n 1", shell=True, capture_output=True, text=True, timeout=20
    )
    assert "Traceback" not in done.stderr


def test_closed_standard_streams_are_nothing_to_die_of(tmp_path: Path):
    for closed in ("2>&-", ">&-", "<&-"):
        done = subprocess.run(
            f"{sys.executable} -m vsockfwd plugins {closed}", shell=True, capture_output=True, text=True, timeout=20
        )
        assert done.returncode == 0, (closed, done.stdout, done.stderr)


def test_a_full_standard_output_is_an_error_of_its_own():
    done = subprocess.run(
        f"{sys.executable} -m vsockfwd plugins > /dev/full", shell=True, capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 74
    assert done.stderr == "vsockfwd: standard output: no space left on device\n"


def test_json_is_utf_8_whatever_the_locale(tmp_path):
    """A path that latin-1 cannot hold, in a locale that knows nothing else."""
    where = tmp_path / "τέλος"
    where.mkdir()
    with Server(
        "forward", f"unix:{where}/listen", "tcp:1", env={"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    ) as server:
        assert "τέλος" in str(server.wait_for("listening")[0]["address"])
