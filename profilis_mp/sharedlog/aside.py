"""Where does a record go that cannot go into the main spool just now?

Into a framed spool aside: opaque records, and those that interrupted another's append or came while it could not be
waited for. Needs no mutex, not even within an interrupted append. Instead, who wants to use spools aside takes them
all off ``Aside.ready``, has them alone then, and puts them back:

    aside.ready, mine = [], aside.ready

is one step, which nothing can come between, as long as no call is in it. Who may put back more than was there says so
in ``takers`` first, and so nobody believes meanwhile that what is ready is everything.
"""

from __future__ import annotations

from collections.abc import Callable

from profilis_mp.sharedlog.spool import FRAME_BYTES, Spool

__all__ = ["Aside", "age"]

_BYTES = 64 * 1024


def age(spool: Spool) -> int:
    """Return what the spools of one process are sorted by to be flushed in order."""
    return spool.created_ns


class Aside:
    """One process's spools aside.

    Args:
        create: Makes one of at least that many bytes; returns None when none can be had.
        most_bytes: No further spool is made while this much waits in those that are ready.

    Attributes:
        used: Whether a spool aside may hold records, which must go out before younger lines do.
        ready: The spools that nobody has off.
        made: All of them.
        takers: Who has taken spools off, and will put them back.
        youngest_used: Of the spools that were appended to since all were empty, when the youngest was created.
    """

    def __init__(self, create: Callable[[int], Spool | None], most_bytes: int) -> None:
        self.used = False
        self.ready: list[Spool] = []
        self.made: list[Spool] = []
        self.takers: set[object] = set()
        self.youngest_used = 0
        self._create = create
        self._most_bytes = most_bytes

    def append(self, record: bytes) -> bool:
        """Append to a spool that nobody else uses right now; returns whether there was room."""
        taken: list[Spool] = []
        taker = object()
        fits = False
        try:
            self.takers.add(taker)
            self.used = True
            while not fits and (not taken or self.ready):
                # Again, if some have come back meanwhile (from a signal handler that interrupted this): the youngest
                # may be among them.
                back, self.ready = self.ready, []
                taken.extend(back)
                taken.sort(key=age)
                fits = self._append_behind(taken, record) or (not self.ready and self._append_anew(taken, record))
                if not taken:
                    break  # none could be made
        finally:
            try:
                self.ready.extend(taken)
            finally:
                self.takers.discard(taker)
        return fits

    def _append_behind(self, taken: list[Spool], record: bytes) -> bool:
        """Append to one of these, behind all that is in them, and in one that somebody else has off just now.

        Not into a gap before it: the order of records is the order of spools.
        """
        used = [number for number, spool in enumerate(taken) if spool.unflushed]
        for spool in taken[used[-1] if used else 0 :]:
            if spool.created_ns >= self.youngest_used and spool.append(record):
                self._note_use(spool)
                return True
        return False

    def _append_anew(self, taken: list[Spool], record: bytes) -> bool:
        """Append to another spool, unless too much waits in these; it is one of them then."""
        if sum(spool.unflushed for spool in taken) >= self._most_bytes:
            return False
        another = self._create(max(_BYTES, len(record) + FRAME_BYTES))
        if another is None:
            return False
        self.made.append(another)
        taken.append(another)
        fits = another.append(record)
        self._note_use(another)
        return fits

    def _note_use(self, spool: Spool) -> None:
        if spool.created_ns > self.youngest_used:  # no call in between: another thread may have used a younger one
            self.youngest_used = spool.created_ns

    def remove_empty(self) -> None:
        """Remove the spools that are empty, but one: each is two descriptors, and threads that meet make many."""
        taken: list[Spool] = []
        taker = object()
        try:
            self.takers.add(taker)
            taken, self.ready = self.ready, []
            taken.sort(key=age)
            for spool in taken[:-1]:
                if not spool.unflushed:
                    taken.remove(spool)
                    self.made.remove(spool)
                    spool.unlink()
                    spool.close()
        finally:
            try:
                self.ready.extend(taken)
            finally:
                self.takers.discard(taker)
