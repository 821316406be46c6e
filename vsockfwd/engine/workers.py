"""One forward on several processes: listeners bound once, shared by forks, which are watched and told to stop.

The thing to understand first: a fork must not inherit a running event loop. So the listeners are opened in a short run
of their own, the processes are made after it, and the one that stays behind only waits and passes signals on.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence

from vsockfwd.address import Address
from vsockfwd.engine import Engine
from vsockfwd.events import Event, Listening, Problem, Report
from vsockfwd.transport.base import Listener
from vsockfwd.transport.network import Network

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

SOON = 1.0
"""Seconds: a worker that ends sooner after its start would do so again, so it is not replaced."""


class Prebound(Network):
    """A network on which some addresses are listened on already."""

    def __init__(self, network: Network, ready: Mapping[Address, Sequence[Listener]]) -> None:
        super().__init__(network.transports)
        self._ready = dict(ready)

    async def listen(self, address: Address) -> Sequence[Listener]:
        return self._ready.pop(address, None) or await super().listen(address)


async def bind(engine: Engine, addresses: Sequence[Address], purpose: str) -> Prebound:
    """Listen on addresses before anything is forked, and say so. Raises VsockfwdError."""
    ready: dict[Address, Sequence[Listener]] = {}
    try:
        for address in addresses:
            ready[address] = await engine.network.listen(address)
    except BaseException:
        for listeners in ready.values():
            for listener in listeners:
                listener.close()
        raise
    for listeners in ready.values():
        for listener in listeners:
            engine.report(Listening(str(listener.address), purpose))
    return Prebound(engine.network, ready)


def unsaid(report: Report) -> Report:
    """A worker's reporter: what is listened on was said once."""

    def tell(event: Event) -> None:
        if not isinstance(event, Listening):
            report(event)

    return tell


class Workers:
    """The processes of one forward. `work` runs in each and returns its exit code."""

    def __init__(self, count: int, work: Callable[[], int], report: Report) -> None:
        self._count = count
        self._work = work
        self._report = report
        self._began: dict[int, float] = {}
        self._stopping = False

    def run(self) -> int:
        """Until told to stop, or until workers fail at their start; the exit code is the first that is not 0."""
        self._told = _Signals((*_STOPPING, signal.SIGCHLD))
        try:
            for _ in range(self._count):
                self._begin()
            code = 0
            while self._began:
                for number in self._told.wait():
                    if number == signal.SIGCHLD:
                        ended = self._bury()
                        code = code or ended
                    else:
                        self._stop(number)
            return code
        finally:
            self._told.close()

    def _bury(self) -> int:
        """Take leave of workers that have ended, and begin others in their place; the first code that is not 0."""
        code = 0
        for pid in list(self._began):
            gone, status = os.waitpid(pid, os.WNOHANG)
            if not gone:
                continue
            began = self._began.pop(pid)
            ended = os.waitstatus_to_exitcode(status)
            if self._stopping and -ended in _STOPPING:
                continue  # not yet or no more at work, where it would have heeded the signal and ended with a code
            ended = 128 - ended if ended < 0 else ended
            if self._stopping:
                code = code or ended
            elif time.monotonic() - began < SOON:
                code = code or ended
                self._stop(signal.SIGTERM)
            else:
                self._report(Problem(f"worker {pid}", f"ended with {ended}; another takes its place"))
                self._begin()
        return code

    def _begin(self) -> None:
        # What comes before a worker has let go of our handler would be swallowed by it there: it waits until then.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
        pid = os.fork()
        if not pid:
            self._told.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            raise _InWorker(self._work())
        self._began[pid] = time.monotonic()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _stop(self, number: int) -> None:
        self._stopping = True
        for pid in self._began:
            os.kill(pid, number)


class _Signals:
    """Signals that are waited for. None is missed, whichever thread the kernel gave it to: a handler alone does not
    end a wait that begins just after it has run."""

    def __init__(self, numbers: Sequence[int]) -> None:
        # What is ignored already stays so: a command started by nohup outlives its terminal.
        self._numbers = [n for n in numbers if n == signal.SIGCHLD or signal.getsignal(n) is not signal.SIG_IGN]
        self._reading, writing = os.pipe()
        self._pipe: tuple[int, ...] = self._reading, writing
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in self._numbers:
            signal.signal(number, lambda *_: None)

    def wait(self) -> bytes:
        """The numbers of those that have come, once any has."""
        return os.read(self._reading, 512)

    def close(self) -> None:
        """From now on they do what they do to any process. Twice is once."""
        if self._pipe:
            for number in self._numbers:
                signal.signal(number, signal.SIG_DFL)
            signal.set_wakeup_fd(-1)
            for end in self._pipe:
                os.close(end)
            self._pipe = ()


class _InWorker(SystemExit):
    """Unwinds a forked process out of its parent's loop, with its exit code."""
