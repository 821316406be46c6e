"""Every error the package raises, and the one table of error codes.

Each class knows three things: the code that carries it over the wire, the exit code it ends a command with, and,
per instance, a hint that says what to do. The text of an error is one line: what failed, on which address, why.
Translation from errno stands here too (`from_oserror`), so that no other room guesses what a kernel meant.

The thing to understand first: an error that came from the far side is the same class as one raised here, made by
`from_code`, so a refused target ends a command with the same exit code whether this side dialled it or the agent did.
"""

from __future__ import annotations

import errno as E
import os
from enum import IntEnum
from typing import ClassVar

TEXT_LIMIT = 500
"""The most characters of a peer's text that are kept."""


class Code(IntEnum):
    """What went wrong, as the two bytes of a frame's code field say it (docs/protocol.md)."""

    NONE = 0
    PROTOCOL = 1
    VERSION = 2
    NOT_AUTHENTICATED = 3
    NOT_ALLOWED = 4
    NO_SUCH_MODE = 5
    BAD_REQUEST = 6
    REFUSED = 7
    UNREACHABLE = 8
    TIMED_OUT = 9
    NAME_NOT_RESOLVED = 10
    RESET = 11
    TRUNCATED = 12
    IO = 13
    NO_SPACE = 14
    NOT_FOUND = 15
    EXISTS = 16
    PERMISSION = 17
    LIMIT = 18
    GONE = 19
    INTERNAL = 20
    SHUTTING_DOWN = 21
    VERIFICATION = 22


class VsockfwdError(Exception):
    """The base of all: one line of text, an optional hint, a wire code and an exit code."""

    code: ClassVar[Code] = Code.INTERNAL
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "", errno: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.errno = errno

    def line(self) -> str:
        """The error as a user reads it: the message and, after a dash, what to do."""
        return f"{self.message} – {self.hint}" if self.hint else self.message

    def within(self, prefix: str) -> VsockfwdError:
        """The same error, told from further out: `prefix: message`."""
        return type(self)(f"{prefix}: {self.message}", hint=self.hint, errno=self.errno)


class UsageError(VsockfwdError):
    """The command line contradicts itself or asks for what does not exist."""

    code = Code.BAD_REQUEST
    exit_code = 2


class AddressError(UsageError):
    """An address that the grammar does not know; says at which character (counted from 1)."""

    def __init__(self, message: str, *, hint: str = "", errno: int = 0, text: str = "", position: int = 0) -> None:
        if text:
            message = f"address '{printable(text)}', character {position + 1}: {message}"
        super().__init__(message, hint=hint, errno=errno)
        self.position = position


class BadRequest(UsageError):
    """The peer understood the frame but not what it asks for."""


class ConfigError(VsockfwdError):
    """A configuration file that does not say what it should."""

    code = Code.BAD_REQUEST
    exit_code = 78


class Unreachable(VsockfwdError):
    """No such machine, or no way there."""

    code = Code.UNREACHABLE
    exit_code = 69


class TransportMissing(Unreachable):
    """This machine, kernel or Python lacks what the address needs; the hint says how to get it."""


class Refused(VsockfwdError):
    """The machine is there, nothing listens on the port."""

    code = Code.REFUSED
    exit_code = 69


class NameNotResolved(VsockfwdError):
    """The resolver does not know the name, or does not answer."""

    code = Code.NAME_NOT_RESOLVED
    exit_code = 69


class NoSuchMode(VsockfwdError):
    """The far side lacks the plugin; the hint says which package to install there."""

    code = Code.NO_SUCH_MODE
    exit_code = 69


class CannotCreate(VsockfwdError):
    """Something already stands where this was to be made: a listener, a file."""

    code = Code.EXISTS
    exit_code = 73


class DataError(VsockfwdError):
    """Bytes that did not arrive as they were sent, or not at all."""

    code = Code.IO
    exit_code = 74


class Truncated(DataError):
    """A stream ended without the peer having said that it was complete."""

    code = Code.TRUNCATED


class Reset(DataError):
    """The peer, or its kernel, abandoned the stream."""

    code = Code.RESET


class NoSpace(DataError):
    """The file system, or a quota on it, is full."""

    code = Code.NO_SPACE


class VerificationFailed(DataError):
    """A checksum does not fit its bytes."""

    code = Code.VERIFICATION


class TimedOut(VsockfwdError):
    """An answer did not come in time; trying again may help."""

    code = Code.TIMED_OUT
    exit_code = 75


class Gone(TimedOut):
    """What a token or a ticket stood for is no more."""

    code = Code.GONE


class LimitReached(TimedOut):
    """A cap on connections, memory or rate."""

    code = Code.LIMIT


class ShuttingDown(TimedOut):
    """The peer is about to stop and takes nothing new."""

    code = Code.SHUTTING_DOWN


class PeerBrokeProtocol(VsockfwdError):
    """The peer said what the protocol does not allow."""

    code = Code.PROTOCOL
    exit_code = 76


class VersionMismatch(PeerBrokeProtocol):
    """The two sides have no version in common."""

    code = Code.VERSION


class NotAllowed(VsockfwdError):
    """Policy says no."""

    code = Code.NOT_ALLOWED
    exit_code = 77


class NotAuthenticated(NotAllowed):
    """The peer did not prove who it is."""

    code = Code.NOT_AUTHENTICATED


class PermissionDenied(NotAllowed):
    """The operating system says no."""

    code = Code.PERMISSION


