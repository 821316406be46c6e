"""How ssh spells forwards (ssh(1)): `-L` and `-R`, `-D`, `-W`; text in, addresses out.

Beyond ssh: either end may be a whole address of our grammar, written in brackets as `[vsock:1:5000]`.
"""

from __future__ import annotations

import ipaddress
import re

from vsockfwd.plugin import SCHEMES, Address, AddressError, Word, parse_stream, split_spec


def parse_forward(spec: str) -> tuple[Address, Address]:
    """Read `-L`'s `[bind:]port:host:hostport`, either end of which may be a UNIX path, as ssh spells it.

    Beyond ssh: either end may be a whole address of this grammar, written in brackets as `[vsock:1:5000]`.
    Raises AddressError, which points at the character.
    """
    words = split_spec(spec)
    listen_words, connect_words = _divide(spec, words)
    return _end(spec, listen_words, listening=True), _end(spec, connect_words, listening=False)


def parse_bind(spec: str) -> Address:
    """Read what stands behind `-D`: `[bind:]port`, a UNIX path, or an address in brackets. Raises AddressError."""
    words = split_spec(spec)
    if len(words) > 2:
        raise AddressError(
            "[bind:]port is due", text=spec, position=0, hint="or a UNIX path, or an address in brackets"
        )
    return _end(spec, words, listening=True)


def parse_connect(spec: str) -> Address:
    """Read what stands behind `-W`: `host:port`, a UNIX path, or an address in brackets. Raises AddressError."""
    words = split_spec(spec)
    if len(words) > 2 or (len(words) == 1 and not _whole(words[0])):
        raise AddressError("host:port is due", text=spec, position=0, hint="or a UNIX path, or an address in brackets")
    return _end(spec, words, listening=False)


def _whole(word: Word) -> bool:
    """Whether a word is an end by itself: a path, or an address of the grammar in brackets."""
    text = word[0]
    if not text.startswith("["):
        return text.startswith("/")
    try:
        ipaddress.IPv6Address(text[1:-1])
    except ValueError:
        return text[1:].partition(":")[0] in SCHEMES
    return False


def _divide(spec: str, words: list[Word]) -> tuple[list[Word], list[Word]]:
    hint = "-L takes [bind:]port:host:hostport; either end may be a UNIX path"
    if _whole(words[0]):
        cut = 1
    elif len(words) > 1 and _whole(words[-1]):
        cut = len(words) - 1
    else:
        cut = len(words) - 2
    near, far = words[:cut], words[cut:]
    if not 1 <= len(near) <= 2 or not 1 <= len(far) <= 2 or (len(far) == 1 and not _whole(far[0])):
        raise AddressError("not a forward", text=spec, position=0, hint=hint)
    return near, far


def _end(spec: str, words: list[Word], *, listening: bool) -> Address:
    if len(words) == 1 and _whole(words[0]):
        text = words[0][0]
        address = text[1:-1] if text.startswith("[") else "unix:" + text.replace("%", "%25").replace(",", "%2C")
        return parse_stream(address)
    if len(words) == 2 and words[0][0] in ("", "*") and listening:
        host = "*:"  # ssh: an empty bind address, or *, means every interface
    else:
        host = f"{words[0][0]}:" if len(words) == 2 and words[0][0] != "localhost" else ""
    text, at = words[-1]
    if not re.fullmatch("[0-9]{1,5}", text) or int(text) > 65535:
        raise AddressError(f"{text!r} is no port", text=spec, position=at)
    try:
        return parse_stream(f"tcp:{host}{int(text)}")
    except AddressError as error:
        raise AddressError(error.message.partition(": ")[2], hint=error.hint, text=spec, position=words[0][1]) from None
