"""What is done again and again while one thing after the other fails: forwards, relays, copies and datagrams.

Everything is in one process, over the kernel's own sockets, with a clock that jumps when nothing happens. A *service*
is started once (an agent, rules); one *exchange* over it is what a fault comes into; an exchange says what is wrong
with its outcome, and nothing where that is as it must be.

The thing to understand first, of streams: between TCP neighbours an end that is polite means that all of it is there.
Whatever failed, who did not get everything must have seen a reset.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import trio

from vsockfwd.address import parse
from vsockfwd.config import NamedRule
from vsockfwd.engine import Engine
from vsockfwd.engine.agent import Agent
from vsockfwd.engine.rules import Rules, State
from vsockfwd.engine.server import Gate
from vsockfwd.errors import VsockfwdError, the_one
from vsockfwd.events import Closed, Event, Problem
from vsockfwd.modes.dynamic import DYNAMIC, DynamicRule
from vsockfwd.modes.forward import LOCAL, RAW, REMOTE, LocalRule, RawRule, RemoteRule
from vsockfwd.modes.mode import MODE as FORWARD
from vsockfwd.policy import Policy
from vsockfwd.rule import StreamEnd
from vsockfwd_copy import MODE as COPY
from vsockfwd_copy.command import copy
from vsockfwd_copy.locations import plan
from vsockfwd_copy.options import Options
from vsockfwd_dgram import MODE as DGRAM
from vsockfwd_dgram.client import DATAGRAM
from vsockfwd_dgram.rule import DatagramEnd, Destination
from vsockfwd_relay.relaying import Plan, run
from vsockfwd_relay.table import specify

PATIENCE = 400.0
"""Seconds of the jumping clock after which something hangs: all that the product has ends before."""

_SOCKET = socket.socket
"""Not to fail: it is the neighbours' own."""


class Wrong(Exception):
    """An outcome that must not be."""


class Neighbour:
    """One end of a connection as a program has it: sends, says its end, and notes what came and how that ended."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.got = bytearray()
        self.end = "open"
        self.broken = ""

    async def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self.sock.send(view) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self.sock)
            except OSError as error:  # the kernel tells it once: who reads next would see an end
                self.broken = errno.errorcode[error.errno or 0]
                return
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    async def receive(self) -> None:
        while True:
            try:
                data = self.sock.recv(1 << 16)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.sock)
                continue
            except OSError as error:
                self.end = errno.errorcode[error.errno or 0]
                return
            if not data:
                self.end = self.broken or "end"
                return
            self.got += data

    def close(self) -> None:
        trio.lowlevel.notify_closing(self.sock)
        self.sock.close()


class Server:
    """Where the far neighbour comes from: TCP on loopback, or a UNIX socket."""

    def __init__(self, path: str = "") -> None:
        self.sock = _SOCKET(socket.AF_UNIX if path else socket.AF_INET)
        self.sock.bind(path or ("127.0.0.1", 0))
        self.sock.listen(64)
        self.sock.setblocking(False)
        self.address = f"unix:{path}" if path else f"tcp:127.0.0.1:{self.sock.getsockname()[1]}"

    async def accept(self) -> Neighbour:
        while True:
            try:
                # Not `accept`, which makes a socket of whatever class the module has.
                fd, _ = self.sock._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.sock)
            else:
                return Neighbour(_SOCKET(self.sock.family, self.sock.type, fileno=fd))

    def forget(self) -> None:
        """Hang up on who still waits."""
        while True:
            try:
                os.close(self.sock._accept()[0])  # type: ignore[attr-defined]
            except BlockingIOError:
                return


@functools.cache
def pattern(size: int, first: int) -> bytes:
    """Bytes in which none can be lost, doubled or moved unseen."""
    return b"".join((first + number).to_bytes(4) for number in range(size // 4))


def free_port() -> int:
    with _SOCKET() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def tick() -> None:
    """Keep the clock from jumping far: what happens in the engine's own epoll is nothing to it."""
    while True:  # noqa: ASYNC110 - it waits for nothing
        await trio.sleep(0.05)


