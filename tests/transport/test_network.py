"""Which transport an address goes to, streams in memory, and what an errno means wherever it came from."""

from __future__ import annotations

import errno

import pytest

from vsockfwd.address import SCHEMES, MemoryAddress, TcpAddress, UdpAddress, parse
from vsockfwd.errors import (
    CannotCreate,
    DataError,
    LimitReached,
    NotFound,
    PermissionDenied,
    Refused,
    Reset,
    TimedOut,
    TransportMissing,
    Unreachable,
    UsageError,
    VsockfwdError,
)
from vsockfwd.transport.base import connect_failed, listen_failed
from vsockfwd.transport.memory import CAPACITY, MemoryTransport, memory_pair
from vsockfwd.transport.network import system_network

NOT_STREAMS = {"memory", "udp", "unix-dgram", "unix-seqpacket", "vsock-seqpacket"}


def test_every_scheme_that_streams_go_over_has_a_transport() -> None:
    assert set(system_network().transports) == set(SCHEMES) - NOT_STREAMS | {"accept"}


@pytest.mark.parametrize("address", [UdpAddress("", 53), MemoryAddress("x")])
async def test_a_scheme_without_a_transport_is_refused_by_name(address: UdpAddress | MemoryAddress) -> None:
    for attempt in (system_network().connect, system_network().listen):
        with pytest.raises(UsageError, match=f"streams do not go over {address.scheme} here"):
            await attempt(address)


async def test_what_cannot_be_listened_on_is_refused_as_such() -> None:
    with pytest.raises(UsageError, match="stdio: a stdio address cannot be listened on"):
        await system_network().listen(parse("-"))


@pytest.mark.parametrize(
    ("number", "kind", "exit_code"),
    [
        (errno.ECONNREFUSED, Refused, 69),
        (errno.ECONNRESET, Reset, 74),
        (errno.ENOTCONN, Reset, 74),
        (errno.ETIMEDOUT, TimedOut, 75),
        (errno.EHOSTUNREACH, Unreachable, 69),
        (errno.ENETUNREACH, Unreachable, 69),
        (errno.EAFNOSUPPORT, TransportMissing, 69),
        (errno.EADDRINUSE, CannotCreate, 73),
        (errno.EADDRNOTAVAIL, CannotCreate, 73),
        (errno.EACCES, PermissionDenied, 77),
        (errno.EPERM, PermissionDenied, 77),
        (errno.EMFILE, LimitReached, 75),
        (errno.ENOENT, NotFound, 1),
        (errno.EDOM, DataError, 74),
    ],
)
def test_an_errno_becomes_one_line_with_the_address_and_the_right_exit_code(
    number: int, kind: type[VsockfwdError], exit_code: int
) -> None:
    address = TcpAddress("h", 80, options=(("backlog", 5),))
    for failed, what in ((connect_failed, "connect to"), (listen_failed, "listen on")):
        error = failed(OSError(number, "WHATEVER"), address, "do this")
        assert type(error) is kind
        assert error.exit_code == exit_code
        assert error.message.startswith(f"{what} tcp:h:80: ")
        assert "WHATEVER" not in error.message
        assert error.line().endswith(" – do this")


# --- memory


async def test_memory_streams_meet_refusal_a_taken_name_and_a_farewell_as_sockets_do() -> None:
    net = MemoryTransport()
    address = MemoryAddress("agent")
    with pytest.raises(Refused):
        await net.connect(address)
    (listener,) = await net.listen(address)
    with pytest.raises(CannotCreate):
        await net.listen(address)
    waiting = await net.connect(address)
    listener.close()
    with pytest.raises(ConnectionResetError):  # it was never accepted
        waiting.try_receive_into(memoryview(bytearray(1)))
    (listener,) = await net.listen(address)
    listener.close()


async def test_a_memory_stream_fills_up_and_a_reset_is_seen_at_the_other_end() -> None:
    near, far = memory_pair()
    assert near.try_send(bytes(CAPACITY + 1)) == CAPACITY
    with pytest.raises(BlockingIOError):
        near.try_send(b"x")
    near.abort()
    with pytest.raises(ConnectionResetError):
        far.try_receive_into(memoryview(bytearray(1)))
    with pytest.raises(ConnectionResetError):
        far.try_send(b"x")
