"""`vsockfwd relay`: socat's command line. Words in, a plan out; what is told on the way; the help.

Its flags are socat's, so they are read here and not by the parser of the other commands. A flag of socat's that is not
built is refused by its name.
"""

from __future__ import annotations

import dataclasses
import os
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from vsockfwd.plugin import (
    Closed,
    Event,
    Interrupted,
    Invocation,
    Listening,
    Opened,
    Problem,
    Report,
    UsageError,
    VsockfwdError,
    printable,
    takes_argv,
)
from vsockfwd_relay import __version__
from vsockfwd_relay.absent import ABSENT_FLAGS
from vsockfwd_relay.address_type import Direction, End, Families, Note, Specification
from vsockfwd_relay.agent import Through
from vsockfwd_relay.log import Log, facility, say
from vsockfwd_relay.options import OPTIONS, seconds
from vsockfwd_relay.relaying import Plan, run
from vsockfwd_relay.table import TYPES, specify

_MOST_DETAIL = 4
_LINE_LIMIT = 2000
_BLOCK_LIMIT = 1 << 30

FLAGS = (
    ("-u, -U", "one direction only: from the first to the second, or back"),
    ("-t SECONDS", "once one side has ended, end when nothing has come for so long (without it: wait for the other)"),
    ("-T SECONDS", "end when nothing has come from either side for so long"),
    ("-b BYTES", "move at most so many at once (1 MiB; 8192 from a stream to datagrams)"),
    ("-v, -x", "show what passes on standard error, as text, in hexadecimal, or both"),
    (
        "-r, -R FILE",
        "add what passes to a file, left to right or right to left; $$, $PROGNAME, $TIMESTAMP, $MICROS are known",
    ),
    ("--statistics", "tell bytes and blocks at the end, and when SIGUSR1 comes"),
    ("-4, -6, -0", "listen on IPv4 (the default), IPv6 or both, and prefer it of a name's addresses"),
    ("-s", "an option that cannot be set is a warning"),
    ("-L, -W FILE", "hold this lock file; where it is there, fail, or wait until it is gone"),
    ("-d", "say more: notices; -d0: errors only; -d3: what is opened; -d4: tracebacks (also -d -d -d, -ddd)"),
    ("-lf FILE", "write what is told to a file; -ls: to standard error"),
    ("-ly[FACILITY]", "write what is told to syslog; -lm: from the moment on that the work begins"),
    ("-lp NAME", "call the program so, in what is told and in variables of programs (instead of SOCAT_)"),
    ("-lu, -lh", "begin what is told with the time in microseconds, with the host's name"),
    ("--fdpass", "give the second address's socket to who reads standard output, and end: ssh's ProxyUseFdpass"),
    ("-h, -hh", "this help; with every option's meaning"),
    ("-V", "the version"),
)


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
    plan = _plan(flags, invocation, *addresses)
    report = _reporter(flags)
    try:
        return dataclasses.replace(invocation, report=report).run(run, plan, say)
    except Interrupted:
        raise
    except VsockfwdError as error:
        if flags.log.plain:
            raise
        report(Note(0, error.line()))
        return error.exit_code


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
    copies: dict[str, str] = field(default_factory=dict)
    statistics: bool = False
    families: str = ""
    sloppy: bool = False
    lock: str = ""
    wait: bool = False
    details: int | None = None
    counted: int = 0
    log: Log = field(default_factory=Log)
    hand_over: bool = False
    answer: str = ""

    @property
    def detail(self) -> int:
        """0 errors, 1 warnings, 2 notices, 3 information, 4 all: without -d it is 1, and the first -d makes it 2."""
        if self.details is not None:
            return min(self.details, _MOST_DETAIL)
        return min(max(self.counted, 2), _MOST_DETAIL) if self.counted else 1


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
        case "-s":
            flags.sloppy = True
        case "-4" | "-6" | "-0":
            flags.families = word[1]
        case "--statistics":
            flags.statistics = True
        case "--fdpass":
            flags.hand_over = True
        case "-V" | "--version":
            flags.answer = f"vsockfwd relay {__version__}, after the manual of socat 1.8\n"
        case "-h" | "-?" | "--help":
            flags.answer = help_text(with_options=False)
        case "-hh" | "-??" | "-hhh" | "-???":
            flags.answer = help_text(with_options=True)
        case _ if re.fullmatch(r"-d[0-4]", word):
            flags.details = int(word[2])
        case _ if set(word[1:]) == {"d"}:
            flags.counted += len(word) - 1
        case _ if why := next((why for name, why in ABSENT_FLAGS.items() if word.startswith(name)), ""):
            raise UsageError(
                f"socat's {printable(word)} is not built here: {why}", hint="vsockfwd relay -h lists what is"
            )
        case _ if word.startswith("-l"):
            _take_log(flags.log, word[2:3], word[3:], rest)
        case _ if word[:2] in ("-t", "-T", "-b", "-r", "-R", "-L", "-W"):
            _take_value(flags, word[:2], word[2:] or (rest.pop(0) if rest else ""))
        case _:
            hint = "flags are not merged: -x -v" if len(word) > 2 else "vsockfwd relay -h"
            raise UsageError(f"relay has no flag {printable(word)}", hint=hint)


