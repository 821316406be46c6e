"""Guests of a machine: found where they are noted, meant by a name only where that name can be believed."""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path

import pytest

from tests.cli.process import error_of, run
from tests.guests.machines import ME, OTHER, Tree, process
from vsockfwd.address import HybridAddress, VsockAddress
from vsockfwd.errors import UsageError
from vsockfwd.guests.guest import Guest, GuestAddresses, find_guest, typed_as
from vsockfwd.guests.machine import Machine

WEB = ("qemu-system-x86_64", "-name", "guest=web", "-device", "vhost-vsock-pci,guest-cid=3")
ROOT = (0,) * 4


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    (tmp_path / "proc").mkdir()
    return Tree(tmp_path)


def only(tree: Tree) -> Guest:
    (guest,) = tree.machine().guests()
    return guest


def targets(tree: Tree) -> GuestAddresses:
    return GuestAddresses(tree.machine().guests, ME)


# --- where they are found


def test_a_qemu_guest_is_found_by_its_command_line(tree: Tree):
    pid = tree.process(*WEB)
    guest = only(tree)
    assert (guest.name, guest.address, guest.pid, guest.owner) == ("web", VsockAddress(3, 876), pid, ME)


def test_a_guest_behind_another_process_is_one_guest_by_that_ones_socket(tree: Tree):
    tree.process("vhost-device-vsock", "--uds-path=web.vsock", "--socket=/run/dev.sock", directory="/srv")
    tree.process(
        "qemu-kvm", "-name", "web", "-chardev", "socket,id=c,path=/run/dev.sock",
        "-device", "vhost-user-vsock-pci,chardev=c",
    )  # fmt: skip
    guest = only(tree)
    assert (guest.vmm, guest.name, guest.address) == ("qemu", "web", HybridAddress(b"/srv/web.vsock", 876))


def test_a_vsock_device_without_its_vmm_is_a_guest_by_its_socket(tree: Tree):
    tree.process("vhost-device-vsock", "--uds-path=/run/web.vsock", "--socket=/run/dev.sock")
    assert (only(tree).name, only(tree).address) == ("web", HybridAddress(b"/run/web.vsock", 876))


def test_firecrackers_socket_is_found_in_its_configuration_and_its_jail(tree: Tree):
    jail = tree.root / "jail"
    tree.write("jail/vm.json", json.dumps({"vsock": {"guest_cid": 3, "uds_path": "/run/v.sock"}}))
    tree.process("firecracker", "--id", "web", "--config-file", "/vm.json", root=str(jail))
    assert only(tree).address == HybridAddress(f"{jail}/run/v.sock".encode(), 876)
    assert only(tree).name == "web"


def test_firecrackers_socket_is_found_among_those_it_listens_on(tree: Tree):
    pid = tree.process("firecracker", "--id", "web", "--api-sock", "/run/api.sock")
    lines = ["Num RefCount Protocol Flags Type St Inode Path"]
    for number, path in enumerate(("/run/api.sock", "/run/v.sock", "/run/v.sock_876", "@abstract")):
        (tree.root / f"proc/{pid}/fd").mkdir(exist_ok=True)
        (tree.root / f"proc/{pid}/fd/{number}").symlink_to(f"socket:[{500 + number}]")
        lines.append(f"0000000000000000: 00000002 00000000 00010000 0001 01 {500 + number} {path}")
    lines.append("0000000000000000: 00000002 00000000 00010000 0001 01 999 /run/of another process.sock")
    tree.write(f"proc/{pid}/net/unix", "\n".join(lines) + "\n")
    assert only(tree).address == HybridAddress(b"/run/v.sock", 876)


def test_a_guest_without_a_vsock_is_listed_with_the_flag_that_gives_it_one(tree: Tree):
    tree.process("qemu-kvm", "-name", "plain")
    assert only(tree).address is None
    assert "-device vhost-vsock-pci,guest-cid=" in only(tree).note
    with pytest.raises(UsageError, match="no vsock device") as error:
        targets(tree)["plain"]
    assert "-device vhost-vsock-pci" in error.value.hint


def libvirt_note(tree: Tree, pid: int, cid: int, name: str = "web") -> None:
    tree.write(
        f"run/libvirt/qemu/{name}.xml",
        f"<domstatus pid='{pid}'><domain><name>{name}</name><devices><vsock><cid address='{cid}'/></vsock></devices>"
        "</domain></domstatus>",
    )


def test_libvirts_note_answers_for_a_guest_that_runs_as_a_user_of_its_own(tree: Tree):
    pid = tree.process(*WEB, uids=(64055,) * 4)
    libvirt_note(tree, pid, 3)
    guest = only(tree)
    assert (guest.vmm, guest.owner, guest.source) == ("libvirt", os.geteuid(), "libvirt")


def test_a_note_left_over_for_another_process_answers_for_nothing(tree: Tree):
    pid = tree.process(*WEB, uids=(OTHER,) * 4)
    libvirt_note(tree, pid, 4)
    assert (only(tree).vmm, only(tree).owner) == ("qemu", OTHER)


