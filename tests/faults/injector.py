"""Failures where the kernel could give them: every call that the product makes of a socket, a file, an epoll, a pipe.

The thing to understand first: nothing of the product is wrapped. The standard library's own names (`socket.socket`,
`select.epoll`, the functions of `os`) are replaced for as long as `injected()` lasts, by ones that look who calls: a
call out of a `vsockfwd` module is counted, and is where a failure can come; everybody else's goes straight through.

A *fault point* is a call and one of the ways in which it can fail, `WAYS`. Two of these are no failures at all, and
must not be seen in the outcome: SHORT moves one byte, AGAIN says for some calls in a row that there is nothing yet.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

SHORT, AGAIN = -1, -2
HARMLESS = {SHORT, AGAIN}
"""Ways after which everything must be as if nothing had been."""

STORM = 12
"""Calls in a row that say AGAIN."""

_RECEIVING = (SHORT, AGAIN, errno.ECONNRESET, errno.EIO)
_SENDING = (SHORT, AGAIN, errno.ECONNRESET, errno.EPIPE)
_MAKING = (errno.EMFILE, errno.ENOMEM)
_READING = (errno.EIO,)
_WRITING = (errno.EIO, errno.ENOSPC)

WAYS: dict[str, tuple[int, ...]] = {
    "socket": _MAKING,
    "accept": (errno.EMFILE, errno.ENOBUFS, errno.ECONNABORTED),
    "connect": (errno.ECONNREFUSED, errno.ETIMEDOUT),
    "recv": _RECEIVING,
    "recv_into": _RECEIVING,
    "recvmsg_into": (AGAIN, errno.EIO),
    "send": _SENDING,
    "sendmsg": _SENDING,
    "send datagram": (AGAIN, errno.ENOBUFS, errno.ECONNREFUSED),
    "epoll": _MAKING,
    "register": (errno.ENOSPC, errno.ENOMEM),
    "modify": (errno.ENOMEM,),
    "pipe2": _MAKING,
    "splice": (AGAIN, errno.ECONNRESET, errno.EIO),
    "open": (errno.EMFILE, errno.EIO, errno.ENOSPC),
    "dup": _MAKING,
    "scandir": (errno.EMFILE, errno.EIO),
    **dict.fromkeys(
        ("read", "readv", "pread", "preadv", "readlink", "fstat", "stat", "lstat", "lseek", "listxattr"), _READING
    ),
    **dict.fromkeys(("write", "pwrite", "ftruncate", "mkdir", "link", "symlink", "rename", "setxattr"), _WRITING),
    **dict.fromkeys(("fsync", "unlink", "rmdir", "utime", "chmod", "fchmod", "chown", "copy_file_range"), _READING),
}
"""Every call that is counted, and how it can fail."""

MOST_WAYS = max(map(len, WAYS.values()))

_SOCKET = socket.socket
_EPOLL = select.epoll


def way_name(way: int) -> str:
    return {SHORT: "short", AGAIN: "EAGAIN"}.get(way) or errno.errorcode[way]


class Faults:
    """Counts calls, and makes one of them fail.

    `calls` has the names of those since `arm`; `hit` says what failed: the call's name, its way and who called.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.hit: tuple[str, int, str] | None = None
        self.epolls: list[_Epoll] = []
        self._at = -1
        self._way = 0
        self._storm = 0
        self._on = False

    def arm(self, at: int = -1, way: int = 0) -> None:
        """Count from here on; the call number `at` fails in its `way`th way, where it has so many. -1: none does."""
        self.calls, self.hit, self._at, self._way, self._storm, self._on = [], None, at, way, 0, True

    def disarm(self) -> None:
        """Nothing fails from here on, and nothing is counted."""
        self._on, self._storm = False, 0

    def passes(self, name: str, depth: int = 2) -> int:
        """A call is about to be made: 0, or SHORT. Raises what it fails with."""
        if not self._on:
            return 0
        caller = sys._getframe(depth)
        if not caller.f_globals.get("__name__", "").startswith("vsockfwd"):
            return 0
        self.calls.append(name)
        if self._storm and AGAIN in WAYS[name]:
            self._storm -= 1
            raise BlockingIOError(errno.EAGAIN, "injected")
        ways = WAYS[name]
        if len(self.calls) - 1 != self._at or self._way >= len(ways):
            return 0
        way = ways[self._way]
        self.hit = (name, way, f"{caller.f_globals['__name__']}:{caller.f_lineno}")
        if way == AGAIN:
            self._storm = STORM
            raise BlockingIOError(errno.EAGAIN, "injected")
        if way != SHORT:
            raise OSError(way, f"injected: {os.strerror(way)}")
        return SHORT

    def told(self) -> str:
        """What was made to fail, in words."""
        if self.hit is None:
            return "nothing"
        name, way, where = self.hit
        return f"{name} {way_name(way)} at {where}"

    def again(self, sock: socket.socket) -> None:
        """Have an edge-triggered epoll tell once more of what it told of before: the kernel would, in a while."""
        for epoll in self.epolls:
            epoll.tell_again(sock.fileno())


