"""AGENT: a real agent dials, an end stays an end and a cut a cut."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.cli.process import agent as an_agent
from vsockfwd.plugin import DataError, Invocation, Refused, UsageError, ignore
from vsockfwd_relay.address_type import Direction
from vsockfwd_relay.command import relay
from vsockfwd_relay.table import specify

Start = Callable[..., Any]
Everything = Callable[[trio.abc.ReceiveStream], Awaitable[bytes]]
ONE_WAY = {"first_direction": Direction.READ, "second_direction": Direction.WRITE}


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("agent")
    with an_agent(folder) as server:
        server.wait_for("listening")
        yield f"[unix:{folder}/agent.sock]"


async def test_an_agent_dials_and_a_half_close_keeps_the_answer(
    relaying: Start, everything: Everything, agent: str, tmp_path: Path
) -> None:
    server = relaying("TCP-LISTEN:0,bind=127.0.0.1,fork", "SYSTEM:wc -c")
    running = relaying(f"UNIX-LISTEN:{tmp_path}/s,fork", f"AGENT:{agent}:127.0.0.1:{await server.port()}")
    await running.said("listening")
    for size in (0, 3_000_000):
        async with await trio.open_unix_socket(str(tmp_path / "s")) as stream:
            await stream.send_all(bytes(size))
            await stream.send_eof()
            assert (await everything(stream)).split() == [b"%d" % size]


async def test_a_reset_behind_the_agent_is_no_end(relaying: Start, agent: str, tmp_path: Path) -> None:
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    async with listener:
        port = listener.socket.getsockname()[1]
        running = relaying(f"AGENT:{agent}:tcp:127.0.0.1:{port}", f"OPEN:{tmp_path}/out,creat", **ONE_WAY)
        async with await listener.accept() as stream:
            await stream.send_all(b"half")
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        with pytest.raises(DataError, match=r"reset|cut"):
            await running.end()


async def test_a_caller_of_a_relay_is_reset_where_the_agent_s_side_was(relaying: Start, agent: str) -> None:
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    async with listener:
        port = listener.socket.getsockname()[1]
        running = relaying("TCP-LISTEN:0,bind=127.0.0.1", f"AGENT:{agent}:127.0.0.1:{port}")
        async with await trio.open_tcp_stream("127.0.0.1", await running.port()) as caller:
            async with await listener.accept() as stream:
                await stream.send_all(b"half")
                assert await caller.receive_some() == b"half"
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            with pytest.raises(trio.BrokenResourceError):
                await caller.receive_some()


async def test_what_the_relay_gives_up_the_agent_gives_up(relaying: Start, agent: str, tmp_path: Path) -> None:
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    async with listener:
        port = listener.socket.getsockname()[1]
        running = relaying("PIPE", f"AGENT:{agent}:127.0.0.1:{port}", idle=0.1)
        async with await listener.accept() as stream:
            await running.end()
            with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()


async def test_what_the_agent_cannot_reach_is_told(relaying: Start, agent: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    with pytest.raises(Refused, match="refused"):
        await relaying("PIPE", f"AGENT:{agent}:127.0.0.1:{port}").end()


def test_a_path_and_a_scheme_are_what_forward_takes() -> None:
    def connect(text: str) -> str:
        return specify(text).subject.connect  # type: ignore[union-attr, no-any-return]

    assert connect("AGENT:3:localhost:80") == "tcp:localhost:80"
    assert connect("AGENT:3:/run/x.sock") == "unix:/run/x.sock"
    assert connect("AGENT:3:[::1]:80") == "tcp:[::1]:80"
    assert connect("AGENT:3:vsock:1:80") == "vsock:local:80"


def test_a_target_that_nobody_knows_is_an_error_before_anything_is_opened() -> None:
    with pytest.raises(UsageError):
        relay(Invocation(ignore, False, 0, dict), ["PIPE", "AGENT:no-such-guest:localhost:80"])
