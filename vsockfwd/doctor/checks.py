"""What the doctor looks at, one function a topic: System in, findings out. The command reports them in this order.

Sources: vsock(7); net/vmw_vsock and drivers/vhost/Kconfig of the kernel; Documentation/admin-guide/sysctl/net.rst for
the namespaces (Linux 7.0); Docker's default seccomp profile (moby 44562), Podman's (container-libs 575).
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

from vsockfwd import __version__
from vsockfwd.address import HybridAddress, VsockAddress
from vsockfwd.doctor.finding import Finding, fix, note, ok
from vsockfwd.doctor.system import CAP_NET_BIND_SERVICE, System
from vsockfwd.errors import printable
from vsockfwd.guests.guest import Guest
from vsockfwd.identity import CID_ANY, CID_HOST

BUILT = 1_767_225_600
"""Seconds since 1970, the start of 2026: this program is younger, and so is the time."""

WAYS_TO_SET_A_CLOCK = (
    "timedatectl set-ntp true",
    "chronyd -q 'refclock PHC /dev/ptp0 poll 0'   # in a guest of KVM, from its host: modprobe ptp_kvm",
)

VIRTIO_VSOCK = 19
"""The virtio device's number (virtio 1.2, 5.10)."""

_KERNELS_OWN = {
    "vsock": "CONFIG_VSOCKETS",
    "vhost_vsock": "CONFIG_VHOST_VSOCK",
    "vmw_vsock_virtio_transport": "CONFIG_VIRTIO_VSOCKETS",
    "vsock_loopback": "CONFIG_VSOCKETS_LOOPBACK",
}


def examine(system: System) -> Iterator[Finding]:
    """All findings about this machine."""
    yield from python(system)
    guests = system.guests()
    if system.python_knows_vsock():
        yield from family(system)
    yield from as_guest(system)
    yield from as_host(system, guests)
    if system.python_knows_vsock() and system.vsock_errno() == 0:
        yield from loopback(system)
        yield from buffers(system)
        yield from ports(system)
    yield from namespaces(system)
    yield from confinement(system)
    for guest in guests:
        yield from of_guest(system, guest)
    yield from same_cids(guests)
    yield from clock(system)


def is_guest(system: System) -> bool:
    """Whether this machine is a virtual one."""
    flags = re.search(r"^flags\s*:.*$", system.text("/proc/cpuinfo"), re.MULTILINE)
    if flags and re.search(r"\bhypervisor\b", flags[0]):
        return True
    return bool(system.text("/sys/hypervisor/type")) or _virtio_device(system) is not None


def _virtio_device(system: System) -> str | None:
    """The name of this machine's virtio-vsock device, such as virtio3."""
    for name in system.names("/sys/bus/virtio/devices"):
        number = system.text(f"/sys/bus/virtio/devices/{name}/device").strip()
        if number and int(number, 16) == VIRTIO_VSOCK:
            return name
    return None


def _load(system: System, module: str) -> tuple[str, ...]:
    """What brings a kernel module: loading it, where the kernel has it; else the kernel that does."""
    option = _KERNELS_OWN[module]
    if not system.exists("/proc/modules"):
        return (f"this kernel ({system.release}) loads no modules: use one with {option}=y",)
    listed = system.text(f"/lib/modules/{system.release}/modules.dep")
    if not listed or f"/{module}.ko" in listed.replace("-", "_"):
        return (f"modprobe {module}", f"echo {module} > /etc/modules-load.d/vsockfwd.conf   # at each boot")
    extra = f"apt install linux-modules-extra-{system.release}   # where Ubuntu's cloud kernels keep it"
    return (f"this kernel ({system.release}) has no {module}: use one with {option}=m", extra)


# --- this process


def python(system: System) -> Iterator[Finding]:
    if system.python_knows_vsock():
        yield ok("python", f"vsockfwd {__version__} on {system.python}, which knows AF_VSOCK")
    else:
        yield fix(
            "python",
            f"{system.python} was built without AF_VSOCK, as standalone builds (uv's, pyenv's on old systems) are: "
            "hybrid:, unix: and tcp: work, vsock: does not",
            "/usr/bin/python3 -m venv ~/vsockfwd && ~/vsockfwd/bin/pip install 'vsockfwd[all]'",
            "uv tool install --python /usr/bin/python3 'vsockfwd[all]'   # with uv",
        )


def family(system: System) -> Iterator[Finding]:
    number = system.vsock_errno()
    match number:
        case 0:
            yield ok("kernel", f"Linux {system.release} makes AF_VSOCK sockets")
        case errno.EAFNOSUPPORT:
            where = container(system)
            yield fix(
                "kernel",
                f"Linux {system.release} has no AF_VSOCK"
                + (f" (this is {where}: its host's kernel counts)" * bool(where)),
                *_load(system, "vsock"),
            )
        case errno.EPERM | errno.EACCES:
            yield from _forbidden(system)
        case _:
            yield fix("kernel", f"making an AF_VSOCK socket failed: {os.strerror(number).lower()}")


