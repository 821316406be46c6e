"""The one module that a mode imports: the contract, and the engine calls that a mode may use.

Built-in modes are written against it like anyone's; what is not here is not for modes. docs/plugins.md builds one.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from vsockfwd import __version__
from vsockfwd.address import (
    SCHEMES,
    AbstractAddress,
    Address,
    FdAddress,
    HybridAddress,
    StdioAddress,
    TcpAddress,
    UdpAddress,
    UnixAddress,
    UnixDatagramAddress,
    UnixPacketAddress,
    VsockAddress,
    VsockPacketAddress,
    Word,
    parse,
    parse_stream,
    parse_target,
    split_spec,
)
from vsockfwd.amount import bytes_in
from vsockfwd.config import NamedRule, find_target, read_rule
from vsockfwd.contract import (
    CONTRACT,
    PATIENCE,
    SLICE,
    Access,
    BodyEvent,
    Call,
    Channel,
    Data,
    Ended,
    Frame,
    Join,
    Mode,
    ModeFrame,
    Resource,
    ThreadChannel,
    package_of,
)
from vsockfwd.engine import Engine
from vsockfwd.engine.invocation import Invocation
from vsockfwd.engine.poll import Poll
from vsockfwd.engine.pump import BufferPool
from vsockfwd.engine.relay import ending_of, relay
from vsockfwd.engine.server import Gate, serve_listeners
from vsockfwd.errors import (
    AddressError,
    BadRequest,
    CannotCreate,
    Code,
    DataError,
    Interrupted,
    NameNotResolved,
    NoSpace,
    NotAllowed,
    NotFound,
    PeerBrokeProtocol,
    PermissionDenied,
    Refused,
    Reset,
    SomeFailed,
    TimedOut,
    TransportMissing,
    Truncated,
    Unreachable,
    UsageError,
    VerificationFailed,
    VsockfwdError,
    from_code,
    from_oserror,
    printable,
    the_one,
)
from vsockfwd.events import (
    Carried,
    Closed,
    Denied,
    Dropped,
    Ending,
    Event,
    FileDone,
    FileMoving,
    Listening,
    Moved,
    Opened,
    Outcome,
    Planned,
    Problem,
    Report,
    SessionDown,
    SessionUp,
    Summary,
    ignore,
)
from vsockfwd.identity import CID_ANY, CID_LOCAL, GuestPeer, Identity, NetworkPeer, OwnPeer, UnixPeer, VsockPeer
from vsockfwd.option import AgentPort, SharedKey
from vsockfwd.rule import HERE, Admitted, AgentRule, AnyEnd, ForwardRule, Rule, RuleKind, StreamEnd, WhenDown, Written
from vsockfwd.transport.base import NEVER, Features, Listener, SocketStream, Stream
from vsockfwd.transport.descriptor import DescriptorStream, listener_over, stream_over
from vsockfwd.transport.network import Network, system_network
from vsockfwd.transport.tls import TlsStream, bears, names_of
from vsockfwd.transport.vsock import own_cid, why_no_loopback, why_unsupported

if TYPE_CHECKING:
    from vsockfwd.engine.agent import Agent, decode_arguments
    from vsockfwd.engine.incoming import Incoming
    from vsockfwd.engine.proxied import connected_to, header_for, read_header, send_header
    from vsockfwd.engine.relays import Relays
    from vsockfwd.engine.rules import Carrying, Keeper, Rules, State, Status, Work
    from vsockfwd.engine.session import Opened as OpenedStream
    from vsockfwd.engine.session import Session, open_session
    from vsockfwd.engine.stopping import until_stopping
    from vsockfwd.engine.workers import Workers, bind, unsaid
    from vsockfwd.policy import Policy
    from vsockfwd.wire.proxy_protocol import header

F = TypeVar("F", bound=Callable[..., Any])

_WHEN_ASKED = {
    "vsockfwd.engine.agent": ("Agent", "decode_arguments"),
    "vsockfwd.engine.incoming": ("Incoming",),
    "vsockfwd.engine.proxied": ("connected_to", "header_for", "read_header", "send_header"),
    "vsockfwd.engine.relays": ("Relays",),
    "vsockfwd.engine.rules": ("Carrying", "Keeper", "Rules", "State", "Status", "Work"),
    "vsockfwd.engine.session": ("OpenedStream", "Session", "open_session"),
    "vsockfwd.engine.stopping": ("until_stopping",),
    "vsockfwd.engine.workers": ("Workers", "bind", "unsaid"),
    "vsockfwd.policy": ("Policy",),
    "vsockfwd.wire.proxy_protocol": ("header",),
}
"""What not every mode uses, by its module: imported when it is asked for, which is a tenth of a command's start."""

