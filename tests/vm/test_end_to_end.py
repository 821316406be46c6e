"""The main jobs over real vsock, the same on every level: an agent in the guest, a client on the host, and back.

What is compared is compared outside of our own code: by curl's exit code, by sha256sum, by programs that know nothing
of vsockfwd. Emulation is slow: limits are generous, and nothing here says how fast anything is.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL

import pytest

from tests.vm.machine import Machine, Process
from tests.vm.rig import Level

HERE = Path(__file__).parent
LIMIT = 240.0
MEDIUM = 64 << 20
LARGE = {"loopback": MEDIUM, "host_and_guest": 256 << 20, "hybrid": MEDIUM}

# What makes a bare agent let the test's client in: on host_and_guest nothing at all, since it is the host's root.
RULES = {"loopback": ["--allow-cid", "local"], "host_and_guest": [], "hybrid": ["--allow-cid", "host"]}

UDP_ECHO = """
import socket, sys
sock = socket.socket(type=socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, 33, 1 << 22)  # SO_RCVBUFFORCE
sock.bind(("127.0.0.1", int(sys.argv[1])))
print("ready", flush=True)
while True:
    data, peer = sock.recvfrom(65535)
    sock.sendto(data, peer)
"""

# Paced by what comes back: a window at a time, so that a loss is a loss and not a full queue.
UDP_ASK = """
import random, socket, sys
sock = socket.socket(type=socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, 33, 1 << 22)
sock.connect(("127.0.0.1", int(sys.argv[1])))
sock.settimeout(60)
chance, sent, came = random.Random(5), [], []
for start in range(0, int(sys.argv[2]), 100):
    window = [b"%d:" % (start + n) + chance.randbytes(chance.randrange(1400)) for n in range(100)]
    for datagram in window:
        sock.send(datagram)
    came += [sock.recv(65535) for _ in window]
    sent += window
