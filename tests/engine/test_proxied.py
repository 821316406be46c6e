"""PROXY headers between streams, and with those who made the protocol: HAProxy, which sends and takes, and nginx."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.engine.world import World, settled
from tests.peers import need
from vsockfwd.address import TcpAddress, parse
from vsockfwd.engine.proxied import HEADER_DEADLINE, header_for, read_header, send_header
from vsockfwd.errors import PeerBrokeProtocol, Reset, TimedOut, Truncated
from vsockfwd.identity import Identity, NetworkPeer, OwnPeer, UnixPeer, VsockPeer
from vsockfwd.transport.memory import memory_pair
from vsockfwd.transport.network import system_network
from vsockfwd.transport.tcp import TcpTransport
from vsockfwd.wire.proxy_protocol import header

CLIENT = NetworkPeer("192.0.2.7", 4711)
SERVER = NetworkPeer("192.0.2.1", 443)
CLIENT6 = NetworkPeer("2001:db8::7", 4711)


@contextlib.contextmanager
def haproxy(folder: Path, body: str, *inherited: socket.socket) -> Iterator[None]:
    """HAProxy, listening on sockets of ours that `body` names as fd@N: nobody need wait for it, nor guess a port."""
    config = folder / "haproxy.cfg"
    config.write_text(f"defaults\n timeout connect 5s\n timeout client 9s\n timeout server 9s\n{body}\n")
    words = [need("haproxy"), "-db", "-q", "-f", str(config)]
    process = subprocess.Popen(words, pass_fds=[sock.fileno() for sock in inherited])
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


@contextlib.contextmanager
def nginx(folder: Path, path: Path) -> Iterator[None]:
    """nginx on a UNIX socket, which takes PROXY headers and answers with what they say."""
    temporary = " ".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; worker_processes 1; {'user root;' if os.geteuid() == 0 else ''} pid {folder}/pid;\n"
        f"error_log {folder}/error.log; events {{ }} http {{ access_log off; {temporary}\n"
        f'server {{ listen unix:{path} proxy_protocol; location / {{ return 200 "$proxy_protocol_addr '
        '$proxy_protocol_port $proxy_protocol_server_addr $proxy_protocol_server_port"; } } }\n'
    )
    process = subprocess.Popen([need("nginx"), "-c", f"{folder}/nginx.conf", "-e", f"{folder}/error.log"])
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("how", ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c,unique-id"])
async def test_haproxys_header_names_its_client_and_leaves_the_rest(tmp_path: Path, how: str, host: str):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    [listener] = await TcpTransport().listen(TcpAddress(host, 0))
    with contextlib.closing(listener), socket.create_server((host, 0), family=family) as front:
        config = (
            f"listen proxy\n mode tcp\n bind fd@{front.fileno()}\n"
            f" unique-id-format %pid\n server us {host}:{listener.address.port} {how}\n"
        )
        with haproxy(tmp_path, config, front), trio.fail_after(10):
            async with await trio.open_tcp_stream(host, front.getsockname()[1]) as client:
                await client.send_all(b"PROXY and what follows it")
                async with await listener.accept() as stream:
                    assert await read_header(stream) == NetworkPeer(*client.socket.getsockname()[:2])
                    assert await stream.receive_some(5) == b"PROXY"


@pytest.mark.parametrize(
    ("source", "destination", "seen"),
    [
        (CLIENT, SERVER, "192.0.2.7 4711 192.0.2.1 443"),
        (CLIENT6, NetworkPeer("2001:db8::1", 443), "2001:db8::7 4711 2001:db8::1 443"),
        (CLIENT, None, "192.0.2.7 4711 0.0.0.0 "),
        # What names nobody is taken as the connection's own. HAProxy 2.6 takes no AF_UNIX and no AF_UNSPEC.
        (OwnPeer("standard input"), None, "127.0.0.1 "),
    ],
)
async def test_haproxy_takes_our_header(tmp_path: Path, source: Identity, destination, seen: str):
    with socket.create_server(("127.0.0.1", 0)) as front:
        port = front.getsockname()[1]
        config = (
            f"frontend web\n mode http\n bind fd@{front.fileno()} accept-proxy\n http-request return status 200"
            ' content-type text/plain lf-string "%[src] %[src_port] %[dst] %[dst_port]"\n'
        )
        with haproxy(tmp_path, config, front), trio.fail_after(10):
            answer = await _ask(f"tcp:127.0.0.1:{port}", source, destination)
    assert answer == seen or (isinstance(source, OwnPeer) and answer.startswith(seen))


async def test_nginx_takes_our_header(tmp_path: Path):
    path = tmp_path / "web.sock"
    with nginx(tmp_path, path), trio.fail_after(10):
        await settled(lambda: accepts(path))
        assert await _ask(f"unix:{path}", CLIENT, SERVER) == "192.0.2.7 4711 192.0.2.1 443"
        assert await _ask(f"unix:{path}", CLIENT6, None) == "2001:db8::7 4711 :: "
        # What nginx has no words for leaves its variables empty.
        assert (await _ask(f"unix:{path}", VsockPeer(3, 1024), None)).strip() == ""
        assert (await _ask(f"unix:{path}", UnixPeer(0, 0, 1), b"/run/a")).strip() == ""


def accepts(path: Path) -> bool:
    """Whether somebody listens: the file is there a moment before."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


