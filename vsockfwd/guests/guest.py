"""What a guest is, and which one a name means. Pure."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from vsockfwd.address import Address, HybridAddress, VsockAddress
from vsockfwd.config import is_name
from vsockfwd.errors import UsageError, printable


@dataclass(frozen=True, slots=True)
class Guest:
    """A running guest. `address` is where its agent would listen, None where it has no vsock; `note` says what is odd.

    `owner` is the uid that answers for the name, `user` what that is called; `pid` is the VMM's, 0 where not known.
    `source` is where it was found: "process", "libvirt", "machined".
    """

    vmm: str
    owner: int
    user: str
    name: str = ""
    address: VsockAddress | HybridAddress | None = None
    pid: int = 0
    source: str = "process"
    note: str = ""


def is_trusted(guest: Guest, me: int) -> bool:
    """Whether a bare name may mean this guest: it is this user's, or root's."""
    return guest.owner in (me, 0)


def typed_as(guest: Guest, guests: Iterable[Guest], me: int) -> str:
    """The target to type for it: its name, `user/name`, else its address; '' where it cannot be reached."""
    if guest.address is None:
        return ""
    trusted = is_trusted(guest, me)
    name = guest.name if trusted else f"{guest.user}/{guest.name}"
    if "/" not in guest.name and is_name(name) and len(_called(name, guests, me)) == 1:
        return name
    return str(guest.address.cid if isinstance(guest.address, VsockAddress) else guest.address)


def _called(text: str, guests: Iterable[Guest], me: int) -> list[Guest]:
    user, slash, name = text.rpartition("/")
    if not slash:
        return [guest for guest in guests if guest.name == text and is_trusted(guest, me)]
    return [guest for guest in guests if guest.name == name and guest.user == user]


def find_guest(text: str, guests: Sequence[Guest], me: int) -> Guest | None:
    """The guest that a name, or `user/name`, means; None where nobody is called so.

    `me` is this user's uid. Raises UsageError where the name means several, or somebody else's.
    """
    found = _called(text, guests, me)
    if len(found) > 1:
        places = " and ".join(f"pid {guest.pid} ({guest.address or 'no vsock'})" for guest in found)
        raise UsageError(
            f"several guests are called {printable(text)!r}: {places}", hint="name it by its CID or socket"
        )
    if found:
        return found[0]
    others = sorted({guest.user for guest in guests if guest.name == text})
    if others:
        raise UsageError(
            f"the guest {printable(text)!r} is neither yours nor root's",
            hint=f"if you trust it: {' or '.join(f'{printable(user)}/{text}' for user in others)}",
        )
    return None


class GuestAddresses(Mapping[str, Address]):
    """Guests' addresses by the names that may be typed for them. `look` finds them, once, when a name is looked for.

    Looking for a name raises what `find_guest` does, and UsageError for a guest without a vsock.
    """

    def __init__(self, look: Callable[[], Sequence[Guest]], me: int) -> None:
        self._look = look
        self._me = me

    @functools.cached_property
    def _guests(self) -> Sequence[Guest]:
        return self._look()

    def __getitem__(self, name: str) -> Address:
        guest = find_guest(name, self._guests, self._me)
        if guest is None:
            raise KeyError(name)
        if guest.address is None:
            raise UsageError(
                f"the guest {printable(name)!r} (pid {guest.pid}) has no vsock device", hint=way_to_a_vsock(guest.vmm)
            )
        return guest.address

    def __iter__(self) -> Iterator[str]:
        names = (typed_as(guest, self._guests, self._me) for guest in self._guests)
        return (name for name in names if is_name(name))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def way_to_a_vsock(vmm: str) -> str:
    """What gives a guest of this VMM a vsock device."""
    return {
        "qemu": "start QEMU with -device vhost-vsock-pci,guest-cid=3 (each guest a CID of its own)",
        "libvirt": "virsh edit it, <vsock model='virtio'><cid auto='yes'/></vsock> among its <devices>",
        "firecracker": 'PUT /vsock {"guest_cid": 3, "uds_path": "/run/vm.vsock"}, or "vsock" in its --config-file',
        "cloud-hypervisor": "start it with --vsock cid=3,socket=/run/vm.vsock",
        "crosvm": "start it with --vsock cid=3",
    }.get(vmm, "give its VMM a vsock device")
