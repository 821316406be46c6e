"""The table: one row an address type, with its names, parameters, options, reader and opener. The architecture is here.

To add a type is to add a row, and an opener if none fits. What socat has and this table lacks is refused by its name.
"""

from __future__ import annotations

import difflib
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from vsockfwd.plugin import UsageError, printable
from vsockfwd_relay import agent, datagrams, files, programs, sockets, terminals, tls
from vsockfwd_relay.absent import ABSENT_OPTIONS, ABSENT_TYPES
from vsockfwd_relay.address_type import AddressType, Direction, Dual, End, Families, Specification
from vsockfwd_relay.grammar import Written, read
from vsockfwd_relay.options import OPTION_OF_NAME, OPTIONS, Group

_ANY, _IP4, _IP6 = socket.AF_UNSPEC, socket.AF_INET, socket.AF_INET6

_G = Group
_STDIO = (_G.DATA, _G.TTY)
_NAMED = (_G.PLACE, _G.MASK, _G.NAMED)
_FILE = (_G.DATA, _G.TTY, *_NAMED, _G.FILE)
_CLIENT = (_G.DATA, _G.SOCKET, _G.STREAM, _G.CONNECT, _G.RETRY)
_SERVER = (_G.DATA, _G.SOCKET, _G.STREAM, _G.LISTEN, _G.SERVE, _G.RETRY)
_TCP_CLIENT = (*_CLIENT, _G.BIND, _G.PORT, _G.IP, _G.TCP)
_TCP_SERVER = (*_SERVER, _G.BIND, _G.PORT, _G.IP, _G.TCP, _G.ADMIT)
_UNIX_SERVER = (*_SERVER, *_NAMED)
_DATAGRAMS = (_G.DATA, _G.SOCKET, _G.DATAGRAM, _G.RETRY)
_UDP = (*_DATAGRAMS, _G.BIND, _G.PORT, _G.IP, _G.MULTICAST)
_UDP_OPEN = (_G.DATA, _G.SOCKET, _G.DATAGRAM, _G.BIND, _G.PORT, _G.IP, _G.MULTICAST)
_UDP_SERVER = (*_UDP, _G.SERVE, _G.ADMIT, _G.ACCEPT)
_UNIX_TO = (*_DATAGRAMS, _G.CONNECT, _G.BIND)
_PROGRAM = (_G.DATA, _G.TTY, _G.PLACE, _G.MASK, _G.PROGRAM)
_TERMINAL = (_G.DATA, _G.TTY, *_NAMED, _G.PTY)

_CONNECT, _CONNECT_TCP = sockets.dial(sockets.connect), sockets.dial(sockets.connect_internet)
_LISTEN, _LISTEN_TCP = sockets.listen_on(sockets.listen), sockets.listen_on(sockets.listen_internet)


