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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import trio

from vsockfwd.plugin import (
    DataError,
    Features,
    Identity,
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
    """TLS over a connected socket. `told`: what a program is to know of the peer's certificate."""

    features = Features(half_close=True, reset=True)

    def __init__(self, sock: ssl.SSLSocket, peer: Identity, name: str) -> None:
        self.sock: ssl.SSLSocket = sock
        self.peer = peer
        self.name = name
        self.told: dict[str, str] = {}
        self._reading_needs_room = self._writing_needs_bytes = False

    def try_receive_into(self, buffer: memoryview) -> int:
        # A record has 16 KiB at most: several at once make larger writes on the other side.
        size = 0
        while size < len(buffer):
            try:
                got = self.sock.recv_into(buffer[size:])
            except ssl.SSLWantReadError:
                self._reading_needs_room = False
            except ssl.SSLWantWriteError:
                self._reading_needs_room = True
            except ssl.SSLZeroReturnError:  # the peer's close_notify, after ours
                return size
            except ssl.SSLEOFError:
                if not size:
                    raise Truncated(f"{self.name}: cut off, TLS did not say its end") from None
            except ssl.SSLError as error:
                if not size:
                    raise DataError(f"{self.name}: {_why(error)}") from None
            else:
                if got:
                    size += got
                    continue
                if not size:
                    return 0
            if size:
                break  # what stopped us will do so again
            raise BlockingIOError
        return size

    def try_send(self, data: memoryview | bytes | bytearray) -> int:
        try:
            return self.sock.send(data)
        except ssl.SSLWantWriteError:
            self._writing_needs_bytes = False
        except ssl.SSLWantReadError:
            self._writing_needs_bytes = True
        except ssl.SSLError as error:
            raise Reset(f"{self.name}: {_why(error)}") from None
        raise BlockingIOError

    async def wait_readable(self) -> None:
        await (trio.lowlevel.wait_writable if self._reading_needs_room else trio.lowlevel.wait_readable)(self.sock)

    async def wait_writable(self) -> None:
        await (trio.lowlevel.wait_readable if self._writing_needs_bytes else trio.lowlevel.wait_writable)(self.sock)

    def shutdown_sending(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            # Says close_notify, then looks for the peer's; that this has not come yet, or that data comes before it,
            # is no error: it is what a half-close is for.
            self.sock.unwrap()

    def close(self) -> None:
        if self.sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self.sock)
            self.sock.close()

    def abort(self) -> None:
        if self.sock.fileno() >= 0:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.close()


async def _secure(spec: Specification, beneath: SocketStream, seconds: float, *, server_side: bool) -> TlsStream:
    """The handshake. Raises VsockfwdError."""
    secured: Secured = spec.subject
    told = secured.told if not server_side else None
    name = f"tls:{beneath.name.partition(':')[2]}"
    stream: Stream = beneath
    try:
        sock = secured.context.wrap_socket(  # from here on it is the new one that owns the descriptor
            beneath.sock,
            server_side=server_side,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
            server_hostname=told,
        )
        stream = secure = TlsStream(sock, beneath.peer, name)
        with trio.fail_after(seconds):
            await _handshake(sock)
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
    certificate: Any = sock.getpeercert() or {}
    if secured.name and secured.context.verify_mode is ssl.CERT_REQUIRED and not bears(certificate, secured.name):
        secure.abort()
        raise NotAllowed(
            f"{name}: the certificate is not for {printable(secured.name)}",
            hint=f"it is for {printable(', '.join(_names(certificate)) or 'nobody')}; commonname= says which is meant",
        )
    secure.told = _told(certificate)
    return secure


def _names(certificate: Any) -> list[str]:
    return [value for _, value in certificate.get("subjectAltName", ())] or _entries(certificate, "commonName")


async def _handshake(sock: ssl.SSLSocket) -> None:
    while True:
        try:
            sock.do_handshake()
        except ssl.SSLWantReadError:
            await trio.lowlevel.wait_readable(sock)
        except ssl.SSLWantWriteError:
            await trio.lowlevel.wait_writable(sock)
        else:
            return


def _why(error: ssl.SSLError) -> str:
    return (error.reason or error.strerror or str(error)).lower().replace("_", " ")


# --- opening ------------------------------------------------------------------------------------------------------


async def connect(spec: Specification, situation: Situation) -> Stream:
    """OPENSSL: connect and shake hands, within the time that a connect has for each."""
    stream = await connect_internet(dataclasses.replace(spec, subject=spec.subject.place), situation)
    assert isinstance(stream, SocketStream)
    return await _secure(spec, stream, spec.option("connect-timeout", CONNECT_TIMEOUT), server_side=False)


async def greet(spec: Specification, situation: Situation, stream: Stream) -> Stream:
    """OPENSSL-LISTEN: shake hands with who was accepted."""
    assert isinstance(stream, SocketStream)
    return await _secure(spec, stream, CONNECT_TIMEOUT, server_side=True)


async def listen(spec: Specification, situation: Situation) -> Sequence[Listener]:
    """OPENSSL-LISTEN: a TCP listener."""
    return await listen_internet(dataclasses.replace(spec, subject=spec.subject.place), situation)
