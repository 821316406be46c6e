"""A target, opened: what `vsockfwd cp` and `vsockfwd fs` are made of, and a library for others.

    async with open_target("3") as guest:
        await guest.put(["site"], "/srv", Options(recursive=True))
        async for entry in guest.walk("/srv"):
            print(entry.path, entry.status.size)

Paths are str or bytes; relative ones start at the working directory here, and at the agent user's home there. What
becomes of each file is told as events (`report`), and what it all came to is what a copy returns. `docs/copying.md` has
an example that is run by a test.

What one way of copying needs is imported by the first copy that goes it: half of a short command's time is its start.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field

import trio

from vsockfwd.plugin import (
    Address,
    Channel,
    Ended,
    Engine,
    Frame,
    PeerBrokeProtocol,
    Report,
    Session,
    UsageError,
    VsockfwdError,
    ignore,
    open_session,
    parse_target,
    printable,
)
from vsockfwd_copy.account import Account, Totals
from vsockfwd_copy.asked import Expected, wanted
from vsockfwd_copy.locations import STANDARD
from vsockfwd_copy.looking import Seen, Space, Status
from vsockfwd_copy.messages import Get, Kind, Look, Put, Request, Resolved, decode
from vsockfwd_copy.options import Options, SendOptions
from vsockfwd_copy.patterns import is_pattern
from vsockfwd_copy.roots import Root

MODE_NAME = "copy"

DEFAULTS = Options()

REQUEST_ROOM = 3072
"""Bytes of paths and patterns in one request; an agent decodes no more than 4 KiB of a request before it is let in."""

Path = str | bytes | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy came to: the totals, and the error that a command would end with, where something failed."""

    totals: Totals
    error: VsockfwdError | None = None

    def check(self) -> Copied:
        """Raise the error, if there is one."""
        if self.error is not None:
            raise self.error
        return self


@dataclass(frozen=True, slots=True)
class Walked:
    """One thing below a directory: its path, relative to that, and what it is."""

    path: bytes
    status: Status


@contextlib.asynccontextmanager
async def open_target(
    target: str | Address, *, report: Report = ignore, engine: Engine | None = None
) -> AsyncIterator[Target]:
    """Log in to an agent. Raises AddressError, or why it cannot be."""
    address = parse_target(target) if isinstance(target, str) else target
    engine = engine or Engine(report=report)
    async with open_session(engine, address) as session:
        yield Target(engine, session)


