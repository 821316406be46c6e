"""vsockfwd-copy: verified file copy between a virtual machine and its host.

Cheap to import, since an agent imports it when it starts; the rooms below are imported with the first request.

options      what a copy may be asked to do, and which side does it
messages     the frames that sender and receiver exchange, and the rules for names: no IO
permissions, patterns, asked   --chmod, globs and filters, --files-from: pure
roots        where typed paths start and how they are opened; directories: descriptors downwards from there
walking, reading   the sender's file system: what is there, and the bytes of one file
destination  what a destination means: into a directory, or as a name
landing      the receiver's file system: what is announced gets its place. It stands on ground (the place, what stands
             there, the answers), folders (the directories), placing (one file's content and attributes), links (files
             of several names) and incoming (files whose data comes later)
arriving     one file on its way to its name, with its journal; standing: what is there already; attributes: owners,
             xattrs, ACLs, on either side
sending, receiving   the two ends of a copy over a channel, the same code in both directions
passing, pouring     between two agents, and out of a pipe
looking, removing    what is there, and taking it away
account, telling     what became of each file: events on the way, the exit code at the end
target       all of that for a client: the library; command, fs, locations: the command line; agent: its other end

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
