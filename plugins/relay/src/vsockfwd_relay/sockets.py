"""The types that are stream sockets: what their parameters mean, how they are dialled and listened on, retries.

Every socket is opened through the engine's network, so what it knows of errors, time-outs, left-over socket files and
hybrid sockets holds here too; but for those whose options must be set, or whose own address must be bound, before
they connect or listen: these are made here. socat's meanings hold where they differ from those of the core's own
addresses: a listener without `bind` is on every interface, and TCP-LISTEN speaks IPv4.
"""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import random
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import trio

from vsockfwd.plugin import (
    AbstractAddress,
    Address,
    HybridAddress,
    Listener,
    NameNotResolved,
    Stream,
    TcpAddress,
    TimedOut,
    TransportMissing,
    UnixAddress,
    UsageError,
    VsockAddress,
    VsockfwdError,
    from_oserror,
    listener_over,
    parse_stream,
    printable,
    stream_over,
    why_no_loopback,
    why_unsupported,
)
from vsockfwd_relay.address_type import Listen, Open, Options, Situation, Specification
from vsockfwd_relay.options import When
from vsockfwd_relay.socket_options import (
    VSOCK,
    at,
    has_options,
    own_name,
    remove_first,
    remove_last,
    set_options,
)

CONNECT_TIMEOUT = 10.0
INTERVAL = 1.0
BACKLOG = 4096

KEEPALIVE = ((socket.TCP_KEEPIDLE, 300), (socket.TCP_KEEPINTVL, 60), (socket.TCP_KEEPCNT, 6))
"""What the core asks of its TCP sockets, for those that are made here."""

LOW_PORTS = range(640, 1024)
"""What `lowport` chooses from, as socat does."""

_ANY_CID, _LOCAL_CID, _ANY_PORT = 0xFFFF_FFFF, 1, 0xFFFF_FFFF
_BUFFER_SIZE, _BUFFER_MAX_SIZE = 0, 2  # linux/vm_sockets.h

T = TypeVar("T")

# --- parameters ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """Where a socket of the internet's goes, before its name is looked up; and its own address, where it is to have
    one. '' and 0 are any."""

    address: TcpAddress
    family: socket.AddressFamily
    source: tuple[str, int] | None = None

    @property
    def port(self) -> int:
        return self.address.port


def internet_client(family: socket.AddressFamily, kind: str = "tcp") -> Callable[[str, str, Options], Place]:
    """The reader of `HOST:PORT`; family AF_UNSPEC is both."""

    def read(host: str, port: str, options: Options) -> Place:
        if not host:
            raise UsageError("the host is missing")
        chosen = _family(family, options)
        address = TcpAddress(bare_host(host), read_port(port, kind), options=_tcp_options(options, "connect-timeout"))
        return Place(address, chosen, source_of(options))

    return read


def internet_server(family: socket.AddressFamily, kind: str = "tcp") -> Callable[[str, Options], Place]:
    """The reader of `PORT`, on every interface unless `bind` says otherwise."""

    def read(port: str, options: Options) -> Place:
        host, bound = host_port(options.get("bind", ""))
        chosen = _family(family, options)
        return Place(TcpAddress(host, bound or read_port(port, kind), options=_tcp_options(options, "backlog")), chosen)

    return read


def _family(family: socket.AddressFamily, options: Options) -> socket.AddressFamily:
    asked: socket.AddressFamily = options.get("protocol-family", family)
    if family not in (socket.AF_UNSPEC, asked):
        raise UsageError("pf says another family than the type")
    return asked


def source_of(options: Options) -> tuple[str, int] | None:
    """`bind`, `sourceport` and `lowport` of a type that dials: a host and a port, -1 for a low one."""
    if not {"bind", "sourceport", "lowport"} & set(options):
        return None
    host, port = host_port(options.get("bind", ""))
    return host, options.get("sourceport", -1 if options.get("lowport") else port)


def _tcp_options(options: Options, *names: str) -> tuple[tuple[str, Any], ...]:
    found = _kept(options, *names)
    return found if options.get("keepalive", True) else (*found, ("keepalive", 0))


def unix(path: str, options: Options) -> Address:
    """A UNIX socket's path."""
    return _with(UnixAddress(socket_path(path, options)), options)


