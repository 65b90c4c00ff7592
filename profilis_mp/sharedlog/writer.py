"""How do I append bytes to a log directory that other processes append to as well?

>>> import tempfile
>>> from pathlib import Path
>>> directory = tempfile.mkdtemp()
>>> with SharedWriter(directory) as log:
...     log.write(b'{"hello":"world"}\\n')
>>> next(Path(directory).glob("*.jsonl")).read_text()
'{"hello":"world"}\\n'
"""

from __future__ import annotations

import atexit
import os
import sys
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, NamedTuple, Self, TypedDict

from profilis_mp import diagnostics
from profilis_mp.janitor.role import role_of
from profilis_mp.janitor.upkeep import Upkeep
from profilis_mp.sharedlog import forks
from profilis_mp.sharedlog.control import BadControl, Control
from profilis_mp.sharedlog.counters import Counters
from profilis_mp.sharedlog.fastpath import NO_FAST_PATH, Door, Encoding, fast_path
from profilis_mp.sharedlog.names import SegmentNames
from profilis_mp.sharedlog.segment import name_is_taken
from profilis_mp.sharedlog.session import Session
from profilis_mp.sharedlog.settings import Fsync, OnFull, Settings, check_log_directory
from profilis_mp.sharedlog.users import Owner, resolve_owner

__all__ = ["Segment", "SharedWriter", "WriterStats", "writers_here"]


class Segment(NamedTuple):
    """One segment.

    Attributes:
        path: The file, absolute.
        size_bytes: Its length.
    """

    path: str
    size_bytes: int


class WriterStats(TypedDict):
    """What happened in this process since it started, or was forked.

    Keys:
        events: Records accepted; each is in its segment or will be.
        dropped: Records not written, by reason (no_space, quota, io_error, lock_timeout …).
        flushes: Flushes this process did for itself.
        flush_failures: Flushes put off, by reason; nothing is lost by them.
        aside: Records that went around an append they interrupted, and opaque ones.
        unflushed_bytes: Bytes in this process's spools now.
        spool: "file"; "memory" when none could be created and the guarantee is weakened; None before the first record.
        leading: Whether this process's helper is the stream's leader.
    """

    events: int
    dropped: dict[str, int]
    flushes: int
    flush_failures: dict[str, int]
    aside: int
    unflushed_bytes: int
    spool: Literal["file", "memory"] | None
    leading: bool


