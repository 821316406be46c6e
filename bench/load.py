"""Load and trouble: what many connections leave behind, and what those who misbehave cost the others.

    python -m bench.load [PART…] [SECONDS [CONNECTIONS]]

At once: 10,000 connections through a raw forward, all open, each asked and answered once. Rate: 1,000 connections a
second for SECONDS (600). Trouble: connections that ask once a tenth of a second, alone and beside slow readers, slow
writers and busy peers of which half are killed; the 99th percentile of their answers' times, in rounds that alternate.
Every answer is compared with what was said. Descriptors and memory before and after. docs/reliability.json gets the
figures. Exits with 1 where a target is missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.harness import setting
from bench.reliability import counted
from bench.soak import (
    AT_ONCE,
    IDLE,
    PATIENCE,
    TOLERANCE,
    WARM_UP,
    WAYS,
    Sample,
    beside,
    loaded,
    room_for,
    serve,
    settled,
    spawn,
    when_there,
)
from vsockfwd.engine.pump import BUFFER_SIZE, LARGE_BUFFERS

SECONDS = 600.0
RATE = 1000
"""New connections a second."""

ROUNDS = 4
ROUND = 8.0
"""Seconds of a round of trouble, or without."""

ASKERS, EVERY = 50, 0.1
"""Connections whose answers are timed, and the seconds between two questions of one."""

SLOW = 100
"""Slow readers, and as many slow writers."""

DOOMED = 4
"""Processes with busy connections; half of them are killed in the middle of a round."""

BUSY = 25
"""Connections of each."""

LIMIT = 2.0
"""The p99 with trouble may be so many times that without."""


def told(process: str, before: Sample, after: Sample) -> str:
    return f"{process}: descriptors {before.descriptors} → {after.descriptors}, RSS {before.rss:,} → {after.rss:,} KiB"


def leaks(
    before: dict[str, Sample], after: dict[str, Sample], growth: float = 2 * TOLERANCE, pool: int = 0
) -> list[str]:
    """What is left that should not be. `pool`: KiB that stay where bytes have stood in them once."""
    found = []
    for process, was in before.items():
        now = after[process]
        if now.descriptors > was.descriptors:
            found.append(f"{process}: {now.descriptors - was.descriptors} descriptors left")
        if now.rss > was.rss * (1 + growth) + pool:
            found.append(f"{process}: memory {now.rss / was.rss - 1:+.1%}")
    return found


# --- at once


def all_open(port: int, count: int, tell: Connection) -> None:
    """Open so many connections, ask on each once all are open, and check every answer; tells how many were right."""
    chance = random.Random(1)
    with contextlib.ExitStack() as held:
        socks: list[tuple[socket.socket, bytes]] = []
        for _ in range(count):
            sock = held.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE))
            socks.append((sock, chance.randbytes(256)))
        right = 0
        for begin in range(0, count, AT_ONCE):
            group = socks[begin : begin + AT_ONCE]
            for sock, said in group:
                sock.sendall(b"?" + said)
            for sock, said in group:
                with contextlib.suppress(OSError):
                    right += sock.recv(257, socket.MSG_WAITALL) == b"?" + said
        tell.send(right)
        tell.recv()


def at_once(folder: Path, count: int) -> list[str]:
    path = str(folder / "server.sock")
    here, there = spawn.Pipe()
    with beside(serve, path), WAYS["a raw forward"](folder, when_there(path)) as (port, watched):
        for round_ in range(2):  # the first round's memory is what the second's is compared with
            with beside(all_open, port, count, there):
                if not here.poll(240):
                    raise RuntimeError("the connections were not made")
                right = here.recv()
                here.send(None)
            after = settled(watched)
            if not round_:
                before = after
    left = leaks(before, after)
    for process, was in before.items():
        print(f"{count:,} connections at once, {right:,} answered rightly; {told(process, was, after[process])}")
    with counted("load", f"{count:,} connections at once, asked and answered") as counts:
        counts.update(connections=count, wrong=count - right, left=left)
    return left + ([f"{count - right} of {count} connections got no right answer"] * (right != count))


# --- rate


def rate(folder: Path, seconds: float) -> list[str]:
    path = str(folder / "server.sock")
    with beside(serve, path), WAYS["a raw forward"](folder, when_there(path)) as (port, watched):
        loaded(port, WARM_UP, RATE)
        before = settled(watched)
        result = loaded(port, seconds, RATE)
        after = settled(watched, before)
    for process, was in before.items():
        print(
            f"{RATE:,} connections a second for {seconds:.0f} s: {result.made:,}, {result.failed} failed, at worst "
            f"{result.late:.2f} s behind; {told(process, was, after[process])}"
        )
    left = leaks(before, after)
    with counted("load", f"{RATE:,} connections a second for {seconds:.0f} s, raw forward") as counts:
        counts.update(connections=result.made, wrong=result.failed + result.held_failed, left=left)
        counts["behind"] = round(result.late, 2)
    missed = left + [f"{result.failed} of {result.made} connections failed"] * bool(result.failed)
    return missed + [f"the load was {result.late:.1f} s behind its schedule"] * (result.late > 1)


# --- trouble


async def _connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    async with asyncio.timeout(PATIENCE):
        return await asyncio.open_connection("127.0.0.1", port)


def ask(port: int, seconds: float, tell: Connection) -> None:
    """Time the answers; tells the seconds that each took, and how many were wrong."""

    async def one(number: int, took: list[float]) -> int:
        reader, writer = await _connect(port)
        chance, wrong = random.Random(number), 0
        await asyncio.sleep(chance.random() * EVERY)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            said = b"?" + chance.randbytes(63)
            began = time.monotonic()
            writer.write(said)
            async with asyncio.timeout(PATIENCE):
                wrong += await reader.readexactly(len(said)) != said
            took.append(time.monotonic() - began)
            await asyncio.sleep(EVERY)
        writer.close()
        return wrong

    async def main() -> tuple[list[float], int]:
        took: list[float] = []
        wrong = sum(await asyncio.gather(*(one(number, took) for number in range(ASKERS))))
        return took, wrong

    tell.send(asyncio.run(main()))


class _Counted:
    """Tells when so many are connected."""

    def __init__(self, left: int, tell: Connection) -> None:
        self._left = left
        self._tell = tell

    def one_more(self) -> None:
        self._left -= 1
        if not self._left:
            self._tell.send(None)


def slow(port: int, tell: Connection) -> None:
    """Who reads a kilobyte now and then of a mebibyte that was asked for, and who writes a byte at a time."""
    there = _Counted(2 * SLOW, tell)

    async def reader() -> None:
        taking, writer = await _connect(port)
        there.one_more()
        writer.write(bytes(1 << 20))
        while await taking.read(1 << 10):  # noqa: ASYNC110 - it is slow
            await asyncio.sleep(0.5)

    async def writer() -> None:
        _, giving = await _connect(port)
        there.one_more()
        while True:
            giving.write(b"?")
            await asyncio.sleep(0.2)

    async def main() -> None:
        await asyncio.gather(*(reader() for _ in range(SLOW)), *(writer() for _ in range(SLOW)))

    asyncio.run(main())


def busy(port: int, tell: Connection) -> None:
    """Echoes of 16 KiB, checked, until it is killed."""
    there = _Counted(BUSY, tell)

    async def one(number: int) -> None:
        reader, writer = await _connect(port)
        there.one_more()
        said = random.Random(number).randbytes(1 << 14)
        while True:
            writer.write(said)
            if await reader.readexactly(len(said)) != said:
                os._exit(2)
            await asyncio.sleep(0.5)

    async def main() -> None:
        await asyncio.gather(*(one(number) for number in range(BUSY)))

    asyncio.run(main())


@contextlib.contextmanager
def trouble(port: int) -> Iterator[list[Any]]:
    """All of it, for the length of a block, from when all are connected: the processes of which some are killed."""
    here, there = spawn.Pipe()
    with beside(slow, port, there):
        doomed = [spawn.Process(target=busy, args=(port, there)) for _ in range(DOOMED)]
        for process in doomed:
            process.start()
        try:
            for _ in range(1 + DOOMED):
                if not here.poll(2 * PATIENCE):
                    raise RuntimeError("those who make trouble did not connect")
                here.recv()
            yield doomed
        finally:
            for process in doomed:
                process.kill()
                process.join()


def p99(port: int, doomed: list[Any]) -> tuple[float, int]:
    """The 99th percentile of the answers' seconds in a round, and how many were wrong; some are killed amid it."""
    here, there = spawn.Pipe()
    with beside(ask, port, ROUND, there):
        if doomed:
            time.sleep(ROUND / 2)
            for process in doomed:
                process.kill()
        if not here.poll(ROUND + 2 * PATIENCE):
            raise RuntimeError("the askers did not come to their end")
        took, wrong = here.recv()
    return statistics.quantiles(took, n=100)[98], wrong


