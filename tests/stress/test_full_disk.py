"""No space, no permission, no descriptors: events wait, what must be dropped is counted, and nothing is torn."""

from __future__ import annotations

import errno
import logging
import os
import resource
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from checks import check_log
from disks import SmallDisk, small_disk
from processes import Acknowledgements, fork, reap, running, wait_until

from profilis_mp import JSONLExporter, SharedWriter, recover
from profilis_mp.account import segments_of, take_account
from profilis_mp.sharedlog.stream import StreamPaths

STREAM = "profilis-{timestamp}.jsonl"
SPOOL_BYTES = 32 * 1024
NOBODY = 65534
NEVER_S = 1e6  # a flush_interval at which no helper ever does anything

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system or become somebody else")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk") as disk:
        yield disk


def exporter_for(directory: Path, **options: Any) -> JSONLExporter:
    arguments: dict[str, Any] = {
        "buffer_size": 4096,
        "spool_bytes": SPOOL_BYTES,
        "flush_interval": NEVER_S,
        "lock_timeout": 5.0,
    }
    return JSONLExporter(directory, **{**arguments, **options})


def spools_of(directory: Path) -> str:
    return StreamPaths(str(directory), STREAM).spools


class Events:
    """Emits numbered events and keeps those that were not dropped."""

    def __init__(self, exporter: JSONLExporter, worker: int = 0) -> None:
        self.exporter = exporter
        self.worker = worker
        self.number = 0
        self.accepted: list[int] = []

    def emit(self, fill: int = 100) -> bool:
        before = self.exporter.stats()
        self.exporter.emit({"worker": self.worker, "seq": self.number, "fill": "x" * fill})
        after = self.exporter.stats()
        accepted = after["events"] - before["events"]
        dropped = sum(after["dropped"].values()) - sum(before["dropped"].values())
        assert (accepted, dropped) in ((1, 0), (0, 1)), (before, after)
        if accepted:
            self.accepted.append(self.number)
        self.number += 1
        return bool(accepted)

    def emit_until_full(self) -> None:
        while self.emit():
            assert self.number < 100_000

    def check(self, directory: Path) -> None:
        """Exactly what was accepted is in the log, once, in order, and every line is whole."""
        found: list[int] = []
        for path in segments_of(str(directory)):
            with open(path, "rb") as segment:
                for line in segment:
                    assert line.endswith(b"\n"), (path, line)
                    event = orjson.loads(line)
                    if event["worker"] == self.worker:
                        found.append(event["seq"])
        doubled = [number for number, times in Counter(found).items() if times > 1]
        lost = sorted(set(self.accepted) - set(found))
        assert not doubled, f"{len(doubled)} doubled, such as {doubled[:5]}"
        assert not lost, f"{len(lost)} of {len(self.accepted)} lost, such as {lost[:5]}"
        assert found == self.accepted


def bytes_in(directory: Path) -> dict[str, bytes]:
    return {path: Path(path).read_bytes() for path in segments_of(str(directory))}


def assert_only_grown(before: dict[str, bytes], after: dict[str, bytes]) -> None:
    """Nothing once visible has changed: who reads along has seen nothing that is not so."""
    for path, content in before.items():
        assert after[path].startswith(content), path


# A full disk.


def test_full_disk_drops_only_what_the_spool_cannot_hold_and_tears_nothing(disk: SmallDisk) -> None:
    exporter = exporter_for(disk.logs)
    events = Events(exporter)
    for _ in range(10):
        events.emit()
    assert exporter.flush()
    disk.fill()
    events.emit_until_full()
    for _ in range(50):
        assert not events.emit()
    stats = exporter.stats()
    assert stats["dropped"] == {"no_space": 51}
    assert stats["spool"] == "file"
    assert stats["unflushed_bytes"] > SPOOL_BYTES - 1000
    assert set(stats["flush_failures"]) == {"no_space"}
    assert not exporter.flush()
    before = bytes_in(disk.logs)
    disk.empty()
    assert exporter.flush()
    assert_only_grown(before, bytes_in(disk.logs))
    for _ in range(10):
        assert events.emit()
    assert exporter.close()
    events.check(disk.logs)


