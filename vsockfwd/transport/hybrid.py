"""Hybrid vsock: the UNIX socket by which Firecracker, Cloud Hypervisor, vhost-device-vsock and libkrun show a guest.

Dialling: connect to PATH, write `CONNECT PORT\\n` in one send, read exactly one line `OK …\\n`; every byte after it is
data, so not one more may be taken. Listening: the guest's connections to (host, PORT) arrive at `PATH_PORT`.
Sources: Firecracker's docs/vsock.md; vhost-device-vsock's README.

Half-close is not promised: Firecracker turns the host's shutdown into a full close, others have done so.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from typing import Any

import trio

from vsockfwd.address import UNIX_PATH_LIMIT, HybridAddress
from vsockfwd.errors import PeerBrokeProtocol, Refused, TimedOut, UsageError, from_oserror, printable
from vsockfwd.identity import GuestPeer
from vsockfwd.transport.base import CONNECT_TIMEOUT, Features, SocketStream, Stream, Transport, close_socket
from vsockfwd.transport.unix import UnixListener, connect_unix, listen_unix, listen_unix_failed

FEATURES = Features(half_close=False, reset=False, splice_from=True, splice_to=True)

_LINE_LIMIT = 64
"""Bytes: `OK 1234567890\\n` has 14."""


class HybridListener(UnixListener):
    """Where a guest's connections arrive. The peer is the guest, whatever user its VMM runs as."""

    address: HybridAddress

    def stream_of(self, sock: socket.socket, peer: Any) -> Stream:
        guest = GuestPeer(self.address.path)
        return SocketStream(sock, FEATURES, guest, str(guest))


class HybridTransport(Transport[HybridAddress]):
    """`hybrid:`"""

    async def connect(self, address: HybridAddress, *, privileged: bool = False) -> Stream:
        sock = await connect_unix(address.path, address)
        try:
            with trio.move_on_after(address.option("connect-timeout", CONNECT_TIMEOUT)) as scope:
                await _ask(sock, address)
            if scope.cancelled_caught:
                raise TimedOut(
                    f"connect to {address.bare()}: the VMM did not answer CONNECT",
                    hint="the guest may be starting, paused or restored; try again",
                )
        except OSError as error:
            close_socket(sock)
            raise from_oserror(error, f"connect to {address.bare()}") from None
        except BaseException:
            close_socket(sock)
            raise
        return SocketStream(sock, FEATURES, GuestPeer(address.path), address.bare())

    async def listen(self, address: HybridAddress) -> Sequence[HybridListener]:
        path = address.listening_path
        if len(path) > UNIX_PATH_LIMIT:
            raise UsageError(f"{address.bare()}: {printable(path)} has {len(path)} bytes, a UNIX path's limit is 107")
        try:
            return [HybridListener(listen_unix(path, address), address, path)]
        except OSError as error:
            raise listen_unix_failed(error, address) from None


async def _ask(sock: socket.socket, address: HybridAddress) -> None:
    """Say CONNECT and take the answer's line. Raises what it means."""
    try:
        sock.send(b"CONNECT %d\n" % address.port)
    except BrokenPipeError:
        pass  # who hung up at once may have left a word; it is read below
    line = b""
    while not line.endswith(b"\n"):
        try:
            seen = sock.recv(_LINE_LIMIT, socket.MSG_PEEK)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(sock)
            continue
        except OSError as error:
            if error.errno != errno.ECONNRESET:
                raise
            seen = b""
        if not seen:
            raise Refused(
                f"connect to {address.bare()}: nothing listens on port {address.port} in the guest",
                hint="is its server running?",
            )
        # Look first, then take just the line: what stands behind it belongs to whoever uses the stream.
        line += sock.recv(seen.find(b"\n") + 1 or len(seen))
        if len(line) > _LINE_LIMIT or not b"OK ".startswith(line[:3]):
            raise PeerBrokeProtocol(
                f"connect to {address.bare()}: the socket answered '{printable(line)}' to CONNECT",
                hint="is it a VMM's vsock socket? unix: is for plain ones",
            )
