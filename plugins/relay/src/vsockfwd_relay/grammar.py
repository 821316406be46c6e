"""socat's address grammar: text → what is written. Pure, and knows no type's name: the table gives names a meaning.

`TYPE[:parameter…][,option[=value]…]`, and `A!!B` for one that is read and another that is written. The thing to
understand first is the quoting (socat(1), ADDRESS SPECIFICATIONS; what it leaves open was measured on 1.7.4): `'…'`
and `"…"` go, and what they hold is not special; `(…)`, `[…]` and `{…}` stay, and protect likewise; a backslash makes
the next character plain, or is one of C's escapes (`\\n`); quotes inside quotes or brackets stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

from vsockfwd.plugin import AddressError

_CLOSER = {"'": "'", '"': '"', "(": ")", "[": "]", "{": "}"}
_ESCAPES = {"0": "\0", "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


@dataclass(frozen=True, slots=True)
class WrittenOption:
    """One option as it is written; `value` is None where there is no `=`. `position` is where its name starts."""

    name: str
    value: str | None
    position: int


@dataclass(frozen=True, slots=True)
class Written:
    """One address as it is written: `text` of the command line's `whole` word, from `position` on."""

    type: str
    parameters: tuple[str, ...]
    options: tuple[WrittenOption, ...]
    text: str
    whole: str
    position: int

    def error(self, message: str, *, at: int | None = None, hint: str = "") -> AddressError:
        """An error about this address, pointing at a character."""
        return AddressError(message, hint=hint, text=self.whole, position=self.position if at is None else at)


class _Lexer:
    """The text, and the place where reading it stands."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def error(self, message: str, at: int, hint: str = "") -> AddressError:
        return AddressError(message, hint=hint, text=self.text, position=at)

    def skip(self, mark: str) -> bool:
        if not self.text.startswith(mark, self.at):
            return False
        self.at += len(mark)
        return True

    def until(self, *ends: str, plain: bool = False, drop_quotes: bool = True) -> str:
        """What stands before the first of `ends`, or before the end of the text. `plain`: nothing opens in it."""
        out: list[str] = []
        while self.at < len(self.text) and not self.text.startswith(ends, self.at):
            character = self.text[self.at]
            if character == "\\":
                out.append(self._escaped())
            elif character in _CLOSER and not plain:
                out.append(self._enclosed(character, drop_quotes))
            else:
                out.append(character)
                self.at += 1
        return "".join(out)

    def _escaped(self) -> str:
        if self.at + 1 == len(self.text):
            raise self.error("a backslash at the end escapes nothing", self.at, r"\\ is a backslash")
        character = self.text[self.at + 1]
        self.at += 2
        return _ESCAPES.get(character, character)

    def _enclosed(self, opener: str, drop_quotes: bool) -> str:
        start, closer = self.at, _CLOSER[opener]
        self.at += 1
        inside = self.until(closer, plain=opener == "'", drop_quotes=False)
        closed = self.skip(closer)
        if opener not in "'\"":
            return opener + inside + closer * closed  # a bracket that is never closed stands for itself
        if not closed:
            raise self.error(f"{opener} without its {closer}", start, f"\\{opener} is the character itself")
        return inside if drop_quotes else opener + inside + closer


def read(text: str) -> Written | tuple[Written, Written]:
    """Read an address; a pair stands for `A!!B`. Raises AddressError, which points at the character."""
    lexer = _Lexer(text)
    first = _single(lexer)
    if not lexer.skip("!!"):
        return first
    second = _single(lexer)
    if lexer.at < len(text):
        raise lexer.error("a third address: !! joins two", lexer.at)
    return first, second


def words(command: str) -> list[str]:
    """The words of EXEC's command line: separated by spaces, quoted once more as addresses are."""
    lexer = _Lexer(command)
    found = []
    while True:
        while lexer.skip(" "):
            pass
        found.append(lexer.until(" "))  # a space at the end has an empty word behind it
        if lexer.at == len(command):
            return found


def _single(lexer: _Lexer) -> Written:
    start = lexer.at
    name = lexer.until(":", ",", "!!")
    parameters = []
    while lexer.skip(":"):
        parameters.append(lexer.until(":", ",", "!!"))
    options = []
    while lexer.skip(","):
        options.append(_option(lexer))
    text = lexer.text[start : lexer.at]
    if not text:
        raise lexer.error("an address is missing", start)
    if "/" in name:
        name, parameters = "GOPEN", [name, *parameters]
    elif name.isascii() and name.isdigit():
        name, parameters = "FD", [name, *parameters]
    return Written(name, tuple(parameters), tuple(options), text, lexer.text, start)


def _option(lexer: _Lexer) -> WrittenOption:
    start = lexer.at
    name = lexer.until("=", ",", "!!")
    if not name:
        raise lexer.error("an option is missing after the comma", start)
    return WrittenOption(name, lexer.until(",", "!!") if lexer.skip("=") else None, start)
