"""Side by side against real peers: ratios, never absolutes across runs. `make bench` runs all of it.

what can be measured, how a run is recorded           cases.py; typed as: __main__.py
contenders, started and waiting                       peers.py, on harness.py (processes, their CPU time and memory)
servers and clients that are the load                 traffic.py; datagrams.py
one large stream; the same by size of message         streams.py
connections and requests a second; round trips        requests.py
what connections cost that are only there             growth.py
on a real vsock, in a virtual machine                 rig.py
subjects that write their own tables                  relay.py, copy.py, dgram.py, perf.py
figures as values, kept in docs/benchmarks.json       results.py; what was asked for: targets.py
docs/benchmarks.md and its plots, made of them        page.py, plot.py
not part of `make bench`, for they take long          soak.py, copy_kills.py; load.py and faults.py, on
                                                      reliability.py
"""
