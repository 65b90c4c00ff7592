"""Any object becomes exactly one line that parses, and what had to be altered shows in it."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import gc
import itertools
import json
import signal
import sys
import threading
import types
import uuid
from typing import Any

import orjson
import pytest

from profilis_mp.core.encoding import FLAGS, SUSPECT, EventEncoder

UTC = datetime.UTC


def encode(event: object) -> tuple[dict[str, Any], EventEncoder]:
    encoder = EventEncoder()
    line = encoder.encode(event)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert line.count(b"\r") == 0
    line.decode("utf-8")
    record = json.loads(line)
    assert type(record) is dict
    assert encoder.altered == ("_altered" in record)
    return record, encoder


def value_of(value: object) -> tuple[Any, dict[str, str]]:
    """What is written for a value, and the marks, of an event whose other values stay as they are."""
    record, _ = encode({"kind": "FN", "x": value, "dur_ns": 5})
    marks = record.pop("_altered", {})
    assert (record["kind"], record["dur_ns"]) == ("FN", 5)
    assert list(record) == ["kind", "x", "dur_ns"]
    return record["x"], marks


class Colour(enum.Enum):
    RED = "red"
    NESTED = ("a", 1)
    LOST = float("nan")


class Level(enum.IntEnum):
    HIGH = 3


@dataclasses.dataclass
class Point:
    x: object = 1
    _private: int = 2


@dataclasses.dataclass(slots=True)
class Slots:
    a: int
    b: int = dataclasses.field(init=False)


class Text(str):
    pass


class Whole(int):
    pass


class Real(float):
    pass


Pair = collections.namedtuple("Pair", "a b")
MOMENT = datetime.datetime(2026, 11, 22, 15, 0, 0, 123)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, None),
        ("null", "null"),
        ([None, {"a": None}, 1.5], [None, {"a": None}, 1.5]),
        (MOMENT, "2026-11-22T15:00:00.000123"),
        (MOMENT.replace(tzinfo=UTC), "2026-11-22T15:00:00.000123+00:00"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (datetime.time(1, 2, 3), "01:02:03"),
        (datetime.time(1, 2, 3, tzinfo=UTC), "01:02:03+00:00"),
        (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (Colour.RED, "red"),
        (Colour.NESTED, ["a", 1]),
        (Level.HIGH, 3),
        (Point(MOMENT), {"x": "2026-11-22T15:00:00.000123"}),
        (Slots(1), {"a": 1}),
        ((1, (2,)), [1, [2]]),
        (Pair(1, MOMENT.date()), [1, "2026-11-22"]),
        (Text("é"), "é"),
        ({Text("k"): Whole(7)}, {"k": 7}),
        (Real(1.5), 1.5),
        (collections.OrderedDict(a=[MOMENT.date()]), {"a": ["2026-11-22"]}),
        (2**64 - 1, 2**64 - 1),
        (-(2**63), -(2**63)),
        ("line\nbreak\r\x00\u2028", "line\nbreak\r\x00\u2028"),
    ],
    ids=lambda case: type(case).__name__,
)
def test_what_json_can_hold_is_written_without_a_mark(value: object, written: object) -> None:
    assert value_of(value) == (written, {})


@pytest.mark.parametrize(
    ("value", "written", "what"),
    [
        (float("nan"), None, "NaN"),
        (float("inf"), None, "Infinity"),
        (-float("inf"), None, "-Infinity"),
        (Real("nan"), None, "NaN"),
        (Colour.LOST, None, "NaN"),
        (2**64, "18446744073709551616", "int > 64 bits"),
        (-(2**63) - 1, "-9223372036854775809", "int > 64 bits"),
        (16**5000, hex(16**5000), "int > 64 bits, hexadecimal"),
        (decimal.Decimal("1.50"), "1.50", "Decimal"),
        (decimal.Decimal("NaN"), "NaN", "Decimal"),
        ("caf\u00e9".encode(), "caf\u00e9", "bytes"),
        (b"\xff\x00", "/wA=", "bytes, base64"),
        (bytearray(b"a"), "a", "bytearray"),
        (memoryview(b"abcd")[::2], "ac", "memoryview"),
        ({3, 1, 2}, [1, 2, 3], "set"),
        (frozenset("b"), ["b"], "frozenset"),
        (collections.deque([1, 2]), [1, 2], "deque"),
        (types.MappingProxyType({"a": 1}), {"a": 1}, "mappingproxy"),
        ("a\ud800b", "a\\ud800b", "surrogate"),
        (range(10**12), "range(0, 1000000000000)", "range"),
        (ValueError("bad"), "ValueError('bad')", "ValueError"),
        (int, "<class 'int'>", "type"),
        (..., "Ellipsis", "ellipsis"),
        (datetime.timedelta(1), "datetime.timedelta(days=1)", "timedelta"),
    ],
    ids=lambda case: type(case).__name__,
)
def test_what_json_cannot_hold_is_written_and_marked(value: object, written: object, what: str) -> None:
    assert value_of(value) == (written, {"x": what})


def test_a_set_that_cannot_be_sorted_is_written_as_iterated() -> None:
    written, marks = value_of({1, "a"})
    assert sorted(written, key=str) == [1, "a"]
    assert marks == {"x": "set"}


def test_paths_lead_to_the_altered_value() -> None:
    record, _ = encode({"a": {"b": [1, {"c": float("nan")}]}, "d": (b"x",)})
    assert record["_altered"] == {"a.b.1.c": "NaN", "d.0": "bytes"}


def test_an_event_with_a_harmless_null_comes_back_as_orjson_wrote_it() -> None:
    encoder = EventEncoder()
    event = {"a": None, "b": "null", "c": [1.5, {"d": None}], "e": ()}
    record = orjson.dumps(event, None, FLAGS)
    assert SUSPECT in record
    assert encoder.mend(event, record) is record
    assert encoder.mend(event) == record
    assert encoder.altered == 0


def test_natural_encodings_match_orjsons_own() -> None:
    event = {
        "at": MOMENT.replace(tzinfo=UTC),
        "day": MOMENT.date(),
        "p": Point(5),
        "s": Pair(1, 2)._asdict(),
        "c": Colour.RED,
    }
    assert EventEncoder().encode(event) == orjson.dumps(event) + b"\n"


@pytest.mark.parametrize(
    ("event", "written"),
    [
        ([1, None], [1, None]),
        (None, None),
        ("text", "text"),
        (5, 5),
        (Point(3), {"x": 3}),
        (MOMENT.date(), "2026-11-22"),
    ],
    ids=repr,
)
def test_an_event_that_is_no_dict_is_written_as_it_is(event: object, written: object) -> None:
    encoder = EventEncoder()
    assert orjson.loads(encoder.encode(event)) == written
    assert encoder.altered == 0


@pytest.mark.parametrize(
    ("event", "written", "where", "what"),
    [(float("nan"), None, "value", "NaN"), ({1}, [1], "value", "set"), ([1, {2}], [1, [2]], "value.1", "set")],
    ids=repr,
)
def test_an_event_that_is_no_dict_is_wrapped_if_something_had_to_be_altered(
    event: object, written: object, where: str, what: str
) -> None:
    encoder = EventEncoder()
    record = orjson.loads(encoder.encode(event))
    assert record == {"value": written, "_altered": {where: what, "": f"not a dict: {type(event).__name__}"}}
    assert encoder.altered == 1


def test_a_dict_subclass_is_an_event() -> None:
    assert encode(collections.OrderedDict(a=1))[0] == {"a": 1}


# -- keys


def test_keys_that_are_no_strings_get_their_string_form() -> None:
    keys: dict[object, str] = {
        1: "a",
        2.5: "b",
        None: "c",
        False: "d",
        (1, 2): "e",
        Level.HIGH: "f",
        MOMENT.date(): "g",
        b"k": "h",
    }
    written, marks = value_of({**keys, Colour.RED: "i", uuid.UUID(int=1): "j", 2**70: "k", float("nan"): "l"})
    assert written == {
        "1": "a", "2.5": "b", "null": "c", "false": "d", "(1, 2)": "e", "3": "f", "2026-11-22": "g", "k": "h",
        "red": "i", str(uuid.UUID(int=1)): "j", str(2**70): "k", "nan": "l",
    }  # fmt: skip
    assert (marks["x.1"], marks["x.null"], marks["x.(1, 2)"]) == ("key int", "key NoneType", "key tuple")
    assert len(marks) == len(written)


def test_keys_that_become_the_same_string_are_kept_apart() -> None:
    written, marks = value_of({1: "int", "1": "str", 1.5: "float", "1.5": "s", "1~2": "taken", b"1": "bytes"})
    assert written == {"1~3": "int", "1": "str", "1.5~2": "float", "1.5": "s", "1~2": "taken", "1~4": "bytes"}
    assert marks == {"x.1~3": "key int, renamed", "x.1.5~2": "key float, renamed", "x.1~4": "key bytes, renamed"}


def test_surrogates_in_keys_are_spelled_out_and_kept_apart() -> None:
    written, marks = value_of({"\udc80": 1, "\\udc80": 2})
    assert written == {"\\udc80~2": 1, "\\udc80": 2}
    assert marks == {"x.\\udc80~2": "key surrogate, renamed"}


def test_an_events_own_altered_key_keeps_its_value() -> None:
    record, _ = encode({"_altered": {"mine": b"x"}, "_altered~2": 2, "n": float("nan")})
    assert record == {
        "_altered~3": {"mine": "x"},
        "_altered~2": 2,
        "n": None,
        "_altered": {"_altered~3.mine": "bytes", "n": "NaN", "_altered~3": "renamed"},
    }
    plain = {"_altered": 1, "at": MOMENT.date(), "none": None}
    assert EventEncoder().encode(plain) == b'{"_altered":1,"at":"2026-11-22","none":null}\n'


# -- size and depth


def test_a_cycle_ends_in_a_marker() -> None:
    loop: dict[str, Any] = {"a": [1]}
    loop["a"].append(loop)
    written, marks = value_of(loop)
    assert written == {"a": [1, "<cycle: dict>"]}
    assert marks == {"x.a.1": "cycle"}


def test_the_same_object_twice_is_no_cycle() -> None:
    shared = [MOMENT.date()]
    assert value_of([shared, shared, {"a": shared}]) == ([["2026-11-22"]] * 2 + [{"a": ["2026-11-22"]}], {})


def test_three_thousand_levels_end_in_a_marker() -> None:
    deep: list[Any] = []
    for _ in range(3000):
        deep = [deep]
    written, marks = value_of(deep)
    assert list(marks.values()) == ["too deep"]
    levels = 1
    while type(written) is list:
        written, levels = written[0], levels + 1
    assert (written, levels) == ("<too deep: list>", 250)


def test_deep_but_allowed_nesting_is_untouched() -> None:
    deep: list[Any] = [None]
    for _ in range(240):
        deep = [deep]
    assert value_of(deep) == (deep, {})


def test_objects_that_all_refer_to_each_other_end_in_markers_soon() -> None:
    # A walk that only noticed cycles took every path through them: 30! of them.
    crowd: list[list[Any]] = [[index] for index in range(30)]
    for member in crowd:
        member.extend(crowd)
    record, _ = encode({"x": crowd[0], "kind": "FN"})
    assert record["kind"] == "FN"
    assert "cycle" in record["_altered"].values()
    assert record["_altered"]["..."].startswith("and ")
    assert len(json.dumps(record)) < 5_000_000


def test_a_three_megabyte_string_passes() -> None:
    assert value_of(["x" * 3_000_000, b"y"]) == (["x" * 3_000_000, "y"], {"x.1": "bytes"})
    assert value_of("é" * 1_500_000 + "\udc80")[0] == "é" * 1_500_000 + "\\udc80"


def test_a_wide_container_passes_and_its_marks_stay_few() -> None:
    written, marks = value_of([float("nan"), 1] * 50_000 + [(0, 0)] * 50_000)
    assert written == [None, 1] * 50_000 + [[0, 0]] * 50_000
    assert len(marks) == 101
    assert marks["..."] == "and 49900 more"


def test_mending_needs_no_stack_of_its_own() -> None:
    deep: list[Any] = [b"x"]
    for _ in range(200):
        deep = [deep]

    def sink(levels: int) -> bytes:
        return sink(levels - 1) if levels else EventEncoder().encode({"x": deep})

    frame, used = sys._getframe(), 0
    while frame is not None:
        frame, used = frame.f_back, used + 1  # type: ignore[assignment]
    line = sink(sys.getrecursionlimit() - used - 60)
    assert json.loads(line)["_altered"][".".join(["x", *["0"] * 201])] == "bytes"


# -- hostile objects


class Bad(Exception):
    pass


def bad(*_: object, **__: object) -> Any:
    raise Bad("hostile")


class BadRepr:
    __repr__ = __str__ = bad


class BadEverything:
    __repr__ = __str__ = __eq__ = __iter__ = __len__ = __bool__ = __getattribute__ = __format__ = bad
    __hash__ = object.__hash__
    __class__ = property(bad)


class Liar:
    __class__ = property(lambda self: dict)

    def __repr__(self) -> str:
        return "Liar()"


class BadDict(dict[Any, Any]):
    __iter__ = keys = items = values = __len__ = __getitem__ = __contains__ = bad


class BadList(list[Any]):
    __iter__ = __len__ = __getitem__ = bad


class BadKey:
    def __hash__(self) -> int:
        return 1

    __eq__ = __repr__ = bad


class BadText(str):
    __str__ = __repr__ = encode = isascii = bad


class BadNumber(int):
    __str__ = __repr__ = __index__ = __int__ = __lt__ = __le__ = __ge__ = bad


def bad_class() -> Any:
    """A class whose metaclass is hostile; made late, because pytest looks at every class of a module."""

    class BadMeta(type):
        __name__ = property(bad)
        __instancecheck__ = __subclasscheck__ = __getattribute__ = bad

    class BadClass(metaclass=BadMeta):
        pass

    return BadClass


class BadZone(datetime.tzinfo):
    utcoffset = dst = tzname = bad


class BadEnum(enum.Enum):
    A = 1

    @property
    def value(self) -> Any:
        raise Bad


class LongRepr:
    def __repr__(self) -> str:
        return "long" * 1000


class SurrogateRepr:
    def __repr__(self) -> str:
        return "<\ud800\n>"


@dataclasses.dataclass
class BadData:
    a: int = 1

    def __getattribute__(self, name: str) -> Any:
        raise Bad


HOSTILE: dict[str, tuple[Any, Any, str | None]] = {
    # name: (how to make it, what is written (None: whatever), its mark ("": none, None: whatever))
    "repr": (BadRepr, "<BadRepr: repr failed>", "BadRepr, repr failed"),
    "everything": (BadEverything, "<BadEverything: repr failed>", "BadEverything, repr failed"),
    "class": (Liar, "Liar()", "Liar"),
    "dict": (lambda: BadDict({1: 2}), {"1": 2}, ""),
    "list": (lambda: BadList([b"x"]), ["x"], ""),
    "key": (lambda: {BadKey(): 1}, {"<BadKey: repr failed>": 1}, ""),
    "str": (lambda: BadText("é"), "é", ""),
    "int": (lambda: BadNumber(3), 3, ""),
    "large int": (lambda: BadNumber(2**65), str(2**65), "int > 64 bits"),
    "metaclass": (lambda: bad_class()(), None, "BadClass"),
    "type": (bad_class, None, "BadMeta"),
    "datetime": (lambda: MOMENT.replace(tzinfo=BadZone()), "2026-11-22T15:00:00.000123", "tzinfo failed"),
    "time": (lambda: datetime.time(1, tzinfo=BadZone()), "01:00:00", "tzinfo failed"),
    "long repr": (LongRepr, "long" * 250, "LongRepr, cut"),
    "surrogate repr": (SurrogateRepr, "<\\ud800\n>", "SurrogateRepr"),
    "dataclass": (BadData, {"a": 1}, ""),
    "empty uuid": (lambda: uuid.UUID.__new__(uuid.UUID), "<UUID: repr failed>", "UUID, repr failed"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_object_is_contained(name: str) -> None:
    make, written, what = HOSTILE[name]
    encoder = EventEncoder()
    record = json.loads(encoder.mend({"kind": "FN", "x": make(), "bytes": b"neighbour"}))
    assert (record["kind"], record["bytes"]) == ("FN", "neighbour")
    if written is not None:
        assert record["x"] == written
    if what is not None:
        assert record["_altered"].get("x", "") == what
    assert encoder.altered == 1


def test_a_hostile_enum_is_contained() -> None:
    # Only where something else brings the event here: orjson itself dies of such an enum.
    record = json.loads(EventEncoder().mend({"x": BadEnum.A}))
    assert record["_altered"]["x"].startswith("BadEnum")


def test_a_datetime_with_a_hostile_zone_never_reaches_orjson() -> None:
    # orjson 3.13.0 dies of SIGSEGV when utcoffset raises.
    with pytest.raises(TypeError):
        orjson.dumps({"at": MOMENT.replace(tzinfo=BadZone())}, None, FLAGS)
    with pytest.raises(TypeError):
        orjson.dumps({"slots": Slots(1)}, None, FLAGS)


def test_generators_are_not_consumed() -> None:
    endless = itertools.count()
    generator = (number for number in endless)
    written, marks = value_of([generator, map(str, endless)])
    assert written[0].startswith("<generator")
    assert set(marks) == {"x.0", "x.1"}
    assert next(endless) == 0


def test_a_mapping_without_end_behind_a_proxy_does_not_hang() -> None:
    class Endless(dict[Any, Any]):
        def items(self) -> Any:
            return ((number, number) for number in itertools.count())

        def __repr__(self) -> str:
            return "Endless()"

    assert value_of(types.MappingProxyType(Endless())) == ("mappingproxy(Endless())", {"x": "mappingproxy"})


def test_a_fragment_on_the_way_through_is_checked() -> None:
    event = {"n": float("nan"), "good": orjson.Fragment(b'{"a":\n1}'), "bad": orjson.Fragment(b'{"a"\n')}
    record, _ = encode(event)
    assert record["good"] == {"a": 1}
    assert record["bad"] == '{"a"\n'
    assert record["_altered"] == {"n": "NaN", "bad": "Fragment, not JSON"}


def test_keyboard_interrupt_passes_through() -> None:
    class Interrupting:
        def __repr__(self) -> str:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        EventEncoder().encode({"x": Interrupting()})


class SoftTimeLimit(Exception):
    pass


def test_what_a_signal_handler_throws_in_is_the_applications() -> None:
    class Slow:
        def __repr__(self) -> str:
            signal.raise_signal(signal.SIGUSR1)
            return "slow"

    def handler(*_: object) -> None:
        raise SoftTimeLimit

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        for event in ({"x": Slow()}, {Slow(): 1}, {"x": [Slow()], "y": b"z"}, Slow()):
            with pytest.raises(SoftTimeLimit):
                EventEncoder().encode(event)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_walk_that_fails_altogether_still_leaves_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(event: object) -> Any:
        raise MemoryError

    monkeypatch.setattr("profilis_mp.core.encoding.mended", no_memory)
    record, encoder = encode({"x": b"y"})
    assert record == {"value": None, "_altered": {"": "could not be encoded"}}
    assert encoder.altered == 1


def test_a_dict_that_another_thread_changes_meanwhile_still_gives_one_line() -> None:
    event: dict[str, Any] = {"x": b"bytes"}
    event.update((str(number), None) for number in range(200))
    stop = threading.Event()

    def churn() -> None:
        for number in itertools.cycle(range(1000)):
            event[f"k{number}"] = number
            event.pop(f"k{number}")
            if stop.is_set():
                return

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(300):
            assert encode(event)[0]["x"] == "bytes"
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(before)


def test_a_dict_that_a_finalizer_changes_meanwhile_still_gives_one_line() -> None:
    # Until Python 3.11 a garbage collection may run between two items of a dict that C code lists.
    event: dict[str, Any] = {"x": b"bytes"}
    event.update((str(number), None) for number in range(3000))

    class Meddler:
        def __init__(self) -> None:
            self.cycle = self

        def __del__(self) -> None:
            event[f"late {len(event)}"] = 1

    before = gc.get_threshold()
    gc.set_threshold(1000, 1000, 1000)
    try:
        for _ in range(20):
            Meddler()
            assert encode(event)[0]["x"] == "bytes"
    finally:
        gc.set_threshold(*before)


def test_altered_events_are_counted_once_each_from_all_threads() -> None:
    encoder = EventEncoder()
    event = {"a": float("nan"), "b": b"x"}

    def work() -> None:
        for _ in range(500):
            encoder.encode(event)
            encoder.encode({"a": None})

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert encoder.altered == 2000
