"""AF_VSOCK without a vsock: what is said where it is missing, and that nothing is dialled that must not be.

Under the guard no AF_VSOCK socket can be made here; the kernel's answers are played by a stand-in. The real thing is
tested in tests/vm.
"""

from __future__ import annotations

import errno
import os
import socket
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import trio

from tests import guard
from vsockfwd.address import VsockAddress, parse_stream
from vsockfwd.errors import (
    CannotCreate,
    PermissionDenied,
    Refused,
    TimedOut,
    TransportMissing,
    Unreachable,
    UsageError,
    VsockfwdError,
)
from vsockfwd.identity import CID_ANY, CID_LOCAL, VsockPeer
from vsockfwd.transport import vsock
from vsockfwd.transport.vsock import VsockTransport, why_no_loopback, why_unsupported

NET = VsockTransport()


@pytest.fixture(autouse=True)
def no_dialling(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine that runs the tests may be a guest itself: nothing here reaches its hypervisor."""

    async def dial(sock: Any, sockaddr: Any, address: Any) -> None:
        if not isinstance(sock, Kernel):
            pytest.fail(f"{address} was dialled")
        sock.connect(sockaddr)

    monkeypatch.setattr(vsock, "connect_socket", dial)


class Kernel:
    """A stand-in for a vsock socket: notes what is asked, answers as told."""

    asked: ClassVar[list[tuple[Any, ...]]] = []
    bind_errors: ClassVar[list[int]] = []
    connect_error: ClassVar[int] = 0
    option_error: ClassVar[int] = 0
    open_now: ClassVar[int] = 0

    def __init__(self, family: int, kind: int) -> None:
        assert family == socket.AF_VSOCK
        Kernel.open_now += 1
        self._open = True

    def setsockopt(self, *option: int) -> None:
        self.asked.append(("option", *option[1:]))
        if self.option_error:
            raise OSError(self.option_error, "no")

    def bind(self, place: tuple[int, int]) -> None:
        self.asked.append(("bind", *place))
        if self.bind_errors and (number := self.bind_errors.pop(0)):
            raise OSError(number, "no")

    def connect(self, place: tuple[int, int]) -> None:
        self.asked.append(("connect", *place))
        if self.connect_error:
            raise OSError(self.connect_error, "no")

    def listen(self, backlog: int) -> None:
        self.asked.append(("listen", backlog))

    def getsockname(self) -> tuple[int, int]:
        return CID_ANY, 1024

    def recv_into(self, buffer: Any) -> int:
        return 0

    def send(self, data: Any) -> int:
        self.asked.append(("send", len(data)))
        return len(data)

    def sendmsg(self, parts: Any) -> int:
        return self.send(b"".join(parts))

    def setblocking(self, flag: bool) -> None:
        pass

    def close(self) -> None:
        Kernel.open_now -= self._open
        self._open = False

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def socket_module(without: str = "", **instead: Any) -> SimpleNamespace:
    """The socket module as the transport sees it, and it alone."""
    names = {name: value for name, value in vars(socket).items() if name != without}
    return SimpleNamespace(**(names | instead))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> type[Kernel]:
    """A kernel with vsock, as far as the transport can see."""
    for name, value in (("asked", []), ("bind_errors", []), ("connect_error", 0), ("option_error", 0), ("open_now", 0)):
        monkeypatch.setattr(Kernel, name, value)
    monkeypatch.setattr(vsock, "socket", socket_module(socket=Kernel))
    return Kernel


def asked(kernel: type[Kernel], what: str) -> list[tuple[Any, ...]]:
    return [question[1:] for question in kernel.asked if question[0] == what]


# --- where it is missing


@pytest.mark.skipif(guard.inside_rig(), reason="there is a vsock here")
async def test_where_sockets_are_forbidden_the_likely_filter_is_named() -> None:
    reason = "making an AF_VSOCK socket is forbidden here, by a container's seccomp filter or the like"
    assert why_unsupported() == NET.supported() == reason
    for attempt in (NET.connect, NET.listen):
        with pytest.raises(TransportMissing, match="vsock:3:80: no vsock") as caught:
            await attempt(VsockAddress(3, 80))
        assert caught.value.hint == reason
        assert caught.value.exit_code == 69


async def test_a_python_built_without_vsock_is_named_and_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vsock, "socket", socket_module(without="AF_VSOCK"))
    for attempt in (NET.connect, NET.listen):
        for cid in (CID_LOCAL, 2, 3):
            with pytest.raises(TransportMissing) as caught:
                await attempt(VsockAddress(cid, 80))
            assert caught.value.hint == (
                "this Python was built without AF_VSOCK (standalone builds are): use the distribution's python3"
            )
    assert why_no_loopback() == caught.value.hint


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EAFNOSUPPORT, "the kernel has no AF_VSOCK: modprobe vsock (in a container: on its host)"),
        (errno.EACCES, "making an AF_VSOCK socket is forbidden here, by a container's seccomp filter or the like"),
        (errno.EMFILE, "making an AF_VSOCK socket failed: too many open files"),
    ],
)
def test_a_kernel_that_makes_no_such_socket_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(vsock, "socket", socket_module(socket=refuse))
    assert why_unsupported() == said


@pytest.mark.skipif(guard.inside_rig(), reason="there may be a loopback here")
async def test_cid_1_is_never_dialled_where_no_loopback_is_known_to_be() -> None:
    """On a guest without loopback such a connect leaves for the hypervisor, whoever that is."""
    with pytest.raises(TransportMissing, match="connect to vsock:local:80: no loopback"):
        await NET.connect(VsockAddress(CID_LOCAL, 80))


async def test_whether_loopback_is_there_is_asked_by_binding_never_by_dialling(kernel: type[Kernel]) -> None:
    kernel.bind_errors = [errno.EADDRNOTAVAIL]
    with pytest.raises(TransportMissing, match="no loopback") as caught:
        await NET.connect(VsockAddress(CID_LOCAL, 80))
    assert caught.value.hint == "the kernel has no vsock loopback: modprobe vsock_loopback"
    assert asked(kernel, "bind") == [(CID_LOCAL, 0xFFFF_FFFF)]
    assert not asked(kernel, "connect")
    assert kernel.open_now == 0
    await NET.connect(VsockAddress(CID_LOCAL, 80))
    assert asked(kernel, "connect") == [(CID_LOCAL, 80)]


async def test_the_cid_any_is_for_listening(kernel: type[Kernel]) -> None:
    with pytest.raises(UsageError, match=r"vsock:any:80: .* cannot be dialled") as caught:
        await NET.connect(VsockAddress(CID_ANY, 80))
    assert caught.value.exit_code == 2
    assert kernel.asked == []


@pytest.mark.parametrize("text", ["vsock:-1:80", "vsock:3:-1", "vsock:4294967296:80", "vsock:3:4294967295"])
def test_numbers_that_python_would_pass_on_silently_never_reach_a_socket(text: str) -> None:
    with pytest.raises(UsageError):
        parse_stream(text)


# --- what the kernel is asked


@pytest.mark.parametrize(("options", "size"), [("", 1 << 20), (",buffer=8M", 8 << 20)])
async def test_the_buffers_maximum_is_raised_first_and_before_connect(
    kernel: type[Kernel], options: str, size: int
) -> None:
    address = parse_stream(f"vsock:3:80{options}")
    assert isinstance(address, VsockAddress)
    stream = await NET.connect(address)
    assert kernel.asked == [("option", 2, size), ("option", 0, size), ("connect", 3, 80)]
    assert stream.peer == VsockPeer(3, 80)
    assert stream.name == "vsock:3:80"
    kernel.asked.clear()
    await NET.listen(address)
    assert [question[0] for question in kernel.asked] == ["option", "option", "bind", "listen"]


async def test_a_buffer_that_the_kernel_refuses_is_an_error_of_ours(kernel: type[Kernel]) -> None:
    kernel.option_error = errno.EINVAL
    for attempt in (NET.connect, NET.listen):
        with pytest.raises(VsockfwdError, match="vsock:3:80: setting the buffer to 1048576 bytes: invalid argument"):
            await attempt(VsockAddress(3, 80))
    assert kernel.open_now == 0


async def test_a_privileged_caller_shows_it_by_a_port_below_1024(kernel: type[Kernel]) -> None:
    kernel.bind_errors = [errno.EADDRINUSE, errno.EADDRINUSE, 0]
    await NET.connect(VsockAddress(2, 876), privileged=True)
    ports = [port for cid, port in asked(kernel, "bind")]
    assert len(set(ports)) == 3
    assert all(512 <= port < 1024 for port in ports)
    assert asked(kernel, "connect") == [(2, 876)]


async def test_an_unprivileged_caller_dials_all_the_same(kernel: type[Kernel]) -> None:
    kernel.bind_errors = [errno.EACCES]
    await NET.connect(VsockAddress(2, 876), privileged=True)
    assert len(asked(kernel, "bind")) == 1
    assert asked(kernel, "connect") == [(2, 876)]


async def test_a_stream_does_not_spend_a_privileged_port(kernel: type[Kernel]) -> None:
    await NET.connect(VsockAddress(2, 876))
    assert asked(kernel, "bind") == []


@pytest.mark.parametrize(
    ("own", "peer", "size"),
    [(3, 2, 28 << 10), (None, 2, 28 << 10), (3, 5, 28 << 10), (2, 3, 1 << 20), (3, 1, 1 << 20), (None, 1, 1 << 20)],
    ids=["a guest", "no /dev/vsock", "its sibling", "the host", "loopback in a guest", "loopback"],
)
async def test_a_guest_sends_in_pieces_that_every_vmm_can_take(
    kernel: type[Kernel], monkeypatch: pytest.MonkeyPatch, own: int | None, peer: int, size: int
) -> None:
    """Source: firecracker 5475, cloud-hypervisor 7672, libkrun 535; see vsock.PACKET."""
    monkeypatch.setattr(vsock, "own_cid", lambda: own)
    monkeypatch.setattr(vsock, "why_no_loopback", lambda: None)
    stream = await NET.connect(VsockAddress(peer, 80))
    big = memoryview(bytes(1 << 20))
    assert stream.try_send(big) == size
    assert stream.try_send_parts([big[:4], big]) == (4 if size < len(big) else 4 + len(big))
    assert stream.try_send_parts([big]) == size
    (listener,) = await NET.listen(VsockAddress(CID_ANY, 80))
    accepted = listener.stream_of(kernel(socket.AF_VSOCK, 0), (peer, 1024))  # type: ignore[attr-defined]
    assert accepted.try_send(big) == size


async def test_a_listener_asks_for_its_machines_cid_once_whoever_comes(
    kernel: type[Kernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([3])
    monkeypatch.setattr(vsock, "own_cid", lambda: next(answers))
    (listener,) = await NET.listen(VsockAddress(CID_ANY, 80))
    for cid in (5, 6):
        listener.stream_of(kernel(socket.AF_VSOCK, 0), (cid, 1024))  # type: ignore[attr-defined]


async def test_port_0_lets_the_kernel_choose_and_the_choice_is_shown(kernel: type[Kernel]) -> None:
    (listener,) = await NET.listen(VsockAddress(CID_ANY, 0))
    assert asked(kernel, "bind") == [(CID_ANY, 0xFFFF_FFFF)]
    assert str(listener.address) == "vsock:any:1024"


# --- what its answers mean


@pytest.mark.parametrize(
    ("number", "kind", "exit_code", "said"),
    [
        (errno.ECONNRESET, Refused, 69, "nothing listens on port 80 of vm(3), or its backlog is full"),
        (errno.ECONNREFUSED, Refused, 69, "nothing listens on port 80 of vm(3)"),
        (errno.ENODEV, Unreachable, 69, "no way to vm(3)"),
        (errno.EADDRNOTAVAIL, Unreachable, 69, "no way to vm(3)"),
        (errno.ENETUNREACH, Unreachable, 69, "vm(3) cannot be reached from here"),
        (errno.EHOSTUNREACH, Unreachable, 69, "vm(3) cannot be reached from here"),
        (errno.ETIMEDOUT, TimedOut, 75, "vm(3) did not answer"),
        (errno.EACCES, PermissionDenied, 77, "permission denied"),
    ],
)
async def test_a_connect_that_failed_says_what_it_means_on_vsock(
    kernel: type[Kernel], number: int, kind: type[VsockfwdError], exit_code: int, said: str
) -> None:
    """Nobody listening reads as ECONNRESET there, which elsewhere is something else."""
    kernel.connect_error = number
    with pytest.raises(kind) as caught:
        await NET.connect(VsockAddress(3, 80))
    assert type(caught.value) is kind
    assert caught.value.message.startswith("connect to vsock:3:80: ")
    assert said in caught.value.message
    assert caught.value.exit_code == exit_code
    assert kernel.open_now == 0


async def test_a_full_backlog_which_vsock_refuses_at_once_is_tried_again_for_a_moment(
    kernel: type[Kernel], monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    answers = [ConnectionResetError(errno.ECONNRESET, "full")] * 3

    async def dial(sock: Any, sockaddr: Any, address: Any) -> None:
        if answers:
            raise answers.pop()

    monkeypatch.setattr(vsock, "connect_socket", dial)
    began = trio.current_time()
    assert (await NET.connect(VsockAddress(3, 80))).peer == VsockPeer(3, 80)
    assert 0.05 < trio.current_time() - began < 0.2
    assert kernel.open_now == 1


@pytest.mark.parametrize(
    ("number", "kind", "exit_code", "hint"),
    [
        (errno.EADDRINUSE, CannotCreate, 73, "another program listens on that port"),
        (errno.EACCES, PermissionDenied, 77, "ports below 1024 need root or CAP_NET_BIND_SERVICE"),
        (errno.EADDRNOTAVAIL, CannotCreate, 73, "vm(7) is not this machine's own CID; `any` listens on all of them"),
    ],
)
async def test_a_listen_that_failed_says_what_to_do(
    kernel: type[Kernel], number: int, kind: type[VsockfwdError], exit_code: int, hint: str
) -> None:
    kernel.bind_errors = [number]
    with pytest.raises(kind, match="listen on vsock:7:80: ") as caught:
        await NET.listen(VsockAddress(7, 80))
    assert caught.value.hint.startswith(hint)
    assert caught.value.exit_code == exit_code
    assert kernel.open_now == 0
