"""Many processes, one log directory, nothing lost.

``import profilis_mp`` imports nothing else, starts no thread and reads no environment: names load on first use.

(PYTEST_DONT_REWRITE: pytest rewrites the modules of packages that bring a plugin, and warns of those that were imported
before it could. A program that uses this package and then calls pytest, perhaps with warnings as errors, must not hear
of that.)
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
    from profilis_mp.health.cleanup import cleanup_old_files
    from profilis_mp.health.directory import monitor_log_directory
    from profilis_mp.health.exporter import check_exporter_health, diagnose_rotation_issues
    from profilis_mp.janitor.upkeep import Upkeep
    from profilis_mp.reader.read import read_events, read_lines
    from profilis_mp.reader.report import ReadReport
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
    "ReadReport": "reader.report",
    "RecoveryReport": "sharedlog.recovery",
    "Segment": "sharedlog.writer",
    "SharedWriter": "sharedlog.writer",
    "Upkeep": "janitor.upkeep",
    "check_exporter_health": "health.exporter",
    "cleanup_old_files": "health.cleanup",
    "diagnose_rotation_issues": "health.exporter",
    "monitor_log_directory": "health.directory",
    "read_events": "reader.read",
    "read_lines": "reader.read",
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
    "ReadReport",
    "RecoveryReport",
    "Segment",
    "SharedWriter",
    "Upkeep",
    "check_exporter_health",
    "cleanup_old_files",
    "diagnose_rotation_issues",
    "monitor_log_directory",
    "read_events",
    "read_lines",
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
