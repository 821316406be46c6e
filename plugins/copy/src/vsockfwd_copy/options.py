"""What a copy may be asked to do, and which side does it. Values only.

The thing to understand first: a person says one thing, `Options`; the sender is told its half and the receiver its
half. Either may be the agent, so both halves travel in a request, and what an older agent does not know it refuses.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec

PATTERN_LIMIT = 1024
PATTERNS_LIMIT = 64

Pattern = Annotated[bytes, msgspec.Meta(min_length=1, max_length=PATTERN_LIMIT)]
Patterns = Annotated[tuple[Pattern, ...], msgspec.Meta(max_length=PATTERNS_LIMIT)]
Word = Annotated[str, msgspec.Meta(max_length=200)]


class Symlinks(StrEnum):
    """Which symlinks are followed: cp's -H, -L and -P."""

    NAMED = "H"
    """Those named as SOURCE; inside directories they are copied as symlinks. The default."""
    ALL = "L"
    NONE = "P"


class Algorithm(StrEnum):
    """What a file's digest is made with. blake3 resists who would forge one; xxh3 costs nothing."""

    XXH3 = "xxh3"
    BLAKE3 = "blake3"


class SendOptions(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The sender's half."""

    recursive: bool = False
    symlinks: Symlinks = Symlinks.NAMED
    owners: bool = False
    hard_links: bool = False
    xattrs: bool = False
    acls: bool = False
    chmod: Word = ""
    """Changes to permissions, as chmod(1) writes them."""
    exclude: Patterns = ()
    include: Patterns = ()
    glob: bool = False
    """Whether a source that is not there may be a pattern."""
    below: bool = False
    """The first source is a directory, and the others are paths below it that are wanted, with what leads there."""
    bare: bool = False
    """Small files are announced without their content too: the receiver may have it already."""
    rate: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Bytes a second that are sent at most; 0: no limit."""
    algorithm: Algorithm = Algorithm.XXH3


class LandOptions(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The receiver's half."""

    recursive: bool = False
    plain: bool = False
    """-T: the destination is the name of the one source, also where it is a directory."""
    directory: bool = False
    """-t: the destination is a directory, and must be one."""
    mkpath: bool = False
    no_clobber: bool = False
    update: bool = False
    """What has the size and mtime that was announced stays as it is."""
    checksum: bool = False
    """What has the content stays as it is."""
    delta: bool = False
    """What stands there is compared block by block, and what did not change is taken from it."""
    resume: bool = False
    delete: bool = False
    dry_run: bool = False
    fsync: bool = False
    inplace: bool = False
    backup: Annotated[bytes, msgspec.Meta(max_length=32)] = b""
    """The suffix under which what is replaced stays; empty: it does not."""
    perms: bool = True
    times: bool = True
    owner: bool = False
    group: bool = False
    numeric: bool = False
    """Owners by number, also where a user of that name is known."""
    chown: Word = ""
    """USER, USER:GROUP or :GROUP, by this side's names."""
    demanded: bool = False
    """Owners, xattrs and ACLs that cannot be kept are failures of the copy, not a word at its end."""
    xattrs: bool = False
    acls: bool = False
    exclude: Patterns = ()
    include: Patterns = ()
    algorithm: Algorithm = Algorithm.XXH3

    @property
    def compares(self) -> bool:
        """Whether what stands in a file's place may make its content unnecessary."""
        return self.update or self.checksum or self.delta or self.no_clobber or self.dry_run


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """All of it, as a person says it: see the fields of both halves."""

    recursive: bool = False
    symlinks: Symlinks = Symlinks.NAMED
    perms: bool = True
    times: bool = True
    owner: bool = False
    group: bool = False
    numeric: bool = False
    hard_links: bool = False
    xattrs: bool = False
    acls: bool = False
    demanded: bool = False
    chmod: str = ""
    chown: str = ""
    plain: bool = False
    directory: bool = False
    mkpath: bool = False
    no_clobber: bool = False
    update: bool = False
    checksum: bool = False
    delta: bool = False
    resume: bool = False
    delete: bool = False
    dry_run: bool = False
    fsync: bool = False
    inplace: bool = False
    backup: bytes = b""
    exclude: tuple[bytes, ...] = ()
    include: tuple[bytes, ...] = ()
    rate: int = 0
    algorithm: Algorithm = Algorithm.XXH3

    def sending(self, *, glob: bool = False, below: bool = False) -> SendOptions:
        """The sender's half."""
        landing = self.landing()
        return SendOptions(
            owners=self.owner or self.group,
            bare=landing.compares or self.resume,
            glob=glob,
            below=below,
            **{name: getattr(self, name) for name in _SHARED_BY_SENDER},
        )

    def landing(self) -> LandOptions:
        """The receiver's half."""
        return LandOptions(**{name: getattr(self, name) for name in LandOptions.__struct_fields__})


_SHARED_BY_SENDER = tuple(name for name in SendOptions.__struct_fields__ if name in Options.__struct_fields__)
