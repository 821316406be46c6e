"""The control socket of a running `up`: one line of JSON asks, one line answers, then the connection is over.

A request is `{"do": "status"}`, `add` with a rule's table in `rule`, `remove` with a `name`, or `reload`. An answer is
`{"ok": …}` or `{"error": …, "hint": …, "exit": …}`. It is a UNIX socket with mode 0600; the kernel names the asker
besides, and only root and our own user are answered.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
import trio

from vsockfwd.address import UnixAddress
from vsockfwd.config import read_rule
from vsockfwd.engine import Engine
from vsockfwd.engine.rules import Rules, State, Status
from vsockfwd.engine.server import serve_listeners
from vsockfwd.errors import BadRequest, PeerBrokeProtocol, TimedOut, VsockfwdError, printable
from vsockfwd.identity import UnixPeer
from vsockfwd.rule import RuleKind
from vsockfwd.transport.base import Stream

LINE_LIMIT = 1 << 20
"""Bytes of a request or an answer: some thousand rules."""

DEADLINE = 10.0
"""Seconds for a request to come; what it asks for may take longer."""


class Request(msgspec.Struct, frozen=True):
    """What is asked for."""

    do: str
    rule: dict[str, Any] = {}
    name: str = ""


class Failure(msgspec.Struct, frozen=True):
    """Why something was not done."""

    error: str
    hint: str
    exit: int


class ControlSocket:
    """The serving side."""

    def __init__(
        self,
        rules: Rules,
        kinds: Mapping[str, RuleKind],
        reload: Callable[[], tuple[list[str], list[str]]],
    ) -> None:
        self._rules = rules
        self._kinds = kinds
        self._reload = reload
        self._verbs: dict[str, Callable[[Request], Awaitable[object]]] = {
            "status": self._status,
            "add": self._add,
            "remove": self._remove,
            "reload": self._do_reload,
        }

    async def serve(self, address: UnixAddress, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer until cancelled. Raises VsockfwdError where it cannot listen."""
        engine = self._rules.engine
        listeners = await engine.network.listen(address)
        task_status.started()
        await serve_listeners(listeners, self._handle, engine.report)

    async def _handle(self, stream: Stream) -> None:
        if not isinstance(stream.peer, UnixPeer) or stream.peer.uid not in (0, os.geteuid()):
            return
        answer: object
        try:
            with trio.fail_after(DEADLINE):
                line = await _read_line(stream)
            request = msgspec.json.decode(line, type=Request)
            verb = self._verbs.get(request.do)
            if verb is None:
                raise BadRequest(f"{printable(request.do)!r} is nothing that can be asked for here")
            answer = {"ok": await verb(request)}
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            answer = Failure(f"the request makes no sense: {error}", "", 2)
        except VsockfwdError as error:
            answer = Failure(error.message, error.hint, error.exit_code)
        except (trio.TooSlowError, trio.BrokenResourceError):
            return
        await stream.send_all(msgspec.json.encode(answer) + b"\n")

    async def _status(self, request: Request) -> list[Status]:
        return self._rules.status()

    async def _add(self, request: Request) -> Status:
        """A rule that does not come up at once is not added."""
        named = read_rule(request.rule, "rule", self._kinds, self._rules.targets)
        work = self._rules.add(named)
        await work.settled.wait()
        if work.state is not State.UP and work.error is not None:
            self._rules.remove(named.name)
            raise work.error
        return work.status()

    async def _remove(self, request: Request) -> str:
        self._rules.remove(request.name)
        return request.name

    async def _do_reload(self, request: Request) -> dict[str, list[str]]:
        stopped, started = self._reload()
        return {"stopped": stopped, "started": started}


async def ask(engine: Engine, address: UnixAddress, request: Request) -> Any:
    """Ask a running `up`; returns what stands in `ok`. Raises what it answered, or why it could not be asked."""
    stream = await engine.network.connect(address)
    async with stream:
        try:
            await stream.send_all(msgspec.json.encode(request) + b"\n")
            with trio.fail_after(60):
                answer = msgspec.json.decode(await _read_line(stream), type=dict[str, Any])
        except (msgspec.DecodeError, trio.BrokenResourceError) as error:
            raise PeerBrokeProtocol(f"{address.bare()}: no answer that makes sense: {error}") from None
        except trio.TooSlowError:
            raise TimedOut(f"{address.bare()}: no answer") from None
    if "ok" in answer:
        return answer["ok"]
    failure = msgspec.convert(answer, Failure)
    told = VsockfwdError(printable(failure.error), hint=printable(failure.hint))
    told.exit_code = failure.exit  # type: ignore[misc] # as the one who knows has it
    raise told


async def _read_line(stream: Stream) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        piece = await stream.receive_some()
        if not piece:
            raise PeerBrokeProtocol("the connection ended before the line did")
        line += piece
        if len(line) > LINE_LIMIT:
            raise PeerBrokeProtocol(f"a line of more than {LINE_LIMIT} bytes")
    return line
