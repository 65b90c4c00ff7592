"""Whatever hypothesis nests into an event, it becomes one line; what JSON can hold comes back equal and unmarked."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import uuid
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from profilis_mp.core.encoding import FLAGS, SUSPECT, EventEncoder

utf8 = st.text(st.characters(codec="utf-8"))
plain_leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | utf8
)
plain = st.recursive(plain_leaves, lambda inner: st.lists(inner) | st.dictionaries(utf8, inner), max_leaves=30)
plain_events = st.dictionaries(utf8, plain)


class Unprintable:
    def __repr__(self) -> str:
        raise ValueError

    def __eq__(self, other: object) -> bool:
        raise ValueError

    def __hash__(self) -> int:
        return 1


hashable = (
    plain_leaves
    | st.text()  # lone surrogates too
    | st.integers()
    | st.floats()
    | st.binary()
    | st.decimals()
    | st.datetimes(timezones=st.none() | st.just(datetime.UTC))
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.uuids()
    | st.complex_numbers()
    | st.builds(Unprintable)
)
# Those that the dict itself refuses, or that hypothesis cannot compare, are the unit tests' business.
keys = hashable.filter(lambda key: not isinstance(key, Unprintable | decimal.Decimal))
hostile = st.recursive(
    hashable | st.builds(object) | st.builds(bytearray, st.binary()) | st.builds(iter, st.lists(st.integers())),
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(keys, inner) | st.sets(st.integers() | st.text())
    ),
    max_leaves=30,
)


def one_line(event: object) -> tuple[Any, EventEncoder]:
    encoder = EventEncoder()
    line = encoder.encode(event)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    record = json.loads(line.decode())
    assert (type(record) is dict and "_altered" in record) or not encoder.altered
    return record, encoder


@given(plain_events)
def test_what_json_can_hold_comes_back_equal(event: dict[str, Any]) -> None:
    record, encoder = one_line(event)
    assert record == event
    assert encoder.altered == 0


@given(plain_events)
def test_the_slow_way_says_the_same_as_the_fast_one(event: dict[str, Any]) -> None:
    encoder = EventEncoder()
    assert encoder.mend(event) == orjson.dumps(event, None, FLAGS)
    assert encoder.altered == 0


@given(hostile)
def test_any_object_becomes_one_line(event: object) -> None:
    one_line(event)


def size(value: Any) -> int:
    """How many values a container holds, at all levels."""
    if isinstance(value, dict):
        return sum(1 + size(item) for item in value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return sum(1 + size(item) for item in value)
    return 0


@given(st.dictionaries(utf8.filter(lambda key: "_altered" not in key), hostile))
def test_no_value_is_lost_whatever_happens_to_its_key(event: dict[str, Any]) -> None:
    record, _ = one_line(event)
    record.pop("_altered", None)
    assert size(record) == size(event)


NATURAL = (bool, datetime.date, datetime.time, uuid.UUID)


def needs_a_mark(value: Any) -> bool:
    """An independent reading of which values JSON cannot hold."""
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, str):
        return any("\ud800" <= letter <= "\udfff" for letter in value)
    if value is None or isinstance(value, NATURAL):
        return False
    if isinstance(value, int):
        return not -(2**63) <= value < 2**64
    if isinstance(value, dict):
        return any(not isinstance(key, str) or needs_a_mark(key) or needs_a_mark(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return any(map(needs_a_mark, value))
    return True


@given(st.dictionaries(utf8.filter(lambda key: key != "_altered"), hostile))
@settings(max_examples=300)
def test_an_event_is_marked_exactly_when_json_cannot_hold_it(event: dict[str, Any]) -> None:
    record, encoder = one_line(event)
    assert ("_altered" in record) == needs_a_mark(event)
    assert encoder.altered == needs_a_mark(event)


@given(
    plain_events, st.lists(st.sampled_from([math.nan, math.inf, 2**64, b"x", decimal.Decimal(1), "\udc00"]), min_size=1)
)
def test_every_altered_value_is_marked_under_its_path(event: dict[str, Any], bad: list[Any]) -> None:
    event = {f"k{number}": value for number, value in enumerate(event.values())}
    record, _ = one_line({**event, "bad": bad})
    assert list(record["_altered"]) == [f"bad.{index}" for index in range(len(bad))]
    assert {name: record[name] for name in event} == event


@given(plain_events)
def test_only_a_record_with_the_suspect_bytes_can_have_lost_a_nan(event: dict[str, Any]) -> None:
    record = orjson.dumps({**event, "nan": math.nan}, None, FLAGS)
    assert SUSPECT in record