_CALLED_ELSE = {"OpenedStream": "Opened"}


def __getattr__(name: str) -> Any:
    for module, names in _WHEN_ASKED.items():
        if name in names:
            found = globals()[name] = getattr(import_module(module), _CALLED_ELSE.get(name, name))
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def takes_argv(function: F) -> F:
    """Mark a command that reads its own command line: it is called with the invocation and the list of words.

    For commands whose flags are somebody else's, as relay's are socat's; and they start without a parser's import.
    """
    function.takes_argv = True  # type: ignore[attr-defined]
    return function


__all__ = [
    "CID_ANY",
    "CID_LOCAL",
    "CONTRACT",
    "HERE",
    "NEVER",
    "PATIENCE",
    "SCHEMES",
    "SLICE",
    "AbstractAddress",
    "Access",
    "Address",
    "AddressError",
    "Admitted",
    "Agent",
    "AgentPort",
    "AgentRule",
    "AnyEnd",
    "BadRequest",
    "BodyEvent",
    "BufferPool",
    "Call",
    "CannotCreate",
    "Carried",
    "Carrying",
    "Channel",
    "Closed",
    "Code",
    "Data",
    "DataError",
    "Denied",
    "DescriptorStream",
    "Dropped",
    "Ended",
    "Ending",
    "Engine",
    "Event",
    "FdAddress",
    "Features",
    "FileDone",
    "FileMoving",
    "ForwardRule",
    "Frame",
    "Gate",
    "GuestPeer",
    "HybridAddress",
    "Identity",
    "Incoming",
    "Interrupted",
    "Invocation",
    "Join",
    "Keeper",
    "Listener",
    "Listening",
    "Mode",
    "ModeFrame",
    "Moved",
    "NameNotResolved",
    "NamedRule",
    "Network",
    "NetworkPeer",
    "NoSpace",
    "NotAllowed",
    "NotFound",
    "Opened",
    "OpenedStream",
    "Outcome",
    "OwnPeer",
    "PeerBrokeProtocol",
    "PermissionDenied",
    "Planned",
    "Policy",
    "Poll",
    "Problem",
    "Refused",
    "Relays",
    "Report",
    "Reset",
    "Resource",
    "Rule",
    "RuleKind",
    "Rules",
    "Session",
    "SessionDown",
    "SessionUp",
    "SharedKey",
    "SocketStream",
    "SomeFailed",
    "State",
    "Status",
    "StdioAddress",
    "Stream",
    "StreamEnd",
    "Summary",
    "TcpAddress",
    "ThreadChannel",
    "TimedOut",
    "TlsStream",
    "TransportMissing",
    "Truncated",
    "UdpAddress",
    "UnixAddress",
    "UnixDatagramAddress",
    "UnixPacketAddress",
    "UnixPeer",
    "Unreachable",
    "UsageError",
    "VerificationFailed",
    "VsockAddress",
    "VsockPacketAddress",
    "VsockPeer",
    "VsockfwdError",
    "WhenDown",
    "Word",
    "Work",
    "Workers",
    "Written",
    "__version__",
    "bears",
    "bind",
    "bytes_in",
    "connected_to",
    "decode_arguments",
    "ending_of",
    "find_target",
    "from_code",
    "from_oserror",
    "header",
    "header_for",
    "ignore",
    "listener_over",
    "names_of",
    "open_session",
    "own_cid",
    "package_of",
    "parse",
    "parse_stream",
    "parse_target",
    "printable",
    "read_header",
    "read_rule",
    "relay",
    "send_header",
    "serve_listeners",
    "split_spec",
    "stream_over",
    "system_network",
    "takes_argv",
    "the_one",
    "unsaid",
    "until_stopping",
    "why_no_loopback",
    "why_unsupported",
]  # fmt: skip
