"""OpenSSH and rsync over a relay: as ProxyCommand, with and without --fdpass, and as RSYNC_CONNECT_PROG."""

from __future__ import annotations

import array
import filecmp
import getpass
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.servers import running, sshd
from tests.peers import need

Start = Callable[..., Any]
SECONDS = 60.0
LARGE = 256 << 20

ways = pytest.mark.parametrize("flags", [(), ("--fdpass",)], ids=["in the path", "handed over"])


def relay(*words: str) -> str:
    return shlex.join([sys.executable, "-m", "vsockfwd", "relay", *words])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    with sshd(tmp_path_factory.mktemp("sshd")) as found:
        yield found


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("large") / "large"
    with path.open("wb") as file:
        for _ in range(LARGE >> 24):
            file.write(os.urandom(1 << 20) * 16)
    yield path
    path.unlink()


def options(server: tuple[int, Path], flags: tuple[str, ...]) -> list[str]:
    port, key = server
    proxy = relay(*flags, "-", f"TCP:127.0.0.1:{port}")
    told = [f"ProxyCommand={proxy}", f"IdentityFile={key}", "BatchMode=yes", "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "Ciphers=aes128-gcm@openssh.com"]  # fmt: skip
    if flags:
        told.append("ProxyUseFdpass=yes")
    return ["-F", "none", *(word for each in told for word in ("-o", each))]


def done(*command: str) -> bytes:
    """What a command said; it must succeed, and complain of nothing."""
    found = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=False)
    assert (found.returncode, found.stderr) == (0, b"")
    return found.stdout


@ways
def test_ssh_logs_in_and_scp_copies_both_ways(server: tuple[int, Path], flags: tuple[str, ...], tmp_path: Path) -> None:
    assert done(need("ssh"), *options(server, flags), f"{getpass.getuser()}@guest", "echo hello") == b"hello\n"
    (tmp_path / "a").write_bytes(os.urandom(3_000_000))
    done("scp", "-q", *options(server, flags), str(tmp_path / "a"), f"guest:{tmp_path}/b")
    done("scp", "-q", *options(server, flags), f"guest:{tmp_path}/b", str(tmp_path / "c"))
    assert filecmp.cmp(tmp_path / "a", tmp_path / "c", shallow=False)


@ways
def test_rsync_over_ssh_copies_256_mib(
    server: tuple[int, Path], flags: tuple[str, ...], large: Path, tmp_path: Path
) -> None:
    shell = shlex.join([need("ssh"), *options(server, flags)])
    done(need("rsync"), "--whole-file", "-e", shell, str(large), f"guest:{tmp_path}/copy")
    assert filecmp.cmp(large, tmp_path / "copy", shallow=False)
    (tmp_path / "copy").unlink()


def test_nothing_of_ours_runs_on_once_the_descriptor_was_handed_over(command: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            process = command("--fdpass", "-", f"TCP:127.0.0.1:{listener.getsockname()[1]}", stdout=theirs)
            theirs.close()
            _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(4))
            assert (process.wait(10), process.stderr.read()) == (0, b"")
            (number,) = array.array("i", ancillary[0][2])
            connection, _ = listener.accept()
            with socket.socket(fileno=number) as handed, connection:
                assert handed.getblocking()
                connection.sendall(b"hello")
                assert handed.recv(10) == b"hello"
                handed.sendall(b"answer")
                assert connection.recv(10) == b"answer"


def test_a_descriptor_goes_to_nobody_who_could_not_take_it(command: Start, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = command("--fdpass", "-", f"TCP:127.0.0.1:{listener.getsockname()[1]}")
        assert process.wait(10) == 2
        assert b"no socket that takes a descriptor" in process.stderr.read()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "s"))
        for address in (f"UNIX-SENDTO:{tmp_path}/s", "EXEC:cat"):
            process = command("--fdpass", "-", address)
            assert process.wait(10) == 2
            assert b"no socket that could be handed over" in process.stderr.read()


def test_rsync_reaches_its_daemon_by_a_relay(large: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = tmp_path / "rsyncd.conf"
    config.write_text(
        f"port = {port}\naddress = 127.0.0.1\nuse chroot = no\npid file = {tmp_path}/pid\nlog file = {tmp_path}/log\n"
        f"uid = {os.geteuid()}\ngid = {os.getegid()}\n[there]\n  path = {tmp_path}\n  read only = no\n"
    )

    def ready() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    with running([need("rsync"), "--daemon", "--no-detach", f"--config={config}"], ready):
        environment = os.environ | {"RSYNC_CONNECT_PROG": relay("-", f"TCP:127.0.0.1:{port}")}
        words = [need("rsync"), "--whole-file", str(large), "rsync://guest/there/copy"]
        found = subprocess.run(words, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS)
    assert (found.returncode, found.stderr) == (0, b"")
    assert filecmp.cmp(large, tmp_path / "copy", shallow=False)
    (tmp_path / "copy").unlink()