def abstract(name: str, options: Options) -> Address:
    """A name in the abstract namespace, written without its NUL."""
    return _with(AbstractAddress(socket_path(name, {})), options)


def hybrid(path: str, port: str, options: Options) -> Address:
    """A VMM's vsock socket and a port, in the guest when dialling, of the host when listening."""
    return _with(HybridAddress(socket_path(path, options), read_vsock("2", port).port), options)


def vsock_client(cid: str, port: str, options: Options) -> Address:
    """`CID:PORT`."""
    if "bind" in options:
        read_own_vsock(options["bind"])
    return _with(read_vsock(cid, port), options)


def vsock_server(port: str, options: Options) -> Address:
    """`PORT`, on every CID of this machine unless `bind` names one."""
    cid, bound = read_own_vsock(options.get("bind", ""))
    address = read_vsock(str(cid) if cid != _ANY_CID else "any", port)
    return _with(dataclasses.replace(address, port=address.port if bound == _ANY_PORT else bound), options)


def read_vsock(cid: str, port: str) -> VsockAddress:
    """A CID or its name, and a port."""
    address = parse_stream(f"vsock:{cid}:{port}")
    assert isinstance(address, VsockAddress)  # the scheme says so
    return address


def read_own_vsock(text: str) -> tuple[int, int]:
    """`[CID][:PORT]`; what is left out is any."""
    cid, _, port = text.partition(":")
    address = read_vsock(cid or "any", port or "0")
    return address.cid, address.port if port else _ANY_PORT


def socket_path(path: str, options: Options) -> bytes:
    """A socket's path, checked."""
    raw = at(options.get("cd"), os.fsencode(path))
    # The core's grammar knows what fits into a socket's address; there a path is quoted.
    parse_stream("unix:" + re.sub(rb"[^A-Za-z0-9/._-]", lambda byte: b"%%%02X" % byte[0][0], raw).decode())
    return raw


def bare_host(host: str) -> str:
    """A host without the brackets of an IPv6 address."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def read_port(text: str, kind: str = "tcp") -> int:
    """A number or a service's name (services(5))."""
    if text.isascii() and text.isdigit() and int(text) <= 0xFFFF:
        return int(text)
    if text and not text[0].isdigit():
        with suppress(OSError):
            return socket.getservbyname(text, kind)
    raise UsageError(f"{printable(text)!r} is no port: a number up to 65535 or a service's name" if text else "no port")


def host_port(text: str) -> tuple[str, int]:
    """`[HOST][:PORT]`."""
    match = re.fullmatch(r"(\[[^]]*\]|[^:]*)(?::([^:]+))?", text)
    if match is None:
        raise UsageError(f"bind={printable(text)} is no [HOST][:PORT]", hint="an IPv6 address stands in brackets")
    return bare_host(match[1]), read_port(match[2]) if match[2] else 0


def _kept(options: Options, *names: str) -> tuple[tuple[str, Any], ...]:
    return tuple((name, options[name]) for name in sorted(names) if name in options)


def _with(address: Address, options: Options) -> Address:
    if "umask" in options and "mode" not in options:
        options = {**options, "mode": 0o777 & ~options["umask"]}
    return dataclasses.replace(address, options=_kept(options, *address.known_options))


# --- dialling -----------------------------------------------------------------------------------------------------


Connect = Callable[[Specification, Situation], Awaitable[Stream]]


def dial(connect: Connect) -> Open:
    """The opener of a type that connects, with its retries."""

    @asynccontextmanager
    async def opened(spec: Specification, situation: Situation) -> AsyncIterator[Stream]:
        stream = await persist(spec, situation, lambda: connect(spec, situation))
        try:
            if stream.sock is not None:
                set_options(stream.sock, spec, situation, When.CONNECTED)
            yield stream
        finally:
            stream.close()

    return opened


