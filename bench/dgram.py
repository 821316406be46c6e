"""Datagrams through both hops (UDP → stream → UDP) against socat's one hop (UDP → UDP), which has no stream to cross.

    python -m bench.dgram [ROUNDS]

Throughput: a window of datagrams is on its way at any time, so that each goes as fast as it can, and what is lost is
its own loss; one way and there and back, from sources that are known already (socat has forked for each), and there and
back from sources that are new. Paced: 60,000 a second for two seconds, where none may be lost. Delay: at a tenth of
that, from the sender's clock to the kernel's note of the arrival, beside the same without a tunnel.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.datagrams import BATCH, Answered, Receiver, Run, Sender, endpoint, introduced, paced, windowed
from bench.harness import Table, accepts, free_port, running, setting, version, vsockfwd

OURS = "vsockfwd dgram -L"
RAW = "vsockfwd dgram, SEQPACKET"
LISTEN = "socat UDP-LISTEN,fork"
RECEIVE = "socat UDP-RECVFROM,fork"
DIRECT = "direct, no tunnel"

RATE = 60_000
"""Datagrams a second that must pass without loss."""

IPERF_RATE = RATE // 10
"""Datagrams a second at which iperf3 is to lose none on a machine that does something else beside."""

WINDOW = 256


def free_udp_port() -> int:
    with endpoint() as sock:
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def until_said(command: list[str], words: bytes) -> Iterator[None]:
    """Run a command that prints these words when it is ready."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    try:
        heard, deadline = b"", time.monotonic() + 15
        while words not in heard:
            if not select.select([process.stdout], [], [], deadline - time.monotonic())[0]:
                raise RuntimeError(f"did not start: {command}")
            piece = os.read(process.stdout.fileno(), 4096)
            if not piece:
                raise RuntimeError(f"ended: {command}")
            heard += piece
        with subprocess.Popen(["cat"], stdin=process.stdout, stdout=subprocess.DEVNULL):  # its reports go on
            try:
                yield
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(10)
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def ours(folder: Path, port: int, to: int) -> Iterator[None]:
    agent = f"{folder}/agent-{port}.sock"
    serve = vsockfwd("serve", "-q", "--listen", f"unix:{agent}")
    with running(serve, ready=accepts(socket.AF_UNIX, agent)):
        words = ("dgram", "--json", "--flows", "2000", "-L", f"127.0.0.1:{port}:127.0.0.1:{to}", f"unix:{agent}")
        with until_said(vsockfwd(*words), b'"up"'):
            yield


@contextlib.contextmanager
def raw(folder: Path, port: int, to: int) -> Iterator[None]:
    way = f"unix-seqpacket:{folder}/way-{port}"
    limit = ("dgram", "--json", "--flows", "2000")
    with until_said(vsockfwd(*limit, way, f"udp:127.0.0.1:{to}"), b'"up"'):
        with until_said(vsockfwd(*limit, f"udp:127.0.0.1:{port}", way), b'"up"'):
            yield


