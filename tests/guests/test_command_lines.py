"""What VMMs' command lines say of a vsock."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsockfwd.guests.command_lines import (
    Seen,
    name_of_socket,
    read_command_line,
    read_firecracker_config,
    read_libvirt_status,
)

LIBVIRTS = """{"driver":"vhost-vsock-pci","id":"vsock0","guest-cid":7,"vhostfd":"28","bus":"pci.7","addr":"0x0"}"""


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        ("qemu-system-x86_64 -name web -device vhost-vsock-pci,guest-cid=3", Seen("qemu", "web", 3)),
        ("/usr/libexec/qemu-kvm -device vhost-vsock-pci,id=v0,guest-cid=0x10", Seen("qemu", "", 16)),
        (
            f"qemu-system-aarch64 -name guest=db,debug-threads=on -device '{LIBVIRTS}' -S",
            Seen("qemu", "db", 7),
        ),
        ("kvm --name guest=a,,b --device vhost-vsock-ccw,guest-cid=12,devno=fe.0.0001", Seen("qemu", "a,b", 12)),
        ("qemu-system-x86_64 -name plain -device virtio-net-pci,netdev=n", Seen("qemu", "plain")),
        ("qemu-system-x86_64 -device '{broken' -device vhost-vsock-pci,guest-cid=two", Seen("qemu")),
        ("qemu-system-x86_64 -device vhost-vsock-pci,guest-cid=2", Seen("qemu")),
        (
            "qemu-system-x86_64 -chardev socket,id=c1,path=/run/x.sock -chardev socket,id=c0,path=/run/v.sock "
            "-device vhost-user-vsock-pci,chardev=c0,id=v",
            Seen("qemu", device="/run/v.sock"),
        ),
        (
            "firecracker --id web --api-sock /run/fc.sock --config-file vm.json",
            Seen("firecracker", "web", config="vm.json", others=("/run/fc.sock",)),
        ),
        ("firecracker-v1.7.0-x86_64 --no-api", Seen("firecracker", others=("/run/firecracker.socket",))),
        (
            "cloud-hypervisor --api-socket path=/run/api.sock --vsock cid=5,socket=/run/db.vsock --cpus boot=1",
            Seen("cloud-hypervisor", "", 5, "/run/db.vsock", others=("/run/api.sock",)),
        ),
        ("cloud-hypervisor-static --vsock=cid=5,socket=v.sock", Seen("cloud-hypervisor", "", 5, "v.sock")),
        ("crosvm run --cid 9 --name android vmlinux", Seen("crosvm", "android", 9)),
        ("crosvm --log-level debug run --vsock cid=10,device=/dev/vhost-vsock vmlinux", Seen("crosvm", "", 10)),
        ("crosvm run --vsock 11 vmlinux", Seen("crosvm", "", 11)),
        (
            "vhost-device-vsock --guest-cid=4 --uds-path=/tmp/vm4.vsock --socket=/tmp/vhost4.socket",
            Seen("vhost-device-vsock", "", 4, "/tmp/vm4.vsock", "/tmp/vhost4.socket"),
        ),
    ],
)
def test_a_vmms_command_line_tells_its_guest(line: str, seen: Seen):
    assert read_command_line(shlex.split(line)) == [seen]


def test_one_vsock_device_may_serve_several_guests():
    words = "vhost-device-vsock --vm guest-cid=3,uds-path=/a.vsock,socket=/a.sock --vm guest-cid=4,uds-path=/b.vsock"
    assert [(seen.cid, seen.socket) for seen in read_command_line(words.split())] == [(3, "/a.vsock"), (4, "/b.vsock")]


@pytest.mark.parametrize(
    "line",
    ["vim qemu-system-x86_64", "qemu-img convert a b", "qemu-nbd -c x", "firecracker --version", "crosvm stop", ""],
)
def test_what_runs_no_guest_is_none(line: str):
    assert read_command_line(line.split()) == []


@given(st.sampled_from(["qemu-kvm", "firecracker", "cloud-hypervisor", "crosvm", "vhost-device-vsock"]), st.data())
def test_no_command_line_makes_it_stumble(program: str, data: st.DataObject):
    word = st.sampled_from(
        ["-name", "-device", "--vsock", "--vm", "run", "{", '{"driver":1}', "vhost-vsock-pci,guest-cid", ",,=", "=", ""]
    )
    read_command_line([program, *data.draw(st.lists(word | st.text(max_size=20), max_size=8))])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"vsock": {"guest_cid": 3, "uds_path": "./v.sock"}, "drives": []}', (3, "./v.sock")),
        ('{"drives": []}', (None, "")),
        ('{"vsock": []}', (None, "")),
        ("[" * 100_000, (None, "")),
        ("not JSON", (None, "")),
    ],
)
def test_firecrackers_configuration_tells_its_socket(text: str, told: tuple[int | None, str]):
    assert read_firecracker_config(text) == told


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/run/web.vsock", "web"), ("/run/web.sock", "web"), ("/srv/db/v.sock", "db"), ("/srv/db/vsock.sock", "db"),
        ("/run/web-vsock", "web"), ("/tmp/vm3.vsock", "vm3"), ("/v.sock", ""),
    ],
)  # fmt: skip
def test_a_socket_names_a_guest_that_has_no_name(path: str, name: str):
    assert name_of_socket(path) == name


def test_libvirts_note_of_a_running_domain_is_read():
    note = (
        "<domstatus state='running' reason='booted' pid='4711'><domain type='kvm' id='1'><name>web</name><devices>"
        "<vsock model='virtio'><cid auto='yes' address='3'/></vsock></devices></domain></domstatus>"
    )
    assert read_libvirt_status(note) == ("web", 4711, 3)
    assert read_libvirt_status(note.replace("<cid auto='yes' address='3'/>", "")) == ("web", 4711, None)
    assert read_libvirt_status("<domain><name>off</name></domain>") is None
    assert read_libvirt_status("<domstatus pid='1'") is None
