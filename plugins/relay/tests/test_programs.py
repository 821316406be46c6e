"""EXEC and SYSTEM: real programs, what they are told, and that none is left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from vsockfwd.plugin import NotFound, VsockfwdError
from vsockfwd_relay import programs
from vsockfwd_relay.address_type import Direction

Start = Callable[..., Any]
Everything = Callable[[trio.abc.ReceiveStream], Awaitable[bytes]]
LOCAL = "TCP-LISTEN:0,bind=127.0.0.1"
ONE_WAY = {"first_direction": Direction.READ, "second_direction": Direction.WRITE}


def runs(pid: int) -> bool:
    """Whether a process is there, and no zombie that waits for somebody else to reap it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def pids(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("options", ["", ",pipes"])
async def test_a_program_answers_after_a_half_close(relaying: Start, everything: Everything, options: str) -> None:
    running = relaying(LOCAL, f"EXEC:tr a-z A-Z{options}")
    stream = await trio.open_tcp_stream("127.0.0.1", await running.port())
    async with stream:
        await stream.send_all(b"hello")
        await stream.send_eof()
        assert await everything(stream) == b"HELLO"
    await running.end()


async def test_socats_program_and_ours_talk_to_each_other(
    relaying: Start, socat: Start, everything: Everything, tmp_path: Path
) -> None:
    running = relaying(LOCAL, f"SYSTEM:cat >{tmp_path}/got; echo answer")
    await socat(f"TCP:127.0.0.1:{await running.port()}", "EXEC:echo question")
    await running.end()
    assert (tmp_path / "got").read_bytes() == b"question\n"


async def test_programs_see_who_called(relaying: Start, everything: Everything) -> None:
    os.environ["SOCAT_PEERADDR"] = "somebody else"
    try:
        running = relaying(f"{LOCAL},fork", "SYSTEM:env")
        port = await running.port()
        for _ in range(2):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                own = stream.socket.getsockname()[1]
                told = dict(line.split("=", 1) for line in (await everything(stream)).decode().splitlines())
            assert (told["SOCAT_PEERADDR"], told["SOCAT_PEERPORT"]) == ("127.0.0.1", str(own))
            assert (told["SOCAT_SOCKADDR"], told["SOCAT_SOCKPORT"]) == ("127.0.0.1", str(port))
            assert told["SOCAT_PID"] == str(os.getpid())
            assert told["VSOCKFWD_PEER"] == f"127.0.0.1:{own}"
        alone = relaying(f"OPEN:{os.devnull}", "SYSTEM:env", dump_text=True)
        await alone.end()
        assert "SOCAT_PEERADDR" not in "".join(alone.shown), "a stale peer was handed on"
    finally:
        del os.environ["SOCAT_PEERADDR"]


async def test_ipv6_peers_are_written_as_socat_writes_them(relaying: Start, everything: Everything) -> None:
    running = relaying("TCP6-LISTEN:0,bind=[::1]", "SYSTEM:echo $SOCAT_PEERADDR")
    async with await trio.open_tcp_stream("::1", await running.port()) as stream:
        assert await everything(stream) == b"[0000:0000:0000:0000:0000:0000:0000:0001]\n"


async def test_a_program_and_what_it_started_end_with_the_relay(
    relaying: Start, until: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "_has_terminal", lambda: False)
    monkeypatch.setattr(programs, "FINISH", 0.1)
    noted = tmp_path / "pids"
    running = relaying(f"SYSTEM:echo $$ >{noted}; sleep 100 & echo $! >>{noted}; wait", "PIPE", idle=0.5)
    await until(lambda: len(pids(noted)) == 2)
    await running.end()
    await until(lambda: not any(map(runs, pids(noted))))


async def test_a_program_that_ignores_being_told_to_stop_is_killed(
    relaying: Start, until: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "FINISH", 0.1)
    noted = tmp_path / "pid"
    running = relaying(f"SYSTEM:trap \\'\\' TERM; echo $$ >{noted}; while true; do sleep 1; done", "PIPE", idle=0.3)
    await until(lambda: len(pids(noted)) == 1)
    await running.end()
    assert not runs(*pids(noted))


async def test_a_program_may_finish_its_work_after_its_last_word(relaying: Start, tmp_path: Path) -> None:
    running = relaying(
        f"EXEC:sh -c \\'echo x; exec >&-; sleep 0.2; echo done >{tmp_path}/done\\',pipes",
        f"OPEN:{os.devnull}",
        **ONE_WAY,
    )
    await running.end()
    assert (tmp_path / "done").read_text() == "done\n"


async def test_a_program_that_fails_fails_the_relay(relaying: Start) -> None:
    with pytest.raises(VsockfwdError, match="exited with status 3") as raised:
        await relaying("EXEC:sh -c \\'exit 3\\'", f"OPEN:{os.devnull}", **ONE_WAY).end()
    assert raised.value.exit_code == 1
    with pytest.raises(VsockfwdError, match="ended by SIGKILL"):
        await relaying("SYSTEM:kill -9 $$", f"OPEN:{os.devnull}", **ONE_WAY).end()


async def test_a_program_that_is_not_there_is_named(relaying: Start) -> None:
    with pytest.raises(NotFound, match="run no-such-program: no such file"):
        await relaying("EXEC:no-such-program x", "PIPE").end()


async def test_standard_error_comes_along_and_a_session_is_made_where_asked(relaying: Start, tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = "EXEC:sh -c \\'echo oops >&2; ps -o sid= -p $$\\',stderr,setsid"
    await relaying(script, f"OPEN:{out},creat", **ONE_WAY).end()
    said, session = out.read_text().split()
    assert said == "oops"
    assert int(session) != os.getsid(0)


async def test_a_program_is_found_by_the_path_that_is_given(relaying: Start, tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\necho $0 found\n")
    tool.chmod(0o755)
    await relaying(f"EXEC:tool,path={tmp_path}", f"OPEN:{tmp_path}/out,creat", **ONE_WAY).end()
    assert (tmp_path / "out").read_text() == f"{tool} found\n"


async def test_each_connection_has_a_program_of_its_own(relaying: Start, everything: Everything) -> None:
    running = relaying(f"{LOCAL},fork", "SYSTEM:read x; echo $x $$")
    port = await running.port()
    first, second = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(2)]
    async with first, second:
        await second.send_all(b"two\n")
        two = await everything(second)
        await first.send_all(b"one\n")
        one = await everything(first)
    assert (one.split()[0], two.split()[0]) == (b"one", b"two")
    assert one.split()[1] != two.split()[1]


def test_a_signal_ends_the_command_and_its_program(command: Start, tmp_path: Path) -> None:
    process = command("-d", "-d", "-", f"SYSTEM:echo $$ >{tmp_path}/pid; echo ready; sleep 100")
    assert process.stdout.readline() == b"ready\n"
    pid = int((tmp_path / "pid").read_text())
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 143
    assert not Path(f"/proc/{pid}").exists()
