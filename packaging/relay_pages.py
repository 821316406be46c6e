"""Write what is said about the relay from its own tables: docs/socat.md and man/vsockfwd-relay.1. `make pages`.

A test holds both to the tables, and the tables to the names of socat's manual.
"""

from __future__ import annotations

from pathlib import Path

from vsockfwd_relay.absent import ABSENT_FLAGS, ABSENT_OPTIONS, ABSENT_TYPES
from vsockfwd_relay.command import FLAGS
from vsockfwd_relay.options import OPTIONS, Group
from vsockfwd_relay.table import TYPES

from mdoc import escaped, plain  # isort: skip # beside this file

ROOT = Path(__file__).parent.parent
SOCAT, MANUAL = ROOT / "docs/socat.md", ROOT / "man/vsockfwd-relay.1"

BUILT_FLAGS = {
    "-V": "", "-h": "", "-?": "", "-hh": "", "-hhh": "as -hh", "-d": "", "-d0": "", "-ly": "", "-lf": "", "-ls": "",
    "-lp": "also without a space in between", "-lu": "", "-lm": "", "-lh": "", "-v": "", "-x": "",
    "-r": "one file for all connections of fork, opened once", "-R": "as -r",
    "-b": "1 MiB where socat has 8 KiB", "-s": "",
    "-t": "counts from the last byte, and without it no answer is cut: socat ends it half a second later. Where nobody "
    "can end the other side (UDP, a terminal) it is half a second here too",
    "-T": "its end is no error; a negative number is none", "-u": "", "-U": "", "-L": "", "-W": "", "-4": "", "-6": "",
    "-0": "", "--statistics": "",
}  # fmt: skip

VARIABLES = {
    "SOCAT_DEFAULT_LISTEN_IP": ("same", "4 or 6"),
    "SOCAT_PREFERRED_RESOLVE_IP": ("same", "0, 4 or 6"),
    "SOCAT_MAIN_WAIT, SOCAT_TRANSFER_WAIT, SOCAT_FORK_WAIT": ("not built", "they were for socat's own debugging"),
    "SOCAT_VERSION, SOCAT_PID, SOCAT_PPID": ("same", "fork makes no process: PID and PPID are one"),
    "SOCAT_PEERADDR, SOCAT_PEERPORT": ("better", "CID and port on vsock too"),
    "SOCAT_SOCKADDR, SOCAT_SOCKPORT": ("better", "CID and port on vsock too"),
    "SOCAT_OPENSSL_X509_ISSUER, …_SUBJECT, …_COMMONNAME, …, SOCAT_OPENSSL_X509V3_DNS": ("same", ""),
    "SOCAT_TIMESTAMP, SOCAT_IP_…, SOCAT_IPV6_…": ("not built", ABSENT_OPTIONS["ip-pktinfo"]),
    "HOSTNAME, LOGNAME, USER, HOME": ("not built", "-lh asks the kernel; there are no SOCKS clients and no su"),
    "SHELL, PATH": ("same", ""),
}


INTRODUCTION = """\
# socat's words, here

Every flag, address type, option and variable of the manual of socat 1.8.1, and what `vsockfwd relay` makes of it:
*same*; *better*, which says how it differs; or *not built*, with the reason. What is not built is refused by its name,
never ignored. In the last column a name alone is the one that it is another name of.

This page is made by `make pages` from the tables in the code, and a test holds it to them and to the manual's names.
The interop tests meet the socat that is installed and have its version in their names: 1.7.4.4 on Debian 12.
"""


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return [_row(*head), "|---" * len(head) + "|", *(_row(*row) for row in rows), ""]


