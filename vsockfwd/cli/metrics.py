"""Serving metrics over HTTP, by a task of ours: the least of HTTP/1.1 that a scraper needs, one request a connection.

Here, not in report/, since it needs the engine's accept loop. Nothing but GET /metrics is answered with more than a
status, a request's head is bounded in bytes and the whole exchange in time, whoever asks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated

import trio

from vsockfwd.address import parse_stream
from vsockfwd.engine import Engine
from vsockfwd.engine.server import Gate, serve_listeners
from vsockfwd.errors import UsageError
from vsockfwd.events import Listening, Report, ignore
from vsockfwd.option import Option
from vsockfwd.report import both
from vsockfwd.transport.base import Listener, Stream

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

Metrics = Annotated[
    str | None, Option("--metrics", metavar="ADDRESS", help="serve Prometheus metrics there, such as tcp:9876")
]

HEAD_LIMIT = 8192
"""Bytes of a request's line and headers."""

DEADLINE = 5.0
"""Seconds for the whole exchange."""

SCRAPERS = 32
"""Connections at once."""

_REASONS = {
    200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 431: "Request Header Fields Too Large",
}  # fmt: skip


@asynccontextmanager
async def metered(engine: Engine, address: str | None) -> AsyncIterator[Engine]:
    """The engine with all that it reports counted, and served at the address while the block runs; None: as it is.

    Loopback unless the address says otherwise, as everywhere. Raises AddressError, what listening may fail with, and
    UsageError where the extra is missing.
    """
    if address is None:
        yield engine
        return
    counted, registry = measured(engine)
    listeners = await engine.network.listen(parse_stream(address))
    for listener in listeners:
        engine.report(Listening(str(listener.address), "for GET /metrics"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_metrics, listeners, registry, engine.report)
        yield counted
        nursery.cancel_scope.cancel()


def measured(engine: Engine) -> tuple[Engine, CollectorRegistry]:
    """The engine with all that it reports counted as well, and where. Raises UsageError where the extra is missing."""
    try:
        from prometheus_client import CollectorRegistry

        from vsockfwd.report.metrics import MetricsReporter
    except ModuleNotFoundError as error:
        if error.name != "prometheus_client":
            raise
        raise UsageError("metrics need the package prometheus-client", hint="pip install 'vsockfwd[metrics]'") from None
    registry = CollectorRegistry()
    return dataclasses.replace(engine, report=both(engine.report, MetricsReporter(registry))), registry


async def serve_metrics(listeners: Sequence[Listener], registry: CollectorRegistry, report: Report = ignore) -> None:
    """Answer scrapes with what is counted in the registry, until cancelled; closes the listeners."""
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

    async def handle(stream: Stream) -> None:
        try:
            with trio.move_on_after(DEADLINE):
                status = _judge(await _head(stream))
                if status == 200:
                    await _answer(stream, status, CONTENT_TYPE_LATEST, generate_latest(registry))
                else:
                    await _answer(stream, status, "text/plain", f"{_REASONS[status]}\n".encode())
        except trio.BrokenResourceError:
            pass  # who asked has gone: there is nobody to tell

    await serve_listeners(listeners, handle, report, Gate(SCRAPERS))


async def _head(stream: Stream) -> bytes:
    """Read up to the empty line, the end, or the limit."""
    head = b""
    while b"\r\n\r\n" not in head and len(head) <= HEAD_LIMIT:
        piece = await stream.receive_some(HEAD_LIMIT)
        if not piece:
            break
        head += piece
    return head


def _judge(head: bytes) -> int:
    """The status that a request deserves."""
    text, end, _ = head.partition(b"\r\n\r\n")
    if len(text) + len(end) > HEAD_LIMIT:
        return 431
    words = text.split(b"\r\n", 1)[0].split(b" ")
    if not end or len(words) != 3 or words[2] not in (b"HTTP/1.1", b"HTTP/1.0"):
        return 400
    if words[1].split(b"?", 1)[0] != b"/metrics":
        return 404
    return 200 if words[0] == b"GET" else 405


async def _answer(stream: Stream, status: int, kind: str, body: bytes) -> None:
    allow = "Allow: GET\r\n" if status == 405 else ""
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        f"{allow}Connection: close\r\n\r\n"
    )
    await stream.send_all(head.encode() + body)
    await stream.send_eof()
    while await stream.receive_some():
        pass  # what came unasked: to close on it would reset the connection, and take the answer with it
