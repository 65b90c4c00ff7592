"""Where does a process get a spool from?  From the disk, or from memory where the disk has none to give."""

from __future__ import annotations

import os
import time

from profilis_mp import diagnostics
from profilis_mp.sharedlog.counters import Counters
from profilis_mp.sharedlog.settings import Settings
from profilis_mp.sharedlog.spool import Spool
from profilis_mp.sharedlog.stream import StreamPaths
from profilis_mp.sharedlog.users import why_not

__all__ = ["Supply", "explained"]


class Supply:
    """Makes one process's spools.

    Args:
        paths: The stream's.
        settings: The writer's.
        counters: Where to note why a spool could not be made on disk.

    Attributes:
        flushes_alone: The last one is another user's than the stream, whose helpers may not open it.
    """

    def __init__(self, paths: StreamPaths, settings: Settings, counters: Counters) -> None:
        self.flushes_alone = False
        self._paths = paths
        self._settings = settings
        self._counters = counters
        self._zero_ns = time.time_ns() - time.monotonic_ns()  # ages must not depend on who steps the clock meanwhile
        self._first_ns: dict[None, int] = {}  # when the first spool was made; a dict, for its atomic setdefault

    def create(self, capacity: int, *, framed: bool) -> Spool | None:
        """Return a spool on disk, or in memory when there cannot be one; None when there is no memory either.

        Args:
            capacity: Of what is between header and end, bytes.
            framed: Whether it is one aside.
        """
        access, troubles = self._settings.access, list[str]()
        now_ns = self._zero_ns + time.monotonic_ns()
        # Whoever flushes goes by age. The main spool comes first, whenever it was made or replaced: it takes nothing
        # while there is anything aside.
        first_ns = self._first_ns.setdefault(None, now_ns)
        created_ns = now_ns if framed else first_ns - 1

        def settle(fd: int, made: bool) -> None:
            trouble = access.settle(fd, access.private_mode, self._paths.state, made=made)
            if trouble:
                troubles.append(trouble)

        def make() -> Spool:
            user = os.stat(self._paths.spools).st_uid
            spool = Spool.create(
                self._paths.spools,
                capacity,
                self._settings.limits,
                framed=framed,
                created_ns=created_ns,
                mode=access.private_mode,
                settle=settle,
            )
            self.flushes_alone = user != os.fstat(spool.fd).st_uid and access.private_mode == 0o600
            return spool

        try:
            return self._paths.create(access, make, troubles)
        except OSError as error:
            self._counters.blame(error)
            diagnostics.warn(
                "memory_spool",
                f"{self._paths.spools}: no spool can be created, so events are kept in memory, and die with their "
                f"process, until one can: {explained(error)}",
            )
        finally:
            for trouble in troubles:
                diagnostics.warn("owner", trouble)
        try:
            return Spool.in_memory(capacity, framed=framed, created_ns=created_ns)
        except OSError:
            return None


def explained(error: OSError) -> str:
    """Return what the error says, and of a permission that is missing also whose what is."""
    if isinstance(error, PermissionError) and isinstance(error.filename, str):
        return f"{error}; {why_not(error.filename)}"
    return str(error)
