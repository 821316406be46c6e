"""The table: one row an address type, with its names, parameters, options, reader and opener. The architecture is here.

To add a type is to add a row, and an opener if none fits. What socat has and this table lacks is refused by its name.
"""

from __future__ import annotations

import difflib
import socket
from collections.abc import Mapping
from typing import Any

from vsockfwd.plugin import UsageError, printable
from vsockfwd_relay import files, programs, sockets
from vsockfwd_relay.address_type import AddressType, Dual, End, Specification
from vsockfwd_relay.grammar import Written, read
from vsockfwd_relay.options import OPTION_OF_NAME

_ANY, _IP4, _IP6 = socket.AF_UNSPEC, socket.AF_INET, socket.AF_INET6

_FD = ("ignoreeof",)
_RETRY = ("retry", "interval", "forever")
_CLIENT = (*_FD, "connect-timeout", *_RETRY)
_SERVER = (*_FD, "fork", "max-children", "backlog", *_RETRY)
_TCP_CLIENT = (*_CLIENT, "bind", "nodelay")
_TCP_SERVER = (*_SERVER, "bind", "reuseaddr", "nodelay")
_NAMED = ("mode", "unlink-early")
_OPEN = (*_FD, "rdonly", "wronly", "append", "creat", "excl", "trunc", "mode")
_PROGRAM = (*_FD, "pipes", "stderr", "setsid", "path")

_CONNECT, _CONNECT_TCP = sockets.dial(sockets.connect), sockets.dial(sockets.connect_tcp)
_LISTEN, _LISTEN_TCP = sockets.listen_on(), sockets.listen_on(sockets.local_place)

TYPES = (
    AddressType(
        ("STDIO", "-"), (), _FD, "standard input and output", files.standard(0, 1), files.open_inherited
    ),
    AddressType(
        ("STDIN",), (), _FD, "standard input; what is sent to it is dropped", files.standard(0, 0), files.open_inherited
    ),
    AddressType(
        ("STDOUT",), (), _FD, "standard output; nothing comes from it", files.standard(1, 1), files.open_inherited
    ),
    AddressType(("STDERR",), (), _FD, "standard error", files.standard(2, 2), files.open_inherited),
    AddressType(
        ("FD",), ("NUMBER",), _FD, "a descriptor; the number alone will do", files.descriptor, files.open_inherited
    ),
    AddressType(
        ("TCP", "TCP-CONNECT", "INET"), ("HOST", "PORT"), _TCP_CLIENT, "connect over TCP",
        sockets.tcp_client(_ANY), _CONNECT_TCP,
    ),
    AddressType(
        ("TCP4", "TCP4-CONNECT", "INET4"), ("HOST", "PORT"), _TCP_CLIENT, "over IPv4 only",
        sockets.tcp_client(_IP4), _CONNECT_TCP,
    ),
    AddressType(
        ("TCP6", "TCP6-CONNECT", "INET6"), ("HOST", "PORT"), _TCP_CLIENT, "over IPv6 only",
        sockets.tcp_client(_IP6), _CONNECT_TCP,
    ),
    AddressType(
        ("TCP-LISTEN", "TCP-L", "INET-LISTEN", "INET-L", "TCP4-LISTEN", "TCP4-L", "INET4-LISTEN", "INET4-L"), ("PORT",),
        _TCP_SERVER, "listen on every IPv4 interface, or on bind=", sockets.tcp_server(_IP4), listen=_LISTEN_TCP,
    ),
    AddressType(
        ("TCP6-LISTEN", "TCP6-L", "INET6-LISTEN", "INET6-L"), ("PORT",), (*_TCP_SERVER, "ipv6only"),
        "on every interface, IPv4 too unless ipv6only", sockets.tcp_server(_IP6), listen=_LISTEN_TCP,
    ),
    AddressType(
        ("UNIX-CONNECT", "LOCAL", "UNIX-CLIENT", "UNIX"), ("PATH",), _CLIENT, "connect to a UNIX stream socket",
        sockets.unix, _CONNECT,
    ),
    AddressType(
        ("UNIX-LISTEN", "UNIX-L"), ("PATH",), (*_SERVER, *_NAMED), "listen on a UNIX stream socket",
        sockets.unix, listen=_LISTEN,
    ),
    AddressType(
        ("ABSTRACT-CONNECT", "ABSTRACT-CLIENT", "ABSTRACT"), ("NAME",), _CLIENT, "the same, in the abstract namespace",
        sockets.abstract, _CONNECT,
    ),
    AddressType(
        ("ABSTRACT-LISTEN",), ("NAME",), _SERVER, "listen in the abstract namespace",
        sockets.abstract, listen=_LISTEN,
    ),
    AddressType(
        ("VSOCK-CONNECT", "VSOCK"), ("CID", "PORT"), _CLIENT, "connect over vsock; a CID, host or local",
        sockets.vsock_client, _CONNECT,
    ),
    AddressType(
        ("VSOCK-LISTEN", "VSOCK-L"), ("PORT",), (*_SERVER, "bind", "reuseaddr"), "listen on vsock",
        sockets.vsock_server, listen=_LISTEN,
    ),
    AddressType(
        ("HYBRID-CONNECT", "HYBRID"), ("PATH", "PORT"), _CLIENT, "a guest's port through its VMM's UNIX socket (ours)",
        sockets.hybrid, _CONNECT,
    ),
    AddressType(
        ("HYBRID-LISTEN", "HYBRID-L"), ("PATH", "PORT"), (*_SERVER, *_NAMED), "where such a guest's connections arrive",
        sockets.hybrid, listen=_LISTEN,
    ),
    AddressType(("EXEC",), ("COMMAND",), _PROGRAM, "run a program", programs.command, programs.run_program),
    AddressType(
        ("SYSTEM",), ("COMMAND",), _PROGRAM, "run a shell's command", programs.shell_command, programs.run_program
    ),
    AddressType(
        ("OPEN", "FILE"), ("PATH",), (*_OPEN, "unlink-early"), "open a file",
        files.file_name, files.open_file(files.open_flags),
    ),
    AddressType(
        ("CREATE", "CREAT"), ("PATH",), (*_FD, "append", *_NAMED), "make a file, or empty it, and write to it",
        files.file_name, files.open_file(files.create_flags),
    ),
    AddressType(
        ("GOPEN",), ("PATH",), _OPEN, "a file, appended to, or a UNIX socket; a path with a / will do",
        files.file_name, files.open_anything,
    ),
    AddressType(
        ("PIPE", "FIFO", "ECHO"), ("PATH",), (*_FD, "rdonly", "wronly", *_NAMED), "a named pipe; without PATH an echo",
        files.pipe_name, files.open_pipe, fewest=0,
    ),
)  # fmt: skip

