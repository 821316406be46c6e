"""Several datagrams in one call of the kernel: received by recvmmsg(2), sent in one piece by UDP_SEGMENT (udp(7)).

Both were measured against their alternatives (docs/datagrams.md). recvmmsg is reached through ctypes; where it is not
to be had (another libc, a seccomp filter), datagrams are received one by one into the same places.

The thing to understand first: nothing here allocates for what may come. A batch is memory that is mapped once and
touched as far as datagrams reach; each has a slot of its own, large enough for the largest and a byte more, so that
what does not fit is seen. UDP_GRO is left off although it is faster still with senders that use UDP_SEGMENT: a
coalesced packet that the kernel throws away counts as one drop, however many datagrams it held.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Any

from vsockfwd_dgram.frames import DATAGRAM_LIMIT

BURST = 64
"""Datagrams read from one socket before the others, and those who send, have their turn."""

TOGETHER = 64
"""Datagrams that one call may send: UDP_MAX_SEGMENTS of kernels before 6.9."""

TOGETHER_BYTES = 65_000
"""… and bytes: below what one IP packet holds, with any headers."""

NOT_TOGETHER = (errno.EINVAL, errno.EMSGSIZE, errno.EIO, errno.EOPNOTSUPP, errno.ENOPROTOOPT)
"""What a kernel or a device that cannot segment says, and a path whose packets are smaller than the datagrams."""

# Names that Python's socket module lacks: linux/udp.h.
_UDP_SEGMENT = 103
_SIZE = struct.Struct("=H")

_SLOT = DATAGRAM_LIMIT + 1 + 192
"""Bytes between two datagrams: not a power of two, which would have them all share a few lines of the cache."""

_NAME, _CONTROL = 128, 64
"""Bytes for a source's address (sockaddr_un has 110), and for the ancillary data that names ours."""

_DATA = socket.CMSG_LEN(0)
"""Where the data of the first ancillary message begins."""


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Header(ctypes.Structure):
    """struct msghdr, as glibc has it; musl's is the same in memory on little-endian machines."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint),
        ("iov", ctypes.c_void_p),
        ("iov_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):
    """struct mmsghdr"""

    _fields_ = (("header", _Header), ("length", ctypes.c_uint))


def _recvmmsg() -> Any:
    """The libc's recvmmsg, or None."""
    if sys.byteorder != "little":
        return None
    return getattr(ctypes.CDLL(None, use_errno=True), "recvmmsg", None)


