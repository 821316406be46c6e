"""Whether a long run leaves anything behind, and what an idle connection holds.

    python -m bench.soak [SECONDS]

Soak: 500 connections a second (asked and answered, ended by either side or reset) beside 200 long-lived ones, through a
raw forward and through an agent, for SECONDS each (600); descriptors and memory are compared before and after. Idle:
10,000 connections that say one byte and then nothing; what the processes grow by, for each.

The thing to understand first: "before" is taken after the same load has run for a while, so that what is imported and
cached at first use does not look like a leak. Servers and load run in processes of their own. Exits with 1 where a
target is missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import resource
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.harness import accepts, free_port, running, setting, vsockfwd

SECONDS = 600.0
RATE = 500
"""New connections a second."""

HELD = 200
"""Connections that live all the while, and say MESSAGE once a second."""

IDLE = 10_000
AT_ONCE = 64
"""Idle connections that are being opened at one time."""

WARM_UP = 10.0
"""Seconds of the same load before the first sample."""

SETTLE = 60.0
"""Seconds that connections are given, once the load has ended, to be gone."""

PATIENCE = 20.0
"""Seconds after which a connection that got no answer counts as failed."""

SPARE = 40
"""Descriptors that a process needs beside its connections."""

TOLERANCE = 0.05
"""The part by which memory may differ afterwards."""

IDLE_TARGET = 20.0
"""KiB of a process's memory that an idle connection may hold."""

MESSAGE = b"still there?".ljust(64, b".")
GOODBYE = b"Q"
"""Said first, it makes the server answer and end."""

spawn = multiprocessing.get_context("spawn")


# --- the server and the load, each a process of its own


