"""Manners of a service: what the manager that started us wants to be told, and what it gave us.

sd_notify(3) and sd_listen_fds(3), spoken directly: both are a few environment variables and a datagram. Not here: what
a descriptor is used for (transport/descriptor.py), and when a command is ready (the command knows).

The thing to understand first: a manager that is missing, deaf or gone costs nothing. Nothing here raises because of
it, and for room in its queue nobody waits longer than `PATIENCE`.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field

import trio

from vsockfwd.errors import printable

FIRST_DESCRIPTOR = 3
"""Where the descriptors that are passed begin (SD_LISTEN_FDS_START, sd_listen_fds(3))."""

DESCRIPTORS = 1 << 16
"""More than a manager ever passes: a larger number makes no sense."""

PATIENCE = 5.0
"""Seconds that a message may wait for room in the manager's queue."""

STATUS_LIMIT = 200
"""Characters of a status: it is shown on one line."""


@dataclass(frozen=True, slots=True)
class Service:
    """What a service manager told and gave this process. Without one, all of it is empty and every call does nothing.

    `notify`: the socket that it listens on, '' for none; '@' begins a name in the abstract namespace.
    `watchdog`: seconds of silence after which it takes us for dead, 0 for ever.
    `descriptors`: what was passed, by name; a socket unit with several sockets gives all of them one name.
    """

    notify: str = ""
    watchdog: float = 0.0
    descriptors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    async def ready(self, status: str = "") -> None:
        """Started, or done with reloading: from now on we serve."""
        await self._tell("READY=1", _status(status))

    async def reloading(self) -> None:
        """Reading the configuration anew; `ready` ends it."""
        # The manager tells by the time whether this answers its own request (sd_notify(3), Type=notify-reload).
        await self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    async def status(self, text: str) -> None:
        """One line about what goes on, for `systemctl status`."""
        await self._tell(_status(text))

    def stopping(self) -> None:
        """About to end. Said at once or not at all: nothing may hold up the end."""
        if self.notify:
            _send(self.notify, "STOPPING=1")

    async def keep_alive(self) -> None:
        """Say at half the watchdog's time that the event loop turns, until cancelled; returns where nobody asks."""
        while self.notify and self.watchdog:
            await self._tell("WATCHDOG=1")
            await trio.sleep(self.watchdog / 2)

    async def _tell(self, *assignments: str) -> None:
        if not self.notify:
            return
        message = "\n".join(filter(None, assignments))
        with trio.move_on_after(PATIENCE):
            pause = 0.01
            while not _send(self.notify, message):
                await trio.sleep(pause)
                pause = min(pause * 2, 0.2)


def _status(text: str) -> str:
    return f"STATUS={printable(text, STATUS_LIMIT)}" if text else ""


def _send(address: str, message: str) -> bool:
    """Send one datagram to the manager; False where its queue is full. One that cannot be reached is done with."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            sock.sendto(message.encode(), b"\0" + os.fsencode(address[1:]) if address[0] == "@" else address)
    except BlockingIOError:
        return False
    except (OSError, ValueError):
        pass  # the manager has gone, or its path makes no sense: there is nobody to tell
    return True


def take(environment: MutableMapping[str, str], pid: int) -> Service:
    """Take over what a service manager left in the environment for the process `pid`.

    The variables are removed, so that no child takes them for its own, and the descriptors are closed when another
    program is executed. What was meant for another process, or makes no sense, is as if it were not there.
    """
    found = {name: environment.pop(name, "") for name in _VARIABLES}
    notify = found["NOTIFY_SOCKET"]
    watched = found["WATCHDOG_PID"] in ("", str(pid))
    return Service(
        notify if notify[:1] in ("/", "@") else "",
        _number(found["WATCHDOG_USEC"]) / 1e6 if watched else 0.0,
        _descriptors(found["LISTEN_FDS"], found["LISTEN_FDNAMES"]) if found["LISTEN_PID"] == str(pid) else {},
    )


_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


def _descriptors(count: str, names: str) -> Mapping[str, tuple[int, ...]]:
    passed = _number(count)
    numbers = range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + (passed if passed <= DESCRIPTORS else 0))
    words = names.split(":")
    if len(words) != len(numbers):
        words = ["unknown"] * len(numbers)  # what sd_listen_fds_with_names(3) calls those without a name
    found: dict[str, tuple[int, ...]] = {}
    for number, word in zip(numbers, words, strict=True):
        try:
            os.set_inheritable(number, False)
        except OSError:
            continue  # it is not open: somebody counted wrong
        found[word] = (*found.get(word, ()), number)
    return found


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0
