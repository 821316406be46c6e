"""What an address's options do to what passes, to names in the file system, to sockets, and to who may connect."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from vsockfwd.plugin import (
    CannotCreate,
    Engine,
    NetworkPeer,
    OwnPeer,
    PermissionDenied,
    Stream,
    TimedOut,
    VsockfwdError,
    VsockPeer,
)
from vsockfwd_relay.address_type import Direction, Situation, Specification
from vsockfwd_relay.admission import Admission, read_range
from vsockfwd_relay.options import OPTIONS
from vsockfwd_relay.streams import Carriage, CarriageAndLine
from vsockfwd_relay.table import specify

Start = Callable[..., Any]
Everything = Callable[[trio.abc.ReceiveStream], Awaitable[bytes]]
LOCAL = "TCP-LISTEN:0,bind=127.0.0.1"
ONE_WAY = {"first_direction": Direction.READ, "second_direction": Direction.WRITE}


async def copy(relaying: Start, tmp_path: Path, data: bytes, first: str = "", second: str = ",creat,trunc") -> bytes:
    """What of some data comes through two files' addresses with these options."""
    (tmp_path / "in").write_bytes(data)
    await relaying(f"OPEN:{tmp_path}/in{first}", f"OPEN:{tmp_path}/out{second}", **ONE_WAY).end()
    return (tmp_path / "out").read_bytes()


# --- what passes


@pytest.mark.parametrize(
    ("first", "second", "came"),
    [
        (",readbytes=5", "", b"one\r\n"),
        (",escape=0x0d", "", b"one"),
        (",crnl", "", b"one\ntwo\n"),
        (",cr", "", b"one\n\ntwo\n\n"),
        ("", ",cr", b"one\r\rtwo\r\r"),
        ("", ",crnl", b"one\r\r\ntwo\r\r\n"),
        (",crnl,readbytes=100", ",crnl", b"one\r\ntwo\r\n"),
        (",cr,escape=0x77", "", b"one\n\nt"),
    ],
)
async def test_lines_and_ends_are_what_the_options_say(
    relaying: Start, tmp_path: Path, first: str, second: str, came: bytes
) -> None:
    assert await copy(relaying, tmp_path, b"one\r\ntwo\r\n", first, ",creat" + second) == came


class Trickle(Stream):
    """Takes a few bytes at a time, then none for once."""

    def __init__(self, takes: int) -> None:
        self.peer, self.name, self.sock = OwnPeer("trickle"), "trickle", None
        self.got = b""
        self._takes = takes
        self._turn = False

    def try_send(self, data: Any) -> int:
        self._turn = not self._turn
        if self._turn:
            raise BlockingIOError
        self.got += bytes(data[: self._takes])
        return len(data[: self._takes])

    def try_receive_into(self, buffer: memoryview) -> int:
        raise BlockingIOError

    async def wait_readable(self) -> None: ...
    async def wait_writable(self) -> None: ...
    def shutdown_sending(self) -> None: ...
    def close(self) -> None: ...


@pytest.mark.parametrize("takes", [1, 2, 3, 5])
@pytest.mark.parametrize("text", [b"\n", b"\n\n\n", b"a\nb\n\nc", b"\r\n\n", b"none"])
@pytest.mark.parametrize("kind", [CarriageAndLine, Carriage])
def test_a_line_s_end_is_whole_however_little_the_other_side_takes(takes: int, text: bytes, kind: Any) -> None:
    sink = Trickle(takes)
    stream = kind(sink)
    left = memoryview(text)
    for _ in range(100):
        try:
            left = left[stream.try_send(left) :]
        except BlockingIOError:
            continue
        if not left:
            break
    assert sink.got == text.replace(b"\n", b"\r\n" if kind is CarriageAndLine else b"\r")


