"""OPENSSL and OPENSSL-LISTEN: TLS over TCP, by the standard library's ssl.

The stream itself is the core's; here are socat's options, and what its programs are told.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vsockfwd.plugin import (
    Listener,
    NotAllowed,
    SocketStream,
    Stream,
    TlsStream,
    UsageError,
    bears,
    names_of,
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


class RelayTls(TlsStream):
    """TLS over a connected socket. `told`: what a program is to know of the peer's certificate."""

    def __init__(self, beneath: SocketStream, secured: Secured, *, server_side: bool) -> None:
        super().__init__(
            beneath,
            secured.context,
            server_side=server_side,
            server_name=None if server_side else secured.told,
            name=f"tls:{beneath.name.partition(':')[2]}",
        )
        self.told: dict[str, str] = {}


async def _secure(spec: Specification, beneath: Stream, seconds: float, *, server_side: bool) -> RelayTls:
    """The handshake. Raises VsockfwdError."""
    assert isinstance(beneath, SocketStream)  # TCP's are
    secured: Secured = spec.subject
    stream = RelayTls(beneath, secured, server_side=server_side)
    await stream.shake_hands(seconds, trust="cafile= names who is trusted, verify=0 trusts everybody")
    certificate: Any = stream.tls.getpeercert() or {}
    if secured.name and secured.context.verify_mode is ssl.CERT_REQUIRED and not bears(certificate, secured.name):
        stream.abort()
        names = printable(", ".join(names_of(certificate))) or "nobody"
        raise NotAllowed(
            f"{stream.name}: the certificate is not for {printable(secured.name)}",
            hint=f"it is for {names}; commonname= says which is meant",
        )
    stream.told = _told(certificate)
    return stream


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
