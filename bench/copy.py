"""Copies, tmpfs to tmpfs, through an agent on a UNIX socket, against rsync's daemon, scp and socat.

    python -m bench.copy [ROUNDS [CASE …]]

Every figure is a whole command, from its start to its end, Python's start and all. rsync's daemon, sshd and socat
listen on loopback with configuration and keys of their own, below a folder in /dev/shm that goes with the run. What
vsockfwd and rsync copied is verified by them; socat verifies nothing and is there as the ceiling. All copies are
compared with their source afterwards, by cmp(1) or diff(1), outside of the time.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.harness import Command, Running, Table, accepts, free_port, running, setting, version, vsockfwd

MIB = 1 << 20
GIB = 1 << 30
BULK = 2 * GIB
FILES = 10_000
FILE_SIZE = 2048
CHANGED = MIB
HOLE = 100 * GIB
CIPHER = "aes128-gcm@openssh.com"

OURS = "vsockfwd cp, to the agent"
FROM = "vsockfwd cp, from the agent"
RSYNC = "rsync daemon"
SCP = f"scp -c {CIPHER}"
SOCAT = "socat -u -b1048576, unverified"


@dataclass
class Site:
    """Servers that write below `there`, and the ways to reach them."""

    folder: Path
    agent: Running
    rsync_port: int
    sshd: Running | None
    rsync: Running | None

    @property
    def there(self) -> Path:
        return self.folder / "there"

    def ours(self, *words: str) -> list[str]:
        """A command of ours in which `@path` is below `there`."""
        target = f"[unix:{self.folder}/agent.sock]:{self.there}/"
        return vsockfwd("cp", "-q", *(target + word[1:] if word.startswith("@") else word for word in words))

    def rsync_command(self, *words: str) -> list[str]:
        target = f"rsync://127.0.0.1:{self.rsync_port}/there/"
        return ["rsync", *(target + word[1:] if word.startswith("@") else word for word in words)]

    def scp_command(self, *words: str) -> list[str]:
        target = f"bench:{self.there}/"
        options = ["-F", str(self.folder / "ssh_config"), "-q", "-c", CIPHER]
        return ["scp", *options, *(target + word[1:] if word.startswith("@") else word for word in words)]


@contextlib.contextmanager
def rsync_daemon(folder: Path, port: int) -> Iterator[Running | None]:
    if not shutil.which("rsync"):
        yield None
        return
    config = folder / "rsyncd.conf"
    config.write_text(
        f"port = {port}\naddress = 127.0.0.1\nuse chroot = no\npid file = {folder}/rsyncd.pid\n"
        f"lock file = {folder}/rsyncd.lock\nlog file = {folder}/rsyncd.log\n"
        f"[there]\npath = {folder}/there\nread only = no\nuid = {os.getuid()}\ngid = {os.getgid()}\n"
    )
    command = ["rsync", "--daemon", "--no-detach", f"--config={config}"]
    with running(command, ready=accepts(socket.AF_INET, ("127.0.0.1", port))) as started:
        yield started


@contextlib.contextmanager
def ssh_server(folder: Path) -> Iterator[Running | None]:
    """An sshd of our own, its keys made for this run."""
    program = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin")
    if not program or not shutil.which("scp"):
        yield None
        return
    keys = folder / "keys"
    keys.mkdir(mode=0o700)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", keys / name], check=True)
    port = free_port()
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {keys}/host\nPidFile none\nUsePAM no\nStrictModes no\n"
        f"AuthorizedKeysFile {keys}/user.pub\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
        "Subsystem sftp internal-sftp\nLogLevel QUIET\n"
    )
    (folder / "ssh_config").write_text(
        f"Host bench\n  HostName 127.0.0.1\n  Port {port}\n  IdentityFile {keys}/user\n  IdentitiesOnly yes\n"
        f"  IdentityAgent none\n  StrictHostKeyChecking no\n  UserKnownHostsFile {folder}/known_hosts\n"
        "  LogLevel ERROR\n"
    )
    command = [program, "-D", "-e", "-f", str(folder / "sshd_config")]
    with running(command, ready=accepts(socket.AF_INET, ("127.0.0.1", port))) as started:
        yield started


@contextlib.contextmanager
def agent(folder: Path) -> Iterator[Running]:
    path = str(folder / "agent.sock")
    command = vsockfwd("serve", "-q", "--listen", f"unix:{path}")
    with running(command, ready=accepts(socket.AF_UNIX, path)) as started:
        yield started


@contextlib.contextmanager
def site(folder: Path) -> Iterator[Site]:
    (folder / "there").mkdir(exist_ok=True)
    port = free_port()
    with agent(folder) as ours, rsync_daemon(folder, port) as rsync, ssh_server(folder) as sshd:
        yield Site(folder, ours, port, sshd, rsync)


def timed(*commands: Command, server: Running | None = None) -> tuple[float, float]:
    """Seconds until all commands, started beside each other, have ended; CPU seconds of them and of a server."""
    served = server.cpu_seconds() if server else 0.0
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    processes = [subprocess.Popen(command, stdin=subprocess.DEVNULL) for command in commands]
    codes = [process.wait() for process in processes]
    seconds = time.monotonic() - began
    if any(codes):
        raise RuntimeError(f"{commands}: {codes}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if server:
        time.sleep(0.1)  # a session's process is counted once its parent has reaped it
        used += server.cpu_seconds() - served
    return seconds, used


def random_file(path: Path, size: int) -> None:
    """Content of which no two mebibytes are alike."""
    block = os.urandom(MIB)
    with path.open("wb") as file:
        for number in range(size // MIB):
            turn = number * 4099 % MIB
            file.write(block[turn:] + block[:turn])


def random_tree(path: Path, files: int, size: int = FILE_SIZE) -> None:
    """So many files, a hundred in a directory."""
    content = os.urandom(size + files)
    for number in range(files):
        folder = path / f"{number // 100:04}"
        if number % 100 == 0:
            folder.mkdir(parents=True)
        (folder / f"file-{number}").write_bytes(content[number : number + size])


def forget(path: Path) -> None:
    """Remove what a contender wrote."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_same(one: Path, other: Path) -> None:
    command = ["diff", "-rq", one, other] if one.is_dir() else ["cmp", "-s", one, other]
    if subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode:
        raise RuntimeError(f"{one} and {other} differ")


