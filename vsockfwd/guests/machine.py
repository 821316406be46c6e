"""Looking at this machine for guests: processes, libvirt's notes, machined. It reads, and connects to no guest.

The thing to understand first: whose a process is stands in /proc/PID/status, and not in who owns /proc/PID (root owns
that of every process that may not be dumped). A set-user-ID program runs as root with the words of whoever started it,
so it is the real uid that counts, and root's are those processes alone whose group ids are root's as well.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pwd
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vsockfwd.address import AGENT_PORT, UNIX_PATH_LIMIT, HybridAddress, VsockAddress
from vsockfwd.guests.command_lines import (
    Seen,
    name_of_socket,
    read_command_line,
    read_firecracker_config,
    read_libvirt_status,
)
from vsockfwd.guests.guest import Guest, way_to_a_vsock

LIMIT = 1 << 20
"""Bytes that are read of any file, or taken of machined's answer."""

PATIENCE = 1.0
"""Seconds that machined may take to answer."""

NOBODY = -1
"""The owner of what nobody answers for."""

_ACCEPTS = 0x1_0000
"""__SO_ACCEPTCON in /proc/net/unix: the socket is listened on."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process that runs guests."""

    pid: int
    owner: int
    seen: tuple[Seen, ...]


@dataclass(frozen=True, slots=True)
class Machine:
    """The system below `root`, which tests put in another place; `runtime` is the user's runtime directory.

    `ask`: whether machined is asked, which takes a connection to its socket.
    """

    root: Path = Path("/")
    runtime: str = dataclasses.field(default_factory=lambda: os.environ.get("XDG_RUNTIME_DIR", ""))
    ask: bool = True

    @property
    def proc(self) -> Path:
        return self.root / "proc"

    def guests(self) -> list[Guest]:
        """Every guest that can be seen, by name."""
        processes = list(self._processes())
        libvirt = dict(self._libvirt())
        devices = {
            (process.owner, self._full(process.pid, seen.device)): (process, seen)
            for process in processes
            for seen in process.seen
            if seen.vmm == "vhost-device-vsock" and seen.device
        }
        taken: set[tuple[int, str]] = set()
        found: list[Guest] = []
        for process in processes:
            for seen in process.seen:
                if seen.vmm == "vhost-device-vsock":
                    continue
                key = (process.owner, self._full(process.pid, seen.device)) if seen.device else None
                if key in devices:
                    assert key is not None
                    taken.add(key)
                    device, its = devices[key]
                    guest = self._guest(process, dataclasses.replace(its, vmm=seen.vmm, name=seen.name), device.pid)
                else:
                    guest = self._guest(process, seen)
                found.append(_noted(guest, *libvirt[process.pid]) if process.pid in libvirt else guest)
        found += [self._guest(*device) for key, device in devices.items() if key not in taken]
        found += [
            self._guest(process, seen)
            for process in processes
            for seen in process.seen
            if seen.vmm == "vhost-device-vsock" and not seen.device
        ]
        if self.ask:
            self._add_machined(found)
        return sorted(found, key=lambda guest: (guest.name or "~", guest.pid))

    # --- processes

    def _processes(self) -> Iterator[Process]:
        for entry in os.listdir(self.proc) if self.proc.is_dir() else ():
            if not entry.isdecimal():
                continue
            raw = _read(self.proc / entry / "cmdline")
            if raw and (seen := read_command_line([os.fsdecode(word) for word in raw.split(b"\0")[:-1]])):
                owner = self._owner(int(entry))
                if owner is not None:
                    yield Process(int(entry), owner, tuple(seen))

    def _owner(self, pid: int) -> int | None:
        """The uid that answers for a process: whoever started it. NOBODY for root's with a group that is not root's."""
        status = _read(self.proc / str(pid) / "status").decode("utf-8", "replace")
        ids = {name: list(map(int, numbers.split())) for name, numbers in _IDS.findall(status)}
        if ids.keys() != {"Uid", "Gid"}:
            return None
        real = ids["Uid"][0]
        # A set-user-ID program can take on root's ids altogether (sudo), but for its starter's group.
        return NOBODY if real == 0 and set(ids["Gid"]) != {0} else real

    def _guest(self, process: Process, seen: Seen, where: int = 0) -> Guest:
        """`where`: the process whose directory relative paths start at, where it is another."""
        path, cid = seen.socket, seen.cid
        note = ""
        if seen.config and not path:
            text = _read(Path(os.fsdecode(self._full(process.pid, seen.config))))
            cid, path = read_firecracker_config(text.decode("utf-8", "replace"))
        if not path and seen.vmm in ("firecracker", "cloud-hypervisor"):
            path, note = self._listening(process.pid, seen)
        address: VsockAddress | HybridAddress | None = None
        name = seen.name
        if path:
            full = self._full(where or process.pid, path)
            name = name or name_of_socket(full)
            if not full.startswith("/"):
                note = f"its socket is {path}, in a directory that is not told"
            elif len(os.fsencode(full)) > UNIX_PATH_LIMIT:
                note = f"its socket's path is too long: {full}"
            else:
                address = HybridAddress(os.fsencode(full), AGENT_PORT)
        elif cid is not None and not seen.device:
            address = VsockAddress(cid, AGENT_PORT)
        if address is None and not note:
            note = f"no vsock: {way_to_a_vsock(seen.vmm)}"
            if seen.device:
                note = f"its vsock is another process's, by {seen.device}"
        return Guest(seen.vmm, process.owner, _user(process.owner), name, address, process.pid, note=note)

    def _full(self, pid: int, path: str) -> str:
        """A path as the process means it, as far as it tells where it stands."""
        if not path:
            return ""
        if not path.startswith("/"):
            try:
                path = os.path.join(os.readlink(self.proc / str(pid) / "cwd"), path)
            except OSError:
                return path
        with contextlib.suppress(OSError):
            root = os.readlink(self.proc / str(pid) / "root")
            # A link's text is told from where we stand: it names the directory that the process was locked in.
            if root != "/" and not path.startswith(f"{root}/"):
                path = root + path
        return os.path.normpath(path)

    def _listening(self, pid: int, seen: Seen) -> tuple[str, str]:
        """The one UNIX socket that a VMM listens on beside those for other purposes, or '' and what to say of it."""
        inodes = set()
        try:
            for number in os.listdir(self.proc / str(pid) / "fd"):
                with contextlib.suppress(OSError):
                    link = os.readlink(self.proc / str(pid) / "fd" / number)
                    inodes.add(link.removeprefix("socket:[").removesuffix("]"))
        except OSError:
            return "", "its sockets are not ours to see: ask as its user or as root"
        paths = []
        for line in _read(self.proc / str(pid) / "net/unix").splitlines()[1:]:
            columns = os.fsdecode(line).split(maxsplit=7)
            if len(columns) == 8 and columns[6] in inodes and int(columns[3], 16) & _ACCEPTS:
                paths.append(columns[7])
        ours = [path for path in paths if path not in seen.others and not path.startswith("@")]
        # What the guest's own connections reach is named after the vsock's socket: PATH_PORT, and is not ours.
        ours = [path for path in ours if not any(re.fullmatch(re.escape(other) + r"_[0-9]+", path) for other in ours)]
        return (ours[0], "") if len(ours) == 1 else ("", "")

    # --- what others noted

    def _libvirt(self) -> Iterator[tuple[int, tuple[str, int, int | None]]]:
        """(name, owner, CID) by the VMM's pid, from the notes that libvirt keeps of running domains.

        Only notes of root's or this user's own count: they answer for the name.
        """
        places = [self.root / "run/libvirt/qemu", self.root / "var/run/libvirt/qemu"]
        if self.runtime:
            places.append(Path(self.runtime) / "libvirt/qemu/run")
        for place in places:
            try:
                files = sorted(place.glob("*.xml"))
            except OSError:
                continue
            for file in files:
                try:
                    owner = file.stat().st_uid
                except OSError:
                    continue
                if owner in (0, os.geteuid()) and (told := read_libvirt_status(_read(file).decode("utf-8", "replace"))):
                    name, pid, cid = told
                    yield pid, (name, owner, cid)

    def _add_machined(self, found: list[Guest]) -> None:
        """Add the guests that machined knows and no process told of; a name, where a process told none."""
        for name, leader, cid in self._machined():
            address = VsockAddress(cid, AGENT_PORT)
            for number, guest in enumerate(found):
                if guest.address == address or (leader and guest.pid == leader):
                    if not guest.name:
                        found[number] = dataclasses.replace(guest, name=name, source="machined")
                    break
            else:
                owner = self._owner(leader)
                if owner is not None:
                    found.append(Guest("machined", owner, _user(owner), name, address, leader, source="machined"))

    def _machined(self) -> Iterator[tuple[str, int, int]]:
        """(name, leader's pid, CID) of each machine with a CID, by io.systemd.Machine (systemd 257 and later)."""
        path = self.root / "run/systemd/machine/io.systemd.Machine"
        if not path.exists():
            return
        question = {"method": "io.systemd.Machine.List", "parameters": {}, "more": True}
        answer = b""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE)
            sock.connect(str(path))
            sock.sendall(json.dumps(question).encode() + b"\0")
            while len(answer) < LIMIT and (piece := sock.recv(1 << 16)):
                answer += piece
                if answer.endswith(b"\0") and b'"continues":true' not in answer.split(b"\0")[-2].replace(b" ", b""):
                    break
        for reply in answer.split(b"\0"):
            with contextlib.suppress(ValueError, AttributeError, TypeError):
                told = json.loads(reply).get("parameters") or {}
                cid = told.get("vSockCid")
                if isinstance(cid, int) and 2 < cid < 0xFFFF_FFFF:
                    yield str(told["name"]), int(told.get("leader") or 0), cid


_IDS = re.compile(r"^(Uid|Gid):((?:\s+[0-9]+){4})", re.MULTILINE)


def _noted(guest: Guest, name: str, owner: int, cid: int | None) -> Guest:
    """A guest as libvirt's note has it, which answers for its name; not where the two do not fit together."""
    if (None if cid is None else VsockAddress(cid, AGENT_PORT)) != guest.address:
        return guest
    note = guest.note if guest.address else f"no vsock: {way_to_a_vsock('libvirt')}"
    return dataclasses.replace(
        guest, vmm="libvirt", owner=owner, user=_user(owner), name=name, source="libvirt", note=note
    )


def _user(uid: int) -> str:
    if uid == NOBODY:
        return "unknown"
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _read(path: Path) -> bytes:
    """A file's first mebibyte; nothing where it cannot be read: processes come and go, and not all are ours."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            return file.read(LIMIT)
    except OSError:
        return b""
