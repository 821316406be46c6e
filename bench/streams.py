"""One large stream, each way and who sends it said plainly; and the same in messages of 64 bytes to 1 MiB.

The thing to understand first: on a noisy machine a contender's second is another second than the next one's. So in each
round all contenders' streams stand open, one at a time flows for a fraction of a second, in turn, and that three times.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench import peers, traffic
from bench.copy import ssh_server
from bench.harness import free_port
from bench.peers import DIRECT_TCP, DIRECT_UNIX, Near, Way, Ways
from bench.results import Figures, Key
from bench.traffic import AGAIN, FIRST, Moved, Step, dial, measure, pull, push

SLICE = 0.15
"""Seconds that a stream flows before it is the next one's turn."""

SLICES = 3

SIZES = (64, 512, 4 << 10, 32 << 10, 256 << 10, 1 << 20)
RATE = "GiB/s"
CPU = "CPU s a GiB"
CLIENT, SERVER = "the client sends", "the server sends"
HYBRID_CALLS = "TCP → hybrid socket, connections one after another"
HOPS = "TCP → UNIX → UNIX"


def _both_ways(figures: Figures, pair: str, ways: Ways, ours: str, rounds: int) -> None:
    with peers.standing(ways) as ready:
        for turn in range(rounds):
            for who_sends, move in ((CLIENT, push), (SERVER, pull)):
                subject = f"{pair}, {who_sends}"
                figures.ours[subject] = ours
                for name, moved in _side_by_side(subject, peers.in_turn(ready, turn), move).items():
                    figures.add(Key(subject, RATE, name), moved.rate)
                    if ready[name].started:
                        figures.add(Key(subject, CPU, name), moved.cpu_a_gib)


def _side_by_side(
    subject: str, ways: list[tuple[str, Way]], begin: Callable[[socket.socket], Step], slices: int = SLICES
) -> dict[str, Moved]:
    """What one stream of each moved, a slice at a time."""
    steps: dict[str, Step] = {}
    found: dict[str, Moved] = {}
    with contextlib.ExitStack() as stack:
        for number in range(slices):
            for name, way in ways:
                with peers.asked(subject, name, way):
                    if not number:
                        steps[name] = begin(stack.enter_context(dial(way.place, way.typed)))
                    moved = measure(steps[name], SLICE, way.cpu_seconds, AGAIN if number else FIRST)
                found[name] = found[name] + moved if number else moved
    return found


def raw(folder: Path, rounds: int) -> Figures:
    """TCP → UNIX."""
    figures = Figures()
    port, path, near = free_port(), f"{folder}/server.sock", Near(folder)
    with traffic.server(port, path):
        ways = peers.raw(near.tcp, folder, path) | _straight(port, path)
        _both_ways(figures, "TCP → UNIX", ways, peers.OURS, rounds)
    return figures


def pairs(folder: Path, rounds: int) -> Figures:
    """UNIX → TCP, TCP → TCP."""
    figures = Figures()
    port, path, near = free_port(), f"{folder}/server.sock", Near(folder)
    with traffic.server(port, path):
        for pair, new in (("UNIX → TCP", near.unix), ("TCP → TCP", near.tcp)):
            ways = peers.raw(new, folder, port) | _straight(port, path)
            _both_ways(figures, pair, ways, peers.OURS, rounds)
    return figures


def _straight(port: int, path: str) -> Ways:
    return {DIRECT_TCP: peers.direct(port), DIRECT_UNIX: peers.direct(path)}


def hops(folder: Path, rounds: int) -> Figures:
    """A TCP client, a UNIX socket between two relays, a UNIX server."""
    figures = Figures()
    port, path = free_port(), f"{folder}/server.sock"
    with traffic.server(port, path), ssh_server(folder) as sshd:
        ways = peers.hops(Near(folder), path, sshd) | _straight(port, path)
        _both_ways(figures, HOPS, ways, peers.OUR_HOPS, rounds)
    return figures


def hybrid(folder: Path, rounds: int) -> Figures:
    """A stand-in for a VMM: it wants CONNECT, and is the guest's server at once."""
    figures = Figures()
    path = f"{folder}/vmm.sock"
    with traffic.server(path, vmm=True):
        ways = peers.hybrid(Near(folder), path)
        _both_ways(figures, "TCP → hybrid socket", ways, peers.OURS, rounds)
        figures.ours[HYBRID_CALLS] = peers.OURS
        with peers.standing(ways) as ready:
            for turn in range(rounds):
                for name, way in peers.in_turn(ready, turn):
                    with peers.asked(HYBRID_CALLS, name, way):
                        figures.add(Key(HYBRID_CALLS, "a second", name), traffic.calls(way.place, 1.0, way.typed))
    return figures


def sizes(folder: Path, rounds: int) -> Figures:
    """A client that sends messages of one size without a pause, by raw relays and by two hops."""
    figures = Figures()
    port, path, near = free_port(), f"{folder}/server.sock", Near(folder)
    with traffic.server(port, path), ssh_server(folder) as sshd:
        straight = {DIRECT_TCP: peers.direct(port)}
        for subject, ways, ours in (
            ("TCP → UNIX, by size of message", peers.raw(near.tcp, folder, path) | straight, peers.OURS),
            (f"{HOPS}, by size of message", peers.hops(near, path, sshd) | straight, peers.OUR_HOPS),
        ):
            figures.ours[subject] = ours
            with peers.standing(ways) as ready:
                for turn in range(rounds):
                    for size in SIZES:
                        ways_in_turn = peers.in_turn(ready, turn)
                        for name, moved in _side_by_side(subject, ways_in_turn, partial(push, size=size), 1).items():
                            figures.add(Key(subject, "MiB/s", name, size), 1024 * moved.rate)
    return figures
