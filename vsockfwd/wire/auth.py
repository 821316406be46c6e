"""Challenge and answer: each side shows that it knows the key, and neither shows it.

    proof = HMAC-SHA256(secret, "vsockfwd key 1" ‖ role ‖ version ‖ each thing that was said before, with its length)

What was said is the client's HELLO and the agent's HELLO, which hold a fresh nonce of each side and the versions that
it speaks, and for the agent's proof the client's too. So a proof is good for one connection, one side of it, and one
set of versions: sent back, sent again or put behind another HELLO, it is of no use.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from vsockfwd.key import Key
from vsockfwd.wire.machine import Role

NONCE_LENGTH = 32
PROOF_LENGTH = 32

_LABEL = b"vsockfwd key 1"


def proof_of(key: Key, role: Role, version: int, said: Iterable[bytes]) -> bytes:
    """The proof that `role` knows the key, after what was said: PROOF_LENGTH bytes."""
    code = hmac.new(key.secret, digestmod="sha256")
    for part in (_LABEL, role.value.encode(), version.to_bytes(2), *said):
        code.update(len(part).to_bytes(4))
        code.update(part)
    return code.digest()


def who_proved(keys: Iterable[Key], proof: bytes, role: Role, version: int, said: tuple[bytes, ...]) -> Key | None:
    """The key that a proof was made with. It takes as long whichever it is, and where it is none."""
    found = None
    for key in keys:
        if hmac.compare_digest(proof_of(key, role, version, said), proof):
            found = key
    return found
