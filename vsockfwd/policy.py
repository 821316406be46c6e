"""Who is let in, and what for: identity and request in, decision with its reason out. Pure.

The thing to understand first: a CID names a machine, not a user. Anyone on the host can dial a guest, anyone in a
guest can dial the host or CID 1. So nobody is let in for a CID alone, unless the operator says so; what is believed by
default is what a kernel vouches for: a source port below 1024 of the host, a uid on a UNIX socket.
"""

from __future__ import annotations

from dataclasses import dataclass

from vsockfwd.address import Address, parse
from vsockfwd.allow import Allow, Place
from vsockfwd.contract import Access, Resource
from vsockfwd.errors import AddressError, NotAllowed
from vsockfwd.identity import (
    CID_ANY,
    CID_HOST,
    CertificatePeer,
    GuestPeer,
    Identity,
    KeyPeer,
    NetworkPeer,
    UnixPeer,
    VsockPeer,
    cid_text,
)

ROOT = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """Yes or no, why, what would change a no, and the rule that it was."""

    allowed: bool
    reason: str
    hint: str = ""
    rule: str = "default"

    def enforce(self) -> None:
        """Raise NotAllowed for a no."""
        if not self.allowed:
            raise NotAllowed(self.reason, hint=self.hint)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one peer may have: streams at once, new ones a second, and bytes a second in each direction.

    None: as many as there is room for.
    """

    connections: int | None = None
    rate: int | None = None
    bandwidth: int | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator said, over the defaults of docs/security.md.

    `own_uid` is the user that the agent runs as; `cids` are machines trusted as a whole (CID_ANY: all of them);
    `uids` are local users let in on UNIX sockets beside the agent's own and root; `guests`: whether the guest behind
    a hybrid listener is let in. `keyed`: there are keys, and whoever no rule names has to show one.

    What holds for everybody: `root` is the directory that all files are below; `read_only`: nothing is written;
    `measure`: whether it lets itself be measured, which takes its machine's time;
    `connect`, `listen` and `modes` are all that may be asked for, where they are not None; `limits` are each peer's.
    `allow` lets in whom its entries name; the first that names a peer narrows what it may.
    """

    own_uid: int
    cids: frozenset[int] = frozenset()
    uids: frozenset[int] = frozenset()
    guests: bool = False
    keyed: bool = False
    root: str | None = None
    read_only: bool = False
    measure: bool = True
    connect: tuple[Place, ...] | None = None
    listen: tuple[Place, ...] | None = None
    modes: tuple[str, ...] | None = None
    limits: Limits = Limits()
    allow: tuple[Allow, ...] = ()

    def entry(self, peer: Identity) -> tuple[str, Allow] | None:
        """The entry that names a peer, and what to call it."""
        for number, entry in enumerate(self.allow, 1):
            if any(who.admits(peer) for who in entry.who):
                return f"serve.allow[{number}]", entry
        return None

    def admit(self, peer: Identity) -> Decision:
        """Whether a peer may have a session."""
        if (found := self.entry(peer)) is not None:
            who = ", ".join(map(str, found[1].who))
            return Decision(True, f"{peer} is let in by rule ({who})", rule=found[0])
        match peer:
            case KeyPeer(name=name):
                return Decision(True, f"it has the key {name}", rule="keys")
            case CertificatePeer():
                if any(str(who).startswith("cert:") for entry in self.allow for who in entry.who):
                    return Decision(
                        False,
                        f"{peer}: trusted by its CA, and no rule has the name",
                        "cert:NAME in the who of a serve.allow entry, where the agent runs",
                    )
                return Decision(True, f"{peer}: signed by the CA that is trusted there", rule="ca")
            case VsockPeer():
                return self._admit_vsock(peer)
            case UnixPeer(uid=uid):
                if uid in self.uids:
                    return Decision(True, f"uid {uid} is let in by rule", rule="allow-uid")
                if self.keyed:
                    return Decision(False, f"uid {uid} shows no key", "ask with --auth-key FILE", "keys")
                if uid in (ROOT, self.own_uid):
                    return Decision(True, f"uid {uid} is let in on a UNIX socket")
                return Decision(
                    False,
                    f"uid {uid} is neither root nor the agent's user ({self.own_uid})",
                    f"start the agent with --allow-uid {uid}, or ask as root",
                )
            case GuestPeer():
                if self.guests:
                    return Decision(True, "guests behind hybrid sockets are let in by rule", rule="allow-guest")
                return Decision(
                    False,
                    "the guest behind a hybrid socket is let in by a rule only",
                    "start the agent with --allow-guest, or with --auth-key",
                )
            case NetworkPeer():
                return Decision(
                    False,
                    "nobody is let in over TCP without a key: an IP address proves nothing",
                    "ask with --auth-key FILE, of an agent that was started with one; or use unix: or vsock:",
                )
            case _:
                return Decision(True, "this process's own descriptor")

    def _admit_vsock(self, peer: VsockPeer) -> Decision:
        if peer.cid in self.cids or CID_ANY in self.cids:
            return Decision(True, f"all of {cid_text(peer.cid)} is trusted by rule", rule="allow-cid")
        if self.keyed:
            return Decision(False, f"{cid_text(peer.cid)} shows no key", "ask with --auth-key FILE", "keys")
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

    # --- what for

    def permit(self, peer: Identity, resource: Resource) -> Decision:
        """Whether a peer that was admitted may touch a resource: what the agent's user may, it may, as far as nothing
        else is written. A name that is to be connected to is asked about again when it was looked up."""
        writes = resource.access is Access.WRITE
        if writes and self.read_only:
            return Decision(
                False, f"{resource.name}: this agent is read-only", "start it without --read-only", "read-only"
            )
        if not self.measure and resource.access is Access.MEASURE:
            return Decision(
                False, "this agent does not let itself be measured", "start it without --no-measure", "measure"
            )
        places = self.connect if resource.access is Access.CONNECT else self.listen
        of_all = resource.access in (Access.CONNECT, Access.LISTEN), f"allow-{resource.access}", places
        rules = [of_all]
        if (found := self.entry(peer)) is not None:
            name, entry = found
            if writes and entry.read_only:
                return Decision(
                    False, f"{resource.name}: read-only for {peer}", f"{name}.read-only", f"{name}.read-only"
                )
            places = entry.connect if resource.access is Access.CONNECT else entry.listen
            rules.append((of_all[0], f"{name}.{resource.access}", places))
        decided = "default"
        for applies, rule, places in rules:
            if not applies or places is None:
                continue
            if not _any_fits(places, resource):
                came = f", which {resource.asked} came to" if resource.asked else ""
                return Decision(
                    False,
                    f"{resource.name}{came}: not among what {peer} may {_VERBS[resource.access]}",
                    f"{rule} where the agent runs says what is",
                    rule,
                )
            decided = rule
        return Decision(True, f"{peer} may {_VERBS[resource.access]} {resource.name}", rule=decided)

    def permit_mode(self, peer: Identity, mode: str) -> Decision:
        """Whether a peer may ask for a mode at all."""
        rules = [("allow-mode", self.modes)]
        if (found := self.entry(peer)) is not None:
            rules.append((f"{found[0]}.modes", found[1].modes))
        decided = "default"
        for rule, modes in rules:
            if modes is None:
                continue
            if mode not in modes:
                hint = f"{rule} where the agent runs says which there are"
                return Decision(False, f"the mode {mode} is not for {peer}", hint, rule)
            decided = rule
        return Decision(True, f"{peer} may ask for {mode}", rule=decided)

    def root_of(self, peer: Identity) -> str | None:
        """The directory that a peer's paths are below."""
        found = self.entry(peer)
        return self.root if found is None or found[1].root is None else found[1].root

    def limits_of(self, peer: Identity) -> Limits:
        """What a peer may have at once, and how fast."""
        found = self.entry(peer)
        if found is None:
            return self.limits
        entry, limits = found[1], self.limits
        return Limits(
            _least(limits.connections, entry.max_connections),
            _least(limits.rate, entry.max_rate),
            _least(limits.bandwidth, None if entry.max_bandwidth is None else entry.max_bandwidth.value),
        )


_VERBS = {
    Access.CONNECT: "connect to", Access.LISTEN: "listen on", Access.READ: "read", Access.WRITE: "write",
    Access.MEASURE: "measure",
}  # fmt: skip


def _any_fits(places: tuple[Place, ...], resource: Resource) -> bool:
    try:
        address: Address = parse(resource.name)
        asked = parse(resource.asked) if resource.asked else None
    except AddressError:
        return False
    listening = resource.access is Access.LISTEN
    return any(place.fits(address, asked, listening=listening) for place in places)


def _least(one: int | None, other: int | None) -> int | None:
    return min((limit for limit in (one, other) if limit is not None), default=None)