TYPE_OF_NAME: Mapping[str, AddressType] = {name: row for row in TYPES for name in row.names}

_ELSEWHERE = frozenset(
    {
        "DATAGRAM", "DGRAM", "DTLS", "IF", "INTERFACE", "IP", "IP4", "IP6", "OPENSSL", "PROXY", "PTY", "READLINE",
        "SCTP", "SCTP4", "SCTP6", "SENDTO", "SOCKET", "SOCKS", "SOCKS4", "SOCKS4A", "SSL", "TUN", "UDP", "UDP4", "UDP6",
    }
)  # fmt: skip
"""How the names of socat's other types begin, up to a hyphen."""

_DATAGRAMS = ("-SENDTO", "-SEND", "-RECV", "-RECVFROM", "-DATAGRAM", "-DGRAM")


def specify(text: str) -> End:
    """Read an address and check it against the table. Raises AddressError, which points at the character."""
    written = read(text)
    if isinstance(written, Written):
        return _specification(written)
    dual = Dual(*map(_specification, written))
    for half in (dual.reading, dual.writing):
        if half.option("fork"):
            raise half.refuse("fork has no place in half an address")
    return dual


def _specification(written: Written) -> Specification:
    row = _row(written)
    given = len(written.parameters)
    fewest = len(row.parameters) if row.fewest is None else row.fewest
    if not fewest <= given <= len(row.parameters):
        raise written.error(f"{given} parameter{'s' * (given != 1)} where {row.form} is meant", hint=_colon_hint(row))
    options = _options(written, row)
    parameters = written.parameters + ("",) * (len(row.parameters) - given)
    try:
        subject = row.read(*parameters, options)
    except UsageError as error:
        raise type(error)(f"{printable(written.text)}: {error.message}", hint=error.hint) from None
    return Specification(row, subject, options, written)


def _row(written: Written) -> AddressType:
    name = written.type.upper()
    if row := TYPE_OF_NAME.get(name):
        return row
    if name.partition("-")[0] in _ELSEWHERE or name.endswith(_DATAGRAMS):
        hint = "vsockfwd dgram is for datagrams" if name.startswith("UDP") or name.endswith(_DATAGRAMS) else ""
        raise written.error(f"socat's {name} is not built here", hint=hint or "vsockfwd relay -h lists what is")
    close = difflib.get_close_matches(name, TYPE_OF_NAME, 1)
    raise written.error(
        f"no address type is called {printable(written.type)!r}" if name else "the address type is missing",
        hint=f"did you mean {close[0]}?" if close else "vsockfwd relay -h lists them",
    )


def _colon_hint(row: AddressType) -> str:
    return r"\: is a colon that separates nothing" if row.parameters else ""


def _options(written: Written, row: AddressType) -> dict[str, Any]:
    """The options by the name that is used here; of one that stands twice the last counts, as socat has it."""
    found: dict[str, Any] = {}
    for each in written.options:
        option = OPTION_OF_NAME.get(each.name.lower())
        if option is None or option.name not in row.options:
            known = ", ".join(sorted(row.options))
            raise written.error(f"{row.name} has no option {printable(each.name)!r} here", at=each.position,
                                hint=f"it takes {known}")  # fmt: skip
        try:
            found[option.name] = option.read(each.value)
        except ValueError as error:
            raise written.error(f"{each.name} {error}", at=each.position) from None
    if "max-children" in found and not found.get("fork"):
        raise written.error("max-children counts what fork makes", hint="add fork")
    return found
