"""The address grammar: text → frozen values → text. Pure: an address knows what is written, not whether it works.

`scheme:rest[,option=value…]`. One class a scheme; `parse` finds it by the scheme, `str()` writes the canonical form,
and the two round-trip. The grammar is strict: what it does not know is an `AddressError` that points at the character.

The thing to understand first: paths and abstract names are *bytes*. `%XX` writes a byte that the grammar uses
(`, : [ ] %`) or that is not UTF-8; everything else stands for itself.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from vsockfwd.errors import AddressError
from vsockfwd.identity import CID_ANY, CID_HOST, CID_LOCAL

AGENT_PORT = 876
"""Where an agent listens: below 1024, so that no unprivileged user of the guest can sit on it."""

UNIX_PATH_LIMIT = 107
"""Bytes of a UNIX socket's path: sun_path holds 108 with its NUL (unix(7))."""

VSOCK_PORT_LIMIT = 0xFFFF_FFFE
"""The largest vsock port; the one above means "any" (vsock(7))."""

_CID_WORDS = {"host": CID_HOST, "local": CID_LOCAL, "any": CID_ANY}
_CID_OF_WORD = {number: word for word, number in _CID_WORDS.items()}


# --- options ------------------------------------------------------------------------------------------------------


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", text) or float(text) == 0:
        raise ValueError("is a number of seconds above 0, such as 5 or 0.5")
    return float(text)


_LARGEST_BUFFER = 1 << 30
"""Bytes: the kernel's own fields are 32 bits wide."""


def _bytes(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,15})([KMG]?)", text)
    if not match or not int(match[1]):
        raise ValueError("is a number of bytes above 0; K, M and G may follow")
    size = int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]]
    if size > _LARGEST_BUFFER:
        raise ValueError("is at most 1G")
    return size


def _count_or_none(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,4}", text):
        raise ValueError("is a whole number of seconds from 0 to 9999")
    return int(text)


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or not int(text):
        raise ValueError("is a whole number above 0")
    return int(text)


def _file_mode(text: str) -> int:
    if not re.fullmatch(r"0?[0-7]{3}", text):
        raise ValueError("is three octal digits, such as 0660")
    return int(text, 8)


def _interface(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", text):
        raise ValueError("is a network interface's name, such as eth0")
    return text


def _file(text: str) -> str:
    """Kept as `os.fsdecode` has paths."""
    raw = text.encode("utf-8", "surrogateescape")
    if not raw or b"%" in re.sub(rb"%[0-9A-Fa-f]{2}", b"", raw):
        raise ValueError("is a file's path; %XX writes a byte that the grammar uses")
    raw = re.sub(rb"%([0-9A-Fa-f]{2})", lambda match: bytes.fromhex(match[1].decode()), raw)
    if b"\0" in raw:
        raise ValueError("is a file's path, which holds no NUL byte")
    return raw.decode("utf-8", "surrogateescape")


def _write_file(path: str) -> str:
    return _quote(path.encode("utf-8", "surrogateescape"))


def _peer_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.:-]{1,253}", text):
        raise ValueError("is a name or an IP address, as a certificate has it")
    return text


