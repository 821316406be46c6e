"""`vsockfwd cp` as typed: what a location means, and how a command that fails ends."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plugins.copy.tests.test_killed import ended, start, wait_until
from vsockfwd.cli.main import main
from vsockfwd.plugin import Access, Address, BadRequest, Resource, UsageError, parse
from vsockfwd_copy import MODE
from vsockfwd_copy.command import _rate, _read_names
from vsockfwd_copy.locations import Location, parse_location, plan
from vsockfwd_copy.messages import Get, Put, Request, encode


@pytest.mark.parametrize(
    ("text", "target", "path"),
    [
        ("file", None, b"file"),
        ("/a/b:c", None, b"/a/b:c"),
        ("./a:b", None, b"./a:b"),
        ("../3:x", None, b"../3:x"),
        (":x", None, b":x"),
        ("[x]", None, b"[x]"),
        ("\udcff", None, b"\xff"),
        ("3:", "vsock:3:876", b""),
        ("3:/etc/hosts", "vsock:3:876", b"/etc/hosts"),
        ("3:a:b", "vsock:3:876", b"a:b"),
        ("[3]:x", "vsock:3:876", b"x"),
        ("[vsock:3]:x", "vsock:3:876", b"x"),
        ("[vsock:3:99]:x", "vsock:3:99", b"x"),
        ("[unix:/run/a.sock]:/etc/hosts", "unix:/run/a.sock", b"/etc/hosts"),
        ("[tcp:[::1]:9]:]:x", "tcp:[::1]:9", b"]:x"),
        ("a,b/c:x", None, b"a,b/c:x"),
        (",3:x", None, b",3:x"),
        ("[unix:/a,3:x", None, b"[unix:/a,3:x"),
    ],
)
def test_a_location_is_read_as_it_is_written(text: str, target: str | None, path: bytes) -> None:
    assert parse_location(text) == Location((parse(target),) if target else (), path)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["a"], "SOURCE… DESTINATION"),
        (["a", "b"], "both ends are on this machine"),
        (["a", "3:b", "4:c"], "different machines"),
        (["3:a", "4,5:c"], "from one agent to many"),
        (["3,4:a", "."], "a source is at one target"),
        (["a", "3,3:"], "twice"),
        (["3:a", "4:b", "."], "different machines"),
        (["3:a", "b", "."], "different machines"),
        (["", "3:"], "empty path"),
        (["guest:a", "."], "no target is called 'guest'"),
        (["vsock:3:x", "."], "brackets"),
        (["[unix:/a]:x", "[fd:3]:y"], "fd"),
    ],
)
def test_what_is_no_copy_is_refused_by_name(words: list[str], why: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan(words)
    assert why in caught.value.line()


def test_the_port_of_the_flag_is_the_agents() -> None:
    assert plan(["a", "3:"], port=99).destinations == (parse("vsock:3:99"),)


def test_a_destination_may_be_at_many_targets() -> None:
    what = plan(["a", "b", "3,[unix:/run/a.sock],4:/opt"])
    assert what.destinations == (parse("vsock:3:876"), parse("unix:/run/a.sock"), parse("vsock:4:876"))
    assert (what.sources, what.destination, what.source) == ((b"a", b"b"), b"/opt", None)
    assert plan(["3:a", "4:b"]).source == parse("vsock:3:876")


def test_the_policy_is_asked_about_every_path_that_a_request_touches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/guest")
    assert MODE.resources(encode(Request(Get([b"/etc/hosts", b"notes"])))) == (
        Resource(Access.READ, "/etc/hosts"),
        Resource(Access.READ, "/home/guest/notes"),
    )
    assert MODE.resources(encode(Request(Put(b"in", 1)))) == (Resource(Access.WRITE, "/home/guest/in"),)
    with pytest.raises(BadRequest):
        MODE.resources(encode(Request(Put(b"in\0out", 1))))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An agent's home, with the agent listening in it."""
    home = tmp_path_factory.mktemp("home")
    with ended(start(["serve", "-q", "-l", f"unix:{home}/a.sock"], home, home)):
        wait_until((home / "a.sock").exists, "the agent does not listen")
        yield home


