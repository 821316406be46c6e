"""What this process has open already: a pipe, a file, a terminal, a socket; used, and left as it was found."""

from __future__ import annotations

import errno
import os
import pty
import socket
import subprocess
import sys
import tty
from pathlib import Path
from typing import Any

import pytest
import trio

from vsockfwd.address import FdAddress, StdioAddress, parse
from vsockfwd.errors import CannotCreate, Unreachable, UsageError
from vsockfwd.identity import NetworkPeer, UnixPeer
from vsockfwd.transport import descriptor
from vsockfwd.transport.descriptor import DescriptorStream, FdTransport, StdioTransport

NET = FdTransport()

ECHO = """
import sys, trio
from vsockfwd.address import parse
from vsockfwd.errors import VsockfwdError
from vsockfwd.transport.network import system_network

async def echo():
    async with await system_network().connect(parse(sys.argv[1])) as stream:
        async for piece in stream:
            await stream.send_all(piece)
        await stream.send_eof()
try:
    trio.run(echo)
except VsockfwdError as error:
    sys.exit(error.line())
except trio.BrokenResourceError as error:
    sys.exit(str(error))
"""
"""Copies an address to itself."""


def echo(address: str = "-", **how: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-c", ECHO, address], check=False, timeout=20, **how)


# --- standard input and output, as a shell connects them


def test_a_file_comes_through_whole(tmp_path: Path) -> None:
    body = os.urandom(300_000)
    (tmp_path / "in").write_bytes(body)
    with (tmp_path / "in").open("rb") as source:
        done = echo(stdin=source, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, body, b"")


def test_a_full_device_is_an_error_not_a_silence() -> None:
    with open("/dev/full", "wb") as full:
        done = echo(input=b"x", stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr == b"stdio: No space left on device\n"


def test_a_closed_standard_input_is_said_so() -> None:
    """Its number would be taken by the next thing opened, and that be read instead."""
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" -c "$1" - <&-', sys.executable, ECHO],
        check=False, timeout=20, capture_output=True,
    )  # fmt: skip
    assert done.stderr.startswith(b"stdio: standard input or output is closed")


async def test_a_closed_standard_output_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "__stdout__", None)  # as Python starts where descriptor 1 is closed
    with pytest.raises(Unreachable, match="standard input or output is closed") as caught:
        await StdioTransport().connect(StdioAddress())
    assert caught.value.exit_code == 69


def test_a_terminal_is_left_as_it_was_even_by_a_process_that_was_killed() -> None:
    """O_NONBLOCK belongs to the open file, which the shell has too: set there, the shell's next read would fail."""
    near, far = pty.openpty()
    tty.setraw(far)
    with subprocess.Popen([sys.executable, "-c", ECHO, "-"], stdin=far, stdout=far) as process:
        os.write(near, b"typed")
        assert os.read(near, 100) == b"typed"
        assert os.get_blocking(far)
        process.kill()
    assert os.get_blocking(far)
    os.close(near)
    os.close(far)


# --- each kind of descriptor


def stream_of(reading: int, writing: int, *, own: bool = False) -> DescriptorStream:
    return DescriptorStream(reading, writing, "test", own=own)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


async def test_an_inherited_pipe_stays_blocking_for_those_who_share_it() -> None:
    reading, writing = os.pipe()
    async with stream_of(reading, writing) as stream:
        with pytest.raises(BlockingIOError):
            stream.try_receive_into(memoryview(bytearray(1)))
        assert os.get_blocking(reading)
        assert os.get_blocking(writing)
    assert os.get_blocking(reading)
    assert is_open(reading)
    os.close(reading)
    os.close(writing)


async def test_without_proc_a_pipe_is_made_blocking_again_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptor._End, "_anew", staticmethod(lambda fd, reading: fd))
    reading, writing = os.pipe()
    async with stream_of(reading, writing) as stream:
        assert not os.get_blocking(reading)
        await stream.send_all(b"x")
        assert await stream.receive_some() == b"x"
    assert os.get_blocking(reading)
    assert os.get_blocking(writing)
    os.close(reading)
    os.close(writing)


async def test_a_pipe_that_is_full_is_waited_for_and_nothing_is_lost() -> None:
    reading, writing = os.pipe()
    body = os.urandom(1 << 20)
    async with stream_of(reading, writing, own=True) as stream, trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, body)
        got = b""
        while len(got) < len(body):
            got += await stream.receive_some()
        assert got == body


async def test_the_reader_of_standard_output_sees_its_end_while_the_process_lives_on() -> None:
    there, back = os.pipe(), os.pipe()
    os.set_blocking(back[0], False)
    stream = stream_of(there[0], back[1])
    await stream.send_all(b"all of it")
    await stream.send_eof()
    assert os.read(back[0], 100) == b"all of it"
    assert os.read(back[0], 100) == b""
    assert is_open(back[1])  # its number is still taken: nothing else may land on descriptor 1
    assert os.write(back[1], b"into nothing") == 12
    os.write(there[1], b"and on")
    assert await stream.receive_some() == b"and on"
    stream.close()
    for fd in (*there, *back):
        os.close(fd)