async def connect(spec: Specification, situation: Situation) -> Stream:
    """Connect through the engine's network, where nothing has to be done before."""
    if not has_options(spec, When.MADE):
        return await situation.engine.network.connect(spec.subject)
    address = spec.subject
    if isinstance(address, HybridAddress):  # its first words are the network's business; none of its options is urgent
        stream = await situation.engine.network.connect(address)
        assert stream.sock is not None
        set_options(stream.sock, spec, situation, When.MADE)
        return stream
    family, sockaddr = sockaddr_of(address)
    what = f"connect to {address.bare()}"
    sock = await connected(spec, situation, family, socket.SOCK_STREAM, sockaddr, None, what)
    return stream_over(sock, sockaddr, address.bare())


async def connect_vsock(spec: Specification, situation: Situation) -> Stream:
    """Over vsock; `bind` names a CID and a port of its own."""
    if "bind" not in spec.options and not has_options(spec, When.MADE):
        return await situation.engine.network.connect(spec.subject)
    address: VsockAddress = spec.subject
    sock = await connect_vsock_socket(spec, situation, socket.SOCK_STREAM)
    return stream_over(sock, (address.cid, address.port), address.bare())


async def connect_vsock_socket(spec: Specification, situation: Situation, kind: int) -> socket.socket:
    """A connected vsock socket of a kind. Raises VsockfwdError."""
    address: VsockAddress = spec.subject
    what = f"connect to {address.bare()}"
    reason = why_no_loopback() if address.cid == _LOCAL_CID else why_unsupported()
    if reason is not None:
        raise TransportMissing(f"{what}: no way there", hint=reason)
    source = read_own_vsock(spec.option("bind")) if "bind" in spec.options else None
    return await connected(spec, situation, VSOCK, kind, (address.cid, address.port), source, what)


async def connect_internet(spec: Specification, situation: Situation) -> Stream:
    """Connect to the first address of the name's that answers, of the family and from the source that are asked for."""
    place: Place = spec.subject
    plain = place.source is None and not has_options(spec, When.MADE)
    first = spec.families.first
    if plain and place.family == socket.AF_UNSPEC and first is None:
        return await situation.engine.network.connect(place.address)
    failure: VsockfwdError | None = None
    for family, sockaddr in await resolve(place, socket.SOCK_STREAM, first):
        address = dataclasses.replace(place.address, host=str(sockaddr[0]))
        try:
            if plain:
                return await situation.engine.network.connect(address)
            what = f"connect to {address.bare()}"
            source = place.source and _source_address(place.source, family)
            sock = await connected(spec, situation, family, socket.SOCK_STREAM, sockaddr, source, what)
            return stream_over(sock, sockaddr, address.bare())
        except VsockfwdError as error:
            failure = failure or error
    raise failure or NameNotResolved(f"the name {place.address.host} has no address of that family")


@asynccontextmanager
async def open_unix(spec: Specification, situation: Situation) -> AsyncIterator[Stream]:
    """UNIX-CONNECT: connect to a path, from one of its own where `bind` names it."""
    if "bind" not in spec.options:
        async with _CONNECT(spec, situation) as stream:
            yield stream
        return

    async def attempt() -> Stream:
        family, sockaddr = sockaddr_of(spec.subject)
        what = f"connect to {spec.subject.bare()}"
        sock = await connected(spec, situation, family, socket.SOCK_STREAM, sockaddr, own, what)
        return stream_over(sock, sockaddr, spec.subject.bare())

    own = own_path(spec)
    stream = await persist(spec, situation, attempt)
    try:
        assert stream.sock is not None
        set_options(stream.sock, spec, situation, When.CONNECTED)
        yield stream
    finally:
        stream.close()
        if not own.startswith(b"\0"):
            remove_last(spec, own, default=True)


def own_path(spec: Specification) -> bytes:
    """What `bind` names, as a UNIX socket's address; an abstract type's stands in the abstract namespace too."""
    text = spec.option("bind")
    return b"\0" + socket_path(text, {}) if spec.type.name.startswith("ABSTRACT") else socket_path(text, spec.options)


