"""Programs that know nothing of us, through real processes: iperf3 counts what it loses, QUIC carries a megabyte."""

from __future__ import annotations

import asyncio
import datetime
import json
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.process import DEADLINE, Server, agent, wait_until
from tests.peers import need, need_module


@pytest.fixture
def target(tmp_path: Path) -> Iterator[str]:
    with agent(tmp_path) as server:
        yield server.address


RATE = 2000
"""Datagrams a second: far from what bench/dgram.py asks for, since a busy machine loses some of that."""


def free_port() -> int:
    """A port that neither TCP nor UDP has in use."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            port: int = tcp.getsockname()[1]
            try:
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


@pytest.mark.parametrize("reverse", [False, True])
def test_iperf3_loses_nothing_either_way(target: str, reverse: bool) -> None:
    there, here, size = free_port(), free_port(), 1200
    spec = f"127.0.0.1:{here}:127.0.0.1:{there}"  # iperf3 talks TCP beside, to the same port
    iperf3 = [need("iperf3"), "-p"]
    server = subprocess.Popen([*iperf3, str(there), "-s", "-1", "-B", "127.0.0.1"], stdout=subprocess.DEVNULL)
    try:
        with Server("forward", "-L", spec, "-L", f"{spec}/udp", target) as forward:
            forward.wait_for("listening", 2)
            words = ["-c", "127.0.0.1", "-u", "-l", str(size), "-b", str(RATE * size * 8), "-t", "1", "-w", "1M"]
            done = []

            def through() -> bool:  # its server says nowhere when it is ready
                command = [*iperf3, str(here), *words, "--json", *["-R"] * reverse]
                done[:] = [json.loads(subprocess.run(command, capture_output=True, timeout=DEADLINE).stdout)]
                return "error" not in done[0]

            wait_until(through)
            (report,) = done
            total = report["end"]["sum"]
            assert total["packets"] > 0
            assert total["lost_packets"] == 0
            assert forward.of("dropped") == []
    finally:
        server.kill()
        server.wait()


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of our own and its key, as files."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(made.public_bytes(encoding))
    paths[1].write_bytes(key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain))
    return paths


def test_a_quic_client_gets_its_echo_through_the_forward(target: str, tmp_path: Path) -> None:
    need_module("aioquic")
    from aioquic.asyncio import connect, serve
    from aioquic.quic.configuration import QuicConfiguration

    there, size = free_port(), 1 << 20

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read())
        writer.write_eof()

    def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers.append(asyncio.ensure_future(answer(reader, writer)))

    answers: list[asyncio.Future[None]] = []

    async def ask(port: int) -> bytes:
        server_side = QuicConfiguration(is_client=False, alpn_protocols=["echo"])
        server_side.load_cert_chain(*certificate(tmp_path))
        client_side = QuicConfiguration(alpn_protocols=["echo"], verify_mode=ssl.CERT_NONE)
        server = await serve("127.0.0.1", there, configuration=server_side, stream_handler=handle)
        async with connect("127.0.0.1", port, configuration=client_side) as client:
            reader, writer = await client.create_stream()
            writer.write(bytes(range(256)) * (size // 256))
            writer.write_eof()
            echo = await reader.read()
        server.close()
        return echo

    with Server("dgram", "-L", f"127.0.0.1:0:127.0.0.1:{there}", target) as forward:
        echo = asyncio.run(asyncio.wait_for(ask(forward.port), 60))
        assert echo == bytes(range(256)) * (size // 256)
        assert forward.of("dropped") == []
