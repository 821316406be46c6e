"""What `-L` and `-R` say."""

from __future__ import annotations

import pytest

from vsockfwd.plugin import AddressError
from vsockfwd_dgram.rule import parse_spec


@pytest.mark.parametrize(
    ("spec", "listen", "connect"),
    [
        ("5353:10.0.0.1:53", "udp:5353", "udp:10.0.0.1:53"),
        ("5353:localhost:53", "udp:5353", "udp:53"),
        ("localhost:5353:dns.example:53", "udp:5353", "udp:dns.example:53"),
        ("192.0.2.1:5353:dns:53", "udp:192.0.2.1:5353", "udp:dns:53"),
        ("*:5353:dns:53", "udp:*:5353", "udp:dns:53"),
        (":5353:dns:53", "udp:*:5353", "udp:dns:53"),
        ("[::1]:5353:[fe80::1]:53", "udp:[::1]:5353", "udp:[fe80::1]:53"),
        ("0:udp:53", "udp:0", "udp:53"),
        ("0:udp:dns:53", "udp:0", "udp:dns:53"),
        ("udp:*:5353:udp:dns:53", "udp:*:5353", "udp:dns:53"),
        ("[udp:*:5353]:[udp:dns:53]", "udp:*:5353", "udp:dns:53"),
        ("[udp:[::1]:5353]:[udp:[fe80::1]:53]", "udp:[::1]:5353", "udp:[fe80::1]:53"),
        ("514:/dev/log", "udp:514", "unix-dgram:/dev/log"),
        ("514:unix-dgram:/dev/log", "udp:514", "unix-dgram:/dev/log"),
        ("/run/a,b.sock:10.0.0.1:514", "unix-dgram:/run/a%2Cb.sock", "udp:10.0.0.1:514"),
        ("unix-dgram:/run/a.sock:unix-dgram:/run/b.sock", "unix-dgram:/run/a.sock", "unix-dgram:/run/b.sock"),
        ("/run/a.sock:/run/b.sock", "unix-dgram:/run/a.sock", "unix-dgram:/run/b.sock"),
        ("[unix-dgram:/run/a%3Ab]:[::1]:53", "unix-dgram:/run/a%3Ab", "udp:[::1]:53"),
    ],
)
def test_a_spec_means_what_ssh_users_and_the_address_grammar_say(spec, listen, connect):
    assert tuple(map(str, parse_spec(spec))) == (listen, connect)


@pytest.mark.parametrize(
    ("spec", "character", "words"),
    [
        ("5353", 1, "not a forward"),
        ("dns:53", 1, "not a forward"),
        ("/run/a.sock", 1, "not a forward"),
        ("5353:dns:domain", 10, "a port must be a number"),
        ("53x:dns:53", 1, "a port must be a number"),
        ("5353:dns:0", 6, "a port above 0"),
        ("5353:*:53", 6, "one host"),
        ("5353::53", 6, "the host is missing"),
        ("5353:d ns:53", 6, "no host name"),
        ("70000:dns:53", 1, "between 0 and 65535"),
        ("[::1:5353:dns:53", 1, "[ without its ]"),
        ("::1]:5353:dns:53", 4, "] without its ["),
        ("1:2:3:dns:53", 1, "in brackets"),
        ("[tcp:1]:dns:53", 2, "tcp carries no datagrams"),
        ("5353:[vsock:3:53]", 7, "vsock carries no datagrams"),
        ("5353:[udp:dns:x]", 15, "a port must be a number"),
        ("5353:/" + "x" * 200, 6, "UNIX socket's holds"),
    ],
)
def test_a_wrong_spec_is_pointed_at(spec, character, words):
    with pytest.raises(AddressError) as caught:
        parse_spec(spec)
    assert words in caught.value.message
    assert f"character {character}:" in caught.value.message
    assert repr(spec)[1:-1] in caught.value.message
