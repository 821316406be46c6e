"""Contenders, standing ready: what a client connects to, and which processes carry its bytes from there to a target.

All of a case's contenders are started once and wait; one at a time is asked, in another order each round. A program
that is not installed is left out, and the page's versions say so.
"""

from __future__ import annotations

import contextlib
import itertools
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from bench.harness import Command, Memory, Running, free_port, running, vsockfwd
from bench.traffic import TYPED, Place, listening

OURS = "vsockfwd forward"
SOCAT = "socat"
SOCAT_1M = "socat -b1M"
HAPROXY = "HAProxy"
PROXYD = "systemd-socket-proxyd"
DIRECT_TCP = "direct, TCP"
DIRECT_UNIX = "direct, UNIX"

OUR_HOPS = "vsockfwd, two hops"
SOCATS = "two socats"
SOCATS_1M = "two socats -b1M"
SSH = "ssh -L, aes128-gcm"
CIPHER = "aes128-gcm@openssh.com"

SPARE = 300
"""Descriptors that a process may want beside two for each connection."""


@dataclass(frozen=True)
class Way:
    """Where a client connects, whose processes are on the way, and what it has to type first."""

    place: Place
    started: tuple[Running, ...] = ()
    typed: bytes = b""

    def cpu_seconds(self) -> float:
        return sum(running.cpu_seconds() for running in self.started)

    def memory(self) -> Memory:
        each = [running.memory() for running in self.started]
        return Memory(sum(one.rss for one in each), sum(one.pss for one in each))


Start = Callable[[], AbstractContextManager[Way]]
Ways = dict[str, Start]


@contextlib.contextmanager
def standing(ways: Mapping[str, Start]) -> Iterator[dict[str, Way]]:
    """All of them, started."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(start()) for name, start in ways.items()}


@contextlib.contextmanager
def asked(subject: str, name: str, way: Way) -> Iterator[None]:
    """What goes wrong meanwhile is told with whose fault it may be. Raises RuntimeError for it."""
    try:
        yield
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        states = "; ".join(filter(None, (started.state() for started in way.started)))
        raise RuntimeError(f"{subject}, {name}: {type(error).__name__}: {error}; {states}") from error


def in_turn(ways: Mapping[str, Way], turn: int) -> list[tuple[str, Way]]:
    """The contenders, another one first each time."""
    found = list(ways.items())
    at = turn % len(found)
    return found[at:] + found[:at]


def most_connections() -> int:
    """As many as a process may hold that has two descriptors for each; raises the limit as far as that is allowed."""
    wanted = 2 * 10_000 + SPARE
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # only who may (CAP_SYS_RESOURCE) can go beyond
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(hard, wanted), max(hard, wanted)))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return min(10_000, (hard - SPARE) // 2)


class Near:
    """New places to listen on below a folder: TCP ports, or UNIX sockets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = itertools.count()

    def tcp(self) -> int:
        return free_port()

    def unix(self) -> str:
        return f"{self.folder}/near-{next(self._numbers)}.sock"


def address(place: Place) -> str:
    """As vsockfwd is told."""
    return f"tcp:{place}" if isinstance(place, int) else f"unix:{place}"


@contextlib.contextmanager
def one(place: Place, command: Command, typed: bytes = b"") -> Iterator[Way]:
    """A way of one process."""
    with running(command, ready=listening(place)) as started:
        yield Way(place, (started,), typed)


def direct(place: Place, typed: bytes = b"") -> Start:
    """No relay at all."""
    return lambda: contextlib.nullcontext(Way(place, (), typed))


# --- one hop


def raw(new: Callable[[], Place], folder: Path, target: Place) -> Ways:
    """Relays from new places to a target."""
    ways: Ways = {OURS: lambda: _ours(new(), target)}
    if shutil.which("socat"):
        ways[SOCAT] = lambda: _socat(new(), target)
        ways[SOCAT_1M] = lambda: _socat(new(), target, "-b1048576")
    if program := _program("haproxy"):
        ways[HAPROXY] = lambda: _haproxy(program, folder, new(), target)
    proxyd = _program("systemd-socket-proxyd")
    if proxyd and shutil.which("systemd-socket-activate"):
        ways[PROXYD] = lambda: _proxyd(proxyd, new(), target)
    return ways


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/lib/systemd")


def _ours(near: Place, target: Place) -> AbstractContextManager[Way]:
    return one(near, vsockfwd("forward", "-q", address(near), address(target)))


def _socat(near: Place, target: Place, *flags: str) -> AbstractContextManager[Way]:
    return one(near, socat(near, target, *flags))