def _format_seconds(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")


@dataclass(frozen=True, slots=True)
class Option:
    """One option of the grammar: how its value is read and written, and what it means."""

    read: Callable[[str], Any]
    write: Callable[[Any], str]
    meaning: str
    flag: bool = False
    """Whether it stands alone, without a value."""


OPTIONS: Mapping[str, Option] = {
    "connect-timeout": Option(_seconds, _format_seconds, "seconds a connect may take"),
    "backlog": Option(_count, str, "connections that may wait to be accepted"),
    "buffer": Option(_bytes, str, "bytes of the vsock buffer"),
    "keepalive": Option(_count_or_none, str, "seconds of silence after which a TCP peer is asked for a sign of life"),
    "linger": Option(_count_or_none, str, "seconds that unsent bytes of a closed TCP connection are still sent"),
    "interface": Option(_interface, str, "network interface on which a multicast group is joined, or sent to"),
    "auth-key": Option(_file, _write_file, "file of the key that is shared with a target's agent"),
    "tls": Option(bool, str, "TLS, both sides with a certificate", flag=True),
    "cert": Option(_file, _write_file, "file of the certificate that is shown in TLS, and what signed it"),
    "key": Option(_file, _write_file, "file of its private key, where it stands in another"),
    "ca": Option(_file, _write_file, "file of the certificates that the peer's is to be signed by"),
    "peer-name": Option(_peer_name, str, "name that the peer's certificate is to bear, instead of the host's"),
    "mode": Option(_file_mode, lambda value: f"{value:04o}", "permissions of the socket's file when listening"),
}

_TLS_OPTIONS = ("tls", "cert", "key", "ca", "peer-name")
_STREAM_OPTIONS = ("connect-timeout", "backlog", *_TLS_OPTIONS)
_TARGET_OPTIONS = ("auth-key",)
"""What a TARGET may have besides."""


# --- the addresses ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """What all addresses share: a scheme, and options as (name, value) pairs in the order of their names."""

    scheme: ClassVar[str] = ""
    known_options: ClassVar[tuple[str, ...]] = ()
    datagrams: ClassVar[bool] = False
    """Whether what is sent arrives in the same pieces, which is for the datagram modes."""
    connected: ClassVar[bool] = False
    """Whether these go over a connection."""

    options: tuple[tuple[str, Any], ...] = ()

    def option(self, name: str, default: Any = None) -> Any:
        """The value of an option, or `default` where it is not given."""
        return dict(self.options).get(name, default)

    def rest(self) -> str:
        """What stands between the scheme and the options, canonical."""
        return ""

    def bare(self) -> str:
        """The address without its options."""
        return f"{self.scheme}:{self.rest()}"

    def __str__(self) -> str:
        return self.bare() + "".join(
            f",{name}" if OPTIONS[name].flag else f",{name}={OPTIONS[name].write(value)}"
            for name, value in self.options
        )


@dataclass(frozen=True, slots=True)
class VsockAddress(Address):
    """`vsock:CID:PORT`: an AF_VSOCK stream socket. Both numbers are 32 bits wide."""

    scheme = "vsock"
    known_options = (*_STREAM_OPTIONS, "buffer")

    cid: int
    port: int

    def rest(self) -> str:
        return f"{_CID_OF_WORD.get(self.cid, self.cid)}:{self.port}"


@dataclass(frozen=True, slots=True)
class TcpAddress(Address):
    """`tcp:HOST:PORT` or `tcp:PORT`. No host (''): loopback; `*`: every address, for listening."""

    scheme = "tcp"
    known_options = (*_STREAM_OPTIONS, "keepalive", "linger")

    host: str
    port: int

    def rest(self) -> str:
        return _host_port(self.host, self.port)


@dataclass(frozen=True, slots=True)
class UnixAddress(Address):
    """`unix:PATH`: a UNIX stream socket in the file system."""

    scheme = "unix"
    known_options = (*_STREAM_OPTIONS, "mode")

    path: bytes

    @property
    def vmm(self) -> HybridAddress | None:
        """What the path means where it ends in _NUMBER: where a VMM brings its guest's connections."""
        vmm, _, port = self.path.rpartition(b"_")
        return HybridAddress(vmm, int(port)) if re.fullmatch(rb"[0-9]+", port) else None

    def rest(self) -> str:
        return _quote(self.path)


@dataclass(frozen=True, slots=True)
class AbstractAddress(Address):
    """`abstract:NAME`: a UNIX stream socket in Linux's abstract namespace, which has no permissions."""

    scheme = "abstract"
    known_options = _STREAM_OPTIONS

    name: bytes

    def rest(self) -> str:
        return _quote(self.name)


@dataclass(frozen=True, slots=True)
class HybridAddress(Address):
    """`hybrid:PATH:PORT`: the UNIX socket of Firecracker, Cloud Hypervisor, vhost-device-vsock or libkrun.

    Dialling writes `CONNECT PORT` to PATH; listening binds `PATH_PORT`.
    """

    scheme = "hybrid"
    known_options = (*_STREAM_OPTIONS, "mode")

    path: bytes
    port: int

    @property
    def listening_path(self) -> bytes:
        return self.path + b"_%d" % self.port

    def rest(self) -> str:
        return f"{_quote(self.path)}:{self.port}"


@dataclass(frozen=True, slots=True)
class StdioAddress(Address):
    """`stdio` or `-`: this process's standard input and output."""

    scheme = "stdio"

    def bare(self) -> str:
        return "stdio"


@dataclass(frozen=True, slots=True)
class FdAddress(Address):
    """`fd:N`: a descriptor that this process inherited; `fd:NAME`: those that a service manager passed by this name.

    The names are of the alphabet of systemd's units, after which they are called by default; one without a letter
    would be taken for a number, or for a mistake in one.
    """

    scheme = "fd"
    known_options = ("backlog",)

    descriptor: int | str

    def rest(self) -> str:
        return str(self.descriptor)


@dataclass(frozen=True, slots=True)
class MemoryAddress(Address):
    """`memory:NAME`: streams inside one process, for tests."""

    scheme = "memory"

    name: str

    def rest(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class UdpAddress(Address):
    """`udp:HOST:PORT` or `udp:PORT`, for datagram modes; hosts as in tcp."""

    scheme = "udp"
    known_options = ("interface",)
    datagrams = True

    host: str
    port: int

    def rest(self) -> str:
        return _host_port(self.host, self.port)


@dataclass(frozen=True, slots=True)
class UnixDatagramAddress(Address):
    """`unix-dgram:PATH`: a UNIX datagram socket, for datagram modes."""

    scheme = "unix-dgram"
    datagrams = True

    path: bytes

    def rest(self) -> str:
        return _quote(self.path)


@dataclass(frozen=True, slots=True)
class VsockPacketAddress(Address):
    """`vsock-seqpacket:CID:PORT`: an AF_VSOCK socket that keeps boundaries, for datagrams without an agent."""

    scheme = "vsock-seqpacket"
    known_options = ("connect-timeout", "backlog", "buffer")
    datagrams = connected = True

    cid: int
    port: int

    def rest(self) -> str:
        return f"{_CID_OF_WORD.get(self.cid, self.cid)}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixPacketAddress(Address):
    """`unix-seqpacket:PATH`: a UNIX socket with connections that keep boundaries."""

    scheme = "unix-seqpacket"
    known_options = ("connect-timeout", "backlog", "mode")
    datagrams = connected = True

    path: bytes

    def rest(self) -> str:
        return _quote(self.path)


@dataclass(frozen=True, slots=True)
class AcceptAddress(Address):
    """`accept:PLACE`, as a TARGET only: the agent dials us, and `place` is where we wait for it.

    The CID of a vsock place is the machine that calls, as the CID of a target is the machine that is called. Its
    privileged processes are meant; `any_user` (`,trust=machine`) means every process of it.
    """

    scheme = "accept"

    place: Address
    any_user: bool = False

    def option(self, name: str, default: Any = None) -> Any:
        """The place's."""
        return self.place.option(name, default)

    def bare(self) -> str:
        return f"accept:{self.place.bare()}"

    def __str__(self) -> str:
        return f"accept:{self.place}{',trust=machine' * self.any_user}"


# --- reading ------------------------------------------------------------------------------------------------------


class _Reader:
    """The text of an address and the place where reading it stands, so that errors can point."""

    def __init__(self, text: str, start: int, end: int) -> None:
        self.text = text
        self.start = start
        self.end = end

    @property
    def rest(self) -> str:
        return self.text[self.start : self.end]

    def error(self, message: str, at: int | None = None, hint: str = "") -> AddressError:
        return AddressError(message, hint=hint, text=self.text, position=self.start if at is None else at)

    def split_last(self, separator: str) -> tuple[_Reader, _Reader] | None:
        cut = self.text.rfind(separator, self.start, self.end)
        if cut < 0:
            return None
        return _Reader(self.text, self.start, cut), _Reader(self.text, cut + 1, self.end)

    def number(self, what: str, low: int, high: int) -> int:
        if not re.fullmatch(r"[0-9]{1,20}", self.rest):
            raise self.error(f"{what} must be a number, not {self.rest!r}" if self.rest else f"{what} is missing")
        value = int(self.rest)
        if not low <= value <= high:
            raise self.error(f"{what} must be between {low} and {high}")
        return value

    def path(self, what: str, limit: int = UNIX_PATH_LIMIT) -> bytes:
        if not self.rest:
            raise self.error(f"{what} is missing")
        out = bytearray()
        at = self.start
        while at < self.end:
            character = self.text[at]
            if character == "%":
                digits = self.text[at + 1 : min(at + 3, self.end)]
                if not re.fullmatch(r"[0-9A-Fa-f]{2}", digits):
                    raise self.error("% starts a byte in hexadecimal: two digits follow it", at, "write %25 for %")
                out.append(int(digits, 16))
                at += 3
                continue
            try:
                out += character.encode("utf-8", "surrogateescape")
            except UnicodeEncodeError:
                raise self.error("a character that no byte stands for", at) from None
            at += 1
        if len(out) > limit:
            raise self.error(f"{what} has {len(out)} bytes, a UNIX socket's holds {limit}", hint="use a shorter path")
        return bytes(out)


def _parse_vsock(reader: _Reader) -> VsockAddress:
    parts = reader.split_last(":")
    if parts is None:
        raise reader.error("vsock takes CID:PORT", hint="such as vsock:3:1234")
    cid_part, port_part = parts
    if cid_part.rest in _CID_WORDS:
        cid = _CID_WORDS[cid_part.rest]
    elif re.fullmatch(r"[a-z-]+", cid_part.rest):
        close = difflib.get_close_matches(cid_part.rest, _CID_WORDS, 1)
        hint = f"did you mean {close[0]}?" if close else "a number, host, local or any"
        raise cid_part.error(f"no CID is called {cid_part.rest!r}", hint=hint)
    else:
        cid = cid_part.number("a CID", 0, CID_ANY)
    return VsockAddress(cid, port_part.number("a vsock port", 0, VSOCK_PORT_LIMIT))


def _parse_host_port(reader: _Reader) -> tuple[str, int]:
    parts = reader.split_last(":")
    if parts is None:
        return "", reader.number("a port", 0, 65535)
    host_part, port_part = parts
    host = host_part.rest
    if host.startswith("["):
        if not host.endswith("]"):
            raise host_part.error("[ without its ]")
        literal, percent, interface = host[1:-1].partition("%")
        try:
            ipaddress.IPv6Address(literal)
            if percent and not re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", interface):
                raise ValueError
        except ValueError:
            raise host_part.error(f"{host[1:-1]!r} is no IPv6 address", host_part.start + 1) from None
        host = literal.lower() + percent + interface
    elif ":" in host:
        raise host_part.error("an IPv6 address stands in brackets", hint="such as tcp:[::1]:8080")
    elif not host:
        raise host_part.error("the host is missing", hint="leave out its colon for loopback, write * for every address")
    elif host != "*" and not re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})", host):
        raise host_part.error(f"{host!r} is no host name")
    return host, port_part.number("a port", 0, 65535)


