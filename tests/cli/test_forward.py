"""`forward` as a user runs it, with real servers and clients that know nothing of it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.process import COMMAND, DEADLINE, Server, agent, error_of, run, wait_until
from tests.cli.servers import nginx
from tests.peers import need
from vsockfwd.engine.workers import SOON

SIZE = 64 << 20


@pytest.fixture
def website(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """nginx on a UNIX socket with a large file: (socket, digest of the file)."""
    root = tmp_path / "www"
    root.mkdir()
    content = os.urandom(1 << 20) * (SIZE >> 20)
    (root / "large").write_bytes(content)
    with nginx(tmp_path, root) as path:
        yield str(path), hashlib.sha256(content).hexdigest()


def curl(url: str, *flags: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([need("curl"), "-sS", "--max-time", "30", *flags, url], capture_output=True, check=False)


def test_curl_fetches_a_file_through_a_raw_forward(website):
    path, digest = website
    with Server("forward", "tcp:0", f"unix:{path}") as forward:
        for host in ("127.0.0.1", "[::1]", "localhost"):
            done = curl(f"http://{host}:{forward.port}/large")
            assert done.returncode == 0, done.stderr
            assert hashlib.sha256(done.stdout).hexdigest() == digest


def test_curl_fetches_a_file_through_an_agent(website, tmp_path: Path):
    path, digest = website
    target = f"unix:{tmp_path}/agent.sock"
    with agent(tmp_path), Server("forward", "-L", f"0:{path}", target) as forward:
        done = curl(f"http://127.0.0.1:{forward.port}/large")
        assert done.returncode == 0, done.stderr
        assert hashlib.sha256(done.stdout).hexdigest() == digest
        assert forward.wait_for("closed")[0]["outcome"]["ending"] == "complete"  # type: ignore[index]


def test_several_forwards_each_succeed_or_fail_by_themselves(website, tmp_path: Path):
    path, _ = website
    taken = f"{tmp_path}/agent.sock"
    with agent(tmp_path), Server("forward", "-L", f"{taken}:{path}", "-L", f"0:{path}", f"unix:{taken}") as forward:
        assert curl(f"http://127.0.0.1:{forward.port}/", "-o", "/dev/null").returncode == 0
        assert "something stands there already" in str(forward.wait_for("problem")[0]["why"])
    with agent(tmp_path):
        done = run("forward", "--exit-on-failure", "-L", f"0:{path}", "-L", f"{taken}:{path}", f"unix:{taken}")
        assert done.returncode == 73
        assert taken in done.stderr.splitlines()[-1]


def test_a_server_killed_in_mid_body_makes_curl_fail_instead_of_ending_early(tmp_path: Path):
    """Without a length only the end of the connection says that the body is complete: a cut must not look like it."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            sock, _ = server.accept()
            sock.recv(4096)
            sock.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + b"half of the body")
            # As the kernel does for a killed process that had unread data.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
            sock.close()

        target = f"unix:{tmp_path}/agent.sock"
        spec = f"0:127.0.0.1:{server.getsockname()[1]}"
        for words in (("forward", "-L", spec, target), ("forward", "tcp:0", f"tcp:{server.getsockname()[1]}")):
            with agent(tmp_path), Server(*words) as forward:
                threading.Thread(target=serve, daemon=True).start()
                assert curl(f"http://127.0.0.1:{forward.port}/").returncode in (18, 56)


def test_an_agent_killed_in_mid_body_makes_curl_fail_instead_of_ending_early(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        with agent(tmp_path) as guest:
            spec = f"0:127.0.0.1:{server.getsockname()[1]}"
            with Server("forward", "-L", spec, f"unix:{tmp_path}/agent.sock") as forward:

                def serve() -> None:
                    sock, _ = server.accept()
                    sock.recv(4096)
                    sock.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + b"half of the body")
                    guest.signal(signal.SIGKILL)
                    sock.close()

                thread = threading.Thread(target=serve)
                thread.start()
                assert curl(f"http://127.0.0.1:{forward.port}/").returncode == 56
                thread.join()
                assert forward.wait_for("closed")[0]["outcome"]["ending"] == "truncated"  # type: ignore[index]


def test_a_restarted_agent_serves_the_same_forward_again(website, tmp_path: Path):
    path, _ = website
    with agent(tmp_path) as guest, Server("forward", "-L", f"0:{path}", f"unix:{tmp_path}/agent.sock") as forward:
        url = f"http://127.0.0.1:{forward.port}/"
        assert curl(url).returncode == 0
        guest.signal(signal.SIGKILL)
        forward.wait_for("sessiondown")
        assert curl(url).returncode in (7, 56)  # reset at once: curl may call that a failed connect
        with agent(tmp_path):
            assert curl(url).returncode == 0


def test_socat_talks_through_a_forward_in_both_directions_and_half_closes(tmp_path: Path):
    """socat sends its standard input, half-closes, and waits for what `wc -c` has to say about it."""
    socat = need("socat")
    server = subprocess.Popen([socat, f"UNIX-LISTEN:{tmp_path}/count.sock,fork", "SYSTEM:wc -c"])
    try:
        wait_until((tmp_path / "count.sock").exists)
        target = f"unix:{tmp_path}/agent.sock"
        with agent(tmp_path), Server("forward", "-L", f"0:{tmp_path}/count.sock", target) as forward:
            done = subprocess.run(
                [socat, "-t20", "-", f"TCP:127.0.0.1:{forward.port}"],
                input=bytes(5_000_000),
                capture_output=True,
                check=True,
            )
            assert done.stdout.split() == [b"5000000"]
    finally:
        server.terminate()
        server.wait(10)


