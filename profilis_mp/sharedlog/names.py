"""What is a segment called, and which files belong to a stream?

A stream's segments are named by its template: ``{timestamp}`` (the moment of opening, ``{timestamp:%Y%m%d}`` takes a
strftime format), ``{index}`` (``{index:05d}`` a format), ``{app_name}``, ``{hostname}``. Names keep three promises:

* a name is never used twice, not even after its file was deleted;
* names move forward even when the clock steps back;
* no name leaves the log directory, whatever ``app_name`` says.

Without ``{index}``, a second segment with the same timestamp takes a suffix before the extension: ``_001``, because
``_`` sorts after ``.`` and the younger name must sort after the elder.
"""

from __future__ import annotations

import os
import re
import string
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, tzinfo
from typing import NamedTuple
from urllib.parse import quote, unquote

from profilis_mp.errors import ConfigError

__all__ = ["COMPRESSED_SUFFIXES", "SegmentName", "SegmentNames"]

COMPRESSED_SUFFIXES = (".gz", ".zst")

_DEFAULT_STAMP = "%Y%m%d-%H%M%S"
_DEFAULT_INDEX = "03d"
_LONGEST_NAME = 200  # bytes; 255 is what file systems take, the rest is room for suffixes
_UNSAFE = re.compile(r"[/\\\x00-\x1f\x7f-\x9f]|\.\.")
_INDEX_SPEC = re.compile(r"(0\d{1,2})?d?")
_MOMENTS = (951_827_696, 1_190_000_000, 2_000_000_000)  # short and long names of days and months, one and two digits
_YEAR_NS = 367 * 86_400 * 10**9
_NO_HOST = (*COMPRESSED_SUFFIXES, ".tmp")
_LARGEST = 1 << 62  # what the control file takes


class SegmentName(NamedTuple):
    """One name and what it was made of.

    Attributes:
        stamp_ns: The timestamp in the name, nanoseconds since the epoch; 0 for a template without one.
        number: The ``{index}``, from 1; without it the suffix, 0 for none.
        text: The file's name, uncompressed.
    """

    stamp_ns: int
    number: int
    text: str

    def age(self) -> tuple[int, int]:
        """Sorts a stream's names from the eldest to the youngest."""
        return self.stamp_ns, self.number


