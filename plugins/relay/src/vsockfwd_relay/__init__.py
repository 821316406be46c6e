"""The relay mode: socat's address types and meanings over every stream that vsockfwd knows.

A map of the house: `grammar` reads an address's text, `options` and `table` give its words a meaning (one row an
option, one row a type; `absent` has what is not built), `sockets`, `datagrams`, `tls`, `agent`, `files`, `terminals`
and `programs` open them, `socket_options` sets what is said of a socket and its name, `admission` says who is let in,
`locks` holds lock files, `streams` puts streams together, `dump` shows what passes, `relaying` joins the two ends,
`command` is the command line, `log` where its words go. `address_type` holds the values that they hand each other.
"""

from __future__ import annotations

from vsockfwd.plugin import Mode

__version__ = "0.1.0"

MODE = Mode("relay", "relays between two addresses of socat's kind, on this machine alone")