def _internet() -> Iterator[AddressType]:
    """TCP and UDP: each type for either family, and for one alone."""
    for digit, family, among, six in (
        ("", _ANY, "", (_G.IP6,)), ("4", _IP4, ", over IPv4 only", ()), ("6", _IP6, ", over IPv6 only", (_G.IP6,))
    ):  # fmt: skip
        tcp, inet, udp = f"TCP{digit}", f"INET{digit}", f"UDP{digit}"
        yield AddressType(
            (tcp, f"{tcp}-CONNECT", inet), ("HOST", "PORT"), (*_TCP_CLIENT, *six), f"connect over TCP{among}",
            sockets.internet_client(family), _CONNECT_TCP,
            better="a name's addresses are tried side by side (RFC 8305)" if not digit else "",
        )  # fmt: skip
        yield AddressType(
            (f"{tcp}-LISTEN", f"{tcp}-L", f"{inet}-LISTEN", f"{inet}-L"), ("PORT",), (*_TCP_SERVER, *six),
            f"listen on TCP, on every interface or on bind={among}", sockets.internet_server(family),
            listen=_LISTEN_TCP, better="port 0 picks a free one and says which",
        )  # fmt: skip
        yield AddressType(
            (udp, f"{udp}-CONNECT"), ("HOST", "PORT"), (*_UDP, _G.CONNECT, *six),
            f"exchange datagrams with one peer{among}", sockets.internet_client(family, "udp"), datagrams.open_udp,
            unending=True, boundaries=True,
        )  # fmt: skip
        yield AddressType(
            (f"{udp}-LISTEN", f"{udp}-L"), ("PORT",), (*_UDP_SERVER, *six),
            f"wait for a peer's first datagram, then exchange more with it{among}",
            sockets.internet_server(family, "udp"), listen=datagrams.listen_udp, greet=datagrams.settle, unending=True,
            boundaries=True,
            better="with fork no datagram is lost between two processes",
        )  # fmt: skip
        yield AddressType(
            (f"{udp}-SENDTO", f"{udp}-SEND"), ("HOST", "PORT"), (*_UDP_OPEN, *six),
            f"send datagrams there, hear those from there{among}", sockets.internet_client(family, "udp"),
            datagrams.open_udp_to(anybody=False), unending=True, boundaries=True,
        )  # fmt: skip
        yield AddressType(
            (f"{udp}-DATAGRAM", f"{udp}-DGRAM"), ("HOST", "PORT"), (*_UDP_OPEN, _G.ADMIT, *six),
            f"send datagrams there, hear those from anybody{among}", sockets.internet_client(family, "udp"),
            datagrams.open_udp_to(anybody=True), unending=True, boundaries=True,
        )  # fmt: skip
        yield AddressType(
            (f"{udp}-RECVFROM",), ("PORT",), (*_UDP_SERVER, *six), f"one datagram, and answers to who sent it{among}",
            sockets.internet_server(family, "udp"), listen=datagrams.listen_udp, boundaries=True,
            better="with fork no datagram is lost between two processes",
        )  # fmt: skip
        yield AddressType(
            (f"{udp}-RECV",), ("PORT",), (*_UDP_OPEN, _G.ADMIT, *six), f"what anybody sends{among}",
            sockets.internet_server(family, "udp"), datagrams.open_udp_receiver, direction=Direction.READ,
            unending=True, boundaries=True,
        )  # fmt: skip


def _local() -> Iterator[AddressType]:
    """UNIX sockets, by a path and in the abstract namespace."""
    for kind, parameter, reader, named in (
        ("UNIX", "PATH", sockets.unix, _NAMED), ("ABSTRACT", "NAME", sockets.abstract, ())
    ):  # fmt: skip
        among = "" if named else ", in the abstract namespace"
        aliases = ("LOCAL",) if named else ()
        yield AddressType(
            (f"{kind}-CONNECT", *aliases), (parameter,), (*_CLIENT, _G.BIND, *named),
            f"connect to a UNIX stream socket{among}", reader, sockets.open_unix, at_once=True,
        )  # fmt: skip
        yield AddressType(
            (f"{kind}-LISTEN", *((f"{kind}-L",) if named else ())), (parameter,), (*_SERVER, *named),
            f"listen on a UNIX stream socket{among}", reader, listen=_LISTEN,
            better="its file is private unless mode= says otherwise, and a left-over one is replaced" if named else "",
        )  # fmt: skip
        yield AddressType(
            (f"{kind}-SENDTO", *((f"{kind}-SEND",) if named else ())), (parameter,), (*_UNIX_TO, *named),
            f"exchange datagrams with a UNIX socket{among}", reader, datagrams.open_unix_to, unending=True,
            boundaries=True, better="without bind= it has a name of the kernel's choice, so that answers arrive",
        )  # fmt: skip
        yield AddressType(
            (f"{kind}-RECVFROM",), (parameter,), (*_DATAGRAMS, _G.SERVE, _G.ACCEPT, *named),
            f"one datagram to a UNIX socket, and answers to who sent it{among}", reader, listen=datagrams.listen_unix,
            boundaries=True,
        )  # fmt: skip
        yield AddressType(
            (f"{kind}-RECV",), (parameter,), (_G.DATA, _G.SOCKET, _G.DATAGRAM, *named),
            f"what anybody sends to a UNIX socket{among}", reader, datagrams.open_unix_receiver,
            direction=Direction.READ, unending=True, boundaries=True,
        )  # fmt: skip
        yield AddressType(
            (f"{kind}-CLIENT", kind), (parameter,), (*_UNIX_TO, *named),
            f"connect to a UNIX socket of whatever kind{among}", reader, datagrams.open_unix_client,
            better="SEQPACKET too",
        )  # fmt: skip


