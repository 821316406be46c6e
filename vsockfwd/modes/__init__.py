"""Built-in modes, written against plugin.py like anyone's: forward, ping, measure and its command perf."""
