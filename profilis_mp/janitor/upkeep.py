"""What shall become of sealed segments?  Compressed or not, and kept for how long."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from profilis_mp import diagnostics
from profilis_mp.compression import compressor
from profilis_mp.errors import ConfigError
from profilis_mp.sharedlog.ownership import Access
from profilis_mp.sharedlog.words import open_regular

__all__ = ["SUFFIXES", "Upkeep", "recall", "record"]

SUFFIXES = {"gzip": ".gz", "zstd": ".zst"}
_LEVELS = {"gzip": range(1, 10), "zstd": range(1, 20)}
_LONGEST_S = 1e9


@dataclass(frozen=True, slots=True)
class Upkeep:
    """One stream's rules, checked.

    Args:
        compress_old_files: Compress sealed segments.
        compression: "gzip", or "zstd" (the extra ``zstd``).
        compression_level: 1 to 9 for gzip, 1 to 19 for zstd; None is 1, the fastest.
        compress_delay_secs: Compress a segment this long after its last write, so that log shippers that still read
            it can finish. Seconds.
        max_files: Keep at most this many segments, the active one included.
        max_age_secs: Expire segments not written to for this long. Seconds.
        max_total_bytes: Expire the eldest segments while all of them together have more. Bytes.

    Raises:
        ConfigError: Naming the argument that was refused.
    """

    compress_old_files: bool = False
    compression: str = "gzip"
    compression_level: int | None = None
    compress_delay_secs: float = 120.0
    max_files: int | None = None
    max_age_secs: float | None = None
    max_total_bytes: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.compress_old_files, bool):
            raise ConfigError("compress_old_files", f"{self.compress_old_files!r} is neither True nor False")
        if self.compression not in SUFFIXES:
            raise ConfigError("compression", f"{self.compression!r} is none of {', '.join(SUFFIXES)}")
        levels = _LEVELS[self.compression]
        if self.compression_level is not None and not (
            type(self.compression_level) is int and self.compression_level in levels
        ):
            raise ConfigError(
                "compression_level", f"{self.compression_level!r} is no whole number from {levels[0]} to {levels[-1]}"
            )
        _check("compress_delay_secs", self.compress_delay_secs, int | float, zero=True)
        for argument, kinds in (("max_files", int), ("max_age_secs", int | float), ("max_total_bytes", int)):
            value = getattr(self, argument)
            if value is not None:
                _check(argument, value, kinds, zero=False)
        if self.compress_old_files and self.compression == "zstd":
            try:
                compressor(self.suffix)
            except ImportError as error:
                raise ConfigError("compression", str(error)) from None

    @property
    def suffix(self) -> str:
        """What compression adds to a segment's name."""
        return SUFFIXES[self.compression]

    @property
    def level(self) -> int:
        """The compression level that is meant."""
        return self.compression_level or 1

    @property
    def has_work(self) -> bool:
        """Whether any of the rules asks for something."""
        return self.compress_old_files or not (self.max_files is self.max_age_secs is self.max_total_bytes is None)


def _check(argument: str, value: Any, kinds: Any, *, zero: bool) -> None:
    if isinstance(value, bool) or not isinstance(value, kinds) or not -math.inf < value < math.inf:
        raise ConfigError(argument, f"{value!r} is not a {'whole ' if kinds is int else ''}number")
    if value < 0 or (value == 0 and not zero):
        raise ConfigError(argument, f"{value!r} must be {'0 or more' if zero else 'above 0, or None for no limit'}")
    if isinstance(value, float) and value > _LONGEST_S:
        raise ConfigError(argument, f"{value!r} s is too long")
    if value >= 1 << 62:  # JSON and the arithmetic of clocks take no more
        raise ConfigError(argument, f"{value!r} is too large")


# Writers with janitor="external" leave their rules in the stream's state directory for `profilis-mp janitor`.


def record(upkeep: Upkeep, state: str, access: Access | None = None) -> None:
    """Leave the rules in a stream's state directory, unless they are there already. Raises nothing.

    Args:
        upkeep: The rules.
        state: The directory.
        access: Whose the file shall be.
    """
    access = access or Access()
    path = f"{state}/upkeep.json"
    text = orjson.dumps(asdict(upkeep))
    unfinished = f"{path}.{os.urandom(4).hex()}.new"
    try:
        if _read(path) == text:
            return
        mode = access.file_mode & 0o666  # nothing in it is secret, and nobody waits for it: a reader may look
        fd = open_regular(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            access.settle(fd, mode, state)
            os.write(fd, text)
        finally:
            os.close(fd)
        os.rename(unfinished, path)
    except OSError as error:
        diagnostics.warn("upkeep", f"{path}: the rules for the external janitor could not be written: {error}")


def recall(state: str) -> Upkeep:
    """The rules that writers left in a stream's state directory; those that ask for nothing where there are none.

    Raises:
        ConfigError: Somebody wrote nonsense into them.
    """
    path = f"{state}/upkeep.json"
    text = _read(path)
    if text is None:
        return Upkeep()
    try:
        return Upkeep(**orjson.loads(text))
    except (ValueError, TypeError) as error:
        raise ConfigError("upkeep", f"{path} holds no rules: {error}") from None


def _read(path: str) -> bytes | None:
    try:
        fd = open_regular(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return os.read(fd, 1 << 16)
    finally:
        os.close(fd)
