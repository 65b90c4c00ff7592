"""Health checks tell what is there, wait for nobody and leave nothing behind."""

from __future__ import annotations

import ctypes
import os
import signal
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from processes import running, wait_until

from profilis_mp import AsyncCollector, ConfigError, JSONLExporter, SharedWriter, recover
from profilis_mp.health import (
    check_exporter_health,
    cleanup_old_files,
    diagnose_rotation_issues,
    monitor_log_directory,
)
from profilis_mp.health import exporter as exporter_module
from profilis_mp.health.findings import bytes_needed
from profilis_mp.health.holders import Holder, Holders
from profilis_mp.health.machine import inotify_room
from profilis_mp.sharedlog.lock import KeptLock
from profilis_mp.sharedlog.spool import HEADER_BYTES

STREAM = "profilis-{timestamp}.jsonl"
NEVER_S = 1e6  # a flush_interval at which no helper comes
DAY_S = 86_400


@pytest.fixture(autouse=True)
def other_programs_leave_inotify_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter_module, "inotify_room", lambda: {"instances": 0, "limit": 128})


def state(directory: Path, stream: str = STREAM) -> Path:
    return directory / ".profilis-mp" / stream


def look(directory: Path, stream: str = STREAM) -> dict[str, Any]:
    """One stream, as JSON would tell it."""
    told = orjson.loads(orjson.dumps(monitor_log_directory(directory)))
    return dict(told["streams"][stream])


def tree(directory: Path) -> dict[str, tuple[int, int, int]]:
    """Everything below, with what a write would change."""
    found = {}
    for path in [directory, *directory.rglob("*")]:
        status = path.lstat()
        found[str(path)] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return found


def emitter(directory: Path, event: dict[str, Any], **options: Any) -> Callable[[], None]:
    """Work for a process: emit once, then sleep until killed."""

    def work() -> None:
        exporter = JSONLExporter(dir=directory, **{"flush_interval": NEVER_S, **options})
        exporter.emit(event)
        time.sleep(600)

    return work


def spools(directory: Path) -> list[Path]:
    return [path for path in (state(directory) / "spool").glob("*") if not path.suffix]


def wait_for_spools(directory: Path, count: int) -> None:
    def all_hold_something() -> bool:
        told: Any = monitor_log_directory(directory)
        found = told.get("streams", {}).get(STREAM, {"spools": []})["spools"]
        return len([one for one in found if one["unflushed_bytes"]]) == count

    wait_until(all_hold_something)


# The directory.


def test_a_missing_directory_is_said_and_not_created(tmp_path: Path) -> None:
    assert monitor_log_directory(tmp_path / "logs") == {"error": "Directory does not exist"}
    assert cleanup_old_files(tmp_path / "logs") == []
    exporter = JSONLExporter(dir=tmp_path / "logs", rotate_bytes=1234, rotate_secs=56)
    health = check_exporter_health(exporter)
    assert health["status"] == "healthy", health
    assert health["current_file_size"] == 0
    assert diagnose_rotation_issues(exporter) == []
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").touch()
    assert monitor_log_directory(tmp_path / "file") == {"error": "Not a directory"}


def test_nothing_is_created_in_an_empty_directory_nor_changed_in_a_used_one(tmp_path: Path) -> None:
    for used in (False, True):
        exporter = JSONLExporter(dir=tmp_path, flush_interval=NEVER_S)
        if used:
            exporter.emit({"kind": "FN"})
            exporter.flush()
            exporter.emit({"kind": "FN"})
        before = tree(tmp_path)
        monitor_log_directory(tmp_path)
        check_exporter_health(exporter)
        diagnose_rotation_issues(exporter)
        if not used:
            cleanup_old_files(tmp_path)
        assert tree(tmp_path) == before
    exporter.close()


def test_what_is_no_path_is_refused() -> None:
    for wrong in (3, "", "a\0b", b"logs", None):
        with pytest.raises(ConfigError) as refused:
            monitor_log_directory(wrong)  # type: ignore[arg-type]  # that is the point
        assert refused.value.argument == "dir"


