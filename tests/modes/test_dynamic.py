"""`-D` with clients that know nothing of us: where they say they want to go is reached from the agent's side."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
import trio
import trio.testing

from tests.engine.world import World, settled
from tests.peers import need
from vsockfwd.address import Address, TcpAddress, parse
from vsockfwd.contract import Resource
from vsockfwd.engine import Engine
from vsockfwd.engine.server import serve_listeners
from vsockfwd.engine.session import Session, open_session
from vsockfwd.errors import NameNotResolved, Refused, TimedOut, Unreachable, VsockfwdError
from vsockfwd.events import Closed, Ending, Event, Opened, Problem
from vsockfwd.identity import Identity
from vsockfwd.modes.dynamic import GREETING_DEADLINE, serve_client
from vsockfwd.policy import Decision, Policy
from vsockfwd.transport.base import Stream
from vsockfwd.transport.memory import MemoryTransport
from vsockfwd.transport.network import Network, system_network
from vsockfwd.transport.tcp import TcpTransport

BODY = b"a page " * 20_000
SOCKS = b"\x05\x01\x00\x05\x01\x00\x03\x08far.test\x00\x50"
AGREED, GRANTED = b"\x05\x00", b"\x05\x00\x00\x01" + bytes(6)


class FarNames(TcpTransport):
    """TCP as the agent's machine has it: names that only its resolver knows, and what becomes of dialling them."""

    def __init__(self) -> None:
        self.known: dict[str, Address | VsockfwdError] = {}
        self.memory = MemoryTransport()
        self.dialling = trio.lowlevel.ParkingLot()
        self.slow = False

    async def resolve(self, address: TcpAddress) -> Sequence[TcpAddress]:
        return (address,) if self.slow or address.host in self.known else await super().resolve(address)

    async def connect(self, address: TcpAddress, *, privileged: bool = False) -> Stream:
        if self.slow:
            await self.dialling.park()
        found = self.known.get(address.host)
        if isinstance(found, VsockfwdError):
            raise found
        if found is not None and found.scheme == "memory":
            return await self.memory.connect(found)  # type: ignore[arg-type]
        return await super().connect(found or address)  # type: ignore[arg-type]


class Forbidding(Policy):
    """Lets everybody in and permits nothing."""

    def permit(self, peer: Identity, resource: Resource) -> Decision:
        return Decision(False, f"{resource.name} is not for {peer}")


@dataclasses.dataclass
class Proxy:
    """A dynamic forward at `address`, the agent's names, and what was reported on either side."""

    address: Address
    far: FarNames
    agent: Any
    agent_scope: trio.CancelScope
    session: Session
    engine: Engine
    events: list[Event]
    agents_events: list[Event]

    @property
    def port(self) -> int:
        assert isinstance(self.address, TcpAddress)
        return self.address.port

    def reported(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    async def dial(self) -> Stream:
        return await self.engine.network.connect(self.address)


@contextlib.asynccontextmanager
async def dynamic(listen: str = "tcp:127.0.0.1:0") -> AsyncIterator[Proxy]:
    """An agent on a network of its own, and a dynamic forward through it."""
    memory, far = MemoryTransport(), FarNames()
    events: list[Event] = []
    agents: list[Event] = []
    engine = Engine(Network({**system_network().transports, "memory": memory}), events.append)
    world = World(Engine(Network({"tcp": far, "memory": memory}), agents.append))
    listeners = list(await engine.network.listen(parse(listen)))
    started = trio.Event()
    held: dict[str, Any] = {}

    async def run_agent() -> None:
        with trio.CancelScope() as held["scope"]:
            async with world.agent() as held["agent"]:
                started.set()
                await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_agent)
        await started.wait()
        async with open_session(engine, world.target) as session:

            async def handle(near: Stream) -> None:
                await serve_client(engine, session, near, f"SOCKS at {listeners[0].address} through {session.name}")

            nursery.start_soon(serve_listeners, listeners, handle, engine.report)
            yield Proxy(listeners[0].address, far, held["agent"], held["scope"], session, engine, events, agents)
            nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def origin(serve: Callable[[trio.SocketStream], Any], host: str = "127.0.0.1") -> AsyncIterator[TcpAddress]:
    """A TCP server on loopback."""
    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(functools.partial(trio.serve_tcp, serve, 0, host=host))
        yield TcpAddress(host, listener.socket.getsockname()[1])
        nursery.cancel_scope.cancel()


