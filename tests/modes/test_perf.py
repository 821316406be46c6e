"""`perf` against agents and plain peers, honest and not: what it says is true, and it always comes to an end."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from tests.cli.process import COMMAND, DEADLINE, agent, wait_until
from tests.cli.servers import running
from tests.engine.world import World
from tests.peers import need
from vsockfwd.address import parse
from vsockfwd.cli.main import main
from vsockfwd.contract import Call, Mode, ModeFrame
from vsockfwd.engine import Engine
from vsockfwd.engine.server import serve_listeners
from vsockfwd.engine.session import open_session
from vsockfwd.errors import (
    BadRequest,
    NoSuchMode,
    NotAllowed,
    PeerBrokeProtocol,
    TimedOut,
    Truncated,
    VerificationFailed,
    VsockfwdError,
)
from vsockfwd.events import Event, Problem
from vsockfwd.modes.content import BLOCK, content
from vsockfwd.modes.figures import Findings, Throughput
from vsockfwd.modes.measure import ACCOUNT, MODE, NAME, Account, Begun, Measure
from vsockfwd.modes.measuring import AgentFar, Asked, Far, Measuring, RawFar
from vsockfwd.modes.perf_command import PARTS
from vsockfwd.policy import Policy
from vsockfwd.transport.base import Stream
from vsockfwd.transport.memory import MemoryTransport
from vsockfwd.transport.network import Network, system_network

BRIEF = Asked(0.05, 0.05, 0, 1, 1 << 16, 64, True)
FEW = dataclasses.replace(BRIEF, moving_seconds=10.0, bytes=200_001)


@pytest.fixture
def world() -> World:
    network = Network({**system_network().transports, "memory": MemoryTransport()})
    events: list[Event] = []
    return World(Engine(network, events.append), events)


def nothing(name: str, part: Throughput | None) -> None:
    """The look of those who do not look."""


async def measured(far: Far, asked: Asked, *parts: str, kind: str = "agent", into: Findings | None = None) -> Findings:
    found = into or Findings("there", kind, asked.streams, asked.size, asked.check)
    await Measuring(far, asked, found, nothing).run(parts)
    return found


@contextlib.asynccontextmanager
async def far(world: World, serve: Callable[[Call], Awaitable[None]] | None = None) -> AsyncIterator[AgentFar]:
    """An agent that measures, honestly or as `serve` does."""
    mode = MODE if serve is None else Mode(NAME, "as told", serve=serve)
    async with world.agent({NAME: mode}), open_session(world.engine, world.target) as session:
        yield AgentFar(session)


# --- an honest agent


@pytest.mark.parametrize("streams", [1, 3])
async def test_so_many_bytes_as_were_asked_for_go_each_way_and_are_told(world: World, streams: int):
    asked = dataclasses.replace(FEW, streams=streams)
    async with far(world) as agent:
        found = await measured(agent, asked, "up", "down", "both")
    assert found.complete
    for flow in (found.up.up, found.down.down, found.both.up, found.both.down):
        assert (flow.bytes, len(flow.streams)) == (FEW.bytes, streams)
        assert max(flow.streams) - min(flow.streams) <= 1
        assert flow.bytes_per_second == pytest.approx(flow.bytes / flow.seconds)
    assert found.up.down is None
    assert found.down.up is None
    assert found.both.agent_cpu_seconds >= 0
    assert not world.reported(Problem)


async def test_each_part_lasts_as_long_as_was_asked_for_and_fills_its_findings(world: World):
    async with far(world) as agent:
        found = await measured(agent, BRIEF, "up", "down", "both", "latency", "connections")
    for part in (found.up, found.down, found.both, found.latency, found.connections):
        assert part.complete
    for flow in (found.up.up, found.down.down, found.both.up, found.both.down):
        assert flow.bytes > 0
        assert flow.seconds >= BRIEF.seconds * 0.9
    times = found.latency.spread
    assert 0 < times.min <= times.median <= times.p90 <= times.p99 <= times.p99_9 <= times.max
    assert found.connections.one.count
    assert found.connections.count
    assert not world.reported(Problem)


async def test_intervals_show_how_it_went(world: World):
    looks: list[str] = []
    found = Findings("there", "agent", 1, 1 << 16, True)
    asked = dataclasses.replace(BRIEF, moving_seconds=0.25)
    async with far(world) as agent:
        await Measuring(agent, asked, found, lambda name, part: looks.append(name)).run(["down"])
    assert looks
    assert set(looks) == {"down"}
    assert found.down.down.intervals
    assert all(value > 0 for value in found.down.down.intervals)


async def test_an_agent_that_may_not_be_measured_says_so(world: World):
    async with world.agent({NAME: MODE}) as agent, open_session(world.engine, world.target) as session:
        agent.policy = Policy(os.geteuid(), measure=False)
        with pytest.raises(NotAllowed, match="does not let itself be measured"):
            await measured(AgentFar(session), BRIEF, "up")


async def test_an_agent_of_before_is_told_from_one_that_lacks_a_plugin(world: World):
    async with world.agent(), open_session(world.engine, world.target) as session:
        with pytest.raises(NoSuchMode) as caught:
            await measured(AgentFar(session), BRIEF, "up")
    assert "install a later vsockfwd where the agent runs" in caught.value.hint


# --- an agent's own bounds


@pytest.mark.parametrize(
    "request_",
    [
        {"what": "sink", "seconds": 601},
        {"what": "source", "seconds": 0},
        {"what": "source", "seconds": 1, "size": 0},
        {"what": "source", "seconds": 1, "size": 1 << 21},
        {"what": "flood", "seconds": 1},
        {"what": "source", "seconds": float("nan")},
        {"what": "source", "seconds": 1, "bytes": -1},
    ],
    ids=str,
)
async def test_nobody_gets_an_agents_time_without_bounds(world: World, request_: dict[str, Any]):
    made = msgspec.defstruct("Request", [(key, object) for key in request_])(**request_)
    async with world.agent({NAME: MODE}), open_session(world.engine, world.target) as session:
        with pytest.raises(BadRequest):
            await session.open(NAME, made)


@pytest.mark.parametrize("what", ["sink", "source", "echo"])
async def test_a_client_that_neither_reads_nor_ends_is_cut_off(world: World, what: Any, autojump_clock: object):
    async with world.agent({NAME: MODE}), open_session(world.engine, world.target) as session:
        opened = await session.open(NAME, Measure(what, 5))
        began = trio.current_time()
        await trio.sleep_until(began + 14.9)
        assert not world.reported(Problem)
        await trio.sleep_until(began + 20)
        assert "not over 10 s after the 5 s" in world.reported(Problem)[0].why
        opened.channel.close()


async def test_a_source_ends_by_time_also_where_its_client_has_no_end(world: World):
    async with world.agent({NAME: MODE}), open_session(world.engine, world.target) as session:
        opened = await session.open(NAME, Measure("source", 0.05, size=1000))
        total = 0
        with trio.fail_after(5):
            while (view := getattr(await opened.channel.receive(), "view", None)) is not None:
                total += len(view)
        assert total > 0
        opened.channel.close()


async def test_what_reaches_a_sink_wrong_is_told_with_its_offset(world: World):
    async with world.agent({NAME: MODE}), open_session(world.engine, world.target) as session:
        opened = await session.open(NAME, Measure("sink", 5, seed=7))
        sent = bytearray(content(7, 0, 100_000))
        sent[77_777] ^= 1
        await opened.channel.send(sent)
        with pytest.raises(VerificationFailed, match=r"the agent's sink: byte 77777 .* 1 byte changed on the way"):
            await opened.channel.receive()
        opened.channel.close()
        unchecked = await session.open(NAME, Measure("sink", 5, seed=7, check=False))
        await unchecked.channel.send(sent)
        await unchecked.channel.send_end()
        account = msgspec.msgpack.decode((await unchecked.channel.receive()).payload, type=Account)
        assert account.bytes == len(sent)
        unchecked.channel.close()


# --- an agent gone wrong


def source(mangle: Callable[[bytes], bytes], told: int | None = None) -> Callable[[Call], Awaitable[None]]:
    """A source that sends something else than it should, or says that it sent `told` bytes."""

    async def serve(call: Call) -> None:
        request = call.arguments(Measure)
        channel = await call.accept(Begun(0.0))
        right = content(request.seed, 0, request.bytes)
        await channel.send(mangle(right))
        account = Account(len(right) if told is None else told, 1.0)
        await channel.send_frames((ACCOUNT, msgspec.msgpack.encode(account)))
        await channel.send_end()
        await channel.receive()

    return serve


@pytest.mark.parametrize(
    ("mangle", "told"),
    [
        (lambda b: b[:70_000] + bytes([b[70_000] ^ 4]) + b[70_001:], "byte 70000 .* 1 byte changed on the way"),
        (lambda b: b[:70_000] + b[70_001:], "byte 70000 .* as if 1 byte were lost"),
        (lambda b: b[:70_000] + b[69_999:], "byte 70000 .* as if 1 byte came twice"),
        (lambda b: b[:BLOCK] + b[2 * BLOCK :], "byte 655.* as if 65536 bytes were lost"),
        (lambda b: b[:-1], "200000 bytes arrived, the agent sent 200001"),
        (lambda b: b"", "0 bytes arrived, the agent sent 200001"),
    ],
    ids=["flipped", "dropped", "doubled", "block lost", "last lost", "all lost"],
)
async def test_a_byte_that_came_wrong_ends_it_with_its_offset(
    world: World, mangle: Callable[[bytes], bytes], told: str
):
    found = Findings("there", "agent", 1, 1 << 16, True)
    async with far(world, source(mangle)) as agent:
        with pytest.raises(VerificationFailed, match=told):
            await measured(agent, FEW, "down", into=found)
    assert not found.complete
    assert found.down is not None
    assert not found.down.complete


async def test_without_checking_only_the_count_is_compared(world: World):
    asked = dataclasses.replace(FEW, check=False)
    async with far(world, source(lambda b: bytes(len(b)))) as agent:
        assert (await measured(agent, asked, "down")).down.down.bytes == FEW.bytes
    async with far(world, source(lambda b: bytes(len(b) - 1))) as agent:
        with pytest.raises(VerificationFailed):
            await measured(agent, asked, "down")


async def saying(call: Call, *frames: tuple[int, bytes], end: bool = True) -> None:
    channel = await call.accept(Begun(0.0))
    await channel.send_frames(*frames)
    if end:
        await channel.send_end()
    with contextlib.suppress(VsockfwdError):
        while getattr(await channel.receive(), "view", None) is not None:
            pass


@pytest.mark.parametrize(
    ("frames", "error"),
    [
        ([], "no account"),
        ([(ACCOUNT, b"\xc1")], "makes no sense"),
        ([(ACCOUNT, msgspec.msgpack.encode({"bytes": -1, "cpu": 0.0}))], "makes no sense"),
        ([(ACCOUNT, msgspec.msgpack.encode({"bytes": 0, "cpu": 0.0}))] * 2, "in the midst"),
        ([(ModeFrame[1], b"")], "in the midst"),
    ],
)
async def test_an_account_that_makes_no_sense_breaks_the_protocol(
    world: World, frames: list[tuple[int, bytes]], error: str
):
    async def serve(call: Call) -> None:
        await saying(call, *frames)

    async with far(world, serve) as agent:
        with pytest.raises(PeerBrokeProtocol, match=error):
            await measured(agent, FEW, "down")


async def test_an_agent_that_lies_about_what_it_took_is_not_believed(world: World):
    async def serve(call: Call) -> None:
        channel = await call.accept(Begun(0.0))
        while getattr(await channel.receive(), "view", None) is not None:
            pass
        await channel.send_frames((ACCOUNT, msgspec.msgpack.encode(Account(5, 0.0))))
        await channel.send_end()

    async with far(world, serve) as agent:
        with pytest.raises(VerificationFailed, match="200001 bytes were sent, the agent had 5"):
            await measured(agent, FEW, "up")


@pytest.mark.parametrize("part", ["up", "down", "both", "latency", "connections"])
async def test_an_agent_that_falls_silent_is_given_up(world: World, part: str, autojump_clock: object):
    async def serve(call: Call) -> None:
        await call.accept(Begun(0.0))
        await trio.sleep_forever()

    asked = dataclasses.replace(BRIEF, seconds=3.0, moving_seconds=3.0)
    async with far(world, serve) as agent:
        began = trio.current_time()
        with pytest.raises(TimedOut, match=f"{part}: not over 10 s after its time"):
            await measured(agent, asked, part)
        assert trio.current_time() - began < 20


async def test_an_agent_that_sends_for_ever_is_given_up(world: World):
    async def serve(call: Call) -> None:
        request = call.arguments(Measure)
        channel = await call.accept(Begun(0.0))
        whole, at = content(request.seed, 0, 1 << 20), 0
        with contextlib.suppress(VsockfwdError):
            while True:  # right at first, so that it is the time or the content that ends it
                await channel.send(whole[at : at + 4096])
                at = (at + 4096) % len(whole)
                await trio.lowlevel.checkpoint()

    async with far(world, serve) as agent:
        with trio.fail_after(DEADLINE), pytest.raises(VerificationFailed):
            await measured(agent, BRIEF, "down")


async def test_an_agent_that_is_lost_midway_is_truncation_and_what_was_measured_stays(world: World):
    found = Findings("there", "agent", 1, 1 << 16, True)
    asked = dataclasses.replace(BRIEF, moving_seconds=10.0)

    async def serve(call: Call) -> None:
        request = call.arguments(Measure)
        channel = await call.accept(Begun(0.0))
        await channel.send(content(request.seed, 0, 300_000))
        await channel.aclose()

    async with far(world, serve) as agent:
        with pytest.raises(Truncated):
            await measured(agent, asked, "down", into=found)
    assert found.down.down.bytes == 300_000
    assert found.down.agent_cpu_seconds is None
    assert not found.down.complete


# --- plain peers


@contextlib.asynccontextmanager
async def plain(world: World, handle: Callable[[Stream], Awaitable[None]], kind: str) -> AsyncIterator[RawFar]:
    """A plain server in memory."""
    where = parse("memory:plain")

    async def served(stream: Stream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await handle(stream)
        stream.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_listeners, await world.engine.network.listen(where), served, world.engine.report)
        yield RawFar(world.engine, where, kind)
        nursery.cancel_scope.cancel()


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


async def test_a_plain_echo_is_measured_both_ways_and_checked(world: World):
    async with plain(world, echo, "echo") as peer:
        found = await measured(peer, dataclasses.replace(BRIEF, streams=2), *PARTS["echo"], kind="echo")
        few = await measured(peer, FEW, "both", kind="echo")
    assert found.complete
    assert found.both.up.bytes == found.both.down.bytes > 0
    assert found.latency.spread.count
    assert found.both.agent_cpu_seconds is None
    assert few.both.down.bytes == FEW.bytes


@pytest.mark.parametrize(
    ("mangle", "told"),
    [
        (lambda b, at: b if at else bytes([b[0] ^ 1]) + b[1:], "byte 0 .* 1 byte changed"),
        (lambda b, at: b if at else b[1:], "as if 1 byte were lost|byte 0"),
        (lambda b, at: b if at else b + b[-1:], "came twice|byte"),
        (lambda b, at: b"SSH-2.0-OpenSSH\r\n", "byte 0 is 0x53"),
    ],
    ids=["flipped", "dropped", "doubled", "stranger"],
)
async def test_an_echo_that_changes_a_byte_is_found_out(world: World, mangle: Callable[[bytes, int], bytes], told: str):
    async def handle(stream: Stream) -> None:
        at = 0
        while data := await stream.receive_some():
            await stream.send_all(mangle(data, at))
            at += len(data)

    for part in ("both", "latency"):
        async with plain(world, handle, "echo") as peer:
            with pytest.raises(VerificationFailed, match=told if part == "both" else None):
                await measured(peer, FEW, part, kind="echo")


async def test_a_discard_is_no_echo_and_that_is_said_in_time(world: World, autojump_clock: object):
    async def handle(stream: Stream) -> None:
        while await stream.receive_some():
            pass

    async with plain(world, handle, "echo") as peer:
        with pytest.raises(TimedOut) as caught:
            await measured(peer, FEW, "both", kind="echo")
    assert "is it an echo?" in caught.value.hint


async def test_a_discard_and_a_source_are_measured_one_way(world: World):
    async def discard(stream: Stream) -> None:
        while await stream.receive_some():
            pass

    async def chargen(stream: Stream) -> None:
        while True:
            await stream.send_all(b"!" * 72)

    async with plain(world, discard, "discard") as peer:
        found = await measured(peer, BRIEF, "up", "connections", kind="discard")
    assert found.up.up.bytes > 0
    assert found.connections.count
    unchecked = Findings("there", "source", 1, 1 << 16, False)
    async with plain(world, chargen, "source") as peer:
        await measured(peer, BRIEF, "down", "connections", kind="source", into=unchecked)
    assert unchecked.down.down.bytes > 0
    assert unchecked.complete


# --- the command


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An agent in a process of its own."""
    with agent(tmp_path_factory.mktemp("agent")) as server:
        yield server.address


