"""SOCKS 5 (RFC 1928), 4 and 4a, the server's side: CONNECT without authentication. No IO.

Written here because no library fits: socksio is the client's side only; siosocks has a server's side, which answers
no command or address type that it lacks, has one reply for every failure, and has not been released since 2022.

Sources: RFC 1928; SOCKS4.protocol and SOCKS4A.protocol by Ying-Da Lee.
"""

from __future__ import annotations

import errno
import ipaddress
import struct

from vsockfwd.modes.greeting import Declined, Greeting, destination
from vsockfwd.plugin import BadRequest, Code, VsockfwdError

VERSION_5, VERSION_4 = 5, 4

_CONNECT = 1
_NO_AUTHENTICATION, _NO_METHOD = 0, 0xFF
_IPV4, _NAME, _IPV6 = 1, 3, 4
_ADDRESS_LENGTHS = {_IPV4: 4, _IPV6: 16}

_GRANTED, _FAILED, _FORBIDDEN, _NETWORK_UNREACHABLE, _HOST_UNREACHABLE, _REFUSED, _TTL_EXPIRED = range(7)
_NO_SUCH_COMMAND, _NO_SUCH_ADDRESS_TYPE = 7, 8
_REPLIES = {
    Code.NOT_ALLOWED: _FORBIDDEN,
    Code.NOT_AUTHENTICATED: _FORBIDDEN,
    Code.PERMISSION: _FORBIDDEN,
    Code.UNREACHABLE: _HOST_UNREACHABLE,  # or the network, by errno
    Code.NAME_NOT_RESOLVED: _HOST_UNREACHABLE,
    Code.REFUSED: _REFUSED,
    Code.TIMED_OUT: _TTL_EXPIRED,
}

_GRANTED_4, _REJECTED_4 = 0x5A, 0x5B
_FIXED_4 = struct.Struct("!BBH4s")
_WORD_LIMIT = 255
"""Bytes of SOCKS 4's user id and name, for which it sets no limit."""


def _reply_5(code: int) -> bytes:
    """A reply; the address that the far side bound is not known here, zeros stand for it as with others."""
    return bytes([VERSION_5, code, 0, _IPV4]) + bytes(6)


def _reply_4(code: int) -> bytes:
    return bytes([0, code]) + bytes(6)


class Socks5(Greeting):
    """A SOCKS 5 client: first it offers methods, then it asks; it may say both at once."""

    def __init__(self) -> None:
        self._seen = b""
        self._agreed = False

    def receive(self, data: bytes) -> bytes:
        self._seen += data
        answer = b"" if self._agreed else self._choose_method()
        try:
            if self._agreed:
                self._read_request()
        except Declined as declined:
            raise Declined(answer + declined.answer, declined.why) from None
        return answer

    def _choose_method(self) -> bytes:
        if len(self._seen) < 2 or len(self._seen) < (end := 2 + self._seen[1]):
            return b""
        if _NO_AUTHENTICATION not in self._seen[2:end]:
            raise Declined(bytes([VERSION_5, _NO_METHOD]), "a SOCKS client that insists on authentication")
        self._seen = self._seen[end:]
        self._agreed = True
        return bytes([VERSION_5, _NO_AUTHENTICATION])

    def _read_request(self) -> None:
        seen = self._seen
        if len(seen) < 5:
            return
        version, command, _, kind, first = seen[:5]
        if version != VERSION_5:
            raise Declined(_reply_5(_FAILED), f"a SOCKS 5 client that asks in version {version}")
        if command != _CONNECT:
            raise Declined(_reply_5(_NO_SUCH_COMMAND), f"SOCKS command {command}, where CONNECT (1) is all there is")
        if kind != _NAME and kind not in _ADDRESS_LENGTHS:
            raise Declined(_reply_5(_NO_SUCH_ADDRESS_TYPE), f"the unknown SOCKS address type {kind}")
        start = 5 if kind == _NAME else 4
        end = start + (first if kind == _NAME else _ADDRESS_LENGTHS[kind])
        if len(seen) < end + 2:
            return
        raw = seen[start:end]
        host = _text(raw) if kind == _NAME else str(ipaddress.ip_address(raw))
        try:
            self.asked = destination(host, int.from_bytes(seen[end : end + 2]))
        except BadRequest as error:
            raise Declined(_reply_5(_HOST_UNREACHABLE), error.message) from None
        self.early = seen[end + 2 :]

    def granted(self) -> bytes:
        return _reply_5(_GRANTED)

    def refused(self, error: VsockfwdError) -> bytes:
        network = error.code is Code.UNREACHABLE and error.errno in (errno.ENETUNREACH, errno.ENETDOWN)
        return _reply_5(_NETWORK_UNREACHABLE if network else _REPLIES.get(error.code, _FAILED))


class Socks4(Greeting):
    """A SOCKS 4 client; with 4a it names a host where the impossible address 0.0.0.x stands."""

    def __init__(self) -> None:
        self._seen = b""

    def receive(self, data: bytes) -> bytes:
        self._seen += data
        if len(self._seen) < _FIXED_4.size:
            return b""
        _, command, port, address = _FIXED_4.unpack_from(self._seen)
        if command != _CONNECT:
            raise Declined(_reply_4(_REJECTED_4), f"SOCKS command {command}, where CONNECT (1) is all there is")
        named = address[:3] == bytes(3) and address[3] != 0
        words = self._words(2 if named else 1)
        if words is None:
            return b""
        host = _text(words[1]) if named else str(ipaddress.ip_address(address))
        try:
            self.asked = destination(host, port)
        except BadRequest as error:
            raise Declined(_reply_4(_REJECTED_4), error.message) from None
        self.early = words[-1]
        return b""

    def _words(self, count: int) -> list[bytes] | None:
        """So many words, each with a NUL behind it, and what follows them; None while they are not all there."""
        *words, rest = self._seen[_FIXED_4.size :].split(b"\0", count)
        if any(len(word) > _WORD_LIMIT for word in (words if len(words) == count else [*words, rest])):
            raise Declined(_reply_4(_REJECTED_4), f"a SOCKS 4 user id or name of more than {_WORD_LIMIT} bytes")
        return [*words, rest] if len(words) == count else None

    def granted(self) -> bytes:
        return _reply_4(_GRANTED_4)

    def refused(self, error: VsockfwdError) -> bytes:
        return _reply_4(_REJECTED_4)


def _text(name: bytes) -> str:
    """A name as it was sent. Bytes that are no text make no host, so `destination` refuses them."""
    return name.decode("ascii", "surrogateescape")