def test_files_are_counted_as_the_page_counts_them_and_compressed_ones_apart(tmp_path: Path) -> None:
    with SharedWriter(tmp_path, rotate_bytes=10) as writer:
        for _ in range(3):
            writer.write(b"{}      \n")
    names = sorted(path.name for path in tmp_path.glob("*.jsonl"))
    below = tmp_path / "archive"
    below.mkdir()
    (below / "old.jsonl").write_bytes(b"x" * 100)
    (tmp_path / "old.jsonl.gz").write_bytes(b"x" * 7)
    (below / "old.jsonl.zst").write_bytes(b"x" * 8)
    (tmp_path / "link.jsonl").symlink_to(below / "old.jsonl")
    (tmp_path / "directory.jsonl").mkdir()
    os.utime(tmp_path / names[0], (1000, 2000.5))
    told: Any = monitor_log_directory(str(tmp_path))
    assert told["directory"] == str(tmp_path)
    assert told["total_size_bytes"] == 3 * 9 + 100
    assert told["total_size_mb"] == 127 / (1024 * 1024)
    assert told["file_count"] == 4
    assert (told["compressed_count"], told["compressed_size_bytes"]) == (2, 15)
    assert [file["name"] for file in told["files"]] == names
    assert {file["size_bytes"] for file in told["files"]} == {9}
    assert told["files"][0]["modified"] == 2000.5
    assert told["failures"] == []
    assert list(told["streams"]) == [STREAM]


def test_segments_are_counted_by_state(tmp_path: Path) -> None:
    with SharedWriter(tmp_path, rotate_bytes=10) as writer:
        for _ in range(4):
            writer.write(b"{}      \n")
    names = sorted(path.name for path in tmp_path.glob("*.jsonl"))
    (tmp_path / names[0]).unlink()
    (tmp_path / f"{names[0]}.gz").write_bytes(b"12345")
    (tmp_path / f"{names[1]}.gz.0123abcd.tmp").write_bytes(b"1234")
    (state(tmp_path) / "spool" / "0123456789abcdef.bad-1").write_bytes(b"123")
    (state(tmp_path) / "control.bad-2").write_bytes(b"12")
    told = look(tmp_path)
    assert {name: (of["count"], of["size_bytes"]) for name, of in told["segments"].items()} == {
        "active": (1, 9),
        "sealed": (2, 18),
        "compressed": (1, 5),
        "unfinished": (1, 4),
        "disputed": (0, 0),
        "set_aside": (2, 5),
        "unknown": (0, 0),
    }
    assert [Path(path).name for path in told["set_aside"]] == ["control.bad-2", "0123456789abcdef.bad-1"]
    assert (told["generation"], told["committed"]) == (4, 9)
    assert told["spools"] == []
    assert told["damaged"] == []
    (state(tmp_path) / "control").unlink()
    told = look(tmp_path)
    assert told["segments"]["unknown"] == {"count": 3, "size_bytes": 27}
    assert (told["generation"], told["committed"]) == (None, None)
    with SharedWriter(tmp_path, filename_template="{hostname}-{timestamp}.jsonl") as writer:
        writer.write(b"{}\n")
    assert look(tmp_path)["segments"]["disputed"]["count"] == 4  # the compressed one too


def test_names_that_no_encoding_knows_are_told_all_the_same(tmp_path: Path) -> None:
    odd = os.fsdecode(bytes(tmp_path) + b"/\xff")
    with SharedWriter(odd) as writer:
        writer.write(b"{}\n")
        writer.flush()
        Path(odd, os.fsdecode(b"\xfe.jsonl")).touch()
        told: Any = monitor_log_directory(odd)
        assert "\ufffd.jsonl" in [file["name"] for file in orjson.loads(orjson.dumps(told))["files"]]
    exporter = JSONLExporter(dir=odd)
    assert orjson.loads(orjson.dumps(check_exporter_health(exporter)))["status"] == "healthy"


# Spools and their owners.


