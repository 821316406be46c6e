"""Finding the guests of this machine: from what runs, what libvirt and machined noted, never by asking the guests.

`command_lines` reads VMMs' command lines and configurations (pure), `guest` says what a guest is and which one a name
means (pure), `machine` looks at the system: /proc, /run, machined's socket.

The thing to understand first: a process can call itself anything. A bare name means a guest of this user's or of
root's; somebody else's is written `user/name`.
"""
