"""One thread's hands on a stream: its lock, its control file, its active segment.

Who holds the directory lock may use everything here; :meth:`Stream.acquire` gives it, in a stream that is whole: what
somebody deleted, moved or garbled is replaced first, and an interrupted flush is finished. The flush itself, step by
step, is in ``commit``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from errno import EISDIR, ELOOP, ENOTDIR, ENXIO

from profilis_mp.errors import CorruptSegment, LogDirectoryError
from profilis_mp.sharedlog import commit
from profilis_mp.sharedlog.control import BadControl, Control
from profilis_mp.sharedlog.lock import KeptLock
from profilis_mp.sharedlog.names import SegmentName
from profilis_mp.sharedlog.ownership import Settle, remove_leftovers
from profilis_mp.sharedlog.paths import STATE_DIRECTORY, StreamPaths
from profilis_mp.sharedlog.segment import OpenSegment, name_is_taken, sync_directory
from profilis_mp.sharedlog.settings import Settings
from profilis_mp.sharedlog.spool import BadSpool, Spool

__all__ = ["STATE_DIRECTORY", "Stream", "StreamPaths"]

_ATTEMPTS = 8
# What opening says when somebody put a symbolic link, a directory or a socket in a file's place.
_NO_FILE = frozenset({ELOOP, EISDIR, ENXIO})


class Stream:
    """Descriptors and maps for one thread. Everything but ``acquire`` needs the directory lock.

    Attributes:
        settings: Whose limits apply; recovery takes those of the spool that it flushes.
        control: The control file; valid while the lock is held.
        give_back: Gives the directory lock back, whether held or not; see ``KeptLock.release``.
        finished_flushes: Interrupted flushes finished here.
        aside: Paths of what was set aside here.
        notices: (key, text) pairs to warn about once the lock is released; nothing logs under it.
    """

    control: Control
    give_back: Callable[[], object]

    def __init__(self, paths: StreamPaths, settings: Settings) -> None:
        self.paths = paths
        self.settings = settings
        self.notices: list[tuple[str, str]] = []
        self.finished_flushes = 0
        self.aside: list[str] = []
        self._lock: KeptLock | None = None
        self.give_back = int
        self._control: Control | None = None
        self._segment: OpenSegment | None = None
        self._synced = (0, 0)

    # The lock.

    def acquire(self, timeout_s: float, own: Iterable[Spool] = ()) -> None:
        """Take the directory lock, with the stream whole and no flush in progress.

        Args:
            timeout_s: Longest wait, seconds; 0 tries once.
            own: Spools of this process that the listing may not show (in memory, or unlinked by somebody).

        Raises:
            LockTimeout: Another holder kept it. Nothing changed.
            ValueError: A forked child came back into this, from a signal handler, after what it inherited was closed.
            OSError: The stream cannot be opened, or the interrupted flush not be finished yet. The lock is not held.
        """
        deadline = time.monotonic() + timeout_s
        for _ in range(_ATTEMPTS):
            lock = self._lock
            if lock is None:
                lock = self._lock = self._open_lock()
                self.give_back = lock.release
            lock.acquire(max(0.0, deadline - time.monotonic()))
            try:
                # I8: a lock on a file that was removed excludes nobody.
                if lock.is_in_place():
                    self._open_control()
                    if lock is not self._lock:
                        # A signal handler forked meanwhile, and here is the child, which has no lock at all: what
                        # somebody else is flushing just now is not for it to finish.
                        raise ValueError(f"{self.paths.lock}: closed by a fork")
                    if self.control.intent:
                        self._finish_interrupted(own)
                    return
            except BaseException:
                lock.release()
                raise
            self.close()
        raise LogDirectoryError(self.paths.state, ENOTDIR, "is removed as fast as it is created")

    def _open_lock(self) -> KeptLock:
        access, troubles = self.settings.access, list[str]()
        settle = self._settle(access.private_mode)
        lock = self.paths.create(access, lambda: KeptLock(self.paths.lock, access.private_mode, settle), troubles)
        self.notices += [("owner", trouble) for trouble in troubles]
        return lock

    def close(self) -> None:
        """Close everything, unlocking nothing: in a forked child the lock is the parent's."""
        self.give_back = int
        handles = self._segment, self._control, self._lock
        self._segment = self._control = self._lock = None  # first: nobody closes them a second time
        for handle in handles:
            if handle is not None:
                handle.close()

    def keeps_a_removed_segment(self) -> bool:
        """Whether a segment is open here that was expired, or compressed, since it was appended to."""
        segment = self._segment
        try:
            return segment is not None and segment.is_removed()
        except OSError:
            return False  # closed meanwhile, by another thread

    def let_go(self) -> None:
        """Close such a segment."""
        if self._segment is not None and self.keeps_a_removed_segment():
            segment, self._segment = self._segment, None
            segment.close()

    def descriptors(self) -> list[int]:
        """All that is open here."""
        return [handle.fd for handle in (self._lock, self._segment) if handle is not None]

    def peek(self) -> Control | None:
        """The control file without the lock, for advice only; None when it is not there or cannot be trusted."""
        if self._control is None or not self._control.is_in_place():
            self._forget_control()
            try:
                self._control = Control(self.paths.control)
            except (OSError, BadControl):
                return None
        return self._control

    # The active segment.

    def active(self) -> OpenSegment:
        """The segment to append to, open, and exactly ``control.committed`` bytes long.

        Opens the next generation when there is none, when its age is reached, or when somebody deleted, moved, cut
        or wrote to it behind our back.

        Raises:
            OSError: It cannot be opened. The control file may name a segment that does not exist yet, which is fine.
        """
        control = self.control
        if not control.is_named or (control.committed and self._is_aged(control)):
            return self.open_next()
        segment = self.current()
        size = segment.size_in_place() if segment is not None else None
        if segment is None or size != control.committed:
            path = f"{self.paths.log}/{control.name}"
            damage = CorruptSegment(path, control.generation, min(size or 0, control.committed))
            what = "was removed or moved" if size is None else f"has {size} bytes instead of {control.committed}"
            self.notices.append(("segment_changed", f"somebody else changed the active segment, it {what}: {damage}"))
            return self.open_next()
        return segment

    def open_next(self) -> OpenSegment:
        """Seal the current segment and open the next generation."""
        control = self.control
        generation = control.generation
        if control.is_named:
            self._seal_current()
            generation += 1
        elif self._segment is not None:
            self._segment.close()  # another process sealed it
            self._segment = None
        now_ns = self.settings.clock()
        log, names = self.paths.log, self.settings.names
        name = names.after(control.youngest, now_ns, lambda text: name_is_taken(log, text))
        while True:
            # I5: first the name, then the file. Killed in between, the next flush finds a name with 0 bytes
            # committed and creates its file; the other way round an orphan would be left.
            control.advance(generation, now_ns, name)
            try:
                self._segment = self._create_segment(name.text)
                break
            except FileExistsError:
                generation += 1
                name = names.after(name, now_ns, lambda text: name_is_taken(log, text))
        if self.settings.fsync != "never":
            sync_directory(log)
        remove_leftovers(self.paths.state)
        return self._segment

    def seal(self) -> SegmentName | None:
        """Seal the active segment without opening the next; returns its name, None when nothing was in it."""
        control = self.control
        if not control.is_named or not control.committed:
            return None
        sealed, youngest = control.name, control.youngest
        assert youngest is not None, "a named segment has a name"
        self._seal_current()
        control.advance(control.generation + 1, self.settings.clock(), youngest, sealed=True)
        return SegmentName(youngest.stamp_ns, youngest.number, sealed)

    def seal_if_aged(self) -> None:
        """Seal the active segment when its age is reached, though nobody writes."""
        if self.control.is_named and self._is_aged(self.control):
            self.seal()

    def looks_aged(self) -> bool:
        """Whether the active segment's age seems reached. Needs no lock; advice only."""
        control = self.peek()
        return control is not None and control.is_named and self._is_aged(control)

    def appended(self, segment: OpenSegment) -> None:
        """Told after every append, before the commit: makes ``fsync="always"`` true."""
        if self.settings.fsync == "always":
            segment.sync()

    def sync_active(self) -> None:
        """Bring what was committed to the active segment to the device, by whomever it was written."""
        control = self.control
        position = (control.generation, control.committed)
        segment = self.current() if control.committed and position != self._synced else None
        if segment is not None:
            segment.sync()
            self._synced = position

    def set_aside(self, path: str, reason: object) -> None:
        """Rename what cannot be trusted, so that an operator can look at it and nobody reads it again."""
        aside = f"{path}.bad-{time.time_ns()}"
        try:
            os.rename(path, aside)
        except FileNotFoundError:
            return
        self.aside.append(path)
        self.notices.append(("set_aside", f"{path} is damaged ({reason}); it was set aside as {aside}"))

    def _is_aged(self, control: Control) -> bool:
        # abs: when the clock stepped far back, waiting for the old time to come again would be an endless segment.
        return abs(self.settings.clock() - control.opened_ns) >= self.settings.rotate_ns

    def current(self) -> OpenSegment | None:
        """The current segment, opened if need be; None when it is gone."""
        control = self.control
        name = control.name
        if self._segment is not None and self._segment.name != name:
            self._segment.close()
            self._segment = None
        if self._segment is None:
            try:
                if control.committed == 0 and not os.path.lexists(f"{self.paths.log}/{name}"):
                    # Named but never created: its opener was killed in between.
                    self._segment = self._create_segment(name)
                else:
                    self._segment = OpenSegment.open(self.paths.log, name)
                    self._settle(self.settings.file_mode)(self._segment.fd, False)
            except (FileNotFoundError, FileExistsError):
                return None
            except OSError as error:
                if error.errno not in _NO_FILE:
                    raise
                return None
        return self._segment

    def _create_segment(self, name: str) -> OpenSegment:
        mode = self.settings.file_mode
        return OpenSegment.create(self.paths.log, name, mode, self._settle(mode), self.paths.state)

    def _settle(self, mode: int) -> Settle:
        """Gives a file its owner and mode; what cannot be done becomes a notice, for nothing logs under the lock."""

        def settle(fd: int, made: bool) -> None:
            trouble = self.settings.access.settle(fd, mode, self.paths.state, made=made)
            if trouble:
                self.notices.append(("owner", trouble))

        return settle

    def _seal_current(self) -> None:
        """The current segment takes no more bytes. With fsync, they reach the device before it counts as sealed."""
        segment, self._segment = self._segment, None
        name = self.control.name
        try:
            if self.settings.fsync != "never":
                if segment is None or segment.name != name:
                    segment = OpenSegment.open(self.paths.log, name)
                segment.sync()
        except OSError as error:
            self.notices.append(("fsync", f"{self.paths.log}/{name} was sealed without reaching the device: {error}"))
        finally:
            if segment is not None:
                segment.close()

    # Being whole.

    def _open_control(self) -> None:
        if self._control is None or not self._control.is_in_place():
            self._forget_control()
            self._control = self._load_control()
        try:
            self._control.check()
        except BadControl as reason:
            self._forget_control()
            self.set_aside(self.paths.control, reason)
            self._control = self._load_control()
        self.control = self._control

    def _load_control(self) -> Control:
        path, names = self.paths.control, self.settings.names
        try:
            return Control(path)
        except FileNotFoundError:
            pass
        except BadControl as reason:
            self.set_aside(path, reason)
        except OSError as error:
            if error.errno not in _NO_FILE:
                raise
            self.set_aside(path, error)
        # I7: a control file that is lost is rebuilt from the listing, one generation on: nothing is appended to a
        # segment of which it is not known how much counts.
        listing = os.listdir(self.paths.log)
        segments = sum(names.parse_any(text) is not None for text in listing)
        mode = self.settings.access.private_mode
        Control.create(path, mode, segments + 1, names.latest(listing), self._settle(mode))
        return Control(path)

    def _forget_control(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None

    def _finish_interrupted(self, own: Iterable[Spool]) -> None:
        intent = self.control.intent
        for spool in own:
            if spool.id == intent:
                self.finished_flushes += commit.finish(self, spool)
                return
        path = f"{self.paths.spools}/{intent:016x}"
        try:
            spool = Spool.open(path)
        except (FileNotFoundError, BadSpool) as reason:
            # Its bytes are gone with it. What is torn in the segment stays behind: active() opens the next one.
            self.notices.append(("spool_lost", f"the spool of an interrupted flush is lost: {path} ({reason})"))
            self.control.intent = 0
            return
        try:
            self.finished_flushes += commit.finish(self, spool)
        finally:
            spool.close()
