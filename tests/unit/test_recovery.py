"""What dead processes left behind is finished, drained and reported, while what belongs to the living is left alone."""

from __future__ import annotations

import errno
import itertools
import os
import random
import re
import shutil
import signal
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checks import check_log
from processes import Acknowledgements, Signal, fork, reap, run_unprivileged, running, wait_until
from raw_files import open_descriptors
from stepping import _each_step, killed_after

from profilis_mp import ConfigError, LogDirectoryError, RecoveryReport, SharedWriter, recover
from profilis_mp.account import segments_of
from profilis_mp.sharedlog.control import Control
from profilis_mp.sharedlog.lock import KeptLock
from profilis_mp.sharedlog.names import SegmentNames
from profilis_mp.sharedlog.ownership import Access
from profilis_mp.sharedlog.spool import UNFINISHED, Limits, Spool
from profilis_mp.sharedlog.stream import StreamPaths

TEMPLATE = "profilis-{timestamp}.jsonl"
NAMES = SegmentNames(TEMPLATE)
LINES = b'{"a":1}\n{"a":2}\n'
LIMITS = Limits(rotate_bytes=1 << 20, rotate_ns=3600 * 10**9, file_mode=0o640, local_time=0)


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / "logs"


def paths_of(logs: Path, template: str = TEMPLATE) -> StreamPaths:
    return StreamPaths(str(logs), SegmentNames(template).stream)


def spools_of(logs: Path, template: str = TEMPLATE) -> list[str]:
    return sorted(os.listdir(paths_of(logs, template).spools))


def contents(logs: Path) -> list[bytes]:
    """What each segment holds, in the order of writing."""
    return [Path(path).read_bytes() for path in segments_of(str(logs))]


def killed_while(work: Callable[[], object]) -> None:
    """Run ``work`` in a process that is killed at its end."""

    alive: list[object] = []  # or the collector would close what it leaves behind

    def work_and_die() -> None:
        alive.append(work())
        os.kill(os.getpid(), signal.SIGKILL)

    assert reap(fork(work_and_die)) == -signal.SIGKILL


def leave_dead_spool(logs: Path, *records: bytes, **arguments: Any) -> None:
    def work() -> SharedWriter:
        writer = SharedWriter(logs, **{"flush_interval": 1e6, **arguments})
        for record in records:
            writer.write(record)
        return writer

    killed_while(work)


# Nothing to do.


