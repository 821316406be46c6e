"""Files, pipes and inherited descriptors as ends."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from vsockfwd.plugin import CannotCreate, NoSpace, NotFound, Unreachable, UsageError
from vsockfwd_relay import streams
from vsockfwd_relay.address_type import Direction

Start = Callable[..., Any]
Everything = Callable[[trio.abc.ReceiveStream], Awaitable[bytes]]
LOCAL = "TCP-LISTEN:0,bind=127.0.0.1"
ONE_WAY = {"first_direction": Direction.READ, "second_direction": Direction.WRITE}


async def test_a_file_is_copied_whole_and_what_was_there_stays_without_trunc(relaying: Start, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "a").write_bytes(data)
    (tmp_path / "b").write_bytes(b"x" * 3_000_005)
    await relaying(f"OPEN:{tmp_path}/a", f"OPEN:{tmp_path}/b", **ONE_WAY).end()
    assert (tmp_path / "b").read_bytes() == data + b"x" * 5
    await relaying(f"OPEN:{tmp_path}/a", f"OPEN:{tmp_path}/b,trunc", **ONE_WAY).end()
    assert (tmp_path / "b").read_bytes() == data


async def test_creat_excl_append_and_mode_mean_what_open_means(relaying: Start, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    with pytest.raises(NotFound):
        await relaying(f"OPEN:{tmp_path}/a", f"OPEN:{tmp_path}/b", **ONE_WAY).end()
    await relaying(f"OPEN:{tmp_path}/a", f"OPEN:{tmp_path}/b,creat,excl,mode=600", **ONE_WAY).end()
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o600
    with pytest.raises(CannotCreate):
        await relaying(f"OPEN:{tmp_path}/a", f"OPEN:{tmp_path}/b,creat,excl", **ONE_WAY).end()
    await relaying(f"OPEN:{tmp_path}/a", f"OPEN:{tmp_path}/b,append", **ONE_WAY).end()
    assert (tmp_path / "b").read_bytes() == b"aa"


async def test_a_bare_path_appends_or_makes_and_create_empties(relaying: Start, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    for expected in (b"a", b"aa"):
        await relaying(f"{tmp_path}/a", f"{tmp_path}/b", **ONE_WAY).end()
        assert (tmp_path / "b").read_bytes() == expected
    await relaying(f"{tmp_path}/a", f"CREATE:{tmp_path}/b", **ONE_WAY).end()
    assert (tmp_path / "b").read_bytes() == b"a"
    with pytest.raises(UsageError, match="only written"):
        await relaying("PIPE", f"CREATE:{tmp_path}/c").end()
    assert not (tmp_path / "c").exists()


async def test_a_bare_path_of_a_socket_is_connected(relaying: Start, everything: Everything, tmp_path: Path) -> None:
    await relaying(f"UNIX-LISTEN:{tmp_path}/s", "PIPE").said("listening")
    running = relaying(LOCAL, f"{tmp_path}/s")
    async with await trio.open_tcp_stream("127.0.0.1", await running.port()) as stream:
        await stream.send_all(b"x")
        await stream.send_eof()
        assert await everything(stream) == b"x"
    await running.end()


async def feed(relaying: Start, folder: Path, source: str, sink: str, data: bytes) -> Any:
    """A relay from a source of a kind, which sends `data`, to a file; it is at its end, or failed, soon."""
    (folder / "a").write_bytes(data)
    if source == "file":
        return relaying(f"OPEN:{folder}/a", sink, **ONE_WAY)
    if source == "pipe":
        return relaying(f"EXEC:cat {folder}/a,pipes", sink, **ONE_WAY)
    listen = f"UNIX-LISTEN:{folder}/s" if source == "unix" else LOCAL
    running = relaying(listen, sink, **ONE_WAY)
    await running.said("listening")
    to = f"UNIX:{folder}/s" if source == "unix" else f"TCP:127.0.0.1:{await running.port()}"
    relaying(f"OPEN:{folder}/a", to, **ONE_WAY)
    return running


@pytest.mark.parametrize("source", ["file", "pipe", "unix", "tcp"])
async def test_bulk_comes_to_lie_in_a_file_where_the_options_say(relaying: Start, tmp_path: Path, source: str) -> None:
    data, sink = os.urandom(2_000_001), tmp_path / "b"
    sink.write_bytes(b"before" + bytes(10))
    for address, expected in (
        (f"OPEN:{sink},seek=6", b"before" + data),
        (f"OPEN:{sink},append", b"before" + data + data),
        (f"CREATE:{sink}", data),
    ):
        await (await feed(relaying, tmp_path, source, address, data)).end()
        assert sink.read_bytes() == expected


@pytest.mark.parametrize("source", ["file", "pipe", "unix"])
async def test_bulk_that_a_file_cannot_hold_ends_as_an_error(relaying: Start, tmp_path: Path, source: str) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    running = await feed(relaying, tmp_path, source, f"CREATE:{tmp_path}/b", os.urandom(2_000_001))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, limits[1]))
    try:
        with pytest.raises(NoSpace):
            await running.end()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "b").stat().st_size == 1_500_000


async def test_a_full_disk_ends_the_relay_as_an_error(relaying: Start) -> None:
    with pytest.raises(NoSpace, match="no space left") as raised:
        await relaying("OPEN:/dev/zero", "OPEN:/dev/full", **ONE_WAY).end()
    assert raised.value.exit_code == 74


async def test_a_named_pipe_waits_for_its_other_end_and_goes(relaying: Start, until: Start, tmp_path: Path) -> None:
    running = relaying(f"PIPE:{tmp_path}/p", f"CREATE:{tmp_path}/out", **ONE_WAY)
    await until((tmp_path / "p").exists)
    await trio.to_thread.run_sync((tmp_path / "p").write_bytes, b"through")
    await running.end()
    assert (tmp_path / "out").read_bytes() == b"through"
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("address", ["PIPE", "PIPE:{}/p"])
async def test_a_pipe_is_an_echo(relaying: Start, everything: Everything, tmp_path: Path, address: str) -> None:
    running = relaying(LOCAL, address.format(tmp_path))
    async with await trio.open_tcp_stream("127.0.0.1", await running.port()) as stream:
        await stream.send_all(b"x" * 500_000)
        await stream.send_eof()
        assert await everything(stream) == b"x" * 500_000
    await running.end()
    assert not (tmp_path / "p").exists()


async def test_a_dual_address_keeps_its_halves_apart(relaying: Start, everything: Everything, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"question")
    await relaying(f"OPEN:{tmp_path}/in!!OPEN:{tmp_path}/out,creat", "EXEC:tr a-z A-Z").end()
    assert (tmp_path / "out").read_bytes() == b"QUESTION"


async def test_a_file_for_reading_drops_what_is_sent_to_it_and_the_rest_goes_on(
    relaying: Start, tmp_path: Path
) -> None:
    (tmp_path / "in").write_bytes(b"kept")
    await relaying(f"OPEN:{tmp_path}/in,rdonly", f"SYSTEM:echo dropped; cat >{tmp_path}/out").end()
    assert (tmp_path / "out").read_bytes() == b"kept"
    assert (tmp_path / "in").read_bytes() == b"kept"


async def test_ignoreeof_follows_a_file_that_grows(
    relaying: Start, until: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "LOOK_AGAIN", 0.02)
    log = tmp_path / "log"
    log.write_bytes(b"one\n")
    running = relaying(f"OPEN:{log},ignoreeof", f"CREATE:{tmp_path}/out", idle=0.5, **ONE_WAY)
    await until(lambda: (tmp_path / "out").exists() and (tmp_path / "out").read_bytes() == b"one\n")
    log.write_bytes(b"one\ntwo\n")
    await running.end()
    assert (tmp_path / "out").read_bytes() == b"one\ntwo\n"


async def test_a_descriptor_by_its_number_is_used_and_left_open(relaying: Start, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"x")
    reading, writing = os.pipe()
    try:
        await relaying(f"OPEN:{tmp_path}/in", str(writing), **ONE_WAY).end()
        os.write(writing, b"y")
        assert os.read(reading, 10) == b"x"
    except OSError:
        os.fstat(writing)
        raise
    finally:
        os.close(reading)
        os.close(writing)


async def test_a_descriptor_that_is_not_open_is_named(relaying: Start) -> None:
    with pytest.raises(Unreachable, match="descriptor 4000 is not open"):
        await relaying("FD:4000", "PIPE").end()
