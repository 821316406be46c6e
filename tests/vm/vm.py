"""Boots one virtual machine on a machine that can run QEMU, the real one or another virtual one.

What belongs here: QEMU's command line, the wait until `inside.py` answers, and the end of QEMU by force. What the
machine boots from is initramfs.py's business, what stands on the two sides of a vsock is rig.py's.
"""

import secrets
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests import guard
from tests.vm import initramfs
from tests.vm.machine import Channel, Machine, MachineFailed, Process

HERE = Path(__file__).parent
TMP_INSIDE = "/tmp/vsockfwd-rig"


@dataclass(frozen=True)
class Hardware:
    """What a virtual machine is made of. `devices` are further arguments for QEMU."""

    accelerator: Literal["tcg", "kvm"]
    memory: str
    modules: Sequence[str]
    devices: Sequence[str] = ()


@dataclass(frozen=True)
class Booted:
    """A QEMU whose machine answers, and the channel by which it does."""

    qemu: Process
    channel: Channel


class VirtualMachine(Machine):
    """A machine that can lose its power. `boot` starts its QEMU, now and each time after."""

    def __init__(self, name: str, boot: Callable[[], Booted]) -> None:
        self._start_qemu = boot
        self._booted = boot()
        super().__init__(name, self._booted.channel, TMP_INSIDE)
        self.import_cli()

    def kill(self) -> None:
        """SIGKILL to its QEMU: nothing inside is told, and no file there is left."""
        self._booted.qemu.kill()
        self.channel.close()

    def boot(self) -> None:
        """After `kill`: the same machine again, as fresh as at first."""
        self._booted = self._start_qemu()
        self.channel = self._booted.channel
        self.mkdir(self.tmp, mode=0o1777)
        self.import_cli()


def boot(
    on: Machine, name: str, hardware: Hardware, *, folder: Path, listener: socket.socket, control: str, timeout: float
) -> Booted:
    """Boots a machine on another and returns once it answers. It lives until the machine it runs `on` ends.

    QEMU connects its control port to the UNIX socket `control` of the machine it runs on; that connection arrives at
    `listener`. What it boots from is left in `folder`, which that machine sees too. A boot that fails, or
    takes longer than `timeout` seconds, raises MachineFailed.
    """
    here = on.make_tmp()
    word = secrets.token_hex(16)  # as no parameter of the kernel's own, it becomes an environment variable inside
    image = folder / f"{name}.initramfs"
    image.write_bytes(initramfs.build(name, hardware.modules, TMP_INSIDE, folder))
    qemu = on.start(
        [
            *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
            *("-accel", hardware.accelerator, "-cpu", "host" if hardware.accelerator == "kvm" else "max"),
            # One CPU. With two, emulated in two threads, a kernel that patches its own code now and then dies of it
            # ("Oops: int3"), and this was no faster.
            *("-smp", "1", "-m", hardware.memory),
            # This firmware and pci=noearly each save the nested guest seconds of port access, which traps; so does
            # quiet, and what a kernel says when it dies is printed all the same.
            *("-bios", "qboot.rom", "-kernel", str(initramfs.kernel()), "-initrd", str(image)),
            *("-append", f"console=ttyS0 quiet panic=-1 mitigations=off pci=noearly {guard.RIG_WORD}={word}"),
            *("-serial", f"file:{here}/console"),
            *("-virtfs", "local,path=/,mount_tag=outside,security_model=none,readonly=on,multidevs=remap"),
            *("-device", "virtio-serial-pci", "-chardev", f"socket,id=control,path={control}"),
            *("-device", f"virtserialport,chardev=control,name={initramfs.CONTROL_PORT}"),
            *hardware.devices,
        ]
    )

    def last_words() -> str:
        console = on.read(f"{here}/console") if on.exists(f"{here}/console") else b""
        return "\n".join(
            [
                f"--- QEMU of {name}, return code {qemu.poll()} ---",
                qemu.stderr().decode(errors="replace"),
                "--- the end of its console ---",
                console[-8000:].decode(errors="replace"),
            ]
        )

    deadline = time.monotonic() + timeout

    def await_readable(waiting: socket.socket) -> None:
        while not select.select([waiting], [], [], 0.1)[0]:
            if qemu.poll() is not None or time.monotonic() > deadline:
                raise MachineFailed(f"{name} did not boot in {timeout} s\n{last_words()}")

    await_readable(listener)
    channel = Channel(listener.accept()[0], last_words)
    await_readable(channel.connection)
    try:
        channel.receive()
    except ConnectionError as error:
        raise MachineFailed(f"{name} did not boot\n{last_words()}") from error
    return Booted(qemu, channel)


@contextmanager
def real_machine(tmp: Path) -> Iterator[Machine]:
    """The machine the tests run on, by the same means. All that was started there ends with the context."""
    tmp.chmod(0o755)  # for whoever is not root
    near, far = socket.socketpair()
    with near:
        with far, open(tmp / "stderr", "wb") as stderr:
            server = subprocess.Popen(
                [sys.executable, str(HERE / "inside.py"), "-", str(tmp)],
                stdin=far.fileno(),
                stderr=stderr,
                start_new_session=True,  # an interrupt from the keyboard is for pytest
            )
        channel = Channel(near, (tmp / "stderr").read_text)
        channel.receive()
        try:
            yield Machine("real", channel, str(tmp))
        finally:
            near.shutdown(socket.SHUT_RDWR)  # which wakes a thread that waits there, as a close would not
            server.wait(60)
