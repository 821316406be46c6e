"""The protocol, sans-IO: bytes in → events out, verbs in → bytes out. No trio, no socket, no clock in here.

frames.py cuts bytes into frames and checks the preface; messages.py types the payloads; control.py and stream.py are
the two state machines. docs/protocol.md is the same in prose.
"""
