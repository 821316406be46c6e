"""The console script. `--version` is answered before anything else is imported."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vsockfwd import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words == ["--version"]:
        print(f"vsockfwd {__version__}")
        return 0
    from vsockfwd.cli.main import main as run

    return run(words)


if __name__ == "__main__":
    sys.exit(main())
