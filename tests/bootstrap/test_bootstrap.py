"""What `bootstrap` prints starts an agent: systemd, a shell and cloud-init's format take it as it is."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.cli.process import error_of, run
from tests.service.test_units import UNITS, analyze
from vsockfwd.bootstrap import cloud_init, openrc, systemd

ODD = ["--root", '/srv/a b%c$d"e\\', "--allow-cid", "host"]


def test_systemd_takes_the_unit_and_what_stands_in_it(tmp_path: Path):
    unit = tmp_path / "vsockfwd-agent.service"
    unit.write_text(systemd(sys.executable, ODD))
    done = analyze("verify", "--system", "--man=no", str(unit), folder=tmp_path)
    assert (done.returncode, [line for line in done.stderr.splitlines() if "vsockfwd" in line]) == (0, [])
    assert 'serve --root "/srv/a b%%c$$d\\"e\\\\" --allow-cid host\n' in unit.read_text()


def test_the_unit_is_the_one_that_is_shipped():
    assert systemd("vsockfwd", []) == (UNITS / "system/vsockfwd-agent.service").read_text()


def test_a_shell_reads_the_openrc_script_and_its_words(tmp_path: Path):
    script = tmp_path / "vsockfwd-agent"
    script.write_text(openrc("/opt/a b/vsockfwd", ODD))
    # openrc-run sources the script and has supervise-daemon split command_args by a shell.
    told = subprocess.run(
        ["sh", "-c", f'. {script}; echo "$command"; eval "set -- $command_args"; printf "%s\\n" "$@"; type depend'],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told.stdout.splitlines()[:6] == ["/opt/a b/vsockfwd", "serve", *ODD]


def test_cloud_init_gets_the_unit_and_the_program():
    unit = systemd("/usr/local/bin/vsockfwd", ODD)
    program = bytes(range(256)) * 5
    text = cloud_init("/usr/local/bin/vsockfwd", ODD, program)
    assert text.startswith("#cloud-config\n")
    blocks = re.findall(r"    content: \|\n((?:      .*\n|\n)+)", text)
    assert textwrap.dedent(blocks[0]) == unit
    assert base64.b64decode(blocks[1]) == program
    assert "  - ['systemctl', 'enable', '--now', 'vsockfwd-agent.service']\n" in text
    assert "vsockfwd[all]" in cloud_init("/usr/local/bin/vsockfwd", [], None)
    assert "vsockfwd[all]" not in text


def test_an_option_that_serve_does_not_know_is_refused_before_a_guest_boots_with_it():
    assert run("bootstrap", "systemd", "--", "--allow-cid", "host").stdout.count("--allow-cid host") == 1
    code, line = error_of("bootstrap", "systemd", "--", "--alow-cid", "host")
    assert (code, "'--alow-cid' is no option" in line) == (2, True)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["sysvinit"], 2, "systemd, openrc, cloud-init"),
        (["systemd", "--pyz", "x"], 2, "--pyz goes with cloud-init"),
        (["cloud-init", "--pyz", "/nowhere"], 1, "make pyz"),
    ],
)
def test_what_cannot_be_printed_is_refused(words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]):
    from vsockfwd.__main__ import main

    assert main(["bootstrap", *words]) == code
    assert said in capsys.readouterr().err
