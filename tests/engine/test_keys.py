"""Keys on files, and at an agent's door: who has one gets in from anywhere, and who has none learns nothing."""

from __future__ import annotations

import os
import stat
from collections import Counter
from pathlib import Path

import pytest
import trio

from tests.engine.test_session_and_agent import ECHO, Question
from tests.engine.world import World
from vsockfwd.address import parse, parse_target
from vsockfwd.engine.door import KNOWN, LONGEST_PAUSE, Failures, pause_after
from vsockfwd.engine.keys import create_key, load_key, load_keys
from vsockfwd.engine.session import open_session
from vsockfwd.errors import CannotCreate, ConfigError, Gone, NotAllowed, NotAuthenticated, NotFound, VsockfwdError
from vsockfwd.events import Denied
from vsockfwd.identity import NetworkPeer, VsockPeer
from vsockfwd.key import Key, format_key, parse_keys
from vsockfwd.policy import Policy

KEYED = Policy(own_uid=os.geteuid(), keyed=True)


def made(directory: Path, name: str = "web") -> tuple[Path, Key]:
    path = directory / f"{name}.key"
    return path, create_key(str(path), name)


# --- files


def test_a_new_key_is_its_owners_alone_and_reads_back_as_it_was(tmp_path: Path) -> None:
    path, key = made(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(key.secret) == 32
    assert load_key(str(path)) == key
    assert made(tmp_path, "other")[1].secret != key.secret


def test_a_key_that_is_in_use_is_not_written_over_not_even_through_a_link(tmp_path: Path) -> None:
    path, key = made(tmp_path)
    (tmp_path / "link.key").symlink_to(tmp_path / "nowhere")
    for name in ("web", "link"):
        with pytest.raises(CannotCreate, match="stands there already"):
            made(tmp_path, name)
    assert load_key(str(path)) == key
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602, 0o601])
def test_a_key_that_others_may_read_or_change_is_no_key(tmp_path: Path, mode: int) -> None:
    path, _ = made(tmp_path)
    path.chmod(mode)
    with pytest.raises(NotAllowed, match=f"mode {mode:04o}") as caught:
        load_key(str(path))
    assert "chmod 600" in caught.value.hint


def test_a_key_of_another_user_is_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = made(tmp_path)
    os.chown(path, 4711, -1) if os.geteuid() == 0 else monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(NotAllowed, match="belongs to uid"):
        load_key(str(path))


def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.key", 0o600)
    with pytest.raises(ConfigError, match="is no file"):
        load_key(str(tmp_path / "pipe.key"))
    with pytest.raises(NotFound):
        load_key(str(tmp_path / "nothing.key"))


def test_a_directory_of_keys_is_all_of_them_and_nothing_else(tmp_path: Path) -> None:
    keys = {made(tmp_path, name)[1] for name in ("a", "b", "c")}
    (tmp_path / "README").write_text("not a key")
    assert set(load_keys([str(tmp_path)])) == keys
    with pytest.raises(ConfigError, match="no file"):
        load_keys([str(made_directory(tmp_path))])