TYPES = (
    AddressType(
        ("STDIO", "-"), (), _STDIO, "standard input and output", files.standard(0, 1), files.open_inherited
    ),
    AddressType(
        ("STDIN",), (), _STDIO, "standard input; what is sent to it is dropped", files.standard(0, 0),
        files.open_inherited,
    ),
    AddressType(
        ("STDOUT",), (), _STDIO, "standard output; nothing comes from it", files.standard(1, 1), files.open_inherited
    ),
    AddressType(("STDERR",), (), _STDIO, "standard error", files.standard(2, 2), files.open_inherited),
    AddressType(
        ("FD",), ("NUMBER",), _STDIO, "a descriptor; the number alone will do", files.descriptor, files.open_inherited
    ),
    *_internet(),
    *_local(),
    AddressType(
        ("VSOCK-CONNECT", "VSOCK"), ("CID", "PORT"), (*_CLIENT, _G.BIND, _G.VSOCK),
        "connect over vsock; a CID, host or local", sockets.vsock_client, sockets.dial(sockets.connect_vsock),
        better="buffers of 1 MiB; a full backlog is tried again; CID 1 is dialled only where there is a loopback",
    ),
    AddressType(
        ("VSOCK-LISTEN", "VSOCK-L"), ("PORT",), (*_SERVER, _G.BIND, _G.VSOCK, _G.ADMIT), "listen on vsock",
        sockets.vsock_server, listen=_LISTEN, better="buffers of 1 MiB; range= by CID",
    ),
    AddressType(
        ("VSOCK-SEQPACKET-CONNECT",), ("CID", "PORT"), (_G.DATA, _G.SOCKET, _G.CONNECT, _G.RETRY, _G.BIND, _G.VSOCK),
        "connect over vsock, messages with boundaries", sockets.vsock_client, datagrams.open_seqpacket, boundaries=True,
        ours=True,
    ),
    AddressType(
        ("VSOCK-SEQPACKET-LISTEN",), ("PORT",),
        (_G.DATA, _G.SOCKET, _G.LISTEN, _G.SERVE, _G.RETRY, _G.BIND, _G.VSOCK, _G.ADMIT),
        "listen for such", sockets.vsock_server, listen=datagrams.listen_seqpacket, boundaries=True,
        ours=True,
    ),
    AddressType(
        ("HYBRID-CONNECT", "HYBRID"), ("PATH", "PORT"), (*_CLIENT, _G.PLACE),
        "a guest's port through its VMM's UNIX socket", sockets.hybrid, _CONNECT, ours=True,
    ),
    AddressType(
        ("HYBRID-LISTEN", "HYBRID-L"), ("PATH", "PORT"), _UNIX_SERVER, "where such a guest's connections arrive",
        sockets.hybrid, listen=_LISTEN, ours=True,
    ),
    AddressType(
        ("AGENT",), ("TARGET", "ADDRESS"), (_G.DATA, _G.RETRY),
        "what a vsockfwd agent connects to: HOST:PORT or a path", agent.through, agent.open_through, rest=True,
        ours=True,
    ),
    AddressType(
        ("OPENSSL", "OPENSSL-CONNECT", "SSL"), ("HOST", "PORT"), (*_TCP_CLIENT, _G.IP6, _G.PLACE, _G.TLS),
        "connect with TLS",
        tls.client, sockets.dial(tls.connect), better="an end that TLS does not say is an error, not an end",
    ),
    AddressType(
        ("OPENSSL-LISTEN", "SSL-L"), ("PORT",), (*_TCP_SERVER, _G.IP6, _G.PLACE, _G.TLS), "listen with TLS",
        tls.server, listen=sockets.listen_on(tls.listen), greet=tls.greet,
        better="a caller that is slow to shake hands delays nobody else",
    ),
    AddressType(
        ("EXEC",), ("COMMAND",), _PROGRAM, "run a program", programs.command, programs.run_program, rest=True,
        better="it is reaped and stopped with its relay; its failure is the relay's",
    ),
    AddressType(
        ("SYSTEM",), ("COMMAND",), _PROGRAM, "run a shell's command", programs.system_command, programs.run_program,
        rest=True, better="as EXEC",
    ),
    AddressType(
        ("SHELL",), ("COMMAND",), (*_PROGRAM, _G.SHELL), "run a command of the user's own shell, or the shell itself",
        programs.shell_command, programs.run_program, fewest=0, rest=True, better="as EXEC",
    ),
    AddressType(
        ("PTY",), (), _TERMINAL, "a pseudo terminal that others open", terminals.no_parameters,
        terminals.open_terminal, unending=True,
        better="private to its owner unless mode= says otherwise; its name is said where no link= is given",
    ),
    AddressType(
        ("OPEN", "FILE"), ("PATH",), (*_FILE, _G.OPEN), "open a file",
        files.file_name, files.open_file(files.open_flags),
    ),
    AddressType(
        ("CREATE", "CREAT"), ("PATH",), (*_FILE, _G.APPEND), "make a file, or empty it, and write to it",
        files.file_name, files.open_file(files.create_flags), direction=Direction.WRITE,
    ),
    AddressType(
        ("GOPEN",), ("PATH",), (*_FILE, _G.OPEN), "a file, appended to, or a UNIX socket; a path with a / will do",
        files.file_name, files.open_anything,
    ),
    AddressType(
        ("PIPE", "FIFO", "ECHO"), ("PATH",), (_G.DATA, *_NAMED, _G.WAY),
        "a named pipe; without PATH an echo", files.pipe_name, files.open_pipe, fewest=0,
    ),
    AddressType(
        ("SOCKETPAIR",), (), (_G.DATA, _G.SOCKET), "an echo that keeps boundaries", files.no_parameters,
        files.open_socket_pair, boundaries=True, better="it has an end, as a pipe has",
    ),
)  # fmt: skip

