"""TLS: who is trusted, by which name, what a program is told, and that a cut is not an end."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from vsockfwd.plugin import DataError, NotAllowed, TimedOut, Truncated, UsageError
from vsockfwd_relay import tls
from vsockfwd_relay.address_type import Direction
from vsockfwd_relay.table import specify
from vsockfwd_relay.tls import bears

Start = Callable[..., Any]
Everything = Callable[[trio.abc.ReceiveStream], Awaitable[bytes]]
ONE_WAY = {"first_direction": Direction.READ, "second_direction": Direction.WRITE}


def server(keys: Path, more: str = ",verify=0") -> str:
    return f"OPENSSL-LISTEN:0,bind=127.0.0.1,cert={keys}/server.pem,cafile={keys}/authority.pem{more}"


async def fetch(relaying: Start, tmp_path: Path, port: int, host: str, options: str) -> bytes:
    await relaying(f"OPENSSL:{host}:{port},pf=ip4{options}", f"OPEN:{tmp_path}/out,creat,trunc", **ONE_WAY).end()
    return (tmp_path / "out").read_bytes()


async def test_a_certificate_is_checked_against_authority_and_name(relaying: Start, keys: Path, tmp_path: Path) -> None:
    running = relaying(server(keys) + ",fork", "SYSTEM:echo secret")
    port = await running.port()
    trusted = f",cafile={keys}/authority.pem"
    assert await fetch(relaying, tmp_path, port, "localhost", trusted) == b"secret\n"
    assert await fetch(relaying, tmp_path, port, "127.0.0.1", f"{trusted},commonname=localhost") == b"secret\n"
    assert await fetch(relaying, tmp_path, port, "127.0.0.1", f"{trusted},commonname") == b"secret\n"
    assert await fetch(relaying, tmp_path, port, "127.0.0.1", ",verify=0") == b"secret\n"
    assert await fetch(relaying, tmp_path, port, "localhost", f"{trusted},snihost=elsewhere") == b"secret\n"
    assert await fetch(relaying, tmp_path, port, "localhost", f",capath={keys},cafile={keys}/authority.pem,no-sni")
    with pytest.raises(NotAllowed, match=r"is not for 127\.0\.0\.1") as raised:
        await fetch(relaying, tmp_path, port, "127.0.0.1", trusted)
    assert "it is for localhost" in raised.value.line()
    assert raised.value.exit_code == 77
    with pytest.raises(NotAllowed, match="is not for elsewhere"):
        await fetch(relaying, tmp_path, port, "localhost", f"{trusted},commonname=elsewhere")
    with pytest.raises(NotAllowed, match="the certificate is not trusted"):
        await fetch(relaying, tmp_path, port, "localhost", f",cafile={keys}/client.crt")
    with pytest.raises(NotAllowed, match="the certificate is not trusted"):
        await fetch(relaying, tmp_path, port, "localhost", "")


async def test_the_name_that_a_server_is_told_is_the_one_that_is_asked_for(
    relaying: Start, keys: Path, tmp_path: Path, nursery: trio.Nursery
) -> None:
    told: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys / "server.pem")
    context.sni_callback = lambda sock, name, context: told.append(name)

    async def serve(stream: trio.SocketStream) -> None:
        secure = trio.SSLStream(stream, context, server_side=True)
        await secure.do_handshake()
        await secure.aclose()

    listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
    port = listeners[0].socket.getsockname()[1]
    for options in ("", ",snihost=mock", ",commonname=guest", ",no-sni"):
        await fetch(relaying, tmp_path, port, "localhost", f",verify=0{options}")
    assert told == ["localhost", "mock", "guest", None]


async def test_callers_must_show_a_certificate_unless_verify_is_off(
    relaying: Start, keys: Path, tmp_path: Path
) -> None:
    names = "$SOCAT_OPENSSL_X509_COMMONNAME $VSOCKFWD_OPENSSL_X509_SUBJECT $SOCAT_OPENSSL_X509_ISSUER"
    running = relaying(server(keys, ",fork"), f"SYSTEM:echo {names} $SOCAT_OPENSSL_X509V3_DNS")
    port = await running.port()
    trusted = f",cafile={keys}/authority.pem"
    shown = await fetch(
        relaying, tmp_path, port, "localhost", f"{trusted},cert={keys}/client.crt,key={keys}/client.key"
    )
    assert shown == b"guest /O=test/CN=guest /CN=authority guest\n"
    with pytest.raises(NotAllowed, match="does not take our certificate"):  # TLS 1.3 tells it after the handshake
        await fetch(relaying, tmp_path, port, "localhost", trusted)
    named = relaying(server(keys, ",fork,commonname=somebody"), "SYSTEM:echo secret")
    with pytest.raises(DataError):
        await fetch(relaying, tmp_path, await named.port(), "localhost", f"{trusted},cert={keys}/client.pem")
    await named.said("the certificate is not for somebody")


@pytest.mark.parametrize("options", [",max-version=TLS1.2", ",cipher=ECDHE-ECDSA-AES128-GCM-SHA256,max-version=TLS1.2"])
async def test_versions_have_to_meet(relaying: Start, keys: Path, tmp_path: Path, options: str) -> None:
    running = relaying(server(keys) + f",fork{options}", "SYSTEM:echo secret")
    port = await running.port()
    trusted = f",cafile={keys}/authority.pem"
    assert await fetch(relaying, tmp_path, port, "localhost", f"{trusted}{options}") == b"secret\n"
    with pytest.raises(DataError, match="TLS handshake"):
        await fetch(relaying, tmp_path, port, "localhost", f"{trusted},min-version=TLS1.3")


async def test_a_connection_that_just_stops_was_cut_off(
    relaying: Start, keys: Path, tmp_path: Path, nursery: trio.Nursery
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys / "server.pem")

    async def half(stream: trio.SocketStream) -> None:
        secure = trio.SSLStream(stream, context, server_side=True)
        await secure.send_all(b"half of it")
        await stream.aclose()

    listeners = await nursery.start(partial(trio.serve_tcp, half, 0, host="127.0.0.1"))
    port = listeners[0].socket.getsockname()[1]
    with pytest.raises(Truncated, match="TLS did not say its end") as raised:
        await fetch(relaying, tmp_path, port, "localhost", ",verify=0")
    assert raised.value.exit_code == 74
    assert (tmp_path / "out").read_bytes() == b"half of it"


async def test_who_does_not_speak_tls_delays_nobody_and_is_told(
    relaying: Start, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "CONNECT_TIMEOUT", 0.2)
    running = relaying(server(keys) + ",fork", "SYSTEM:echo secret")
    port = await running.port()
    async with await trio.open_tcp_stream("127.0.0.1", port):
        assert await fetch(relaying, tmp_path, port, "localhost", ",verify=0") == b"secret\n"
        await running.said("the peer does not speak TLS, or is slow")
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(TimedOut):
        await fetch(relaying, tmp_path, silent.getsockname()[1], "localhost", ",verify=0")
    plain = relaying("TCP-LISTEN:0,bind=127.0.0.1", "SYSTEM:echo no TLS")
    with pytest.raises(DataError, match="TLS handshake: wrong version number"):
        await fetch(relaying, tmp_path, await plain.port(), "localhost", ",verify=0")


def test_a_key_that_does_not_fit_is_told_before_anything_is_opened(keys: Path) -> None:
    with pytest.raises(UsageError, match=r"cert=.*server\.crt: key values mismatch"):
        specify(f"OPENSSL-LISTEN:0,cert={keys}/server.crt,key={keys}/client.key")


@pytest.mark.parametrize(
    ("names", "name", "fits"),
    [
        ([("DNS", "a.example")], "A.Example.", True),
        ([("DNS", "*.example.org")], "a.example.org", True),
        ([("DNS", "*.example.org")], "a.b.example.org", False), ([("DNS", "*.example.org")], "example.org", False),
        ([("DNS", "*.org")], "example.org", False), ([("DNS", "*")], "a", False),
        ([("DNS", "a*.b.c")], "ab.b.c", False),
        ([("IP Address", "127.0.0.1")], "127.0.0.1", True), ([("IP Address", "::1")], "0:0::1", True),
        ([("DNS", "127.0.0.1")], "127.0.0.2", False), ([("DNS", "other")], "common", False), ([], "common", True),
        ([("email", "a@b")], "common", True), ([("IP Address", "127.0.0.1")], "common", False),
    ],
)  # fmt: skip
def test_a_certificate_is_for_the_names_that_it_bears(names: list[tuple[str, str]], name: str, fits: bool) -> None:
    certificate = {"subject": ((("commonName", "common"),),), "subjectAltName": tuple(names)}
    assert bears(certificate, name) == fits