def serve(path: str) -> None:
    """Echo until the client ends; to who begins with GOODBYE say it back and end."""

    class Echo(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport: Any = transport

        def data_received(self, data: bytes) -> None:
            self.transport.write(data)
            if data.startswith(GOODBYE):
                self.transport.close()

    async def main() -> None:
        server = await asyncio.get_running_loop().create_unix_server(Echo, path, backlog=4096)
        await server.serve_forever()

    asyncio.run(main())


async def ask(port: int, how: int) -> None:
    """One short connection, ended in one of three ways. Raises OSError, TimeoutError, EOFError for a wrong answer."""
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            said = GOODBYE + MESSAGE if how == 0 else MESSAGE
            writer.write(said)
            if how == 1:
                writer.write_eof()
            if await reader.readexactly(len(said)) != said:
                raise EOFError
            if how == 2:
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            elif await reader.read():
                raise EOFError
        finally:
            writer.close()


async def hold(port: int, until: float) -> None:
    """One long-lived connection. Raises as `ask` does."""
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        while time.monotonic() < until:
            async with asyncio.timeout(PATIENCE):
                writer.write(MESSAGE)
                if await reader.readexactly(len(MESSAGE)) != MESSAGE:
                    raise EOFError
            await asyncio.sleep(1)
    finally:
        writer.close()


@dataclass
class Load:
    """What became of a load's connections."""

    made: int = 0
    failed: int = 0
    held_failed: int = 0
    late: float = 0.0
    """Seconds that the load was behind its schedule at worst."""


def load(port: int, seconds: float, rate: int, told: Connection) -> None:
    """So many new connections a second beside HELD long-lived ones; tells the Load."""

    async def main() -> Load:
        result = Load()
        began = time.monotonic()

        async def short(how: int) -> None:
            result.made += 1
            try:
                await ask(port, how)
            except (OSError, EOFError, TimeoutError):
                result.failed += 1

        async def long() -> None:
            try:
                await hold(port, began + seconds)
            except (OSError, EOFError, TimeoutError):
                result.held_failed += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(HELD):
                group.create_task(long())
            number = 0
            while (now := time.monotonic()) < began + seconds:
                ahead = began + number / rate - now
                result.late = max(result.late, -ahead)
                await asyncio.sleep(max(0.0, ahead))
                group.create_task(short(number % 3))
                number += 1
        return result

    told.send(asyncio.run(main()))


def idle(port: int, count: int, told: Connection) -> None:
    """Open connections and keep them, silent; tells how many were answered, and ends when it is told to."""
    with contextlib.ExitStack() as held:
        answered = 0
        for begin in range(0, count, AT_ONCE):
            group = [socket.create_connection(("127.0.0.1", port)) for _ in range(min(AT_ONCE, count - begin))]
            for sock in group:
                held.enter_context(sock)
                sock.settimeout(PATIENCE)
                sock.sendall(b"?")
            for sock in group:
                with contextlib.suppress(OSError):
                    answered += sock.recv(1) == b"?"
        told.send(answered)
        told.recv()


@contextlib.contextmanager
def beside(work: Callable[..., None], *arguments: object) -> Iterator[None]:
    """Run `work` in a process of its own, for as long as the block runs."""
    process = spawn.Process(target=work, args=arguments)
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def loaded(port: int, seconds: float, rate: int = RATE) -> Load:
    """Run the load to its end."""
    here, there = spawn.Pipe()
    with beside(load, port, seconds, rate, there):
        if not here.poll(seconds + 2 * PATIENCE + 10):
            raise RuntimeError("the load did not come to its end")
        result = here.recv()
    assert isinstance(result, Load)
    return result


# --- the processes that are watched


@dataclass(frozen=True, slots=True)
class Sample:
    """What a process holds: descriptors, threads, and KiB of memory, all that is resident and what is its own alone."""

    descriptors: int
    threads: int
    rss: int
    uss: int

    @classmethod
    def of(cls, pid: int) -> Sample:
        sizes: dict[str, int] = {}
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, size = line.split()[:2]
            sizes[name] = int(size)
        return cls(
            len(os.listdir(f"/proc/{pid}/fd")),
            len(os.listdir(f"/proc/{pid}/task")),
            sizes["Rss:"],
            sizes["Private_Clean:"] + sizes["Private_Dirty:"],
        )


Watched = dict[str, int]
"""Name → process id."""


@contextlib.contextmanager
def raw(folder: Path, path: str) -> Iterator[tuple[int, Watched]]:
    """A raw forward to the server's socket: (its port, the process)."""
    port = free_port()
    command = vsockfwd("forward", "-q", f"tcp:{port}", f"unix:{path}")
    with running(command, ready=accepts(socket.AF_INET, ("127.0.0.1", port))) as forward:
        yield port, {"forward": forward.processes[0].pid}


@contextlib.contextmanager
def through_agent(folder: Path, path: str) -> Iterator[tuple[int, Watched]]:
    """`forward -L` and an agent on a UNIX socket."""
    port, agent_path = free_port(), folder / "agent.sock"
    with running(vsockfwd("serve", "-q", "-l", f"unix:{agent_path}"), ready=agent_path.exists) as agent:
        command = vsockfwd("forward", "-q", "-L", f"{port}:{path}", f"unix:{agent_path}")
        with running(command, ready=accepts(socket.AF_INET, ("127.0.0.1", port))) as forward:
            yield port, {"forward -L": forward.processes[0].pid, "its agent": agent.processes[0].pid}


WAYS = {"a raw forward": raw, "`-L` and an agent": through_agent}


def samples(watched: Watched) -> dict[str, Sample]:
    return {name: Sample.of(pid) for name, pid in watched.items()}


def settled(watched: Watched, before: dict[str, Sample] | None = None) -> dict[str, Sample]:
    """Samples, once no descriptor more is held than before, or once none has come or gone for a second."""
    deadline = time.monotonic() + SETTLE
    seen = samples(watched)
    while time.monotonic() < deadline:
        time.sleep(1)
        seen, last = samples(watched), seen
        held = [sample.descriptors for sample in seen.values()]
        if before is None:
            if held == [sample.descriptors for sample in last.values()]:
                break
        elif held == [sample.descriptors for sample in before.values()]:
            break
    return seen


# --- the measurements


@dataclass(frozen=True, slots=True)
class Part:
    """A section of the page, and the targets that were missed."""

    text: str
    missed: tuple[str, ...]


def soak(folder: Path, name: str, seconds: float) -> Part:
    """The load through one way, and what it leaves behind."""
    path = str(folder / "server.sock")
    with beside(serve, path), WAYS[name](folder, when_there(path)) as (port, watched):
        loaded(port, WARM_UP)
        before = settled(watched)
        result = loaded(port, seconds)
        after = settled(watched, before)
    missed = []
    if result.failed or result.held_failed:
        missed.append(f"{name}: {result.failed} short and {result.held_failed} long-lived connections failed")
    if result.late > 1:
        missed.append(f"{name}: the load was {result.late:.1f} s behind its schedule")
    rows = []
    for process, was in before.items():
        now = after[process]
        rss, uss = now.rss / was.rss - 1, now.uss / was.uss - 1
        rows.append(
            f"| {process} | {was.descriptors} → {now.descriptors} | {was.threads} → {now.threads} "
            f"| {was.rss:,} → {now.rss:,} ({rss:+.1%}) | {was.uss:,} → {now.uss:,} ({uss:+.1%}) |"
        )
        if now.descriptors != was.descriptors:
            missed.append(f"{name}, {process}: {now.descriptors - was.descriptors:+} descriptors")
        if max(abs(rss), abs(uss)) > TOLERANCE:
            missed.append(f"{name}, {process}: memory {rss:+.1%}, its own {uss:+.1%}")
    text = (
        f"Through {name}, {seconds:.0f} s: {result.made:,} short connections, {result.failed} failed; {HELD} long-lived"
        f" ones, {result.held_failed} failed; at worst {result.late:.2f} s behind the schedule.\n\n"
        "| | descriptors | threads | RSS, KiB | USS, KiB |\n|---|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )
    return Part(text, tuple(missed))


def idling(folder: Path, name: str, count: int) -> Part:
    """What idle connections hold, by one way."""
    path = str(folder / "server.sock")
    here, there = spawn.Pipe()
    with beside(serve, path), WAYS[name](folder, when_there(path)) as (port, watched):
        before = settled(watched)
        with beside(idle, port, count, there):
            if not here.poll(120):
                raise RuntimeError("the idle connections were not made")
            answered = here.recv()
            full = settled(watched)
            here.send(None)
            after = settled(watched, before)
    missed = [] if answered == count else [f"{name}: {count - answered} of {count} idle connections got no answer"]
    rows = []
    for process, was in before.items():
        rss = (full[process].rss - was.rss) / count
        uss = (full[process].uss - was.uss) / count
        rows.append(f"| {process} | {answered:,} | {rss:.1f} | {uss:.1f} | {was.rss:,} → {after[process].rss:,} |")
        if rss > IDLE_TARGET:
            missed.append(f"{name}, {process}: {rss:.1f} KiB an idle connection")
        if after[process].descriptors != was.descriptors:
            missed.append(f"{name}, {process}: {after[process].descriptors - was.descriptors:+} descriptors")
    return Part("\n".join(rows), tuple(missed))


def when_there(path: str) -> str:
    """The path, once something listens there."""
    deadline = time.monotonic() + 15
    while not accepts(socket.AF_UNIX, path)():
        if time.monotonic() > deadline:
            raise RuntimeError(f"nothing listens on {path}")
        time.sleep(0.02)
    return path


def room_for(count: int) -> int:
    """As many connections as a process of ours may hold, `count` at most: two descriptors each."""
    wanted = 2 * count + SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # only root may raise the hard limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), max(hard, wanted)))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return min(count, (hard - SPARE) // 2)


def main(seconds: float = SECONDS) -> int:
    """Run all; prints Markdown, and what was missed."""
    count = room_for(IDLE)
    missed: list[str] = []
    print(f"## Soak\n\n{setting()}. {RATE} new connections a second beside {HELD} long-lived ones.\n")
    for name in WAYS:
        with tempfile.TemporaryDirectory(prefix="vsockfwd-soak-") as folder:
            part = soak(Path(folder), name, seconds)
        missed += part.missed
        print(part.text, flush=True)
    print("| idle connections through | held | RSS, KiB each | USS, KiB each | RSS before → after, KiB |")
    print("|---|---|---|---|---|")
    for name in WAYS:
        with tempfile.TemporaryDirectory(prefix="vsockfwd-soak-") as folder:
            part = idling(Path(folder), name, count)
        missed += part.missed
        print(part.text, flush=True)
    print("\n" + ("Missed:\n\n" + "\n".join(f"- {line}" for line in missed) if missed else "No target was missed."))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS))
