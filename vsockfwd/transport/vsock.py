"""AF_VSOCK itself: a CID and a port. vsock(7), and the kernel's net/vmw_vsock/af_vsock.c.

Three things to understand first. A machine without loopback sends a connect to CID 1 to whatever hypervisor it runs
under; so CID 1 is dialled only after binding to it, which asks nobody else, has succeeded. And the kernel answers a
connect before anybody accepts it, while nobody listening reads as ECONNRESET: errors are told accordingly. And a guest
sends in small pieces, since many VMMs lose or garble large ones: see PACKET.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import random
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any

import trio

from vsockfwd.address import VsockAddress
from vsockfwd.errors import Refused, TimedOut, TransportMissing, Unreachable, VsockfwdError, from_oserror
from vsockfwd.identity import CID_ANY, CID_HOST, CID_LOCAL, VsockPeer, cid_text
from vsockfwd.transport.base import (
    BACKLOG,
    Dial,
    Features,
    SocketListener,
    SocketStream,
    Stream,
    Transport,
    connect_failed,
    connect_socket,
    listen_failed,
)

FEATURES = Features(half_close=True, reset=False)

BUFFER = 1 << 20
"""Bytes of a socket's buffer; the kernel's own default, and maximum until it is raised, is 256 KiB."""

PACKET = 28 << 10
"""Most bytes of one send from a guest: what still makes a packet of one piece.

One send is one packet of at most 64 KiB. Since Linux 6.17 (and the stable kernels it was carried back to) a guest hands
a packet of more than 32 KiB less its bookkeeping to the device in several pieces, and devices that expected one drop it
or garble the stream, without an error: vhost-device-vsock 0.3.0, and Firecracker (issue 5475), Cloud Hypervisor (issue
7672) and libkrun (issue 535) before their fixes.
"""

RETRIES = (0.02, 0.05, 0.1)
"""Seconds at most before each further attempt at a connect that met a reset: vsock refuses at once when a backlog is
full, where TCP would wait, so that a browser's burst would fail at random."""

FAMILY: int | None = getattr(socket, "AF_VSOCK", None)
"""The address family, in a Python that knows it."""

# linux/vm_sockets.h; the standard library lacks the CID and the ioctl in some versions.
_BUFFER_SIZE, _BUFFER_MAX_SIZE = 0, 2
_GET_LOCAL_CID = 0x7B9
PORT_ANY = 0xFFFF_FFFF

_PRIVILEGED_PORTS = range(512, 1024)