class SegmentNames:
    """The names of one stream.

    Args:
        template: ``filename_template``.
        app_name: Filled in for ``{app_name}``.
        local_time: Write timestamps in local time instead of UTC.

    Attributes:
        stream: The stream's name: the template with ``app_name`` filled in, safe as a directory name.

    Raises:
        ConfigError: Naming ``filename_template``, ``app_name`` or ``local_time``.
    """

    def __init__(self, template: str, app_name: str = "profilis", *, local_time: bool = False) -> None:
        _check_text("filename_template", template)
        _check_text("app_name", app_name)
        if not isinstance(local_time, bool):
            raise ConfigError("local_time", f"{local_time!r} is neither True nor False")
        self.template = template
        self.local_time = local_time
        self._zone: tzinfo | None = None if local_time else UTC
        self._host = _UNSAFE.sub("_", os.uname().nodename)
        # (literal, field, format) triples; app_name becomes literal here, so it can smuggle no field in.
        self._parts: list[tuple[str, str, str]] = []
        for literal, field, spec in _parse(template):
            if field == "app_name":
                self._parts.append((literal + app_name, "", ""))
            else:
                self._parts.append((literal, field, spec))
        fields = {field for _, field, _ in self._parts}
        self.has_index = "index" in fields
        self._has_stamp = "timestamp" in fields
        if not self.has_index and not self._has_stamp:
            raise ConfigError("filename_template", f"{template!r} needs {{timestamp}} or {{index}}: names must differ")
        self.first_index = 1 if self.has_index else 0
        self._extension_at = self._find_extension()
        self._pattern = self._compile()
        self.stream = quote(
            "".join(_escape(literal) + _field(field, spec) for literal, field, spec in self._parts), safe="{}"
        )
        if len(self.stream) > _LONGEST_NAME:
            raise ConfigError("filename_template", f"gives a stream name of more than {_LONGEST_NAME} bytes")
        for _, field, spec in self._parts:
            if field == "timestamp" and not re.search(r"%[YyGcxsDF]", spec):
                raise ConfigError("filename_template", f"{template!r}: a timestamp without the year comes again")
        for moment in _MOMENTS:
            text = self.render(moment * 10**9, 999).text
            _check_rendered(text)
            name = self.parse(text)
            if name is None:
                raise ConfigError("filename_template", f"gives {text!r}, of which its parts cannot be told any more")
            if self._has_stamp and abs(name.stamp_ns - moment * 10**9) > _YEAR_NS:
                raise ConfigError("filename_template", f"gives {text!r}, a timestamp that comes again")

    @classmethod
    def of_stream(cls, stream: str, *, local_time: bool = False) -> SegmentNames:
        """The names of the stream whose directory is called ``stream``: all that recovery has to go by.

        Raises:
            ConfigError: No template gives such a stream name.
        """
        return cls(unquote(stream), local_time=local_time)

    def render(self, stamp_ns: int, index: int, host: str | None = None) -> SegmentName:
        """The name with this timestamp and index."""
        moment = datetime.fromtimestamp(stamp_ns / 1e9, self._zone)
        text: list[str] = []
        for position, (literal, field, spec) in enumerate(self._parts):
            if position == self._extension_at and not self.has_index and index:
                stem, dot, extension = literal.partition(".")
                literal = f"{stem}_{index:03d}{dot}{extension}"
            text.append(literal)
            if field == "timestamp":
                text.append(moment.strftime(spec))
            elif field == "index":
                text.append(format(index, spec))
            elif field == "hostname":
                text.append(self._host if host is None else host)
        return SegmentName(stamp_ns if self._has_stamp else 0, index, "".join(text))

    def after(self, elder: SegmentName | None, now_ns: int, taken: Callable[[str], bool]) -> SegmentName:
        """The name for a segment opened at ``now_ns`` whose predecessor was ``elder``.

        Args:
            elder: The stream's youngest name so far; None for the first.
            now_ns: The clock, nanoseconds since the epoch; may have stepped back.
            taken: Whether a file of that name exists, in any form.
        """
        if elder is None:
            name = self.render(now_ns, self.first_index)
        else:
            name = self.render(max(now_ns, elder.stamp_ns), self.first_index)
            again = self.render(elder.stamp_ns, self.first_index).text
            # Local time goes back once a year; the last timestamp before that serves for the hour.
            if again == name.text or (self.local_time and _local(name.stamp_ns) < _local(elder.stamp_ns)):
                name = self.render(elder.stamp_ns, elder.number + 1)
        while taken(name.text):
            name = self.render(name.stamp_ns, name.number + 1)
        return name

    def parse(self, text: str) -> SegmentName | None:
        """What ``text`` was made of, or None when this stream's template cannot have produced it."""
        match = self._pattern.fullmatch(text)
        if match is None:
            return None
        groups = match.groupdict()
        host = groups.get("hostname") or ""
        if host != self._host and match.end() == match.end("hostname" if host else 0) and host.endswith(_NO_HOST):
            return None  # the compressed form of a name that ends with the host's, or an unfinished copy
        stamp_ns = 0
        if self._has_stamp:
            spec = next(spec for _, field, spec in self._parts if field == "timestamp")
            try:
                moment = datetime.strptime(groups["timestamp"], spec)
                moment = moment.replace(tzinfo=self._zone) if self._zone is not None else moment
                stamp_ns = int(moment.timestamp()) * 10**9 + moment.microsecond * 1000
            except (ValueError, OverflowError, OSError):
                return None
        index = int(groups["index"]) if groups.get("index") else 0
        if not 0 <= stamp_ns < _LARGEST or index >= _LARGEST:
            return None
        name = self.render(stamp_ns, index, groups.get("hostname"))
        return name if name.text == text else None

    def parse_any(self, text: str) -> SegmentName | None:
        """As :meth:`parse`, for a plain or a compressed segment alike."""
        name = self.parse(text)
        for suffix in COMPRESSED_SUFFIXES:
            if name is None and text.endswith(suffix):
                name = self.parse(text.removesuffix(suffix))
        return name

    def latest(self, listing: Iterable[str]) -> SegmentName | None:
        """The youngest of the stream's names in a directory listing, compressed ones included."""
        return max(filter(None, map(self.parse_any, listing)), key=SegmentName.age, default=None)

    def _find_extension(self) -> int:
        """Which part holds the extension: the first literal with a dot after the last field (-1: none)."""
        last_field = max(position for position, (_, field, _) in enumerate(self._parts) if field)
        for position in range(last_field + 1, len(self._parts)):
            if "." in self._parts[position][0]:
                return position
        # No extension: the suffix goes to the very end.
        self._parts.append(("", "", ""))
        return len(self._parts) - 1

    def _shape_of_stamp(self, spec: str) -> str:
        """A pattern for the timestamp: so many digits here and there, if that is what it always looks like."""
        shapes = {re.sub(r"\d", "0", datetime.fromtimestamp(moment, self._zone).strftime(spec)) for moment in _MOMENTS}
        return re.escape(shapes.pop()).replace("0", r"\d") if len(shapes) == 1 else ".+?"

    def _compile(self) -> re.Pattern[str]:
        pattern: list[str] = []
        seen: set[str] = set()
        for position, (literal, field, spec) in enumerate(self._parts):
            if position == self._extension_at and not self.has_index:
                stem, dot, extension = literal.partition(".")
                pattern.append(re.escape(stem) + r"(?:_(?P<index>\d{3,}))?" + re.escape(dot + extension))
            else:
                pattern.append(re.escape(literal))
            if field and field in seen:
                pattern.append(f"(?P={field})")
            elif field:
                seen.add(field)
                shape = self._shape_of_stamp(spec) if field == "timestamp" else "[0-9]+" if field == "index" else ".+?"
                pattern.append(f"(?P<{field}>{shape})")
        return re.compile("".join(pattern), re.DOTALL)