def troubled(folder: Path, name: str) -> list[str]:
    path = str(folder / "server.sock")
    ratios, alone, beside_trouble, wrong, killed = [], [], [], 0, 0
    with beside(serve, path), WAYS[name](folder, when_there(path)) as (port, watched):
        before: dict[str, Sample] = {}
        for number in range(ROUNDS + 1):  # the first is to warm up
            quiet, bad = p99(port, [])
            with trouble(port) as doomed:
                time.sleep(1.0)  # until what that took is done
                loud, worse = p99(port, doomed[: DOOMED // 2])
                if any(process.exitcode == 2 for process in doomed):
                    worse += 1
            after = settled(watched)
            wrong += bad + worse
            killed += DOOMED
            if not number:
                before = after
                continue
            alone.append(quiet)
            beside_trouble.append(loud)
            ratios.append(loud / quiet)
    # Slow readers leave their bytes in hand, so that the pool's buffers are touched one after the other: in fourteen
    # rounds of three seconds a forward went from 36 to 51 MiB, ever more slowly, and its agent from 37 to 44.
    left = leaks(before, after, pool=LARGE_BUFFERS * BUFFER_SIZE >> 10)
    ratio = statistics.median(ratios)
    print(
        f"Through {name}: p99 {statistics.median(alone) * 1000:.2f} ms alone, "
        f"{statistics.median(beside_trouble) * 1000:.2f} ms beside {SLOW} slow readers, {SLOW} slow writers and "
        f"{DOOMED * BUSY} busy connections of which half are killed: {ratio:.2f}× "
        f"({min(ratios):.2f} – {max(ratios):.2f}); {wrong} wrong answers"
    )
    for process, was in before.items():
        print(f"  {told(process, was, after[process])}")
    with counted("load", f"slow readers, slow writers and killed peers, through {name}") as counts:
        counts.update(connections=(ROUNDS + 1) * (2 * SLOW + DOOMED * BUSY + 2 * ASKERS), wrong=wrong, left=left)
        counts.update(kills=killed, p99=[round(value, 2) for value in (ratio, min(ratios), max(ratios))])
    missed = [f"{name}: {line}" for line in left] + [f"{name}: {wrong} wrong answers"] * bool(wrong)
    return missed + [f"{name}: p99 {ratio:.2f}× with trouble"] * (ratio > LIMIT)


PARTS = ("trouble", "at-once", "rate")


def main(parts: tuple[str, ...] = PARTS, seconds: float = SECONDS, connections: float = IDLE) -> int:
    """Run the parts; the exit code."""
    count = room_for(int(connections))
    missed: list[str] = []
    print(setting())
    with tempfile.TemporaryDirectory(prefix="vsockfwd-load-") as name:
        folder = Path(name)
        for way in WAYS if "trouble" in parts else ():
            (folder / way).mkdir()
            missed += troubled(folder / way, way)
        for part, run in (
            ("at-once", lambda there: at_once(there, count)),
            ("rate", lambda there: rate(there, seconds)),
        ):
            if part in parts:
                (folder / part).mkdir()
                missed += run(folder / part)
    print("Missed:\n" + "\n".join(f"- {line}" for line in missed) if missed else "No target was missed.")
    return 1 if missed else 0


if __name__ == "__main__":
    words = sys.argv[1:]
    chosen = tuple(part for part in PARTS if part in words) or PARTS
    numbers = [float(word) for word in words if word not in PARTS]
    sys.exit(main(chosen, *numbers))