def own_cid() -> int | None:
    """This machine's CID as its kernel knows it, or None where it has none."""
    try:
        fd = os.open("/dev/vsock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return int(struct.unpack("I", fcntl.ioctl(fd, _GET_LOCAL_CID, bytes(4)))[0])
    except OSError:
        return None
    finally:
        os.close(fd)


def why_unsupported() -> str | None:
    """None, or why this process cannot make an AF_VSOCK socket, in words that a user can act on."""
    if not hasattr(socket, "AF_VSOCK"):
        return "this Python was built without AF_VSOCK (standalone builds are): use the distribution's python3"
    try:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return "the kernel has no AF_VSOCK: modprobe vsock (in a container: on its host)"
        if error.errno in (errno.EPERM, errno.EACCES):
            return "making an AF_VSOCK socket is forbidden here, by a container's seccomp filter or the like"
        return f"making an AF_VSOCK socket failed: {(error.strerror or '').lower()}"
    return None


def why_no_loopback() -> str | None:
    """None, or why CID 1 is not to be dialled here. Binding asks this machine's kernel only."""
    if (reason := why_unsupported()) is not None:
        return reason
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((CID_LOCAL, PORT_ANY))
        except OSError:
            return "the kernel has no vsock loopback: modprobe vsock_loopback"
    return None


def buffer_sizes() -> tuple[int, int, bool]:
    """Bytes of a socket's buffer and its maximum, as the kernel gives them; whether it takes BUFFER. Raises OSError."""
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
        given = [
            struct.unpack("Q", sock.getsockopt(socket.AF_VSOCK, option, 8))[0]
            for option in (_BUFFER_SIZE, _BUFFER_MAX_SIZE)
        ]
        try:
            sock.setsockopt(socket.AF_VSOCK, _BUFFER_MAX_SIZE, BUFFER)
            sock.setsockopt(socket.AF_VSOCK, _BUFFER_SIZE, BUFFER)
        except OSError:
            return given[0], given[1], False
        return given[0], given[1], True


def _vsock(address: VsockAddress) -> socket.socket:
    if (reason := why_unsupported()) is not None:
        raise TransportMissing(f"{address.bare()}: no vsock", hint=reason)
    sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    size = address.option("buffer", BUFFER)
    try:
        # The maximum first, or the size is cut to it; before connect, and on the listener (children inherit).
        sock.setsockopt(socket.AF_VSOCK, _BUFFER_MAX_SIZE, size)
        sock.setsockopt(socket.AF_VSOCK, _BUFFER_SIZE, size)
    except OSError as error:
        sock.close()
        raise from_oserror(error, f"{address.bare()}: setting the buffer to {size} bytes") from None
    return sock


def _bind_privileged(sock: socket.socket) -> None:
    """Bind a source port below 1024, if this process may: it shows the peer that a privileged process asks."""
    ports = random.sample(_PRIVILEGED_PORTS, len(_PRIVILEGED_PORTS))
    for port in ports:
        try:
            sock.bind((CID_ANY, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            return  # EACCES: not privileged, and the peer will see so
        return


def through_a_device(peer_cid: int, ask: Callable[[], int | None]) -> bool:
    """Whether what is sent to that CID leaves this machine through the vsock device of its hypervisor.

    `ask`: for this machine's own CID, where that decides it.
    """
    if peer_cid in (CID_LOCAL, CID_HOST):
        return peer_cid == CID_HOST
    own = ask()
    return own is not None and CID_HOST < own < CID_ANY


class VsockStream(SocketStream):
    """A vsock connection."""

    def __init__(self, sock: socket.socket, peer: VsockPeer, name: str, ask: Callable[[], int | None]) -> None:
        super().__init__(sock, FEATURES, peer, name)
        if through_a_device(peer.cid, ask):
            self.try_send = self._try_send_packet  # type: ignore[method-assign]
            self.try_send_parts = self._try_send_first  # type: ignore[method-assign]

    def _try_send_packet(self, data: memoryview | bytes | bytearray) -> int:
        return self.sock.send(data[:PACKET])

    def _try_send_first(self, parts: Sequence[memoryview]) -> int:
        return self.sock.send(parts[0][:PACKET])


class VsockListener(SocketListener):
    """A vsock listener. The peer's address is there at accept only."""

    def __init__(self, sock: socket.socket, address: VsockAddress) -> None:
        super().__init__(sock, address)
        # Once, and not before somebody has come: a guest's driver may be loaded after its agent.
        self._own_cid = functools.cache(own_cid)

    def stream_of(self, sock: socket.socket, peer: Any) -> Stream:
        who = VsockPeer(*peer)
        return VsockStream(sock, who, str(who), self._own_cid)


class VsockTransport(Transport[VsockAddress]):
    """`vsock:`"""

    def supported(self) -> str | None:
        return why_unsupported()

    def connect_now(self, address: VsockAddress) -> Stream | Dial | None:
        """Begin; where a backlog is full, `connect` tries again."""
        if address.cid == CID_ANY or address.option("connect-timeout") is not None:
            return None
        if address.cid == CID_LOCAL and why_no_loopback() is not None:
            return None
        try:
            sock = _vsock(address)
        except OSError:
            return None
        number = sock.connect_ex((address.cid, address.port))
        if number not in (0, errno.EINPROGRESS):
            sock.close()
            return None

        def made(number: int) -> Stream:
            if number:
                raise OSError(number, "connect failed")
            return VsockStream(sock, VsockPeer(address.cid, address.port), address.bare(), own_cid)

        return Dial(sock, made) if number else made(0)

    async def connect(self, address: VsockAddress, *, privileged: bool = False) -> Stream:
        if address.cid == CID_ANY:
            raise self.cannot("dialled with the CID any", address)
        if address.cid == CID_LOCAL and (reason := why_no_loopback()) is not None:
            raise TransportMissing(f"connect to {address.bare()}: no loopback", hint=reason)
        for pause in RETRIES:
            try:
                return await self._connect_once(address, privileged)
            except ConnectionResetError:
                await trio.sleep(pause * random.uniform(0.5, 1.0))
            except OSError as error:
                raise _connect_error(error, address) from None
        try:
            return await self._connect_once(address, privileged)
        except OSError as error:
            raise _connect_error(error, address) from None

    async def _connect_once(self, address: VsockAddress, privileged: bool) -> Stream:
        """Raises OSError."""
        sock = _vsock(address)
        try:
            if privileged:
                _bind_privileged(sock)
            await connect_socket(sock, (address.cid, address.port), address)
        except BaseException:
            sock.close()
            raise
        return VsockStream(sock, VsockPeer(address.cid, address.port), address.bare(), own_cid)

    async def listen(self, address: VsockAddress) -> Sequence[VsockListener]:
        sock = _vsock(address)
        try:
            sock.bind((address.cid, address.port or PORT_ANY))
            sock.listen(address.option("backlog", BACKLOG))
            bound = VsockAddress(address.cid, sock.getsockname()[1], options=address.options)
        except OSError as error:
            sock.close()
            raise listen_failed(error, address, _listen_hint(error, address)) from None
        return [VsockListener(sock, bound)]


def _connect_error(error: OSError, address: VsockAddress) -> VsockfwdError:
    what = f"connect to {address.bare()}"
    machine = cid_text(address.cid)
    match error.errno:
        case errno.ECONNRESET | errno.ECONNREFUSED:
            return Refused(
                f"{what}: nothing listens on port {address.port} of {machine}, or its backlog is full",
                hint="is its server (`vsockfwd serve`, for a target) running?",
            )
        case errno.ENODEV | errno.EADDRNOTAVAIL:
            return Unreachable(
                f"{what}: no way to {machine}",
                hint="is the VM running, with a vsock device of this CID, and vhost_vsock (host) or "
                "vmw_vsock_virtio_transport (guest) loaded?",
            )
        case errno.ENETUNREACH | errno.EHOSTUNREACH:
            return Unreachable(f"{what}: {machine} cannot be reached from here")
        case errno.ETIMEDOUT:
            return TimedOut(f"{what}: {machine} did not answer", hint="it may be starting; try again")
        case _:
            return connect_failed(error, address)


def _listen_hint(error: OSError, address: VsockAddress) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return "another program listens on that port"
        case errno.EACCES:
            return "ports below 1024 need root or CAP_NET_BIND_SERVICE; name another with --listen"
        case errno.EADDRNOTAVAIL:
            return f"{cid_text(address.cid)} is not this machine's own CID; `any` listens on all of them"
        case _:
            return ""
