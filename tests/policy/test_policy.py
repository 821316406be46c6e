"""Who is let in: identities against what the operator said, and for each no the words that would make it a yes."""

from __future__ import annotations

import pytest

from vsockfwd.contract import Access, Resource
from vsockfwd.errors import NotAllowed
from vsockfwd.identity import (
    CID_ANY,
    CID_HOST,
    CID_LOCAL,
    GuestPeer,
    Identity,
    NetworkPeer,
    OwnPeer,
    UnixPeer,
    VsockPeer,
)
from vsockfwd.policy import Policy

BARE = Policy(own_uid=1000)
ROOTS = Policy(own_uid=0)
HOST = Policy(own_uid=1000, cids=frozenset({CID_HOST}))
LOCAL = Policy(own_uid=1000, cids=frozenset({CID_LOCAL}))
THREE = Policy(own_uid=1000, cids=frozenset({3}))
ANY = Policy(own_uid=1000, cids=frozenset({CID_ANY}))
UIDS = Policy(own_uid=1000, uids=frozenset({33}))
GUESTS = Policy(own_uid=1000, guests=True)
EVERYTHING = Policy(own_uid=1000, cids=frozenset({CID_ANY}), uids=frozenset({33}), guests=True)

GUEST = GuestPeer(b"/run/vm.vsock")
STRANGER = NetworkPeer("127.0.0.1", 80)

LET_IN: list[tuple[Policy, Identity, str]] = [
    (BARE, VsockPeer(CID_HOST, 1), "a privileged process of the host (source port 1)"),
    (BARE, VsockPeer(CID_HOST, 1023), "a privileged process of the host (source port 1023)"),
    (HOST, VsockPeer(CID_HOST, 50000), "all of host(2) is trusted by rule"),
    (LOCAL, VsockPeer(CID_LOCAL, 50000), "all of local(1) is trusted by rule"),
    (THREE, VsockPeer(3, 50000), "all of vm(3) is trusted by rule"),
    (THREE, VsockPeer(CID_HOST, 1023), "a privileged process of the host"),
    (ANY, VsockPeer(CID_HOST, 50000), "all of host(2)"),
    (ANY, VsockPeer(CID_LOCAL, 50000), "all of local(1)"),
    (ANY, VsockPeer(4711, 50000), "all of vm(4711)"),
    (BARE, UnixPeer(0, 0, 1), "uid 0 is let in"),
    (BARE, UnixPeer(1000, 5, 1), "uid 1000 is let in"),
    (ROOTS, UnixPeer(0, 0, 1), "uid 0 is let in"),
    (UIDS, UnixPeer(33, 33, 1), "uid 33 is let in"),
    (GUESTS, GUEST, "by rule"),
    (BARE, OwnPeer("stdio"), "this process's own"),
]

KEPT_OUT: list[tuple[Policy, Identity, str, str]] = [
    # policy, who, why, what would let it in
    (BARE, VsockPeer(CID_HOST, 1024), "source port 1024, not below 1024", "--allow-cid host"),
    (BARE, VsockPeer(CID_HOST, 50000), "is not privileged", "ask as root or with CAP_NET_BIND_SERVICE"),
    (BARE, VsockPeer(CID_LOCAL, 50000), "local(1) is not trusted", "--allow-cid local"),
    # A port below 1024 is the word of that machine's kernel, and only the host's is believed.
    (BARE, VsockPeer(CID_LOCAL, 1023), "local(1) is not trusted", "--allow-cid local"),
    (BARE, VsockPeer(3, 1), "vm(3) is not trusted: a CID names a machine, not a user", "--allow-cid 3 "),
    (BARE, VsockPeer(0, 1), "hypervisor(0) is not trusted", "--allow-cid 0 "),
    (THREE, VsockPeer(4, 50000), "vm(4) is not trusted", "--allow-cid 4 "),
    (THREE, VsockPeer(CID_HOST, 50000), "is not privileged", "--allow-cid host"),
    (HOST, VsockPeer(CID_LOCAL, 50000), "local(1) is not trusted", "--allow-cid local"),
    (BARE, UnixPeer(33, 1000, 1), "uid 33 is neither root nor the agent's user (1000)", "--allow-uid 33"),
    (ROOTS, UnixPeer(1000, 0, 1), "uid 1000 is neither root nor the agent's user (0)", "--allow-uid 1000"),
    (UIDS, UnixPeer(34, 33, 1), "uid 34 is neither", "--allow-uid 34"),
    (ANY, UnixPeer(33, 33, 1), "uid 33 is neither", "--allow-uid 33"),
    # Whatever user the VMM runs as, and whatever machine is trusted: the guest is let in by a rule of its own.
    (BARE, GUEST, "by a rule only", "--allow-guest"),
    (ANY, GUEST, "by a rule only", "--allow-guest"),
    (ROOTS, GUEST, "by a rule only", "--allow-guest"),
    (BARE, STRANGER, "nobody is let in over TCP without a key: an IP address proves nothing", "use unix: or vsock:"),
    (EVERYTHING, STRANGER, "nobody is let in over TCP", "use unix: or vsock:"),
    (EVERYTHING, NetworkPeer("::1", 1), "nobody is let in over TCP", "use unix: or vsock:"),
]


