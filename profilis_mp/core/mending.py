"""What becomes of an event that JSON cannot hold?

`mended` copies it into plain dicts, lists and scalars that orjson encodes safely, and says by path what was altered.

Written as orjson writes them, unmarked: datetime, date, time, UUID, enum, dataclass, tuple, namedtuple, subclasses of
dict, list, str, int and float. Marked:

    =====================================  ==================================================================
    value                                  written as
    =====================================  ==================================================================
    NaN, Infinity                          null
    int beyond 64 bits                     decimal string; hexadecimal where Python refuses decimal
    Decimal                                string
    bytes, bytearray, memoryview           text where it is UTF-8, else base64
    set, frozenset, deque                  list; a set's is sorted where it can be
    mappingproxy                           object
    text or key with lone surrogates       each spelled out, as in ``\\udc80``
    key that is not a str                  its string form; with ``~2`` appended where that name is taken
    cycle, nesting beyond 250 levels       a marker string
    an object found over and over          a marker string, once 50,000 values of such objects were written
    anything else                          its ``repr``, 1,000 characters at most
    an event that is no dict and has any   ``{"value": ...}``
    of these in it
    =====================================  ==================================================================

Generators and iterators are not consumed. Nothing here recurses: the caller may be deep in its own stack.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable
from datetime import date, datetime, time
from enum import Enum
from itertools import islice
from math import isfinite
from types import MappingProxyType
from typing import Any, TypeAlias
from uuid import UUID

from profilis_mp.core.scalars import key_text, scalar, type_name
from profilis_mp.interrupts import was_thrown_in

__all__ = ["mended"]

_MAX_DEPTH = 250  # orjson refuses more than 254
_MAX_REPEATS = 50_000
_MAX_PROXIED = 1_000_000  # what a mappingproxy wraps may have no end
_MAX_MARKS = 100
_MAX_PATH = 1_000  # characters

_Key: TypeAlias = str | int | None


def mended(event: object) -> tuple[Any, dict[str, str]]:
    """Return an encodable copy of an event, and what was altered by dotted path (empty: nothing, else it is a dict)."""
    walk = _Walk()
    if not issubclass(type(event), dict):
        clean, marks = walk.copy({"value": event}), walk.marks
        if not marks:
            return clean["value"], marks
        walk.mark(None, None, f"not a dict: {type_name(event)}")
    else:
        clean, marks = walk.copy(event), walk.marks
    if marks and "_altered" in clean:  # the event has such a key itself: its value stays, under another name
        other = _free("_altered", clean, {})
        clean = {other if name == "_altered" else name: value for name, value in clean.items()}
        marks = {other + path[8:] if f"{path}.".startswith("_altered.") else path: what for path, what in marks.items()}
        marks[other] = f"{marks[other]}, renamed" if other in marks else "renamed"
    if walk.unmarked:
        marks["..."] = f"and {walk.unmarked} more"
    return clean, marks


class _Box:
    """Where a container stands: enough to name its path and to notice a cycle."""

    __slots__ = ("depth", "key", "parent", "source")

    def __init__(self, source: object, parent: _Box | None, key: _Key) -> None:
        self.source = source
        self.parent = parent
        self.key = key
        self.depth: int = parent.depth + 1 if parent else 1


class _Walk:
    """Copies one event, with a list of containers still to be filled where others would recurse."""

    def __init__(self) -> None:
        self.marks: dict[str, str] = {}
        self.unmarked = 0
        self._todo: list[tuple[_Box, Any, list[Any]]] = []
        self._seen: dict[int, object] = {}  # by id; holding the objects keeps an id from being used again
        self._repeats = _MAX_REPEATS

    def copy(self, event: Any) -> dict[str, Any]:
        """Return the copy of a dict."""
        clean: dict[str, Any] = self._container(event, None, None, _pairs, {})
        while self._todo:
            box, out, items = self._todo.pop()
            if type(out) is list:
                out.extend([self._value(item, box, index) for index, item in enumerate(items)])
            else:
                self._fill(box, out, items)
        return clean

    def mark(self, box: _Box | None, key: _Key, what: str) -> None:
        """Note what was done to the value under a key of a container."""
        if len(self.marks) >= _MAX_MARKS:
            self.unmarked += 1
            return
        path = _path(box, key)
        before = self.marks.get(path)
        self.marks[path] = what if before in (None, what) else f"{before}, {what}"

    def _value(self, value: Any, box: _Box, key: _Key) -> Any:
        """Return what stands for a value: a scalar, or a container still to be filled."""
        kind = type(value)
        if (kind is str and value.isascii()) or kind is bool or value is None or (kind is float and isfinite(value)):
            return value
        if kind not in _LEAVES:
            try:
                for _ in range(8):  # an enum's value may be a member of another enum or, in a hostile one, itself
                    if not issubclass(kind, Enum):
                        break
                    value = value.value
                    kind = type(value)
                for bases, items_of, new, marked in _CONTAINERS:
                    if issubclass(kind, bases):
                        if marked:
                            self.mark(box, key, type_name(value))
                        return self._container(value, box, key, items_of, new())
                if type(getattr(kind, "__dataclass_fields__", None)) is dict:
                    return self._container(value, box, key, _attributes, {})
            except Exception as error:  # it cannot be looked into, so it is written from outside
                if was_thrown_in(error):
                    raise
        written, altered = scalar(value)
        if altered:
            self.mark(box, key, altered)
        return written

    def _container(
        self, source: Any, box: _Box | None, key: _Key, items_of: Callable[[Any], list[Any]], out: Any
    ) -> Any:
        here = _Box(source, box, key)
        if here.depth > _MAX_DEPTH:
            self.mark(box, key, "too deep")
            return f"<too deep: {type_name(source)}>"
        repeated = id(source) in self._seen
        above = box if repeated else None
        while above:
            if above.source is source:
                self.mark(box, key, "cycle")
                return f"<cycle: {type_name(source)}>"
            above = above.parent
        self._seen[id(source)] = source
        items = items_of(source)
        if repeated:  # twenty objects that all refer to each other have more paths through them than there is time
            nested = any(type(item) not in _LEAVES for item in items)
            self._repeats -= len(items) if nested else len(items) >> 6
            if self._repeats < 0:
                self.mark(box, key, "repeated")
                return f"<repeated: {type_name(source)}>"
        self._todo.append((here, out, items))
        return out

    def _fill(self, box: _Box, out: dict[str, Any], pairs: list[tuple[Any, Any]]) -> None:
        taken = {key for key, _ in pairs if type(key) is str}  # a key that needs no change keeps its name
        suffixes: dict[str, int] = {}
        for key, value in pairs:
            name = key
            if type(key) is not str or not key.isascii():
                name, altered = key_text(key)
                if type(key) is not str or altered:
                    if name in taken:
                        name = _free(name, taken, suffixes)
                        altered = f"{altered}, renamed" if altered else "key renamed"
                    taken.add(name)
                if altered:
                    self.mark(box, name, altered)
            out[name] = self._value(value, box, name)


def _path(box: _Box | None, key: _Key) -> str:
    parts = [] if key is None else [str(key)[:80]]
    while box is not None and box.key is not None:
        parts.append(str(box.key)[:80])
        box = box.parent
    return ".".join(reversed(parts))[:_MAX_PATH]


def _free(name: str, taken: set[str] | dict[str, Any], suffixes: dict[str, int]) -> str:
    """Return a name that is not taken; ``suffixes`` remembers by name where to go on looking."""
    number = suffixes.get(name, 2)
    while f"{name}~{number}" in taken:
        number += 1
    suffixes[name] = number + 1
    return f"{name}~{number}"


def _listing(iterate: Callable[[Any], Iterable[Any]]) -> Callable[[Any], list[Any]]:
    """List a container past its class's own methods, once more if another thread changes it meanwhile."""

    def items_of(source: Any) -> list[Any]:
        for _ in range(100):
            try:
                return list(iterate(source))
            except RuntimeError as error:
                if was_thrown_in(error):
                    raise
        return list(iterate(source))

    return items_of


