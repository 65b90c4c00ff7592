"""What does one event look like to somebody who watches a terminal?

One line: local time, kind, duration, outcome, what it was, and the rest as ``key=value``. Events are written by
applications whose routes and queries may come from outside: control characters are shown as escapes and never reach
the terminal.

    >>> pretty({"kind": "FN", "fn": "load", "dur_ns": 12_000_000, "error": True, "worker": 3})
    '-                  FN    12.0ms ERR load  worker=3'
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, TypeGuard

from profilis_mp.cli.units import show_duration

__all__ = ["WHAT", "as_error", "pretty", "printable"]

# Which key says what an event of a kind was about.
WHAT = {"REQ": "route", "FN": "fn", "DB": "query"}

_SHOWN = frozenset({"ts_ns", "kind", "dur_ns", "error", "status", *WHAT.values()})
_OF_A_MESSAGE = frozenset({"ts_ns", "kind", "level", "logger", "message"})
_IDS = ("trace_id", "span_id")  # long, and seldom what one looks for: last
_LONGEST_REST = 200  # characters of one value
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

Style = Callable[[str, str], str]


def pretty(event: Any, style: Style = lambda text, role: text) -> str:
    """One line for one event, without its newline.

    Args:
        event: Whatever a line held; anything but a JSON object is shown as it is.
        style: Given a text and its role (time, kind, error, what, rest), returns it as the terminal should get it.
    """
    if not isinstance(event, Mapping):
        return printable(_compact(event))
    failed = as_error(event)
    kind = str(event.get("kind", "-"))
    status = event.get("status")
    outcome = str(status) if status is not None else "ERR" if failed else ""
    duration = event.get("dur_ns")
    shown = show_duration(duration) if _is_number(duration) else ""
    what, told = event.get(WHAT.get(kind, ""), ""), _SHOWN
    if kind == "LOG":
        what, told = f"{event.get('level')} {event.get('logger', '-')}: {event.get('message')}", _OF_A_MESSAGE
    keys = sorted((key for key in event if key not in told), key=_IDS.__contains__)
    rest = " ".join(f"{key}={_value(event[key])}" for key in keys)
    parts = [
        style(f"{_moment(event.get('ts_ns')):<18}", "time"),
        style(printable(f"{kind:<4}"), "kind"),
        f"{shown:>7}",
        style(printable(f"{outcome:<3}"), "error" if failed else "rest"),
        style(printable(what if isinstance(what, str) else _compact(what)), "what"),
    ]
    if rest:
        parts.append(" " + style(printable(rest), "rest"))
    return " ".join(parts).rstrip()


def as_error(event: Mapping[str, Any]) -> bool:
    """Whether an event tells of a failure.

    ``error`` says so, an exception is named, the status is 500 or above, or it is a log message of ERROR or above.
    """
    status = event.get("status")
    if event.get("error") or "exception_type" in event or (_is_number(status) and status >= 500):
        return True
    return event.get("kind") == "LOG" and event.get("level") in ("ERROR", "CRITICAL")


def printable(text: str) -> str:
    r"""The text with nothing in it that moves a terminal's cursor: control characters become ``\x1b`` and the like."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


def _moment(ts_ns: Any) -> str:
    try:
        return datetime.fromtimestamp(ts_ns / 1e9).strftime("%m-%d %H:%M:%S.%f")[:-3]
    except (TypeError, ValueError, OverflowError, OSError):
        return "-"


def _value(value: Any) -> str:
    text = value if isinstance(value, str) and value and " " not in value else _compact(value)
    return text if len(text) <= _LONGEST_REST else text[: _LONGEST_REST - 1] + "…"


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
