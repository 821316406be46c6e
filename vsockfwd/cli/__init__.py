"""The command line: parse, call, map errors to exit codes. No logic worth testing without it."""
