"""`vsockfwd ping`: is the agent there, are we let in, and how long does a round trip take?"""

from __future__ import annotations

from typing import Annotated

import trio
import typer

from vsockfwd.plugin import Address, AgentPort, Engine, Invocation, SharedKey, UsageError, open_session, printable


def ping(
    invocation: Invocation,
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="where the agent listens: 3, vsock:3, unix:/run/a.sock")
    ],
    count: Annotated[int, typer.Option("-c", "--count", metavar="N", help="questions to ask")] = 4,
    interval: Annotated[float, typer.Option("-i", "--interval", metavar="SECONDS", help="time between them")] = 0.2,
    port: AgentPort = None,
    auth_key: SharedKey = None,
) -> int:
    """Ask an agent whether it is there: log in, then time some round trips.

    Says as whom the agent sees us, which is what its rules are about.
    """
    if count < 1 or interval < 0:
        raise UsageError("ping asks at least once, at an interval of 0 seconds or more")
    return invocation.run(_ping, invocation.target(target, port, auth_key), count, interval, invocation)


async def _ping(engine: Engine, target: Address, count: int, interval: float, invocation: Invocation) -> None:
    began = trio.current_time()
    async with open_session(engine, target) as session:
        ready = await session.login()
        login = trio.current_time() - began
        if not invocation.json:
            print(f"{session.name}: agent answers, sees us as {ready.seen_as}, login {login * 1e3:.2f} ms")
            print(f"modes: {', '.join(sorted(ready.modes))}", flush=True)
            if ready.confined:
                print(f"confined: {printable(ready.confined)}", flush=True)
        times = []
        for number in range(count):
            if number:
                await trio.sleep(interval)
            times.append(await session.ping())
            if not invocation.json:
                print(f"round trip {number + 1}: {times[-1] * 1e3:.3f} ms", flush=True)
    if invocation.json:
        invocation.answer(
            "ping",
            target=session.name,
            seen_as=ready.seen_as,
            modes=sorted(ready.modes),
            confined=ready.confined,
            login_seconds=login,
            round_trip_seconds=times,
        )
    else:
        mean = sum(times) / len(times)
        print(f"least {min(times) * 1e3:.3f} ms, mean {mean * 1e3:.3f} ms, most {max(times) * 1e3:.3f} ms")
