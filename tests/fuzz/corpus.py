"""Writes the corpus anew: what is really said, in small.

    python -m tests.fuzz.corpus

Bytes of the wire come from the scenarios of tests/wire and from copies that an agent and a client make in here; texts
from the pages that users read. What fuzzing has found stands beside them, in files whose names begin with `found-`,
which are left as they are.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import trio

from tests.fuzz.targets import PAYLOADS, SEPARATOR, make_tree
from tests.wire import conversation as c
from vsockfwd.address import Address, parse
from vsockfwd.engine import Engine
from vsockfwd.engine.agent import Agent
from vsockfwd.engine.server import serve_listeners
from vsockfwd.events import ignore
from vsockfwd.identity import GuestPeer, NetworkPeer, OwnPeer, UnixPeer, VsockPeer
from vsockfwd.modes.forward import Connect
from vsockfwd.policy import Policy
from vsockfwd.transport.base import Stream
from vsockfwd.transport.memory import MemoryStream, MemoryTransport
from vsockfwd.transport.network import Network
from vsockfwd.wire.frames import AGENT_PREFACE, CLIENT_PREFACE, HEADER, FrameType, pack
from vsockfwd.wire.machine import Role
from vsockfwd.wire.messages import LISTEN, Deny, Fetch, Granted, Incoming, Listen, NetworkNeighbour, Ok, Open, encode
from vsockfwd.wire.proxy_protocol import header
from vsockfwd.wire.stream import StreamMachine
from vsockfwd_copy import MODE as COPY
from vsockfwd_copy import messages as copying
from vsockfwd_copy.options import Options
from vsockfwd_copy.target import Target, open_target
from vsockfwd_dgram import frames as dgram

ROOT = Path(__file__).parent.parent.parent
CORPUS = Path(__file__).parent / "corpus"
F = FrameType

Seeds = Iterator[tuple[str, bytes]]


# --- the wire


def of_frames() -> Seeds:
    for script, kind in c.SCENARIOS:
        said = c.play(script, kind).said
        yield script.__name__, b"\x03\x11" + b"".join(data for _, data in said)[8:]


def of_session() -> Seeds:
    for script, kind in c.SCENARIOS:
        said = c.play(script, kind).said
        for role in Role:
            heard = b"".join(data for who, data in said if who is role.other)
            first = (kind is StreamMachine) | (role is Role.CLIENT) << 1 | 8 | (kind is c.KeyedMachine) << 6
            yield f"{script.__name__}-to-{role.value}", bytes([first]) + heard


EXAMPLES: list[msgspec.Struct] = [
    c.HELLO, c.READY, c.OPEN, Ok(1, msgspec.Raw(encode(c.Answer("x")))), Listen(1, "tcp:0", c.LEASE),
    Granted(1, ("tcp:127.0.0.1:4000", "tcp:[::1]:4000")), Incoming(1, c.TICKET, NetworkNeighbour("::1", 80)),
    Fetch(1, c.TICKET), Deny("no", "hint", 13, id=1, ticket=c.TICKET), Connect("tcp:80"),
    copying.Request(copying.Put(b"/srv", 1)), copying.Request(copying.Get([b"/etc/x", b"y"])),
    copying.Request(copying.Look("list", b"/")), copying.Resolved(b"/srv"),
    copying.Wants([copying.Want(1, [copying.Range(0, 5)])]), copying.Progress(5, 1, 5),
    copying.Removed([(b"a/b", None), (b"c", copying.Failure(17, 13, "no"))]), copying.Chunk(1, 0, 5, 77),
    copying.Hole(1, 5, 9), copying.Finish(1, bytes(16)), copying.GiveUp(1, copying.Failure(13, 5, "broken")),
]  # fmt: skip


def of_payloads() -> Seeds:
    for number, example in enumerate(EXAMPLES):
        index = PAYLOADS.index(type(example))
        yield f"{type(example).__name__.lower()}-{number}", bytes([index]) + encode(example)


def _open(mode: str, arguments: msgspec.Struct, *body: bytes) -> bytes:
    request = Open(c.TOKEN, mode, (1,), msgspec.Raw(encode(arguments)))
    return CLIENT_PREFACE + pack(F.OPEN, encode(request)) + b"".join(body)


DATA, END, RESET = pack(F.DATA, b"some bytes"), pack(F.END), pack(F.RESET, code=11)


def of_agent() -> Seeds:
    listen = pack(F.LISTEN, encode(Listen(1, "tcp:0", c.LEASE)))
    deny = pack(F.DENY, encode(Deny(id=1)), 7)
    bye = pack(F.BYE, code=21)
    forward = _open("forward", Connect("tcp:x:1"), DATA, END)
    yield "ping-bye", pack(F.PING, b"1") + bye
    yield "forward", SEPARATOR + forward
    yield "forward-reset", SEPARATOR + _open("forward", Connect("unix:/x"), DATA, RESET) + SEPARATOR + forward
    yield "listen-deny", listen + deny + bye
    yield "listen-twice", listen + listen
    yield "fetch", listen + SEPARATOR + _open(LISTEN, Fetch(1, c.TICKET), DATA, END)
    yield "take-over", listen + pack(F.LISTEN, encode(Listen(2, "tcp:0", c.LEASE)))
    yield "no-mode", SEPARATOR + _open("copy", Connect("x"))
    yield "strangers", SEPARATOR.join([b"", b"GET / HTTP/1.1\r\n\r\n", CLIENT_PREFACE, b"SSH-2.0-x\r\n", b"\x16\x03"])
    yield "another-hello", SEPARATOR + CLIENT_PREFACE + pack(F.HELLO, encode(c.HELLO))


def of_client() -> Seeds:
    ready = encode({"version": 1, "token": c.TOKEN, "modes": {"forward": [1], "listen": [1]}, "seen_as": "uid 0"})
    welcome = AGENT_PREFACE + pack(F.HELLO, encode(c.HELLO)) + pack(F.READY, ready)
    ok = AGENT_PREFACE + pack(F.OK, encode(Ok(1)))
    granted = pack(F.LISTEN, encode(Granted(0, ("tcp:127.0.0.1:1",))))
    incoming = pack(F.INCOMING, encode(Incoming(0, c.TICKET, NetworkNeighbour("::1", 80))))
    yield "forward", SEPARATOR.join([welcome + pack(F.PONG, b"0"), ok + DATA + END])
    yield "reset", SEPARATOR.join([welcome, ok + DATA + RESET])
    yield "listen", SEPARATOR.join([welcome + pack(F.PONG, b"0") + granted + incoming, ok + END, ok + DATA + END])
    yield "listen-denied", SEPARATOR.join([welcome + pack(F.DENY, encode(Deny(id=0)), 16), ok + END])
    yield "gone", SEPARATOR.join([welcome, AGENT_PREFACE + pack(F.ERROR, code=19), welcome, ok + END])
    yield "refused", AGENT_PREFACE + pack(F.ERROR, encode(Deny("no", id=1)), 4)
    yield "stranger", b"HTTP/1.1 400 Bad Request\r\n\r\n"
    yield "bye", welcome + pack(F.BYE, code=21)


# --- copies, as an agent and a client make them


class _Told(bytearray):
    """A pipe's bytes, and all that ever went in."""

    def __init__(self) -> None:
        super().__init__()
        self.all = b""

    def __iadd__(self, data: object) -> _Told:  # type: ignore[override,misc]
        self.all += bytes(data)  # type: ignore[call-overload]
        super().__iadd__(data)  # type: ignore[arg-type]
        return self


