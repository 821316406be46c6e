"""vsockfwd moves bytes between a virtual machine and its host over vsock. This is the map of the house.

An *address* names an endpoint, a *transport* opens it as a stream, the *wire* gives streams meaning, the *engine* moves
bytes between streams, a *mode* is what a user asks for, the *CLI* and the *reports* are how they ask and see.

To change …                                                     open …
  what an error says, its exit code or its number on the wire     errors.py
  what may be typed as an address or a target                     address.py (grammar) and identity.py (CIDs, peers)
  what can be told about a transfer, and how it may end           events.py
  what a plugin may be, see and call                              contract.py (values), plugin.py (what it may import)
  who is let in, and what for                                     policy.py
  the bytes between two vsockfwd peers                            wire/: frames, messages, control and stream machines
  how a kind of socket is dialled, listened on or identified      transport/: one file a scheme, base.py is the seam
  how fast bytes move, how an end or a cut is passed on           engine/pump.py, engine/relay.py (plain streams)
  … without a task for each                                       engine/poll.py
  … and between two vsockfwd peers                                engine/link.py (a wire machine joined to a stream)
  logging in, staying alive, coming back                          engine/session.py (client), engine/agent.py (server)
  what a service manager is told, and what it passes us           service.py
  an agent that dials its client, and the client that waits       engine/calling.py, transport/accepting.py
  accepting: caps, failures, descriptors running out              engine/server.py
  listening at the agent's for a client, fetching who comes there engine/listening.py (agent), engine/incoming.py
  what a built-in command does                                    modes/: forward, ping
  how plugins and commands are found                              discovery.py
  what is shown while it runs: lines, JSON, bars                  report/
  flags that all commands share, usage errors, `serve`            cli/
  the tour that `make demo` gives                                 demo.py
  copy, relay, dgram                                              plugins/, a distribution each

Arrows of import point one way: cli → modes, report, demo → plugin, discovery → engine → transport, wire → policy →
contract → address, events → identity, service → errors. `make check` holds the code to it.
"""

__version__ = "0.1.0"
