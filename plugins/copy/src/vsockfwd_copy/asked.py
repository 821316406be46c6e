"""What was asked for: the sources, and what below one is wanted (`--files-from`). Pure.

The sender walks along it, and whoever asked takes nothing that is not on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vsockfwd.plugin import PeerBrokeProtocol, UsageError, printable
from vsockfwd_copy.messages import Enter, Entry, Leave, Lost, landing_name
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


class Expected:
    """The sources of a copy, as they come at the top: in order, one each, but for a pattern."""

    def __init__(
        self, count: int, sources: Sequence[bytes] | None = None, *, glob: bool = False, below: bool = False
    ) -> None:
        """So many (0: as many as come); where this side asked for them, `sources` tells which, and nothing else may.

        `glob`: a source that is a pattern stands for all that fits it. `below`: of the one source only the content.
        """
        self._count = count
        self._sources = sources
        self._glob = glob
        self._below = below
        self._at = 0
        self._came: set[bytes] = set()
        """Names that answered a pattern."""

    @property
    def several(self) -> bool:
        """Whether there may be more than one."""
        return self._count != 1 or any(self._is_several(source) for source in self._sources or ())

    @property
    def complete(self) -> bool:
        """Whether all have come that must."""
        if not self._count or self._at == self._count:
            return True
        if self._sources is None:
            return False
        # What a pattern before it took in may have been a later source's; no more than a pattern has to be there.
        left = self._sources[self._at :]
        return all(self._is_several(source) or landing_name(source) in self._came for source in left)

    def word(self, entry: Entry) -> bytes:
        """What a person calls an entry at the top. Raises PeerBrokeProtocol for one that was not asked for."""
        assert not isinstance(entry, Leave)
        name = entry.name
        if self._sources is None or self._below:
            self._at += 1
            if self._count and self._at > self._count:
                raise PeerBrokeProtocol(f"the sender announced more than {self._count} sources")
            if self._sources is None:
                return name
            if name or not isinstance(entry, Enter | Lost):
                raise PeerBrokeProtocol(f"the sender sent {printable(name)!r}, which was not asked for")
            return self._sources[0]
        while self._at < self._count:
            source = self._sources[self._at]
            expected = landing_name(source)
            if not self._is_several(source):
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
        if self._at >= self._count:
            raise PeerBrokeProtocol(f"the sender announced more than {self._count} sources")
        asked = printable(self._sources[self._at])
        raise PeerBrokeProtocol(f"the sender sent {printable(name)!r} where {asked!r} was asked for")

    def _is_several(self, source: bytes) -> bool:
        return self._glob and is_pattern(source)
