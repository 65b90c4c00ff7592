"""How does a process that writes nothing lead every stream of a log directory?  `profilis-mp janitor` runs this.

For systemd, a sidecar container, uWSGI's attach-daemon; and for workers in which no thread can run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from profilis_mp import diagnostics
from profilis_mp.errors import ConfigError
from profilis_mp.janitor.janitor import Janitor
from profilis_mp.janitor.sweep import Sweeper, SweepReport
from profilis_mp.janitor.upkeep import Upkeep, recall
from profilis_mp.sharedlog.helper import Helper
from profilis_mp.sharedlog.helping import Helping
from profilis_mp.sharedlog.inventory import streams_of
from profilis_mp.sharedlog.names import SegmentNames
from profilis_mp.sharedlog.settings import Settings, check_log_directory
from profilis_mp.sharedlog.stream import StreamPaths
from profilis_mp.threads import Flag

__all__ = ["OnSweep", "run_janitor", "sweep_once"]

OnSweep = Callable[[str, SweepReport], None]
"""Told a stream's name and what was done for it, in the janitor's thread of that stream."""

_NEW_STREAMS_S = 2.0
_STOP_S = 5.0


def run_janitor(
    dir: str | os.PathLike[str],
    *,
    upkeep: Upkeep | None = None,
    stop: Flag,
    flush_interval: float = 0.5,
    on_sweep: OnSweep | None = None,
) -> None:
    """Flush for all writers, and look after the sealed segments of every stream, until ``stop`` is set.

    A stream that some writer leads already is taken over once that one ends; until then it is only watched.

    Args:
        dir: The log directory. It may have no stream yet.
        upkeep: The rules for every stream; None for what its writers left there (``janitor="external"``), which is read
            again every other second.
        stop: Ends it.
        flush_interval: How often to tick, seconds.
        on_sweep: Told after each sweep.

    Raises:
        ConfigError, LogDirectoryError: ``dir`` cannot be used. Nothing was touched.
    """
    directory = check_log_directory(dir)
    helpers: dict[str, Helper] = {}
    applied: dict[str, Upkeep] = {}
    try:
        while True:
            for names in _streams(directory):
                stream = names.stream
                # Its writers leave them a moment after the stream is there, and may be started again with others.
                rules = _rules(StreamPaths(directory, stream), upkeep)
                if stream not in helpers or applied[stream] != rules:
                    if stream in helpers:
                        helpers.pop(stream).stop(_STOP_S)
                    applied[stream] = rules
                    helpers[stream] = _helper(directory, names, rules, flush_interval, on_sweep)
                    if not helpers[stream].start():
                        raise RuntimeError("no thread can be started")
            if stop.wait(_NEW_STREAMS_S):
                return
    finally:
        for helper in helpers.values():
            helper.stop(_STOP_S)


def sweep_once(dir: str | os.PathLike[str], *, upkeep: Upkeep | None = None) -> dict[str, SweepReport]:
    """Flush everything and sweep every stream once, whoever leads; returns what was done, by stream.

    Raises:
        ConfigError, LogDirectoryError: ``dir`` cannot be used. Nothing was touched.
    """
    directory = check_log_directory(dir)
    reports: dict[str, SweepReport] = {}
    for names in _streams(directory):
        paths = StreamPaths(directory, names.stream)
        settings = Settings.of_operator(directory, names)
        helping = Helping(paths, settings, adopt_limits=True)
        sweeper = Sweeper(paths, settings, _rules(paths, upkeep))
        try:
            helped = helping.round(_STOP_S)
            reports[names.stream] = sweeper.sweep()
            reports[names.stream].failures += [*helped.failures, *helped.not_ours.values()]
        finally:
            sweeper.close()
            helping.close()
    return reports


def _helper(
    directory: str, names: SegmentNames, rules: Upkeep, flush_interval: float, on_sweep: OnSweep | None
) -> Helper:
    paths = StreamPaths(directory, names.stream)

    def told(report: SweepReport) -> None:
        if on_sweep is not None:
            on_sweep(names.stream, report)

    def caretaker(settings: Settings) -> Any:
        return Janitor(settings, rules, told)

    settings = replace(Settings.of_operator(directory, names, flush_interval), caretaker=caretaker)
    return Helper(paths, settings, lambda: True, adopt_limits=True)


def _rules(paths: StreamPaths, upkeep: Upkeep | None) -> Upkeep:
    if upkeep is not None:
        return upkeep
    try:
        return recall(paths.state)
    except (ConfigError, OSError) as error:
        diagnostics.warn("recall", str(error))
        return Upkeep()


def _streams(directory: str) -> list[SegmentNames]:
    try:
        return streams_of(directory)
    except OSError as error:
        diagnostics.warn("streams", f"{directory}: its streams cannot be listed: {error}")
        return []
