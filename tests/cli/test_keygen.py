"""`vsockfwd keygen`, as a person types it, and the key that it makes where it is shown."""

from __future__ import annotations

import base64
import os
from pathlib import Path

from tests.cli.process import Server, error_of, run


def secret_of(path: Path) -> str:
    return path.read_text().split()[-1]


def test_a_key_opens_what_is_closed_without_it_and_is_never_shown(tmp_path: Path):
    """From the files alone: not in a command line, a line of the log, an answer or an error, however it is written."""
    made = run("keygen", f"{tmp_path}/web.key")
    assert (made.returncode, made.stdout) == (0, f"{tmp_path}/web.key: a key called web\n")
    run("keygen", f"{tmp_path}/other.key", "--name", "db")
    key, other = tmp_path / "web.key", tmp_path / "other.key"
    said = [made.stdout, made.stderr]
    with Server("serve", "-l", "tcp:0", "--auth-key", str(key), "-vv") as agent:
        target = agent.address
        shown = run("ping", "-c1", "-vv", target, "--auth-key", str(key))
        assert "sees us as key web (127.0.0.1:" in shown.stdout, shown.stderr
        by_environment = run("ping", "-c1", target, env={"VSOCKFWD_AUTH_KEY": str(key)})
        assert "sees us as key web" in by_environment.stdout, by_environment.stderr
        wrong = run("ping", "-c1", "-vv", f"{target},auth-key={other}")
        assert (wrong.returncode, wrong.stderr.splitlines()[0]) == (77, f"vsockfwd: {target}: the agent: not let in")
        assert error_of("ping", target)[0] == 77
        denied = agent.wait_for("denied", 2)
        assert "none of ours" in str(denied[0]["why"])
        for name in ("cmdline", "environ"):
            said.append((Path("/proc") / str(agent.process.pid) / name).read_text())
    said += [done.stdout + done.stderr for done in (shown, by_environment, wrong)]
    said.append(str(agent.events))
    for path in (key, other):
        secret = base64.b64decode(secret_of(path))
        forms = secret_of(path), secret.hex(), repr(secret)[2:-1], secret_of(path)[:12]
        assert not [form for form in forms for text in said if form in text]


def test_the_key_that_others_may_read_is_refused_on_both_sides_and_told_how_to_mend(tmp_path: Path):
    run("keygen", f"{tmp_path}/k")
    os.chmod(tmp_path / "k", 0o644)
    for words in (["serve", "-l", f"unix:{tmp_path}/a", "--auth-key"], ["ping", f"unix:{tmp_path}/a", "--auth-key"]):
        code, line = error_of(*words, f"{tmp_path}/k")
        assert code == 77
        assert "mode 0644" in line
        assert "chmod 600" in line
    assert error_of("keygen", f"{tmp_path}/k")[0] == 73
