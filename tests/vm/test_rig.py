"""What the rig promises to every other test here: real vsock on each level, and machines that do as they are told."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import guard
from tests.vm.machine import Machine, MachineFailed
from tests.vm.rig import Level

HERE = Path(__file__).parent
CHECKOUT = str(HERE.parent.parent)
BIND = "import socket, sys; socket.socket(socket.AF_VSOCK).bind((socket.VMADDR_CID_ANY, int(sys.argv[1])))"


def test_host_and_guest_say_hello_over_a_vsock_of_their_own(level: Level) -> None:
    port = level.free_port()
    with level.guest.start([sys.executable, f"{HERE}/guest.py", str(port)]) as guest:
        guest.wait_output("listening", 120)
        scheme, *names = level.guest_address(port).split(":")
        host = level.host.run([sys.executable, f"{HERE}/host.py", names[0], str(port)], timeout=120)
        assert scheme == ("hybrid" if level.name == "hybrid" else "vsock")
        assert (host.returncode, host.stdout) == (0, b"Hello, world! From the guest.\n"), host.stderr
        assert guest.wait(60) == 0
        # A host is CID 2 for its guest; over loopback both are CID 1.
        cid = 1 if level.name == "loopback" else 2
        assert f"from CID {cid}: Hello, world! From the host." in guest.stdout().decode()


def test_the_guest_reaches_a_listener_of_a_hybrid_host(hybrid: Level) -> None:
    """Guest-initiated connections arrive at a UNIX socket whose name ends in the port; the guest dials CID 2."""
    port = hybrid.free_port()
    path = hybrid.host_listen(port).split(":")[1] + f"_{port}"
    with hybrid.host.start(["socat", f"UNIX-LISTEN:{path}", "SYSTEM:read line; echo The host read $line"]) as host:
        hybrid.host.wait_for(["test", "-S", path], timeout=60)
        guest = hybrid.guest.run(["socat", "-t", "60", "-", f"VSOCK-CONNECT:2:{port}"], timeout=120, stdin=b"Hello\n")
        assert guest.stdout == b"The host read Hello\n", guest.stderr
        assert host.wait(60) == 0


def test_only_root_binds_a_port_below_1024(level: Level) -> None:
    below, above = level.free_port() % 900 + 100, level.free_port()
    assert level.guest.python(BIND, str(below)).returncode == 0
    assert level.guest.python(BIND, str(above), user="nobody").returncode == 0
    refused = level.guest.python(BIND, str(below), user="nobody")
    assert b"PermissionError" in refused.stderr


def test_the_guard_is_lifted_inside_by_the_word_on_the_kernels_command_line(level: Level) -> None:
    source = "from tests import guard; import socket; print(guard.inside_rig()); socket.socket(socket.AF_VSOCK)"
    inside = level.guest.python(source, cwd=CHECKOUT)
    assert (inside.returncode, inside.stdout) == (0, b"True\n"), inside.stderr
    wrong = level.guest.python(source, cwd=CHECKOUT, env={guard.RIG_WORD: "f" * 32})
    assert wrong.stdout == b"False\n"


def test_outside_the_rig_the_guard_stands(hybrid: Level) -> None:
    assert not guard.inside_rig()
    with pytest.raises(PermissionError):
        socket.socket(guard.AF_VSOCK)
    # The host of this level is the machine the tests run on.
    outside = hybrid.host.python("import socket; socket.socket(40)")
    assert b"PermissionError" in outside.stderr


def each_machine(level: Level) -> list[Machine]:
    return [level.host] if level.host is level.guest else [level.host, level.guest]


def test_a_killed_process_is_seen(level: Level) -> None:
    for machine in each_machine(level):
        process = machine.start(["sleep", "1000"])
        assert process.poll() is None
        process.signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL


def test_what_a_process_says_is_kept_apart_and_its_end_is_told(level: Level) -> None:
    for machine in each_machine(level):
        script = "read line; echo out $line $WORD; pwd; echo err >&2; exit 3"
        tmp = machine.make_tmp()
        completed = machine.run(["sh", "-c", script], timeout=60, stdin=b"in\n", env={"WORD": "word"}, cwd=tmp)
        assert completed.returncode == 3
        assert completed.stdout.decode() == f"out in word\n{tmp}\n"
        assert completed.stderr == b"err\n"


def test_output_that_never_comes_ends_the_wait(loopback: Level) -> None:
    with pytest.raises(AssertionError, match="ended and never said"):
        loopback.host.start(["echo", "else"]).wait_output("something", 60)
    with loopback.host.start(["sleep", "1000"]) as sleeping, pytest.raises(TimeoutError, match="has not said"):
        sleeping.wait_output("something", 0.5)


def test_files_are_the_same_wherever_they_are_made(level: Level) -> None:
    digests = set()
    for machine in each_machine(level):
        path = f"{machine.make_tmp()}/random"
        machine.random_file(path, 3_000_001, seed=7)
        digests.add(machine.sha256(path))
        assert len(machine.read(path)) == 3_000_001
        machine.write(path, b"written")
        assert machine.read(path) == b"written"
        assert machine.listdir(str(Path(path).parent)) == ["random"]
        assert machine.exists(path)
        assert not machine.exists(path + "2")
        with pytest.raises(MachineFailed, match="No such file"):
            machine.read(path + "2")
    assert len(digests) == 1


def test_the_command_line_runs_on_each_machine_and_as_another_user(level: Level) -> None:
    for machine in each_machine(level):
        version = machine.run_cli(["--version"], timeout=300)
        assert version.returncode == 0, version.stderr
        assert b"vsockfwd" in version.stdout
    asked = level.guest.run_cli(["forward", "--help"], timeout=300, user="nobody")
    assert (asked.returncode, asked.stderr) == (0, b"")


def test_the_command_line_ends_as_one_of_an_interpreter_of_its_own_does(loopback: Level) -> None:
    words = ["no-such-command"]
    forked = loopback.guest.run_cli(words, timeout=300)
    started = loopback.guest.run([sys.executable, "-m", "vsockfwd", *words], timeout=300)
    assert forked == started
    assert forked.returncode > 0


def test_nothing_outlives_a_test_run_that_is_killed() -> None:
    source = (
        "import time\n"
        "from tests.vm.rig import rig\n"
        "with rig() as machines:\n"
        "    print(machines.real.start(['sleep', '1000']).pid, machines.real.tmp, flush=True)\n"
        "    time.sleep(1000)\n"
    )
    with subprocess.Popen([sys.executable, "-c", source], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        try:
            pid, folder = run.stdout.readline().split()
            assert Path("/proc", pid).exists()
        finally:
            run.kill()
    deadline = time.monotonic() + 30
    while Path("/proc", pid).exists() or Path(folder).exists():
        assert time.monotonic() < deadline, f"process {pid} or {folder} is still there"
        time.sleep(0.05)