class Batch:
    """Room for BURST datagrams. `sizes` are those of the last receive: more than DATAGRAM_LIMIT did not fit."""

    def __init__(self, recvmmsg: Any = _recvmmsg) -> None:
        self.sizes: list[int] = []
        self.late: OSError | None = None
        """What went wrong after the first datagrams of the last receive, where no later one would tell."""
        self._call = recvmmsg()
        self.data = mmap.mmap(-1, BURST * _SLOT)
        """Where they are; a slice is a copy, one of `view` is none."""
        self._names = mmap.mmap(-1, BURST * _NAME)
        self._controls = mmap.mmap(-1, BURST * _CONTROL)
        self.view = memoryview(self.data)
        self.places = [at * _SLOT for at in range(BURST)]
        """Where each datagram begins."""
        self._names_view = memoryview(self._names)
        self._name_places = [at * _NAME for at in range(BURST)]
        self._data_places = [at * _CONTROL + _DATA for at in range(BURST)]
        if self._call is not None:
            self._prepare()

    def _prepare(self) -> None:
        data, names, controls = (
            ctypes.addressof(ctypes.c_char.from_buffer(each)) for each in (self.data, self._names, self._controls)
        )
        self._iovecs = (_Iovec * BURST)(*(_Iovec(data + at * _SLOT, DATAGRAM_LIMIT + 1) for at in range(BURST)))
        messages = self._messages = (_Message * BURST)()
        iovecs = ctypes.addressof(self._iovecs)
        for at, message in enumerate(messages):
            iovec = iovecs + at * ctypes.sizeof(_Iovec)
            message.header = _Header(names + at * _NAME, _NAME, iovec, 1, controls + at * _CONTROL, _CONTROL, 0)
        # A call writes lengths over what it was told: before each, all is as it was at first.
        whole = self._whole = memoryview(messages).cast("B")
        self._fresh = bytes(whole)
        self._pointer = ctypes.byref(messages)
        words, size = whole.cast("I"), ctypes.sizeof(_Message)
        word = whole.cast("I").itemsize
        self._lengths = words[_Message.length.offset // word :: size // word]
        self._name_lengths = words[_Header.name_length.offset // word :: size // word]
        self._control_lengths = words[_Header.control_length.offset // word :: size // word]

    def receive(self, sock: socket.socket) -> int:
        """Receive what is there, BURST at most: how many. Raises BlockingIOError where that is none, or OSError."""
        self.late = None
        if self._call is None:
            return self._receive_singly(sock)
        self._whole[:] = self._fresh
        count = self._call(sock.fileno(), self._pointer, BURST, socket.MSG_DONTWAIT | socket.MSG_TRUNC, None)
        if count < 0:
            number = ctypes.get_errno()
            if number in (errno.ENOSYS, errno.EPERM):  # a kernel, or a filter, without the call
                self._call = None
                return self._receive_singly(sock)
            raise OSError(number, os.strerror(number))
        self.sizes = self._lengths[:count].tolist()
        return int(count)

    def names(self) -> list[bytes]:
        """The sources' addresses, as the kernel writes them."""
        names, count = self._names, len(self.sizes)
        if self._call is None:
            return self._plain_names
        lengths = self._name_lengths[:count].tolist()
        length = lengths[0]
        if lengths.count(length) == count:  # as those of IP sockets are: half the time
            cut = struct.iter_unpack(f"{length}s{_NAME - length}x", self._names_view[: count * _NAME])
            return [name for (name,) in cut]
        return [names[at : at + length] for at, length in zip(self._name_places, lengths, strict=False)]

    def controls(self, size: int) -> list[bytes]:
        """So many bytes of the data of each one's first ancillary message; b"" where there is none."""
        controls = self._controls
        if self._call is None:
            return [data[:size] for data in self._plain_controls]
        return [
            controls[at : at + size] if length else b""
            for at, length in zip(self._data_places, self._control_lengths[: len(self.sizes)].tolist(), strict=False)
        ]

    def _receive_singly(self, sock: socket.socket) -> int:
        self.sizes, self._plain_names, self._plain_controls = [], [], []
        for at in self.places:
            slot = self.view[at : at + DATAGRAM_LIMIT + 1]
            try:
                size, ancillary, _, name = sock.recvmsg_into([slot], _CONTROL, socket.MSG_TRUNC)
            except OSError as error:
                if not self.sizes:
                    raise
                self.late = None if isinstance(error, BlockingIOError) else error
                break
            self.sizes.append(size)
            self._plain_names.append(raw_name(sock.family, name))
            self._plain_controls.append(ancillary[0][2] if ancillary else b"")
        return len(self.sizes)


# --- a socket's address, as the kernel writes it and as Python does


_INET, _INET6 = struct.Struct("=H2s4s8x"), struct.Struct("=H2s4s16sI")


def raw_length(family: int) -> int:
    """Bytes of the kernel's form of an IP socket's address."""
    return (_INET if family == socket.AF_INET else _INET6).size


def raw_name(family: int, name: Any) -> bytes:
    """Python's form of a socket address as the kernel's bytes."""
    if not name:
        return b""
    if family == socket.AF_INET:
        return _INET.pack(family, name[1].to_bytes(2, "big"), socket.inet_aton(name[0]))
    if family == socket.AF_INET6:
        host, port, flow, scope = name
        packed = socket.inet_pton(family, host.partition("%")[0])
        return _INET6.pack(family, port.to_bytes(2, "big"), flow.to_bytes(4, "big"), packed, scope)
    path = os.fsencode(name)
    return family.to_bytes(2, sys.byteorder) + path + (b"" if path[:1] == b"\0" else b"\0")


def python_name(raw: bytes) -> Any:
    """The kernel's bytes of a socket address in Python's form; None for a socket without a name."""
    if len(raw) <= 2:
        return None
    family = int.from_bytes(raw[:2], sys.byteorder)
    if family == socket.AF_INET:
        _, port, packed = _INET.unpack(raw)
        return socket.inet_ntoa(packed), int.from_bytes(port, "big")
    if family == socket.AF_INET6:
        _, port, flow, packed, scope = _INET6.unpack(raw)
        host = socket.inet_ntop(socket.AF_INET6, packed)
        return host, int.from_bytes(port, "big"), int.from_bytes(flow, "big"), scope
    path = raw[2:]
    return path if path[:1] == b"\0" else path.partition(b"\0")[0]


# --- sending


def alike(run: Sequence[memoryview], at: int) -> int:
    """How many datagrams of a run, from `at` on, one call can send: all of one size, only the last may be shorter."""
    size = len(run[at])
    if not size:
        return 1
    most = min(TOGETHER, TOGETHER_BYTES // size, len(run) - at)
    for count in range(1, most):
        length = len(run[at + count])
        if length != size:
            return count + 1 if 0 < length < size else count
    return max(most, 1)


@functools.lru_cache(maxsize=1500)  # sizes repeat
def segments(size: int) -> tuple[tuple[int, int, bytes]]:
    """The ancillary data that has the kernel cut one send into datagrams of `size` bytes."""
    return ((socket.IPPROTO_UDP, _UDP_SEGMENT, _SIZE.pack(size)),)
