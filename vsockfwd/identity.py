"""Who a peer is: values only, learned when its connection is accepted (it cannot be asked for later).

`principal` is the part of an identity that a session's token is bound to and that counts and caps are kept by: for
vsock the CID alone, since the port differs from one connection of a process to the next.
"""

from __future__ import annotations

import msgspec

from vsockfwd.errors import printable

CID_ANY = 0xFFFF_FFFF
CID_HYPERVISOR = 0
CID_LOCAL = 1
CID_HOST = 2
CID_NAMES = {CID_HYPERVISOR: "hypervisor", CID_LOCAL: "local", CID_HOST: "host", CID_ANY: "any"}

PRIVILEGED_PORTS = 1024
"""Source ports below this one are given by a peer's kernel to holders of CAP_NET_BIND_SERVICE alone."""


def cid_text(cid: int) -> str:
    """A CID as people read it: `host(2)`, `vm(3)`."""
    return f"{CID_NAMES.get(cid, 'vm')}({cid})" if cid != CID_ANY else "any"


class VsockPeer(msgspec.Struct, frozen=True):
    """A process of the machine with this CID; the hypervisor vouches for the CID, its own kernel for the port."""

    cid: int
    port: int

    @property
    def principal(self) -> tuple[str, int]:
        return ("cid", self.cid)

    @property
    def privileged(self) -> bool:
        return self.port < PRIVILEGED_PORTS

    def __str__(self) -> str:
        return f"vsock {cid_text(self.cid)}:{self.port}"


class UnixPeer(msgspec.Struct, frozen=True):
    """A process of this machine, as SO_PEERCRED tells it."""

    uid: int
    gid: int
    pid: int

    @property
    def principal(self) -> tuple[str, int]:
        return ("uid", self.uid)

    def __str__(self) -> str:
        return f"uid {self.uid} (pid {self.pid})"


class NetworkPeer(msgspec.Struct, frozen=True):
    """A TCP or UDP peer: an IP address says where from, not who."""

    host: str
    port: int

    @property
    def principal(self) -> tuple[str, str]:
        return ("net", self.host)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class GuestPeer(msgspec.Struct, frozen=True):
    """The guest behind a hybrid socket, whatever user its VMM runs as; `socket` is the path of the VMM's socket."""

    socket: bytes

    @property
    def principal(self) -> tuple[str, bytes]:
        return ("guest", self.socket)

    def __str__(self) -> str:
        return f"guest behind {printable(self.socket)}"


class OwnPeer(msgspec.Struct, frozen=True):
    """This process's own end: standard input, an inherited descriptor, a stream in memory."""

    name: str

    @property
    def principal(self) -> tuple[str, str]:
        return ("own", self.name)

    def __str__(self) -> str:
        return self.name


class CertificatePeer(msgspec.Struct, frozen=True):
    """Who has shown a certificate that is trusted where it came in, wherever from (`seen`). Its names, best first."""

    names: tuple[str, ...]
    seen: VsockPeer | UnixPeer | NetworkPeer | GuestPeer | OwnPeer

    @property
    def principal(self) -> tuple[str, str]:
        return ("cert", self.names[0])

    def __str__(self) -> str:
        return f"certificate {self.names[0]} ({self.seen})"


class KeyPeer(msgspec.Struct, frozen=True):
    """Who has proven to know the key of this name, wherever it came from (`seen`)."""

    name: str
    seen: VsockPeer | UnixPeer | NetworkPeer | GuestPeer | OwnPeer | CertificatePeer

    @property
    def principal(self) -> tuple[str, str]:
        return ("key", self.name)

    def __str__(self) -> str:
        return f"key {self.name} ({self.seen})"


Identity = VsockPeer | UnixPeer | NetworkPeer | GuestPeer | OwnPeer | CertificatePeer | KeyPeer
