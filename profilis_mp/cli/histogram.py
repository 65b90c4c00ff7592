"""What are the percentiles of any number of durations, in memory that does not grow with them?

A value keeps its seven leading bits: values below 128 ns are counted exactly, each greater one in a bucket that is at
most 1/64 of it wide and answers with its middle, so that a percentile is less than 0.8 % off. At most 3,712 buckets
cover every duration; those that nothing fell into take no memory.

    >>> histogram = Histogram()
    >>> for milliseconds in range(1, 1001):
    ...     histogram.add(milliseconds * 1_000_000)
    >>> round(histogram.percentile(50) / 1e6, 1)  # exactly: 500
    501.2
"""

from __future__ import annotations

__all__ = ["RELATIVE_ERROR", "Histogram"]

RELATIVE_ERROR = 1 / 128

_BITS = 7
_HALF = 1 << (_BITS - 1)
_LARGEST = (1 << 63) - 1


class Histogram:
    """Counts of durations.

    Attributes:
        count, total: How many, and their sum, nanoseconds.
        least, most: The extremes, exact; 0 while there are none.
    """

    __slots__ = ("_buckets", "count", "least", "most", "total")

    def __init__(self) -> None:
        self.count = self.total = self.least = self.most = 0
        self._buckets: dict[int, int] = {}

    def add(self, value: int) -> None:
        """Count one duration, nanoseconds; a negative one counts as 0."""
        value = min(max(value, 0), _LARGEST)
        shift = max(0, value.bit_length() - _BITS)
        bucket = shift * _HALF + (value >> shift)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        self.least = value if not self.count or value < self.least else self.least
        self.most = max(value, self.most)
        self.count += 1
        self.total += value

    def percentile(self, percent: float) -> float:
        """The value that ``percent`` of all are not above (nearest rank); 0 while there are none."""
        rank = max(1, -int(-self.count * percent // 100))
        seen = 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= rank:
                return float(min(max(_middle(bucket), self.least), self.most))
        return 0.0


def _middle(bucket: int) -> float:
    shift = max(0, bucket // _HALF - 1)
    lowest = (bucket - shift * _HALF) << shift
    return lowest + ((1 << shift) - 1) / 2