def test_spools_of_the_living_the_stopped_and_the_dead_are_told_apart(tmp_path: Path) -> None:
    now_ns = time.time_ns()
    event = {"kind": "FN", "ts_ns": now_ns}
    size = len(orjson.dumps(event)) + 1
    works = [emitter(tmp_path, event, rotate_bytes=1000 + number // 2) for number in range(3)]
    started = time.time()
    with running(*works) as (living, stopped, dead):
        wait_for_spools(tmp_path, 3)
        os.kill(stopped, signal.SIGSTOP)
        os.kill(dead, signal.SIGKILL)
        os.waitpid(dead, 0)
        told = look(tmp_path)
        by_pid = {one["pid"]: one for one in told["spools"]}
        assert {pid: one["alive"] for pid, one in by_pid.items()} == {living: True, stopped: True, dead: False}
        assert told["dead_spools"] == 1
        assert told["unflushed_bytes"] == 3 * size
        assert {path.name for path in spools(tmp_path)} == {one["id"] for one in told["spools"]}
        for one in told["spools"]:
            assert one["unflushed_bytes"] == size
            assert one["kind"] == "lines"
            assert started - 1 < one["created"] <= one["quiet_since"] <= time.time()
            assert one["size_bytes"] == HEADER_BYTES + (1 << 20)
        assert by_pid[dead]["limits"] == {
            "rotate_bytes": 1001,
            "rotate_secs": 3600,
            "file_mode": "0o640",
            "local_time": False,
        }
        assert told["settings_disagree"] == {}
        # The eldest event was emitted before any spool was made: no spool can tell how long that has been.
        assert told["lag_is"] == "at_most"
        assert 0 <= told["lag_s"] <= time.time() - started + 1
    # Being looked at has cost nobody anything.
    report = recover(tmp_path)
    assert (report.dead_spools, report.flushed_bytes, report.failures) == (3, 3 * size, [])
    assert look(tmp_path)["dead_spools"] == 0


def test_settings_that_living_processes_disagree_about_are_told_with_their_pids(tmp_path: Path) -> None:
    one = {"rotate_bytes": 1000, "rotate_secs": 5.5, "file_mode": 0o600, "local_time": True}
    other = {"rotate_bytes": 2000, "rotate_secs": 6, "file_mode": 0o640, "local_time": False}
    with running(emitter(tmp_path, {}, **one), emitter(tmp_path, {}, **other), emitter(tmp_path, {}, **one)) as pids:
        wait_for_spools(tmp_path, 3)
        first, second = sorted([pids[0], pids[2]]), [pids[1]]
        assert look(tmp_path)["settings_disagree"] == {
            "rotate_bytes": [{"value": 1000, "pids": first}, {"value": 2000, "pids": second}],
            "rotate_secs": [{"value": 5.5, "pids": first}, {"value": 6.0, "pids": second}],
            "file_mode": [{"value": "0o600", "pids": first}, {"value": "0o640", "pids": second}],
            "local_time": [{"value": False, "pids": second}, {"value": True, "pids": first}],
        }
        exporter = JSONLExporter(dir=tmp_path)
        told = " ".join(diagnose_rotation_issues(exporter))
        assert f"disagree about rotate_bytes: 1000 (pid {first[0]}, {first[1]}), 2000 (pid {second[0]})" in told
        os.kill(pids[1], signal.SIGKILL)
        os.waitpid(pids[1], 0)
        assert look(tmp_path)["settings_disagree"] == {}


def test_lag_is_the_age_of_the_oldest_event_that_waits(tmp_path: Path) -> None:
    with JSONLExporter(dir=tmp_path, flush_interval=NEVER_S) as exporter:
        assert monitor_log_directory(tmp_path)["streams"] == {}  # type: ignore[typeddict-item]
        exporter.emit({"kind": "FN"})
        exporter.flush()
        assert (look(tmp_path)["lag_s"], look(tmp_path)["lag_is"]) == (None, None)
        created_ns = int(look(tmp_path)["spools"][0]["created"] * 1e9)
        for _ in range(3):
            exporter.emit({"ts_ns": time.time_ns()})
        told, now_ns = look(tmp_path), time.time_ns()
        assert told["lag_is"] == "exact"
        assert 0 <= told["lag_s"] <= (now_ns - created_ns) / 1e9
        exporter.flush()
        for odd in (1703123456789000000, time.time_ns() + 10**15, "soon", True, None):
            exporter.emit({"ts_ns": odd})
            assert look(tmp_path)["lag_is"] == "at_most"
            exporter.flush()


def test_lag_of_opaque_records_is_at_most_their_spools_age(tmp_path: Path) -> None:
    with SharedWriter(tmp_path, flush_interval=NEVER_S) as writer:
        writer.write(b"\x1f\x8b no line")
        told = look(tmp_path)
        assert [one["kind"] for one in told["spools"] if one["unflushed_bytes"]] == ["framed"]
        assert told["lag_is"] == "at_most"
        framed = b'{"ts_ns":%d}' % time.time_ns()
        writer.flush()
        writer.write(framed)
        assert look(tmp_path)["lag_is"] == "exact"


def test_a_garbled_spool_and_control_file_are_said(tmp_path: Path) -> None:
    (state(tmp_path) / "spool").mkdir(parents=True)
    (state(tmp_path) / "spool" / "0123456789abcdef").write_bytes(b"x" * 5000)
    (state(tmp_path) / "spool" / "0123456789abcdee").write_bytes(b"x")
    (state(tmp_path) / "spool" / "0123456789abcded.new").write_bytes(b"x")
    (state(tmp_path) / "control").write_bytes(b"garbage" * 1000)
    told = look(tmp_path)
    assert [text.split(": ")[1] for text in told["damaged"]] == [
        "not a control file of this version",
        "1 bytes",
        "not a spool of this version",
    ]
    assert check_exporter_health(JSONLExporter(dir=tmp_path))["status"] == "degraded"


# The leader and the locks.


def test_leader_is_told_with_its_pid_and_since_when(tmp_path: Path) -> None:
    before = time.time()
    with running(emitter(tmp_path, {"kind": "FN"}, flush_interval=0.02)) as (pid,):
        wait_until(lambda: (state(tmp_path) / "janitor.lock").exists() and look(tmp_path)["leader"])
        wait_until(lambda: (state(tmp_path) / "janitor.lock").read_text() == f"{pid}\n")
        told = look(tmp_path)
        assert told["leader"]["pid"] == pid
        assert before - 1 <= told["leader"]["since"] <= time.time()
        wait_until(lambda: look(tmp_path)["heartbeat_age_s"] is not None)
        assert 0 <= look(tmp_path)["heartbeat_age_s"] < 60
    assert look(tmp_path)["leader"] is None


def test_where_proc_locks_shows_nothing_the_lock_itself_is_tried_and_given_back(tmp_path: Path) -> None:
    """A pid namespace hides the locks of its neighbours from /proc/locks."""
    path = str(tmp_path / "lock")
    lock, blind = KeptLock(path, 0o600), Holders()
    assert blind.of(path) is None
    assert lock.try_acquire()
    assert blind.of(path) == Holder(None)
    assert blind.seen(path) is None
    assert Holders().of(path) == Holders().seen(path) == Holder(os.getpid())
    lock.release()
    assert blind.of(path) is None
    assert lock.try_acquire()
    lock.close()


def test_a_helper_that_drains_a_dead_processs_spool_is_not_taken_for_its_owner(tmp_path: Path) -> None:
    with running(emitter(tmp_path, {"kind": "FN"})) as (pid,):
        wait_for_spools(tmp_path, 1)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        lock = KeptLock(str(spools(tmp_path)[0]), 0o600)
        assert lock.try_acquire()
        assert [one["alive"] for one in look(tmp_path)["spools"]] == [False]
        lock.close()


def test_a_check_does_not_wait_for_a_lock_that_another_process_keeps(tmp_path: Path) -> None:
    """With a lock_timeout of 100 s, a check that waited would show as a test that hangs."""
    with JSONLExporter(dir=tmp_path, flush_interval=NEVER_S, lock_timeout=100) as exporter:
        exporter.emit({"kind": "FN"})
        exporter.flush()

        def keep() -> None:
            assert KeptLock(str(state(tmp_path) / "lock"), 0o600).try_acquire()
            (tmp_path / "kept").touch()
            time.sleep(600)

        with running(keep) as (pid,):
            wait_until((tmp_path / "kept").exists)
            started = time.monotonic()
            assert look(tmp_path)["lock_pid"] == pid
            check_exporter_health(exporter)
            diagnose_rotation_issues(exporter)
            assert time.monotonic() - started < 50
            # Not even a cleanup waits for long; it removes nothing then.
            assert cleanup_old_files(tmp_path, 1e-9) == []
        assert look(tmp_path)["lock_pid"] is None


# The exporter.


def test_healthy_exporter_tells_what_the_page_tells_and_more(tmp_path: Path) -> None:
    with JSONLExporter(dir=tmp_path, rotate_bytes=1234, rotate_secs=56, flush_interval=NEVER_S) as exporter:
        exporter.emit({"kind": "FN"})
        exporter.flush()
        health = check_exporter_health(exporter)
        assert orjson.loads(orjson.dumps(health)) == health
        assert health["status"] == "healthy", health["problems"]
        assert "error" not in health
        assert health["problems"] == health["permissions"] == []
        assert health["directory"] == str(tmp_path)
        assert health["current_file"] == exporter.current_path
        assert health["current_file_size"] == len('{"kind":"FN"}\n')
        assert health["rotation_config"] == {"rotate_bytes": 1234, "rotate_secs": 56}
        assert health["stats"] == exporter.stats()
        assert [one["pid"] for one in health["stream"]["spools"]] == [os.getpid()]
        assert health["needed_bytes"] == 2 * 1234
        status = os.statvfs(tmp_path)
        assert health["space"] is not None
        assert health["space"]["free_bytes"] == pytest.approx(status.f_frsize * status.f_bavail, rel=0.2)
        assert health["file_system"]
        assert diagnose_rotation_issues(exporter) == []


@pytest.mark.parametrize("check", [check_exporter_health, diagnose_rotation_issues])
def test_what_is_no_exporter_is_refused_by_name(tmp_path: Path, check: Any) -> None:
    for wrong in (None, str(tmp_path), AsyncCollector(JSONLExporter(dir=tmp_path))):
        with pytest.raises(ConfigError, match=r"^exporter: "):
            check(wrong)


def test_space_needed_is_what_retention_lets_the_log_take() -> None:
    assert bytes_needed({"rotate_bytes": 10}, 5) == 20
    assert bytes_needed({"rotate_bytes": 10, "max_files": 5, "max_total_bytes": None}, 5) == 45
    assert bytes_needed({"rotate_bytes": 10, "max_files": 5, "max_total_bytes": 30}, 5) == 25
    assert bytes_needed({"rotate_bytes": 10, "max_total_bytes": 30}, 29) == 10


@pytest.mark.parametrize(
    ("free", "inodes", "status", "said"),
    [
        (1000, None, "healthy", []),
        (999, None, "degraded", ["999 bytes are free, the log may need 1000 more"]),
        (499, 16, "degraded", ["Insufficient disk space: 499 bytes available", "499 bytes are free"]),
        (0, 1000, "unhealthy", ["Insufficient disk space: 0 bytes available", "The disk is full"]),
        (1000, 15, "degraded", ["Only 15 inodes are free"]),
    ],
)
def test_too_little_space_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, inodes: int | None, status: str, said: list[str]
) -> None:
    monkeypatch.setattr(exporter_module, "space", lambda path: {"free_bytes": free, "free_inodes": inodes})
    exporter = JSONLExporter(dir=tmp_path, rotate_bytes=500)
    health = check_exporter_health(exporter)
    assert health["status"] == status
    assert ("error" in health) is (status == "unhealthy")
    issues = diagnose_rotation_issues(exporter)
    assert len(issues) == len(said)
    assert all(text in issue for text, issue in zip(said, issues, strict=True))


def test_a_current_file_beyond_its_limit_is_said_in_the_pages_words(tmp_path: Path) -> None:
    with JSONLExporter(dir=tmp_path, rotate_bytes=10, flush_interval=NEVER_S) as exporter:
        exporter.emit({"kind": "FN"})
        exporter.flush()
        assert diagnose_rotation_issues(exporter) == ["Current file exceeds rotation size: 14 > 10"]


def test_inotify_instances_of_this_user_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    instance = ctypes.CDLL(None).inotify_init()
    assert instance >= 0
    room = inotify_room()
    os.close(instance)
    assert room is not None
    assert room["instances"] >= 1  # others of this user's come and go
    assert room["limit"] == int(Path("/proc/sys/fs/inotify/max_user_instances").read_text())
    monkeypatch.setattr(exporter_module, "inotify_room", lambda: {"instances": 7, "limit": 7})
    health = check_exporter_health(JSONLExporter(dir=tmp_path))
    assert health["status"] == "degraded"
    assert "7 of 7 inotify instances" in health["problems"][0]


def test_events_that_wait_too_long_and_nobody_who_leads_are_said(tmp_path: Path) -> None:
    """The process that emitted is stopped, and there is no other that could help."""
    mine = JSONLExporter(dir=tmp_path, flush_interval=0.01)
    with running(emitter(tmp_path, {"kind": "FN"})) as (pid,):
        wait_for_spools(tmp_path, 1)
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: check_exporter_health(mine)["status"] == "degraded")
        assert any("Nobody leads" in text for text in diagnose_rotation_issues(mine))
    recover(tmp_path)
    with JSONLExporter(dir=tmp_path, flush_interval=NEVER_S) as slow:
        slow.emit({})
        slow.flush()
        slow.emit({"ts_ns": time.time_ns()})
        # Of four of its own intervals nothing has passed, of four of the other's a lot soon.
        assert check_exporter_health(slow)["status"] == "healthy"
        wait_until(lambda: any("has been waiting for" in text for text in diagnose_rotation_issues(mine)))
    assert check_exporter_health(mine)["status"] == "healthy"


