"""An agent and a forward of datagrams in one process, joined by a real UNIX socket, and what each reported."""

from __future__ import annotations

import contextlib
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import trio

from vsockfwd.plugin import (
    Agent,
    Closed,
    Dropped,
    Engine,
    Event,
    Listening,
    Mode,
    NamedRule,
    Policy,
    Problem,
    Rules,
    Work,
    parse,
    serve_listeners,
)
from vsockfwd_dgram import MODE
from vsockfwd_dgram.client import DATAGRAM, REMOTE_DATAGRAM
from vsockfwd_dgram.raw import RAW_DATAGRAM
from vsockfwd_dgram.rule import DatagramEnd, Destination, RawDatagramRule, RawDestination, RawEnd

DEADLINE = 5.0


class Told(list[Event]):
    """What a side reported."""

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self if isinstance(event, kind)]

    def drops(self) -> Counter[str]:
        """Datagrams dropped, by reason."""
        counts: Counter[str] = Counter()
        for event in self.of(Dropped):
            counts[event.reason] += event.count
        return counts

    def problems(self) -> str:
        return "\n".join(map(str, self.of(Problem)))

    def closings(self) -> list[str]:
        """Why flows ended."""
        return [event.outcome.why for event in self.of(Closed)]


class World:
    """`near` and `far` are what the two sides reported."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.target = parse(f"unix:{folder}/agent.sock")
        self.near = Told()
        self.far = Told()

    @contextlib.asynccontextmanager
    async def agent(self, mode: Mode = MODE, policy: Policy | None = None) -> AsyncIterator[None]:
        """Run an agent for the length of a block; its loss is total, as a kill would be."""
        engine = Engine(report=self.far.append)
        agent = Agent(engine, {mode.name: mode}, policy or Policy(os.geteuid()))
        async with trio.open_nursery() as nursery:
            listeners = await engine.network.listen(self.target)
            nursery.start_soon(serve_listeners, listeners, agent.handle, engine.report)
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()

    async def start_agent(self, nursery: trio.Nursery) -> trio.CancelScope:
        """Run an agent in a task of its own, until its scope is cancelled."""

        async def run(task_status: trio.TaskStatus[trio.CancelScope]) -> None:
            with trio.CancelScope() as scope:
                async with self.agent():
                    task_status.started(scope)
                    await trio.sleep_forever()

        return await nursery.start(run)

    def rule(self, connect: str, listen: str = "udp:127.0.0.1:0", *, remote: bool = False, **keys: Any) -> NamedRule:
        """A rule through the agent, that listens here or there."""
        kind = REMOTE_DATAGRAM if remote else DATAGRAM
        schema: Any = kind.schema
        ends = {"listen": DatagramEnd.read(listen), "connect": Destination.read(connect)}
        return NamedRule("rule", kind, schema(**ends, target=str(self.target), **{"idle": 60.0, **keys}))

    @contextlib.asynccontextmanager
    async def raw(self, listen: str, connect: str, told: Told | None = None, **keys: Any) -> AsyncIterator[Work]:
        """Run a rule without an agent for the length of a block; its reports go to `near` or to `told`."""
        ends = {"listen": RawEnd.read(listen), "connect": RawDestination.read(connect)}
        rule = RawDatagramRule(**ends, **{"idle": 60.0, **keys})  # type: ignore[arg-type]
        async with self.at_work(NamedRule(f"{listen} → {connect}", RAW_DATAGRAM, rule), told) as work:
            yield work

    @contextlib.asynccontextmanager
    async def at_work(self, named: NamedRule, told: Told | None = None) -> AsyncIterator[Work]:
        """Run a rule for the length of a block, from when it came up or failed once."""
        async with Rules(Engine(report=(self.near if told is None else told).append), {}, patient=True) as rules:
            work = rules.add(named)
            await rules.settled()
            yield work

    @contextlib.asynccontextmanager
    async def forward(self, connect: str, listen: str = "udp:127.0.0.1:0", **keys: Any) -> AsyncIterator[list[Any]]:
        """Forward datagrams for the length of a block; gives the socket addresses that are listened on."""
        async with self.at_work(self.rule(connect, listen, **keys)):
            yield [socket_address(event) for event in self.near.of(Listening)]


def socket_address(event: Listening) -> Any:
    """What a socket connects to in order to reach a listener."""
    address: Any = parse(event.address)
    return (address.host.strip("[]"), address.port) if address.scheme == "udp" else address.path


class Udp:
    """A UDP socket of a client or a server, that waits for a bounded while."""

    def __init__(self, at: Any = ("127.0.0.1", 0), to: Any = None) -> None:
        self.sock = socket.socket(socket.AF_INET6 if ":" in at[0] else socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 21)
        self.sock.bind(at)
        if to is not None:
            self.sock.connect(to)

    @property
    def address(self) -> Any:
        return self.sock.getsockname()

    def send(self, *datagrams: bytes) -> None:
        for datagram in datagrams:
            self.sock.send(datagram)

    def answer(self, datagram: bytes, peer: Any) -> None:
        self.sock.sendto(datagram, peer)

    async def receive(self) -> tuple[bytes, Any]:
        """The next datagram and who sent it."""
        with trio.fail_after(DEADLINE):
            while True:
                with contextlib.suppress(BlockingIOError):
                    return self.sock.recvfrom(1 << 18)
                await trio.lowlevel.wait_readable(self.sock)

    async def get(self) -> bytes:
        return (await self.receive())[0]

    def __enter__(self) -> Udp:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


class UnixDatagrams(Udp):
    """The same for a UNIX datagram socket, bound to a path unless that is empty."""

    def __init__(self, path: str = "", to: str | None = None) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        if path:
            self.sock.bind(path)
        if to is not None:
            self.sock.connect(to)


class Packets(Udp):
    """A UNIX socket with a connection that keeps boundaries: one to a path, or one that was accepted."""

    def __init__(self, to: str | None = None, sock: socket.socket | None = None) -> None:
        self.sock = sock or socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if to is not None:
            self.sock.connect(to)
        self.sock.setblocking(False)


class PacketServer:
    """A UNIX socket where connections that keep boundaries are taken."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.bind(path)
        self.sock.listen(1000)
        self.sock.setblocking(False)

    async def accept(self) -> Packets:
        with trio.fail_after(DEADLINE):
            await trio.lowlevel.wait_readable(self.sock)
        return Packets(sock=self.sock.accept()[0])

    def __enter__(self) -> PacketServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


async def echo(server: Udp, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
    """Answer everything with itself."""
    task_status.started()
    while True:
        try:
            server.sock.sendto(*server.sock.recvfrom(1 << 18))
        except BlockingIOError:
            await trio.lowlevel.wait_readable(server.sock)


@contextlib.asynccontextmanager
async def echoing(server: Udp) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo, server)
        yield
        nursery.cancel_scope.cancel()


async def settled(condition: Callable[[], bool], seconds: float = DEADLINE) -> None:
    """Let other tasks run until a condition holds."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await trio.sleep(0.002)
