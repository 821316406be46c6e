"""From words to a command's function, and from its errors to one line and an exit code.

The thing to understand first: commands are entry points, and typing one imports one. How it is called stands in
call.py; the parser, for those that do not read their own words, in commands.py, which is imported when it is wanted.
"""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from vsockfwd.cli.call import PROGRAM, ReaderGone, call
from vsockfwd.cli.option import NotPlain, help_text, read_words
from vsockfwd.discovery import load_command
from vsockfwd.errors import Interrupted, UsageError, VsockfwdError, from_oserror
from vsockfwd.report.log import is_journal


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code. Nothing escapes but a second signal."""
    words = list(sys.argv[1:] if argv is None else argv)
    # Shown from the words themselves: the error may be that they could not be parsed.
    loud = sum(word.count("v") for word in words if word.startswith("-v") and not word.strip("-v")) >= 2
    try:
        code = _run(words)
        sys.stdout.flush()
        return code
    except Interrupted as stopped:
        return 128 + stopped.signal
    except VsockfwdError as error:
        _say(error.line())
        if loud:
            traceback.print_exc()
        return error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except (ReaderGone, BrokenPipeError):
        # The reader of our standard output went away, as `head` does: the shell's own exit code for it.
        sys.stdout = None
        return 128 + signal.SIGPIPE
    except OSError as error:
        told = from_oserror(error, "standard output")
        sys.stdout = None
        _say(told.line())
        return told.exit_code
    except Exception as error:  # noqa: BLE001 - a bug: say so in one line, and how to show more
        _say(f"internal error: {type(error).__name__}: {error}" + ("" if loud else " – run again with -vv for details"))
        if loud:
            traceback.print_exc()
        return 1


def _say(line: str) -> None:
    try:
        # The journal knows the program, and is told that this is an error (sd-daemon(3)).
        print(f"<3>{line}" if is_journal(sys.stderr) else f"{PROGRAM}: {line}", file=sys.stderr, flush=True)
    except OSError:
        pass


def _run(words: list[str]) -> int:
    if words and not words[0].startswith("-"):
        function = load_command(words[0])
        if getattr(function, "takes_argv", False):
            return call(function, words[1:])
        try:
            plain = read_words(function, words[1:])
        except NotPlain as error:
            return _run_fully(words, function, str(error))
        return call(function, verbosity=plain.pop("verbose", 0), **plain)
    return _run_fully(words)


def _run_fully(words: list[str], function: Any = None, why: str = "") -> int:
    """By the full parser. A single file for guests is without it: there, what is not plain is an error."""
    try:
        from vsockfwd.cli.commands import run_command, run_group
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
    else:
        return run_group(words) if function is None else run_command(words[0], function, words[1:])
    if function is None or words[1:] == ["--help"] or words[1:] == ["-h"]:
        print(help_text("serve", load_command("serve")))
        return 0 if words[-1:] in (["--help"], ["-h"]) else 2
    raise UsageError(f"{words[0]}: {why}", hint=f"{PROGRAM} {words[0]} --help")