def test_heartbeat_that_stopped_is_said(tmp_path: Path) -> None:
    mine = JSONLExporter(dir=tmp_path, flush_interval=0.05)
    with running(emitter(tmp_path, {"kind": "FN"}, flush_interval=0.02)) as (pid,):
        wait_until(
            lambda: list(tmp_path.glob(".profilis-mp/*/control")) and look(tmp_path)["heartbeat_age_s"] is not None
        )
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)
        with JSONLExporter(dir=tmp_path, flush_interval=NEVER_S) as idle:
            idle.emit({"kind": "no time in it"})
            wait_until(lambda: any("Nobody has looked" in text for text in check_exporter_health(mine)["problems"]))


def test_the_first_event_after_a_pause_is_no_alarm(tmp_path: Path) -> None:
    """A server that is started again: nobody has looked for an hour, because there was nobody."""
    hour_ns = min(3600 * 10**9, time.monotonic_ns() // 2)  # or for half of what this machine has been running
    mine = JSONLExporter(dir=tmp_path, flush_interval=2)
    with JSONLExporter(dir=tmp_path, flush_interval=0.02) as elder:
        elder.emit({})
        wait_until(lambda: look(tmp_path)["heartbeat_age_s"] is not None)
    (control,) = tmp_path.glob(".profilis-mp/*/control")
    with JSONLExporter(dir=tmp_path, flush_interval=NEVER_S) as first, control.open("r+b") as file:
        for event in ({"ts_ns": time.time_ns()}, {"kind": "no time in it"}):
            first.emit(event)
            file.seek(24)
            file.write((time.monotonic_ns() - hour_ns).to_bytes(8, sys.byteorder))
            file.flush()
            found = look(tmp_path)
            assert found["heartbeat_age_s"] >= hour_ns / 1e9
            assert found["unflushed_bytes"]
            assert check_exporter_health(mine)["problems"] == []
            first.flush()


def test_left_over_spools_are_said_after_a_minute(tmp_path: Path) -> None:
    with running(emitter(tmp_path, {"kind": "FN"})) as (pid,):
        wait_for_spools(tmp_path, 1)
    exporter = JSONLExporter(dir=tmp_path, flush_interval=NEVER_S)
    assert check_exporter_health(exporter)["status"] == "healthy"
    (spool,) = spools(tmp_path)
    with spool.open("r+b") as file:
        file.seek(24)
        file.write((time.time_ns() - 120 * 10**9).to_bytes(8, sys.byteorder))
    os.utime(spool, (0, time.time() - 61))
    health = check_exporter_health(exporter)
    assert health["status"] == "degraded"
    assert health["problems"] == [
        f"1 spools of dead processes (pid {pid}) with 14 bytes in them are left over: run `profilis-mp recover`"
    ]


def test_drops_and_a_spool_in_memory_are_said(tmp_path: Path) -> None:
    """The state directory cannot be made where a file has its name."""
    exporter = JSONLExporter(dir=tmp_path, spool_bytes=4096, buffer_size=4096, flush_interval=NEVER_S)
    (tmp_path / ".profilis-mp").touch()
    for _ in range(5):
        exporter.emit({"text": "x" * 2000})
    assert exporter.stats()["spool"] == "memory"
    health = check_exporter_health(exporter)
    assert health["status"] == "degraded"
    ((reason, count),) = health["stats"]["dropped"].items()
    told = " ".join(health["problems"])
    assert f"dropped {count} ({reason}) events" in told
    assert "kept in memory" in told
    assert monitor_log_directory(tmp_path)["failures"]  # type: ignore[typeddict-item]
    (tmp_path / ".profilis-mp").unlink()
    exporter.close()


def test_a_directory_that_cannot_be_used_is_unhealthy(tmp_path: Path) -> None:
    directory = tmp_path / "logs"
    exporter = JSONLExporter(dir=directory)
    directory.touch()
    health = check_exporter_health(exporter)
    assert health["status"] == "unhealthy"
    assert health["error"] == f"{directory} {directory} is not a directory"
    assert diagnose_rotation_issues(exporter)[0] == f"Directory {directory} is not writable"


def test_what_others_may_change_is_said(tmp_path: Path) -> None:
    with JSONLExporter(dir=tmp_path, flush_interval=NEVER_S) as exporter:
        exporter.emit({"kind": "FN"})
        (tmp_path / ".profilis-mp").chmod(0o777)
        spools(tmp_path)[0].chmod(0o666)
        health = check_exporter_health(exporter)
        assert health["status"] == "degraded"
        assert health["permissions"] == [
            f"{tmp_path}/.profilis-mp has mode 0777, others than its user may change it: chmod 0750",
            f"{spools(tmp_path)[0]} has mode 0666, others than its user may change it: chmod 0600",
        ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_files_of_another_user_are_said(tmp_path: Path) -> None:
    """A log begun by root, and workers that dropped their privileges since."""
    for path in (tmp_path, *list(tmp_path.parents)[:-2]):
        path.chmod(stat.S_IMODE(path.stat().st_mode) | 0o011)
    log = tmp_path / "logs"
    with JSONLExporter(dir=log) as exporter:
        exporter.emit({"kind": "FN"})
    result = tmp_path / "result"
    result.touch()
    result.chmod(0o666)

    def examine() -> None:
        os.setgid(65534)
        os.setuid(65534)
        health = check_exporter_health(exporter)
        result.write_bytes(orjson.dumps([health, diagnose_rotation_issues(exporter), monitor_log_directory(log)]))

    with running(examine) as (pid,):
        assert os.waitpid(pid, 0)[1] == 0
    health, issues, told = orjson.loads(result.read_bytes())
    assert health["status"] == "unhealthy"
    assert "no write permission" in health["error"]
    assert issues[0] == f"Directory {log} is not writable"
    assert f"{log} belongs to user 0, mode 0755: user 65534 cannot use it" in " ".join(health["permissions"])
    assert told["file_count"] == 1
    assert told["failures"]


# Cleaning up.


def old(path: Path, days: float) -> None:
    os.utime(path, (0, time.time() - days * DAY_S))


def test_cleanup_removes_old_sealed_segments_in_every_form_and_never_the_active_one(tmp_path: Path) -> None:
    with SharedWriter(tmp_path, rotate_bytes=10) as writer:
        for _ in range(5):
            writer.write(b"{}      \n")
    names = sorted(path.name for path in tmp_path.glob("*.jsonl"))
    (tmp_path / names[0]).rename(tmp_path / f"{names[0]}.gz")
    for path in tmp_path.glob("*.jsonl*"):
        old(path, 8)
    old(tmp_path / names[2], 6.9)
    old(tmp_path / names[3], -1)
    expected = [str(tmp_path / f"{names[0]}.gz"), str(tmp_path / names[1])]
    assert cleanup_old_files(tmp_path, dry_run=True) == expected
    assert all(os.path.exists(path) for path in expected)
    assert cleanup_old_files(tmp_path) == expected
    assert sorted(path.name for path in tmp_path.glob("*.jsonl*")) == names[2:]
    assert cleanup_old_files(tmp_path, max_age_days=6) == [str(tmp_path / names[2])]
    assert cleanup_old_files(tmp_path, 1e-9) == []


def test_cleanup_leaves_alone_what_is_not_surely_a_sealed_segment(tmp_path: Path) -> None:
    with SharedWriter(tmp_path) as writer:
        writer.write(b"{}\n")
        writer.rotate()
    target = tmp_path / "elsewhere"
    target.touch()
    (tmp_path / "profilis-20200101-000000.jsonl").symlink_to(target)
    (tmp_path / "profilis-20200102-000000.jsonl").mkdir()
    (tmp_path / "notes.jsonl").touch()
    (tmp_path / "profilis-20990101-000000.jsonl").touch()
    for path in tmp_path.glob("*.jsonl"):
        os.utime(path, (0, 0), follow_symlinks=False)
    assert len(cleanup_old_files(tmp_path, dry_run=True)) == 1
    control = state(tmp_path) / "control"
    content = control.read_bytes()
    control.unlink()
    assert cleanup_old_files(tmp_path) == []
    assert not control.exists()
    control.write_bytes(content)
    with SharedWriter(tmp_path, filename_template="{hostname}-{timestamp}.jsonl") as writer:
        writer.write(b"{}\n")
    assert cleanup_old_files(tmp_path) == []


def test_cleanup_looks_into_every_stream(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with SharedWriter(tmp_path, filename_template="{app_name}-{timestamp}.jsonl", app_name=name) as writer:
            writer.write(b"{}\n")
            writer.rotate()
    for path in tmp_path.glob("*.jsonl"):
        old(path, 8)
    assert [Path(path).name[0] for path in cleanup_old_files(str(tmp_path), max_age_days=7)] == ["a", "b"]


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf"), True, "7", None])
def test_an_age_that_is_no_number_above_zero_is_refused(tmp_path: Path, wrong: object) -> None:
    with pytest.raises(ConfigError) as refused:
        cleanup_old_files(tmp_path, max_age_days=wrong)  # type: ignore[arg-type]  # that is the point
    assert refused.value.argument == "max_age_days"
    assert cleanup_old_files(tmp_path, max_age_days=10**400) == []


def test_writers_go_on_while_somebody_cleans_up(tmp_path: Path) -> None:
    with SharedWriter(tmp_path, rotate_bytes=100) as writer:
        for number in range(300):
            writer.write(b'{"number":%d}\n' % number)
            if number % 10 == 0:
                writer.flush()
                cleanup_old_files(tmp_path, 1e-9)
                assert writer.current_path is not None
                assert os.path.exists(writer.current_path)
    assert writer.stats()["dropped"] == {}