def _parse_tcp(reader: _Reader) -> TcpAddress:
    return TcpAddress(*_parse_host_port(reader))


def _parse_udp(reader: _Reader) -> UdpAddress:
    return UdpAddress(*_parse_host_port(reader))


def _parse_unix(reader: _Reader) -> UnixAddress:
    path = reader.path("the path")
    if b"\0" in path:
        raise reader.error("a path holds no NUL byte", hint="abstract:NAME for the abstract namespace")
    return UnixAddress(path)


def _parse_unix_datagram(reader: _Reader) -> UnixDatagramAddress:
    return UnixDatagramAddress(_parse_unix(reader).path)


def _parse_vsock_packet(reader: _Reader) -> VsockPacketAddress:
    address = _parse_vsock(reader)
    return VsockPacketAddress(address.cid, address.port)


def _parse_unix_packet(reader: _Reader) -> UnixPacketAddress:
    return UnixPacketAddress(_parse_unix(reader).path)


def _parse_abstract(reader: _Reader) -> AbstractAddress:
    return AbstractAddress(reader.path("the name"))


def _parse_hybrid(reader: _Reader) -> HybridAddress:
    parts = reader.split_last(":")
    if parts is None:
        raise reader.error("hybrid takes PATH:PORT", hint="such as hybrid:/run/vm.vsock:1234")
    path_part, port_part = parts
    path = path_part.path("the path")
    if b"\0" in path:
        raise path_part.error("a path holds no NUL byte")
    return HybridAddress(path, port_part.number("a vsock port", 0, VSOCK_PORT_LIMIT))


