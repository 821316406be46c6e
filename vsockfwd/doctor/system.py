"""The seam between the doctor and the machine: every look at the system is a method here, and none of them connects.

Binding a socket to CID 1 asks this machine's kernel alone, as do making a socket and the ioctl for the own CID.
"""

from __future__ import annotations

import os
import platform
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from vsockfwd.guests.guest import Guest
from vsockfwd.guests.machine import Machine
from vsockfwd.transport.vsock import buffer_sizes, own_cid, why_no_loopback

LIMIT = 1 << 22
"""Bytes that are read of any file: modules.dep has the most."""

CAP_NET_BIND_SERVICE = 10


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose a file is, and its permission bits."""

    uid: int
    mode: int


class System:
    """This machine. Paths are absolute; `root` stands in front of them, for tests."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    # --- files

    def path(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def text(self, path: str) -> str:
        """A file's text, '' where it cannot be read."""
        try:
            with open(self.path(path), "rb") as file:
                return file.read(LIMIT).decode("utf-8", "replace")
        except OSError:
            return ""

    def names(self, path: str) -> list[str]:
        try:
            return sorted(os.listdir(self.path(path)))
        except OSError:
            return []

    def exists(self, path: str) -> bool:
        return self.path(path).exists()

    def may(self, path: str, mode: int) -> bool:
        """Whether this user may read, write (os.R_OK, os.W_OK) it."""
        return os.access(self.path(path), mode)

    def owner(self, path: str) -> Owner | None:
        try:
            status = self.path(path).stat()
        except OSError:
            return None
        return Owner(status.st_uid, status.st_mode & 0o7777)

    # --- the kernel and vsock

    @property
    def release(self) -> str:
        return platform.release()

    @property
    def architecture(self) -> str:
        return platform.machine()

    def vsock_errno(self) -> int:
        """0, or why the kernel makes no AF_VSOCK socket; for a Python that knows the family."""
        try:
            socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
        except OSError as error:
            return error.errno or -1
        return 0

    def loopback(self) -> bool:
        return why_no_loopback() is None

    def own_cid(self) -> int | None:
        return own_cid()

    def buffers(self) -> tuple[int, int, bool]:
        """Bytes of a vsock socket's buffer and its maximum by default; whether the size that is wanted can be had."""
        return buffer_sizes()

    # --- this process

    @property
    def uid(self) -> int:
        return os.geteuid()

    def user(self) -> str:
        """This user as commands name it."""
        import pwd

        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return str(self.uid)

    def capability(self, number: int) -> bool:
        """Whether this process has a capability (capabilities(7))."""
        for line in self.text("/proc/self/status").splitlines():
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> number & 1)
        return self.uid == 0

    @property
    def python(self) -> str:
        """The interpreter, as it is to be named."""
        return f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})"

    def python_knows_vsock(self) -> bool:
        return hasattr(socket, "AF_VSOCK")

    def now(self) -> float:
        """Seconds since 1970 by the system's clock."""
        return time.time()

    # --- others

    def guests(self) -> list[Guest]:
        return Machine(self.root, ask=False).guests()