def _forbidden(system: System) -> Iterator[Finding]:
    """Making a socket is refused: by whom?"""
    filtered = re.search(r"^Seccomp:\s*2", system.text("/proc/self/status"), re.MULTILINE)
    where = container(system)
    if filtered and where:
        yield fix(
            "seccomp",
            f"{where} forbids AF_VSOCK by its seccomp filter, as Docker's, containerd's and Podman's defaults do",
            "docker run --security-opt seccomp=PROFILE.json …   # the default profile, with socket(40, …) allowed",
            "or run vsockfwd outside, and give the container a UNIX socket: "
            "vsockfwd forward unix:/run/shared/web.sock vsock:3:80",
        )
    elif filtered:
        yield fix(
            "seccomp",
            "a seccomp filter of this process or of who started it forbids AF_VSOCK",
            "in a systemd unit: RestrictAddressFamilies=AF_UNIX AF_VSOCK AF_INET AF_INET6",
        )
    else:
        yield fix(
            "security",
            "making an AF_VSOCK socket is forbidden, and not by seccomp",
            "ausearch -m avc -ts recent | grep vsock   # SELinux; then audit2allow",
            "journalctl -k -g 'apparmor=.DENIED'   # AppArmor; its profile needs: network vsock,",
        )


def container(system: System) -> str:
    """What kind of container this process is in, '' for none that is known."""
    if system.exists("/.dockerenv"):
        return "a Docker container"
    if system.exists("/run/.containerenv"):
        return "a Podman container"
    kind = system.text("/run/systemd/container").strip()
    if kind:
        return f"a container ({printable(kind)})"
    if "kubepods" in system.text("/proc/self/cgroup"):
        return "a pod"
    return ""


# --- this machine as a guest and as a host


def as_guest(system: System) -> Iterator[Finding]:
    cid = system.own_cid()
    device = _virtio_device(system)
    if cid is not None and CID_HOST < cid < CID_ANY:
        yield ok("guest", f"this machine is a guest with CID {cid}; its host is vsock:host:PORT")
    elif device is not None:
        if not system.exists(f"/sys/bus/virtio/devices/{device}/driver"):
            yield fix(
                "guest",
                f"this machine has a vsock device ({device}) that no driver has taken",
                *_load(system, "vmw_vsock_virtio_transport"),
            )
        elif not system.exists("/dev/vsock"):
            yield note("guest", "this machine has a vsock device, /dev/vsock is missing", "mount -t devtmpfs dev /dev")
    elif is_guest(system):
        where = container(system)
        if where:
            yield note("guest", f"no vsock device is to be seen from {where}")
            return
        yield note(
            "guest",
            "this machine is a guest without a vsock device: its host cannot be reached by vsock",
            "on its host, QEMU: -device vhost-vsock-pci,guest-cid=3",
            "libvirt: <vsock model='virtio'><cid auto='yes'/></vsock> among its <devices>",
        )


def as_host(system: System, guests: list[Guest]) -> Iterator[Finding]:
    """Whether guests of this machine can be reached by AF_VSOCK: what /dev/vhost-vsock is for."""
    wanting = [guest for guest in guests if isinstance(guest.address, VsockAddress)]
    if system.exists("/dev/vhost-vsock"):
        yield ok("host", "/dev/vhost-vsock is there: QEMU's, libvirt's and crosvm's guests can have a CID")
        if not system.may("/dev/vhost-vsock", os.R_OK | os.W_OK):
            yield note(
                "host",
                f"/dev/vhost-vsock is not {system.user()}'s to open, which who starts a guest must",
                f"usermod -aG kvm {system.user()}   # where its group is kvm; then log in anew",
            )
        return
    if wanting:
        yield fix(
            "host",
            f"{len(wanting)} guests have a CID, and /dev/vhost-vsock is not here: "
            + (f"{container(system)} does not show it" if container(system) else "the module is not loaded"),
            *_load(system, "vhost_vsock"),
        )
    elif system.exists("/dev/kvm") or not is_guest(system):
        yield note(
            "host",
            "no /dev/vhost-vsock: no guest can have a CID (Firecracker and Cloud Hypervisor do without)",
            *_load(system, "vhost_vsock"),
        )


def loopback(system: System) -> Iterator[Finding]:
    if system.loopback():
        yield ok("loopback", "CID 1 is this machine (vsock_loopback)")
    else:
        yield note("loopback", "no vsock loopback: vsock:local:PORT does not work", *_load(system, "vsock_loopback"))


