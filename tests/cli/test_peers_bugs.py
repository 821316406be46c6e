"""The bugs that tools like this one repeat, each with the number under which it was reported elsewhere.

By the command line, with real processes and sockets. Closer to the code the same is held in tests/engine (relays,
sessions, listening) and tests/transport/test_hybrid.py.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.process import Server, agent, wait_until
from tests.cli.vmm import Loss, Vmm, connect, to

REPLY = bytes(range(256)) * (20 << 10)  # 5 MiB
SECONDS = 10.0
"""A test that waits so long has hung."""

Serve = Callable[[socket.socket], None]


@contextlib.contextmanager
def service(path: Path, serve: Serve) -> Iterator[None]:
    """A server on a UNIX socket; each connection has a thread of its own, and is closed at its end."""

    def handle(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):  # a client may be gone
            sock.settimeout(SECONDS)
            serve(sock)

    def accept() -> None:
        with contextlib.suppress(OSError):  # shut down: the block has ended
            while True:
                threading.Thread(target=handle, args=(listener.accept()[0],), daemon=True).start()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(100)
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def read_all(sock: socket.socket) -> bytes:
    data = bytearray()
    while piece := sock.recv(1 << 20):
        data += piece
    return bytes(data)


def call(forward: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", forward.port), SECONDS)


# --- Half-close: Lima 5264 and 5329, cloud-hypervisor 8300, vhost-device 874, gvproxy 387


@contextlib.contextmanager
def raw(folder: Path) -> Iterator[Server]:
    with Server("forward", "tcp:0", f"unix:{folder}/service.sock") as forward:
        yield forward


@contextlib.contextmanager
def through_agent(folder: Path) -> Iterator[Server]:
    with agent(folder), Server("forward", "-L", f"0:{folder}/service.sock", f"unix:{folder}/agent.sock") as forward:
        yield forward


def through_vmm(loss: Loss) -> Callable[[Path], contextlib.AbstractContextManager[Server]]:
    @contextlib.contextmanager
    def way(folder: Path) -> Iterator[Server]:
        target = f"hybrid:{folder}/vm.sock:876"
        with agent(folder), Vmm(folder / "vm.sock", to(folder / "agent.sock"), loss):
            with Server("forward", "-L", f"0:{folder}/service.sock", target) as forward:
                yield forward

    return way


WAYS = {"raw": raw, "an agent": through_agent} | {
    f"a VMM that {loss.value}": through_vmm(loss) for loss in (Loss.CLOSES, Loss.SWALLOWS)
}


@pytest.mark.parametrize("first", ["the client", "the server"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_who_says_its_end_first_still_gets_the_whole_reply(tmp_path: Path, way, first: str):
    """Between two of ours an end is a frame, so that it survives a VMM that loses or exaggerates a shutdown."""
    heard: list[bytes] = []

    def ask(sock: socket.socket) -> bytes:
        sock.sendall(b"question")
        sock.shutdown(socket.SHUT_WR)
        return read_all(sock)

    def answer(sock: socket.socket) -> None:
        heard.append(read_all(sock))
        sock.sendall(REPLY)

    client, server = (ask, answer) if first == "the client" else (answer, ask)
    replies: list[bytes] = []
    served = threading.Event()

    def serve(sock: socket.socket) -> None:
        if server is ask:
            replies.append(ask(sock))
        else:
            answer(sock)
        served.set()

    with service(tmp_path / "service.sock", serve), way(tmp_path) as forward, call(forward) as sock:
        if client is ask:
            replies.append(ask(sock))
        else:
            answer(sock)
            sock.shutdown(socket.SHUT_WR)
        assert served.wait(SECONDS)
        assert forward.wait_for("closed")[0]["outcome"]["ending"] == "complete"  # type: ignore[index]
    assert heard == [b"question"]
    assert replies == [REPLY]


@pytest.mark.parametrize("loss", Loss)
def test_a_plain_guest_behind_a_vmm_answers_a_client_that_has_ended(tmp_path: Path, loss: Loss):
    """Without frames the end cannot be told: it is withheld rather than let it kill the answer."""

    def serve(sock: socket.socket) -> None:
        assert sock.recv(100) == b"question\n"
        sock.sendall(REPLY)

    with (
        service(tmp_path / "service.sock", serve),
        Vmm(tmp_path / "vm.sock", to(tmp_path / "service.sock"), loss),
        Server("forward", "tcp:0", f"hybrid:{tmp_path}/vm.sock:80") as forward,
        call(forward) as sock,
    ):
        sock.sendall(b"question\n")
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == REPLY


# --- Who speaks first: Lima 2968, systemd 39722


@pytest.mark.parametrize("way", [raw, through_agent])
def test_a_server_that_speaks_first_is_heard_by_a_client_that_is_silent(tmp_path: Path, way):
    """Lima 2968: the dial waited for the client's first bytes."""
    with service(tmp_path / "service.sock", lambda sock: sock.sendall(b"220 hello\r\n")):
        with way(tmp_path) as forward, call(forward) as sock:
            assert read_all(sock) == b"220 hello\r\n"