def _parse_stdio(reader: _Reader) -> StdioAddress:
    if reader.rest:
        raise reader.error("stdio takes nothing after it")
    return StdioAddress()


def _parse_fd(reader: _Reader) -> FdAddress:
    if not re.search(r"[A-Za-z]", reader.rest):
        return FdAddress(reader.number("a descriptor", 0, 1 << 20))
    if not re.fullmatch(r"[A-Za-z0-9_.@\\-]{1,255}", reader.rest):
        raise reader.error("a descriptor's name is of letters, digits, '_', '.', '@', '-' and '\\', 255 at most")
    return FdAddress(reader.rest)


def _parse_memory(reader: _Reader) -> MemoryAddress:
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", reader.rest):
        raise reader.error("a memory address takes a NAME of letters, digits, '_', '.' and '-'")
    return MemoryAddress(reader.rest)


_SCHEMES: Mapping[str, tuple[type[Address], Callable[[_Reader], Address]]] = {
    "vsock": (VsockAddress, _parse_vsock),
    "tcp": (TcpAddress, _parse_tcp),
    "unix": (UnixAddress, _parse_unix),
    "abstract": (AbstractAddress, _parse_abstract),
    "hybrid": (HybridAddress, _parse_hybrid),
    "stdio": (StdioAddress, _parse_stdio),
    "fd": (FdAddress, _parse_fd),
    "memory": (MemoryAddress, _parse_memory),
    "udp": (UdpAddress, _parse_udp),
    "unix-dgram": (UnixDatagramAddress, _parse_unix_datagram),
    "vsock-seqpacket": (VsockPacketAddress, _parse_vsock_packet),
    "unix-seqpacket": (UnixPacketAddress, _parse_unix_packet),
}

