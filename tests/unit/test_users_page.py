"""Every snippet of the user's page, used in just that way: the interface that people have in their code already."""

from __future__ import annotations

import gzip
import json
import os
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from profilis_mp.account import segments_of
from profilis_mp.core.async_collector import AsyncCollector
from profilis_mp.exporters.console import ConsoleExporter
from profilis_mp.exporters.jsonl import JSONLExporter

REQ = {
    "ts_ns": 1703123456789000000,
    "trace_id": "trace-abc123",
    "span_id": "span-def456",
    "kind": "REQ",
    "route": "/api/users",
    "status": 200,
    "dur_ns": 15000000,
}


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def events_in(directory: str) -> list[dict[str, Any]]:
    return [orjson.loads(line) for path in segments_of(directory) for line in Path(path).read_bytes().splitlines()]


def test_quick_start(tmp_path: Path) -> None:
    exporter = JSONLExporter(dir="./logs")
    collector = AsyncCollector(exporter)
    collector.enqueue(REQ)
    collector.close()
    exporter = JSONLExporter(dir="./logs", rotate_bytes=1024 * 1024, rotate_secs=3600)
    exporter.emit(REQ)
    exporter.close()
    assert events_in("./logs") == [REQ, REQ]
    assert (tmp_path / "logs").is_dir()


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"rotate_bytes": 10 * 1024 * 1024},
        {"rotate_secs": 86400},
        {"rotate_bytes": 100 * 1024 * 1024, "rotate_secs": 86400},
        {
            "rotate_bytes": 100 * 1024 * 1024,
            "rotate_secs": 86400,
            "filename_template": "profilis-{timestamp}.jsonl",
            "compress_old_files": True,
            "max_files": 30,
        },
        {"rotate_bytes": 1024 * 1024, "max_files": 10},
        {"rotate_secs": 86400, "max_age_secs": 7 * 86400},
        {"buffer_size": 64 * 1024},
        {"buffer_size": 4 * 1024},
    ],
)
def test_configurations(arguments: dict[str, Any], tmp_path: Path) -> None:
    """The page's /var/log/profilis is a directory below one that the user may write to; so is this one."""
    exporter = JSONLExporter(dir=str(tmp_path / "var" / "log" / "profilis"), **arguments)
    exporter.emit(REQ)
    exporter.close()
    assert events_in(exporter.dir) == [REQ]


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        ({}, "profilis-%Y%m%d-%H%M%S.jsonl"),
        ({"filename_template": "app-{timestamp}-{index}.jsonl"}, "app-%Y%m%d-%H%M%S-001.jsonl"),
        ({"filename_template": "{app_name}-{timestamp}.jsonl", "app_name": "myapp"}, "myapp-%Y%m%d-%H%M%S.jsonl"),
    ],
)
def test_names_are_as_shown(arguments: dict[str, str], pattern: str) -> None:
    with JSONLExporter(dir="./logs", **arguments) as exporter:
        exporter.emit(REQ)
    (name,) = (name for name in os.listdir("./logs") if not name.startswith("."))
    datetime.strptime(name, pattern)


def test_development_with_console_and_files_production_with_files(capsys: pytest.CaptureFixture[str]) -> None:
    for debug in (True, False):
        if debug:
            console_exporter = ConsoleExporter(pretty=True)
            jsonl_exporter = JSONLExporter(dir="./logs")
            collector = AsyncCollector([console_exporter, jsonl_exporter])
        else:
            jsonl_exporter = JSONLExporter(dir="./production", rotate_bytes=100 * 1024 * 1024, rotate_secs=86400)
            collector = AsyncCollector(jsonl_exporter)
        collector.enqueue(dict(REQ))
        assert collector.flush()
        collector.close()
    assert json.loads(capsys.readouterr().out) == REQ
    assert events_in("./logs") == events_in("./production") == [REQ]


