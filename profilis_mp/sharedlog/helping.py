"""Whose events are still in a spool, and how do they get out when their process sleeps, hangs or is dead?

``head`` moves only under the directory lock and ``tail`` is one word, so whoever holds the lock can flush any spool.
:class:`Helping` does that for all spools of a stream; ``helper`` has it done again and again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from profilis_mp.errors import LockTimeout
from profilis_mp.sharedlog import commit
from profilis_mp.sharedlog.settings import Settings
from profilis_mp.sharedlog.spool import UNFINISHED, BadSpool, Spool, spool_id_of
from profilis_mp.sharedlog.stream import Stream, StreamPaths
from profilis_mp.sharedlog.users import why_not

__all__ = ["Helped", "Helping"]


@dataclass(slots=True)
class Helped:
    """What one round of helping did.

    Attributes:
        flushed_bytes: Bytes moved from spools into segments.
        dead_spools: Spools of dead processes drained and removed.
        live_spools: Spools whose owners are alive.
        timed_out: Whether another process kept the directory lock all the time.
        failures: What could not be done now, as text; it is tried again in the next round.
        not_ours: Spools that this process has no permission to open, by name, as text. While their owners live, those
            flush them; after that, root or their user must.
    """

    flushed_bytes: int = 0
    dead_spools: int = 0
    live_spools: int = 0
    timed_out: bool = False
    failures: list[str] = field(default_factory=list)
    not_ours: dict[str, str] = field(default_factory=dict)


class Helping:
    """Flushes other processes' spools. For one thread; its descriptors are its own, so flock works within a process.

    Args:
        paths: The stream's files.
        settings: The helper's; its limits apply to what it flushes.
        adopt_limits: Apply each spool's own limits instead, for a helper that has none.
    """

    def __init__(self, paths: StreamPaths, settings: Settings, *, adopt_limits: bool = False) -> None:
        self.stream = Stream(paths, settings)
        self._paths = paths
        self._adopt_limits = adopt_limits
        self._spools: dict[str, Spool] = {}

    def round(self, timeout_s: float) -> Helped:
        """Flush every spool that holds bytes; drain and remove those of the dead.

        Args:
            timeout_s: Longest wait for the directory lock, seconds. Who keeps it ends the round.
        """
        helped = Helped()
        try:
            listing = sorted(os.listdir(self._paths.spools))
        except (FileNotFoundError, NotADirectoryError):
            listing = []  # nothing was ever written, or the state directory is gone: its writers will notice
        except OSError as error:
            listing = []
            helped.failures.append(f"{self._paths.spools}: {error}")
        for name in self._spools.keys() - set(listing):
            self._spools.pop(name).close()
        for name in listing:
            if name.endswith(UNFINISHED):
                Spool.remove_unfinished(f"{self._paths.spools}/{name}")
            elif spool_id_of(name) is not None:
                self._open(name, helped)
        # The eldest first: what one process wrote into two of its spools keeps its order.
        for name, spool in sorted(self._spools.items(), key=lambda item: item[1].created_ns):
            if not helped.timed_out:
                self._help(name, spool, timeout_s, helped)
        return helped

    def close(self) -> None:
        """Close everything, unlocking nothing."""
        for spool in self._spools.values():
            spool.close()
        self._spools.clear()
        self.stream.close()

    def _help(self, name: str, spool: Spool, timeout_s: float, helped: Helped) -> None:
        try:
            dead = spool.owner_is_dead()
            helped.live_spools += not dead
            if dead or spool.unflushed:
                if self._adopt_limits:
                    self.stream.settings = self.stream.settings.with_limits(spool.limits)
                try:
                    self.stream.acquire(timeout_s)
                    helped.flushed_bytes += commit.flush(self.stream, spool)
                    if dead:
                        helped.dead_spools += spool.unlink()
                finally:
                    self.stream.give_back()
            if dead:
                self._forget(name)
        except BadSpool as reason:
            self._set_aside(name, reason)
        except OSError as error:
            helped.timed_out = isinstance(error, LockTimeout)
            # Closed, not kept: it gives back the lifetime lock of a dead spool, so that another may drain it.
            self._forget(name)
            helped.failures.append(f"{self._paths.spools}/{name}: {error}")

    def _open(self, name: str, helped: Helped) -> None:
        """Have the spool of that name among ``_spools``, if it can be had and trusted."""
        spool = self._spools.get(name)
        if spool is not None and not spool.is_in_place():
            self._forget(name)
            spool = None
        try:
            if spool is None:
                self._spools[name] = Spool.open(f"{self._paths.spools}/{name}")
            else:
                spool.check()
        except FileNotFoundError:
            pass
        except BadSpool as reason:
            self._set_aside(name, reason)
        except PermissionError as error:
            helped.not_ours[name] = f"{error}; {why_not(f'{self._paths.spools}/{name}')}"
        except OSError as error:
            helped.failures.append(f"{self._paths.spools}/{name}: {error}")

    def _set_aside(self, name: str, reason: BadSpool) -> None:
        self._forget(name)
        self.stream.set_aside(f"{self._paths.spools}/{name}", reason)

    def _forget(self, name: str) -> None:
        spool = self._spools.pop(name, None)
        if spool is not None:
            spool.close()