def test_what_a_server_says_in_the_segment_of_the_vmms_ok_is_neither_lost_nor_mixed_up(tmp_path: Path):
    """systemd 39722: more, or less, than the line was taken for the answer to CONNECT."""
    greeting = b"OK 7\nOK 220 hello\r\n"  # looks like the line itself

    def dial(host: socket.socket) -> socket.socket:
        guest = connect(tmp_path / "service.sock")
        host.sendall(b"OK 1073741824\n" + guest.recv(100))
        return guest

    def serve(sock: socket.socket) -> None:
        sock.sendall(greeting)
        sock.sendall(b"you said " + sock.recv(100))

    with (
        service(tmp_path / "service.sock", serve),
        Vmm(tmp_path / "vm.sock", dial),
        Server("forward", "tcp:0", f"hybrid:{tmp_path}/vm.sock:25") as forward,
        call(forward) as sock,
    ):
        assert sock.recv(len(greeting), socket.MSG_WAITALL) == greeting
        sock.sendall(b"EHLO")
        assert read_all(sock) == b"you said EHLO"


# --- Descriptors: Lima 5210


def descriptors(server: Server) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def outcome_of(forward: Server, how: str) -> None:
    """One connection that ends in this way; the server obeys what it reads."""
    with contextlib.suppress(ConnectionError), call(forward) as sock:
        if how == "gone at once":
            return
        sock.sendall(how.encode())
        if how == "client ends":
            sock.shutdown(socket.SHUT_WR)
        if how == "client resets":
            sock.recv(100)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif how != "left open":
            read_all(sock)


OUTCOMES = ("client ends", "server ends", "client resets", "gone at once", "left open")


def obey(sock: socket.socket) -> None:
    said = sock.recv(100)
    sock.sendall(said)
    if said != b"server ends":
        sock.recv(100)


@pytest.mark.parametrize("through", ["raw", "an agent"])
def test_five_hundred_connections_of_every_outcome_leave_no_descriptor(tmp_path: Path, through: str):
    """Lima 5210: one descriptor for each connection stayed."""
    path = tmp_path / "service.sock"
    with contextlib.ExitStack() as stack:
        if through == "raw":
            forward = stack.enter_context(Server("forward", "tcp:0", f"unix:{path}"))
            watched = [forward]
        else:
            guest = stack.enter_context(agent(tmp_path))
            forward = stack.enter_context(Server("forward", "-L", f"0:{path}", f"unix:{tmp_path}/agent.sock"))
            watched = [forward, guest]
        before = [descriptors(server) for server in watched]
        with service(path, obey):
            for number in range(420):
                outcome_of(forward, OUTCOMES[number % len(OUTCOMES)])
        for _ in range(40):
            outcome_of(forward, "refused: nothing listens there")
        path.unlink()
        for _ in range(40):
            outcome_of(forward, "unreachable: nothing is there")
        endings = {str(event["outcome"]["ending"]) for event in forward.wait_for("closed", 500)}  # type: ignore[index]
        assert {"complete", "refused"} < endings
        # Fewer may be left: at its start a process looks around with some of its own.
        wait_until(lambda: all(descriptors(server) <= count for server, count in zip(watched, before, strict=True)))


# --- What concerns one connection must not concern another: viproxy, vsock-proxy


@pytest.mark.parametrize("through", ["raw", "an agent"])
def test_a_dial_that_gets_no_answer_delays_nobody_else(tmp_path: Path, through: str):
    """viproxy dials in its accept loop."""
    asked = threading.Event()

    def dial(host: socket.socket) -> socket.socket | None:
        if not asked.is_set():
            asked.set()
            return None  # the first is never answered
        return to(tmp_path / "service.sock")(host)

    with contextlib.ExitStack() as stack:
        stack.enter_context(service(tmp_path / "service.sock", lambda sock: sock.sendall(b"here I am")))
        stack.enter_context(Vmm(tmp_path / "vm.sock", dial))
        slow = f"hybrid:{tmp_path}/vm.sock:80"
        if through == "raw":
            forward = stack.enter_context(Server("forward", "--drain", "0.1", "tcp:0", slow))
        else:
            stack.enter_context(agent(tmp_path))
            words = ("forward", "--drain", "0.1", "-L", f"0:[{slow}]")
            forward = stack.enter_context(Server(*words, f"unix:{tmp_path}/agent.sock"))
        with call(forward):
            assert asked.wait(SECONDS)
            for _ in range(3):
                with call(forward) as sock:
                    assert read_all(sock) == b"here I am"


@pytest.mark.parametrize("through", ["raw", "an agent"])
def test_a_name_that_does_not_resolve_ends_its_own_connection_alone(tmp_path: Path, through: str):
    """vsock-proxy's process ends when a lookup fails."""
    nowhere, path = "no-such-name.invalid", tmp_path / "service.sock"
    with contextlib.ExitStack() as stack:
        stack.enter_context(service(path, lambda sock: sock.sendall(sock.recv(100))))
        if through == "raw":
            forward = stack.enter_context(Server("forward", f"unix:{tmp_path}/nowhere.sock", f"tcp:{nowhere}:80"))
        else:
            words = ("forward", "-L", f"{tmp_path}/nowhere.sock:{nowhere}:80", "-L", f"{tmp_path}/other.sock:{path}")
            stack.enter_context(agent(tmp_path))
            forward = stack.enter_context(Server(*words, f"unix:{tmp_path}/agent.sock"))
            forward.wait_for("listening", 2)
            other = stack.enter_context(connect(tmp_path / "other.sock"))
        for count in (1, 2):
            with connect(tmp_path / "nowhere.sock") as sock, contextlib.suppress(ConnectionResetError):
                sock.settimeout(SECONDS)
                assert read_all(sock) == b""
            outcome = forward.wait_for("closed", count)[-1]["outcome"]
            assert f"the name {nowhere} does not resolve" in str(outcome["why"])  # type: ignore[index]
        if through == "an agent":
            other.settimeout(SECONDS)
            other.sendall(b"still served")
            assert other.recv(100) == b"still served"
        assert forward.process.poll() is None
