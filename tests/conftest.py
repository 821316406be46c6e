"""What every test stands on: the guard first, then fixtures that more than one room needs."""

from __future__ import annotations

from tests import guard

# Before anything else, and inherited by every child: no AF_VSOCK socket leaves this machine. Lifted in the rig only.
if not guard.inside_rig():
    guard.install()
