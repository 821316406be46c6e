"""What connections cost that are only there: memory, and requests of others beside them, from 1 to 10,000.

Each idle connection has asked nginx for a page, got it, and stays: so it is known to lead all the way. Contenders start
anew each round. socat forks for each, and systemd-socket-proxyd has six descriptors for each: both stop at 1,000.
"""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

from bench import peers
from bench.copy import ssh_server
from bench.harness import Memory
from bench.peers import Near, Start, Way
from bench.requests import nginx, wrk
from bench.results import Figures, Key
from bench.traffic import dial

LEVELS = (1, 10, 100, 1_000, 10_000)
CAPPED = 1_000
AT_ONCE = 64
"""Connections that are being opened at one time."""

REQUEST = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n"
CLIENTS = 8
MEMORY = "memory, by idle connections"
REQUESTS = "keep-alive, 8 clients beside idle connections"
TOTAL, EACH, RATE, CPU = "MiB PSS", "KiB RSS each", "a second", "CPU µs each"


def measure(folder: Path, rounds: int) -> Figures:
    figures = Figures()
    most = peers.most_connections() - 2 * CLIENTS
    near = Near(folder)
    with nginx(folder) as (path, _), ssh_server(folder) as sshd:
        ways = peers.raw(near.tcp, folder, path) | peers.hops(near, path, sshd)
        for name in (peers.SOCAT_1M, peers.SOCATS, peers.SOCATS_1M):
            ways.pop(name, None)  # nothing that one socat with its default buffer would not show
        figures.ours = dict.fromkeys((MEMORY, REQUESTS), peers.OURS)
        for turn in range(rounds):
            names = list(ways)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                free = name in (peers.OURS, peers.OUR_HOPS, peers.HAPROXY)
                _grow(figures, name, ways[name], most if free else CAPPED)
    return figures


def _grow(figures: Figures, name: str, start: Start, most: int) -> None:
    with start() as way, peers.asked(REQUESTS, name, way), contextlib.ExitStack() as held:
        wrk(way, CLIENTS, seconds=1)  # what is imported at first use is not a connection's
        empty, there = way.memory(), 0
        for level in LEVELS:
            count = min(level, most)
            if count == there:
                break
            _open(way, count - there, held)
            there = count
            asked = wrk(way, CLIENTS, seconds=1)
            figures.add(Key(REQUESTS, RATE, name, count), asked.rate)
            figures.add(Key(REQUESTS, CPU, name, count), 1e6 * asked.cpu)
            _remember(figures, name, count, empty, way.memory())


def _remember(figures: Figures, name: str, count: int, empty: Memory, full: Memory) -> None:
    figures.add(Key(MEMORY, TOTAL, name, count), full.pss / 1024)
    if count >= CAPPED:  # of fewer, the difference is noise
        figures.add(Key(MEMORY, EACH, name, count), (full.rss - empty.rss) / count)


def _open(way: Way, count: int, held: contextlib.ExitStack) -> None:
    for begin in range(0, count, AT_ONCE):
        group: list[socket.socket] = []
        for _ in range(min(AT_ONCE, count - begin)):
            sock = held.enter_context(dial(way.place))
            sock.sendall(REQUEST)
            group.append(sock)
        for sock in group:
            answer = b""
            while not answer.endswith(b"hello\n"):
                piece = sock.recv(1000)
                if not piece:
                    raise RuntimeError("an idle connection was closed")
                answer += piece
