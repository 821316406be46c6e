"""The options that addresses take: their names as socat has them, the group they belong to, and what they mean.

One row an option. Which groups a type takes stands in the types' table, not here: every option of a group does what it
says for every type that takes the group. What sets an option of a socket's stands in its row as well.
"""

from __future__ import annotations

import grp
import ipaddress
import math
import os
import pwd
import re
import socket
import ssl
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from vsockfwd_relay.admission import read_range

# linux/in.h, linux/in6.h and asm-generic/socket.h: names that Python's socket module lacks.
_IP_TRANSPARENT, _IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER = 19, 10, 23


class Group(Enum):
    """What options are about. A value is what the group is called in tables."""

    DATA = "data"
    TTY = "terminal"
    PLACE = "place"
    MASK = "permissions left out"
    NAMED = "file's name"
    OPEN = "open(2)"
    APPEND = "appending"
    WAY = "one way"
    FILE = "regular file"
    SOCKET = "socket"
    STREAM = "stream socket"
    CONNECT = "connecting"
    BIND = "own address"
    LISTEN = "listening"
    ACCEPT = "waiting for the first"
    SERVE = "serving"
    ADMIT = "who may connect"
    RETRY = "retrying"
    DATAGRAM = "datagrams"
    MULTICAST = "multicast"
    IP = "IP"
    IP6 = "IPv6"
    PORT = "own port"
    TCP = "TCP"
    VSOCK = "vsock"
    TLS = "TLS"
    PROGRAM = "program"
    SHELL = "shell"
    PTY = "pseudo terminal"


class When(Enum):
    """When an option of a socket's is set."""

    MADE = 1
    """Before it is bound or connected; on a listener, and what it accepts has it too."""
    CONNECTED = 2


Setter = Callable[[socket.socket, Any], None]


@dataclass(frozen=True, slots=True)
class Option:
    """`names`: the one that is used here, then its aliases. `read` takes the text after `=`, None where there is
    none, and raises ValueError with a sentence that goes on after the name. `repeats`: it may stand several times, and
    its value is the tuple of all. `set` sets it on a socket; `when` says at what time. `better`: how it differs from
    socat's; `ours`: socat has none of the kind.
    """

    names: tuple[str, ...]
    groups: tuple[Group, ...]
    read: Callable[[str | None], Any]
    meaning: str
    repeats: bool = False
    set: Setter | None = None
    when: When = When.MADE
    better: str = ""
    ours: bool = False

    @property
    def name(self) -> str:
        return self.names[0]


# --- values -------------------------------------------------------------------------------------------------------


def _flag(text: str | None) -> bool:
    if text not in (None, "0", "1"):
        raise ValueError("is 0 or 1, or stands alone")
    return text != "0"


def _always(text: str | None) -> bool:
    if not _flag(text):
        raise ValueError("cannot be switched off here")
    return True


def _text(text: str | None) -> str:
    if not text:
        raise ValueError("takes a value")
    if "\0" in text:
        raise ValueError("holds no NUL byte")
    return text


def _optional_text(text: str | None) -> str:
    return "" if text is None else _text(text)


def _path(text: str | None) -> bytes:
    return os.fsencode(_text(text))


