"""The command as a process: flags, standard streams in every state, exit codes, one line an error."""

from __future__ import annotations

import os
import pty
import re
import signal
import socket
import subprocess
import sys
import syslog
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.peers import need
from vsockfwd.plugin import Invocation, UsageError, ignore
from vsockfwd_relay.command import _families, _read, relay

Start = Callable[..., Any]
LIMIT = 10


def port_of(process: subprocess.Popen[bytes]) -> int:
    assert process.stderr is not None
    found = re.search(rb"listening on tcp:.*:(\d+)", process.stderr.readline())
    assert found is not None
    return int(found[1])


def words(*argv: str) -> int:
    return relay(Invocation(ignore, False, 0, dict), list(argv))


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["-"], "exactly 2 addresses, not 1"),
        (["-", "-", "-"], "exactly 2 addresses, not 3"),
        (["-D", "-", "-"], "socat's -D is not built here: ls -l /proc/self/fd"),
        (["-g", "-", "-"], "socat's -g is not built here"),
        (["-S9", "-", "-"], "socat's -S9 is not built here"),
        (["--experimental", "-", "-"], "socat's --experimental is not built here"),
        (["-lf"], "-lf takes a file"),
        (["-lyx", "-", "-"], "syslog has no facility 'x'"),
        (["-lz", "-", "-"], "relay has no flag -lz"),
        (["-lp9", "-", "-"], "-lp takes a program's name"),
        (["-r"], "-r takes a file"),
        (["-r", "/tmp/$NOT_A_VARIABLE_HERE", "-", "-"], "there is no variable NOT_A_VARIABLE_HERE"),
        (["--fdpass", "PIPE", "TCP:h:1"], "--fdpass stands for standard output"),
        (["--fdpass", "-v", "-", "TCP:h:1"], "what passes is not seen here"),
        (["-xv", "-", "-"], "relay has no flag -xv – flags are not merged"),
        (["-q", "-", "-"], "relay has no flag -q"),
        (["-t"], "-t is a number of seconds"),
        (["-tx", "-", "-"], "-t is a number of seconds, such as 5 or 0.5, not 'x'"),
        (["-b0", "-", "-"], "-b is a number of bytes"),
        (["-", "TCP-LISTEN:1,fork"], "fork belongs to the first address here"),
    ],
)
def test_a_command_line_that_is_wrong_is_refused_by_name(argv: list[str], told: str) -> None:
    with pytest.raises(UsageError) as raised:
        words(*argv)
    assert told in raised.value.line()


def test_help_and_version_are_answered(capsys: pytest.CaptureFixture[str]) -> None:
    assert words("-h") == words("-hh") == words("-V") == words("--help") == 0
    told = capsys.readouterr().out
    assert "TCP-LISTEN:PORT" in told
    assert "vsockfwd relay 0." in told