def run(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    target = f"[unix:{place}/a.sock]:"
    words = tuple(target + word[1:] if word.startswith("@") else word for word in words)
    return subprocess.run(
        [sys.executable, "-m", "vsockfwd", "cp", *words], cwd=place, capture_output=True, text=True, timeout=20,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("@nope", "."), 1, "nope: cannot be read: no such file or directory"),
        (("-q", "@nope", "."), 1, "nope: cannot be read: no such file or directory"),
        (("a.sock", "@no/such"), 73, "the agent: no/such: no such file or directory – the directory"),
        (("a.sock", "@x"), 23, "a.sock: is a socket, not copied"),
    ],
)
def test_an_error_is_one_line_with_its_exit_code(place: Path, words: tuple[str, ...], code: int, told: str) -> None:
    done = run(place, *words)
    assert (done.returncode, done.stdout) == (code, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("vsockfwd: ")
    assert told in line


def test_a_copy_says_what_it_did_to_people_and_to_programs(place: Path) -> None:
    (place / "-odd\n").write_bytes(b"x" * 100)
    done = run(place, "-v", "--", "-odd\n", "@copy")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.splitlines()[1:-1] == ["vsockfwd: -odd\\x0a: 100 bytes, verified"]
    assert "1 files, 100 bytes" in done.stderr
    os.mkdir(place / "sub")
    done = run(place, "--json", "@copy", "@nope", str(place / "sub"))
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, done.stderr) == (23, "")
    assert [(event["name"], event["error"] != "") for event in events if event["event"] == "filedone"] == [
        ("copy", False),
        ("nope", True),
    ]
    assert run(place, "-q", "@copy", "sub").stderr == ""


def shell(place: Path, line: str) -> subprocess.CompletedProcess[bytes]:
    """A line as a person types it: `cp` is vsockfwd's, and `@` the agent's target in quotes."""
    line = line.replace("cp ", f"{sys.executable} -m vsockfwd cp ").replace("@", f"[unix:{place}/a.sock]:")
    return subprocess.run(["bash", "-o", "pipefail", "-c", line], cwd=place, capture_output=True, timeout=20)


def events(lines: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.splitlines()]


def test_stdin_and_stdout_are_a_pipes_two_ends(place: Path) -> None:
    data = os.urandom(1 << 20)
    (place / "data").write_bytes(data)
    assert shell(place, "cat data | cp -q - '@piped'").returncode == 0
    done = shell(place, "cp '@piped' -v '@piped' -")
    assert (done.returncode, done.stdout) == (0, data * 2)
    assert b"all verified" in done.stderr
    os.unlink(place / "piped")
    os.unlink(place / "data")


@pytest.mark.parametrize(
    ("line", "code", "told"),
    [
        ("cp '@data' - > /dev/full", 74, "standard output: no space left on device"),
        ("cp '@data' - >&-", 2, "standard output is closed"),
        ("cp - '@x' <&-", 2, "standard input is closed"),
        ("cp --files-from - dir '@' <&-", 2, "standard input is closed"),
    ],
)
def test_streams_that_will_not_do_are_told_in_a_line(place: Path, line: str, code: int, told: str) -> None:
    (place / "data").write_bytes(bytes(300_000))
    (place / "dir").mkdir(exist_ok=True)
    done = shell(place, line)
    assert done.returncode == code, done.stderr
    (said,) = done.stderr.decode().splitlines()
    assert told in said
    assert not (place / "x").exists()
    os.unlink(place / "data")
    (place / "dir").rmdir()


def test_who_reads_no_further_ends_the_copy_like_any_pipe(place: Path) -> None:
    (place / "data").write_bytes(os.urandom(1 << 20))
    done = shell(place, "cp '@data' - | head -c 5")
    assert (done.returncode, len(done.stdout), done.stderr) == (141, 5, b"")
    os.unlink(place / "data")


def test_progress_is_lines_for_programs_and_statistics_for_all(place: Path) -> None:
    (place / "data").write_bytes(bytes(300_000))
    done = run(place, "--progress", "json", "--stats", "@data", "copy")
    assert (done.returncode, done.stdout) == (0, "")
    told = events(done.stderr)
    assert {event["event"] for event in told} == {"planned", "moved", "filedone", "summary", "statistics"}
    assert sum(event["bytes"] for event in told if event["event"] == "moved") == 300_000
    done = run(place, "--progress", "json", "@data", "-")
    assert done.stdout == "\0" * 300_000
    assert events(done.stderr)[-1]["event"] == "summary"
    done = run(place, "--json", "--stats", "--update", "data", "@copy")
    (statistics,) = [event for event in events(done.stdout) if event["event"] == "statistics"]
    assert (statistics["unchanged"], statistics["carried"], statistics["new"]) == (1, 0, 0)
    for name in ("data", "copy"):
        os.unlink(place / name)


def test_a_dry_run_is_told_as_one(place: Path) -> None:
    (place / "data").write_bytes(b"x")
    done = run(place, "-v", "--dry-run", "@data", "new")
    assert done.returncode == 0
    assert "would" in done.stderr
    assert not (place / "new").exists()
    os.unlink(place / "data")


