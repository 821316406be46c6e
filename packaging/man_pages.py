"""Write the manual from the prose in packaging/man and from the command line, the grammar and the tables: `make pages`.

A page's name, synopsis and options are the command line's own, its prose is a file's. A test holds each page to both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from vsockfwd.address import _SCHEMES, OPTIONS, SCHEMES
from vsockfwd.cli.option import COMMON
from vsockfwd.discovery import find_modes, working
from vsockfwd.errors import Code, from_code

from command_line import Command, Flag, read_command_line  # isort: skip # beside this file
from mdoc import definitions, escaped, page, paragraph  # isort: skip

HERE = Path(__file__).parent
MANUAL = HERE.parent / "man"
DATE = "November 25, 2026"
MARK = '.\\" Made by `make pages` from packaging/man and the command line itself.'

KEYS = {
    "name": "What `status` and the log call the rule; else it is made of its addresses.",
    "listen": "The address to listen on.",
    "connect": "The address to connect to, or to send on to.",
    "target": "The agent: a name of `[targets]` or of a guest, a CID, or an address.",
    "when-down": "The listener while the agent is away: `accept`, and connections are reset, or `refuse`.",
    "max-connections": "Connections at once.",
    "max-connections-per-peer": "Connections at once from one CID, user or network address; 0 is no limit.",
    "idle-timeout": "Seconds without a byte either way, then a connection is reset; 0 is for ever.",
    "half-open-timeout": "The same, once one direction has ended.",
    "allow": "Who may connect: `cid:N`, `uid:N`, `net:10.0.0.0/8`, `guest`, `cert:NAME`. Without it, all.",
    "proxy-protocol": "`v2`: tell the far end who connected, by the PROXY protocol.",
    "accept-proxy": "Take such a header from whoever connects; without one the connection is reset.",
    "idle": "Seconds without a datagram, then a flow ends.",
    "flows": "Sources at once; beyond, the least recently used makes room.",
}
"""What each key of a rule means. A key without a meaning stops this program."""


# --- a command's page


def command_page(command: Command, prose: str, shared: frozenset[str]) -> str:
    """`shared`: the options that all commands take, which vsockfwd(1) tells."""
    own = [flag for flag in command.flags if flag.names[-1] not in shared]
    body = page(prose)
    first = next((number for number, line in enumerate(body) if line.startswith(".Sh ")), len(body))
    options = [".Sh OPTIONS", *(definitions(map(_item, own)) if own else [])]
    options += [".Pp"] * bool(own) + ["The options that all commands take are in", ".Xr vsockfwd 1 ."]
    tail = body[first:]
    if ".Sh EXIT STATUS" not in tail:
        at = tail.index(".Sh EXAMPLES") if ".Sh EXAMPLES" in tail else tail.index(".Sh SEE ALSO")
        tail[at:at] = [".Sh EXIT STATUS", "As of", ".Xr vsockfwd 1 ."]
    lines = [
        *_head(f"vsockfwd-{command.name}", 1, command.summary),
        ".Sh SYNOPSIS", f".Nm vsockfwd {command.name}", ".Op Ar options", *_synopsis(command.arguments),
        ".Sh DESCRIPTION", *body[:first], *options, *tail,
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _head(name: str, section: int, summary: str) -> list[str]:
    summary = summary.rstrip(".").replace("`", "")
    summary = summary[:1].lower() + summary[1:] if not summary[:2].isupper() else summary
    title = [MARK, f".Dd {DATE}", f".Dt {name.upper()} {section}", ".Os"]
    return [*title, ".Sh NAME", f".Nm {name}", f".Nd {escaped(summary)}"]


def _synopsis(arguments: str) -> Iterator[str]:
    for word in filter(None, re.split(r"[\[\]{} ]+", arguments)):
        if word != "|":
            yield f".Ar {escaped(word)}" if word[0] != "-" else f".Fl {word[1:] or '-'}"
        else:
            yield ".No \\&|"


def _item(flag: Flag) -> tuple[str, str]:
    """An option's term in mdoc and its meaning, as a sentence."""
    names = " , ".join(f"Fl {'Fl ' + name[2:] if name.startswith('--') else name[1:]}" for name in flag.names)
    meaning = flag.help[:1].upper() + flag.help[1:] + ("" if flag.help.endswith((".", "…")) else ".")
    return names + (f" Ar {escaped(flag.value).replace(' ', chr(92) + ' ')}" if flag.value else ""), meaning


