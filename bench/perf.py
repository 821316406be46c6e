"""`vsockfwd perf` beside the plainest loop there is: what measuring, framing and checking cost of a socket's speed.

The loop: one Python process sends a mebibyte again and again over a UNIX socket, another receives into one buffer;
blocking calls, nothing looked at.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.harness import Table, accepts, running, setting, vsockfwd

SECONDS = 2.0
MESSAGE = 1 << 20


def plain(folder: Path) -> tuple[float, float]:
    """GiB/s of the loop, and CPU seconds a GiB of both of its processes."""
    path = str(folder / "plain.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        pid = os.fork()
        if not pid:
            _receive(listener)
            os._exit(0)
        before = os.times()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            message, moved, began = bytes(MESSAGE), 0, time.monotonic()
            while time.monotonic() - began < SECONDS:
                sock.sendall(message)
                moved += MESSAGE
            sock.shutdown(socket.SHUT_WR)
            sock.recv(1)
            took = time.monotonic() - began
        os.waitpid(pid, 0)
    os.unlink(path)
    used = os.times()
    cpu = sum(b - a for a, b in zip(before[:4], used[:4], strict=True))
    return moved / took / 2**30, cpu / (moved / 2**30)


def _receive(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    buffer = memoryview(bytearray(MESSAGE))
    while connection.recv_into(buffer):
        pass
    connection.close()


def ours(target: str, part: str, *words: str) -> tuple[float, float]:
    """The same of a part of perf: our process and the agent's."""
    command = vsockfwd("perf", f"--{part}", "-t", str(SECONDS), "--json", *words, target)
    found = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)[part]
    cpu = found["cpu_seconds"] + found["agent_cpu_seconds"]
    return found[part]["bytes_per_second"] / 2**30, cpu / (found[part]["bytes"] / 2**30)


def main(rounds: int) -> str:
    tables = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = f"{folder}/agent.sock"
        serve = vsockfwd("serve", "--listen", f"unix:{path}")
        with running(serve, ready=accepts(socket.AF_UNIX, path)):
            for part in ("up", "down"):
                table = Table(f"perf --{part} over a UNIX socket, {SECONDS:g} s", "GiB/s", "perf")
                for _ in range(rounds):
                    table.add("perf", *ours(f"unix:{path}", part))
                    table.add("plain loop", *plain(folder))
                    table.add("perf --no-check", *ours(f"unix:{path}", part, "--no-check"))
                    table.add("perf -P 2", *ours(f"unix:{path}", part, "-P", "2"))
                tables.append(table)
    return "\n".join([f"## perf beside a plain loop\n\n{setting()}\n", *(table.markdown() for table in tables)])


if __name__ == "__main__":
    print(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
