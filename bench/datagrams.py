"""Load for datagram tunnels, at C speed: batches of datagrams from many sources through one socket, and their arrival.

The thing to understand first: Python calls the kernel once for a batch (sendmmsg, recvmmsg), so that what is measured
is the tunnel. A thousand sources are one socket bound to every address, whose messages each say by IP_PKTINFO which
address of 127.0.0.0/8 they come from: to who receives them they are a thousand clients.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import time
from dataclasses import dataclass

_LIBC = ctypes.CDLL(None, use_errno=True)
_MSG_DONTWAIT = 0x40
_IP_PKTINFO = 8
_SO_TIMESTAMPNS = 35
_SO_RCVBUFFORCE, _SO_SNDBUFFORCE = 33, 32
_MMSGHDR = struct.Struct("=QI4xQQQQi4xI4x")  # msghdr: name, its length, iov, count, control, its length, flags; length
_IOVEC = struct.Struct("=QQ")
_SOCKADDR = struct.Struct("=H2s4s8x")
_CONTROL = struct.Struct("=Qii i4s4s4x")  # cmsghdr: length, level, type; in_pktinfo
_STAMP = struct.Struct("=QQ")
"""At the head of each datagram: its number, and when it was handed to the kernel, in nanoseconds of the real time."""

_TIME = struct.Struct("=qq")
_ROOM = 64
"""Bytes for the ancillary data of one datagram that was received."""

BUFFER = 32 << 20
BATCH = 64


def _address(of: ctypes.Array[ctypes.c_char]) -> int:
    return ctypes.addressof(of)


def endpoint(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """A UDP socket with buffers that hold what a tunnel may bring in one go."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    for forced, plain in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, BUFFER)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, plain, BUFFER)
    sock.bind((host, port))
    return sock


class Sender:
    """Sends datagrams of one size to one place, in turn from so many sources."""

    def __init__(self, port: int, flows: int, size: int) -> None:
        self.sock = endpoint("0.0.0.0")
        self.sent = 0
        self.stamped = False
        """Whether each datagram says when it was sent."""
        self._flows = max(flows, BATCH)  # sources repeat where there are fewer than a batch
        self._size = size
        self._name = ctypes.create_string_buffer(
            _SOCKADDR.pack(socket.AF_INET, port.to_bytes(2, "big"), socket.inet_aton("127.0.0.1")), _SOCKADDR.size
        )
        self._data = ctypes.create_string_buffer(size * self._flows)
        self._view = memoryview(self._data).cast("B")
        self._control = ctypes.create_string_buffer(_CONTROL.size * self._flows)
        self._iov = ctypes.create_string_buffer(_IOVEC.size * self._flows)
        self._messages = ctypes.create_string_buffer(_MMSGHDR.size * self._flows)
        for at in range(self._flows):
            number = at % flows
            source = bytes((127, 1, number >> 8, (number & 0xFF))) if flows > 1 else bytes((127, 0, 0, 1))
            info = (socket.IPPROTO_IP, _IP_PKTINFO, 0, source, bytes(4))
            _CONTROL.pack_into(self._control, at * _CONTROL.size, _CONTROL.size - 4, *info)
            _IOVEC.pack_into(self._iov, at * _IOVEC.size, _address(self._data) + at * size, size)
            _MMSGHDR.pack_into(
                self._messages,
                at * _MMSGHDR.size,
                _address(self._name),
                _SOCKADDR.size,
                _address(self._iov) + at * _IOVEC.size,
                1,
                _address(self._control) + at * _CONTROL.size,
                _CONTROL.size,
                0,
                0,
            )
        self._at = 0

    def send(self, count: int) -> int:
        """Send up to so many, at most BATCH, stamped where that is wanted; how many the kernel took."""
        at = self._at
        count = min(count, BATCH, self._flows - at)
        if self.stamped:
            now = time.time_ns()
            for offset in range(count):
                _STAMP.pack_into(self._view, (at + offset) * self._size, self.sent + offset, now)
        done = _LIBC.sendmmsg(
            self.sock.fileno(), ctypes.c_void_p(_address(self._messages) + at * _MMSGHDR.size), count, _MSG_DONTWAIT
        )
        if done < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self.sent += done
        self._at = (at + done) % self._flows
        return int(done)


