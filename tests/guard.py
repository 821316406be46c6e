"""Makes AF_VSOCK sockets impossible for this process and all that it starts, but for the virtual machines of tests/vm.

On a machine that is itself a virtual machine, a vsock leads to a hypervisor that is not ours to talk to. So this is
not a patched `socket` module, which a child would not have, but a seccomp filter: the kernel applies it to every
thread, hands it down through fork and exec, and never takes it off again (seccomp(2)). The calls that could make such
a socket then fail with EPERM, and io_uring, which could make one without a system call, is as if it did not exist.

A filter sees numbers, and what they mean depends on the ABI that a call comes in by: x32 calls, which carry a bit of
their own, fail with EPERM too; a call by another architecture's numbers (i386 on x86_64) ends the process.
"""

import ctypes
import errno
import functools
import os
import platform
import struct
from pathlib import Path

AF_VSOCK = 40
RIG_WORD = "VSOCKFWD_RIG_WORD"

PR_SET_NO_NEW_PRIVS = 38
SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_TSYNC = 1
SECCOMP_RET_KILL_PROCESS = 0x8000_0000
SECCOMP_RET_ERRNO = 0x0005_0000
SECCOMP_RET_ALLOW = 0x7FFF_0000

# AUDIT_ARCH_*, then the numbers of seccomp, socket, socketpair and io_uring_setup.
SYSCALLS = {
    "x86_64": (0xC000_003E, 317, 41, 53, 425),
    "aarch64": (0xC000_00B7, 277, 198, 199, 425),
}
X32_SYSCALL_BIT = 0x4000_0000

# struct seccomp_data: where a filter finds the number, the architecture and the low half of the first argument. Only
# that half counts: the kernel takes `family` as an int. Both architectures here are little-endian.
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16
# BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_JMP|BPF_JGE|BPF_K, BPF_RET|BPF_K
LOAD, IF_EQUAL, IF_AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06


class Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def inside_rig() -> bool:
    """Whether this runs in a virtual machine of tests/vm: the word it was handed stands on the kernel's command line.

    Only who starts a kernel can put a word there, so an environment variable alone opens nothing.
    """
    word = os.environ.get(RIG_WORD, "")
    return len(word) >= 32 and f"{RIG_WORD}={word}" in Path("/proc/cmdline").read_text().split()


@functools.cache
def install() -> None:
    """Applies the filter to this process. A second call does nothing.

    OSError says that the kernel refused, NotImplementedError that no filter is known for this architecture. Tests
    must not go on after either.
    """
    machine = platform.machine()
    if machine not in SYSCALLS or ctypes.sizeof(ctypes.c_void_p) != 8:
        raise NotImplementedError(f"tests/guard.py has no filter for {machine}: see SYSCALLS")
    instructions = vsock_filter(machine)
    program = Program(len(instructions) // 8, instructions)
    libc = ctypes.CDLL(None, use_errno=True)
    # Without it, only root may set a filter: a set-user-ID program could be fooled by one.
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")
    libc.syscall.restype = ctypes.c_long
    seccomp = ctypes.c_long(SYSCALLS[machine][1])
    # By TSYNC every thread gets it at once; an answer above zero names one that could not.
    if outcome := libc.syscall(
        seccomp,
        ctypes.c_ulong(SECCOMP_SET_MODE_FILTER),
        ctypes.c_ulong(SECCOMP_FILTER_FLAG_TSYNC),
        ctypes.byref(program),
    ):
        raise OSError(ctypes.get_errno() or errno.ESRCH, f"seccomp filter not set, outcome {outcome}")


def vsock_filter(machine: str) -> bytes:
    """The program: BPF instructions as the kernel reads them, eight bytes each (struct sock_filter)."""
    architecture, _, socket, socketpair, io_uring_setup = SYSCALLS[machine]

    def step(code: int, value: int, *, then: int = 0, otherwise: int = 0) -> bytes:
        return struct.pack("=HBBI", code, then, otherwise, value)

    # A jump's `then` and `otherwise` count the instructions to leave out.
    return b"".join(
        [
            step(LOAD, ARCHITECTURE),
            step(IF_EQUAL, architecture, then=1),
            step(RETURN, SECCOMP_RET_KILL_PROCESS),
            step(LOAD, NUMBER),
            step(IF_AT_LEAST, X32_SYSCALL_BIT, then=7),
            step(IF_EQUAL, socket, then=4),
            step(IF_EQUAL, socketpair, then=3),
            step(IF_EQUAL, io_uring_setup, otherwise=1),
            step(RETURN, SECCOMP_RET_ERRNO | errno.ENOSYS),
            step(RETURN, SECCOMP_RET_ALLOW),
            step(LOAD, FIRST_ARGUMENT),
            step(IF_EQUAL, AF_VSOCK, otherwise=1),
            step(RETURN, SECCOMP_RET_ERRNO | errno.EPERM),
            step(RETURN, SECCOMP_RET_ALLOW),
        ]
    )
