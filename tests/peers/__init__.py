"""Real peers for tests: programs of Debian's that are installed, or a reason why a test cannot run.

On a user's machine a missing peer skips the test; where CI=true it fails, since .ci/run installs them all.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
from typing import NoReturn

import pytest

PACKAGES = {
    "socat": "socat",
    "nginx": "nginx-light",
    "curl": "curl",
    "haproxy": "haproxy",
    "openssl": "openssl",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
    "redis-server": "redis-server",
    "redis-cli": "redis-tools",
    "rsync": "rsync",
    "dig": "dnsutils",
    "dnsmasq": "dnsmasq-base",
    "iperf3": "iperf3",
    "ip": "iproute2",
    "mandoc": "mandoc",
    "scp": "openssh-client",
    "sftp": "openssh-client",
    "bash": "bash",
    "zsh": "zsh",
    "fish": "fish",
    "systemd-analyze": "systemd",
    "systemd-socket-activate": "systemd",
}


def need(program: str) -> str:
    """The path of a program; skips the test where it is not installed, fails it in CI."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin:/usr/local/sbin")
    if path is None:
        _missing(f"{program} is not installed (Debian: apt-get install {PACKAGES[program]})")
    return path


def need_user(name: str) -> None:
    """As `need`, of a system user that a program's package makes."""
    try:
        pwd.getpwnam(name)
    except KeyError:
        _missing(f"the user {name} is missing, which its package makes")


def need_network_namespaces() -> str:
    """The path of ip(8), for who may make network namespaces, as root does."""
    if os.geteuid() != 0:
        _missing("network namespaces are root's to make")
    return need("ip")


def need_module(name: str) -> None:
    """As `need`, of a Python module that only tests use."""
    if importlib.util.find_spec(name) is None:
        _missing(f"the module {name} is not installed (make test installs what tests need)")


def _missing(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
