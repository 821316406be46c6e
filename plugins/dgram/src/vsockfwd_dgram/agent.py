"""The agent's side of a request: send on what the client's flows bring, or listen for the client.

The thing to understand first: what a request touches and what is done for it are read by one function, so that the
policy is never asked about another address than the one that is used.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import msgspec

from vsockfwd.plugin import (
    Access,
    Address,
    AddressError,
    BadRequest,
    Call,
    NotAllowed,
    Resource,
    UdpAddress,
    decode_arguments,
)
from vsockfwd_dgram.far import Far, sockets_to_spare
from vsockfwd_dgram.frames import Connect, Connected, Listen, Listens
from vsockfwd_dgram.near import Near
from vsockfwd_dgram.rule import DatagramEnd, Destination
from vsockfwd_dgram.sockets import Place, bind, places

WHERE = "at the client"


class _Which(msgspec.Struct, frozen=True):
    """What tells the two requests apart."""

    listen: str = ""


def _request(decode: Callable[[Any], Any]) -> tuple[Connect | Listen, Address]:
    """The request and its address. Raises BadRequest."""
    listens = decode(_Which).listen
    request = decode(Listen if listens else Connect)
    try:
        end = DatagramEnd.read(request.listen) if listens else Destination.read(request.connect)
    except AddressError as error:
        raise BadRequest(error.message, hint=error.hint) from None
    return request, end.value


def resources(arguments: bytes) -> tuple[Resource, ...]:
    """The address that datagrams are to be sent to, or listened for on."""
    request, address = _request(lambda kind: decode_arguments(arguments, kind))
    return (Resource(Access.LISTEN if isinstance(request, Listen) else Access.CONNECT, address.bare()),)


async def serve(call: Call) -> None:
    """Carry flows until the client ends them or goes."""
    request, address = _request(call.arguments)
    if isinstance(request, Listen):
        await _listen(call, request, address)
    else:
        await _connect(call, request, address)


async def _connect(call: Call, request: Connect, address: Address) -> None:
    look_up = functools.partial(_places, call, address)
    found = await look_up()
    flows = min(request.flows, sockets_to_spare())
    channel = await call.accept(Connected(flows))
    await Far(f"dgram to {address} for {call.peer}", WHERE, address, found, flows, call.report, look_up=look_up).run(
        channel
    )


async def _places(call: Call, address: Address) -> list[Place]:
    """What the address stands for, as far as the client may have it. Raises NameNotResolved, NotAllowed."""
    found = await places(address)
    if not isinstance(address, UdpAddress) or address.host in ("", "*"):
        return found
    allowed, refusal = [], None
    for family, sockaddr in found:
        literal = UdpAddress(sockaddr[0].partition("%")[0], address.port)
        try:
            call.check(Resource(Access.CONNECT, literal.bare(), asked=address.bare()))
        except NotAllowed as error:
            refusal = refusal or error
        else:
            allowed.append((family, sockaddr))
    if refusal is not None and not allowed:
        raise refusal
    return allowed


async def _listen(call: Call, request: Listen, address: Address) -> None:
    with contextlib.ExitStack() as sockets:
        bound = await bind(address)
        for each in bound:
            sockets.callback(each.close)
        channel = await call.accept(Listens(tuple(str(each.address) for each in bound)))
        rule = f"dgram from {bound[0].address} for {call.peer}"
        near = Near(rule, WHERE, bound, request.idle, request.flows, call.report)
        async with near.listening():
            await near.carry(channel)