def test_directory_that_does_not_exist_gives_an_empty_report_and_is_not_created(tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "logs"
    assert recover(directory) == RecoveryReport(str(directory))
    assert list(tmp_path.iterdir()) == []


def test_directory_that_never_was_a_log_gives_an_empty_report_and_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "something").write_text("else")
    assert recover(tmp_path) == RecoveryReport(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["something"]


def test_relative_directory_is_reported_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert recover("logs").directory == str(tmp_path / "logs")


def test_what_was_closed_properly_needs_no_recovery(logs: Path) -> None:
    with SharedWriter(logs) as writer:
        writer.write(LINES)
        writer.write(b"line\n")
    before = contents(logs)
    report = recover(logs)
    assert report == RecoveryReport(str(logs), streams=[NAMES.stream])
    assert contents(logs) == before


@pytest.mark.parametrize("directory", [None, b"logs", "", "a\0b", 3])
def test_what_is_no_path_is_refused_by_name(directory: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        recover(directory)
    assert caught.value.argument == "dir"


def test_file_in_the_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "logs").touch()
    with pytest.raises(LogDirectoryError) as caught:
        recover(tmp_path / "logs")
    assert caught.value.errno == errno.ENOTDIR


def test_directory_that_cannot_be_written_is_refused_and_untouched(shared_directory: Path) -> None:
    logs = shared_directory / "logs"
    leave_dead_spool(logs, b"line\n")
    logs.chmod(0o555)

    def work() -> None:
        with pytest.raises(LogDirectoryError) as caught:
            recover(logs)
        assert caught.value.errno == errno.EACCES

    run_unprivileged(work)
    logs.chmod(0o755)
    assert recover(logs).flushed_bytes == 5


def test_state_that_belongs_to_somebody_else_is_a_failure_in_the_report(shared_directory: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can leave a state directory to somebody else")
    logs = shared_directory / "logs"
    leave_dead_spool(logs, b"line\n")
    logs.chmod(0o777)

    def work() -> None:
        report = recover(logs)
        assert report.failures
        assert report.flushed_bytes == 0

    (logs / ".profilis-mp").chmod(0o755)
    run_unprivileged(work)
    assert recover(logs).flushed_bytes == 5


# The dead and the living.


def test_spools_of_the_dead_are_drained_and_removed_and_counted(logs: Path) -> None:
    records = [b"record of %d\n" % number for number in range(5)]
    for record in records:
        leave_dead_spool(logs, record)
    before = open_descriptors(logs)
    report = recover(logs)
    assert report == RecoveryReport(
        str(logs), streams=[NAMES.stream], dead_spools=5, flushed_bytes=sum(map(len, records))
    )
    assert sorted(contents(logs)[0].splitlines(keepends=True)) == records
    assert spools_of(logs) == []
    assert open_descriptors(logs) <= before
    assert recover(logs) == RecoveryReport(str(logs), streams=[NAMES.stream])


def test_empty_spool_of_the_dead_is_removed_too(logs: Path) -> None:
    def work() -> SharedWriter:
        writer = SharedWriter(logs, flush_interval=1e6)
        writer.write(b"line\n")
        writer.flush()
        return writer

    killed_while(work)
    report = recover(logs)
    assert (report.dead_spools, report.flushed_bytes) == (1, 0)
    assert contents(logs) == [b"line\n"]
    assert spools_of(logs) == []


def test_frames_are_not_written_into_the_segment(logs: Path) -> None:
    leave_dead_spool(logs, b"opaque, ", b"\n\nmore, ", b"line\n")
    report = recover(logs)
    assert report.failures == []
    assert contents(logs) == [b"opaque, \n\nmore, line\n"]


def test_spools_of_the_living_are_flushed_and_left_to_them(logs: Path) -> None:
    written, stop = Signal(), Signal()

    def live() -> None:
        writer = SharedWriter(logs, flush_interval=1e6)
        writer.write(b"living\n")
        written.send()
        stop.wait()
        writer.write(b"still living\n")
        assert writer.close()

    with running(live) as (pid,):
        written.wait()
        leave_dead_spool(logs, b"dead\n")
        report = recover(logs)
        assert (report.live_spools, report.dead_spools, report.flushed_bytes) == (1, 1, 12)
        assert sorted(contents(logs)[0].splitlines()) == [b"dead", b"living"]
        assert len(spools_of(logs)) == 1
        os.kill(pid, signal.SIGSTOP)
        assert recover(logs).live_spools == 1, "a stopped process is not dead"
        os.kill(pid, signal.SIGCONT)
        stop.send()
        assert reap(pid) == 0
    assert sorted(contents(logs)[0].splitlines()) == [b"dead", b"living", b"still living"]
    assert spools_of(logs) == []


def test_process_that_writes_can_recover_what_others_left(logs: Path) -> None:
    with SharedWriter(logs, flush_interval=1e6) as writer:
        writer.write(b"mine\n")
        leave_dead_spool(logs, b"theirs\n")
        report = recover(logs)
        assert (report.live_spools, report.dead_spools) == (1, 1)
        assert sorted(contents(logs)[0].splitlines()) == [b"mine", b"theirs"]
        assert writer.stats()["unflushed_bytes"] == 0
        writer.write(b"mine again\n")
    assert sorted(contents(logs)[0].splitlines()) == [b"mine", b"mine again", b"theirs"]


def test_two_recoveries_at_once_do_everything_once(logs: Path) -> None:
    records = [b"record of %d %s\n" % (number, b"x" * 200) for number in range(24)]
    for record in records:
        leave_dead_spool(logs, record, rotate_bytes=1000)
    start, results = Signal(), os.pipe()

    def work() -> None:
        start.wait()
        report = recover(logs)
        os.write(results[1], b"%d %d;" % (report.dead_spools, len(report.failures)))

    with running(work, work, work) as pids:
        start.send(3)
        assert [reap(pid) for pid in pids] == [0, 0, 0]
    reports = [tuple(map(int, text.split())) for text in os.read(results[0], 1000).decode().split(";")[:-1]]
    assert sum(dead for dead, _ in reports) >= 24
    assert sum(failures for _, failures in reports) == 0
    assert sorted(b"".join(contents(logs)).splitlines(keepends=True)) == sorted(records)
    assert spools_of(logs) == []


@pytest.mark.sweep
def test_another_recovery_at_any_step_of_a_recovery_does_nothing_twice(tmp_path: Path) -> None:
    for step in itertools.count():
        logs = tmp_path / f"{step}"
        leave_interrupted_flush(logs, segment=LINES[:3])
        inner: list[RecoveryReport] = []
        reports: list[RecoveryReport] = []

        def other(number: int, step: int = step, inner: list[RecoveryReport] = inner, logs: Path = logs) -> None:
            if number == step:
                inner.append(recover(logs, timeout_s=0.0))

        def outer(reports: list[RecoveryReport] = reports, logs: Path = logs) -> None:
            reports.append(recover(logs, timeout_s=0.0))

        _each_step(outer, other)
        assert contents(logs) == [LINES], step
        assert spools_of(logs) == [], step
        assert sum(report.flushed_bytes for report in (*inner, *reports)) <= 16, step
        assert sum(report.dead_spools for report in (*inner, *reports)) == 1, step
        shutil.rmtree(logs)
        if not inner:
            break
    assert step > 100


def test_records_of_one_process_come_out_in_the_order_in_which_it_wrote_them(logs: Path) -> None:
    """The lock was busy when it died, so that they lie in several spools."""
    with SharedWriter(logs, flush_interval=1e6) as writer:
        writer.write(b"first\n")
    lock = KeptLock(paths_of(logs).lock, 0o600)
    lock.acquire(1.0)
    for worker in range(6):
        records = [b"<%d %d %s>" % (worker, number, b"x" * 40_000) for number in range(3)]
        leave_dead_spool(logs, b"<%d line>\n" % worker, *records, lock_timeout=0.0)
    lock.close()
    assert recover(logs).failures == []
    written = re.findall(rb"<(\d) (\w+)", b"".join(contents(logs)))
    for worker in range(6):
        assert [what for who, what in written if who == b"%d" % worker] == [b"line", b"0", b"1", b"2"]


def test_every_stream_of_the_directory_is_recovered(logs: Path) -> None:
    for template in (TEMPLATE, "{app_name}-{index}.log", "{timestamp:%Y%m%d}"):
        leave_dead_spool(logs, b"line\n", filename_template=template, app_name="my app")
    report = recover(logs)
    assert report.streams == sorted(report.streams)
    assert len(report.streams) == 3
    assert (report.dead_spools, report.flushed_bytes, report.failures) == (3, 15, [])
    assert contents(logs) == [b"line\n"] * 3
    assert (logs / "my app-001.log").exists()


def test_strangers_in_the_state_directory_are_left_alone(logs: Path) -> None:
    leave_dead_spool(logs, b"line\n")
    state = logs / ".profilis-mp"
    (state / "README").write_text("not a stream")
    (state / "lost+found").mkdir()
    (state / "{pid}").mkdir()
    report = recover(logs)
    assert (report.streams, report.failures) == ([NAMES.stream], [])
    assert sorted(path.name for path in state.iterdir()) == sorted(["README", "lost+found", "{pid}", NAMES.stream])
    assert list((state / "lost+found").iterdir()) == []


def test_file_that_is_named_like_a_stream_is_a_failure_that_stops_no_other(logs: Path) -> None:
    leave_dead_spool(logs, b"line\n")
    (logs / ".profilis-mp" / "a-{index}").write_text("a file")
    report = recover(logs)
    assert report.streams == ["a-{index}", NAMES.stream]
    assert len(report.failures) == 1
    assert contents(logs) == [b"line\n"]


def recover_or_refuse(logs: Path) -> RecoveryReport | None:
    try:
        return recover(logs)
    except LogDirectoryError:
        return None


def test_state_directory_that_is_a_file_is_refused_or_a_failure(logs: Path) -> None:
    logs.mkdir()
    (logs / ".profilis-mp").write_text("a file")
    report = recover_or_refuse(logs)
    assert report is None or report.failures


def test_symlink_in_the_place_of_the_state_directory_is_not_followed(logs: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    leave_dead_spool(elsewhere, b"theirs\n")
    logs.mkdir()
    (logs / ".profilis-mp").symlink_to(elsewhere / ".profilis-mp")
    report = recover_or_refuse(logs)
    assert report is None or report.failures
    assert spools_of(elsewhere) != []
    assert [path.name for path in logs.iterdir()] == [".profilis-mp"]


# The limits of the dead.


def test_limits_of_the_dead_writer_are_respected(logs: Path) -> None:
    records = [b"%019d\n" % number for number in range(20)]
    old = os.umask(0o077)
    try:
        leave_dead_spool(logs, *records, rotate_bytes=50, file_mode=0o644)
        report = recover(logs)
    finally:
        os.umask(old)
    assert report.failures == []
    assert [len(content) for content in contents(logs)] == [40] * 10
    assert b"".join(contents(logs)) == b"".join(records)
    assert {stat.S_IMODE(os.stat(path).st_mode) for path in segments_of(str(logs))} == {0o644}


def test_each_dead_writers_limits_hold_for_its_own_records(logs: Path) -> None:
    for number, rotate_bytes in enumerate((50, 1000, 50, 1000)):
        leave_dead_spool(logs, *([b"%d%018d\n" % (number, 0)] * 20), rotate_bytes=rotate_bytes)
    assert recover(logs).failures == []
    segments = contents(logs)
    for number, rotate_bytes in enumerate((50, 1000, 50, 1000)):
        own = [segment for segment in segments if segment.count(b"\n%d" % number) or segment.startswith(b"%d" % number)]
        assert sum(line.startswith(b"%d" % number) for line in b"".join(segments).splitlines()) == 20
        if rotate_bytes == 1000:
            assert max(map(len, own)) > 50
    assert max(map(len, segments)) <= 1000


def test_age_limit_of_the_dead_writer_is_respected(logs: Path) -> None:
    """The active segment was opened when the clock was an hour back; who died then rotates by the minute."""
    hour_ago = time.time_ns() - 3600 * 10**9
    with SharedWriter(logs, flush_interval=1e6, clock=lambda: hour_ago) as writer:
        writer.write(b"an hour ago\n")
    leave_dead_spool(logs, b"rotates by the day\n", rotate_secs=86_400)
    assert recover(logs).failures == []
    leave_dead_spool(logs, b"rotates by the minute\n", rotate_secs=60)
    assert recover(logs).failures == []
    assert contents(logs) == [b"an hour ago\nrotates by the day\n", b"rotates by the minute\n"]


@pytest.fixture
def tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "JST-9")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("tokyo")
@pytest.mark.parametrize("local_time", [False, True])
def test_names_are_in_the_dead_writers_kind_of_time(logs: Path, local_time: bool) -> None:
    leave_dead_spool(logs, b"line\n", local_time=local_time)
    assert recover(logs).failures == []
    (segment,) = segments_of(str(logs))
    name = SegmentNames(TEMPLATE, local_time=local_time).parse(os.path.basename(segment))
    assert name is not None
    assert abs(time.time_ns() - name.stamp_ns) < 3600 * 10**9


# Interrupted flushes.


def leave_interrupted_flush(
    logs: Path,
    *,
    head: int = 4096,
    flush_to: int = 4112,
    expected_end: int = 16,
    committed: int = 0,
    intent: bool = True,
    segment: bytes | None = b"",
) -> None:
    """As the worked bytes of the format page: two events of eight bytes each, and a death in the middle."""

    def work() -> tuple[Spool, Control]:
        paths = paths_of(logs)
        paths.create(Access(), lambda: None, [])
        Control.create(paths.control, 0o600, 1, None)
        control = Control(paths.control)
        now_ns = time.time_ns()
        name = NAMES.after(None, now_ns, lambda text: False)
        control.advance(1, now_ns, name)
        if segment is not None:
            (logs / name.text).write_bytes(segment)
        spool = Spool.create(paths.spools, 1000, LIMITS, framed=False)
        assert spool.append(LINES[:8])
        assert spool.append(LINES[8:])
        spool.flush_to = flush_to
        spool.expected_end = expected_end
        control.committed = committed
        spool.head = head
        control.intent = spool.id if intent else 0
        return spool, control

    killed_while(work)


@pytest.mark.parametrize(
    ("state", "finished"),
    [
        ({"flush_to": 4096, "expected_end": 0, "intent": False}, 0),
        ({"intent": False}, 0),
        ({}, 1),
        ({"segment": LINES[:12]}, 1),
        ({"segment": LINES}, 1),
        ({"segment": LINES, "committed": 16}, 1),
        ({"segment": LINES, "committed": 16, "head": 4112}, 1),
        ({"segment": LINES, "committed": 16, "head": 4112, "intent": False}, 0),
        ({"segment": None}, 1),
    ],
)
def test_each_of_the_worked_states_is_finished_to_the_same_bytes(
    logs: Path, state: dict[str, Any], finished: int
) -> None:
    leave_interrupted_flush(logs, **state)
    report = recover(logs)
    assert report.failures == []
    assert (report.finished_flushes, report.dead_spools) == (finished, 1)
    assert contents(logs) == [LINES]
    assert spools_of(logs) == []


def test_flush_torn_at_any_byte_is_finished_byte_exact(tmp_path: Path) -> None:
    for size in range(17):
        logs = tmp_path / f"{size}"
        leave_interrupted_flush(logs, segment=LINES[:size])
        assert recover(logs).failures == []
        assert contents(logs) == [LINES], size


def test_interrupted_flush_that_began_behind_older_bytes_is_finished_there(logs: Path) -> None:
    older = b"older\n"
    leave_interrupted_flush(logs, committed=6, expected_end=22, segment=older + LINES[:3])
    assert recover(logs).finished_flushes == 1
    assert contents(logs) == [older + LINES]


def test_rest_of_the_spool_follows_the_interrupted_batch(logs: Path) -> None:
    leave_interrupted_flush(logs, flush_to=4104, expected_end=8, segment=LINES[:5])
    report = recover(logs)
    assert (report.finished_flushes, report.dead_spools) == (1, 1)
    assert contents(logs) == [LINES]


@pytest.mark.parametrize("what", ["removed", "cut", "foreign bytes first", "foreign bytes within"])
def test_interrupted_flush_whose_segment_was_damaged_goes_whole_to_the_next_generation(logs: Path, what: str) -> None:
    older = b"older\n"
    leave_interrupted_flush(logs, committed=6, expected_end=22, segment=older + LINES[:3])
    (segment,) = map(Path, segments_of(str(logs)))
    if what == "removed":
        segment.unlink()
    elif what == "cut":
        os.truncate(segment, 4)
    elif what == "foreign bytes first":
        segment.write_bytes(older + b"XX")
    else:
        segment.write_bytes(older + LINES[:3] + b"XX")
    damaged = segment.read_bytes() if segment.exists() else None
    report = recover(logs)
    assert report.failures == []
    assert contents(logs)[-1] == LINES
    assert len(contents(logs)) == (1 if what == "removed" else 2)
    assert damaged is None or segment.read_bytes() == damaged


def test_foreign_bytes_behind_a_whole_batch_leave_the_batch_counted(logs: Path) -> None:
    leave_interrupted_flush(logs, segment=LINES + b"foreign\n")
    assert recover(logs).failures == []
    assert contents(logs) == [LINES + b"foreign\n"]
    with SharedWriter(logs) as writer:
        writer.write(b"next\n")
    assert contents(logs) == [LINES + b"foreign\n", b"next\n"]


def test_flush_whose_spool_is_gone_is_given_up_and_not_counted_as_finished(
    logs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    leave_interrupted_flush(logs, segment=LINES[:3])
    (spool,) = spools_of(logs)
    os.unlink(f"{paths_of(logs).spools}/{spool}")
    report = recover(logs)
    assert report.failures == []
    assert sum("lost" in record.message for record in caplog.records) == 1
    with SharedWriter(logs) as writer:
        writer.write(b"next\n")
    assert contents(logs) == [LINES[:3], b"next\n"]
    assert report.finished_flushes == 0


def test_flush_whose_spool_is_garbled_is_given_up_and_the_spool_set_aside(logs: Path) -> None:
    leave_interrupted_flush(logs, segment=LINES[:3])
    (spool,) = spools_of(logs)
    path = Path(f"{paths_of(logs).spools}/{spool}")
    path.write_bytes(b"\xee" * 5096)
    report = recover(logs)
    assert (report.set_aside, report.failures) == ([str(path)], [])
    assert report.finished_flushes == 0
    with SharedWriter(logs) as writer:
        writer.write(b"next\n")
    assert contents(logs) == [LINES[:3], b"next\n"]


def test_flush_in_progress_of_a_living_process_is_not_counted_as_interrupted(logs: Path) -> None:
    begun, finish = Signal(), Signal()
    with SharedWriter(logs) as writer:
        writer.write(b"line\n")

    def flush_slowly() -> None:
        lock = KeptLock(paths_of(logs).lock, 0o600)
        lock.acquire(1.0)
        control = Control(paths_of(logs).control)
        spool = Spool.create(paths_of(logs).spools, 1000, LIMITS, framed=False)
        control.intent = spool.id
        begun.send()
        finish.wait()
        control.intent = 0
        lock.release()
        signal.pause()

    reports: list[RecoveryReport] = []
    with running(flush_slowly):
        begun.wait()
        thread = threading.Thread(target=lambda: reports.append(recover(logs, timeout_s=60.0)))
        thread.start()
        wait_until(lambda: is_open_here(paths_of(logs).lock), what="recover to wait for the lock")
        finish.send()
        thread.join()
    (report,) = reports
    assert (report.failures, report.live_spools) == ([], 1)
    assert report.finished_flushes == 0


def is_open_here(path: str) -> bool:
    for fd in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{fd}") == path:
                return True
        except OSError:
            pass
    return False


@pytest.mark.sweep
@pytest.mark.parametrize("seed", range(3))
def test_processes_killed_at_any_step_are_recovered_by_several_at_once(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    logs = tmp_path / "logs"
    acknowledged = Acknowledgements(8)

    def writing(worker: int) -> Callable[[], None]:
        def work() -> None:
            writer = SharedWriter(logs, rotate_bytes=200, buffer_size=150, spool_bytes=400, flush_interval=1e6)
            for number in range(20):
                writer.write(b'{"worker":%d,"seq":%d}\n' % (worker, number))
                acknowledged[worker] = number + 1

        return work

    for worker in range(8):
        code = reap(fork(killed_after(dice.randrange(100, 1500), writing(worker))))
        assert code in (0, -signal.SIGKILL)
        if worker % 2:
            pids = [fork(lambda: recover(logs)) for _ in range(2)]
            assert [reap(pid) for pid in pids] == [0, 0]
    report = recover(logs)
    assert report.failures == [], seed
    check_log(logs, acknowledged.by_worker(), rotate_bytes=200, context=seed)
    assert spools_of(logs) == []


# What cannot be done now.


def test_lock_that_another_process_holds_is_a_failure_and_nothing_is_lost(logs: Path) -> None:
    leave_interrupted_flush(logs, segment=LINES[:3])
    taken = Signal()

    def hold() -> None:
        KeptLock(paths_of(logs).lock, 0o600).acquire(1.0)
        taken.send()
        signal.pause()

    with running(hold):
        taken.wait()
        before = open_descriptors(logs)
        for timeout_s in (0.0, 0.01):
            report = recover(logs, timeout_s=timeout_s)
            assert (report.finished_flushes, report.dead_spools, report.flushed_bytes) == (0, 0, 0)
            assert len(report.failures) == 1
            assert paths_of(logs).state in report.failures[0]
            assert "locked by another process" in report.failures[0]
        assert contents(logs) == [LINES[:3]]
        assert open_descriptors(logs) <= before
    report = recover(logs)
    assert (report.failures, report.finished_flushes) == ([], 1)
    assert contents(logs) == [LINES]


def test_busy_stream_does_not_keep_the_others_from_being_recovered(logs: Path) -> None:
    for template in ("a-{index}", "b-{index}", "c-{index}"):
        leave_dead_spool(logs, b"line\n", filename_template=template)
    lock = KeptLock(paths_of(logs, "b-{index}").lock, 0o600)
    lock.acquire(1.0)
    report = recover(logs, timeout_s=0.0)
    assert (report.streams, report.dead_spools) == (["a-{index}", "b-{index}", "c-{index}"], 2)
    assert len(report.failures) == 1
    lock.close()
    assert recover(logs).dead_spools == 1
    assert contents(logs) == [b"line\n"] * 3


def test_directory_in_the_place_of_a_spool_is_a_failure_that_stops_no_other(logs: Path) -> None:
    leave_dead_spool(logs, b"line\n")
    os.mkdir(f"{paths_of(logs).spools}/{1:016x}")
    report = recover(logs)
    assert report.dead_spools == 1
    assert len(report.failures) == 1
    assert f"{1:016x}" in report.failures[0]


# Remains.


def test_unfinished_spools_of_the_dead_are_removed(logs: Path) -> None:
    leave_dead_spool(logs, b"line\n")
    spools = Path(paths_of(logs).spools)
    (spools / f"{5:016x}{UNFINISHED}").write_bytes(b"\0" * 100)
    (spools / f"{6:016x}{UNFINISHED}").touch()
    locked = KeptLock(str(spools / f"{7:016x}{UNFINISHED}"), 0o600)
    assert locked.try_acquire()
    report = recover(logs)
    assert report == RecoveryReport(str(logs), streams=[NAMES.stream], dead_spools=1, flushed_bytes=5)
    assert spools_of(logs) == [f"{7:016x}{UNFINISHED}"], "somebody is at work on this one"
    locked.close()
    recover(logs)
    assert spools_of(logs) == []


def test_remains_of_a_control_file_being_created_do_not_matter(logs: Path) -> None:
    leave_dead_spool(logs, b"line\n")
    Path(f"{paths_of(logs).control}.new").write_bytes(b"x" * 77)
    assert recover(logs).failures == []
    assert contents(logs) == [b"line\n"]


def test_damaged_control_file_is_reported_as_set_aside(logs: Path, caplog: pytest.LogCaptureFixture) -> None:
    leave_dead_spool(logs, b"line\n")
    recover(logs)
    leave_dead_spool(logs, b"more\n")
    control = Path(paths_of(logs).control)
    control.write_bytes(struct.pack("=Q", 7) * 512)
    report = recover(logs)
    assert (report.dead_spools, report.failures) == (1, [])
    assert contents(logs) == [b"line\n", b"more\n"]
    assert len(list(control.parent.glob("control.bad-*"))) == 1
    assert sum("set aside" in record.message for record in caplog.records) == 1
    assert report.set_aside == [str(control)]
