"""Whether kill -9 at any moment of a copy, then the same command again, ever leaves a wrong byte or a half file.

    python -m bench.copy_kills [KILLS [SEED]]

A tree of small, large and sparse files, a third of which stand at the destination in another version, is copied with
--resume through an agent on a UNIX socket, both ways. The agent or the client is killed at a random moment; then every
file at the destination must be the old one or the new one, whole. The command is given again (and, one time in three,
that is killed too), until it comes to its end: then source and destination must be the same, for diff(1) too, holes
must be holes, and no temporary name may be left. While a copy runs, the sizes under final names are looked at all the
time.

Prints a table; exits with 1 where anything was wrong. A kill that came after the end is not counted.
"""

from __future__ import annotations

import contextlib
import filecmp
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.harness import accepts, setting, vsockfwd

KILLS = 200
SMALL = 400
MEDIUM = 40
LARGE = (24 << 20, 48 << 20, 64 << 20)
SPARSE = 256 << 20
AGAIN = 1 / 3
"""How often the command that is given again is killed too."""

DEADLINE = 120.0
"""Seconds after which a command hangs."""


def make_source(tree: Path, chance: random.Random) -> None:
    for folder in ("small", "small/deep", "medium", "large", "sparse"):
        (tree / folder).mkdir(parents=True)
    for number in range(SMALL):
        folder = "small/deep" if number % 2 else "small"
        (tree / folder / f"file {number}").write_bytes(chance.randbytes(chance.randrange(8192)))
    for number in range(MEDIUM):
        (tree / "medium" / f"{number}").write_bytes(chance.randbytes(chance.randrange(1 << 16, 1 << 20)))
    for size in LARGE:
        (tree / "large" / f"{size}").write_bytes(chance.randbytes(1 << 20) * (size >> 20) + chance.randbytes(4097))
    for number in range(3):
        with (tree / "sparse" / f"{number}").open("wb") as file:
            for _ in range(8):
                file.seek(chance.randrange(SPARSE - (3 << 20)))
                file.write(chance.randbytes(chance.randrange(2 << 20)))
            file.truncate(SPARSE)
    for number in range(20):
        (tree / "small" / f"link {number}").symlink_to(f"deep/file {number}")


def make_old(tree: Path, old: Path) -> None:
    """Another version of each third file, of another size."""
    for number, path in enumerate(sorted(path for path in tree.rglob("*") if path.is_file() and not path.is_symlink())):
        if number % 3 == 0:
            there = old / path.relative_to(tree)
            there.parent.mkdir(parents=True, exist_ok=True)
            there.write_bytes(f"the old {path.name}".encode() * 99)


@dataclass
class Findings:
    """What was counted, by who was killed; and what was wrong, in words."""

    kills: Counter[str] = field(default_factory=Counter)
    early: Counter[str] = field(default_factory=Counter)
    """Nothing had arrived yet."""
    parts: Counter[str] = field(default_factory=Counter)
    """A part was left to go on with."""
    ended: dict[str, Counter[int]] = field(default_factory=dict)
    """Exit codes of clients whose agent was killed."""
    wrong: list[str] = field(default_factory=list)
    checks: int = 0


