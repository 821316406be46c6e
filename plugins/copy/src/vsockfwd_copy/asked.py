"""What below a source is wanted: a tree of names, for `--files-from`. Pure.

The sender walks along it, and the receiver takes nothing that is not on it.
"""

from __future__ import annotations

from collections.abc import Iterable

from vsockfwd.plugin import UsageError, printable

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
