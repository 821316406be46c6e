"""A client and an agent: login, streams, refusals, ends told from cuts, and coming back after the agent was lost."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator

import msgspec
import pytest
import trio
import trio.lowlevel

from tests.engine.world import World, half_closed, settled
from vsockfwd.address import parse
from vsockfwd.config import NamedRule
from vsockfwd.contract import Data, Ended, Mode
from vsockfwd.engine import wired
from vsockfwd.engine.agent import STRANGERS
from vsockfwd.engine.control_link import HANDSHAKE_DEADLINE, PING_INTERVAL, ControlLink
from vsockfwd.engine.link import Link
from vsockfwd.engine.pump import BufferPool
from vsockfwd.engine.rules import Rules
from vsockfwd.engine.session import Session, open_session
from vsockfwd.errors import (
    BadRequest,
    Code,
    Gone,
    Internal,
    NoSuchMode,
    NotAllowed,
    PeerBrokeProtocol,
    Refused,
    Reset,
    ShuttingDown,
    TimedOut,
    Truncated,
    Unreachable,
    VersionMismatch,
    VsockfwdError,
    from_code,
)
from vsockfwd.events import Closed, Denied, Ending, Problem, SessionDown, SessionUp
from vsockfwd.modes.forward import LOCAL, Connect, Connected, LocalRule
from vsockfwd.policy import Decision, Limits, Policy
from vsockfwd.rule import StreamEnd
from vsockfwd.transport.base import SocketStream, Stream
from vsockfwd.transport.memory import memory_pair
from vsockfwd.transport.unix import FEATURES, credentials
from vsockfwd.wire.frames import AGENT_PREFACE, CLIENT_PREFACE, HEADER, FrameType, pack
from vsockfwd.wire.machine import Role, State
from vsockfwd.wire.messages import Hello, encode
from vsockfwd.wire.stream import StreamMachine


class Question(msgspec.Struct, frozen=True):
    text: str


async def echo(call) -> None:
    """A mode that sends back what it gets, frames included."""
    question = call.arguments(Question)
    if question.text == "refuse":
        raise Refused("not today", hint="ask tomorrow")
    if question.text == "crash":
        raise RuntimeError("a bug in a mode")
    if question.text == "nothing":
        return
    channel = await call.accept(Question(question.text.upper()))
    while not isinstance(event := await channel.receive(), Ended):
        if isinstance(event, Data):
            if bytes(event.view) == b"crash":
                raise RuntimeError("a bug in a mode's body")
            if bytes(event.view) == b"fail":
                raise TimedOut("took too long")
            await channel.send(event.view)
        else:
            await channel.send_frames((event.kind, bytes(event.payload)))
    await channel.send_end()


ECHO = {"echo": Mode("echo", "echoes", serve=echo)}


@pytest.fixture
async def session(world: World) -> AsyncIterator[Session]:
    async with world.agent(ECHO), open_session(world.engine, world.target) as session:
        yield session


async def test_a_stream_carries_requests_bytes_frames_and_ends(session: Session):
    opened = await session.open("echo", Question("hello"))
    assert opened.reply(Question).text == "HELLO"
    channel = opened.channel
    await channel.send(b"some bytes")
    event = await channel.receive()
    assert isinstance(event, Data)
    assert bytes(event.view) == b"some bytes"
    await channel.send_frames((64, b"a frame"), (65, bytes(300_000)), (66, b""))
    frames = [await channel.receive() for _ in range(3)]
    assert [frame.kind for frame in frames] == [64, 65, 66]  # type: ignore[union-attr]
    await channel.send_end()
    assert isinstance(await channel.receive(), Ended)
    channel.close()


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [("refuse", Refused, "not today"), ("crash", Internal, "failed"), ("nothing", Internal, "neither accepted nor")],
)
async def test_a_request_that_fails_on_the_agents_side_reaches_the_client_as_its_own_error(
    session: Session, text, kind, words
):
    with pytest.raises(kind, match=words):
        await session.open("echo", Question(text))


async def test_a_hint_of_the_agent_reaches_the_client(session: Session):
    with pytest.raises(Refused) as caught:
        await session.open("echo", Question("refuse"))
    assert caught.value.hint == "ask tomorrow"


async def test_arguments_that_make_no_sense_are_a_bad_request(session: Session):
    with pytest.raises(BadRequest):
        await session.open("echo", Connect("tcp:1"))


async def test_a_mode_that_fails_in_its_body_resets_the_stream_with_its_reason(session: Session):
    for sent, kind, words in [(b"crash", Internal, "see the agent's log"), (b"fail", TimedOut, "took too long")]:
        channel = (await session.open("echo", Question("x"))).channel
        await channel.send(sent)
        with pytest.raises(kind, match=words):
            await channel.receive()
        channel.close()


async def test_who_finds_its_own_send_failing_reads_what_the_peer_had_to_say(
    session: Session, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(wired, "LAST_WORDS", 0.1)
    channel = (await session.open("echo", Question("x"))).channel
    await channel.send(b"fail")
    with trio.fail_after(5), pytest.raises(TimedOut, match="took too long"):
        while True:
            await channel.send(bytes(1 << 16))
    channel.close()


async def test_a_plugin_missing_on_the_far_side_says_which_package_to_install_where(session: Session):
    with pytest.raises(NoSuchMode) as caught:
        await session.open("copy")
    assert "vsockfwd-copy" in caught.value.hint
    assert "where the agent runs" in caught.value.hint


async def test_mode_versions_without_overlap_are_named(session: Session):
    with pytest.raises(VersionMismatch, match="echo speaks version 1"):
        await session.open("echo", Question("x"), versions=(2, 3))


async def test_a_request_too_large_for_a_strangers_frame_is_refused_before_it_is_sent(session: Session):
    with pytest.raises(BadRequest, match="4096"):
        await session.open("echo", Question("x" * 5000))


async def test_ping_measures_a_round_trip(session: Session):
    assert 0 <= await session.ping() < 5


async def test_a_restarted_agent_is_logged_in_to_again_by_itself(world: World):
    async with trio.open_nursery() as nursery:
        first = await nursery.start(run_agent, world)
        async with open_session(world.engine, world.target) as session:
            await session.open("echo", Question("x"))
            first.cancel()
            await settled(lambda: bool(world.reported(SessionDown)))
            await nursery.start(run_agent, world)
            opened = await session.open("echo", Question("again"))
            assert opened.reply(Question).text == "AGAIN"
            assert len(world.reported(SessionUp)) == 2
            opened.channel.close()
        nursery.cancel_scope.cancel()


async def run_agent(world: World, task_status=trio.TASK_STATUS_IGNORED) -> None:
    with trio.CancelScope() as scope:
        async with world.agent(ECHO):
            task_status.started(scope)
            await trio.sleep_forever()


async def test_a_token_the_agent_forgot_is_replaced_by_a_new_login(world: World):
    async with world.agent(ECHO) as agent, open_session(world.engine, world.target) as session:
        forgotten = dict(agent._sessions)
        agent._sessions.clear()
        opened = await session.open("echo", Question("x"))
        assert opened.reply(Question).text == "X"
        opened.channel.close()
        agent._sessions.update(forgotten)


async def test_anothers_token_is_of_no_use(world: World):
    async with world.agent(ECHO) as agent, open_session(world.engine, world.target) as session:
        for record in agent._sessions.values():
            record.principal = ("uid", 12345)
        stolen = dict(agent._sessions)
        opened = await session.open("echo", Question("x"))
        assert set(agent._sessions) - set(stolen), "no new login was asked for"
        assert world.reported(Denied)
        opened.channel.close()


async def test_what_a_dead_client_left_behind_goes_with_its_control_connection(world: World):
    ended = trio.Event()

    async def wait_for_ever(call) -> None:
        await call.accept()
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async with world.agent({"wait": Mode("wait", "waits", serve=wait_for_ever)}) as agent:
        async with open_session(world.engine, world.target) as session:
            channel = (await session.open("wait")).channel
        with trio.fail_after(5):
            await ended.wait()
        channel.close()
        await settled(lambda: not agent._sessions)


async def test_refusals_say_what_would_let_the_peer_in(world: World, monkeypatch: pytest.MonkeyPatch):
    async with world.agent(ECHO) as agent:
        monkeypatch.setattr(type(agent.policy), "admit", lambda self, peer: Decision(False, "a stranger", "--allow-it"))
        with pytest.raises(NotAllowed) as caught:
            async with open_session(world.engine, world.target):
                pass
        assert caught.value.hint == "--allow-it"
        assert world.reported(Denied)


# --- forwarding through the agent


async def start_forward(world: World, nursery: trio.Nursery, connect: str = "memory:server"):
    rule = LocalRule(
        listen=StreamEnd(parse("memory:client")), connect=StreamEnd(parse(connect)), target=str(world.target)
    )

    async def run(task_status: trio.TaskStatus[None]) -> None:
        async with Rules(world.engine, {}, patient=True) as rules:
            work = rules.add(NamedRule("forward", LOCAL, rule))
            await work.settled.wait()
            task_status.started()
            await trio.sleep_forever()

    await nursery.start(run)


async def dial(world: World) -> Stream:
    return await world.engine.network.connect(parse("memory:client"))


async def accept_server(world: World):
    return (await world.engine.network.listen(parse("memory:server")))[0]


async def test_a_forward_dials_at_once_so_that_a_server_that_speaks_first_is_heard(world: World):
    server = await accept_server(world)
    async with world.agent(), trio.open_nursery() as nursery:
        await start_forward(world, nursery)
        client = await dial(world)
        with trio.fail_after(5):
            neighbour = await server.accept()
            await neighbour.send_all(b"220 ready")
            assert await client.receive_some() == b"220 ready"
        client.close()
        neighbour.close()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("first", ["client", "server"])
async def test_a_forward_carries_a_half_close_from_either_side_and_the_whole_reply(world: World, first):
    server = await accept_server(world)
    async with world.agent(), trio.open_nursery() as nursery:
        await start_forward(world, nursery)
        client = await dial(world)
        neighbour = await server.accept()
        await half_closed(world, *((client, neighbour) if first == "client" else (neighbour, client)))
        nursery.cancel_scope.cancel()


async def test_a_servers_reset_arrives_at_the_client_as_a_reset(world: World):
    server = await accept_server(world)
    async with world.agent(), trio.open_nursery() as nursery:
        await start_forward(world, nursery)
        client = await dial(world)
        neighbour = await server.accept()
        await neighbour.send_all(b"half")
        assert await client.receive_some() == b"half"
        neighbour.abort()
        with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
            await client.receive_some()
        await settled(lambda: len(world.reported(Closed)) == 2)
        assert {event.outcome.ending for event in world.reported(Closed)} == {Ending.RESET}
        nursery.cancel_scope.cancel()


async def test_a_clients_reset_arrives_at_the_server_as_a_reset(world: World):
    server = await accept_server(world)
    async with world.agent(), trio.open_nursery() as nursery:
        await start_forward(world, nursery)
        client = await dial(world)
        neighbour = await server.accept()
        await client.send_all(b"half")
        assert await neighbour.receive_some() == b"half"
        client.abort()
        with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
            await neighbour.receive_some()
        nursery.cancel_scope.cancel()


async def test_a_refused_connect_comes_back_as_refused_and_resets_the_client(world: World):
    async with world.agent(), trio.open_nursery() as nursery:
        await start_forward(world, nursery)
        client = await dial(world)
        with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
            await client.receive_some()
        (closed,) = world.reported(Closed)
        assert closed.outcome.ending is Ending.REFUSED
        nursery.cancel_scope.cancel()


async def test_an_agent_lost_in_mid_stream_is_a_truncation_and_a_reset_for_the_client(world: World):
    server = await accept_server(world)
    async with trio.open_nursery() as nursery:
        scope = None

        async def agent(task_status=trio.TASK_STATUS_IGNORED) -> None:
            nonlocal scope
            with trio.CancelScope() as scope:
                async with world.agent():
                    task_status.started()
                    await trio.sleep_forever()

        await nursery.start(agent)
        async with trio.open_nursery() as inner:
            await start_forward(world, inner)
            client = await dial(world)
            neighbour = await server.accept()
            await neighbour.send_all(b"half")
            assert await client.receive_some() == b"half"
            assert scope is not None
            scope.cancel()
            with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
                await client.receive_some()
            await settled(lambda: bool(world.reported(Closed)))
            assert world.reported(Closed)[0].outcome.ending is Ending.TRUNCATED
            inner.cancel_scope.cancel()


async def test_a_session_that_ends_tells_the_clients_of_streams_that_a_task_relays(world: World):
    server = await accept_server(world)
    limited = Policy(os.geteuid(), limits=Limits(connections=9))
    async with world.agent(policy=limited) as agent, open_session(world.engine, world.target) as session:
        channel = (await session.open("forward", Connect("memory:server"))).channel
        neighbour = await server.accept()
        await channel.send(b"hello")
        assert await neighbour.receive_some() == b"hello"
        (served,) = agent._sessions.values()
        for stream in served.streams:
            stream.cancel()
        with trio.fail_after(5), pytest.raises(Gone, match="the session is over"):
            await channel.receive()
        channel.close()


async def test_an_agent_offers_none_of_its_own_descriptors(world: World):
    async with world.agent(), open_session(world.engine, world.target) as session:
        for address in ("stdio", "fd:0"):
            with pytest.raises(BadRequest):
                await session.open("forward", Connect(address))
        with pytest.raises(BadRequest, match="character 1"):
            await session.open("forward", Connect("tpc:1"))


async def test_the_reply_says_who_answered(world: World):
    server = await accept_server(world)
    async with world.agent(), open_session(world.engine, world.target) as session:
        opened = await session.open("forward", Connect("memory:server"))
        assert opened.reply(Connected).peer
        opened.channel.close()
        (await server.accept()).close()


# --- strangers, silence and trickling


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\n\r\n", b"SSH-2.0-x\r\n", b"\x16\x03\x01", bytes(9), AGENT_PREFACE, CLIENT_PREFACE + b"\x07"],
)
async def test_an_agent_outlives_strangers(world: World, garbage: bytes):
    async with world.agent(ECHO):
        stranger = await world.engine.network.connect(world.target)
        await stranger.send_all(garbage)
        with trio.fail_after(5):
            assert await stranger.receive_some() == b""
        stranger.close()
        async with open_session(world.engine, world.target) as session:
            await session.ping()
    assert world.reported(Problem)


async def test_a_client_that_trickles_is_cut_off_at_an_absolute_deadline(world: World, autojump_clock):
    async with world.agent(ECHO):
        slow = await world.engine.network.connect(world.target)
        began = trio.current_time()
        with pytest.raises(trio.BrokenResourceError):
            for byte in CLIENT_PREFACE * 10:
                await slow.send_all(bytes([byte]))
                await trio.sleep(HANDSHAKE_DEADLINE / 6)
        assert trio.current_time() - began < 2 * HANDSHAKE_DEADLINE
        slow.close()


@pytest.mark.parametrize(
    ("says", "kind", "words"),
    [
        (b"", Unreachable, "closed without a word"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", PeerBrokeProtocol, "SSH server"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", PeerBrokeProtocol, "HTTP server"),
        (CLIENT_PREFACE, PeerBrokeProtocol, "a client too, or an echo"),
        (AGENT_PREFACE, Reset, "without BYE"),
    ],
)
async def test_what_answers_instead_of_an_agent_is_named(world: World, says, kind, words):
    (listener,) = await world.engine.network.listen(world.target)

    async def stranger() -> None:
        stream = await listener.accept()
        await stream.receive_some()
        await stream.send_all(says) if says else None
        await stream.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stranger)
        with pytest.raises(kind, match=words):
            async with open_session(world.engine, world.target):
                pass


async def test_silence_instead_of_an_agent_times_out(world: World, autojump_clock):
    await world.engine.network.listen(world.target)
    with pytest.raises(TimedOut, match="nothing answers"):
        async with open_session(world.engine, world.target):
            pass


async def test_a_session_that_falls_silent_is_found_dead_and_its_streams_are_reset(
    world: World, autojump_clock, monkeypatch: pytest.MonkeyPatch
):
    watch = ControlLink._watch

    async def patient_agent(link: ControlLink, scope: trio.CancelScope) -> None:
        if link.machine.role is Role.AGENT:
            await trio.sleep_forever()
        await watch(link, scope)

    monkeypatch.setattr(ControlLink, "_watch", patient_agent)
    async with world.agent(ECHO), open_session(world.engine, world.target) as session:
        channel = (await session.open("echo", Question("x"))).channel
        assert session._control is not None
        # The far side's kernel has vanished: what is sent goes nowhere, nothing comes.
        monkeypatch.setattr(session._control.stream, "try_send", len)
        began = trio.current_time()
        with pytest.raises(TimedOut, match="no sign of life"):
            await channel.receive()
        assert 2 * PING_INTERVAL <= trio.current_time() - began <= 4 * PING_INTERVAL
        assert world.reported(SessionDown)


async def test_a_slow_local_reader_never_makes_a_session_look_dead(world: World, autojump_clock):
    server = await accept_server(world)
    async with world.agent(), trio.open_nursery() as nursery:
        await start_forward(world, nursery)
        client = await dial(world)
        neighbour = await server.accept()
        nursery.start_soon(neighbour.send_all, bytes(4 << 20))
        await trio.sleep(20 * PING_INTERVAL)
        assert not world.reported(SessionDown)
        total = 0
        while total < 4 << 20:
            total += len(await client.receive_some(1 << 20))
        nursery.cancel_scope.cancel()


async def test_a_link_cut_off_inmid_frame_refuses_to_send_on(world: World):
    near, far = memory_pair()
    machine = StreamMachine(Role.CLIENT)
    machine.ours = machine.theirs = State.OPEN
    link = Link(near, machine, BufferPool())
    with trio.move_on_after(0.01):
        await link.send(bytes(1 << 20))
    with pytest.raises(Reset, match="cut off"):
        await link.send(b"more")
    link.close()
    far.close()


@pytest.mark.parametrize("gives_up", [False, True])
async def test_what_is_left_over_of_an_attempt_goes_before_the_next_frame_and_is_never_cut_into(gives_up: bool):
    near, far = memory_pair()
    machine = StreamMachine(Role.CLIENT)
    machine.ours = machine.theirs = State.OPEN
    link, large = Link(near, machine, BufferPool()), bytes(range(256)) * 4096
    assert link.try_send_frames((64, b"first"))
    assert not link.try_send_frames((65, large))
    whole = pack(64, b"first") + pack(65, large) + pack(66, b"next")
    came = bytearray()
    async with trio.open_nursery() as nursery:
        if gives_up:
            nursery.start_soon(link.reset, Code.INTERNAL, "no more")
        else:
            nursery.start_soon(link.send_frames, (66, b"next"))
        with trio.fail_after(5):
            while len(came) < len(whole) and (piece := await far.receive_some(1 << 16)):
                came += piece
        far.close()
    assert whole.startswith(came)
    assert (came == whole) is not gives_up
    link.close()


def test_every_code_has_its_own_error_and_comes_back_as_the_same():
    for code in Code:
        if code is not Code.NONE:
            error = from_code(code, "x")
            assert isinstance(error, VsockfwdError)
            assert error.code in (code, Code.BAD_REQUEST)
    assert isinstance(from_code(Code.TRUNCATED, "x"), Truncated)
    assert "99" in from_code(99, "x").message


async def test_a_client_of_another_version_is_told_so(world: World):
    async with world.agent(ECHO):
        old = await world.engine.network.connect(world.target)
        await old.send_all(CLIENT_PREFACE + pack(FrameType.HELLO, encode(Hello((9,)))))
        with trio.fail_after(5):
            answer = await old.receive_some()
        assert answer[:8] == AGENT_PREFACE
        assert HEADER.unpack_from(answer, 8)[::2] == (FrameType.ERROR, Code.VERSION)
        assert b"speaks protocol version 9" in answer
        old.close()


async def test_a_link_that_was_closed_says_so_to_who_reads_on():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    machine = StreamMachine(Role.CLIENT)
    machine.ours = machine.theirs = State.OPEN
    link = Link(SocketStream(ours, FEATURES, credentials(ours), "a pair"), machine, BufferPool())
    with theirs:
        theirs.send(AGENT_PREFACE + pack(FrameType.DATA, b"x"))
        assert isinstance(await link.receive(), Data)
        link.close()
        with pytest.raises(VsockfwdError):
            await link.receive()


async def test_a_flood_of_tiny_frames_does_not_stop_the_clock():
    near, far = memory_pair()
    machine = StreamMachine(Role.CLIENT)
    machine.ours = machine.theirs = State.OPEN
    link = Link(near, machine, BufferPool())
    far.try_send(AGENT_PREFACE)
    flood = pack(FrameType.DATA, b"x") * 5000

    async def read_for_ever() -> None:
        while True:
            await link.receive()

    receive, rest = near.try_receive_into, b""

    def receive_more(buffer: memoryview) -> int:
        """The kernel of a fast sender: whenever it is asked, there is more."""
        nonlocal rest
        rest = rest or flood
        rest = rest[far.try_send(rest) :]
        return receive(buffer)

    near.try_receive_into = receive_more  # type: ignore[method-assign]
    with trio.move_on_after(0.2) as scope:
        await read_for_ever()
    assert scope.cancelled_caught
    link.close()
    far.close()


async def test_a_reset_after_the_end_is_noticed_while_our_neighbour_is_silent(world: World):
    """The peer said END and then gave up: the relay must not wait for a neighbour that has nothing to say."""
    near, far = memory_pair()
    machine = StreamMachine(Role.CLIENT)
    machine.ours = machine.theirs = State.OPEN
    neighbour, client = memory_pair()
    await far.send_all(AGENT_PREFACE + pack(FrameType.END))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Link(near, machine, BufferPool()).relay, neighbour)
        with trio.fail_after(5):
            assert await client.receive_some() == b""
            await far.send_all(pack(FrameType.RESET, code=Code.INTERNAL))
            with pytest.raises(trio.BrokenResourceError):
                while True:
                    await client.send_all(b"more")
                    await trio.lowlevel.checkpoint()
    client.close()
    far.close()


async def test_after_a_failed_send_the_reason_stands_and_never_reads_as_an_end(
    session: Session, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(wired, "LAST_WORDS", 0.1)
    channel = (await session.open("echo", Question("x"))).channel
    await channel.send(b"fail")
    with trio.fail_after(5), pytest.raises(TimedOut, match="took too long"):
        while True:
            await channel.send(bytes(1 << 16))
    for _ in range(2):
        with pytest.raises(TimedOut, match="took too long"):
            await channel.receive()
    channel.close()


async def test_a_ping_ends_when_the_session_does(world: World):
    async with trio.open_nursery() as nursery:
        scope = await nursery.start(run_agent, world)
        async with open_session(world.engine, world.target) as session:
            assert session._control is not None
            swallowed = session._control.stream
            swallowed.try_send = len  # type: ignore[method-assign]

            async def ask() -> None:
                with pytest.raises(ShuttingDown, match="the agent is stopping"):
                    await session.ping()

            with trio.fail_after(5):
                async with trio.open_nursery() as inner:
                    inner.start_soon(ask)
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()


async def test_strangers_make_room_for_those_who_say_who_they_are(world: World):
    async with world.agent(ECHO):
        mute = [await world.engine.network.connect(world.target) for _ in range(STRANGERS + 10)]
        with trio.fail_after(5):
            async with open_session(world.engine, world.target) as session:
                await session.ping()
        for stream in mute:
            stream.close()
