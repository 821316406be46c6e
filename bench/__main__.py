"""`python -m bench [ROUNDS]`: every table, as Markdown."""

import sys

from bench import copy, dgram, relay

rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
print(relay.main(rounds))
print(dgram.main(rounds))
print(copy.main(rounds))
