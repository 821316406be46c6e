"""`python -m bench [ROUNDS]`: every table, as Markdown."""

import sys

from bench import relay

print(relay.main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
