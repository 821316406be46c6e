"""What the relay's tests share: relays in this process and in their own, and socat as the peer."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.peers import need
from vsockfwd.plugin import Engine, Event
from vsockfwd_relay.relaying import Plan, run
from vsockfwd_relay.table import specify

LIMIT = 10.0
"""Seconds after which something that should have happened did not."""


class Running:
    """A relay in this process: what it reported, and what -v and -x would have shown."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.shown: list[str] = []
        self.error: BaseException | None = None
        self.done = trio.Event()
        self._more = trio.Event()

    def report(self, event: Event) -> None:
        self.events.append(str(event))
        self._more.set()
        self._more = trio.Event()

    async def said(self, pattern: str) -> re.Match[str]:
        """Wait until an event matches."""
        with trio.fail_after(LIMIT):
            while True:
                more = self._more
                for line in self.events:
                    if found := re.search(pattern, line):
                        return found
                await more.wait()

    async def port(self) -> int:
        return int((await self.said(r"listening on tcp:.*:(\d+)"))[1])

    async def end(self) -> None:
        """Wait for its end; raises what it ended with."""
        with trio.fail_after(LIMIT):
            await self.done.wait()
        if self.error is not None:
            raise self.error


@pytest.fixture
async def relaying() -> AsyncIterator[Callable[..., Running]]:
    """Start a relay in this process: two addresses, and the plan's other fields."""
    async with trio.open_nursery() as nursery:

        def start(first: str, second: str, **fields: Any) -> Running:
            running = Running()

            async def work() -> None:
                try:
                    plan = Plan(specify(first), specify(second), **fields)
                    await run(Engine(report=running.report), plan, running.shown.append)
                except Exception as error:  # noqa: BLE001 - kept for the test
                    running.error = error
                finally:
                    running.done.set()

            nursery.start_soon(work)
            return running

        yield start
        nursery.cancel_scope.cancel()


@pytest.fixture
def command() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start `vsockfwd relay …` as a process of its own; all its streams are pipes unless said otherwise."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*words: str, **options: Any) -> subprocess.Popen[bytes]:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process: subprocess.Popen[bytes] = subprocess.Popen(
            [sys.executable, "-m", "vsockfwd", "relay", *words], **(pipes | options)
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


@pytest.fixture
async def socat() -> AsyncIterator[Callable[..., Awaitable[trio.Process]]]:
    """Start the real socat; what it writes goes to pipes."""
    program = need("socat")
    async with trio.open_nursery() as nursery:

        async def start(*words: str) -> trio.Process:
            process = await trio.lowlevel.open_process(
                [program, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            nursery.start_soon(_reap, process)
            return process

        yield start
        nursery.cancel_scope.cancel()


async def _reap(process: trio.Process) -> None:
    try:
        await trio.sleep_forever()  # until the test is over
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                await pipe.aclose()


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate authority, and a server and a client that it vouches for: certificate and key in one file."""
    folder = tmp_path_factory.mktemp("keys")
    program = need("openssl")

    def openssl(*words: str) -> None:
        subprocess.run([program, *words], cwd=folder, check=True, capture_output=True)

    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl(*new, "-x509", "-keyout", "authority.key", "-out", "authority.pem", "-subj", "/CN=authority", "-days", "2")
    for name, host in (("server", "localhost"), ("client", "guest")):
        (folder / "names").write_text(f"subjectAltName=DNS:{host}\n")
        openssl(*new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/O=test/CN={host}")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "authority.pem", "-CAkey", "authority.key", "-out",
                f"{name}.crt", "-days", "2", "-extfile", "names", "-set_serial", str(len(name)))  # fmt: skip
        (folder / f"{name}.pem").write_text((folder / f"{name}.crt").read_text() + (folder / f"{name}.key").read_text())
    return folder


async def _until(condition: Callable[[], bool]) -> None:
    """Wait for what another process does, which nobody tells of."""
    with trio.fail_after(LIMIT):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.01)


async def _everything(stream: trio.abc.ReceiveStream) -> bytes:
    with trio.fail_after(LIMIT):
        return b"".join([piece async for piece in stream])


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    return _until


@pytest.fixture
def everything() -> Callable[[trio.abc.ReceiveStream], Awaitable[bytes]]:
    """Read a stream to its end."""
    return _everything
