"""Which commands tell a monitor, or somebody woken by it, how a log directory is?"""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from profilis_mp.cli.options import AGE, directory_argument, json_option

__all__ = ["doctor", "health"]

_flush_interval_option = click.option(
    "--flush-interval", type=AGE, help="What the writers were told, if not 0.5s: events wait that long by right."
)


@click.command(short_help="One line per stream, for monitoring.")
@directory_argument
@_flush_interval_option
@json_option
def health(directory: str, flush_interval: float | None, as_json: bool) -> int:
    """Say in one line per stream in DIR whether it is healthy.

    Exit status 0: healthy. 1: degraded. 2: unhealthy, or there is no log.
    """
    from profilis_mp.cli.checkup import checkup, headline

    found = checkup(directory, flush_interval)
    if as_json:
        said = {"status": found.status, "error": found.error, "failures": found.failures}
        print(json.dumps({**said, "streams": _brief(found.streams)}))
        return found.exit_status
    for stream, one in found.streams.items():
        print(f"{one['status']}  {stream}: {headline(one)}")
    _say(found.error, found.failures)
    return found.exit_status


@click.command(short_help="Everything about each stream, and what to do.")
@directory_argument
@_flush_interval_option
@json_option
def doctor(directory: str, flush_interval: float | None, as_json: bool) -> int:
    """Examine DIR: segments, spools, leader, lag, space, permissions, settings, and what to do about what is wrong.

    Exit status as for health.
    """
    from profilis_mp.cli.checkup import checkup, rows_of
    from profilis_mp.cli.show import printable
    from profilis_mp.cli.table import print_rows

    found = checkup(directory, flush_interval)
    if as_json:
        said = {"status": found.status, "error": found.error, "failures": found.failures}
        print(json.dumps({**said, "directory": found.directory, "streams": found.streams}))
        return found.exit_status
    for stream, one in found.streams.items():
        print(f"{stream}: {one['status']}")
        print_rows(["", ""], rows_of(one))
        for problem in one["problems"]:
            print(f"  ! {printable(problem)}")
    _say(found.error, found.failures)
    if found.status == "healthy":
        print("Nothing to do.")
    return found.exit_status


def _brief(streams: dict[str, Any]) -> dict[str, Any]:
    return {stream: {"status": one["status"], "problems": one["problems"]} for stream, one in streams.items()}


def _say(error: str | None, failures: list[str]) -> None:
    for text in [*([error] if error is not None else []), *failures]:
        print(f"profilis-mp: {text}", file=sys.stderr)
