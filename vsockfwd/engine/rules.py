"""Rules at work: started, supervised, counted, reloaded, stopped. What `up`, `forward` and the control socket talk to.

The thing to understand first: a rule that cannot go on waits and tries again; it is never simply gone. What it tells
about itself it takes from the events that its own connections report, so no mode counts anything.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from types import TracebackType
from typing import Any, Protocol, Self, TypedDict

import msgspec
import trio

from vsockfwd.address import Address
from vsockfwd.config import NamedRule, find_target, quarrel
from vsockfwd.engine import Engine
from vsockfwd.engine.backoff import Backoff
from vsockfwd.engine.server import AtOnce, Gate, Handler, serve_listeners
from vsockfwd.engine.session import Session
from vsockfwd.engine.stopping import until_stopping
from vsockfwd.errors import ConfigError, NotFound, VsockfwdError, the_one
from vsockfwd.events import Closed, Denied, Dropped, Event, Listening, Opened, Problem, RuleChanged
from vsockfwd.identity import Identity
from vsockfwd.rule import MOST_CONNECTIONS, ForwardRule
from vsockfwd.transport.base import Listener, Stream

LEASE_LENGTH = 16
"""Bytes."""


class State(StrEnum):
    """Where a rule stands."""

    STARTING = "starting"
    UP = "up"
    DOWN = "down"
    """It waits, and tries again; `why` says for what."""
    FAILED = "failed"
    """It never came up, and was not to be tried again."""
    STOPPED = "stopped"


class Live(Protocol):
    """A connection at work, which knows what it has moved, in bytes."""

    @property
    def sent(self) -> int: ...
    @property
    def received(self) -> int: ...


class Carrying(TypedDict, total=False):
    """What every relay takes, whatever it joins: see engine/relay.py. Times are seconds."""

    idle: float
    half_open: float
    live: set[Any]


class Status(msgspec.Struct, frozen=True):
    """What there is to know of a rule. `since` is seconds since the epoch, sizes are bytes.

    `dropped`: datagrams that were not delivered, by reason, where the rule is about datagrams.
    """

    name: str
    kind: str
    state: State
    since: float
    why: str
    listening: tuple[str, ...]
    target: str
    connections: int
    connections_total: int
    sent: int
    received: int
    last_error: str
    dropped: dict[str, int] = {}


class Keeper:
    """Keeps a session with one target for the rules that use it: logs in, and again when it is lost.

    The pauses between attempts grow until the session was of use, that is until a stream was opened over it: an agent
    that lets us in and dies at once is not asked a thousand times a second. Whoever else logs in ends a pause.
    """

    def __init__(self, engine: Engine, target: Address, nursery: trio.Nursery) -> None:
        self.session = Session(engine, target, nursery)
        self.users = 0
        self.up = False
        self.why = ""
        self.scope = trio.CancelScope()
        self._changed = trio.Event()

    async def changed(self) -> None:
        """Wait until `up` or `why` is another."""
        await self._changed.wait()

    def _set(self, up: bool, why: str) -> None:
        if (up, why) != (self.up, self.why):
            self.up, self.why = up, why
            self._changed.set()
            self._changed = trio.Event()

    async def come_up(self) -> None:
        """Be up, for those who want that at once. Raises why the login failed."""
        await self.session.login()
        while not self.up:
            await self.changed()

    async def run(self) -> None:
        """Until cancelled."""
        backoff = Backoff()
        with self.scope:
            while True:
                opened = self.session.opened
                try:
                    await self.session.login()
                    self._set(True, "")
                    self._set(False, str(await self.session.lost()))
                except VsockfwdError as error:
                    self._set(False, error.line())
                if self.session.opened > opened:
                    backoff.reset()
                with trio.move_on_after(backoff.next()):
                    await self.session.came_up()
        self.session.leave()


class Work:
    """A rule at work. A kind's `run` is handed one: the engine to work with, how to listen and how to serve."""

    def __init__(self, rules: Rules, named: NamedRule) -> None:
        self.named = named
        self.name = named.name
        self.rule = named.rule
        self.engine = dataclasses.replace(rules.engine, report=self._hear)
        self.live: set[Live] = set()
        self.state = State.STARTING
        self.since = time.time()
        self.why = ""
        self.listening: tuple[str, ...] = ()
        self.last_error = ""
        self.error: VsockfwdError | None = None
        self.settled = trio.Event()
        """Set when the first attempt has come up or failed, or is not to be made any more."""
        self.scope = trio.CancelScope()
        self.lease = secrets.token_bytes(LEASE_LENGTH)
        """By which an agent knows the rule's remote listener again."""
        self.kept: Any = None
        """What the kind wants to know again in its next attempt."""
        self._rules = rules
        self._now = self._total = self._sent = self._received = 0
        # What a rule without connections cannot say is never asked.
        self._limits = self.rule if isinstance(self.rule, ForwardRule) else ForwardRule()
        self._gate = Gate(self._limits.max_connections, rules.gate)
        self._of_peer: dict[object, int] = {}
        self._dropped: Counter[str] = Counter()

    # --- for kinds

    @property
    def carrying(self) -> Carrying:
        """What relays are to be told of the rule: how long they may be silent, and where they are counted."""
        return {"idle": self._limits.idle_timeout, "half_open": self._limits.half_open_timeout, "live": self.live}

    async def listen(self, address: Address, purpose: str) -> list[Listener]:
        """Open the listeners of an address, and say so. Raises VsockfwdError."""
        listeners = list(await self.engine.network.listen(address))
        self.listening = tuple(str(listener.address) for listener in listeners)
        for listener in listeners:
            self.engine.report(Listening(str(listener.address), purpose))
        return listeners

    async def serve(self, listeners: Sequence[Listener], handler: Handler, at_once: AtOnce | None = None) -> None:
        """Accept within the rule's limits, until cancelled, or until the process is to stop and all have ended."""

        async def handle(near: Stream) -> None:
            if self._enters(near.peer):
                near.abort()
                return
            try:
                await handler(near)
            finally:
                self._leaves(near.peer)

        def take(near: Stream, leave: Callable[[], None]) -> bool:
            assert at_once is not None
            if self._enters(near.peer):
                near.abort()
                leave()
                return True

            def left() -> None:
                self._leaves(near.peer)
                leave()

            try:
                taken = at_once(near, left)
            except BaseException:
                self._leaves(near.peer)
                raise
            if not taken:
                self._leaves(near.peer)  # the handler's task counts it
            return taken

        if at_once is not None and (self._limits.allow or self._limits.max_connections_per_peer):
            served: AtOnce | None = take
        else:
            served = at_once  # it makes no difference who comes
        self.set(State.UP)
        await serve_listeners(listeners, handle, self.engine.report, self._gate, served, self.engine.stopping)

    def keeper(self, target: str) -> _Kept:
        """A context: the keeper of the session with a target. Raises AddressError."""
        return self._rules.keeper(find_target(target, self._rules.targets))

    async def listen_and_serve(
        self,
        keeper: Keeper,
        when_down: str,
        address: Address,
        purpose: str,
        handler: Handler,
        at_once: AtOnce | None = None,
    ) -> None:
        """`listen` and `serve`, and what the rule says of times when its agent is away."""
        if when_down == "accept":
            listeners = await self.listen(address, purpose)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.follow, keeper)
                await self.serve(listeners, handler, at_once)
                nursery.cancel_scope.cancel()
            return
        while not self.engine.stopping.is_set():
            await self.until_up(keeper)
            if self.engine.stopping.is_set():
                return
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._until_down, keeper, scope)
                    await self.serve(await self.listen(address, purpose), handler, at_once)
                    nursery.cancel_scope.cancel()
            self.listening = ()

    async def until_up(self, keeper: Keeper) -> None:
        """Wait for the agent, and show that; or until the process is to stop."""
        async with until_stopping(self.engine):
            while not keeper.up:
                if keeper.why:
                    self.set(State.DOWN, keeper.why)
                await keeper.changed()

    async def follow(self, keeper: Keeper) -> None:
        """Show what the keeper knows, until cancelled."""
        while True:
            if keeper.up:
                self.set(State.UP)
            elif keeper.why:
                self.set(State.DOWN, keeper.why)
            await keeper.changed()

    async def _until_down(self, keeper: Keeper, scope: trio.CancelScope) -> None:
        while keeper.up:
            await keeper.changed()
        scope.cancel()

    def set(self, state: State, why: str = "") -> None:
        """Take a state; who looks and who listens is told."""
        if state in (State.UP, State.DOWN, State.FAILED):
            self.settled.set()
        if (state, why) == (self.state, self.why):
            return
        back = self.state is State.DOWN and state is State.UP
        if state is not self.state:
            self.since = time.time()
        self.state, self.why = state, why
        self._rules.engine.report(RuleChanged(self.name, state, "again" if back else why))

    def begin(self) -> None:
        """Before each attempt: nothing of an earlier one is left."""
        self.listening = ()
        self._now = 0
        self._of_peer.clear()
        for _ in range(self._gate.now):
            self._gate.leave()
        self._gate = Gate(self._limits.max_connections, self._rules.gate)

    # --- counting

    def _hear(self, event: Event) -> None:
        match event:
            case Opened():
                self._now += 1
                self._total += 1
            case Closed():
                outcome = event.outcome
                self._now -= 1
                self._sent += outcome.sent
                self._received += outcome.received
                if not outcome.clean:
                    self.last_error = str(outcome)
            case Dropped(reason=reason, count=count):
                self._dropped[reason] += count
        self._rules.engine.report(event)

    def _enters(self, peer: Identity) -> str:
        """Count a peer's connection; returns why it may not come in, which is reported, or nothing."""
        rule = self._limits
        why = ""
        if rule.allow and not any(admitted.admits(peer) for admitted in rule.allow):
            why = f"the rule {self.name!r} does not allow it"
        most = rule.max_connections_per_peer
        if most:
            count = self._of_peer.get(peer.principal, 0)
            if count >= most:
                why = why or f"it has {count} connections already, which is all that {self.name!r} gives one peer"
            if not why:
                self._of_peer[peer.principal] = count + 1
        if why:
            self.engine.report(Denied(str(peer), why))
        return why

    def _leaves(self, peer: Identity) -> None:
        if self._limits.max_connections_per_peer:
            self._of_peer[peer.principal] -= 1
            if not self._of_peer[peer.principal]:
                del self._of_peer[peer.principal]

    @contextlib.contextmanager
    def admitted(self, peer: Identity) -> Iterator[str]:
        """Count a connection that came otherwise than by `serve`, within the rule's limits; gives why it may not."""
        if self._gate.full:
            why = f"{self.name!r} has as many connections as it may, or all rules together have"
            self.engine.report(Denied(str(peer), why))
            yield why
            return
        why = self._enters(peer)
        if why:
            yield why
            return
        self._gate.enter()
        try:
            yield ""
        finally:
            self._gate.leave()
            self._leaves(peer)

    async def idle(self) -> None:
        """Wait until no connection is at work."""
        await self._gate.empty()

    def status(self) -> Status:
        live = list(self.live)
        return Status(
            self.name,
            self.named.kind.name,
            self.state,
            self.since,
            self.why,
            self.listening,
            getattr(self.rule, "target", ""),
            self._now,
            self._total,
            self._sent + sum(each.sent for each in live),
            self._received + sum(each.received for each in live),
            self.last_error,
            dict(self._dropped),
        )


