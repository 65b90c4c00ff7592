"""How are events counted without a lock, when threads and signal handlers count too?

``n += 1`` is three steps, and a lock held by another thread at a fork, or by the very code that a signal handler
interrupted, is held forever. ``itertools.count`` steps in one C call that nothing can interrupt.

    >>> from itertools import count
    >>> tally = count()
    >>> next(tally), next(tally)
    (0, 1)
    >>> steps(tally)
    2
"""

from __future__ import annotations

from itertools import count

__all__ = ["steps"]


def steps(tally: count[int]) -> int:
    """Return how often ``next`` was called on a ``count()``, without calling it once more."""
    # Its text is the only way to look without stepping; copying one is deprecated since Python 3.12.
    return int(repr(tally)[6:-1])
