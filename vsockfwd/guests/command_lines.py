"""VMMs' command lines and configurations → what they say about a vsock. Pure; one function a program.

Sources: QEMU's qemu-options.hx and hw/virtio/vhost-vsock-pci.c; Firecracker's docs/vsock.md and getting-started.md;
Cloud Hypervisor's docs/vsock.md; crosvm's book; vhost-device-vsock's README; libvirt's formatdomain.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vsockfwd.identity import CID_ANY


@dataclass(frozen=True, slots=True)
class Seen:
    """What a command line says of one guest.

    `socket` is the path of a hybrid socket, as it stands there: relative to the VMM's directory. `device` is the socket
    by which a VMM and a vsock device in another process know each other. `config` is a file that says more, `others`
    are sockets that are for something else.
    """

    vmm: str
    name: str = ""
    cid: int | None = None
    socket: str = ""
    device: str = ""
    config: str = ""
    others: tuple[str, ...] = ()


def read_command_line(words: Sequence[str]) -> list[Seen]:
    """The guests that a process with this command line runs: none, one, or several of one vsock device's."""
    if not words:
        return []
    program = os.path.basename(words[0])
    for pattern, read in _PROGRAMS.items():
        if re.fullmatch(pattern, program):
            return read(words[1:])
    return []


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each option and what follows it, `--name value` or `--name=value`; dashes stripped."""
    for number, word in enumerate(words):
        if word.startswith("-"):
            name, equals, value = word.lstrip("-").partition("=")
            yield name, value if equals else (words[number + 1] if number + 1 < len(words) else "")


def _last(words: Sequence[str]) -> dict[str, str]:
    return dict(_options(words))


def _fields(text: str, first: str = "") -> dict[str, str]:
    """`key=value,key=value`; a doubled comma is one of the value's; `first` is the key of what has none in front."""
    fields: dict[str, str] = {}
    for part in text.replace(",,", "\0").split(","):
        key, equals, value = part.replace("\0", ",").partition("=")
        if equals:
            fields[key] = value
        elif first and not fields:
            fields[first] = key
    return fields


def _cid(text: object) -> int | None:
    """A guest's CID, or None where that is none."""
    try:
        cid = int(str(text), 0)
    except ValueError:
        return None
    return cid if 2 < cid < CID_ANY else None


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _qemu(words: Sequence[str]) -> list[Seen]:
    name = cid = None
    device = ""
    chardevs: dict[str, str] = {}
    for number, word in enumerate(words[:-1]):
        value = words[number + 1]
        match word.lstrip("-") if word.startswith("-") else "":
            case "name":
                name = _fields(value, "guest").get("guest", name)
            case "chardev":
                fields = _fields(value, "backend")
                chardevs[fields.get("id", "")] = fields.get("path", "")
            case "device":
                fields = _object(value) if value.startswith("{") else _fields(value, "driver")
                driver = str(fields.get("driver", ""))
                if driver.startswith("vhost-vsock-"):
                    cid = _cid(fields.get("guest-cid")) or cid
                elif driver.startswith("vhost-user-vsock-"):
                    device = str(fields.get("chardev", ""))
    return [Seen("qemu", name or "", cid, device=chardevs.get(device, "") if device else "")]


def _firecracker(words: Sequence[str]) -> list[Seen]:
    options = _last(words)
    if options.keys() & {"version", "help", "describe-snapshot"}:
        return []
    api = options.get("api-sock", "/run/firecracker.socket")
    return [Seen("firecracker", options.get("id", ""), config=options.get("config-file", ""), others=(api,))]


def read_firecracker_config(text: str) -> tuple[int | None, str]:
    """The CID and the socket that a --config-file names; (None, '') where it says nothing of a vsock."""
    vsock = _object(text).get("vsock")
    if not isinstance(vsock, dict):
        return None, ""
    return _cid(vsock.get("guest_cid")), str(vsock.get("uds_path") or "")


def _cloud_hypervisor(words: Sequence[str]) -> list[Seen]:
    options = _last(words)
    vsock = _fields(options.get("vsock", ""))
    api = _fields(options.get("api-socket", ""), "path").get("path", "")
    serial = [_fields(options.get(name, "")).get("socket", "") for name in ("serial", "console")]
    others = tuple(path for path in (api, *serial) if path)
    return [Seen("cloud-hypervisor", "", _cid(vsock.get("cid")), vsock.get("socket", ""), others=others)]


def _crosvm(words: Sequence[str]) -> list[Seen]:
    if "run" not in words:
        return []
    options = _last(words)
    cid = _cid(options.get("cid")) or _cid(_fields(options.get("vsock", ""), "cid").get("cid"))
    return [Seen("crosvm", options.get("name", ""), cid)]


def _vhost_device(words: Sequence[str]) -> list[Seen]:
    machines = [_fields(value) for name, value in _options(words) if name == "vm"]
    return [
        Seen("vhost-device-vsock", "", _cid(fields.get("guest-cid", "3")), fields["uds-path"], fields.get("socket", ""))
        for fields in machines or [_last(words)]
        if fields.get("uds-path")
    ]


_PROGRAMS: Mapping[str, Callable[[Sequence[str]], list[Seen]]] = {
    r"qemu-system-[a-z0-9_]+|qemu-kvm|qemu|kvm": _qemu,
    r"firecracker(-v?[0-9].*)?": _firecracker,
    r"cloud-hypervisor(-static|-v?[0-9].*)?": _cloud_hypervisor,
    r"crosvm": _crosvm,
    r"vhost-device-vsock|vhost-user-vsock": _vhost_device,
}


def name_of_socket(path: str) -> str:
    """What a guest without a name is called by its socket: /run/web.vsock and /srv/web/v.sock both say `web`."""
    folder, base = os.path.split(path)
    stem = re.sub(r"(\.(vsock|sock|socket|uds))+$|[_-]?v?sock$", "", base)
    return os.path.basename(folder) if stem in ("", "v", "vm", "ch", "fc", "vsock", "sock", "socket") else stem


def read_libvirt_status(text: str) -> tuple[str, int, int | None] | None:
    """The name, the VMM's pid and the CID of a running domain, from the file that libvirt keeps of it."""
    from xml.etree import ElementTree

    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return None
    domain = root if root.tag == "domain" else root.find("domain")
    pid = root.get("pid", "")
    if domain is None or not pid.isdecimal():
        return None
    cid = domain.find("devices/vsock/cid")
    return domain.findtext("name", ""), int(pid), None if cid is None else _cid(cid.get("address"))