def _members(source: Any) -> list[Any]:
    members = _listing(frozenset.__iter__ if issubclass(type(source), frozenset) else set.__iter__)(source)
    try:
        return sorted(members)
    except Exception as error:
        if was_thrown_in(error):
            raise
        return members


def _proxied(source: Any) -> list[tuple[Any, Any]]:
    pairs = [(key, value) for key, value in islice(source.items(), _MAX_PROXIED)]
    if len(pairs) == _MAX_PROXIED:
        raise OverflowError
    return pairs


def _attributes(source: Any) -> list[tuple[str, Any]]:
    """A dataclass as orjson writes it: its ``__dict__``, else its slots; no private names, nothing unset."""
    found: dict[str, Any] = {}
    try:
        found.update(_pairs(object.__getattribute__(source, "__dict__")))
    except (AttributeError, TypeError):  # it has slots only
        pass
    for field in dataclasses.fields(type(source)):
        if field.name not in found:
            try:
                found[field.name] = object.__getattribute__(source, field.name)
            except AttributeError:
                pass
    return [(name, value) for name, value in found.items() if type(name) is str and not name.startswith("_")]


_pairs = _listing(dict.items)

_LEAVES = frozenset({str, int, float, bool, type(None), bytes, datetime, date, time, UUID})

_CONTAINERS: tuple[tuple[Any, Callable[[Any], list[Any]], Callable[[], Any], bool], ...] = (
    (dict, _pairs, dict, False),
    (list, _listing(list.__iter__), list, False),
    (tuple, _listing(tuple.__iter__), list, False),
    ((set, frozenset), _members, list, True),
    (deque, _listing(deque.__iter__), list, True),
    (MappingProxyType, _proxied, dict, True),
)