class Scenario(ABC):
    """`folder` is the scenario's own. `told`: all that was reported."""

    halves: tuple[str, ...] = ("client_scope", "agent_scope")
    """What of it can be cancelled by itself."""
    lazy = False
    """Whether what was lost is made anew by the next exchange only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.told: list[Event] = []
        self.engine = Engine(report=self.told.append)
        self.agent_at = f"unix:{folder}/agent.sock"
        self.agent_scope = trio.CancelScope()
        self.client_scope = trio.CancelScope()

    @contextlib.asynccontextmanager
    async def service(self) -> AsyncIterator[None]:
        """What is there all the while. `agent_scope` and `client_scope` are its halves, as far as it has them."""
        yield

    @abstractmethod
    async def exchange(self) -> None:
        """Once; `settle` what it leaves. Raises Wrong. Notes in `complete` whether everything got through."""

    complete = False

    def left(self) -> list[str]:
        """Files that should be gone, once all has settled."""
        return []

    def descriptors(self) -> int:
        """Descriptors of this process, without the pipes that the engine keeps to splice through."""
        return len(os.listdir("/proc/self/fd")) - 2 * len(self.engine.buffers._pipes)

    def bugs(self) -> None:
        """Raises Wrong where something was reported that only a bug can bring about."""
        for event in self.told:
            if isinstance(event, Problem) and event.detail and "injected" not in event.why:
                raise Wrong(f"a bug was reported: {event.detail}")

    @contextlib.asynccontextmanager
    async def agent(self, *modes: Any) -> AsyncIterator[None]:
        """An agent for the length of a block."""
        agent = Agent(self.engine, {mode.name: mode for mode in modes}, Policy(os.geteuid()))
        listeners = await self.engine.network.listen(parse(self.agent_at))

        async def serve() -> None:
            with self.agent_scope:
                await agent.serve(listeners, Gate())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            yield
            nursery.cancel_scope.cancel()

    @contextlib.asynccontextmanager
    async def rule(self, kind: Any, rule: Any) -> AsyncIterator[None]:
        """A rule at work for the length of a block."""
        up = trio.Event()

        async def work() -> None:
            with self.client_scope:
                async with Rules(self.engine, {}, patient=True) as rules:
                    self.work = rules.add(NamedRule("rule", kind, rule))
                    await rules.settled()
                    up.set()
                    await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            await up.wait()
            while self.work.state is not State.UP:  # noqa: ASYNC110 - what is waited for has no event
                await trio.sleep(0.01)
            yield
            nursery.cancel_scope.cancel()


CLIENT, SERVER = "client", "server"


class Streams(Scenario):
    """A question one way, a longer answer the other, each with its end said. `told_apart`: the far neighbour is TCP."""

    told_apart = True
    size = 40_000
    of_rule = of_agent = frozenset({CLIENT, SERVER})
    """Whose connections these are: what they report as complete is so at these neighbours."""

    @contextlib.asynccontextmanager
    async def service(self) -> AsyncIterator[None]:
        self.port = free_port()
        self.server = Server("" if self.told_apart else f"{self.folder}/server.sock")
        try:
            async with self.carrying():
                yield
        finally:
            self.server.sock.close()

    @abstractmethod
    def carrying(self) -> contextlib.AbstractAsyncContextManager[None]:
        """The service between the port and the server."""

    async def connected(self) -> Neighbour | None:
        """A client's connection; None where nobody took it. Where nobody listens just now, one waits."""
        for _ in range(100):
            sock = _SOCKET()
            try:
                sock.connect(("127.0.0.1", self.port))
            except OSError:
                sock.close()
                await trio.sleep(0.5)
            else:
                return Neighbour(sock)
        return None

    async def greet(self, client: Neighbour) -> None:
        """What a client says before its question."""

    async def exchange(self) -> None:
        self.complete = False
        self.told.clear()
        question, answer = pattern(self.size, 7), pattern(2 * self.size, 1 << 20)
        client = await self.connected()
        if client is None:
            return
        far: list[Neighbour] = []
        client_over, far_over = trio.Event(), trio.Event()

        async def ask() -> None:
            await self.greet(client)
            await client.send(question)

        async def hear() -> None:
            await client.receive()
            client_over.set()

        async def serve() -> None:
            far.append(await self.server.accept())
            await far[0].receive()
            far_over.set()
            await far[0].send(answer)

        with trio.move_on_after(PATIENCE) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tick)
                nursery.start_soon(ask)
                nursery.start_soon(hear)
                async with trio.open_nursery() as serving:
                    serving.start_soon(serve)
                    await client_over.wait()
                    # Who was reached hears of the end as well; nobody may have been.
                    await trio.sleep(0.001)
                    if far:
                        await far_over.wait()
                    serving.cancel_scope.cancel()
                nursery.cancel_scope.cancel()
        client.close()
        for each in far:
            each.close()
        self.server.forget()
        if scope.cancelled_caught:
            raise Wrong(f"it hangs: the client {client.end}, the server {[each.end for each in far]}")
        self.judge(client, far[0] if far else None, question, answer)

    def judge(self, client: Neighbour, far: Neighbour | None, question: bytes, answer: bytes) -> None:
        """Raises Wrong for an end that looks like another."""
        if not answer.startswith(client.got):
            raise Wrong(f"the client got {len(client.got)} bytes that are not the server's")
        if client.end == "end" and client.got != answer:
            raise Wrong(f"the client saw an end after {len(client.got)} of {len(answer)} bytes")
        if far is not None:
            if not question.startswith(far.got):
                raise Wrong(f"the server got {len(far.got)} bytes that are not the client's")
            if self.told_apart and far.end == "end" and far.got != question:
                raise Wrong(f"the server saw an end after {len(far.got)} of {len(question)} bytes")
        self.complete = client.end == "end"
        got = {CLIENT: client.end == "end", SERVER: far is not None and far.got == question}
        for event in self.told:
            if isinstance(event, Closed) and event.outcome.clean:
                whose = self.of_rule if event.rule.startswith("rule") else self.of_agent
                if not all(got[side] for side in whose):
                    raise Wrong(f"reported as complete: {event}")


