"""`vsockfwd demo`: the main jobs on this machine alone, with real input, in under a minute.

It does what a user would do: it starts the command line in processes of their own, talks to them through sockets with
programs that know nothing of vsockfwd (an HTTP server and client, plain UDP sockets), and compares what arrived by
digests of the files themselves. AF_VSOCK loopback is used where the kernel has it, a UNIX socket where not.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash

from vsockfwd.plugin import DataError, Invocation, TimedOut, VsockfwdError, package_of, why_no_loopback

LARGE = 1 << 30
"""Bytes of the large file, where the disk has room."""

SMALL_FILES = 1000
DATAGRAMS = 2000
START_DEADLINE = 20.0


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the closing table."""

    job: str
    moved: str
    rate: str
    verified: str


class Demo:
    """The tour: a folder of its own, the processes it started, the rows it has so far."""

    def __init__(self, folder: Path, quiet: bool) -> None:
        self.folder = folder
        self.quiet = quiet
        self.rows: list[Row] = []
        self.processes: list[subprocess.Popen[str]] = []
        self.over_vsock = why_no_loopback() is None
        self.agent = "vsock:local:40876" if self.over_vsock else f"unix:{folder}/agent.sock"

    def say(self, text: str) -> None:
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    # --- processes

    def start(self, *words: str) -> list[str]:
        """Start a command of ours that listens; returns the addresses it listens on."""
        self.say(f"  $ vsockfwd {' '.join(words)}")
        process = subprocess.Popen(
            [sys.executable, "-m", "vsockfwd", *words, "--json"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.processes.append(process)
        assert process.stdout is not None
        watchdog = threading.Timer(START_DEADLINE, process.kill)
        watchdog.start()
        try:
            for line in process.stdout:
                event = json.loads(line)
                if event["event"] == "listening":
                    threading.Thread(target=_swallow, args=(process.stdout,), daemon=True).start()
                    return [event["address"]]
        finally:
            watchdog.cancel()
        process.wait()
        assert process.stderr is not None
        raise DataError(f"demo: {' '.join(words)} did not start: {process.stderr.read().strip()}")

    def run(self, *words: str) -> None:
        """Run a command of ours to its end."""
        self.say(f"  $ vsockfwd {' '.join(words)}")
        done = subprocess.run(
            [sys.executable, "-m", "vsockfwd", *words, "-q"], stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if done.returncode:
            raise DataError(f"demo: vsockfwd {' '.join(words)} ended with {done.returncode}: {done.stderr.strip()}")

    def stop(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()

    # --- the jobs

    def job(
        self, title: str, size: int, unit: str, work: Callable[[], bool], check: Callable[[], bool] | None = None
    ) -> None:
        """Time a job, start-up included, and note its row. `work` and `check`, off the clock, say if all is right."""
        began = time.monotonic()
        same = work()
        seconds = time.monotonic() - began
        same = same and (check is None or check())
        moved = f"{size / (1 << 20):.0f} MiB" if unit == "bytes" else f"{size:,} {unit}"
        rate = f"{size / seconds / (1 << 20):,.0f} MiB/s" if unit == "bytes" else f"{size / seconds:,.0f} {unit}/s"
        self.rows.append(Row(title, moved, rate, "yes" if same else "NO"))

    def forward(self, large: Path, digest: str) -> None:
        self.say("A TCP port forwarded through the agent to an HTTP server:")
        with _http_server(large.parent) as port:
            (listening,) = self.start("forward", "-L", f"0:127.0.0.1:{port}", self.agent)
            url = f"http://127.0.0.1:{listening.rpartition(':')[2]}/{large.name}"
            self.job("HTTP through forward -L", large.stat().st_size, "bytes", lambda: _fetch(url) == digest)

    def copy(self, large: Path, digest: str, tree: Path) -> None:
        self.say("A large file and a tree copied there and back:")
        there, back = self.folder / "there", self.folder / "back"
        there.mkdir()
        back.mkdir()

        def copy(*words: str) -> Callable[[], bool]:
            def work() -> bool:
                self.run("cp", *words)
                return True

            return work

        def same_large(folder: Path) -> Callable[[], bool]:
            return lambda: _digest(folder / large.name) == digest

        def same_tree(folder: Path) -> Callable[[], bool]:
            return lambda: _digests(folder / tree.name) == _digests(tree)

        far, size = f"[{self.agent}]:{there}", large.stat().st_size
        self.job("cp, one file, there", size, "bytes", copy(str(large), f"{far}/"), same_large(there))
        self.job("cp, one file, back", size, "bytes", copy(f"{far}/{large.name}", f"{back}/"), same_large(back))
        self.job("cp -r, there", SMALL_FILES, "files", copy("-r", str(tree), f"{far}/"), same_tree(there))
        self.job("cp -r, back", SMALL_FILES, "files", copy("-r", f"{far}/{tree.name}", f"{back}/"), same_tree(back))

    def relay(self) -> None:
        self.say("A relay in socat's words:")
        size = 64 << 20
        with _echo_server() as port:
            path = self.folder / "relay.sock"
            words = ("relay", f"UNIX-LISTEN:{path},fork", f"TCP:127.0.0.1:{port}")
            self.say(f"  $ vsockfwd {' '.join(words)}")
            process = subprocess.Popen(
                [sys.executable, "-m", "vsockfwd", *words], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            self.processes.append(process)
            _wait_for(path.exists, "the relay")
            self.job("relay UNIX → TCP → back", size, "bytes", lambda: _echoes(path, size))

    def datagrams(self) -> None:
        self.say("UDP datagrams through the agent:")
        with _udp_echo() as port:
            (listening,) = self.start("dgram", "-L", f"0:127.0.0.1:{port}", self.agent)
            udp = int(listening.rpartition(":")[2])
            self.job("UDP there and back", DATAGRAMS, "datagrams", lambda: _datagrams_echo(udp))

    def tour(self) -> None:
        if self.over_vsock:
            self.say("The kernel has vsock loopback: the agent listens on AF_VSOCK (CID 1).")
            self.start("serve", "--listen", self.agent, "--allow-cid", "local")
        else:
            self.say(f"No AF_VSOCK here ({why_no_loopback()}): the agent listens on a UNIX socket instead.")
            self.start("serve", "--listen", self.agent)
        size = _size_for(self.folder)
        if size < LARGE:
            self.say(f"The disk has no room for 1 GiB three times over: the large file has {size >> 20} MiB.")
        source = self.folder / "source"
        source.mkdir()
        large = _make_large(source / "large", size)
        tree = _make_tree(self.folder / "tree")
        digest = _digest(large)
        self.forward(large, digest)
        self.copy(large, digest, tree)
        self.relay()
        self.datagrams()


def demo(invocation: Invocation) -> int:
    """Show the main jobs on this machine alone, in under a minute: forward, copy, relay, datagrams."""
    for mode in ("copy", "relay", "dgram"):
        if mode not in invocation.modes():
            raise VsockfwdError(f"demo: the mode {mode!r} is not installed", hint=f"pip install {package_of(mode)}")
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="vsockfwd-demo-", dir=_roomy()))
    tour = Demo(folder, invocation.json)
    try:
        tour.tour()
    finally:
        tour.stop()
        shutil.rmtree(folder, ignore_errors=True)
    over = "AF_VSOCK loopback" if tour.over_vsock else "a UNIX socket"
    if invocation.json:
        invocation.answer("demo", over=over, jobs=tour.rows)
    else:
        _print_table(tour.rows)
        seconds = time.monotonic() - began
        print(f"\nOver {over}, in {seconds:.0f} s. Two processes of ours on each way; nothing is left behind.")
    return 0 if all(row.verified == "yes" for row in tour.rows) else 1


def _print_table(rows: list[Row]) -> None:
    table = [Row("job", "moved", "rate", "verified"), *rows]
    widths = [max(len(getattr(row, name)) for row in table) for name in Row.__slots__]
    print()
    for number, row in enumerate(table):
        job, moved, rate, verified = (getattr(row, name) for name in Row.__slots__)
        print(f"{job:<{widths[0]}}  {moved:>{widths[1]}}  {rate:>{widths[2]}}  {verified}")
        if not number:
            print("  ".join("-" * width for width in widths))


# --- real input, and what is compared


def _roomy() -> str | None:
    """A place for a few GiB: /dev/shm where it has room (disks differ, the tool is to be seen), else the usual one."""
    shm = Path("/dev/shm")
    if os.access(shm, os.W_OK) and shutil.disk_usage(shm).free > 4 * LARGE and _free_memory() > 6 * LARGE:
        return str(shm)
    return None


def _free_memory() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _size_for(folder: Path) -> int:
    """The large file stands in three places at once; some room stays for others."""
    room = (shutil.disk_usage(folder).free - (256 << 20)) // 3
    return max(1 << 20, min(LARGE, room >> 20 << 20))


def _make_large(path: Path, size: int) -> Path:
    """Bytes that do not repeat from one mebibyte to the next."""
    block = bytearray(random.Random(1).randbytes(1 << 20))
    with path.open("wb") as file:
        for number in range(size >> 20):
            block[:8] = number.to_bytes(8, "big")
            file.write(block)
    return path


def _make_tree(path: Path) -> Path:
    chance = random.Random(2)
    for number in range(SMALL_FILES):
        folder = path / f"folder {number % 20}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file {number}").write_bytes(chance.randbytes(chance.randrange(4096)))
    return path


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = xxhash.xxh3_128()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def _digests(tree: Path) -> dict[str, str]:
    return {str(path.relative_to(tree)): _digest(path) for path in tree.rglob("*") if path.is_file()}


def _fetch(url: str) -> str:
    digest = xxhash.xxh3_128()
    with urllib.request.urlopen(url, timeout=60) as answer:
        while block := answer.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# --- programs that know nothing of vsockfwd


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def _http_server(folder: Path) -> Iterator[int]:
    def handler(*args: object) -> _Quiet:
        return _Quiet(*args, directory=str(folder))  # type: ignore[arg-type]

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@contextlib.contextmanager
def _echo_server() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=_echo, args=(server.accept()[0],), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


def _echo(sock: socket.socket) -> None:
    with sock, contextlib.suppress(OSError):
        while data := sock.recv(1 << 20):
            sock.sendall(data)


def _echoes(path: Path, size: int) -> bool:
    """Send through the relay and compare what comes back, then the end."""
    block = random.Random(3).randbytes(1 << 20)
    sent, came = xxhash.xxh3_128(), xxhash.xxh3_128()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(60)
        sock.connect(str(path))

        def send() -> None:
            for _ in range(size >> 20):
                sent.update(block)
                sock.sendall(block)
            sock.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        while data := sock.recv(1 << 20):
            came.update(data)
        sender.join()
    return sent.digest() == came.digest()


@contextlib.contextmanager
def _udp_echo() -> Iterator[int]:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    data, peer = sock.recvfrom(65535)
                    sock.sendto(data, peer)

        threading.Thread(target=serve, daemon=True).start()
        yield sock.getsockname()[1]


def _datagrams_echo(port: int) -> bool:
    """A window of 32 at a time, of every size: each must come back whole, once, unmerged."""
    chance = random.Random(4)
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", port))
        sock.settimeout(5)
        for start in range(0, DATAGRAMS, 32):
            window = {
                number.to_bytes(4, "big") + chance.randbytes(chance.randrange(1400))
                for number in range(start, min(start + 32, DATAGRAMS))
            }
            for datagram in window:
                sock.send(datagram)
            try:
                came = {sock.recv(65535) for _ in window}
            except TimeoutError:
                return False
            if came != window:
                return False
    return True


def _wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + START_DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            raise TimedOut(f"demo: {what} did not start within {START_DEADLINE:g} s")
        time.sleep(0.02)


def _swallow(pipe: Iterator[str]) -> None:
    """Read what a process says on, so that it never waits for us."""
    with contextlib.suppress(ValueError, OSError):
        for _ in pipe:
            pass
