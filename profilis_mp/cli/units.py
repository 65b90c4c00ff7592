"""How do people write moments, and how are durations and sizes shown to people?

What they write for durations and sizes is in `profilis_mp.units`.

>>> moment_of("10m", 1_000_000_000_000)
400000000000
>>> show_duration(15_200_000), show_bytes(10_485_760)
('15.2ms', '10.0M')
"""

from __future__ import annotations

import math
from datetime import datetime

from profilis_mp.units import seconds_of

__all__ = ["counted", "moment_of", "show_bytes", "show_duration", "show_seconds"]


def moment_of(text: str, now_ns: int) -> int:
    """A moment, nanoseconds since the epoch: how long ago (``10m``), or an ISO 8601 date or time.

    A time without an offset is local time.

    Raises:
        ValueError: Saying what a moment looks like.
    """
    try:
        return now_ns - int(seconds_of(text) * 1e9)
    except ValueError:
        pass
    try:
        return int(datetime.fromisoformat(text.strip()).timestamp() * 1e6) * 1000
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"{text!r} is neither a duration such as 10m nor a time such as 2026-11-22T15:00") from None


def show_duration(nanoseconds: float) -> str:
    """Three significant digits and a unit."""
    for unit, size in (("ns", 1.0), ("µs", 1e3), ("ms", 1e6), ("s", 1e9)):
        if abs(nanoseconds) < 999.5 * size:
            return f"{nanoseconds:.0f}ns" if unit == "ns" else _three_digits(nanoseconds / size) + unit
    return show_seconds(nanoseconds / 1e9)


def show_seconds(seconds: float) -> str:
    """A longer time in its largest unit."""
    for unit, size, limit in (("s", 1, 120), ("m", 60, 120), ("h", 3600, 48)):
        if abs(seconds) < limit * size:
            return _three_digits(seconds / size) + unit
    return _three_digits(seconds / 86_400) + "d"


def counted(count: int, what: str) -> str:
    """Such as ``1 file`` or ``2 files``."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def show_bytes(size: float) -> str:
    """One digit after the point and a unit; powers of 1024."""
    if abs(size) < 1024:
        return f"{size:.0f}B"
    for unit in "KMGT":
        size /= 1024
        if abs(size) < 1023.95 or unit == "T":
            break
    return f"{size:.1f}{unit}"


def _three_digits(value: float) -> str:
    if value == 0:
        return "0"
    value = float(f"{value:.3g}")  # first, or 0.9999 would get four of them
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"
