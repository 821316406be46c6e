"""The host's half of the smallest conversation: raw sockets, nothing of vsockfwd. See test_rig.py.

host.py GUEST PORT      GUEST is a CID, or the path of a hybrid vsock's UNIX socket
"""

import socket
import sys


def dial(guest: str, port: int) -> socket.socket:
    if guest.isdigit():
        vsock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        vsock.settimeout(60)
        vsock.connect((int(guest), port))
        return vsock
    hybrid = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    hybrid.settimeout(60)
    hybrid.connect(guest)
    hybrid.sendall(f"CONNECT {port}\n".encode())
    answer = b""
    while not answer.endswith(b"\n"):  # byte by byte: what follows the line is the guest's
        byte = hybrid.recv(1)
        if not byte:
            raise ConnectionRefusedError(f"no listener on the guest's port {port}")
        answer += byte
    return hybrid


# A line each: over a hybrid vsock, closing one direction closes the other as well.
with dial(sys.argv[1], int(sys.argv[2])) as connection:
    connection.sendall(b"Hello, world! From the host.\n")
    with connection.makefile("rb") as received:
        print(received.readline().decode(), end="", flush=True)
