"""OPENSSL and OPENSSL-LISTEN: TLS over TCP, by the standard library's ssl.

The thing to understand first: TLS says its end in band (close_notify), so a connection that just stops was cut off, and
is told as that. The half-close is TLS 1.3's (RFC 8446, 6.1): one side has said its end, the other goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import trio

from vsockfwd.plugin import (
    DataError,
    Features,
    Listener,
    NotAllowed,
    Reset,
    SocketStream,
    Stream,
    TimedOut,
    Truncated,
    UsageError,
    from_oserror,
    printable,
)
from vsockfwd_relay.address_type import Options, Situation, Specification
from vsockfwd_relay.socket_options import at
from vsockfwd_relay.sockets import (
    CONNECT_TIMEOUT,
    Place,
    connect_internet,
    internet_client,
    internet_server,
    listen_internet,
)

CHUNK = 1 << 18
"""Bytes that are encrypted or decrypted at once."""

_NAMES = {"countryName": "C", "stateOrProvinceName": "ST", "localityName": "L", "organizationName": "O",
          "organizationalUnitName": "OU", "commonName": "CN"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Secured:
    """Where to, and with what. `name`: what the peer's certificate must bear, '' for any; `told`: the SNI, or None."""

    place: Place
    context: ssl.SSLContext
    name: str
    told: str | None

    @property
    def port(self) -> int:
        return self.place.port


def client(host: str, port: str, options: Options) -> Secured:
    """`HOST:PORT`; the certificate must bear HOST, unless `commonname` says otherwise."""
    place = internet_client(socket.AF_UNSPEC)(host, port, options)
    name = options.get("commonname", place.address.host)
    told = None if options.get("no-sni") else options.get("snihost", name or place.address.host)
    return Secured(place, _context(ssl.PROTOCOL_TLS_CLIENT, options), name, told)


def server(port: str, options: Options) -> Secured:
    """`PORT`; callers must show a certificate that is trusted, unless `verify=0`."""
    if "cert" not in options:
        raise UsageError("a TLS server needs cert=FILE")
    place = internet_server(socket.AF_UNSPEC)(port, options)
    return Secured(place, _context(ssl.PROTOCOL_TLS_SERVER, options), options.get("commonname", ""), None)


def _context(side: int, options: Options) -> ssl.SSLContext:
    """What the options ask for. Raises UsageError."""
    context = ssl.SSLContext(side)
    context.check_hostname = False  # done here, since the name need not be the one that the server is told
    context.verify_mode = ssl.CERT_REQUIRED if options.get("verify", True) else ssl.CERT_NONE
    if "openssl-min-proto-version" in options:
        context.minimum_version = options["openssl-min-proto-version"]
    if "openssl-max-proto-version" in options:
        context.maximum_version = options["openssl-max-proto-version"]
    what = ""
    try:
        if "cipher" in options:
            what = "cipher"
            context.set_ciphers(options["cipher"])
        if "cert" in options:
            what = "cert"
            context.load_cert_chain(at(options.get("cd"), options["cert"]), _file(options, "key"), _no_password)
        if "cafile" in options or "capath" in options:
            what = "cafile" if "cafile" in options else "capath"
            context.load_verify_locations(_file(options, "cafile"), _file(options, "capath"))
        elif context.verify_mode is ssl.CERT_REQUIRED:
            context.load_default_certs(
                ssl.Purpose.SERVER_AUTH if side == ssl.PROTOCOL_TLS_CLIENT else ssl.Purpose.CLIENT_AUTH
            )
    except (OSError, ValueError) as error:
        why = error.reason if isinstance(error, ssl.SSLError) else getattr(error, "strerror", None) or error
        raise UsageError(f"{what}={printable(_shown(options[what]))}: {str(why).lower().replace('_', ' ')}") from None
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted, and nobody can be asked for its password")


def _file(options: Options, name: str) -> bytes | None:
    return at(options.get("cd"), options[name]) if name in options else None


def _shown(value: str | bytes) -> str:
    return os.fsdecode(value) if isinstance(value, bytes) else value


# --- names --------------------------------------------------------------------------------------------------------


def bears(certificate: Any, name: str) -> bool:
    """Whether a certificate, as `getpeercert` shows it, is for a name (RFC 6125): its common name counts where it has
    no other; `*` stands for one whole label, the first."""
    names = [value for kind, value in certificate.get("subjectAltName", ()) if kind in ("DNS", "IP Address")]
    if not names:
        names = _entries(certificate, "commonName")
    with contextlib.suppress(OSError, ValueError):
        packed = _packed(name)
        return any(_packed(each) == packed for each in names if _is_address(each))
    wanted = name.rstrip(".").lower()
    return any(_matches(each.rstrip(".").lower(), wanted) for each in names)


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address.strip("[]"))