SCHEMES = tuple(_SCHEMES)


def parse(text: str, more_options: tuple[str, ...] = ()) -> Address:
    """Read an address. Raises AddressError, which names the character where reading stopped making sense.

    `more_options` are known beside the scheme's own.
    """
    whole = _Reader(text, 0, len(text))
    body, options_at = (text, len(text)) if "," not in text else (text[: text.index(",")], text.index(","))
    if body in ("-", "stdio"):
        scheme, start = "stdio", len(body)
    else:
        scheme, colon, _ = body.partition(":")
        start = len(scheme) + 1
        if scheme not in _SCHEMES:
            raise whole.error(_no_such_scheme(scheme, bool(colon)), 0, _scheme_hint(scheme))
        if not colon:
            raise whole.error(f"{scheme} is followed by a colon", len(scheme))
    kind, read = _SCHEMES[scheme]
    address = read(_Reader(text, start, options_at))
    options = _parse_options(whole, kind, options_at, more_options)
    return dataclasses.replace(address, options=options) if options else address


def parse_stream(text: str, more_options: tuple[str, ...] = ()) -> Address:
    """Read an address that streams go over: one of a datagram scheme is an AddressError."""
    address = parse(text, more_options)
    if address.datagrams:
        raise AddressError(
            f"{address.scheme} carries datagrams, a stream is needed here",
            text=text,
            position=0,
            hint="vsockfwd dgram is for datagrams",
        )
    return address