def test_paths_come_from_a_file(place: Path) -> None:
    (place / "tree").mkdir()
    for name in ("a", "b", "c\n"):
        (place / "tree" / name).write_text(name)
    (place / "list").write_bytes(b"a\0c\n\0")
    assert run(place, "-q", "-0", "--files-from", "list", "tree", "@to").returncode == 0
    assert sorted(os.listdir(place / "to")) == ["a", "c\n"]
    assert shell(place, "echo b | cp -q --files-from - '@tree' to").returncode == 0
    assert sorted(os.listdir(place / "to")) == ["a", "b", "c\n"]
    for folder in ("tree", "to"):
        shutil.rmtree(place / folder)
    os.unlink(place / "list")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("-P", "-L", "a", "@"), "-P and -L exclude each other"),
        (("-T", "-t", "x", "@a"), "-T and -t exclude each other"),
        (("--inplace", "--backup", "a", "@"), "exclude each other"),
        (("--inplace", "--resume", "a", "@"), "exclude each other"),
        (("--delete", "a", "@"), "--delete goes with -r"),
        (("--backup", "--suffix", "/x", "a", "@"), "no end of a name"),
        (("--backup", "--suffix", "", "a", "@"), "no end of a name"),
        (("--bwlimit", "fast", "a", "@"), "is no rate"),
        (("--bwlimit", "0", "a", "@"), "is no rate"),
        (("--bwlimit", "inf", "a", "@"), "is no rate"),
        (("--bwlimit", "nan", "a", "@"), "is no rate"),
        (("--chmod", "u=q", "a", "@"), "no change of permissions"),
        (("--digest", "md5", "a", "@"), "md5"),
        (("--progress", "loud", "a", "@"), "no such kind"),
        (("-r", "@dir", "-"), "stdout takes files, not directories"),
        (("--json", "@data", "-"), "both go to stdout"),
        (("--update", "-", "@x"), "nothing to be compared by"),
        (("-", "data", "@"), "stands alone"),
        (("--files-from", "nope", "a", "@"), "no such file"),
        (("-r", "--delete", "--files-from", "a.sock", "a", "@"), "exclude each other"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anybody_is_called(
    place: Path, words: tuple[str, ...], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = io.StringIO()
    words = tuple(f"[unix:{place}/nobody]:" + word[1:] if word.startswith("@") else word for word in words)
    with contextlib.redirect_stderr(errors), open(os.devnull) as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        code = main(["cp", *words])
    assert (code, told in " ".join(errors.getvalue().split())) == (2, True), errors.getvalue()


@pytest.mark.parametrize(
    ("text", "told"), [(b"../x", "leads nowhere else"), (b"", "names nothing"), (b"\n\n", "names nothing")]
)
def test_a_list_that_names_nothing_good_is_refused(tmp_path: Path, text: bytes, told: str) -> None:
    (tmp_path / "list").write_bytes(text)
    with pytest.raises(UsageError, match=told):
        _read_names(os.fspath(tmp_path / "list"), False)


def test_an_agent_with_a_root_that_is_only_read_gives_what_is_in_it_and_takes_nothing(tmp_path: Path) -> None:
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "file").write_text("inside")
    (tmp_path / "secret").write_text("outside")
    words = ["serve", "-q", "--root", f"{tmp_path}/top", "--read-only", "-l", f"unix:{tmp_path}/a.sock"]
    with ended(start(words, tmp_path, tmp_path)):
        wait_until((tmp_path / "a.sock").exists, "the agent does not listen")
        assert run(tmp_path, "-q", "@/file", "got").returncode == 0
        assert run(tmp_path, "-q", "@../secret", "stolen").returncode == 1
        done = run(tmp_path, "secret", "@new")
        assert (done.returncode, "read-only" in done.stderr) == (77, True)
    assert (tmp_path / "got").read_text() == "inside"
    assert os.listdir(tmp_path / "top") == ["file"]
    assert not (tmp_path / "stolen").exists()


@pytest.mark.parametrize(("text", "rate"), [("500k", 512_000), ("10M", 10 << 20), ("1.5g", 3 << 29), ("7", 7), ("", 0)])
def test_a_rate_is_bytes_a_second(text: str, rate: int) -> None:
    assert _rate(text) == rate


def test_a_target_of_the_config_file_is_known_by_its_name():
    where = parse("unix:/run/agent.sock")

    def read(text: str, port: int | None) -> Address:
        assert (text, port) == ("web", None)
        return where

    assert plan(["web:notes", "."], None, read).source == where