def socat() -> str:
    """docs/socat.md"""
    flags = [(f"`{name}`", "better" if why else "same", why) for name, why in BUILT_FLAGS.items()]
    flags += [(f"`{name}`", "not built", why) for name, why in ABSENT_FLAGS.items()]
    types = [
        (f"`{name}`", "better" if row.better else "same", row.better or ("" if name == row.name else f"{row.name}"))
        for row in TYPES
        if not row.ours
        for name in row.names
    ]
    types += [(f"`{name}`", "not built", why) for name, why in ABSENT_TYPES.items()]
    options = [
        (
            f"`{name}`",
            "better" if option.better else "same",
            option.better or ("" if name == option.name else option.name),
        )
        for option in OPTIONS
        if not option.ours
        for name in option.names
    ]
    options += [(f"`{name}`", "not built", why) for name, why in ABSENT_OPTIONS.items()]
    ours = [(f"`{row.form}`", row.meaning) for row in TYPES if row.ours]
    ours += [(f"`{option.name}=`", option.meaning) for option in OPTIONS if option.ours]
    ours += [
        ("`--fdpass`", dict(FLAGS)["--fdpass"]),
        ("`VSOCKFWD_…`", "what programs are told as `SOCAT_…`, and `VSOCKFWD_PEER`"),
    ]
    head = ("socat", "here", "")
    return "\n".join(
        [
            INTRODUCTION,
            "## Flags",
            "",
            *_table(head, sorted(flags)),
            "## Address types",
            "",
            *_table(head, sorted(types)),
            "## Options",
            "",
            *_table(head, sorted(options)),
            "## Environment variables",
            "",
            *_table(head, [(f"`{name}`", *told) for name, told in VARIABLES.items()]),
            "## Ours alone",
            "",
            *_table(("", "means"), ours),
        ]
    )


# --- the manual page ----------------------------------------------------------------------------------------------


def manual() -> str:
    """man/vsockfwd-relay.1"""
    lines = [
        ".\\\" Made by `make pages` from the relay's own tables.",
        ".Dd November 23, 2026",
        ".Dt VSOCKFWD-RELAY 1",
        ".Os",
        ".Sh NAME",
        ".Nm vsockfwd-relay",
        ".Nd relay between two addresses, by socat's names and meanings",
        ".Sh SYNOPSIS",
        ".Nm vsockfwd",
        ".Cm relay",
        ".Op Ar flags",
        ".Ar address address",
        ".Sh DESCRIPTION",
        ".Nm",
        "joins two addresses in both directions until both have ended.",
        "An address is a type's name, parameters after colons and options after commas;",
        ".Ql A!!B",
        "reads from A and writes to B.",
        "Quotes, brackets and backslashes protect what they hold.",
        "A name with a slash is a path for",
        ".Cm GOPEN ,",
        "a number is a descriptor,",
        ".Ql -",
        "is standard input and output.",
        "An option that a type does not take is an error.",
        ".Pp",
        "The flags are:",
        ".Bl -tag -width Ds",
    ]
    for flag, meaning in FLAGS:
        lines += [f".It {_flag(flag)}", *plain(meaning)]
    lines += [".El", ".Sh ADDRESS TYPES", ".Bl -tag -width Ds"]
    for row in TYPES:
        lines += [f".It Cm {escaped(row.form)}", *plain(row.meaning[0].upper() + row.meaning[1:] + ".")]
        if row.names[1:]:
            lines += plain(f"Also {', '.join(row.names[1:])}.")
        lines += plain(f"Options: {', '.join(group.value for group in Group if group in row.groups)}.")
    lines += [".El", ".Sh OPTIONS", "By the groups that the types name."]
    for group in Group:
        lines += [f".Ss {escaped(group.value[0].upper() + group.value[1:])}", ".Bl -tag -width Ds"]
        for option in OPTIONS:
            if group in option.groups:
                lines += [f".It Cm {escaped(', '.join(option.names))}"]
                lines += plain(option.meaning[0].upper() + option.meaning[1:] + ".")
        lines += [".El"]
    lines += [
        ".Sh EXIT STATUS",
        "As of",
        ".Xr vsockfwd 1 ;",
        "a program that failed fails the relay.",
        ".Sh SEE ALSO",
        ".Xr socat 1 ,",
        ".Xr vsockfwd 1",
    ]
    return "\n".join(lines) + "\n"


def _flag(text: str) -> str:
    """`-r, -R FILE` → mdoc's words."""
    names, _, value = text.partition(" ") if "," not in text else (text, "", "")
    if "," in text:
        head, _, tail = text.rpartition(", ")
        last, _, value = tail.partition(" ")
        names = f"{head}, {last}"
    flags = " , ".join(
        f"Fl {name.lstrip('-') if not name.startswith('--') else name[1:]}" for name in names.split(", ")
    )
    return (
        flags.replace("[FACILITY]", "") + (f" Ar {value}" if value else "") + (" Op Ar FACILITY" if "[" in text else "")
    )


if __name__ == "__main__":
    SOCAT.write_text(socat())
    MANUAL.write_text(manual())