async def test_the_end_is_said_or_kept_as_shut_says(relaying: Start, tmp_path: Path, monkeypatch: Any) -> None:
    async def heard(options: str) -> list[bytes | str]:
        """What a server hears of a client that has said its word, within a moment, and what of its answer arrives."""
        (tmp_path / "in").write_bytes(b"word")
        listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        async with listener:
            running = relaying(
                f"OPEN:{tmp_path}/in!!OPEN:{tmp_path}/out,creat,trunc",
                f"TCP:127.0.0.1:{listener.socket.getsockname()[1]}{options}",
                half_open=0.3,
            )
            stream = await listener.accept()
            async with stream:
                found: list[bytes | str] = [await stream.receive_some()]
                with trio.move_on_after(0.15) as waiting:
                    found.append(await stream.receive_some())
                if waiting.cancelled_caught:
                    found.append("waits")
                try:
                    await stream.send_all(b"answer")
                    await stream.send_eof()
                    await running.end()
                except (trio.BrokenResourceError, VsockfwdError):
                    pass
            return [*found, (tmp_path / "out").read_bytes()]

    assert await heard("") == [b"word", b"", b"answer"]
    assert await heard(",shut-down") == [b"word", b"", b"answer"]
    assert await heard(",shut-none") == [b"word", "waits", b"answer"]
    assert await heard(",shut-close") == [b"word", b"", b""]


async def test_a_vmm_is_told_the_end_where_shut_down_says_that_it_may_be(relaying: Start, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"question")
    with trio.socket.socket(socket.AF_UNIX) as vmm:
        await vmm.bind(str(tmp_path / "v"))
        vmm.listen()
        running = relaying(f"OPEN:{tmp_path}/in!!OPEN:{tmp_path}/out,creat", f"HYBRID:{tmp_path}/v:80,shut-down")
        connection, _ = await vmm.accept()
        with connection, trio.fail_after(5):
            await connection.recv(100)
            await connection.send(b"OK 1024\n")
            assert await connection.recv(100) == b"question"
            assert await connection.recv(100) == b""
            await connection.send(b"answer")
    await running.end()
    assert (tmp_path / "out").read_bytes() == b"answer"


# --- names and files


async def test_a_file_starts_and_ends_where_the_options_say(relaying: Start, tmp_path: Path) -> None:
    assert await copy(relaying, tmp_path, b"0123456789", ",seek=3", ",creat") == b"3456789"
    assert await copy(relaying, tmp_path, b"0123456789", ",seek-end=-2", ",ftruncate=3,seek-end=1") == b"345\x0089"
    assert await copy(relaying, tmp_path, b"ab", "", ",seek=1,seek-cur=1") == b"34ab89"
    assert await copy(relaying, tmp_path, b"x", "", ",dsync,sync,noatime,nofollow,largefile,trunc") == b"x"


