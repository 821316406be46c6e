"""Each stream and datagram type with the real socat at the other side, whose version stands in every test's name."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.peers import need
from vsockfwd_relay.address_type import Direction

Start = Callable[..., Any]
Everything = Callable[[trio.abc.ReceiveStream], Awaitable[bytes]]
LIMIT = 10.0


def version() -> str:
    """Which socat is met here."""
    if shutil.which("socat") is None:
        return "no socat"
    told = subprocess.run(["socat", "-V"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"socat version (\S+)", told)
    return f"socat {found[1] if found else '?'}"


met = pytest.mark.parametrize("met", [version()])

TLS_SERVER = ",cert={keys}/server.pem,cafile={keys}/authority.pem"
TLS_CLIENT = ",cert={keys}/client.pem,cafile={keys}/authority.pem"

STREAMS = {
    "tcp4": ("TCP4-LISTEN:{port},bind=127.0.0.1,reuseaddr", "TCP4:127.0.0.1:{port}"),
    "tcp6": ("TCP6-LISTEN:{port},bind=[::1],reuseaddr", "TCP6:[::1]:{port}"),
    "tcp from a port": (
        "TCP-LISTEN:{port},bind=127.0.0.1,sourceport={other}",
        "TCP:127.0.0.1:{port},sourceport={other}",
    ),
    "unix": ("UNIX-LISTEN:{dir}/s", "UNIX-CONNECT:{dir}/s"),
    "unix from a path": ("UNIX-LISTEN:{dir}/s", "UNIX-CONNECT:{dir}/s,bind={dir}/own"),
    "unix client": ("UNIX-LISTEN:{dir}/s", "UNIX-CLIENT:{dir}/s"),
    "abstract": ("ABSTRACT-LISTEN:{name}", "ABSTRACT-CONNECT:{name}"),
    "tls": (
        "OPENSSL-LISTEN:{port},bind=127.0.0.1,reuseaddr" + TLS_SERVER,
        "OPENSSL:localhost:{port},pf=ip4" + TLS_CLIENT,
    ),
    "tls 1.2": (
        "OPENSSL-LISTEN:{port},bind=127.0.0.1,reuseaddr,openssl-max-proto-version=TLS1.2" + TLS_SERVER,
        "OPENSSL:localhost:{port},pf=ip4" + TLS_CLIENT,
    ),
    "tls of nobody": (
        "OPENSSL-LISTEN:{port},bind=127.0.0.1,reuseaddr,verify=0,cert={keys}/server.pem",
        "OPENSSL:127.0.0.1:{port},verify=0",
    ),
}
DATAGRAMS = {
    "udp4": ("UDP4-LISTEN:{port},bind=127.0.0.1", "UDP4:127.0.0.1:{port}"),
    "udp6": ("UDP6-LISTEN:{port},bind=[::1]", "UDP6:[::1]:{port}"),
    "udp sendto": ("UDP-RECVFROM:{port},bind=127.0.0.1", "UDP-SENDTO:127.0.0.1:{port}"),
    "udp datagram": (
        "UDP-DATAGRAM:127.0.0.1:{other},bind=127.0.0.1:{port}",
        "UDP-DATAGRAM:127.0.0.1:{port},bind=127.0.0.1:{other}",
    ),
    "unix sendto": ("UNIX-RECVFROM:{dir}/s", "UNIX-SENDTO:{dir}/s,bind={dir}/own"),
    "unix client": ("UNIX-RECVFROM:{dir}/s", "UNIX-CLIENT:{dir}/s,bind={dir}/own"),
    "abstract sendto": ("ABSTRACT-RECVFROM:{name}", "ABSTRACT-SENDTO:{name},bind={name}-own"),
}
RECEIVERS = {
    "udp": ("UDP-RECV:{port},bind=127.0.0.1", "UDP-SENDTO:127.0.0.1:{port}"),
    "udp6": ("UDP6-RECV:{port},bind=[::1]", "UDP6-SENDTO:[::1]:{port}"),
    "unix": ("UNIX-RECV:{dir}/s", "UNIX-SENDTO:{dir}/s"),
    "abstract": ("ABSTRACT-RECV:{name}", "ABSTRACT-SENDTO:{name}"),
}


Fill = Callable[[str], str]


@pytest.fixture
def fill(tmp_path: Path, request: pytest.FixtureRequest) -> Fill:
    """Put ports, paths and names of this test into an address."""
    ports = []
    for _ in range(2):
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            ports.append(sock.getsockname()[1])
    name = f"vsockfwd-test-{os.getpid()}-{ports[0]}"

    def put(text: str) -> str:
        keys = request.getfixturevalue("keys") if "{keys}" in text else ""
        return text.format(port=ports[0], other=ports[1], dir=tmp_path, name=name, keys=keys)

    return put


@pytest.fixture
async def served(nursery: trio.Nursery) -> Any:
    """Start socat, and wait until it waits for others."""
    program = need("socat")
    async with trio.open_nursery() as running:

        async def start(*words: str) -> trio.Process:
            process = await trio.lowlevel.open_process(
                [program, "-d", "-d", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            running.start_soon(_end, process)
            assert process.stderr is not None
            told = b""
            with trio.fail_after(LIMIT):
                while not re.search(rb"listening on|receiving on|starting data transfer", told):
                    piece = await process.stderr.receive_some()
                    assert piece, told
                    told += piece
            running.start_soon(_drain, process.stderr)
            return process

        yield start
        running.cancel_scope.cancel()


async def _drain(stream: trio.abc.ReceiveStream) -> None:
    async for _ in stream:
        pass


async def _end(process: trio.Process) -> None:
    try:
        await trio.sleep_forever()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                await pipe.aclose()


async def _waits(running: Any) -> None:
    """Wait until our server can be reached."""
    await running.said("listening on|receiving on|opening UDP-DATAGRAM")


async def _answer(stream: trio.abc.ReceiveStream, size: int) -> bytes:
    got = b""
    with trio.fail_after(LIMIT):
        while len(got) < size:
            piece = await stream.receive_some()
            assert piece, f"ended after {got!r}"
            got += piece
    return got


@met
@pytest.mark.parametrize("pair", STREAMS)
async def test_socats_client_and_our_server(
    met: str, pair: str, relaying: Start, socat: Start, everything: Everything, fill: Fill
) -> None:
    question = os.urandom(300_000)
    server, client = STREAMS[pair]
    running = relaying(fill(server), "EXEC:cat")
    await _waits(running)
    process = await socat("-t10", "-", fill(client))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_say, process.stdin, question)
        assert await everything(process.stdout) == question
    await running.end()


@met
@pytest.mark.parametrize("pair", STREAMS)
async def test_our_client_and_socats_server(
    met: str, pair: str, relaying: Start, served: Start, everything: Everything, fill: Fill, tmp_path: Path
) -> None:
    question = os.urandom(300_000)
    server, client = STREAMS[pair]
    await served("-t10", fill(server), "EXEC:cat")
    (tmp_path / "question").write_bytes(question)
    await relaying(f"OPEN:{tmp_path}/question!!OPEN:{tmp_path}/answer,creat", fill(client)).end()
    assert (tmp_path / "answer").read_bytes() == question


async def _say(stream: trio.abc.SendStream, data: bytes) -> None:
    await stream.send_all(data)
    await stream.aclose()


@met
@pytest.mark.parametrize("pair", DATAGRAMS)
async def test_socats_datagrams_are_answered_by_our_server(
    met: str, pair: str, relaying: Start, socat: Start, fill: Fill
) -> None:
    question = os.urandom(5000)
    server, client = DATAGRAMS[pair]
    running = relaying(fill(server), "EXEC:cat" if "RECVFROM" in server else "SOCKETPAIR")
    await _waits(running)
    process = await socat("-t10", "-", fill(client))
    for _ in range(1 if "RECVFROM" in server else 3):
        await process.stdin.send_all(question)
        assert await _answer(process.stdout, len(question)) == question


@met
@pytest.mark.parametrize("pair", DATAGRAMS)
async def test_our_datagrams_are_answered_by_socats_server(
    met: str, pair: str, relaying: Start, served: Start, fill: Fill, tmp_path: Path
) -> None:
    question = os.urandom(5000)
    server, client = DATAGRAMS[pair]
    await served("-t10", fill(server), "PIPE" if "RECVFROM" not in server else "EXEC:cat")
    running = relaying(f"UNIX-LISTEN:{tmp_path}/near", fill(client))
    await running.said("listening on")
    async with await trio.open_unix_socket(f"{tmp_path}/near") as stream:
        for _ in range(1 if "RECVFROM" in server else 3):
            await stream.send_all(question)
            assert await _answer(stream, len(question)) == question


@met
@pytest.mark.parametrize("pair", RECEIVERS)
async def test_what_socat_sends_our_receiver_gets(
    met: str, pair: str, relaying: Start, socat: Start, until: Start, fill: Fill, tmp_path: Path
) -> None:
    receiver, sender = RECEIVERS[pair]
    out = tmp_path / "out"
    running = relaying(
        fill(receiver), f"OPEN:{out},creat", first_direction=Direction.READ, second_direction=Direction.WRITE
    )
    await _waits(running)
    for word in (b"one", b"two"):
        process = await socat("-u", "-", fill(sender))
        await _say(process.stdin, word)
        with trio.fail_after(LIMIT):
            await process.wait()
    await until(lambda: out.exists() and out.read_bytes() == b"onetwo")


@met
@pytest.mark.parametrize("pair", RECEIVERS)
async def test_what_we_send_socats_receiver_gets(
    met: str, pair: str, relaying: Start, served: Start, fill: Fill, tmp_path: Path
) -> None:
    receiver, sender = RECEIVERS[pair]
    process = await served("-u", fill(receiver), "-")
    for word in (b"one", b"two"):
        (tmp_path / "in").write_bytes(word)
        await relaying(
            f"OPEN:{tmp_path}/in", fill(sender), first_direction=Direction.READ, second_direction=Direction.WRITE
        ).end()
        assert await _answer(process.stdout, 3) == word


@met
async def test_socats_empty_datagram_ends_our_side_and_ours_ends_its(
    met: str, relaying: Start, served: Start, socat: Start, fill: Fill, tmp_path: Path, everything: Everything
) -> None:
    (tmp_path / "in").write_bytes(b"all")
    one_way = {"first_direction": Direction.READ, "second_direction": Direction.WRITE}
    running = relaying(fill("UDP-RECV:{port},bind=127.0.0.1,null-eof"), f"OPEN:{tmp_path}/out,creat", **one_way)
    await _waits(running)
    await socat("-u", f"OPEN:{tmp_path}/in", fill("UDP-SENDTO:127.0.0.1:{port},shut-null"))
    await running.end()
    assert (tmp_path / "out").read_bytes() == b"all"
    process = await served("-u", fill("UDP-RECV:{other},bind=127.0.0.1,null-eof"), "-")
    await relaying(f"OPEN:{tmp_path}/in", fill("UDP-SENDTO:127.0.0.1:{other},shut-null"), **one_way).end()
    assert await everything(process.stdout) == b"all"


@met
async def test_a_named_pipe_and_a_terminal_lead_to_socat(
    met: str, relaying: Start, socat: Start, everything: Everything, tmp_path: Path
) -> None:
    (tmp_path / "in").write_bytes(b"through a pipe\n")
    running = relaying(
        f"OPEN:{tmp_path}/in", f"PIPE:{tmp_path}/p", first_direction=Direction.READ, second_direction=Direction.WRITE
    )
    process = await socat("-u", f"PIPE:{tmp_path}/p,rdonly", "-")
    assert await everything(process.stdout) == b"through a pipe\n"
    await running.end()
    terminal = relaying(f"PTY,link={tmp_path}/tty,rawer,wait-slave,pty-interval=0.01", "SOCKETPAIR")
    await terminal.said("PTY is /dev/pts/")
    process = await socat("-", f"OPEN:{tmp_path}/tty,rawer")
    await process.stdin.send_all(b"through\r\na terminal\x04")
    assert await _answer(process.stdout, 20) == b"through\r\na terminal\x04"
    process.kill()
    await terminal.end()
    assert not (tmp_path / "tty").is_symlink()
