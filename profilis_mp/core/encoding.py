"""How does any object become exactly one line of JSON?

The hot path (in the exporter) is ``orjson.dumps(event, None, FLAGS)`` followed by ``record.rfind(SUSPECT)``. What that
cannot do, or may have got wrong, comes here: `EventEncoder.mend` returns exactly one line that parses, and says in the
record itself what had to be altered. It raises no Exception but one that a signal handler throws in meanwhile.

    >>> encoder = EventEncoder()
    >>> encoder.encode({"kind": "FN", "dur_ns": 5})
    b'{"kind":"FN","dur_ns":5}\\n'
    >>> encoder.encode({"share": float("nan"), "seen": {2, 1}})
    b'{"share":null,"seen":[1,2],"_altered":{"share":"NaN","seen":"set"}}\\n'
    >>> encoder.altered
    1

What counts as altered is in `profilis_mp.core.mending`. Trusted as it is: an ``orjson.Fragment``, which orjson copies
into the record unseen; one with a newline or with broken JSON inside breaks the record, unless something else brings
the event here, where it is checked.
"""

from __future__ import annotations

from itertools import count
from math import isfinite
from typing import Any

import orjson

from profilis_mp.core.mending import mended
from profilis_mp.core.tally import steps
from profilis_mp.interrupts import was_thrown_in

__all__ = ["FLAGS", "SUSPECT", "EventEncoder"]

FLAGS: int = orjson.OPT_APPEND_NEWLINE | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS
"""Options of every ``orjson.dumps`` of an event.

Datetimes and dataclasses are kept from orjson because it crashes the process (SIGSEGV, seen in 3.13.0) when a
``tzinfo`` raises or a slot is unset; ``dumps`` raises TypeError for them instead and `mend` writes them as orjson does.
A ``default`` function is no way out: Python code in the middle of ``dumps`` lets another thread change the dict that
orjson is walking over, which is the next crash.
"""

SUSPECT: bytes = b"null"
"""A record without these bytes lost no NaN or Infinity: orjson writes those as null and says nothing."""

_HOPELESS = b'{"value":null,"_altered":{"":"could not be encoded"}}\n'
_SEARCHED = 10_000
_PLAIN = frozenset({str, int, bool, type(None)})


class EventEncoder:
    """Encodes events and counts those that could not be written as they were.

    Safe from any thread, signal handler or finalizer: it keeps nothing between calls but the count.
    """

    __slots__ = ("_altered",)

    def __init__(self) -> None:
        self._altered = count()

    @property
    def altered(self) -> int:
        """Events of which something had to be altered."""
        return steps(self._altered)

    def encode(self, event: object) -> bytes:
        """Return the one line of any event; the hot path and `mend` together."""
        record = None
        try:
            record = orjson.dumps(event, None, FLAGS)
            if record.rfind(SUSPECT) < 0:
                return record
        except Exception as error:
            if was_thrown_in(error):
                raise
            record = None
        return self.mend(event, record)

    def mend(self, event: object, record: bytes | None = None) -> bytes:
        """Return the one line of an event that ``orjson.dumps`` refused or may have got wrong.

        Args:
            event: Any object. One that is no dict, and had to be altered, becomes ``{"value": ..., "_altered": ...}``.
            record: What ``orjson.dumps`` made of it if it did not raise; returned as it is where nothing was lost.

        Returns:
            One line, newline included. Where something had to be altered, its last key ``_altered`` maps the dotted
            path of each altered value to what was done, and the event is counted in `altered`.
        """
        try:
            try:
                if _lost_nothing(event, _SEARCHED if record is None else len(record)):
                    return orjson.dumps(event, None, FLAGS) if record is None else record
            except Exception as error:  # refused for one of its keys, or changed by another thread meanwhile
                if was_thrown_in(error):
                    raise
                record = None
            clean, marks = mended(event)
            if not marks:
                return orjson.dumps(clean, None, FLAGS) if record is None else record
            clean["_altered"] = marks
            record = orjson.dumps(clean, None, FLAGS)
        except Exception as error:
            if not isinstance(error, RecursionError | MemoryError) and was_thrown_in(error):
                raise
            # No memory or no stack left: one honest line is still better than none.
            record = _HOPELESS
        next(self._altered)
        return record


def _lost_nothing(event: object, values: int) -> bool:
    """Whether all values are of plain JSON types and none is a NaN: the common event that merely has a None in it.

    ``values`` bounds the search: another thread may be tying the event into a knot meanwhile.
    """
    todo: list[Any] = [(event,)]
    for box in todo:  # grows as it goes
        values -= len(box)
        if values < 0:
            return False
        for value in box.values() if type(box) is dict else box:
            kind = type(value)
            if kind is dict or kind is list or kind is tuple:
                todo.append(value)
            elif kind not in _PLAIN and not (kind is float and isfinite(value)):
                return False
    return True
