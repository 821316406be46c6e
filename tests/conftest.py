"""What every test stands on: the guard first, then fixtures that more than one room needs."""

from __future__ import annotations

import signal

from tests import guard

# Before anything else, and inherited by every child: no AF_VSOCK socket leaves this machine. Lifted in the rig only.
if not guard.inside_rig():
    guard.install()

# A background job of a shell ignores these, and so would every command that a test starts and stops.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGHUP else signal.default_int_handler)