def test_people_read_every_figure_in_a_pipe_where_nothing_moves(target: str, capsys: pytest.CaptureFixture[str]):
    assert main(["perf", "-t", "0.05", "-P", "2", target]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert not {"\x1b", "\r"} & set(told.out)
    for head in (
        "up  ",
        "down  ",
        "both at once ↑",
        "both at once ↓",
        "CPU s a GiB",
        "round trip of 64 B",
        "connections: ",
    ):
        assert [line for line in told.out.splitlines() if line.startswith(head)], told.out


def test_programs_read_one_object(target: str, capsys: pytest.CaptureFixture[str]):
    assert main(["perf", "--bytes", "3M", "--size", "28k", "--up", "--json", target]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert (found["event"], found["version"], found["complete"]) == ("perf", 1, True)
    assert (found["up"]["up"]["bytes"], found["size"], found["down"]) == (3 << 20, 28 << 10, None)


def test_programs_read_why_nothing_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["perf", "--json", f"unix:{tmp_path}/none"]) == 69
    told = capsys.readouterr()
    assert json.loads(told.out)["error"] == told.err.removeprefix("vsockfwd: ").strip()


def test_what_was_measured_is_told_also_where_it_is_cut_short(tmp_path: Path):
    with agent(tmp_path) as server:
        idle = sockets(server.process.pid)
        interrupted, bereaved = measuring(server.address), measuring(server.address)
        wait_until(lambda: sockets(server.process.pid) >= idle + 4)  # a control connection and a stream of each
        begun = [cpu(process.pid) for process in (interrupted, bereaved)]
        wait_until(
            lambda: all(cpu(p.pid) >= then + 0.05 for p, then in zip((interrupted, bereaved), begun, strict=True))
        )

        # Ctrl-C: what was measured so far, and the shell's code.
        interrupted.send_signal(signal.SIGINT)
        out, _ = interrupted.communicate(timeout=DEADLINE)
        assert interrupted.returncode == 130
        found = json.loads(out)
        assert found["complete"] is found["down"]["complete"] is False
        assert found["down"]["down"]["bytes"] > 0

        # The agent is killed: what was measured so far, and why it ended.
        server.process.kill()
        out, errors = bereaved.communicate(timeout=DEADLINE)
        assert bereaved.returncode == 74, errors
        assert len(errors.splitlines()) == 1
        found = json.loads(out)
        assert found["error"] == errors.removeprefix("vsockfwd: ").strip()
        assert found["down"]["down"]["bytes"] > 0


def measuring(target: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "perf", "-t", "60", "--down", "--json", target],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def sockets(pid: int) -> int:
    """How many a process has open."""
    found = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found += os.readlink(entry).startswith("socket:")
    return found


def cpu(pid: int) -> float:
    """Seconds that a process has used."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize(
    ("words", "kind", "parts"),
    [
        (["EXEC:cat"], [], ["both", "latency", "connections"]),
        (["OPEN:/dev/null"], ["--discard"], ["up", "connections"]),
        (["OPEN:/dev/zero,rdonly"], ["--source"], ["down", "connections"]),
    ],
    ids=["echo", "discard", "source"],
)
def test_socat_is_measured_as_the_plain_peer_that_it_is(
    tmp_path: Path, words: list[str], kind: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "plain.sock"
    flags = {"--discard": ["-u"], "--source": ["-U"]}.get((kind or [""])[0], [])
    with running([need("socat"), *flags, f"UNIX-LISTEN:{path},fork", *words], path.exists):
        assert main(["perf", "--raw", *kind, "-t", "0.1", "--json", f"unix:{path}"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [name for name in ("up", "down", "both", "latency", "connections") if found[name]] == parts
    assert found["checked"] == (not kind)


def test_a_terminal_sees_it_move_and_then_the_picture(target: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_COLOR", "1")
    shows, shown = os.openpty()
    termios.tcsetwinsize(shown, (24, 100))
    with open(shows, "rb", buffering=0) as screen:
        with open(shown, "w", encoding="utf-8") as terminal, monkeypatch.context() as within:
            within.setattr(sys, "stdout", terminal)
            within.setattr(sys, "stderr", terminal)
            assert main(["perf", "-t", "0.25", "--up", target]) == 0
        pieces = []
        with contextlib.suppress(OSError):  # how a terminal's other end hears that nobody writes there any more
            while piece := screen.read(1 << 16):
                pieces.append(piece)
    told = b"".join(pieces).decode()
    assert "\r\x1b[Kup …" in told
    assert re.search("\r\x1b\\[Kup +[0-9.]+ .iB/s [▁▂▃▄▅▆▇█]", told), told
    final = told.rpartition("\x1b[K")[2]
    assert "█" in final
    assert "\x1b" not in final
    assert [line for line in final.splitlines() if len(line) > 100] == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-t", "0", "unix:/a"], "above 0, at most 600"),
        (["-t", "nan", "unix:/a"], "above 0, at most 600"),
        (["-P", "0", "unix:/a"], "--streams 0"),
        (["--size", "2M", "unix:/a"], "at most 1 MiB"),
        (["--size", "x", "unix:/a"], "a number of bytes"),
        (["--bytes", "0", "unix:/a"], "a number of bytes"),
        (["--bytes", "2", "-P", "3", "unix:/a"], "less than a byte"),
        (["--echo", "unix:/a"], "go with --raw"),
        (["--raw", "--echo", "--discard", "unix:/a"], "one of them"),
        (["--raw", "--up", "unix:/a"], "against an echo – what can: --both, --latency, --connections"),
        (["--raw", "--discard", "--latency", "unix:/a"], "against a discard"),
        (["--raw", "-p", "5", "tcp:5"], "write the port into the address"),
        (["--raw", "-"], "a descriptor is one connection"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(words: list[str], told: str, capsys: pytest.CaptureFixture[str]):
    assert main(["perf", *words]) == 2
    assert told in capsys.readouterr().err
