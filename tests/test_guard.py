"""What must not be possible during a test run: an AF_VSOCK socket that leads to somebody else's hypervisor.

Nothing here connects one, so that a broken guard fails a test and does no harm. Each test reaches for a socket in
another way; a kernel without AF_VSOCK would refuse too, but not with EPERM.
"""

import ctypes
import errno
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests import guard

pytestmark = pytest.mark.skipif(guard.inside_rig(), reason="lifted: this is a virtual machine of our own")

ONLY_X86_64 = pytest.mark.skipif(platform.machine() != "x86_64", reason="x86_64 has this second way in")
CHECKOUT = Path(__file__).parent.parent
# getpid by way of machine code, whose result a guarded process must never see.
CALL = """
import ctypes, mmap
code = bytes.fromhex({code!r})
memory = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
memory.write(code)
call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
print(call())
"""


def run_python(source: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", source],
        cwd=CHECKOUT,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_the_test_run_itself_cannot_make_a_vsock(kind: socket.SocketKind) -> None:
    with pytest.raises(PermissionError):
        socket.socket(guard.AF_VSOCK, kind)


def test_the_test_run_cannot_make_a_pair_of_vsocks() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    pair = (ctypes.c_int * 2)()
    assert libc.socketpair(guard.AF_VSOCK, socket.SOCK_STREAM, 0, pair) == -1
    assert ctypes.get_errno() == errno.EPERM


def test_all_other_sockets_are_left_alone() -> None:
    for family in (socket.AF_UNIX, socket.AF_INET):
        socket.socket(family).close()
    for end in socket.socketpair():
        end.close()


def test_garbage_above_the_family_does_not_hide_it() -> None:
    """The kernel looks at 32 bits of the register; so must the filter."""
    number = guard.SYSCALLS[platform.machine()][2]
    libc = ctypes.CDLL(None, use_errno=True)
    family = ctypes.c_ulong(0xDEAD_0000_0000 | guard.AF_VSOCK)
    assert libc.syscall(ctypes.c_long(number), family, ctypes.c_ulong(1), ctypes.c_ulong(0)) == -1
    assert ctypes.get_errno() == errno.EPERM


def test_io_uring_which_could_make_a_socket_unseen_is_not_there() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    number = guard.SYSCALLS[platform.machine()][4]
    parameters = ctypes.create_string_buffer(256)
    assert libc.syscall(ctypes.c_long(number), ctypes.c_ulong(4), parameters) == -1
    assert ctypes.get_errno() == errno.ENOSYS


def test_a_python_child_cannot_make_a_vsock() -> None:
    child = run_python("import socket; socket.socket(40, socket.SOCK_STREAM)")
    assert "PermissionError" in child.stderr


@pytest.mark.skipif(shutil.which("socat") is None, reason="socat is not installed")
def test_socat_cannot_make_a_vsock() -> None:
    # It would listen, not connect, if the guard let it.
    socat = subprocess.run(
        ["socat", "-u", "VSOCK-LISTEN:40404", "STDOUT"], capture_output=True, text=True, timeout=5, check=False
    )
    assert socat.returncode != 0
    assert "Operation not permitted" in socat.stderr


def test_threads_that_ran_before_are_guarded_too() -> None:
    child = run_python(
        "import socket, threading\n"
        "from tests import guard\n"
        "installed = threading.Event()\n"
        "def later():\n"
        "    installed.wait()\n"
        "    filters = next(line for line in open('/proc/thread-self/status') if line.startswith('Seccomp_filters'))\n"
        "    print(filters.split()[1])\n"
        "thread = threading.Thread(target=later)\n"
        "print(next(line for line in open('/proc/self/status') if line.startswith('Seccomp_filters')).split()[1])\n"
        "thread.start()\n"
        "guard.install()\n"
        "guard.install()\n"
        "installed.set()\n"
        "thread.join()\n"
    )
    before, in_the_thread = map(int, child.stdout.split())
    assert in_the_thread == before + 1, child.stderr


@ONLY_X86_64
def test_a_call_by_the_numbers_of_i386_ends_the_process() -> None:
    # mov eax, 20 (getpid); int 0x80; ret
    child = run_python(CALL.format(code="b814000000 cd80 c3"))
    assert child.returncode == -signal.SIGSYS
    assert not child.stdout


@ONLY_X86_64
def test_a_call_by_the_numbers_of_x32_is_refused() -> None:
    # mov eax, 0x40000000 + 39 (getpid); syscall; ret
    child = run_python(CALL.format(code="b827000040 0f05 c3"))
    assert child.stdout.split() == [str(-errno.EPERM)]


def test_an_environment_variable_alone_does_not_lift_it() -> None:
    """Not one with a made-up word, nor with what does stand on this kernel's command line."""
    source = "import socket; from tests import guard; print(guard.inside_rig()); socket.socket(40, socket.SOCK_STREAM)"
    words = ["", "f" * 32, *Path("/proc/cmdline").read_text().split()[:5], Path("/proc/cmdline").read_text().strip()]
    for word in words:
        child = run_python(source, **{guard.RIG_WORD: word})
        assert child.stdout.split() == ["False"]
        assert "PermissionError" in child.stderr
