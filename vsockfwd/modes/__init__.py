"""Built-in modes, written against plugin.py like anyone's: forward (raw and local), ping."""
