"""TARGETs: where an agent listens. A bare number is a CID, the agent's port is filled in, -p must not contradict."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsockfwd.address import (
    AGENT_PORT,
    AcceptAddress,
    Address,
    HybridAddress,
    TcpAddress,
    UnixAddress,
    VsockAddress,
    parse_target,
)
from vsockfwd.errors import AddressError


@pytest.mark.parametrize(
    ("text", "port", "target"),
    [
        ("3", None, VsockAddress(3, 876)),
        ("3", 5000, VsockAddress(3, 5000)),
        ("2", None, VsockAddress(2, 876)),
        ("vsock:3", None, VsockAddress(3, 876)),
        ("vsock:host", None, VsockAddress(2, 876)),
        ("vsock:3", 5000, VsockAddress(3, 5000)),
        ("vsock:3:5000", None, VsockAddress(3, 5000)),
        ("vsock:3:5000", 5000, VsockAddress(3, 5000)),
        ("3,connect-timeout=2", None, VsockAddress(3, 876, options=(("connect-timeout", 2.0),))),
        ("vsock:3,buffer=1M", 9, VsockAddress(3, 9, options=(("buffer", 1 << 20),))),
        ("hybrid:/run/vm.vsock", None, HybridAddress(b"/run/vm.vsock", 876)),
        ("hybrid:/run/vm.vsock", 9, HybridAddress(b"/run/vm.vsock", 9)),
        ("hybrid:/run/vm.vsock:9", None, HybridAddress(b"/run/vm.vsock", 9)),
        ("hybrid:/run/a:b", None, HybridAddress(b"/run/a:b", 876)),
        ("tcp:host.example", None, TcpAddress("host.example", 876)),
        ("tcp:[::1]", None, TcpAddress("::1", 876)),
        ("tcp:[::1]", 9, TcpAddress("::1", 9)),
        ("tcp:127.0.0.1", None, TcpAddress("127.0.0.1", 876)),
        ("tcp:9", None, TcpAddress("", 9)),
        ("tcp:9", 9, TcpAddress("", 9)),
        ("unix:/run/a.sock", None, UnixAddress(b"/run/a.sock")),
        ("accept:3", None, AcceptAddress(VsockAddress(3, 876))),
        ("accept:vsock:3", 5000, AcceptAddress(VsockAddress(3, 5000))),
        ("accept:vsock:host:5000", None, AcceptAddress(VsockAddress(2, 5000))),
        ("accept:unix:/run/h,mode=0660", None, AcceptAddress(UnixAddress(b"/run/h", options=(("mode", 0o660),)))),
        (
            "accept:hybrid:/run/vm,trust=machine,backlog=5",
            None,
            AcceptAddress(HybridAddress(b"/run/vm", 876, options=(("backlog", 5),)), any_user=True),
        ),
    ],
)
def test_a_target_is_the_agent_that_the_user_meant(text: str, port: int | None, target: Address) -> None:
    assert parse_target(text, port) == target


@pytest.mark.parametrize(
    ("text", "port", "said"),
    [
        ("vsock:3:5000", 876, "-p 876 does not fit: port 5000 stands in it – leave out -p"),
        ("hybrid:/run/vm.vsock:9", 8, "-p 8 does not fit: port 9 stands in it"),
        ("tcp:9", 8, "-p 8 does not fit: port 9 stands in it"),
        ("tcp:host:9", 8, "-p 8 does not fit: port 9 stands in it"),
        ("unix:/run/a.sock", 876, "-p 876 does not fit: unix has no port"),
        ("", None, "the target is missing"),
        ("web", None, "no target is called 'web' – a target is a CID such as 3, or an address"),
        (",backlog=1", None, "the target is missing"),
        ("-", None, "every stream is a connection of its own, stdio can be opened once"),
        ("stdio", None, "can be opened once"),
        ("fd:3", None, "fd can be opened once"),
        ("udp:53", None, "udp carries datagrams"),
        ("udp:host", None, "a port must be a number"),
        ("4294967296", None, "a CID must be between 0 and 4294967295"),
        ("3", 4294967295, "a vsock port must be between"),
        ("3", -1, "a vsock port must be a number, not '-1'"),
        ("tcp:host", 65536, "a port must be between 0 and 65535"),
        ("vsock:", None, "vsock takes CID:PORT"),
        ("vsock:3:", None, "a vsock port is missing"),
        ("hybrid:", None, "hybrid takes PATH:PORT"),
        ("tcp:", None, "a port is missing"),
        ("nfs:host", None, "no scheme is called 'nfs'"),
        ("3,colour=red", None, "vsock has no option 'colour'"),
        ("accept:", None, "the target is missing"),
        ("accept:accept:3", None, "one accept: is enough"),
        ("accept:vsock:any:5000", None, "the CID is that of the machine that calls – such as accept:vsock:3:5000"),
        ("accept:fd:3", None, "fd can be opened once"),
        ("accept:3,trust=me", None, "trust=machine, once, is all"),
        ("accept:3,trust=machine,trust=machine", None, "trust=machine, once, is all"),
        ("accept:unix:/run/h,trust=machine", None, "of vsock and hybrid only"),
    ],
)
def test_a_wrong_target_is_refused_with_the_reason(text: str, port: int | None, said: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_target(text, port)
    assert said in caught.value.line()
    assert caught.value.exit_code == 2


def test_the_agents_port_is_one_that_no_unprivileged_user_of_a_guest_can_sit_on() -> None:
    assert AGENT_PORT == 876


@settings(deadline=None)
@given(st.text(alphabet=st.characters(), max_size=30), st.none() | st.integers(-5, 70000))
def test_any_text_is_a_target_or_an_address_error(text: str, port: int | None) -> None:
    for candidate in (text, f"vsock:{text}", f"hybrid:{text}", f"tcp:{text}", f"accept:{text}"):
        try:
            target = parse_target(candidate, port)
        except AddressError as error:
            said = error.line()
        else:
            said = str(target)
            assert parse_target(said) == target
        assert said.isprintable()