def test_standard_input_and_output_reach_a_server_and_its_answer_comes_back(command: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        process = command("-", f"TCP:127.0.0.1:{server.getsockname()[1]}")
        process.stdin.write(b"question")
        process.stdin.close()
        connection, _ = server.accept()
        with connection:
            assert connection.recv(100) == b"question"
            assert connection.recv(100) == b""
            connection.sendall(b"answer")
    assert process.stdout.read() == b"answer"
    assert (process.wait(LIMIT), process.stderr.read()) == (0, b"")


HOST = """
import socket, sys
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
connection, _ = server.accept()
print(connection.makefile().readline(), end="", flush=True)
connection.sendall(b"Hello, guest!\\n")
"""
GUEST = """
import socket, sys
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
connection.sendall(b"Hello, world!\\n")
print(connection.makefile().read(), end="")
"""


def test_a_plain_program_on_either_end_says_hello(command: Start) -> None:
    plain = [sys.executable, "-c"]
    with subprocess.Popen([*plain, HOST], stdout=subprocess.PIPE) as host:
        assert host.stdout is not None
        process = command("TCP-LISTEN:0,bind=127.0.0.1", f"TCP:127.0.0.1:{int(host.stdout.readline())}")
        guest = subprocess.run([*plain, GUEST, str(port_of(process))], stdout=subprocess.PIPE, timeout=LIMIT)
        assert host.stdout.read() == b"Hello, world!\n"
    assert guest.stdout == b"Hello, guest!\n"
    assert process.wait(LIMIT) == 0


def test_one_way_takes_its_bytes_from_the_side_that_the_flag_says(command: Start, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"up")
    up = command("-u", f"OPEN:{tmp_path}/in", "-")
    down = command("-U", "-", f"OPEN:{tmp_path}/in")
    assert (up.communicate(timeout=LIMIT)[0], down.communicate(timeout=LIMIT)[0]) == (b"up", b"up")


def test_a_reader_that_leaves_ends_the_relay_at_once_and_in_silence(command: Start) -> None:
    process = command("-", "EXEC:yes", stdin=subprocess.PIPE)
    assert process.stdout.readline() == b"y\n"
    process.stdout.close()
    assert process.wait(5) == 128 + signal.SIGPIPE
    assert b"vsockfwd" not in process.stderr.read()


def test_a_full_standard_output_is_an_error_of_one_line(command: Start) -> None:
    with open("/dev/full", "wb") as full:
        process = command("-u", "OPEN:/dev/zero", "-", stdout=full)
    assert process.wait(LIMIT) == 74
    assert process.stderr.read() == b"vsockfwd: write to stdio: no space left on device\n"


@pytest.mark.parametrize(("redirection", "told"), [("<&-", b"standard input"), (">&-", b"standard output")])
def test_a_standard_stream_that_is_closed_is_named(redirection: str, told: bytes) -> None:
    program = f"exec {sys.executable} -m vsockfwd relay - PIPE {redirection}"
    done = subprocess.run(["/bin/sh", "-c", program], stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT)
    assert done.returncode == 69
    assert done.stderr == b"vsockfwd: " + told + b" is not open\n"


def test_a_terminal_is_read_line_by_line_and_left_blocking(command: Start) -> None:
    ours, theirs = pty.openpty()
    try:
        process = command("-", "EXEC:tr a-z A-Z", stdin=theirs)
        os.write(ours, b"typed\n\4")
        assert process.stdout.read() == b"TYPED\n"
        assert process.wait(LIMIT) == 0
        assert os.get_blocking(theirs)
    finally:
        os.close(ours)
        os.close(theirs)


def test_what_cannot_be_reached_has_its_exit_code_and_one_line(command: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    refused = command("-", f"TCP:127.0.0.1:{port}")
    vsock = command("-", "VSOCK-CONNECT:1:876")  # the tests' guard lets no such socket be made
    for process, told in ((refused, b"connection refused"), (vsock, b"vsock")):
        _, error = process.communicate(timeout=LIMIT)
        assert process.returncode == 69
        assert told in error
        assert error.count(b"\n") == 1


def test_many_write_to_one_standard_output_and_the_first_does_not_close_it(command: Start) -> None:
    process = command("-u", "TCP-LISTEN:0,bind=127.0.0.1,fork", "-")
    port = port_of(process)
    for word in (b"first", b"second"):
        subprocess.run([need("socat"), "-u", "-", f"TCP:127.0.0.1:{port}"], input=word, check=True, timeout=LIMIT)
        assert os.read(process.stdout.fileno(), 100) == word
    process.send_signal(signal.SIGINT)
    assert process.wait(LIMIT) == 130


def test_d_tells_what_happens_and_without_it_nothing_is_said(command: Start) -> None:
    loud = command("-d", "-d", "-", "EXEC:true", stdin=subprocess.DEVNULL)
    quiet = command("-", "EXEC:true", stdin=subprocess.DEVNULL)
    told = loud.communicate(timeout=LIMIT)[1].decode()
    assert "started as process" in told
    assert "exited with status 0" in told
    assert "complete, 0 bytes out, 0 bytes in" in told
    assert quiet.communicate(timeout=LIMIT)[1] == b""


# --- flags that say where words go, and what is kept of what passes


def test_what_passes_is_kept_in_files_each_way(command: Start, tmp_path: Path) -> None:
    words = ("-r", f"{tmp_path}/$PROGNAME-$$-forth", "-R", f"{tmp_path}/back-${{TIMESTAMP}}-$MICROS", "-lp", "tool")
    process = command(*words, "-", "EXEC:tr a-z A-Z")
    assert process.communicate(b"word", timeout=LIMIT)[0] == b"WORD"
    assert (tmp_path / f"tool-{process.pid}-forth").read_bytes() == b"word"
    (back,) = tmp_path.glob("back-*")
    assert re.fullmatch(r"back-\d{8}T\d{6}-\d{6}", back.name)
    assert back.read_bytes() == b"WORD"


def test_figures_are_told_at_the_end_and_when_they_are_asked_for(command: Start) -> None:
    process = command("--statistics", "-", "EXEC:cat")
    process.stdin.write(b"word")
    process.stdin.flush()
    assert process.stdout.read(4) == b"word"
    process.send_signal(signal.SIGUSR1)
    told = b"vsockfwd: statistics: 4 bytes in 1 blocks from left to right, 4 bytes in 1 blocks from right to left\n"
    assert process.stderr.readline() == told
    process.stdin.close()
    assert process.wait(LIMIT) == 0
    assert process.stderr.read() == told


def test_words_go_to_a_file_with_time_host_and_name(command: Start, tmp_path: Path) -> None:
    process = command("-lu", "-lh", "-lp", "tool", "-lf", f"{tmp_path}/log", "-d", "-", f"OPEN:{tmp_path}/none")
    assert process.wait(LIMIT) == 1
    assert process.stderr.read() == b""
    line = (tmp_path / "log").read_text().splitlines()[-1]
    assert re.fullmatch(
        rf"\d{{4}}/\d\d/\d\d [\d:]{{8}}\.\d{{6}} {socket.gethostname()} tool: open .*: no such .*", line
    )


def test_syslog_is_told_at_once_or_when_the_work_begins(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[tuple[Any, ...]] = []
    monkeypatch.setattr(syslog, "openlog", lambda *words: told.append(words))
    monkeypatch.setattr(syslog, "syslog", lambda *words: told.append(words))
    assert words("-d", "-lylocal3", "-lp", "tool", "-", "UNIX-CONNECT:/nowhere/at/all") == 69
    assert told[0] == ("tool", syslog.LOG_PID, syslog.LOG_LOCAL3)
    assert told[-1][0] == syslog.LOG_ERR
    assert "connect to unix:/nowhere" in told[-1][1]
    told.clear()
    assert words("-ddd", "-lm", "OPEN:/dev/null,rdonly", "SYSTEM:true") == 0
    assert "opening OPEN:/dev/null" in capsys.readouterr().err
    assert any("complete" in str(each[1]) for each in told)
    assert told[0] == ("vsockfwd", syslog.LOG_PID, syslog.LOG_DAEMON)


def test_a_lock_file_keeps_a_second_relay_out_or_waiting(command: Start, tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    first = command("-L", str(lock), "-", "EXEC:cat")
    first.stdin.write(b"x")
    first.stdin.flush()
    assert first.stdout.read(1) == b"x"
    assert lock.read_text() == f"{first.pid}\n"
    second = command(f"-L{lock}", "-", "EXEC:cat")
    assert second.wait(LIMIT) == 73
    assert b"the lock file" in second.stderr.read()
    third = command("-W", str(lock), "-", "SYSTEM:echo in")
    first.stdin.close()
    assert first.wait(LIMIT) == 0
    assert third.communicate(timeout=LIMIT)[0] == b"in\n"
    assert not lock.exists()


@pytest.mark.parametrize(
    ("flags", "variables", "family"),
    [
        ((), {}, socket.AF_INET), (("-6",), {}, socket.AF_INET6), (("-0",), {}, None), (("-4",), {}, socket.AF_INET),
        ((), {"SOCAT_DEFAULT_LISTEN_IP": "6"}, socket.AF_INET6),
        (("-4",), {"SOCAT_DEFAULT_LISTEN_IP": "6"}, socket.AF_INET),
    ],
)  # fmt: skip
def test_the_family_of_a_listener_is_the_flag_s_or_the_variable_s(
    flags: tuple[str, ...], variables: dict[str, str], family: Any
) -> None:
    found = _families(flags[0][1] if flags else "", variables)
    assert found.listen == family
    assert _families("", {"SOCAT_PREFERRED_RESOLVE_IP": "6"}).first == socket.AF_INET6


def test_six_listens_on_ipv6_and_zero_on_both(command: Start) -> None:
    for flag, address in (("-6", "::1"), ("-0", "127.0.0.1"), ("-0", "::1")):
        process = command(flag, "TCP-LISTEN:0", "SYSTEM:echo hello")
        with socket.create_connection((address, port_of(process)), LIMIT) as connection:
            assert connection.recv(100) == b"hello\n"
        assert process.wait(LIMIT) == 0


@pytest.mark.parametrize(
    ("flags", "detail"),
    [
        ([], 1),
        (["-d"], 2),
        (["-d", "-d"], 2),
        (["-ddd"], 3),
        (["-d", "-d", "-d", "-d", "-d"], 4),
        (["-d0"], 0),
        (["-d3"], 3),
    ],
)
def test_every_d_says_more_as_the_manual_has_it(flags: list[str], detail: int) -> None:
    assert _read([*flags, "-", "-"])[0].detail == detail


def test_programs_are_told_by_the_name_that_lp_gives(command: Start) -> None:
    names = ("PID", "PPID", "VERSION", "PEER")
    shown = "; ".join(f"echo ${{X_Y_{name}:+X}} ${{VSOCKFWD_{name}:+V}} ${{SOCAT_{name}:+S}}" for name in names)
    process = command("-lp", "x-y", "-", f"SYSTEM:'{shown}'", stdin=subprocess.DEVNULL)
    assert process.communicate(timeout=LIMIT)[0].split(b"\n")[:4] == [b"X V"] * 3 + [b""]
