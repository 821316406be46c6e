"""trio lives here: what moves bytes between streams, and what speaks the wire over them.

`Engine` is what every part of it is handed: the network to dial through, the reporter to tell, the buffers to borrow,
the service manager to tell when all is ready.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from vsockfwd.engine.pump import BufferPool
from vsockfwd.events import Report, ignore
from vsockfwd.service import Service
from vsockfwd.transport.network import Network, system_network


@dataclass(frozen=True, slots=True)
class Engine:
    """What a process's relays, sessions and agents share."""

    network: Network = field(default_factory=system_network)
    report: Report = ignore
    buffers: BufferPool = field(default_factory=BufferPool)
    service: Service = field(default_factory=Service)
    stopping: trio.Event = field(default_factory=trio.Event)
    """Set when the process is to stop: no new connections; it ends when those that are there have ended."""
    auth_key: str | None = None
    """The file of the key that is shown to the agents of targets that name none."""
