"""The three levels of real vsock that tests run on, each a host and a guest, and how either addresses the other.

| level | host | guest |
|---|---|---|
| loopback | one virtual machine, CID 1 | the same |
| host_and_guest | a virtual machine with vhost_vsock | CID 3: a virtual machine inside it |
| hybrid | this machine, whose side of the vsock is vhost-device-vsock's UNIX socket | CID 3: a virtual machine |

Nothing here makes an AF_VSOCK socket on the machine the tests run on, and nothing here could: every process is a child
of pytest, under tests/guard.py. All of them end with it, killed or not: see `Commands.end` and `become` in inside.py.
"""

import itertools
import socket
import tempfile
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.vm.initramfs import CACHE
from tests.vm.machine import Machine, MachineFailed
from tests.vm.vm import Booted, Hardware, VirtualMachine, boot, real_machine

# Emulated, on a machine that may have other work: the boots take a tenth of it when nothing disturbs.
BOOT_TIMEOUT = 300.0
GUEST_CID = 3
RELAYED_PORT = "relayed"


@dataclass(frozen=True)
class Level:
    """A host and a guest that real vsock joins. The addresses are those of the vsockfwd command line."""

    name: str
    host: Machine
    guest: VirtualMachine
    guest_as_dialled: str
    guest_as_listening: str
    host_as_dialled: str
    host_as_listening: str
    _ports: Iterator[int] = field(default_factory=lambda: itertools.count(20_000), repr=False)

    def guest_address(self, port: int) -> str:
        """What the host dials to reach a listener in the guest."""
        return f"{self.guest_as_dialled}:{port}"

    def guest_listen(self, port: int) -> str:
        """What a listener in the guest is called there."""
        return f"{self.guest_as_listening}:{port}"

    def host_address(self, port: int) -> str:
        """What the guest dials to reach a listener of the host."""
        return f"{self.host_as_dialled}:{port}"

    def host_listen(self, port: int) -> str:
        """What a listener of the host is called there."""
        return f"{self.host_as_listening}:{port}"

    def free_port(self) -> int:
        """A port that nobody has used on this level: nothing but the tests runs there."""
        return next(self._ports)


class Rig:
    """The machines of one test run. What is to happen when it is over is left with `at_end`."""

    def __init__(self, real: Machine, tmp: Path, background: Executor, at_end: ExitStack) -> None:
        self.real = real
        self._tmp = tmp
        self._background = background
        self._at_end = at_end
        self._host_and_guest: Future[Level] | None = None

    def loopback(self) -> Level:
        hardware = Hardware("tcg", memory="3G", modules=["vsock_loopback"])
        machine = self._boot("loopback", hardware)
        return Level("loopback", machine, machine, "vsock:1", "vsock:1", "vsock:1", "vsock:any")

    def host_and_guest(self) -> Level:
        return self.begin_host_and_guest().result()

    def begin_host_and_guest(self) -> "Future[Level]":
        """Boots in the background: it takes as long as all else, and one CPU of those that run emulated."""
        if self._host_and_guest is None:
            self._host_and_guest = self._background.submit(self._boot_host_and_guest)
        return self._host_and_guest

    def _boot_host_and_guest(self) -> Level:
        with self._listening(RELAYED_PORT) as relayed:
            host = self._boot(
                "host",
                Hardware(
                    "tcg",
                    memory="6G",
                    modules=["vhost_vsock", "kvm_amd"],
                    devices=[
                        *("-chardev", f"socket,id=relayed,path={relayed.getsockname()}"),
                        *("-device", f"virtserialport,chardev=relayed,name={RELAYED_PORT}"),
                    ],
                ),
            )
            # The guest's control port ends in the host, as a UNIX socket there. From it to us leads a second port.
            control = f"{host.make_tmp()}/control"
            found = host.run(["sh", "-c", f"grep -lx {RELAYED_PORT} /sys/class/virtio-ports/*/name"], timeout=60)
            port = f"/dev/{Path(found.stdout.decode()).parent.name}"
            host.start(["socat", "-b", "65536", f"UNIX-LISTEN:{control}", f"OPEN:{port}"])
            host.wait_for(["test", "-S", control], timeout=60)
            hardware = Hardware(
                "kvm",  # which the emulated CPU offers
                memory="2G",
                modules=["vmw_vsock_virtio_transport"],
                devices=["-device", f"vhost-vsock-pci,guest-cid={GUEST_CID}"],
            )

            def start() -> Booted:
                if relayed.fileno() == -1:
                    raise MachineFailed("guest: it is booted once: the way to its control port is spent")
                return self._start_on(host, "guest", hardware, listener=relayed, control=control)

            guest = VirtualMachine("guest", start)
        return Level("host_and_guest", host, guest, f"vsock:{GUEST_CID}", "vsock:any", "vsock:2", "vsock:any")

    def hybrid(self) -> Level:
        device, vsock = self._tmp / "vhost-user", self._tmp / "hybrid"
        self.real.start(
            [
                str(CACHE / "vhost-device-vsock/usr/bin/vhost-device-vsock"),
                *("--guest-cid", str(GUEST_CID), "--socket", str(device), "--uds-path", str(vsock)),
            ]
        )
        self.real.wait_for(["test", "-S", str(device)], timeout=60)
        memory = "2G"
        guest = self._boot(
            "hybrid",
            Hardware(
                "tcg",
                memory=memory,
                modules=["vmw_vsock_virtio_transport"],
                devices=[
                    # The host side reads the guest's buffers in place.
                    *("-object", f"memory-backend-memfd,id=shared,share=on,size={memory}"),
                    *("-machine", "memory-backend=shared"),
                    *("-chardev", f"socket,id=vsock,path={device}", "-device", "vhost-user-vsock-pci,chardev=vsock"),
                ],
            ),
        )
        address = f"hybrid:{vsock}"
        return Level("hybrid", self.real, guest, address, "vsock:any", "vsock:2", address)

    def _boot(self, name: str, hardware: Hardware) -> VirtualMachine:
        def start() -> Booted:
            with self._listening(name) as listener:
                return self._start_on(self.real, name, hardware, listener=listener, control=listener.getsockname())

        return VirtualMachine(name, start)

    def _start_on(self, on: Machine, name: str, hardware: Hardware, *, listener: socket.socket, control: str) -> Booted:
        booted = boot(on, name, hardware, folder=self._tmp, listener=listener, control=control, timeout=BOOT_TIMEOUT)
        self._at_end.callback(booted.channel.connection.close)
        return booted

    @contextmanager
    def _listening(self, name: str) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX) as listener:
            path = self._tmp / f"{name}.control"
            path.unlink(missing_ok=True)
            listener.bind(str(path))
            listener.listen()
            yield listener


@contextmanager
def rig() -> Iterator[Rig]:
    """Boots nothing yet. After the context, no machine is left and no process of theirs."""
    with ExitStack() as at_end:
        tmp = Path(tempfile.mkdtemp(prefix="vsockfwd-rig-"))  # the real machine's command server removes it
        # Left after the real machine, without which no boot can go on.
        background = at_end.enter_context(ThreadPoolExecutor(max_workers=1))
        real = at_end.enter_context(real_machine(tmp))
        yield Rig(real, tmp, background, at_end)
