"""What a wheel has beside the package: every manual page and completion, where man and the shells look for them.

As shared data they land below the environment's prefix: `share/man/man1`, `share/bash-completion/completions`, ….
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

COMPLETIONS = {
    "vsockfwd.bash": "share/bash-completion/completions/vsockfwd",
    "_vsockfwd": "share/zsh/site-functions/_vsockfwd",
    "vsockfwd.fish": "share/fish/vendor_completions.d/vsockfwd.fish",
}


class SharedData(BuildHookInterface[Any]):
    """Hatchling asks this while it builds a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        for page in sorted((root / "man").glob("*.[1-8]")):
            build_data["shared_data"][str(page)] = f"share/man/man{page.suffix[1:]}/{page.name}"
        for name, place in COMPLETIONS.items():
            build_data["shared_data"][str(root / "completions" / name)] = place
