"""`vsockfwd relay`, pair by pair, against socat: the same words for both programs.

    python -m bench.relay [ROUNDS [PAIR …]]

1 GiB through most pairs, round trips of one datagram for UDP; and how long a `relay -` takes from its start to its
first byte. A pair's name has the side that listens first, and an arrow that points the way that the bytes go. With
names of pairs, these alone. The raw relay against others than socat is bench/streams.py's and bench/requests.py's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.harness import Table, accepts, free_port, running, setting, version, vsockfwd

HEADER = 64
"""Bytes that a client begins with: what it wants of a source."""


@contextlib.contextmanager
def source(where: str | int) -> Iterator[None]:
    """A server on a UNIX socket or a TCP port, in a process of its own, that does what a client's first HEADER bytes
    say: send so many bytes, or take so many and say when it has them."""
    if isinstance(where, str):
        listen, ready = f"s=socket.socket(socket.AF_UNIX);s.bind({where!r})", Path(where).exists
    else:
        listen = f"s=socket.socket();s.setsockopt(1,2,1);s.bind(('127.0.0.1',{where}))"
        ready = accepts(socket.AF_INET, ("127.0.0.1", where))
    code = (
        "import socket,sys,threading\n"
        f"{listen};s.listen(64)\n"
        "block=bytes(1<<20)\n"
        "def serve(c):\n"
        " word,_,n=c.recv(64,socket.MSG_WAITALL).partition(b' ')\n"
        " n=int(n or 0); room=bytearray(1<<20)\n"
        " while word==b'send' and n>0: n-=c.send(block[:n])\n"
        " while word==b'take' and n>0 and (got:=c.recv_into(room)): n-=got\n"
        " if word==b'take' and not n: c.send(b'k')\n"
        " c.close()\n"
        "while True: threading.Thread(target=serve,args=(s.accept()[0],),daemon=True).start()\n"
    )
    with running([sys.executable, "-c", code], ready=ready):
        yield


def header(word: str, size: int) -> bytes:
    """The HEADER bytes that ask a source to `send` or to `take`."""
    return f"{word} {size}".encode().ljust(HEADER)


def store(family: int, address: object, size: int) -> float:
    """Seconds to send `size` bytes to a source, which has them all then."""
    block = bytes(1 << 20)
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.connect(address)  # type: ignore[arg-type]
        began = time.monotonic()
        sock.send(header("take", size))
        for at in range(0, size, len(block)):
            sock.sendall(block[: size - at])
        if not sock.recv(1):
            raise RuntimeError("cut off")
        return time.monotonic() - began


def fetch(family: int, address: object, size: int) -> float:
    """Seconds to receive `size` bytes from a source."""
    buffer = bytearray(1 << 20)
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.connect(address)  # type: ignore[arg-type]
        began = time.monotonic()
        sock.send(header("send", size))
        got = 0
        while got < size:
            count = sock.recv_into(buffer)
            if not count:
                raise RuntimeError(f"cut off after {got} bytes")
            got += count
        return time.monotonic() - began


# --- socat's words ------------------------------------------------------------------------------------------------

RELAY = "vsockfwd relay"
UDP = "UDP → UDP, round trips of one datagram of 1,000 bytes"
FIRST = "The first byte of a `relay -`, from the command on"
GIB = 1 << 30
Words = list[str]
RELAYS: dict[str, Callable[[Words], Words]] = {
    RELAY: lambda words: vsockfwd("relay", *words),
    "socat": lambda words: ["socat", *words],
    "socat -b1048576": lambda words: ["socat", "-b1048576", *words],
}


@dataclass(frozen=True)
class Site:
    """What pairs are made of: where servers are and what is to be copied."""

    folder: Path
    unix: str
    tcp: int
    keys: Path

    def new(self, name: str) -> str:
        path = self.folder / name
        path.unlink(missing_ok=True)
        return str(path)


Case = Callable[[Site, Callable[[Words], Words]], tuple[float, float]]
"""One measurement: seconds for GIB bytes, and CPU seconds of the relay."""


def through(
    listen: Callable[[Site, int], str], move: Callable[[int, object, int], float], dial: Callable[[Site], str]
) -> Case:
    """A client of a listening address that stores or fetches, a source behind the other."""

    def measure(site: Site, relay: Callable[[Words], Words]) -> tuple[float, float]:
        port = free_port()
        first = listen(site, port)
        family, address = _client_of(first, port)
        with running(relay([first + ",fork", dial(site)]), ready=accepts(family, address)) as started:
            move(family, address, 16 << 20)
            before = started.cpu_seconds()
            seconds = move(family, address, GIB)
            time.sleep(0.1)
            return seconds, started.cpu_seconds() - before

    return measure


def _client_of(address: str, port: int) -> tuple[int, object]:
    if address.startswith("UNIX"):
        return socket.AF_UNIX, address.partition(":")[2]
    return socket.AF_INET, ("127.0.0.1", port)


def _tcp(site: Site, port: int) -> str:
    return f"TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr"


def _unix(site: Site, port: int) -> str:
    return "UNIX-LISTEN:" + site.new(f"near-{port}")


def tls(site: Site, relay: Callable[[Words], Words]) -> tuple[float, float]:
    """TLS between two relays of a kind, since a client of its own would be the slowest of the three."""
    near, far = free_port(), free_port()
    server = f"OPENSSL-LISTEN:{far},bind=127.0.0.1,reuseaddr,fork,verify=0,cert={site.keys}"
    size = GIB // 4
    with (
        running(relay([server, f"UNIX-CONNECT:{site.unix}"]), ready=accepts(socket.AF_INET, ("127.0.0.1", far))) as one,
        running(
            relay([_tcp(site, near) + ",fork", f"OPENSSL:127.0.0.1:{far},verify=0"]),
            ready=accepts(socket.AF_INET, ("127.0.0.1", near)),
        ) as two,
    ):
        address = ("127.0.0.1", near)
        fetch(socket.AF_INET, address, 4 << 20)
        before = one.cpu_seconds() + two.cpu_seconds()
        seconds = fetch(socket.AF_INET, address, size)
        time.sleep(0.1)
        return seconds * GIB / size, (one.cpu_seconds() + two.cpu_seconds() - before) * GIB / size


def to_output(words: Callable[[Site], Words], send: bytes = b"", size: int = GIB) -> Case:
    """A relay whose standard output is read to its end, start-up not counted: from the first byte on."""

    def measure(site: Site, relay: Callable[[Words], Words]) -> tuple[float, float]:
        process = subprocess.Popen(relay(words(site)), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(send)
        process.stdin.flush()
        got = len(os.read(process.stdout.fileno(), 1 << 16))
        began = time.monotonic()
        while got < size and (piece := os.read(process.stdout.fileno(), 1 << 20)):
            got += len(piece)
        seconds = time.monotonic() - began
        process.stdin.close()
        process.stdout.close()
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0
        if got < size:
            raise RuntimeError(f"cut off after {got} bytes")
        return seconds * GIB / size, (usage.ru_utime + usage.ru_stime) * GIB / size

    return measure


def copying(site: Site, relay: Callable[[Words], Words]) -> tuple[float, float]:
    """A file to another, from the first byte on."""
    source, sink = site.folder / "large", Path(site.new("copy"))
    shutil.copyfile(source, sink)  # memory that a virtual machine has not touched yet is slow for who comes first
    sink.unlink()
    process = subprocess.Popen(relay(["-u", f"OPEN:{source}", f"CREATE:{sink}"]))
    while not (sink.exists() and sink.stat().st_size):
        time.sleep(0.0005)
    began = time.monotonic()
    _, _, usage = os.wait4(process.pid, 0)
    process.returncode = 0
    seconds = time.monotonic() - began
    if sink.stat().st_size != source.stat().st_size:
        raise RuntimeError("the copy is not whole")
    sink.unlink()
    return seconds * GIB / source.stat().st_size, usage.ru_utime + usage.ru_stime


def from_input(site: Site, relay: Callable[[Words], Words]) -> tuple[float, float]:
    """A relay whose standard input is written until the source behind it has all, start-up not counted."""
    process = subprocess.Popen(
        relay(["-", f"UNIX-CONNECT:{site.unix}"]), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    assert process.stdin is not None
    assert process.stdout is not None
    block, first = bytes(1 << 20), 1 << 16
    process.stdin.write(header("take", first + GIB) + block[:first])  # more than a pipe holds: the relay has begun
    began = time.monotonic()
    for _ in range(GIB >> 20):
        process.stdin.write(block)
    if not process.stdout.read(1):
        raise RuntimeError("cut off")
    seconds = time.monotonic() - began
    process.stdin.close()
    process.stdout.close()
    _, _, usage = os.wait4(process.pid, 0)
    process.returncode = 0
    return seconds, usage.ru_utime + usage.ru_stime


def into_file(site: Site, relay: Callable[[Words], Words]) -> tuple[float, float]:
    """What a client sends to a file, until the relay has ended."""
    port, sink = free_port(), Path(site.new("copy"))
    shutil.copyfile(site.folder / "large", sink)  # as in `copying`
    sink.unlink()
    process = subprocess.Popen(relay(["-u", _tcp(site, port), f"CREATE:{sink}"]))
    with socket.socket() as sock:
        while sock.connect_ex(("127.0.0.1", port)):
            time.sleep(0.01)
        began, block = time.monotonic(), bytes(1 << 20)
        for _ in range(GIB >> 20):
            sock.sendall(block)
    _, _, usage = os.wait4(process.pid, 0)
    process.returncode = 0
    seconds = time.monotonic() - began
    if sink.stat().st_size != GIB:
        raise RuntimeError("the file is not whole")
    sink.unlink()
    return seconds, usage.ru_utime + usage.ru_stime


def _to_unix(site: Site) -> str:
    return f"UNIX-CONNECT:{site.unix}"


def _to_tcp(site: Site) -> str:
    return f"TCP:127.0.0.1:{site.tcp}"


def _to_program(site: Site) -> str:
    return f"EXEC:{sys.executable} {site.folder / 'program'}"


PAIRS: dict[str, Case] = {
    "TCP → UNIX": through(_tcp, store, _to_unix),
    "TCP ← UNIX": through(_tcp, fetch, _to_unix),
    "TCP → TCP": through(_tcp, store, _to_tcp),
    "TCP ← TCP": through(_tcp, fetch, _to_tcp),
    "UNIX → UNIX": through(_unix, store, _to_unix),
    "UNIX ← UNIX": through(_unix, fetch, _to_unix),
    "UNIX → TCP": through(_unix, store, _to_tcp),
    "UNIX ← TCP": through(_unix, fetch, _to_tcp),
    "TCP → a program": through(_tcp, store, _to_program),
    "TCP ← a program": through(_tcp, fetch, _to_program),
    "TCP → a program, pipes": through(_tcp, store, lambda site: _to_program(site) + ",pipes"),
    "TCP ← a program, pipes": through(_tcp, fetch, lambda site: _to_program(site) + ",pipes"),
    "TCP ← TLS ← UNIX": tls,
    "standard input, a pipe → UNIX": from_input,
    "standard output, a pipe ← UNIX": to_output(lambda site: ["-", _to_unix(site)], header("send", GIB)),
    "file → standard output, a pipe": to_output(lambda site: ["-u", f"OPEN:{site.folder / 'large'}", "-"]),
    "TCP → file": into_file,
    "file → file": copying,
}

_PROGRAM = (
    "import os\n"
    "word,_,n=os.read(0,64).partition(b' ')\n"
    "n=int(n or 0); b=bytearray(1<<20)\n"
    "while word==b'send' and n>0: n-=os.write(1,memoryview(b)[:n])\n"
    "while word==b'take' and n>0 and (got:=os.readv(0,[b])): n-=got\n"
    "if word==b'take' and not n: os.write(1,b'k')\n"
)


@contextlib.contextmanager
def site(folder: Path) -> Iterator[Site]:
    """Sources on a UNIX socket and a TCP port, a key, a file and a program."""
    with (folder / "large").open("wb") as file:
        for _ in range(GIB >> 20):
            file.write(bytes(1 << 20))
    (folder / "program").write_text(_PROGRAM)
    request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    names = ["-keyout", "key", "-out", "crt", "-subj", "/CN=localhost", "-days", "2"]
    subprocess.run([*request, *names], cwd=folder, check=True, capture_output=True)
    (folder / "keys.pem").write_text((folder / "crt").read_text() + (folder / "key").read_text())
    unix, port = str(folder / "pairs.sock"), free_port()
    with source(unix), source(port):
        yield Site(folder, unix, port, folder / "keys.pem")


def _in_turn(turn: int) -> list[tuple[str, Callable[[Words], Words]]]:
    """The contenders, another one first each time."""
    found = list(RELAYS.items())
    return found[turn % len(found) :] + found[: turn % len(found)]


def pairs(where: Site, rounds: int, only: Sequence[str] = ()) -> list[Table]:
    tables: list[Table] = []
    for title in only or PAIRS:
        case = PAIRS[title]
        table = Table(title, "GiB/s", RELAY)
        for turn in range(rounds):
            for name, relay in _in_turn(turn):
                seconds, cpu = case(where, relay)
                table.add(name, 1 / seconds, cpu)
        tables.append(table)
    return tables


def datagrams(rounds: int) -> Table:
    """One client's round trips through UDP-LISTEN and UDP, to an echo and back."""
    table = Table(UDP, "per second", RELAY)
    code = (
        "import socket,sys\ns=socket.socket(type=socket.SOCK_DGRAM);s.bind(('127.0.0.1',int(sys.argv[1])))\n"
        "while True: s.sendto(*s.recvfrom(65536))"
    )
    echo = free_port()
    with socket.socket(type=socket.SOCK_DGRAM) as own, contextlib.ExitStack() as stack:
        own.connect(("127.0.0.1", echo))
        stack.enter_context(running([sys.executable, "-c", code, str(echo)], ready=_echoes(own)))
        for turn in range(rounds):
            for name, relay in _in_turn(turn):
                port = free_port()
                # Without fork: a child of socat's would outlive what started it.
                words = [f"UDP-LISTEN:{port},bind=127.0.0.1", f"UDP:127.0.0.1:{echo}"]
                with socket.socket(type=socket.SOCK_DGRAM) as sock:
                    sock.connect(("127.0.0.1", port))
                    with running(relay(words), ready=_echoes(sock)):
                        table.add(name, _round_trips(sock))
    return table


