"""Where what is told goes: standard error, a file, or syslog; and what each line begins with (socat's -l…)."""

from __future__ import annotations

import socket
import sys
import syslog
import time
from collections.abc import Callable
from dataclasses import dataclass

from vsockfwd.plugin import UsageError, from_oserror, printable

_FACILITIES = (
    "auth", "authpriv", "cron", "daemon", "ftp", "kern", "lpr", "mail", "news", "syslog", "user", "uucp",
    "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
)  # fmt: skip

_SEVERITIES = (syslog.LOG_ERR, syslog.LOG_WARNING, syslog.LOG_NOTICE, syslog.LOG_INFO, syslog.LOG_DEBUG)


def facility(text: str) -> int:
    """syslog's number of a facility's name; '' is daemon. Raises UsageError."""
    name = text.lower() or "daemon"
    if name not in _FACILITIES or not hasattr(syslog, f"LOG_{name.upper()}"):
        raise UsageError(f"syslog has no facility {printable(text)!r}", hint=f"it has {', '.join(_FACILITIES)}")
    return int(getattr(syslog, f"LOG_{name.upper()}"))


@dataclass(slots=True)
class Log:
    """What -l… says. `later`: standard error until the work begins, syslog from then on (-lm)."""

    program: str = "vsockfwd"
    file: str = ""
    facility: int | None = None
    later: int | None = None
    precise: bool = False
    with_host: bool = False

    @property
    def plain(self) -> bool:
        """Whether there is nothing that the rest of the program would do otherwise."""
        return self == Log()

    def begun(self) -> None:
        """The work begins."""
        if self.later is not None:
            self.facility, self.later = self.later, None

    def writer(self) -> Callable[[int, str], None]:
        """What takes a severity, 0 (an error) to 4, and a line. Raises VsockfwdError."""
        if not self.file:
            return self._write
        try:
            file = open(self.file, "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115 - as long as we live
        except OSError as error:
            raise from_oserror(error, f"open {printable(self.file)}") from None

        def write(severity: int, line: str) -> None:
            print(self._begin() + line, file=file, flush=True)

        return write

    def _write(self, severity: int, line: str) -> None:
        if self.facility is not None:
            syslog.openlog(self.program, syslog.LOG_PID, self.facility)
            syslog.syslog(_SEVERITIES[min(severity, len(_SEVERITIES) - 1)], line)
        else:
            say(self._begin() + line + "\n")

    def _begin(self) -> str:
        now = time.time()
        moment = time.strftime("%Y/%m/%d %H:%M:%S", time.localtime(now)) + f".{int(now % 1 * 1e6):06d} "
        host = f"{socket.gethostname()} "
        return f"{moment if self.precise else ''}{host if self.with_host else ''}{self.program}: "


def say(text: str) -> None:
    """Write to standard error, as long as somebody reads it."""
    try:
        print(text, end="", file=sys.stderr, flush=True)
    except (OSError, ValueError, AttributeError):
        pass  # nobody reads our words any more: the work goes on