async def _ask(address: str, source: Identity, destination: NetworkPeer | bytes | None) -> str:
    """The body of what a web server answers to whom we introduced."""
    async with await system_network().connect(parse(address)) as stream:
        await send_header(stream, source, destination)
        await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
        answer = b"".join([data async for data in stream])
    assert b" 200 " in answer[:20], answer
    return answer.partition(b"\r\n\r\n")[2].decode()


async def test_the_header_of_an_accepted_stream_says_who_came_and_where_to(world: World, tmp_path: Path):
    for address, source in (
        ("tcp:127.0.0.1:0", None),
        ("tcp:[::1]:0", None),
        (f"unix:{tmp_path}/a.sock", None),
        ("memory:here", None),
        ("tcp:127.0.0.1:0", VsockPeer(3, 7)),
    ):
        [listener] = await world.engine.network.listen(parse(address))
        with contextlib.closing(listener):
            client = await world.engine.network.connect(listener.address)
            accepted = await listener.accept()
            near, far = memory_pair()
            await near.send_all(header_for(accepted, source) + b"the rest")
            expected = source or (far.peer if address == "memory:here" else accepted.peer)
            assert await read_header(far) == expected
            assert await far.receive_some() == b"the rest"
            client.close()
            accepted.close()


async def test_an_ipv4_client_of_a_dual_stack_listener_is_introduced_as_ipv4(world: World):
    """Who takes IPv4 headers alone must not be sent an IPv6 one because of how the listener was made."""
    [listener] = await world.engine.network.listen(parse("tcp:*:0"))
    with contextlib.closing(listener):
        async with await world.engine.network.connect(TcpAddress("127.0.0.1", listener.address.port)) as client:
            async with await listener.accept() as accepted:
                source, destination = client.sock.getsockname(), client.sock.getpeername()
                assert header_for(accepted) == header(NetworkPeer(*source), NetworkPeer(*destination))
                assert header_for(accepted)[13] == 0x11


@pytest.mark.parametrize("line", [b"", b"PROXY TCP4 192.0", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c1234"])
async def test_a_client_that_stops_within_its_header_is_not_waited_for_for_ever(autojump_clock, line: bytes):
    near, far = memory_pair()
    await near.send_all(line)
    began = trio.current_time()
    with pytest.raises(TimedOut):
        await read_header(far)
    assert trio.current_time() - began == pytest.approx(HEADER_DEADLINE)


async def test_trickling_does_not_extend_the_deadline(autojump_clock, nursery: trio.Nursery):
    near, far = memory_pair()

    async def trickle() -> None:
        for byte in b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n":
            await trio.sleep(1)
            await near.send_all(bytes([byte]))

    nursery.start_soon(trickle)
    with pytest.raises(TimedOut):
        await read_header(far)
    nursery.cancel_scope.cancel()


async def test_a_client_that_ends_or_breaks_within_its_header_is_told_from_a_stranger():
    near, far = memory_pair()
    await near.send_all(b"PROXY TCP4 192.0")
    near.close()
    with pytest.raises(Truncated):
        await read_header(far)
    near, far = memory_pair()
    near.abort()
    with pytest.raises(Reset):
        await read_header(far)
    near, far = memory_pair()
    await near.send_all(b"SSH-2.0-OpenSSH_9.2\r\n")
    with pytest.raises(PeerBrokeProtocol, match="no PROXY header, it began with 'SSH"):
        await read_header(far)