@pytest.mark.parametrize("leave", [4096, 8192, 12288])
def test_flush_that_was_cut_by_a_full_disk_is_finished_byte_exact(disk: SmallDisk, leave: int) -> None:
    exporter = exporter_for(disk.logs, buffer_size=SPOOL_BYTES - 4000)
    events = Events(exporter)
    for number in range(7):
        events.emit(number)
    assert exporter.flush()
    (path,) = segments_of(str(disk.logs))
    for number in range(190):
        events.emit(number % 173)
    disk.fill(leave)
    assert not exporter.flush()
    cut = Path(path).read_bytes()
    assert not cut.endswith(b"\n"), "the flush was not cut in the middle"
    # Others find it interrupted, and can do nothing either, nor do they make it worse.
    assert recover(disk.logs).failures
    other = Events(exporter_for(disk.logs), worker=1)
    other.emit()
    assert not other.exporter.flush()
    assert Path(path).read_bytes() == cut
    disk.empty()
    assert other.exporter.flush()  # it finishes the first one's, then writes its own
    assert exporter.close()
    assert other.exporter.close()
    assert Path(path).read_bytes().startswith(cut)
    assert len(segments_of(str(disk.logs))) == 1
    events.check(disk.logs)
    other.check(disk.logs)


def test_disk_that_fills_and_empties_again_and_again_loses_nothing_accepted(disk: SmallDisk) -> None:
    writers = [Events(exporter_for(disk.logs, flush_interval=0.02, rotate_bytes=20_000), worker=n) for n in range(2)]
    for events in writers:
        events.emit()
    before: dict[str, bytes] = {}
    for turn in range(6):
        disk.fill(leave=turn * 4096)
        for number in range(400):
            writers[number % 2].emit((turn * number) % 300)
        disk.empty()
        for events in writers:
            events.emit()
            assert events.exporter.flush()
        after = bytes_in(disk.logs)
        assert_only_grown(before, after)
        before = after
    for events in writers:
        assert events.exporter.close()
    for events in writers:
        events.check(disk.logs)


def test_blocking_emit_waits_about_lock_timeout_for_space_and_then_drops(disk: SmallDisk) -> None:
    timeout_s = 0.4
    exporter = exporter_for(disk.logs, on_full="block", lock_timeout=timeout_s)
    events = Events(exporter)
    events.emit()
    assert exporter.flush()
    disk.fill()
    events.emit_until_full()
    started = time.monotonic()
    assert not events.emit()
    assert timeout_s / 2 < time.monotonic() - started < 5 * timeout_s
    assert exporter.stats()["dropped"] == {"no_space": 2}
    disk.empty()
    assert exporter.close()
    events.check(disk.logs)