@contextlib.contextmanager
def socat(folder: Path, port: int, to: int, listen: str, connect: str) -> Iterator[None]:
    """socat and its children, a process group."""
    words = [f"{listen}:{port},bind=127.0.0.1,fork,reuseaddr", f"{connect}:127.0.0.1:{to}"]
    process = subprocess.Popen(["socat", *words], stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        time.sleep(0.2)  # it says nothing when it is ready
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        with contextlib.suppress(ProcessLookupError):  # a thousand children take their time to die, not the next one's
            for _ in range(1000):
                os.killpg(process.pid, 0)
                time.sleep(0.01)


@contextlib.contextmanager
def socat_listen(folder: Path, port: int, to: int) -> Iterator[None]:
    with socat(folder, port, to, "UDP-LISTEN", "UDP"):
        yield


@contextlib.contextmanager
def socat_receive(folder: Path, port: int, to: int) -> Iterator[None]:
    with socat(folder, port, to, "UDP-RECVFROM", "UDP-SENDTO"):
        yield


@dataclass(frozen=True)
class Contender:
    """How to start it, and how many datagrams it is given: what it does in about a second."""

    start: Callable[[Path, int, int], contextlib.AbstractContextManager[None]]
    count: int
    flows: bool = True
    """Whether it knows any, which can be made before the time starts."""


def contenders() -> dict[str, Contender]:
    found = {OURS: Contender(ours, 60_000), RAW: Contender(raw, 40_000)}
    if shutil.which("socat"):
        found[LISTEN] = Contender(socat_listen, 20_000)
        found[RECEIVE] = Contender(socat_receive, 600, flows=False)  # a process for each datagram
    return found


def throughput(folder: Path, rounds: int, flows: int, size: int) -> tuple[Table, dict[str, list[Run]]]:
    table = Table(f"{flows:,} flow{'s' * (flows > 1)}, {size:,} bytes", "datagrams/s", OURS)
    runs: dict[str, list[Run]] = {}
    for _ in range(rounds):
        for name, contender in contenders().items():
            receiver, port = Receiver(), free_udp_port()
            sender = Sender(port, flows, size)
            with receiver.sock, sender.sock, contender.start(folder, port, receiver.port):
                if contender.flows:
                    introduced(sender, receiver, size, flows)
                run = windowed(sender, receiver, size, contender.count, WINDOW)
            table.add(name, run.rate)
            runs.setdefault(name, []).append(run)
    return table, runs


def there_and_back(folder: Path, rounds: int, flows: int, *, new: bool) -> tuple[Table, dict[str, list[Run]]]:
    """Each datagram is answered, and counts when its source has the answer; `new`: a source asks once, and no more."""
    title = f"{flows:,} new flows, a question and its answer each" if new else f"{flows:,} flows, there and back"
    table = Table(f"{title}, 64 bytes", "answers/s", OURS)
    runs: dict[str, list[Run]] = {}
    for _ in range(rounds):
        for name, contender in contenders().items():
            sender = Sender(port := free_udp_port(), flows, 64)
            answered = Answered(sender, 64)
            with sender.sock, answered.far, contender.start(folder, port, answered.port):
                if contender.flows and not new:
                    introduced(sender, answered, 64, flows)
                count = flows if new else contender.count
                run = windowed(sender, answered, 64, min(count, contender.count), BATCH if new else WINDOW)
            table.add(name, run.rate)
            runs.setdefault(name, []).append(run)
    return table, runs


def told_losses(runs: dict[str, list[Run]]) -> str:
    told = [
        f"{name} {100 * statistics.median(run.lost / run.sent for run in of):.1f} % "
        f"(at most {max(run.lost for run in of):,} of {of[0].sent:,})"
        for name, of in runs.items()
    ]
    return "Lost, median: " + "; ".join(told) + ".\n"


def at_a_rate(folder: Path, rounds: int) -> str:
    lines = [
        "### Paced, 64 bytes",
        "",
        "| flows | datagrams/s | lost in each round | arrived/s, median |",
        "|---|---|---|---|",
    ]
    for flows in (1, 1000):
        runs = []
        for _ in range(rounds):
            receiver, port = Receiver(), free_udp_port()
            sender = Sender(port, flows, 64)
            with receiver.sock, sender.sock, ours(folder, port, receiver.port):
                windowed(sender, receiver, 64, 5 * flows, 64)
                runs.append(paced(sender, receiver, 64, RATE, 2.0))
        lost = ", ".join(str(run.lost) for run in runs)
        lines.append(f"| {flows:,} | {RATE:,} | {lost} | {statistics.median(run.rate for run in runs):,.0f} |")
    return "\n".join(lines) + "\n"


def iperf3(folder: Path, rounds: int) -> str:
    """What iperf3 itself says was lost, at RATE and at a tenth of it."""
    lines = ["### iperf3 -u, 64 bytes, two seconds", "", "| datagrams/s | lost in each round | of |", "|---|---|---|"]
    for rate in (RATE, IPERF_RATE):
        lost, packets = [], 0
        for _ in range(rounds):
            there, here = free_port(), free_port()
            agent = f"{folder}/agent-{here}.sock"
            spec = f"127.0.0.1:{here}:127.0.0.1:{there}"
            serve, server = (
                vsockfwd("serve", "-q", "--listen", f"unix:{agent}"),
                ["iperf3", "-s", "-1", "-p", str(there)],
            )
            words = ["-u", "-l", "64", "-b", str(rate * 64 * 8), "-t", "2", "-w", "4M", "-p", str(here), "--json"]
            forward = vsockfwd("forward", "--json", "-L", spec, "-L", f"{spec}/udp", f"unix:{agent}")
            with (
                running(serve, ready=accepts(socket.AF_UNIX, agent)),
                until_said(forward, b'/udp","state":"up"'),
                running(server, ready=lambda: True),
            ):
                time.sleep(0.3)  # it says nowhere when it is ready
                done = subprocess.run(["iperf3", "-c", "127.0.0.1", *words], capture_output=True, timeout=30)
            total = json.loads(done.stdout)["end"]["sum"]
            lost.append(str(total["lost_packets"]))
            packets = total["packets"]
        lines.append(f"| {rate:,} | {', '.join(lost)} | {packets:,} |")
    return "\n".join(lines) + "\n"


def delays(folder: Path, rounds: int) -> str:
    """Microseconds, at a tenth of RATE, one datagram at a time."""
    figures: dict[str, list[tuple[float, float]]] = {}
    for _ in range(rounds):
        for name, flows in ((f"{OURS}, 1 flow", 1), (f"{OURS}, 1,000 flows", 1000), (DIRECT, 1)):
            receiver, port = Receiver(stamped=True), free_udp_port()
            direct = name == DIRECT
            sender = Sender(receiver.port if direct else port, flows, 64)
            way = contextlib.nullcontext() if direct else ours(folder, port, receiver.port)
            with receiver.sock, sender.sock, way:
                sender.stamped = True
                windowed(sender, receiver, 64, 5 * flows, 64)
                receiver.delays.clear()
                paced(sender, receiver, 64, RATE / 10, 2.0, burst=1)
            each = sorted(receiver.delays)
            figures.setdefault(name, []).append(
                (each[len(each) // 2] / 1000, each[len(each) * 99 // 100] / 1000)
            )  # fmt: skip
    lines = [
        f"### Delay at {RATE // 10:,} datagrams a second, 64 bytes",
        "",
        "| | median, µs | p99, µs: median | min – max | p99 added to direct (min – max) |",
        "|---|---|---|---|---|",
    ]
    direct_p99 = [p99 for _, p99 in figures[DIRECT]]
    for name, rows in figures.items():
        p99 = [high for _, high in rows]
        added = [high - low for high, low in zip(p99, direct_p99, strict=True)]
        told = "" if name == DIRECT else f"**{statistics.median(added):,.0f}** ({min(added):,.0f} – {max(added):,.0f})"
        middle = statistics.median(mid for mid, _ in rows)
        lines.append(
            f"| {name} | {middle:,.0f} | {statistics.median(p99):,.0f} | {min(p99):,.0f} – {max(p99):,.0f} | {told} |"
        )
    return "\n".join(lines) + "\n"


def main(rounds: int = 5) -> str:
    """Run all cases; returns Markdown."""
    with tempfile.TemporaryDirectory(prefix="vsockfwd-bench-") as name:
        folder = Path(name)
        parts = []
        for flows in (1, 1000):
            for size in (64, 1400):
                table, runs = throughput(folder, rounds, flows, size)
                parts += [table.markdown(), told_losses(runs)]
        for new in (False, True):
            table, runs = there_and_back(folder, rounds, 1000, new=new)
            parts += [table.markdown(), told_losses(runs)]
        parts += [at_a_rate(folder, rounds), delays(folder, rounds)]
        if shutil.which("iperf3"):
            parts.append(iperf3(folder, rounds))
    peers = f"{version('socat', '-V')}; {version('iperf3', '-v')}"
    return f"## Datagrams\n\n{setting()}. {peers}.\n\n" + "\n".join(parts)


if __name__ == "__main__":
    print(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
