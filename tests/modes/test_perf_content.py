"""What perf checks, counts and shows, without a socket: a wrong byte is found at its offset, and told as what it is."""

from __future__ import annotations

import json
import re
from array import array

import msgspec
import pytest

from vsockfwd.errors import VerificationFailed
from vsockfwd.modes.content import BLOCK, Check, Content, content
from vsockfwd.modes.figures import Connections, Findings, Flow, RoundTrips, Throughput, spread
from vsockfwd.modes.picture import Look, amount, at_work, picture, rate, span

SEED = (1 << 62) - 2
WHOLE = content(SEED, 0, 3 * BLOCK + 100)


def wrong(came: bytes, piece: int) -> str:
    """The complaint about what came, which came in pieces of that size."""
    check = Check(SEED, "there")
    with pytest.raises(VerificationFailed) as caught:
        for at in range(0, len(came), piece):
            check.feed(memoryview(came)[at : at + piece])
    return str(caught.value)


@pytest.mark.parametrize("piece", [1, 7, 1000, BLOCK, 1 << 20])
def test_what_was_sent_in_any_pieces_is_right_in_any_others(piece: int):
    made = Content(SEED, piece)
    sent = bytearray()
    while len(sent) < BLOCK + 100:
        sent += made.next(piece)
    assert sent == content(SEED, 0, len(sent))
    check = Check(SEED, "there")
    for at in range(0, len(sent), 999):
        check.feed(memoryview(sent)[at : at + 999])
    assert check.position == made.position == len(sent)


@pytest.mark.parametrize("piece", [1000, 1 << 20])
@pytest.mark.parametrize("at", [0, 7, 8, 70_000, BLOCK - 1, 2 * BLOCK + 3])
def test_a_bit_that_flipped_is_found_where_it_is(at: int, piece: int):
    came = bytearray(WHOLE)
    came[at] ^= 0x10
    told = wrong(bytes(came), piece)
    assert told.startswith(f"there: byte {at} is {came[at]:#04x} where {WHOLE[at]:#04x} was sent")
    assert "1 byte changed on the way" in told or at % BLOCK in (7, 3)  # in a number: it may be another's block as well