def test_blocking_emit_goes_on_when_space_returns(disk: SmallDisk) -> None:
    exporter = exporter_for(disk.logs, on_full="block", lock_timeout=30.0)
    events = Events(exporter)
    events.emit()
    assert exporter.flush()
    disk.fill()
    emptying = threading.Timer(0.3, disk.empty)
    emptying.start()
    for _ in range(2 * SPOOL_BYTES // 100):
        assert events.emit()
    emptying.join()
    assert exporter.close()
    assert not exporter.stats()["dropped"]
    events.check(disk.logs)


def test_spool_that_cannot_be_created_is_kept_in_memory_with_one_warning_until_it_can(
    disk: SmallDisk, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = exporter_for(disk.logs, flush_interval=0.1)
    events = Events(exporter)
    disk.fill()
    with caplog.at_level(logging.WARNING, logger="profilis_mp"):
        for _ in range(50):
            assert events.emit()
        assert exporter.stats()["spool"] == "memory"
        events.emit_until_full()
    assert exporter.stats()["dropped"] == {"no_space": 1}
    warnings = [record.getMessage() for record in caplog.records if "in memory" in record.getMessage()]
    assert len(warnings) == 1
    disk.empty()
    # By itself: the process need not emit again.
    wait_until(lambda: exporter.stats()["unflushed_bytes"] == 0)
    wait_until(lambda: exporter.stats()["spool"] == "file")
    for _ in range(50):
        assert events.emit()
    (name,) = os.listdir(spools_of(disk.logs))
    assert not name.endswith(".new")
    assert exporter.close()
    events.check(disk.logs)


def opaque(number: int) -> bytes:
    return b'{"worker":0,"seq":%d}\n{"worker":0,"seq":%d,"fill":"%s"}\n' % (number, number + 1, b"x" * 150)


def test_opaque_records_wait_for_space_too(disk: SmallDisk) -> None:
    writer = SharedWriter(disk.logs, spool_bytes=SPOOL_BYTES, buffer_size=4096, flush_interval=NEVER_S)
    writer.write(opaque(0))
    assert writer.flush()
    disk.fill(leave=4096)
    for number in range(2, 102, 2):
        writer.write(opaque(number))
    assert not writer.flush()
    assert not writer.stats()["dropped"]
    disk.empty()
    assert writer.close()
    check_log(disk.logs, {0: 102})


def test_opaque_records_for_which_there_is_no_spool_wait_in_memory(disk: SmallDisk) -> None:
    writer = SharedWriter(disk.logs, spool_bytes=SPOOL_BYTES, buffer_size=4096, flush_interval=NEVER_S)
    writer.write(b'{"worker":0,"seq":0}\n')
    assert writer.flush()
    disk.fill(leave=4096)
    for number in range(1, 101, 2):
        writer.write(opaque(number))
    assert not writer.flush()
    assert not writer.stats()["dropped"]
    disk.empty()
    assert writer.close()
    # Nobody else could finish what is flushed from memory and cut short: half a record may stay behind in a segment,
    # and the whole one follows in the next.
    account = take_account(str(disk.logs), {0: 101})
    assert (account.on_disk, account.lost, account.duplicated) == (101, 0, 0)
    assert account.torn <= 1


def test_process_killed_on_a_full_disk_is_recovered_once_there_is_space(disk: SmallDisk) -> None:
    acknowledged = Acknowledgements(2)

    def writing(worker: int) -> Callable[[], None]:
        def work() -> None:
            exporter = exporter_for(disk.logs)
            exporter.emit({"worker": worker, "seq": 0})
            acknowledged[worker] = 1
            while True:
                number = acknowledged[worker]
                if number == 200:  # while there is no ballast yet: the log alone must not fill the disk
                    wait_until(disk.is_full)
                exporter.emit({"worker": worker, "seq": number, "fill": "x" * (number % 91)})
                stats = exporter.stats()
                if stats["dropped"]:
                    break
                acknowledged[worker] = number + 1
            os.kill(os.getpid(), signal.SIGKILL)

        return work

    pids = [fork(writing(worker)) for worker in range(2)]
    wait_until(lambda: acknowledged[0] > 3 and acknowledged[1] > 3)
    disk.fill(leave=4096)
    assert [reap(pid) for pid in pids] == [-signal.SIGKILL] * 2
    before = bytes_in(disk.logs)
    for _ in range(3):
        report = recover(disk.logs)
        assert report.failures
        assert_only_grown(before, bytes_in(disk.logs))
    disk.empty()
    report = recover(disk.logs)
    assert not report.failures
    assert_only_grown(before, bytes_in(disk.logs))
    check_log(disk.logs, acknowledged.by_worker())
    assert not os.listdir(spools_of(disk.logs))


# Limits on files.


def in_child(work: Callable[[], object]) -> None:
    """What it does to its limits and its rights stays its own."""
    assert reap(fork(work)) == 0


@contextmanager
def limit(kind: int, soft: int) -> Iterator[None]:
    usual, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (soft, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (usual, hard))


def test_segment_at_the_limit_on_file_sizes_is_finished_when_that_is_lifted(tmp_path: Path) -> None:
    def work() -> None:
        exporter = exporter_for(tmp_path)
        events = Events(exporter)
        events.emit()
        with limit(resource.RLIMIT_FSIZE, 50_000):
            events.emit_until_full()
            assert set(exporter.stats()["dropped"]) == {"file_too_big"}
            assert not exporter.flush()
            (path,) = segments_of(str(tmp_path))
            assert os.path.getsize(path) == 50_000
        assert exporter.close()
        events.check(tmp_path)

    in_child(work)


def test_process_without_a_limit_on_file_sizes_finishes_what_one_with_a_limit_cannot(tmp_path: Path) -> None:
    def limited() -> None:
        exporter = exporter_for(tmp_path)
        events = Events(exporter)
        with limit(resource.RLIMIT_FSIZE, 50_000):
            events.emit_until_full()
            assert not exporter.flush()
            with running(unlimited):
                wait_until(lambda: exporter.stats()["unflushed_bytes"] == 0)
                events.check(tmp_path)
            assert exporter.close()

    def unlimited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        exporter = exporter_for(tmp_path, flush_interval=0.05)
        exporter.emit({"worker": 1, "seq": 0})
        while True:
            time.sleep(1)

    in_child(limited)


# Too small for even the control file, which must not be left behind cut short.
@pytest.mark.parametrize("size", [0, 100, 2048, 4096, 6000])
def test_limit_below_every_file_keeps_events_in_memory(tmp_path: Path, size: int) -> None:
    def work() -> None:
        exporter = exporter_for(tmp_path)
        events = Events(exporter)
        with limit(resource.RLIMIT_FSIZE, size):
            for _ in range(20):
                assert events.emit()
            assert exporter.stats()["spool"] == "memory"
            assert not exporter.flush() or size >= 4096
        assert exporter.flush()
        assert exporter.close()
        events.check(tmp_path)

    in_child(work)


@contextmanager
def few_descriptors(spare: int = 0) -> Iterator[None]:
    """No more than ``spare`` are left, and no others can be had."""
    taken = []
    with limit(resource.RLIMIT_NOFILE, min(1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1])):
        try:
            while True:
                try:
                    taken.append(os.open("/dev/null", os.O_RDONLY))
                except OSError as error:
                    if error.errno != errno.EMFILE:
                        raise
                    break
            for _ in range(spare):
                os.close(taken.pop())
            yield
        finally:
            for fd in taken:
                os.close(fd)


def test_without_descriptors_at_the_first_event_it_waits_in_memory(tmp_path: Path) -> None:
    def work() -> None:
        exporter = exporter_for(tmp_path)
        events = Events(exporter)
        with few_descriptors():
            for _ in range(20):
                assert events.emit()
            assert not exporter.flush()
            stats = exporter.stats()
            assert stats["spool"] == "memory"
            assert stats["flush_failures"] == {"too_many_files": 1}
            assert exporter.current_path is None
            events.emit_until_full()
            assert set(exporter.stats()["dropped"]) == {"too_many_files"}
        assert exporter.flush()
        assert exporter.stats()["spool"] == "file"
        assert events.emit()
        assert exporter.close()
        events.check(tmp_path)

    in_child(work)


def test_without_descriptors_for_the_next_segment_events_wait_in_the_spool(tmp_path: Path) -> None:
    def work() -> None:
        exporter = exporter_for(tmp_path)
        events = Events(exporter)
        for _ in range(20):
            assert events.emit()
        assert exporter.rotate() is not None
        for attempt in range(3):
            with few_descriptors():
                for _ in range(20):
                    assert events.emit()
                assert not exporter.flush()
            if attempt == 1:
                assert exporter.flush()
                assert exporter.rotate() is not None
        stats = exporter.stats()
        assert set(stats["flush_failures"]) == {"too_many_files"}
        assert not stats["dropped"]
        assert exporter.close()
        events.check(tmp_path)
        assert len(segments_of(str(tmp_path))) == 3

    in_child(work)


def test_recovery_without_descriptors_reports_a_failure_and_changes_nothing(tmp_path: Path) -> None:
    def killed() -> None:
        exporter_for(tmp_path).emit({"worker": 0, "seq": 0})

    def work() -> None:
        for spare in range(8):
            with few_descriptors(spare):
                report = recover(tmp_path)
            if not report.failures:
                break
        assert 1 < spare < 7
        check_log(tmp_path, {0: 1})
        assert not os.listdir(spools_of(tmp_path))

    in_child(killed)
    in_child(work)


# Few descriptors, not none: whichever of its files it cannot open, it must neither lose an event nor set aside a file
# that is perfectly good.
def test_any_number_of_descriptors_is_enough_to_lose_nothing(tmp_path: Path) -> None:
    def work() -> None:
        for spare in range(8):
            directory = tmp_path / f"{spare}"
            first = Events(exporter_for(directory), worker=1)
            first.emit()
            assert first.exporter.close()
            exporter = exporter_for(directory)
            events = Events(exporter)
            with few_descriptors(spare):
                for _ in range(60):
                    assert events.emit()
                exporter.flush()
            assert exporter.flush()
            assert exporter.close()
            events.check(directory)
            first.check(directory)
            left = os.listdir(StreamPaths(str(directory), STREAM).state)
            assert not [name for name in left if ".bad-" in name], left

    in_child(work)


# Rights.


def test_file_system_that_is_mounted_read_only_keeps_events_in_memory_until_it_is_writable(disk: SmallDisk) -> None:
    exporter = exporter_for(disk.logs, flush_interval=0.1)
    events = Events(exporter)
    try:
        disk.remount("ro")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"remounting is not allowed here: {error.stderr!r}")
    for _ in range(50):
        assert events.emit()
    assert not exporter.flush()
    assert exporter.stats()["spool"] == "memory"
    events.emit_until_full()
    assert set(exporter.stats()["dropped"]) == {"read_only"}
    disk.remount("rw")
    wait_until(lambda: exporter.stats()["unflushed_bytes"] == 0 and exporter.stats()["spool"] == "file")
    assert events.emit()
    assert exporter.close()
    events.check(disk.logs)


