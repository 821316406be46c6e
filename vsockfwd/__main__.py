"""The console script. `--version` is answered before anything else is imported."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Sequence

from vsockfwd import __version__


def _open_standard_streams() -> None:
    """Put /dev/null where a standard stream was closed: the next file opened must not take its number.

    `sys.__stdin__` and its kin stay None, by which the stdio transport tells.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    _open_standard_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    if words == ["--version"]:
        print(f"vsockfwd {__version__}")
        return 0
    gc.disable()  # until all is imported that will be (engine/invocation.py): nothing of it is garbage
    try:
        from vsockfwd.cli.main import main as run
    except KeyboardInterrupt:  # the imports take a tenth of a second: long enough to change one's mind
        return 128 + signal.SIGINT

    return run(words)


if __name__ == "__main__":
    sys.exit(main())
