"""`perf` over AF_VSOCK, beside the plainest send loop there is on the same way. How they compare is printed: under
emulation that says nothing that a test could hold anybody to."""

import json

import pytest

from tests.vm.rig import Level
from tests.vm.test_end_to_end import LIMIT, RULES, serving

SECONDS = "1"

# The same way and the same messages, without frames, event loops or checks. sys.argv: the CID, the port, seconds.
PLAIN = """
import os, socket, sys, time
cid, port, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
listener.bind((socket.VMADDR_CID_ANY, port))
listener.listen()
if not os.fork():
    connection, _ = listener.accept()
    buffer = memoryview(bytearray(1 << 20))
    while connection.recv_into(buffer):
        pass
    connection.send(b"!")
    os._exit(0)
sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
sock.connect((cid, port))
message, moved, began = bytes(1 << 20), 0, time.monotonic()
while time.monotonic() - began < seconds:
    sock.sendall(message)
    moved += len(message)
sock.shutdown(socket.SHUT_WR)
sock.recv(1)
print(moved / (time.monotonic() - began))
os.wait()
"""


def test_perf_measures_a_real_vsock_and_finds_every_byte_right(
    loopback: Level, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(loopback, *RULES["loopback"]) as site:
        done = site.host.run_cli(["perf", "-t", SECONDS, "--json", site.target], timeout=LIMIT)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["complete"]
        assert found["checked"]
        ratios = []
        for _ in range(2):
            plain = site.guest.python(PLAIN, "1", str(loopback.free_port()), SECONDS, timeout=LIMIT)
            assert plain.returncode == 0, plain.stderr
            again = site.host.run_cli(["perf", "--up", "-t", SECONDS, "--json", site.target], timeout=LIMIT)
            ours = json.loads(again.stdout)["up"]["up"]["bytes_per_second"]
            ratios.append((ours / float(plain.stdout), ours, float(plain.stdout)))
    with capsys.disabled():
        told = ", ".join(f"{ratio:.2f} ({a / 2**20:.0f} to {b / 2**20:.0f} MiB/s)" for ratio, a, b in sorted(ratios))
        print(f"\nperf --up beside a plain send loop over vsock loopback: {told}")
