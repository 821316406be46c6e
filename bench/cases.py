"""What can be measured, by name, and how a run of it is recorded."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import copy, dgram, growth, perf, relay, requests, rig, streams
from bench.harness import Command, recorded, version
from bench.results import Figures, Key, Record

ROOT = Path(__file__).parent.parent
RUNS_OF_TARGETS = "targets"
"""Stands for all cases that the targets ask for."""

VERSIONS: dict[str, Command] = {
    "socat": ("socat", "-V"),
    "HAProxy": ("haproxy", "-v"),
    "systemd": ("systemctl", "--version"),
    "nginx": ("nginx", "-v"),
    "wrk": ("wrk", "-v"),
    "OpenSSH": ("ssh", "-V"),
    "rsync": ("rsync", "--version"),
    "iperf3": ("iperf3", "-v"),
    "QEMU": ("qemu-system-x86_64", "--version"),
}


@dataclass(frozen=True)
class Case:
    """One thing that is measured. `seconds` are what its start and each of its rounds take on two cores."""

    summary: str
    run: Callable[[Path, int], Figures]
    versions: tuple[str, ...]
    seconds: tuple[float, float]
    most: int = 99
    """Rounds, however many are asked for."""

    aimed_at: bool = False
    """The targets ask for it."""

    missing: Callable[[], str | None] = lambda: None
    """Why it cannot be run here."""

    def expected(self, rounds: int) -> float:
        start, each = self.seconds
        return start + each * min(rounds, self.most)


def written(tell: Callable[[int], str]) -> Callable[[Path, int], Figures]:
    """A subject that answers with a page's section: its tables' values, and its text without heading and setting."""

    def run(folder: Path, rounds: int) -> Figures:
        with recorded() as tables:
            text = tell(rounds)
        figures = Figures(text=re.sub(r"\A## .*\n\n.*\n\n", "", text).strip())
        for table in tables:
            figures.ours[table.title] = table.ours
            for metric, values in ((table.unit, table.values), ("CPU s a GiB", table.more)):
                for who, each in values.items():
                    figures.values[Key(table.title, metric, who)] = each
        return figures

    return run


def _without(*programs: str) -> Callable[[], str | None]:
    def missing() -> str | None:
        lacking = [name for name in programs if not shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin")]
        return f"not installed: {', '.join(lacking)}" if lacking else None

    return missing


STREAM_PEERS = ("socat", "HAProxy", "systemd")
REQUEST_PEERS = (*STREAM_PEERS, "nginx", "wrk")
CASES: dict[str, Case] = {
    "raw-streams": Case(
        "one large stream through a raw forward, both ways", streams.raw, STREAM_PEERS, (4, 10), aimed_at=True
    ),
    "raw-pairs": Case("the same from UNIX to TCP and from TCP to TCP", streams.pairs, STREAM_PEERS, (6, 20)),
    "raw-requests": Case(
        "connections and requests a second through a raw forward",
        requests.raw, REQUEST_PEERS, (9, 19), aimed_at=True, missing=_without("wrk", "nginx"),
    ),
    "hops-streams": Case(
        "one large stream through forward and agent", streams.hops, ("socat", "OpenSSH"), (4, 9), aimed_at=True
    ),
    "hops-requests": Case(
        "connections and requests a second through forward and agent",
        requests.hops, ("socat", "OpenSSH", "nginx", "wrk"), (9, 16), aimed_at=True, missing=_without("wrk", "nginx"),
    ),
    "sizes": Case(
        "throughput by size of message, 64 bytes to 1 MiB", streams.sizes, (*STREAM_PEERS, "OpenSSH"), (5, 22)
    ),
    "latency": Case("percentiles of a byte's round trip", requests.latency, (*STREAM_PEERS, "OpenSSH"), (5, 14)),
    "growth": Case(
        "memory and requests beside 1 to 10,000 idle connections",
        growth.measure, (*REQUEST_PEERS, "OpenSSH"), (2, 50), most=2, aimed_at=True, missing=_without("wrk", "nginx"),
    ),
    "hybrid": Case("a VMM's hybrid socket, against CONNECT typed by hand", streams.hybrid, ("socat",), (3, 10)),
    "rig": Case(
        "TCP → vsock → TCP inside a virtual machine of the rig",
        rig.measure, ("socat", "QEMU"), (100, 20), most=3, aimed_at=True, missing=rig.missing,
    ),
    "perf": Case("`vsockfwd perf` beside a plain loop", written(perf.main), (), (2, 22), most=3),
    "relay": Case("`vsockfwd relay`, pair by pair, against socat", written(relay.main), ("socat",), (5, 110), most=2),
    "copy": Case(
        "copies against rsync, scp and socat", written(copy.main), ("rsync", "OpenSSH", "socat"), (30, 60), most=2
    ),
    "datagrams": Case("datagrams against socat", written(dgram.main), ("socat", "iperf3"), (5, 50), most=2),
}  # fmt: skip


def measure(name: str, rounds: int) -> Record:
    """Run a case. Whatever its servers and clients raise comes out."""
    case = CASES[name]
    rounds = min(rounds, case.most)
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # a disk would be what is measured
    load, began = os.getloadavg()[0], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vsockfwd-bench-", dir=memory) as folder:
        figures = case.run(Path(folder), rounds)
    taken = setting(case.versions) | {"rounds": rounds, "seconds": round(time.monotonic() - began), "load": load}
    return Record(taken, figures)


def setting(programs: tuple[str, ...]) -> dict[str, Any]:
    """Where figures come from, and whose."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "commit": _commit(),
        "versions": {name: _short(version(*VERSIONS[name])) for name in programs},
    }


def _commit() -> str:
    """Where the tree is, and whether what is measured has changed since."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--", "vsockfwd", "plugins")
    return git("rev-parse", "--short", "HEAD") + (" and changes" if changed else "")


def _short(told: str) -> str:
    """The version in what a program says of itself."""
    if "not installed" in told:
        return "not installed"
    found = re.search(r"\d+(\.\d+)+(p\d+)?", told) or re.search(r"\d+", told)
    return found[0] if found else told
