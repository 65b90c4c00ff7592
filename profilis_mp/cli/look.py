"""Which commands show events?  They read, and change nothing."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from profilis_mp.cli.options import directory_argument, existing, json_option, selection

if TYPE_CHECKING:
    from profilis_mp.reader.read import Order
    from profilis_mp.reader.report import ReadReport

__all__ = ["cat", "stats", "tail"]


@click.command(short_help="Show the last events, and those to come.")
@directory_argument
@click.option("-f", "--follow", is_flag=True, help="Go on with what is emitted from now on, across rotations.")
@click.option("-n", "--lines", type=click.IntRange(0), default=10, show_default=True, help="How many of the last.")
@selection
@click.option("--raw", "--json", "raw", is_flag=True, help="The lines as they are in the log.")
def tail(directory: str, follow: bool, lines: int, raw: bool, **chosen: Any) -> int:
    """Show the last events in DIR by their time: when, kind, duration, outcome, what it was, and the rest.

    Colours only on a terminal, and not where NO_COLOR is set.
    """
    from profilis_mp.cli.tail import show_tail

    if follow and chosen["unflushed"]:
        raise click.UsageError("--unflushed is of no use with --follow: what waits now comes in a moment.")
    reading = show_tail(existing(directory), lines, follow=follow, raw=raw, **_chosen(chosen))
    return _ended(reading.report, directory)


@click.command(short_help="Print every event, as it is in the log.")
@directory_argument
@selection
@click.option("--order", type=click.Choice(["segment", "time"]), default="segment", show_default=True)
def cat(directory: str, order: Order, **chosen: Any) -> int:
    """Print the lines of every event in DIR, of compressed segments too, each once.

    By segment, in the order in which they were written; or by the time of the events.
    """
    from profilis_mp.cli.progress import reading_with_progress
    from profilis_mp.reader.read import read_lines

    reading = read_lines(existing(directory), order=order, **_chosen(chosen))
    # A bar between the lines would help nobody.
    sys.stdout.buffer.writelines(reading if sys.stdout.isatty() else reading_with_progress(reading, directory))
    sys.stdout.buffer.flush()
    return _ended(reading.report, directory)


@click.command(short_help="Events, errors and percentiles, in a table.")
@directory_argument
@click.option("--by", multiple=True, type=click.Choice(["route", "fn", "query"]), help="May be repeated; else by all.")
@click.option("--top", type=click.IntRange(1), default=20, show_default=True, help="How many rows of the table.")
@selection
@json_option
def stats(directory: str, by: tuple[str, ...], top: int, as_json: bool, **chosen: Any) -> int:
    """Count events and errors in DIR, with p50, p95 and p99, per route, function and query.

    Those that took the most time together come first. Memory does not grow with the log: percentiles are at most 1 %
    off, and beyond 10,000 groups the rest is counted together. An error is a status of 500 or above, a true "error", a
    named exception, or a log message of level ERROR or CRITICAL.
    """
    from profilis_mp.cli.progress import reading_with_progress
    from profilis_mp.cli.show import WHAT
    from profilis_mp.cli.stats import as_json as to_json
    from profilis_mp.cli.stats import print_table, statistics_of
    from profilis_mp.reader.read import read_events

    log = existing(directory)
    reading = read_events(log, **_chosen(chosen))
    kinds = [kind for kind, key in WHAT.items() if not by or key in by]
    found = statistics_of(reading_with_progress(reading, log), kinds)
    if as_json:
        print(json.dumps({**to_json(found), "skipped": _skipped(reading.report)}))
    else:
        print_table(found, top)
    return _ended(reading.report, directory)


def _ended(report: ReadReport, directory: str) -> int:
    """Say on standard error what was skipped; returns the exit status: 2 when there was nothing to read at all."""
    if not report.segments and not report.events and report.complete:
        print(f"profilis-mp: {directory} holds no log: nobody has written to it yet", file=sys.stderr)
        return 2
    skipped = {what: count for what, count in _skipped(report).items() if count}
    if skipped:
        told = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in skipped.items())
        print(f"profilis-mp: skipped: {told}; the first: {report.findings[0]}", file=sys.stderr)
    return 0


def _skipped(report: ReadReport) -> dict[str, int]:
    names = ("torn", "oversize", "damaged_segments", "damaged_spools", "expired_segments")
    return {name: getattr(report, name) for name in names}


def _chosen(chosen: dict[str, Any]) -> dict[str, Any]:
    return {**chosen, "kinds": chosen["kinds"] or None}
