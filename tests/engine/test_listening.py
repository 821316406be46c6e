"""Listening at the agent's: who comes there is served here; leases, take-over, tickets, bounds, refusals."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import AsyncIterator

import pytest
import trio

from tests.engine.world import World, half_closed, settled
from vsockfwd.address import Address, MemoryAddress, parse
from vsockfwd.contract import Access, Data, Resource
from vsockfwd.engine import Engine
from vsockfwd.engine.control_link import POSTED, ControlLink
from vsockfwd.engine.incoming import Incoming
from vsockfwd.engine.listening import LISTENERS, TICKET_LIFETIME
from vsockfwd.engine.pump import BufferPool
from vsockfwd.engine.session import Session, open_session
from vsockfwd.errors import (
    BadRequest,
    CannotCreate,
    DataError,
    Gone,
    LimitReached,
    LocalProtocolError,
    NoSuchMode,
    NotAllowed,
    PeerBrokeProtocol,
    Refused,
    Reset,
    ShuttingDown,
    TimedOut,
    VsockfwdError,
)
from vsockfwd.events import Closed, Ending, Listening, Opened, Problem, SessionDown
from vsockfwd.identity import NetworkPeer, OwnPeer
from vsockfwd.modes.forward import carry_incoming
from vsockfwd.policy import Decision
from vsockfwd.transport.base import Listener, Stream
from vsockfwd.transport.memory import MemoryTransport, memory_pair
from vsockfwd.transport.network import Network, system_network
from vsockfwd.wire.control import UNANSWERED, ControlMachine
from vsockfwd.wire.machine import Role, State
from vsockfwd.wire.messages import LISTEN, Fetch, Granted, Listen

LEASE = b"L" * 16
FAR = "memory:far"


class Listened:
    """A listen of a session under way: what was announced is kept, unanswered, until the test answers it."""

    def __init__(self) -> None:
        self.came: list[Incoming] = []
        self.bound: list[str] = []
        self.failed: VsockfwdError | None = None
        self.scope = trio.CancelScope()
        self.begun = trio.Event()
        self.over = trio.Event()

    async def run(self, session: Session, address: str = FAR, lease: bytes = LEASE) -> None:
        try:
            with self.scope:
                await session.listen(address, lease, self._keep, self._heard)
        except VsockfwdError as error:
            self.failed = error
        self.begun.set()
        self.over.set()

    def _heard(self, bound: str) -> None:
        self.bound.append(bound)
        self.begun.set()

    async def _keep(self, incoming: Incoming) -> None:
        self.came.append(incoming)
        await trio.sleep_forever()


async def listened(nursery: trio.Nursery, session: Session, address: str = FAR, lease: bytes = LEASE) -> Listened:
    """Listen, and wait until it is granted. Raises why it is not."""
    what = Listened()
    nursery.start_soon(what.run, session, address, lease)
    with trio.fail_after(5):
        await what.begun.wait()
    if what.failed is not None:
        raise what.failed
    return what


@contextlib.asynccontextmanager
async def connected(world: World) -> AsyncIterator[tuple[Session, trio.Nursery]]:
    """An agent, a session with it, a nursery that is cancelled at the end."""
    with trio.fail_after(100):
        async with world.agent(), open_session(world.engine, world.target) as session, trio.open_nursery() as nursery:
            yield session, nursery
            nursery.cancel_scope.cancel()


async def dial(world: World, address: str = FAR) -> Stream:
    return await world.engine.network.connect(parse(address))


async def listen_here(world: World, address: str = "memory:server") -> Listener:
    return (await world.engine.network.listen(parse(address)))[0]


async def remote_forward(engine: Engine, session: Session, listen: Address, connect: Address, lease: bytes) -> None:
    """What a rule does, without one."""

    async def handle(incoming: Incoming) -> None:
        await carry_incoming(engine, "forward", incoming, connect)

    def listening(bound: str) -> None:
        engine.report(Listening(bound, f"of {session.name} → {connect.bare()}"))

    await session.listen(listen, lease, handle, listening)


async def forward(
    world: World, nursery: trio.Nursery, session: Session, listen: str = FAR, connect: str = "memory:server"
) -> None:
    lease = listen.encode().ljust(16, b"\0")
    nursery.start_soon(remote_forward, world.engine, session, parse(listen), parse(connect), lease)
    purpose = f"of {session.name} → {connect}"
    await settled(lambda: any(event.purpose == purpose for event in world.reported(Listening)))


async def is_reset(stream: Stream) -> bool:
    with trio.fail_after(5):
        try:
            return await stream.receive_some() == b"never"
        except trio.BrokenResourceError:
            return True
        finally:
            stream.close()


async def nobody_listens(world: World, address: str = FAR) -> None:
    with trio.fail_after(5):
        while True:
            try:
                (await dial(world, address)).close()
            except Refused:
                return
            await trio.sleep(0.001)


def deafen(session: Session) -> None:
    """Its machine hangs: what the agent says is taken by the kernel and read by nobody."""
    assert session._control is not None
    stream = session._control.stream

    def nothing(_: object) -> int:
        raise BlockingIOError(errno.EAGAIN, "nothing")

    stream.try_receive_into = nothing  # type: ignore[method-assign]
    stream.wait_readable = trio.sleep_forever  # type: ignore[method-assign]


def memory(world: World) -> MemoryTransport:
    transport = world.engine.network.transports["memory"]
    assert isinstance(transport, MemoryTransport)
    return transport


# --- forwarding


async def test_who_connects_at_the_agents_is_served_here_and_both_sides_say_how_it_went(world: World):
    server = await listen_here(world)
    async with connected(world) as (session, nursery):
        await forward(world, nursery, session)
        client = await dial(world)
        await client.send_all(b"question")
        with trio.fail_after(5):
            here = await server.accept()
            assert await here.receive_some() == b"question"
            await here.send_all(b"answer")
            here.close()
            assert await client.receive_some() == b"answer"
            assert await client.receive_some() == b""
        client.close()
        await settled(lambda: len(world.reported(Closed)) == 2)
    assert [event.peer for event in world.reported(Opened)] == ["client of memory:far"]
    assert {event.rule for event in world.reported(Closed)} == {
        "listen on memory:far",
        "forward",
    }
    assert all(event.outcome.clean and event.peer == "client of memory:far" for event in world.reported(Closed))


async def test_a_server_that_speaks_first_is_heard_by_who_only_listens(world: World):
    server = await listen_here(world)
    async with connected(world) as (session, nursery):
        await forward(world, nursery, session)
        client = await dial(world)
        with trio.fail_after(5):
            here = await server.accept()
            await here.send_all(b"220 ready")
            assert await client.receive_some() == b"220 ready"
        client.close()
        here.close()


@pytest.mark.parametrize("first", ["there", "here"])
async def test_a_half_close_from_either_side_leaves_the_whole_reply(world: World, first: str):
    server = await listen_here(world)
    async with connected(world) as (session, nursery):
        await forward(world, nursery, session)
        client = await dial(world)
        with trio.fail_after(20):
            here = await server.accept()
        await half_closed(world, *((client, here) if first == "there" else (here, client)))


async def test_where_nothing_answers_here_the_far_neighbour_is_reset_and_the_agent_says_why(world: World):
    async with connected(world) as (session, nursery):
        await forward(world, nursery, session)
        assert await is_reset(await dial(world))
        await settled(lambda: len(world.reported(Closed)) == 2)
        for event in world.reported(Closed):
            assert event.outcome.ending is Ending.REFUSED
            assert "memory:server: nothing listens there" in event.outcome.why


async def test_several_listeners_of_one_session_are_not_mixed_up(world: World):
    async with connected(world) as (session, nursery):
        servers = {}
        for name in ("a", "b"):
            servers[name] = await listen_here(world, f"memory:server-{name}")
            await forward(world, nursery, session, f"memory:far-{name}", f"memory:server-{name}")
        for name in ("b", "a", "b"):
            client = await dial(world, f"memory:far-{name}")
            with trio.fail_after(5):
                (await servers[name].accept()).close()
            client.close()


async def test_a_bare_port_is_listened_on_at_loopback_and_who_comes_is_known_by_address(world: World):
    async with connected(world) as (session, nursery):
        what = await listened(nursery, session, "tcp:0")
        port = what.bound[0].rpartition(":")[2]
        assert what.bound[0] == f"tcp:127.0.0.1:{port}"
        assert what.bound[1:] in ([], [f"tcp:[::1]:{port}"])
        client = await dial(world, what.bound[0])
        await settled(lambda: bool(what.came))
        peer = what.came[0].peer
        assert isinstance(peer, NetworkPeer)
        assert (peer.host, peer.port) == client.sock.getsockname()
        what.came[0].deny(Refused("no"))
        assert await is_reset(client)


async def test_the_file_of_a_unix_listener_goes_with_it(world: World, tmp_path):
    async with connected(world) as (session, nursery):
        what = await listened(nursery, session, f"unix:{tmp_path}/far")
        client = await dial(world, f"unix:{tmp_path}/far")
        await settled(lambda: bool(what.came))
        channel = await what.came[0].fetch()
        await client.send_all(b"hello")
        event = await channel.receive()
        assert isinstance(event, Data)
        assert bytes(event.view) == b"hello"
        channel.close()
        client.close()
        what.scope.cancel()
        await settled(lambda: not (tmp_path / "far").exists())


# --- the end of a listener


async def test_a_lost_session_takes_its_listener_and_who_waits_there_with_it(world: World):
    async with connected(world) as (session, nursery):
        what = await listened(nursery, session)
        waiting = await dial(world)
        await settled(lambda: bool(what.came))
        assert session._control is not None
        session._control.stream.abort()
        with trio.fail_after(5):
            await what.over.wait()
        assert isinstance(what.failed, Reset)
        assert "session lost" in what.failed.message
        assert await is_reset(waiting)
        await nobody_listens(world)
        again = await listened(nursery, session)  # the same call once more logs in again
        (await dial(world)).close()
        await settled(lambda: bool(again.came))


async def test_stopping_frees_the_address_and_leaves_the_session_alive(world: World):
    server = await listen_here(world)
    async with connected(world) as (session, nursery):
        async with trio.open_nursery() as inner:
            await forward(world, inner, session)
            served = await dial(world)
            here = await server.accept()
            inner.cancel_scope.cancel()
        await nobody_listens(world)
        assert await is_reset(here)
        assert await is_reset(served)
        await session.ping()
        await listened(nursery, session, lease=b"another lease...")


async def run_agent(world: World, task_status=trio.TASK_STATUS_IGNORED) -> None:
    with trio.CancelScope() as scope:
        async with world.agent():
            task_status.started(scope)
            await trio.sleep_forever()
    world.events.append(Problem("the agent", "has ended"))


async def test_clients_of_an_agent_that_is_stopped_read_so_instead_of_a_reset(world: World):
    async with trio.open_nursery() as nursery:
        scope = await nursery.start(run_agent, world)
        async with open_session(world.engine, world.target) as session:
            what = await listened(nursery, session)
            scope.cancel()
            with trio.fail_after(1):
                await what.over.wait()
            assert isinstance(what.failed, ShuttingDown)
            (down,) = world.reported(SessionDown)
            assert down.why == "the agent: the agent is stopping"


async def test_stopping_an_agent_waits_for_no_client_that_has_stopped_reading(world: World, autojump_clock):
    async with trio.open_nursery() as nursery:
        scope = await nursery.start(run_agent, world)
        async with open_session(world.engine, world.target) as session:
            deafen(session)
            began = trio.current_time()
            scope.cancel()
            await settled(lambda: bool(world.reported(Problem)))
            assert trio.current_time() - began < 3


async def test_a_listener_that_can_accept_no_more_is_told_to_its_client(world: World):
    async with connected(world) as (session, nursery):
        what = await listened(nursery, session)
        listener = memory(world).listeners["far"]

        def broken() -> Stream:
            raise OSError(errno.EINVAL, "broken")

        listener.try_accept = broken  # type: ignore[method-assign]
        listener.arrived.unpark_all()
        with trio.fail_after(5):
            await what.over.wait()
        assert isinstance(what.failed, DataError)
        assert "accept on memory:far: invalid argument" in what.failed.message
        await nobody_listens(world)
        await session.ping()


# --- leases


@pytest.mark.parametrize("old", ["answers", "is silent"])
async def test_who_came_back_takes_over_the_listener_and_those_who_wait_from_its_earlier_self(world: World, old: str):
    async with connected(world) as (session, nursery):
        before = await listened(nursery, session)
        served = await dial(world)
        await settled(lambda: len(before.came) == 1)
        waiting = await dial(world)
        await settled(lambda: len(before.came) == 2)
        channel = await before.came[0].fetch()
        await waiting.send_all(b"I was first")
        if old == "is silent":
            deafen(session)
        async with open_session(world.engine, world.target) as heir:
            after = await listened(nursery, heir)
            await settled(lambda: len(after.came) == 1)
            late = await dial(world)
            await settled(lambda: len(after.came) == 2)
            fetched = await after.came[0].fetch()
            event = await fetched.receive()
            assert isinstance(event, Data)
            assert bytes(event.view) == b"I was first"
            if old == "answers":
                with trio.fail_after(5):
                    await before.over.wait()
                assert isinstance(before.failed, Gone)
                assert "took the listener over" in before.failed.message
                await session.ping()
            with pytest.raises(Gone):
                await before.came[1].fetch()
            await channel.send(b"still here")
            assert await served.receive_some() == b"still here"
            session.leave()
            assert await is_reset(served)
            await (await after.came[1].fetch()).aclose()  # the listener outlives the session it was taken from
            (await dial(world)).close()
            await settled(lambda: len(after.came) == 3)
            for stream in (fetched, channel, waiting, late):
                stream.close()
        await nobody_listens(world)


async def test_a_listener_taken_over_several_times_at_once_has_one_holder_at_the_end(world: World, tmp_path):
    address = f"unix:{tmp_path}/far"  # a real socket: two tasks that wait on one are an error of trio's
    async with connected(world) as (session, nursery):
        heirs = [await listened(nursery, session, address)]
        heirs += [Listened() for _ in range(5)]
        for heir in heirs[1:]:
            nursery.start_soon(heir.run, session, address)
        await settled(lambda: sum(heir.over.is_set() for heir in heirs) == 5)
        client = await dial(world, address)
        await settled(lambda: any(heir.came for heir in heirs))
        (holder,) = [heir for heir in heirs if not heir.over.is_set()]
        holder.came[0].deny(Refused("no"))
        with trio.fail_after(5):
            assert await client.receive_some() == b""
        client.close()
        assert all(isinstance(heir.failed, Gone) for heir in heirs if heir is not holder)


async def test_a_lease_is_for_one_address(world: World):
    async with connected(world) as (session, nursery):
        await listened(nursery, session)
        with pytest.raises(BadRequest, match="that lease is for memory:far, not for memory:other"):
            await listened(nursery, session, "memory:other")
        (await dial(world)).close()  # it listens still


class AnotherUser(MemoryTransport):
    """Whoever dials through it is somebody else."""

    def __init__(self, shared: MemoryTransport) -> None:
        super().__init__()
        self.listeners = shared.listeners

    async def connect(self, address: MemoryAddress, *, privileged: bool = False) -> Stream:
        stream = await super().connect(address)
        self.listeners[address.name].waiting[-1].peer = OwnPeer("somebody else")
        return stream


async def test_another_identity_gets_exists_even_with_the_lease(world: World):
    others = Engine(Network({**system_network().transports, "memory": AnotherUser(memory(world))}))
    async with connected(world) as (session, nursery):
        mine = await listened(nursery, session)
        async with open_session(others, world.target) as theirs:
            with pytest.raises(CannotCreate, match="memory:agent: the agent: listen on memory:far"):
                await listened(nursery, theirs)
            with pytest.raises(CannotCreate):  # and so do I without it
                await listened(nursery, session, lease=b"a lease I forgot")
        (await dial(world)).close()
        await settled(lambda: len(mine.came) == 1)


# --- tickets


async def ask(session: Session, number: int, ticket: bytes) -> None:
    await session._ask(await session.login(), LISTEN, Fetch(number, ticket), (1,))


async def test_a_ticket_is_good_once_for_its_session_alone_and_cannot_be_guessed(world: World):
    async with connected(world) as (session, nursery), open_session(world.engine, world.target) as other:
        what = await listened(nursery, session)
        await listened(nursery, other, "memory:other", b"another lease...")
        client = await dial(world)
        await settled(lambda: bool(what.came))
        number, ticket = what.came[0]._listener.number, what.came[0]._ticket
        with pytest.raises(Gone):
            await ask(other, number, ticket)
        with pytest.raises(Gone):
            await ask(session, number, bytes(16))
        with pytest.raises(Gone):
            await ask(session, number + 1, ticket)
        channel = await what.came[0].fetch()
        with pytest.raises(Gone):
            await ask(session, number, ticket)
        with pytest.raises(LocalProtocolError):
            await what.came[0].fetch()
        await channel.send(b"unharmed")
        assert await client.receive_some() == b"unharmed"
        channel.close()
        client.close()


async def test_who_is_not_fetched_in_time_is_reset_and_its_ticket_is_void(world: World, autojump_clock):
    async with connected(world) as (session, nursery):
        what = await listened(nursery, session)
        client = await dial(world)
        await settled(lambda: bool(what.came))
        await trio.sleep(TICKET_LIFETIME - 1)
        later = await dial(world)
        await settled(lambda: len(what.came) == 2)
        await trio.sleep(2)
        assert await is_reset(client)
        with pytest.raises(Gone, match="expired"):
            await what.came[0].fetch()
        (closed,) = world.reported(Closed)
        assert closed.outcome.ending is Ending.TIMED_OUT
        (await what.came[1].fetch()).close()
        later.close()
    assert not world.reported(Problem)[1:], "only the refused fetch is a problem"


# --- announcements


async def test_too_many_unanswered_pause_accepting_until_one_is_answered(world: World, autojump_clock):
    async with connected(world) as (session, nursery):
        what = await listened(nursery, session)
        clients = [await dial(world) for _ in range(UNANSWERED + 3)]
        await settled(lambda: len(what.came) == UNANSWERED)
        waiting = memory(world).listeners["far"].waiting
        assert len(waiting) == 3
        what.came[0].deny(Refused("no"))
        await settled(lambda: len(what.came) == UNANSWERED + 1)
        (await what.came[1].fetch()).close()
        await settled(lambda: len(what.came) == UNANSWERED + 2)
        await trio.sleep(TICKET_LIFETIME + 1)
        assert len(waiting) == 1, "an expired ticket makes no room: the client has not dealt with it"
        with pytest.raises(Gone):
            await what.came[2].fetch()
        await settled(lambda: len(what.came) == UNANSWERED + 3)
        for client in clients:
            client.close()


@pytest.mark.parametrize(
    ("failure", "told", "reported"),
    [
        (NotAllowed("not for you"), "the client: not for you", 0),
        (RuntimeError("a bug"), "the client: the client failed: see its log", 1),
        (ExceptionGroup("two", [ValueError("a bug")]), "the client: the client failed: see its log", 1),
        (None, "the client: the client neither fetched nor denied it", 0),
    ],
)
async def test_what_a_handler_does_not_fetch_is_denied(world: World, failure, told: str, reported: int):
    async def handle(incoming: Incoming) -> None:
        if failure is not None:
            raise failure

    async with connected(world) as (session, nursery):
        begun = trio.Event()
        nursery.start_soon(session.listen, parse(FAR), LEASE, handle, lambda bound: begun.set())
        await begun.wait()
        for number in range(2):
            assert await is_reset(await dial(world))
            await settled(lambda number=number: len(world.reported(Closed)) == number + 1)
        assert {event.outcome.why for event in world.reported(Closed)} == {told}
        assert len(world.reported(Problem)) == 2 * reported


async def test_a_fetch_that_cannot_be_asked_resets_who_waits_at_once(world: World, monkeypatch: pytest.MonkeyPatch):
    async with connected(world) as (session, nursery):
        what = await listened(nursery, session)
        client = await dial(world)
        await settled(lambda: bool(what.came))

        async def unreachable(address: Address, **how: object) -> Stream:
            raise TimedOut("the agent's backlog is full")

        with monkeypatch.context() as patched:
            patched.setattr(world.engine.network, "connect", unreachable)
            with pytest.raises(TimedOut):
                await what.came[0].fetch()
        assert await is_reset(client)


async def test_a_denial_of_what_does_not_wait_is_counted_and_harms_nothing(world: World):
    async with world.agent():
        async with open_session(world.engine, world.target) as session, trio.open_nursery() as nursery:
            what = await listened(nursery, session)
            control = session._control
            assert control is not None
            for number, ticket in ((0, bytes(16)), (7, bytes(16)), (7, b"")):
                control.deny(Refused("no"), number, ticket)
            await session.ping()
            (await dial(world)).close()
            await settled(lambda: bool(what.came))
            nursery.cancel_scope.cancel()
        await settled(lambda: bool(world.reported(Problem)))
        assert "denied 2 connections" in world.reported(Problem)[0].why


async def test_an_agent_that_announces_more_than_it_may_ends_its_session(world: World):
    async with world.agent() as agent, open_session(world.engine, world.target) as session:
        async with trio.open_nursery() as nursery:
            what = await listened(nursery, session)
            (kept,) = agent._sessions.values()
            link = kept.tenancy._link
            for _ in range(UNANSWERED + 1):
                link.post(link.machine.announce(0, bytes(16), OwnPeer("nobody")))
            with trio.fail_after(5):
                await what.over.wait()
            assert isinstance(what.failed, PeerBrokeProtocol)


async def test_an_agent_that_grants_twice_ends_its_session(world: World):
    async with world.agent() as agent, open_session(world.engine, world.target) as session:
        async with trio.open_nursery() as nursery:
            what = await listened(nursery, session)
            (kept,) = agent._sessions.values()
            kept.tenancy._link.post(kept.tenancy._link.machine.grant(Granted(0, ("memory:far",))))
            with trio.fail_after(5):
                await what.over.wait()
            assert isinstance(what.failed, PeerBrokeProtocol)


async def test_a_client_that_asks_twice_by_one_number_ends_its_session(world: World):
    async with connected(world) as (session, nursery):
        what = await listened(nursery, session)
        control = session._control
        assert control is not None
        control.post(control.machine.listen(Listen(0, "memory:other", b"another lease...")))
        with trio.fail_after(5):
            await what.over.wait()
        await nobody_listens(world)
        assert "asked twice" in world.reported(Problem)[0].why


async def test_a_peer_that_never_reads_its_control_connection_is_given_up():
    near, far = memory_pair()
    machine = ControlMachine(Role.AGENT)
    machine.ours = machine.theirs = State.OPEN
    link = ControlLink(near, machine, BufferPool())
    with trio.fail_after(5):
        for _ in range(POSTED + 1):
            link.post(b"x")
        with pytest.raises(LimitReached, match="does not read"):
            await link.next()
    far.close()


# --- refusals


async def test_the_policy_is_asked_before_anything_is_bound(world: World, monkeypatch: pytest.MonkeyPatch):
    asked: list[Resource] = []

    def permit(self: object, peer: object, resource: Resource) -> Decision:
        asked.append(resource)
        return Decision(False, "not on this machine", "--allow-listen")

    async with connected(world) as (session, nursery):
        monkeypatch.setattr("vsockfwd.policy.Policy.permit", permit)
        with pytest.raises(NotAllowed, match="not on this machine") as caught:
            await listened(nursery, session)
        assert caught.value.hint == "--allow-listen"
        assert asked == [Resource(Access.LISTEN, "memory:far")]
        await nobody_listens(world)
        await session.ping()


@pytest.mark.parametrize(
    "address", ["stdio", "fd:0", "hybrid:/run/vm.vsock:5000", "udp:53", "tpc:80", "tcp:1,mode=0600"]
)
async def test_an_agent_listens_on_nothing_of_its_own_and_on_no_nonsense(world: World, address: str):
    async with connected(world) as (session, nursery):
        with pytest.raises(BadRequest):
            await listened(nursery, session, address)


async def test_a_session_may_have_so_many_listeners_and_no_more(world: World):
    async with connected(world) as (session, nursery):
        for number in range(LISTENERS):
            await listened(nursery, session, f"memory:far-{number}", number.to_bytes(16))
        with pytest.raises(LimitReached, match=str(LISTENERS)):
            await listened(nursery, session, "memory:one-more", b"another lease...")
        await session.ping()


async def test_an_agent_of_an_earlier_version_is_not_asked(world: World):
    async with connected(world) as (session, nursery):
        ready = await session.login()
        del ready.modes[LISTEN]
        with pytest.raises(NoSuchMode, match="does not listen for its clients"):
            await listened(nursery, session)
        await session.ping()
