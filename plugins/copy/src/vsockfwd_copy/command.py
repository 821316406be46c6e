"""`vsockfwd cp`: the client's side of a copy, as people type it."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated

import trio
import typer

from vsockfwd.plugin import (
    Address,
    Engine,
    Invocation,
    SharedKey,
    SomeFailed,
    UsageError,
    VsockfwdError,
    bytes_in,
    from_oserror,
    ignore,
    printable,
)
from vsockfwd_copy.asked import wanted
from vsockfwd_copy.locations import STANDARD, Plan, plan
from vsockfwd_copy.options import Algorithm, Options, Symlinks
from vsockfwd_copy.permissions import Chmod
from vsockfwd_copy.target import Copied, Target, open_target, standard_input, standard_output
from vsockfwd_copy.telling import Statistics, telling

FILES_LIMIT = 64 << 20
"""Bytes of a --files-from."""

Flag = typer.Option


def cp(
    invocation: Invocation,
    locations: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE… DESTINATION", help="local paths, and TARGET:PATH on the agent's side"),
    ],
    recursive: Annotated[bool, Flag("-r", "-R", "--recursive", help="copy directories and what is in them")] = False,
    archive: Annotated[
        bool, Flag("-a", "--archive", help="-r -P and all that can be kept: owners, hard links, xattrs, ACLs")
    ] = False,
    target_directory: Annotated[
        str | None, Flag("-t", "--target-directory", metavar="DIR", help="the destination, a directory, stands here")
    ] = None,
    no_target_directory: Annotated[
        bool, Flag("-T", "--no-target-directory", help="DESTINATION is the copy's own name, not what it goes into")
    ] = False,
    mkpath: Annotated[bool, Flag("--mkpath", help="make what is missing on the way to DESTINATION")] = False,
    no_clobber: Annotated[bool, Flag("-n", "--no-clobber", help="leave what stands there already")] = False,
    update: Annotated[bool, Flag("-u", "--update", help="skip files that have the same size and mtime there")] = False,
    checksum: Annotated[bool, Flag("-c", "--checksum", help="skip files that have the same content there")] = False,
    delta: Annotated[bool, Flag("--delta", help="send only the blocks that differ from what stands there")] = False,
    resume: Annotated[bool, Flag("--resume", help="go on where an interrupted --resume stopped")] = False,
    delete: Annotated[
        bool, Flag("--delete", help="remove what the copied directories have there, and not here")
    ] = False,
    dry_run: Annotated[bool, Flag("--dry-run", help="say what would be done, and change nothing")] = False,
    exclude: Annotated[
        list[str] | None, Flag("--exclude", metavar="PATTERN", help="leave out what matches, below a source")
    ] = None,
    include: Annotated[list[str] | None, Flag("--include", metavar="PATTERN", help="an exception to --exclude")] = None,
    files_from: Annotated[
        str | None, Flag("--files-from", metavar="FILE", help="of the one SOURCE only the paths in FILE (-: stdin)")
    ] = None,
    from0: Annotated[bool, Flag("-0", "--from0", help="a NUL stands behind each of them, not a newline")] = False,
    no_follow: Annotated[bool, Flag("-P", "--no-dereference", help="follow no symlink, copy it as one")] = False,
    follow_named: Annotated[bool, Flag("-H", help="follow those named as SOURCE (the default)")] = False,
    follow_all: Annotated[bool, Flag("-L", "--dereference", help="follow all symlinks")] = False,
    perms: Annotated[bool, Flag("--perms/--no-perms", help="permissions are those of the source")] = True,
    times: Annotated[bool, Flag("--times/--no-times", help="mtimes are those of the source")] = True,
    owner: Annotated[bool, Flag("-o", "--owner", help="keep the owner, by name (as root)")] = False,
    group: Annotated[bool, Flag("-g", "--group", help="keep the group, by name")] = False,
    numeric_ids: Annotated[bool, Flag("--numeric-ids", help="owners and groups by number")] = False,
    hard_links: Annotated[bool, Flag("--hard-links", help="files of several names stay one file")] = False,
    xattrs: Annotated[bool, Flag("-X", "--xattrs", help="keep extended attributes")] = False,
    acls: Annotated[bool, Flag("-A", "--acls", help="keep ACLs")] = False,
    chmod: Annotated[str, Flag("--chmod", metavar="CHANGES", help="change permissions: u=rwX,go-w or D755,F644")] = "",
    chown: Annotated[str, Flag("--chown", metavar="USER:GROUP", help="who owns what lands")] = "",
    backup: Annotated[bool, Flag("-b", "--backup", help="keep what is replaced, with a suffix")] = False,
    suffix: Annotated[str, Flag("--suffix", metavar="SUFFIX", help="that suffix")] = "~",
    inplace: Annotated[bool, Flag("--inplace", help="write into the file itself: half a file may be seen")] = False,
    fsync: Annotated[bool, Flag("--fsync", help="have it on disk before it gets its name")] = False,
    digest: Annotated[Algorithm, Flag("--digest", help="what verifies a whole file")] = Algorithm.XXH3,
    bwlimit: Annotated[str, Flag("--bwlimit", metavar="RATE", help="bytes a second at most, such as 500k or 10M")] = "",
    stats: Annotated[bool, Flag("--stats", help="say at the end what was done, by kind")] = False,
    progress: Annotated[
        str, Flag("--progress", metavar="auto|json|none", help="bars on a terminal, JSON lines, or neither")
    ] = "auto",
    port: Annotated[str | None, Flag("-p", metavar="PORT", help="the agent's port, where it is not 876")] = None,
    auth_key: SharedKey = None,
) -> int:
    """Copy files to or from where an agent runs, verified: vsockfwd cp -r site 3:/srv, vsockfwd cp 3:/etc/hosts .

    A destination that is a directory takes the sources in; else it is the name of the one source. Far paths start at
    the agent user's home. A target with colons stands in brackets: [unix:/run/a.sock]:/etc/hosts; ./a:b is local; - is
    stdin or stdout. Both ends may be far, and a destination at many targets: cp app web,db,3:/opt. Far sources may be
    patterns. Permissions and times are kept. Each file appears complete and verified, or not at all.
    """
    followed = [flag for flag, said in ((Symlinks.NONE, no_follow), (Symlinks.NAMED, follow_named),
                                        (Symlinks.ALL, follow_all)) if said]  # fmt: skip
    if len(followed) > 1:
        raise UsageError(" and ".join(f"-{flag}" for flag in followed) + " exclude each other")
    if no_target_directory and target_directory is not None:
        raise UsageError("-T and -t exclude each other")
    if inplace and backup:
        raise UsageError("--inplace and --backup exclude each other", hint="what is written into cannot be kept")
    if inplace and resume:
        raise UsageError("--inplace and --resume exclude each other", hint="--inplace --delta goes on where it stopped")
    Chmod(chmod)
    options = Options(
        recursive=recursive or archive,
        symlinks=followed[0] if followed else Symlinks.NONE if archive else Symlinks.NAMED,
        perms=perms,
        times=times,
        owner=owner or archive,
        group=group or archive,
        numeric=numeric_ids,
        hard_links=hard_links or archive,
        xattrs=xattrs or archive,
        acls=acls or archive,
        demanded=owner or group or xattrs or acls,
        chmod=chmod,
        chown=chown,
        plain=no_target_directory,
        directory=target_directory is not None,
        mkpath=mkpath,
        no_clobber=no_clobber,
        update=update,
        checksum=checksum,
        delta=delta,
        resume=resume,
        delete=delete,
        dry_run=dry_run,
        fsync=fsync,
        inplace=inplace,
        backup=os.fsencode(_suffix(suffix)) if backup else b"",
        exclude=tuple(map(os.fsencode, exclude or ())),
        include=tuple(map(os.fsencode, include or ())),
        rate=_rate(bwlimit),
        algorithm=digest,
    )
    what = plan(
        locations,
        parse_port(port),
        functools.partial(invocation.target, auth_key=auth_key),
        into=target_directory,
    )
    if invocation.json and progress != "json" and what.destination == STANDARD and not what.destinations:
        raise UsageError("--json and the files would both go to stdout", hint="--progress json tells on standard error")
    check(what, options, files_from is not None)
    below = _read_names(files_from, from0) if files_from is not None else []
    invocation = dataclasses.replace(invocation, report=telling(progress, invocation.report))
    return invocation.run(copy, what, options, below, stats)


def check(what: Plan, options: Options, files_from: bool) -> None:
    """Refuse what cannot be meant. Raises UsageError."""
    if options.delete and not options.recursive:
        raise UsageError("--delete goes with -r: it is about what directories hold")
    if files_from and (len(what.sources) > 1 or (what.source and what.destinations)):
        raise UsageError("--files-from is about one SOURCE, a directory, and one end that is far")
    if files_from and options.delete:
        raise UsageError("--files-from and --delete exclude each other: what is not listed is not to be removed")
    if STANDARD in what.sources and what.source is None:
        standard_input(what.sources)
        if len(what.destinations) > 1:
            raise UsageError("stdin can be read once, and goes to one target")
        if options.resume or options.update or options.delta or options.checksum:
            raise UsageError("what comes from stdin has nothing to be compared by", hint="without --update and such")
    if what.destination == STANDARD and not what.destinations:
        standard_output()
        if options.recursive:
            raise UsageError("stdout takes files, not directories", hint="leave out -r")


async def copy(engine: Engine, what: Plan, options: Options, below: Sequence[bytes] = (), stats: bool = False) -> int:
    """Carry out a plan; the exit code. Raises what nothing could be copied for."""
    copied = await _carry_out(engine, what, options, below)
    if stats:
        engine.report(Statistics.of([outcome.totals for outcome in copied]))
    failed = [outcome.error for outcome in copied if outcome.error is not None]
    if failed and engine.report is ignore:  # nobody has been told of any file
        raise failed[0]
    if not failed:
        return 0
    codes = {error.exit_code for error in failed}
    return codes.pop() if len(codes) == 1 and len(failed) == len(copied) else SomeFailed.exit_code


async def _carry_out(engine: Engine, what: Plan, options: Options, below: Sequence[bytes]) -> list[Copied]:
    if what.source is None:
        flow = standard_input(what.sources)
        return await _to_all(
            engine,
            what.destinations,
            lambda target: target.put(what.sources, what.destination, options, below=below, stdin=flow),
        )
    async with open_target(what.source, engine=engine) as source:
        if not what.destinations:
            if what.destination == STANDARD:
                return [await source.pour(what.sources, standard_output(), options, glob=True)]
            return [await source.get(what.sources, what.destination, options, below=below, glob=True)]
        return await _to_all(
            engine,
            what.destinations,
            lambda target: source.pass_on(what.sources, target, what.destination, options, glob=True),
        )


async def _to_all(
    engine: Engine, addresses: Sequence[Address], carry: Callable[[Target], Awaitable[Copied]]
) -> list[Copied]:
    """The same to each target, beside each other; one that fails as a whole stops no other."""
    copied: list[Copied] = []
    failures: list[VsockfwdError] = []

    async def one(address: Address) -> None:
        try:
            async with open_target(address, engine=engine) as target:
                copied.append(await carry(target))
        except VsockfwdError as error:
            failures.append(error.within(address.bare()) if len(addresses) > 1 else error)

    async with trio.open_nursery() as nursery:
        for address in addresses:
            nursery.start_soon(one, address)
    if not failures:
        return copied
    if len(addresses) == 1:
        raise failures[0]
    if not copied and len({error.code for error in failures}) == 1:
        more = f", and {len(failures) - 1} targets more" if len(failures) > 1 else ""
        raise type(failures[0])(failures[0].message + more, hint=failures[0].hint)
    raise SomeFailed("; ".join(error.line() for error in failures))


def _suffix(text: str) -> str:
    if not text or "/" in text or len(os.fsencode(text)) > 32:
        raise UsageError(f"--suffix {printable(text)!r}: is no end of a name", hint="such as ~ or .bak")
    return text


def _rate(text: str) -> int:
    """Bytes a second: a number with k, M or G behind it, or nothing. Raises UsageError."""
    if not text:
        return 0
    rate = bytes_in(text)
    if not rate:
        raise UsageError(f"--bwlimit {printable(text)}: is no rate", hint="bytes a second, such as 500k or 10M")
    return rate


def parse_port(text: str | None) -> int | None:
    """What `-p` says. Raises UsageError."""
    if text is None:
        return None
    if not text.isascii() or not text.isdecimal() or int(text) >= (1 << 32) - 1:
        raise UsageError(
            f"-p {printable(text)}: is no port", hint="-p is the agent's port; permissions and times are kept anyway"
        )
    return int(text)


def _read_names(name: str, nul: bool) -> list[bytes]:
    """The paths of a --files-from. Raises UsageError."""
    if name == "-" and sys.stdin is None:
        raise UsageError("--files-from -: standard input is closed")
    try:
        data = sys.stdin.buffer.read(FILES_LIMIT + 1) if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise UsageError(from_oserror(error, f"--files-from {printable(name)}").message) from None
    if len(data) > FILES_LIMIT:
        raise UsageError(f"--files-from {printable(name)}: holds more than {FILES_LIMIT} bytes")
    names = [line for line in data.split(b"\0" if nul else b"\n") if line]
    wanted(names)
    if not names:
        raise UsageError(f"--files-from {printable(name)}: names nothing")
    return names
