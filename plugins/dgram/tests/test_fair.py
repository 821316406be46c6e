"""The queue of datagrams that wait: whose turn it is, and who pays when there are too many."""

from __future__ import annotations

import pytest

from vsockfwd_dgram import fair
from vsockfwd_dgram.fair import OVERHEAD, FairQueue


class Lost:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self, count: int) -> None:
        self.count += count


def taken(queue: FairQueue[str]) -> list[tuple[str, bytes]]:
    out = []
    while (turn := queue.turn()) is not None:
        out.append(turn)
        queue.pop(turn[0])
    return out


@pytest.fixture
def lost() -> Lost:
    return Lost()


@pytest.fixture
def queue(lost: Lost) -> FairQueue[str]:
    return FairQueue(lost)


def test_one_who_trickles_waits_for_one_datagram_of_the_flood_and_not_for_all(queue):
    for number in range(50):
        queue.put("flood", b"%d" % number)
    queue.put("trickle", b"me")
    assert taken(queue)[1] == ("trickle", b"me")


def test_datagrams_of_a_flow_stay_in_order_whatever_comes_between(queue):
    for number in range(30):
        queue.put("abc"[number % 3], b"%d" % number)
    out = taken(queue)
    for key in "abc":
        numbers = [int(datagram) for flow, datagram in out if flow == key]
        assert numbers == sorted(numbers)
        assert len(numbers) == 10


def test_a_flood_loses_its_own_oldest_and_each_loss_is_counted(queue, lost):
    queue.put("trickle", b"me")
    for number in range(fair.FLOW_COUNT + 7):
        queue.put("flood", b"%d" % number)
    out = taken(queue)
    assert ("trickle", b"me") in out
    assert next(datagram for flow, datagram in out if flow == "flood") == b"7"
    assert lost.count == 7


def test_a_flood_that_goes_on_still_has_its_turn(queue):
    for _ in range(fair.FLOW_COUNT):
        queue.put("flood", b"")
    for _ in range(3):
        queue.put("trickle", b"")
        queue.put("flood", b"")
    assert queue.turn() == ("flood", b"")


def memory(content: list[tuple[str, bytes]]) -> int:
    return sum(len(datagram) + OVERHEAD for _, datagram in content)


def test_large_datagrams_of_one_flow_are_bounded_in_bytes(queue, lost):
    for _ in range(40):
        queue.put("flood", bytes(60_000))
    content = taken(queue)
    assert memory(content) <= fair.FLOW_BYTES
    assert len(content) + lost.count == 40


def test_many_flows_together_are_bounded_in_bytes(queue, lost):
    for number in range(1000):
        queue.put(f"source {number}", bytes(65_507))
    content = taken(queue)
    assert memory(content) <= fair.TOTAL_BYTES
    assert len(content) + lost.count == 1000


def test_one_large_datagram_passes_however_many_flows_wait(queue, lost):
    for number in range(400):
        queue.put(f"source {number}", b"x")
    queue.put("large", bytes(65_507))
    assert ("large", bytes(65_507)) in taken(queue)
    assert lost.count == 0


def test_what_a_closed_flow_had_waiting_is_gone_and_counted(queue):
    queue.put("gone", b"1")
    queue.put("gone", b"2")
    queue.put("here", b"3")
    assert queue.forget("gone") == 2
    assert queue.forget("gone") == 0
    assert taken(queue) == [("here", b"3")]
    assert not queue
