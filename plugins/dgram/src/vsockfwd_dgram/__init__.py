"""vsockfwd-dgram: UDP and UNIX datagrams, through an agent or without, their boundaries kept, every loss counted.

    rule      the kinds of rule, and what -L and -R say: text → two addresses
    frames    the mode's frames and its requests: values and bytes only
    fair      datagrams that wait, by flow: bounded, each flow in turn, the oldest dropped first
    drops     what was not delivered, by reason, here and at the peer's
    batch     several datagrams in one call of the kernel
    sockets   datagram sockets, and many of them watched by one task
    packets   connections that keep boundaries (SOCK_SEQPACKET)
    flows     flows on one side: how long they live, what waits for their sockets
    carrier   one side of a stream with flows on it: what both sides share
    near      the side that listens; far: the side that sends on – either may be the client's or the agent's
    client    the client's side of a rule; agent: the agent's side of a request
    raw       a rule without an agent
    command   `vsockfwd dgram`

The thing to understand first: a datagram may be lost, and is never clipped, merged or lost silently.
"""

from vsockfwd.plugin import Mode
from vsockfwd_dgram.agent import resources, serve
from vsockfwd_dgram.client import DATAGRAM, REMOTE_DATAGRAM
from vsockfwd_dgram.frames import CONNECTS, LISTENS, NAME
from vsockfwd_dgram.raw import RAW_DATAGRAM

__version__ = "0.1.0"

MODE = Mode(
    NAME,
    "forwards datagrams",
    versions=(CONNECTS, LISTENS),
    serve=serve,
    resources=resources,
    rules=(DATAGRAM, REMOTE_DATAGRAM, RAW_DATAGRAM),
)