class _Kept:
    """The context of a keeper: it runs as long as one rule uses it."""

    def __init__(self, rules: Rules, target: Address) -> None:
        self._rules = rules
        self._target = target

    async def __aenter__(self) -> Keeper:
        rules = self._rules
        keeper = rules.keepers.get(self._target)
        if keeper is None:
            keeper = rules.keepers[self._target] = Keeper(rules.engine, self._target, rules.nursery)
            rules.nursery.start_soon(keeper.run)
        keeper.users += 1
        self._keeper = keeper
        return keeper

    async def __aexit__(self, *_: object) -> None:
        self._keeper.users -= 1
        if not self._keeper.users:
            del self._rules.keepers[self._target]
            self._keeper.scope.cancel()


class Rules:
    """A set of rules at work. A context: they end with it.

    `patient`: a rule that fails at first is tried again; without it, it is FAILED.
    """

    def __init__(self, engine: Engine, targets: Mapping[str, Address], *, patient: bool) -> None:
        self.engine = engine
        self.targets = targets
        self.patient = patient
        self.gate = Gate(MOST_CONNECTIONS)
        """Counts the connections of all rules together."""
        self.works: dict[str, Work] = {}
        self.keepers: dict[Address, Keeper] = {}
        self._manager = trio.open_nursery()
        self._ended = trio.Event()

    async def __aenter__(self) -> Self:
        self.nursery = await self._manager.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self.nursery.cancel_scope.cancel()
        return await self._manager.__aexit__(kind, error, trace)

    def keeper(self, target: Address) -> _Kept:
        """A context: the keeper of the session with a target, shared by all who use it."""
        return _Kept(self, target)

    def add(self, named: NamedRule) -> Work:
        """Start a rule. Raises ConfigError where it clashes with one that is there."""
        for work in self.works.values():
            if complaint := quarrel(work.named, named):
                raise ConfigError(f"{work.name!r} and the new rule {complaint}", hint="vsockfwd remove takes one away")
        work = self.works[named.name] = Work(self, named)
        self.nursery.start_soon(self._supervise, work)
        return work

    async def add_all(self, rules: Sequence[NamedRule], *, all_or_none: bool) -> None:
        """Start rules and wait until each has come up or failed, by itself; who failed is reported.

        Raises the first one's error where every one failed, or with `all_or_none` where any did.
        """
        works = [self.add(named) for named in rules]
        await self.settled()
        failed = [(work.name, work.error) for work in works if work.state is State.FAILED and work.error is not None]
        if failed and (all_or_none or len(failed) == len(works)):
            raise failed[0][1]
        for name, error in failed:
            self.engine.report(Problem(name, error.line()))

    def remove(self, name: str) -> None:
        """Stop a rule; its connections are reset. Raises NotFound."""
        work = self.works.pop(name, None)
        if work is None:
            raise NotFound(f"no rule is called {name!r}", hint="vsockfwd status lists them")
        work.scope.cancel()

    def apply(self, rules: Sequence[NamedRule], targets: Mapping[str, Address]) -> tuple[list[str], list[str]]:
        """Make these the rules; those that are the same live on. Returns the names stopped and the names started.

        A rule whose target's name means another address now is another rule.
        """
        wanted = {named.name: named for named in rules}
        stopped = [
            name
            for name, work in self.works.items()
            if name not in wanted or wanted[name] != work.named or self._moved(work, targets)
        ]
        for name in stopped:
            self.remove(name)
        self.targets = targets
        started = [name for name in wanted if name not in self.works]
        for name in started:
            self.add(wanted[name])
        return stopped, started

    def _moved(self, work: Work, targets: Mapping[str, Address]) -> bool:
        target = getattr(work.rule, "target", "")
        return bool(target) and self.targets.get(target) != targets.get(target)

    def status(self) -> list[Status]:
        return [work.status() for work in self.works.values()]

    async def settled(self) -> None:
        """Wait until every rule has come up or failed once, or was stopped or removed before."""
        for work in list(self.works.values()):
            await work.settled.wait()

    async def ended(self) -> None:
        """Wait until no rule is left at work."""
        while any(work.state not in (State.FAILED, State.STOPPED) for work in self.works.values()):
            await self._ended.wait()

    async def _supervise(self, work: Work) -> None:
        backoff = Backoff()
        with work.scope:
            while not self.engine.stopping.is_set():
                served = work._total
                work.begin()
                try:
                    await _run_once(work)
                except VsockfwdError as error:
                    work.error = error
                    if not self.patient and not work.settled.is_set():
                        work.set(State.FAILED, error.line())
                        break
                    work.listening = ()
                    work.set(State.DOWN, error.line())
                else:
                    continue  # the process is to stop
                if work._total > served:
                    backoff.reset()
                with trio.move_on_after(backoff.next()):
                    await self.engine.stopping.wait()
            else:
                work.set(State.STOPPED)
        work.settled.set()  # who was stopped or removed before it came up will do neither any more
        self._ended.set()
        self._ended = trio.Event()


async def _run_once(work: Work) -> None:
    """Run a rule's kind. Where it fails in tasks of its own, their one reason is raised."""
    try:
        await work.named.kind.run(work, work.rule)
    except BaseExceptionGroup as group:
        raise the_one(group) from None
