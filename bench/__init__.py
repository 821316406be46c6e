"""Side by side against real peers: ratios, never absolutes across runs. `make bench` runs all of it.

harness.py starts contenders and does the arithmetic; each other file is one subject.
"""
