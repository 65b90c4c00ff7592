"""What do the arguments of the usual file handlers mean for a log that many processes share?

Those of `RotatingFileHandler` and of concurrent-log-handler's `ConcurrentRotatingFileHandler` are taken as they are, so
that a configuration changes in one line. What cannot be kept is refused by name, never dropped:

    ====================================  ==============================================================================
    argument                              here
    ====================================  ==============================================================================
    filename                              ``logs/app.log``: the directory ``logs``, segments ``app-{timestamp}.log``.
                                          A name with ``{timestamp}`` or ``{index}`` in it is the template itself
    mode                                  "a". "w" where maxBytes makes it "a" in the file handlers, too
    maxBytes                              ``rotate_bytes``; 0: never by size; not given: 10 MiB. And never by age,
                                          unless ``rotate_secs`` is given
    backupCount                           ``max_files`` is one more, the active segment; 0: nothing is ever removed
    encoding                              UTF-8
    errors                                "backslashreplace": what UTF-8 cannot hold is spelled out
    delay                                 either; the first record makes the file
    use_gzip                              ``compress_old_files``
    chmod                                 ``file_mode``
    owner                                 ``owner``
    newline, terminator                   "\\n"
    keep_file_open                        True
    debug                                 False; ``PROFILIS_DEBUG=1`` does that
    umask, lock_file_directory            refused
    unicode_error_policy                  refused: nothing is left out or replaced
    when, interval, utc, atTime           refused: ``rotate_secs`` is a segment's age
    ====================================  ==============================================================================
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Callable, Mapping
from typing import Any

from profilis_mp.errors import ConfigError
from profilis_mp.exporters.options import mode_of, number_of, options_of
from profilis_mp.sharedlog.names import COMPRESSED_SUFFIXES
from profilis_mp.units import bytes_of

__all__ = ["NEVER_BY_SIZE", "exporter_arguments"]

NEVER_BY_SIZE = (1 << 62) - 1
"""``rotate_bytes`` that no segment reaches."""
_NEVER_BY_AGE = 1e9  # seconds; the most that rotate_secs takes

_REFUSED = {
    "umask": "cannot be kept: file_mode= is the mode of segments, whatever the umask",
    "lock_file_directory": "cannot be kept: locks and spools are in .profilis-mp in the log directory",
    "unicode_error_policy": "cannot be kept: nothing is left out or replaced; what UTF-8 cannot hold is spelled out",
    "when": "cannot be kept: rotate_secs= is the age at which a segment is sealed, not a time of day",
    "interval": "cannot be kept: rotate_secs= is the age at which a segment is sealed",
    "atTime": "cannot be kept: rotate_secs= is the age at which a segment is sealed, not a time of day",
    "utc": "cannot be kept: segments are named in UTC unless local_time=True",
    "namer": "cannot be kept: filename_template= names the segments",
    "rotator": "cannot be kept: nothing is renamed; compress_old_files= compresses",
    "stream": "cannot be kept: there is no stream; give filename=",
    "clock": "is not for logging: a record has its own time",
}
_ONLY: dict[str, tuple[Any, ...]] = {
    "newline": (None, "\n"),
    "terminator": (None, "\n"),
    "keep_file_open": ("true", "True", True),
    "debug": (None, "false", "False", False),
    "errors": (None, "backslashreplace"),
}
_CHECKED = frozenset({"filename", "mode", "encoding", "delay"})
_WORDS = {"true": True, "false": False}


def exporter_arguments(kind: type, given: Mapping[str, Any], *, text: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the arguments for an exporter, and by argument how its user calls it where that is not the same.

    Args:
        kind: The exporter's class.
        given: What the user gave: arguments of the file handlers and options of the exporter; text is read as in the
            environment (``"10MB"``, ``"0640"``).
        text: Whether plain lines are to be written.

    Raises:
        ConfigError: Naming the argument that was refused.
    """
    options = options_of(kind)
    arguments: dict[str, Any] = {}
    called: dict[str, str] = {}

    def put(option: str, value: Any, name: str) -> None:
        if option in arguments:
            raise ConfigError(name, f"is given, and {called[option]} as well; give one of them")
        arguments[option] = value
        called[option] = name

    for name, value in given.items():
        if value is None and (name in _REFUSED or name == "owner"):
            continue  # as good as not given
        if name in _REFUSED:
            raise ConfigError(name, _REFUSED[name])
        if name in _ONLY:
            if not any(value is one or (value == one and isinstance(value, str)) for one in _ONLY[name]):
                raise ConfigError(name, f"{value!r} cannot be kept: it is always {_ONLY[name][-1]!r} here")
        elif name in _MEANINGS:
            _MEANINGS[name](value, put)
        elif name not in _CHECKED:
            if name not in options:
                raise ConfigError(name, f"is no option of a file handler or of {kind.__name__}")
            put(name, _read(options[name].parse, name, value), name)
    _check_mode(given)
    _check_encoding(given.get("encoding"))
    if given.get("delay") is not None:
        _switch("delay", given["delay"])
    if given.get("filename") is not None:
        directory, template = _places(given["filename"], text=text)
        put("dir", directory, "filename")
        put("filename_template", template, "filename")
        arguments.setdefault("rotate_secs", _NEVER_BY_AGE)
    elif "dir" not in arguments:
        raise ConfigError("filename", "is missing: give filename=, dir= or exporter=")
    arguments.setdefault("filename_template", "log-{timestamp}.log" if text else "log-{timestamp}.jsonl")
    return arguments, called


