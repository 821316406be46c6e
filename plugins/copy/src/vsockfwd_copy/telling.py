"""How a copy is told beside the reporter that every command has: progress as JSON lines, what it came to by kind."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TextIO

import msgspec

from vsockfwd.plugin import Event, FileDone, FileMoving, Moved, Planned, Report, Summary, UsageError, printable
from vsockfwd_copy.account import Totals

PROGRESS = ("auto", "json", "none")


class Statistics(Event, frozen=True):
    """What a copy came to, by kind: files, the bytes of those that were copied and that had to be sent, seconds."""

    new: int
    replaced: int
    unchanged: int
    kept: int
    removed: int
    failed: int
    bytes: int
    carried: int
    seconds: float

    @classmethod
    def of(cls, copies: Sequence[Totals]) -> Statistics:
        """Of several copies together; they ran beside each other."""
        names = ("new", "replaced", "unchanged", "kept", "removed", "failed", "bytes", "carried")
        sums = {name: sum(getattr(copy, name) for copy in copies) for name in names}
        return cls(**sums, seconds=max((copy.seconds for copy in copies), default=0.0))

    def __str__(self) -> str:
        rate = self.bytes / self.seconds / 1e6 if self.seconds else 0.0
        counts = f"{self.new} new, {self.replaced} replaced, {self.unchanged} unchanged, {self.kept} kept"
        return (
            f"files: {counts}, {self.removed} removed, {self.failed} failed; "
            f"{self.bytes} bytes copied, {self.carried} of them sent, in {self.seconds:.2f} s ({rate:.1f} MB/s)"
        )


def telling(progress: str, report: Report, errors: TextIO | None = None) -> Report:
    """The reporter that `--progress` asks for. Raises UsageError."""
    if progress not in PROGRESS:
        raise UsageError(f"--progress {printable(progress)}: no such kind", hint=", ".join(PROGRESS))
    if progress == "auto":
        return report
    if progress == "json":
        return _json_lines(errors or sys.stderr)
    return _without(report, Planned | Moved | FileMoving)


def _without(report: Report, kinds: object) -> Report:
    def tell(event: Event) -> None:
        if not isinstance(event, kinds):  # type: ignore[arg-type]
            report(event)

    return tell


def _json_lines(out: TextIO) -> Callable[[Event], None]:
    """Progress, files and the summary, one JSON object a line, on standard error: standard output may be the data."""
    encode = msgspec.json.Encoder().encode

    def tell(event: Event) -> None:
        if isinstance(event, Planned | Moved | FileMoving | FileDone | Summary | Statistics):
            try:
                out.write(encode(event).decode() + "\n")
                out.flush()
            except (OSError, ValueError):
                pass  # nobody reads our words any more: the work goes on

    return tell