@pytest.fixture
def public_directory() -> Iterator[Path]:
    """A directory that somebody without rights can get at, and owns."""
    path = Path(tempfile.mkdtemp())
    os.chown(path, NOBODY, NOBODY)
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def become_nobody() -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


@needs_root
def test_process_that_drops_its_rights_after_construction_writes_with_those_it_has_left(public_directory: Path) -> None:
    """As a preforking master does that is started by root. Its Python may be out of its reach from then on."""
    exporter = exporter_for(public_directory / "logs")

    def work() -> None:
        become_nobody()
        events = Events(exporter)
        for number in range(100):
            events.emit(number)
        assert exporter.rotate() is not None
        for number in range(100):
            events.emit(number)
        assert exporter.stats()["spool"] == "file"
        assert exporter.close()
        events.check(public_directory / "logs")

    in_child(work)
    assert not os.listdir(spools_of(public_directory / "logs"))
    owners = {os.stat(path).st_uid for path in segments_of(str(public_directory / "logs"))}
    assert owners == {NOBODY}


# The log directory, its state directory, its spools: each may lose its rights while a process writes.
@needs_root
@pytest.mark.parametrize("mode", [0o500, 0o000], ids=["read-only", "closed"])
@pytest.mark.parametrize("what", ["logs", "state", "spool"])
def test_directory_whose_permission_is_taken_away_loses_nothing_accepted(
    public_directory: Path, what: str, mode: int
) -> None:
    logs = public_directory / "logs"
    paths = StreamPaths(str(logs), STREAM)
    directory = {"logs": paths.log, "state": paths.state, "spool": paths.spools}[what]

    def work() -> None:
        become_nobody()
        exporter = exporter_for(logs, lock_timeout=0.5)
        events = Events(exporter)
        for _ in range(50):
            events.emit()
        assert exporter.rotate() is not None
        os.chmod(directory, mode)
        for number in range(300):
            events.emit(number)
            if number % 50 == 0:
                exporter.flush()
        os.chmod(directory, 0o750)
        assert exporter.flush()
        for _ in range(50):
            assert events.emit()
        os.chmod(directory, mode)
        exporter.close()
        os.chmod(directory, 0o750)
        assert set(exporter.stats()["dropped"]) <= {"permission"}, exporter.stats()
        (public_directory / "accepted").write_bytes(orjson.dumps(events.accepted))

    in_child(work)
    assert not recover(logs).failures
    events = Events(exporter_for(logs))
    events.accepted = orjson.loads((public_directory / "accepted").read_bytes())
    assert len(events.accepted) > 150
    events.check(logs)