def _take_log(log: Log, kind: str, value: str, rest: list[str]) -> None:
    match kind:
        case "y":
            log.facility, log.later, log.file = facility(value), None, ""
        case "m":
            log.later, log.facility, log.file = facility(value), None, ""
        case "f":
            log.file = value or (rest.pop(0) if rest else "")
            if not log.file:
                raise UsageError("-lf takes a file")
        case "s":
            log.file, log.facility, log.later = "", None, None
        case "p":
            log.program = value or (rest.pop(0) if rest else "")
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", log.program):
                raise UsageError("-lp takes a program's name: letters, digits, _ . -")
        case "u" if not value:
            log.precise = True
        case "h" if not value:
            log.with_host = True
        case _:
            raise UsageError(f"relay has no flag -l{printable(kind + value)}", hint="vsockfwd relay -h")


def _take_value(flags: _Flags, flag: str, value: str) -> None:
    match flag:
        case "-b":
            if not (value.isascii() and value.isdigit() and 0 < int(value) <= _BLOCK_LIMIT):
                raise UsageError(f"-b is a number of bytes up to {_BLOCK_LIMIT}, not {printable(value)!r}")
            flags.block = int(value)
        case "-r" | "-R" | "-L" | "-W":
            if not value or "\0" in value:
                raise UsageError(f"{flag} takes a file")
            if flag in ("-r", "-R"):
                flags.copies[flag] = value
            else:
                flags.lock, flags.wait = value, flag == "-W"
        case "-t":
            flags.half_open = _seconds(flag, value)
        case _:
            flags.idle = 0.0 if re.fullmatch(r"-\d+(\.\d*)?", value) else _seconds(flag, value)


def _seconds(flag: str, value: str) -> float:
    try:
        return seconds(value)
    except ValueError as error:
        raise UsageError(f"{flag} {error}, not {printable(value)!r}") from None


def _plan(flags: _Flags, invocation: Invocation, first: str, second: str) -> Plan:
    directions = {
        "": (Direction.BOTH, Direction.BOTH),
        "-u": (Direction.READ, Direction.WRITE),
        "-U": (Direction.WRITE, Direction.READ),
    }[flags.one_way]
    families = _families(flags.families, os.environ)
    ends = specify(first, families), specify(second, families)
    if getattr(ends[1], "options", {}).get("fork"):
        raise UsageError(f"{printable(second)}: fork belongs to the first address here", hint="change their order")
    if getattr(ends[0], "options", {}).get("fork") and "accept-timeout" in getattr(ends[0], "options", {}):
        raise UsageError(f"{printable(first)}: with fork there is no last connection to wait for")
    for end in ends:
        _check_target(end, invocation)
    if flags.hand_over:
        _check_hand_over(flags, *ends)
    program = flags.log.program
    return Plan(
        *ends,
        *directions,
        idle=flags.idle,
        # The engine takes 0 for "never"; -t0 is as soon as may be.
        half_open=0.0 if flags.half_open is None else max(flags.half_open, 0.001),
        block=flags.block,
        dump_text=flags.text,
        dump_hexadecimal=flags.hexadecimal,
        copy_forth=_file_name(flags.copies.get("-r", ""), program),
        copy_back=_file_name(flags.copies.get("-R", ""), program),
        statistics=flags.statistics,
        lock=os.fsencode(flags.lock) if flags.lock else None,
        wait_for_lock=flags.wait,
        hand_over=flags.hand_over,
        sloppy=flags.sloppy,
        program="socat" if program == Log().program else re.sub(r"\W", "_", program),
        target=invocation.target,
    )


