"""vsockfwd-copy: verified file copy between a virtual machine and its host.

Cheap to import, since an agent imports it when it starts; the rooms below are imported with the first request.

messages     the frames that sender and receiver exchange, and the rules for names: no IO
directories  descriptors of directories, opened downwards from a root and never through a symlink
reading      the sender's file system: walks sources, reads files and their holes
destination  what a destination means: into a directory, or as a name
landing      the receiver's file system: files that appear complete, in their place, or not at all
sending, receiving   the two ends of a copy over a channel, the same code in both directions
account      what became of each file: events on the way, the exit code at the end
agent, command, locations   who calls them: an agent's handler, `vsockfwd cp` and its SOURCE… DESTINATION

The thing to understand first: client and agent say who asks, sender and receiver say where bytes go. All that is
particular to the first pair stands in the last line above.
"""

from __future__ import annotations

from vsockfwd.plugin import Call, Mode, Resource

__version__ = "0.1.0"


def resources(arguments: bytes) -> tuple[Resource, ...]:
    """The paths that a request reads or writes."""
    from vsockfwd_copy.agent import resources as of_request

    return of_request(arguments)


async def serve(call: Call) -> None:
    """Be the other end of a client's copy."""
    from vsockfwd_copy.agent import serve as other_end

    await other_end(call)


MODE = Mode("copy", "copies files and directories, verified, through an agent", serve=serve, resources=resources)
