"""`vsockfwd cp` as typed: what a location means, and how a command that fails ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from plugins.copy.tests.test_killed import ended, start, wait_until
from vsockfwd.plugin import Access, Address, BadRequest, Resource, UsageError, parse
from vsockfwd_copy import MODE
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


def test_a_target_of_the_config_file_is_known_by_its_name():
    where = parse("unix:/run/agent.sock")

    def read(text: str, port: int | None) -> Address:
        assert (text, port) == ("web", None)
        return where

    assert plan(["web:notes", "."], None, read).source == where
