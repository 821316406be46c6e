"""Many datagrams in one call: which may leave together, and socket addresses in the kernel's form and back."""

from __future__ import annotations

import errno
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsockfwd_dgram import batch as batches
from vsockfwd_dgram.batch import TOGETHER, TOGETHER_BYTES, Batch, alike, python_name, raw_name


@given(st.lists(st.integers(0, 3) | st.sampled_from([1400, 20_000, 65_507]), min_size=1, max_size=200))
def test_what_leaves_together_has_one_size_but_for_a_shorter_last_one_and_fits(sizes: list[int]) -> None:
    run = [memoryview(bytes(size)) for size in sizes]
    at = 0
    while at < len(run):
        count = alike(run, at)
        part = sizes[at : at + count]
        assert 1 <= count <= TOGETHER
        assert len(part) == count
        if count > 1:
            assert set(part[:-1]) == {part[0]}
            assert 0 < part[-1] <= part[0]
            assert sum(part) <= TOGETHER_BYTES
        at += count


@pytest.mark.parametrize(
    ("family", "name"),
    [
        (socket.AF_INET, ("127.0.0.1", 53)),
        (socket.AF_INET6, ("fe80::1", 65535, 0, 7)),
        (socket.AF_UNIX, b"/run/a"),
        (socket.AF_UNIX, b"\0abstract\0"),
    ],
)
def test_a_socket_address_is_the_same_there_and_back(family: int, name: object) -> None:
    assert python_name(raw_name(family, name)) == name


@pytest.mark.parametrize("call", [None, "kernel"])
def test_a_batch_knows_sizes_and_sources_and_what_did_not_fit(call: str | None) -> None:
    batch = Batch() if call else Batch(lambda: None)
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with near, far:
        near.setblocking(False)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        with pytest.raises(BlockingIOError):
            batch.receive(near)
        for size in (0, 5, 70_000):
            far.send(b"x" * size)
        assert batch.receive(near) == 3
        assert batch.sizes == [0, 5, 70_000]
        assert batch.view[batch.places[1] : batch.places[1] + 5] == b"xxxxx"
        assert batch.names() == [b"", b"", b""]


def test_an_error_behind_the_first_datagrams_is_kept_where_the_kernel_would_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Refused:
        family = socket.AF_INET

        def __init__(self) -> None:
            self.left = [b"one"]

        def recvmsg_into(self, buffers: list[memoryview], *_: int) -> tuple[int, list[object], int, object]:
            if not self.left:
                raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")
            buffers[0][:3] = self.left.pop()
            return 3, [], 0, ("127.0.0.1", 9)

    batch = Batch(lambda: None)
    assert batch.receive(Refused()) == 1  # type: ignore[arg-type]
    assert isinstance(batch.late, ConnectionRefusedError)


def test_a_kernel_without_the_call_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def missing(*_: object) -> int:
        asked.append(1)
        return -1

    monkeypatch.setattr(batches.ctypes, "get_errno", lambda: errno.ENOSYS)
    batch = Batch(lambda: missing)
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with near, far:
        near.setblocking(False)
        for word in (b"one", b"three"):
            far.send(word)
            batch.receive(near)
            assert batch.sizes == [len(word)]
    assert asked == [1]
