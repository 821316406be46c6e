"""The typer side of the command line: a group whose commands are entry points, imported when they are typed."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Collection
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperGroup

from vsockfwd import __version__
from vsockfwd.cli.call import PROGRAM
from vsockfwd.cli.call import call as call_command
from vsockfwd.cli.option import COMMON, declared
from vsockfwd.discovery import command_names, load_command
from vsockfwd.errors import UsageError
from vsockfwd.plugin import takes_argv

SHORT = 64
"""Characters that a command's line has beside its name, on a terminal of 80."""

SETTINGS = {"help_option_names": ["-h", "--help"]}

_WORDS_OF_ITS_OWN = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}

# typer brings its own copy of click in some versions: its classes are reached through what it exports.
_ClickUsageError: type[Any] = typer.BadParameter.__mro__[1]


class Commands(TyperGroup):
    """Commands by entry point."""

    def list_commands(self, ctx: Any) -> list[str]:
        return command_names()

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        try:
            function = load_command(cmd_name)
        except UsageError as error:
            if cmd_name not in command_names():
                raise
            function = _broken(error)
        return _typer_command(cmd_name, function)


def _broken(error: UsageError) -> Callable[..., int]:
    """A command that is installed and does not import: listed as what it is, and told why when it is called."""

    @takes_argv
    def broken(invocation: object, words: list[str]) -> int:
        raise error

    broken.__doc__ = f"Broken: {error.message}"
    return broken


def _typer_command(name: str, function: Callable[..., int | None]) -> Any:
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    if getattr(function, "takes_argv", False):
        told: dict[str, Any] = {"help": inspect.getdoc(function), "short_help": _in_short(function)}
        app.command(name, context_settings=_WORDS_OF_ITS_OWN, **told)(_of_words(function))
    else:
        app.command(name, context_settings=SETTINGS, short_help=_in_short(function))(_with_common_flags(function))
    command: Any = typer.main.get_command(app)
    if (through := getattr(function, "runs_command_with", None)) is not None:
        read = command.parse_args
        command.parse_args = lambda ctx, words: read(ctx, _with_command_apart(command, words, through))
    return command


def _in_short(function: Callable[..., Any]) -> str:
    """What a line of a list has room for: the first sentence to its colon or semicolon, or else to a comma."""
    sentence = re.split(r"[:;]|\. |\.?$", (inspect.getdoc(function) or "").partition("\n")[0])[0]
    return sentence if len(sentence) <= SHORT else sentence[:SHORT].rpartition(",")[0] or sentence


def _with_command_apart(command: Any, words: list[str], through: Collection[str]) -> list[str]:
    """The words with `--` in front of the second that is no option, as ssh takes it: what follows is not for us.

    Only behind one of the options `through`, by which the first such word is a target and the second a program.
    """
    options = [each for each in command.params if each.param_type_name == "option"]
    valued = {name for each in options if not (each.is_flag or each.count) for name in each.opts}
    plain, apart, number = 0, False, 0
    while number < len(words):
        word = words[number]
        if word == "--":
            break
        if word.startswith("-") and word != "-":
            name = word if word.startswith("--") else word[:2]
            apart = apart or name in through
            number += name in valued and word == name
        else:
            plain += 1
            if apart and plain == 2:
                return [*words[:number], "--", *words[number:]]
        number += 1
    return words


def _with_common_flags(function: Callable[..., int | None]) -> Callable[..., int]:
    """The function with the common flags in its signature and its invocation made from them."""

    def call(verbose: int, quiet: bool, json: bool, log_format: str | None, **own: Any) -> int:
        return call_command(function, verbosity=verbose, quiet=quiet, json=json, log_format=log_format, **own)

    signature = inspect.signature(function, eval_str=True)
    own = list(signature.parameters.values())[1:]
    return _disguise(call, function, [_for_typer(parameter) for parameter in (*own, *COMMON.values())])


def _for_typer(parameter: inspect.Parameter) -> inspect.Parameter:
    """A parameter as typer wants it: with its own kind of option in place of ours."""
    option = declared(parameter)
    if option is None:
        return parameter
    names = option.names or (f"--{parameter.name.replace('_', '-')}",)
    typers = typer.Option(*names, metavar=option.metavar, help=option.help, count=option.count)
    return parameter.replace(annotation=Annotated[get_args(parameter.annotation)[0], typers])


def _of_words(function: Callable[..., int | None]) -> Callable[..., int]:
    """For --help: a command that reads its own words takes any."""

    def call(words: list[str] | None = None) -> int:
        return call_command(function, words or [])

    return _disguise(call, function, list(inspect.signature(call, eval_str=True).parameters.values()))


def _disguise(
    call: Callable[..., int], function: Callable[..., Any], parameters: list[inspect.Parameter]
) -> Callable[..., int]:
    call.__doc__ = inspect.getdoc(function)
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def _print_version(value: bool) -> None:
    if value:
        print(f"{PROGRAM} {__version__}")
        raise typer.Exit


def group() -> Any:
    """The whole command line as a click group."""
    app = typer.Typer(
        name=PROGRAM, cls=Commands, context_settings=SETTINGS, add_completion=False, rich_markup_mode=None,
        pretty_exceptions_enable=False, invoke_without_command=True,
    )  # fmt: skip

    @app.callback()
    def root(
        ctx: typer.Context,
        version: Annotated[
            bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version")
        ] = False,
    ) -> None:
        """Move bytes between a virtual machine and its host over vsock: forwards, copies, relays, datagrams."""
        if ctx.invoked_subcommand is None:
            print(ctx.get_help())
            raise typer.Exit(2)

    return typer.main.get_command(app)


def run_group(words: list[str]) -> int:
    """Parse a whole command line and run it."""
    return _run(group(), words, PROGRAM)


def run_command(name: str, function: Callable[..., int | None], words: list[str]) -> int:
    """The same for the words behind a command's name, without a look at what other commands there are."""
    return _run(_typer_command(name, function), words, f"{PROGRAM} {name}")


def _run(command: Any, words: list[str], name: str) -> int:
    """Parse and run; a usage error of the parser's becomes ours."""
    try:
        code = command.main(words, prog_name=name, standalone_mode=False)
    except _ClickUsageError as error:
        context = error.ctx
        path = context.command_path if context is not None else name
        mistyped = getattr(error, "option_name", "")
        if mistyped and context is not None:
            known = [name for each in context.command.params for name in each.opts if name.startswith("-")]
            close = difflib.get_close_matches(mistyped, known, 1, 0.75)
            hint = f"did you mean {close[0]}?" if close else f"{path} --help"
            raise UsageError(f"{path.removeprefix(f'{PROGRAM} ')} has no option {mistyped}", hint=hint) from None
        raise UsageError(_one_line(error.format_message()), hint=f"{path} --help") from None
    except typer.Exit as done:
        return done.exit_code
    except typer.Abort:
        return 130
    return code if isinstance(code, int) else 0


def _one_line(text: str) -> str:
    text = " ".join(text.split()).rstrip(".")
    return text[:1].lower() + text[1:]
