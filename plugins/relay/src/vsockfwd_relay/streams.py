"""Streams made of streams: of two halves, of descriptors, and those that look at what passes.

What opens them stands elsewhere. The thing to understand first: the engine's relay joins two streams that both can be
read and written, and ends when both have been read to their end. A half that is missing must therefore end too, and
it does so when the other half is over.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import stat
from collections.abc import Callable, Iterable

import trio

from vsockfwd.plugin import NEVER, DescriptorStream, Reset, Stream, from_oserror

LOOK_AGAIN = 1.0
"""Seconds after which an end that is ignored is looked at again."""

_DISCARDED = 1 << 16
_PIPE_SIZE = 1 << 20

Data = memoryview | bytes | bytearray


class Halves(Stream):
    """Reads from one stream and writes to another; either may be missing. What is sent to none is dropped.

    A write that fails is final where what is read comes from elsewhere: no answer to it can be on its way. With
    nothing to read from, what a socket's peer says is taken and dropped, for unread bytes would turn the close into
    a reset that takes back what was sent; the end comes when the writing is over.
    """

    looks = False
    """Whether anything of ours looks at what passes, or bounds it: then it cannot be moved or watched by others."""

    def __init__(self, reading: Stream | None, writing: Stream | None) -> None:
        self._reading = reading
        self._writing = writing
        self._all = [stream for stream in (reading, writing) if stream is not None]
        self.name = "!!".join(dict.fromkeys(stream.name for stream in self._all))
        self.peer = self._all[0].peer
        self.sock = self._all[0].sock
        self.features = self._all[-1].features
        if reading is None:  # to say the end kills no answer, where none is wanted
            self.features = dataclasses.replace(self.features, half_close=True)
        self._over = False
        self._listening = writing is not None and writing.sock is not None
        self._waiting = trio.CancelScope()

    def try_receive_into(self, buffer: memoryview) -> int:
        if self._over:
            return 0
        if self._reading is not None:
            return self._reading.try_receive_into(buffer)
        if self._writing is not None and self._listening:
            self._listening = self._writing.try_receive_into(buffer[:_DISCARDED]) > 0
        raise BlockingIOError

    def splice_source(self) -> int | None:
        return None if self.looks or self._over or self._reading is None else self._reading.splice_source()

    def splice_sink(self) -> int | None:
        return None if self.looks or self._writing is None else self._writing.splice_sink()

    def source_to_poll(self) -> int | None:
        source = self._reading or (self._writing if self._listening else None)
        return None if self.looks else NEVER if source is None or self._over else source.source_to_poll()

    def sink_to_poll(self) -> int | None:
        return None if self.looks else NEVER if self._writing is None else self._writing.sink_to_poll()

    async def wait_readable(self) -> None:
        if self._over:
            return
        source = self._reading or (self._writing if self._listening else None)
        with trio.CancelScope() as self._waiting:
            if source is not None:
                await source.wait_readable()
            else:
                await trio.sleep_forever()

    def try_send(self, data: Data) -> int:
        if self._writing is None:
            return len(data)  # who names STDIN, or a file for reading, wants no answer
        if self._writing is self._reading:
            return self._writing.try_send(data)
        return _write(self._writing.try_send, data, self.name)

    async def wait_writable(self) -> None:
        if self._writing is not None:
            await self._writing.wait_writable()

    def shutdown_sending(self) -> None:
        if self._writing is not None:
            self._writing.shutdown_sending()
        if self._reading is None:
            self._end()

    def _end(self) -> None:
        self._over = True
        self._waiting.cancel()

    def close(self) -> None:
        for stream in self._all:
            stream.close()

    def abort(self) -> None:
        for stream in self._all:
            stream.abort()


class StandardOutputClosed(Reset):
    """Nobody reads our standard output any more, as when `head` has seen enough."""


def _write(send: Callable[[Data], int], data: Data, name: str, standard_output: bool = False) -> int:
    """Send, and raise a failure as an error that ends the relay at once, without waiting for an answer."""
    try:
        return send(data)
    except BlockingIOError:
        raise
    except BrokenPipeError as error:
        kind = StandardOutputClosed if standard_output else Reset
        raise kind(f"{name}: nobody reads what is written there", errno=error.errno or 0) from None
    except OSError as error:
        raise from_oserror(error, f"write to {name}") from None


class Descriptors(DescriptorStream):
    """A stream over descriptors, one of which may be missing; `owned` are closed with it. Its writes fail for good."""

    def __init__(self, reading: int | None, writing: int | None, name: str, owned: Iterable[int] = ()) -> None:
        self._standard_output = writing == 1
        self._closing = list(owned)
        for number in {reading, writing} - {None}:
            _widen(number)
        try:
            if reading is None or writing is None:
                # The stream beneath wants both: the null device stands in for the one that is missing.
                null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
                self._closing.append(null)
                reading, writing = null if reading is None else reading, null if writing is None else writing
            super().__init__(reading, writing, name)
        except BaseException:
            self._close_rest()
            raise

    def try_send(self, data: Data) -> int:
        return _write(super().try_send, data, self.name, self._standard_output)

    def close(self) -> None:
        super().close()
        self._close_rest()

    def _close_rest(self) -> None:
        while self._closing:
            os.close(self._closing.pop())


def _widen(number: int | None) -> None:
    """Let a pipe hold more than its 64 KiB: each time that it is full costs both of its sides a wait."""
    if number is not None and stat.S_ISFIFO(os.fstat(number).st_mode):
        try:
            fcntl.fcntl(number, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        except OSError:
            pass  # the user has too many large ones already (pipe(7))


class Kept(Halves):
    """Leaves the writing end open when it is told that nothing more comes: others write there too."""

    def shutdown_sending(self) -> None:
        if self._reading is None:
            self._end()


def over_descriptors(
    reading: int | None, writing: int | None, name: str, owned: Iterable[int] = (), *, kept: bool = False
) -> Stream:
    """A stream over one or two descriptors. Raises OSError. `kept`: others use them too."""
    stream = Descriptors(reading, writing, name, owned)
    return (Kept if kept else Halves)(None if reading is None else stream, None if writing is None else stream)


class Looking(Halves):
    """One stream, whose bytes are looked at as they pass."""

    looks = True

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream, stream)


class Persistent(Looking):
    """`ignoreeof`: where the stream ends it is looked at again, second after second."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream)
        self._at_end = False

    def try_receive_into(self, buffer: memoryview) -> int:
        size = super().try_receive_into(buffer)
        self._at_end = not size and not self._over
        if self._at_end:
            raise BlockingIOError
        return size

    async def wait_readable(self) -> None:
        if not self._at_end:
            await super().wait_readable()
            return
        with trio.CancelScope() as self._waiting:
            await trio.sleep(LOOK_AGAIN)


