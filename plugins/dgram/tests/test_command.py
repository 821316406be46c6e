"""`vsockfwd dgram` as a user runs it: real processes, real peers, exit codes."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
from collections.abc import Iterator

import pytest

from tests.cli.process import DEADLINE, Server, agent, wait_until
from tests.peers import need
from vsockfwd.cli.main import main


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with agent(tmp_path_factory.mktemp("agent")) as server:
        yield server.address


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(DEADLINE)
        yield sock


def test_datagrams_pass_through_real_processes_and_ctrl_c_ends_them_with_a_summary(target, server, tmp_path):
    here = tmp_path / "here"
    words = ("-L", f"0:127.0.0.1:{server.getsockname()[1]}", "-L", f"{here}:127.0.0.1:{server.getsockname()[1]}")
    with Server("dgram", *words, target) as forward, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(DEADLINE)
        listening = [str(event["address"]) for event in forward.wait_for("listening", 3)]
        assert f"unix-dgram:{here}" in listening
        port = next(int(each.rpartition(":")[2]) for each in listening if each.startswith("udp:127.0.0.1:"))
        client.connect(("127.0.0.1", port))
        for datagram in (b"", b"question", bytes(65_507)):
            client.send(datagram)
            received, peer = server.recvfrom(1 << 17)
            assert received == datagram
            server.sendto(datagram, peer)
            assert client.recv(1 << 17) == datagram
        assert here.stat().st_mode & 0o777 == 0o600
        assert forward.signal(signal.SIGINT) == 130
        forward._reader.join(DEADLINE)
        counts = [
            [event[key] for key in ("datagrams_out", "datagrams_in", "dropped")] for event in forward.of("carried")
        ]
        assert [3, 3, 0] in counts
        assert forward.errors() == ""
    assert not here.exists()


def test_without_an_agent_two_processes_are_joined_by_connections_and_say_what_they_carried(server, tmp_path):
    way = f"unix-seqpacket:{tmp_path}/way"
    with (
        Server("dgram", way, f"udp:127.0.0.1:{server.getsockname()[1]}") as far,
        Server("dgram", "udp:127.0.0.1:0", way) as near,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        client.settimeout(DEADLINE)
        client.connect(("127.0.0.1", near.port))
        for datagram in (b"", b"question", bytes(65_507)):
            client.send(datagram)
            received, peer = server.recvfrom(1 << 17)
            assert received == datagram
            server.sendto(datagram, peer)
            assert client.recv(1 << 17) == datagram
        for side in (near, far):
            assert side.signal(signal.SIGINT) == 130
            side._reader.join(DEADLINE)
            (carried,) = side.of("carried")
            assert [carried[key] for key in ("datagrams_out", "datagrams_in", "dropped")] == [3, 3, 0]
    assert not (tmp_path / "way").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("3",), "LISTEN and CONNECT, or -L SPEC"),
        (("udp:1", "vsock:3:2"), "vsock carries no datagrams – vsock-seqpacket: does"),
        (("udp:1", "vsock-dgram:3:2"), "vsock has no datagrams (SOCK_DGRAM) but on VMware"),
        (("udp:1", "vsock-seqpacket:any:2"), "can be listened on, not connected to"),
        (("udp:1", "udp:*:2"), "one host and a port above 0"),
        (("-p", "5", "udp:1", "udp:2"), "-p is the port of an agent"),
        (("-L", "5353:dns:53", "3", "4"), "one TARGET"),
        (("-L", "5353:dns:domain", "3"), "character 10: a port must be a number"),
        (("-R", "5353:dns:domain", "3"), "character 10: a port must be a number"),
        (("-R", "5353", "3"), "not a forward"),
        (("-L", "0:a:1", "--idle", "0", "3"), "--idle 0"),
        (("-L", "0:a:1", "--idle", "nan", "3"), "--idle nan"),
        (("-L", "0:a:1", "--flows", "70000", "3"), "--flows 70000"),
    ],
)
def test_what_is_not_meant_or_not_built_is_refused_by_name(words, text, capsys):
    assert main(["dgram", *words]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert text in errors


def test_what_cannot_be_done_is_said_in_one_line_with_the_right_exit_code(target, server, tmp_path, capsys):
    taken = server.getsockname()[1]
    for words, code, text in (
        (("-L", "0:a:1", f"unix:{tmp_path}/none"), 69, "no such socket"),
        (("-L", "0:no-such-name.invalid:1", target), 69, "no-such-name.invalid does not resolve"),
        (("-L", f"127.0.0.1:{taken}:a:1", target), 73, "another program listens there"),
        (("-R", f"127.0.0.1:{taken}:localhost:1", target), 73, "another program listens there"),
        (("-R", "0:no-such-name.invalid:1", target), 69, "no-such-name.invalid does not resolve"),
    ):
        assert main(["dgram", *words]) == code
        errors = capsys.readouterr().err
        assert errors.count("\n") == 1, errors
        assert text in errors


def test_a_rule_that_cannot_listen_leaves_the_others_alone(target, server):
    taken = server.getsockname()[1]
    words = ("-L", f"127.0.0.1:{taken}:localhost:9", "-L", f"127.0.0.1:0:127.0.0.1:{taken}")
    with Server("dgram", *words, target) as forward, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        assert "another program listens there" in str(forward.wait_for("problem"))
        client.sendto(b"x", ("127.0.0.1", forward.port))
        assert server.recv(10) == b"x"


def test_with_exit_on_failure_one_that_cannot_listen_ends_them_all(target, server, capsys):
    taken = server.getsockname()[1]
    words = ("--exit-on-failure", "-L", "0:localhost:9", "-L", f"127.0.0.1:{taken}:localhost:9", target)
    assert main(["dgram", *words]) == 73
    assert "another program listens there" in capsys.readouterr().err.splitlines()[-1]


def ask(port: int, name: str) -> str:
    command = [need("dig"), "@127.0.0.1", "-p", str(port), "+short", "+tries=5", "+time=1", name]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE).stdout.strip()


@contextlib.contextmanager
def dns_server() -> Iterator[int]:
    """A dnsmasq that answers 192.0.2.7 to guest.test and what is below it; gives its port."""
    for _ in range(10):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        flags = ["--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces", "--user="]
        flags += ["--listen-address=127.0.0.1", f"--port={port}", "--address=/guest.test/192.0.2.7"]
        dns = subprocess.Popen([need("dnsmasq"), *flags], stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda dns=dns, port=port: dns.poll() is not None or ask(port, "guest.test") == "192.0.2.7")
            if dns.poll() is None:  # else the port was taken meanwhile, for UDP or for TCP
                yield port
                return
        finally:
            dns.terminate()
            dns.wait(DEADLINE)
    raise AssertionError("dnsmasq found no port")


@pytest.mark.parametrize("flag", ["-L", "-R"])
def test_dig_asks_a_real_dns_server_through_the_forward(target, flag):
    with dns_server() as port, Server("dgram", flag, f"0:localhost:{port}", target) as forward:
        names = [f"{number}.guest.test" for number in range(5)]
        assert [ask(forward.port, name) for name in names] == ["192.0.2.7"] * 5


@pytest.mark.parametrize("flag", ["-L", "-R"])
def test_forward_carries_datagrams_too_where_its_spec_says_udp(target, server, flag: str):
    spec = f"127.0.0.1:0:127.0.0.1:{server.getsockname()[1]}/udp"
    with Server("forward", flag, spec, target) as forward, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(DEADLINE)
        port = str(forward.wait_for("listening")[0]["address"]).rpartition(":")[2]
        client.connect(("127.0.0.1", int(port)))
        client.send(b"question")
        received, peer = server.recvfrom(100)
        assert received == b"question"
        server.sendto(b"answer", peer)
        assert client.recv(100) == b"answer"