class Raw(Streams):
    """`forward LISTEN CONNECT`, TCP to TCP."""

    halves = ("client_scope",)

    @contextlib.asynccontextmanager
    async def carrying(self) -> AsyncIterator[None]:
        ends = {"listen": StreamEnd.read(f"tcp:127.0.0.1:{self.port}"), "connect": StreamEnd.read(self.server.address)}
        async with self.rule(RAW, RawRule(**ends)):
            yield


class RawToUnix(Raw):
    """The same to a UNIX socket, with so many bytes that they are spliced."""

    told_apart = False
    size = 400_000


class RawWithClock(Streams):
    """The same with a limit on silence, so that tasks carry it."""

    halves = ("client_scope",)

    @contextlib.asynccontextmanager
    async def carrying(self) -> AsyncIterator[None]:
        ends = {"listen": StreamEnd.read(f"tcp:127.0.0.1:{self.port}"), "connect": StreamEnd.read(self.server.address)}
        async with self.rule(RAW, RawRule(**ends, idle_timeout=100.0)):
            yield


class Local(Streams):
    """`forward -L`."""

    of_rule, of_agent = frozenset({CLIENT}), frozenset({SERVER})

    @contextlib.asynccontextmanager
    async def carrying(self) -> AsyncIterator[None]:
        ends = {"listen": StreamEnd.read(f"tcp:127.0.0.1:{self.port}"), "connect": StreamEnd.read(self.server.address)}
        async with self.agent(FORWARD), self.rule(LOCAL, LocalRule(**ends, target=self.agent_at)):
            yield


class LocalBulk(Local):
    """The same with more bytes than fit a frame."""

    size = 1_500_000


class Remote(Streams):
    """`forward -R`."""

    of_rule, of_agent = frozenset({SERVER}), frozenset({CLIENT})

    @contextlib.asynccontextmanager
    async def carrying(self) -> AsyncIterator[None]:
        ends = {"listen": StreamEnd.read(f"tcp:127.0.0.1:{self.port}"), "connect": StreamEnd.read(self.server.address)}
        async with self.agent(FORWARD), self.rule(REMOTE, RemoteRule(**ends, target=self.agent_at)):
            yield


class Dynamic(Streams):
    """`forward -D`, asked by SOCKS 5."""

    of_rule, of_agent = frozenset({CLIENT}), frozenset({SERVER})

    @contextlib.asynccontextmanager
    async def carrying(self) -> AsyncIterator[None]:
        rule = DynamicRule(listen=StreamEnd.read(f"tcp:127.0.0.1:{self.port}"), target=self.agent_at)
        async with self.agent(FORWARD), self.rule(DYNAMIC, rule):
            yield

    async def greet(self, client: Neighbour) -> None:
        port = self.server.sock.getsockname()[1]
        said = b"\x05\x01\0" + b"\x05\x01\0\x01" + socket.inet_aton("127.0.0.1") + port.to_bytes(2)
        with contextlib.suppress(OSError):
            client.sock.send(said)

    def judge(self, client: Neighbour, far: Neighbour | None, question: bytes, answer: bytes) -> None:
        granted = b"\x05\0" + b"\x05\0\0\x01" + bytes(6)
        if client.got.startswith(granted):
            del client.got[: len(granted)]
            super().judge(client, far, question, answer)
        elif client.got[:4] in (b"\x05\0\x05\0", b"") and client.end == "end" and len(client.got) > 2:
            raise Wrong(f"the client saw an end amid the grant: {client.got!r}")


