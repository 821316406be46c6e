"""What may be connected to and listened on: what an operator writes, and what it covers and does not."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsockfwd.address import parse
from vsockfwd.allow import Allow, Named, Place, is_below
from vsockfwd.contract import Access, Resource
from vsockfwd.errors import AddressError, VsockfwdError
from vsockfwd.identity import GuestPeer, Identity, KeyPeer, NetworkPeer, UnixPeer, VsockPeer
from vsockfwd.policy import Limits, Policy

COVERED = [
    ("tcp:80", "tcp:80"),
    ("tcp:80", "tcp:127.0.0.1:80"),
    ("tcp:localhost:*", "tcp:[::1]:22"),
    ("tcp:localhost:8000-8999", "tcp:127.9.9.9:8999"),
    ("tcp:localhost:80", "tcp:[::ffff:127.0.0.1]:80"),
    ("tcp:10.0.0.0/8:443", "tcp:10.255.0.1:443"),
    ("tcp:10.0.0.0/8:443", "tcp:[::ffff:10.255.0.1]:443"),
    ("tcp:[fd00::/8]:*", "tcp:[fd12::1]:443"),
    ("tcp:192.0.2.7:1", "tcp:192.0.2.7:1"),
    ("tcp:*:443", "tcp:192.0.2.7:443"),
    ("tcp:*:443", "tcp:10.0.0.1:443"),
    ("tcp:db.example:5432", "tcp:DB.example.:5432"),
    ("tcp:*.example:*", "tcp:a.b.example:1"),
    ("tcp:10.0.0.0/8:1", "tcp:not-looked-up-yet:1"),
    ("udp:localhost:53", "udp:127.0.0.1:53"),
    ("vsock:host:*", "vsock:2:99"),
    ("vsock:*:1-99", "vsock:7:99"),
    ("unix:/run/app/*.sock", "unix:/run/app/web.sock"),
    ("unix:/run/**", "unix:/run/a/b/c"),
    ("abstract:app-*", "abstract:app-1"),
    ("hybrid:/run/vms/*:80", "hybrid:/run/vms/one:80"),
    ("*", "tcp:127.0.0.1:22"),
    ("*", "unix:relative"),
]
NOT_COVERED = [
    ("tcp:80", "tcp:81"),
    ("tcp:80", "tcp:192.0.2.1:80"),
    ("tcp:10.0.0.0/8:80", "tcp:localhost:80"),
    ("tcp:*:80", "tcp:localhost:80"),
    ("tcp:8000-8999", "tcp:9000"),
    ("tcp:10.0.0.0/8:443", "tcp:11.0.0.1:443"),
    ("tcp:10.0.0.0/8:443", "udp:10.0.0.1:443"),
    # `*` is the outside: what leads back here, or to the link, has to be written.
    ("tcp:*:80", "tcp:80"),
    ("tcp:*:80", "tcp:127.0.0.1:80"),
    ("tcp:*:80", "tcp:[::1]:80"),
    ("tcp:*:80", "tcp:[::ffff:127.0.0.1]:80"),
    ("tcp:*:80", "tcp:0.0.0.0:80"),
    ("tcp:*:80", "tcp:[::]:80"),
    ("tcp:*:80", "tcp:0.1.2.3:80"),
    ("tcp:*:80", "tcp:169.254.169.254:80"),
    ("tcp:*:80", "tcp:[fe80::1%eth0]:80"),
    ("tcp:*:80", "tcp:224.0.0.1:80"),
    ("tcp:*:80", "tcp:255.255.255.255:80"),
    ("tcp:db.example:5432", "tcp:evil-db.example:5432"),
    ("tcp:db.example:5432", "tcp:db.example.evil:5432"),
    ("tcp:*.example:1", "tcp:example:1"),
    ("tcp:*.example:1", "tcp:badexample:1"),
    ("vsock:host:*", "vsock:local:1"),
    ("vsock:3:*", "vsock-seqpacket:3:1"),
    ("unix:/run/app/*.sock", "unix:/run/app/sub/web.sock"),
    ("unix:/run/app/*.sock", "unix:/run/app/web.socket"),
    ("unix:/run/app/**", "unix:/run/app/../docker.sock"),
    ("unix:/run/app/**", "unix:/run/app//x"),
    ("unix:/run/app/**", "unix:/run/app/./x"),
    ("unix:/run/**", "unix:run/x"),
    ("unix:/run/*", "unix:/run/a%0Ab/c"),
    ("unix:/run/*", "unix-seqpacket:/run/a"),
    ("abstract:app", "abstract:app2"),
    ("hybrid:/run/vms/*:80", "hybrid:/run/vms/one:81"),
]


@pytest.mark.parametrize(("place", "address"), COVERED)
def test_what_a_place_covers_may_be_connected_to(place: str, address: str) -> None:
    assert Place.read(place).fits(parse(address))


@pytest.mark.parametrize(("place", "address"), NOT_COVERED)
def test_what_it_does_not_cover_may_not(place: str, address: str) -> None:
    assert not Place.read(place).fits(parse(address))


FOUND = [
    # place, asked for, what the name came to, fits
    ("tcp:db.example:5432", "tcp:db.example:5432", "tcp:192.0.2.1:5432", True),
    ("tcp:db.example:5432", "tcp:db.example:5432", "tcp:127.0.0.1:5432", False),
    ("tcp:db.example:5432", "tcp:db.example:5432", "tcp:169.254.169.254:5432", False),
    ("tcp:db.example:5432", "tcp:db.example:5432", "tcp:[::ffff:127.0.0.1]:5432", False),
    ("tcp:*:80", "tcp:rebound.example:80", "tcp:[::1]:80", False),
    ("tcp:*:80", "tcp:rebound.example:80", "tcp:[fe80::1]:80", False),
    ("tcp:10.0.0.0/8:1", "tcp:inside.example:1", "tcp:10.0.0.1:1", True),
    ("tcp:10.0.0.0/8:1", "tcp:inside.example:1", "tcp:192.0.2.1:1", False),
    ("tcp:localhost:80", "tcp:localhost:80", "tcp:127.0.0.1:80", True),
    ("tcp:localhost:80", "tcp:localhost:80", "tcp:192.0.2.1:80", False),
    ("tcp:localhost:80", "tcp:rebound.example:80", "tcp:127.0.0.1:80", True),  # as good as written
]


@pytest.mark.parametrize(("place", "asked", "found", "fits"), FOUND)
def test_a_name_is_held_to_what_it_comes_to(place: str, asked: str, found: str, fits: bool) -> None:
    policy = Policy(own_uid=0, connect=(Place.read(place),))
    decision = policy.permit(UnixPeer(0, 0, 1), Resource(Access.CONNECT, found, asked=asked))
    assert decision.allowed is fits
    if not fits:
        assert f"{found}, which {asked} came to" in decision.reason


LISTENED = [
    ("tcp:8000-8999", "tcp:8080", True),
    ("tcp:8000-8999", "tcp:localhost:8080", True),
    ("tcp:8000-8999", "tcp:*:8080", False),
    ("tcp:8000-8999", "tcp:0.0.0.0:8080", False),
    ("tcp:8000-8999", "tcp:[::]:8080", False),
    ("tcp:8000-8999", "tcp:somewhere:8080", False),
    ("tcp:8000-8999", "tcp:0", False),
    ("tcp:*:8000-8999", "tcp:*:8080", True),
    ("tcp:*:8000-8999", "tcp:8080", True),
    ("tcp:10.0.0.0/8:80", "tcp:somewhere:80", False),
    ("tcp:somewhere:80", "tcp:somewhere:80", True),
    ("unix:/run/app/*", "unix:/run/app/x", True),
]


@pytest.mark.parametrize(("place", "address", "fits"), LISTENED)
def test_where_a_client_may_have_the_agent_listen(place: str, address: str, fits: bool) -> None:
    policy = Policy(own_uid=0, listen=(Place.read(place),))
    assert policy.permit(UnixPeer(0, 0, 1), Resource(Access.LISTEN, address)).allowed is fits


BAD = [
    ("", 1, "a scheme and a colon come first"),
    ("80", 1, "a scheme and a colon come first"),
    ("http:x:80", 1, "no scheme is called 'http'"),
    ("tcp:localhost:80x", 15, "ports are a number, a range"),
    ("tcp:localhost:90-80", 15, "the range goes upwards"),
    ("tcp:localhost:70000", 15, "65535 at most"),
    ("tcp:10.0.0.1/8:80", 5, "has host bits set"),
    ("tcp:10.0.0:80", 5, "is no host"),
    ("tcp:a b:80", 5, "is no host"),
    ("vsock:guest:1", 7, "a CID is a number"),
    ("unix:", 6, "the path is missing"),
    ("unix:run/x", 6, "a path begins with /"),
    ("hybrid:/run/x:y", 15, "ports are"),
]


@pytest.mark.parametrize(("text", "character", "words"), BAD)
def test_an_error_in_a_place_points_at_what_is_wrong(text: str, character: int, words: str) -> None:
    with pytest.raises(AddressError) as caught:
        Place.read(text)
    assert words in caught.value.message
    assert f"character {character}:" in caught.value.message


@given(st.text(max_size=30) | st.text("tcp:unixvsock*/-.[]0123456789", max_size=30))
def test_any_text_is_a_place_or_an_error(text: str) -> None:
    for candidate in (text, f"tcp:{text}", f"unix:{text}", f"vsock:{text}"):
        try:
            place = Place.read(candidate)
        except AddressError:
            continue
        place.fits(parse("tcp:127.0.0.1:22"))
        place.fits(parse("unix:/run/x"))


# --- whose


THREE, SEVEN = VsockPeer(3, 50000), UnixPeer(7, 7, 1)
WEB, DB = KeyPeer("web", THREE), KeyPeer("db", THREE)
ALLOW = Policy(
    own_uid=1000,
    keyed=True,
    connect=(Place.read("tcp:localhost:*"),),
    modes=("forward", "copy"),
    root="/srv",
    limits=Limits(100, None),
    allow=(
        Allow(who=(Named.read("key:web"),), connect=(Place.read("tcp:80"),), modes=("forward",), max_rate=5),
        Allow(who=(Named.read("cid:3"), Named.read("uid:7")), root="/srv/three", read_only=True, listen=()),
        Allow(who=(Named.read("key:*"),), max_connections=200),
    ),
)


def may(peer: Identity, access: Access, name: str) -> tuple[bool, str]:
    decision = ALLOW.permit(peer, Resource(access, name))
    return decision.allowed, decision.rule


def test_an_entry_lets_in_whom_it_names_and_nobody_else() -> None:
    assert ALLOW.admit(THREE).rule == ALLOW.admit(SEVEN).rule == "serve.allow[2]"
    assert ALLOW.admit(WEB).rule == "serve.allow[1]"
    assert not ALLOW.admit(VsockPeer(4, 50000)).allowed
    assert not ALLOW.admit(UnixPeer(1000, 0, 1)).allowed, "once there are keys, the agent's own user needs one"


def test_each_key_has_rights_of_its_own() -> None:
    assert may(WEB, Access.CONNECT, "tcp:80") == (True, "serve.allow[1].connect")
    assert may(WEB, Access.CONNECT, "tcp:22") == (False, "serve.allow[1].connect")
    assert may(DB, Access.CONNECT, "tcp:22") == (True, "allow-connect")
    assert ALLOW.permit_mode(DB, "copy").allowed
    assert not ALLOW.permit_mode(WEB, "copy").allowed


def test_an_entry_narrows_what_holds_for_all_and_never_widens_it() -> None:
    wide = Policy(
        own_uid=0,
        read_only=True,
        connect=(Place.read("tcp:80"),),
        limits=Limits(10, 10),
        allow=(Allow(who=(Named.read("cid:3"),), connect=(Place.read("*"),), max_connections=99, max_rate=99),),
    )
    assert not wide.permit(THREE, Resource(Access.CONNECT, "tcp:22")).allowed
    assert not wide.permit(THREE, Resource(Access.WRITE, "/x")).allowed
    assert wide.limits_of(THREE) == Limits(10, 10)


def test_files_are_below_ones_own_root_and_read_only_where_that_is_written() -> None:
    assert (ALLOW.root_of(THREE), ALLOW.root_of(WEB)) == ("/srv/three", "/srv")
    assert may(THREE, Access.READ, "/x")[0]
    assert may(THREE, Access.WRITE, "/x") == (False, "serve.allow[2].read-only")
    assert may(DB, Access.WRITE, "/x")[0]


def test_an_empty_list_allows_nothing() -> None:
    assert may(THREE, Access.LISTEN, "tcp:8080") == (False, "serve.allow[2].listen")
    assert may(DB, Access.LISTEN, "tcp:8080")[0]


def test_limits_are_the_stricter_of_both() -> None:
    assert ALLOW.limits_of(WEB) == Limits(100, 5)
    assert ALLOW.limits_of(DB) == Limits(100, None)
    assert ALLOW.limits_of(VsockPeer(9, 1)) == Limits(100, None)


WHO = [
    ("cid:host", VsockPeer(2, 50000), VsockPeer(1, 1)),
    ("cid:host:privileged", VsockPeer(2, 1023), VsockPeer(2, 1024)),
    ("uid:7", SEVEN, UnixPeer(8, 7, 7)),
    ("net:10.0.0.0/8", NetworkPeer("10.1.1.1", 1), NetworkPeer("11.1.1.1", 1)),
    ("guest", GuestPeer(b"/run/vm"), UnixPeer(0, 0, 0)),
    ("guest:/run/vm", GuestPeer(b"/run/vm"), GuestPeer(b"/run/vm2")),
    ("key:web", WEB, DB),
    ("key:*", DB, THREE),
]


@pytest.mark.parametrize(("text", "meant", "other"), WHO)
def test_who_is_meant_and_who_is_not(text: str, meant: Identity, other: Identity) -> None:
    who = Named.read(text)
    assert who.admits(meant)
    assert not who.admits(other)
    assert Named.read(str(who)) == who


def test_who_has_a_key_is_not_taken_for_the_machine_it_came_from() -> None:
    assert not Named.read("cid:3").admits(WEB)


@pytest.mark.parametrize(
    "text", ["", "cid:", "cid:x", "cid:3:privileged", "uid:-1", "net:x", "guest:vm", "key:", "key:a b"]
)
def test_what_names_nobody_is_an_error(text: str) -> None:
    with pytest.raises(VsockfwdError):
        Named.read(text)


@pytest.mark.parametrize(
    ("path", "root", "below"),
    [("/srv/a", "/srv", True), ("/srv", "/srv/", True), ("/srvx", "/srv", False), ("/srv/../x", "/srv", False)],
)
def test_a_root_of_ones_own_is_below_the_root_of_all(path: str, root: str, below: bool) -> None:
    assert is_below(path, root) is below


def test_a_path_that_is_no_text_is_matched_as_it_is() -> None:
    address = parse("unix:/run/%FF.sock")
    assert Place.read(os.fsdecode(b"unix:/run/\xff.sock")).fits(address)
    assert Place.read("unix:/run/*.sock").fits(address)
