"""Plain words are read without a parser's import, to what the parser would make of them."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated, Any

import pytest

from tests.cli.process import error_of
from vsockfwd.cli.commands import _typer_command
from vsockfwd.cli.option import NotPlain, Option, help_text, read_words

NAMES = ["verbose", "quiet", "json", "log_format"]


def command(
    invocation: object,
    listen: Annotated[list[str] | None, Option("-l", "--listen", metavar="ADDRESS", help="where to listen")] = None,
    allow_uid: Annotated[list[int] | None, Option("--allow-uid")] = None,
    read_only: Annotated[bool, Option("--read-only")] = False,
    seconds: Annotated[float, Option()] = 5.0,
) -> int:
    """A command."""
    return 0


@pytest.mark.parametrize(
    "line",
    [
        "", "-l a -l b", "--listen=a --listen b=c", "-la", "-qvv --json", "--allow-uid 3 --allow-uid=4 --read-only",
        "--seconds 0.5 --log-format json", "-vql a", "-l=a", "-l -x",
    ],
)  # fmt: skip
def test_plain_words_mean_what_the_full_parser_says(line: str):
    words = line.split()
    seen: dict[str, Any] = {}

    def recording(invocation: object, listen: object, allow_uid: object, read_only: object, seconds: object) -> int:
        seen.update(listen=listen, allow_uid=allow_uid, read_only=read_only, seconds=seconds)
        return 0

    recording.__signature__ = __import__("inspect").signature(command, eval_str=True)  # type: ignore[attr-defined]
    _typer_command("command", recording).main(words, standalone_mode=False)
    plain = {name: value for name, value in read_words(command, words).items() if name not in NAMES}
    defaults = {"listen": None, "allow_uid": None, "read_only": False, "seconds": 5.0}
    assert {**defaults, **plain} == {name: value or defaults[name] for name, value in seen.items()}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("--help", "no option"), ("--lisen a", "no option"), ("word", "one word too many"), ("-l", "needs a value"),
        ("--allow-uid x", "not a int"), ("--read-only=1", "takes no value"), ("--", "no option"), ("-x", "no option"),
    ],
)  # fmt: skip
def test_what_is_not_plain_is_left_to_the_full_parser(line: str, why: str):
    with pytest.raises(NotPlain, match=why):
        read_words(command, line.split())


def test_an_argument_is_not_plain():
    def takes_one(invocation: object, target: str) -> int:
        return 0

    with pytest.raises(NotPlain):
        read_words(takes_one, [])


def test_help_is_there_without_the_full_parser():
    text = help_text("command", command)
    assert "-l, --listen ADDRESS" in text
    assert "where to listen" in text


def test_the_agent_starts_without_typer_or_rich_and_its_mistakes_are_told_all_the_same():
    program = (
        "import sys; sys.modules['typer'] = sys.modules['rich'] = sys.modules['click'] = None\n"
        "from vsockfwd.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    for words, code, said in (
        (["serve", "--listen", "tcp:1"], 77, "lets nobody in over TCP"),
        (["serve", "--lisen", "x"], 2, "'--lisen' is no option of it"),
        (["serve", "--help"], 0, "--read-only"),
    ):
        done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
        assert (done.returncode, said in done.stdout + done.stderr) == (code, True), done
    assert error_of("serve", "--lisen", "x")[0] == 2