def _local(stamp_ns: int) -> datetime:
    """What a clock on the wall showed."""
    return datetime.fromtimestamp(stamp_ns / 1e9)


def _parse(template: str) -> list[tuple[str, str, str]]:
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError("filename_template", f"{template!r}: {error}") from None
    parts: list[tuple[str, str, str]] = []
    for literal, field, spec, conversion in pieces:
        if field is None:
            parts.append((literal, "", ""))
            continue
        spec = spec or ""
        if field not in {"timestamp", "index", "app_name", "hostname"}:
            raise ConfigError("filename_template", f"{template!r}: unknown field {{{field}}}")
        if conversion or (spec and field in {"app_name", "hostname"}):
            raise ConfigError("filename_template", f"{template!r}: {{{field}}} takes no format")
        if field == "index" and not _INDEX_SPEC.fullmatch(spec or _DEFAULT_INDEX):
            raise ConfigError("filename_template", f"{template!r}: {{index}} takes a format such as 05d")
        if field == "timestamp" and "{" in spec:
            raise ConfigError("filename_template", f"{template!r}: no field inside a format")
        defaults = {"timestamp": _DEFAULT_STAMP, "index": _DEFAULT_INDEX}
        parts.append((literal, field, spec or defaults.get(field, "")))
    return parts


def _check_text(argument: str, text: object) -> None:
    if not isinstance(text, str):
        raise ConfigError(argument, f"must be a str, not {type(text).__name__}")
    if not text:
        raise ConfigError(argument, "must not be empty")
    if _UNSAFE.search(text):
        raise ConfigError(argument, f"{text!r} may not hold a path separator, '..' or a control character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(argument, f"{text!r} is not valid Unicode") from None


def _check_rendered(text: str) -> None:
    if _UNSAFE.search(text):
        raise ConfigError(
            "filename_template", f"gives {text!r}, with a path separator, '..' or a control character in it"
        )
    if text.startswith("."):
        raise ConfigError("filename_template", f"gives {text!r}: a segment may not be a hidden file")
    if text.endswith(".tmp"):
        raise ConfigError("filename_template", f"gives {text!r}: .tmp is kept for unfinished files")
    if len(os.fsencode(text)) > _LONGEST_NAME:
        raise ConfigError("filename_template", f"gives a name of more than {_LONGEST_NAME} bytes")


def _escape(literal: str) -> str:
    return literal.replace("{", "{{").replace("}", "}}")


def _field(field: str, spec: str) -> str:
    """The field as it stands in the stream's name; default formats are left out so that it reads like the template."""
    if not field:
        return ""
    default = {"timestamp": _DEFAULT_STAMP, "index": _DEFAULT_INDEX}.get(field, "")
    return f"{{{field}}}" if spec == default else f"{{{field}:{spec}}}"