def test_subclass_with_an_export_of_its_own() -> None:
    class CustomJSONLExporter(JSONLExporter):
        def export(self, events: list[dict[str, Any]]) -> None:  # type: ignore[override]  # as on the page
            for event in events:
                event["exported_at"] = time.time()
                event["environment"] = "production"
                line = json.dumps(event, separators=(",", ":")) + "\n"
                self._write_line(line)

    exporter = CustomJSONLExporter(dir="./logs")
    collector = AsyncCollector(exporter)
    for number in range(100):
        collector.enqueue({"kind": "FN", "number": number})
    assert collector.flush()
    collector.close()
    events = events_in("./logs")
    assert [event["number"] for event in events] == list(range(100))
    assert all(event["environment"] == "production" and event["exported_at"] > 0 for event in events)


def test_subclass_that_compresses_each_line() -> None:
    class CompressedJSONLExporter(JSONLExporter):
        def _write_line(self, line: str) -> None:
            compressed = gzip.compress(line.encode("utf-8"))
            self._current_file.write(compressed)

    exporter = CompressedJSONLExporter(
        dir="./logs", filename_template="profilis-{timestamp}.jsonl.gz", rotate_bytes=1000, buffer_size=300
    )
    collector = AsyncCollector(exporter)
    for number in range(100):
        collector.enqueue({"kind": "FN", "number": number})
    assert collector.flush()
    collector.close()
    paths = segments_of("./logs")
    assert len(paths) > 3
    assert all(path.endswith(".jsonl.gz") and os.path.getsize(path) <= 1000 for path in paths)
    # Each segment decompresses by itself: no member is split over two.
    lines = b"".join(gzip.decompress(Path(path).read_bytes()) for path in paths).splitlines()
    assert [orjson.loads(line)["number"] for line in lines] == list(range(100))


def test_emit_of_the_subclass_that_compresses_goes_through_its_write_line() -> None:
    seen = []

    class Watching(JSONLExporter):
        def _write_line(self, line: str) -> None:
            seen.append(line)
            super()._write_line(line)

    with Watching(dir="./logs") as exporter:
        exporter.emit({"kind": "FN"})
        exporter([{"kind": "DB"}])
    assert seen == ['{"kind":"FN"}\n', '{"kind":"DB"}\n']
    assert [event["kind"] for event in events_in("./logs")] == ["FN", "DB"]


