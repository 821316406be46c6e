"""VSOCK-CONNECT, VSOCK-LISTEN and their SEQPACKET kin over real vsock, with the real socat where it has them."""

import sys
from contextlib import ExitStack

import pytest

from tests.vm.machine import Machine
from tests.vm.rig import Level

LIMIT = 240.0
SIZE = 5_000_000

SEQPACKET_PEER = """
import socket, sys
sock = socket.socket(socket.AF_VSOCK, socket.SOCK_SEQPACKET)
sock.connect((int(sys.argv[1]), int(sys.argv[2])))
for size in (1, 20_000, 3):
    sock.send(bytes(size))
    print(len(sock.recv(65536)), flush=True)
sock.shutdown(socket.SHUT_WR)
print(sock.recv(65536))
"""


@pytest.fixture(params=["loopback", "host_and_guest"])
def vsock(request: pytest.FixtureRequest) -> Level:
    """The levels on which both machines have AF_VSOCK."""
    chosen: Level = request.getfixturevalue(request.param)
    return chosen


def cid(level: Level) -> str:
    """The guest's, as the host dials it."""
    return level.guest_address(0).split(":")[1]


def question(machine: Machine) -> tuple[str, str]:
    """A file of random bytes, and its digest."""
    path = f"{machine.make_tmp()}/question"
    machine.random_file(path, SIZE, seed=6)
    return path, machine.sha256(path)


def test_socat_dials_our_vsock_listener_and_gets_its_answer_after_a_half_close(vsock: Level) -> None:
    port = vsock.free_port()
    path, digest = question(vsock.host)
    with vsock.guest.cli(
        ["relay", "-d", f"VSOCK-LISTEN:{port},fork", "SYSTEM:sha256sum; echo $SOCAT_PEERADDR"]
    ) as ours:
        ours.wait_output("listening on", LIMIT)
        for _ in range(2):
            ask = f"socat -t60 - VSOCK-CONNECT:{cid(vsock)}:{port} < {path}"
            done = vsock.host.run(["sh", "-c", ask], timeout=LIMIT)
            told = done.stdout.decode().split()
            assert (told[0], told[2]) == (digest, "1" if vsock.name == "loopback" else "2"), done.stderr


def test_we_dial_socats_vsock_listener_and_get_its_answer_after_a_half_close(vsock: Level) -> None:
    port = vsock.free_port()
    path, digest = question(vsock.host)
    server = ["socat", "-d", "-d", "-t60", f"VSOCK-LISTEN:{port}", "SYSTEM:sha256sum"]
    with vsock.guest.start(server) as theirs:
        theirs.wait_output("listening on", LIMIT)
        words = ["relay", f"OPEN:{path}!!STDOUT", f"VSOCK-CONNECT:{cid(vsock)}:{port},buffer=4194304"]
        done = vsock.host.run_cli(words, timeout=LIMIT)
        assert done.stdout.split()[0].decode() == digest, done.stderr


def test_we_dial_from_the_port_that_bind_names(vsock: Level) -> None:
    port = vsock.free_port()
    with vsock.guest.cli(["relay", "-d", f"VSOCK-LISTEN:{port},fork", "SYSTEM:echo $SOCAT_PEERPORT; cat"]) as ours:
        ours.wait_output("listening on", LIMIT)
        words = ["relay", "-", f"VSOCK-CONNECT:{cid(vsock)}:{port},bind=:1777,sndbuf=100000"]
        done = vsock.host.run_cli(words, timeout=LIMIT, stdin=b"question\n")
        assert done.stdout == b"1777\nquestion\n", done.stderr


def test_a_cid_out_of_the_range_is_not_let_in(vsock: Level) -> None:
    ports = vsock.free_port(), vsock.free_port()
    allowed = "local" if vsock.name == "loopback" else "host"
    with ExitStack() as stack:
        for port, cids in zip(ports, (allowed, "77-99"), strict=True):
            words = ["relay", "-d", f"VSOCK-LISTEN:{port},fork,range={cids}", "SYSTEM:echo in"]
            stack.enter_context(vsock.guest.cli(words)).wait_output("listening on", LIMIT)
        answers = [
            vsock.host.run(["socat", "-u", f"VSOCK-CONNECT:{cid(vsock)}:{port}", "-"], timeout=LIMIT).stdout
            for port in ports
        ]
    assert answers == [b"in\n", b""]


def test_messages_keep_their_boundaries_over_vsock(vsock: Level) -> None:
    port = vsock.free_port()
    with vsock.guest.cli(["relay", "-d", f"VSOCK-SEQPACKET-LISTEN:{port},fork", "SOCKETPAIR"]) as ours:
        ours.wait_output("listening on", LIMIT)
        done = vsock.host.run([sys.executable, "-c", SEQPACKET_PEER, cid(vsock), str(port)], timeout=LIMIT)
        assert done.stdout.split() == [b"1", b"20000", b"3", b"b''"], done.stderr
        words = ["relay", "-", f"VSOCK-SEQPACKET-CONNECT:{cid(vsock)}:{port}"]
        done = vsock.host.run_cli(words, timeout=LIMIT, stdin=bytes(100_000))
        assert done.stdout == bytes(100_000), done.stderr
