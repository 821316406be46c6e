"""`vsockfwd policy check`: an answer before there is an agent, and the agent's own answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vsockfwd.cli.main import main
from vsockfwd.engine.keys import create_key


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("VSOCKFWD_AUTH_KEY", raising=False)
    create_key(f"{tmp_path}/web.key", "web")
    (tmp_path / "f.toml").write_text(
        f'[serve]\nkeys = ["{tmp_path}"]\nallow-connect = ["tcp:localhost:*"]\n'
        '[[serve.allow]]\nwho = ["key:web"]\nconnect = ["tcp:80"]\nmax-rate = 7\nmax-bandwidth = "2M"\n'
    )
    return f"{tmp_path}/f.toml"


ASKED = [
    ("key:web login", 0, "is let in by rule (key:web) [serve.allow[1]]"),
    ("key:web connect tcp:80", 0, "at most 7 new streams a second"),
    ("key:web connect tcp:81", 77, "[serve.allow[1].connect] – serve.allow[1].connect where the agent runs"),
    ("key:web connect tcp:localhost:80", 0, "may connect to tcp:127.0.0.1:80"),
    ("key:db login", 77, "no key is called db"),
    ("cid:host:privileged login", 77, "host(2) shows no key [keys] – ask with --auth-key FILE"),
    ("uid:0 connect tcp:80", 77, "uid 0 shows no key"),
    ("key:web listen tcp:*:80", 0, "may listen on tcp:*:80 [default]"),
    ("key:web mode forward", 0, "may ask for forward"),
    ("key:web write /x", 0, "may write /x"),
    ("key:web fetch /x", 2, ""),
    ("key:* login", 2, ""),
    ("nobody login", 2, ""),
]


@pytest.mark.parametrize(("asked", "code", "words"), ASKED, ids=[asked[0] for asked in ASKED])
def test_a_decision_is_told_with_the_rule_that_made_it(config: str, capsys, asked: str, code: int, words: str):
    assert main(["policy", "check", *asked.split(), "-c", config]) == code
    assert words in capsys.readouterr().out


def test_a_flag_stands_in_for_what_the_file_says(config: str, capsys):
    words = ["policy", "check", "key:web", "connect", "tcp:80", "-c", config, "--allow-connect"]
    assert main([*words, "none"]) == 77
    assert "[allow-connect]" in capsys.readouterr().out
    assert main([*words, "tcp:90-80"]) == 2
    assert "--allow-connect: address 'tcp:90-80', character 5" in capsys.readouterr().err


def test_a_program_reads_the_decision_too(config: str, capsys):
    assert main(["policy", "check", "key:web", "connect", "tcp:81", "-c", config, "--json"]) == 77
    answer = json.loads(capsys.readouterr().out)
    assert [one["allowed"] for one in answer["decisions"]] == [True, False]
    assert answer["decisions"][1]["rule"] == "serve.allow[1].connect"
    assert answer["max_rate"] == 7
    assert answer["max_bandwidth"] == 2 << 20


def test_how_much_a_peer_may_have_is_told_and_nobody_gets_more_than_all(config: str, capsys):
    words = ["policy", "check", "key:web", "connect", "tcp:80", "-c", config]
    assert main([*words, "--max-bandwidth", "500k"]) == 0
    assert "at most 512000 bytes a second in each direction" in capsys.readouterr().out
    for wrong in ("fast", "0", "1023", "1e6", "-1M", "", "9999999999G"):
        assert main([*words, "--max-bandwidth", wrong]) == 2
        assert f"--max-bandwidth {wrong}: is no rate" in capsys.readouterr().err
