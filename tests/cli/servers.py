"""Real servers for tests, each started for the length of a block and ended by its own process id."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.cli.process import wait_until
from tests.peers import need, need_user


@contextlib.contextmanager
def running(command: Sequence[str], ready: Callable[[], bool]) -> Iterator[None]:
    """Run a server; its standard output and error are dropped."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: ready() or process.poll() is not None)
        assert process.poll() is None, f"{command} ended with {process.returncode}"
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def nginx(folder: Path, root: Path) -> Iterator[Path]:
    """nginx serves the files in `root`: the UNIX socket where it listens."""
    path, config = folder / "web.sock", folder / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    temporary = " ".join(f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi"))
    temporary += f" uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;"
    config.write_text(
        f"daemon off; worker_processes 1; {user} pid {folder}/nginx.pid; error_log {folder}/error.log;\n"
        f"events {{ worker_connections 512; }}\n"
        f"http {{ access_log off; {temporary} server {{ listen unix:{path}; root {root}; }} }}\n"
    )
    command = [need("nginx"), "-c", str(config), "-p", str(folder), "-e", str(folder / "error.log")]
    with running(command, path.exists):
        yield path


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[Path]:
    """redis without persistence: the UNIX socket where it listens."""
    path = folder / "redis.sock"
    command = [need("redis-server"), "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(folder)]
    with running(command, path.exists):
        yield path


@contextlib.contextmanager
def sshd(folder: Path, host: str = "127.0.0.1") -> Iterator[tuple[int, Path]]:
    """OpenSSH's server, of the current user, who gets in by a key: (its port on that address, the key)."""
    for name in ("host", "key"):
        subprocess.run([need("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    if os.geteuid() == 0:
        need_user("sshd")
        os.makedirs("/run/sshd", 0o755, exist_ok=True)  # as its unit does
    with socket.create_server((host, 0)) as free:
        port = free.getsockname()[1]
    config = folder / "sshd_config"
    config.write_text(
        f"ListenAddress {host}:{port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/key.pub\n"
        "Subsystem sftp internal-sftp\nPidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
        "PermitRootLogin prohibit-password\n"
    )

    def ready() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((host, port)) == 0

    with running([need("sshd"), "-D", "-e", "-f", str(config)], ready):
        yield port, folder / "key"
