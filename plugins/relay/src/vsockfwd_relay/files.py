"""The types that are files, pipes and descriptors which this process was given.

The thing to understand first: an address is opened for what it is used for. With `-u` the first is opened for reading
only, the second for writing only; without, for both, as far as the file or the descriptor can.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio

from vsockfwd.plugin import Stream, UnixAddress, Unreachable, UsageError, from_oserror, printable
from vsockfwd_relay.address_type import Direction, Open, Options, Situation, Specification
from vsockfwd_relay.datagrams import Packets
from vsockfwd_relay.options import OPTIONS, Group, When
from vsockfwd_relay.socket_options import at, own_name, remove_first, remove_last, set_options
from vsockfwd_relay.streams import Halves, over_descriptors
from vsockfwd_relay.terminals import prepared

_ACCESS = {Direction.READ: os.O_RDONLY, Direction.WRITE: os.O_WRONLY, Direction.BOTH: os.O_RDWR}
_DIRECTION = {access: direction for direction, access in _ACCESS.items()}
_FILE_MODE = 0o666
_OF_A_STREAM = {option.name for option in OPTIONS if Group.DATA in option.groups}
_FLAGS = {
    "append": os.O_APPEND, "creat": os.O_CREAT, "dsync": os.O_DSYNC, "excl": os.O_EXCL, "noatime": os.O_NOATIME,
    "nofollow": os.O_NOFOLLOW, "nonblock": os.O_NONBLOCK, "sync": os.O_SYNC, "trunc": os.O_TRUNC,
}  # fmt: skip
_STANDARD = ("input", "output", "error")

# --- parameters ---------------------------------------------------------------------------------------------------


def standard(reading: int, writing: int) -> Callable[[Options], tuple[int, int]]:
    """The reader of a type that takes no parameter: which descriptors it stands for."""
    return lambda options: (reading, writing)


def descriptor(text: str, options: Options) -> tuple[int, int]:
    """A descriptor's number."""
    if not (text.isascii() and text.isdigit() and len(text) < 8):
        raise UsageError(f"{printable(text)!r} is no descriptor: a number")
    return int(text), int(text)


def file_name(text: str, options: Options) -> bytes:
    """A path."""
    if not text or "\0" in text:
        raise UsageError("a path holds no NUL byte" if text else "the path is missing")
    if options.get("rdonly") and options.get("wronly"):
        raise UsageError("rdonly and wronly exclude each other")
    return at(options.get("cd"), os.fsencode(text))


def no_parameters(options: Options) -> None:
    """SOCKETPAIR takes none."""


def pipe_name(text: str, options: Options) -> bytes | None:
    """A named pipe's path; without one the pipe is unnamed."""
    if not text and (left := sorted(set(options) - _OF_A_STREAM)):
        raise UsageError(f"a pipe without a name takes no {', '.join(left)}")
    return file_name(text, options) if text else None


# --- descriptors --------------------------------------------------------------------------------------------------


@asynccontextmanager
async def open_inherited(spec: Specification, situation: Situation) -> AsyncIterator[Stream]:
    """Descriptors that this process was given; they are left open."""
    reading, writing = spec.subject
    source = reading if situation.direction & Direction.READ and _is_open_for(reading, os.O_RDONLY) else None
    sink = writing if situation.direction & Direction.WRITE and _is_open_for(writing, os.O_WRONLY) else None
    if source is None and sink is None:
        raise Unreachable(f"{spec}: not open for this direction", hint="-u reads the first address, writes the second")
    with prepared(spec, source, sink):
        stream = over_descriptors(source, sink, spec.type.name.lower(), kept=situation.many)
        try:
            yield stream
        finally:
            stream.close()


def _is_open_for(number: int, access: int) -> bool:
    """Whether a descriptor that we were given can be read, or written. Raises Unreachable if it is closed."""
    # A standard descriptor that was closed when we were started stands for something of our own since.
    if number <= 2 and (sys.__stdin__, sys.__stdout__, sys.__stderr__)[number] is None:
        raise Unreachable(f"standard {_STANDARD[number]} is not open")
    try:
        return fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE in (access, os.O_RDWR)
    except OSError:
        raise Unreachable(f"descriptor {number} is not open", hint="is it inherited?") from None


# --- files --------------------------------------------------------------------------------------------------------


def open_file(flags: Callable[[Specification, Situation], int]) -> Open:
    """The opener of a type that is a path; `flags` are open(2)'s."""

    @asynccontextmanager
    async def opened(spec: Specification, situation: Situation) -> AsyncIterator[Stream]:
        remove_first(spec, spec.subject)
        async with _opened(spec, flags(spec, situation)) as stream:
            yield stream

    return opened


@asynccontextmanager
async def _opened(spec: Specification, flags: int) -> AsyncIterator[Stream]:
    """The stream over a file that is opened now, with all that the options say of it."""
    number = await _open(spec.subject, flags, spec.option("mode", _FILE_MODE), spec.option("umask"))
    direction = _DIRECTION[flags & os.O_ACCMODE]
    reading = number if Direction.READ in direction else None
    writing = number if Direction.WRITE in direction else None
    try:
        _place(spec, number)
        own_name(spec, spec.subject)
        with prepared(spec, number):
            stream = over_descriptors(reading, writing, str(spec))
            try:
                yield stream
            finally:
                stream.close()
    finally:
        os.close(number)
        remove_last(spec, spec.subject, default=False)


