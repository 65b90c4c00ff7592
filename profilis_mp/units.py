"""How do people write durations and sizes?

In the environment, in a logging configuration and on the command line alike:

>>> seconds_of("1.5h"), seconds_of("90"), seconds_of("500ms")
(5400.0, 90.0, 0.5)
>>> bytes_of("10MB"), bytes_of("64KiB"), bytes_of("2G"), bytes_of("512")
(10485760, 65536, 2147483648, 512)

K, KB and KiB are all 1024 bytes, as in ``rotate_bytes=10*1024*1024  # 10MB``.
"""

from __future__ import annotations

import re

__all__ = ["bytes_of", "seconds_of"]

_SECONDS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_BYTES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_LONGEST_S = 1e9
_LARGEST = 1 << 62


def seconds_of(text: str) -> float:
    """A duration such as ``90s``, ``10m``, ``1.5h``, ``7d``; a number alone is seconds.

    Raises:
        ValueError: Saying what a duration looks like.
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(ms|[smhdw]?)", text.strip().lower(), re.ASCII)
    if match is None:
        raise ValueError(f"{text!r} is no duration such as 90s, 10m, 1.5h or 7d")
    seconds = float(match[1]) * _SECONDS[match[2]]
    if seconds > _LONGEST_S:
        raise ValueError(f"{text!r} is too long")
    return seconds


def bytes_of(text: str) -> int:
    """A size such as ``500K``, ``10MB``, ``2GiB``; powers of 1024, a number alone is bytes.

    Raises:
        ValueError: Saying what a size looks like.
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([KMGT]?)(?:I?B)?", text.strip().upper(), re.ASCII)
    if match is None:
        raise ValueError(f"{text!r} is no size such as 500K, 10M or 2G")
    if len(match[1]) > 40:  # nobody's size, and int() would rather not
        raise ValueError(f"{text!r} is too large")
    whole, _, fraction = match[1].partition(".")
    size: int = int(whole + fraction) * _BYTES[match[2]] // 10 ** len(fraction)  # exact, as a float would not be
    if size >= _LARGEST:
        raise ValueError(f"{text!r} is too large")
    return size