def _parse_options(
    whole: _Reader, kind: type[Address], at: int, more: tuple[str, ...] = ()
) -> tuple[tuple[str, Any], ...]:
    found: dict[str, Any] = {}
    names = (*kind.known_options, *more)
    for part in whole.text[at + 1 :].split(",") if at < whole.end else ():
        start = at + 1
        at = start + len(part)
        name, equals, value = part.partition("=")
        if name not in names:
            known = ", ".join(names)
            scheme = kind.scheme
            raise whole.error(
                f"{scheme} has no option {name!r}" if name else "an option is missing after the comma",
                start,
                f"it takes {known}" if known else f"{scheme} takes none",
            )
        if name in found:
            raise whole.error(f"option {name} stands twice", start)
        if OPTIONS[name].flag:
            if equals:
                raise whole.error(f"{name} stands alone, without a value", start + len(name))
            found[name] = True
            continue
        if not equals:
            raise whole.error(f"option {name} takes a value", at, f"{name}=…")
        try:
            found[name] = OPTIONS[name].read(value)
        except ValueError as error:
            raise whole.error(f"{name} {error}", start + len(name) + 1) from None
    for name, needed in (("cert", "tls"), ("key", "cert"), ("ca", "tls"), ("peer-name", "tls")):
        if name in found and needed not in found:
            raise whole.error(f"{name} goes with {needed}", whole.text.index(f",{name}=") + 1)
    return tuple(sorted(found.items()))


def _no_such_scheme(scheme: str, colon: bool) -> str:
    if not scheme:
        return "the scheme is missing"
    if scheme.lower() in _VSOCK_DATAGRAMS:
        return f"{scheme}: vsock has no datagrams (SOCK_DGRAM) but on VMware"
    return f"no scheme is called {scheme!r}" if colon else f"{scheme!r} is no address: a scheme and a colon come first"


_VSOCK_DATAGRAMS = ("vsock-dgram", "vsock-datagram")
"""What others would call a thing that only VMware's vsock has."""


def _scheme_hint(scheme: str) -> str:
    lowered = scheme.lower()
    if lowered in _VSOCK_DATAGRAMS:
        return "vsock-seqpacket: keeps boundaries, and vsockfwd dgram -L or -R does through an agent"
    if lowered in _SCHEMES:
        return f"schemes are written small: {lowered}"
    socat = {"tcp4": "tcp", "tcp6": "tcp", "tcp-listen": "tcp", "tcp-l": "tcp", "tcp-connect": "tcp"}
    socat |= {"unix-connect": "unix", "unix-listen": "unix", "vsock-connect": "vsock", "vsock-listen": "vsock"}
    if lowered in socat:
        return f"that is socat's word, which vsockfwd relay knows; here it is {socat[lowered]}:, position decides"
    close = difflib.get_close_matches(lowered, _SCHEMES, 1)
    if close:
        return f"did you mean {close[0]}?"
    if lowered == AcceptAddress.scheme:
        return "accept: stands where a TARGET is meant, and nowhere else"
    return "the schemes are " + ", ".join(name for name in _SCHEMES if name != "memory")


# --- targets ------------------------------------------------------------------------------------------------------


_PORTLESS = (
    re.compile(r"vsock:[^:]+"),
    re.compile(r"hybrid:(?!.*:[0-9]+$).+"),
    re.compile(r"tcp:(\[[^]]*\]|(?![0-9]+$)[^:\[\]]+)"),
)
"""Targets that lack the agent's port. `tcp:N` is not among them: as everywhere, that is a port on loopback."""


