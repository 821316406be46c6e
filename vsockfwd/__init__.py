"""vsockfwd moves bytes between a virtual machine and its host over vsock. This is the map of the house.

An *address* names an endpoint, a *transport* opens it as a stream, the *wire* gives streams meaning, the *engine* moves
bytes between streams, a *mode* is what a user asks for, the *CLI* and the *reports* are how they ask and see.

To change …                                                     open …
  what an error says, its exit code or its number on the wire     errors.py
  what may be typed as an address or a target                     address.py (grammar) and identity.py (CIDs, peers)
  what can be told about a transfer, and how it may end           events.py
  what a plugin may be, see and call                              contract.py (values), plugin.py (what it may import)
  what every forward rule may say, and who may use one            rule.py; the file that holds them: config.py
  how the guests of this machine are found, and named             guests/
  who is let in to an agent, and what for                         policy.py, on what may be written: allow.py
  what an agent gives up once it listens                          engine/confine.py
  how many streams a client has, how fast                         engine/quota.py
  keys: their files, the proof, what a wrong one gets             key.py, engine/keys.py, wire/auth.py, engine/door.py
  the bytes between two vsockfwd peers                            wire/: frames, messages, control and stream machines
  … and in front of a connection, for others                      wire/proxy_protocol.py, engine/proxied.py
  how a kind of socket is dialled, listened on or identified      transport/: one file a scheme, base.py is the seam
  … in TLS                                                        transport/tls.py
  how fast bytes move, how an end or a cut is passed on           engine/pump.py, engine/relay.py (plain streams)
  … without a task for each; alone in a process                   engine/poll.py; engine/alone.py
  … and between two vsockfwd peers                                engine/link.py, control_link.py, on wired.py
  … from or to a thread that works on them                        engine/threaded.py
  logging in, staying alive                                       engine/session.py (client), engine/agent.py (server)
  … what was accepted, until it says what it wants                engine/reception.py
  listening at the agent's for a client                           engine/listening.py (agent's), incoming.py (client's)
  an agent that dials its client, and the client that waits       engine/calling.py, transport/accepting.py
  accepting: caps, failures, descriptors running out              engine/server.py; on several processes: workers.py
  how rules are run, wait, come back, are counted and reloaded    engine/rules.py; who asks: engine/control_socket.py
  signals, draining, exit                                         engine/invocation.py; what systemd hears: service.py
  what a built-in command or rule does                            modes/: forward (raw, local, remote), dynamic, ping
  how fast the way is: the agent's part, ours, what is shown      modes/: measure, measuring, figures, picture
  how plugins and commands are found                              discovery.py
  what is shown while it runs: lines, JSON, bars, log, metrics    report/
  flags that all commands share, usage errors, `serve`, `up`      cli/
  what `doctor` looks at, and what it advises                     doctor/: system.py is the seam, checks.py
  what starts an agent in a guest                                 bootstrap/; in one file: packaging/pyz/
  the tour that `make demo` gives                                 demo.py
  copy, relay, dgram                                              plugins/, a distribution each

Arrows of import point one way: cli → modes, report, demo, doctor, bootstrap → plugin, discovery → engine → transport,
wire → guests → policy, config → contract → allow → rule → address, events → identity, service, key, option, amount →
errors. `make check` holds the code to it.
"""

__version__ = "0.1.0"