def test_manual_cleanup_leaves_young_files_and_the_writer_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page removes old segments by hand; a writer whose files go away goes on."""
    exporter = JSONLExporter(dir="./logs", rotate_secs=86400)
    exporter.emit(REQ)
    exporter.flush()

    def cleanup_old_files(log_dir: str, max_age_days: float = 7) -> list[str]:
        cutoff = datetime.now() - timedelta(days=max_age_days)
        removed = []
        for path in Path(log_dir).glob("*.jsonl"):
            if datetime.fromtimestamp(os.path.getctime(path)) < cutoff:
                os.remove(path)
                removed.append(str(path))
        return removed

    assert cleanup_old_files("./logs", max_age_days=30) == []
    assert len(cleanup_old_files("./logs", max_age_days=-1)) == 1
    exporter.emit(REQ)
    exporter.close()
    assert events_in("./logs") == [REQ]


def check_exporter_health(exporter: JSONLExporter) -> dict[str, Any]:
    test_file = os.path.join(exporter.dir, "health-check.tmp")
    with open(test_file, "w") as file:
        file.write("health check")
    os.remove(test_file)
    current_file = exporter._get_current_file_path()
    file_size = os.path.getsize(current_file) if os.path.exists(current_file) else 0
    return {
        "status": "healthy",
        "directory": exporter.dir,
        "current_file": current_file,
        "current_file_size": file_size,
        "rotation_config": {"rotate_bytes": exporter.rotate_bytes, "rotate_secs": exporter.rotate_secs},
    }


def test_health_check() -> None:
    exporter = JSONLExporter(dir="./logs", rotate_bytes=1234, rotate_secs=56)
    os.mkdir("./logs")
    before = check_exporter_health(exporter)
    assert before["current_file_size"] == 0
    assert os.path.dirname(before["current_file"]) == exporter.dir == os.path.abspath("./logs")
    exporter.emit(REQ)
    exporter.flush()
    after = check_exporter_health(exporter)
    assert after["current_file"] == exporter.current_path
    assert after["current_file_size"] == len(orjson.dumps(REQ)) + 1
    assert after["rotation_config"] == {"rotate_bytes": 1234, "rotate_secs": 56}
    exporter.close()


def test_directory_monitoring_sees_segments_only() -> None:
    with JSONLExporter(dir="./logs", rotate_bytes=200) as exporter:
        for _ in range(5):
            exporter.emit(REQ)
    path = Path("./logs")
    sizes = [file.stat().st_size for file in path.rglob("*.jsonl") if file.is_file()]
    assert sum(sizes) == 5 * (len(orjson.dumps(REQ)) + 1)
    assert len(sizes) == len(list(path.glob("*.jsonl"))) == 5


def test_diagnosis_of_rotation() -> None:
    with JSONLExporter(dir="./logs") as exporter:
        exporter.emit(REQ)
        exporter.flush()
        assert os.access(exporter.dir, os.W_OK)
        statvfs = os.statvfs(exporter.dir)
        assert statvfs.f_frsize * statvfs.f_bavail > exporter.rotate_bytes
        assert os.path.getsize(exporter._get_current_file_path()) <= exporter.rotate_bytes


def test_the_pages_own_functions_are_there_to_import() -> None:
    """Whoever wrote them down from the page may import them instead: the same calls, the same keys."""
    from profilis_mp import (
        check_exporter_health,
        cleanup_old_files,
        diagnose_rotation_issues,
        monitor_log_directory,
    )

    assert monitor_log_directory("./logs") == {"error": "Directory does not exist"}
    exporter = JSONLExporter(dir="./logs", rotate_bytes=200)
    for _ in range(3):
        exporter.emit(REQ)
    exporter.flush()

    health = check_exporter_health(exporter)
    assert health["status"] in {"healthy", "degraded"}  # a busy machine may have no inotify instance left
    assert health["directory"] == exporter.dir
    assert health["current_file"] == exporter._get_current_file_path()
    assert health["current_file_size"] == os.path.getsize(health["current_file"])
    assert health["rotation_config"] == {"rotate_bytes": 200, "rotate_secs": 3600}

    told: dict[str, Any] = monitor_log_directory("./logs")  # type: ignore[assignment]  # as on the page
    files = sorted(Path("./logs").glob("*.jsonl"))
    assert told["directory"] == "./logs"
    assert told["total_size_bytes"] == 3 * (len(orjson.dumps(REQ)) + 1)
    assert told["total_size_mb"] == told["total_size_bytes"] / (1024 * 1024)
    assert told["file_count"] == 3
    assert told["files"] == [
        {"name": f.name, "size_bytes": f.stat().st_size, "modified": f.stat().st_mtime} for f in files
    ]

    assert [issue for issue in diagnose_rotation_issues(exporter) if "inotify" not in issue] == []

    for file in files:
        os.utime(file, (0, time.time() - 31 * 86400))
    cleanup_old_files("./logs", max_age_days=30)
    assert sorted(Path("./logs").glob("*.jsonl")) == files[2:]
    exporter.close()


def test_debug_mode_logs_what_the_exporter_does(tmp_path: Path) -> None:
    """In an interpreter of its own: the environment variable is set by the program, before it makes its exporter."""
    import subprocess
    import sys

    code = (
        "import os; os.environ['PROFILIS_DEBUG'] = '1'\n"
        "from profilis_mp.exporters.jsonl import JSONLExporter\n"
        "exporter = JSONLExporter(dir='./logs'); exporter.emit({}); exporter.flush(); exporter.close()\n"
    )
    loud = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "profilis_mp DEBUG flushed" in loud.stderr
    quiet_code = code.replace("'1'", "'0'")
    quiet = subprocess.run([sys.executable, "-c", quiet_code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert quiet.stderr == ""


def test_the_profilis_package_own_collector_accepts_the_exporter_as_its_sink() -> None:
    """It calls its sink with a list of events."""
    with JSONLExporter(dir="./logs") as exporter:
        exporter([REQ, REQ])
    assert events_in("./logs") == [REQ, REQ]
