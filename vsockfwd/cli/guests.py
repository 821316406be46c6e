"""`vsockfwd guests`: the guests of this machine, and what to type for each."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Annotated

import typer

from vsockfwd.address import Address
from vsockfwd.cli.config_file import load_targets
from vsockfwd.engine.invocation import Invocation
from vsockfwd.errors import printable
from vsockfwd.guests.guest import Guest, typed_as
from vsockfwd.guests.machine import Machine


def guests(
    invocation: Invocation,
    names: Annotated[bool, typer.Option("--names", help="print what can be typed as a TARGET, no more")] = False,
) -> int:
    """List the guests of this machine and the config file's targets, with what to type for each.

    They are found by the command lines of QEMU, Firecracker, Cloud Hypervisor, crosvm and vhost-device-vsock, by what
    libvirt and systemd-machined noted; no guest is asked. A bare name is a guest of yours or root's.
    """
    targets = load_targets()
    found = Machine().guests()
    typed = {guest: typed_as(guest, found, os.geteuid()) for guest in found}
    # The config file's names come first: a guest of such a name is meant by its address.
    typed |= {guest: _address(guest.address) for guest in found if guest.name in targets and typed[guest]}
    if names:
        for word in sorted({*targets, *filter(None, typed.values())}):
            print(printable(word))
    elif invocation.json:
        invocation.answer("guests", guests=_told(typed, targets))
    else:
        _print_table(typed, targets)
    return 0


def _address(address: Address | None) -> str:
    return "" if address is None else address.bare()


def _told(typed: dict[Guest, str], targets: Mapping[str, Address]) -> list[dict[str, object]]:
    told: list[dict[str, object]] = [
        {
            "target": word, "name": guest.name, "vmm": guest.vmm, "address": _address(guest.address),
            "user": guest.user, "pid": guest.pid, "source": guest.source, "note": guest.note,
        }
        for guest, word in typed.items()
    ]  # fmt: skip
    told += [
        {"target": name, "name": name, "vmm": "", "address": str(address), "user": "", "pid": 0, "source": "config",
         "note": ""}
        for name, address in targets.items()
    ]  # fmt: skip
    return told


def _print_table(typed: dict[Guest, str], targets: Mapping[str, Address]) -> None:
    rows = [
        (word or "–", guest.name or "–", guest.vmm, _address(guest.address) or "–", guest.user, str(guest.pid))
        for guest, word in typed.items()
    ]
    rows += [(name, name, "config file", str(address), "–", "–") for name, address in targets.items()]
    if not rows:
        print("no guest is running here, and the config file names no target", file=sys.stderr)
        return
    head = ("TARGET", "NAME", "FROM", "ADDRESS", "USER", "PID")
    shown = [head, *(tuple(map(printable, row)) for row in rows)]
    widths = [max(len(row[column]) for row in shown) for column in range(len(head))]
    for row in shown:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    for guest in typed:
        if guest.note:
            print(f"{printable(guest.name) or f'pid {guest.pid}'}: {printable(guest.note)}", file=sys.stderr)
