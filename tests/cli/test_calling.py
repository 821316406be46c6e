"""`serve --connect` and targets that wait, as users run them: real processes, and curl that knows nothing of it."""

from __future__ import annotations

import functools
import http.server
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.process import Server, error_of
from tests.peers import need
from vsockfwd.address import parse_target
from vsockfwd.cli.serve import check_calling
from vsockfwd.errors import VsockfwdError
from vsockfwd.policy import Policy


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def website(tmp_path: Path) -> Iterator[int]:
    """A web server's port on loopback; it has `page`."""
    (tmp_path / "www").mkdir()
    (tmp_path / "www/page").write_text("what was asked for")
    handler = functools.partial(_Quiet, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def page(port: int) -> bytes:
    url = f"http://127.0.0.1:{port}/page"
    return subprocess.run([need("curl"), "-sS", "--max-time", "20", url], capture_output=True, check=False).stdout


def test_an_agent_that_calls_serves_a_forward_and_either_side_may_be_killed_and_come_back(
    website: int, tmp_path: Path
) -> None:
    place = f"unix:{tmp_path}/home"
    spec = f"0:127.0.0.1:{website}"
    with Server("serve", "--connect", place, first="clientaway") as guest:
        with Server("forward", "-L", spec, f"accept:{place}") as forward:
            assert page(forward.port) == b"what was asked for"
            guest.signal(signal.SIGKILL)
            forward.wait_for("sessiondown")
            with Server("serve", "--connect", place, first="clientfound") as again:
                assert page(forward.port) == b"what was asked for"
                forward.signal(signal.SIGKILL)
                again.wait_for("clientaway")
                with Server("forward", "-L", spec, f"accept:{place}") as heir:  # the socket's file was left behind
                    assert page(heir.port) == b"what was asked for"
                    heir.signal(signal.SIGTERM)
                    assert not (tmp_path / "home").exists()


def test_a_second_command_at_a_place_is_told_and_the_first_goes_on(website: int, tmp_path: Path) -> None:
    place = f"unix:{tmp_path}/home"
    with (
        Server("serve", "--connect", place, first="clientaway"),
        Server("forward", "-L", f"0:127.0.0.1:{website}", f"accept:{place}") as forward,
    ):
        code, told = error_of("ping", f"accept:{place}")
        assert code == 73
        assert told.endswith("a command that waits for calls needs a place of its own; is another there?")
        assert page(forward.port) == b"what was asked for"


def test_a_command_that_nobody_calls_ends_in_time_and_leaves_nothing(tmp_path: Path) -> None:
    code, told = error_of("ping", f"accept:unix:{tmp_path}/home,connect-timeout=0.2")
    assert code == 75
    assert "nobody has called within 0.2 s – is `vsockfwd serve --connect …` running there" in told
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("address", "code", "said"),
    [
        ("tcp:5000", 77, "nobody is let in over TCP without a key"),
        ("vsock:host:5000", 77, "who listens there would not be let in: the host's process is not priv"),
        ("vsock:3:876", 77, "--allow-cid 3"),
        ("hybrid:/run/vm:5000", 77, "--allow-guest"),
        ("vsock:any:5000", 2, "the CID any is for listening"),
        ("accept:unix:/s", 2, "here it is --connect unix:/s"),
    ],
)
def test_a_call_that_would_be_in_vain_is_refused_at_once(address: str, code: int, said: str) -> None:
    with pytest.raises(VsockfwdError) as caught:
        check_calling(parse_target(address), Policy(own_uid=1000))
    assert caught.value.exit_code == code
    assert said in caught.value.line()


@pytest.mark.parametrize("address", ["vsock:host", "2", "unix:/s", "abstract:s"])
def test_a_call_whose_answerer_the_kernel_vouches_for_is_made(address: str) -> None:
    check_calling(parse_target(address), Policy(own_uid=1000))


def test_a_wrong_place_ends_the_command_with_one_line() -> None:
    assert error_of("serve", "--connect", "tcp:5000")[0] == 77
