"""Write completions/ from the command line itself: `make completions`. A test holds the files to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vsockfwd.address import SCHEMES
from vsockfwd.cli.commands import group
from vsockfwd.discovery import command_names, load_command

FOLDER = Path(__file__).parent.parent / "completions"
HEADER = "# Made by `make completions` from the command line itself."


def commands() -> dict[str, list[str]]:
    """Each command's options; one that reads its own words has none that are known here."""
    root: Any = group()
    return {name: _options(root, name) for name in command_names()}


def _options(root: Any, name: str) -> list[str]:
    if getattr(load_command(name), "takes_argv", False):
        return []
    command = root.get_command(None, name)
    return sorted(
        {word for parameter in command.params for word in parameter.opts if word.startswith("-")} | {"--help"}
    )


def bash() -> str:
    """bash: commands, then a command's options, then schemes and files."""
    known = commands()
    cases = "\n".join(f"    {name}) options='{' '.join(options)}' ;;" for name, options in known.items())
    schemes = " ".join(f"{scheme}:" for scheme in SCHEMES if scheme not in ("memory", "stdio"))
    return f"""{HEADER}
_vsockfwd() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} options=
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W '{" ".join(known)} --help --version' -- "$word"))
    return
  fi
  case ${{COMP_WORDS[1]}} in
{cases}
  esac
  case $word in
    -*) COMPREPLY=($(compgen -W "$options" -- "$word")) ;;
    *) COMPREPLY=($(compgen -W '{schemes}' -- "$word") $(compgen -f -- "$word")) ;;
  esac
}}
complete -o nospace -F _vsockfwd vsockfwd
"""


if __name__ == "__main__":
    (FOLDER / "vsockfwd.bash").write_text(bash())
