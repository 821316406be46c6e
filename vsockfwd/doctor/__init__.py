"""What is missing or wrong on this machine, and the command or flag that mends it.

`system` is the one place that looks at the machine, which tests replace; `checks` turns what it sees into findings;
`finding` is what they are. Nothing here connects to anything: whether an agent answers is asked by the command, for the
target that was named.
"""