class Site:
    """A source, a destination, and an agent that lives until it is killed."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.folder = folder
        self.source, self.old, self.sink = folder / "source", folder / "old", folder / "sink"
        make_source(self.source, chance)
        make_old(self.source, self.old)
        self.sizes = {
            path.relative_to(self.source): {path.stat().st_size}
            for path in self.source.rglob("*")
            if path.is_file() and not path.is_symlink()
        }
        for path, sizes in self.sizes.items():
            if (self.old / path).exists():
                sizes.add((self.old / path).stat().st_size)
        self.bytes = sum(path.stat().st_blocks * 512 for path in self.source.rglob("*") if not path.is_symlink())
        self.agent: subprocess.Popen[bytes] | None = None

    def reset(self) -> None:
        shutil.rmtree(self.sink, ignore_errors=True)
        shutil.copytree(self.old, self.sink)

    def start_agent(self) -> None:
        path = str(self.folder / "agent.sock")
        if self.agent is not None and self.agent.poll() is None:
            return
        self.agent = subprocess.Popen(vsockfwd("serve", "-q", "--listen", f"unix:{path}"), stdin=subprocess.DEVNULL)
        ready = accepts(socket.AF_UNIX, path)
        end = time.monotonic() + DEADLINE
        while not ready():
            if time.monotonic() > end:
                raise RuntimeError("the agent does not start")
            time.sleep(0.01)

    def stop_agent(self) -> None:
        if self.agent is not None:
            self.agent.kill()
            self.agent.wait()

    def start_copy(self, way: str) -> subprocess.Popen[bytes]:
        target = f"[unix:{self.folder}/agent.sock]:"
        near, far = (self.source, f"{target}{self.sink}") if way == "put" else (f"{target}{self.source}", self.sink)
        command = vsockfwd("cp", "-r", "-P", "--resume", "-T", str(near), str(far))
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def finish(self, client: subprocess.Popen[bytes]) -> tuple[int, str]:
        """Let a copy come to its end: its exit code, and the last that it said."""
        _, told = client.communicate(timeout=DEADLINE)
        return client.returncode, told.decode(errors="replace").strip().rpartition("\n")[2]

    # --- what must hold

    def half_files(self) -> list[str]:
        """Files under their final names that are neither the old one nor the new one."""
        filecmp.clear_cache()  # it goes by size and mtime
        return [
            str(path)
            for path in self.sizes
            if (self.sink / path).exists()
            and not filecmp.cmp(self.sink / path, self.source / path, shallow=False)
            and not ((self.old / path).exists() and filecmp.cmp(self.sink / path, self.old / path, shallow=False))
        ]

    def odd_sizes(self) -> list[str]:
        found = []
        for path, sizes in self.sizes.items():
            with contextlib.suppress(OSError):
                size = (self.sink / path).stat().st_size
                if size not in sizes:
                    found.append(f"{path}: {size} bytes")
        return found

    def signature(self) -> set[tuple[Path, int, int]]:
        """Changes with everything that arrives."""
        return {(path, path.lstat().st_ino, path.lstat().st_blocks) for path in self.sink.rglob("*")}

    def temporaries(self) -> list[str]:
        return [path.name for path in self.sink.rglob("*") if path.name.startswith(".vsockfwd.")]

    def differences(self) -> list[str]:
        """What is not the same after the end."""
        done = subprocess.run(
            ["diff", "-rq", "--no-dereference", self.source, self.sink], capture_output=True, text=True, check=False
        )
        found = done.stdout.splitlines() + done.stderr.splitlines()
        for path in self.source.rglob("*"):
            one, other = path.lstat(), (self.sink / path.relative_to(self.source)).lstat()
            same = (stat.S_IMODE(one.st_mode), one.st_mtime_ns) == (stat.S_IMODE(other.st_mode), other.st_mtime_ns)
            if not same:
                found.append(f"{path.name}: mode or mtime")
            if stat.S_ISREG(one.st_mode) and other.st_blocks > one.st_blocks:
                found.append(f"{path.name}: {other.st_blocks} blocks instead of {one.st_blocks}")
        return found + [f"left behind: {name}" for name in self.temporaries()]


@contextlib.contextmanager
def watching(site: Site, findings: Findings) -> Iterator[None]:
    """Look at the sizes under final names while a copy runs."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.002):
            findings.wrong += site.odd_sizes()
            findings.checks += 1

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def kill_once(site: Site, way: str, victim: str, delay: float, findings: Findings) -> bool:
    """Start the copy and kill one of the two; whether it was in time."""
    name = f"{way}, {victim}"
    site.start_agent()
    assert site.agent is not None
    before = site.signature()
    client = site.start_copy(way)
    with watching(site, findings):
        time.sleep(delay)
        (client if victim == "client" else site.agent).send_signal(signal.SIGKILL)
        if victim == "agent":
            site.agent.wait()
        code, said = site.finish(client)
    if code == 0:
        return False
    findings.kills[name] += 1
    if victim == "agent":
        findings.ended.setdefault(name, Counter())[code] += 1
        if code < 0 or "Traceback" in said:
            findings.wrong.append(f"{name}: the client ended with {code}: {said}")
    findings.wrong += [f"half a file after a kill ({name}): {path}" for path in site.half_files()]
    left = site.temporaries()
    findings.parts[name] += any(one.endswith(".part") for one in left)
    findings.early[name] += site.signature() == before
    return True


