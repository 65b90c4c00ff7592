"""The public surface, and that importing it costs nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import profilis_mp


def test_public_names_are_these() -> None:
    """A name added or removed here is a change that users see: write it into the changelog."""
    assert profilis_mp.__all__ == [
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
    for name in profilis_mp.__all__:
        assert getattr(profilis_mp, name).__name__ == name
        assert name in dir(profilis_mp)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = profilis_mp.nonsense


def test_import_loads_no_dependency_and_starts_no_thread() -> None:
    code = (
        "import sys, threading; before = set(sys.modules); import profilis_mp; "
        "print(threading.active_count(), *sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    threads, *modules = done.stdout.split()
    assert threads == "1"
    heavy = {"orjson", "filelock", "watchdog", "logging", "asyncio", "multiprocessing", "flask", "dataclasses"}
    assert heavy.isdisjoint(modules), modules
    assert [name for name in modules if name.startswith("profilis_mp.")] == []


def test_first_use_of_the_exporter_loads_neither_watchdog_nor_a_framework() -> None:
    code = "import sys, profilis_mp; profilis_mp.JSONLExporter; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"watchdog", "flask", "multiprocessing", "sqlite3"}.isdisjoint(done.stdout.split())
