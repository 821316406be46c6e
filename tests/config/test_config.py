"""The config file: what is wrong is told with its key's path, what is right becomes rules that compare."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsockfwd.config import Config, parse_config, parse_serve
from vsockfwd.errors import ConfigError
from vsockfwd.identity import GuestPeer, NetworkPeer, OwnPeer, UnixPeer, VsockPeer
from vsockfwd.modes.forward import LOCAL, RAW, LocalRule, RawRule
from vsockfwd.rule import Admitted

KINDS = {kind.name: kind for kind in (RAW, LOCAL)}

GOOD = """
[targets]
web = "vsock:3"
box = "hybrid:/run/vm.vsock"

[[forward]]
listen = "tcp:8080"
connect = "vsock:3:80"

[[forward]]
name = "db"
kind = "local"
target = "web"
listen = "unix:/run/db.sock,mode=0660"
connect = "tcp:localhost:5432"
max-connections = 10
max-connections-per-peer = 2
idle-timeout = 600
half-open-timeout = 2.5
when-down = "refuse"
allow = ["cid:3", "uid:1000", "net:10.0.0.0/8", "guest"]
"""


def read(text: str) -> Config:
    return parse_config(text, "f.toml", KINDS)


def test_a_file_becomes_targets_and_typed_rules():
    config = read(GOOD)
    assert {name: str(address) for name, address in config.targets.items()} == {
        "web": "vsock:3:876",
        "box": "hybrid:/run/vm.vsock:876",
    }
    raw, local = config.rules
    assert (raw.name, raw.kind) == ("raw tcp:8080 → vsock:3:80", RAW)
    assert isinstance(raw.rule, RawRule)
    assert (local.name, local.kind) == ("db", LOCAL)
    assert isinstance(local.rule, LocalRule)
    assert str(local.rule.listen) == "unix:/run/db.sock,mode=0660"
    assert (local.rule.max_connections, local.rule.idle_timeout, local.rule.when_down) == (10, 600, "refuse")


def test_the_same_text_is_the_same_rules_which_a_reload_lives_by():
    assert read(GOOD) == read(GOOD)
    changed = read(GOOD.replace("5432", "5433"))
    assert [a == b for a, b in zip(read(GOOD).rules, changed.rules, strict=True)] == [True, False]


RULE = '[[forward]]\nlisten = "tcp:1"\nconnect = "tcp:2"\n'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[[forward]\n", "f.toml: Expected ']]' at the end of an array declaration (at line 1, column 10)"),
        ("[forwards]\n", "f.toml: forwards: no such table – there are targets, forward"),
        ("[forward]\na = 1\n", "f.toml: forward: a rule is a table of its own"),
        ("forward = [1]\n", "f.toml: forward: a rule is a table of its own"),
        ("targets = 1\n", "f.toml: targets: not a table"),
        ("[targets]\n3 = 'vsock:3'\n", "f.toml: targets.3: a target's name"),
        ("[targets]\nweb = 3\n", "f.toml: targets.web: expected text, got int"),
        ("[targets]\nweb = 'vsock:x'\n", "f.toml: targets.web: address 'vsock:x:876', character 7"),
        (RULE + "lisen = 1\n", "f.toml: forward[1]: the table contains unknown field 'lisen'"),
        (RULE + RULE.replace("tcp:1", "tpc:1"), "f.toml: forward[2].listen: address 'tpc:1', character 1"),
        (RULE.replace("tcp:1", "stdio"), "forward[1].listen: address 'stdio', character 1: stdio can be opened once"),
        (RULE.replace('"tcp:1"', "1"), "f.toml: forward[1].listen: expected text, got int"),
        (RULE.replace("listen", "#"), "f.toml: forward[1]: the table missing required field 'listen'"),
        (RULE + "kind = 'odd'\n", "f.toml: forward[1].kind: no kind is called 'odd' – there are local, raw"),
        (RULE + "kind = 'local'\n", "f.toml: forward[1]: the table missing required field 'target'"),
        (RULE + "target = 'web'\n", "f.toml: forward[1].target: address 'web', character 1: no target is called 'web'"),
        (RULE + "target = '3'\nwhen-down = 'sleep'\n", "f.toml: forward[1].when-down: invalid enum value 'sleep'"),
        (RULE + "max-connections = 0\n", "f.toml: forward[1].max-connections: expected `int` >= 1".replace("`", "'")),
        (RULE + "idle-timeout = -1\n", "forward[1].idle-timeout: expected 'float' >= 0.0"),
        (RULE + "allow = ['cid:3', 'root']\n", "f.toml: forward[1].allow[2]: 'root' names nobody"),
        (RULE + "allow = ['net:10.0.0.1/8']\n", "f.toml: forward[1].allow[1]: 'net:10.0.0.1/8'"),
        (RULE + RULE, "f.toml: forward[1] and forward[2] are both called"),
        (RULE + RULE.replace("tcp:2", "tcp:3"), "f.toml: forward[1] and forward[2] both listen on tcp:1"),
        (RULE + RULE.replace("tcp:1", "tcp:*:1"), "f.toml: forward[1] and forward[2] both listen on tcp:*:1"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_told_with_file_and_key_path(text: str, told: str):
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert told in caught.value.line()
    assert caught.value.exit_code == 78
    assert caught.value.line().isprintable()


@pytest.mark.parametrize(
    "other",
    ["tcp:2", "tcp:10.0.0.1:1", "unix:/a", "vsock:any:1"],
)
def test_rules_that_do_not_meet_may_stand_together(other: str):
    assert len(read(RULE + RULE.replace("tcp:1", other)).rules) == 2


def test_port_0_is_nobodys():
    free = RULE.replace("tcp:1", "tcp:0")
    assert len(read(free + free.replace("tcp:2", "tcp:3")).rules) == 2


@pytest.mark.parametrize(
    ("rule", "peer", "let_in"),
    [
        ("cid:3", VsockPeer(3, 1024), True),
        ("cid:3", VsockPeer(4, 1024), False),
        ("uid:1000", UnixPeer(1000, 0, 1), True),
        ("uid:1000", UnixPeer(0, 0, 1), False),
        ("cid:1000", UnixPeer(1000, 0, 1), False),
        ("net:10.0.0.0/8", NetworkPeer("10.1.2.3", 1), True),
        ("net:10.0.0.0/8", NetworkPeer("11.1.2.3", 1), False),
        ("net:fe80::/10", NetworkPeer("fe80::1%lo", 1), True),
        ("net:10.0.0.0/8", NetworkPeer("::1", 1), False),
        ("guest", GuestPeer(b"/run/vm"), True),
        ("guest", VsockPeer(3, 1), False),
        ("uid:0", OwnPeer("memory"), False),
    ],
)
def test_who_is_admitted(rule: str, peer, let_in: bool):
    assert Admitted.read(rule).admits(peer) is let_in


@given(st.text(max_size=200) | st.text('[]"=\n.forwadtgesliknc0123456789:', max_size=200))
def test_any_text_is_a_config_or_a_config_error(text: str):
    try:
        told = str(read(text).targets)
    except ConfigError as error:
        told = error.line()
    assert told.isprintable()


@given(st.ip_addresses())
def test_every_network_admits_its_own_addresses(address):
    width = 32 if isinstance(address, ipaddress.IPv4Address) else 128
    assert Admitted.read(f"net:{address}/{width}").admits(NetworkPeer(str(address), 1))


def test_a_forward_that_asks_nobody_for_a_key_admits_nobody_by_one():
    with pytest.raises(ConfigError, match="names nobody"):
        parse_config(RULE + "allow = ['key:web']\n", "f.toml", KINDS)


# --- [serve]

SERVE = """
[serve]
listen = ["vsock:any:876", "unix:/run/agent.sock,mode=0660"]
keys = ["/etc/vsockfwd/keys"]
allow-cid = ["host", 3]
allow-connect = ["tcp:localhost:80"]
root = "/srv"
max-connections = 100

