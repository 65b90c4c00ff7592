"""How far has long work come?  A bar on standard error, if that is a terminal; nothing at all in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from profilis_mp.sharedlog.inventory import segment_files, streams_of

__all__ = ["reading_with_progress", "working"]

_EVERY = 4096  # events between two looks at how far it is


def reading_with_progress(reading: Any, directory: str) -> Iterable[Any]:
    """The events of a reader, with a bar that counts the segments it has opened."""
    return _with_bar(reading, directory) if sys.stderr.isatty() else reading


@contextmanager
def working(what: str) -> Iterator[None]:
    """A bar that only shows that something goes on, and since when, for the length of a block."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn(what), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        bar.add_task("", total=None)
        yield


def _with_bar(reading: Any, directory: str) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    total = sum(len({one.segment for one in segment_files(directory, names)}) for names in streams_of(directory))
    columns = (TextColumn("reading"), BarColumn(), MofNCompleteColumn(), TextColumn("segments"), TimeRemainingColumn())
    # Gone when it is done: what stays on the terminal is the answer.
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        for number, event in enumerate(reading):
            if number % _EVERY == 0:
                bar.update(task, completed=max(0, reading.report.segments - 1))
            yield event