def _families(flag: str, environment: Mapping[str, str]) -> Families:
    """-4, -6 and -0; without them socat's variables, as far as they are numbers that mean something."""
    of = {"4": socket.AF_INET, "6": socket.AF_INET6, "0": None}
    if flag:
        return Families(of[flag], of[flag])
    listen = environment.get("SOCAT_DEFAULT_LISTEN_IP", "")
    first = environment.get("SOCAT_PREFERRED_RESOLVE_IP", "")
    return Families(of.get(listen, socket.AF_INET) if listen != "0" else socket.AF_INET, of.get(first))


def _check_target(end: End, invocation: Invocation) -> None:
    """An agent's name is looked up before anything is opened. Raises what is wrong with it."""
    for part in (end,) if isinstance(end, Specification) else (end.reading, end.writing):
        if isinstance(part.subject, Through):
            invocation.target(part.subject.target)


def _check_hand_over(flags: _Flags, first: End, second: End) -> None:
    """--fdpass hands a socket over as it is: nothing can be done on the way. Raises UsageError."""
    if str(first) != "-" and str(first).upper() != "STDIO":
        raise UsageError("--fdpass stands for standard output: its first address is -", hint="relay --fdpass - ADDRESS")
    if flags.one_way or flags.text or flags.hexadecimal or flags.copies or flags.statistics or flags.idle:
        raise UsageError("--fdpass: what passes is not seen here", hint="leave out -u -U -v -x -r -R -T --statistics")


def _file_name(text: str, program: str) -> str:
    """-r's file, with what socat knows put in: `$$` and variables, braced or not. Raises UsageError."""
    now = time.time()
    known = {
        "PROGNAME": program,
        "TIMESTAMP": time.strftime("%Y%m%dT%H%M%S", time.localtime(now)),
        "MICROS": f"{int(now % 1 * 1e6):06d}",
    }

    def value(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return str(os.getpid())
        name = found[1] or found[2]
        if name not in known and name not in os.environ:
            raise UsageError(f"{printable(text)}: there is no variable {name}")
        return known.get(name) or os.environ[name]

    return re.sub(r"\$\$|\$(\w+)|\$\{(\w+)\}", value, text)


# --- what is told -------------------------------------------------------------------------------------------------


def _level(event: Event) -> int:
    match event:
        case Note(level=level):
            return level
        case Listening() | Opened() | Closed():
            return 2
        case _:
            return 0


def _reporter(flags: _Flags) -> Report:
    """Lines, as many as -d says, to where -l… says. Raises VsockfwdError."""
    detail, log = flags.detail, flags.log
    write = log.writer()

    def report(event: Event) -> None:
        level = _level(event)
        if isinstance(event, Listening | Opened):
            log.begun()
        if level > detail:
            return
        write(level, printable(str(event), _LINE_LIMIT))
        if isinstance(event, Problem) and detail == _MOST_DETAIL:
            say(event.detail)

    return report


# --- help ---------------------------------------------------------------------------------------------------------


def help_text(*, with_options: bool) -> str:
    """The help, made from the tables."""
    lines = [
        "vsockfwd relay [flags] ADDRESS ADDRESS",
        "",
        "Relays bytes between two addresses, in both directions, until both have ended. socat's names and meanings.",
        "",
        "flags:",
        *(f"  {flag:<14} {meaning}" for flag, meaning in FLAGS),
        "",
        "addresses, as TYPE:parameter,option=value; A!!B reads from A and writes to B:",
        "",
    ]
    for row in TYPES:
        lines.append(f"  {row.form:<33} {row.meaning}")
        aliases = ", ".join(row.names[1:])
        if aliases:
            lines.append(f"      also {aliases}")
        if with_options:
            lines.append(f"      takes {', '.join(row.options)}")
    if with_options:
        lines.append("\noptions:")
        lines += [f"  {option.name:<26} {option.meaning}" for option in sorted(OPTIONS, key=lambda each: each.name)]
    return "\n".join(lines) + "\n"
