"""How many, how many failed, how long did they take?  For each route, function and query, in bounded memory.

A group is a kind of event and what it was about. There are at most ``MOST_GROUPS`` of them, each with a histogram of
bounded size; what comes after that is counted together, so that queries with their values in them do not take all
memory there is.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from profilis_mp.cli.histogram import Histogram
from profilis_mp.cli.show import WHAT, as_error

__all__ = ["MOST_GROUPS", "OTHERS", "Group", "Statistics", "as_json", "statistics_of"]

MOST_GROUPS = 10_000
OTHERS = "(others)"

_PERCENTS = (50, 95, 99)


@dataclass(slots=True)
class Group:
    """Events of one kind that were about one thing."""

    kind: str
    what: str
    events: int = 0
    errors: int = 0
    durations: Histogram = field(default_factory=Histogram)


@dataclass(slots=True)
class Statistics:
    """What a log holds.

    Attributes:
        events: All of them, those that belong to no group included.
        errors: How many of all of them failed.
        first_ns, last_ns: The least and the greatest ``ts_ns``; None where no event has one.
        groups: The groups, those that took the most time first.
        ungrouped: Events that were counted under "(others)" because there were too many groups.
    """

    events: int = 0
    errors: int = 0
    first_ns: int | None = None
    last_ns: int | None = None
    groups: list[Group] = field(default_factory=list)
    ungrouped: int = 0


def statistics_of(events: Iterable[Any], kinds: Iterable[str], most_groups: int = MOST_GROUPS) -> Statistics:
    """Read all events and count.

    Args:
        events: The events; whatever is no JSON object is counted, and no more.
        kinds: Which kinds are grouped.
        most_groups: How many groups there may be; the rest of a kind is one more.
    """
    keys = {kind: WHAT[kind] for kind in kinds}
    found = Statistics()
    groups: dict[tuple[str, str], Group] = {}
    for event in events:
        found.events += 1
        if not isinstance(event, Mapping):
            continue
        failed = as_error(event)
        found.errors += failed
        moment = event.get("ts_ns")
        if type(moment) is int:
            found.first_ns = moment if found.first_ns is None or moment < found.first_ns else found.first_ns
            found.last_ns = moment if found.last_ns is None or moment > found.last_ns else found.last_ns
        kind = event.get("kind")
        if not isinstance(kind, str) or kind not in keys:
            continue
        what = str(event.get(keys[kind], ""))
        group = groups.get((kind, what))
        if group is None:
            if len(groups) >= most_groups:
                what = OTHERS
                found.ungrouped += 1
            group = groups.setdefault((kind, what), Group(kind, what))
        group.events += 1
        group.errors += failed
        duration = event.get("dur_ns")
        if type(duration) is int or type(duration) is float:
            group.durations.add(int(duration))
    found.groups = sorted(groups.values(), key=lambda one: (-one.durations.total, -one.events, one.kind, one.what))
    return found


def as_json(found: Statistics) -> dict[str, Any]:
    """The statistics for a program; durations in nanoseconds."""
    return {
        "events": found.events,
        "errors": found.errors,
        "first_ns": found.first_ns,
        "last_ns": found.last_ns,
        "groups_are_complete": not found.ungrouped,
        "groups": [
            {
                "kind": one.kind,
                WHAT[one.kind]: one.what,
                "events": one.events,
                "errors": one.errors,
                **{f"p{percent}_ns": round(one.durations.percentile(percent)) for percent in _PERCENTS},
                "max_ns": one.durations.most,
                "total_ns": one.durations.total,
            }
            for one in found.groups
        ],
    }


def print_table(found: Statistics, top: int) -> None:
    """The statistics for people, on standard output."""
    from profilis_mp.cli.show import printable
    from profilis_mp.cli.table import print_rows
    from profilis_mp.cli.units import show_duration

    headings = ["kind", "what", ">events", ">errors", *(f">p{percent}" for percent in _PERCENTS), ">max", ">total"]
    rows = []
    for one in found.groups[:top]:
        times = [*(one.durations.percentile(percent) for percent in _PERCENTS), one.durations.most, one.durations.total]
        shown = [show_duration(value) if one.durations.count else "" for value in times]
        rows.append([one.kind, printable(one.what), f"{one.events:,}", f"{one.errors:,}", *shown])
    if rows:
        print_rows(headings, rows)
    if len(found.groups) > top:
        print(f"{len(found.groups) - top:,} more groups that took less time: --top {len(found.groups)}")
    if found.ungrouped:
        print(f"{found.ungrouped:,} events are counted under {OTHERS}: there are more than {MOST_GROUPS:,} groups")
    span = ""
    if found.first_ns is not None and found.last_ns is not None:
        moments = [
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ns / 1e9)) for ns in (found.first_ns, found.last_ns)
        ]
        span = f", from {moments[0]} to {moments[1]}"
    print(f"{found.events:,} events, {found.errors:,} errors{span}")