async def page(stream: trio.SocketStream) -> None:
    """A web server that says by the connection's end that the page is complete."""
    await _head(stream)
    await stream.send_all(b"HTTP/1.0 200 OK\r\n\r\n" + BODY)


async def half_a_page(stream: trio.SocketStream) -> None:
    await _head(stream)
    await stream.send_all(b"HTTP/1.0 200 OK\r\n\r\n" + BODY)
    stream.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
    stream.socket.close()


async def _head(stream: trio.SocketStream) -> None:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += await stream.receive_some()


async def echo(stream: trio.SocketStream) -> None:
    async for data in stream:
        await stream.send_all(data)


async def _exactly(stream: Stream, size: int) -> bytes:
    heard = b""
    while len(heard) < size:
        data = await stream.receive_some(size - len(heard))
        assert data, f"ended after {heard!r}"
        heard += data
    return heard


async def curl(url: str, *flags: str) -> subprocess.CompletedProcess[bytes]:
    words = [need("curl"), "-sS", "--noproxy", "", "--max-time", "10", *flags, url]
    return await trio.run_process(words, capture_stdout=True, capture_stderr=True, check=False)


@pytest.mark.parametrize(
    ("flags", "host"),
    [
        (("--socks5", "127.0.0.1:{}"), "127.0.0.1"),
        (("--socks5", "127.0.0.1:{}"), "[::1]"),
        (("--socks5-hostname", "127.0.0.1:{}"), "far.test"),
        (("--socks4", "127.0.0.1:{}"), "127.0.0.1"),
        (("--socks4a", "127.0.0.1:{}"), "far.test"),
        (("-p", "-x", "http://127.0.0.1:{}"), "far.test"),
        (("-p", "-x", "http://127.0.0.1:{}"), "[::1]"),
    ],
)
async def test_curl_fetches_a_page_by_names_that_only_the_agents_side_knows(flags: tuple[str, ...], host: str):
    async with dynamic() as proxy, origin(page, "::1" if host == "[::1]" else "127.0.0.1") as web:
        proxy.far.known["far.test"] = web
        done = await curl(f"http://{host}:{web.port}/", *(flag.format(proxy.port) for flag in flags))
        assert done.returncode == 0, done.stderr
        assert done.stdout == BODY
        await settled(lambda: bool(proxy.reported(Closed)))
        [opened], [closed] = proxy.reported(Opened), proxy.reported(Closed)
        assert opened.rule == f"SOCKS at {proxy.address} through memory:agent to tcp:{host}:{web.port}"
        assert closed.rule == opened.rule
        assert closed.outcome.ending is Ending.COMPLETE
        assert closed.outcome.received > len(BODY)


@pytest.mark.parametrize(
    ("error", "socks", "http"),
    [
        (Refused("connect to tcp:far.test: connection refused"), 5, 502),
        (NameNotResolved("the name far.test does not resolve"), 4, 502),
        (Unreachable("no route", errno=errno.EHOSTUNREACH), 4, 502),
        (Unreachable("no network", errno=errno.ENETUNREACH), 3, 502),
        (TimedOut("connect to tcp:far.test: no answer"), 6, 504),
    ],
)
async def test_curl_says_why_there_is_no_connection(error: VsockfwdError, socks: int, http: int):
    async with dynamic() as proxy:
        proxy.far.known["far.test"] = error
        done = await curl("http://far.test/", "--socks5-hostname", f"127.0.0.1:{proxy.port}")
        assert done.returncode == 97
        assert b"(%d)" % socks in done.stderr
        done = await curl("http://far.test/", "-p", "-x", f"http://127.0.0.1:{proxy.port}")
        assert done.returncode == 56
        assert b"response %d" % http in done.stderr
        assert {closed.outcome.ending for closed in proxy.reported(Closed)} <= {
            Ending.REFUSED, Ending.TIMED_OUT, Ending.FAILED,
        }  # fmt: skip


async def test_a_port_where_nothing_listens_is_refused():
    """The real thing, through the agent's kernel."""
    async with dynamic() as proxy, origin(page) as web:
        pass
    async with dynamic() as proxy:
        done = await curl(f"http://127.0.0.1:{web.port}/", "--socks5", f"127.0.0.1:{proxy.port}")
        assert (done.returncode, b"(5)" in done.stderr) == (97, True), done.stderr


