"""`vsockfwd relay`: socat's command line. Words in, a plan out; what is told on the way; the help.

Its flags are socat's, so they are read here and not by the parser of the other commands. A flag of socat's that is not
built is refused by its name.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass

from vsockfwd.plugin import (
    Closed,
    Event,
    Invocation,
    Listening,
    Opened,
    Problem,
    Report,
    UsageError,
    printable,
    takes_argv,
)
from vsockfwd_relay import __version__
from vsockfwd_relay.address_type import Direction, Note
from vsockfwd_relay.options import OPTION_OF_NAME, seconds
from vsockfwd_relay.relaying import Plan, run
from vsockfwd_relay.table import TYPES, specify

_MOST_DETAIL = 4
_LINE_LIMIT = 2000
_BLOCK_LIMIT = 1 << 30

_NOT_BUILT = ("-D", "-ly", "-lf", "-ls", "-lp", "-lu", "-lm", "-lh", "-r", "-R", "-s", "-g", "-L", "-W", "-4", "-6")

_USAGE = """\
vsockfwd relay [flags] ADDRESS ADDRESS

Relays bytes between two addresses, in both directions, until both have ended. socat's names and meanings.

flags:
  -u, -U       one direction only: from the first to the second, or back
  -t SECONDS   once one side has ended, end when nothing has come for so long (without it: wait for the other)
  -T SECONDS   end when nothing has come from either side for so long
  -b BYTES     move at most so many at once (1 MiB)
  -v, -x       show what passes on standard error, as text, in hexadecimal, or both
  -d           say more: warnings; -d -d: listeners, connections, programs; three: what is opened; four: tracebacks
  -h, -hh      this help; with every option's meaning
  -V           the version

addresses, as TYPE:parameter,option=value; A!!B reads from A and writes to B:
"""


@takes_argv
def relay(invocation: Invocation, argv: list[str]) -> int:
    """Relay between two addresses, by socat's names and meanings; `vsockfwd relay -h` for its own help.

    vsockfwd relay TCP-LISTEN:8080,bind=127.0.0.1,fork VSOCK-CONNECT:3:80
    """
    flags, addresses = _read(argv)
    if flags.answer:
        print(flags.answer, end="")
        return 0
    if len(addresses) != 2:
        raise UsageError(f"relay takes exactly 2 addresses, not {len(addresses)}", hint="vsockfwd relay -h")
    plan = _plan(flags, *addresses)
    return dataclasses.replace(invocation, report=_reporter(flags.detail)).run(run, plan, _say)


# --- flags --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Flags:
    """What the words before the addresses say. `answer`: what to print instead of relaying."""

    one_way: str = ""
    half_open: float | None = None
    idle: float = 0.0
    block: int = 0
    text: bool = False
    hexadecimal: bool = False
    detail: int = 0
    answer: str = ""


def _read(argv: list[str]) -> tuple[_Flags, list[str]]:
    """Flags, then addresses: `-` and `-,option` are the first of those."""
    flags, words = _Flags(), list(argv)
    while words and words[0].startswith("-") and not words[0].startswith(("-,", "-!!")) and words[0] != "-":
        _take(flags, words.pop(0), words)
    return flags, words


def _take(flags: _Flags, word: str, rest: list[str]) -> None:
    match word:
        case "-u" | "-U":
            flags.one_way = word
        case "-v":
            flags.text = True
        case "-x":
            flags.hexadecimal = True
        case "-V" | "--version":
            flags.answer = f"vsockfwd relay {__version__}, after the manual of socat 1.7.4\n"
        case "-h" | "-?" | "--help":
            flags.answer = help_text(with_options=False)
        case "-hh" | "-??" | "-hhh" | "-???":
            flags.answer = help_text(with_options=True)
        case _ if set(word[1:]) == {"d"}:
            flags.detail = min(_MOST_DETAIL, flags.detail + len(word) - 1)
        case _ if word[:2] in ("-t", "-T", "-b"):
            _take_value(flags, word[:2], word[2:] or (rest.pop(0) if rest else ""))
        case _ if word.startswith(_NOT_BUILT):
            raise UsageError(f"socat's {printable(word)} is not built here", hint="vsockfwd relay -h lists what is")
        case _:
            hint = "flags are not merged: -x -v" if len(word) > 2 else "vsockfwd relay -h"
            raise UsageError(f"relay has no flag {printable(word)}", hint=hint)


def _take_value(flags: _Flags, flag: str, value: str) -> None:
    if flag == "-b":
        if not (value.isascii() and value.isdigit() and 0 < int(value) <= _BLOCK_LIMIT):
            raise UsageError(f"-b is a number of bytes up to {_BLOCK_LIMIT}, not {printable(value)!r}")
        flags.block = int(value)
        return
    try:
        number = seconds(value)
    except ValueError as error:
        raise UsageError(f"{flag} {error}, not {printable(value)!r}") from None
    if flag == "-t":
        flags.half_open = number
    else:
        flags.idle = number


def _plan(flags: _Flags, first: str, second: str) -> Plan:
    directions = {
        "": (Direction.BOTH, Direction.BOTH),
        "-u": (Direction.READ, Direction.WRITE),
        "-U": (Direction.WRITE, Direction.READ),
    }[flags.one_way]
    ends = specify(first), specify(second)
    if getattr(ends[1], "options", {}).get("fork"):
        raise UsageError(f"{printable(second)}: fork belongs to the first address here", hint="change their order")
    # The engine takes 0 for "never"; -t0 is as soon as may be.
    half_open = 0.0 if flags.half_open is None else max(flags.half_open, 0.001)
    return Plan(*ends, *directions, flags.idle, half_open, flags.block, flags.text, flags.hexadecimal)


# --- what is told -------------------------------------------------------------------------------------------------


def _level(event: Event) -> int:
    match event:
        case Note(level=level):
            return level
        case Listening() | Opened() | Closed():
            return 2
        case _:
            return 0


def _reporter(detail: int) -> Report:
    """Lines on standard error; how many, -d says."""

    def report(event: Event) -> None:
        if _level(event) > detail:
            return
        _say(f"vsockfwd: {printable(str(event), _LINE_LIMIT)}\n")
        if isinstance(event, Problem) and detail == _MOST_DETAIL:
            _say(event.detail)

    return report


def _say(text: str) -> None:
    try:
        print(text, end="", file=sys.stderr, flush=True)
    except (OSError, ValueError, AttributeError):
        pass  # nobody reads our words any more: the work goes on


# --- help ---------------------------------------------------------------------------------------------------------


def help_text(*, with_options: bool) -> str:
    """The help, made from the table."""
    lines = []
    for row in TYPES:
        lines.append(f"  {row.form:<26} {row.meaning}")
        aliases = ", ".join(row.names[1:])
        if aliases:
            lines.append(f"      also {aliases}")
        if with_options:
            lines.append(f"      takes {', '.join(sorted(row.options))}")
    if with_options:
        lines.append("\noptions:")
        names = {name: OPTION_OF_NAME[name].meaning for row in TYPES for name in row.options}
        lines += [f"  {name:<16} {names[name]}" for name in sorted(names)]
    return _USAGE + "\n".join(lines) + "\n"
