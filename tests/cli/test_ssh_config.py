"""OpenSSH by what `ssh-config` prints: a guest of a VMM with a hybrid socket, whose sshd is a real one."""

from __future__ import annotations

import contextlib
import filecmp
import getpass
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.process import Server, run
from tests.cli.servers import sshd
from tests.cli.vmm import Vmm
from tests.guests.machines import process
from tests.peers import need, need_network_namespaces

SECONDS = 30.0


class Guest:
    """A guest with a name, the ssh configuration that reaches it, and the folder where both are."""

    def __init__(self, name: str, socket: Path, key: Path, folder: Path) -> None:
        self.name = name
        self.socket = socket
        self.key = key
        self.folder = folder
        self.config = self.configure()

    def configure(self, *words: str, more: str = "") -> Path:
        """A configuration for ssh: what the command prints, then what a user has there."""
        told = run("ssh-config", *words, self.name)
        assert told.returncode == 0, told.stderr
        path = self.folder / f"config{len(words)}"
        path.write_text(
            f"{told.stdout}\n{more}\nHost *\n  BatchMode yes\n  StrictHostKeyChecking no\n  LogLevel ERROR\n"
            f"  UserKnownHostsFile {self.folder}/known_hosts\n  IdentityFile {self.key}\n"
        )
        return path


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    folder = tmp_path_factory.mktemp("ssh")
    name = f"guest{os.getpid()}"
    path = folder / f"{name}.vsock"
    with contextlib.ExitStack() as stack:
        port, key = stack.enter_context(sshd(folder))

        def dial(host: socket.socket) -> socket.socket:
            inside = socket.create_connection(("127.0.0.1", port))
            host.sendall(b"OK 1073741824\n")
            return inside

        stack.enter_context(Vmm(path, dial))
        stack.enter_context(process("cloud-hypervisor", "--vsock", f"cid=3,socket={path}"))
        yield Guest(name, path, key, folder)


def done(*command: str, input: str | None = None) -> str:
    """What a command said; it must succeed, and complain of nothing."""
    found = subprocess.run(command, input=input, text=True, capture_output=True, timeout=SECONDS, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    return found.stdout


def test_ssh_scp_sftp_and_rsync_know_a_guest_by_its_name(guest: Guest, tmp_path: Path):
    config = ("-F", str(guest.config))
    assert "ProxyUseFdpass yes" in guest.config.read_text()
    assert done(need("ssh"), *config, guest.name, "echo hello") == "hello\n"
    one, two, three, four = (tmp_path / name for name in ("one", "two", "three", "four"))
    one.write_bytes(os.urandom(1_000_000))
    done(need("scp"), "-q", *config, str(one), f"{guest.name}:{two}")
    done(need("sftp"), "-q", *config, "-b", "-", guest.name, input=f"get {two} {three}\n")
    done(need("rsync"), "-e", shlex.join(["ssh", *config]), f"{guest.name}:{three}", str(four))
    assert filecmp.cmp(one, four, shallow=False)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[tuple[list[str], str]]:
    """Another machine, a network namespace: the words that run a command there, and this machine's address from it."""
    ip = need_network_namespaces()
    name, here, there = f"vf{os.getpid()}", f"vfa{os.getpid() % 100_000}", f"vfb{os.getpid() % 100_000}"
    net = f"10.213.{os.getpid() % 250}"
    try:
        for words in (
            f"netns add {name}", f"link add {here} type veth peer name {there}", f"link set {there} netns {name}",
            f"addr add {net}.1/30 dev {here}", f"link set {here} up",
            f"-n {name} addr add {net}.2/30 dev {there}", f"-n {name} link set {there} up",
        ):  # fmt: skip
            subprocess.run([ip, *words.split()], check=True)
        yield [ip, "netns", "exec", name], f"{net}.1"
    finally:
        subprocess.run([ip, "link", "del", here], check=False)
        subprocess.run([ip, "netns", "del", name], check=False)


@pytest.mark.dist
def test_another_machine_reaches_the_guest_by_way_of_this_one(
    guest: Guest, elsewhere: tuple[list[str], str], tmp_path: Path
):
    inside, address = elsewhere
    ours = tmp_path / "bin"
    ours.mkdir()
    (ours / "vsockfwd").write_text(f'#!/bin/sh\nexec {sys.executable} -m vsockfwd "$@"\n')
    (ours / "vsockfwd").chmod(0o755)
    with sshd(tmp_path, address) as (port, key), Server("forward", "tcp:0", f"hybrid:{guest.socket}:22") as forward:
        # The one who comes from elsewhere has the key to both, and a name for this machine.
        more = f"Host vmhost\n  HostName {address}\n  Port {port}\n  IdentityFile {key}\n  User {getpass.getuser()}\n"
        config = guest.configure("--jump", "vmhost", more=more)
        text = config.read_text().replace("ProxyCommand ssh ", f"ProxyCommand ssh -F {config} ")
        config.write_text(text.replace("'vsockfwd ", f"'{ours}/vsockfwd "))
        assert done(*inside, need("ssh"), "-F", str(config), guest.name, "echo by name") == "by name\n"
        jumped = done(
            *inside, need("ssh"), "-F", str(config), "-J", "vmhost", "-p", str(forward.port), "127.0.0.1", "echo by -J"
        )
        assert jumped == "by -J\n"


def test_a_guest_whose_sshd_has_no_vsock_is_reached_through_its_agent():
    told = run("ssh-config", "--agent", "--user", "root", "--auth-key", "keys/web key", "3").stdout
    assert f"forward --auth-key '{os.path.abspath('keys/web key')}' -W localhost:22 3\n" in told
    assert "ProxyUseFdpass" not in told
    assert told.startswith("# Made by `vsockfwd ssh-config`.\n\nHost vm3\n  HostKeyAlias vsockfwd-vm3\n")
    assert told.endswith("  User root\n")
