"""A stranger's plugin, whole: the agent sends a text back in capitals."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from vsockfwd.plugin import BadRequest, Call, Engine, Invocation, Mode, open_session, parse_target


class Shout(msgspec.Struct, frozen=True):
    text: str


async def serve(call: Call) -> None:
    asked = call.arguments(Shout)
    if not asked.text:
        raise BadRequest("nothing to shout")
    channel = await call.accept(Shout(asked.text.upper()))
    await channel.send_end()
    await channel.aclose()


MODE = Mode("shout", "sends a text back in capitals", serve=serve)


def shout(
    invocation: Invocation,
    target: Annotated[str, typer.Argument(help="the agent")],
    text: Annotated[str, typer.Argument(help="what to shout")],
) -> int:
    """Have an agent shout."""

    async def ask(engine: Engine) -> None:
        async with open_session(engine, parse_target(target)) as session:
            opened = await session.open("shout", Shout(text))
            print(opened.reply(Shout).text)
            await opened.channel.aclose()

    return invocation.run(ask)