def parse_target(text: str, port: int | None = None) -> Address:
    """Read a TARGET: where an agent listens. A bare number is a CID; the agent's port is filled in where it is missing.

    `port` is what `-p` said; it must not contradict a port that is written. `accept:` and a target is where we wait
    for an agent that calls.
    """
    if text.startswith("accept:"):
        return _parse_accept(text, port)
    body, comma, options = text.partition(",")
    agent_port = AGENT_PORT if port is None else port
    if re.fullmatch(r"[0-9]+", body):
        body = f"vsock:{body}"
    elif ":" not in body and body not in ("-", "stdio"):
        raise AddressError(
            f"no target is called {body!r}" if body else "the target is missing",
            text=text or " ",
            hint="a target is a CID such as 3, or an address such as vsock:3, hybrid:/run/vm.vsock or unix:/run/a.sock",
        )
    if any(pattern.fullmatch(body) for pattern in _PORTLESS):
        return parse_stream(f"{body}:{agent_port}{comma}{options}", _TARGET_OPTIONS)
    target = parse_stream(text, _TARGET_OPTIONS)
    written = getattr(target, "port", None)
    if port is not None and port != written:
        reason = f"port {written} stands in it" if written is not None else f"{target.scheme} has no port"
        raise AddressError(f"-p {port} does not fit: {reason}", text=text, hint="leave out -p")
    if isinstance(target, StdioAddress | FdAddress):
        raise AddressError(
            f"every stream is a connection of its own, {target.scheme} can be opened once",
            text=text,
            hint="name a socket address",
        )
    return target


def with_key(target: Address, path: str) -> Address:
    """A target whose agent knows the key in this file, whatever key it named itself."""
    if isinstance(target, AcceptAddress):
        return dataclasses.replace(target, place=with_key(target.place, path))
    options = dict(target.options) | {"auth-key": path}
    return dataclasses.replace(target, options=tuple(sorted(options.items())))


def _parse_accept(text: str, port: int | None) -> AcceptAddress:
    start = len("accept:")
    body, *options = text[start:].split(",")
    trusts = [option for option in options if option.partition("=")[0] == "trust"]
    place = parse_target(",".join([body, *(option for option in options if option not in trusts)]), port)
    if isinstance(place, AcceptAddress):
        raise AddressError("one accept: is enough", text=text, position=start)
    if isinstance(place, VsockAddress) and place.cid == CID_ANY:
        raise AddressError(
            "the CID is that of the machine that calls",
            text=text,
            position=start,
            hint=f"such as accept:vsock:3:{place.port}; it is waited for on every CID of this machine",
        )
    if trusts and (trusts != ["trust=machine"] or not isinstance(place, VsockAddress | HybridAddress)):
        raise AddressError(
            "trust=machine, once, is all that can be said of trust, and of vsock and hybrid only",
            text=text,
            position=text.index(",trust") + 1,
        )
    return AcceptAddress(place, bool(trusts))


# --- several in one line ------------------------------------------------------------------------------------------

Word = tuple[str, int]


def split_spec(spec: str) -> list[Word]:
    """Cut what ssh spells as `a:b:c` at the colons outside brackets: each word, and where it begins.

    Brackets may stand in brackets, `[udp:[::1]:53]`. Raises AddressError, which points at one without its other.
    """
    words: list[Word] = []
    start, opened = 0, list[int]()
    for at, character in enumerate(spec):
        if character == "[":
            opened.append(at)
        elif character == "]":
            if not opened:
                raise AddressError("] without its [", text=spec, position=at)
            opened.pop()
        elif character == ":" and not opened:
            words.append((spec[start:at], start))
            start = at + 1
    if opened:
        raise AddressError("[ without its ]", text=spec, position=opened[0])
    words.append((spec[start:], start))
    return words


# --- writing ------------------------------------------------------------------------------------------------------

_PLAIN = frozenset(map(chr, range(0x20, 0x7F))) - frozenset(",:[]%")


@functools.lru_cache(maxsize=64)  # a forward names its target anew for each connection
def _quote(raw: bytes) -> str:
    return "".join(map(_quote_character, raw.decode("utf-8", "surrogateescape")))


def _quote_character(character: str) -> str:
    if character in _PLAIN or (character > "\x7f" and character.isprintable()):
        return character
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogateescape"))


def _host_port(host: str, port: int) -> str:
    if not host:
        return str(port)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
