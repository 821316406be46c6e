"""Programs that people use every day, through a forward, with servers of their own kind.

Each is here for what it does to a connection: it keeps it, or speaks first, or ends one direction, or waits for long.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import http.client
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.process import COMMAND, Server, agent
from tests.cli.servers import nginx, redis, sshd
from tests.peers import need

SECONDS = 30.0


@contextlib.contextmanager
def raw(folder: Path, service: str) -> Iterator[int]:
    """A raw forward's port; `service` as -L spells it."""
    with Server("forward", "tcp:0", f"unix:{service}" if service.startswith("/") else f"tcp:{service}") as forward:
        yield forward.port


@contextlib.contextmanager
def through_agent(folder: Path, service: str) -> Iterator[int]:
    with agent(folder), Server("forward", "-L", f"0:{service}", f"unix:{folder}/agent.sock") as forward:
        yield forward.port


ways = pytest.mark.parametrize("way", [raw, through_agent])


def run(*command: str, input: bytes = b"") -> bytes:
    """A client's standard output; it must succeed, and say nothing else."""
    done = subprocess.run(command, input=input, capture_output=True, timeout=SECONDS, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


# --- HTTP: one connection for many requests


@pytest.fixture
def pages(tmp_path: Path) -> Iterator[dict[str, bytes]]:
    """What nginx serves on web.sock, by name."""
    content = {name: os.urandom(size) for name, size in (("small", 100), ("large", 8 << 20), ("middling", 1 << 16))}
    root = tmp_path / "www"
    root.mkdir()
    for name, data in content.items():
        (root / name).write_bytes(data)
    with nginx(tmp_path, root):
        yield content


@ways
def test_curl_fetches_several_pages_over_one_connection(tmp_path: Path, pages: dict[str, bytes], way):
    with way(tmp_path, f"{tmp_path}/web.sock") as port:
        urls = [f"http://127.0.0.1:{port}/{name}" for name in pages]
        places = [word for name in pages for word in ("-o", str(tmp_path / name))]
        connections = run(need("curl"), "-sS", "-w", "%{num_connects} ", *places, *urls)
    assert connections.split() == [b"1", b"0", b"0"]
    for name, data in pages.items():
        assert (tmp_path / name).read_bytes() == data


@ways
def test_an_http_client_keeps_its_connection_over_hundreds_of_requests(tmp_path: Path, pages: dict[str, bytes], way):
    with way(tmp_path, f"{tmp_path}/web.sock") as port:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
        client.connect()
        ours = client.sock.getsockname()
        for number in range(300):
            name = "middling" if number % 10 == 0 else "small"
            client.request("GET", f"/{name}")
            assert client.getresponse().read() == pages[name]
            assert client.sock.getsockname() == ours
        client.close()


# --- OpenSSH: both sides speak at once, then it carries whatever


def ssh(key: Path, *words: str, input: bytes = b"") -> bytes:
    options = ("BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR")
    flags = [word for option in options for word in ("-o", option)]
    return run(need("ssh"), "-F", "none", "-i", str(key), *flags, "-l", getpass.getuser(), *words, input=input)


def digest_by_ssh(key: Path, *words: str) -> None:
    """A file goes there and comes back; the far side's word stands on the end of what it reads."""
    data = os.urandom(4 << 20)
    assert ssh(key, *words, "tee /dev/stderr 2>&1 >/dev/null | cat; echo done", input=data) == data + b"done\n"
    assert ssh(key, *words, "sha256sum", input=data).split()[0] == hashlib.sha256(data).hexdigest().encode()


@ways
def test_ssh_logs_in_and_carries_a_file_both_ways(tmp_path: Path, way):
    with sshd(tmp_path) as (port, key), way(tmp_path, f"127.0.0.1:{port}") as forwarded:
        digest_by_ssh(key, "-p", str(forwarded), "127.0.0.1")


def test_ssh_logs_in_by_a_proxy_command(tmp_path: Path):
    with sshd(tmp_path) as (port, key), agent(tmp_path):
        proxy = shlex.join([*COMMAND, "forward", "-W", "%h:%p", f"unix:{tmp_path}/agent.sock"])
        digest_by_ssh(key, "-o", f"ProxyCommand={proxy}", "-p", str(port), "127.0.0.1")


# --- redis: a protocol of small messages, of pipelines, and of a server that speaks when it wants


@ways
def test_redis_answers_its_client_and_takes_a_pipeline(tmp_path: Path, way):
    with redis(tmp_path) as path, way(tmp_path, str(path)) as port:
        cli = (need("redis-cli"), "-h", "127.0.0.1", "-p", str(port))
        value = os.urandom(1 << 20).hex().encode()
        assert run(*cli, "-x", "SET", "large", input=value) == b"OK\n"
        assert run(*cli, "GET", "large") == value + b"\n"
        pipeline = b"".join(b"SET key%d %d\r\n" % (number, number) for number in range(20_000))
        assert b"errors: 0, replies: 20000" in run(*cli, "--pipe", input=pipeline)
        assert run(*cli, "DBSIZE") == b"20001\n"


@ways
def test_redis_tells_a_silent_subscriber_what_another_publishes(tmp_path: Path, way):
    with redis(tmp_path) as path, way(tmp_path, str(path)) as port:
        cli = (need("redis-cli"), "-h", "127.0.0.1", "-p", str(port))
        listening = subprocess.Popen([*cli, "SUBSCRIBE", "news"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        try:
            assert listening.stdout is not None
            assert [listening.stdout.readline() for _ in range(3)] == [b"subscribe\n", b"news\n", b"1\n"]
            assert run(*cli, "PUBLISH", "news", "hello") == b"1\n"
            assert [listening.stdout.readline() for _ in range(3)] == [b"message\n", b"news\n", b"hello\n"]
        finally:
            listening.kill()
            listening.wait()
            assert listening.stdout is not None
            listening.stdout.close()