print("same" if came == sent else "different", len(came))
"""


@dataclass
class Site:
    """A level with an agent in its guest."""

    level: Level
    agent: Process
    target: str

    @property
    def host(self) -> Machine:
        return self.level.host

    @property
    def guest(self) -> Machine:
        return self.level.guest


@contextmanager
def serving(level: Level, *words: str) -> Iterator[Site]:
    port = level.free_port()
    with level.guest.cli(["serve", "-v", "--listen", level.guest_listen(port), *words]) as agent:
        agent.wait_output("listening on", LIMIT)
        yield Site(level, agent, level.guest_address(port))


@pytest.fixture(scope="module")
def site(level: Level) -> Iterator[Site]:
    with serving(level, *RULES[level.name]) as site:
        yield site


@contextmanager
def forwarding(site: Site, spec: str) -> Iterator[tuple[int, Process]]:
    """`forward -L 0:spec` on the host; yields the TCP port and the process."""
    with site.host.cli(["forward", "-v", "-L", f"0:{spec}", site.target]) as forward:
        found = forward.wait_output(r"listening on tcp:127\.0\.0\.1:(\d+)", LIMIT)
        yield int(found[1]), forward


@contextmanager
def website(machine: Machine, size: int, rate: str = "0") -> Iterator[tuple[int, str, Process]]:
    """nginx, one process, with a file of `size` random bytes: (its port, the file's digest, itself)."""
    folder = machine.make_tmp()
    machine.random_file(f"{folder}/large", size, seed=1)
    port = 8000 + int(folder.rpartition("/")[2])
    paths = " ".join(f"{name}_temp_path {folder};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    config = (
        f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/log; user root;\n"
        "events { worker_connections 256; }\n"
        f"http {{ access_log off; {paths} server {{ listen 127.0.0.1:{port}; root {folder}; limit_rate {rate}; }} }}\n"
    )
    machine.write(f"{folder}/nginx.conf", config.encode())
    with machine.start(["nginx", "-c", f"{folder}/nginx.conf", "-p", folder, "-e", f"{folder}/log"]) as nginx:
        machine.wait_for(["curl", "-sf", "-o", "/dev/null", "-r", "0-0", f"http://127.0.0.1:{port}/large"], LIMIT)
        yield port, machine.sha256(f"{folder}/large"), nginx
    machine.run(["rm", "-rf", folder], timeout=LIMIT)


def tree_digest(machine: Machine, folder: str) -> str:
    """Every name, mode and content below a folder, as one digest."""
    script = "find . -type f -print0 | sort -z | xargs -0 sha256sum;find . -printf '%P %y %m %l\\n' | sort"
    done = machine.run(["sh", "-c", f"({script}) | sha256sum"], timeout=LIMIT, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


# --- forwarding


def test_curl_on_the_host_fetches_a_large_file_from_the_guest(site: Site) -> None:
    """256 MiB from host to guest and back over vhost-vsock; less where it is the same code on the same emulated CPU."""
    with (
        website(site.guest, LARGE[site.level.name]) as (web, digest, _),
        forwarding(site, f"127.0.0.1:{web}") as (port, _),
    ):
        out = f"{site.host.make_tmp()}/fetched"
        done = site.host.run(["curl", "-sS", "-o", out, f"http://127.0.0.1:{port}/large"], timeout=LIMIT)
        assert done.returncode == 0, done.stderr
        assert site.host.sha256(out) == digest
        site.host.run(["rm", out], timeout=LIMIT)


def test_a_question_that_ends_with_a_half_close_gets_its_answer(site: Site) -> None:
    server = site.guest.start(["socat", "-t60", "TCP-LISTEN:7001,bind=127.0.0.1,reuseaddr,fork", "SYSTEM:wc -c"])
    with server, forwarding(site, "127.0.0.1:7001") as (port, _):
        site.guest.wait_for(["sh", "-c", "ss -ltn | grep -q :7001"], LIMIT)
        ask = ["socat", "-t60", "-", f"TCP:127.0.0.1:{port}"]
        done = site.host.run(ask, timeout=LIMIT, stdin=bytes(5_000_000))
        assert done.stdout.split() == [b"5000000"], done.stderr


def test_a_refused_connection_is_a_reset_for_the_client_and_told_as_refused(site: Site) -> None:
    with forwarding(site, "127.0.0.1:9") as (port, forward):
        done = site.host.run(["curl", "-sS", f"http://127.0.0.1:{port}/"], timeout=LIMIT)
        assert done.returncode in (7, 56), done.stderr
        forward.wait_output("refused.*connection refused", LIMIT)


def test_a_server_killed_in_mid_body_is_an_error_for_curl(site: Site) -> None:
    with website(site.guest, MEDIUM, rate="4m") as (web, _, nginx), forwarding(site, f"127.0.0.1:{web}") as (port, _):
        out = f"{site.host.make_tmp()}/part"
        with site.host.start(["curl", "-sS", "-o", out, f"http://127.0.0.1:{port}/large"]) as curl:
            site.host.wait_for(["test", "-s", out], LIMIT)
            nginx.kill()
            assert curl.wait(LIMIT) in (18, 56)


def test_an_agent_killed_in_mid_body_is_told_from_a_clean_end(level: Level) -> None:
    """The body has no length: its end is the connection's, and on vsock a killed peer's end looks clean."""
    body = "SYSTEM:echo 'HTTP/1.0 200 OK'; echo; head -c 100000 /dev/zero; sleep 1000"
    with ExitStack() as stack:
        site = stack.enter_context(serving(level, *RULES[level.name]))
        stack.enter_context(site.guest.start(["socat", "TCP-LISTEN:7002,bind=127.0.0.1,reuseaddr", body]))
        site.guest.wait_for(["sh", "-c", "ss -ltn | grep -q :7002"], LIMIT)
        port, forward = stack.enter_context(forwarding(site, "127.0.0.1:7002"))
        out = f"{site.host.make_tmp()}/part"
        curl = stack.enter_context(site.host.start(["curl", "-sS", "-o", out, f"http://127.0.0.1:{port}/"]))
        site.host.wait_for(["test", "-s", out], LIMIT)
        site.agent.kill()
        assert curl.wait(LIMIT) == 56, "the cut looked like an end"
        forward.wait_output("truncated|reset", LIMIT)


def test_a_restarted_agent_is_logged_in_to_again(level: Level) -> None:
    port = level.free_port()
    words = ["serve", "-v", "--listen", level.guest_listen(port), *RULES[level.name]]
    site = Site(level, level.guest.cli(words), level.guest_address(port))
    with site.agent, website(site.guest, 1000) as (web, _, _):
        site.agent.wait_output("listening on", LIMIT)
        with forwarding(site, f"127.0.0.1:{web}") as (local, forward):
            url = f"http://127.0.0.1:{local}/large"
            assert site.host.run(["curl", "-sSf", "-o", "/dev/null", url], timeout=LIMIT).returncode == 0
            site.agent.kill()
            forward.wait_output("session lost", LIMIT)
            with level.guest.cli(words) as again:
                again.wait_output("listening on", LIMIT)
                done = site.host.run(["curl", "-sSf", "-o", "/dev/null", url], timeout=LIMIT)
                assert done.returncode == 0, done.stderr


def test_ping_says_as_whom_the_agent_sees_us(site: Site) -> None:
    done = site.host.run_cli(["ping", "-c", "2", site.target], timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    cid = "local\\(1\\)" if site.level.name == "loopback" else "host\\(2\\)"
    assert re.search(f"sees us as vsock {cid}:\\d+", done.stdout.decode())


def test_nobody_listening_is_one_line_and_exit_69(level: Level) -> None:
    done = level.host.run_cli(["ping", level.guest_address(level.free_port())], timeout=LIMIT)
    assert done.returncode == 69
    assert done.stderr.count(b"\n") == 1
    assert b"nothing listens on port" in done.stderr


# --- copying


def test_a_file_arrives_with_its_digest_both_ways(site: Site) -> None:
    there, here = site.guest.make_tmp(), site.host.make_tmp()
    site.host.random_file(f"{here}/original", MEDIUM, seed=2)
    digest = site.host.sha256(f"{here}/original")
    done = site.host.run_cli(["cp", f"{here}/original", f"[{site.target}]:{there}/copy"], timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    assert site.guest.sha256(f"{there}/copy") == digest
    done = site.host.run_cli(["cp", f"[{site.target}]:{there}/copy", f"{here}/back"], timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    assert site.host.sha256(f"{here}/back") == digest
    for machine, folder in ((site.host, here), (site.guest, there)):
        machine.run(["rm", "-rf", folder], timeout=LIMIT)


def test_a_tree_arrives_with_its_digests_both_ways(site: Site) -> None:
    there, here = site.guest.make_tmp(), site.host.make_tmp()
    script = (
        "mkdir -p tree/empty tree/deep/er; for n in $(seq 200); do echo content $n > tree/deep/file$n; done;"
        "truncate -s 3M tree/sparse; printf x >> tree/sparse; ln -s deep/file1 tree/link; : > tree/nothing;"
        "chmod 750 tree/deep; chmod 640 tree/deep/file7"
    )
    assert site.host.run(["sh", "-c", script], timeout=LIMIT, cwd=here).returncode == 0
    done = site.host.run_cli(["cp", "-r", f"{here}/tree", f"[{site.target}]:{there}"], timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    assert tree_digest(site.guest, f"{there}/tree") == tree_digest(site.host, f"{here}/tree")
    done = site.host.run_cli(["cp", "-r", f"[{site.target}]:{there}/tree", f"{here}/back"], timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    assert tree_digest(site.host, f"{here}/back") == tree_digest(site.host, f"{here}/tree")


@pytest.mark.parametrize("killed", ["the sending agent", "the receiving agent"])
def test_a_side_killed_in_mid_file_ends_with_74_and_leaves_no_file(level: Level, killed: str) -> None:
    """The file is large enough for the kill to land in its middle."""
    with serving(level, *RULES[level.name]) as site:
        there, here = site.guest.make_tmp(), site.host.make_tmp()
        source, sink = (there, here) if killed == "the sending agent" else (here, there)
        sender = site.guest if source is there else site.host
        sender.random_file(f"{source}/large", 256 << 20, seed=3)
        words = (
            [f"[{site.target}]:{there}/large", here]
            if source is there
            else [f"{here}/large", f"[{site.target}]:{there}"]
        )
        receiver = site.host if sink is here else site.guest
        with site.host.cli(["cp", "-q", *words]) as copy:
            # A file without a name is seen among the descriptors of who writes it.
            receiver.wait_for(["sh", "-c", f"ls -l /proc/[0-9]*/fd 2>/dev/null | grep -q ' {sink}/#'"], LIMIT)
            site.agent.signal(SIGKILL)
            assert copy.wait(LIMIT) == 74, copy.stderr()
        assert copy.stderr().count(b"\n") == 1
        assert "large" not in receiver.listdir(sink)
        if sink is here:
            assert receiver.listdir(sink) == [], "half a file was left behind"
        for machine, folder in ((site.host, here), (site.guest, there)):
            machine.run(["rm", "-rf", folder], timeout=LIMIT)


def all_digest(machine: Machine, folder: str) -> str:
    """What -a keeps, as one digest: owners, times and links too."""
    script = (
        "find . -type f -print0 | sort -z | xargs -0 sha256sum;"
        "find . ! -type d -printf '%P %y %m %l %U %G %T@ %n\\n' | sort;"
        "find . -type d -printf '%P %m %U %G %T@\\n' | sort"
    )
    done = machine.run(["sh", "-c", f"({script}) | sha256sum"], timeout=LIMIT, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def test_an_archive_arrives_with_all_that_a_keeps_both_ways(site: Site) -> None:
    there, here = site.guest.make_tmp(), site.host.make_tmp()
    script = (
        "mkdir -p tree/deep/er; for n in $(seq 50); do echo content $n > tree/deep/file$n; done;"
        "ln tree/deep/file1 tree/another; ln -s nowhere tree/link; chown 65534:65534 tree/deep/file2;"
        "chmod 4755 tree/deep/file3; touch -d @-5.123456789 tree/deep/file4; head -c 200000 /dev/urandom > tree/large;"
        "truncate -s 30M tree/large; head -c 4096 /dev/urandom >> tree/large; touch -d @1.000000001 tree/deep tree"
    )
    assert site.host.run(["sh", "-c", script], timeout=LIMIT, cwd=here).returncode == 0
    expected = all_digest(site.host, f"{here}/tree")
    done = site.host.run_cli(["cp", "-a", f"{here}/tree", f"[{site.target}]:{there}"], timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    assert all_digest(site.guest, f"{there}/tree") == expected
    assert int(site.guest.run(["stat", "-c", "%b", f"{there}/tree/large"], timeout=LIMIT).stdout) < 1000
    done = site.host.run_cli(["cp", "-a", f"[{site.target}]:{there}/tree", f"{here}/back"], timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    assert all_digest(site.host, f"{here}/back") == expected


@dataclass
class Ends:
    """Two folders and the words of a copy between them."""

    source: Machine
    sink: Machine
    words: list[str]
    original: str
    copy: str


@pytest.fixture(params=["to the guest", "from the guest"])
def ends(site: Site, request: pytest.FixtureRequest) -> Iterator[Ends]:
    there, here = site.guest.make_tmp(), site.host.make_tmp()
    near, far = f"{here}/large", f"[{site.target}]:{there}/large"
    if request.param == "to the guest":
        ends = Ends(site.host, site.guest, [near, far], near, f"{there}/large")
    else:
        ends = Ends(site.guest, site.host, [far, near], f"{there}/large", near)
    ends.source.random_file(ends.original, MEDIUM, seed=6)
    yield ends
    for machine, folder in ((site.host, here), (site.guest, there)):
        machine.run(["rm", "-rf", folder], timeout=LIMIT)


def sent(machine: Machine, *words: str) -> int:
    """Copy, and how many bytes it says that it had to send."""
    done = machine.run_cli(["cp", "--stats", *words], timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    found = re.search(rb"(\d+) of them sent", done.stderr)
    assert found, done.stderr
    return int(found[1])


def test_delta_sends_what_changed_and_the_digest_is_that_of_the_new_file(site: Site, ends: Ends) -> None:
    assert sent(site.host, *ends.words) == MEDIUM
    script = f"head -c 100000 /dev/urandom | dd of={ends.original} bs=1000 seek=12345 conv=notrunc"
    assert ends.source.run(["sh", "-c", script], timeout=LIMIT).returncode == 0
    assert 100_000 <= sent(site.host, "--delta", *ends.words) < 1 << 20
    assert ends.sink.sha256(ends.copy) == ends.source.sha256(ends.original)


def test_a_copy_whose_client_was_killed_goes_on_where_it_stopped(site: Site, ends: Ends) -> None:
    folder = ends.copy.rpartition("/")[0]
    with site.host.cli(["cp", "-q", "--resume", "--bwlimit", "4M", *ends.words]) as copy:
        ends.sink.wait_for(["sh", "-c", f"test $(cat {folder}/.vsockfwd.*.part | wc -c) -gt 8000000"], LIMIT)
        copy.kill()
    assert "large" not in ends.sink.listdir(folder)
    ends.sink.wait_for(["sh", "-c", f"flock -n {folder}/.vsockfwd.*.part true"], LIMIT)
    assert sent(site.host, "--resume", *ends.words) <= MEDIUM - 7_000_000
    assert ends.sink.sha256(ends.copy) == ends.source.sha256(ends.original)
    assert ends.sink.listdir(folder) == ["large"]


# --- relay and datagrams


def test_a_plain_guest_says_hello_to_a_relay_on_the_host(level: Level) -> None:
    port = level.free_port()
    with level.guest.start([sys.executable, f"{HERE}/guest.py", str(port)]) as guest:
        guest.wait_output("listening", LIMIT)
        scheme, name, _ = level.guest_address(port).split(":")
        words = f"HYBRID-CONNECT:{name}:{port}" if scheme == "hybrid" else f"VSOCK-CONNECT:{name}:{port}"
        done = level.host.run_cli(["relay", "-", words], timeout=LIMIT, stdin=b"Hello, world! From the relay.\n")
        assert done.stdout == b"Hello, world! From the guest.\n", done.stderr
        assert guest.wait(LIMIT) == 0
        assert b"Hello, world! From the relay." in guest.stdout()


def test_a_plain_host_says_hello_to_a_relay_in_the_guest(level: Level) -> None:
    port = level.free_port()
    answer = "read line; echo Hello, world! From the relay, which read $line"
    with level.guest.cli(["relay", "-d", "-d", f"VSOCK-LISTEN:{port}", f"SYSTEM:'{answer}'"]) as relay:
        relay.wait_output("listening on", LIMIT)
        _, name, _ = level.guest_address(port).split(":")
        done = level.host.run([sys.executable, f"{HERE}/host.py", name, str(port)], timeout=LIMIT)
        assert b"From the relay, which read Hello, world! From the host." in done.stdout, relay.stderr()


def test_a_relay_from_tcp_to_vsock_carries_bytes_both_ways(level: Level) -> None:
    port = level.free_port()
    with ExitStack() as stack:
        echo = stack.enter_context(
            level.guest.start(["socat", "-d", "-d", f"VSOCK-LISTEN:{port},fork", "SYSTEM:head -c 1000000 | sha256sum"])
        )
        echo.wait_output("listening on", LIMIT)
        scheme, name, _ = level.guest_address(port).split(":")
        words = f"HYBRID-CONNECT:{name}:{port}" if scheme == "hybrid" else f"VSOCK-CONNECT:{name}:{port}"
        relay = stack.enter_context(
            level.host.cli(["relay", "-d", "-d", f"TCP-LISTEN:{port},bind=127.0.0.1,fork", words])
        )
        relay.wait_output("listening on", LIMIT)
        folder = level.host.make_tmp()
        level.host.random_file(f"{folder}/million", 1_000_000, seed=4)
        ask = f"socat -t60 - TCP:127.0.0.1:{port} < {folder}/million"
        done = level.host.run(["sh", "-c", ask], timeout=LIMIT)
        assert done.stdout.split()[0].decode() == level.host.sha256(f"{folder}/million"), done.stderr


@contextmanager
def tunnel(site: Site, flag: str, port: int) -> Iterator[tuple[Machine, Machine, str]]:
    """`dgram` to a port of 127.0.0.1: yields the machine where it listens, the one with that port, and where."""
    here, there = (site.host, site.guest) if flag == "-L" else (site.guest, site.host)
    with site.host.cli(["dgram", "-v", flag, f"0:127.0.0.1:{port}", site.target]) as dgram:
        found = dgram.wait_output(r"listening on udp:127\.0\.0\.1:(\d+)", LIMIT)
        yield here, there, found[1].decode()


@pytest.mark.parametrize("flag", ["-L", "-R"])
def test_ten_thousand_paced_datagrams_cross_whole_and_none_is_lost(site: Site, flag: str) -> None:
    port = 7003 if flag == "-L" else 7004
    with tunnel(site, flag, port) as (here, there, listening):
        with there.start([sys.executable, "-c", UDP_ECHO, str(port)]) as echo:
            echo.wait_output("ready", LIMIT)
            done = here.python(UDP_ASK, listening, "10000", timeout=LIMIT)
            assert done.stdout == b"same 10000\n", done.stderr


@pytest.mark.parametrize("flag", ["-L", "-R"])
def test_dig_asks_a_dns_server_on_the_other_side(site: Site, flag: str) -> None:
    port = 7053 if flag == "-L" else 7054
    flags = [
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--bind-interfaces",
        "--user=",
    ]
    flags += ["--listen-address=127.0.0.1", f"--port={port}", "--address=/guest.test/192.0.2.7", "--pid-file="]
    dig = ["dig", "@127.0.0.1", "+short", "+tries=5", "+time=5"]
    with tunnel(site, flag, port) as (here, there, listening), there.start(["dnsmasq", *flags]):
        there.wait_for([*dig, "-p", str(port), "guest.test"], LIMIT)
        for name in ("a.guest.test", "b.guest.test"):
            done = here.run([*dig, "-p", listening, name], timeout=LIMIT)
            assert done.stdout.split() == [b"192.0.2.7"], (done.stdout, done.stderr)


@pytest.mark.parametrize("level", ["loopback", "host_and_guest"], indirect=True)
def test_datagrams_cross_without_an_agent_where_vsock_keeps_boundaries(level: Level) -> None:
    port = level.free_port()
    way = level.guest_address(port).replace("vsock:", "vsock-seqpacket:", 1)
    with ExitStack() as stack:
        echo = stack.enter_context(level.guest.start([sys.executable, "-c", UDP_ECHO, "7005"]))
        echo.wait_output("ready", LIMIT)
        far = stack.enter_context(level.guest.cli(["dgram", "-v", f"vsock-seqpacket:any:{port}", "udp:127.0.0.1:7005"]))
        far.wait_output("listening on", LIMIT)
        near = stack.enter_context(level.host.cli(["dgram", "-v", "udp:127.0.0.1:0", way]))
        listening = near.wait_output(r"listening on udp:127\.0\.0\.1:(\d+)", LIMIT)[1].decode()
        done = level.host.python(UDP_ASK, listening, "2000", timeout=LIMIT)
        assert done.stdout == b"same 2000\n", (done.stderr, near.stderr(), far.stderr())


# --- who is let in


def test_an_unprivileged_user_of_the_host_is_refused_by_a_bare_agent_and_reads_what_would_let_it_in(
    host_and_guest: Level,
) -> None:
    with serving(host_and_guest) as site:
        done = site.host.run_cli(["ping", "-c", "1", site.target], timeout=LIMIT, user="nobody")
        assert done.returncode == 77, done.stderr
        assert b"--allow-cid host" in done.stderr
        assert site.host.run_cli(["ping", "-c", "1", site.target], timeout=LIMIT).returncode == 0
        site.agent.wait_output("turned away", LIMIT)
    with serving(host_and_guest, "--allow-cid", "host") as site:
        done = site.host.run_cli(["ping", "-c", "1", site.target], timeout=LIMIT, user="nobody")
        assert done.returncode == 0, done.stderr


def test_a_local_user_of_the_guest_is_refused_by_a_bare_agent(loopback: Level) -> None:
    with serving(loopback) as site:
        for user in ("nobody", None):
            done = site.guest.run_cli(["ping", "-c", "1", site.target], timeout=LIMIT, user=user)
            assert done.returncode == 77, done.stderr
            assert b"--allow-cid local" in done.stderr


def test_an_agent_on_the_host_gives_its_guest_nothing_until_a_rule_names_it(level: Level) -> None:
    port = level.free_port()
    listen, target = level.host_listen(port), level.host_address(port)
    rule = {"loopback": ["--allow-cid", "local"], "host_and_guest": ["--allow-cid", "3"], "hybrid": ["--allow-guest"]}
    if level.name == "hybrid":
        refused = level.host.run_cli(["serve", "--listen", listen], timeout=LIMIT)
        assert refused.returncode == 77
        assert b"--allow-guest" in refused.stderr
    else:
        with level.host.cli(["serve", "--listen", listen]) as agent:
            agent.wait_output("listening on", LIMIT)
            done = level.guest.run_cli(["ping", "-c", "1", target], timeout=LIMIT)
            assert done.returncode == 77, done.stderr
    with level.host.cli(["serve", "--listen", listen, *rule[level.name]]) as agent:
        agent.wait_output("listening on", LIMIT)
        done = level.guest.run_cli(["ping", "-c", "1", target], timeout=LIMIT)
        assert done.returncode == 0, done.stderr


def test_loopback_that_is_missing_is_never_dialled(host_and_guest: Level) -> None:
    """A connect to CID 1 would leave for the hypervisor: it must be refused before it is tried."""
    done = host_and_guest.guest.run_cli(["ping", "vsock:local"], timeout=LIMIT)
    assert done.returncode == 69
    assert b"modprobe vsock_loopback" in done.stderr
