"""The receiver's file system: files that appear complete, in their place, or not at all.

It blocks: call it in a thread. The thing to understand first: the sender is not trusted. It names things only inside
the directory that it entered last, each name is checked, and everything is made relative to descriptors that were
opened without following symlinks; so whatever it says, nothing lands outside the destination. What it may not say at
all is PeerBrokeProtocol and ends the copy; what fails for one file is that file's result.
"""

from __future__ import annotations

from vsockfwd.plugin import PeerBrokeProtocol, VsockfwdError, printable
from vsockfwd_copy.account import Outcome
from vsockfwd_copy.asked import Expected, Wanted
from vsockfwd_copy.attributes import NOTHING_LOST, Loss
from vsockfwd_copy.destination import Place
from vsockfwd_copy.folders import Folders
from vsockfwd_copy.ground import Answers, Ground, Spot
from vsockfwd_copy.incoming import Arrivals
from vsockfwd_copy.links import KEPT, Linked, Links, not_there
from vsockfwd_copy.messages import (
    Done,
    Enter,
    Entries,
    Entry,
    FileDigest,
    Flow,
    HardLink,
    Landed,
    Large,
    Leave,
    Lost,
    Numbered,
    Small,
    Symlink,
    check_name,
    failure_of,
)
from vsockfwd_copy.options import LandOptions
from vsockfwd_copy.placing import Placing


class Landing:
    """One sender's entries and data on their way into a place."""

    def __init__(
        self,
        place: Place,
        options: LandOptions,
        expected: Expected,
        wanted: Wanted | None = None,
    ) -> None:
        """`wanted`: what below the one source was asked for. Raises BadRequest for options that cannot be met."""
        FileDigest(options.algorithm)
        self._options = options
        self._expected = expected
        self._next = 1
        self._ground = ground = Ground(place, options, several=expected.several)
        self._folders = Folders(ground, wanted)
        self._placing = Placing(ground)
        self._links = Links(ground, self._folders.settle)
        self._arrivals = Arrivals(ground, self._placing, self._folders, self._links)
        self.receive = self._arrivals.receive
        self.receive_contents = self._arrivals.receive_contents
        self.compare_some = self._arrivals.compare_some

    def close(self) -> None:
        """Let go of what is open; a file that is not complete leaves nothing behind but what can be resumed."""
        self._arrivals.close()
        self._ground.directories.close()

    @property
    def comparing(self) -> bool:
        """Whether there is more to be told of what stands there."""
        return self._arrivals.comparing

    @property
    def answers(self) -> Answers:
        """What there is to tell so far."""
        return self._ground.answers

    def take_answers(self) -> Answers:
        """What there is to tell since the last time."""
        answers, self._ground.answers = self._ground.answers, Answers()
        answers.at_work = self._arrivals.at_work
        return answers

    def finish(self) -> None:
        """The sender says that it is complete. Raises PeerBrokeProtocol where it is not."""
        if not (self._arrivals.complete and self._folders.at_top and self._expected.complete):
            raise PeerBrokeProtocol("the sender ended before all that it had to send")

    def announce(self, batch: Entries) -> None:
        """Take in announcements. Raises PeerBrokeProtocol."""
        if batch.first != self._next:
            raise PeerBrokeProtocol(f"the sender counts {batch.first} where {self._next} comes next")
        for entry in batch.entries:
            if type(entry) is Leave:
                self._folders.leave()
            else:
                self._take_in(entry)

    def _take_in(self, entry: Numbered) -> None:
        spot = self._spot_for(entry)
        if spot.directory.announced is not None:
            spot.directory.announced.add(spot.name)
        if type(entry) is Enter:
            self._folders.enter(spot, entry)
            return
        size, linked = _size_and_links(entry)
        self._ground.answers.announced += 1
        self._ground.answers.announced_bytes += size
        if type(entry) is Lost:
            self._ground.answers.outcomes.append(Outcome(spot, failure=entry.failure))
            return
        try:
            done, loss = self._land(spot, entry)
        except PeerBrokeProtocol:
            raise
        except (OSError, VsockfwdError) as error:
            self._ground.fail(spot, size, error)
            if linked:
                self._links.remember(spot.number, not_there(failure_of(error)))
            return
        if done is not None:
            self._ground.done(spot, size, done, loss)
            if linked:
                where = KEPT if done is Done.KEPT else Linked(spot.directory, spot.name, done)
                self._links.remember(spot.number, where)

    def _land(self, spot: Spot, entry: Landed | Symlink | HardLink) -> tuple[Done | None, Loss]:
        """Make an entry what it shall be, or have its data come (None). Raises OSError, VsockfwdError."""
        if type(entry) is HardLink:
            return self._links.land(spot, entry), NOTHING_LOST
        if type(entry) is Symlink:
            return self._land_symlink(spot, entry)
        return self._land_file(spot, entry)

    def _land_file(self, spot: Spot, entry: Landed) -> tuple[Done | None, Loss]:
        placing, ground = self._placing, self._ground
        resumes = placing.resumes(entry)
        old = ground.clear(spot, keeps_part=resumes)
        done = Done.NEW
        if old is not None:
            kept = self._options.no_clobber
            if kept or placing.unchanged(old, entry):
                if resumes:
                    ground.remove_part(spot)
                return (Done.KEPT, NOTHING_LOST) if kept else (Done.SAME, placing.freshen(spot, entry, old))
            done = Done.REPLACED
        if type(entry) is Small:
            if self._options.dry_run:
                return done, NOTHING_LOST
            loss = placing.small(spot, entry, old)
            ground.answers.carried += len(entry.content)
            ground.answers.moved += len(entry.content)
            return done, loss
        if self._options.dry_run and not placing.compares(entry, old):
            return done, NOTHING_LOST
        self._arrivals.want(spot, entry, old)
        return None, NOTHING_LOST

    def _land_symlink(self, spot: Spot, entry: Symlink) -> tuple[Done, Loss]:
        old = self._ground.clear(spot)
        if old is not None and self._options.no_clobber:
            return Done.KEPT, NOTHING_LOST
        if old is not None and self._placing.same_symlink(spot, entry, old):
            return Done.SAME, NOTHING_LOST
        done = Done.NEW if old is None else Done.REPLACED
        if self._options.dry_run:
            return done, NOTHING_LOST
        return done, self._placing.symlink(spot, entry, replaces=old is not None)

    def _spot_for(self, entry: Numbered) -> Spot:
        number, directory = self._next, self._folders.current
        self._next += 1
        if not self._folders.at_top:
            name = check_name(entry.name)
            if directory.wanted is not None and name not in directory.wanted:
                raise PeerBrokeProtocol(f"the sender sent {printable(name)!r}, which was not asked for")
            return Spot(number, directory, name, name)
        word = self._expected.word(entry)
        if self._ground.place.name is not None:
            if self._ground.tops:
                raise PeerBrokeProtocol("the sender sent several files for one name")
            self._ground.tops.add(b"")
            return Spot(number, directory, self._ground.place.name, word)
        if entry.name or type(entry) not in (Enter, Lost, Flow):
            check_name(entry.name)
        return Spot(number, directory, entry.name, word)


def _size_and_links(entry: Entry) -> tuple[int, bool]:
    """Bytes of an entry's content, and whether other names of it may come."""
    if type(entry) is Small:
        return len(entry.content), entry.linked
    if type(entry) is Large:
        return entry.size, entry.linked
    return 0, False
