"""The types' table: which names there are, what they take, what is refused and how."""

from __future__ import annotations

import pytest

from vsockfwd.plugin import HybridAddress, UnixAddress, UsageError, VsockAddress
from vsockfwd_relay.address_type import Dual, Specification
from vsockfwd_relay.command import help_text
from vsockfwd_relay.options import OPTION_OF_NAME, OPTIONS
from vsockfwd_relay.sockets import Place
from vsockfwd_relay.table import TYPE_OF_NAME, TYPES, specify


def single(text: str) -> Specification:
    end = specify(text)
    assert isinstance(end, Specification)
    return end


def test_no_name_stands_for_two_types_or_two_options() -> None:
    assert len(TYPE_OF_NAME) == sum(len(row.names) for row in TYPES)
    assert len(OPTION_OF_NAME) == sum(len(option.names) for option in OPTIONS)


def test_every_option_belongs_to_a_type_and_every_type_opens_one_way() -> None:
    assert {name for row in TYPES for name in row.options} == {option.name for option in OPTIONS}
    assert all((row.open is None) != (row.listen is None) for row in TYPES)


def test_the_help_names_every_type_and_option() -> None:
    told = help_text(with_options=True)
    assert all(row.form in told for row in TYPES)
    assert all(f"  {option.name} " in told for option in OPTIONS)


@pytest.mark.parametrize(
    ("text", "name", "listens"),
    [
        ("tcp:h:1", "TCP", False), ("Tcp-Connect:h:1", "TCP", False), ("TCP4:h:1", "TCP4", False),
        ("TCP-LISTEN:1", "TCP-LISTEN", True), ("tcp-l:1", "TCP-LISTEN", True), ("TCP6-LISTEN:1", "TCP6-LISTEN", True),
        ("UNIX:/a", "UNIX-CLIENT", False), ("LOCAL:/a", "UNIX-CONNECT", False), ("UNIX-L:/a", "UNIX-LISTEN", True),
        ("ABSTRACT:a", "ABSTRACT-CLIENT", False),
        ("ABSTRACT-LISTEN:a", "ABSTRACT-LISTEN", True), ("VSOCK:3:1", "VSOCK-CONNECT", False),
        ("VSOCK-L:1", "VSOCK-LISTEN", True), ("HYBRID-CONNECT:/a:1", "HYBRID-CONNECT", False),
        ("HYBRID-LISTEN:/a:1", "HYBRID-LISTEN", True), ("-", "STDIO", False), ("3", "FD", False),
        ("/tmp/x", "GOPEN", False), ("FILE:x", "OPEN", False), ("ECHO", "PIPE", False), ("exec:a", "EXEC", False),
    ],
)  # fmt: skip
def test_the_name_alone_decides_whether_an_address_listens(text: str, name: str, listens: bool) -> None:
    row = single(text).type
    assert (row.name, row.listen is not None) == (name, listens)


def test_vsock_and_hybrid_addresses_mean_the_cores_own() -> None:
    assert single("VSOCK-CONNECT:host:80,connect-timeout=3").subject == VsockAddress(
        2, 80, options=(("connect-timeout", 3.0),)
    )
    assert single("VSOCK-LISTEN:80,bind=7,fork").subject == VsockAddress(7, 80)
    assert single("VSOCK-LISTEN:80").subject == VsockAddress(0xFFFFFFFF, 80)
    assert single("HYBRID-CONNECT:/run/v:80").subject == HybridAddress(b"/run/v", 80)
    assert single("UNIX-LISTEN:a b,mode=660").subject == UnixAddress(b"a b", options=(("mode", 0o660),))


