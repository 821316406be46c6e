"""`forward -W`: standard input and output joined to an address that the agent dials, as ssh's -W does.

What stands in a ProxyCommand: nothing but the connection's bytes goes to standard output, and a cut is not an end.
"""

from __future__ import annotations

from vsockfwd.modes.forward import NAME, Connect
from vsockfwd.modes.spelling import parse_connect
from vsockfwd.plugin import Address, DataError, DescriptorStream, Ending, Engine, open_session


async def join_stdio(engine: Engine, target: Address, where: str) -> int:
    """Carry until both directions have ended. Raises why it could not, or how it was cut off."""
    connect = parse_connect(where)
    async with open_session(engine, target) as session:
        opened = await session.open(NAME, Connect(str(connect)))
        outcome = await opened.channel.relay(DescriptorStream(0, 1, "stdio"))
    if outcome.ending is not Ending.COMPLETE:
        raise DataError(f"-W {where}: {outcome}")
    return 0
