"""The set of transports that a process has, by scheme: what the engine dials and listens through.

A value, not a registry: tests hand the engine a network with memory streams or faults in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vsockfwd.address import Address
from vsockfwd.errors import UsageError
from vsockfwd.transport.accepting import AcceptTransport
from vsockfwd.transport.base import Dial, Listener, Stream, Transport
from vsockfwd.transport.descriptor import FdTransport, StdioTransport
from vsockfwd.transport.hybrid import HybridTransport
from vsockfwd.transport.tcp import TcpTransport
from vsockfwd.transport.tls import TlsListener, listening_context, secured
from vsockfwd.transport.unix import AbstractTransport, UnixTransport
from vsockfwd.transport.vsock import VsockTransport


class Network:
    """Dials and listens on any address whose scheme it has a transport for."""

    def __init__(self, transports: Mapping[str, Transport[Any]]) -> None:
        self.transports = transports

    def connect_now(self, address: Address) -> Stream | Dial | None:
        """Open a stream without a wait, or begin to, where that can be. Raises a VsockfwdError."""
        return None if address.option("tls") else self._of(address).connect_now(address)

    async def connect(self, address: Address, *, privileged: bool = False) -> Stream:
        """Open a stream. Raises a VsockfwdError, see Transport.connect."""
        stream = await self._of(address).connect(address, privileged=privileged)
        return await secured(stream, address) if address.option("tls") else stream

    async def resolve(self, address: Address) -> Sequence[Address]:
        """What a name in an address stands for, see Transport.resolve. Raises NameNotResolved."""
        return await self._of(address).resolve(address)

    async def listen(self, address: Address) -> Sequence[Listener]:
        """Listen. Raises a VsockfwdError, see Transport.listen."""
        if not address.option("tls"):
            return await self._of(address).listen(address)
        context = listening_context(address)
        return [TlsListener(listener, context) for listener in await self._of(address).listen(address)]

    def close(self) -> None:
        """Close what the transports themselves keep open. Streams and listeners belong to who opened them."""
        for transport in self.transports.values():
            transport.close()

    def _of(self, address: Address) -> Transport[Any]:
        transport = self.transports.get(address.scheme)
        if transport is None:
            raise UsageError(f"{address}: streams do not go over {address.scheme} here")
        return transport


def system_network(descriptors: Mapping[str, Sequence[int]] | None = None) -> Network:
    """Every transport that this machine's kernel may have; `descriptors`: what `fd:NAME` names."""
    sockets = Network(
        {
            "vsock": VsockTransport(),
            "hybrid": HybridTransport(),
            "tcp": TcpTransport(),
            "unix": UnixTransport(),
            "abstract": AbstractTransport(),
            "stdio": StdioTransport(),
            "fd": FdTransport(descriptors),
        }
    )
    return Network({**sockets.transports, "accept": AcceptTransport(sockets.listen)})