Contender = Callable[[], tuple[float, float]]


def through_socat(source: Path, sink: Path) -> tuple[float, float]:
    port = free_port()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    listen = f"TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr"
    with subprocess.Popen(["socat", "-u", "-b1048576", listen, f"CREATE:{sink}"]) as receiver:
        while not listening(port):
            time.sleep(0.001)
        began = time.monotonic()
        subprocess.run(["socat", "-u", "-b1048576", f"OPEN:{source}", f"TCP:127.0.0.1:{port}"], check=True)
        receiver.wait()
        seconds = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def listening(port: int) -> bool:
    """Whether somebody listens, without a connection that would be taken for the sender's."""
    wanted = f"0100007F:{port:04X} 00000000:0000 0A"
    return wanted in Path("/proc/net/tcp").read_text()


def bulk(at: Site, rounds: int) -> str:
    table = Table("2 GiB, one file", "GiB/s", OURS)
    here, there = at.folder / "bulk", at.there / "bulk"
    random_file(here, BULK)
    contenders: dict[str, Contender] = {
        OURS: lambda: timed(at.ours(str(here), "@bulk"), server=at.agent),
        FROM: lambda: timed(vsockfwd("cp", "-q", f"[unix:{at.folder}/agent.sock]:{here}", str(there)), server=at.agent),
    }
    if at.rsync:
        contenders[RSYNC] = lambda: timed(at.rsync_command("-tp", str(here), "@bulk"), server=at.rsync)
    if at.sshd:
        contenders[SCP] = lambda: timed(at.scp_command("-p", str(here), "@bulk"), server=at.sshd)
    if shutil.which("socat"):
        contenders[SOCAT] = lambda: through_socat(here, there)
    contenders["cp, no second process"] = lambda: timed(["cp", str(here), str(there)])
    for number in range(rounds + 1):
        for name, contender in contenders.items():
            seconds, used = contender()
            if number:
                table.add(name, BULK / seconds / GIB, used / (BULK / GIB))
            else:  # a round to warm up: memory that was never used before comes slowly
                check_same(here, there)
            forget(there)
    forget(here)
    return table.markdown()


