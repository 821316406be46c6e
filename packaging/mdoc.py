"""Prose with a little Markdown → mdoc(7), one sentence a line, as man pages are written.

What is known: paragraphs, `## SECTIONS`, ``` blocks, definitions (a line in backticks, then one that begins with `: `),
spans in backticks, and page(1), which becomes a reference. Anything else is text.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator

WIDTH = 72
"""Characters of a line; mandoc minds lines of more than 80 bytes."""

_SPECIAL = {"\\": "\\e", "…": "...", "–": "\\(en", "→": "\\(->", "×": "\\(mu", "·": "\\(pc"}
_PAGE = re.compile(r"(?<![\w.`/-])([a-z][\w.-]*)\(([1-8])\)")
_PAGES_IN_BRACKETS = re.compile(r"\(((?:[a-z][\w.-]*\([1-8]\)(?:, )?)+)\)")


def escaped(text: str) -> str:
    """Text that mdoc takes as it is."""
    return "".join(_SPECIAL.get(character, character) for character in text)


def _guarded(line: str) -> str:
    return re.sub(r"^([.'])", r"\\&\1", line)


def lines_of(text: str) -> Iterator[str]:
    """A paragraph's lines: each sentence begins one, spans are bold, pages are referred to."""
    text = escaped(" ".join(text.split()))
    text = re.sub(r"`([^`]+)`", lambda span: f"\\fB{span[1].replace(' ', chr(0))}\\fR", text)
    text = _PAGES_IN_BRACKETS.sub(lambda pages: "\n.Pq " + " , ".join(_references(pages[1])) + "\n", text)
    text = _PAGE.sub(lambda page: f"\n.Xr {page[1]} {page[2]}\n", text)
    for part in text.split("\n"):
        if part.startswith((".Xr ", ".Pq ")):
            yield part
            continue
        for sentence in re.split(r"(?<=[.:;?!]) +(?=[^a-z0-9 ])", part.strip()):
            for line in textwrap.wrap(sentence, WIDTH, break_long_words=False, break_on_hyphens=False):
                yield _guarded(line.replace("\0", " "))


def _references(text: str) -> list[str]:
    return [f"Xr {name} {section}" for name, section in _PAGE.findall(text)]


def _joined(lines: Iterable[str]) -> list[str]:
    """References with the punctuation that follows them on their line, as mdoc wants it."""
    out: list[str] = []
    for line in lines:
        mark = re.match(r"[.,;:)]+(?= |$)", line.removeprefix("\\&"))
        if mark and out and out[-1].startswith((".Xr ", ".Pq ")):
            out[-1] += " " + " ".join(mark[0])
            line = line.removeprefix("\\&")[mark.end() :].strip()
            if not line:
                continue
        out.append(line)
    return out


def paragraph(text: str) -> list[str]:
    return _joined(lines_of(text))


def plain(text: str) -> list[str]:
    """A paragraph in which nothing is marked."""
    return [_guarded(line) for line in textwrap.wrap(escaped(text), WIDTH, break_long_words=False)]


def definitions(items: Iterable[tuple[str, str]]) -> list[str]:
    """A tagged list: terms in mdoc already, meanings as prose."""
    lines = [".Bl -tag -width Ds"]
    for term, meaning in items:
        lines += [f".It {term}", *paragraph(meaning)]
    return [*lines, ".El"]


def page(markdown: str) -> list[str]:
    """Lines of mdoc; what stands in front of the first section has no heading."""
    out: list[str] = []
    blocks = re.split(r"\n{2,}", markdown.strip())
    number = 0
    while number < len(blocks):
        block = blocks[number]
        if block.startswith("```"):
            while not block.rstrip().endswith("```") or block.count("```") < 2:
                number += 1
                block += "\n\n" + blocks[number]
            body = block.strip().removeprefix("```").removesuffix("```").strip("\n")
            out += [".Bd -literal -offset indent", *(_guarded(escaped(line)) for line in body.split("\n")), ".Ed"]
        elif re.match(r"`[^\n]*`\n: ", block):
            items = []
            while number < len(blocks) and re.match(r"`[^\n]*`\n: ", blocks[number]):
                term, _, meaning = blocks[number].partition("\n: ")
                items.append(("Cm " + _words(term.strip("`")), meaning))
                number += 1
            out += definitions(items)
            continue
        elif block.startswith("## "):
            heading, _, rest = block.partition("\n")
            out.append(f".Sh {heading[3:]}")
            if rest.strip():
                out += see_also(rest) if heading == "## SEE ALSO" else paragraph(rest)
        else:
            if out and not out[-1].startswith(".Sh"):
                out.append(".Pp")
            out += [block] if block.startswith("@") else paragraph(block)
        number += 1
    return out


def _words(term: str) -> str:
    """A term whose characters mdoc does not take for its own punctuation."""
    return " ".join(
        f"\\&{word}" if re.fullmatch(r"[.,:;()\[\]?!|-]+", word) else escaped(word) for word in term.split(" ")
    )


def see_also(text: str) -> list[str]:
    """The pages, in the order that mandoc wants: by section, then by name."""
    found = sorted(set(_PAGE.findall(text)), key=lambda each: (each[1], each[0]))
    return [
        f".Xr {name} {section}" + (" ,"[: 2 * (number < len(found) - 1)])
        for number, (name, section) in enumerate(found)
    ]
