"""`vsockfwd cp`: the client's side of a copy."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Annotated

import trio
import typer

from vsockfwd.plugin import Channel, Engine, Invocation, Session, VsockfwdError, ignore, open_session, printable
from vsockfwd_copy.account import Account
from vsockfwd_copy.destination import resolve
from vsockfwd_copy.landing import Landing
from vsockfwd_copy.locations import Plan, plan
from vsockfwd_copy.messages import Get, Put, Request, Resolved
from vsockfwd_copy.reading import Tree
from vsockfwd_copy.receiving import receive
from vsockfwd_copy.sending import send

MODE_NAME = "copy"

REQUEST_ROOM = 3072
"""Bytes of source paths in one request; an agent decodes no more than 4 KiB of a request before it is let in."""


def cp(
    invocation: Invocation,
    locations: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE… DESTINATION", help="local paths, and TARGET:PATH on the agent's side"),
    ],
    recursive: Annotated[bool, typer.Option("-r", "--recursive", help="copy directories and what is in them")] = False,
    port: Annotated[
        int | None, typer.Option("-p", metavar="PORT", help="the agent's port, where it is not 876")
    ] = None,
) -> int:
    """Copy files to or from where an agent runs, verified: vsockfwd cp -r site 3:/srv, vsockfwd cp 3:/etc/hosts .

    A destination that is a directory takes the sources in; else it is the name of the one source. Far paths start at
    the agent user's home. A target with colons stands in brackets: [unix:/run/a.sock]:/etc/hosts; ./a:b is local.
    Symlinks named as SOURCE are followed, those inside a directory are copied as symlinks. Permissions and times are
    kept; FIFOs, sockets and devices are not copied. Each file appears complete and verified, or not at all.
    """
    return invocation.run(copy, plan(locations, port, invocation.target), recursive)


async def copy(engine: Engine, what: Plan, recursive: bool) -> int:
    """Carry out a plan; the exit code. Raises what nothing could be copied for."""
    async with open_session(engine, what.target) as session:
        account = await (_put if what.to_agent else _get)(engine, session, what, recursive)
    error = account.conclude()
    if error is not None and engine.report is ignore:  # nobody has been told of any file
        raise error
    return error.exit_code if error is not None else 0


async def _put(engine: Engine, session: Session, what: Plan, recursive: bool) -> Account:
    request = Request(Put(what.destination, len(what.sources), recursive))
    opened = await session.open(MODE_NAME, request)
    place = opened.reply(Resolved).place
    account = Account(engine.report, f"copy to {session.name} {printable(place)}")
    tree = Tree(what.sources, recursive=recursive, base=os.getcwdb())
    with contextlib.closing(tree):
        async with _over(opened.channel) as channel:
            await send(channel, tree, account)
    return account


async def _get(engine: Engine, session: Session, what: Plan, recursive: bool) -> Account:
    place = await trio.to_thread.run_sync(
        lambda: resolve(what.destination, sources=len(what.sources), recursive=recursive, base=os.getcwdb())
    )
    account = Account(engine.report, f"copy from {session.name} to {printable(what.destination)}")
    with contextlib.closing(place):
        for sources in _requests(what.sources):
            opened = await session.open(MODE_NAME, Request(Get(sources, recursive)))
            with contextlib.closing(Landing(place, len(sources), sources)) as landing:
                async with _over(opened.channel) as channel:
                    await receive(channel, landing, account)
    return account


def _requests(sources: Sequence[bytes]) -> Iterator[list[bytes]]:
    """The sources in as many requests as it takes; all of a request's paths must be there for the agent's policy."""
    batch: list[bytes] = []
    for source in sources:
        if batch and sum(len(path) + 8 for path in (*batch, source)) > REQUEST_ROOM:
            yield batch
            batch = []
        batch.append(source)
    yield batch


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
