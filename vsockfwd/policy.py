"""Who is let in, and what for: identity and request in, decision with its reason out. Pure.

The thing to understand first: a CID names a machine, not a user. Anyone on the host can dial a guest, anyone in a
guest can dial the host or CID 1. So nobody is let in for a CID alone, unless the operator says so; what is believed by
default is what a kernel vouches for: a source port below 1024 of the host, a uid on a UNIX socket.
"""

from __future__ import annotations

from dataclasses import dataclass

from vsockfwd.contract import Access, Resource
from vsockfwd.errors import NotAllowed
from vsockfwd.identity import CID_ANY, CID_HOST, GuestPeer, Identity, NetworkPeer, UnixPeer, VsockPeer, cid_text

ROOT = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """Yes or no, why, and what would change a no."""

    allowed: bool
    reason: str
    hint: str = ""

    def enforce(self) -> None:
        """Raise NotAllowed for a no."""
        if not self.allowed:
            raise NotAllowed(self.reason, hint=self.hint)


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator said, over the defaults of docs/security.md.

    `own_uid` is the user that the agent runs as; `cids` are machines trusted as a whole (CID_ANY: all of them);
    `uids` are local users let in on UNIX sockets beside the agent's own and root; `guests`: whether the guest behind
    a hybrid listener is let in. `root` is the directory that all files are below; `read_only`: nothing is written;
    `measure`: whether it lets itself be measured, which takes its machine's time.
    """

    own_uid: int
    cids: frozenset[int] = frozenset()
    uids: frozenset[int] = frozenset()
    guests: bool = False
    root: str | None = None
    read_only: bool = False
    measure: bool = True

    def admit(self, peer: Identity) -> Decision:
        """Whether a peer may have a session."""
        match peer:
            case VsockPeer():
                return self._admit_vsock(peer)
            case UnixPeer(uid=uid):
                if uid in (ROOT, self.own_uid) or uid in self.uids:
                    return Decision(True, f"uid {uid} is let in on a UNIX socket")
                return Decision(
                    False,
                    f"uid {uid} is neither root nor the agent's user ({self.own_uid})",
                    f"start the agent with --allow-uid {uid}, or ask as root",
                )
            case GuestPeer():
                if self.guests:
                    return Decision(True, "guests behind hybrid sockets are let in by rule")
                return Decision(
                    False,
                    "the guest behind a hybrid socket is let in by a rule only",
                    "start the agent with --allow-guest",
                )
            case NetworkPeer():
                return Decision(False, "nobody is let in over TCP: an IP address proves nothing", "use unix: or vsock:")
            case _:
                return Decision(True, "this process's own descriptor")

    def _admit_vsock(self, peer: VsockPeer) -> Decision:
        if peer.cid in self.cids or CID_ANY in self.cids:
            return Decision(True, f"all of {cid_text(peer.cid)} is trusted by rule")
        word = {1: "local", 2: "host"}.get(peer.cid, str(peer.cid))
        if peer.cid != CID_HOST:
            return Decision(
                False,
                f"{cid_text(peer.cid)} is not trusted: a CID names a machine, not a user",
                f"start the agent with --allow-cid {word} to trust every user of it",
            )
        if peer.privileged:
            return Decision(True, f"a privileged process of the host (source port {peer.port})")
        return Decision(
            False,
            f"the host's process is not privileged (source port {peer.port}, not below 1024)",
            "ask as root or with CAP_NET_BIND_SERVICE, or start the agent with --allow-cid host",
        )

    def permit(self, peer: Identity, resource: Resource) -> Decision:
        """Whether a peer that was admitted may touch a resource: what the agent's user may, it may, but for files
        that are to be written where the agent is read-only, and where it does not let itself be measured."""
        if self.read_only and resource.access is Access.WRITE:
            return Decision(False, f"{resource.name}: this agent is read-only", "start it without --read-only")
        if not self.measure and resource.access is Access.MEASURE:
            return Decision(False, "this agent does not let itself be measured", "start it without --no-measure")
        return Decision(True, f"{peer} may do what the agent's user may")
