"""`serve --user` and `--confine`, as an operator starts them: what the process is then, and that it serves."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from tests.cli.process import Server, error_of, run


def status_of(pid: int) -> dict[str, str]:
    lines = (Path("/proc") / str(pid) / "status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_an_agent_becomes_another_user_without_privileges_and_still_serves(tmp_path: Path):
    user = pwd.getpwuid(65534 if os.geteuid() == 0 else os.geteuid())
    socket = tmp_path / "agent.sock"
    with Server("serve", "-l", f"unix:{socket}", "--user", user.pw_name) as agent:
        agent.wait_for("listening")
        status = status_of(agent.process.pid)
        assert status["Uid"].split() == [str(user.pw_uid)] * 4
        assert status["Gid"].split() == [str(user.pw_gid)] * 4
        assert set(status["Groups"].split()) <= set(map(str, os.getgrouplist(user.pw_name, user.pw_gid)))
        if user.pw_uid:
            assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
        assert status["NoNewPrivs"] == "1"
        assert agent.wait_for("confined")[0]["how"] == f"no new privileges, as {user.pw_name} (uid {user.pw_uid})"
        found = socket.stat()
        assert (found.st_uid, found.st_mode & 0o777) == (user.pw_uid, 0o600)
        asked = run("ping", "-c1", f"unix:{socket}")
        assert asked.returncode == 0, asked.stderr


def test_what_cannot_be_given_up_is_refused_at_once(tmp_path: Path):
    assert error_of("serve", "-l", f"unix:{tmp_path}/s", "--user", "nobody-of-this-name")[0] == 2
    code, line = error_of("serve", "-l", f"unix:{tmp_path}/s", "--confine", "yes")
    assert (code, "--root DIR" in line) == (2, True)