async def test_what_the_agents_policy_forbids_is_forbidden_and_not_unreachable():
    async with dynamic() as proxy:
        proxy.agent.policy = Forbidding(os.geteuid())
        done = await curl("http://far.test/", "--socks5-hostname", f"127.0.0.1:{proxy.port}")
        assert b"(2)" in done.stderr
        async with await proxy.dial() as client:
            await client.send_all(b"CONNECT far.test:80 HTTP/1.1\r\nHost: far.test:80\r\n\r\n")
            answer = b"".join([data async for data in client])
        assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")
        assert b"tcp:far.test:80 is not for" in answer


async def test_an_agent_that_is_gone_is_not_told_as_a_destination_that_refuses():
    async with dynamic() as proxy:
        proxy.agent_scope.cancel()
        await settled(lambda: proxy.session._control is None)
        done = await curl("http://far.test/", "--socks5-hostname", f"127.0.0.1:{proxy.port}")
        assert b"(1)" in done.stderr
        done = await curl("http://far.test/", "-p", "-x", f"http://127.0.0.1:{proxy.port}")
        assert b"response 502" in done.stderr


async def test_curl_without_a_tunnel_is_told_to_make_one():
    async with dynamic() as proxy:
        done = await curl("http://far.test/", "-x", f"http://127.0.0.1:{proxy.port}", "-w", "%{http_code}")
        assert b"this is a tunnel" in done.stdout
        assert done.stdout.endswith(b"405")
        assert "HTTP GET http://far.test/" in proxy.reported(Problem)[0].why


async def test_a_refusal_is_heard_to_its_end_however_much_its_client_went_on_to_send(monkeypatch):
    monkeypatch.setattr("vsockfwd.modes.dynamic.LAST_WORDS", 10.0)  # a slow machine is not what this is about
    async with dynamic() as proxy, await proxy.dial() as client:
        await client.send_all(b"POST http://far.test/ HTTP/1.1\r\nHost: far.test\r\n\r\n" + bytes(16 << 20))
        with trio.fail_after(10):
            answer = b"".join([data async for data in client])
        assert b"this is a tunnel" in answer


@pytest.mark.parametrize(
    "through", ["SOCKS4A:127.0.0.1:far.test:80,socksport={}", "PROXY:127.0.0.1:far.test:80,proxyport={}"]
)
async def test_socat_reaches_a_name_that_only_the_agents_side_knows(through: str):
    async with dynamic() as proxy, origin(echo) as server:
        proxy.far.known["far.test"] = server
        words = [need("socat"), "-t5", "-", through.format(proxy.port)]
        with trio.fail_after(10):
            done = await trio.run_process(words, stdin=b"there and back", capture_stdout=True)
        assert done.stdout == b"there and back"


@pytest.mark.parametrize("flags", [("--socks5-hostname",), ("-p", "-x")])
async def test_a_reset_in_mid_body_makes_curl_fail_instead_of_ending_early(flags: tuple[str, ...]):
    async with dynamic() as proxy, origin(half_a_page) as web:
        proxy.far.known["far.test"] = web
        done = await curl("http://far.test/", *flags, f"127.0.0.1:{proxy.port}")
        assert done.returncode == 56
        assert b"reset" in done.stderr.lower()
        await settled(lambda: bool(proxy.reported(Closed)))
        assert proxy.reported(Closed)[0].outcome.ending is Ending.RESET


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (SOCKS, AGREED + GRANTED),
        (b"\x04\x01\x00\x50\0\0\0\1me\0far.test\0", b"\0\x5a" + bytes(6)),
        (b"CONNECT far.test:80 HTTP/1.1\r\nHost: far\r\n\r\n", b"HTTP/1.1 200 Connection established\r\n\r\n"),
    ],
)
@pytest.mark.parametrize("bytewise", [False, True])
async def test_what_follows_a_request_at_once_comes_first_in_the_tunnel(said: bytes, answer: bytes, bytewise: bool):
    async with dynamic() as proxy, origin(echo) as server:
        proxy.far.known["far.test"] = server
        with trio.fail_after(10):
            async with await proxy.dial() as client:
                whole = said + b"a TLS hello" + (b"" if bytewise else bytes(range(256)) * 20)
                size = 1 if bytewise else len(whole)
                for at in range(0, len(whole), size):
                    await client.send_all(whole[at : at + size])
                await client.send_all(b"and what follows")
                await client.send_eof()
                heard = b"".join([data async for data in client])
        assert heard == answer + whole[len(said) :] + b"and what follows"
        await settled(lambda: bool(proxy.reported(Closed)))
        assert proxy.reported(Closed)[0].outcome.sent == len(whole) - len(said) + len(b"and what follows")


