"""Terminals: `raw`, `echo` and `rawer`, on those we were given and on pseudo terminals of our own; and the PTY type.

What is changed on a terminal that we were given is changed back in the end.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import termios
import tty
from collections.abc import AsyncIterator, Iterator

import trio

from vsockfwd.plugin import Stream, UsageError, from_oserror, printable
from vsockfwd_relay.address_type import Options, Situation, Specification
from vsockfwd_relay.socket_options import at, own_name
from vsockfwd_relay.streams import over_descriptors

LOOK = 1.0
"""Seconds between two looks whether a pseudo terminal was opened."""

# asm-generic/ioctls.h; the standard library lacks both.
_TIOCSPTLCK, _TIOCGPTN = 0x40045431, 0x80045430


def wants_terminal(options: Options) -> bool:
    """Whether an address has options that only a terminal takes."""
    return bool({"raw", "rawer", "echo"} & set(options))


@contextlib.contextmanager
def prepared(spec: Specification, *numbers: int | None) -> Iterator[None]:
    """Terminals as the options want them, for the length of a block. Raises UsageError for what is none."""
    if not wants_terminal(spec.options):
        yield
        return
    terminals = [number for number in dict.fromkeys(numbers) if number is not None and os.isatty(number)]
    if not terminals:
        raise spec.refuse("raw, rawer and echo are for a terminal, and this is none", "with EXEC: add pty")
    before = [(number, termios.tcgetattr(number)) for number in terminals]
    try:
        for number in terminals:
            set_modes(number, spec)
        yield
    finally:
        for number, attributes in before:
            with contextlib.suppress(termios.error):  # its other side may be gone
                termios.tcsetattr(number, termios.TCSANOW, attributes)


def set_modes(number: int, spec: Specification) -> None:
    """Set what the options say."""
    if spec.option("rawer") or spec.option("raw"):
        echo = termios.tcgetattr(number)[tty.LFLAG] & termios.ECHO
        tty.setraw(number, termios.TCSANOW)
        if not spec.option("rawer"):
            _set_echo(number, bool(echo))
    if "echo" in spec.options:
        _set_echo(number, spec.option("echo"))


def _set_echo(number: int, on: bool) -> None:
    attributes = termios.tcgetattr(number)
    attributes[tty.LFLAG] = attributes[tty.LFLAG] & ~termios.ECHO | (termios.ECHO if on else 0)
    termios.tcsetattr(number, termios.TCSANOW, attributes)


def make_terminal() -> tuple[int, bytes]:
    """A pseudo terminal: our side of it, and the path of the other, which nobody has opened yet (pty(7)).

    Raises VsockfwdError.
    """
    try:
        ours = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(ours, _TIOCSPTLCK, struct.pack("i", 0))
            number = struct.unpack("i", fcntl.ioctl(ours, _TIOCGPTN, bytes(4)))[0]
        except BaseException:
            os.close(ours)
            raise
    except OSError as error:
        raise from_oserror(error, "make a pseudo terminal") from None
    return ours, b"/dev/pts/%d" % number


def no_parameters(options: Options) -> None:
    """PTY takes none."""
    if "pty-interval" in options and not options.get("wait-slave"):
        raise UsageError("pty-interval is for wait-slave")


@contextlib.asynccontextmanager
async def open_terminal(spec: Specification, situation: Situation) -> AsyncIterator[Stream]:
    """PTY: a pseudo terminal that others may open; it ends when the last who did has closed it."""
    ours, path = make_terminal()
    try:
        own_name(spec, path)
        os.chmod(path, spec.option("mode", 0o666 & ~spec.option("umask", 0o177)))
        set_modes(ours, spec)
        with _linked(spec, path):
            # Nobody could come otherwise.
            situation.note(0 if "link" not in spec.options else 2, f"PTY is {os.fsdecode(path)}")
            if spec.option("wait-slave"):
                await _until_opened(ours, path, spec.option("pty-interval", LOOK))
            stream = over_descriptors(ours, ours, str(spec), [])
            try:
                yield stream
            finally:
                stream.close()
    finally:
        os.close(ours)


@contextlib.contextmanager
def _linked(spec: Specification, path: bytes) -> Iterator[None]:
    if "link" not in spec.options:
        yield
        return
    link = at(spec.option("cd"), spec.option("link"))
    try:
        if os.path.islink(link):  # a killed run's; what is no link stays
            os.unlink(link)
        os.symlink(path, link)
    except OSError as error:
        raise from_oserror(error, f"make the link {printable(link)}") from None
    try:
        yield
    finally:
        if spec.option("unlink-close", True):
            with contextlib.suppress(OSError):
                if os.readlink(link) == path:
                    os.unlink(link)


async def _until_opened(ours: int, path: bytes, interval: float) -> None:
    """The kernel shows a terminal that was closed as hung up, and tells nobody when it is opened again."""
    os.close(os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    look = select.poll()
    look.register(ours, select.POLLIN)
    while any(events & select.POLLHUP for _, events in look.poll(0)):  # noqa: ASYNC110
        await trio.sleep(interval)