# --- what stands in place of the marks


def _commands(commands: list[Command]) -> list[str]:
    lines = [".Bl -tag -width Ds"]
    for each in commands:
        lines += [f".It Xr vsockfwd-{each.name} 1", *paragraph(each.summary)]
    return [*lines, ".El"]


def _common() -> list[str]:
    flags = []
    for parameter in COMMON.values():
        option = parameter.annotation.__metadata__[0]
        flags.append(Flag(option.names, option.metavar or "", option.help))
    return definitions(map(_item, [*flags, Flag(("-h", "--help"), "", "Show what it takes, and end")]))


def _address_options() -> list[str]:
    items = []
    for name, option in OPTIONS.items():
        schemes = ", ".join(f"`{scheme}`" for scheme in SCHEMES if name in _SCHEMES[scheme][0].known_options)
        meaning = option.meaning[:1].upper() + option.meaning[1:]
        term = f"Cm {name}" if option.flag else f"Cm {name} Ns = Ns Ar value"
        items.append((term, f"{meaning}. For {schemes or 'targets'}."))
    return definitions(items)


def _keys() -> list[str]:
    kinds: dict[str, list[str]] = {}
    for mode in working(find_modes()).values():
        for kind in mode.rules:
            for each in msgspec.structs.fields(kind.schema):
                kinds.setdefault(each.encode_name, []).append(kind.name)
    every = max(map(len, kinds.values()))
    items = []
    for key in sorted(kinds):
        of = "all" if len(kinds[key]) == every else ", ".join(sorted(kinds[key]))
        items.append((f"Cm {key} Pq {of}", KEYS[key]))
    return definitions(items)


def _codes() -> list[str]:
    lines = [
        '.Bl -column -compact "Code" "not authenticated" "Exit status"',
        ".It Em Code Ta Em Name Ta Em Exit status",
    ]
    for code in Code:
        if code:
            name = code.name.lower().replace("_", " ")
            lines.append(f".It {int(code)} Ta {name} Ta {from_code(code, '').exit_code}")
    return [*lines, ".El"]


def _other_page(prose: str, commands: list[Command]) -> tuple[str, str]:
    """A page that is no command's: its file's name and its text."""
    head, _, rest = prose.partition("\n")
    found = re.fullmatch(r"# (\S+)\((\d)\): (.*)", head)
    assert found is not None, head
    lines = [*_head(found[1], int(found[2]), found[3]), ".Sh DESCRIPTION", *page(rest)]
    return f"{found[1]}.{found[2]}", _filled(lines, commands)


def _filled(lines: list[str], commands: list[Command]) -> str:
    marks = {
        "@COMMANDS@": lambda: _commands(commands), "@COMMON@": _common, "@ADDRESS-OPTIONS@": _address_options,
        "@KEYS@": _keys, "@CODES@": _codes,
    }  # fmt: skip
    out: list[str] = []
    for line in lines:
        if line in marks:
            if out[-1] == ".Pp":
                out.pop()
            out += marks[line]()
        else:
            out.append(line)
    return "\n".join(out) + "\n"


def files() -> dict[str, str]:
    """Every page that is made here, by its file's name."""
    commands = read_command_line()
    shared = frozenset(parameter.annotation.__metadata__[0].names[-1] for parameter in COMMON.values()) | {"--help"}
    by_name = {f"vsockfwd-{each.name}": each for each in commands}
    made = {}
    for source in sorted((HERE / "man").glob("*.md")):
        prose = source.read_text()
        if source.stem in by_name:
            made[f"{source.stem}.1"] = command_page(by_name[source.stem], prose, shared)
        elif source.stem == "vsockfwd":
            lines = _head("vsockfwd", 1, "move bytes between a virtual machine and its host over vsock")
            lines += [".Sh SYNOPSIS", ".Nm", ".Ar command", ".Op Ar options", ".Op Ar arguments"]
            lines += [".Sh DESCRIPTION", *page(prose)]
            made["vsockfwd.1"] = _filled(lines, commands)
        else:
            name, text = _other_page(prose, commands)
            made[name] = text
    return made


if __name__ == "__main__":
    for name, text in files().items():
        (MANUAL / name).write_text(text)