def small(at: Site, rounds: int) -> str:
    """10,000 files, and then the same again, unchanged."""
    new = Table(f"{FILES:,} files of 2 KB", "files/s", OURS)
    again = Table("The same tree again, unchanged", "files/s", f"{OURS}, --update")
    here = at.folder / "small"
    random_tree(here, FILES)
    ours = at.ours("-r", str(here), "@small")
    update = at.ours("-r", "--update", "-T", str(here), "@small")
    rsync = at.rsync_command("-rtp", f"{here}/", "@small")
    for number in range(rounds):
        contenders: dict[str, list[tuple[Table, str, Command, Running | None]]] = {
            "ours": [(new, OURS, ours, at.agent), (again, again.ours, update, at.agent)],
            "from": [
                (new, FROM, vsockfwd("cp", "-qr", f"[unix:{at.folder}/agent.sock]:{here}", str(at.there)), at.agent)
            ],
        }
        if at.rsync:
            contenders["rsync"] = [(new, RSYNC, rsync, at.rsync), (again, RSYNC, rsync, at.rsync)]
        if at.sshd:
            contenders["scp"] = [(new, f"{SCP} -r", at.scp_command("-pr", str(here), "@small"), at.sshd)]
        contenders["cp"] = [(new, "cp -r, no second process", ["cp", "-r", str(here), str(at.there)], None)]
        for runs in contenders.values():
            for table, name, command, server in runs:
                seconds, _ = timed(command, server=server)
                table.add(name, FILES / seconds)
            if number == 0:
                check_same(here, at.there / "small")
            forget(at.there / "small")
    forget(here)
    return new.markdown() + "\n" + again.markdown()


def delta(at: Site, rounds: int) -> str:
    table = Table("1 MiB changed in 2 GiB", "GiB/s", f"{OURS}, --delta")
    here = at.folder / "changing"
    random_file(here, BULK)
    contenders = {table.ours: (at.ours("--delta", str(here), "@ours"), at.agent)}
    if at.rsync:
        command = at.rsync_command("-tp", "--no-whole-file", str(here), "@rsync")
        contenders[f"{RSYNC}, --no-whole-file"] = (command, at.rsync)
    sinks = [at.there / "ours", at.there / "rsync"]
    for sink in sinks[: len(contenders)]:
        shutil.copy2(here, sink)
    chance = random.Random(4)
    for _ in range(rounds):
        with here.open("r+b") as file:
            file.seek(chance.randrange(BULK - CHANGED))
            file.write(os.urandom(CHANGED))
        for name, (command, server) in contenders.items():
            seconds, used = timed(command, server=server)
            table.add(name, BULK / seconds / GIB, used / (BULK / GIB))
    for sink in sinks[: len(contenders)]:
        check_same(here, sink)
        forget(sink)
    forget(here)
    return table.markdown()


