"""`vsockfwd plugins`: which modes are installed, from where, and what is wrong with those that are broken."""

from __future__ import annotations

from vsockfwd.discovery import find_modes
from vsockfwd.engine.invocation import Invocation


def plugins(invocation: Invocation) -> int:
    """List the modes that are installed; exit 1 if one of them is broken."""
    found = find_modes()
    if invocation.json:
        rows = [
            {
                "name": item.name,
                "source": item.source,
                "summary": item.mode.summary if item.mode else "",
                "versions": list(item.mode.versions) if item.mode else [],
                "broken": item.broken,
            }
            for item in found
        ]
        invocation.answer("plugins", plugins=rows)
    else:
        width = max((len(item.name) for item in found), default=0)
        for item in found:
            told = f"BROKEN: {item.broken}" if item.mode is None else item.mode.summary
            print(f"{item.name:<{width}}  {told}  ({item.source})")
    return 1 if any(item.broken for item in found) else 0
