"""TLS over any stream, by the standard library's ssl: `,tls` on a stream address.

Both sides show a certificate. Who dials checks that the listener's bears the name that was dialled, or `peer-name`, and
is signed by `ca`, or by whom this machine trusts; a listener takes only those whom its `ca` has signed.

The thing to understand first: TLS says its end in band (close_notify), so a connection that just stops was cut off, and
is told as that. The half-close is TLS 1.3's (RFC 8446, 6.1): one side has said its end, the other goes on.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import socket
import ssl
import stat
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import trio

from vsockfwd.address import Address
from vsockfwd.errors import (
    DataError,
    NotAllowed,
    Reset,
    TimedOut,
    Truncated,
    UsageError,
    VsockfwdError,
    from_oserror,
    printable,
)
from vsockfwd.identity import CertificatePeer, KeyPeer
from vsockfwd.transport.base import CONNECT_TIMEOUT, Features, Listener, Stream

CHUNK = 1 << 18
"""Bytes that are encrypted or decrypted at once."""

FIRST_CHUNK = 1 << 14
"""The same while hands are shaken: strangers get no large buffers."""

HANDSHAKES = 256
"""Callers of one listener that have not shown a certificate; one more, and the first of them is hung up on."""

_UNTRUSTED = re.compile(r"alert.*(certificate|unknown ca|bad cert|access denied)")


class TlsStream(Stream):
    """TLS over a stream, which it owns.

    OpenSSL is fed by hand: where it holds the socket, Python's way to say close_notify goes on to read, and throws
    away what the peer is still to say (SSL_shutdown(3): a second call while data comes is an error for good).
    """

    def __init__(
        self,
        beneath: Stream,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_name: str | None = None,
        name: str = "",
    ) -> None:
        """`server_name`: what the listener is told is wanted of it (SNI), or None."""
        self.features = Features(half_close=True, reset=beneath.features.reset)
        self.sock = beneath.sock
        self.peer = beneath.peer
        self.name = name or f"{beneath.name} (TLS)"
        self._beneath = beneath
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side, server_name)
        self._cipher = memoryview(bytearray(FIRST_CHUNK))
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
                    raise self._broken(error) from None
                break
            else:
                if not got:
                    break
                size += got
        self._answer()
        return size

    def _broken(self, error: ssl.SSLError) -> VsockfwdError:
        why = _why(error)
        if _UNTRUSTED.search(why):  # in TLS 1.3 a listener says so when we believe that all is well
            return NotAllowed(
                f"{self.name}: the peer does not take our certificate: {why}",
                hint="cert= and key= show one that the peer's ca= has signed",
            )
        return DataError(f"{self.name}: {why}")

    def _feed(self) -> None:
        """Take what has come. Raises BlockingIOError, OSError."""
        if size := self._beneath.try_receive_into(self._cipher):
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
            self._unsent = self._unsent[self._beneath.try_send(self._unsent) :]

    async def wait_readable(self) -> None:
        if not self._unsent or self._owed:
            await self._beneath.wait_readable()
            return

        async def first(wait: Callable[[], Awaitable[None]]) -> None:
            await wait()
            nursery.cancel_scope.cancel()

        # Nobody sends any more, and our end has not left yet: see to that too.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first, self._beneath.wait_readable)
            nursery.start_soon(first, self._beneath.wait_writable)
        self._answer()

    async def wait_writable(self) -> None:
        await self._beneath.wait_writable()

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

    async def shake_hands(self, seconds: float = CONNECT_TIMEOUT, *, trust: str = "ca= names who is trusted") -> None:
        """Until both sides are sure of each other, as far as the context asks. `trust`: the hint where they are not.

        Raises TimedOut, NotAllowed, DataError and what the stream beneath does; then it is closed.
        """
        try:
            with trio.fail_after(seconds):
                await self._shake_hands()
        except BaseException as error:
            self.close()
            if isinstance(error, trio.TooSlowError):
                raise TimedOut(f"{self.name}: the peer does not speak TLS, or is slow") from None
            if isinstance(error, ssl.SSLCertVerificationError):
                why = f"{self.name}: the certificate is not trusted: {error.verify_message}"
                raise NotAllowed(why, hint=trust) from None
            if isinstance(error, ssl.SSLError):
                raise _handshake_failed(self.name, _why(error)) from None
            if isinstance(error, OSError):
                raise from_oserror(error, f"{self.name}: TLS handshake") from None
            raise
        self._cipher = memoryview(bytearray(CHUNK))

    async def _shake_hands(self) -> None:
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


def _handshake_failed(name: str, why: str) -> VsockfwdError:
    if "peer did not return a certificate" in why:
        return NotAllowed(f"{name}: it shows no certificate", hint="cert= and key= are for who dials")
    if _UNTRUSTED.search(why):
        return NotAllowed(
            f"{name}: the peer does not take our certificate: {why}",
            hint="cert= and key= show one that the peer's ca= has signed",
        )
    hint = "does TLS answer there?" if "wrong version number" in why or "record layer" in why else ""
    return DataError(f"{name}: TLS handshake: {why}", hint=hint)


def _why(error: ssl.SSLError) -> str:
    return (error.reason or error.strerror or str(error)).lower().replace("_", " ")


# --- names --------------------------------------------------------------------------------------------------------


def bears(certificate: Mapping[str, Any], name: str) -> bool:
    """Whether a certificate, as `getpeercert` shows it, is for a name (RFC 6125): its common name counts where it has
    no other; `*` stands for one whole label, the first."""
    names = [value for kind, value in certificate.get("subjectAltName", ()) if kind in ("DNS", "IP Address")]
    if not names:
        names = common_names(certificate)
    with contextlib.suppress(OSError, ValueError):
        packed = _packed(name)
        return any(_packed(each) == packed for each in names if _is_address(each))
    wanted = name.rstrip(".").lower()
    return any(_matches(each.rstrip(".").lower(), wanted) for each in names)


def common_names(certificate: Mapping[str, Any]) -> list[str]:
    return [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]


def names_of(certificate: Mapping[str, Any]) -> list[str]:
    """All that a certificate is for: its alternative names of every kind; without any, its common name."""
    return [value for _, value in certificate.get("subjectAltName", ())] or common_names(certificate)


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


# --- addresses ----------------------------------------------------------------------------------------------------


async def secured(stream: Stream, address: Address) -> Stream:
    """A stream that was just dialled, in TLS as the address asks. Raises UsageError, and as `shake_hands`."""
    wanted = address.option("peer-name") or getattr(address, "host", None)
    if wanted is None or wanted == "":
        wanted = "localhost" if wanted == "" else None
    if wanted is None:
        stream.close()
        raise UsageError(f"{address}: whose certificate is to answer?", hint="peer-name= says")
    try:
        context = _context(ssl.PROTOCOL_TLS_CLIENT, address)
    except BaseException:
        stream.close()
        raise
    tls = TlsStream(stream, context, server_side=False, server_name=None if _is_address(wanted) else wanted)
    await tls.shake_hands(address.option("connect-timeout", CONNECT_TIMEOUT))
    certificate = tls.tls.getpeercert() or {}
    if not bears(certificate, wanted):
        tls.abort()
        names = printable(", ".join(names_of(certificate))) or "nobody"
        raise NotAllowed(
            f"{tls.name}: the certificate is not for {printable(wanted)}",
            hint=f"it is for {names}; peer-name= says which is meant",
        )
    tls.peer = _holder(stream, certificate)
    return tls


class AcceptedTls(TlsStream):
    """A caller of a listener, who has yet to show a certificate."""

    settled = False

    def __init__(self, beneath: Stream, context: ssl.SSLContext, pending: dict[AcceptedTls, None], wanted: str) -> None:
        super().__init__(beneath, context, server_side=True)
        self._pending = pending
        self._wanted = wanted
        pending[self] = None

    async def settle(self) -> None:
        try:
            await self.shake_hands()
        finally:
            self._pending.pop(self, None)
        certificate = self.tls.getpeercert() or {}
        if self._wanted and not bears(certificate, self._wanted):
            self.abort()
            names = printable(", ".join(names_of(certificate))) or "nobody"
            raise NotAllowed(f"{self.name}: the certificate is for {names}, not for {printable(self._wanted)}")
        self.peer = _holder(self._beneath, certificate)
        self.settled = True


class TlsListener(Listener):
    """A listener whose callers show a certificate before they are anybody."""

    def __init__(self, beneath: Listener, context: ssl.SSLContext) -> None:
        self.address = beneath.address
        self._beneath = beneath
        self._context = context
        self._pending: dict[AcceptedTls, None] = {}

    def try_accept(self) -> Stream:
        stream = self._beneath.try_accept()
        while len(self._pending) >= HANDSHAKES:
            first = next(iter(self._pending))
            del self._pending[first]
            first.close()
        return AcceptedTls(stream, self._context, self._pending, self.address.option("peer-name", ""))

    async def wait(self) -> None:
        await self._beneath.wait()

    def close(self) -> None:
        self._beneath.close()

    def keep_file(self) -> None:
        self._beneath.keep_file()


def listening_context(address: Address) -> ssl.SSLContext:
    """What a listener shows, and whom it takes. Raises UsageError."""
    for option, why in (("cert", "a listener shows a certificate"), ("ca", "it takes those whom a CA has signed")):
        if address.option(option) is None:
            raise UsageError(f"{address}: {option}= is missing: {why}", hint=f"{option}=FILE, in PEM")
    return _context(ssl.PROTOCOL_TLS_SERVER, address)


def _holder(stream: Stream, certificate: Mapping[str, Any]) -> CertificatePeer:
    assert not isinstance(stream.peer, KeyPeer | CertificatePeer)  # a socket's own, or in memory
    return CertificatePeer(tuple(map(printable, names_of(certificate))) or ("nobody",), stream.peer)


def _context(side: int, address: Address) -> ssl.SSLContext:
    files = tuple(address.option(name) for name in ("cert", "key", "ca"))
    stamps = []
    for name, path in zip(("cert", "key", "ca"), files, strict=True):
        if path is not None:
            try:
                found = os.stat(path)
            except OSError as error:
                raise from_oserror(error, f"{name}={printable(path)}") from None
            if name == "key" and found.st_mode & stat.S_IRWXO:
                raise NotAllowed(f"key={printable(path)}: everybody may read it", hint=f"chmod o= {printable(path)}")
            stamps.append((found.st_mtime_ns, found.st_ino, found.st_size))
    return _made(side, *files, tuple(stamps))


@functools.lru_cache(maxsize=32)
def _made(side: int, cert: str | None, key: str | None, ca: str | None, stamps: tuple[Any, ...]) -> ssl.SSLContext:
    """A context of these files, as they are (`stamps`): made once, for it takes a millisecond. Raises UsageError."""
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False  # done here, since the name need not be the one that the listener is told
    context.verify_mode = ssl.CERT_REQUIRED
    if side == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # nobody resumes, and they would make an idle stream look as if it had something to say
    what = "cert", cert
    try:
        if cert is not None:
            context.load_cert_chain(cert, key, _no_password)
        what = "ca", ca
        if ca is not None:
            context.load_verify_locations(ca)
        else:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    except (OSError, ValueError) as error:
        why = error.reason if isinstance(error, ssl.SSLError) else getattr(error, "strerror", None) or error
        hint = "PEM is expected; a certificate's key stands in the same file, or in key="
        told = str(why or error).lower().replace("_", " ")
        raise UsageError(f"{what[0]}={printable(what[1] or '')}: {told}", hint=hint) from None
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted, and nobody can be asked for its password")