def test_tcp_listens_on_every_interface_unless_bound() -> None:
    def host(text: str) -> str:
        place = single(text).subject
        assert isinstance(place, Place)
        return place.address.host

    assert host("TCP-LISTEN:80") == ""
    assert host("TCP-LISTEN:80,bind=127.0.0.1") == "127.0.0.1"
    assert host("TCP6-LISTEN:80,bind=[::1]") == "::1"
    assert single("TCP:[::1]:http,bind=:99").subject.source == ("", 99)
    assert single("TCP:[::1]:http").subject.port == 80


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("SCTP:h:1", "socat's SCTP is not built here: vsock, TCP, UDP"),
        ("socks4a:a:b:1", "socat's SOCKS4A is not built here: there is no SOCKS or HTTP client"),
        ("openssl-listen:1", "a TLS server needs cert=FILE"),
        ("OPENSSL:h:1,cafile=/nowhere", "cafile=/nowhere: no such file"),
        ("OPENSSL:h:1,min-version=SSL3", "min-version is TLS1.0, TLS1.1"),
        ("TCP:h:1,icanon", "character 9: socat's option icanon is not built here: of a terminal's settings"),
        ("UNIX-CONNECT:/a,mode=600", "mode is of the socket's own file – bind= names one"),
        ("HYBRID:/a:1,umask=077", "HYBRID-CONNECT does not take umask"),
        ("EXEC:a,echo=0", "raw, rawer and echo are for a terminal – add pty"),
        ("EXEC:a,ctty", "ctty needs a terminal and a session"),
        ("EXEC:a,pty,pipes", "pty and pipes exclude each other"),
        ("TCP-LISTEN:1,range=3", "range of TCP-LISTEN is of IP addresses"),
        ("VSOCK-LISTEN:1,range=10.0.0.0/8", "range of VSOCK-LISTEN is of CIDs"),
        ("TCP-LISTEN:1,range=10.0.0.0/33", "range is ADDRESS/BITS"),
        ("TCP4:h:1,pf=ip6", "pf says another family than the type"),
        ("TCP:h:1,escape=256", "escape is a whole number from 0 to 255"),
        ("UDP-DATAGRAM:h:1,ip-add-membership=1.2.3.4:0", "ip-add-membership is GROUP:INTERFACE"),
        ("TCP:h:1,setsockopt=1:2", "setsockopt is LEVEL:NAME:VALUE"),
        ("OPEN:a,user=no-such-user-here", "names a user that this machine does not have"),
        ("TPC:h:1", "no address type is called 'TPC' – did you mean TCP?"),
        ("TCP:h", "1 parameter where TCP:HOST:PORT is meant"),
        ("TCP:h:1:2", "3 parameters where TCP:HOST:PORT is meant"),
        ("TCP:h:1,crln", "character 9: no option is called 'crln' – did you mean crnl?"),
        (
            "TCP:h:1,creat",
            "character 9: TCP does not take creat, which is for OPEN, GOPEN – it takes bind, connect-timeout",
        ),
        ("TCP-LISTEN:1,max-children=2", "max-children counts what fork makes – add fork"),
        ("TCP-LISTEN:1,reuseaddr=0", "reuseaddr cannot be switched off here"),
        ("TCP-LISTEN:1,backlog=0", "backlog is a whole number above 0"),
        ("TCP-LISTEN:1,fork=2", "fork is 0 or 1"),
        ("TCP:h:1,retry", "retry is a whole number"),
        ("TCP:h:1,interval=x", "interval is a number of seconds"),
        ("TCP:h:1,bind=::1", "bind=::1 is no [HOST][:PORT]"),
        ("TCP:h:65536", "'65536' is no port"),
        ("TCP::1", "the host is missing"),
        ("UNIX:" + "a" * 108, "the path has 108 bytes"),
        ("VSOCK-CONNECT:x:1", "no CID is called 'x'"),
        ("OPEN:a,rdonly,wronly", "rdonly and wronly exclude each other"),
        ("OPEN:a,mode=999", "mode is octal digits"),
        ("PIPE,mode=600", "a pipe without a name takes no mode"),
        ("EXEC:", "the program is missing"),
        (r"EXEC:a\0", "no NUL byte"),
        ("TCP-LISTEN:1,fork!!-", "fork has no place in half an address"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(text: str, told: str) -> None:
    with pytest.raises(UsageError) as raised:
        specify(text)
    assert told in raised.value.line()
    assert raised.value.exit_code == 2
    assert "\n" not in raised.value.line()


def test_of_an_option_that_stands_twice_the_last_counts() -> None:
    assert single("TCP-LISTEN:1,fork,fork=0").option("fork") is False


def test_an_option_is_known_by_its_other_names_in_any_case() -> None:
    spec = single("OPEN:x,O-Create,perm=600,APPEND")
    assert (spec.option("creat"), spec.option("mode"), spec.option("append")) == (True, 0o600, True)


def test_a_path_may_be_any_bytes() -> None:
    assert single("UNIX:/\udcff%").subject == UnixAddress(b"/\xff%")


def test_a_dual_address_reads_from_the_one_and_writes_to_the_other() -> None:
    end = specify("STDIN!!OPEN:x,creat")
    assert isinstance(end, Dual)
    assert (end.reading.type.name, end.writing.type.name) == ("STDIN", "OPEN")
