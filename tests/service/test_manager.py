"""What a service manager hears: a datagram socket stands in for it, as sd_notify(3) describes it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.cli.process import DEADLINE, Server
from vsockfwd import service
from vsockfwd.service import Service, take


class Manager:
    """The manager's end: messages in the order in which they came."""

    def __init__(self, name: bytes) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(name)
        self.sock.settimeout(DEADLINE)

    def next(self) -> str:
        return self.sock.recv(4096).decode()

    def all(self) -> list[str]:
        """What is there already."""
        found = []
        self.sock.setblocking(False)
        try:
            while True:
                found.append(self.next())
        except BlockingIOError:
            return found
        finally:
            self.sock.settimeout(DEADLINE)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    found = Manager(os.fsencode(tmp_path / "notify"))
    yield found
    found.sock.close()


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"{tmp_path}/notify"


async def test_a_manager_hears_of_start_reload_and_stop_in_order(manager: Manager, address: str) -> None:
    told = Service(address)
    await told.ready("listening")
    before = time.monotonic_ns() // 1000
    await told.reloading()
    await told.status("one\nREADY=1\x1b")
    told.stopping()
    ready, reloading, status, stopping = manager.all()
    assert ready == "READY=1\nSTATUS=listening"
    word, usec = reloading.split("\nMONOTONIC_USEC=")
    assert word == "RELOADING=1"
    assert before <= int(usec) <= time.monotonic_ns() // 1000
    assert status == r"STATUS=one\x0aREADY=1\x1b"
    assert stopping == "STOPPING=1"


async def test_an_abstract_socket_is_a_manager_too() -> None:
    name = f"vsockfwd-manager-{os.getpid()}"
    manager = Manager(b"\0" + name.encode())
    await Service("@" + name).ready()
    assert manager.all() == ["READY=1"]
    manager.sock.close()


@pytest.mark.parametrize("nowhere", ["", "/nonexistent/notify", "@nobody-listens-here", "/" + "x" * 200, "/\0"])
async def test_a_manager_that_is_missing_costs_nothing(nowhere: str, autojump_clock: trio.testing.MockClock) -> None:
    told = Service(nowhere)
    await told.ready("x")
    await told.reloading()
    told.stopping()
    assert trio.current_time() == 0


async def test_a_manager_whose_queue_is_full_still_hears_that_we_are_ready(manager: Manager, address: str) -> None:
    told = Service(address)
    filled = 0
    while service._send(address, f"X={filled}"):
        filled += 1
    told.stopping()  # neither raises nor waits
    async with trio.open_nursery() as nursery:
        nursery.start_soon(told.ready)
        await trio.testing.wait_all_tasks_blocked(0.05)
        heard = manager.all()
        assert len(heard) == filled
    assert manager.all() == ["READY=1"]


async def test_a_manager_that_never_reads_is_given_up(
    manager: Manager, address: str, autojump_clock: trio.testing.MockClock
) -> None:
    while service._send(address, "X=1"):
        pass
    await Service(address).ready()
    assert trio.current_time() == pytest.approx(service.PATIENCE)


async def test_the_watchdog_is_fed_at_half_its_time(
    manager: Manager, address: str, autojump_clock: trio.testing.MockClock
) -> None:
    told = take({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "7"}, 7)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(told.keep_alive)
        await trio.sleep(0.75)
        for _ in range(4):
            assert manager.all() == ["WATCHDOG=1"]
            await trio.sleep(1.5)
        nursery.cancel_scope.cancel()


async def test_nobody_is_fed_who_did_not_ask(manager: Manager, address: str) -> None:
    for environment in (
        {"NOTIFY_SOCKET": address},
        {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "0"},
        {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "x"},
        {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "8"},
        {"WATCHDOG_USEC": "1000"},
    ):
        await take(environment, 7).keep_alive()
    assert manager.all() == []


def test_what_a_manager_left_in_the_environment_reaches_no_child() -> None:
    environment = {
        "NOTIFY_SOCKET": "/a", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "8", "LISTEN_PID": "8", "LISTEN_FDS": "1",
        "LISTEN_FDNAMES": "a", "HOME": "/",
    }  # fmt: skip
    assert take(environment, 7) == Service("/a", 0.0, {})
    assert environment == {"HOME": "/"}


def test_a_notify_socket_of_a_kind_that_is_not_known_is_no_manager() -> None:
    assert take({"NOTIFY_SOCKET": "vsock:2:1234"}, 7) == Service()


def test_an_agent_says_when_it_is_ready_that_it_lives_and_that_it_stops(
    manager: Manager, address: str, tmp_path: Path
) -> None:
    env = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "40000"}
    with Server("serve", "--listen", f"unix:{tmp_path}/a", env=env) as agent:
        heard = [manager.next() for _ in range(4)]
        agent.signal(signal.SIGTERM)
    heard += manager.all()
    assert f"READY=1\nSTATUS=listening on unix:{tmp_path}/a, no new privileges" in heard
    assert heard.count("WATCHDOG=1") >= 2
    assert heard[-1] == "STOPPING=1"


def test_a_command_that_fails_to_listen_is_never_ready(manager: Manager, address: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vsockfwd", "serve", "--listen", f"unix:{tmp_path}/missing/a"],
        env={**os.environ, "NOTIFY_SOCKET": address}, capture_output=True, timeout=DEADLINE,
    )  # fmt: skip
    assert done.returncode == 73
    assert manager.all() == []


def test_up_says_when_its_rules_run_when_it_has_read_them_again_and_when_it_stops(
    manager: Manager, address: str, tmp_path: Path
) -> None:
    config = tmp_path / "vsockfwd.toml"
    config.write_text(f'[[forward]]\nname = "a"\nkind = "raw"\nlisten = "unix:{tmp_path}/a"\nconnect = "unix:/b"\n')
    words = ("up", "-c", os.fspath(config), "--control", f"{tmp_path}/control.sock")
    with Server(*words, env={"NOTIFY_SOCKET": address}) as up:
        assert manager.next() == f"READY=1\nSTATUS=1 rules of {config}"
        up.process.send_signal(signal.SIGHUP)
        assert manager.next().startswith("RELOADING=1\nMONOTONIC_USEC=")
        assert manager.next() == "READY=1"
        assert up.signal(signal.SIGTERM) == 0
    assert manager.all() == ["STOPPING=1"]