@contextlib.contextmanager
def carrying(folder: Path, *flags: str) -> Iterator[tuple[Server, Path, socket.socket, socket.socket]]:
    """A forward that carries one connection: it, where it listens, and the connection's client and server."""
    path, target = folder / "here.sock", folder / "there.sock"
    with (
        socket.socket(socket.AF_UNIX) as server,
        Server("forward", *flags, f"unix:{path}", f"unix:{target}") as forward,
        socket.socket(socket.AF_UNIX) as client,
    ):
        server.bind(str(target))
        server.listen()
        client.connect(str(path))
        served, _ = server.accept()
        with served:
            yield forward, path, client, served


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_told_to_stop_the_exit_code_says_whether_a_connection_was_cut_off(tmp_path: Path, number: int, code: int):
    path, target = tmp_path / "here.sock", tmp_path / "there.sock"
    with Server("forward", f"unix:{path}", f"unix:{target}") as forward:
        assert path.exists()
        assert forward.signal(number) == 0
        assert not path.exists()
        assert not forward.errors()
    with carrying(tmp_path, "--drain", "0.2") as (forward, path, client, served):
        forward.process.send_signal(number)
        wait_until(lambda: not path.exists())
        client.sendall(b"still served")
        assert served.recv(100) == b"still served"
        assert forward.process.wait(10) == code
        assert forward.wait_for("closed")[0]["outcome"]["ending"] == "stopped"  # type: ignore[index]


def test_told_to_stop_while_it_logs_in_it_waits_for_nothing(tmp_path: Path):
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{tmp_path}/agent.sock")
        silent.listen()
        silent.settimeout(DEADLINE)
        words = ["forward", "--drain", "600", "-L", f"{tmp_path}/here.sock:localhost:80", f"unix:{tmp_path}/agent.sock"]
        process = subprocess.Popen([*COMMAND, *words], stderr=subprocess.PIPE)
        try:
            with silent.accept()[0]:
                process.send_signal(signal.SIGTERM)
                assert process.communicate(timeout=DEADLINE) == (None, b"")
                assert process.returncode == 143
        finally:
            process.kill()


def test_told_to_stop_the_command_that_the_forwards_are_for_is_told_too(tmp_path: Path):
    target = f"unix:{tmp_path}/agent.sock"
    command = ["sh", "-c", f"trap 'exit 7' TERM; touch {tmp_path}/began; while :; do sleep 0.05; done"]
    with agent(tmp_path):
        words = ["forward", "--drain", "600", "-L", "0:localhost:80", target, *command]
        process = subprocess.Popen([*COMMAND, *words], stdout=subprocess.DEVNULL)
        try:
            wait_until((tmp_path / "began").exists)
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE) == 7
        finally:
            process.kill()


def test_a_second_signal_ends_the_draining_at_once(tmp_path: Path):
    with carrying(tmp_path, "--drain", "600") as (forward, path, _, _):
        forward.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not path.exists())
        assert forward.signal(signal.SIGTERM) == 143


def test_a_connection_that_ends_by_itself_while_we_stop_is_not_cut_off(tmp_path: Path):
    with carrying(tmp_path) as (forward, path, client, served):
        forward.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not path.exists())
        served.sendall(b"the answer")
        served.close()
        assert client.recv(100) == b"the answer"
        client.close()
        assert forward.process.wait(10) == 0


def test_a_listener_that_is_taken_says_who_to_look_for():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, line = error_of("forward", f"tcp:{port}", "tcp:1")
    assert code == 73
    assert "address already in use" in line
    assert str(port) in line
    assert "ss -ltnp" in line


def test_a_stderr_that_nobody_reads_stops_nothing(tmp_path: Path):
    """Strangers cause lines: a full pipe must not stand in the way of the work, nor of being told to stop."""
    command = [*COMMAND, "forward", "-v", f"unix:{tmp_path}/here.sock", f"unix:{tmp_path}/nowhere.sock"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        wait_until((tmp_path / "here.sock").exists)
        for _ in range(1200):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(f"{tmp_path}/here.sock")
                assert sock.recv(1) == b""
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def test_workers_share_the_listeners_and_one_that_is_killed_is_replaced(tmp_path: Path):
    path, target = tmp_path / "here.sock", tmp_path / "there.sock"
    with (
        socket.socket(socket.AF_UNIX) as server,
        Server("forward", "--workers", "3", f"unix:{path}", f"unix:{target}") as forward,
    ):
        server.bind(str(target))
        server.listen(64)
        server.settimeout(10)
        assert len(forward.wait_for("listening")) == 1

        def workers() -> list[int]:
            children = Path(f"/proc/{forward.process.pid}/task/{forward.process.pid}/children")
            return [int(pid) for pid in children.read_text().split()]

        def served() -> bool:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(10)
                client.connect(str(path))
                client.sendall(b"x")
                neighbour, _ = server.accept()
                with neighbour:
                    return neighbour.recv(1) == b"x"

        wait_until(lambda: len(workers()) == 3)
        began = time.monotonic()
        assert all(served() for _ in range(20))
        first = workers()
        wait_until(lambda: time.monotonic() - began > SOON)  # one that dies at its start is not replaced
        os.kill(first[0], signal.SIGKILL)
        wait_until(lambda: len(workers()) == 3 and first[0] not in workers())
        assert all(served() for _ in range(20))
        assert forward.signal(signal.SIGTERM) == 0
        assert not path.exists()


def test_workers_that_cannot_reach_their_agent_say_so_once(tmp_path: Path):
    code, line = error_of("forward", "--workers", "3", "-L", "0:localhost:80", f"unix:{tmp_path}/agent.sock")
    assert code == 69
    assert "is its server running?" in line
    assert error_of("forward", "--workers", "2", "-R", "0:localhost:80", "3")[0] == 2