class Relay(Streams):
    """`relay TCP-LISTEN,fork TCP`: socat's words."""

    halves = ("client_scope",)
    far_word = "TCP"

    @contextlib.asynccontextmanager
    async def carrying(self) -> AsyncIterator[None]:
        first = f"TCP-LISTEN:{self.port},bind=127.0.0.1,fork,reuseaddr"
        where = self.server.address.partition(":")[2]
        doing = Plan(specify(first), specify(f"{self.far_word}:{where}"))

        async def work() -> None:
            with self.client_scope:
                await run(self.engine, doing, lambda _: None)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            yield
            nursery.cancel_scope.cancel()


class RelayToUnix(Relay):
    """The same to a UNIX socket, spliced."""

    far_word = "UNIX-CONNECT"
    told_apart = False
    size = 400_000


STOOD = b"as it was"
PART = ".vsockfwd."
"""In the names of files that are not complete yet."""


class Copies(Scenario):
    """A copy of a small tree, put or got: each file is there as it was sent, as it stood before, or not at all.

    A copy that says that it is done has copied all. What the one that failed left over is gone, but what it could not
    take away.
    """

    towards = "put"
    options = Options(recursive=True)
    stood = ("tree/old",)
    """What stands in the sink before, by names of the source or others; each is small."""
    after: tuple[str, ...] = ()
    """… and what of that stands there in the end, beside the source's."""

    @contextlib.asynccontextmanager
    async def service(self) -> AsyncIterator[None]:
        self.source, self.sink = self.folder / "source", self.folder / "sink"
        (self.source / "tree" / "sub").mkdir(parents=True)
        for name, content in (("small", b"x" * 50), ("large", pattern(150_000, 5)), ("sub/one", b"1"), ("old", b"new")):
            (self.source / "tree" / name).write_bytes(content)
        (self.source / "tree" / "link").symlink_to("small")
        async with self.agent(COPY):
            yield

    def stands(self) -> dict[str, bytes]:
        """Everything below the sink that is no directory, by its path."""
        found = {}
        for directory, names, files in os.walk(self.sink):
            for name in [*names, *files]:
                path = Path(directory) / name
                if path.is_symlink():
                    found[str(path.relative_to(self.sink))] = os.fsencode(os.readlink(path))
                elif path.is_file():
                    found[str(path.relative_to(self.sink))] = path.read_bytes()
        return found

    def prepare(self) -> None:
        """The sink as it was before."""
        _remove(self.sink)
        (self.sink / "tree").mkdir(parents=True)
        for name in self.stood:
            (self.sink / name).parent.mkdir(exist_ok=True)
            (self.sink / name).write_bytes(STOOD)

    async def exchange(self) -> None:
        self.complete = False
        self.told.clear()
        self.prepare()
        self.scope, self.client_scope = self.client_scope, trio.CancelScope()
        code = 1
        with trio.move_on_after(PATIENCE) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tick)
                try:
                    code = await self.copy()
                except Exception as caught:
                    error = the_one(caught)
                    if not isinstance(error, VsockfwdError):
                        raise Wrong(f"{type(error).__name__}: {error}") from caught
                    code = error.exit_code
                nursery.cancel_scope.cancel()
        if scope.cancelled_caught:
            raise Wrong("it hangs")
        self.judge(code)

    async def copy(self) -> int:
        far = f"[{self.agent_at}]:"
        words = (
            (f"{self.source}/tree", f"{far}{self.sink}")
            if self.towards == "put"
            else (f"{far}{self.source}/tree", str(self.sink))
        )
        with self.scope:
            return await copy(self.engine, plan(words), self.options)
        return 130

    def left(self) -> list[str]:
        return [] if self.options.resume else [name for name in self.stands() if PART in name]

    def judge(self, code: int) -> None:
        whole = {
            str(path.relative_to(self.source)): os.fsencode(os.readlink(path))
            if path.is_symlink()
            else path.read_bytes()
            for path in self.source.rglob("*")
            if path.is_symlink() or path.is_file()
        }
        stands = self.stands()
        for name, content in stands.items():
            if PART in name and code:
                continue  # until all has settled
            if content not in (whole.get(name), STOOD if name in (*self.stood, *self.after) else None):
                raise Wrong(f"{name} is there with {len(content)} bytes that are not the source's")
        whole |= dict.fromkeys(self.after, STOOD)
        if code == 0 and stands != whole:
            missing = set(whole) ^ set(stands) or {name for name in whole if stands[name] != whole[name]}
            raise Wrong(f"a success without {missing}")
        self.complete = code == 0