class _Epoll:
    """An epoll of the product's."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._epoll = _EPOLL()
        self._events: dict[int, int] = {}
        self.poll = self._epoll.poll
        self.fileno = self._epoll.fileno
        faults.epolls.append(self)

    def register(self, fd: int, events: int) -> None:
        self._faults.passes("register")
        self._epoll.register(fd, events)
        self._events[fd] = events

    def modify(self, fd: int, events: int) -> None:
        self._faults.passes("modify")
        self._epoll.modify(fd, events)
        self._events[fd] = events

    def unregister(self, fd: int) -> None:
        self._epoll.unregister(fd)
        self._events.pop(fd, None)

    @property
    def closed(self) -> bool:
        return self._epoll.closed

    def close(self) -> None:
        self._epoll.close()
        self._faults.epolls.remove(self)

    def tell_again(self, fd: int) -> None:
        if (events := self._events.get(fd)) is not None:
            with contextlib.suppress(OSError):  # closed meanwhile
                self._epoll.modify(fd, events)


def _socket_class(faults: Faults) -> type[socket.socket]:
    class Socket(_SOCKET):  # type: ignore[misc,valid-type]
        def __init__(self, *arguments: Any, **more: Any) -> None:
            faults.passes("socket")
            super().__init__(*arguments, **more)

        def accept(self) -> Any:
            faults.passes("accept")
            return super().accept()

        def connect(self, address: Any) -> None:
            faults.passes("connect")
            super().connect(address)

        def sendto(self, *arguments: Any) -> int:
            faults.passes("send datagram")
            return super().sendto(*arguments)

        def recvmsg_into(self, *arguments: Any) -> Any:
            faults.passes("recvmsg_into")
            return super().recvmsg_into(*arguments)

        def _tried(self, name: str) -> int:
            if self.type == socket.SOCK_DGRAM and name.startswith("send"):
                name = "send datagram"
            try:
                return faults.passes(name, 3)
            except BlockingIOError:
                faults.again(self)
                raise

        def recv(self, size: int, flags: int = 0) -> bytes:
            return super().recv(1 if self._tried("recv") else size, flags)

        def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:
            return super().recv_into(buffer, 1 if self._tried("recv_into") else size, flags)

        def send(self, data: Any, flags: int = 0) -> int:
            return super().send(data[:1] if self._tried("send") else data, flags)

        def sendmsg(self, parts: Any, *more: Any) -> int:
            parts = list(parts)
            return super().sendmsg([parts[0][:1]] if self._tried("sendmsg") else parts, *more)

    return Socket


def _function(faults: Faults, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **more: Any) -> Any:
        try:
            faults.passes(name)
        except BlockingIOError:
            for epoll in faults.epolls:
                for fd in arguments[:2]:  # of a splice
                    epoll.tell_again(fd)
            raise
        return function(*arguments, **more)

    return call


@contextlib.contextmanager
def injected() -> Iterator[Faults]:
    """Stand in for the standard library; sockets that are made meanwhile may live on behind it."""
    faults = Faults()

    def epoll(*arguments: Any) -> Any:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        faults.passes("epoll")
        return _Epoll(faults) if caller.startswith("vsockfwd") else _EPOLL(*arguments)

    names = [name for name in WAYS if hasattr(os, name) and not hasattr(_SOCKET, name)]
    before = {name: getattr(os, name) for name in names}
    try:
        socket.socket = _socket_class(faults)  # type: ignore[misc]
        select.epoll = epoll  # type: ignore[assignment,misc]
        for name in names:
            setattr(os, name, _function(faults, name, before[name]))
        yield faults
    finally:
        faults.disarm()
        socket.socket = _SOCKET  # type: ignore[misc]
        select.epoll = _EPOLL  # type: ignore[misc]
        for name in names:
            setattr(os, name, before[name])
