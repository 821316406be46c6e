"""What a peer may not do: write outside the destination, put damaged bytes in place, ask for what is not offered."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable

import msgspec
import pytest

from plugins.copy.tests.world import MIB, World, snapshot
from vsockfwd.plugin import Call, Code, Data, Ended, FileDone, Mode, PeerBrokeProtocol, Summary
from vsockfwd_copy.messages import (
    BLOCK,
    CHUNK_LIMIT,
    Blocks,
    Chunk,
    Enter,
    Entries,
    Entry,
    Extra,
    Failure,
    FileDigest,
    Finish,
    GiveUp,
    HardLink,
    Hole,
    Kind,
    Large,
    Leave,
    Owner,
    Progress,
    Range,
    Removed,
    Resolved,
    Result,
    Results,
    Same,
    Small,
    Symlink,
    Want,
    Wants,
    checksum,
    digest_of,
    encode,
)
from vsockfwd_copy.options import Options
from vsockfwd_copy.target import open_target

Step = tuple[Kind | int, msgspec.Struct | bytes] | bytes
"""A frame, or bytes of data."""

DATA = os.urandom(CHUNK_LIMIT)


def entries(*entries: Entry, first: int = 1) -> Step:
    return (Kind.ENTRIES, Entries(first, list(entries)))


def chunk(data: bytes = DATA, *, file: int = 1, offset: int = 0, check: int | None = None) -> list[Step]:
    return [(Kind.CHUNK, Chunk(file, offset, len(data), checksum(data) if check is None else check)), data]


def finish(data: bytes = DATA, *, file: int = 1) -> Step:
    whole = FileDigest()
    whole.update(data)
    return (Kind.FINISH, Finish(file, whole.digest()))


def small(name: bytes = b"file", content: bytes = b"x") -> Small:
    return Small(name, 0o644, 0, content, digest_of(content))


def large(name: bytes = b"file", size: int = len(DATA)) -> Large:
    return Large(name, 0o644, 0, size)


def enter(name: bytes = b"file") -> Enter:
    return Enter(name, 0o755, 0)


def script(steps: Iterable[Step], reply: msgspec.Struct | None = None) -> Callable[[Call], Awaitable[None]]:
    """An agent that says all this, whatever the client says, then that it is done, and hears the client out."""

    async def serve(call: Call) -> None:
        channel = await call.accept(reply)
        for step in steps:
            if isinstance(step, bytes):
                await channel.send(step)
            else:
                payload = step[1] if isinstance(step[1], bytes) else encode(step[1])
                await channel.send_frames((step[0], payload))
        await channel.send_end()
        while not isinstance(await channel.receive(), Ended):
            pass

    return serve


def becomes(world: World, serve: Callable[[Call], Awaitable[None]]) -> None:
    """The agent turns hostile."""
    world.agent.modes["copy"] = Mode("copy", "a hostile one", serve=serve)


NAME = "for a file's name"

BROKEN = {
    "another name than was asked for": ([entries(small(b".bashrc"))], "asked for"),
    "two for the one asked for": ([entries(small(), small())], "more than 1 sources"),
    "an absolute name": ([entries(enter(), small(b"/nowhere/vsockfwd/file"))], NAME),
    "a name with a slash": ([entries(enter(), small(b"../x"))], NAME),
    "dot dot": ([entries(enter(), enter(b".."))], NAME),
    "dot": ([entries(enter(), enter(b"."))], NAME),
    "no name": ([entries(enter(), small(b""))], NAME),
    "a name with a NUL": ([entries(enter(), small(b"x\0y"))], NAME),
    "a name of 256 bytes": ([entries(enter(), small(b"n" * 256))], "makes no sense"),
    "a large file with a slash in its name": ([entries(enter(), large(b"a/b"))], NAME),
    "a symlink with a slash in its name": ([entries(enter(), Symlink(b"a/b", 0, b"t"))], NAME),
    "a symlink to a NUL": ([entries(enter(), Symlink(b"a", 0, b"t\0u"))], "holds a NUL"),
    "a mode beyond twelve bits": ([entries(Small(b"file", 0o10644, 0, b"x", digest_of(b"x")))], "makes no sense"),
    "another name for what has one": ([entries(enter(), small(b"a"), HardLink(b"b", 2), Leave())], "has one only"),
    "another name for what never came": ([entries(enter(), HardLink(b"b", 9), Leave())], "has one only"),
    "what is the same, unasked": ([entries(large()), (Kind.SAME, Same(1, 0, 1))], "unasked"),
    "a file of a negative size": ([entries(large(size=-1))], "makes no sense"),
    "numbers that jump": ([entries(small(), first=7)], "counts 7 where 1"),
    "out of the destination by leaving": ([entries(Leave())], "had not entered"),
    "data of a file never announced": (chunk(), "whose turn it is not"),
    "data of a second file amid the first": (
        [entries(enter(), large(b"a"), large(b"b"), Leave()), *chunk(b"x", file=2), *chunk(b"x", file=3)],
        "whose turn it is not",
    ),
    "data that belongs to nothing": ([b"data"], "belongs to no file"),
    "a chunk that is cut by another frame": ([entries(large()), chunk()[0], b"short", finish()], "another length"),
    "more data than the chunk has": ([entries(large()), chunk(b"x" * 10)[0], b"x" * 11], "another length"),
    "a chunk beyond the limit": (
        [entries(large()), (Kind.CHUNK, Chunk(1, 0, CHUNK_LIMIT + 1, 0))], "makes no sense",
    ),
    "an end without the data": ([entries(large())], "ended before"),
    "an end inside a directory": ([entries(enter())], "ended before"),
    "an end without a word": ([], "ended before"),
    "a frame of a receiver": ([(Kind.PROGRESS, Progress(1))], "frame of type 74"),
    "a frame of no kind": ([(100, b"")], "frame of type 100"),
    "nonsense": ([(Kind.ENTRIES, b"\xc1")], "makes no sense"),
    "nonsense for text": ([(Kind.ENTRIES, b"\x92\x01\x91\x93\x06\xc4\x01f\x93\x01\x00\xa1\xff")], "makes no sense"),
}  # fmt: skip


@pytest.mark.parametrize(("steps", "why"), BROKEN.values(), ids=BROKEN)
async def test_a_sender_that_breaks_the_rules_writes_nothing_outside(world: World, steps: list[Step], why: str) -> None:
    becomes(world, script(steps))
    with pytest.raises(PeerBrokeProtocol, match=why) as caught:
        await world.cp("@file", ".", recursive=True)
    assert caught.value.exit_code == 76
    inside = {name.split(b"/")[0] for name in snapshot(world.here)}
    assert inside <= {b"", b"file"}
    assert {path.name for path in world.tmp.iterdir()} == {"home", "here", "a.sock"}


DAMAGED = {
    "a small file": ([entries(Small(b"file", 0o644, 0, b"x", digest_of(b"y")))], "damaged", 74),
    "a chunk": ([entries(large()), *chunk(check=1), finish()], "damaged", 74),
    "a file whose digest is another's": ([entries(large()), *chunk(), finish(b"y")], "not what was read", 74),
    "a file that ends early": ([entries(large(size=MIB + 1)), *chunk(), finish()], "ended after", 74),
    "a file that goes on": ([entries(large(size=MIB - 1)), *chunk(), finish()], "do not fit", 74),
    "a file with a gap": ([entries(large()), *chunk(b"x", offset=1), finish()], "do not fit", 74),
    "a file with a chunk twice": ([entries(large(size=2)), *chunk(b"x"), *chunk(b"x"), finish()], "do not fit", 74),
    "a hole beyond the end": ([entries(large()), (Kind.HOLE, Hole(1, 0, 1 << 62)), finish()], "do not fit", 74),
    "a size that no disk has": (
        [entries(large(size=(1 << 63) - 1)), (Kind.HOLE, Hole(1, 0, (1 << 63) - 1)), finish(b"")], "", 74,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("steps", "why", "code"), DAMAGED.values(), ids=DAMAGED)
async def test_what_arrives_damaged_never_stands_under_its_name(
    world: World, steps: list[Step], why: str, code: int
) -> None:
    (world.here / "file").write_text("as it was")
    becomes(world, script(steps))
    assert await world.cp("@file", ".") == code
    assert why in world.failures()["file"]
    assert (world.here / "file").read_text() == "as it was"


async def test_a_sender_cannot_write_through_a_symlink_that_it_made(world: World) -> None:
    outside = world.tmp / "outside"
    outside.mkdir()
    target = os.fsencode(outside)
    becomes(
        world,
        script(
            [
                entries(
                    enter(), Symlink(b"a", 0, target), enter(b"a"), small(b"through"), enter(b"b"), Leave(), Leave(),
                    Symlink(b"c", 0, target + b"/c"), small(b"c", b"replaced"), Symlink(b"d", 0, target + b"/d"),
                    large(b"d"), Leave(),
                ),
                *chunk(file=9), finish(file=9),
            ]
        ),
    )  # fmt: skip
    assert await world.cp("@file", ".", recursive=True) == 23
    assert os.listdir(outside) == []
    assert (world.here / "file" / "c").read_bytes() == b"replaced"
    assert not (world.here / "file" / "d").is_symlink()
    assert set(world.failures()) == {"file/a", "file/a/through", "file/a/b"}


async def test_a_sender_cannot_make_the_receiver_remember_without_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vsockfwd_copy.incoming.WINDOW", 2)
    monkeypatch.setattr("vsockfwd_copy.folders.DEPTH_LIMIT", 3)
    for steps, why in (
        ([entries(enter(), *(large(b"%d" % number) for number in range(5)))], "without their data"),
        ([entries(*(enter(b"file" if not number else b"%d" % number) for number in range(5)))], "into each other"),
    ):
        becomes(world, script(steps))
        with pytest.raises(PeerBrokeProtocol, match=why):
            await world.cp("@file", ".", recursive=True)


async def test_a_sender_that_gives_a_file_up_fails_that_file(world: World) -> None:
    failure = Failure(Code.IO, 5, "gave up\x1b[31m")
    becomes(world, script([entries(large()), *chunk(b"x"), (Kind.GIVE_UP, GiveUp(1, failure))]))
    assert await world.cp("@file", ".") == 74
    assert world.failures() == {"file": "gave up\\x1b[31m"}
    assert os.listdir(world.here) == []


WANT_ALL = (Kind.WANT, Wants([Want(2, [Range(0, 3 * MIB)])]))

COMPARED = (Kind.WANT, Wants([Want(2, [Range(0, 3 * MIB)], compared=True)]))

OFFERED = "which it was not offered"
BEYOND = "bytes of file 2 that it has not"

DEMANDS = {
    "a file never offered": ([(Kind.WANT, Wants([Want(77, [Range(0, 1)])]))], OFFERED),
    "a small file": ([(Kind.WANT, Wants([Want(1, [Range(0, 1)])]))], OFFERED),
    "bytes beyond the end": ([(Kind.WANT, Wants([Want(2, [Range(0, 3 * MIB + 1)])]))], BEYOND),
    "bytes from beyond the end": ([(Kind.WANT, Wants([Want(2, [Range(4 * MIB, 1)])]))], BEYOND),
    "bytes twice": ([(Kind.WANT, Wants([Want(2, [Range(0, 2), Range(1, 2)])]))], BEYOND),
    "no bytes": ([(Kind.WANT, Wants([Want(2, [])]))], "make no sense"),
    "blocks of a file never offered": ([(Kind.BLOCKS, Blocks(77, 0, b""))], OFFERED),
    "more blocks than a file has": ([COMPARED, (Kind.BLOCKS, Blocks(2, 0, bytes(16 * 25)))], "blocks that file 2"),
    "half a digest": ([COMPARED, (Kind.BLOCKS, Blocks(2, 0, bytes(15)))], "blocks that file 2"),
    "blocks backwards": (
        [COMPARED, (Kind.BLOCKS, Blocks(2, 4, bytes(16))), (Kind.BLOCKS, Blocks(2, 3, bytes(16)))],
        "blocks that",
    ),
    "a file twice": ([WANT_ALL, WANT_ALL], OFFERED),
    "an answer to nothing": ([(Kind.RESULTS, Results([Result(9)]))], "not asked about"),
    "comparing what it did not want so": (
        [WANT_ALL, (Kind.BLOCKS, Blocks(2, 0, bytes(16))), (Kind.PROGRESS, b"\xc1")],
        "makes no sense",
    ),
    "a result of no kind": ([(Kind.RESULTS, b"\x91\x91\x94\x01\xc0\x09\x00")], "makes no sense"),
    "a loss of no kind": ([(Kind.RESULTS, b"\x91\x91\x94\x01\xc0\x00\xcd\x01\x00")], "makes no sense"),
    "nonsense for what was removed": ([(Kind.REMOVED, b"\x91\x91\x01")], "makes no sense"),
    "what only a library asks for": ([(Kind.SEEN, b"\x80")], "frame of type 79"),
    "two answers to one": ([(Kind.RESULTS, Results([Result(1), Result(1)]))], "not asked about"),
    "an end without answers": ([], "before it had answered"),
    "data": ([b"data"], "sent data"),
    "a frame of a sender": ([finish()], "frame of type 67"),
}


@pytest.mark.parametrize(("steps", "why"), DEMANDS.values(), ids=DEMANDS)
async def test_a_receiver_gets_what_it_was_offered_and_nothing_else(world: World, steps: list[Step], why: str) -> None:
    (world.here / "small").write_text("x")
    (world.here / "large").write_bytes(os.urandom(3 * MIB))

    async def serve(call: Call) -> None:
        channel = await call.accept(Resolved(b"/somewhere"))
        await channel.receive()  # the announcements
        for step in steps:
            await (channel.send(step) if isinstance(step, bytes) else channel.send_frames((step[0], _payload(step[1]))))
        await channel.send_end()
        while not isinstance(await channel.receive(), Ended):
            pass

    becomes(world, serve)
    with pytest.raises(PeerBrokeProtocol, match=why):
        await world.cp("small", "large", "@")


def _payload(what: msgspec.Struct | bytes) -> bytes:
    return what if isinstance(what, bytes) else encode(what)


async def test_a_file_that_the_receiver_failed_with_is_broken_off_and_the_next_goes_out_whole(world: World) -> None:
    size = 64 * MIB
    (world.here / "a").write_bytes(os.urandom(MIB) * 64)
    (world.here / "b").write_bytes(os.urandom(2 * MIB))
    heard: list[int] = []
    moved = 0

    async def serve(call: Call) -> None:
        nonlocal moved
        channel = await call.accept(Resolved(b"/somewhere"))
        await channel.receive()
        await channel.send_frames((Kind.WANT, encode(Wants([Want(1, [Range(0, size)]), Want(2, [Range(0, 2 * MIB)])]))))
        while not isinstance(event := await channel.receive(), Ended):
            if isinstance(event, Data):
                moved += len(event.view)
                continue
            heard.append(event.kind)
            if len(heard) == 1:
                failed = Result(1, Failure(Code.NO_SPACE, 28, "full"))
                await channel.send_frames((Kind.RESULTS, encode(Results([failed]))))
            if event.kind == Kind.FINISH:
                await channel.send_frames((Kind.RESULTS, encode(Results([Result(2)]))))
        await channel.send_end()

    becomes(world, serve)
    assert await world.cp("a", "b", "@") == 23
    assert world.failures() == {"a": "full"}
    assert heard[-4:] == [Kind.GIVE_UP, Kind.CHUNK, Kind.CHUNK, Kind.FINISH]
    assert moved < size


ANSWERS = {
    "what fits no pattern": ((b"a.txt", b"b.log"), ("@*.txt",), "more than 1 sources"),
    "a hidden file": ((b".bashrc",), ("@*",), "more than 1 sources"),
    "a name that leads out": ((b"../a.txt",), ("@*.txt",), "more than 1|for a file's name"),
    "what fits an earlier pattern": ((b"b.log", b"a.txt"), ("@*.txt", "@*.log"), "more than 2 sources"),
    "what stands between": ((b"a.txt", b"x"), ("@*.txt", "@c"), "where 'c' was asked for"),
    "all but the last": ((b"a.txt",), ("@*.txt", "@c"), "ended before"),
}


@pytest.mark.parametrize(("names", "asked", "why"), ANSWERS.values(), ids=ANSWERS)
async def test_what_answers_a_pattern_is_held_against_it_again(
    world: World, names: tuple[bytes, ...], asked: tuple[str, ...], why: str
) -> None:
    becomes(world, script([entries(*(small(name) for name in names))]))
    with pytest.raises(PeerBrokeProtocol, match=why):
        await world.cp(*asked, ".")
    assert set(os.listdir(world.here)) <= {"a.txt", "b.log"}
    assert not (world.here / ".bashrc").exists()


async def test_a_list_gets_nothing_that_is_not_on_it(world: World) -> None:
    for steps in (
        [entries(small(b""))],
        [entries(enter(b"tree"))],
        [entries(enter(b""), small(b"other"))],
        [entries(enter(b""), enter(b"sub"), small(b"other"))],
        [entries(enter(b""), enter(b"sub"), Leave(), Leave(), enter(b""))],
    ):
        becomes(world, script(steps))
        async with open_target(world.address) as target:
            with pytest.raises(PeerBrokeProtocol, match=r"not asked for|for a file's name|more than 1 sources"):
                await target.get(["tree"], "new", Options(recursive=True), below=["sub/file"])
    assert not list(world.here.rglob("other"))


OLD = os.urandom(3 * MIB)

OF_OLD = Large(b"file", 0o644, 0, len(OLD))

LIES = {
    "beyond the end": ([(Kind.SAME, Same(1, 0, 1 << 62)), finish(b"")], "not compared"),
    "not from a block's edge": ([(Kind.SAME, Same(1, 1, BLOCK)), finish(b"")], "not compared"),
    "half a block": ([(Kind.SAME, Same(1, 0, BLOCK // 2)), finish(b"")], "not compared"),
    "not in its turn": ([(Kind.SAME, Same(1, BLOCK, BLOCK)), finish(b"")], "do not fit"),
    "twice": ([(Kind.SAME, Same(1, 0, BLOCK))] * 2 + [finish(b"")], "not compared|do not fit"),
    "all of it, and another digest": ([(Kind.SAME, Same(1, 0, 3 * MIB)), finish(b"")], "not what was read"),
    "some of it": ([(Kind.SAME, Same(1, 0, BLOCK)), finish(b"")], "ended after"),
}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(("steps", "why"), LIES.values(), ids=LIES)
async def test_a_sender_that_lies_about_what_is_the_same_changes_nothing(
    world: World, steps: list[Step], why: str, inplace: bool
) -> None:
    (world.here / "file").write_bytes(OLD)
    becomes(world, patient([entries(OF_OLD)], steps))
    assert await world.cp("@file", ".", delta=True, inplace=inplace) == 74
    (told,) = world.failures().values()
    assert any(words in told for words in why.split("|"))
    assert (world.here / "file").read_bytes() == OLD


def patient(first: list[Step], then: list[Step]) -> Callable[[Call], Awaitable[None]]:
    """An agent that says the second part once it was told all of what stands there."""

    async def serve(call: Call) -> None:
        channel = await call.accept()
        for part in (first, then):
            for step in part:
                assert not isinstance(step, bytes)
                await channel.send_frames((step[0], _payload(step[1])))
            while part is first:
                event = await channel.receive()
                if not isinstance(event, Ended | Data) and event.kind == Kind.BLOCKS and len(event.payload) < 16:
                    break
        await channel.send_end()
        while not isinstance(await channel.receive(), Ended):
            pass

    return serve


async def test_another_name_for_what_failed_or_is_on_its_way_is_no_trick(world: World) -> None:
    linked = Large(b"a", 0o644, 0, len(DATA), linked=True)
    becomes(
        world,
        script(
            [
                entries(enter(), linked, HardLink(b"b", 2), HardLink(b"c", 2), Leave()),
                *chunk(file=2),
                (Kind.GIVE_UP, GiveUp(2, Failure(Code.IO, 5, "gave up"))),
            ]
        ),
    )
    assert await world.cp("@file", ".", recursive=True, hard_links=True) == 23
    assert set(world.failures()) == {"file/a", "file/b", "file/c"}
    assert os.listdir(world.here / "file") == []


async def test_a_sender_cannot_make_the_receiver_remember_links_without_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vsockfwd_copy.links.LINKS_LIMIT", 3)
    files = [Small(b"%d" % number, 0o644, 0, b"x", digest_of(b"x"), linked=True) for number in range(5)]
    becomes(world, script([entries(enter(), *files, Leave())]))
    with pytest.raises(PeerBrokeProtocol, match="several names"):
        await world.cp("@file", ".", recursive=True)


async def test_attributes_that_nobody_asked_for_are_not_set(world: World) -> None:
    extra = Extra(Owner(40_000, 40_000), [(b"user.a", b"1"), (b"trusted.a", b"1"), (b"security.selinux", b"1")])
    file = Small(b"file", 0o644, 0, b"x", digest_of(b"x"), extra=extra)
    becomes(world, script([entries(file)]))
    for options, kept in (({}, []), ({"xattrs": True}, ["user.a"])):
        assert await world.cp("@file", ".", **options) == 0
        assert os.listxattr(world.here / "file") == kept
        assert (world.here / "file").stat().st_uid == os.geteuid()


async def test_what_a_receiver_says_that_it_removed_is_told_as_it_is_and_kept_nowhere(world: World) -> None:
    (world.here / "file").write_text("x")
    count = 20_000

    async def serve(call: Call) -> None:
        channel = await call.accept(Resolved(b"/somewhere"))
        await channel.receive()
        paths: list[tuple[bytes, Failure | None]] = [(b"\x1b[2J/../nowhere", None)] * 100
        for _ in range(count // 100):
            await channel.send_frames((Kind.REMOVED, encode(Removed(paths))))
        await channel.send_frames((Kind.RESULTS, encode(Results([Result(1)]))))
        while not isinstance(await channel.receive(), Ended):
            pass
        await channel.send_end()

    becomes(world, serve)
    assert await world.cp("file", "@") == 0
    removed = {event.name for event in world.reported(FileDone) if event.done == "removed"}
    assert removed == {"\\x1b[2J/../nowhere"}
    (summary,) = world.reported(Summary)
    assert (summary.removed, summary.files) == (count, 1)


async def test_a_setuid_bit_is_not_set_for_a_sender_that_just_says_so(world: World) -> None:
    becomes(world, script([entries(Small(b"file", 0o6755, 0, b"x", digest_of(b"x")))]))
    assert await world.cp("@file", ".") == 0
    assert (world.here / "file").stat().st_mode & 0o7777 == 0o755