Put = Callable[[str, Any, str], None]


def _max_bytes(value: Any, put: Put) -> None:
    size = _whole("maxBytes", _read(bytes_of, "maxBytes", value))
    put("rotate_bytes", size or NEVER_BY_SIZE, "maxBytes")


def _backup_count(value: Any, put: Put) -> None:
    count = _whole("backupCount", _read(number_of, "backupCount", value))
    put("max_files", count + 1 if count else None, "backupCount")


def _use_gzip(value: Any, put: Put) -> None:
    put("compress_old_files", _switch("use_gzip", value), "use_gzip")


def _chmod(value: Any, put: Put) -> None:
    if value is not None:
        put("file_mode", _read(mode_of, "chmod", value), "chmod")


_MEANINGS: dict[str, Callable[[Any, Put], None]] = {
    "maxBytes": _max_bytes,
    "backupCount": _backup_count,
    "use_gzip": _use_gzip,
    "chmod": _chmod,
}


def _read(parse: Callable[[str], Any], name: str, value: Any) -> Any:
    """What is meant by a value that may have been written as text."""
    if not isinstance(value, str):
        return value
    try:
        return parse(value)
    except ValueError as error:
        raise ConfigError(name, str(error)) from None


def _switch(name: str, value: Any) -> bool:
    flag = _WORDS.get(value.lower(), value) if isinstance(value, str) else value
    if not isinstance(flag, bool):
        raise ConfigError(name, f"{value!r} is neither True nor False")
    return flag


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(name, f"{value!r} is no whole number from 0 on")
    return value


def _check_mode(given: Mapping[str, Any]) -> None:
    mode = given.get("mode", "a")
    if mode == "a" or (mode == "w" and given.get("maxBytes") not in (None, 0, "0")):
        return
    raise ConfigError("mode", f"{mode!r} cannot be kept: other processes write to the same log, which is only added to")


def _check_encoding(encoding: Any) -> None:
    try:
        utf8 = encoding is None or codecs.lookup(encoding).name == "utf-8"
    except (LookupError, TypeError):
        utf8 = False
    if not utf8:
        raise ConfigError("encoding", f"{encoding!r} cannot be kept: a segment is UTF-8")


def _places(filename: Any, *, text: bool) -> tuple[str, str]:
    """The directory and the template that a file's name stands for."""
    if not isinstance(filename, (str, os.PathLike)) or not isinstance(os.fspath(filename), str):
        raise ConfigError("filename", f"{filename!r} is no path")
    directory, name = os.path.split(os.path.abspath(filename))
    if os.fspath(filename).endswith("/") or not name:
        raise ConfigError("filename", f"{filename!r} is a directory's name; for that there is dir=")
    if name.endswith(COMPRESSED_SUFFIXES):
        raise ConfigError("filename", f"{filename!r} says that it is compressed; compress_old_files= does that later")
    if "{timestamp" in name or "{index" in name:
        return directory, name
    stem, extension = os.path.splitext(name.replace("{", "{{").replace("}", "}}"))
    return directory, f"{stem}-{{timestamp}}{extension or ('.log' if text else '.jsonl')}"
