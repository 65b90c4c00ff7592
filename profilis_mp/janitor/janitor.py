"""Who sweeps, and when?  A thread in the leader, woken by what happens in the log directory."""

from __future__ import annotations

from collections.abc import Callable

from profilis_mp import diagnostics
from profilis_mp.janitor import held
from profilis_mp.janitor.sweep import Sweeper, SweepReport
from profilis_mp.janitor.upkeep import Upkeep
from profilis_mp.janitor.watch import Watch
from profilis_mp.sharedlog.settings import Settings
from profilis_mp.sharedlog.stream import StreamPaths
from profilis_mp.threads import Flag, name_thread, serve, start

__all__ = ["Janitor"]

_RETRY_S = 10.0
_PAUSE_S = 0.1  # one sweep for what happens at once


class Janitor:
    """Looks after one stream's sealed segments while its process leads.

    Args:
        settings: Whose directory, names and clock apply.
        upkeep: The rules.
        on_sweep: Told after every sweep, in the janitor's thread.
    """

    def __init__(
        self,
        settings: Settings,
        upkeep: Upkeep,
        on_sweep: Callable[[SweepReport], None] | None = None,
    ) -> None:
        paths = StreamPaths(settings.dir, settings.names.stream)
        self._log = paths.log
        self._on_sweep = on_sweep
        self._stop = Flag()
        self._wake = Flag()
        self._ended = Flag()
        self._started = False
        self._watch = Watch(paths.log, lambda file: settings.names.parse(file) is not None, self._wake.set)
        self._sweeper = Sweeper(paths, settings, upkeep, self._stop.is_set, self._wake.is_set)

    def start(self) -> bool:
        """Start the thread, a daemon; returns whether it can run."""
        self._started = start(self._run)
        if not self._started:
            diagnostics.warn(
                "janitor",
                f"{self._log}: nothing is compressed or expired, because no thread can run in this process: "
                "let `profilis-mp janitor` do it",
            )
        return self._started

    def stop(self, timeout_s: float) -> None:
        """End the thread; a copy half made is given up. Waits at most ``timeout_s`` seconds."""
        self._stop.set()
        self._wake.set()
        if self._started:
            self._ended.wait(timeout_s)

    def is_opening(self) -> bool:
        """Whether a fork just now could give the child a descriptor that it does not know of."""
        return held.is_opening()

    def abandon(self) -> None:
        """In a forked child: close what was inherited, unlocking nothing."""
        self._sweeper.close()
        self._watch.abandon()
        held.abandon()

    def _run(self) -> None:
        name_thread("pmp-janitor")
        serve()
        try:
            while True:
                self._wake.clear()  # before looking at _stop: stop() sets that first
                if self._stop.is_set():
                    break
                report = self._sweep()
                self._wake.wait(report.next_s)
                self._stop.wait(_PAUSE_S)
        finally:
            try:
                self._watch.close()
                self._sweeper.close()
            finally:
                self._ended.set()

    def _sweep(self) -> SweepReport:
        try:
            self._watch.ensure()  # loads watchdog, for which there may be no descriptors just now
            report = self._sweeper.sweep()
            if self._on_sweep is not None:
                self._on_sweep(report)
        except Exception as error:
            diagnostics.warn("sweep", f"{self._log}: sweeping failed, it is tried again: {error!r}")
            report = SweepReport(failures=[repr(error)], next_s=_RETRY_S)
        diagnostics.debug("sweep of %s: %s", self._log, report)
        return report
