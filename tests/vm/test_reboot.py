"""A guest that is killed and booted again, under an `up` on the host that nobody looks after.

The thing to understand first: nothing in the guest gets to say goodbye. What the host learns, it learns from the vsock
device, for which a killed guest's connections have ended as any other.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from tests.vm.machine import Process
from tests.vm.rig import Level

LIMIT = 240.0
# An answer without a length: where the connection ends, it does. `large` lasts longer than its guest.
ANSWER = r"""
read method path version
printf 'HTTP/1.0 200 OK\r\n\r\nfrom the guest'
if [ "$path" = /large ]; then while head -c 10000 /dev/zero; do sleep 0.1; done; fi
"""
GUEST_WEB, GUEST_ENTRANCE = "127.0.0.1:7005", "127.0.0.1:7006"


@contextmanager
def inhabited(level: Level, agent_port: int) -> Iterator[None]:
    """What runs in a guest as long as it lives: an agent and a server."""
    folder = level.guest.make_tmp()
    level.guest.write(f"{folder}/answer", ANSWER.encode())
    bind, port = GUEST_WEB.split(":")
    web = ["socat", "-t60", f"TCP-LISTEN:{port},bind={bind},reuseaddr,fork", f"EXEC:sh {folder}/answer"]
    serve = ["serve", "-v", "--listen", level.guest_listen(agent_port), "--allow-cid", "host"]
    with level.guest.start(web), level.guest.cli(serve) as agent:
        level.guest.wait_for(["sh", "-c", f"ss -ltn | grep -q {GUEST_WEB}"], LIMIT)
        agent.wait_output("listening on", LIMIT)
        yield


IS_RESET = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as client:
    try:
        client.recv(1)
    except ConnectionResetError:
        print("connected, reset", end="")
"""
"""What curl cannot tell from a refusal: a reset that comes before it has looked whether it is connected."""


def test_rules_outlive_a_guest_that_is_killed_and_serve_the_one_booted_in_its_place(hybrid: Level) -> None:
    host, guest = hybrid.host, hybrid.guest
    agent_port, folder = hybrid.free_port(), host.make_tmp()
    config = f"""
        targets.guest = "{hybrid.guest_address(agent_port)}"

        [[forward]]
        name = "local"
        target = "guest"
        listen = "tcp:0"
        connect = "tcp:{GUEST_WEB}"
        when-down = "accept"

        [[forward]]
        name = "remote"
        kind = "remote"
        target = "guest"
        listen = "tcp:{GUEST_ENTRANCE}"
        connect = "unix:{folder}/host-service"
    """
    host.write(f"{folder}/config", config.encode())
    control = ["--control", f"{folder}/control"]

    def status() -> dict[str, Any]:
        done = host.run_cli(["status", "--json", *control], timeout=LIMIT)
        return {row["name"]: row for row in json.loads(done.stdout)["rules"]}

    def await_states(pattern: str, up: Process) -> None:
        for rule in ("local", "remote"):
            up.wait_output(f"^vsockfwd: {rule}: {pattern}", LIMIT)

    def assert_both_ways() -> None:
        curl = host.run(["curl", "-sS", f"http://{web}/"], timeout=LIMIT)
        assert (curl.returncode, curl.stdout) == (0, b"from the guest"), curl.stderr
        asked = guest.run(["socat", "-t60", "-", f"TCP:{GUEST_ENTRANCE}"], timeout=LIMIT)
        assert (asked.returncode, asked.stdout) == (0, b"from the host\n"), asked.stderr

    with ExitStack() as stack:
        stack.enter_context(inhabited(hybrid, agent_port))
        service = ["socat", f"UNIX-LISTEN:{folder}/host-service,fork", "SYSTEM:echo from the host"]
        stack.enter_context(host.start(service))
        up = stack.enter_context(host.cli(["up", "-v", "--config", f"{folder}/config", *control]))
        await_states("up$", up)
        web = up.wait_output(r"listening on tcp:(127\.0\.0\.1:\d+) → tcp:127.0.0.1:7005", LIMIT)[1].decode()
        assert_both_ways()

        large = ["curl", "-sS", "-o", f"{folder}/large", f"http://{web}/large"]
        curl = stack.enter_context(host.start(large))
        host.wait_for(["test", "-s", f"{folder}/large"], LIMIT)
        guest.kill()
        assert curl.wait(LIMIT) == 56, "the cut looked like an end"
        await_states("down: ", up)
        down = status()
        assert {row["state"] for row in down.values()} == {"down"}
        assert all(row["why"] for row in down.values())
        assert down["local"]["listening"], "when-down is accept"
        refused = host.run([sys.executable, "-c", IS_RESET, *web.split(":")], timeout=LIMIT)
        assert refused.stdout == b"connected, reset", refused.stderr

        guest.boot()
        stack.enter_context(inhabited(hybrid, agent_port))
        await_states("up: again$", up)
        assert_both_ways()
        assert {row["state"] for row in status().values()} == {"up"}