def usual(site: Site) -> dict[str, tuple[float, float]]:
    """Seconds until something arrives, and until all has, when nobody is killed."""
    found = {}
    for way in ("put", "get"):
        site.reset()
        site.start_agent()
        before = site.signature()
        began = time.monotonic()
        client = site.start_copy(way)
        while site.signature() == before and client.poll() is None:
            time.sleep(0.001)
        first = time.monotonic() - began
        code, said = site.finish(client)
        found[way] = (first, time.monotonic() - began)
        if code or (different := site.differences()):
            raise RuntimeError(f"{way}: {code} {said} {different if not code else ''}")
    return found


def run(site: Site, kills: int, chance: random.Random) -> Findings:
    findings = Findings()
    seconds = usual(site)
    print(f"usually: {seconds}", file=sys.stderr)
    while sum(findings.kills.values()) < kills and len(findings.wrong) < 50:
        way, victim = chance.choice(["put", "get"]), chance.choice(["agent", "client"])
        site.reset()
        while True:
            victim = chance.choice(["agent", "client"])
            # Much of the time goes by before the first byte: Python starts, and the agent is logged in to.
            first, last = seconds[way]
            if not kill_once(site, way, victim, chance.uniform(0.9 * first, last), findings):
                break
            if chance.random() > AGAIN:
                break
        site.start_agent()
        code, said = site.finish(site.start_copy(way))
        if code:
            findings.wrong.append(f"{way}: the command given again ended with {code}: {said}")
        findings.wrong += [f"{way}, after {victim}: {one}" for one in site.differences()]
        done = sum(findings.kills.values())
        print(f"\r{done} kills, {len(findings.wrong)} wrong", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return findings


def main(kills: int = KILLS, seed: int | None = None) -> tuple[str, bool]:
    """Returns Markdown, and whether all was well."""
    seed = random.randrange(1 << 32) if seed is None else seed
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="vsockfwd-kills-", dir="/dev/shm") as name:
        site = Site(Path(name), chance)
        try:
            findings = run(site, kills, chance)
        finally:
            site.stop_agent()
        megabytes = site.bytes / 1e6
    lines = [
        "## Copies that are killed",
        "",
        f"{setting()}. Seed {seed}. {SMALL + MEDIUM + len(LARGE) + 3} files, {megabytes:.0f} MB of data; "
        f"sizes under final names were looked at {findings.checks:,} times meanwhile.",
        "",
        "| way, who was killed | kills | before anything had come | with a part left | the other side's exit code |",
        "|---|---|---|---|---|",
    ]
    for name in sorted(findings.kills):
        codes = ", ".join(f"{code}: {count}" for code, count in sorted(findings.ended.get(name, {}).items()))
        counts = f"{findings.kills[name]} | {findings.early[name]} | {findings.parts[name]}"
        lines.append(f"| {name} | {counts} | {codes or 'an agent goes on'} |")
    lines += ["", f"Wrong: {len(findings.wrong)}.", *(f"- {one}" for one in findings.wrong[:50])]
    return "\n".join(lines) + "\n", not findings.wrong


if __name__ == "__main__":
    text, well = main(*map(int, sys.argv[1:]))
    print(text)
    sys.exit(0 if well else 1)