@pytest.mark.parametrize(
    ("came", "told"),
    [
        (WHOLE[:70_000] + WHOLE[70_001:], "byte 70000 .* as if 1 byte were lost"),
        (WHOLE[:70_000] + WHOLE[69_999:], "byte 70000 .* as if 1 byte came twice"),
        (WHOLE[: BLOCK - 5] + WHOLE[BLOCK + 5 :], "byte 65531 .* as if 10 bytes were lost"),
        (WHOLE[:BLOCK] + WHOLE[2 * BLOCK :], "as if 65536 bytes were lost"),
        (WHOLE[:BLOCK] + WHOLE, "as if 65536 bytes came twice"),
        (WHOLE[:70_000] + bytes(200) + WHOLE[70_200:], "byte 70000 is 0x00 .* 200 bytes changed on the way"),
        (content(SEED // 2, 0, BLOCK), "byte 0 "),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "byte 0 is 0x53"),
    ],
    ids=["dropped", "doubled", "over a block's edge", "block lost", "block twice", "zeroed", "another's", "stranger"],
)
def test_what_went_wrong_is_told(came: bytes, told: str):
    for piece in (1000, 1 << 20):
        message = wrong(came, piece)
        assert re.search(told, message), message


def test_percentiles_are_times_that_were_measured():
    found = spread(array("d", [float(n) for n in range(1000, 0, -1)]))
    assert found.count == 1000
    assert (found.min, found.median, found.p90, found.p99, found.p99_9, found.max) == (1, 500, 900, 990, 999, 1000)
    assert spread([3.0]).p99_9 == 3


# --- what is shown


def found(**more: object) -> Findings:
    up = Flow(4 << 30, 2.0, 2 << 30, [3 << 30, 1 << 30], 0.1, [1e9, 2e9, 4e9, 0.0])
    down = Flow(1 << 30, 2.0, 1 << 29, [1 << 29, 1 << 29], 0.1, [5e8])
    times = spread([50e-6, 60e-6, 70e-6, 80e-6, 2.5e-3])
    return Findings(
        "unix:/a.sock", "agent", 2, 1 << 20, True,
        up=Throughput(up, None, 0.8, 1.2, True),
        both=Throughput(up, down, 1.0, 1.5, False),
        latency=RoundTrips(64, 2.0, times, True),
        connections=Connections(times, 900.0, 16, 1995, 1.0, 1995.0, 0.4, 0.6, True),
        complete=True,
    )  # fmt: skip


PLAIN = """\
unix:/a.sock (agent): 2 streams, messages of 1 MiB, every byte checked
up                2.00 GiB/s  each 512 MiB/s to 1.50 GiB/s
both at once ↑    2.00 GiB/s  each 512 MiB/s to 1.50 GiB/s  cut short
both at once ↓     512 MiB/s  each 256 MiB/s to 256 MiB/s  cut short
CPU s a GiB, here + agent: up 0.20 + 0.30, both 0.20 + 0.30
round trip of 64 B, 5 of them
  min                  50 µs
  median               70 µs
  p90                2.50 ms
  p99                2.50 ms
  p99.9              2.50 ms
  max                2.50 ms
connections: 2,000 opened, used and closed
  one at a time        900/s
  16 at a time       1,995/s
  one takes 70 µs (median), 2.50 ms (p99); CPU 200 µs here + 300 µs agent"""

DRAWN = """\
unix:/a.sock (agent): 2 streams, messages of 1 MiB, every byte checked
up                2.00 GiB/s  █████████████████  each 512 MiB/s to 1.50 GiB/s
both at once ↑    2.00 GiB/s  █████████████████  each 512 MiB/s to 1.50 GiB/s  cut short
both at once ↓     512 MiB/s  ████▎              each 256 MiB/s to 256 MiB/s  cut short"""


def test_a_pipe_gets_every_figure_in_words():
    assert "\n".join(picture(found(), Look())) == PLAIN


def test_a_terminal_gets_bars_and_no_line_is_wider_than_it():
    for width in (40, 60, 80, 90, 132, 200):
        look = Look(width, bars=True)
        lines = picture(found(), look)
        figures = [line[:28].rstrip() for line in lines if line.startswith(("up", "both"))]
        assert figures == [line[:28].rstrip() for line in PLAIN.split("\n")[1:4]]
        assert all(len(line) <= max(width, 90) for line in lines)
        assert any("█" in line for line in lines)
    assert "\n".join(picture(found(), Look(88, bars=True))).startswith(DRAWN)


def test_colours_change_nothing_but_colours():
    coloured = picture(found(), Look(100, bars=True, colour=True))
    assert any("\x1b[" in line for line in coloured)
    plain = picture(found(), Look(100, bars=True))
    assert [re.sub("\x1b\\[[0-9]*m", "", line).rstrip() for line in coloured] == [line.rstrip() for line in plain]


def test_a_terminal_of_ascii_gets_ascii():
    for look in (Look(100, bars=True, ascii=True), Look(ascii=True)):
        text = "\n".join(picture(found(), look))
        assert text.isascii()


def test_a_line_about_a_part_at_work_fits_the_terminal():
    part = found().both
    assert part is not None
    for width in (40, 80):
        assert len(at_work("both", part, Look(width, bars=True))) < width
    assert at_work("both", part, Look(80, bars=True)) == ("both       0 B/s ▃▅█▁                  476.8 MiB/s █")
    assert at_work("latency", None, Look(80)) == "latency …"


def test_a_hostile_name_does_not_reach_the_terminal():
    named = msgspec.structs.replace(found(), target="unix:/a\x1b[2J")
    assert "\x1b" not in "\n".join(picture(named, Look()))


def test_figures_are_as_people_read_them():
    assert [amount(n) for n in (0, 64, 1024, 1536, 1 << 20, 5 << 30)] == [
        "0 B", "64 B", "1 KiB", "1.5 KiB", "1 MiB", "5.00 GiB",
    ]  # fmt: skip
    assert [rate(n) for n in (0.4, 1e6, 2 << 30)] == ["0 B/s", "976.6 KiB/s", "2.00 GiB/s"]
    assert [span(n) for n in (5e-6, 0.0012, 1.5)] == ["5 µs", "1.20 ms", "1.50 s"]


def test_programs_find_each_field_where_it_was():
    """Version 1: what is here may gain fields beside it, and lose none."""
    told = json.loads(msgspec.json.encode(found()))
    flow = {"bytes", "seconds", "bytes_per_second", "streams", "interval", "intervals"}
    moved = {"up", "down", "cpu_seconds", "agent_cpu_seconds", "complete"}
    times = {"count", "min", "median", "p90", "p99", "p99_9", "max"}
    assert told["event"] == "perf"
    assert told["version"] == 1
    assert told.keys() >= {
        "target", "peer", "streams", "size", "checked", "up", "down", "both", "latency", "connections", "complete",
        "error",
    }  # fmt: skip
    assert told["both"].keys() >= moved
    assert told["both"]["down"].keys() >= flow
    assert told["latency"].keys() >= {"size", "seconds", "spread", "complete"}
    assert told["latency"]["spread"].keys() >= times
    assert told["connections"]["one"].keys() >= times
    assert told["connections"].keys() >= {
        "one_per_second", "at_once", "count", "seconds", "per_second", "cpu_seconds", "agent_cpu_seconds", "complete",
    }  # fmt: skip
    assert told["down"] is None