async def test_a_server_that_speaks_first_is_heard():
    async def greet(stream: trio.SocketStream) -> None:
        await stream.send_all(b"220 ready\r\n")
        await stream.receive_some()

    async with dynamic() as proxy, origin(greet) as server:
        proxy.far.known["far.test"] = server
        with trio.fail_after(10):
            async with await proxy.dial() as client:
                await client.send_all(SOCKS)
                answer = AGREED + GRANTED + b"220 ready\r\n"
                assert await _exactly(client, len(answer)) == answer


@pytest.mark.parametrize("said", [b"", b"\x05", b"\x05\x01\x00\x05\x01", b"CONNECT far"])
async def test_a_client_that_never_says_where_to_is_not_kept_for_ever(autojump_clock, said: bytes):
    async with dynamic("memory:proxy") as proxy:
        async with await proxy.dial() as client:
            began = trio.current_time()
            await client.send_all(said)
            with contextlib.suppress(trio.BrokenResourceError):
                while await client.receive_some():
                    pass
            assert trio.current_time() - began == pytest.approx(GREETING_DEADLINE)
        assert "no whole request within 10 s" in proxy.reported(Problem)[0].why


async def test_a_client_that_trickles_gains_no_time(autojump_clock):
    async with dynamic("memory:proxy") as proxy, await proxy.dial() as client:
        began = trio.current_time()
        with pytest.raises(trio.BrokenResourceError):
            for at in range(60):
                await client.send_all(b"CONNECT far.test:80 HTTP/1.1\r\nHost: far.test:80\r\nX: y\r\n\r\n"[at : at + 1])
                await trio.sleep(1)
        assert trio.current_time() - began <= GREETING_DEADLINE + 1


@pytest.mark.parametrize(
    "said", [b"\x16\x03\x01\x02\x00\x01", b"\0", b"\x05\x01\x00" + b"\x05\x01\x00\x03\xff" + b"x" * 80]
)
async def test_a_stranger_is_closed_and_reported_and_the_next_is_served(autojump_clock, said: bytes):
    async with dynamic("memory:proxy") as proxy:
        [web] = await proxy.far.memory.listen(parse("memory:web"))  # type: ignore[arg-type]
        proxy.far.known["far.test"] = web.address
        async with await proxy.dial() as client:
            await client.send_all(said)
            with contextlib.suppress(trio.BrokenResourceError):
                while await client.receive_some():
                    pass
        assert len(proxy.reported(Problem)) == 1
        async with await proxy.dial() as client:
            await client.send_all(SOCKS)
            async with await web.accept() as server:
                await server.send_all(b"hello")
                answer = AGREED + GRANTED + b"hello"
                assert await _exactly(client, len(answer)) == answer


async def test_looking_whether_the_port_is_open_is_no_problem(autojump_clock):
    async with dynamic("memory:proxy") as proxy:
        (await proxy.dial()).close()
        (await proxy.dial()).abort()
        await trio.testing.wait_all_tasks_blocked()
        assert not proxy.reported(Problem)
        assert not proxy.reported(Opened)


async def test_a_client_that_leaves_while_its_connection_is_made_leaves_nothing_behind(autojump_clock):
    async with dynamic("memory:proxy") as proxy:
        [web] = await proxy.far.memory.listen(parse("memory:web"))  # type: ignore[arg-type]
        proxy.far.known["far.test"] = web.address
        proxy.far.slow = True
        client = await proxy.dial()
        await client.send_all(SOCKS)
        await trio.testing.wait_all_tasks_blocked()
        client.abort()
        proxy.far.dialling.unpark_all()
        async with await web.accept() as server:
            with pytest.raises(trio.BrokenResourceError):
                await server.receive_some()
        await settled(lambda: bool(proxy.reported(Closed)))
        assert proxy.reported(Closed)[0].outcome.ending is Ending.RESET
        await settled(lambda: bool(proxy.agents_events))
        [closed] = proxy.agents_events
        assert "gone before it was answered" in str(closed)