def sockaddr_of(address: Address) -> tuple[int, Any]:
    """Family and socket address of what is no name."""
    match address:
        case UnixAddress(path=path):
            return socket.AF_UNIX, path
        case AbstractAddress(name=name):
            return socket.AF_UNIX, b"\0" + name
        case VsockAddress(cid=cid, port=port):
            return VSOCK, (cid, port)
    raise AssertionError(address)


async def resolve(
    place: Place, kind: int, first: socket.AddressFamily | None = None
) -> list[tuple[socket.AddressFamily, Any]]:
    """What a name stands for, of the family that is asked for, `first` in front. Raises NameNotResolved."""
    host, port = place.address.host, place.address.port
    try:
        found = await trio.socket.getaddrinfo(host, port, place.family, kind)
    except (OSError, UnicodeError) as error:  # gaierror among them
        why = (getattr(error, "strerror", None) or str(error)).lower()
        raise NameNotResolved(f"the name {printable(host)} does not resolve: {why}") from None
    return sorted(
        ((family, sockaddr) for family, _, _, _, sockaddr in found), key=lambda each: each[0] != (first or each[0])
    )


def _source_address(source: tuple[str, int], family: socket.AddressFamily) -> tuple[str, int]:
    return source[0] or ("::" if family == socket.AF_INET6 else "0.0.0.0"), source[1]


async def connected(
    spec: Specification, situation: Situation, family: int, kind: int, sockaddr: Any, source: Any, what: str
) -> socket.socket:
    """A socket made here, with its options, bound to `source` and connected. Raises VsockfwdError."""
    sock = make_socket(spec, situation, family, kind, what)
    made = b""
    try:
        if source is not None:
            bind_socket(sock, source, spec, what)
            made = source if family == socket.AF_UNIX and not source.startswith(b"\0") else b""
        with trio.fail_after(spec.option("connect-timeout", CONNECT_TIMEOUT)):
            await _connect(sock, sockaddr)
    except BaseException as error:
        sock.close()
        if made:
            remove_last(spec, made, default=True)  # the next attempt binds it again
        if isinstance(error, trio.TooSlowError):
            raise TimedOut(f"{what}: timed out") from None
        if isinstance(error, OSError):
            raise from_oserror(error, what) from None
        raise
    return sock


def make_socket(spec: Specification, situation: Situation, family: int, kind: int, what: str) -> socket.socket:
    """A non-blocking socket with its options set. Raises VsockfwdError."""
    try:
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    except OSError as error:
        raise from_oserror(error, what) from None
    try:
        if family in (socket.AF_INET, socket.AF_INET6) and kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in KEEPALIVE:
                sock.setsockopt(socket.IPPROTO_TCP, name, value)
        if family == VSOCK:
            for name in (_BUFFER_MAX_SIZE, _BUFFER_SIZE):
                sock.setsockopt(VSOCK, name, spec.option("buffer", 1 << 20))
        if family == socket.AF_INET6 and "ipv6only" in spec.options:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, spec.option("ipv6only"))
        set_options(sock, spec, situation, When.MADE)
    except BaseException:
        sock.close()
        raise
    return sock


