"""What can go wrong, as types.

    ProfilisError
    ├─ ConfigError (ValueError)       an argument was refused at construction
    ├─ LogDirectoryError (OSError)    the log directory cannot be used
    ├─ LockTimeout (TimeoutError)     another process kept the directory lock
    └─ CorruptSegment                 a segment is not what the control file says

Errors carry data, not only words, and survive pickling. None of them is ever raised into the application by
``emit``: what cannot be written there is counted by reason in ``stats()``.
"""

from __future__ import annotations

__all__ = ["ConfigError", "CorruptSegment", "LockTimeout", "LogDirectoryError", "ProfilisError"]


class ProfilisError(Exception):
    """The base of everything this package raises on purpose."""


class ConfigError(ProfilisError, ValueError):
    """An argument was refused at construction; nothing was built.

    Attributes:
        argument: The argument's name.
        reason: What is wrong with it.
    """

    def __init__(self, argument: str, reason: str) -> None:
        super().__init__(argument, reason)
        self.argument = argument
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.argument}: {self.reason}"


class LogDirectoryError(ProfilisError, OSError):
    """The log directory cannot be created, written or trusted; nothing was written.

    Attributes:
        path: The path that failed (also ``filename``).
        errno: The system's error number.
        reason: What it means here and what to do about it.
    """

    def __init__(self, path: str, errno: int, reason: str) -> None:
        super().__init__(errno, reason, path)
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type[LogDirectoryError], tuple[str, int | None, str]]:
        return type(self), (self.path, self.errno, self.reason)


class LockTimeout(ProfilisError, TimeoutError):
    """Another process kept the directory lock for the whole wait; every event is still safe in its spool.

    Attributes:
        path: The lock file.
        waited_s: How long was waited, seconds.
    """

    def __init__(self, path: str, waited_s: float) -> None:
        super().__init__(path, waited_s)
        self.path = path
        self.waited_s = waited_s

    def __str__(self) -> str:
        return f"{self.path}: still locked by another process after {self.waited_s:.3f} s"


class CorruptSegment(ProfilisError):
    """A segment holds bytes that the control file and the spool do not account for.

    Attributes:
        path: The segment.
        generation: Its generation.
        offset: The first byte that is not accounted for.
    """

    def __init__(self, path: str, generation: int, offset: int) -> None:
        super().__init__(path, generation, offset)
        self.path = path
        self.generation = generation
        self.offset = offset

    def __str__(self) -> str:
        return f"{self.path}: generation {self.generation} is not as expected from byte {self.offset} on"