TYPE_OF_NAME: Mapping[str, AddressType] = {name: row for row in TYPES for name in row.names}


_DEFAULT = Families()


def specify(text: str, families: Families = _DEFAULT) -> End:
    """Read an address and check it against the table. Raises AddressError, which points at the character."""
    written = read(text)
    if isinstance(written, Written):
        return _specification(written, families)
    dual = Dual(*(_specification(half, families) for half in written))
    for half in (dual.reading, dual.writing):
        if half.option("fork"):
            raise half.refuse("fork has no place in half an address")
    return dual


def _specification(written: Written, families: Families) -> Specification:
    row = _row(written)
    parameters = written.parameters
    if row.rest and len(parameters) > len(row.parameters):
        last = len(row.parameters) - 1
        parameters = (*parameters[:last], ":".join(parameters[last:]))
    given = len(parameters)
    fewest = len(row.parameters) if row.fewest is None else row.fewest
    if not fewest <= given <= len(row.parameters):
        raise written.error(f"{given} parameter{'s' * (given != 1)} where {row.form} is meant", hint=_colon_hint(row))
    options = _options(written, row)
    try:
        subject = row.read(*parameters, *("" for _ in range(len(row.parameters) - given)), options)
    except UsageError as error:
        raise type(error)(f"{printable(written.text)}: {error.message}", hint=error.hint) from None
    return Specification(row, subject, options, written, families)


def _row(written: Written) -> AddressType:
    name = written.type.upper()
    if row := TYPE_OF_NAME.get(name):
        return row
    if why := ABSENT_TYPES.get(name):
        raise written.error(f"socat's {name} is not built here: {why}", hint="vsockfwd relay -h lists what is")
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
    takes = row.options
    for each in written.options:
        name = each.name.lower()
        option = OPTION_OF_NAME.get(name)
        if option is None:
            if why := ABSENT_OPTIONS.get(name):
                raise written.error(f"socat's option {name} is not built here: {why}", at=each.position)
            close = difflib.get_close_matches(name, takes, 1)
            raise written.error(
                f"no option is called {printable(each.name)!r}", at=each.position,
                hint=f"did you mean {close[0]}?" if close else f"{row.name} takes {', '.join(takes)}",
            )  # fmt: skip
        if option.name not in takes:
            fitting = ", ".join(other.name for other in TYPES if option.name in other.options)
            raise written.error(
                f"{row.name} does not take {printable(each.name)}, which is for {fitting}", at=each.position,
                hint=f"it takes {', '.join(takes)}",
            )  # fmt: skip
        try:
            value = option.read(each.value)
        except ValueError as error:
            raise written.error(f"{each.name} {error}", at=each.position) from None
        found[option.name] = (*found.get(option.name, ()), value) if option.repeats else value
    if "max-children" in found and not found.get("fork"):
        raise written.error("max-children counts what fork makes", hint="add fork")
    if Group.BIND in row.groups and Group.NAMED in row.groups and "bind" not in found:
        own = {option.name for option in OPTIONS if {Group.NAMED, Group.MASK} & set(option.groups)}
        if stray := sorted(own & set(found)):
            raise written.error(f"{stray[0]} is of the socket's own file", hint="bind= names one")
    if any(isinstance(each, range) != (Group.VSOCK in row.groups) for each in found.get("range", ())):
        kind = "CIDs" if Group.VSOCK in row.groups else "IP addresses"
        raise written.error(f"range of {row.name} is of {kind}")
    return found