class NotFound(VsockfwdError):
    """No such file or directory."""

    code = Code.NOT_FOUND


class SomeFailed(VsockfwdError):
    """Some files failed, the rest are there."""

    code = Code.IO
    exit_code = 23


class Internal(VsockfwdError):
    """A mistake of ours, on whichever side."""


class Interrupted(VsockfwdError):
    """A signal told us to stop; the exit code is the shell's, 128 and the signal's number."""

    code = Code.SHUTTING_DOWN

    def __init__(self, signal: int) -> None:
        super().__init__("stopped by a signal")
        self.signal = signal


class LocalProtocolError(Exception):
    """A verb of the wire was called where its state machine has no place for it: a bug of ours, never the peer's."""


_BY_CODE: dict[int, type[VsockfwdError]] = {
    Code.PROTOCOL: PeerBrokeProtocol,
    Code.VERSION: VersionMismatch,
    Code.NOT_AUTHENTICATED: NotAuthenticated,
    Code.NOT_ALLOWED: NotAllowed,
    Code.NO_SUCH_MODE: NoSuchMode,
    Code.BAD_REQUEST: BadRequest,
    Code.REFUSED: Refused,
    Code.UNREACHABLE: Unreachable,
    Code.TIMED_OUT: TimedOut,
    Code.NAME_NOT_RESOLVED: NameNotResolved,
    Code.RESET: Reset,
    Code.TRUNCATED: Truncated,
    Code.IO: DataError,
    Code.NO_SPACE: NoSpace,
    Code.NOT_FOUND: NotFound,
    Code.EXISTS: CannotCreate,
    Code.PERMISSION: PermissionDenied,
    Code.LIMIT: LimitReached,
    Code.GONE: Gone,
    Code.INTERNAL: Internal,
    Code.SHUTTING_DOWN: ShuttingDown,
    Code.VERIFICATION: VerificationFailed,
}


def from_code(code: int, message: str, *, hint: str = "", errno: int = 0) -> VsockfwdError:
    """The error that a peer's ERROR or RESET frame stands for. An unknown code is kept in the text."""
    kind = _BY_CODE.get(code)
    if kind is None:
        return Internal(f"{message} (error code {code}, unknown to this version)", hint=hint, errno=errno)
    return kind(message, hint=hint, errno=errno)


_BY_ERRNO: dict[int, type[VsockfwdError]] = {
    E.ECONNREFUSED: Refused,
    E.ECONNRESET: Reset,
    E.ECONNABORTED: Reset,
    E.EPIPE: Reset,
    # A vsock connection of a VM that was restored or migrated answers ENOTCONN: a reset, never an end.
    E.ENOTCONN: Reset,
    E.ETIMEDOUT: TimedOut,
    E.EHOSTUNREACH: Unreachable,
    E.ENETUNREACH: Unreachable,
    E.EHOSTDOWN: Unreachable,
    E.ENETDOWN: Unreachable,
    E.ENODEV: Unreachable,
    E.EAFNOSUPPORT: TransportMissing,
    E.ENOSPC: NoSpace,
    E.EDQUOT: NoSpace,
    E.EFBIG: NoSpace,
    E.ENOENT: NotFound,
    E.EEXIST: CannotCreate,
    E.EADDRINUSE: CannotCreate,
    E.EADDRNOTAVAIL: CannotCreate,
    E.EACCES: PermissionDenied,
    E.EPERM: PermissionDenied,
    E.EROFS: PermissionDenied,
    E.EMFILE: LimitReached,
    E.ENFILE: LimitReached,
    E.ENOMEM: LimitReached,
    E.ENOBUFS: LimitReached,
}


def from_oserror(error: OSError, what: str, *, hint: str = "") -> VsockfwdError:
    """Translate an operating system's error: `what` names the operation and the address or file it was about."""
    number = error.errno or 0
    why = os.strerror(number).lower() if number else (printable(str(error)) or type(error).__name__)
    return _BY_ERRNO.get(number, DataError)(f"{what}: {why}", hint=hint, errno=number)


def the_one(error: BaseException) -> BaseException:
    """The error that tasks which fail together are to be known by: ours, or the only one there is; else the group.

    What is no group is itself the one. Tasks of one job fail together for one reason, so the first of ours is told; a
    bug among them is not hidden by it.
    """
    if not isinstance(error, BaseExceptionGroup):
        return error
    ours, others = error.split(VsockfwdError)
    if ours is not None and (others is None or others.subgroup(Exception) is None):
        return _first(ours)
    return _first(error) if _count(error) == 1 else error


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _count(error: BaseException) -> int:
    return sum(map(_count, error.exceptions)) if isinstance(error, BaseExceptionGroup) else 1


def printable(text: str | bytes, limit: int = TEXT_LIMIT) -> str:
    """Text of unknown origin, fit for a terminal or a log line.

    What Unicode does not call printable (controls, marks that turn the direction of writing, line separators, spaces
    of odd kinds, what is assigned to nothing) and bytes that are not UTF-8 come out as `\\x1b`-style escapes; more
    than `limit` characters are cut with an ellipsis.
    """
    if isinstance(text, bytes):
        text = text[: limit * 4].decode("utf-8", "surrogateescape")
    cut = len(text) > limit
    if not cut and text.isprintable():
        return text  # as nearly all are
    return "".join(map(_escape, text[:limit])) + ("…" if cut else "")


def _escape(character: str) -> str:
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # a byte that was not UTF-8
        return f"\\x{number - 0xDC00:02x}"
    if character.isprintable():
        return character
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
