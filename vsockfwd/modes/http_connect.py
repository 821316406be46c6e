"""HTTP CONNECT (RFC 9110, 9.3.6), the proxy's side. No IO; h11 reads the request.

The answers are written out here: h11 would not let a request be answered that it could not read.
"""

from __future__ import annotations

import re
from http import HTTPStatus

import h11

from vsockfwd.modes.greeting import Declined, Greeting, destination
from vsockfwd.plugin import BadRequest, Code, VsockfwdError, printable

HEAD_LIMIT = 8192
"""Bytes of a request's head."""

_TARGET = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:]+)):([0-9]{1,5})")
"""The authority form: a host, and a port that must be there."""

_STATUSES = {
    Code.NOT_ALLOWED: HTTPStatus.FORBIDDEN,
    Code.NOT_AUTHENTICATED: HTTPStatus.FORBIDDEN,
    Code.PERMISSION: HTTPStatus.FORBIDDEN,
    Code.TIMED_OUT: HTTPStatus.GATEWAY_TIMEOUT,
}

TUNNEL_ONLY = "this is a tunnel: it takes CONNECT and fetches nothing by itself (curl: --proxytunnel)"


def _answer(status: HTTPStatus, why: str, fields: str = "", *, body: bool = True) -> bytes:
    text = f"{why}\n".encode("utf-8", "backslashreplace")
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n{fields}Content-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(text)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (text if body else b"")


class HttpConnect(Greeting):
    """A client of an HTTP proxy that asks for a tunnel."""

    def __init__(self) -> None:
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_LIMIT - 1)

    def receive(self, data: bytes) -> bytes:
        try:
            self._http.receive_data(data)
            request = self._http.next_event()
        except h11.RemoteProtocolError as error:
            raise Declined(_answer(HTTPStatus(error.error_status_hint), str(error)), f"HTTP: {error}") from None
        if isinstance(request, h11.Request):
            self._read_request(request)
        return b""

    def _read_request(self, request: h11.Request) -> None:
        method, target = (printable(word) for word in (request.method, request.target))
        if request.method != b"CONNECT":
            answer = _answer(
                HTTPStatus.METHOD_NOT_ALLOWED, TUNNEL_ONLY, "Allow: CONNECT\r\n", body=request.method != b"HEAD"
            )
            raise Declined(answer, f"HTTP {method} {target}: {TUNNEL_ONLY}")
        match = _TARGET.fullmatch(target)
        try:
            if match is None or int(match[3]) > 0xFFFF:
                raise BadRequest(f"{target!r} is no HOST:PORT")
            asked = destination(match[1] or match[2], int(match[3]))
            # A body would be taken for the tunnel's first bytes by one reader, and not by the next.
            if not isinstance(self._http.next_event(), h11.EndOfMessage):
                raise BadRequest("CONNECT has no body")
        except BadRequest as error:
            raise Declined(_answer(HTTPStatus.BAD_REQUEST, error.message), f"HTTP CONNECT: {error.message}") from None
        self.asked = asked
        self.early = self._http.trailing_data[0]

    def granted(self) -> bytes:
        return b"HTTP/1.1 200 Connection established\r\n\r\n"

    def refused(self, error: VsockfwdError) -> bytes:
        return _answer(_STATUSES.get(error.code, HTTPStatus.BAD_GATEWAY), error.line())