def _count(text: str | None) -> int:
    if not (text and text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError("is a whole number")
    return int(text)


def _positive(text: str | None) -> int:
    if not (number := _count(text)):
        raise ValueError("is a whole number above 0")
    return number


def _number(text: str | None) -> int:
    try:
        number = int(text or "", 0)
    except ValueError:
        number = 1 << 32
    if not -(1 << 31) <= number < 1 << 31:
        raise ValueError("is a whole number")
    return number


def _byte(text: str | None) -> int:
    number = _number(text)
    if not 0 <= number <= 0xFF:
        raise ValueError("is a whole number from 0 to 255")
    return number


def _offset(text: str | None) -> int:
    try:
        return int(text or "", 0)
    except ValueError:
        raise ValueError("is a whole number of bytes") from None


def _length(text: str | None) -> int:
    number = _offset(text)
    if number < 0:
        raise ValueError("is a whole number of bytes")
    return number


def _some_bytes(text: str | None) -> int:
    if not (number := _length(text)):
        raise ValueError("is a number of bytes above 0")
    return number


def seconds(text: str | None) -> float:
    """A number of seconds, 0 or more. Raises ValueError."""
    try:
        number = float(text or "")
    except ValueError:
        number = -1.0
    if not (number >= 0 and math.isfinite(number)):
        raise ValueError("is a number of seconds, such as 5 or 0.5")
    return number


def _timeout(text: str | None) -> float:
    if not (number := seconds(text)):
        raise ValueError("is a number of seconds above 0")
    return number


def _mode(text: str | None) -> int:
    if not text or len(text) > 4 or set(text) - set("01234567") or int(text, 8) > 0o777:
        raise ValueError("is octal digits, such as 0660")
    return int(text, 8)


def _user(text: str | None) -> int:
    name = _text(text)
    try:
        return _count(name) if name.isdigit() else pwd.getpwnam(name).pw_uid
    except KeyError:
        raise ValueError(f"names a user that this machine does not have: {name}") from None


def _group(text: str | None) -> int:
    name = _text(text)
    try:
        return _count(name) if name.isdigit() else grp.getgrnam(name).gr_gid
    except KeyError:
        raise ValueError(f"names a group that this machine does not have: {name}") from None


def _service(kind: str) -> Callable[[str | None], int]:
    def read(text: str | None) -> int:
        name = _text(text)
        try:
            number = _count(name) if name.isdigit() else socket.getservbyname(name, kind)
        except OSError:
            number = 0
        if not 0 < number <= 0xFFFF:
            raise ValueError("is a port: a number up to 65535 or a service's name")
        return number

    return read


_FAMILIES = {
    "ip4": socket.AF_INET, "ipv4": socket.AF_INET, "inet": socket.AF_INET, "inet4": socket.AF_INET,
    "4": socket.AF_INET, "ip6": socket.AF_INET6, "ipv6": socket.AF_INET6, "inet6": socket.AF_INET6,
    "6": socket.AF_INET6,
}  # fmt: skip


def _family(text: str | None) -> socket.AddressFamily:
    family = _FAMILIES.get(_text(text).lower())
    if family is None:
        raise ValueError("is ip4 or ip6")
    return family


_TLS_VERSIONS = {
    "TLS1": ssl.TLSVersion.TLSv1, "TLS1.0": ssl.TLSVersion.TLSv1, "TLS1.1": ssl.TLSVersion.TLSv1_1,
    "TLS1.2": ssl.TLSVersion.TLSv1_2, "TLS1.3": ssl.TLSVersion.TLSv1_3,
}  # fmt: skip


def _tls_version(text: str | None) -> ssl.TLSVersion:
    version = _TLS_VERSIONS.get(_text(text).upper())
    if version is None:
        raise ValueError("is TLS1.0, TLS1.1, TLS1.2 or TLS1.3")
    return version


def _raw_option(value: Callable[[str], int | bytes]) -> Callable[[str | None], tuple[int, int, int | bytes]]:
    """The reader of `LEVEL:NAME:VALUE`."""

    def read(text: str | None) -> tuple[int, int, int | bytes]:
        level, _, rest = _text(text).partition(":")
        name, colon, last = rest.partition(":")
        if not colon:
            raise ValueError("is LEVEL:NAME:VALUE, in numbers of setsockopt(2)")
        return _number(level), _number(name), value(last)

    return read


def _data(text: str) -> bytes:
    """socat's binary values, as far as they are one word: `x` and hexadecimal digits, `i` and an int, or an int."""
    if text.startswith("x"):
        try:
            return bytes.fromhex(text[1:])
        except ValueError:
            raise ValueError("has an odd number of hexadecimal digits, or others") from None
    return struct.pack("i", _number(text.removeprefix("i")))


def _string(text: str) -> bytes:
    return os.fsencode(text) + b"\0"


def _membership(text: str | None) -> bytes:
    """`GROUP:INTERFACE` → struct ip_mreqn (ip(7)); the interface is an address, a name or an index."""
    parts = _text(text).split(":")
    try:
        if not 2 <= len(parts) <= 3 or not ipaddress.IPv4Address(parts[0]).is_multicast:
            raise ValueError
        own = parts[1] if len(parts) == 3 or parts[1].count(".") == 3 else "0.0.0.0"
        index = parts[2] if len(parts) == 3 else "0" if own == parts[1] else parts[1]
        return socket.inet_aton(parts[0]) + socket.inet_aton(own) + struct.pack("i", _interface(index))
    except (ValueError, OSError):
        raise ValueError("is GROUP:INTERFACE, an IPv4 group and an address, name or index") from None


def _membership6(text: str | None) -> bytes:
    """`[GROUP]:INTERFACE` → struct ipv6_mreq (ipv6(7))."""
    match = re.fullmatch(r"\[?([0-9A-Fa-f:.]+?)\]?:([^]:]+)", _text(text))
    try:
        if match is None:
            raise ValueError
        return socket.inet_pton(socket.AF_INET6, match[1]) + struct.pack("I", _interface(match[2]))
    except (ValueError, OSError):
        raise ValueError("is [GROUP]:INTERFACE, an IPv6 group and an interface's name or index") from None


def _interface(text: str) -> int:
    return int(text) if text.isdigit() else socket.if_nametoindex(text)


def _host4(text: str | None) -> bytes:
    try:
        return socket.inet_aton(_text(text))
    except OSError:
        raise ValueError("is an IPv4 address of this machine") from None


# --- how a socket's options are set -------------------------------------------------------------------------------


def _set(level: int, name: int) -> Setter:
    def set_it(sock: socket.socket, value: Any) -> None:
        sock.setsockopt(level, name, value)

    return set_it


def _set_linger(sock: socket.socket, value: int) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, value))


