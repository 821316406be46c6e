"""-L SPEC as ssh spells it (ssh(1)): [bind:]port:host:hostport, either end possibly a UNIX path."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsockfwd.errors import AddressError
from vsockfwd.modes.spelling import parse_forward


@pytest.mark.parametrize(
    ("spec", "listen", "connect"),
    [
        ("8080:localhost:80", "tcp:8080", "tcp:80"),
        ("8080:db.example:5432", "tcp:8080", "tcp:db.example:5432"),
        ("8080:127.0.0.1:80", "tcp:8080", "tcp:127.0.0.1:80"),
        ("8080:[::1]:80", "tcp:8080", "tcp:[::1]:80"),
        ("8080:[dead::beef]:80", "tcp:8080", "tcp:[dead::beef]:80"),
        ("0:localhost:80", "tcp:0", "tcp:80"),
        ("localhost:8080:localhost:80", "tcp:8080", "tcp:80"),
        ("127.0.0.1:8080:h:80", "tcp:127.0.0.1:8080", "tcp:h:80"),
        ("*:8080:h:80", "tcp:*:8080", "tcp:h:80"),
        (":8080:h:80", "tcp:*:8080", "tcp:h:80"),
        ("[::]:8080:h:80", "tcp:[::]:8080", "tcp:h:80"),
        ("[::1]:8080:[::1]:80", "tcp:[::1]:8080", "tcp:[::1]:80"),
        ("[fd00::1]:8080:h:80", "tcp:[fd00::1]:8080", "tcp:h:80"),
        ("[fd::1]:8080:h:80", "tcp:[fd::1]:8080", "tcp:h:80"),
        ("[dead::beef]:8080:h:80", "tcp:[dead::beef]:8080", "tcp:h:80"),
        ("/run/a.sock:/run/b.sock", "unix:/run/a.sock", "unix:/run/b.sock"),
        ("/run/a.sock:h:80", "unix:/run/a.sock", "tcp:h:80"),
        ("/run/a.sock:[::1]:80", "unix:/run/a.sock", "tcp:[::1]:80"),
        ("8080:/run/b.sock", "tcp:8080", "unix:/run/b.sock"),
        ("*:8080:/run/b.sock", "tcp:*:8080", "unix:/run/b.sock"),
        (":8080:/run/b.sock", "tcp:*:8080", "unix:/run/b.sock"),
        ("[::1]:8080:/run/b.sock", "tcp:[::1]:8080", "unix:/run/b.sock"),
        ("8080:/run/50%,a", "tcp:8080", "unix:/run/50%25%2Ca"),
        ("/run/a[1]:h:80", "unix:/run/a%5B1%5D", "tcp:h:80"),
        ("8080:[vsock:local:5000]", "tcp:8080", "vsock:local:5000"),
        ("[vsock:any:5000]:h:80", "vsock:any:5000", "tcp:h:80"),
        ("[abstract:a]:[unix:/b,mode=0660]", "abstract:a", "unix:/b,mode=0660"),
        ("[tcp:[::1]:1]:[tcp:[::1]:2]", "tcp:[::1]:1", "tcp:[::1]:2"),
        ("[hybrid:/run/vm:5]:h:80", "hybrid:/run/vm:5", "tcp:h:80"),
    ],
)
def test_a_forward_is_read_as_ssh_reads_it(spec: str, listen: str, connect: str) -> None:
    near, far = parse_forward(spec)
    assert (str(near), str(far)) == (listen, connect)


@pytest.mark.parametrize(
    ("spec", "character", "said"),
    [
        ("", 0, "not a forward"),
        ("8080", 1, "not a forward – -L takes [bind:]port:host:hostport"),
        ("8080:h", 1, "not a forward"),
        ("a:b:c:d:80", 1, "not a forward"),
        ("/run/a.sock", 1, "not a forward"),
        ("/run/a.sock:80", 1, "not a forward"),
        ("/run/a:/run/b:/run/c", 15, "'/run/c' is no port"),
        ("::1:8080:h:80", 1, "not a forward"),
        ("8080:h:http", 8, "'http' is no port"),
        ("web:h:80", 1, "'web' is no port"),
        ("8080:h:65536", 8, "'65536' is no port"),
        ("8080:h:-1", 8, "'-1' is no port"),
        ("8080:h:", 8, "'' is no port"),
        (":h:80", 1, "'' is no port"),
        ("8080:h:٨٠", 8, "is no port"),
        ("8080::80", 6, "the host is missing"),
        ("8080:a b:80", 6, "'a b' is no host name"),
        ("a b:8080:h:80", 1, "'a b' is no host name"),
        ("8080:[::g]:80", 6, "'::g' is no IPv6 address"),
        ("8080:[::1:80", 6, "[ without its ]"),
        ("8080:::1]:80", 9, "] without its ["),
        ("8080:[udp:53]", 1, "udp carries datagrams"),
        ("8080:h:80\n", 8, "is no port"),
    ],
)
def test_a_wrong_forward_is_refused_and_the_character_pointed_at(spec: str, character: int, said: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_forward(spec)
    error = caught.value
    assert said in error.line()
    if character:
        assert f"character {character}: " in error.message
    assert error.line().isprintable()
    assert error.exit_code == 2


def test_a_path_that_is_too_long_is_refused_before_anything_listens() -> None:
    with pytest.raises(AddressError, match="108 bytes"):
        parse_forward(f"8080:/{'x' * 107}")


@settings(deadline=None)
@given(st.text(max_size=30) | st.text("[]:/*,%0123456789abcdeflocalhostvsock", max_size=40))
def test_any_text_is_a_forward_or_an_address_error(spec: str) -> None:
    try:
        said = "".join(map(str, parse_forward(spec)))
    except AddressError as error:
        said = error.line()
    assert said.isprintable()
