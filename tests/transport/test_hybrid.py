"""Hybrid vsock against a VMM that follows a script: the CONNECT line, the answer to the byte, and what goes wrong."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from vsockfwd.address import HybridAddress
from vsockfwd.errors import (
    CannotCreate,
    PeerBrokeProtocol,
    Refused,
    Reset,
    TimedOut,
    Unreachable,
    UsageError,
    VsockfwdError,
)
from vsockfwd.identity import GuestPeer
from vsockfwd.transport.hybrid import HybridTransport

NET = HybridTransport()
Script = Callable[[trio.SocketStream], Awaitable[None]]


@asynccontextmanager
async def vmm(path: Path, script: Script) -> AsyncIterator[HybridAddress]:
    """A VMM that takes one connection, reads what is said, and follows the script."""
    with trio.socket.socket(socket.AF_UNIX) as sock:
        await sock.bind(os.fspath(path))
        sock.listen()

        async def serve() -> None:
            caller, _ = await sock.accept()
            async with trio.SocketStream(caller) as stream:
                await script(stream)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            yield HybridAddress(os.fsencode(path), 1234, options=(("connect-timeout", 0.1),))
            nursery.cancel_scope.cancel()


def answering(*pieces: bytes, hold: bool = True) -> Script:
    """Read the request, then answer in these pieces, each on its own; then hold the connection, or close it."""

    async def script(stream: trio.SocketStream) -> None:
        assert await stream.receive_some() == b"CONNECT 1234\n"
        for piece in pieces:
            await stream.send_all(piece)
            await trio.testing.wait_all_tasks_blocked()
        if hold:
            await trio.sleep_forever()

    return script


async def receive_exactly(stream: trio.abc.ReceiveStream, size: int) -> bytes:
    got = b""
    while len(got) < size:
        piece = await stream.receive_some(size - len(got))
        assert piece
        got += piece
    return got


# --- dialling


async def test_the_request_goes_out_in_one_send_as_vmms_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []
    send = socket.socket.send

    def spy(self: socket.socket, data: bytes, *flags: int) -> int:
        sent.append(bytes(data))
        return send(self, data, *flags)

    async with vmm(tmp_path / "vm", answering(b"OK 1073741824\n")) as address:
        monkeypatch.setattr(socket.socket, "send", spy)
        (await NET.connect(address)).close()
    assert sent[0] == b"CONNECT 1234\n"


@pytest.mark.parametrize(
    "pieces",
    [
        (b"OK 1073741824\n220 hello\n\0more",),
        (b"OK 1073741824\n", b"220 hello\n\0more"),
        (b"O", b"K", b" 10", b"7", b"\n", b"220 hello\n\0more"),
        (b"OK 10", b"7\n220 hello\n\0more"),
        (b"OK \n220 hello\n\0more",),
    ],
)
async def test_not_a_byte_behind_the_answers_line_is_lost(tmp_path: Path, pieces: tuple[bytes, ...]) -> None:
    """A server that speaks first may be heard in the same segment as the answer."""
    async with vmm(tmp_path / "vm", answering(*pieces)) as address:
        stream = await NET.connect(address)
        assert await receive_exactly(stream, 15) == b"220 hello\n\0more"
        stream.close()


async def test_a_large_first_message_right_behind_the_answer_arrives_whole(tmp_path: Path) -> None:
    message = os.urandom(1 << 20)
    async with vmm(tmp_path / "vm", answering(b"OK 7\n" + message)) as address:
        stream = await NET.connect(address)
        assert await receive_exactly(stream, len(message)) == message
        stream.close()


async def test_a_hybrid_stream_is_the_guest_and_does_not_promise_half_close(tmp_path: Path) -> None:
    async with vmm(tmp_path / "vm", answering(b"OK 7\n")) as address:
        stream = await NET.connect(address)
        assert stream.peer == GuestPeer(address.path)
        assert stream.name == address.bare()
        assert not stream.features.half_close
        stream.close()


@pytest.mark.parametrize("answer", [b"", b"OK", b"OK 12"])
async def test_a_vmm_that_hangs_up_says_that_nothing_listens_in_the_guest(tmp_path: Path, answer: bytes) -> None:
    async with vmm(tmp_path / "vm", answering(answer, hold=False)) as address:
        with pytest.raises(Refused, match="nothing listens on port 1234 in the guest") as caught:
            await NET.connect(address)
    assert caught.value.exit_code == 69


async def test_a_vmm_that_hangs_up_without_reading_says_the_same(tmp_path: Path) -> None:
    """The unread request makes the kernel answer ECONNRESET instead of an end."""

    async def script(stream: trio.SocketStream) -> None:
        await trio.testing.wait_all_tasks_blocked()

    async with vmm(tmp_path / "vm", script) as address:
        with pytest.raises(Refused, match="nothing listens on port 1234 in the guest"):
            await NET.connect(address)


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.EPIPE, Refused), (errno.ENOTCONN, Reset)], ids=["hung up at once", "was restored"]
)
async def test_a_vmm_that_is_gone_before_the_request_is_sent_is_told_and_leaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[VsockfwdError]
) -> None:
    def broken(self: socket.socket, *_: object) -> int:
        raise OSError(number, "no")

    with socket.socket(socket.AF_UNIX) as dying:
        dying.bind(os.fspath(tmp_path / "vm"))
        dying.listen()
        descriptors = len(os.listdir("/proc/self/fd"))
        async with trio.open_nursery() as nursery:

            async def hang_up() -> None:
                dying.accept()[0].close()

            nursery.start_soon(hang_up)
            with monkeypatch.context() as patch, pytest.raises(kind):
                patch.setattr(socket.socket, "send", broken)
                await NET.connect(HybridAddress(os.fsencode(tmp_path / "vm"), 1234))
        assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.parametrize("answer", [(), (b"OK 12",)], ids=["silence", "half a line"])
async def test_a_guest_that_was_restored_and_never_answers_times_out(tmp_path: Path, answer: tuple[bytes]) -> None:
    async with vmm(tmp_path / "vm", answering(*answer)) as address:
        with trio.fail_after(5), pytest.raises(TimedOut, match="the VMM did not answer CONNECT") as caught:
            await NET.connect(address)
    assert caught.value.exit_code == 75


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"\x16\x03\x01",
        b"OK\n",
        b"ok 5\n",
        b"\n",
        b"OK " + b"1" * 100,
        b"NO\n",
        b"\x1b[2J",
    ],
)
async def test_a_socket_that_is_no_vmms_is_named_as_such(tmp_path: Path, answer: bytes) -> None:
    async with vmm(tmp_path / "vm", answering(answer)) as address:
        with pytest.raises(PeerBrokeProtocol, match=r"the socket answered .* to CONNECT") as caught:
            await NET.connect(address)
    assert caught.value.hint == "is it a VMM's vsock socket? unix: is for plain ones"
    assert caught.value.exit_code == 76
    assert caught.value.line().isprintable()


async def test_a_vmm_that_is_not_there_and_one_that_died_are_told_apart(tmp_path: Path) -> None:
    address = HybridAddress(os.fsencode(tmp_path / "vm"), 1234)
    with pytest.raises(Unreachable, match="no such socket"):
        await NET.connect(address)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(tmp_path / "vm"))
    with pytest.raises(Refused, match="nothing listens on that socket"):
        await NET.connect(address)


@pytest.mark.parametrize("script", [answering(hold=False), answering(), answering(b"nonsense\n")])
async def test_a_dial_that_fails_leaks_no_descriptor(tmp_path: Path, script: Script) -> None:
    async with vmm(tmp_path / "vm", script) as address:
        descriptors = len(os.listdir("/proc/self/fd"))
        with pytest.raises(VsockfwdError):
            await NET.connect(address)
    assert len(os.listdir("/proc/self/fd")) <= descriptors


# --- listening for what the guest dials


async def test_what_the_guest_dials_arrives_beside_the_vmms_socket_and_is_the_guest(tmp_path: Path) -> None:
    address = HybridAddress(os.fsencode(tmp_path / "vm"), 5000)
    (listener,) = await NET.listen(address)
    place = tmp_path / "vm_5000"
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    with socket.socket(socket.AF_UNIX) as guest:
        guest.connect(os.fspath(place))
        guest.sendall(b"no CONNECT, no OK: data")
        accepted = await listener.accept()
        assert accepted.peer == GuestPeer(os.fsencode(tmp_path / "vm"))
        assert accepted.peer.principal != ("uid", os.getuid())
        assert await accepted.receive_some() == b"no CONNECT, no OK: data"
        assert not accepted.features.half_close
        accepted.close()
    with pytest.raises(CannotCreate):
        await NET.listen(address)
    listener.close()
    assert not place.exists()


async def test_a_listening_path_that_becomes_too_long_is_refused_with_both_numbers() -> None:
    with pytest.raises(UsageError, match=r"_1234 has 112 bytes, a UNIX path's limit is 107") as caught:
        await NET.listen(HybridAddress(b"/" + b"x" * 106, 1234))
    assert caught.value.exit_code == 2