class Watched(Looking):
    """Shows what is read to functions before it goes on."""

    def __init__(self, stream: Stream, show: Iterable[Callable[[memoryview], None]]) -> None:
        super().__init__(stream)
        self._show = tuple(show)

    def try_receive_into(self, buffer: memoryview) -> int:
        size = super().try_receive_into(buffer)
        if size:
            for show in self._show:
                show(buffer[:size])
        return size


class Short(Looking):
    """`readbytes`: ends after so many bytes were read."""

    def __init__(self, stream: Stream, most: int) -> None:
        super().__init__(stream)
        self._left = most

    def try_receive_into(self, buffer: memoryview) -> int:
        size = super().try_receive_into(buffer[: self._left]) if self._left else 0
        self._left -= size
        return size


class Escapable(Looking):
    """`escape`: a byte of this value ends what is read."""

    def __init__(self, stream: Stream, value: int) -> None:
        super().__init__(stream)
        self._mark = bytes([value])
        self._escaped = False

    def try_receive_into(self, buffer: memoryview) -> int:
        if self._escaped:
            return 0
        size = super().try_receive_into(buffer)
        place = bytes(buffer[:size]).find(self._mark)
        if place < 0:
            return size
        self._escaped = True
        return place


class Carriage(Looking):
    """`cr`: the lines of this side end with CR, ours with NL."""

    def try_receive_into(self, buffer: memoryview) -> int:
        size = super().try_receive_into(buffer)
        buffer[:size] = bytes(buffer[:size]).replace(b"\r", b"\n")
        return size

    def try_send(self, data: Data) -> int:
        return super().try_send(bytes(data).replace(b"\n", b"\r"))


class CarriageAndLine(Looking):
    """`crnl`: the lines of this side end with CR and NL. Every CR that comes is dropped, as socat has it."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream)
        self._said_cr = False
        """The CR of the line's end that comes next has been sent already."""

    def try_receive_into(self, buffer: memoryview) -> int:
        while True:
            size = super().try_receive_into(buffer)
            plain = bytes(buffer[:size]).replace(b"\r", b"")
            buffer[: len(plain)] = plain
            if plain or not size:  # nothing but CRs would look like the end
                return len(plain)

    def try_send(self, data: Data) -> int:
        lines = bytes(data).replace(b"\n", b"\r\n")
        said = self._said_cr
        if said:
            lines = lines[1:]
        sent = super().try_send(lines)
        taken = sent - lines.count(b"\n", 0, sent) + said
        # The kernel may have stopped between a CR of ours and its NL: the NL is not taken then, nor is the CR a byte
        # of what we were given.
        self._said_cr = lines[sent : sent + 1] == b"\n"
        if not sent:
            return 0
        return taken - self._said_cr


class Silent(Halves):
    """`shut-none`: is not told that nothing more comes."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream, stream)

    def shutdown_sending(self) -> None:
        pass


class ClosedAtEnd(Halves):
    """`shut-close`: is closed when nothing more comes for it."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream, stream)

    def shutdown_sending(self) -> None:
        self._end()
        self.close()


class HalfCloseable(Halves):
    """`shut-down`: is told that nothing more comes, whatever is known of its kind."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream, stream)
        self.features = dataclasses.replace(self.features, half_close=True)