@dataclass(slots=True)
class Target:
    """An agent that is logged in to. Copies may run beside each other."""

    engine: Engine
    session: Session
    here: bytes = field(default_factory=os.getcwdb)
    """Where relative local paths start."""

    # --- copies

    async def put(
        self,
        sources: Sequence[Path],
        destination: Path,
        options: Options = DEFAULTS,
        *,
        below: Sequence[Path] = (),
        stdin: int | None = None,
    ) -> Copied:
        """Copy local files to a far destination.

        `below`: of the one source, a directory, these relative paths only. `stdin`: the descriptor that a source `-`
        stands for. Raises what nothing could be copied for; failures of single files are in what is returned.
        """
        from vsockfwd_copy.sending import send
        from vsockfwd_copy.walking import Tree

        paths = _paths(sources)
        request = Put(os.fsencode(destination), len(paths), options.landing())
        _check_room(request)
        opened = await self.session.open(MODE_NAME, Request(request))
        place = opened.reply(Resolved).place
        account = self._account(f"copy to {self.session.name} {printable(place)}", options)
        sending = options.sending(below=bool(below))
        async with _over(opened.channel) as channel:
            tree = Tree([*paths, *_paths(below)] if below else paths, sending, self._root(), flow=stdin)
            with contextlib.closing(tree):
                await send(channel, tree, sending, account)
        return Copied(account.totals, account.conclude())

    async def get(
        self,
        sources: Sequence[Path],
        destination: Path,
        options: Options = DEFAULTS,
        *,
        below: Sequence[Path] = (),
        glob: bool = False,
    ) -> Copied:
        """Copy far files to a local destination. `glob`: a source that is not there may be a pattern. See `put`."""
        from vsockfwd_copy.destination import resolve
        from vsockfwd_copy.landing import Landing
        from vsockfwd_copy.receiving import receive

        paths, typed = _paths(sources), os.fsencode(destination)
        landing = options.landing()
        place = await trio.to_thread.run_sync(
            lambda: resolve(typed, sources=_count(paths, glob), options=landing, root=self._root())
        )
        account = self._account(f"copy from {self.session.name} to {printable(typed)}", options)
        sending = options.sending(glob=glob, below=bool(below))
        with contextlib.closing(place):
            for asked in _requests(paths, _paths(below), sending):
                tree = wanted(asked[1:]) if below else None
                names = paths if below else asked
                expected = Expected(len(names), names, glob=glob, below=bool(below))
                with contextlib.closing(Landing(place, landing, expected, tree)) as landed:
                    opened = await self.session.open(MODE_NAME, Request(Get(asked, sending)))
                    async with _over(opened.channel) as channel:
                        await receive(channel, landed, account)
        return Copied(account.totals, account.conclude())

    async def pour(
        self, sources: Sequence[Path], fd: int, options: Options = DEFAULTS, *, glob: bool = False
    ) -> Copied:
        """Write the content of far files to a descriptor, one behind the other. See `get`."""
        from vsockfwd_copy.pouring import Pouring
        from vsockfwd_copy.receiving import receive

        account = self._account(f"copy from {self.session.name}", options)
        sending = options.sending(glob=glob)
        for asked in _requests(_paths(sources), [], sending):
            pouring = Pouring(fd, Expected(len(asked), asked, glob=glob), options.algorithm)
            opened = await self.session.open(MODE_NAME, Request(Get(asked, sending)))
            async with _over(opened.channel) as channel:
                await receive(channel, pouring, account)
        return Copied(account.totals, account.conclude())

    async def pass_on(
        self,
        sources: Sequence[Path],
        other: Target,
        destination: Path,
        options: Options = DEFAULTS,
        *,
        glob: bool = False,
    ) -> Copied:
        """Copy this target's files to another target. See `put`."""
        from vsockfwd_copy.passing import pass_on

        paths = _paths(sources)
        sending = options.sending(glob=glob)
        put = Put(os.fsencode(destination), _count(paths, glob), options.landing())
        get = Get(paths, sending)
        _check_room(put)
        _check_room(get)
        receiver = await other.session.open(MODE_NAME, Request(put))
        place = receiver.reply(Resolved).place
        account = self._account(f"copy from {self.session.name} to {other.session.name} {printable(place)}", options)
        async with _over(receiver.channel) as sink:
            sender = await self.session.open(MODE_NAME, Request(get))
            async with _over(sender.channel) as source:
                await pass_on(source, sink, Expected(len(paths), paths, glob=glob), account)
        return Copied(account.totals, account.conclude())

    def _account(self, what: str, options: Options) -> Account:
        return Account(self.engine.report, what, dry_run=options.dry_run, demanded=options.demanded)

    def _root(self) -> Root:
        return Root(self.here)

    # --- looking

    async def stat(self, path: Path, *, follow: bool = True) -> Status:
        """What is there. Raises NotFound and the like."""
        for seen in await self._look(Look("stat", os.fsencode(path), follow)):
            for status in seen.found:
                return status
        raise PeerBrokeProtocol("the agent said nothing of what was asked")

    async def list(self, path: Path) -> list[Status]:
        """What a directory holds, by name. Raises NotFound and the like."""
        return [status for seen in await self._look(Look("list", os.fsencode(path))) for status in seen.found]

    async def walk(self, path: Path) -> AsyncIterator[Walked]:
        """All below a directory, parents before children; symlinks are told, not followed."""
        top = os.fsencode(path)
        waiting = [b""]
        while waiting:
            below = waiting.pop()
            found = await self.list(os.path.join(top, below) if below else top)
            directories = []
            for status in found:
                walked = Walked(os.path.join(below, status.name), status)
                if status.kind == "directory":
                    directories.append(walked.path)
                yield walked
            waiting += reversed(directories)

    async def space(self, path: Path) -> Space:
        """The file system that something is on."""
        for seen in await self._look(Look("space", os.fsencode(path))):
            if seen.space is not None:
                return seen.space
        raise PeerBrokeProtocol("the agent said nothing of what was asked")

    async def make_directory(self, path: Path, *, parents: bool = False) -> None:
        """Make a directory; with `parents` what is missing above it too, and it may be there already."""
        await self._look(Look("make", os.fsencode(path), parents))

    async def remove(self, path: Path, *, recursive: bool = False) -> int:
        """Remove a file, or with `recursive` a directory and all in it; how many were removed."""
        return sum(seen.removed for seen in await self._look(Look("remove", os.fsencode(path), recursive)))

    async def _look(self, request: Look) -> Sequence[Seen]:
        opened = await self.session.open(MODE_NAME, Request(request))
        seen: list[Seen] = []
        async with _over(opened.channel) as channel:
            while not isinstance(event := await channel.receive(), Ended):
                if not isinstance(event, Frame) or event.kind != Kind.SEEN:
                    raise PeerBrokeProtocol("the agent sent what was not asked for")
                seen.append(decode(event.payload, Seen))
        return seen


