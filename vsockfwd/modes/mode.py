"""The mode `forward` as others find it: what the agent serves, and every kind of rule that goes with it."""

from __future__ import annotations

from vsockfwd.modes.dynamic import DYNAMIC
from vsockfwd.modes.forward import LOCAL, NAME, RAW, REMOTE, join, resources
from vsockfwd.plugin import Mode

MODE = Mode(
    NAME,
    "forwards connections, raw or through an agent",
    join=join,
    resources=resources,
    rules=(RAW, LOCAL, REMOTE, DYNAMIC),
)
