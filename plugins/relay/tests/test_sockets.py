"""Relays between sockets, with the real socat or a plain socket at either end."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from vsockfwd.plugin import CannotCreate, DataError, NameNotResolved, Refused, TimedOut
from vsockfwd_relay.address_type import Direction

Start = Callable[..., Any]
Everything = Callable[[trio.abc.ReceiveStream], Awaitable[bytes]]
LOCAL = "TCP-LISTEN:0,bind=127.0.0.1"
ONE_WAY = {"first_direction": Direction.READ, "second_direction": Direction.WRITE}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


async def dial(port: int) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", port, local_address=None)


async def echo(stream: trio.SocketStream) -> None:
    async with stream:
        async for piece in stream:
            await stream.send_all(piece)
        await stream.send_eof()


async def serve(nursery: trio.Nursery, handler: Callable[[trio.SocketStream], Awaitable[None]] = echo) -> int:
    listeners = await nursery.start(partial(trio.serve_tcp, handler, 0, host="127.0.0.1"))
    return int(listeners[0].socket.getsockname()[1])


async def ask(stream: trio.SocketStream, question: bytes, everything: Everything) -> bytes:
    async with stream:
        await stream.send_all(question)
        await stream.send_eof()
        return await everything(stream)


async def test_socat_talks_to_socat_through_a_relay_over_tcp_and_unix(
    relaying: Start, socat: Start, until: Start, everything: Everything, tmp_path: Path
) -> None:
    await socat(f"UNIX-LISTEN:{tmp_path}/s", "EXEC:tr a-z A-Z")
    await until((tmp_path / "s").exists)
    running = relaying(LOCAL, f"UNIX-CONNECT:{tmp_path}/s")
    client = await socat("-t5", "-", f"TCP:127.0.0.1:{await running.port()}")
    await client.stdin.send_all(b"hello")
    await client.stdin.aclose()
    assert await everything(client.stdout) == b"HELLO"
    await running.end()


async def test_a_relay_that_dials_both_ways_joins_two_socats(
    relaying: Start, socat: Start, until: Start, everything: Everything, tmp_path: Path
) -> None:
    ends = {}
    for name in ("a", "b"):
        ends[name] = await socat("-t5", f"UNIX-LISTEN:{tmp_path}/{name}", "-")
        await until((tmp_path / name).exists)
    running = relaying(f"UNIX:{tmp_path}/a", f"UNIX:{tmp_path}/b")
    for name, end in ends.items():
        await end.stdin.send_all(b"from " + name.encode())
        await end.stdin.aclose()
    assert await everything(ends["a"].stdout) == b"from b"
    assert await everything(ends["b"].stdout) == b"from a"
    await running.end()


async def test_an_abstract_socket_and_an_ipv6_one_carry_bytes(relaying: Start, everything: Everything) -> None:
    name = f"vsockfwd-relay-{os.getpid()}"
    behind = relaying(f"ABSTRACT-LISTEN:{name}", "PIPE")
    await behind.said("listening")
    running = relaying("TCP6-LISTEN:0,bind=[::1]", f"ABSTRACT:{name}")
    stream = await trio.open_tcp_stream("::1", await running.port())
    assert await ask(stream, b"six", everything) == b"six"
    await running.end()


async def test_one_family_of_a_name_is_dialled_from_the_address_that_is_asked_for(
    relaying: Start, everything: Everything, nursery: trio.Nursery
) -> None:
    came: list[Any] = []

    async def note(stream: trio.SocketStream) -> None:
        came.append(stream.socket.getpeername()[0])
        await echo(stream)

    port = await serve(nursery, note)
    running = relaying(LOCAL, f"TCP4:localhost:{port},bind=127.0.0.2,connect-timeout=2")
    assert await ask(await dial(await running.port()), b"x", everything) == b"x"
    await running.end()
    assert came == ["127.0.0.2"]


async def test_with_fork_a_silent_connection_delays_nobody(
    relaying: Start, everything: Everything, nursery: trio.Nursery
) -> None:
    running = relaying(f"{LOCAL},fork", f"TCP:127.0.0.1:{await serve(nursery)}")
    port = await running.port()
    async with await dial(port):
        for number in range(5):
            question = b"%d" % number
            assert await ask(await dial(port), question, everything) == question


async def test_max_children_lets_the_next_one_wait_until_another_has_gone(
    relaying: Start, everything: Everything, nursery: trio.Nursery
) -> None:
    served: list[int] = []

    async def count(stream: trio.SocketStream) -> None:
        served.append(1)
        await echo(stream)

    running = relaying(f"{LOCAL},fork,max-children=1", f"TCP:127.0.0.1:{await serve(nursery, count)}")
    port = await running.port()
    first = await dial(port)
    await first.send_all(b"a")
    assert await first.receive_some() == b"a"
    async with await dial(port) as second:
        await second.send_all(b"b")
        with trio.move_on_after(0.2):
            await second.receive_some()
            pytest.fail("two were served at once")
        assert len(served) == 1
        await first.aclose()
        with trio.fail_after(5):
            assert await second.receive_some() == b"b"


async def test_without_fork_one_connection_is_served_and_the_port_closed(
    relaying: Start, everything: Everything, nursery: trio.Nursery
) -> None:
    running = relaying(LOCAL, f"TCP:127.0.0.1:{await serve(nursery)}")
    port = await running.port()
    stream = await dial(port)
    await stream.send_all(b"x")
    assert await stream.receive_some() == b"x"
    with pytest.raises(OSError, match=r"all attempts|refused"):
        await dial(port)
    await stream.aclose()
    await running.end()


async def test_a_caller_whose_target_refuses_is_reset_and_the_others_live(relaying: Start) -> None:
    running = relaying(f"{LOCAL},fork", f"TCP:127.0.0.1:{free_port()}")
    for _ in range(2):
        async with await dial(await running.port()) as stream:
            with pytest.raises(trio.BrokenResourceError), trio.fail_after(5):
                assert await stream.receive_some() != b"", "a refusal looked like a polite end"
    await running.said("connection refused")


async def test_retry_reaches_a_server_that_starts_later(
    relaying: Start, everything: Everything, nursery: trio.Nursery
) -> None:
    port = free_port()
    running = relaying(LOCAL, f"TCP:127.0.0.1:{port},retry=50,interval=0.05")
    stream = await dial(await running.port())
    await running.said("connection refused; trying again in 0.05 s")
    nursery.start_soon(partial(trio.serve_tcp, echo, port, host="127.0.0.1"))
    assert await ask(stream, b"late", everything) == b"late"


async def test_retries_come_to_an_end(relaying: Start) -> None:
    running = relaying(f"TCP:127.0.0.1:{free_port()},retry=2,interval=0", "PIPE")
    with pytest.raises(Refused):
        await running.end()
    assert sum("trying again" in line for line in running.events) == 2


async def test_a_name_that_does_not_resolve_is_named(relaying: Start) -> None:
    with pytest.raises(NameNotResolved, match=r"no-such-host\.invalid"):
        await relaying("TCP4:no-such-host.invalid:1", "PIPE").end()


async def test_a_unix_listener_has_the_mode_that_is_asked_for_and_goes_with_the_relay(
    relaying: Start, everything: Everything, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    running = relaying(f"UNIX-LISTEN:{path},mode=660", "PIPE")
    await running.said("listening")
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    stream = await trio.open_unix_socket(path)
    assert await ask(stream, b"x", everything) == b"x"
    await running.end()
    assert not path.exists()


async def test_unlink_early_clears_the_way_and_without_it_a_file_is_left_alone(relaying: Start, tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(CannotCreate):
        await relaying(f"UNIX-LISTEN:{path}", "PIPE").end()
    assert path.read_text() == "precious"
    await relaying(f"UNIX-LISTEN:{path},unlink-early", "PIPE").said("listening")
    assert path.is_socket()


async def test_a_directory_that_is_not_there_is_an_error_of_one_line(relaying: Start, tmp_path: Path) -> None:
    with pytest.raises(CannotCreate, match="its directory does not exist"):
        await relaying(f"UNIX-LISTEN:{tmp_path}/none/s", "PIPE").end()


async def test_a_guests_port_is_dialled_through_its_vmms_socket_and_its_calls_are_taken(
    relaying: Start, everything: Everything, tmp_path: Path
) -> None:
    taken = relaying(f"HYBRID-LISTEN:{tmp_path}/v:52", "PIPE")
    await taken.said("listening")
    assert await ask(await trio.open_unix_socket(tmp_path / "v_52"), b"from guest", everything) == b"from guest"
    asked = []
    with trio.socket.socket(socket.AF_UNIX) as vmm:
        await vmm.bind(str(tmp_path / "v"))
        vmm.listen()
        running = relaying(f"HYBRID-CONNECT:{tmp_path}/v:80", f"OPEN:{tmp_path}/out,creat,wronly")
        connection, _ = await vmm.accept()
        with connection:
            asked.append(await connection.recv(100))
            await connection.send(b"OK 1024\nfirst")
    await running.end()
    assert asked == [b"CONNECT 80\n"]
    assert (tmp_path / "out").read_bytes() == b"first"


# --- ends ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asks", ["the one that called", "the one that was called"])
async def test_after_a_half_close_a_reply_of_100_mb_arrives_whole(
    relaying: Start, nursery: trio.Nursery, tmp_path: Path, asks: str
) -> None:
    size, piece = 100 * 1000 * 1000, bytes(range(256)) * 4096

    async def reply(stream: trio.abc.HalfCloseableStream) -> None:
        async for _ in stream:
            pass
        left = size
        while left:
            part = piece[: min(left, len(piece))]
            await stream.send_all(part)
            left -= len(part)
        await stream.aclose()

    async def question(stream: trio.abc.HalfCloseableStream) -> None:
        await stream.send_all(b"the question")
        await stream.send_eof()
        got = 0
        async for part in stream:
            assert part[:4] == piece[got % len(piece) :][: len(part[:4])] or got % len(piece) > len(piece) - 4
            got += len(part)
        await stream.aclose()
        assert got == size
        arrived.set()

    arrived = trio.Event()
    caller, called = (question, reply) if asks == "the one that called" else (reply, question)
    running = relaying(LOCAL, f"TCP:127.0.0.1:{await serve(nursery, called)}")
    nursery.start_soon(caller, await dial(await running.port()))
    with trio.fail_after(10):
        await arrived.wait()
    await running.end()


async def test_a_server_that_speaks_first_is_heard_by_a_client_that_says_nothing(
    relaying: Start, nursery: trio.Nursery
) -> None:
    async def greet(stream: trio.SocketStream) -> None:
        await stream.send_all(b"220 ready")
        await stream.receive_some()

    running = relaying(LOCAL, f"TCP:127.0.0.1:{await serve(nursery, greet)}")
    async with await dial(await running.port()) as stream:
        with trio.fail_after(5):
            assert await stream.receive_some() == b"220 ready"


async def test_a_reset_is_passed_on_and_told(relaying: Start, nursery: trio.Nursery) -> None:
    async def reset(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await stream.aclose()

    running = relaying(LOCAL, f"TCP:127.0.0.1:{await serve(nursery, reset)}")
    async with await dial(await running.port()) as stream:
        await stream.send_all(b"x")
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
    with pytest.raises(DataError, match="reset by tcp:127"):
        await running.end()


async def test_an_idle_relay_ends_after_its_time(relaying: Start, nursery: trio.Nursery) -> None:
    running = relaying(LOCAL, f"TCP:127.0.0.1:{await serve(nursery)}", idle=0.1)
    async with await dial(await running.port()):
        await running.end()


async def test_a_late_reply_is_cut_only_where_t_says_so(
    relaying: Start, everything: Everything, nursery: trio.Nursery
) -> None:
    async def late(stream: trio.SocketStream) -> None:
        async with stream:
            async for _ in stream:
                pass
            await trio.sleep(0.7)  # longer than socat's own half second
            await stream.send_all(b"late")

    port = await serve(nursery, late)
    patient = relaying(LOCAL, f"TCP:127.0.0.1:{port}")
    assert await ask(await dial(await patient.port()), b"", everything) == b"late"
    hasty = relaying(LOCAL, f"TCP:127.0.0.1:{port}", half_open=0.1)
    stream = await dial(await hasty.port())
    with pytest.raises(trio.BrokenResourceError):
        await ask(stream, b"", everything)
    await hasty.end()


async def test_one_way_the_servers_greeting_takes_nothing_back_of_what_was_sent(
    relaying: Start, nursery: trio.Nursery, tmp_path: Path
) -> None:
    size = 8_000_000
    (tmp_path / "big").write_bytes(bytes(size))
    got = []

    async def chatty(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(b"hello" * 1000)
            await trio.sleep(0.1)
            got.append(sum([len(piece) async for piece in stream]))
        done.set()

    done = trio.Event()
    port = await serve(nursery, chatty)
    running = relaying(
        f"OPEN:{tmp_path}/big",
        f"TCP:127.0.0.1:{port}",
        first_direction=Direction.READ,
        second_direction=Direction.WRITE,
    )
    await running.end()
    with trio.fail_after(5):
        await done.wait()
    assert got == [size]


async def test_a_hybrid_socket_that_is_only_written_is_told_the_end(relaying: Start, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"all")
    with trio.socket.socket(socket.AF_UNIX) as vmm:
        await vmm.bind(str(tmp_path / "v"))
        vmm.listen()
        running = relaying(f"OPEN:{tmp_path}/in", f"HYBRID-CONNECT:{tmp_path}/v:80", **ONE_WAY)
        connection, _ = await vmm.accept()
        with connection:
            await connection.recv(100)
            await connection.send(b"OK 1024\n")
            with trio.fail_after(5):
                assert await connection.recv(100) == b"all"
                assert await connection.recv(100) == b""
    await running.end()


async def test_a_vmm_that_cannot_be_told_the_end_is_not_told_while_its_answer_is_due(
    relaying: Start, tmp_path: Path
) -> None:
    (tmp_path / "in").write_bytes(b"question")
    with trio.socket.socket(socket.AF_UNIX) as vmm:
        await vmm.bind(str(tmp_path / "v"))
        vmm.listen()
        running = relaying(f"HYBRID:{tmp_path}/v:80", f"OPEN:{tmp_path}/in!!OPEN:{tmp_path}/out,creat")
        connection, _ = await vmm.accept()
        with connection:
            await connection.recv(100)
            await connection.send(b"OK 1024\n")
            assert await connection.recv(100) == b"question"
            with trio.move_on_after(0.1):
                assert await connection.recv(100), "the VMM would have closed both ways"
            await connection.send(b"answer")
    await running.end()
    assert (tmp_path / "out").read_bytes() == b"answer"


async def test_a_connect_that_takes_too_long_is_told_as_that(relaying: Start, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "v"))
        silent.listen()
        with pytest.raises(TimedOut):
            await relaying(f"HYBRID-CONNECT:{tmp_path}/v:80,connect-timeout=0.1", "PIPE").end()


async def test_what_passes_is_shown_with_direction_and_length(
    relaying: Start, everything: Everything, nursery: trio.Nursery
) -> None:
    running = relaying(LOCAL, f"TCP:127.0.0.1:{await serve(nursery)}", dump_text=True, dump_hexadecimal=True)
    assert await ask(await dial(await running.port()), b"hi\n", everything) == b"hi\n"
    await running.end()
    assert [text[0] for text in running.shown] == [">", "<"]
    assert all("length=3 from=0 to=2\n 68 69 0a " in text and "hi.\n--\n" in text for text in running.shown)


async def test_a_block_size_is_kept(relaying: Start, everything: Everything, nursery: trio.Nursery) -> None:
    running = relaying(LOCAL, f"TCP:127.0.0.1:{await serve(nursery)}", dump_text=True, block=4)
    assert await ask(await dial(await running.port()), b"0123456789", everything) == b"0123456789"
    lengths = [text.split("length=")[1].split()[0] for text in running.shown if text.startswith(">")]
    assert lengths == ["4", "4", "2"]