def _echoes(sock: socket.socket) -> Callable[[], bool]:
    """Whether what is sent comes back."""

    def ready() -> bool:
        sock.settimeout(0.2)
        try:
            sock.send(b"?")
            return bool(sock.recv(10))
        except OSError:
            return False

    return ready


def _round_trips(sock: socket.socket, seconds: float = 2.0) -> float:
    sock.settimeout(5)
    count, data, began = 0, bytes(1000), time.monotonic()
    while time.monotonic() < began + seconds:
        sock.send(data)
        while len(sock.recv(2000)) < len(data):
            pass  # a question of before comes back late
        count += 1
    return count / (time.monotonic() - began)


def first_byte(where: Site, rounds: int) -> str:
    """Seconds from the start of a `relay - …` to the first byte that it passes on."""
    lines = [
        f"### {FIRST}",
        "",
        "| | s: median | min – max |",
        "|---|---|---|",
    ]
    seconds: dict[str, list[float]] = {name: [] for name in RELAYS}
    for _ in range(3 * rounds):
        for name, relay in RELAYS.items():
            began = time.monotonic()
            process = subprocess.Popen(
                relay(["-", f"UNIX-CONNECT:{where.unix}"]), stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            out, _ = process.communicate(header("send", 1))
            if len(out) != 1:
                raise RuntimeError("no byte came")
            seconds[name].append(time.monotonic() - began)
    for name, values in seconds.items():
        lines.append(f"| {name} | {statistics.median(values):.3f} | {min(values):.3f} – {max(values):.3f} |")
    return "\n".join(lines) + "\n"


def main(rounds: int = 5, only: Sequence[str] = ()) -> str:
    """All pairs, or some of them, UDP and FIRST among those; returns Markdown."""
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # a disk would be what is measured
    with tempfile.TemporaryDirectory(prefix="vsockfwd-bench-", dir=memory) as name, site(Path(name)) as where:
        streams = [title for title in only if title in PAIRS]
        parts = [table.markdown() for table in pairs(where, rounds, streams)] if streams or not only else []
        if not only or UDP in only:
            parts.append(datagrams(rounds).markdown())
        if not only or FIRST in only:
            parts.append(first_byte(where, rounds))
        text = "\n".join(parts)
    return f"## `vsockfwd relay`, pair by pair\n\n{setting()}. {version('socat', '-V')}.\n\n{text}"


if __name__ == "__main__":
    print(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5, sys.argv[2:]))