def buffers(system: System) -> Iterator[Finding]:
    default, most, taken = system.buffers()
    told = f"a socket's buffer is {default >> 10} KiB, at most {most >> 10} KiB, until a program raises both"
    if taken:
        yield ok("buffers", f"{told}; vsockfwd takes 1 MiB, ,buffer=8M in an address more")
    else:
        yield note("buffers", f"{told}; this kernel does not let them be raised: name a smaller one, ,buffer=256K")


def ports(system: System) -> Iterator[Finding]:
    if system.capability(CAP_NET_BIND_SERVICE):
        yield ok("privilege", "ports below 1024 are ours: a guest's agent lets us in as the host's privileged process")
    else:
        yield note(
            "privilege",
            f"{system.user()} may bind no port below 1024: an agent that was started with no --allow-… refuses us",
            "sudo vsockfwd …",
            "vsockfwd serve --allow-cid host   # in the guest: trusts every user of this host",
        )


def namespaces(system: System) -> Iterator[Finding]:
    mode = system.text("/proc/sys/net/vsock/ns_mode").strip()
    if mode == "local":
        yield note(
            "namespace",
            "this network namespace has a vsock of its own: guests and hosts of other namespaces are not reached",
            "nsenter --net=/proc/PID/ns/net vsockfwd …   # PID: of the guest's VMM",
            "sysctl net.vsock.child_ns_mode   # in the parent: what new namespaces become, global or local",
        )
    elif mode:
        child = system.text("/proc/sys/net/vsock/child_ns_mode").strip()
        told = "; namespaces made from here will have a vsock of their own" if child == "local" else ""
        yield ok("namespace", f"this network namespace shares the system's vsock (ns_mode {printable(mode)}){told}")
    if system.text("/proc/sys/net/vsock/g2h_fallback").strip() == "0":
        yield note(
            "namespace",
            "CIDs that no guest of this machine has are not looked for beyond its own host",
            "sysctl net.vsock.g2h_fallback=1",
        )


def confinement(system: System) -> Iterator[Finding]:
    """Who may forbid more than shows from here."""
    profile = system.text("/proc/self/attr/current").strip("\0\n ")
    if system.text("/sys/fs/selinux/enforce").strip() == "1":
        yield note(
            "selinux",
            f"SELinux enforces, we run as {printable(profile) or 'an unknown type'}: the log has what is denied",
            "ausearch -m avc -ts recent",
        )
    elif profile and not profile.startswith("unconfined") and system.exists("/sys/kernel/security/apparmor"):
        yield note(
            "apparmor",
            f"AppArmor confines this process as {printable(profile)}: the log has what is denied",
            "journalctl -k -g apparmor",
        )


# --- its guests


def of_guest(system: System, guest: Guest) -> Iterator[Finding]:
    name = printable(guest.name, 20) or str(guest.pid)
    topic = f"guest {name}"
    if guest.address is None:
        yield note(topic, f"{guest.vmm}, pid {guest.pid}", printable(guest.note))
    elif isinstance(guest.address, HybridAddress):
        yield _of_socket(system, topic, guest, guest.address)
    else:
        yield ok(topic, f"{guest.vmm} gives it CID {guest.address.cid}")


def _of_socket(system: System, topic: str, guest: Guest, address: HybridAddress) -> Finding:
    path = os.fsdecode(address.path)
    shown = printable(path)
    owner = system.owner(path)
    if owner is None:
        return note(
            topic,
            f"{guest.vmm}'s socket {shown} is not to be seen from here: gone, or in a directory that is closed to us",
            f"sudo ls -l {shown}",
        )
    if not system.may(path, os.R_OK | os.W_OK):
        return note(
            topic,
            f"{guest.vmm}'s socket {shown} is uid {owner.uid}'s, mode {owner.mode:04o}: not for {system.user()}",
            f"sudo setfacl -m u:{system.user()}:rw {shown}",
        )
    if owner.mode & 0o002:
        return note(topic, f"{guest.vmm}'s socket {shown} is open to every user of this machine", f"chmod o-w {shown}")
    return ok(topic, f"{guest.vmm} shows it at {shown}, which we may open")


def same_cids(guests: list[Guest]) -> Iterator[Finding]:
    by_cid: dict[int, list[Guest]] = {}
    for guest in guests:
        if isinstance(guest.address, VsockAddress):
            by_cid.setdefault(guest.address.cid, []).append(guest)
    for cid, several in by_cid.items():
        if len(several) > 1:
            pids = ", ".join(str(guest.pid) for guest in several)
            yield fix(
                "cids", f"CID {cid} stands on several command lines (pids {pids})", "give each guest a CID of its own"
            )


def clock(system: System) -> Iterator[Finding]:
    if system.now() < BUILT:
        yield fix(
            "clock",
            "the system's clock is behind: certificates are not valid yet, and a copy's times are wrong",
            *WAYS_TO_SET_A_CLOCK,
        )