class Got(Copies):
    """The other way."""

    towards = "get"


class PutOver(Copies):
    """Over what stands there: compared block by block, what the source has not is removed, all is synced."""

    options = Options(recursive=True, delta=True, delete=True, fsync=True, xattrs=True, hard_links=True)
    stood = ("tree/old", "tree/large", "tree/gone", "tree/none of the source's/gone")


class GotOver(Copies):
    """The other way: resumed where it can be, what is replaced stays under another name."""

    towards = "get"
    options = Options(recursive=True, resume=True, backup=b"~", checksum=True, owner=True, group=True)
    stood = ("tree/old", "tree/large")
    after = ("tree/old~", "tree/large~")


class Datagrams(Scenario):
    """`dgram -L`: what arrives is what was sent, once; the flow comes back after whatever befell it."""

    lazy = True

    @contextlib.asynccontextmanager
    async def service(self) -> AsyncIterator[None]:
        self.server = self._bound()
        self.client = self._bound()
        port = free_udp_port()
        where = f"udp:127.0.0.1:{self.server.getsockname()[1]}"
        kind: Any = DATAGRAM
        rule = kind.schema(
            listen=DatagramEnd.read(f"udp:127.0.0.1:{port}"), connect=Destination.read(where), target=self.agent_at,
            idle=1e6,
        )  # fmt: skip
        self.client.connect(("127.0.0.1", port))
        try:
            async with self.agent(DGRAM), self.rule(DATAGRAM, rule):
                yield
        finally:
            self.server.close()
            self.client.close()

    def _bound(self) -> socket.socket:
        sock = _SOCKET(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        return sock

    number = 0

    async def exchange(self) -> None:
        """A burst there and back: what comes is what was sent."""
        self.complete = False
        self.told.clear()
        sent = {self._datagram() for _ in range(6)}
        came: list[bytes] = []
        with trio.move_on_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tick)
                nursery.start_soon(self._echo)
                for datagram in sent:
                    with contextlib.suppress(OSError):
                        self.client.send(datagram)
                while set(came) != sent:
                    try:
                        came.append(self.client.recv(1 << 16))
                    except BlockingIOError:
                        await trio.lowlevel.wait_readable(self.client)
                    except OSError:
                        await trio.sleep(0.1)  # ICMP: nobody listens just now
                nursery.cancel_scope.cancel()
        await trio.sleep(2)  # what was held back meanwhile
        for sock in (self.client, self.server):
            with contextlib.suppress(OSError):
                while True:
                    sock.recv(1 << 16)
        fresh = [each for each in came if int(each[:8]) > self.number - 6]
        if not set(fresh) <= sent or len(set(fresh)) != len(fresh):
            raise Wrong("a datagram came that was not sent, or twice")
        self.complete = set(fresh) == sent

    def _datagram(self) -> bytes:
        self.number += 1
        return b"%08d" % self.number + pattern(400, self.number)

    async def _echo(self) -> None:
        while True:
            try:
                self.server.sendto(*self.server.recvfrom(1 << 16))
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.server)
            except OSError:
                await trio.sleep(0.01)


def free_udp_port() -> int:
    with _SOCKET(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _remove(folder: Path) -> None:
    """All of a tree of ours; symlinks are not followed."""
    if not folder.exists():
        return
    for directory, names, files in os.walk(folder, topdown=False):
        for name in [*files, *names]:
            path = Path(directory) / name
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    folder.rmdir()


SCENARIOS: dict[str, type[Scenario]] = {
    "raw forward": Raw,
    "raw forward, spliced": RawToUnix,
    "raw forward with a clock": RawWithClock,
    "-L": Local,
    "-L, bulk": LocalBulk,
    "-R": Remote,
    "-D": Dynamic,
    "relay": Relay,
    "relay, spliced": RelayToUnix,
    "cp, put": Copies,
    "cp, get": Got,
    "cp, put over what stands": PutOver,
    "cp, get, resumed": GotOver,
    "dgram": Datagrams,
}