def _is_address(name: str) -> bool:
    try:
        return bool(_packed(name))
    except OSError:
        return False


def _matches(pattern: str, name: str) -> bool:
    first, dot, rest = pattern.partition(".")
    if first != "*":
        return pattern == name
    return bool(dot) and rest.count(".") >= 1 and name.partition(".")[2] == rest and bool(name.partition(".")[0])


def _entries(certificate: Any, kind: str, of: str = "subject") -> list[str]:
    return [value for part in certificate.get(of, ()) for key, value in part if key == kind]


def _told(certificate: Any) -> dict[str, str]:
    """What a program is told about the peer's certificate."""

    def whole(of: str) -> str:
        return "".join(f"/{_NAMES.get(key, key)}={value}" for part in certificate.get(of, ()) for key, value in part)

    found = {"OPENSSL_X509_SUBJECT": whole("subject"), "OPENSSL_X509_ISSUER": whole("issuer")}
    for part in certificate.get("subject", ()):
        for key, _ in part:
            found[f"OPENSSL_X509_{key.upper()}"] = " // ".join(_entries(certificate, key))
    dns = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"]
    return found | ({"OPENSSL_X509V3_DNS": " // ".join(dns)} if dns else {})


# --- the stream ---------------------------------------------------------------------------------------------------


