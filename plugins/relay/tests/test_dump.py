"""-v and -x: the same picture that socat gives."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.peers import need
from vsockfwd_relay.dump import Dump

DATA = b"hello\nworld\r, this is\\ a long\tline of text \xff\0"


@pytest.mark.parametrize("flags", [["-v"], ["-x"], ["-v", "-x"]])
def test_a_dump_reads_like_socats(flags: list[str]) -> None:
    done = subprocess.run(
        [need("socat"), "-u", *flags, "-", "OPEN:/dev/null"], input=DATA, stderr=subprocess.PIPE, check=True, timeout=10
    )
    shown: list[str] = []
    dump = Dump(">", text="-v" in flags, hexadecimal="-x" in flags, write=shown.append, now=lambda: 0.0)
    dump(memoryview(DATA))

    def timeless(text: str) -> str:
        return re.sub(r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d+", "TIME", text)

    assert timeless("".join(shown)) == timeless(done.stderr.decode())


def test_places_in_the_stream_are_counted_on() -> None:
    shown: list[str] = []
    dump = Dump("<", text=True, hexadecimal=False, write=shown.append, now=lambda: 0.5)
    dump(memoryview(b"abc"))
    dump(memoryview(b"de"))
    assert shown[1].endswith("length=2 from=3 to=4\nde")
    assert re.match(r"< \d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.500000  length", shown[0])
