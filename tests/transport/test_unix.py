"""UNIX sockets: who may open the file, what stands there already, what is left, and a backlog that is full."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.faults.injector import injected
from vsockfwd.address import AbstractAddress, UnixAddress, parse
from vsockfwd.errors import CannotCreate, Refused, TimedOut, Unreachable, VsockfwdError
from vsockfwd.identity import UnixPeer
from vsockfwd.transport.network import system_network
from vsockfwd.transport.unix import AbstractTransport, UnixTransport

NET = UnixTransport()
ME = UnixPeer(os.getuid(), os.getgid(), os.getpid())


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def at(path: Path, **options: object) -> UnixAddress:
    return UnixAddress(os.fsencode(path), options=tuple(options.items()))


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def left_behind(path: Path) -> None:
    """What a killed server leaves."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
        dead.listen()


# --- the file


@pytest.mark.parametrize(("mask", "mode"), [(0, None), (0o022, None), (0, 0o600), (0, 0o660), (0o077, 0o666)])
async def test_no_moment_is_there_in_which_a_socket_is_open_to_more_than_it_should_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: int, mode: int | None
) -> None:
    seen: list[int] = []
    bind = socket.socket.bind

    def spy(self: socket.socket, place: object) -> None:
        bind(self, place)  # type: ignore[arg-type]
        seen.append(mode_of(tmp_path / "s"))

    monkeypatch.setattr(socket.socket, "bind", spy)
    with umask(mask):
        (listener,) = await NET.listen(at(tmp_path / "s", **({} if mode is None else {"mode": mode})))
    wanted = 0o600 if mode is None else mode
    assert mode_of(tmp_path / "s") == wanted
    assert len(seen) == 1
    assert seen[0] & ~wanted == 0
    listener.close()


async def test_the_file_goes_with_its_listener_and_closing_twice_is_closing_once(tmp_path: Path) -> None:
    (listener,) = await NET.listen(at(tmp_path / "s"))
    assert stat.S_ISSOCK((tmp_path / "s").stat().st_mode)
    listener.close()
    assert not (tmp_path / "s").exists()
    left_behind(tmp_path / "s")
    listener.close()
    assert (tmp_path / "s").exists()


async def test_a_file_that_another_put_in_its_place_is_left_alone(tmp_path: Path) -> None:
    (first,) = await NET.listen(at(tmp_path / "s"))
    (tmp_path / "s").unlink()
    (second,) = await NET.listen(at(tmp_path / "s"))
    first.close()
    dialled = await NET.connect(at(tmp_path / "s"))
    dialled.close()
    second.close()


async def test_a_listener_whose_directory_went_away_still_closes(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (listener,) = await NET.listen(at(tmp_path / "d/s"))
    (tmp_path / "d/s").unlink()
    (tmp_path / "d").rmdir()
    listener.close()


async def test_what_a_killed_run_left_behind_is_replaced(tmp_path: Path) -> None:
    left_behind(tmp_path / "s")
    (listener,) = await NET.listen(at(tmp_path / "s"))
    assert mode_of(tmp_path / "s") == 0o600
    (await NET.connect(at(tmp_path / "s"))).close()
    listener.close()


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "backlog full"])
async def test_a_live_servers_socket_is_not_taken_from_it(tmp_path: Path, busy: bool) -> None:
    with socket.socket(socket.AF_UNIX) as live, contextlib.ExitStack() as callers:
        live.bind(os.fspath(tmp_path / "s"))
        live.listen(0 if busy else 5)
        while busy:
            caller = callers.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            busy = not caller.connect_ex(os.fspath(tmp_path / "s"))
        inode = (tmp_path / "s").stat().st_ino
        with pytest.raises(CannotCreate, match=r"listen on unix:.*: address already in use") as caught:
            await NET.listen(at(tmp_path / "s"))
        assert caught.value.hint == "something stands there already: a server that runs, or a file"
        assert caught.value.exit_code == 73
        assert (tmp_path / "s").stat().st_ino == inode


@pytest.mark.parametrize("kind", ["file", "directory", "symlink to a file", "dangling symlink", "symlink to a socket"])
async def test_what_is_no_socket_is_never_removed(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "s"
    match kind:
        case "file":
            place.write_text("precious")
        case "directory":
            place.mkdir()
        case "symlink to a file":
            (tmp_path / "f").write_text("precious")
            place.symlink_to(tmp_path / "f")
        case "dangling symlink":
            place.symlink_to(tmp_path / "nothing")
        case _:
            left_behind(tmp_path / "dead")
            place.symlink_to(tmp_path / "dead")
    before = place.lstat()
    with pytest.raises(CannotCreate):
        await NET.listen(at(place))
    assert place.lstat() == before


async def test_a_directory_that_is_not_there_is_named_as_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "no/s", tmp_path / "file/s"):
        with pytest.raises(CannotCreate, match="its directory does not exist") as caught:
            await NET.listen(at(place))
        assert caught.value.exit_code == 73


@pytest.mark.parametrize("name", [b"caf\xe9", "ü ,:[]%".encode(), b"new\nline"])
async def test_any_name_that_a_file_may_have_is_listened_on_and_dialled(tmp_path: Path, name: bytes) -> None:
    address = UnixAddress(os.fsencode(tmp_path) + b"/" + name)
    (listener,) = await NET.listen(address)
    assert os.listdir(os.fsencode(tmp_path)) == [name]
    dialled = await NET.connect(parse(str(address)))  # type: ignore[arg-type]
    assert dialled.name.isprintable()
    dialled.close()
    listener.close()


