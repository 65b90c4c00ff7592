"""What do the arguments of several commands have in common?  Types that say what they expect, and shared options."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from profilis_mp.cli.units import moment_of
from profilis_mp.units import bytes_of, seconds_of

__all__ = ["AGE", "DURATION", "MOMENT", "SIZE", "Unusable"]
__all__ += ["directory_argument", "existing", "json_option", "selection", "stream_option"]

Command = TypeVar("Command", bound=Callable[..., Any])


class Unusable(click.ClickException):
    """There is no log here to work on: what a program that calls this should notice."""

    exit_code = 2


class _Quantity(click.ParamType):  # type: ignore[type-arg]  # Click 8.1's takes none
    def __init__(self, name: str, convert: Callable[[str], Any]) -> None:
        self.name = name
        self._convert = convert

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._convert(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _above_zero(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    def converted(text: str) -> Any:
        value = convert(text)
        if not value:
            raise ValueError(f"{text!r} must be more than 0")
        return value

    return converted


DURATION = _Quantity("duration", seconds_of)
AGE = _Quantity("duration", _above_zero(seconds_of))
SIZE = _Quantity("size", _above_zero(bytes_of))
MOMENT = _Quantity("moment", lambda text: moment_of(text, time.time_ns()))

directory_argument = click.argument("directory", metavar="DIR", type=click.Path(file_okay=True))
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
stream_option = click.option("--stream", metavar="NAME", help="Only this stream: its template, as `doctor` names it.")


def selection(command: Command) -> Command:
    """The options that choose events."""
    for option in reversed(
        [
            stream_option,
            click.option("--kind", "kinds", multiple=True, metavar="KIND", help="Only REQ, FN, DB …; may be repeated."),
            click.option("--since", type=MOMENT, help="Not before: how long ago (10m, 1.5h, 7d), or an ISO time."),
            click.option("--until", type=MOMENT, help="Not at or after: as for --since."),
            click.option("--unflushed", is_flag=True, help="Also what still waits in the spools of processes."),
        ]
    ):
        command = option(command)
    return command


def existing(directory: str) -> str:
    """The directory, if it is one that can be listed.

    Raises:
        Unusable: It is not.
    """
    try:
        with os.scandir(directory):
            return os.path.abspath(directory)
    except OSError as error:
        raise Unusable(f"{directory or repr(directory)}: {error.strerror}") from None