@pytest.mark.parametrize(("policy", "peer", "reason"), LET_IN)
def test_whom_the_operator_trusts_gets_in_and_the_log_says_why(policy: Policy, peer: Identity, reason: str) -> None:
    decision = policy.admit(peer)
    assert decision.allowed
    assert reason in decision.reason
    assert decision.hint == ""
    decision.enforce()


@pytest.mark.parametrize(("policy", "peer", "reason", "hint"), KEPT_OUT)
def test_everybody_else_is_kept_out_and_reads_what_would_let_them_in(
    policy: Policy, peer: Identity, reason: str, hint: str
) -> None:
    decision = policy.admit(peer)
    assert not decision.allowed
    assert reason in decision.reason
    assert hint in decision.hint + " "
    with pytest.raises(NotAllowed) as caught:
        decision.enforce()
    assert (caught.value.message, caught.value.hint) == (decision.reason, decision.hint)
    assert caught.value.exit_code == 77
    assert type(caught.value) is NotAllowed


@pytest.mark.parametrize("word", ["host", "local", "3"])
def test_the_flag_that_a_refusal_names_is_the_one_that_helps(word: str) -> None:
    cid = {"host": CID_HOST, "local": CID_LOCAL}.get(word) or int(word)
    refused = BARE.admit(VsockPeer(cid, 50000))
    assert f"--allow-cid {word}" in refused.hint
    assert Policy(own_uid=1000, cids=frozenset({cid})).admit(VsockPeer(cid, 50000)).allowed


@pytest.mark.parametrize("access", Access)
def test_whoever_was_let_in_may_do_what_the_agents_user_may(access: Access) -> None:
    assert BARE.permit(UnixPeer(1000, 1000, 1), Resource(access, "tcp:80")).allowed


def test_a_sessions_token_belongs_to_the_machine_or_user_not_to_one_connection_of_it() -> None:
    """A client's streams come from other ports and threads than its control connection."""
    assert VsockPeer(2, 1000).principal == VsockPeer(2, 50000).principal
    assert UnixPeer(7, 1, 100).principal == UnixPeer(7, 2, 200).principal
    assert NetworkPeer("h", 1).principal == NetworkPeer("h", 2).principal
    everyone: list[Identity] = [
        VsockPeer(2, 1), VsockPeer(3, 1), UnixPeer(2, 2, 2), UnixPeer(3, 2, 2), NetworkPeer("2", 2), GUEST,
        GuestPeer(b"/run/other.vsock"), OwnPeer("2"),
    ]  # fmt: skip
    assert len({peer.principal for peer in everyone}) == len(everyone)


def test_who_it_was_is_readable_and_harmless_in_a_log() -> None:
    assert str(VsockPeer(2, 1000)) == "vsock host(2):1000"
    assert str(VsockPeer(7, 5)) == "vsock vm(7):5"
    assert str(UnixPeer(0, 0, 12)) == "uid 0 (pid 12)"
    assert str(NetworkPeer("::1", 80)) == "[::1]:80"
    assert str(GuestPeer(b"/run/\x1b\xff")) == r"guest behind /run/\x1b\xff"
