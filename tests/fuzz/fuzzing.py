"""The process that fuzzes: `python -m tests.fuzz.fuzzing TARGET SECONDS FOLDER`, started by `python -m tests.fuzz`.

FOLDER has `corpus`, and `found` for what ends badly. Root's rights are given up first.
"""

from __future__ import annotations

import importlib.util
import os
import random
import resource
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests import guard

guard.install()

MEMORY = 1024
"""MiB that a fuzzer's process may hold; it holds some 150."""

LONGEST = 8192
"""Bytes of an input."""

NOBODY = 65534

PACKAGES = ["vsockfwd", "vsockfwd_copy", "vsockfwd_dgram", "vsockfwd_relay"]


def main(target: str, seconds: int, folder: Path) -> None:
    """Fuzz until the time is up, or something is found."""
    if importlib.util.find_spec("atheris"):
        import atheris

        with atheris.instrument_imports(include=PACKAGES):
            from tests.fuzz import targets
        warm_up(targets.TARGETS[target], folder)
        give_up_rights()
        arguments = [
            sys.argv[0], f"-max_total_time={seconds}", "-print_final_stats=1", f"-timeout={targets.SECONDS}",
            f"-rss_limit_mb={MEMORY}", f"-max_len={LONGEST}", f"-artifact_prefix={folder}/found/", f"{folder}/corpus",
        ]  # fmt: skip
        atheris.Setup(arguments, targets.TARGETS[target])
        atheris.Fuzz()
    else:
        from tests.fuzz import targets

        warm_up(targets.TARGETS[target], folder)
        give_up_rights()
        at_random(lambda data: targets.attempt(target, data), seconds, folder)


def warm_up(attempt: Callable[[bytes], None], folder: Path) -> None:
    """Import what is imported at first use: without rights that may fail."""
    for path in sorted((folder / "corpus").iterdir()):
        attempt(path.read_bytes())


def give_up_rights() -> None:
    """What an input may name is nobody's to touch."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)


def at_random(attempt: Callable[[bytes], None], seconds: int, folder: Path) -> None:
    """Spoil the seeds at random; tells as libFuzzer does."""
    seeds = [path.read_bytes() for path in sorted((folder / "corpus").iterdir())]
    chance, executions, until = random.Random(), 0, time.monotonic() + seconds
    while time.monotonic() < until:
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.randint(0, 6)):
            at, size = chance.randint(0, len(data)), chance.randint(0, 8)
            data[at : at + size] = chance.choice(
                [chance.randbytes(size), chance.choice(seeds)[at : at + 64], bytes(data[at : at + size]) * 2, b""]
            )
        executions += 1
        try:
            attempt(bytes(data[:LONGEST]))
        except BaseException:  # noqa: BLE001 - whatever it is, it is what was looked for
            (folder / "found" / f"crash-{executions}").write_bytes(data)
            traceback.print_exc()
            break
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"stat::number_of_executed_units: {executions}\nstat::peak_rss_mb: {peak}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