class SharedWriter:
    """Appends records to the rotating segments of a log directory, from any number of processes.

    When ``write`` has returned, ``kill -9`` of any process at any instant neither loses, duplicates nor tears the
    record. Threads may share a writer; a forked child may go on using its parent's; a pickled one opens the same stream
    elsewhere. Nothing is on disk before the first record.

    Args:
        dir: The log directory; created when the first record is written.
        rotate_bytes: No segment grows beyond this, unless one record alone does. Bytes.
        rotate_secs: A segment this old is sealed, even when nobody writes. Seconds.
        filename_template: Names the segments: ``{timestamp}`` (with a strftime format if you like), ``{index}``,
            ``{app_name}``, ``{hostname}``.
        app_name: Filled in for ``{app_name}``.
        local_time: Timestamps in names in local time instead of UTC.
        buffer_size: This process flushes by itself when more than this waits in its spool. Bytes.
        flush_interval: A record is in its segment within two of these, whoever flushes it. Seconds.
        spool_bytes: The spool's capacity: what can wait while the lock is stuck or the disk is full. Bytes.
        lock_timeout: The longest that ``write`` waits, once, for a lock that another process keeps. Seconds.
        on_full: When the spool is full and cannot be flushed: "drop" the new record and count it, or "block" for up to
            lock_timeout first.
        fsync: "never": the kernel writes back when it likes. "seal": a segment is on the device before it counts as
            sealed. "interval": also the active one, every flush_interval. "always": before ``write`` returns.
        file_mode: Permissions of segments, whatever the umask. Who may write them (0o660: the group) may also use the
            state directory's files, which are for their owner alone otherwise.
        dir_mode: Permissions of the directories that are made, the log directory among them, whatever the umask. None:
            0o750 for the state directory, and the log directory as the umask says. With 0o2750 all files get the
            directory's group.
        owner: Whose everything is that root makes: "www-data", "www-data:adm", a user id, or (user id, group id); a
            user alone brings his login group. None: what root makes belongs to whom the directory belongs.
        upkeep: What becomes of sealed segments; None leaves them alone.
        janitor: Whether this process may lead: tick for the others, and apply ``upkeep``. True; False; or "external",
            which leaves both to ``profilis-mp janitor``, and ``upkeep`` in the stream's state directory for it to find.
        clock: Nanoseconds since the epoch, for names and ages.

    Raises:
        ConfigError: Naming the argument that was refused.
        LogDirectoryError: The directory cannot be created or written, or is on a network file system.

    Source: ARCHITECTURE.md.
    """

    def __init__(
        self,
        dir: str | os.PathLike[str] = "./logs",
        *,
        rotate_bytes: int = 10 * 1024 * 1024,
        rotate_secs: float = 3600,
        filename_template: str = "profilis-{timestamp}.jsonl",
        app_name: str = "profilis",
        local_time: bool = False,
        buffer_size: int = 64 * 1024,
        flush_interval: float = 0.5,
        spool_bytes: int | None = None,
        lock_timeout: float = 1.0,
        on_full: OnFull = "drop",
        fsync: Fsync = "never",
        file_mode: int = 0o640,
        dir_mode: int | None = None,
        owner: Owner = None,
        upkeep: Upkeep | None = None,
        janitor: bool | Literal["external"] = True,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._arguments: dict[str, Any] = {
            "dir": check_log_directory(dir),  # absolute, for whoever unpickles this elsewhere
            "rotate_bytes": rotate_bytes,
            "rotate_secs": rotate_secs,
            "filename_template": filename_template,
            "app_name": app_name,
            "local_time": local_time,
            "buffer_size": buffer_size,
            "flush_interval": flush_interval,
            "spool_bytes": spool_bytes,
            "lock_timeout": lock_timeout,
            "on_full": on_full,
            "fsync": fsync,
            "file_mode": file_mode,
            "dir_mode": dir_mode,
            "owner": owner,
            "upkeep": upkeep,
            "janitor": janitor,
            "clock": clock,
        }
        self._settings = Settings(
            dir=self._arguments["dir"],
            names=SegmentNames(filename_template, app_name, local_time=local_time),
            rotate_bytes=rotate_bytes,
            rotate_secs=rotate_secs,
            buffer_size=buffer_size,
            spool_bytes=spool_bytes if spool_bytes is not None else max(_SPOOL_BYTES, 2 * _whole(buffer_size)),
            flush_interval=flush_interval,
            lock_timeout=lock_timeout,
            on_full=on_full,
            fsync=fsync,
            file_mode=file_mode,
            dir_mode=dir_mode,
            owner=resolve_owner(owner),
            clock=clock,
            **role_of(upkeep, janitor),
        )
        self._fast = NO_FAST_PATH
        self._at_exit: Callable[[], None] | None = None
        self._finalizer: Any = None
        self._finalizer_pid = 0
        diagnostics.enable_debug_from_environment()
        _writers.append(weakref.ref(self, _forget))
        self._session = self._new_session(Counters())

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self._arguments)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            self.close(timeout_s=0.0)
            if self._at_exit is not None:
                atexit.unregister(self._at_exit)
            if self._finalizer is not None:
                self._finalizer.cancel()
        except Exception:  # half-built, or the interpreter is going; the spool keeps everything
            pass

    @property
    def dir(self) -> str:
        """The log directory, absolute."""
        return self._settings.dir

    def write(self, record: bytes) -> None:
        """Append one record; it is crash-safe when this returns. Raises nothing about the disk or the lock.

        One newline-terminated line may share a batch with others. Any other bytes are opaque: they are appended whole,
        never split over two segments. After ``close`` a record is still written, at once and without a buffer.

        Args:
            record: Its bytes, newline included.

        Raises:
            TypeError: ``record`` is not bytes. Nothing was written.
        """
        if not isinstance(record, bytes):
            raise TypeError(f"record must be bytes, not {type(record).__name__}")
        if record:
            self._live_session().append_record(record)

    def prepare(self, owner: Owner = None) -> None:
        """Make the log directory and the state directory now, as ``owner`` and ``dir_mode`` say.

        For a root master that writes nothing itself, and whose workers may not make a directory there.

        Args:
            owner: Whose they shall be where the writer was told nothing.

        Raises:
            ConfigError: There is no such owner.
            LogDirectoryError: Something else has the state directory's name.
            OSError: They cannot be made.
        """
        access = self._settings.access
        access = access if access.owner is not None else replace(access, owner=resolve_owner(owner))
        troubles: list[str] = []
        self._session.paths.create(access, lambda: None, troubles)
        for trouble in troubles:
            diagnostics.warn("owner", trouble)

    def flush(self, timeout_s: float | None = None) -> bool:
        """Bring everything this process has written into its segment.

        Args:
            timeout_s: Longest wait for the directory lock, seconds; None is ``lock_timeout``.

        Returns:
            Whether it is all there. If not, it is safe in the spool and ``stats()`` says why.
        """
        session = self._live_session()
        return session.flush(self._settings.lock_timeout if timeout_s is None else timeout_s)

    def rotate(self, *, timeout_s: float = 5.0) -> Segment | None:
        """Flush, then seal the active segment; the next flush opens the next generation.

        Args:
            timeout_s: Longest wait for the directory lock, seconds; 0 tries once.

        Returns:
            The segment just sealed; None when there was nothing in it.

        Raises:
            LockTimeout: Another process held the lock. Nothing was sealed.
            OSError: The flush failed; what was not flushed is still in the spool. Nothing was sealed.

        Durability:
            With ``fsync="seal"`` or stricter, the bytes are on the device before this returns.

        Source: ARCHITECTURE.md, "Rotation".
        """
        name = self._live_session().rotate(timeout_s)
        if name is None:
            return None
        path = f"{self.dir}/{name.text}"
        try:
            return Segment(path, os.stat(path).st_size)
        except FileNotFoundError:  # somebody was quick
            return Segment(path, 0)

    def close(self, timeout_s: float | None = None) -> bool:
        """Flush, remove this process's spool and end its helper thread. May be called twice, and runs at exit.

        Args:
            timeout_s: Longest wait for the directory lock, seconds; None is ``lock_timeout``.

        Returns:
            Whether everything is in its segment. If not, it stays in the spool, and the next process that helps, or
            :func:`profilis_mp.recover`, flushes it.
        """
        return self._session.close(self._settings.lock_timeout if timeout_s is None else timeout_s)

    def stats(self) -> WriterStats:
        """What happened in this process; see :class:`WriterStats`."""
        session = self._live_session()
        counters, helper = session.counters, session.helper
        return {
            "events": session.events(),
            "dropped": dict(counters.dropped),
            "flushes": counters.flushes,
            "flush_failures": dict(counters.flush_failures),
            "aside": counters.aside,
            "unflushed_bytes": session.unflushed(),
            "spool": session.spool_kind(),
            "leading": helper is not None and helper.leading,
        }

    @property
    def current_path(self) -> str | None:
        """The active segment's path, absolute; None while there is none. Another process may rotate any moment."""
        control = self._glance()
        return f"{self.dir}/{control.name}" if control is not None and control.is_named else None

    def next_path(self) -> str:
        """The path that a segment opened now would get."""
        control = self._glance()
        elder = control.youngest if control is not None else None
        directory = self.dir
        now_ns = self._settings.clock()
        name = self._settings.names.after(elder, now_ns, lambda text: name_is_taken(directory, text))
        return f"{directory}/{name.text}"

    # Sessions: one per process, made when the process is found to be another.

    def encode_with(self, encoding: Encoding) -> None:
        """Offer appends that encode; see :meth:`door`. Called once, before anything is written."""
        self._fast = fast_path(encoding)
        self._session = self._new_session(self._session.counters)

    def door(self, otherwise: Callable[[bytes], None]) -> Door:
        """Return a fast append that encodes, and counts for itself.

        Args:
            otherwise: Gets each line that cannot go the fast way, and hands it to :meth:`append_record`. It must keep
                the writer alive: who has nothing but the append expects it to be open.
        """
        return self._fast.door(otherwise)

    def append_record(self, record: bytes) -> None:
        """Append one record with all the care that the fast path leaves out."""
        self._live_session().append_record(record)

    def _new_session(self, counters: Counters, *, late: bool = False, behind: bool = False) -> Session:
        # Weak, so that a writer that everybody has forgotten is closed; its session then forwards to nobody.
        reference = weakref.WeakMethod(self.append_record)

        def forward(record: bytes) -> None:
            append_record = reference()
            if append_record is not None:
                append_record(record)

        reference_to_self = weakref.ref(self)

        def opening(session: Session) -> None:
            writer = reference_to_self()
            forks.note(session, go_on)
            if writer is not None:
                writer._register_exit_hooks()

        def go_on() -> None:
            writer = reference_to_self()
            if writer is not None and not writer._session.retired:
                writer._live_session().take_part()

        return Session(self._settings, self._fast, opening, forward, counters, late=late, behind=behind)

    def _live_session(self) -> Session:
        """This process's session. Takes no lock, because after a fork any lock may be held by nobody for ever."""
        session = self._session
        while session.retired or not session.mark:
            # In a forked child even a session that the parent had closed starts afresh, and so do the counters.
            forked = not session.mark
            new = self._new_session(
                Counters(-self._fast.appended()) if forked else session.counters,
                late=session.retired and not forked,
                behind=session.left_behind and not forked,
            )
            heir = session.heir.setdefault("session", new)  # atomic: of two threads, both go on with one
            if forked and heir is new:
                session.abandon()  # what the fork hooks would have done, where they did not run
            session = heir
        self._session = session
        return session

    def _register_exit_hooks(self) -> None:
        """Close at exit: events become visible sooner. Nothing depends on it; what stays behind, others flush."""
        if self._at_exit is None:
            self._at_exit = _closer(weakref.ref(self))
            atexit.register(self._at_exit)
        # A child of multiprocessing ends with os._exit: only its finalizers run. They are per process, and those of
        # the parent are wiped when the child starts.
        util = sys.modules.get("multiprocessing.util")
        if util is not None:
            pid, armed = os.getpid(), self._finalizer
            if armed is None or self._finalizer_pid != pid or not armed.still_active():
                self._finalizer = util.Finalize(None, self._at_exit, exitpriority=0)
                self._finalizer_pid = pid

    def _glance(self) -> Control | None:
        """The control file, without the lock."""
        try:
            return Control.glance(self._session.paths.control)
        except (OSError, BadControl):
            return None


_SPOOL_BYTES = 1 << 20


def _whole(value: Any) -> int:
    """``value`` if it is a usable size; Settings refuses it otherwise."""
    return value if isinstance(value, int) and 0 < value < 1 << 40 else 0


def _rebuild(cls: type[SharedWriter], arguments: dict[str, Any]) -> SharedWriter:
    return cls(**arguments)


def _closer(reference: weakref.ref[SharedWriter]) -> Callable[[], None]:
    def close() -> None:
        writer = reference()
        if writer is not None:
            writer.close()

    return close


# All that live, for `writers_here`.
_writers: list[weakref.ref[SharedWriter]] = []


def _forget(reference: weakref.ref[SharedWriter]) -> None:
    try:
        _writers.remove(reference)
    except ValueError:
        pass


def writers_here() -> list[SharedWriter]:
    """The writers of this process that somebody still holds, those that it inherited by a fork among them."""
    return [writer for reference in tuple(_writers) if (writer := reference()) is not None]
