"""Each thing that can be wrong is found, and told with what mends it; what is well is not complained of."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from vsockfwd.address import HybridAddress, VsockAddress
from vsockfwd.doctor import checks
from vsockfwd.doctor.finding import Finding, State
from vsockfwd.doctor.system import CAP_NET_BIND_SERVICE, Owner, System
from vsockfwd.guests.guest import Guest


class Unconnected(socket.socket):
    def connect(self, address: object) -> None:
        pytest.fail(f"connected to {address!r}")

    connect_ex = connect  # type: ignore[assignment]


HYPERVISOR = "processor: 0\nflags\t\t: fpu hypervisor lahf_lm\n"


@dataclass
class Fake(System):
    """A machine of files in a folder, with a kernel that answers as it is told. By default a host where all is well."""

    root: Path
    release: str = "6.12.0"
    architecture: str = "x86_64"
    number: int = 0
    has_loopback: bool = True
    cid: int | None = None
    sizes: tuple[int, int, bool] = (1 << 18, 1 << 18, True)
    uid: int = 1000
    capabilities: Sequence[int] = (CAP_NET_BIND_SERVICE,)
    python: str = "CPython 3.12.1 (/usr/bin/python3)"
    knows: bool = True
    time: float = 2e9
    running: list[Guest] = field(default_factory=list)
    forbidden: tuple[str, ...] = ()

    def write(self, path: str, text: str = "") -> None:
        file = self.path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def vsock_errno(self) -> int:
        return self.number

    def loopback(self) -> bool:
        return self.has_loopback

    def own_cid(self) -> int | None:
        return self.cid

    def buffers(self) -> tuple[int, int, bool]:
        return self.sizes

    def user(self) -> str:
        return "me"

    def capability(self, number: int) -> bool:
        return number in self.capabilities

    def python_knows_vsock(self) -> bool:
        return self.knows

    def now(self) -> float:
        return self.time

    def guests(self) -> list[Guest]:
        return self.running

    def may(self, path: str, mode: int) -> bool:
        return path not in self.forbidden

    def owner(self, path: str) -> Owner | None:
        return Owner(0, 0o600) if self.exists(path) else None


@pytest.fixture
def host(tmp_path: Path) -> Fake:
    machine = Fake(tmp_path)
    machine.write("/dev/vhost-vsock")
    machine.write("/proc/modules", "vhost_vsock 16384 0\n")
    machine.write(
        "/lib/modules/6.12.0/modules.dep", "kernel/drivers/vhost/vhost_vsock.ko.xz: \nkernel/net/x/vsock.ko: \n"
    )
    return machine


def about(machine: Fake, topic: str) -> Finding:
    (found,) = [finding for finding in checks.examine(machine) if finding.topic == topic]
    return found


def states(machine: Fake) -> set[State]:
    return {finding.state for finding in checks.examine(machine)}


def test_a_host_where_all_is_well_gets_no_advice(host: Fake):
    host.running = [Guest("qemu", 0, "root", "web", VsockAddress(3, 876), 7)]
    assert states(host) == {State.OK}
    assert all(not finding.mend for finding in checks.examine(host))


def test_a_python_without_af_vsock_is_told_the_way_out(host: Fake):
    host.knows = False
    found = about(host, "python")
    assert found.state is State.FIX
    assert "/usr/bin/python3 -m venv" in found.mend[0]
    assert "kernel" not in {finding.topic for finding in checks.examine(host)}


def test_a_kernel_without_the_family_is_told_its_module(host: Fake):
    host.number = errno.EAFNOSUPPORT
    assert about(host, "kernel").mend[0] == "modprobe vsock"
    host.write("/lib/modules/6.12.0/modules.dep", "kernel/other.ko:\n")
    assert "CONFIG_VSOCKETS=m" in about(host, "kernel").mend[0]
    host.path("/proc/modules").unlink()
    assert "loads no modules" in about(host, "kernel").mend[0]


@pytest.mark.parametrize(
    ("files", "topic", "words"),
    [
        ({"/proc/self/status": "Seccomp:\t2\n", "/.dockerenv": ""}, "seccomp", "--security-opt seccomp="),
        ({"/proc/self/status": "Seccomp:\t2\n", "/run/.containerenv": ""}, "seccomp", "Podman"),
        ({"/proc/self/status": "Seccomp:\t2\n"}, "seccomp", "RestrictAddressFamilies="),
        ({"/proc/self/status": "Seccomp:\t0\n"}, "security", "ausearch"),
    ],
)
def test_who_forbids_af_vsock_is_named(host: Fake, files: dict[str, str], topic: str, words: str):
    host.number = errno.EPERM
    for path, text in files.items():
        host.write(path, text)
    found = about(host, topic)
    assert found.state is State.FIX
    assert words in found.told + "".join(found.mend)


def test_a_guest_is_told_its_cid(host: Fake):
    host.cid = 7
    assert "CID 7" in about(host, "guest").told


def test_a_guest_whose_device_has_no_driver_is_told_the_module(host: Fake):
    host.write("/sys/bus/virtio/devices/virtio3/device", "0x0013\n")
    host.write("/lib/modules/6.12.0/modules.dep", "kernel/net/vmw_vsock/vmw_vsock_virtio_transport.ko.zst:\n")
    found = about(host, "guest")
    assert (found.state, found.mend[0]) == (State.FIX, "modprobe vmw_vsock_virtio_transport")


def test_a_guest_without_a_device_is_told_what_its_host_has_to_do(host: Fake):
    host.write("/proc/cpuinfo", HYPERVISOR)
    mend = "".join(about(host, "guest").mend)
    assert "-device vhost-vsock-pci,guest-cid=" in mend
    assert "<vsock" in mend


def test_a_host_whose_guests_have_cids_needs_vhost_vsock(host: Fake):
    host.path("/dev/vhost-vsock").unlink()
    assert about(host, "host").state is State.NOTE
    host.running = [Guest("qemu", 0, "root", "web", VsockAddress(3, 876), 7)]
    found = about(host, "host")
    assert (found.state, found.mend[0]) == (State.FIX, "modprobe vhost_vsock")


def test_who_may_not_open_vhost_vsock_is_told_its_group(host: Fake):
    host.forbidden = ("/dev/vhost-vsock",)
    told = [finding for finding in checks.examine(host) if finding.topic == "host"]
    assert "usermod -aG kvm me" in told[1].mend[0]


@pytest.mark.parametrize(
    ("change", "topic", "words"),
    [
        ({"has_loopback": False}, "loopback", "vsock_loopback"),
        ({"sizes": (1 << 18, 1 << 18, False)}, "buffers", "buffer=256K"),
        ({"capabilities": ()}, "privilege", "--allow-cid host"),
        ({"time": 0.0}, "clock", "timedatectl"),
    ],
)
def test_what_is_amiss_is_told_with_what_mends_it(host: Fake, change: dict[str, object], topic: str, words: str):
    for name, value in change.items():
        setattr(host, name, value)
    found = about(host, topic)
    assert found.state is not State.OK
    assert words in found.told + "".join(found.mend)


def test_a_vsock_of_ones_own_namespace_is_told(host: Fake):
    host.write("/proc/sys/net/vsock/ns_mode", "local\n")
    assert "nsenter" in about(host, "namespace").mend[0]
    host.write("/proc/sys/net/vsock/ns_mode", "global\n")
    assert about(host, "namespace").state is State.OK
    host.write("/proc/sys/net/vsock/child_ns_mode", "local\n")
    assert "will have a vsock of their own" in about(host, "namespace").told


def test_selinux_and_apparmor_are_told_where_they_confine_us(host: Fake):
    host.write("/proc/self/attr/current", "docker-default (enforce)\n")
    host.path("/sys/kernel/security/apparmor").mkdir(parents=True)
    assert "docker-default" in about(host, "apparmor").told
    host.write("/sys/fs/selinux/enforce", "1")
    assert "ausearch" in about(host, "selinux").mend[0]


def test_the_sockets_of_guests_are_looked_at(host: Fake, tmp_path: Path):
    host.running = [Guest("firecracker", 0, "root", "db", HybridAddress(b"/run/db.vsock", 876), 9)]
    assert "not to be seen" in about(host, "guest db").told
    host.write("/run/db.vsock")
    assert about(host, "guest db").state is State.OK
    host.forbidden = ("/run/db.vsock",)
    found = about(host, "guest db")
    assert "uid 0's, mode 0600" in found.told
    assert "setfacl -m u:me:rw /run/db.vsock" in found.mend[0]


def test_a_guest_without_a_vsock_is_told_the_flag(host: Fake):
    host.running = [Guest("qemu", 0, "root", "old", None, 9, note="no vsock: start QEMU with -device vhost-vsock-pci")]
    assert "-device vhost-vsock-pci" in about(host, "guest old").mend[0]


def test_two_guests_of_one_cid_are_told(host: Fake):
    host.running = [Guest("qemu", 0, "root", name, VsockAddress(3, 876), pid) for name, pid in (("a", 8), ("b", 9))]
    assert "pids 8, 9" in about(host, "cids").told


def test_this_very_machine_is_looked_at_without_a_connection(monkeypatch: pytest.MonkeyPatch):
    """Whatever it is; the guard of the tests is one thing that is found."""
    monkeypatch.setattr(socket, "socket", Unconnected)
    found = {finding.topic: finding for finding in checks.examine(System())}
    assert found["seccomp"].state is State.FIX
