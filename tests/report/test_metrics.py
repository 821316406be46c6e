"""What a Prometheus server finds: scraped with a real curl, read by Prometheus's own parser."""

from __future__ import annotations

import builtins
import os
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from tests.cli.process import agent, wait_until
from tests.peers import need
from vsockfwd.address import parse
from vsockfwd.cli.metrics import DEADLINE, HEAD_LIMIT, measured, serve_metrics
from vsockfwd.engine import Engine
from vsockfwd.errors import UsageError
from vsockfwd.events import (
    Closed,
    Denied,
    Dropped,
    Ending,
    Event,
    Opened,
    Outcome,
    Problem,
    RuleChanged,
    SessionDown,
    SessionUp,
)
from vsockfwd.report.metrics import NAMES, MetricsReporter


def samples(text: str) -> dict[tuple[str, ...], float]:
    """A sample's name and the values of its labels → its value."""
    return {
        (sample.name.removeprefix("vsockfwd_"), *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def counted(*events: Event) -> dict[tuple[str, ...], float]:
    from prometheus_client import generate_latest

    reporter = MetricsReporter(CollectorRegistry())
    for event in events:
        reporter(event)
    return samples(generate_latest(reporter.registry).decode())


def closed(rule: str = "web", peer: str = "p", ending: Ending = Ending.COMPLETE) -> Closed:
    return Closed(rule, peer, Outcome(ending, sent=10, received=5, seconds=0.5))


def test_connections_bytes_and_seconds_are_counted_by_rule_and_outcome():
    found = counted(
        Opened("web", "p"), Opened("web", "p"), closed(), Opened("db", "q"), closed("db", "q", Ending.RESET)
    )
    assert found["connections_opened_total", "web"] == 2
    assert found["connections_open", "web"] == 1
    assert found["connections_open", "db"] == 0
    assert found["connections_closed_total", "complete", "web"] == 1
    assert found["connections_closed_total", "reset", "db"] == 1
    assert found["bytes_total", "sent", "web"] == 10
    assert found["bytes_total", "received", "web"] == 5
    assert found["connection_seconds_bucket", "0.1", "web"] == 0
    assert found["connection_seconds_bucket", "1.0", "web"] == 1
    assert found["connection_seconds_sum", "web"] == 0.5


def test_an_end_whose_beginning_was_not_told_leaves_the_open_connections_right():
    found = counted(Opened("web", "p"), closed(peer="refused at once", ending=Ending.REFUSED))
    assert found["connections_open", "web"] == 1
    assert found["connections_opened_total", "web"] == 2


def test_what_belongs_to_no_connection_is_counted_too():
    found = counted(
        Denied("x", "y"), Denied("x", "y", forged=True), Problem("x", "y"), Problem("x", "z"),
        Dropped("dns", "too large", 3), SessionUp("3", "me"),
        SessionUp("4", "me"), SessionDown("4", "gone"), RuleChanged("web", "up"), RuleChanged("db", "down", "why"),
    )  # fmt: skip
    assert found["denied_total",] == 2
    assert found["keys_refused_total",] == 1
    assert found["problems_total",] == 2
    assert found["datagrams_dropped_total", "too large", "dns"] == 3
    assert found["session_up", "3"] == 1
    assert found["session_up", "4"] == 0
    assert found["sessions_lost_total", "4"] == 1
    assert found["rule_up", "web"] == 1
    assert found["rule_up", "db"] == 0
    assert found["process_open_fds",] > 0


def test_a_client_that_asks_for_a_thousand_addresses_does_not_fill_the_memory():
    found = counted(*(closed(f"forward to tcp:h{n}:80") for n in range(1000)))
    assert len([key for key in found if key[0] == "connections_opened_total"]) == NAMES + 1
    assert found["connections_opened_total", "other"] == 1000 - NAMES


# --- over HTTP


@asynccontextmanager
async def scraped(registry: CollectorRegistry) -> AsyncIterator[int]:
    """A port on loopback where the registry is served."""
    async with trio.open_nursery() as nursery:
        listeners = await Engine().network.listen(parse("tcp:0"))
        nursery.start_soon(serve_metrics, listeners, registry)
        yield listeners[0].address.port  # type: ignore[attr-defined]
        nursery.cancel_scope.cancel()


async def curl(*words: str) -> tuple[str, str]:
    """The body, and the status and content type."""
    done = await trio.run_process(
        [need("curl"), "-sS", "--noproxy", "*", "-w", "\n%{http_code} %{content_type}", *words],
        capture_stdout=True, capture_stderr=True, check=False,
    )  # fmt: skip
    body, _, status = done.stdout.decode().rpartition("\n")
    assert done.returncode == 0, done.stderr
    return body, status


async def test_curl_scrapes_what_was_counted_and_nothing_but_get_metrics_is_there():
    engine, registry = measured(Engine())
    engine.report(closed())
    async with scraped(registry) as port:
        for host in ("127.0.0.1", "[::1]"):
            body, status = await curl(f"http://{host}:{port}/metrics")
            assert samples(body)["connections_closed_total", "complete", "web"] == 1
            assert status.startswith("200 text/plain; version=")
        assert (await curl(f"http://127.0.0.1:{port}/metrics?name[]=x", "-g", "--http1.0"))[1].startswith("200")
        assert (await curl(f"http://127.0.0.1:{port}/"))[1] == "404 text/plain"
        assert (await curl(f"http://127.0.0.1:{port}/metrics", "-d", "x"))[1] == "405 text/plain"
        big = "X-Big: " + "x" * HEAD_LIMIT
        assert (await curl(f"http://127.0.0.1:{port}/metrics", "-H", big))[1] == "431 text/plain"


@pytest.mark.parametrize("request_", [b"\x16\x03\x01\x02\x00\r\n\r\n", b"GET /metrics\r\n\r\n", b"GET / HTTP/1.1\r\n"])
async def test_what_is_no_request_is_told_so(request_: bytes):
    async with scraped(CollectorRegistry()) as port, await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(request_)
        await stream.send_eof()
        answer = b"".join([piece async for piece in stream])
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")


async def test_a_client_that_still_sends_when_it_is_answered_is_heard_out():
    async with scraped(CollectorRegistry()) as port, await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(b"POST /metrics HTTP/1.1\r\n\r\n")
        answer = b"".join([piece async for piece in stream])
        assert answer.startswith(b"HTTP/1.1 405 ")
        for _ in range(5):
            await stream.send_all(b"x" * 10_000)
            await trio.testing.wait_all_tasks_blocked(0.01)


async def test_who_sends_nothing_is_hung_up_on_and_who_leaves_early_is_no_problem(
    autojump_clock: trio.testing.MockClock,
):
    problems: list[Event] = []
    listeners = await Engine().network.listen(parse("tcp:0"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_metrics, listeners, CollectorRegistry(), problems.append)
        port = listeners[0].address.port  # type: ignore[attr-defined]
        with socket.create_connection(("127.0.0.1", port)) as rude:
            rude.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        with socket.create_connection(("127.0.0.1", port)) as mute:
            mute.setblocking(False)
            await trio.lowlevel.wait_readable(mute)
            assert mute.recv(10) == b""
        assert trio.current_time() == pytest.approx(DEADLINE)
        nursery.cancel_scope.cancel()
    assert problems == []


def test_without_the_extra_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def without(name: str, *rest):
        if name.partition(".")[0] == "prometheus_client":
            raise ModuleNotFoundError(f"No module named {name!r}", name="prometheus_client")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match="metrics need the package prometheus-client") as caught:
        measured(Engine())
    assert caught.value.hint == "pip install 'vsockfwd[metrics]'"


def test_an_agent_serves_what_it_counts(tmp_path: Path):
    where = tmp_path / "metrics.sock"
    scrape = [need("curl"), "-sS", "--unix-socket", os.fspath(where), "http://localhost/metrics"]

    def found() -> dict[tuple[str, ...], float]:
        return samples(subprocess.run(scrape, capture_output=True, text=True, check=True).stdout)

    with agent(tmp_path, "--metrics", f"unix:{where}") as server:
        server.wait_for("listening", 2)
        with socket.socket(socket.AF_UNIX) as garbage:
            garbage.connect(f"{tmp_path}/agent.sock")
            garbage.sendall(b"GET / HTTP/1.1\r\n\r\n")
            wait_until(lambda: found()["problems_total",] == 1)
