"""TCP → vsock → TCP inside a virtual machine that the rig of tests/vm boots: real AF_VSOCK, by vsock_loopback.

    python -m bench.rig [ROUNDS]        every round's values, as JSON: (subject, metric, contender, value)

A relay stands on either side of the vsock: `vsockfwd forward` twice, socat twice; beside them a plain loop that sends
over AF_VSOCK with nothing between. The machine is emulated and has one CPU, so that every figure is small: only ratios
count, and they favour who makes the fewest instructions, not who is fast on two cores.

The thing to understand first: this file runs twice. Outside it boots the machine and starts relays in it, inside it is
their load. No AF_VSOCK socket is made outside: the guard of the tests forbids it, in a process of its own since nothing
takes it off again; and what runs inside asks first where it is.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import traffic
from bench.harness import cpu_seconds, family
from bench.peers import SOCATS, SOCATS_1M
from bench.results import Figures, Key
from bench.streams import CLIENT, CPU, SERVER
from bench.traffic import Moved, dial, pull, push, serve
from tests import guard
from tests.vm.machine import Machine, Process
from tests.vm.rig import Level, rig

PAIR = "TCP → vsock → TCP, in the rig"
OURS = "vsockfwd forward, twice"
PLAIN = "plain loop over vsock"
RATE = "MiB/s"
SECONDS = 2.0
"""Of each stretch that is measured: an emulated CPU takes long to come to an even pace."""

LIMIT = 300.0
CHECKOUT = str(Path(__file__).parent.parent)


def missing() -> str | None:
    """Why there is no rig here."""
    from tests.vm.initramfs import CACHE

    lacking = [name for name in ("qemu-system-x86_64", "socat") if not shutil.which(name)]
    if lacking:
        return f"{', '.join(lacking)} not installed: tests/vm/install.sh installs what the rig needs"
    return None if (CACHE / "linux").exists() else "no kernel for the rig: run tests/vm/install.sh"


@dataclass(frozen=True)
class There:
    """A contender inside: where a client connects (TCP port; or vsock port, where nothing is between), and whose CPU
    time counts."""

    name: str
    port: int
    vsock: bool
    pids: list[int]

    def cpu_seconds(self) -> float:
        return cpu_seconds(family(self.pids))


# --- outside


def measure(folder: Path, rounds: int) -> Figures:
    """In a process of its own: boot, start what is to be measured, let the load run inside, and take its figures."""
    command = [sys.executable, "-m", "bench.rig", str(rounds)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    figures = Figures(ours={f"{PAIR}, {way}": OURS for way in (CLIENT, SERVER)})
    for subject, metric, who, value in json.loads(done.stdout):
        figures.add(Key(subject, metric, who), value)
    return figures


def _boot_and_load(rounds: int) -> str:
    guard.install()
    with rig() as machines, ExitStack() as stack:
        level = machines.loopback()
        there = list(_started(level, stack))
        told = json.dumps([rounds, [vars(each) for each in there]])
        loading = level.guest.start([sys.executable, "-m", "bench.rig", "load", told], cwd=CHECKOUT)
        done = loading.completed(LIMIT + 60 * rounds)
        if done.returncode:
            raise RuntimeError(done.stderr.decode(errors="replace"))
        return done.stdout.decode()


def _started(level: Level, stack: ExitStack) -> Iterator[There]:
    """Each contender on both sides of a vsock port of its own, in front of one server."""
    machine = level.guest
    ports = [level.free_port() for _ in range(2)]
    serving = machine.start([sys.executable, "-m", "bench.rig", "serve", *map(str, ports)], cwd=CHECKOUT)
    stack.callback(serving.kill)
    serving.wait_output("ready", LIMIT)
    target, plain = ports
    for name, start in _relays(machine).items():
        near, between = level.free_port(), level.free_port()
        processes = start(near, between, target)
        for process in processes:
            stack.callback(process.kill)
        yield There(name, near, False, [process.pid for process in processes])
    yield There(PLAIN, plain, True, [])


Start = Callable[[int, int, int], list[Process]]


def _relays(machine: Machine) -> dict[str, Start]:
    def ours(near: int, between: int, target: int) -> list[Process]:
        return [
            machine.cli(["forward", "-q", f"vsock:any:{between}", f"tcp:{target}"]),
            machine.cli(["forward", "-q", f"tcp:{near}", f"vsock:1:{between}"]),
        ]

    def socats(*flags: str) -> Start:
        def start(near: int, between: int, target: int) -> list[Process]:
            far = f"VSOCK-LISTEN:{between},fork,backlog=128", f"TCP:127.0.0.1:{target}"
            here = f"TCP-LISTEN:{near},bind=127.0.0.1,fork,reuseaddr,backlog=128", f"VSOCK-CONNECT:1:{between}"
            return [machine.start(["socat", *flags, *pair]) for pair in (far, here)]

        return start

    return {OURS: ours, SOCATS: socats(), SOCATS_1M: socats("-b1048576")}


# --- inside


def _vsock() -> socket.socket:
    """An AF_VSOCK socket, nowhere but in a machine of the rig."""
    if not guard.inside_rig():
        raise SystemExit("bench.rig: not inside a machine of the rig")
    return socket.socket(socket.AF_VSOCK)


def _serve(target: int, plain: int) -> None:
    vsock = _vsock()
    vsock.bind((socket.VMADDR_CID_ANY, plain))
    vsock.listen(128)
    listeners = [socket.create_server(("127.0.0.1", target), backlog=128), vsock]
    print("ready", flush=True)
    serve(listeners)


@contextmanager
def _dialled(way: There) -> Iterator[socket.socket]:
    sock = _vsock() if way.vsock else dial(way.port)
    with sock:
        if way.vsock:
            sock.connect((1, way.port))  # no patience: of AF_VSOCK, Python 3.11 sets options that are numbers alone
        yield sock


def _load(rounds: int, ways: list[There]) -> None:
    """Prints (subject, metric, contender, value) of every round."""
    rows: list[tuple[str, str, str, float]] = []
    for turn in range(-1, rounds):  # one more: the first meets code that the emulator has not translated yet
        at = turn % len(ways)
        for who_sends, move in ((CLIENT, push), (SERVER, pull)):
            for way in ways[at:] + ways[:at]:
                with _dialled(way) as sock:
                    moved = traffic.measure(move(sock), SECONDS if turn >= 0 else 1.0, way.cpu_seconds)
                if turn >= 0:
                    rows += _rows(f"{PAIR}, {who_sends}", way, moved)
    print(json.dumps(rows))


def _rows(subject: str, way: There, moved: Moved) -> list[tuple[str, str, str, float]]:
    rows = [(subject, RATE, way.name, 1024 * moved.rate)]
    return rows + ([(subject, CPU, way.name, moved.cpu_a_gib)] if way.pids else [])


def main(words: list[str]) -> None:
    if words[:1] == ["serve"]:
        _serve(*map(int, words[1:]))
    elif words[:1] == ["load"]:
        rounds, ways = json.loads(words[1])
        _load(rounds, [There(**way) for way in ways])
    else:
        print(_boot_and_load(int(words[0]) if words else 5))


if __name__ == "__main__":
    main(sys.argv[1:])
