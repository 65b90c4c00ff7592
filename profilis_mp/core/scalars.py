"""What stands in a record for one value, or one key, that JSON has no word for?

Both functions answer for any object at all, raise no Exception of their own or of the value's, and say what they
altered (None: nothing). No code of the value's class runs unless there is no other way (``repr``, ``tzinfo``). What a
signal handler throws in meanwhile, a soft time limit for instance, is the application's and passes through.

    >>> scalar(2**70), scalar(b"caf\\xc3\\xa9"), scalar(float("inf"))
    (('1180591620717411303424', 'int > 64 bits'), ('café', 'bytes'), (None, 'Infinity'))
    >>> key_text(7)
    ('7', 'key int')
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import date, datetime, time
from enum import Enum
from math import isfinite
from typing import Any, TypeAlias
from uuid import UUID

import orjson

from profilis_mp.interrupts import was_thrown_in

__all__ = ["key_text", "scalar", "type_name"]

_MAX_REPR = 1_000  # characters

_Scalar: TypeAlias = str | int | float | bool | orjson.Fragment | None
_Written: TypeAlias = tuple[_Scalar, str | None]


def scalar(value: Any) -> _Written:
    """Return what is written for a value that is no container, and what had to be altered."""
    kind = type(value)
    if kind is bool or value is None:
        return value, None
    try:
        if kind is int and -(1 << 63) <= value < 1 << 64:
            return value, None
        for base, write in _WRITERS:
            if issubclass(kind, base):  # not isinstance: that asks the object for its __class__
                return write(value)
        decimal = sys.modules.get("decimal")  # not imported: then there is no Decimal either
        if decimal is not None and issubclass(kind, decimal.Decimal):
            return decimal.Decimal.__str__(value), "Decimal"
    except Exception as error:
        if was_thrown_in(error):
            raise
    return _by_repr(value)


def key_text(key: Any) -> tuple[str, str | None]:
    """Return the string form of a dict's key, and what had to be altered."""
    kind = type(key)
    if issubclass(kind, str):
        text, altered = _text(key)
        return str(text), "key surrogate" if altered else None
    if key is None or kind is bool:
        return {None: "null", True: "true", False: "false"}[key], f"key {kind.__name__}"
    if issubclass(kind, Enum):
        try:
            inner = key.value
        except Exception as error:
            if was_thrown_in(error):
                raise
            inner = None
        if type(inner) is str or type(inner) is int:
            return key_text(inner)[0], f"key {type_name(key)}"
    written, _ = _by_repr(key) if issubclass(kind, float | Enum) else scalar(key)
    return str(written), f"key {type_name(key)}"


def type_name(value: object) -> str:
    """Return the name of a value's type, past whatever its metaclass makes of ``__name__``."""
    return str(_text(type.__dict__["__name__"].__get__(type(value)))[0])[:80]


def _text(value: str) -> _Written:
    text = str.__str__(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode(), "surrogate"
    return text, None


def _int(value: int) -> _Written:
    number = int.__index__(value)
    if -(1 << 63) <= number < 1 << 64:
        return number, None
    try:
        return str(number), "int > 64 bits"
    except ValueError:  # more digits than sys.get_int_max_str_digits() allows
        return hex(number), "int > 64 bits, hexadecimal"


def _float(value: float) -> _Written:
    number = float.__float__(value)
    if isfinite(number):
        return number, None
    return None, "NaN" if number != number else "Infinity" if number > 0 else "-Infinity"


def _bytes(value: bytes | bytearray | memoryview) -> _Written:
    data = memoryview(value).tobytes()
    try:
        return data.decode(), type_name(value)
    except UnicodeDecodeError:
        import binascii  # seldom needed

        return binascii.b2a_base64(data, newline=False).decode("ascii"), f"{type_name(value)}, base64"


def _datetime(value: datetime) -> _Written:
    try:
        return datetime.isoformat(value), None
    except Exception as error:
        if was_thrown_in(error):
            raise
        return datetime.isoformat(value.replace(tzinfo=None)), "tzinfo failed"


def _time(value: time) -> _Written:
    try:
        return time.isoformat(value), None
    except Exception as error:
        if was_thrown_in(error):
            raise
        return time.isoformat(value.replace(tzinfo=None)), "tzinfo failed"


def _date(value: date) -> _Written:
    return date.isoformat(value), None


def _uuid(value: UUID) -> _Written:
    return UUID.__str__(value), None


def _fragment(value: orjson.Fragment) -> _Written:
    """JSON made elsewhere; here it is looked into, because one newline in it would tear the record."""
    data = orjson.dumps(value)
    try:
        orjson.loads(data)
    except ValueError:
        return data.decode("utf-8", "backslashreplace"), "Fragment, not JSON"
    return orjson.Fragment(data.replace(b"\n", b" ").replace(b"\r", b" ")), None


def _by_repr(value: object) -> _Written:
    name = type_name(value)
    try:
        text = str.__str__(repr(value))
    except Exception as error:
        if was_thrown_in(error):
            raise
        return f"<{name}: repr failed>", f"{name}, repr failed"
    return _text(text[:_MAX_REPR])[0], name if len(text) <= _MAX_REPR else f"{name}, cut"


_WRITERS: tuple[tuple[Any, Callable[[Any], _Written]], ...] = (
    (str, _text),
    (int, _int),
    (float, _float),
    (datetime, _datetime),  # before date, which it is one of
    (date, _date),
    (time, _time),
    (UUID, _uuid),
    ((bytes, bytearray, memoryview), _bytes),
    (orjson.Fragment, _fragment),
)
