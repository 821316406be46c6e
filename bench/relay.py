"""The raw relay, TCP client → relay → UNIX socket → server, against socat and HAProxy.

    python -m bench.relay [ROUNDS]

Bulk: the server sends 2 GiB to a client that discards them. Connections: nginx serves a short page, wrk asks for it
with `Connection: close`, 32 at a time.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.harness import Table, accepts, free_port, running, setting, version, vsockfwd

BULK = 2 << 30
OURS = "vsockfwd forward"


def haproxy_config(folder: Path, port: int, socket_path: str) -> str:
    path = folder / f"haproxy-{port}.cfg"
    path.write_text(
        "global\n  nbthread 1\n  maxconn 4000\ndefaults\n  mode tcp\n  option splice-auto\n"
        "  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n"
        f"listen relay\n  bind 127.0.0.1:{port}\n  server s unix@{socket_path}\n"
    )
    return str(path)


def contenders(folder: Path, target: str) -> dict[str, Callable[[int], list[str]]]:
    """Name → the command that relays a TCP port to the UNIX socket."""
    found: dict[str, Callable[[int], list[str]]] = {
        OURS: lambda port: vsockfwd("forward", "-q", f"tcp:{port}", f"unix:{target}")
    }
    if shutil.which("socat"):
        found["socat"] = lambda port: _socat([], port, target)
        found["socat -b1048576"] = lambda port: _socat(["-b1048576"], port, target)
    if haproxy := shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin"):
        found["HAProxy, 1 thread"] = lambda port: [haproxy, "-db", "-f", haproxy_config(folder, port, target)]
    return found


def _socat(flags: list[str], port: int, target: str) -> list[str]:
    listen = f"TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr,backlog=4096"
    return ["socat", *flags, listen, f"UNIX-CONNECT:{target}"]


@contextlib.contextmanager
def source(path: str) -> Iterator[None]:
    """A server in a process of its own that sends BULK bytes to each who connects and says a line first."""
    code = (
        "import socket,sys,threading\n"
        f"s=socket.socket(socket.AF_UNIX);s.bind({path!r});s.listen(64)\n"
        "block=bytes(1<<20)\n"
        "def serve(c):\n"
        " n=int(c.recv(64) or 0)\n"
        " while n>0: n-=c.send(block[:n])\n"
        " c.close()\n"
        "while True: threading.Thread(target=serve,args=(s.accept()[0],),daemon=True).start()\n"
    )
    with running([sys.executable, "-c", code], ready=Path(path).exists):
        yield


def fetch(family: int, address: object, size: int) -> float:
    """Seconds to receive `size` bytes from a source."""
    buffer = bytearray(1 << 20)
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.connect(address)  # type: ignore[arg-type]
        began = time.monotonic()
        sock.send(b"%d" % size)
        got = 0
        while got < size:
            count = sock.recv_into(buffer)
            if not count:
                raise RuntimeError(f"cut off after {got} bytes")
            got += count
        return time.monotonic() - began


def bulk(folder: Path, rounds: int) -> Table:
    table = Table("Bulk, TCP → UNIX, one stream of 2 GiB", "GiB/s", OURS)
    target = str(folder / "source.sock")
    with source(target):
        for _ in range(rounds):
            for name, command in contenders(folder, target).items():
                port = free_port()
                address = ("127.0.0.1", port)
                with running(command(port), ready=accepts(socket.AF_INET, address)) as started:
                    fetch(socket.AF_INET, address, 64 << 20)
                    before = started.cpu_seconds()
                    seconds = fetch(socket.AF_INET, address, BULK)
                    time.sleep(0.1)
                    used = started.cpu_seconds() - before
                table.add(name, BULK / seconds / (1 << 30), used / (BULK / (1 << 30)))
            table.add("direct, no relay", BULK / fetch(socket.AF_UNIX, target, BULK) / (1 << 30), 0.0)
    return table


@contextlib.contextmanager
def nginx(folder: Path, path: str) -> Iterator[None]:
    """One nginx worker on a UNIX socket, serving a short page."""
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log /dev/null; user root;\n"
        "events { worker_connections 4096; }\n"
        f"http {{ access_log off; keepalive_requests 1000000; server {{ listen unix:{path} backlog=4096;\n"
        f"  location / {{ return 200 'hello\\n'; }} }} }}\n"
    )
    with running([program, "-c", str(config), "-p", str(folder)], ready=accepts(socket.AF_UNIX, path)):
        yield


def requests_a_second(port: int, clients: int, close: bool, seconds: int = 3) -> float:
    """wrk's figure."""
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s"] + (["-H", "Connection: close"] if close else [])
    done = subprocess.run([*command, f"http://127.0.0.1:{port}/"], capture_output=True, text=True, check=True)
    match = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    if not match:
        raise RuntimeError(done.stdout)
    return float(match[1])


def requests(folder: Path, rounds: int, title: str, clients: int, close: bool) -> Table:
    table = Table(title, "per second", OURS)
    target = str(folder / f"nginx-{clients}-{close}.sock")
    with nginx(folder, target):
        for _ in range(rounds):
            for name, command in contenders(folder, target).items():
                port = free_port()
                with running(command(port), ready=accepts(socket.AF_INET, ("127.0.0.1", port))):
                    requests_a_second(port, clients, close, 1)
                    table.add(name, requests_a_second(port, clients, close))
    return table


def main(rounds: int = 5) -> str:
    """Run all cases; returns Markdown."""
    with tempfile.TemporaryDirectory(prefix="vsockfwd-bench-") as name:
        folder = Path(name)
        parts = [bulk(folder, rounds).markdown()]
        if shutil.which("wrk"):
            parts += [
                requests(folder, rounds, "New connections, 32 at a time", 32, True).markdown(),
                requests(folder, rounds, "Keep-alive, 1 client", 1, False).markdown(),
                requests(folder, rounds, "Keep-alive, 64 clients", 64, False).markdown(),
            ]
    peers = "; ".join((version("socat", "-V"), version("haproxy", "-v"), version("nginx", "-v"), version("wrk", "-v")))
    return f"## Raw relay, TCP → UNIX\n\n{setting()}. {peers}.\n\n" + "\n".join(parts)


if __name__ == "__main__":
    print(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
