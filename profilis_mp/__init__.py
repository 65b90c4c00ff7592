"""Many processes, one log directory, nothing lost.

``import profilis_mp`` imports nothing else, starts no thread and reads no environment: names load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from profilis_mp.core.async_collector import AsyncCollector
    from profilis_mp.core.emitter import Emitter
    from profilis_mp.errors import ConfigError, CorruptSegment, LockTimeout, LogDirectoryError, ProfilisError
    from profilis_mp.exporters.console import ConsoleExporter
    from profilis_mp.exporters.jsonl import JSONLExporter
    from profilis_mp.sharedlog.recovery import RecoveryReport, recover
    from profilis_mp.sharedlog.writer import Segment, SharedWriter

__version__ = "0.1.0"

_HOMES = {
    "AsyncCollector": "core.async_collector",
    "ConfigError": "errors",
    "ConsoleExporter": "exporters.console",
    "CorruptSegment": "errors",
    "Emitter": "core.emitter",
    "JSONLExporter": "exporters.jsonl",
    "LockTimeout": "errors",
    "LogDirectoryError": "errors",
    "ProfilisError": "errors",
    "RecoveryReport": "sharedlog.recovery",
    "Segment": "sharedlog.writer",
    "SharedWriter": "sharedlog.writer",
    "recover": "sharedlog.recovery",
}

__all__ = [
    "AsyncCollector",
    "ConfigError",
    "ConsoleExporter",
    "CorruptSegment",
    "Emitter",
    "JSONLExporter",
    "LockTimeout",
    "LogDirectoryError",
    "ProfilisError",
    "RecoveryReport",
    "Segment",
    "SharedWriter",
    "recover",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
