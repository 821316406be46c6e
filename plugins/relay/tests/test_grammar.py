"""The address grammar: read as socat reads it."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.peers import need
from vsockfwd.plugin import AddressError
from vsockfwd_relay.grammar import Written, read, words

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=30)


def single(text: str) -> Written:
    written = read(text)
    assert isinstance(written, Written)
    return written


def escaped(text: str) -> str:
    return "".join(character if character.isalnum() else "\\" + character for character in text)


@pytest.mark.parametrize(
    ("text", "kind", "parameters", "options"),
    [
        ("TCP:h:1", "TCP", ("h", "1"), []),
        ("-", "-", (), []),
        ("-,ignoreeof", "-", (), [("ignoreeof", None)]),
        ("5", "FD", ("5",), []),
        ("./a,creat", "GOPEN", ("./a",), [("creat", None)]),
        ("TCP6:[::1]:80", "TCP6", ("[::1]", "80"), []),
        (r"UNIX:a\:b\,c", "UNIX", ("a:b,c",), []),
        ('UNIX:"a:b,c!!d"', "UNIX", ("a:b,c!!d",), []),
        ("UNIX:'a:b,c'", "UNIX", ("a:b,c",), []),
        ("SYSTEM:{a:b,c}", "SYSTEM", ("{a:b,c}",), []),
        ("X:a,b=c=d,e=", "X", ("a",), [("b", "c=d"), ("e", "")]),
        ("X,b='1,2'", "X", (), [("b", "1,2")]),
        ("PIPE:", "PIPE", ("",), []),
        ("EXEC:a(b:c", "EXEC", ("a(b:c",), []),
    ],
)
def test_an_address_means_what_it_means_to_socat(
    text: str, kind: str, parameters: tuple[str, ...], options: list[tuple[str, str | None]]
) -> None:
    written = single(text)
    assert (written.type, written.parameters) == (kind, parameters)
    assert [(option.name, option.value) for option in written.options] == options


def test_two_addresses_make_a_dual_one_and_a_third_is_refused() -> None:
    pair = read("STDIN!!OPEN:x,creat")
    assert isinstance(pair, tuple)
    assert [half.text for half in pair] == ["STDIN", "OPEN:x,creat"]
    with pytest.raises(AddressError, match="character 5: a third"):
        read("-!!5!!-")


@pytest.mark.parametrize(
    ("text", "character"),
    [("EXEC:'a", 6), ('EXEC:"a', 6), ("TCP:h:1,", 9), ("TCP:h:1,,a", 9), ("", 1), ("A!!", 4), ("a\\", 2)],
)
def test_a_mistake_is_pointed_at(text: str, character: int) -> None:
    with pytest.raises(AddressError) as raised:
        read(text)
    assert raised.value.position + 1 == character


@pytest.mark.parametrize(
    "text",
    [
        "a b", "a  b", '"a b"', "'a b'", "(a b)", "[a,b] c", "{a:b}", r"a\ b", r"a\,b", r"\"a\"", '(a"b")', "\"'a'\"",
        '"x!!y,z:w"', r"(a\)b)", "it''s", ")", r"\(", '""', " a",  "'\"a b\"'", "a ", r'a"b c"d', r"a\\nb", r"\xb",
    ],
)  # fmt: skip
def test_a_command_has_the_words_that_it_has_for_socat(text: str) -> None:
    program = need("printf")
    theirs = subprocess.run(
        [need("socat"), "-u", rf"EXEC:{program} [%s] {text}", "-"], stdout=subprocess.PIPE, check=True, timeout=10
    ).stdout.decode()
    ours = words(single(f"EXEC:{program} [%s] {text}").parameters[0])
    assert "".join(f"[{word}]" for word in ours[2:]) == theirs


@settings(max_examples=200, deadline=None)
@given(TEXT)
def test_whatever_is_escaped_arrives_as_it_was(text: str) -> None:
    written = single(f"X:{escaped(text)}:p,o={escaped(text)},q")
    assert written.parameters == (text, "p")
    assert [(option.name, option.value) for option in written.options] == [("o", text), ("q", None)]
    assert words(escaped(text)) == [text]


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("TCP:,=!\\'\"([{)]}/a1- "), max_size=20))
def test_no_text_makes_the_reader_fail_in_another_way(text: str) -> None:
    position = 0
    try:
        read(text)
    except AddressError as error:
        position = error.position
    assert 0 <= position <= len(text)
