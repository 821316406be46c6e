"""What is fuzzed: bytes in, and nothing out but a value or an error of ours. One function a target.

The thing to understand first: a function here says by raising that something is wrong. It catches the errors that
hostile bytes are meant to end in; whatever else comes out (a bug's exception, an assertion about what was read, a
Problem with a traceback in an agent's log) is a finding. Nothing here dials or listens anywhere but inside the
process, and nothing is written but in a temporary directory.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import trio
from trio.testing import MockClock

from tests.fuzz.fed import US, Fed, FedTransport, pieces
from tests.wire import conversation as c
from vsockfwd.address import Address, parse, parse_stream, parse_target
from vsockfwd.config import parse_config, parse_serve
from vsockfwd.discovery import find_modes
from vsockfwd.engine import Engine
from vsockfwd.engine.agent import Agent, Reception
from vsockfwd.engine.link import Link
from vsockfwd.engine.pump import BufferPool
from vsockfwd.engine.relays import Relays
from vsockfwd.engine.session import open_session
from vsockfwd.errors import PeerBrokeProtocol, VsockfwdError, printable
from vsockfwd.events import Event, Problem
from vsockfwd.identity import NetworkPeer
from vsockfwd.key import format_key, parse_keys
from vsockfwd.modes import http_connect, socks
from vsockfwd.modes.forward import Connect
from vsockfwd.modes.greeting import Declined, Greeting
from vsockfwd.modes.mode import MODE as FORWARD
from vsockfwd.policy import Policy
from vsockfwd.transport.base import Features, SocketStream
from vsockfwd.transport.network import Network
from vsockfwd.wire import messages, proxy_protocol
from vsockfwd.wire.control import ControlMachine
from vsockfwd.wire.frames import FrameParser, RawFrame
from vsockfwd.wire.machine import Role
from vsockfwd.wire.stream import StreamMachine
from vsockfwd_copy import messages as copying
from vsockfwd_copy.account import Account
from vsockfwd_copy.asked import Expected
from vsockfwd_copy.destination import resolve
from vsockfwd_copy.landing import Landing
from vsockfwd_copy.options import LandOptions, SendOptions
from vsockfwd_copy.receiving import receive
from vsockfwd_copy.roots import Root
from vsockfwd_copy.sending import send
from vsockfwd_copy.walking import Tree
from vsockfwd_dgram.far import Far
from vsockfwd_dgram.near import Near
from vsockfwd_dgram.sockets import bind
from vsockfwd_relay.grammar import read, words
from vsockfwd_relay.table import specify

SECONDS = 10
"""What one input may take, here and on a slow machine; it takes some milliseconds."""

SEPARATOR = b"\xfe--\xfe"
"""Between what is said on one connection and what on the next, where a target has several."""

ours = contextlib.suppress(VsockfwdError)
kinds = {kind.name: kind for found in find_modes() if found.mode is not None for kind in found.mode.rules}
buffers = BufferPool()


def _text(data: bytes) -> str:
    """As a word of the command line comes."""
    return os.fsdecode(data).replace("\0", "")


# --- texts


def address(data: bytes) -> None:
    """The address grammar: what is read is written back, and read again as the same."""
    text = _text(data)
    for reader in (parse, parse_stream, parse_target):
        with ours:
            found = reader(text)
            if reader is not parse_target:
                assert parse(str(found)) == found, found
    printable(text)


def config(data: bytes) -> None:
    """The config file, with every kind of rule there is, its [serve] alone, and a file of keys."""
    text = data.decode("utf-8", "replace")
    with ours:
        parse_config(text, "file.toml", kinds)
    with ours:
        parse_serve(text, "file.toml")
    with ours:
        for key in (keys := parse_keys(text, "file")):
            assert parse_keys(format_key(key), "file") == (key,)
        assert keys


def grammar(data: bytes) -> None:
    """socat's addresses, read and held to the table of types and options."""
    text = _text(data)
    with ours:
        read(text)
    with ours:
        words(text)
    with ours:
        specify(text)


# --- the wire