async def test_an_owned_pipe_is_closed_by_its_end_and_a_stranger_on_its_number_is_not() -> None:
    there, back = os.pipe(), os.pipe()
    os.set_blocking(back[0], False)
    stream = stream_of(there[0], back[1], own=True)
    await stream.send_eof()
    assert os.read(back[0], 100) == b""
    assert not is_open(back[1])
    stranger = os.open(os.devnull, os.O_RDONLY)
    stream.close()
    stream.close()
    assert is_open(stranger)
    for fd in (there[1], back[0], stranger):
        os.close(fd)


async def test_the_reading_end_of_a_pipe_alone_ends_when_its_writer_does() -> None:
    """Through /proc a pipe's other end could be opened too: who did would wait for himself for ever."""
    reading, writing = os.pipe()
    async with await NET.connect(FdAddress(reading)) as stream:
        os.write(writing, b"last words")
        os.close(writing)
        assert await stream.receive_some() == b"last words"
        with trio.fail_after(5):
            assert await stream.receive_some() == b""
        with pytest.raises(OSError, match="Bad file descriptor"):
            stream.try_send(b"x")
        stream.shutdown_sending()
    assert not is_open(reading)


async def test_the_writing_end_of_a_pipe_alone_breaks_when_its_reader_goes() -> None:
    reading, writing = os.pipe()
    async with await NET.connect(FdAddress(writing)) as stream:
        assert await stream.receive_some() == b""
        await stream.send_all(b"x")
        os.close(reading)
        with pytest.raises(BrokenPipeError):
            stream.try_send(b"x")
    assert not is_open(writing)


