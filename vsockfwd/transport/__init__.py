"""Transports open an address as a stream, or listen on one: one file a scheme, one seam (base.py) for the engine.

The engine asks a stream's `features`, never its kind. A machine without vsock runs everything but vsock.py.
"""