# Somebody else's full disk.


def test_processes_that_share_a_full_disk_all_get_their_events_out_afterwards(disk: SmallDisk) -> None:
    workers = 3
    accepted = Acknowledgements(workers + 1)

    def writer(worker: int) -> Callable[[], None]:
        def work() -> None:
            exporter = exporter_for(disk.logs, flush_interval=0.05, rotate_bytes=30_000)
            while True:
                number = accepted[worker]
                exporter.emit({"worker": worker, "seq": number, "fill": "x" * (number % 50)})
                dropped = sum(exporter.stats()["dropped"].values())
                if dropped:
                    accepted[workers] = 1
                    while True:
                        time.sleep(1)
                accepted[worker] = number + 1
                time.sleep(0.0002)

        return work

    with running(*(writer(worker) for worker in range(workers))):
        wait_until(lambda: all(accepted[worker] > 20 for worker in range(workers)))
        disk.fill(leave=50_000)
        wait_until(lambda: accepted[workers], what="the first event that is dropped")
        before = bytes_in(disk.logs)
        disk.empty()
    # All of them were killed, in whatever they were doing.
    assert not recover(disk.logs).failures
    assert_only_grown(before, bytes_in(disk.logs))
    check_log(disk.logs, {worker: accepted[worker] for worker in range(workers)}, rotate_bytes=30_000)