class TlsStream(Stream):
    """TLS over a connected socket, which it owns. `told`: what a program is to know of the peer's certificate.

    OpenSSL is fed by hand: where it holds the socket, Python's way to say close_notify goes on to read, and throws
    away what the peer is still to say (SSL_shutdown(3): a second call while data comes is an error for good).
    """

    features = Features(half_close=True, reset=True)

    def __init__(self, beneath: SocketStream, secured: Secured, *, server_side: bool) -> None:
        self.sock: socket.socket = beneath.sock
        self.peer = beneath.peer
        self.name = f"tls:{beneath.name.partition(':')[2]}"
        self.told: dict[str, str] = {}
        self._beneath = beneath
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        told = None if server_side else secured.told
        self.tls = secured.context.wrap_bio(self._incoming, self._outgoing, server_side, told)
        self._cipher = memoryview(bytearray(CHUNK))
        self._early = memoryview(b"")
        """What was received before our end was said, and not yet asked for."""
        self._unsent = memoryview(b"")
        self._owed = 0
        """Bytes that are encrypted, but not all with the kernel: who sends hears that they were taken when they are."""

    def try_receive_into(self, buffer: memoryview) -> int:
        if self._early:
            size = min(len(buffer), len(self._early))
            buffer[:size] = self._early[:size]
            self._early = self._early[size:]
            return size
        size = 0
        while size < len(buffer):
            try:
                # A record has 16 KiB at most: several at once make larger writes on the other side.
                got: Any = self.tls.read(len(buffer) - size, buffer[size:])
            except ssl.SSLWantReadError:
                if size:
                    break
                self._feed()
            except ssl.SSLZeroReturnError:  # the peer's close_notify, after ours
                break
            except ssl.SSLEOFError:
                if not size:
                    raise Truncated(f"{self.name}: cut off, TLS did not say its end") from None
                break  # it will say so again
            except ssl.SSLError as error:
                if not size:
                    raise DataError(f"{self.name}: {_why(error)}") from None
                break
            else:
                if not got:
                    break
                size += got
        self._answer()
        return size

    def _feed(self) -> None:
        """Take what has come. Raises BlockingIOError, OSError."""
        if size := self.sock.recv_into(self._cipher):
            self._incoming.write(self._cipher[:size])
        else:
            self._incoming.write_eof()

    def _answer(self) -> None:
        """Send what TLS itself has to say, as far as that can be done now."""
        if self._outgoing.pending or self._unsent:
            with contextlib.suppress(OSError):  # the peer may be gone: its last words count
                self._flush()

    def try_send(self, data: memoryview | bytes | bytearray) -> int:
        if not self._owed:
            if not data:
                return 0
            try:
                self._owed = self.tls.write(data[:CHUNK])
            except ssl.SSLError as error:
                raise Reset(f"{self.name}: {_why(error)}") from None
        self._flush()
        taken, self._owed = self._owed, 0
        return taken

    def _flush(self) -> None:
        """Hand all that is encrypted to the kernel. Raises BlockingIOError as long as that cannot be, and OSError."""
        if self._outgoing.pending:
            more = self._outgoing.read()
            self._unsent = memoryview(bytes(self._unsent) + more if self._unsent else more)
        while self._unsent:
            self._unsent = self._unsent[self.sock.send(self._unsent) :]

    async def wait_readable(self) -> None:
        if not self._unsent or self._owed:
            await trio.lowlevel.wait_readable(self.sock)
            return

        async def first(wait: Callable[[socket.socket], Awaitable[None]]) -> None:
            await wait(self.sock)
            nursery.cancel_scope.cancel()

        # Nobody sends any more, and our end has not left yet: see to that too.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first, trio.lowlevel.wait_readable)
            nursery.start_soon(first, trio.lowlevel.wait_writable)
        self._answer()

    async def wait_writable(self) -> None:
        await trio.lowlevel.wait_writable(self.sock)

    def shutdown_sending(self) -> None:
        early: list[bytes] = []
        try:
            while True:  # what OpenSSL has already would be lost
                piece: Any = self.tls.read(CHUNK)
                if not piece:
                    break
                early.append(piece)
        except ssl.SSLError:
            pass  # nothing more is there; what else it is, the next receive says
        self._early = memoryview(b"".join([self._early, *early]))
        with contextlib.suppress(ssl.SSLError):  # that the peer's end has not come yet is what a half-close is for
            self.tls.unwrap()
        self._answer()

    def close(self) -> None:
        self._beneath.close()

    def abort(self) -> None:
        self._beneath.abort()

    async def handshake(self) -> None:
        """Raises ssl.SSLError, OSError."""
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._try(self._flush, self.wait_writable)
                await self._try(self._feed, self.wait_readable)
                continue
            except ssl.SSLError:
                self._answer()  # the peer shall know why
                raise
            await self._try(self._flush, self.wait_writable)
            return

    async def _try(self, step: Callable[[], None], wait: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                step()
            except BlockingIOError:
                await wait()
                continue
            return


async def _secure(spec: Specification, beneath: Stream, seconds: float, *, server_side: bool) -> TlsStream:
    """The handshake. Raises VsockfwdError."""
    assert isinstance(beneath, SocketStream)  # TCP's are
    secured: Secured = spec.subject
    stream = TlsStream(beneath, secured, server_side=server_side)
    name = stream.name
    try:
        with trio.fail_after(seconds):
            await stream.handshake()
    except BaseException as error:
        stream.close()
        if isinstance(error, trio.TooSlowError):
            raise TimedOut(f"{name}: the peer does not speak TLS, or is slow") from None
        if isinstance(error, ssl.SSLCertVerificationError):
            why = f"{name}: the certificate is not trusted: {error.verify_message}"
            raise NotAllowed(why, hint="cafile= names who is trusted, verify=0 trusts everybody") from None
        if isinstance(error, ssl.SSLError):
            raise DataError(f"{name}: TLS handshake: {_why(error)}") from None
        if isinstance(error, OSError):
            raise from_oserror(error, f"{name}: TLS handshake") from None
        raise
    certificate: Any = stream.tls.getpeercert() or {}
    if secured.name and secured.context.verify_mode is ssl.CERT_REQUIRED and not bears(certificate, secured.name):
        stream.abort()
        raise NotAllowed(
            f"{name}: the certificate is not for {printable(secured.name)}",
            hint=f"it is for {printable(', '.join(_names(certificate)) or 'nobody')}; commonname= says which is meant",
        )
    stream.told = _told(certificate)
    return stream


def _names(certificate: Any) -> list[str]:
    return [value for _, value in certificate.get("subjectAltName", ())] or _entries(certificate, "commonName")


def _why(error: ssl.SSLError) -> str:
    return (error.reason or error.strerror or str(error)).lower().replace("_", " ")


# --- opening ------------------------------------------------------------------------------------------------------


async def connect(spec: Specification, situation: Situation) -> Stream:
    """OPENSSL: connect and shake hands, within the time that a connect has for each."""
    stream = await connect_internet(dataclasses.replace(spec, subject=spec.subject.place), situation)
    return await _secure(spec, stream, spec.option("connect-timeout", CONNECT_TIMEOUT), server_side=False)


async def greet(spec: Specification, situation: Situation, stream: Stream) -> Stream:
    """OPENSSL-LISTEN: shake hands with who was accepted."""
    return await _secure(spec, stream, CONNECT_TIMEOUT, server_side=True)


async def listen(spec: Specification, situation: Situation) -> Sequence[Listener]:
    """OPENSSL-LISTEN: a TCP listener."""
    return await listen_internet(dataclasses.replace(spec, subject=spec.subject.place), situation)