def bind_socket(sock: socket.socket, source: Any, spec: Specification, what: str) -> None:
    """Bind a socket to its own address: a path with all that is said of it, or a port, -1 for a low one.

    Raises OSError, VsockfwdError.
    """
    if sock.family == socket.AF_UNIX:
        if source and not source.startswith(b"\0"):
            remove_first(spec, source)
            mode = spec.option("mode", 0o777 & ~spec.option("umask", 0o177))
            os.fchmod(sock.fileno(), mode)  # its file is made with what the socket has: there is no moment of more
            sock.bind(source)
            os.chmod(source, mode)
            own_name(spec, source)
            return
        sock.bind(source)
        return
    # Of UDP's sockets two on one port would take each other's datagrams: who wants that says so.
    if sock.family != VSOCK and (sock.type == socket.SOCK_STREAM or spec.option("reuseaddr")):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if source[1] != -1:
        sock.bind(source)
        return
    for port in random.sample(LOW_PORTS, len(LOW_PORTS)):
        try:
            sock.bind((source[0], port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            continue
        return
    raise from_oserror(OSError(errno.EADDRINUSE, ""), f"{what} from a low port")


async def _connect(sock: socket.socket, sockaddr: Any) -> None:
    """Raises OSError."""
    while True:
        try:
            sock.connect(sockaddr)
        except BlockingIOError as error:
            if error.errno == errno.EAGAIN:  # a UNIX socket whose backlog is full: nothing to wait on but time
                await trio.sleep(0.02)
                continue
            await trio.lowlevel.wait_writable(sock)
            if number := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(number, os.strerror(number)) from None
        return


_CONNECT = dial(connect)

# --- listening ----------------------------------------------------------------------------------------------------


def listen_on(attempt: Callable[[Specification, Situation], Awaitable[Sequence[Listener]]]) -> Listen:
    """The opener of a type that listens, with its retries."""

    async def listen(spec: Specification, situation: Situation) -> Sequence[Listener]:
        return await persist(spec, situation, lambda: attempt(spec, situation))

    return listen


async def listen(spec: Specification, situation: Situation) -> Sequence[Listener]:
    """Listen through the engine's network; what is accepted inherits the listener's options."""
    address = spec.subject
    path = _path_of(address)
    if path is not None:
        remove_first(spec, path)
    listeners = await situation.engine.network.listen(address)
    try:
        for listener in listeners:
            _set_on_listener(listener, spec, situation)
            if path is not None:
                own_name(spec, path)
                if not spec.option("unlink-close", True):
                    listener.keep_file()
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _path_of(address: Address) -> bytes | None:
    match address:
        case UnixAddress(path=path):
            return path
        case HybridAddress():
            return address.listening_path
    return None


def _set_on_listener(listener: Listener, spec: Specification, situation: Situation) -> None:
    sock = getattr(listener, "sock", None)
    if isinstance(sock, socket.socket):
        set_options(sock, spec, situation, When.MADE)


async def listen_internet(spec: Specification, situation: Situation) -> Sequence[Listener]:
    """TCP's: a name stands for its first address of the family that is wanted."""
    family, host, sockaddr = await local_place(spec, socket.SOCK_STREAM)
    address = dataclasses.replace(spec.subject.address, host=host)
    if not has_options(spec, When.MADE):
        return await situation.engine.network.listen(address)
    what = f"listen on {address.bare()}"
    sock = make_socket(spec, situation, family, socket.SOCK_STREAM, what)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "*")
        sock.bind(sockaddr)
        sock.listen(spec.option("backlog", BACKLOG))
        return [listener_over(sock, address)]
    except OSError as error:
        sock.close()
        raise from_oserror(error, what) from None


async def local_place(spec: Specification, kind: int) -> tuple[socket.AddressFamily, str, Any]:
    """Where to bind: the family, the host (`*` for every address of both), and the socket address."""
    place: Place = spec.subject
    wanted = place.family if place.family != socket.AF_UNSPEC else spec.families.listen
    if not place.address.host:
        if wanted == socket.AF_INET:
            return socket.AF_INET, "0.0.0.0", ("0.0.0.0", place.port)
        return socket.AF_INET6, "::" if spec.option("ipv6only") else "*", ("::", place.port)
    family, sockaddr = (await resolve(place, kind, wanted))[0]
    return family, str(sockaddr[0]), sockaddr


async def persist(spec: Specification, situation: Situation, attempt: Callable[[], Awaitable[T]]) -> T:
    """Try as often as `retry` and `forever` say, `interval` seconds apart."""
    left = math.inf if spec.option("forever") else spec.option("retry", 0)
    interval = spec.option("interval", INTERVAL)
    while True:
        try:
            return await attempt()
        except (UsageError, TransportMissing):
            raise  # no later attempt would do better
        except VsockfwdError as error:
            if not left:
                raise
            situation.note(1, f"{error.line()}; trying again in {interval:g} s")
        left -= 1
        await trio.sleep(interval)
