"""The agent's side of a copy: what a client's request touches, and the end that it asks us to be."""

from __future__ import annotations

import os

import trio

from vsockfwd.plugin import Access, BadRequest, Call, Event, Report, Resource, Summary, decode_arguments, printable
from vsockfwd_copy.account import Account
from vsockfwd_copy.destination import resolve
from vsockfwd_copy.landing import Landing
from vsockfwd_copy.messages import Get, Put, Request, Resolved
from vsockfwd_copy.reading import Tree
from vsockfwd_copy.receiving import receive
from vsockfwd_copy.sending import send


def home() -> bytes:
    """Where relative far paths start: the home of the user that the agent runs as."""
    return os.fsencode(os.path.expanduser("~"))


def resources(arguments: bytes) -> tuple[Resource, ...]:
    """The paths that a request reads or writes, absolute but otherwise as typed. Raises BadRequest."""
    request = decode_arguments(arguments, Request).copy
    if isinstance(request, Put):
        return (_resource(Access.WRITE, request.destination),)
    return tuple(_resource(Access.READ, source) for source in request.sources)


def _resource(access: Access, path: bytes) -> Resource:
    if b"\0" in path:
        raise BadRequest("a path holds no NUL byte")
    return Resource(access, os.fsdecode(os.path.join(home(), path)))


async def serve(call: Call) -> None:
    """Send what a client wants to get, or receive what it puts."""
    request = call.arguments(Request).copy
    if isinstance(request, Put):
        await _receive(call, request)
    else:
        await _send(call, request)


async def _send(call: Call, request: Get) -> None:
    account = Account(_summary_only(call.report), f"copy to {call.peer}")
    tree = Tree(request.sources, recursive=request.recursive, base=home())
    try:
        await send(await call.accept(), tree, account)
    finally:
        tree.close()
    account.conclude()


async def _receive(call: Call, request: Put) -> None:
    place = await trio.to_thread.run_sync(
        lambda: resolve(request.destination, sources=request.sources, recursive=request.recursive, base=home())
    )
    landing = Landing(place, request.sources)
    account = Account(_summary_only(call.report), f"copy from {call.peer} to {printable(place.path)}")
    try:
        await receive(await call.accept(Resolved(place.path)), landing, account)
    finally:
        landing.close()
        place.close()
    account.conclude()


def _summary_only(report: Report) -> Report:
    """An agent's log has one line a copy; the client is told of each file."""

    def tell(event: Event) -> None:
        if isinstance(event, Summary):
            report(event)

    return tell
