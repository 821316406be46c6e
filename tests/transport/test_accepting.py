"""Waiting for an agent that calls: who is taken, who is hung up on, and a place that belongs to one command."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
import trio.testing

from vsockfwd.address import AcceptAddress, Address, MemoryAddress, UnixAddress, parse_target
from vsockfwd.errors import CannotCreate, NotAllowed, TimedOut
from vsockfwd.identity import GuestPeer, Identity, NetworkPeer, UnixPeer, VsockPeer
from vsockfwd.transport.accepting import CALLERS, AcceptTransport, why_not
from vsockfwd.transport.base import Listener
from vsockfwd.transport.memory import MemoryListener, MemoryTransport, memory_pair
from vsockfwd.transport.unix import UnixTransport

NET = UnixTransport()


def waiting_at(path: Path, patience: float = 5.0) -> AcceptAddress:
    return AcceptAddress(UnixAddress(os.fsencode(path), options=(("connect-timeout", patience),)))


async def test_each_connect_takes_one_caller_however_many_ask_at_once(tmp_path: Path) -> None:
    transport, address = AcceptTransport(NET.listen), waiting_at(tmp_path / "home")
    taken = []

    async def take() -> None:
        taken.append(await transport.connect(address))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(take)
        await trio.testing.wait_all_tasks_blocked()
        callers = [await NET.connect(UnixAddress(os.fsencode(tmp_path / "home"))) for _ in range(5)]
    for number, caller in enumerate(callers):
        await caller.send_all(b"%d" % number)
    assert sorted([await stream.receive_some() for stream in taken]) == [b"0", b"1", b"2", b"3", b"4"]
    transport.close()
    for stream in [*callers, *taken]:
        stream.close()


async def test_a_command_that_nobody_calls_says_what_to_run_and_the_place_stays_open(tmp_path: Path) -> None:
    transport, address = AcceptTransport(NET.listen), waiting_at(tmp_path / "home", 0.05)
    with pytest.raises(TimedOut, match=r"nobody has called within 0\.05 s") as caught:
        await transport.connect(address)
    assert "is `vsockfwd serve --connect …` running there" in caught.value.hint
    caller = await NET.connect(UnixAddress(os.fsencode(tmp_path / "home")))
    (await transport.connect(address)).close()
    caller.close()
    transport.close()


async def test_callers_that_have_hung_up_meanwhile_are_passed_over(tmp_path: Path) -> None:
    transport, address = AcceptTransport(NET.listen), waiting_at(tmp_path / "home", 0.05)
    with pytest.raises(TimedOut):
        await transport.connect(address)
    for _ in range(3):
        (await NET.connect(UnixAddress(os.fsencode(tmp_path / "home")))).close()
    alive = await NET.connect(UnixAddress(os.fsencode(tmp_path / "home")))
    taken = await transport.connect(address)
    await alive.send_all(b"alive")
    assert await taken.receive_some() == b"alive"
    for stream in (alive, taken):
        stream.close()
    transport.close()


async def test_a_place_belongs_to_one_command_and_the_other_is_told(tmp_path: Path) -> None:
    first, second, address = AcceptTransport(NET.listen), AcceptTransport(NET.listen), waiting_at(tmp_path / "home")

    async def wait() -> None:
        (await first.connect(address)).close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(CannotCreate, match=r"listen on unix:.*in use") as caught:
            await second.connect(address)
        assert caught.value.hint == "a command that waits for calls needs a place of its own; is another there?"
        second.close()
        caller = await NET.connect(UnixAddress(os.fsencode(tmp_path / "home")))  # the first is as it was
        nursery.cancel_scope.deadline = trio.current_time() + 5
    assert not nursery.cancel_scope.cancelled_caught
    caller.close()
    first.close()


async def test_what_is_left_at_the_end_is_nothing_and_who_waited_knows(tmp_path: Path) -> None:
    transport, address = AcceptTransport(NET.listen), waiting_at(tmp_path / "home", 0.05)
    with pytest.raises(TimedOut):
        await transport.connect(address)
    caller = await NET.connect(UnixAddress(os.fsencode(tmp_path / "home")))
    transport.close()
    assert not (tmp_path / "home").exists()
    with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
        await caller.receive_some()
    caller.close()


async def test_a_stranger_who_calls_gets_nothing_and_is_named_where_nobody_else_came(
    autojump_clock: trio.testing.MockClock,
) -> None:
    memory = MemoryTransport()
    place = MemoryAddress("home")
    transport = AcceptTransport(memory.listen)
    address = AcceptAddress(place)

    async def stranger_calls() -> None:
        while "home" not in memory.listeners:
            await trio.lowlevel.checkpoint()
        listener = memory.listeners["home"]
        assert isinstance(listener, MemoryListener)
        ours, theirs = memory_pair()
        theirs.peer = UnixPeer(12345, 12345, 1)
        listener.waiting.append(theirs)
        listener.arrived.unpark_all()
        assert await ours.receive_some() == b""  # not a byte of the client's

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stranger_calls)
        with pytest.raises(NotAllowed, match="uid 12345 is neither"):
            await transport.connect(address)
    transport.close()


@pytest.mark.parametrize(
    ("target", "peer", "refusal"),
    [
        ("accept:vsock:3:5000", VsockPeer(3, 1023), ""),
        ("accept:vsock:3:5000", VsockPeer(3, 1024), "is not privileged"),
        ("accept:vsock:3:5000", VsockPeer(4, 1023), "is not vm(3)"),
        ("accept:vsock:3:5000,trust=machine", VsockPeer(3, 50000), ""),
        ("accept:vsock:3:5000,trust=machine", VsockPeer(4, 1023), "is not vm(3)"),
        ("accept:vsock:host:5000", VsockPeer(2, 600), ""),
        ("accept:unix:/s", UnixPeer(0, 0, 1), ""),
        ("accept:unix:/s", UnixPeer(os.geteuid(), 0, 1), ""),
        ("accept:abstract:s", UnixPeer(os.geteuid() + 1, 0, 1), "neither root nor the user who waits"),
        ("accept:hybrid:/s:1,trust=machine", GuestPeer(b"/s"), ""),
        ("accept:hybrid:/s:1", GuestPeer(b"/s"), "any user of a guest"),
        ("accept:unix:/s", NetworkPeer("127.0.0.1", 1), "proves nothing"),
    ],
)
def test_who_may_become_the_agent_of_a_command_that_waits(target: str, peer: Identity, refusal: str) -> None:
    address = parse_target(target)
    assert isinstance(address, AcceptAddress)
    told = why_not(address, peer)
    assert refusal in told
    assert bool(refusal) == bool(told)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("accept:tcp:5000", "over tcp anybody could call"),
        ("accept:hybrid:/run/vm:5000", "any user of the guest can call a hybrid socket"),
        ("accept:unix:/run/vm_5000", "where a VMM brings its guest's connections"),
    ],
)
async def test_where_a_stranger_would_pass_for_the_agent_nobody_waits(target: str, said: str) -> None:
    async def listen(address: Address) -> Sequence[Listener]:
        raise AssertionError(address)

    address = parse_target(target)
    assert isinstance(address, AcceptAddress)
    with pytest.raises(NotAllowed, match=said) as caught:
        await AcceptTransport(listen).connect(address)
    assert caught.value.hint


async def test_a_call_over_vsock_is_waited_for_on_every_cid_and_so_many_may_wait() -> None:
    asked = []

    async def listen(address: Address) -> Sequence[Listener]:
        asked.append(str(address))
        raise CannotCreate("not here")

    for target in ("accept:3", "accept:vsock:3:5000,backlog=9"):
        address = parse_target(target)
        assert isinstance(address, AcceptAddress)
        with pytest.raises(CannotCreate, match="not here"):
            await AcceptTransport(listen).connect(address)
    assert asked == [f"vsock:any:876,backlog={CALLERS}", "vsock:any:5000,backlog=9"]