async def test_one_descriptor_for_both_directions_is_closed_once(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    stream = await NET.connect(FdAddress(fd))
    await stream.send_all(b"x")
    await stream.wait_send_all_might_not_block()
    await stream.send_eof()
    assert await stream.receive_some() == b""
    stream.close()
    assert not is_open(fd)
    stranger = os.open(os.devnull, os.O_RDONLY)
    stream.close()
    assert is_open(stranger)
    os.close(stranger)


async def test_saying_the_end_on_a_terminal_does_not_cut_off_who_reads_from_it() -> None:
    near, far = pty.openpty()
    tty.setraw(far)
    for fd in (near, far):
        stream = stream_of(fd, fd)
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                heard: list[bytes] = []

                async def listen(stream: DescriptorStream = stream, heard: list[bytes] = heard) -> None:
                    heard.append(await stream.receive_some())

                nursery.start_soon(listen)
                await trio.testing.wait_all_tasks_blocked()
                await stream.send_eof()
                os.write(far if fd == near else near, b"still here")
        assert heard == [b"still here"]
        with pytest.raises(BrokenPipeError):
            stream.try_send(b"x")
        stream.close()
        assert os.get_blocking(fd)
    os.close(near)
    os.close(far)


async def test_a_terminal_whose_other_side_hung_up_is_at_its_end() -> None:
    near, far = pty.openpty()
    async with stream_of(near, near) as stream:
        os.close(far)
        assert await stream.receive_some() == b""
    os.close(near)


async def test_dev_null_and_files_are_never_waited_on(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"body")
    for place, body in ((os.devnull, b""), (str(tmp_path / "f"), b"body")):
        fd = os.open(place, os.O_RDWR)
        async with stream_of(fd, fd) as stream:
            with trio.fail_after(5):
                assert await stream.receive_some() == body
                assert await stream.receive_some() == b""
                await stream.wait_readable()
                await stream.wait_send_all_might_not_block()
                await stream.send_all(b"x")
        assert os.get_blocking(fd)
        os.close(fd)


async def test_an_inherited_socket_stays_blocking_and_open_for_those_who_share_it() -> None:
    near, far = socket.socketpair()
    far.setblocking(False)
    async with stream_of(near.fileno(), near.fileno()) as stream:
        with pytest.raises(BlockingIOError):
            stream.try_receive_into(memoryview(bytearray(1)))
        await stream.send_all(b"x")
        assert os.get_blocking(near.fileno())
        await stream.send_eof()
        assert far.recv(10) == b"x"
        assert far.recv(10) == b""
        far.send(b"y")
        assert await stream.receive_some() == b"y"
    near.close()
    far.close()


async def test_two_numbers_of_one_socket_serve_as_inetd_gives_them() -> None:
    near, far = socket.socketpair()
    twin = os.dup(near.fileno())
    async with stream_of(near.fileno(), twin) as stream:
        far.send(b"x")
        assert await stream.receive_some() == b"x"
        await stream.send_all(b"y")
        await stream.send_eof()
        assert far.recv(10) == b"y"
        assert far.recv(10) == b""
    os.close(twin)
    near.close()
    far.close()


# --- fd:N


async def test_a_descriptor_that_was_not_inherited_is_said_so() -> None:
    with pytest.raises(Unreachable, match="fd:999: bad file descriptor") as caught:
        await NET.connect(FdAddress(999))
    assert caught.value.hint == "is it inherited?"
    assert caught.value.exit_code == 69
    with pytest.raises(CannotCreate, match="fd:999: bad file descriptor") as caught_too:
        await NET.listen(FdAddress(999))
    assert caught_too.value.exit_code == 73


async def test_an_inherited_listener_accepts_and_knows_who_calls(tmp_path: Path) -> None:
    with socket.socket() as inherited:
        inherited.bind(("127.0.0.1", 0))
        inherited.listen()
        (listener,) = await NET.listen(FdAddress(inherited.fileno()))
        with socket.create_connection(inherited.getsockname()) as caller:
            accepted = await listener.accept()
            assert accepted.peer == NetworkPeer(*caller.getsockname())
            accepted.close()
        listener.close()
        assert inherited.fileno() >= 0
        assert is_open(inherited.fileno())
    with socket.socket(socket.AF_UNIX) as inherited:
        inherited.bind(os.fspath(tmp_path / "s"))
        inherited.listen()
        (listener,) = await NET.listen(parse(f"fd:{inherited.fileno()}"))  # type: ignore[arg-type]
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(os.fspath(tmp_path / "s"))
            accepted = await listener.accept()
            assert accepted.peer == UnixPeer(os.getuid(), os.getgid(), os.getpid())
            accepted.close()
        listener.close()
        assert (tmp_path / "s").exists()  # who made it, systemd say, takes it away


async def test_a_descriptor_that_does_not_listen_is_refused_and_nothing_leaks() -> None:
    near, far = socket.socketpair()
    reading, writing = os.pipe()
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(UsageError, match="that socket does not listen for streams"):
        await NET.listen(FdAddress(near.fileno()))
    with pytest.raises(CannotCreate, match=os.strerror(errno.ENOTSOCK).lower()):
        await NET.listen(FdAddress(reading))
    assert len(os.listdir("/proc/self/fd")) == descriptors
    near.close()
    far.close()
    os.close(reading)
    os.close(writing)


async def test_a_datagram_like_listener_is_no_stream(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as packets:
        packets.bind(os.fspath(tmp_path / "s"))
        packets.listen()
        with pytest.raises(UsageError, match="does not listen for streams"):
            await NET.listen(FdAddress(packets.fileno()))


# --- fd:NAME


async def test_a_name_listens_on_every_socket_that_was_passed_by_it_and_says_what_is_bound(tmp_path: Path) -> None:
    with socket.socket() as first, socket.socket(socket.AF_UNIX) as second, socket.socket(socket.AF_UNIX) as third:
        first.bind(("127.0.0.1", 0))
        second.bind(os.fspath(tmp_path / "s"))
        third.bind(b"\0vsockfwd-test-%d" % os.getpid())
        for sock in (first, second, third):
            sock.listen()
        named = FdTransport({"agent": [first.fileno(), second.fileno(), third.fileno()], "other": [999]})
        listeners = await named.listen(FdAddress("agent"))
        assert [str(listener.address) for listener in listeners] == [
            f"tcp:127.0.0.1:{first.getsockname()[1]}",
            f"unix:{tmp_path}/s",
            f"abstract:vsockfwd-test-{os.getpid()}",
        ]
        for listener in listeners:
            listener.close()


async def test_a_name_that_was_not_passed_is_refused_with_those_that_were() -> None:
    with pytest.raises(CannotCreate, match="fd:agnet: no descriptor of this name was passed to us") as caught:
        await FdTransport({"agent": [3], "web": [4, 5]}).listen(FdAddress("agnet"))
    assert caught.value.hint == "there are agent, web"
    with pytest.raises(Unreachable) as caught_too:
        await NET.connect(FdAddress("agent"))
    assert "a service manager passes them" in caught_too.value.hint
    with pytest.raises(UsageError, match="2 descriptors have this name"):
        await FdTransport({"web": [4, 5]}).connect(FdAddress("web"))


async def test_one_bad_descriptor_of_a_name_leaves_no_listener_behind() -> None:
    with socket.socket() as good:
        good.bind(("127.0.0.1", 0))
        good.listen()
        descriptors = len(os.listdir("/proc/self/fd"))
        with pytest.raises(CannotCreate, match="fd:agent: bad file descriptor"):
            await FdTransport({"agent": [good.fileno(), 999]}).listen(FdAddress("agent"))
        assert len(os.listdir("/proc/self/fd")) == descriptors


async def test_a_named_connection_is_used_as_the_stream_that_it_is() -> None:
    near, far = socket.socketpair()
    async with await FdTransport({"connection": [near.detach()]}).connect(FdAddress("connection")) as stream:
        await stream.send_all(b"x")
        assert far.recv(10) == b"x"
    assert far.recv(10) == b""
    far.close()
