"""Datagrams: their boundaries, many senders at once, what is too large, and when such a relay is over."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from vsockfwd.plugin import CannotCreate, DataError, UsageError
from vsockfwd_relay import datagrams
from vsockfwd_relay.address_type import Direction

Start = Callable[..., Any]
ONE_WAY = {"first_direction": Direction.READ, "second_direction": Direction.WRITE}
LISTEN = "UDP-LISTEN:0,bind=127.0.0.1"


async def port_of(running: Any) -> int:
    return int((await running.said(r"(?:listening|receiving) on udp:.*:(\d+)"))[1])


@pytest.fixture
async def peer() -> AsyncIterator[trio.socket.SocketType]:
    with trio.socket.socket(type=socket.SOCK_DGRAM) as sock:
        await sock.bind(("127.0.0.1", 0))
        yield sock


async def ask(sock: Any, question: bytes) -> bytes:
    await sock.send(question)
    with trio.fail_after(5):
        return bytes(await sock.recv(65536))


@pytest.mark.parametrize("sizes", [[1, 65_507, 0, 3], [8193] * 3])
async def test_datagrams_pass_whole_from_one_kind_of_socket_to_another(
    relaying: Start, peer: Any, tmp_path: Path, sizes: list[int]
) -> None:
    back = relaying(f"UNIX-RECVFROM:{tmp_path}/s,fork", "SOCKETPAIR")
    await back.said("listening")
    await peer.connect(("127.0.0.1", await port_of(relaying(LISTEN, f"UNIX-SENDTO:{tmp_path}/s"))))
    for size in filter(None, sizes):
        question = os.urandom(size)
        assert await ask(peer, question) == question


async def test_many_senders_have_a_connection_each(relaying: Start) -> None:
    running = relaying(f"{LISTEN},fork", "SYSTEM:while read x; do echo $x $$ $SOCAT_PEERPORT $VSOCKFWD_SOCKPORT; done")
    port = await port_of(running)
    senders = [trio.socket.socket(type=socket.SOCK_DGRAM) for _ in range(5)]
    programs: dict[int, set[bytes]] = {}
    for word in range(3):
        for number, sock in enumerate(senders):
            if not word:
                await sock.connect(("127.0.0.1", port))
            said, program, own, ours = (await ask(sock, b"%d\n" % word)).split()
            programs.setdefault(number, set()).add(program)
            assert (said, int(own), int(ours)) == (b"%d" % word, sock.getsockname()[1], port)
    for sock in senders:
        sock.close()
    assert [len(each) for each in programs.values()] == [1] * 5
    assert len(set.union(*programs.values())) == 5


async def test_without_fork_the_first_sender_is_the_only_one_that_is_heard(relaying: Start, peer: Any) -> None:
    port = await port_of(relaying(LISTEN, f"UDP:127.0.0.1:{peer.getsockname()[1]}"))
    with trio.socket.socket(type=socket.SOCK_DGRAM) as first, trio.socket.socket(type=socket.SOCK_DGRAM) as stranger:
        for sock in (first, stranger):
            await sock.connect(("127.0.0.1", port))
        for word in (b"one", b"two", b"three"):
            await first.send(word)
            await stranger.send(b"stranger")
        with trio.fail_after(5):
            came = [await peer.recvfrom(100) for _ in range(3)]
            assert [data for data, _ in came] == [b"one", b"two", b"three"]
            await peer.sendto(b"back", came[0][1])
            assert await first.recv(100) == b"back"


async def test_datagrams_that_come_at_once_are_served_at_once(relaying: Start, tmp_path: Path) -> None:
    running = relaying("UDP-RECVFROM:0,bind=127.0.0.1,fork", "SYSTEM:read x; test $x = slow && sleep 5; echo $x")
    port = await port_of(running)
    with trio.socket.socket(type=socket.SOCK_DGRAM) as slow, trio.socket.socket(type=socket.SOCK_DGRAM) as fast:
        for sock in (slow, fast):
            await sock.connect(("127.0.0.1", port))
        await slow.send(b"slow\n")
        assert await ask(fast, b"fast\n") == b"fast\n"


async def test_one_flow_that_is_done_leaves_the_others_alone(relaying: Start) -> None:
    running = relaying(f"{LISTEN},fork", "SYSTEM:read x; echo $x; test $x = last || cat")
    port = await port_of(running)
    with trio.socket.socket(type=socket.SOCK_DGRAM) as one, trio.socket.socket(type=socket.SOCK_DGRAM) as two:
        for sock in (one, two):
            await sock.connect(("127.0.0.1", port))
        assert await ask(one, b"first\n") == b"first\n"
        assert await ask(two, b"last\n") == b"last\n"
        await running.said("complete|half-open and idle")
        assert await ask(one, b"more\n") == b"more\n"
        assert await ask(two, b"again\n") == b"again\n"


async def test_who_is_outside_of_the_range_is_not_heard(relaying: Start, peer: Any, tmp_path: Path) -> None:
    running = relaying("UDP-RECV:0,range=127.0.0.2", f"OPEN:{tmp_path}/out,creat", **ONE_WAY)
    port = await port_of(running)
    await peer.sendto(b"outside", ("127.0.0.1", port))
    with socket.socket(type=socket.SOCK_DGRAM) as inside:
        inside.bind(("127.0.0.2", 0))
        inside.sendto(b"inside", ("127.0.0.1", port))
    with trio.fail_after(5):
        while not (tmp_path / "out").exists() or not (tmp_path / "out").read_bytes():  # noqa: ASYNC110
            await trio.sleep(0.01)
    assert (tmp_path / "out").read_bytes() == b"inside"
    refusing = relaying(f"{LISTEN},range=10.0.0.0/8", "PIPE")
    await peer.sendto(b"outside", ("127.0.0.1", await port_of(refusing)))
    await refusing.said("is refused: it is in none of the ranges")


async def test_a_place_that_is_sent_to_is_the_only_one_that_is_heard(
    relaying: Start, peer: Any, tmp_path: Path
) -> None:
    running = relaying(f"UNIX-LISTEN:{tmp_path}/s", f"UDP-SENDTO:127.0.0.1:{peer.getsockname()[1]}")
    await running.said("listening")
    async with await trio.open_unix_socket(str(tmp_path / "s")) as stream:
        await stream.send_all(b"hello")
        data, own = await peer.recvfrom(100)
        with socket.socket(type=socket.SOCK_DGRAM) as stranger:
            stranger.sendto(b"stranger", ("127.0.0.1", own[1]))
        await peer.sendto(data + b" back", ("127.0.0.1", own[1]))
        with trio.fail_after(5):
            assert await stream.receive_some() == b"hello back"


async def test_a_group_is_joined_and_hears_what_is_sent_to_it(relaying: Start, tmp_path: Path) -> None:
    group = "239.255.7.9"
    running = relaying(
        f"UDP-RECV:0,ip-add-membership={group}:127.0.0.1,reuseaddr", f"OPEN:{tmp_path}/out,creat", **ONE_WAY
    )
    port = await port_of(running)
    (tmp_path / "in").write_bytes(b"to the group")
    options = "ip-multicast-if=127.0.0.1,ip-multicast-loop,ip-multicast-ttl=1"
    await relaying(f"OPEN:{tmp_path}/in", f"UDP-DATAGRAM:{group}:{port},{options}", **ONE_WAY).end()
    with trio.fail_after(5):
        while not (tmp_path / "out").exists() or not (tmp_path / "out").read_bytes():  # noqa: ASYNC110
            await trio.sleep(0.01)
    assert (tmp_path / "out").read_bytes() == b"to the group"


async def test_a_stream_is_cut_into_datagrams_of_the_block_s_size(relaying: Start, peer: Any, tmp_path: Path) -> None:
    data = os.urandom(20_000)
    (tmp_path / "in").write_bytes(data)
    to = f"UDP-SENDTO:127.0.0.1:{peer.getsockname()[1]}"
    for block, sizes in ((0, [8192, 8192, 3616]), (9000, [9000, 9000, 2000])):
        await relaying(f"OPEN:{tmp_path}/in", to, block=block, **ONE_WAY).end()
        came = [await peer.recv(65536) for _ in sizes]
        assert [len(each) for each in came] == sizes
        assert b"".join(came) == data


async def test_what_is_too_large_is_dropped_and_told_and_never_clipped(
    relaying: Start, peer: Any, tmp_path: Path
) -> None:
    (tmp_path / "in").write_bytes(bytes(70_000))
    running = relaying(f"OPEN:{tmp_path}/in", f"UDP-SENDTO:127.0.0.1:{peer.getsockname()[1]}", block=66_000, **ONE_WAY)
    await running.end()
    await running.said("a datagram of 66000 bytes is too large: dropped")
    assert len(await peer.recv(65536)) == 4000
    received = relaying(f"UNIX-RECV:{tmp_path}/s", "UDP-SENDTO:127.0.0.1:9", block=65_536, **ONE_WAY)
    await received.said("receiving")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(bytes(66_000), str(tmp_path / "s"))
    await received.said("a datagram of 66000 bytes came, 65536 fit: dropped")


async def test_a_reader_with_a_small_block_gets_a_datagram_in_pieces(
    relaying: Start, peer: Any, tmp_path: Path
) -> None:
    running = relaying("UDP-RECV:0,bind=127.0.0.1,null-eof", f"OPEN:{tmp_path}/out,creat", block=100, **ONE_WAY)
    port = await port_of(running)
    data = os.urandom(5_000)
    await peer.sendto(data, ("127.0.0.1", port))
    await peer.sendto(b"", ("127.0.0.1", port))
    await running.end()
    assert (tmp_path / "out").read_bytes() == data


async def test_a_question_s_answer_is_waited_for_but_not_for_ever(relaying: Start, peer: Any, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"question")
    running = relaying(f"OPEN:{tmp_path}/in!!OPEN:{tmp_path}/out,creat", f"UDP:127.0.0.1:{peer.getsockname()[1]}")
    question, way = await peer.recvfrom(100)
    await trio.sleep(0.1)
    await peer.sendto(b"answer", way)
    await running.end()
    assert (question, (tmp_path / "out").read_bytes()) == (b"question", b"answer")


async def test_a_port_where_nobody_is_is_told(relaying: Start, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"question")
    with socket.socket(type=socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(DataError, match="refused"):
        await relaying(f"OPEN:{tmp_path}/in!!OPEN:{os.devnull}", f"UDP:127.0.0.1:{port}").end()


async def test_two_on_one_port_are_refused_unless_both_say_so(relaying: Start) -> None:
    port = await port_of(relaying("UDP-LISTEN:0,bind=127.0.0.1", "PIPE"))
    with pytest.raises(CannotCreate) as raised:
        await relaying(f"UDP-LISTEN:{port},bind=127.0.0.1", "PIPE").end()
    assert "another program listens there" in raised.value.line()


async def test_a_receiver_is_only_read(relaying: Start) -> None:
    with pytest.raises(UsageError, match="UDP-RECV is only read"):
        await relaying("UDP-RECV:0", "PIPE").end()


async def test_a_socket_s_file_that_a_killed_run_left_is_replaced_and_one_in_use_is_not(
    relaying: Start, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
        dead.bind(str(path))
    first = relaying(f"UNIX-RECV:{path}", f"OPEN:{tmp_path}/out,creat", **ONE_WAY)
    await first.said("receiving")
    with pytest.raises(CannotCreate):
        await relaying(f"UNIX-RECV:{path}", f"OPEN:{tmp_path}/out,creat", **ONE_WAY).end()
    (tmp_path / "file").write_bytes(b"precious")
    with pytest.raises(CannotCreate):
        await relaying(f"UNIX-RECV:{tmp_path}/file", f"OPEN:{tmp_path}/out,creat", **ONE_WAY).end()
    assert (tmp_path / "file").read_bytes() == b"precious"


async def test_a_flow_whose_other_end_is_slow_loses_what_is_too_much_and_says_so(
    relaying: Start, peer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datagrams, "QUEUED", 30_000)
    running = relaying(f"{LISTEN},fork", "SYSTEM:sleep 0.3")
    port = await port_of(running)
    for _ in range(12):
        await peer.sendto(bytes(60_000), ("127.0.0.1", port))
    await running.said("datagrams came faster than they left: dropped")