class _Recorded(MemoryTransport):
    """Keeps what both sides of every connection said."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[tuple[_Told, _Told]] = []

    async def connect(self, address: Address, *, privileged: bool = False) -> Stream:  # type: ignore[override]
        stream = await super().connect(address, privileged=privileged)  # type: ignore[arg-type]
        assert isinstance(stream, MemoryStream)
        asks, answers = stream._sending, stream._receiving
        asks.bytes, answers.bytes = _Told(), _Told()
        self.said.append((asks.bytes, answers.bytes))
        return stream


def _body(said: bytes) -> bytes:
    """What stands behind the preface and OPEN or OK."""
    return said[8 + HEADER.size + HEADER.unpack_from(said, 8)[3] :]


async def _copies(folder: Path) -> list[tuple[str, bytes, bytes]]:
    """Copies of a small tree: what was done, what the sender said, what the receiver did."""
    make_tree(str(folder))
    (folder / "tree" / "link").symlink_to("small")
    os.link(folder / "tree" / "small", folder / "tree" / "other")
    (folder / "stands").mkdir()
    network = _Recorded()
    engine = Engine(Network({"memory": network}))
    agent = Agent(engine, {"copy": COPY}, Policy(os.geteuid()))
    found = []

    async def one(name: str, sends: bool, target: Target, options: Options) -> None:
        if sends:
            await target.put([folder / "tree"], folder / name, options)
        else:
            await target.get([folder / "tree"], folder / name, options)
        asks, answers = (_body(each.all) for each in network.said[-1])
        found.append((name, asks, answers) if sends else (name, answers, asks))

    async with trio.open_nursery() as nursery:
        listeners = await engine.network.listen(parse("memory:agent"))
        nursery.start_soon(serve_listeners, listeners, agent.handle, ignore)
        async with open_target("memory:agent", engine=engine) as target:
            await one("put", True, target, Options(recursive=True))
            await one("get", False, target, Options(recursive=True))
            await one("put", True, target, Options(recursive=True, plain=True, update=True))
            os.truncate(folder / "put" / "large", 140_000)
            await one("put", True, target, Options(recursive=True, plain=True, delta=True, delete=True))
            await one("get", False, target, Options(recursive=True, hard_links=True, owner=True, xattrs=True))
        nursery.cancel_scope.cancel()
    return found


def _recorded() -> list[tuple[str, bytes, bytes]]:
    with tempfile.TemporaryDirectory() as folder:
        return trio.run(_copies, Path(folder))


def of_copy_receiver() -> Seeds:
    for number, (name, sender, _) in enumerate(_recorded()):
        yield f"{name}-{number}", bytes([number]) + sender
    small = copying.Small(b"file", 0o644, 1, b"x", copying.digest_of(b"x"))
    for number, entries in enumerate(
        (
            [small, copying.Symlink(b"link", 0, b"file"), copying.HardLink(b"more", 1)],
            [copying.Enter(b"d", 0o700, 1), small, copying.Leave()],
            [copying.Large(b"large", 0o644, 1, 5)],
        )
    ):
        yield f"entries-{number}", b"\x02" + pack(64, encode(copying.Entries(1, list(entries)))) + END
    piece = pack(65, encode(copying.Chunk(1, 0, 5, copying.checksum(b"abcde")))) + pack(F.DATA, b"abcde")
    whole = copying.FileDigest()
    whole.update(b"abcde")
    announced = pack(64, encode(copying.Entries(1, [copying.Large(b"large", 0o644, 1, 5)])))
    yield "large", b"\x03" + announced + piece + pack(67, encode(copying.Finish(1, whole.digest()))) + END


def of_copy_sender() -> Seeds:
    for number, (name, _, receiver) in enumerate(_recorded()):
        yield f"{name}-{number}", receiver


def of_datagrams() -> Seeds:
    record = dgram.record
    opens = pack(dgram.OPEN, record(1, b"127.0.0.1:5") + record(2, b"unix"))
    data = pack(dgram.DATAGRAMS, record(1, b"hello") + record(1, b"") + record(2, b"hello") + record(9, b"lost"))
    close = pack(dgram.CLOSE, record(1, b"idle"))
    drops = pack(dgram.DROPS, record(1, dgram.COUNT.pack(5)) + record(99, dgram.COUNT.pack(1)))
    yield "far", b"\x01" + opens + data + close + drops + END
    yield "near", b"\x02" + data + close + drops + END
    yield "flood", b"\x01" + pack(dgram.OPEN, b"".join(record(n, b"s") for n in range(9))) + data * 3 + RESET


# --- texts and headers


def of_address() -> Seeds:
    found = re.findall(r"`((?:[a-z-]+:)[^`\s]+)`", (ROOT / "README.md").read_text())
    more = ["3", "-", "[::1]:80", "accept:vsock:3,trust=machine", "unix:/a%2Cb,mode=0600", "tcp:*:1,connect-timeout=1"]
    for number, text in enumerate(dict.fromkeys([*found, *more])):
        yield f"{number:02}", text.encode()


def of_config() -> Seeds:
    pages = "".join((ROOT / "docs" / page).read_text() for page in ("forwarding.md", "datagrams.md"))
    for number, text in enumerate(re.findall(r"```toml\n(.*?)```", pages, re.DOTALL)):
        yield f"{number:02}", text.encode()

    yield "keys", b"# ours\nvsockfwd-key-1 me " + base64.b64encode(bytes(32)) + b" # mine\n"
    serve = '[serve]\nroot = "/srv"\n[[serve.allow]]\nkey = "me"\nconnect = ["tcp:127.0.0.1:80"]\n'
    yield "serve", serve.encode()


def of_grammar() -> Seeds:
    page = (ROOT / "docs/socat.md").read_text()
    found = [word for word in re.findall(r"[A-Z0-9-]+[:,][^\s`|]+", page) if len(word) < 100]
    for number, text in enumerate([*dict.fromkeys(found)][::8]):
        yield f"{number:02}", text.encode()
    yield "quotes", rb"EXEC:'a b',pty!!SYSTEM:{x;\"y\"}(z"


def of_proxy() -> Seeds:
    peers = [NetworkPeer("127.0.0.1", 5), NetworkPeer("::1", 5), UnixPeer(0, 1, 2), VsockPeer(3, 4), GuestPeer(b"/x")]
    for number, peer in enumerate([*peers, OwnPeer("this")]):
        yield f"v2-{number}", header(peer)
    yield "v1", b"PROXY TCP4 127.0.0.1 127.0.0.2 5 6\r\n"
    yield "v1-unknown", b"PROXY UNKNOWN\r\n"


def of_socks_5() -> Seeds:
    for name, where in {
        "ip4": b"\x01\x7f\0\0\x01",
        "name": b"\x03\x04host",
        "ip6": b"\x04" + bytes(15) + b"\x01",
    }.items():
        yield name, b"\x05" + b"\x05\x01\0" + b"\x05\x01\0" + where + b"\0\x50early"


def of_socks_4() -> Seeds:
    yield "ip4", b"\x05" + b"\x04\x01\0\x50\x7f\0\0\x01me\0early"
    yield "name", b"\x3f" + b"\x04\x01\0\x50\0\0\0\x01me\0host\0early"


def of_http() -> Seeds:
    yield "connect", b"\x3fCONNECT host:80 HTTP/1.1\r\nHost: host:80\r\n\r\nearly"
    yield "ip6", b"\x05CONNECT [::1]:80 HTTP/1.0\r\n\r\n"
    yield "get", b"\x1eGET http://host/ HTTP/1.1\r\nHost: host\r\n\r\n"


SEEDS = {name[3:]: make for name, make in list(globals().items()) if name.startswith("of_")}


def main() -> int:
    """Write every target's seeds; what was found stays."""
    for target, make in SEEDS.items():
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            if not old.name.startswith("found-"):
                old.unlink()
        for name, data in make():
            with contextlib.suppress(FileExistsError):
                (folder / name).write_bytes(data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
