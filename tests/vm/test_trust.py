"""Who is not let in, over real vsock: another user of the host, another guest, a user of the guest, a wrong key.

Each is refused with exit code 77 and one line, the agent's log says who it was and why, and the agent goes on serving
those who may.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.vm.machine import Machine, Process
from tests.vm.rig import Level
from tests.vm.test_end_to_end import LIMIT, serving

OTHER = "nobody"


def key(machine: Machine, name: str) -> str:
    """A new key, and the path of its file."""
    path = f"{machine.make_tmp()}/{name}.key"
    done = machine.run_cli(["keygen", path], timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    return path


def copied(path: str, source: Machine, to: Machine) -> str:
    """The same file on the other machine, where only its owner may read it."""
    there = f"{to.make_tmp()}/{path.rpartition('/')[2]}"
    to.write(there, source.read(path))
    assert to.run(["chmod", "600", there], timeout=LIMIT).returncode == 0
    return there


def refused(machine: Machine, *words: str, user: str | None = None) -> str:
    """The one line of a `ping` that must be refused."""
    done = machine.run_cli(["ping", "-c", "1", *words], timeout=LIMIT, user=user)
    assert done.returncode == 77, (done.returncode, done.stdout, done.stderr)
    assert done.stderr.count(b"\n") == 1
    return done.stderr.decode()


def let_in(machine: Machine, *words: str) -> str:
    done = machine.run_cli(["ping", "-c", "1", *words], timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


@contextmanager
def host_serving(level: Level, *words: str) -> Iterator[tuple[Process, str]]:
    """An agent on the host, and what the guest calls it."""
    port = level.free_port()
    with level.host.cli(["serve", "-v", "--listen", level.host_listen(port), *words]) as agent:
        agent.wait_output("listening on", LIMIT)
        yield agent, level.host_address(port)


def test_a_guest_agent_with_another_key_is_asked_for_nothing_and_learns_nothing(level: Level) -> None:
    right, wrong = key(level.host, "right"), key(level.host, "wrong")
    there = copied(right, level.host, level.guest)
    with serving(level, "--auth-key", there) as site:
        assert "not let in" in refused(level.host, site.target, "--auth-key", wrong)
        site.agent.wait_output("its key is none of ours", LIMIT)
        assert "a key is needed here" in refused(level.host, site.target)
        assert "sees us as key right (vsock " in let_in(level.host, site.target, "--auth-key", right)
    with serving(level, "--allow-cid", "any") as site:
        assert "knows no keys" in refused(level.host, site.target, "--auth-key", right)


def test_a_guest_gets_nothing_of_the_hosts_agent_without_a_key_and_its_key_is_enough(level: Level) -> None:
    mine, wrong = key(level.host, "mine"), key(level.guest, "wrong")
    there = copied(mine, level.host, level.guest)
    with host_serving(level, "--auth-key", mine, "--allow-connect", "tcp:localhost:80") as (agent, target):
        assert "a key is needed here" in refused(level.guest, target)
        assert "not let in" in refused(level.guest, target, "--auth-key", wrong)
        agent.wait_output("its key is none of ours", LIMIT)
        assert "sees us as key mine" in let_in(level.guest, target, "--auth-key", there)
        done = level.guest.run_cli(
            ["forward", "-W", "127.0.0.1:22", target, "--auth-key", there], timeout=LIMIT, stdin=b""
        )
        assert done.returncode == 77, done.stderr
        assert b"may connect to" in done.stderr


def test_a_guest_is_not_let_in_by_the_hosts_agent_without_a_rule(level: Level) -> None:
    """An agent that names another guest is none for this one; behind a hybrid socket one does not even listen."""
    if level.name == "hybrid":
        done = level.host.run_cli(["serve", "--listen", level.host_listen(level.free_port())], timeout=LIMIT)
        assert done.returncode == 77
        assert b"by a rule or a key only" in done.stderr
        return
    with host_serving(level, "--allow-cid", "4") as (agent, target):
        assert "is not trusted: a CID names a machine" in refused(level.guest, target)
        assert "is not trusted" in refused(level.guest, target, user=OTHER)
        agent.wait_output("turned away: .*is not trusted", LIMIT)
        assert agent.poll() is None


@pytest.mark.parametrize("level", ["loopback", "host_and_guest"], indirect=True)  # a VMM's socket shows no user
def test_another_user_of_the_host_is_not_the_host(level: Level) -> None:
    with serving(level) as site:
        line = refused(level.host, site.target, user=OTHER)
        if level.name == "host_and_guest":
            assert "is not privileged" in line
            assert "sees us as vsock host(2):" in let_in(level.host, site.target)
        else:
            assert "local(1) is not trusted" in line
        site.agent.wait_output("turned away", LIMIT)
        assert site.agent.poll() is None


def test_a_user_of_the_guest_is_not_its_root(level: Level) -> None:
    folder = level.guest.make_tmp()
    where = f"unix:{folder}/agent"
    with level.guest.cli(["serve", "-v", "--listen", f"{where},mode=0666"]) as agent:
        agent.wait_output("listening on", LIMIT)
        assert "is neither root nor the agent's user" in refused(level.guest, where, user=OTHER)
        agent.wait_output("turned away: uid", LIMIT)
        assert "sees us as uid 0" in let_in(level.guest, where)


# Half of them say nothing, half of them nonsense; all stay until the script is ended.
FLOOD = """
import socket, sys, time
held = []
for number in range(600):
    vsock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    vsock.settimeout(10)
    try:
        vsock.connect((int(sys.argv[1]), int(sys.argv[2])))
        if number % 2:
            vsock.sendall(b"GET / HTTP/1.1" + bytes(2))
    except OSError:
        pass
    held.append(vsock)
print("flooded", flush=True)
time.sleep(600)
"""


def test_a_guest_that_floods_the_hosts_agent_is_told_of_and_keeps_nobody_out(level: Level) -> None:
    mine = key(level.host, "flooded")
    there = copied(mine, level.host, level.guest)
    with host_serving(level, "--auth-key", mine) as (agent, target):
        _, cid, port = target.split(":")
        with level.guest.start([sys.executable, "-c", FLOOD, cid, port]) as flood:
            flood.wait_output("flooded", LIMIT)
            assert "sees us as key flooded" in let_in(level.guest, target, "--auth-key", there)
        agent.wait_output("no vsockfwd client", LIMIT)
        assert "sees us as key flooded" in let_in(level.guest, target, "--auth-key", there)
        assert agent.poll() is None
