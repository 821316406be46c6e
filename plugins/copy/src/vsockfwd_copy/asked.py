"""What was asked for, so that a receiver takes nothing else: sources as typed, and what below one is wanted. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vsockfwd.plugin import PeerBrokeProtocol, UsageError, printable
from vsockfwd_copy.messages import landing_name
from vsockfwd_copy.patterns import is_pattern, literal, matches

Wanted = dict[bytes, "Wanted | None"]
"""Name → what of it is wanted; None: all of it."""


def wanted(paths: Iterable[bytes]) -> Wanted:
    """The tree of some relative paths. Raises UsageError for one that leads out."""
    top: Wanted = {}
    for path in paths:
        parts = [part for part in path.split(b"/") if part not in (b"", b".")]
        if b".." in parts or path.startswith(b"/") or b"\0" in path:
            raise UsageError(f"{printable(path)}: a path of --files-from is relative, and leads nowhere else")
        at = top
        for position, part in enumerate(parts):
            below = at.get(part, {})
            if below is None:
                break  # all of it is wanted already
            if position == len(parts) - 1:
                at[part] = None
            else:
                at[part] = below
                at = below
    return top


class Asked:
    """The sources that a receiver asked for: they come in their order, one entry each, or as many as fit a pattern."""

    def __init__(self, sources: Sequence[bytes], *, glob: bool) -> None:
        """`glob`: a source that is a pattern stands for all that fits it."""
        self._sources = sources
        self._glob = glob
        self._at = 0
        self._came: set[bytes] = set()
        """Names that came, where patterns may have several to answer."""

    def word(self, name: bytes) -> bytes:
        """What a person calls an entry of this name: the source as typed, or the name that fits it.

        Raises PeerBrokeProtocol for what was not asked for.
        """
        while self._at < len(self._sources):
            source = self._sources[self._at]
            expected = landing_name(source)
            if not self._glob or not is_pattern(source):
                if name != expected:
                    break
                self._at += 1
                return source
            if is_pattern(expected) and name == expected:  # itself: it is called so, or nothing fits it
                self._at += 1
                return source
            if name == literal(expected) or matches(expected, name):
                self._came.add(name)
                return name  # there may be more of them
            self._at += 1
        if self._at >= len(self._sources):
            raise PeerBrokeProtocol(f"the sender announced more than {len(self._sources)} sources")
        asked = printable(self._sources[self._at])
        raise PeerBrokeProtocol(f"the sender sent {printable(name)!r} where {asked!r} was asked for")

    def complete(self) -> bool:
        """Whether nothing more has to come."""
        left = self._sources[self._at :]
        # What a pattern before it took in may have been a later source's; no more than a pattern has to be there.
        return all(self._glob and (is_pattern(source) or landing_name(source) in self._came) for source in left)