class Receiver:
    """Takes datagrams in batches, of which it looks at lengths and, where asked, at the stamps."""

    def __init__(self, *, stamped: bool = False, sock: socket.socket | None = None) -> None:
        self.sock = sock or endpoint()
        self.delays: list[int] = []
        """Nanoseconds from the sender's stamp to the arrival, as the kernel noted it; where `stamped`."""
        if stamped:
            self.sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._stamped = stamped
        self.port = int(self.sock.getsockname()[1])
        self.received = 0
        self.wrong = 0
        """Datagrams of another size than expected."""
        slot = 2048
        self._slot = slot
        self._data = ctypes.create_string_buffer(slot * BATCH)
        self._view = memoryview(self._data).cast("B")
        self._controls = ctypes.create_string_buffer(_ROOM * BATCH)
        iov = self._iov = ctypes.create_string_buffer(_IOVEC.size * BATCH)
        self._messages = ctypes.create_string_buffer(_MMSGHDR.size * BATCH)
        for at in range(BATCH):
            _IOVEC.pack_into(iov, at * _IOVEC.size, _address(self._data) + at * slot, slot)
            control = (_address(self._controls) + at * _ROOM, _ROOM) if stamped else (0, 0)
            iovec = _address(iov) + at * _IOVEC.size
            _MMSGHDR.pack_into(self._messages, at * _MMSGHDR.size, 0, 0, iovec, 1, *control, 0, 0)
        self._fresh = self._messages.raw
        self._lengths = memoryview(self._messages).cast("B").cast("I")[14 :: _MMSGHDR.size // 4]

    def take(self, size: int) -> int:
        """Take a batch at most; how many those were."""
        if self._stamped:
            self._messages.raw = self._fresh
        done = int(
            _LIBC.recvmmsg(self.sock.fileno(), ctypes.c_void_p(_address(self._messages)), BATCH, _MSG_DONTWAIT, None)
        )
        if done <= 0:
            return 0
        self.received += done
        if self._stamped:
            for at in range(done):
                seconds, nanoseconds = _TIME.unpack_from(self._controls, at * _ROOM + socket.CMSG_LEN(0))
                _, sent = _STAMP.unpack_from(self._data, at * self._slot)
                self.delays.append(seconds * 1_000_000_000 + nanoseconds - sent)
        self.wrong += done - self._lengths[:done].tolist().count(size)
        return done


class Answered(Receiver):
    """Takes answers: what comes to `port` is sent back from there, and counts when its source has it again."""

    def __init__(self, sender: Sender, size: int) -> None:
        super().__init__(sock=sender.sock)
        self.far = endpoint()
        self.port = int(self.far.getsockname()[1])
        self._names = ctypes.create_string_buffer(_SOCKADDR.size * BATCH)
        self._words = ctypes.create_string_buffer(size * BATCH)
        self._pieces = ctypes.create_string_buffer(_IOVEC.size * BATCH)
        self._there = ctypes.create_string_buffer(_MMSGHDR.size * BATCH)
        for at in range(BATCH):
            _IOVEC.pack_into(self._pieces, at * _IOVEC.size, _address(self._words) + at * size, size)
            name, iovec = _address(self._names) + at * _SOCKADDR.size, _address(self._pieces) + at * _IOVEC.size
            _MMSGHDR.pack_into(self._there, at * _MMSGHDR.size, name, _SOCKADDR.size, iovec, 1, 0, 0, 0, 0)

    def take(self, size: int) -> int:
        far, messages = self.far.fileno(), ctypes.c_void_p(_address(self._there))
        came = _LIBC.recvmmsg(far, messages, BATCH, _MSG_DONTWAIT, None)
        if came > 0 and _LIBC.sendmmsg(far, messages, came, 0) != came:  # by the names that the kernel wrote there
            raise OSError(ctypes.get_errno(), "not all could be answered")
        return super().take(size)


@dataclass
class Run:
    """What became of one run: counts, and seconds from the first datagram out to the last in."""

    sent: int
    received: int
    wrong: int
    seconds: float

    @property
    def rate(self) -> float:
        """Datagrams a second that arrived."""
        return self.received / self.seconds if self.seconds else 0.0

    @property
    def lost(self) -> int:
        return self.sent - self.received


PASSES = 10
"""Times that all sources are sent from, at most, until a tunnel has lost none of them."""

SILENCE = 0.5
"""Seconds without an arrival after which what is still missing counts as lost."""


def windowed(sender: Sender, receiver: Receiver, size: int, count: int, window: int) -> Run:
    """As fast as it goes: at most `window` datagrams on their way at any time. What is lost frees its place late."""
    started = last = time.monotonic()
    first, before = sender.sent, receiver.received
    gone, waited = 0, 0.0
    while True:
        way = sender.sent - first - (receiver.received - before) - gone
        if sender.sent - first < count and way < window:
            sender.send(min(window - way, count - (sender.sent - first)))
        if receiver.take(size):
            last = time.monotonic()
            continue
        now = time.monotonic()
        if receiver.received - before + gone >= count:
            break
        if now - last > SILENCE:
            gone += way
            waited += now - last  # to find out what was lost is the load's pains, not the tunnel's
            last = now
            if sender.sent - first >= count:
                break
        elif way >= window or sender.sent - first >= count:
            time.sleep(0.0001)
    return Run(sender.sent - first, receiver.received - before, receiver.wrong, last - started - waited)


def introduced(sender: Sender, receiver: Receiver, size: int, flows: int) -> None:
    """Have every source known to the tunnel, with all that it makes for one, before the time starts.

    A datagram that comes while socat forks is lost: so all are sent again until none was.
    """
    for _ in range(PASSES):
        if not windowed(sender, receiver, size, flows, BATCH).lost:
            return


def paced(sender: Sender, receiver: Receiver, size: int, rate: float, seconds: float, burst: int = 16) -> Run:
    """At a rate, in bursts of so many evenly spaced."""
    started = last = time.monotonic()
    first, before = sender.sent, receiver.received
    count = int(rate * seconds)
    while True:
        now = time.monotonic()
        due = min(count, int((now - started) * rate)) - (sender.sent - first)
        if due >= burst or (due and sender.sent - first + due >= count):
            sender.send(due)
        if receiver.take(size):
            last = time.monotonic()
        elif sender.sent - first < count:
            time.sleep(max(0.0, min(0.0005, (burst - due) / rate)))
        elif receiver.received - before >= count or now - last > SILENCE:
            break
        else:
            time.sleep(0.0001)
    return Run(sender.sent - first, receiver.received - before, receiver.wrong, max(last - started, seconds))