[[serve.allow]]
who = ["key:web", "net:10.0.0.0/8"]
connect = ["tcp:80"]
root = "/srv/web"
read-only = true
max-rate = 5
max-bandwidth = "1.5M"
"""


def test_what_an_agent_may_be_is_read_as_it_was_written():
    serve = parse_serve(SERVE, "f.toml")
    assert [str(one) for one in serve.listen] == ["vsock:any:876", "unix:/run/agent.sock,mode=0660"]
    assert serve.allow_cid == ("host", 3)
    (entry,) = serve.allow
    assert [str(who) for who in entry.who] == ["key:web", "net:10.0.0.0/8"]
    assert (entry.root, entry.read_only, entry.max_rate, entry.listen) == ("/srv/web", True, 5, None)
    assert entry.max_bandwidth is not None
    assert entry.max_bandwidth.value == 1_572_864
    assert parse_config(SERVE, "f.toml", {}).serve == serve


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("listens = []", "f.toml: serve: the table contains unknown field 'listens'"),
        ("read-only = 1", "f.toml: serve.read-only: expected 'bool', got 'int'"),
        ("allow-connect = ['tcp:80', 'tcp:90-80']", "f.toml: serve.allow-connect[2]: address 'tcp:90-80', character 5"),
        ("root = 'srv'", "f.toml: serve.root: "),
        ("max-connections = 0", "f.toml: serve.max-connections: "),
        ("[[serve.allow]]\nconnect = []", "f.toml: serve.allow[1]: the table missing required field 'who'"),
        ("[[serve.allow]]\nwho = []", "f.toml: serve.allow[1].who: "),
        ("[[serve.allow]]\nwho = ['guests']", "f.toml: serve.allow[1].who[1]: 'guests' names nobody"),
        ("[[serve.allow]]\nwho = ['guest']\nmodes = ['A B']", "f.toml: serve.allow[1].modes[1]: "),
        ("root = '/srv'\n[[serve.allow]]\nwho = ['guest']\nroot = '/etc'", "f.toml: serve.allow[1].root: /etc is"),
    ],
)  # fmt: skip
def test_a_mistake_in_who_may_what_is_pointed_at(said: str, words: str):
    with pytest.raises(ConfigError) as caught:
        parse_serve(f"[serve]\n{said}\n", "f.toml")
    assert caught.value.message.startswith(words)
