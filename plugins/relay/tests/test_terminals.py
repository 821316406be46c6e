"""Terminals: programs on one of their own, the PTY type, and that one we were given is left as it was."""

from __future__ import annotations

import os
import pty
import stat
import termios
import tty
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from vsockfwd.plugin import UsageError
from vsockfwd_relay.address_type import Direction

Start = Callable[..., Any]
Everything = Callable[[trio.abc.ReceiveStream], Awaitable[bytes]]
ONE_WAY = {"first_direction": Direction.READ, "second_direction": Direction.WRITE}


async def said_by(relaying: Start, tmp_path: Path, program: str) -> str:
    await relaying(program, f"OPEN:{tmp_path}/out,creat,trunc", **ONE_WAY).end()
    return (tmp_path / "out").read_bytes().decode()


async def test_a_program_has_a_terminal_where_it_is_asked_for(relaying: Start, tmp_path: Path) -> None:
    assert await said_by(relaying, tmp_path, "SYSTEM:test -t 1 && echo yes || echo no") == "no\n"
    assert await said_by(relaying, tmp_path, "SYSTEM:test -t 1 && echo yes,pty") == "yes\r\n"
    assert await said_by(relaying, tmp_path, "SYSTEM:test -t 1 && echo yes,pty,rawer") == "yes\n"


async def test_a_program_s_own_terminal_is_its_session_s(relaying: Start, tmp_path: Path) -> None:
    script = "SYSTEM:echo mine >/dev/tty; ps -o sid= -p $$"
    told = await said_by(relaying, tmp_path, f"{script},pty,setsid,ctty,rawer")
    assert told.split()[0] == "mine"
    assert int(told.split()[1]) != os.getsid(0)


@pytest.mark.parametrize(
    ("options", "heard"),
    [("pty", b"word\r\ngot word\r\n"), ("pty,echo=0", b"got word\r\n"), ("pty,rawer", b"got word\n"),
     ("pty,raw", b"word^Jgot word\n")],
)  # fmt: skip
async def test_a_terminal_echoes_and_translates_as_it_is_told(
    relaying: Start, everything: Everything, tmp_path: Path, options: str, heard: bytes
) -> None:
    running = relaying(f"UNIX-LISTEN:{tmp_path}/s", f"SYSTEM:read x; echo got $x,{options}")
    await running.said("listening")
    async with await trio.open_unix_socket(str(tmp_path / "s")) as stream:
        await stream.send_all(b"word\n")
        assert await everything(stream) == heard
    await running.end()


async def test_a_program_on_a_terminal_is_given_up_a_moment_after_its_other_end(
    relaying: Start, tmp_path: Path
) -> None:
    (tmp_path / "in").write_bytes(b"word\n")
    with trio.fail_after(5):
        await relaying(f"OPEN:{tmp_path}/in!!OPEN:{tmp_path}/out,creat", "EXEC:cat,pty,rawer").end()
    assert (tmp_path / "out").read_bytes() == b"word\n"


async def test_others_open_a_terminal_of_ours_by_a_link_that_goes_with_it(relaying: Start, tmp_path: Path) -> None:
    link = tmp_path / "tty"
    link.symlink_to("/nowhere")  # a killed run's
    running = relaying(f"PTY,link={link},rawer,mode=622,wait-slave,pty-interval=0.01", "SYSTEM:read x; echo got $x")
    await running.said("PTY is /dev/pts/")
    assert stat.S_IMODE(link.stat().st_mode) == 0o622
    theirs = os.open(link, os.O_RDWR | os.O_NOCTTY)
    try:
        os.write(theirs, b"word\n")
        assert await trio.to_thread.run_sync(os.read, theirs, 100) == b"got word\n"
        await running.end()
    finally:
        os.close(theirs)
    assert not link.is_symlink()


async def test_a_terminal_whose_user_left_has_ended(relaying: Start, tmp_path: Path) -> None:
    running = relaying(f"PTY,link={tmp_path}/tty,rawer", f"OPEN:{tmp_path}/out,creat", **ONE_WAY)
    await running.said("PTY is /dev/pts/")
    with (tmp_path / "tty").open("wb", buffering=0) as theirs:
        theirs.write(b"last words")
    await running.end()
    assert (tmp_path / "out").read_bytes() == b"last words"


def test_a_terminal_that_we_were_given_is_left_as_it_was(command: Start) -> None:
    ours, theirs = pty.openpty()
    try:
        before = termios.tcgetattr(theirs)
        process = command("-,rawer,escape=0x1d", "EXEC:sh -c \\'echo ready; cat\\'", stdin=theirs)
        assert process.stdout.readline() == b"ready\n"
        assert not termios.tcgetattr(theirs)[tty.LFLAG] & (termios.ECHO | termios.ICANON)
        os.write(ours, b"raw\r\x04 and \x1dnot")
        assert process.stdout.read() == b"raw\r\x04 and "
        assert process.wait(10) == 0
        assert termios.tcgetattr(theirs) == before
    finally:
        os.close(ours)
        os.close(theirs)


async def test_what_is_no_terminal_cannot_be_made_raw(relaying: Start, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"x")
    with pytest.raises(UsageError, match="for a terminal, and this is none"):
        await relaying(f"OPEN:{tmp_path}/in,raw", f"OPEN:{tmp_path}/out,creat", **ONE_WAY).end()


async def test_a_shell_of_the_user_s_runs_a_command(
    relaying: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHELL", "/bin/bash")
    assert await said_by(relaying, tmp_path, "SHELL:echo ${BASH_VERSION:+bash} $0") == "bash bash\n"
    assert await said_by(relaying, tmp_path, "SHELL:echo $0:$SHELL,shell=/bin/sh") == "sh:/bin/sh\n"
    (tmp_path / "in").write_bytes(b"echo typed\n")
    await relaying(f"OPEN:{tmp_path}/in!!OPEN:{tmp_path}/out,trunc", "SHELL").end()
    assert (tmp_path / "out").read_text() == "typed\n"


async def test_a_program_starts_where_and_as_it_is_told(relaying: Start, tmp_path: Path) -> None:
    assert await said_by(relaying, tmp_path, f"SYSTEM:pwd; umask,cd={tmp_path},umask=027") == f"{tmp_path}\n0027\n"
    told = await said_by(relaying, tmp_path, "EXEC:sh -c \\'echo $0\\',login")
    assert told == "-sh\n" or told.startswith("-")
