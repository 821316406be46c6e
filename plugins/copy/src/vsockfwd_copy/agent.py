"""The agent's side: what a client's request touches, and the end of a copy that it asks us to be."""

from __future__ import annotations

import os
from collections.abc import Iterator

import trio

from vsockfwd.plugin import Access, BadRequest, Call, Event, Report, Resource, Summary, decode_arguments, printable
from vsockfwd_copy.account import Account
from vsockfwd_copy.asked import Expected
from vsockfwd_copy.destination import resolve
from vsockfwd_copy.landing import Landing
from vsockfwd_copy.looking import Seen, look
from vsockfwd_copy.messages import Get, Kind, Look, Put, Request, Resolved, encode
from vsockfwd_copy.options import Symlinks
from vsockfwd_copy.receiving import receive
from vsockfwd_copy.roots import Root
from vsockfwd_copy.sending import send
from vsockfwd_copy.walking import Tree


def home() -> bytes:
    """Where relative far paths start: the home of the user that the agent runs as."""
    return os.fsencode(os.path.expanduser("~"))


def _start(root: str | None) -> bytes:
    return home() if root is None else b"/"


def resources(arguments: bytes) -> tuple[Resource, ...]:
    """The paths that a request reads or writes, absolute but otherwise as typed. Raises BadRequest."""
    request = decode_arguments(arguments, Request).copy
    match request:
        case Put():
            access = Access.READ if request.options.dry_run else Access.WRITE
            return (_resource(access, request.destination),)
        case Get():
            return tuple(_resource(Access.READ, source) for source in request.sources)
        case Look():
            access = Access.WRITE if request.what in ("make", "remove") else Access.READ
            return (_resource(access, request.path),)


def _resource(access: Access, path: bytes) -> Resource:
    if b"\0" in path:
        raise BadRequest("a path holds no NUL byte")
    return Resource(access, os.fsdecode(os.path.join(home(), path)))


async def serve(call: Call) -> None:
    """Send what a client wants to get, receive what it puts, tell what it asks."""
    request = call.arguments(Request).copy
    root = Root(_start(call.root), None if call.root is None else os.fsencode(call.root))
    try:
        match request:
            case Put():
                await _receive(call, request, root)
            case Get():
                await _send(call, request, root)
            case Look():
                await _look(call, request, root)
    finally:
        root.close()


async def _send(call: Call, request: Get, root: Root) -> None:
    if call.root is not None and request.options.symlinks == Symlinks.ALL:
        raise BadRequest("-L cannot be held to --root: what a symlink leads to may be outside of it")
    account = Account(_summary_only(call.report), f"copy to {call.peer}", tells_files=False)
    tree = Tree(request.sources, request.options, root)
    try:
        await send(await call.accept(), tree, request.options, account)
    finally:
        tree.close()
    account.conclude()


async def _receive(call: Call, request: Put, root: Root) -> None:
    options = request.options
    place = await trio.to_thread.run_sync(
        lambda: resolve(request.destination, sources=request.sources, options=options, root=root)
    )
    try:
        landing = Landing(place, options, Expected(request.sources))
        what = f"copy from {call.peer} to {printable(place.path)}"
        account = Account(_summary_only(call.report), what, dry_run=options.dry_run, tells_files=False)
        try:
            await receive(await call.accept(Resolved(place.path)), landing, account)
        finally:
            landing.close()
        account.conclude()
    finally:
        place.close()


async def _look(call: Call, request: Look, root: Root) -> None:
    """Nothing is accepted before the first has been found, so that what is not there is the request's own error."""
    found = look(request, root)
    first = await trio.to_thread.run_sync(_next, found)
    channel = await call.accept()
    seen = first
    while seen is not None:
        await channel.send_frames((Kind.SEEN, encode(seen)))
        seen = await trio.to_thread.run_sync(_next, found)
    await channel.send_end()


def _next(found: Iterator[Seen]) -> Seen | None:
    return next(found, None)


def _summary_only(report: Report) -> Report:
    """An agent's log has one line a copy; the client is told of each file."""

    def tell(event: Event) -> None:
        if isinstance(event, Summary):
            report(event)

    return tell
