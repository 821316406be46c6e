"""TCP: which addresses are listened on and dialled, what a name with two addresses does, errors, and resets."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from vsockfwd.address import TcpAddress, parse
from vsockfwd.errors import CannotCreate, NameNotResolved, Refused, TimedOut, Unreachable, UsageError
from vsockfwd.identity import NetworkPeer
from vsockfwd.transport import tcp
from vsockfwd.transport.base import SocketStream
from vsockfwd.transport.tcp import TcpListener, TcpTransport

NET = TcpTransport()


class Names(trio.abc.HostnameResolver):
    """A resolver that knows one name."""

    def __init__(self, name: str, *hosts: str) -> None:
        self.name = name
        self.hosts = hosts

    async def getaddrinfo(self, host: Any, port: Any, *args: Any, **kinds: Any) -> Any:
        await trio.lowlevel.checkpoint()
        if host != self.name.encode():
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (each, port, 0, 0))
            if ":" in each
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port))
            for each in self.hosts
        ]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


@pytest.fixture
def black_hole() -> Iterator[int]:
    """A port of ::1 that answers no more: its backlog is full, and TCP drops what comes."""
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as full:
        full.bind(("::1", 0))
        full.listen(0)
        callers = [socket.socket(socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) for _ in range(4)]
        for caller in callers:
            caller.connect_ex(full.getsockname())
        yield full.getsockname()[1]
        for caller in callers:
            caller.close()


def port_of(listener: TcpListener) -> int:
    assert isinstance(listener.address, TcpAddress)
    return listener.address.port


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_without_a_host_loopback_is_listened_on_in_both_families_with_one_port() -> None:
    listeners = await NET.listen(TcpAddress("", 0))
    try:
        port = port_of(listeners[0])
        assert port
        assert [str(each.address) for each in listeners] == [f"tcp:127.0.0.1:{port}", f"tcp:[::1]:{port}"]
        for listener in listeners:
            dialled = await NET.connect(listener.address)
            accepted = await listener.accept()
            await dialled.send_all(b"x")
            assert await accepted.receive_some() == b"x"
            dialled.close()
            accepted.close()
    finally:
        for listener in listeners:
            listener.close()


async def test_localhost_is_listened_on_in_both_families_however_the_hosts_file_orders_them() -> None:
    trio.socket.set_custom_hostname_resolver(Names("localhost", "::1", "127.0.0.1"))
    listeners = await NET.listen(TcpAddress("localhost", 0))
    assert [each.address.host for each in listeners] == ["::1", "127.0.0.1"]
    assert len({port_of(each) for each in listeners}) == 1
    for listener in listeners:
        listener.close()


async def test_a_kernel_without_ipv6_still_listens_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    bind = tcp._bind

    def without_ipv6(family: Any, *rest: Any, **more: Any) -> TcpListener:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "no")
        return bind(family, *rest, **more)

    monkeypatch.setattr(tcp, "_bind", without_ipv6)
    for text in ("tcp:0", "tcp:*:0"):
        (listener,) = await NET.listen(parse(text))  # type: ignore[arg-type]
        assert listener.sock.family == socket.AF_INET
        listener.close()


async def test_a_port_that_the_kernel_chose_and_that_is_taken_in_the_other_family_is_chosen_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bind, clashes = tcp._bind, [1, 1]

    def clash(family: Any, *rest: Any, **more: Any) -> TcpListener:
        if family == socket.AF_INET6 and clashes:
            clashes.pop()
            raise OSError(errno.EADDRINUSE, "taken")
        return bind(family, *rest, **more)

    monkeypatch.setattr(tcp, "_bind", clash)
    descriptors = len(os.listdir("/proc/self/fd"))
    listeners = await NET.listen(TcpAddress("", 0))
    assert len(listeners) == 2
    assert len(os.listdir("/proc/self/fd")) == descriptors + 2
    for listener in listeners:
        listener.close()


async def test_a_port_taken_in_one_family_is_refused_and_the_other_family_let_go() -> None:
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(CannotCreate, match=f"listen on tcp:{port}: address already in use") as caught:
            await NET.listen(TcpAddress("", port))
        assert caught.value.exit_code == 73
        assert f"sport = :{port}" in caught.value.hint
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))  # nothing of ours was left behind


async def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    with pytest.raises(CannotCreate, match=r"listen on tcp:192\.0\.2\.1:0: ") as caught:
        await NET.listen(TcpAddress("192.0.2.1", 0))
    assert caught.value.hint == "this machine has no such address"


async def test_a_star_takes_both_families_and_shows_an_ipv4_caller_as_ipv4() -> None:
    (listener,) = await NET.listen(TcpAddress("*", 0))
    assert str(listener.address) == f"tcp:*:{port_of(listener)}"
    for host in ("127.0.0.1", "::1"):
        dialled = await NET.connect(TcpAddress(host, port_of(listener)))
        accepted = await listener.accept()
        assert accepted.peer == NetworkPeer(host, dialled.sock.getsockname()[1])  # type: ignore[union-attr]
        dialled.close()
        accepted.close()
    listener.close()


async def test_a_star_cannot_be_dialled() -> None:
    with pytest.raises(UsageError, match=r"tcp:\*:80: .* cannot be dialled") as caught:
        await NET.connect(TcpAddress("*", 80))
    assert caught.value.exit_code == 2


# --- dialling


@pytest.mark.parametrize("listening", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("order", [("127.0.0.1", "::1"), ("::1", "127.0.0.1")])
async def test_a_server_on_either_address_of_a_name_is_found(listening: str, order: tuple[str, str]) -> None:
    trio.socket.set_custom_hostname_resolver(Names("both.test", *order))
    (listener,) = await NET.listen(TcpAddress(listening, 0))
    dialled = await NET.connect(TcpAddress("both.test", port_of(listener)))
    assert dialled.peer == NetworkPeer(listening, port_of(listener))
    assert dialled.name == f"tcp:both.test:{port_of(listener)}"
    dialled.close()
    listener.close()


@pytest.mark.parametrize("listening", ["127.0.0.1", "::1"])
async def test_a_server_on_either_loopback_is_found_without_a_host(listening: str) -> None:
    (listener,) = await NET.listen(TcpAddress(listening, 0))
    dialled = await NET.connect(TcpAddress("", port_of(listener)))
    assert dialled.peer == NetworkPeer(listening, port_of(listener))
    dialled.close()
    listener.close()


async def test_an_address_that_swallows_everything_does_not_keep_a_name_from_being_reached(black_hole: int) -> None:
    """Happy eyeballs: after a quarter of a second the next address is tried beside the first."""
    trio.socket.set_custom_hostname_resolver(Names("both.test", "::1", "127.0.0.1"))
    (listener,) = await NET.listen(TcpAddress("127.0.0.1", black_hole))
    with trio.fail_after(5):
        dialled = await NET.connect(TcpAddress("both.test", black_hole))
    assert dialled.peer == NetworkPeer("127.0.0.1", black_hole)
    dialled.close()
    listener.close()


@pytest.mark.parametrize("host", ["::1", "slow.test"])
async def test_a_connect_that_is_never_answered_times_out_when_the_address_says(black_hole: int, host: str) -> None:
    trio.socket.set_custom_hostname_resolver(Names("slow.test", "::1"))
    descriptors = len(os.listdir("/proc/self/fd"))
    with trio.fail_after(5), pytest.raises(TimedOut, match=r"connect to tcp:.*: connection timed out") as caught:
        await NET.connect(TcpAddress(host, black_hole, options=(("connect-timeout", 0.05),)))
    assert caught.value.exit_code == 75
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.parametrize("host", ["", "127.0.0.1", "::1", "both.test"])
async def test_a_port_where_nobody_listens_is_refused(host: str) -> None:
    trio.socket.set_custom_hostname_resolver(Names("both.test", "::1", "127.0.0.1"))
    address = TcpAddress(host, free_port())
    with pytest.raises(Refused) as caught:
        await NET.connect(address)
    assert caught.value.message == f"connect to {address}: connection refused"
    assert caught.value.exit_code == 69


@pytest.mark.parametrize("number", [errno.EHOSTUNREACH, errno.ENETUNREACH])
async def test_a_machine_without_a_way_there_is_unreachable(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    async def no_route(*_: object) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(tcp, "connect_socket", no_route)
    with pytest.raises(Unreachable, match=r"connect to tcp:127\.0\.0\.1:9: ") as caught:
        await NET.connect(TcpAddress("127.0.0.1", 9))
    assert caught.value.exit_code == 69
    assert caught.value.errno == number


@pytest.mark.parametrize("name", ["nowhere.test", "a" * 64 + ".test", "a..test"])
async def test_a_name_that_does_not_resolve_is_named_and_no_traceback(name: str) -> None:
    trio.socket.set_custom_hostname_resolver(Names("somewhere.test", "::1"))
    for attempt in (NET.connect, NET.listen):
        with pytest.raises(NameNotResolved, match=f"the name {name} does not resolve: ") as caught:
            await attempt(TcpAddress(name, 1))
        assert caught.value.exit_code == 69


async def test_both_ends_send_small_pieces_at_once() -> None:
    """TCP_NODELAY: without it a request and answer of one client drops to 47 a second."""
    trio.socket.set_custom_hostname_resolver(Names("both.test", "127.0.0.1"))
    (listener,) = await NET.listen(TcpAddress("127.0.0.1", 0))
    for host in ("127.0.0.1", "both.test"):
        dialled = await NET.connect(TcpAddress(host, port_of(listener)))
        accepted = await listener.accept()
        for stream in (dialled, accepted):
            assert stream.sock is not None
            assert stream.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert not stream.sock.getblocking()
            stream.close()
    listener.close()


# --- how it ends


async def test_an_abort_is_a_reset_for_the_neighbour_and_a_close_an_end() -> None:
    (listener,) = await NET.listen(TcpAddress("127.0.0.1", 0))
    for end, seen in (("abort", "reset"), ("close", "end")):
        dialled = await NET.connect(listener.address)
        accepted = await listener.accept()
        getattr(dialled, end)()
        await accepted.wait_readable()
        buffer = memoryview(bytearray(10))
        if seen == "reset":
            with pytest.raises(ConnectionResetError):
                accepted.try_receive_into(buffer)
        else:
            assert accepted.try_receive_into(buffer) == 0
        accepted.close()
        accepted.close()
    listener.close()


async def test_the_end_of_one_direction_leaves_the_other_alive() -> None:
    (listener,) = await NET.listen(TcpAddress("127.0.0.1", 0))
    dialled = await NET.connect(listener.address)
    accepted = await listener.accept()
    listener.close()
    assert dialled.features.half_close
    assert dialled.features.reset
    dialled.shutdown_sending()
    assert await accepted.receive_some() == b""
    await accepted.send_all(b"the reply")
    assert await dialled.receive_some() == b"the reply"
    accepted.close()
    dialled.shutdown_sending()  # the far end is gone already: no error
    dialled.close()


async def test_a_scope_that_is_no_interface_here_is_named() -> None:
    for attempt in (NET.connect, NET.listen):
        with pytest.raises(NameNotResolved, match="fe80::1%nosuch"):
            await attempt(TcpAddress("fe80::1%nosuch", 80))


@pytest.mark.parametrize("side", ["dialled", "accepted"])
async def test_connections_have_no_delay_and_are_asked_for_a_sign_of_life(side: str) -> None:
    """On Linux an accepted socket has what its listener has: nothing is set on it again."""
    (listener,) = await NET.listen(TcpAddress("127.0.0.1", 0, options=(("keepalive", 77), ("linger", 3))))
    assert isinstance(listener.address, TcpAddress)
    address = TcpAddress("127.0.0.1", listener.address.port, options=(("keepalive", 77), ("linger", 3)))
    dialled = await NET.connect(address)
    accepted = await listener.accept()
    sock = (dialled if side == "dialled" else accepted).sock
    assert sock is not None
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 77
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == struct.pack("ii", 1, 3)
    for stream in (dialled, accepted):
        stream.close()
    listener.close()


async def test_who_was_reached_by_a_dial_that_was_given_up_sees_a_reset_and_not_an_empty_stream():
    with socket.create_server(("127.0.0.1", 0)) as server:
        with trio.CancelScope() as scope:
            scope.cancel()
            await NET.connect(TcpAddress("127.0.0.1", server.getsockname()[1]))
        reached, _ = server.accept()
        with reached, pytest.raises(ConnectionResetError):
            reached.recv(1)


async def test_to_wait_on_a_stream_that_is_closed_already_says_so():
    with socket.create_server(("127.0.0.1", 0)) as server:
        stream = await NET.connect(TcpAddress("127.0.0.1", server.getsockname()[1]))
        stream.close()
        for wait in (stream.wait_readable, stream.wait_writable):
            with pytest.raises(trio.ClosedResourceError):
                await wait()


async def test_who_was_reset_before_it_was_looked_at_is_told_so_and_not_dialled_again(monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as server:

        class Hasty(socket.socket):
            """One whose peer has accepted, spoken and gone as soon as it connects."""

            def connect_ex(self, address: object) -> int:
                number = super().connect_ex(address)  # type: ignore[arg-type]
                if number == errno.EINPROGRESS:
                    accepted, _ = server.accept()
                    accepted.send(b"half")
                    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    accepted.close()
                return number

        monkeypatch.setattr("vsockfwd.transport.tcp.socket.socket", Hasty)
        stream = NET.connect_now(parse(f"tcp:127.0.0.1:{server.getsockname()[1]}"))
        assert isinstance(stream, SocketStream)
        with pytest.raises(ConnectionResetError):
            stream.try_receive_into(memoryview(bytearray(10)))
        stream.close()