def _set_given(sock: socket.socket, values: tuple[tuple[int, int, int | bytes], ...]) -> None:
    for level, name, value in values:
        sock.setsockopt(level, name, value)


def _set_each(level: int, name: int) -> Setter:
    def set_all(sock: socket.socket, values: tuple[bytes, ...]) -> None:
        for value in values:
            sock.setsockopt(level, name, value)

    return set_all


_BASE, _IP, _IPV6, _TCP = socket.SOL_SOCKET, socket.IPPROTO_IP, socket.IPPROTO_IPV6, socket.IPPROTO_TCP
_LATE = When.CONNECTED
_G = Group

OPTIONS = (
    # --- what passes
    Option(("cr",), (_G.DATA,), _flag, "a line ends with CR there: translated to and from NL"),
    Option(("crnl", "crlf"), (_G.DATA,), _flag,
           "a line ends with CR and NL there: written so, and every CR that comes is dropped"),
    Option(("escape",), (_G.DATA,), _byte, "the code of a byte that ends what is read, such as 0x1d for ctrl-]"),
    Option(("ignoreeof", "ignoreof"), (_G.DATA,), _flag, "at the end look again every second, as tail -f does"),
    Option(("lockfile",), (_G.DATA,), _path,
           "make this file for as long as the address is open; fail where it is there",
           better="with fork it is held from the first listening to the end"),
    Option(("readbytes", "bytes"), (_G.DATA,), _some_bytes, "end after so many bytes were read"),
    Option(("shut-close",), (_G.DATA,), _flag, "where the other side has ended, close"),
    Option(("shut-none",), (_G.DATA,), _flag, "where the other side has ended, say nothing"),
    Option(("waitlock",), (_G.DATA,), _path, "as lockfile, but wait until it is gone"),
    # --- terminals
    Option(("echo",), (_G.TTY,), _flag, "whether a terminal echoes; set back at the end",
           better="the terminal is set back however the relay ends"),
    Option(("raw",), (_G.TTY,), _flag, "a terminal that changes nothing on its way",
           better="the same as rawer but for the echo"),
    Option(("rawer", "cfmakeraw", "termios-rawer", "termios-cfmakeraw"), (_G.TTY,), _flag, "as raw, without an echo"),
    # --- files and their names
    Option(("cd", "chdir"), (_G.PLACE,), _path, "the directory that a relative path starts at, and a program"),
    Option(("umask",), (_G.MASK,), _mode, "permissions that what is made, or a program makes, shall not have"),
    Option(("group", "gid"), (_G.NAMED,), _group, "the group of what is made"),
    Option(("mode", "perm"), (_G.NAMED,), _mode, "permissions of what is made (files 0666, sockets and terminals 0600)",
           better="a socket's file has them from its first moment on"),
    Option(("unlink-close",), (_G.NAMED,), _flag,
           "whether the name is removed at the end (of pipes, sockets, links; not of files)"),
    Option(("unlink-early", "new", "unlink"), (_G.NAMED,), _flag, "remove what stands at the path first"),
    Option(("unlink-late",), (_G.NAMED,), _flag, "remove the name as soon as it is open"),
    Option(("user", "owner", "uid"), (_G.NAMED,), _user, "the owner of what is made"),
    Option(("append", "o-append"), (_G.OPEN, _G.APPEND), _flag, "write at the end of the file"),
    Option(("creat", "create", "o-creat", "o-create", "o_creat", "o_create"), (_G.OPEN,), _flag,
           "make the file if it is not there"),
    Option(("dsync", "o-dsync", "o_dsync"), (_G.OPEN,), _flag, "a write returns when its data is on the disk"),
    Option(("excl", "o-excl", "o_excl"), (_G.OPEN,), _flag, "with creat: fail if the file is there"),
    Option(("largefile", "o-largefile", "o_largefile"), (_G.OPEN,), _always, "always on"),
    Option(("noatime", "o-noatime"), (_G.OPEN,), _flag, "reading leaves no trace in the access time"),
    Option(("noctty", "o-noctty", "o_noctty"), (_G.OPEN,), _always, "always on"),
    Option(("nofollow", "o-nofollow", "o_nofollow"), (_G.OPEN,), _flag, "fail where the path ends in a symbolic link"),
    Option(("nonblock", "o-nonblock", "ndelay", "o-ndelay", "o_ndelay"), (_G.OPEN, _G.WAY), _flag,
           "do not wait for the other end of a named pipe", better="sockets are so always"),
    Option(("rdonly", "o-rdonly", "o_rdonly"), (_G.OPEN, _G.WAY), _flag, "open for reading only"),
    Option(("sync", "o-sync", "o_sync"), (_G.OPEN,), _flag, "as dsync, with the file's own data (size, times) too"),
    Option(("trunc", "o-trunc"), (_G.OPEN,), _flag, "empty the file first"),
    Option(("wronly", "o-wronly", "o_wronly"), (_G.OPEN, _G.WAY), _flag, "open for writing only"),
    Option(("ftruncate", "truncate", "ftruncate32"), (_G.FILE,), _length, "cut the file to so many bytes"),
    Option(("seek", "lseek", "seek-set", "lseek32", "lseek32-set"), (_G.FILE,), _length, "start at this byte"),
    Option(("seek-cur", "lseek64-cur"), (_G.FILE,), _offset, "start so many bytes from where it stands"),
    Option(("seek-end", "lseek64-end"), (_G.FILE,), _offset, "start so many bytes from the end"),
    # --- sockets of every kind
    Option(("dontroute", "so-dontroute"), (_G.IP,), _flag, "reach only neighbours on the wire",
           set=_set(_BASE, socket.SO_DONTROUTE)),
    Option(("priority", "so-priority"), (_G.SOCKET,), _number, "the priority of what is sent",
           set=_set(_BASE, socket.SO_PRIORITY)),
    Option(("rcvbuf", "so-rcvbuf"), (_G.SOCKET,), _positive, "bytes of the receive buffer",
           set=_set(_BASE, socket.SO_RCVBUF)),
    Option(("rcvbuf-late", "so-rcvbuf-late"), (_G.SOCKET,), _positive, "the same, set once it is connected",
           set=_set(_BASE, socket.SO_RCVBUF), when=_LATE),
    Option(("rcvlowat", "so-rcvlowat"), (_G.SOCKET,), _positive, "bytes that must be there before any is read",
           set=_set(_BASE, socket.SO_RCVLOWAT)),
    Option(("setsockopt", "sockopt", "setsockopt-connected", "sockopt-conn"), (_G.SOCKET,), _raw_option(_data),
           "LEVEL:NAME:VALUE, set once it is connected; VALUE is an int or x and hexadecimal digits", repeats=True,
           set=_set_given, when=_LATE),
    Option(("setsockopt-int", "sockopt-int"), (_G.SOCKET,), _raw_option(_number), "the same, of an int", repeats=True,
           set=_set_given, when=_LATE),
    Option(("setsockopt-listen", "setsockopt-socket", "sockopt-listen", "sockopt-sock"), (_G.SOCKET,),
           _raw_option(_data),
           "the same, set before it is bound or connected", repeats=True, set=_set_given),
    Option(("setsockopt-string", "sockopt-string"), (_G.SOCKET,), _raw_option(_string), "the same, of a text",
           repeats=True,
           set=_set_given, when=_LATE),
    Option(("sndbuf", "so-sndbuf"), (_G.SOCKET,), _positive, "bytes of the send buffer",
           set=_set(_BASE, socket.SO_SNDBUF)),
    Option(("sndbuf-late", "so-sndbuf-late"), (_G.SOCKET,), _positive, "the same, set once it is connected",
           set=_set(_BASE, socket.SO_SNDBUF), when=_LATE),
    Option(("linger", "so-linger"), (_G.STREAM,), _count, "seconds that a close waits for what was sent; 0: a reset",
           set=_set_linger),
    Option(("shut-down",), (_G.STREAM,), _flag,
           "where the other side has ended, half-close (the default, but for HYBRID-CONNECT)"),
    Option(("connect-timeout",), (_G.CONNECT,), _timeout, "seconds a connect may take (10)",
           better="there is always one"),
    Option(("bind",), (_G.BIND,), _text, "its own address: [HOST][:PORT], a path, or [CID][:PORT]"),
    Option(("reuseaddr", "so-reuseaddr"), (_G.BIND,), _always,
           "always on, but for UDP: there two on one port would share its datagrams"),
    Option(("accept-timeout", "listen-timeout"), (_G.LISTEN, _G.ACCEPT), _timeout,
           "seconds to wait for the first connection"),
    Option(("backlog",), (_G.LISTEN,), _positive, "connections that may wait to be accepted (4096, cut by the kernel)",
           better="socat's default is 5, and who comes too many is refused"),
    Option(("fork",), (_G.SERVE,), _flag, "serve every connection, many at once, until told to stop",
           better="in one process: only programs are processes; it belongs to the first address"),
    Option(("max-children", "maxchildren"), (_G.SERVE,), _positive,
           "with fork: connections at once; more wait (16000)"),
    Option(("allow",), (_G.ADMIT,), _path, "a file of ranges, one a line; read anew at every connection", ours=True),
    Option(("range",), (_G.ADMIT,), read_range,
           "let in only ADDRESS/BITS, ADDRESS:MASK, or on vsock a CID, several with - between first and last",
           repeats=True, better="by CID, and several: who is in any of them is let in"),
    Option(("forever",), (_G.RETRY,), _flag, "retry without end"),
    Option(("interval", "intervall"), (_G.RETRY,), seconds, "seconds between two attempts (1)"),
    Option(("retry",), (_G.RETRY,), _count, "attempts after the first one that failed (0)"),
    Option(("broadcast", "so-broadcast"), (_G.DATAGRAM,), _flag, "may be sent to everybody's address",
           set=_set(_BASE, socket.SO_BROADCAST)),
    Option(("null-eof",), (_G.DATAGRAM,), _flag, "an empty datagram is the end"),
    Option(("shut-null",), (_G.DATAGRAM,), _flag, "where the other side has ended, send an empty datagram"),
    # --- the internet's
    Option(("ip-mtu-discover", "mtudiscover", "ipmtudiscover"), (_G.IP,), _byte,
           "0 never, 1 wanted, 2 always: no fragments",
           set=_set(_IP, _IP_MTU_DISCOVER)),
    Option(("ip-transparent", "transparent"), (_G.IP,), _flag, "may use addresses that are not this machine's",
           set=_set(_IP, _IP_TRANSPARENT)),
    Option(("protocol-family", "pf"), (_G.IP,), _family, "ip4 or ip6"),
    Option(("tos", "ip-tos", "iptos"), (_G.IP,), _byte, "the type of service of what is sent",
           set=_set(_IP, socket.IP_TOS)),
    Option(("ttl", "ip-ttl", "ipttl"), (_G.IP,), _byte, "hops that what is sent may take",
           set=_set(_IP, socket.IP_TTL)),
    Option(("ipv6only", "ipv6-v6only", "v6only"), (_G.IP6,), _flag, "take no IPv4"),
    Option(("ipv6-mtu-discover", "mtudiscover6"), (_G.IP6,), _byte, "as ip-mtu-discover",
           set=_set(_IPV6, _IPV6_MTU_DISCOVER)),
    Option(("ipv6-tclass",), (_G.IP6,), _byte, "the traffic class of what is sent",
           set=_set(_IPV6, socket.IPV6_TCLASS)),
    Option(("ipv6-unicast-hops", "unicast-hops"), (_G.IP6,), _byte, "hops that what is sent may take",
           set=_set(_IPV6, socket.IPV6_UNICAST_HOPS)),
    Option(("lowport",), (_G.PORT,), _flag, "a port below 1024: for dialling, or of who is let in",
           better="a caller's is compared, it is not only asked for"),
    Option(("sourceport", "sp"), (_G.PORT,), _service("tcp"), "the port: for dialling, or of who is let in"),
    Option(("reuseport", "so-reuseport"), (_G.PORT,), _flag, "others may listen on the same port too",
           set=_set(_BASE, socket.SO_REUSEPORT)),
    Option(("ip-add-membership", "add-membership", "ip-membership", "membership"), (_G.MULTICAST,), _membership,
           "join GROUP:INTERFACE", repeats=True, set=_set_each(_IP, socket.IP_ADD_MEMBERSHIP)),
    Option(("ip-multicast-if", "multicast-if"), (_G.MULTICAST,), _host4,
           "the interface, by its address, that sends to groups",
           set=_set(_IP, socket.IP_MULTICAST_IF)),
    Option(("ip-multicast-loop", "multicast-loop", "mcloop", "ipmulticastloop", "multicastloop"), (_G.MULTICAST,),
           _flag,
           "whether this machine hears what it sends to groups", set=_set(_IP, socket.IP_MULTICAST_LOOP)),
    Option(("ip-multicast-ttl", "multicast-ttl", "ipmulticastttl", "multicastttl"), (_G.MULTICAST,), _byte,
           "hops that what is sent to groups may take (1)", set=_set(_IP, socket.IP_MULTICAST_TTL)),
    Option(("ipv6-join-group", "join-group", "ipv6-add-membership"), (_G.MULTICAST,), _membership6,
           "join [GROUP]:INTERFACE",
           repeats=True, set=_set_each(_IPV6, socket.IPV6_JOIN_GROUP)),
    Option(("ipv6-multicast-loop", "ipv6-mcloop", "mcloop6"), (_G.MULTICAST,), _flag, "as ip-multicast-loop",
           set=_set(_IPV6, socket.IPV6_MULTICAST_LOOP)),
    # --- TCP's
    Option(("cork", "tcp-cork"), (_G.TCP,), _flag, "send full segments only", set=_set(_TCP, socket.TCP_CORK),
           when=_LATE),
    Option(("defer-accept", "tcp-defer-accept"), (_G.TCP,), _number,
           "seconds to wait for the caller's first bytes before accepting",
           set=_set(_TCP, socket.TCP_DEFER_ACCEPT)),
    Option(("keepalive", "so-keepalive"), (_G.TCP,), _flag,
           "ask a silent peer whether it lives (after 300 s, then each 60)",
           set=_set(_BASE, socket.SO_KEEPALIVE), better="on unless it is switched off"),
    Option(("keepcnt", "tcp-keepcnt"), (_G.TCP,), _positive, "questions without an answer after which it is dead (6)",
           set=_set(_TCP, socket.TCP_KEEPCNT)),
    Option(("keepidle", "tcp-keepidle"), (_G.TCP,), _positive, "seconds of silence before the first question (300)",
           set=_set(_TCP, socket.TCP_KEEPIDLE)),
    Option(("keepintvl", "tcp-keepintvl"), (_G.TCP,), _positive, "seconds between two questions (60)",
           set=_set(_TCP, socket.TCP_KEEPINTVL)),
    Option(("linger2", "tcp-linger2"), (_G.TCP,), _number, "seconds to wait for the peer's last word",
           set=_set(_TCP, socket.TCP_LINGER2)),
    Option(("mss", "maxseg", "tcp-maxseg"), (_G.TCP,), _positive, "bytes of a segment",
           set=_set(_TCP, socket.TCP_MAXSEG)),
    Option(("nodelay", "tcp-nodelay"), (_G.TCP,), _always, "always on", better="a relay adds no delay of its own"),
    Option(("syncnt", "tcp-syncnt"), (_G.TCP,), _positive, "attempts that the kernel makes to connect",
           set=_set(_TCP, socket.TCP_SYNCNT)),
    Option(("buffer", "so-vm-sockets-buffer-size"), (_G.VSOCK,), _positive,
           "bytes of a vsock socket's buffer, its maximum raised to it (1 MiB)", ours=True),
    # --- TLS
    Option(("cafile", "openssl-cafile"), (_G.TLS,), _path, "certificates that are trusted"),
    Option(("capath", "openssl-capath"), (_G.TLS,), _path, "a directory of such, named by their hashes"),
    Option(("cert", "certificate", "openssl-certificate"), (_G.TLS,), _path,
           "the certificate, and its key where key is not given"),
    Option(("cipher", "ciphers", "cipherlist", "openssl-cipherlist"), (_G.TLS,), _text,
           "the ciphers of TLS 1.2 and earlier"),
    Option(("commonname", "cn", "openssl-commonname"), (_G.TLS,), _optional_text,
           "the name that the peer's certificate must bear; alone: any",
           better="the names of subjectAltName count, as RFC 6125 has it"),
    Option(("key", "openssl-key"), (_G.TLS,), _path, "the certificate's key"),
    Option(("no-sni", "nosni", "openssl-no-sni"), (_G.TLS,), _flag, "do not tell the server which name is wanted"),
    Option(("openssl-max-proto-version", "max-proto-version", "max-version"), (_G.TLS,), _tls_version,
           "the latest version: TLS1.0 … TLS1.3"),
    Option(("openssl-min-proto-version", "min-proto-version", "min-version"), (_G.TLS,), _tls_version,
           "the earliest version (TLS1.2)"),
    Option(("snihost", "openssl-snihost"), (_G.TLS,), _text, "the name that the server is told"),
    Option(("verify", "openssl-verify"), (_G.TLS,), _flag,
           "whether the peer must show a certificate that is trusted (1)"),
    # --- programs and terminals of their own
    Option(("ctty", "tiocsctty"), (_G.PROGRAM,), _flag, "with pty and setsid: the terminal is the program's own"),
    Option(("login", "dash"), (_G.PROGRAM,), _flag, "the program's name begins with a dash: a login shell"),
    Option(("path",), (_G.PROGRAM,), _text, "PATH, to find the program and for it"),
    Option(("pipes",), (_G.PROGRAM,), _flag, "two pipes to the program instead of a socket pair"),
    Option(("pty", "openpty", "ptmx"), (_G.PROGRAM,), _flag, "a pseudo terminal instead of a socket pair"),
    Option(("setsid", "sid"), (_G.PROGRAM,), _flag, "a session of its own for the program"),
    Option(("stderr",), (_G.PROGRAM,), _flag, "the program's standard error goes where its output goes"),
    Option(("shell",), (_G.SHELL,), _text, "the shell, instead of $SHELL"),
    Option(("link", "symbolic-link"), (_G.PTY,), _path, "a symbolic link to the terminal, removed at the end"),
    Option(("pty-interval", "pty-intervall"), (_G.PTY,), _timeout, "with wait-slave: seconds between two looks (1)"),
    Option(("wait-slave", "waitslave", "pty-wait-slave"), (_G.PTY,), _flag,
           "go on when somebody has opened the terminal"),
)  # fmt: skip

OPTION_OF_NAME: Mapping[str, Option] = {name: option for option in OPTIONS for name in option.names}
