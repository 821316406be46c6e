"""The guest's half of the smallest conversation: answers one caller on raw AF_VSOCK, prints its CID. See test_rig.py.

guest.py PORT
"""

import socket
import sys

with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as listener:
    listener.bind((socket.VMADDR_CID_ANY, int(sys.argv[1])))
    listener.listen()
    print("listening", flush=True)
    listener.settimeout(60)
    connection, (cid, _) = listener.accept()
    with connection:
        connection.settimeout(60)
        with connection.makefile("rb") as received:
            print(f"from CID {cid}: {received.readline().decode()}", end="", flush=True)
        connection.sendall(b"Hello, world! From the guest.\n")