@contextlib.asynccontextmanager
async def _over(channel: Channel) -> AsyncIterator[Channel]:
    """A channel for the length of a block; where that fails, the agent is told why."""
    try:
        yield channel
    except VsockfwdError as error:
        await channel.reset(error.code, error.message)
        raise
    finally:
        await channel.aclose()


def _paths(paths: Sequence[Path]) -> list[bytes]:
    return [os.fsencode(path) for path in paths]


def _count(paths: Sequence[bytes], glob: bool) -> int:
    """How many sources there will be; 0: nobody knows, where one is a pattern."""
    return 0 if glob and any(map(is_pattern, paths)) else len(paths)


def _weight(request: Put | Get) -> int:
    options = request.options
    words = sum(len(word) + 4 for word in (*options.exclude, *options.include))
    paths = [request.destination] if isinstance(request, Put) else request.sources
    return words + sum(len(path) + 8 for path in paths)


def _check_room(request: Put | Get) -> None:
    if _weight(request) > REQUEST_ROOM:
        raise UsageError(
            f"paths and patterns of more than {REQUEST_ROOM} bytes do not fit one request",
            hint="fewer --exclude and --include, or several cp",
        )


def _requests(sources: Sequence[bytes], below: Sequence[bytes], options: SendOptions) -> Iterator[list[bytes]]:
    """The sources in as many requests as it takes; all of a request's paths must be there for the agent's policy.

    With `below` each request names the one source and as many of those paths as there is room for.
    """
    always = list(sources) if below else []
    batch = list(always)
    for path in below or sources:
        if len(batch) > len(always) and _weight(Get([*batch, path], options)) > REQUEST_ROOM:
            yield batch
            batch = list(always)
        batch.append(path)
    _check_room(Get(batch, options))
    yield batch


def standard_input(sources: Sequence[bytes]) -> int | None:
    """The descriptor that a source `-` stands for. Raises UsageError where it stands beside others."""
    if STANDARD not in sources:
        return None
    if len(sources) > 1:
        raise UsageError("stdin is one source, and stands alone", hint="a file of that name is ./-")
    if sys.stdin is None:
        raise UsageError("standard input is closed", hint="open it, on /dev/null at least")
    return sys.stdin.fileno()


def standard_output() -> int:
    """The descriptor that the destination `-` stands for. Raises UsageError where there is none."""
    # What stands in for a stream that was closed when the process began is no place for what was asked for.
    if sys.__stdout__ is None:
        raise UsageError("standard output is closed", hint="open it, on /dev/null at least")
    return sys.stdout.fileno()