def hole(at: Site, rounds: int) -> str:
    here, there = at.folder / "hole", at.there / "hole"
    offsets = [number * (HOLE // 10) + 12_345 * number for number in range(10)]
    with here.open("wb") as file:
        for offset in offsets:
            file.seek(offset)
            file.write(os.urandom(MIB))
        file.truncate(HOLE)
    lines = [
        "### 100 GiB of hole with 10 MiB of data",
        "",
        "| | seconds, round by round | KiB allocated at the source | in the copy |",
        "|---|---|---|---|",
    ]
    for name, command in {
        OURS: at.ours(str(here), "@hole"),
        FROM: vsockfwd("cp", "-q", f"[unix:{at.folder}/agent.sock]:{here}", str(there)),
    }.items():
        seconds = []
        for _ in range(rounds):
            forget(there)
            seconds.append(timed(command)[0])
        for offset in (*offsets, HOLE - MIB):
            with here.open("rb") as one, there.open("rb") as other:
                if os.pread(one.fileno(), 2 * MIB, offset) != os.pread(other.fileno(), 2 * MIB, offset):
                    raise RuntimeError("the copy differs")
        told = ", ".join(f"{second:.2f}" for second in seconds)
        allocated = [path.stat().st_blocks // 2 for path in (here, there)]
        lines.append(f"| {name} | {told} | {allocated[0]:,} | {allocated[1]:,} |")
    forget(here)
    forget(there)
    return "\n".join(lines) + "\n"


def peak(pid: int) -> int:
    """The most memory that a process has had, in KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise RuntimeError("no VmHWM")


def memory(at: Site, rounds: int) -> str:
    """Each count with an agent of its own; the copy's client is asked until it has gone."""
    lines = [
        "### Memory, by the number of files",
        "",
        "| files of 100 bytes | way | seconds | client, peak RSS, KiB | agent, peak RSS, KiB |",
        "|---|---|---|---|---|",
    ]
    for count in (1000, 10_000, 100_000):
        here = at.folder / "many"
        random_tree(here, count, 100)
        for way in ("to the agent", "from the agent"):
            folder = at.folder / f"memory-{count}-{way[0]}"
            folder.mkdir()
            path = f"[unix:{folder}/agent.sock]:"
            words = [str(here), f"{path}{folder}/there"] if way[0] == "t" else [f"{path}{here}", f"{folder}/there"]
            with agent(folder) as started:
                began = time.monotonic()
                highest = 0
                with subprocess.Popen(vsockfwd("cp", "-qr", *words)) as client:
                    while client.poll() is None:
                        with contextlib.suppress(OSError, RuntimeError):
                            highest = max(highest, peak(client.pid))
                        time.sleep(0.005)
                seconds = time.monotonic() - began
                if client.returncode:
                    raise RuntimeError(f"the copy of {count} files failed")
                served = peak(started.processes[0].pid)
            lines.append(f"| {count:,} | {way} | {seconds:.2f} | {highest:,} | {served:,} |")
            forget(folder)
        forget(here)
    return "\n".join(lines) + "\n"


def beside(at: Site, rounds: int) -> str:
    """Whether more connections would help: the halves of what one command copies, by two commands at once."""
    tables = []
    for title, make in {
        "Two files of 1 GiB": lambda path: [random_file(path / "big", GIB) for path in halves(path)],
        f"{FILES:,} files of 2 KB": lambda path: [random_tree(path / "tree", FILES // 2) for path in halves(path)],
        "2,000 files of 512 KiB": lambda path: [random_tree(path / "tree", 1000, MIB // 2) for path in halves(path)],
    }.items():
        here, there = at.folder / "parallel", at.there / "parallel"
        here.mkdir()
        make(here)
        size = sum(path.stat().st_size for path in here.rglob("*") if path.is_file())
        table = Table(f"{title}: two commands at once against one", "MiB/s", "two commands")
        for _ in range(rounds):
            for name, commands in {
                "one command": [at.ours("-r", "-T", str(here), "@parallel")],
                "two commands": [at.ours("-r", "-T", str(half), f"@parallel/{half.name}") for half in halves(here)],
            }.items():
                there.mkdir()
                seconds, used = timed(*commands, server=at.agent)
                table.add(name, size / seconds / MIB, used / (size / GIB))
                forget(there)
        forget(here)
        tables.append(table.markdown())
    return "\n".join(tables)


def halves(path: Path) -> list[Path]:
    found = [path / name for name in ("one", "two")]
    for half in found:
        half.mkdir(exist_ok=True)
    return found


CASES: dict[str, Callable[[Site, int], str]] = {
    "bulk": bulk,
    "small": small,
    "delta": delta,
    "hole": hole,
    "memory": memory,
    "beside": beside,
}


def tables(rounds: int = 5, cases: list[str] | None = None) -> Iterator[str]:
    """Run all cases, or those that are named: Markdown, case by case."""
    peers = "; ".join((version("rsync", "--version"), version("ssh", "-V"), version("socat", "-V")))
    yield f"## Copying, tmpfs to tmpfs\n\n{setting()}. {peers}.\n"
    with tempfile.TemporaryDirectory(prefix="vsockfwd-bench-", dir="/dev/shm") as name:
        with site(Path(name)) as at:
            for case in cases or CASES:
                yield CASES[case](at, rounds)


def main(rounds: int = 5, cases: list[str] | None = None) -> str:
    """The same at once."""
    return "\n".join(tables(rounds, cases))


if __name__ == "__main__":
    for table in tables(int(sys.argv[1]) if len(sys.argv) > 1 else 5, sys.argv[2:]):
        print(table, flush=True)