def frames(data: bytes) -> None:
    """The parser: the same frames, and the same refusal, however the bytes are cut."""

    def found(sizes: list[int]) -> list[Any]:
        parser, items = FrameParser(limit=4096), []
        try:
            for piece in pieces(body, sizes):
                for item in parser.receive_data(memoryview(piece)):
                    if isinstance(item, RawFrame):
                        items.append((item.kind, item.code, bytes(item.payload)))
                    elif items and isinstance(items[-1], bytes):
                        items[-1] += bytes(item)
                    else:
                        items.append(bytes(item))
                assert len(parser._partial) <= 4096 + 8
        except PeerBrokeProtocol as error:
            items.append(error.message)
        return items

    sizes, body = [1 + size % 32 for size in data[:2]] or [1], data[2:]
    assert found(sizes) == found([1 << 20])


def session(data: bytes) -> None:
    """Both machines, either side, at a point of a proper conversation that the first byte chooses."""
    if not data:
        return
    kind = StreamMachine if data[0] & 1 else c.KeyedMachine if data[0] & 0x40 else ControlMachine
    role = Role.CLIENT if data[0] & 2 else Role.AGENT
    said = data[1:]
    talk = c.Conversation(kind)
    if data[0] & 4:
        (c.opened if kind is StreamMachine else c.proven if kind is c.KeyedMachine else c.login)(talk)
    elif role is Role.CLIENT:
        machine = talk.client.machine
        machine.open(c.OPEN) if kind is StreamMachine else machine.hello(c.HELLO)
    heard = talk.client if role is Role.CLIENT else talk.agent
    with ours:
        heard.hear(said, c.in_sizes([1 + data[0] // 8, 1 << 16]))
        heard.machine.receive_eof()


PAYLOADS = (
    messages.Hello, messages.Auth, messages.Ready, messages.Open, messages.Ok, messages.Listen, messages.Granted,
    messages.Incoming, messages.Fetch, messages.Failure, messages.Deny, Connect, copying.Request, copying.Resolved,
    copying.Entries, copying.Wants, copying.Results, copying.Blocks, copying.Progress, copying.Removed,
    copying.Contents, copying.Chunk, copying.Hole, copying.Finish, copying.GiveUp, copying.Same,
)  # fmt: skip


def payloads(data: bytes) -> None:
    """Every typed payload, of the core and of copies: what decodes can be encoded, and decodes to the same again."""
    if not data:
        return
    kind = PAYLOADS[data[0] % len(PAYLOADS)]
    with ours:
        value: Any = messages.decode(data[1:], kind, "payload")
        again = messages.encode(value)
        assert messages.encode(messages.decode(again, kind, "payload")) == again
        if isinstance(value, messages.Failure):
            messages.error_in(value, 1, "the peer")
        if isinstance(value, messages.Incoming):
            messages.identity_of(value.peer)


def agent(data: bytes) -> None:
    """A whole agent: what is said on a control connection that is let in, then on others beside it."""
    told: list[Event] = []
    numbers = itertools.count()

    def tokens(length: int) -> bytes:
        """The first is the one that inputs present."""
        return c.TOKEN if not (number := next(numbers)) else number.to_bytes(length)

    async def main() -> None:
        network = Network(
            {
                "tcp": FedTransport(lambda: before_socket(b"hello"), at_once=True),
                "unix": FedTransport(lambda: Fed(b"hello", NetworkPeer("::1", 1))),
            }
        )
        served = Agent(Engine(network, told.append, buffers), {"forward": FORWARD}, Policy(0), token=tokens)
        first, *others = data.split(SEPARATOR)[:8]
        control, theirs = memory_pair_as(US)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.handle, control)
            with contextlib.suppress(trio.BrokenResourceError):
                await theirs.send_all(LOGIN + first[: 1 << 15])
            with trio.move_on_after(1):
                await trio.testing.wait_all_tasks_blocked()
            relays = await nursery.start(reception_of, served, [before_socket(other) for other in others])
            for other in others:
                nursery.start_soon(served.handle, Fed(other, US, sizes=(1 + len(other) // 3, 1 << 16)))
            with trio.move_on_after(120):  # of the autojump clock's seconds
                with contextlib.suppress(trio.BrokenResourceError):
                    while await theirs.receive_some():
                        pass
            nursery.cancel_scope.cancel()
        assert not relays.live
        assert not served._sessions
        assert not served._leases
        assert not served._strangers

    run_in_no_time(main)
    no_bug_in(told)


def before_socket(said: bytes) -> SocketStream:
    """A stream of a socket whose peer has said this and gone."""
    near, far = socket.socketpair()
    with far:
        far.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            far.send(said)
    near.setblocking(False)
    return SocketStream(near, Features(reset=False), US, "a socket's peer")


async def reception_of(
    served: Agent, streams: list[SocketStream], task_status: trio.TaskStatus[Relays] = trio.TASK_STATUS_IGNORED
) -> None:
    """Take streams as an agent's accept loop does."""
    async with Relays(buffers, served.engine.report) as relays:
        reception = Reception(served, relays)
        for stream in streams:
            reception.take(stream, lambda: None)
        task_status.started(relays)
        await trio.sleep_forever()


LOGIN = c.play(c.login, ControlMachine).said[0][1]


def client(data: bytes) -> None:
    """A whole client: each of its connections answers with what the input has for it."""
    told: list[Event] = []

    async def main() -> None:
        answers = iter(data.split(SEPARATOR)[:8])
        network = Network({"unix": FedTransport(lambda: Fed(next(answers, b""), US, after=1))})
        engine = Engine(network, told.append, buffers)
        with trio.move_on_after(300), ours:
            async with open_session(engine, parse("unix:/agent")) as asked:
                channel = (await asked.open("forward", Connect("tcp:x:1"))).channel
                await channel.relay(Fed(b"question", NetworkPeer("::1", 1)))
                await asked.ping()

                async def handle(incoming: Any) -> None:
                    channel = await incoming.accept()
                    await channel.relay(Fed(b"question", NetworkPeer("::1", 1)))

                await asked.listen("tcp:1", bytes(16), handle, lambda _: None)

    run_in_no_time(main)
    no_bug_in(told)


# --- in front of a connection


def proxy(data: bytes) -> None:
    """PROXY headers: as the reader that takes no byte too many would have them."""
    seen = b""
    with ours:
        while isinstance(found := proxy_protocol.parse(seen), int):
            assert 0 < found <= proxy_protocol.HEADER_LIMIT
            if len(seen) == len(data):
                return
            seen = data[: len(seen) + found]
        assert found.length == len(seen)
        if found.source is not None:
            again = proxy_protocol.parse(proxy_protocol.header(found.source))
            assert isinstance(again, proxy_protocol.Header)
            assert again.source == found.source


def _greeting(make: Callable[[], Greeting], data: bytes) -> None:
    greeting = make()
    try:
        for piece in pieces(data[1 : http_connect.HEAD_LIMIT], (1 + data[0] % 64,)):
            greeting.receive(piece)
            if (asked := greeting.asked) is not None:
                assert parse(str(asked)) == asked
                return
    except Declined as declined:
        if not (declined.answer and declined.why):
            raise AssertionError(repr(declined)) from declined


def socks_5(data: bytes) -> None:
    """SOCKS 5 clients."""
    if data:
        _greeting(socks.Socks5, data)


def socks_4(data: bytes) -> None:
    """SOCKS 4 and 4a clients."""
    if data:
        _greeting(socks.Socks4, data)


def http(data: bytes) -> None:
    """HTTP CONNECT clients."""
    if data:
        _greeting(http_connect.HttpConnect, data)


# --- copies and datagrams

OPTIONS = (
    LandOptions(recursive=True),
    LandOptions(recursive=True, update=True, backup=b"~"),
    LandOptions(recursive=True, delta=True, delete=True),
    LandOptions(recursive=True, resume=True, xattrs=True),
    LandOptions(recursive=True, no_clobber=True, checksum=True),
    LandOptions(recursive=True, dry_run=True, delete=True),
    LandOptions(recursive=True, inplace=True, acls=True, owner=True, group=True),
    LandOptions(),
)


def channel_of(said: bytes, machine: StreamMachine, *, after: int = 0) -> Link:
    """An open channel whose peer says this."""
    return Link(Fed(said, US, sizes=(7, 1 << 16), after=after), machine, buffers)


def opened(role: Role) -> StreamMachine:
    talk = c.play(c.opened, StreamMachine)
    machine: StreamMachine = (talk.client if role is Role.CLIENT else talk.agent).machine
    return machine


def copy_receiver(data: bytes) -> None:
    """What a sender says to who receives; the first byte chooses how. Nothing outside the destination is touched."""
    if not data:
        return
    options = OPTIONS[data[0] % len(OPTIONS)]

    async def main(folder: str) -> None:
        root = Root(os.fsencode(folder))
        try:
            place = resolve(b"in", sources=0, options=options, root=root)
            landing = Landing(place, options, Expected(0))
            try:
                channel = channel_of(data[1:], opened(Role.AGENT))
                account = Account(no_event, "copy")
                try:
                    await receive(channel, landing, account)
                    account.conclude()
                finally:
                    channel.close()
            finally:
                landing.close()
                place.close()
        finally:
            root.close()

    with a_folder() as folder:
        with open(os.path.join(folder, "beside"), "w") as file:
            file.write("as it was")
        os.makedirs(os.path.join(folder, "in", "tree"))
        with open(os.path.join(folder, "in", "file"), "w") as file:
            file.write("stood here before")
        with ours:
            trio.run(main, folder)
        assert sorted(os.listdir(folder)) == ["beside", "in"]
        with open(os.path.join(folder, "beside")) as file:
            assert file.read() == "as it was"


def copy_sender(data: bytes) -> None:
    """What a receiver answers to who sends a small tree."""

    async def main(folder: str) -> None:
        root = Root(os.fsencode(folder))
        options = SendOptions(recursive=True)
        tree = Tree([b"tree"], options, root)
        channel = channel_of(data, opened(Role.CLIENT), after=1)
        try:
            await send(channel, tree, options, Account(no_event, "copy"))
        finally:
            channel.close()
            tree.close()
            root.close()

    with a_folder() as folder, ours:
        make_tree(folder)
        trio.run(main, folder)


def make_tree(folder: str) -> None:
    """A small file, an empty one, and one that is a hole but for its end."""
    os.makedirs(os.path.join(folder, "tree", "sub"))
    for name, size in (("small", 0), ("large", 150_000), ("sub/empty", 0)):
        path = os.path.join(folder, "tree", name)
        with open(path, "wb") as file:
            if name != "sub/empty":
                file.seek(size)
                file.write(b"the end")
        os.utime(path, (1, 1))


def datagrams(data: bytes) -> None:
    """What a peer says to the side that sends on, and to the side that listens."""
    if not data:
        return

    async def main() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
            sink.bind(("127.0.0.1", 0))
            where: Address = parse(f"udp:127.0.0.1:{sink.getsockname()[1]}")
            channel = channel_of(data[1:], opened(Role.AGENT if data[0] & 1 else Role.CLIENT))
            try:
                if data[0] & 1:
                    place = (socket.AF_INET, sink.getsockname())
                    await Far("rule", "there", where, [place], 4, no_event).run(channel)
                    return
                bound = await bind(parse("udp:127.0.0.1:0"))
                try:
                    near = Near("rule", "there", bound, 60.0, 4, no_event)
                    sink.sendto(b"datagram", bound[0].sock.getsockname())
                    async with near.listening():
                        await near.carry(channel)
                finally:
                    for each in bound:
                        each.close()
            finally:
                channel.close()

    with ours:
        trio.run(main)


# --- what they share


def no_event(event: Event) -> None:
    pass


def no_bug_in(told: list[Event]) -> None:
    for event in told:
        assert not (isinstance(event, Problem) and event.detail), event.detail


def memory_pair_as(peer: Any) -> Any:
    from vsockfwd.transport.memory import memory_pair

    near, far = memory_pair()
    near.peer = peer
    return near, far


def run_in_no_time(main: Callable[[], Any]) -> None:
    """Run with a clock that jumps to the next deadline when there is nothing to do."""
    trio.run(main, clock=MockClock(autojump_threshold=0))


@contextlib.contextmanager
def a_folder() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="vsockfwd-fuzz-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


TARGETS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each
    for each in (
        address, config, grammar, frames, session, payloads, agent, client, proxy, socks_5, socks_4, http,
        copy_receiver, copy_sender, datagrams,
    )
}  # fmt: skip


class Hangs(BaseException):
    """An input took longer than SECONDS."""


def attempt(name: str, data: bytes) -> None:
    """Run one input. Raises what is wrong, Hangs where it takes too long."""

    def ring(*_: object) -> None:
        raise Hangs(f"{name}: longer than {SECONDS} s on {data!r}")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        TARGETS[name](data)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