async def test_a_link_is_not_followed_where_that_is_forbidden(relaying: Start, tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(VsockfwdError, match="symbolic link"):
        await copy(relaying, tmp_path, b"x", "", ",creat,nofollow")
    assert not (tmp_path / "elsewhere").exists()


async def test_what_is_made_has_the_mode_owner_and_place_that_are_asked_for(
    relaying: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").write_bytes(b"x")
    own = os.geteuid()
    owner = f",user={own},group={os.getegid()}"
    await relaying(f"OPEN:in,cd={tmp_path}", f"CREATE:a,cd={tmp_path},umask=037{owner}", **ONE_WAY).end()
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    assert os.umask(os.umask(0o22)) != 0o37, "the umask stayed"
    listening = relaying(f"UNIX-LISTEN:s,cd={tmp_path},umask=007{owner},unlink-close=0", "PIPE")
    await listening.said("listening")
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o770
    async with await trio.open_unix_socket(str(tmp_path / "s")):
        pass
    await listening.end()
    assert (tmp_path / "s").exists()
    received = relaying(f"UNIX-RECV:{tmp_path}/d,mode=620", f"OPEN:{tmp_path}/out,creat", **ONE_WAY)
    await received.said("receiving")
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o620
    pipe = relaying(f"PIPE:{tmp_path}/p,mode=600,rdonly,nonblock", f"OPEN:{tmp_path}/out,creat", **ONE_WAY)
    await pipe.end()  # nobody writes there, and nobody waits for who does
    assert not (tmp_path / "p").exists()


async def test_owners_that_cannot_be_had_are_an_error(relaying: Start, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        (tmp_path / "in").write_bytes(b"x")
        await relaying(f"OPEN:{tmp_path}/in", f"CREATE:{tmp_path}/a,user=12345,group=54321", **ONE_WAY).end()
        found = (tmp_path / "a").stat()
        assert (found.st_uid, found.st_gid) == (12345, 54321)
    else:
        with pytest.raises(PermissionDenied):
            await copy(relaying, tmp_path, b"x", "", ",creat,user=0")


async def test_names_go_when_the_options_say(relaying: Start, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"x")
    (tmp_path / "out").write_bytes(b"before")
    assert await copy(relaying, tmp_path, b"x", "", ",creat,unlink-early") == b"x"
    await relaying(f"OPEN:{tmp_path}/in,unlink-close", f"OPEN:{tmp_path}/out", **ONE_WAY).end()
    assert not (tmp_path / "in").exists()
    await relaying("SYSTEM:echo x", f"OPEN:{tmp_path}/late,creat,unlink-late", **ONE_WAY).end()
    assert not (tmp_path / "late").exists()


async def test_a_lock_is_held_while_the_address_is_open_and_waited_for(
    relaying: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "lock"
    first = relaying(f"UNIX-LISTEN:{tmp_path}/s,lockfile={lock}", "PIPE")
    await first.said("listening")
    assert lock.read_text() == f"{os.getpid()}\n"
    with pytest.raises(CannotCreate, match=r"the lock file .* is there"):
        await relaying(f"UNIX-LISTEN:{tmp_path}/t,lockfile={lock}", "PIPE").end()
    waiting = relaying(f"UNIX-LISTEN:{tmp_path}/t,waitlock={lock}", "PIPE")
    async with await trio.open_unix_socket(str(tmp_path / "s")):
        pass
    await first.end()
    await waiting.said("listening")
    assert lock.exists()
    async with await trio.open_unix_socket(str(tmp_path / "t")):
        pass
    await waiting.end()
    assert not lock.exists()


# --- sockets


TCP, UDP, UDP6, UNIX = "TCP-LISTEN:0", "UDP-RECV:0", "UDP6-RECV:0", "UNIX-RECV:{dir}/s"
SOL, IP, IPV6, TCPS = socket.SOL_SOCKET, socket.IPPROTO_IP, socket.IPPROTO_IPV6, socket.IPPROTO_TCP
SET = [
    ("dontroute", UDP, SOL, socket.SO_DONTROUTE, 1), ("priority=3", UDP, SOL, socket.SO_PRIORITY, 3),
    ("rcvbuf=8000", TCP, SOL, socket.SO_RCVBUF, 16000), ("so-sndbuf=9000", UNIX, SOL, socket.SO_SNDBUF, 18000),
    ("rcvbuf-late=8000", UDP, SOL, socket.SO_RCVBUF, 16000), ("sndbuf-late=9000", UDP, SOL, socket.SO_SNDBUF, 18000),
    ("rcvlowat=7", TCP, SOL, socket.SO_RCVLOWAT, 7),
    ("setsockopt=1:12:x05000000", UDP, SOL, socket.SO_PRIORITY, 5),
    ("sockopt-int=1:12:4", UDP, SOL, socket.SO_PRIORITY, 4),
    ("setsockopt-listen=1:12:i2", TCP, SOL, socket.SO_PRIORITY, 2), ("broadcast", UDP, SOL, socket.SO_BROADCAST, 1),
    ("ip-mtu-discover=0", UDP, IP, 10, 0), ("ip-transparent", TCP, IP, 19, 1), ("tos=16", TCP, IP, socket.IP_TOS, 16),
    ("ttl=7", TCP, IP, socket.IP_TTL, 7), ("ipv6only", UDP6, IPV6, socket.IPV6_V6ONLY, 1),
    ("ipv6-mtu-discover=2", UDP6, IPV6, 23, 2), ("ipv6-tclass=8", UDP6, IPV6, socket.IPV6_TCLASS, 8),
    ("ipv6-unicast-hops=9", UDP6, IPV6, socket.IPV6_UNICAST_HOPS, 9), ("reuseport", TCP, SOL, socket.SO_REUSEPORT, 1),
    ("ip-multicast-loop=0", UDP, IP, socket.IP_MULTICAST_LOOP, 0),
    ("ip-multicast-ttl=5", UDP, IP, socket.IP_MULTICAST_TTL, 5),
    ("ipv6-multicast-loop=0", UDP6, IPV6, socket.IPV6_MULTICAST_LOOP, 0), ("cork", "dial", TCPS, socket.TCP_CORK, 1),
    ("defer-accept=7", TCP, TCPS, socket.TCP_DEFER_ACCEPT, 7), ("keepalive=0", "dial", SOL, socket.SO_KEEPALIVE, 0),
    ("keepcnt=3", TCP, TCPS, socket.TCP_KEEPCNT, 3), ("keepidle=44", TCP, TCPS, socket.TCP_KEEPIDLE, 44),
    ("keepintvl=55", "dial", TCPS, socket.TCP_KEEPINTVL, 55), ("linger2=9", TCP, TCPS, socket.TCP_LINGER2, 9),
    ("mss=600", TCP, TCPS, socket.TCP_MAXSEG, 600), ("syncnt=3", "dial", TCPS, socket.TCP_SYNCNT, 3),
    ("nodelay", "dial", TCPS, socket.TCP_NODELAY, 1),
]  # fmt: skip
UNSEEN = {"ip-add-membership", "ip-multicast-if", "ipv6-join-group", "linger", "setsockopt-string"}
"""Options of sockets that have tests of their own, since getsockopt does not show them as a number."""


@pytest.mark.parametrize(("option", "address", "level", "name", "value"), SET, ids=[each[0] for each in SET])
async def test_an_option_of_a_sockets_is_set_on_it(
    option: str, address: str, level: int, name: int, value: int, tmp_path: Path
) -> None:
    if option in ("ip-transparent", "priority=3") and os.geteuid() != 0:
        pytest.skip("only root may")
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    async with listener:
        dialled = f"TCP:127.0.0.1:{listener.socket.getsockname()[1]}"
        spec = specify(f"{dialled if address == 'dial' else address.format(dir=tmp_path)},{option}")
        assert isinstance(spec, Specification)
        situation = Situation(Engine(), Direction.READ)
        if spec.type.open is not None:
            async with spec.type.open(spec, situation) as stream:
                assert stream.sock is not None
                found = stream.sock.getsockopt(level, name)
        else:
            assert spec.type.listen is not None
            (server,) = await spec.type.listen(spec, situation)
            found = server.sock.getsockopt(level, name)  # type: ignore[attr-defined]
            server.close()
    assert found == value


def test_every_option_of_a_sockets_is_among_those_that_were_tried() -> None:
    tried = {each[0].partition("=")[0] for each in SET}
    names = {option.name: set(option.names) for option in OPTIONS if option.set is not None}
    assert {name for name, all_names in names.items() if not all_names & tried} == UNSEEN


async def test_linger_of_no_seconds_is_a_reset(relaying: Start, tmp_path: Path) -> None:
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    async with listener:
        port = listener.socket.getsockname()[1]
        (tmp_path / "in").write_bytes(b"x")
        running = relaying(f"OPEN:{tmp_path}/in", f"TCP:127.0.0.1:{port},linger=0,shut-none", **ONE_WAY)
        async with await listener.accept() as stream:
            assert await stream.receive_some() == b"x"
            await running.end()
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()


async def test_an_option_that_the_kernel_refuses_is_an_error_and_sloppily_a_warning(
    relaying: Start, tmp_path: Path
) -> None:
    with pytest.raises(VsockfwdError, match="option setsockopt-listen: protocol not available"):
        await relaying("UDP-RECV:0,setsockopt-listen=1:9999:1", f"OPEN:{tmp_path}/o,creat", **ONE_WAY).end()
    sloppy = relaying("UDP-RECV:0,setsockopt-listen=1:9999:1", f"OPEN:{tmp_path}/o,creat", sloppy=True, **ONE_WAY)
    await sloppy.said("option setsockopt-listen: protocol not available")
    await sloppy.said("receiving on")


async def test_two_listen_on_one_port_where_both_say_so(relaying: Start) -> None:
    port = await relaying(f"{LOCAL},reuseport", "PIPE").port()
    await relaying(f"TCP-LISTEN:{port},bind=127.0.0.1,reuseport", "PIPE").said("listening")
    with pytest.raises(CannotCreate):
        await relaying(f"TCP-LISTEN:{port},bind=127.0.0.1", "PIPE").end()


async def test_pf_and_the_flags_choose_the_family(relaying: Start) -> None:
    await relaying("TCP-LISTEN:0,pf=ip6,ipv6only", "PIPE").said(r"listening on tcp:\[::\]")
    await relaying("TCP-LISTEN:0,bind=[::1]", "PIPE").said(r"listening on tcp:\[::1\]")
    await relaying("TCP-LISTEN:0,bind=localhost,pf=ip4", "PIPE").said(r"listening on tcp:127\.0\.0\.1")


# --- who may connect


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("10.0.0.0/8", "10.1.2.3", "11.1.2.3"), ("10.0.0.0:255.0.0.0", "10.1.2.3", "11.1.2.3"),
        ("127.0.0.1", "127.0.0.1", "127.0.0.2"),
        ("[fe80::]/10", "fe80::1%eth0", "fec0::1"), ("[::1]/128", "::1", "::2"),
    ],
)  # fmt: skip
def test_a_range_of_addresses_holds_who_is_in_it(text: str, inside: str, outside: str) -> None:
    admission = Admission((read_range(text),))
    assert admission.why_not(NetworkPeer(inside, 1)) == ""
    assert admission.why_not(NetworkPeer(outside, 1)) == "it is in none of the ranges"
    assert admission.why_not(VsockPeer(3, 1)) != ""


@pytest.mark.parametrize(
    ("text", "inside", "outside"), [("3", 3, 4), ("host", 2, 3), ("local", 1, 2), ("3-9", 9, 10), ("0-2", 0, 3)]
)
def test_a_range_of_cids_holds_who_is_in_it(text: str, inside: int, outside: int) -> None:
    admission = Admission((read_range(text),))
    assert admission.why_not(VsockPeer(inside, 1)) == ""
    assert admission.why_not(VsockPeer(outside, 1)) != ""


async def is_reset(port: int) -> None:
    with pytest.raises((trio.BrokenResourceError, OSError), match=r"reset|failed"):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.receive_some()


async def test_who_is_outside_is_reset_and_who_is_inside_is_served(
    relaying: Start, everything: Everything, tmp_path: Path
) -> None:
    allowed = tmp_path / "allowed"
    allowed.write_text("# nobody yet\n")
    running = relaying(f"{LOCAL},fork,range=10.0.0.0/8,allow={allowed}", "SYSTEM:echo in")
    port = await running.port()
    await is_reset(port)
    await running.said(r"127\.0\.0\.1:\d+ is refused: it is in none of the ranges")
    allowed.write_text("127.0.0.0/8  # ourselves\n")
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        assert await everything(stream) == b"in\n"
    allowed.write_text("nonsense\n")
    await is_reset(port)
    await running.said("is refused: .*allowed: a line is ADDRESS/BITS")


async def test_the_first_who_is_let_in_is_the_one_connection(relaying: Start, everything: Everything) -> None:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        port = own.getsockname()[1]
    running = relaying(f"{LOCAL},sourceport={port}", "SYSTEM:echo in")
    server = await running.port()
    await is_reset(server)
    await running.said(f"it does not come from port {port}")
    await relaying(f"TCP:127.0.0.1:{server},sourceport={port}", f"OPEN:{os.devnull},wronly", **ONE_WAY).end()
    await running.end()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may bind low ports")
async def test_a_low_port_is_dialled_from_and_asked_for(relaying: Start, tmp_path: Path) -> None:
    running = relaying(f"{LOCAL},lowport,fork", "SYSTEM:echo $SOCAT_PEERPORT")
    port = await running.port()
    await relaying(f"TCP:127.0.0.1:{port},lowport", f"OPEN:{tmp_path}/out,creat", **ONE_WAY).end()
    assert 640 <= int((tmp_path / "out").read_text()) < 1024
    await is_reset(port)


async def test_nobody_who_connects_in_time_is_told(relaying: Start) -> None:
    with pytest.raises(TimedOut, match=r"nobody connected within 0\.05 s"):
        await relaying(f"{LOCAL},accept-timeout=0.05", "PIPE").end()