def test_machined_brings_what_no_process_told(tree: Tree, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tree.root)  # a socket's path is short
    leader = tree.process("systemd-vmspawn", uids=ROOT)
    tree.process("qemu-kvm", "-device", "vhost-vsock-pci,guest-cid=3")
    path = Path("run/systemd/machine/io.systemd.Machine")
    path.parent.mkdir(parents=True)
    replies = [
        {"parameters": {"name": "found", "class": "vm", "vSockCid": 3}, "continues": True},
        {"parameters": {"name": "box", "class": "container"}, "continues": True},
        {"parameters": {"name": "spawned", "class": "vm", "leader": leader, "vSockCid": 9}},
    ]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            sock, _ = listener.accept()
            with sock:
                assert json.loads(sock.recv(1000).rstrip(b"\0"))["method"] == "io.systemd.Machine.List"
                sock.sendall(b"".join(json.dumps(reply).encode() + b"\0" for reply in replies))

        thread = threading.Thread(target=answer)
        thread.start()
        found = {guest.name: (guest.address, guest.owner) for guest in Machine(Path(), "").guests()}
        thread.join()
    assert found == {"found": (VsockAddress(3, 876), ME), "spawned": (VsockAddress(9, 876), 0)}


# --- whom a name means


def test_a_bare_name_means_a_guest_of_ones_own_or_of_roots(tree: Tree):
    tree.process(*WEB)
    tree.process("crosvm", "run", "--name", "db", "--cid", "4", uids=ROOT)
    assert targets(tree)["web"] == VsockAddress(3, 876)
    assert targets(tree)["db"] == VsockAddress(4, 876)
    assert sorted(targets(tree)) == ["db", "web"]


def test_somebody_elses_guest_needs_its_users_name(tree: Tree):
    tree.process(*WEB, uids=(OTHER,) * 4)
    with pytest.raises(UsageError, match="neither yours nor root's") as error:
        targets(tree)["web"]
    assert f"{OTHER}/web" in error.value.hint
    assert targets(tree)[f"{OTHER}/web"] == VsockAddress(3, 876)
    assert typed_as(only(tree), [only(tree)], ME) == f"{OTHER}/web"


def test_a_stranger_cannot_take_over_a_name(tree: Tree):
    tree.process(*WEB)
    tree.process("qemu-kvm", "-name", "web", "-device", "vhost-vsock-pci,guest-cid=66", uids=(OTHER,) * 4)
    assert targets(tree)["web"] == VsockAddress(3, 876)


@pytest.mark.parametrize(
    ("uids", "gids"),
    [
        ((OTHER, 0, 0, 0), (OTHER,) * 4),  # passwd, and most that are set-user-ID root
        (ROOT, (OTHER,) * 4),  # sudo, once it has become root altogether
        ((OTHER, ME, ME, ME), (OTHER,) * 4),  # a program that is set-user-ID to this user
    ],
)
def test_a_set_user_id_program_with_a_strangers_words_is_not_believed(tree: Tree, uids: tuple, gids: tuple):
    tree.process(*WEB, uids=uids, gids=gids)
    with pytest.raises(UsageError, match="neither yours nor root's"):
        targets(tree)["web"]


def test_a_name_that_two_guests_have_is_refused_and_both_are_told(tree: Tree):
    first, second = tree.process(*WEB), tree.process(*WEB[:-1], "vhost-vsock-pci,guest-cid=4")
    with pytest.raises(UsageError, match=rf"pid {first} \(vsock:3:876\) and pid {second} \(vsock:4:876\)"):
        targets(tree)["web"]
    guests = tree.machine().guests()
    assert [typed_as(guest, guests, ME) for guest in guests] == ["3", "4"]


@pytest.mark.parametrize("name", ["my vm", "3", "a:b", "x/y", "\x1b[31m", ""])
def test_a_name_that_cannot_be_typed_leaves_the_address(tree: Tree, name: str):
    tree.process("qemu-kvm", "-name", f"guest={name}", "-device", "vhost-vsock-pci,guest-cid=3")
    assert typed_as(only(tree), [only(tree)], ME) == "3"
    assert find_guest("web", [only(tree)], ME) is None


# --- real processes


def test_real_processes_are_found_and_their_names_are_targets(tmp_path: Path):
    name = f"vm{os.getpid()}"
    files = {"XDG_CONFIG_HOME": str(tmp_path), "VSOCKFWD_CONFIG": str(tmp_path / "none.toml")}
    with (
        process("cloud-hypervisor", "--vsock", f"cid=3,socket={name}.vsock", directory=tmp_path),
        process("qemu-system-x86_64", "-name", f"{name}-plain") as plain,
    ):
        found = {guest.name: guest for guest in Machine().guests()}
        assert found[name].address == HybridAddress(f"{tmp_path}/{name}.vsock".encode(), 876)
        assert found[f"{name}-plain"].pid == plain
        listed = json.loads(run("guests", "--json", env=files).stdout)
        assert listed["version"] == 1
        told = {row["name"]: row for row in listed["guests"]}
        assert (told[name]["target"], told[name]["vmm"]) == (name, "cloud-hypervisor")
        # The name is a target: what is not there is the VMM's socket, by its whole path.
        code, line = error_of("ping", name, env=files)
        assert (code, f"{tmp_path}/{name}.vsock" in line) == (69, True), line
        code, line = error_of("ping", name[:-1] + "_", env=files)
        assert code == 2
        assert f"did you mean {name}" in line