def socat(near: Place, target: Place, *flags: str) -> list[str]:
    """socat that forks for each connection, as it is used."""
    if isinstance(near, int):
        listen = f"TCP-LISTEN:{near},bind=127.0.0.1,fork,reuseaddr,backlog=4096"
    else:
        listen = f"UNIX-LISTEN:{near},fork,backlog=4096"
    return ["socat", *flags, listen, f"TCP:127.0.0.1:{target}" if isinstance(target, int) else f"UNIX-CONNECT:{target}"]


def _haproxy(program: str, folder: Path, near: Place, target: Place) -> AbstractContextManager[Way]:
    config = folder / f"haproxy-{Path(str(near)).name}.cfg"
    bind = f"127.0.0.1:{near}" if isinstance(near, int) else f"unix@{near}"
    server = f"127.0.0.1:{target}" if isinstance(target, int) else f"unix@{target}"
    config.write_text(
        f"global\n  nbthread 1\n  maxconn {most_connections() + 20}\n  maxpipes 50\n"
        "defaults\n  mode tcp\n  option splice-auto\n"
        "  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n"
        f"listen relay\n  bind {bind} backlog 4096\n  server s {server}\n"
    )
    return one(near, [program, "-db", "-f", str(config)])


def _proxyd(program: str, near: Place, target: Place) -> AbstractContextManager[Way]:
    """Started by its own first connection, with the listening descriptor, as systemd would."""
    listen = f"--listen=127.0.0.1:{near}" if isinstance(near, int) else f"--listen={near}"
    to = f"127.0.0.1:{target}" if isinstance(target, int) else target
    return one(near, ["systemd-socket-activate", listen, program, "--connections-max=10000", to])


# --- two hops


def hops(near: Near, target: str, sshd: Running | None) -> Ways:
    """From TCP ports, over a second place, to a UNIX socket."""
    ways: Ways = {OUR_HOPS: lambda: _our_hops(near, target)}
    if shutil.which("socat"):
        ways[SOCATS] = lambda: _socats(near, target)
        ways[SOCATS_1M] = lambda: _socats(near, target, "-b1048576")
    if sshd:
        ways[SSH] = lambda: _ssh(near, target, sshd)
    return ways


@contextlib.contextmanager
def _our_hops(near: Near, target: str) -> Iterator[Way]:
    port, agent = near.tcp(), near.unix()
    with running(vsockfwd("serve", "-q", "--listen", f"unix:{agent}"), ready=listening(agent)) as serve:
        command = vsockfwd("forward", "-q", "-L", f"{port}:{target}", f"unix:{agent}")
        with running(command, ready=listening(port)) as forward:
            yield Way(port, (serve, forward))


@contextlib.contextmanager
def _socats(near: Near, target: str, *flags: str) -> Iterator[Way]:
    port, between = near.tcp(), near.unix()
    with (
        running(socat(between, target, *flags), ready=listening(between)) as far,
        running(socat(port, between, *flags), ready=listening(port)) as here,
    ):
        yield Way(port, (far, here))


@contextlib.contextmanager
def _ssh(near: Near, target: str, sshd: Running) -> Iterator[Way]:
    """By the server and the configuration of bench.copy's `ssh_server`."""
    port = near.tcp()
    words = ["-F", str(near.folder / "ssh_config"), "-N", "-c", CIPHER, "-L", f"127.0.0.1:{port}:{target}", "bench"]
    with running(["ssh", *words], ready=listening(port)) as ssh:
        yield Way(port, (ssh, sshd))


# --- a VMM's hybrid socket


def hybrid(near: Near, vmm: str) -> Ways:
    """Ours says CONNECT by itself; through socat the client has to."""
    ways: Ways = {OURS: lambda: _ours_hybrid(near.tcp(), vmm)}
    if shutil.which("socat"):
        ways["socat, CONNECT by hand"] = lambda: _typed(near.tcp(), vmm)
        ways["socat -b1M, CONNECT by hand"] = lambda: _typed(near.tcp(), vmm, "-b1048576")
    ways["direct, CONNECT by hand"] = direct(vmm, TYPED)
    return ways


def _ours_hybrid(port: int, vmm: str) -> AbstractContextManager[Way]:
    return one(port, vsockfwd("forward", "-q", f"tcp:{port}", f"hybrid:{vmm}:52"))


def _typed(port: int, vmm: str, *flags: str) -> AbstractContextManager[Way]:
    return one(port, socat(port, vmm, *flags), TYPED)
