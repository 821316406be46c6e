"""The accept loop: one connection's failure is its own, a cap pauses, EMFILE neither spins nor kills."""

from __future__ import annotations

import errno

import pytest
import trio

from vsockfwd.address import MemoryAddress, parse
from vsockfwd.engine.server import Gate, serve_listeners
from vsockfwd.errors import Refused
from vsockfwd.events import Event, Problem
from vsockfwd.transport.base import Stream
from vsockfwd.transport.memory import MemoryTransport

ADDRESS = parse("memory:here")
assert isinstance(ADDRESS, MemoryAddress)


@pytest.mark.parametrize(
    "failure", [RuntimeError("a bug"), Refused("no"), ExceptionGroup("two", [ValueError("a bug")])]
)
async def test_a_handler_that_fails_ends_its_own_connection_alone(failure):
    transport, events = MemoryTransport(), list[Event]()

    async def handle(stream: Stream) -> None:
        if await stream.receive_some() == b"fail":
            raise failure
        await stream.send_all(b"served")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_listeners, await transport.listen(ADDRESS), handle, events.append)
        bad = await transport.connect(ADDRESS)
        await bad.send_all(b"fail")
        with trio.fail_after(5):
            with pytest.raises(trio.BrokenResourceError):  # a reset: it was not served to its end
                await bad.receive_some()
            good = await transport.connect(ADDRESS)
            await good.send_all(b"work")
            assert await good.receive_some() == b"served"
        nursery.cancel_scope.cancel()
    assert [type(event) for event in events] == [Problem]


async def test_the_cap_pauses_accepting_and_goes_on_when_a_connection_ends():
    transport, inside = MemoryTransport(), list[Stream]()

    async def handle(stream: Stream) -> None:
        inside.append(stream)
        await stream.receive_some()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_listeners, await transport.listen(ADDRESS), handle, print, Gate(2))
        clients = [await transport.connect(ADDRESS) for _ in range(3)]
        await trio.testing.wait_all_tasks_blocked()
        assert len(inside) == 2
        clients[0].close()
        await trio.testing.wait_all_tasks_blocked()
        assert len(inside) == 3
        nursery.cancel_scope.cancel()
    for client in clients:
        client.close()


async def test_running_out_of_descriptors_is_said_once_and_survived(autojump_clock):
    transport, events = MemoryTransport(), list[Event]()
    (listener,) = await transport.listen(ADDRESS)
    accept, failures = listener.try_accept, iter([errno.EMFILE] * 20)

    def exhausted() -> Stream:
        if number := next(failures, 0):
            raise OSError(number, "too many open files")
        return accept()

    listener.try_accept = exhausted  # type: ignore[method-assign]

    async def handle(stream: Stream) -> None:
        await stream.send_all(b"served")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_listeners, [listener], handle, events.append)
        client = await transport.connect(ADDRESS)
        began = trio.current_time()
        assert await client.receive_some() == b"served"
        assert trio.current_time() - began > 5, "it spun"
        nursery.cancel_scope.cancel()
    assert len(events) == 1


async def test_stopping_closes_the_listeners():
    transport = MemoryTransport()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_listeners, await transport.listen(ADDRESS), print, print)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    with pytest.raises(Refused):
        await transport.connect(ADDRESS)


async def test_a_cap_over_several_gates_counts_all_of_them():
    everywhere = Gate(2)
    one, other = Gate(5, everywhere), Gate(5, everywhere)
    one.enter()
    other.enter()
    assert one.full
    waited = trio.Event()

    async def wait() -> None:
        await one.wait_for_room()
        waited.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert not waited.is_set()
        other.leave()
        with trio.fail_after(5):
            await waited.wait()
    assert (one.now, other.now, everywhere.now) == (1, 0, 1)