def _place(spec: Specification, number: int) -> None:
    """Where a file starts and ends. Raises VsockfwdError."""
    try:
        if "ftruncate" in spec.options:
            os.ftruncate(number, spec.option("ftruncate"))
        for name, whence in (("seek", os.SEEK_SET), ("seek-cur", os.SEEK_CUR), ("seek-end", os.SEEK_END)):
            if name in spec.options:
                os.lseek(number, spec.option(name), whence)
    except OSError as error:
        raise from_oserror(error, f"{spec}") from None


async def _open(path: bytes, flags: int, mode: int = _FILE_MODE, umask: int | None = None) -> int:
    """open(2); one that waits for the other end of a named pipe does so in a thread."""
    flags |= os.O_CLOEXEC | os.O_NOCTTY
    try:
        if not flags & (os.O_RDWR | os.O_NONBLOCK) and _is(stat.S_ISFIFO, path):
            return await trio.to_thread.run_sync(os.open, path, flags, mode, abandon_on_cancel=True)
        with _umask(umask):
            return os.open(path, flags, mode)
    except OSError as error:
        raise from_oserror(error, f"open {printable(path)}") from None


@contextmanager
def _umask(umask: int | None) -> Iterator[None]:
    """The process's umask, for as long as a call takes."""
    if umask is None:
        yield
        return
    before = os.umask(umask)
    try:
        yield
    finally:
        os.umask(before)


def _is(kind: Callable[[int], bool], path: bytes) -> bool:
    try:
        return kind(os.stat(path).st_mode)
    except OSError:  # open(2) says it better
        return False


def open_flags(spec: Specification, situation: Situation) -> int:
    """OPEN: what the options say, for the direction that is used."""
    flags = os.O_RDONLY if spec.option("rdonly") else os.O_WRONLY if spec.option("wronly") else None
    if flags is None:
        flags = _ACCESS[situation.direction]
    elif not _DIRECTION[flags] & situation.direction:
        raise spec.refuse("opened for the direction that is not used", "-u reads the first, writes the second")
    for name, flag in _FLAGS.items():
        flags |= flag if spec.option(name) else 0
    return flags


def create_flags(spec: Specification, situation: Situation) -> int:
    """CREATE: creat(2), for writing only."""
    return os.O_WRONLY | os.O_CREAT | (os.O_APPEND if spec.option("append") else os.O_TRUNC)


@asynccontextmanager
async def open_anything(spec: Specification, situation: Situation) -> AsyncIterator[Stream]:
    """GOPEN: connect to a UNIX socket, write at the end of what is there, make what is not."""
    if _is(stat.S_ISSOCK, spec.subject):
        stream = await situation.engine.network.connect(UnixAddress(spec.subject))
        try:
            yield stream
        finally:
            stream.close()
        return
    remove_first(spec, spec.subject)
    there = os.O_APPEND if _is(bool, spec.subject) else os.O_CREAT
    async with _opened(spec, open_flags(spec, situation) | there) as stream:
        yield stream


# --- pipes --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def open_pipe(spec: Specification, situation: Situation) -> AsyncIterator[Stream]:
    """PIPE: without a name an echo; with one a named pipe, which is removed again if it was made here."""
    made = spec.subject is not None and _make(spec)
    try:
        if _one_way(spec, situation):
            async with _opened(spec, open_flags(spec, situation)) as stream:
                yield stream
        else:
            stream = _echo(spec)
            try:
                yield stream
            finally:
                stream.close()
    finally:
        if made:
            remove_last(spec, spec.subject, default=True)


def _one_way(spec: Specification, situation: Situation) -> bool:
    if spec.subject is None and situation.direction is not Direction.BOTH:
        raise spec.refuse("a pipe without a name is an echo: it is read and written")
    return open_flags(spec, situation) & os.O_ACCMODE != os.O_RDWR


def _make(spec: Specification) -> bool:
    remove_first(spec, spec.subject)
    if os.path.exists(spec.subject):
        return False
    try:
        with _umask(spec.option("umask")):
            os.mkfifo(spec.subject, spec.option("mode", _FILE_MODE))
        if "mode" in spec.options:
            os.chmod(spec.subject, spec.option("mode"))
        own_name(spec, spec.subject)
    except OSError as error:
        raise from_oserror(error, f"make the pipe {printable(spec.subject)}") from None
    return True


def _echo(spec: Specification) -> Stream:
    """Both ends of a pipe, each opened for itself: when the writing one is closed, the reading one ends."""
    if spec.subject is None:
        reading, writing = os.pipe()
    else:
        try:
            reading = os.open(spec.subject, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            writing = os.open(spec.subject, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise from_oserror(error, f"open {printable(spec.subject)}") from None
    return over_descriptors(reading, writing, str(spec), [reading, writing])


# --- socket pairs -------------------------------------------------------------------------------------------------


@asynccontextmanager
async def open_socket_pair(spec: Specification, situation: Situation) -> AsyncIterator[Stream]:
    """SOCKETPAIR: an echo as PIPE's, which keeps boundaries: SEQPACKET, which has an end too."""
    if situation.direction is not Direction.BOTH:
        raise spec.refuse("a pair of sockets is an echo: it is read and written")
    reading, writing = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for sock in (reading, writing):
        sock.setblocking(False)
        set_options(sock, spec, situation, When.MADE, When.CONNECTED)
    stream = Halves(Packets(spec, situation, reading, "socketpair"), Packets(spec, situation, writing, "socketpair"))
    try:
        yield stream
    finally:
        stream.close()
