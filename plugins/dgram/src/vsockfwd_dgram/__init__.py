"""vsockfwd-dgram: UDP and UNIX datagrams through an agent, their boundaries kept, every loss counted.

    rule      what -L says: text → two addresses
    frames    the mode's frames and its request: values and bytes only
    fair      datagrams that wait, by flow: bounded, each flow in turn, the oldest dropped first
    drops     what was not delivered, by reason, here and at the peer's
    sockets   datagram sockets, and many of them watched by one task
    carrier   one side of a stream with flows on it: what both sides share
    near      the side that listens; far: the agent's, which sends on
    command   `vsockfwd dgram`

The thing to understand first: a datagram may be lost, and is never clipped, merged or lost silently.
"""

from vsockfwd.plugin import Mode
from vsockfwd_dgram.far import resources, serve
from vsockfwd_dgram.frames import NAME

__version__ = "0.1.0"

MODE = Mode(NAME, "forwards datagrams through an agent", serve=serve, resources=resources)