def made_directory(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


SECRET = "c2VjcmV0" * 5 + "c2U="
BAD = [
    ("", "there is no key in it"),
    ("vsockfwd-key-2 web " + SECRET, "line 1: a key's line begins with vsockfwd-key-1"),
    ("# x\nvsockfwd-key-1 web", "line 2: vsockfwd-key-1 is followed by a name and a secret"),
    ("vsockfwd-key-1 web " + SECRET[:-8], "not 32 bytes in base64"),
    ("vsockfwd-key-1 web " + SECRET + "!", "not 32 bytes in base64"),
    ("vsockfwd-key-1 a/b " + SECRET, "no key's name"),
    (SECRET, "begins with"),
]


@pytest.mark.parametrize(("text", "words"), BAD)
def test_what_is_wrong_with_a_key_is_told_and_the_key_is_not(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        parse_keys(text, "/etc/web.key")
    assert caught.value.message.startswith("/etc/web.key:")
    assert SECRET[:12] not in caught.value.line()


def test_two_keys_of_one_name_or_one_secret_are_told_apart_by_nobody(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    one, key = made(tmp_path)
    other, _ = made(tmp_path / "two")
    with pytest.raises(ConfigError, match="both have a key called web"):
        load_keys([str(one), str(other)])
    other.write_text(format_key(Key("another", key.secret)))
    with pytest.raises(ConfigError, match="have one secret"):
        load_keys([str(one), str(other)])
    other.write_text(format_key(key) * 2)
    with pytest.raises(ConfigError, match="a second key is called web"):
        load_keys([str(other)])


# --- at the door


async def ask(world: World, target: str) -> str:
    async with open_session(world.engine, parse_target(target)) as session:
        opened = await session.open("echo", Question("hello"))
        opened.channel.close()
        return (await session.login()).seen_as


@pytest.fixture
def at_unix(world: World, tmp_path: Path) -> World:
    world.target = parse(f"unix:{tmp_path}/agent.sock")
    return world


async def test_who_has_the_key_is_let_in_and_known_by_its_name(at_unix: World, tmp_path: Path):
    world, (path, key), (_, other) = at_unix, made(tmp_path), made(tmp_path, "db")
    async with world.agent(ECHO, KEYED, keys=(other, key)):
        assert (await ask(world, f"{world.target},auth-key={path}")).startswith("key web (uid ")


async def test_a_key_opens_an_agent_on_tcp_which_is_closed_to_all_others(world: World, tmp_path: Path):
    path, key = made(tmp_path)
    (listener,) = await world.engine.network.listen(parse("tcp:127.0.0.1:0"))
    world.target = listener.address
    listener.close()
    async with world.agent(ECHO, KEYED, keys=(key,)):
        assert (await ask(world, f"{world.target},auth-key={path}")).startswith("key web (127.0.0.1:")
        with pytest.raises(NotAuthenticated, match="a key is needed"):
            await ask(world, str(world.target))


async def test_once_there_are_keys_who_shows_none_is_not_let_in_root_or_not(at_unix: World, tmp_path: Path):
    world, (_, key) = at_unix, made(tmp_path)
    async with world.agent(ECHO, KEYED, keys=(key,)):
        with pytest.raises(NotAuthenticated, match="a key is needed"):
            await ask(world, str(world.target))
    assert "shows no key" in world.reported(Denied)[0].why


async def test_whom_a_rule_names_needs_no_key(at_unix: World, tmp_path: Path):
    world, (_, key) = at_unix, made(tmp_path)
    policy = Policy(own_uid=1, uids=frozenset({os.geteuid()}), keyed=True)
    async with world.agent(ECHO, policy, keys=(key,)):
        assert (await ask(world, str(world.target))).startswith("uid ")


async def test_a_wrong_key_learns_nothing_is_counted_and_the_log_learns_all(
    at_unix: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("vsockfwd.engine.door.FIRST_PAUSE", 0.001)
    world, (wrong, _), (_, key) = at_unix, made(tmp_path), made(tmp_path, "db")
    async with world.agent(ECHO, KEYED, keys=(key,)) as agent:
        for _ in range(2):
            with pytest.raises(NotAuthenticated) as caught:
                await ask(world, f"{world.target},auth-key={wrong}")
        assert caught.value.line() == f"{world.target.bare()}: the agent: not let in"
        assert caught.value.exit_code == 77
        assert agent.door.failures.total == 2
    told = world.reported(Denied)
    assert [event.forged for event in told] == [True, True]
    assert "its key is none of ours (2 such from there, 2 in all)" in told[1].why


async def test_an_agent_without_keys_is_not_believed_by_who_has_one(at_unix: World, tmp_path: Path):
    """Nor one that lets us in anyway: it could be anybody's."""
    world, (path, _) = at_unix, made(tmp_path)
    async with world.agent(ECHO):
        with pytest.raises(NotAuthenticated, match="knows no keys"):
            await ask(world, f"{world.target},auth-key={path}")


async def test_a_right_key_does_not_wait_for_others_wrong_ones(
    at_unix: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("vsockfwd.engine.door.pause_after", lambda count: 3600)
    world, (wrong, _), (right, key) = at_unix, made(tmp_path), made(tmp_path, "db")
    async with world.agent(ECHO, KEYED, keys=(key,)), trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ask, world, f"{world.target},auth-key={wrong}")
        with trio.fail_after(5):
            while len(world.reported(Denied)) < 3:  # noqa: ASYNC110 - what is waited for has no event
                await trio.sleep(0.001)
            await ask(world, f"{world.target},auth-key={right}")
        nursery.cancel_scope.cancel()


async def test_a_token_of_a_key_is_good_where_the_key_was_shown_and_nowhere_else(at_unix: World, tmp_path: Path):
    world, (path, key) = at_unix, made(tmp_path)
    async with world.agent(ECHO, KEYED, keys=(key,)) as agent:
        async with open_session(world.engine, parse_target(f"{world.target},auth-key={path}")) as session:
            (record,) = agent._sessions.values()
            record.principal = ("net", "192.0.2.1")
            with pytest.raises(Gone):
                await session._ask(await session.login(), "echo", Question("x"), (1,))
    assert [event.why for event in world.reported(Denied)] == ["it presented another's token"]


async def test_a_key_that_was_replaced_is_read_anew_at_the_next_login(at_unix: World, tmp_path: Path):
    world, (path, key) = at_unix, made(tmp_path)
    target = f"{world.target},auth-key={path}"
    async with world.agent(ECHO, KEYED, keys=(key,)):
        await ask(world, target)
    path.unlink()
    path, key = made(tmp_path)
    async with world.agent(ECHO, KEYED, keys=(key,)):
        assert (await ask(world, target)).startswith("key web")


async def test_a_target_without_a_key_file_is_told_before_anything_is_dialled(world: World, tmp_path: Path):
    with pytest.raises(VsockfwdError, match=r"nothing\.key"):
        await ask(world, f"unix:{tmp_path}/nobody,auth-key={tmp_path}/nothing.key")


def test_failures_of_ever_new_places_are_counted_in_bounded_memory() -> None:
    failures = Failures()
    for number in range(5 * KNOWN):
        failures.add(NetworkPeer(f"2001:db8::{number:x}", 1), number)
    assert len(failures._of) == KNOWN
    assert failures.total == 5 * KNOWN


def test_a_place_is_slowed_by_its_own_failures_and_forgiven_in_time() -> None:
    failures, guest = Failures(), VsockPeer(3, 5000)
    counts = Counter(failures.add(VsockPeer(3, port), 0.0) for port in range(40))
    assert max(counts) == 40
    assert failures.add(VsockPeer(4, 1), 0.0) == 1
    assert failures.add(guest, 10_000.0) == 1
    pauses = [pause_after(count) for count in range(1, 50)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE
