"""Write completions/ from the command line itself: `make completions`. A test holds the files to it."""

from __future__ import annotations

import re
from pathlib import Path

from vsockfwd.address import SCHEMES

from command_line import Command, read_command_line  # isort: skip # beside this file

FOLDER = Path(__file__).parent.parent / "completions"
HEADER = "# Made by `make completions` from the command line itself."
ADDRESSES = [f"{scheme}:" for scheme in SCHEMES if scheme not in ("memory", "stdio")]
NAMES = "vsockfwd guests --names 2>/dev/null"
"""What asks for the names of guests and of the config file's targets."""


def bash(commands: list[Command]) -> str:
    """Commands, then a command's options, then targets, schemes and files."""
    cases = "\n".join(
        f"    {each.name}) options='{' '.join(sorted(name for flag in each.flags for name in flag.names))}'"
        f"{' targets=yes' if each.takes_target else ''} ;;"
        for each in commands
    )
    return f"""{HEADER}
_vsockfwd() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} options= targets=
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W '{" ".join(each.name for each in commands)} --help --version' -- "$word"))
    return
  fi
  case ${{COMP_WORDS[1]}} in
{cases}
  esac
  case $word in
    -*) COMPREPLY=($(compgen -W "$options" -- "$word")) ;;
    *)
      if [ -n "$targets" ]; then
        COMPREPLY=($(compgen -W "{" ".join(ADDRESSES)} $({NAMES})" -- "$word"))
      fi
      COMPREPLY+=($(compgen -f -- "$word"))
      ;;
  esac
}}
complete -o nospace -F _vsockfwd vsockfwd
"""


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def zsh(commands: list[Command]) -> str:
    """The same, with what each is for."""

    def described(name: str, help: str) -> str:
        return _quoted(f"{name.replace(':', chr(92) + ':')}:{help}")

    listed = "\n".join(f"      {described(each.name, each.summary)}" for each in commands)
    cases = "\n".join(
        f"    ({each.name})\n      targets={'yes' if each.takes_target else ''}\n      options=(\n"
        + "".join(f"        {described(name, flag.help)}\n" for flag in each.flags for name in flag.names)
        + "      )\n      ;;"
        for each in commands
    )
    return f"""#compdef vsockfwd
{HEADER}
_vsockfwd() {{
  local targets
  local -a commands options names
  if (( CURRENT == 2 )); then
    commands=(
{listed}
    )
    _describe command commands
    return
  fi
  case $words[2] in
{cases}
  esac
  if [[ $PREFIX == -* ]]; then
    _describe -o option options
    return
  fi
  if [[ -n $targets ]]; then
    names=(${{(f)"$({NAMES})"}})
    compadd -S '' -- {" ".join(ADDRESSES)}
    compadd -a names
  fi
  _files
}}
_vsockfwd "$@"
"""


def fish(commands: list[Command]) -> str:
    """The same, in fish's words."""
    lines = [
        HEADER,
        "complete -c vsockfwd -n __fish_use_subcommand -f -l help -s h -d 'show the commands'",
        "complete -c vsockfwd -n __fish_use_subcommand -f -l version -d 'print the version'",
    ]
    for each in commands:
        lines.append(f"complete -c vsockfwd -n __fish_use_subcommand -f -a {each.name} -d {_fish(each.summary)}")
    takers = " ".join(each.name for each in commands if each.takes_target)
    seen = f"'__fish_seen_subcommand_from {takers}'"
    lines.append(f"complete -c vsockfwd -n {seen} -a '({NAMES})' -d 'guest or target'")
    lines.append(f"complete -c vsockfwd -n {seen} -a '{' '.join(ADDRESSES)}' -d address")
    for each in commands:
        for flag in each.flags:
            words = " ".join(
                f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in reversed(flag.names)
            )
            words += " -r" if flag.value else ""
            seen = f"'__fish_seen_subcommand_from {each.name}'"
            lines.append(f"complete -c vsockfwd -n {seen} {words} -d {_fish(flag.help)}")
    return "\n".join(lines) + "\n"


def _fish(text: str) -> str:
    escaped = re.sub(r"(['\\])", r"\\\1", text)
    return f"'{escaped}'"


def files() -> dict[str, str]:
    """Each completion's text, by its file's name."""
    commands = read_command_line()
    return {"vsockfwd.bash": bash(commands), "_vsockfwd": zsh(commands), "vsockfwd.fish": fish(commands)}


if __name__ == "__main__":
    for name, text in files().items():
        (FOLDER / name).write_text(text)