async def test_a_path_too_long_for_a_socket_is_an_error_of_ours_wherever_it_came_from() -> None:
    address = UnixAddress(b"/" + b"x" * 107)
    for attempt in (NET.connect, NET.listen):
        with pytest.raises(VsockfwdError, match="too long"):
            await attempt(address)


async def test_the_longest_path_that_fits_works(tmp_path: Path) -> None:
    directory = os.fsencode(tmp_path)
    address = UnixAddress(directory + b"/" + b"x" * (106 - len(directory)))
    assert len(address.path) == 107
    (listener,) = await NET.listen(address)
    (await NET.connect(address)).close()
    listener.close()


# --- dialling


async def test_each_side_knows_the_user_and_process_at_the_other(tmp_path: Path) -> None:
    (listener,) = await NET.listen(at(tmp_path / "s"))
    dialled = await NET.connect(at(tmp_path / "s"))
    accepted = await listener.accept()
    assert dialled.peer == accepted.peer == ME
    dialled.close()
    accepted.close()
    listener.close()


async def test_a_socket_that_is_not_there_and_one_where_nobody_listens_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="no such socket") as absent:
        await NET.connect(at(tmp_path / "s"))
    left_behind(tmp_path / "s")
    (tmp_path / "f").touch()
    for dead in ("s", "f"):
        with pytest.raises(Refused, match="nothing listens on that socket") as refused:
            await NET.connect(at(tmp_path / dead))
        assert refused.value.exit_code == 69
    assert absent.value.exit_code == 69
    assert absent.value.hint == refused.value.hint == "is its server running?"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_a_socket_of_another_user_is_a_matter_of_permission() -> None:
    with tempfile.TemporaryDirectory() as directory:  # pytest's own is closed to other users
        os.chmod(directory, 0o755)
        (listener,) = await NET.listen(at(Path(directory, "s")))
        os.seteuid(65534)
        try:
            with pytest.raises(VsockfwdError, match="permission denied") as caught:
                await NET.connect(at(Path(directory, "s")))
        finally:
            os.seteuid(0)
        listener.close()
    assert caught.value.exit_code == 77
    assert caught.value.hint == "the socket belongs to another user"


def fill(path: Path, callers: contextlib.ExitStack) -> None:
    while True:
        caller = callers.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
        if caller.connect_ex(os.fspath(path)):
            return


async def test_a_full_backlog_is_waited_for(tmp_path: Path) -> None:
    (listener,) = await NET.listen(at(tmp_path / "s", backlog=1))
    with contextlib.ExitStack() as callers:
        fill(tmp_path / "s", callers)
        async with trio.open_nursery() as nursery:
            connected = trio.Event()

            async def dial() -> None:
                stream = await NET.connect(at(tmp_path / "s"))
                connected.set()
                stream.close()

            nursery.start_soon(dial)
            with trio.move_on_after(0.05):
                await connected.wait()
            assert not connected.is_set()
            (await listener.accept()).close()
            with trio.fail_after(5):
                await connected.wait()
    listener.close()


async def test_a_backlog_that_stays_full_times_out_when_the_address_says(tmp_path: Path) -> None:
    (listener,) = await NET.listen(at(tmp_path / "s", backlog=1))
    with contextlib.ExitStack() as callers:
        fill(tmp_path / "s", callers)
        descriptors = len(os.listdir("/proc/self/fd"))
        with trio.fail_after(5), pytest.raises(TimedOut) as caught:
            await NET.connect(UnixAddress(os.fsencode(tmp_path / "s"), options=(("connect-timeout", 0.05),)))
        assert caught.value.exit_code == 75
        assert len(os.listdir("/proc/self/fd")) == descriptors
    listener.close()


# --- without a file


async def test_an_abstract_name_may_hold_any_byte_and_needs_no_file() -> None:
    net = AbstractTransport()
    address = AbstractAddress(b"\0vsockfwd\xff %d" % os.getpid())
    (listener,) = await net.listen(address)
    with pytest.raises(CannotCreate):
        await net.listen(address)
    dialled = await net.connect(address)
    assert dialled.peer == ME
    dialled.close()
    listener.close()
    with pytest.raises(Refused, match="nothing listens"):
        await net.connect(address)


async def test_a_listen_that_fails_after_binding_leaves_no_file(tmp_path, monkeypatch):
    path = tmp_path / "socket"

    def refuse(*_: object) -> None:
        raise PermissionError(1, "no")

    monkeypatch.setattr(os, "chmod", refuse)
    with pytest.raises(VsockfwdError):
        await UnixTransport().listen(UnixAddress(os.fsencode(path), options=(("mode", 0o660),)))
    assert not path.exists()


@pytest.mark.parametrize("scheme", ["unix", "abstract"])
async def test_without_a_descriptor_to_spare_a_dial_fails_as_any_other(tmp_path: Path, scheme: str):
    address = parse(f"{scheme}:{tmp_path}/nobody")
    for attempt in (system_network().connect, system_network().listen):
        with injected() as faults:
            faults.arm(0)
            with pytest.raises(VsockfwdError, match="too many open files"):
                await attempt(address)
            assert faults.hit is not None
