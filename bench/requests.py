"""Connections and requests a second, and how long a byte takes there and back.

Requests are wrk's, answered with a short page by one nginx worker on a UNIX socket behind the contenders.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import peers, traffic
from bench.copy import ssh_server
from bench.harness import accepts, free_port, running
from bench.peers import DIRECT_TCP, DIRECT_UNIX, Near, Way, Ways
from bench.results import Figures, Key, percentile
from bench.traffic import dial

SECONDS = 1
RATE = "a second"
CPU = "CPU µs each"
CONNECTIONS = "new connections, 32 at a time"
ONE = "keep-alive, 1 client"
MANY = "keep-alive, 64 clients"
PERCENTILES = (50, 90, 99, 99.9)
ROUND_TRIPS = 1.0
"""Seconds of round trips."""


@contextlib.contextmanager
def nginx(folder: Path) -> Iterator[tuple[str, int]]:
    """One worker on a UNIX socket and a TCP port: (path, port). Idle connections are kept for an hour."""
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    path, port = f"{folder}/nginx.sock", free_port()
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log /dev/null; user root;\n"
        "events { worker_connections 16384; }\n"
        "http { access_log off; keepalive_requests 100000000; keepalive_timeout 1h; client_header_timeout 1h;\n"
        f" server {{ listen unix:{path} backlog=4096; listen 127.0.0.1:{port} backlog=4096;\n"
        "  location / { return 200 'hello\\n'; } } }\n"
    )
    with running([program, "-c", str(config), "-p", str(folder)], ready=accepts(socket.AF_UNIX, path)):
        yield path, port


@dataclass(frozen=True, slots=True)
class Asked:
    """What wrk had answered."""

    rate: float
    cpu: float
    """Seconds of the relay for each."""


def wrk(way: Way, clients: int, *, close: bool = False, seconds: int = SECONDS) -> Asked:
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", *(["-H", "Connection: close"] if close else [])]
    before = way.cpu_seconds()
    done = subprocess.run([*command, f"http://127.0.0.1:{way.place}/"], capture_output=True, text=True, check=True)
    used = way.cpu_seconds() - before
    count, rate = re.search(r"(\d+) requests in", done.stdout), re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    if not count or not rate or not int(count[1]):
        raise RuntimeError(done.stdout)
    return Asked(float(rate[1]), used / int(count[1]))


def _asked(figures: Figures, ways: Ways, ours: str, rounds: int, prefix: str) -> None:
    with peers.standing(ways) as ready:
        for way in ready.values():
            wrk(way, 8, seconds=1)  # the first ones pay for what is imported late
        for turn in range(rounds):
            for title, clients, close in ((CONNECTIONS, 32, True), (ONE, 1, False), (MANY, 64, False)):
                subject = prefix + title
                figures.ours[subject] = ours
                for name, way in peers.in_turn(ready, turn):
                    with peers.asked(subject, name, way):
                        asked = wrk(way, clients, close=close)
                    figures.add(Key(subject, RATE, name), asked.rate)
                    if way.started:
                        figures.add(Key(subject, CPU, name), 1e6 * asked.cpu)


def raw(folder: Path, rounds: int) -> Figures:
    figures = Figures()
    with nginx(folder) as (path, port):
        ways = peers.raw(Near(folder).tcp, folder, path) | {DIRECT_TCP: peers.direct(port)}
        _asked(figures, ways, peers.OURS, rounds, "TCP → UNIX, ")
    return figures


def hops(folder: Path, rounds: int) -> Figures:
    figures = Figures()
    with nginx(folder) as (path, port), ssh_server(folder) as sshd:
        ways = peers.hops(Near(folder), path, sshd) | {DIRECT_TCP: peers.direct(port)}
        _asked(figures, ways, peers.OUR_HOPS, rounds, "two hops, ")
    return figures


def latency(folder: Path, rounds: int) -> Figures:
    """Percentiles of the round trip of one byte, one at a time."""
    figures = Figures()
    port, path, near = free_port(), f"{folder}/server.sock", Near(folder)
    with traffic.server(port, path), ssh_server(folder) as sshd:
        straight = {DIRECT_TCP: peers.direct(port), DIRECT_UNIX: peers.direct(path)}
        for subject, ways, ours in (
            ("TCP → UNIX, a byte there and back", peers.raw(near.tcp, folder, path) | straight, peers.OURS),
            ("two hops, a byte there and back", peers.hops(near, path, sshd) | straight, peers.OUR_HOPS),
        ):
            figures.ours[subject] = ours
            with peers.standing(ways) as ready:
                for turn in range(rounds):
                    for name, way in peers.in_turn(ready, turn):
                        with peers.asked(subject, name, way), dial(way.place) as sock:
                            took = traffic.round_trips(sock, ROUND_TRIPS)
                        for percent in PERCENTILES:
                            figures.add(Key(subject, "µs", name, percent), percentile(took, percent) / 1000)
    return figures
