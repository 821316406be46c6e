"""Setting on a socket what its address's options say; and giving a name in the file system what they say of it."""

from __future__ import annotations

import os
import socket

from vsockfwd.plugin import from_oserror, printable
from vsockfwd_relay.address_type import Situation, Specification
from vsockfwd_relay.options import OPTION_OF_NAME, When

VSOCK: int = getattr(socket, "AF_VSOCK", 40)


def has_options(spec: Specification, *whens: When) -> bool:
    """Whether there is anything to set at these times."""
    return any(OPTION_OF_NAME[name].set and OPTION_OF_NAME[name].when in whens for name in spec.options)


def set_options(sock: socket.socket, spec: Specification, situation: Situation, *whens: When) -> None:
    """Set the options whose time has come. Raises VsockfwdError, which names the option."""
    for name, value in spec.options.items():
        option = OPTION_OF_NAME[name]
        if option.set is None or option.when not in whens:
            continue
        try:
            if sock.family == VSOCK:
                # CPython takes no bytes for such a socket: a copy of the descriptor under another family's name does.
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=os.dup(sock.fileno())) as copy:
                    option.set(copy, value)
            else:
                option.set(sock, value)
        except OSError as error:
            failure = from_oserror(error, f"{spec}: option {name}")
            if not situation.sloppy:
                raise failure from None
            situation.note(1, failure.line())


def remove_first(spec: Specification, path: bytes) -> None:
    """`unlink-early`. Raises VsockfwdError."""
    if not spec.option("unlink-early"):
        return
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass  # nothing to remove is what was asked for
    except OSError as error:
        raise from_oserror(error, f"remove {printable(path)}") from None


def own_name(spec: Specification, path: bytes) -> None:
    """`user` and `group`, and `unlink-late`, of a name that was just made. Raises VsockfwdError."""
    try:
        if "user" in spec.options or "group" in spec.options:
            os.chown(path, spec.option("user", -1), spec.option("group", -1))
        if spec.option("unlink-late"):
            os.unlink(path)
    except OSError as error:
        raise from_oserror(error, f"{spec}: {printable(path)}") from None


def remove_last(spec: Specification, path: bytes, *, default: bool) -> None:
    """`unlink-close`."""
    if spec.option("unlink-close", default) and not spec.option("unlink-late"):
        try:
            os.unlink(path)
        except OSError:
            pass  # somebody else took it away


def at(directory: bytes | None, path: bytes) -> bytes:
    """A path as it stands, or from where `cd` says that it starts."""
    return path if directory is None else os.path.join(directory, path)
