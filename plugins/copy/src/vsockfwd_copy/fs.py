"""`vsockfwd fs`: look at, make and remove what an agent's file system holds."""

from __future__ import annotations

import dataclasses
import functools
import stat
import sys
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Annotated

import msgspec
import typer

from vsockfwd.plugin import (
    AgentPort,
    Engine,
    Event,
    Invocation,
    NotFound,
    Problem,
    SharedKey,
    UsageError,
    VsockfwdError,
    printable,
)
from vsockfwd_copy.locations import Location, parse_location
from vsockfwd_copy.looking import Space, Status
from vsockfwd_copy.target import Copied, Target, open_target

NAME_LIMIT = 5000


class What(StrEnum):
    """What `fs` does."""

    LS = "ls"
    CAT = "cat"
    STAT = "stat"
    RM = "rm"
    MKDIR = "mkdir"
    DF = "df"


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """The flags, as far as each of them means something."""

    what: What
    long: bool
    recursive: bool
    force: bool
    parents: bool
    answer: Callable[..., None] | None
    """Where the answer goes as JSON, if it does."""


_MEANS = {
    "long": (What.LS,), "recursive": (What.LS, What.RM), "force": (What.RM,), "parents": (What.MKDIR,),
}  # fmt: skip


def fs(
    invocation: Invocation,
    what: Annotated[What, typer.Argument(metavar="ls|cat|stat|rm|mkdir|df", help="what to do")],
    locations: Annotated[list[str], typer.Argument(metavar="TARGET:PATH…", help="where")],
    long: Annotated[bool, typer.Option("-l", "--long", help="ls: with mode, owner, size and time")] = False,
    recursive: Annotated[
        bool, typer.Option("-r", "-R", "--recursive", help="ls, rm: directories with all that is in them")
    ] = False,
    force: Annotated[bool, typer.Option("-f", "--force", help="rm: what is not there is no error")] = False,
    parents: Annotated[bool, typer.Option("--parents", help="mkdir: make what is missing above it too")] = False,
    port: AgentPort = None,
    auth_key: SharedKey = None,
) -> int:
    """Look at files where an agent runs, make directories, remove: vsockfwd fs ls -l 3:/var, vsockfwd fs cat 3:notes.

    Locations are those of vsockfwd cp. Symlinks are told and removed as such; stat follows one. With --json each file
    is one JSON object, with its times in nanoseconds.
    """
    asked = Asked(
        what=what,
        long=long,
        recursive=recursive,
        force=force,
        parents=parents,
        answer=invocation.answer if invocation.json else None,
    )
    for flag, for_what in _MEANS.items():
        if getattr(asked, flag) and what not in for_what:
            raise UsageError(f"--{flag} says nothing to fs {what}")
    read_target = functools.partial(invocation.target, auth_key=auth_key)
    places = [parse_location(word, port, read_target) for word in locations]
    for word, place in zip(locations, places, strict=True):
        if len(place.targets) != 1:
            raise UsageError(f"{printable(word)}: is not at one target", hint="such as 3:/var/log")
    return invocation.run(run, asked, places)


async def run(engine: Engine, asked: Asked, places: Sequence[Location]) -> int:
    """Do it at each place, one after the other; the exit code. Raises what failed first, when all is done."""
    failure: VsockfwdError | None = None
    for place in places:
        try:
            async with open_target(place.targets[0], engine=_quiet(engine)) as target:
                await _one(target, asked, place, several=len(places) > 1)
        except VsockfwdError as error:
            if asked.force and isinstance(error, NotFound):
                continue
            failure = failure or error
    if failure is not None:
        raise failure
    return 0


def _quiet(engine: Engine) -> Engine:
    """The answer is what was asked for, or the error: of a transfer nothing else is told."""
    report = engine.report

    def tell(event: Event) -> None:
        if isinstance(event, Problem):
            report(event)

    return dataclasses.replace(engine, report=tell)


async def _one(target: Target, asked: Asked, place: Location, *, several: bool) -> None:
    path = place.path
    match asked.what:
        case What.LS:
            await _list(target, asked, path, several=several)
        case What.CAT:
            sys.stdout.flush()
            copied: Copied = await target.pour([path], sys.stdout.fileno(), glob=True)
            copied.check()
        case What.STAT:
            _tell_status(asked, await target.stat(path))
        case What.RM:
            await target.remove(path, recursive=asked.recursive)
        case What.MKDIR:
            await target.make_directory(path, parents=asked.parents)
        case What.DF:
            _tell_space(asked, place, await target.space(path))


async def _list(target: Target, asked: Asked, path: bytes, *, several: bool) -> None:
    if (await target.stat(path, follow=True)).kind != "directory":
        _tell(asked, path, await target.stat(path, follow=False))
        return
    if several and asked.answer is None:
        print(f"{printable(path, NAME_LIMIT)}:")
    if not asked.recursive:
        for status in await target.list(path):
            _tell(asked, status.name, status)
        return
    async for walked in target.walk(path):
        _tell(asked, walked.path, walked.status)


def _tell(asked: Asked, name: bytes, status: Status) -> None:
    told = printable(name, NAME_LIMIT)
    if asked.answer is not None:
        asked.answer("file", **_fields(status, told))
    elif asked.long:
        owner = f"{status.user or status.uid} {status.group or status.gid}"
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(status.mtime / 1e9))
        target = f" -> {printable(status.target, NAME_LIMIT)}" if status.target else ""
        print(f"{stat.filemode(status.mode)} {status.links:3} {owner:17} {status.size:12} {when} {told}{target}")
    elif sys.stdout.isatty():
        print(told)
    else:  # a program reads it: names are bytes
        sys.stdout.flush()
        sys.stdout.buffer.write(name + b"\n")


def _fields(status: Status, name: str) -> dict[str, object]:
    return {
        "name": name,
        "kind": status.kind,
        "mode": status.mode & 0o7777,
        "size": status.size,
        "mtime": status.mtime,
        "links": status.links,
        "uid": status.uid,
        "gid": status.gid,
        "user": status.user,
        "group": status.group,
        "target": printable(status.target, NAME_LIMIT),
    }


def _tell_status(asked: Asked, status: Status) -> None:
    if asked.answer is not None:
        asked.answer("file", **_fields(status, printable(status.name, NAME_LIMIT)))
        return
    seconds, nanoseconds = divmod(status.mtime, 1_000_000_000)
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) + f".{nanoseconds:09}"
    print(f"{printable(status.name, NAME_LIMIT)}: {status.kind}, {status.size} bytes")
    print(f"  mode {status.mode & 0o7777:04o} {stat.filemode(status.mode)}, {status.links} links")
    print(f"  owner {status.uid} {status.user}, group {status.gid} {status.group}")
    print(f"  mtime {when}")


def _tell_space(asked: Asked, place: Location, space: Space) -> None:
    where = f"{place.targets[0].bare()} {printable(place.path or b'.', NAME_LIMIT)}"
    if asked.answer is not None:
        asked.answer("space", where=where, **msgspec.structs.asdict(space))
        return
    used = space.size - space.free
    percent = 100 * used / space.size if space.size else 0.0
    size, available = _human(space.size), _human(space.available)
    print(f"{where}: {size} in all, {_human(used)} used ({percent:.0f} %), {available} available")


def _human(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError
