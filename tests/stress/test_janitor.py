"""Real leaders with work to do: killed, forked, starved of inotify and of disk, and raced by people with a shell."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import watchdog.observers.polling  # noqa: F401  # somebody without rights may not be able to load it
from checks import check_log
from disks import SmallDisk, small_disk
from processes import Acknowledgements, fork, reap, running, wait_until

from profilis_mp import JSONLExporter, Upkeep, monitor_log_directory, recover
from profilis_mp.account import lines_of, segments_of
from profilis_mp.janitor import janitor, sweep
from profilis_mp.janitor.external import run_janitor, sweep_once
from profilis_mp.janitor.watch import Watch
from profilis_mp.sharedlog.names import SegmentNames
from profilis_mp.sharedlog.stream import StreamPaths
from profilis_mp.threads import Flag

STREAM = "profilis-{timestamp}.jsonl"
COMPRESSING = {"compress_old_files": True, "compress_delay_secs": 0}


def files_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.is_file())


def compressed_in(directory: Path) -> int:
    return sum(name.endswith(".gz") for name in files_in(directory))


def writing(directory: Path, worker: int, acknowledged: Acknowledgements, **options: Any) -> Callable[[], None]:
    def work() -> None:
        exporter = JSONLExporter(directory, buffer_size=4096, flush_interval=0.05, **options)
        while True:
            number = acknowledged[worker]
            exporter.emit({"worker": worker, "seq": number, "fill": "x" * (number % 300)})
            acknowledged[worker] = number + 1
            if number % 64 == 0:
                time.sleep(0.001)  # a directory of so many files as the test wants, not as the disk can take

    return work


def leader_of(directory: Path) -> int | None:
    """The process that holds the leader lock."""
    try:
        inode = os.stat(StreamPaths(str(directory), STREAM).janitor_lock).st_ino
    except FileNotFoundError:
        return None
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == str(inode):
            return int(fields[4])
    return None


# Compression and retention while everybody writes and leaders die.


def kept_numbers(directory: Path) -> dict[int, list[int]]:
    """Each worker's events in the order of the log."""
    found: dict[int, list[int]] = {}
    for path in segments_of(str(directory)):
        for _, line in lines_of(path):
            event = orjson.loads(line)
            found.setdefault(event["worker"], []).append(event["seq"])
    return found


@pytest.mark.sweep
@pytest.mark.parametrize("max_files", [None, 100])
def test_leader_killed_every_second_while_four_writers_rotate_loses_nothing(
    tmp_path: Path, max_files: int | None
) -> None:
    workers, kills = 4, 0
    acknowledged = Acknowledgements(1000)
    options = {"rotate_bytes": 64 * 1024, "max_files": max_files, **COMPRESSING}
    pids = {fork(writing(tmp_path, worker, acknowledged, **options)): worker for worker in range(workers)}
    rules = Upkeep(compress_old_files=True, compress_delay_secs=0, max_files=max_files)

    def segments_so_far() -> int:
        return monitor_log_directory(str(tmp_path))["streams"][STREAM]["generation"]

    try:
        deadline = time.monotonic() + 120
        while (kills < 5 or segments_so_far() < 200) and time.monotonic() < deadline:
            time.sleep(1.0)  # how often a leader dies is the scenario
            leader = leader_of(tmp_path)
            if leader in pids:
                os.kill(leader, signal.SIGKILL)
                assert reap(leader) == -signal.SIGKILL
                del pids[leader]
                kills += 1
                pids[fork(writing(tmp_path, workers, acknowledged, **options))] = workers
                workers += 1
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            reap(pid)
    assert kills >= 5
    assert segments_so_far() >= 200
    assert max_files is not None or compressed_in(tmp_path) >= 20
    assert not recover(tmp_path).failures
    for swept in (False, True):
        if swept:
            assert not sweep_once(tmp_path, upkeep=rules)[STREAM].failures
        if max_files is None:
            check_log(tmp_path, acknowledged.by_worker())
            continue
        kept = kept_numbers(tmp_path)
        for worker, numbers in kept.items():
            # The eldest are gone, and nothing else: each of the rest is there once, in order, to the last one.
            assert numbers == list(range(numbers[0], numbers[-1] + 1)), worker
            assert numbers[-1] + 1 >= acknowledged[worker], worker
        assert set(pids.values()) <= set(kept)
    assert not [name for name in files_in(tmp_path) if name.endswith(".tmp")]
    assert sum(name.endswith(".jsonl") for name in files_in(tmp_path)) == 1
    assert max_files is None or len(segments_of(str(tmp_path))) == max_files


def test_people_with_a_shell_beside_the_janitor_do_no_harm(tmp_path: Path) -> None:
    acknowledged = Acknowledgements(1)
    with running(writing(tmp_path, 0, acknowledged, rotate_bytes=8192, **COMPRESSING)):
        by_hand = 0
        deadline = time.monotonic() + 60
        while by_hand < 20:
            assert time.monotonic() < deadline, f"{by_hand}"
            for name in files_in(tmp_path)[:-1]:
                if name.endswith(".jsonl"):
                    # Loses when the janitor was quicker, as it should.
                    done = subprocess.run(["gzip", "-q", str(tmp_path / name)], check=False, capture_output=True)
                    by_hand += done.returncode == 0
    recover(tmp_path)
    check_log(tmp_path, acknowledged.by_worker())


# When.


def test_a_new_segment_wakes_the_janitor(tmp_path: Path) -> None:
    with JSONLExporter(tmp_path, flush_interval=0.05, **COMPRESSING) as exporter:
        exporter.emit({"seq": 0})
        wait_until(lambda: _caretaker_of(exporter) and _caretaker_of(exporter)._watch.kind == "inotify")
        for number in range(3):
            exporter.emit({"seq": number})
            exporter.rotate()
            exporter.emit({"seq": number})
            exporter.flush()
            # Far sooner than the sweep that comes once a minute anyway.
            wait_until(lambda count=number + 1: compressed_in(tmp_path) == count, timeout_s=20)


def _caretaker_of(exporter: JSONLExporter) -> Any:
    helper = exporter._writer._session.helper
    return helper._caretaker if helper is not None else None


def test_compression_waits_for_log_shippers(tmp_path: Path) -> None:
    with JSONLExporter(tmp_path, flush_interval=0.05, compress_old_files=True, compress_delay_secs=3600) as exporter:
        exporter.emit({"seq": 0})
        first = exporter.rotate()
        exporter.emit({"seq": 1})
        exporter.rotate()
        assert first is not None
        os.utime(first.path, (0, 0))
        exporter.emit({"seq": 2})
        exporter.flush()
        wait_until(lambda: files_in(tmp_path)[0] == os.path.basename(f"{first.path}.gz"))
        assert compressed_in(tmp_path) == 1


class Wakes:
    """Counts how often a watch woke somebody, and about what."""

    def __init__(self, directory: Path) -> None:
        self.count = 0
        self.watch = Watch(str(directory), lambda name: name.endswith(".jsonl"), self._wake)

    def _wake(self) -> None:
        self.count += 1

    def wakes_for(self, act: Callable[[], object]) -> None:
        before = self.count
        act()
        wait_until(lambda: self.count > before, what="an event")


@pytest.fixture
def wakes(tmp_path: Path) -> Iterator[Wakes]:
    (tmp_path / "log").mkdir()
    wakes = Wakes(tmp_path / "log")
    yield wakes
    wakes.watch.close()


def test_watch_tells_of_what_comes_and_goes(tmp_path: Path, wakes: Wakes) -> None:
    wakes.watch.ensure()
    log = tmp_path / "log"
    wakes.wakes_for((log / "a.jsonl").touch)
    wakes.wakes_for(lambda: (log / "a.jsonl").rename(log / "b.jsonl"))
    wakes.wakes_for(lambda: (log / "b.jsonl").rename(tmp_path / "away"))
    wakes.wakes_for(lambda: (tmp_path / "away").rename(log / "c.jsonl"))
    wakes.wakes_for((log / "c.jsonl").unlink)
    (log / "d.gz").touch()
    before = wakes.count
    wakes.wakes_for((log / "e.jsonl").touch)  # events keep their order: that of d.gz is past now
    with open(log / "e.jsonl", "w") as file:
        file.write("flushes are no events\n")
    wakes.wakes_for((log / "e.jsonl").unlink)
    assert wakes.count - before == 2


def test_watch_follows_a_directory_that_was_replaced(tmp_path: Path, wakes: Wakes) -> None:
    wakes.watch.ensure()
    (tmp_path / "log").rename(tmp_path / "old")
    wakes.watch.ensure()
    assert wakes.watch.kind is None
    (tmp_path / "log").mkdir()
    wakes.watch.ensure()
    wakes.wakes_for((tmp_path / "log" / "a.jsonl").touch)


def test_watch_polls_while_inotify_is_exhausted() -> None:
    # Not in tmp_path, where somebody without rights may not go.
    directory = tempfile.TemporaryDirectory()
    log = Path(directory.name)
    log.chmod(0o777)

    def work() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        taken = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
        if os.geteuid() == 0:
            os.setuid(61234)  # nobody else's limit is used up
        while (fd := libc.inotify_init()) >= 0:
            taken.append(fd)
        assert ctypes.get_errno() == errno.EMFILE
        assert len(os.listdir("/proc/self/fd")) < 4000, "the limit that was reached is not inotify's"
        wakes = Wakes(log)
        before = len(os.listdir("/proc/self/fd"))
        wakes.watch.ensure()
        assert wakes.watch.kind == "polling"
        assert len(os.listdir("/proc/self/fd")) <= before + 3, "the failed observer left something open"
        wakes.wakes_for((log / "a.jsonl").touch)
        for fd in taken:
            os.close(fd)
        wakes.watch._retry_at = 0.0  # ten minutes later
        wakes.watch.ensure()
        assert wakes.watch.kind == "inotify"
        wakes.wakes_for((log / "a.jsonl").unlink)

    assert reap(fork(work)) == 0
    directory.cleanup()


def test_watch_polls_where_no_watch_is_left(tmp_path: Path) -> None:
    """Instances there are, but no watches: the limit of a user namespace of its own, so that nobody else meets it."""

    def work() -> None:
        if ctypes.CDLL(None).unshare(0x10000000):  # CLONE_NEWUSER
            os._exit(77)
        try:
            Path("/proc/sys/user/max_inotify_watches").write_text("0")
        except OSError:
            os._exit(77)
        wakes = Wakes(tmp_path)
        before = len(os.listdir("/proc/self/fd"))
        wakes.watch.ensure()
        assert wakes.watch.kind == "polling"
        assert len(os.listdir("/proc/self/fd")) <= before + 3, "the failed observer left something open"
        wakes.wakes_for((tmp_path / "a.jsonl").touch)

    result = reap(fork(work))
    if result == 77:
        pytest.skip("no user namespaces here")
    assert result == 0


def test_a_symbolic_link_to_the_log_directory_is_followed(tmp_path: Path, wakes: Wakes) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "log")
    through = Wakes(tmp_path / "link")
    through.watch.ensure()
    through.wakes_for((tmp_path / "log" / "a.jsonl").touch)
    through.watch.close()


def test_janitor_survives_a_moment_without_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused: list[object] = []
    really = Watch.ensure

    def ensure(watch: Watch) -> None:
        if not refused:
            refused.append(watch)
            raise OSError(errno.EMFILE, "Too many open files")
        really(watch)

    monkeypatch.setattr(Watch, "ensure", ensure)
    monkeypatch.setattr(janitor, "_RETRY_S", 0.1)
    with JSONLExporter(tmp_path, flush_interval=0.05, **COMPRESSING) as exporter:
        for number in range(2):
            exporter.emit({"seq": number})
            exporter.rotate()
        wait_until(lambda: refused)
        exporter.emit({"seq": 2})
        exporter.flush()
        wait_until(lambda: compressed_in(tmp_path) == 2)


# What it must not touch.


def test_a_file_that_took_an_expired_ones_name_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sweeper was stopped between its listing and its unlink; somebody emptied the directory meanwhile."""
    names = SegmentNames("x-{index}.jsonl")
    with JSONLExporter(tmp_path, filename_template=names.template, janitor=False) as exporter:
        for number in range(3):
            exporter.emit({"seq": number})
            exporter.rotate()
    really = sweep.expired

    def expired(*arguments: Any) -> Any:
        gone = really(*arguments)
        for one in gone:
            Path(one.path).unlink()
            Path(one.path).write_bytes(b"somebody else's\n")
        return gone

    monkeypatch.setattr(sweep, "expired", expired)
    report = sweep_once(tmp_path, upkeep=Upkeep(max_files=1))[names.stream]
    assert not report.expired
    assert [path.read_bytes() for path in sorted(tmp_path.glob("*.jsonl"))][:2] == [b"somebody else's\n"] * 2


def test_sealed_segments_in_local_time_are_known_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        with JSONLExporter(tmp_path, local_time=True, janitor=False) as exporter:
            for number in range(3):
                exporter.emit({"seq": number})
                exporter.rotate()
        assert len(sweep_once(tmp_path, upkeep=Upkeep(max_files=1))[STREAM].expired) == 2
    finally:
        monkeypatch.undo()
        time.tzset()


# Forks.


# Seen once in ten runs of this suite: the janitor's thread had opened its copy and not yet written down that it had,
# when its process forked; the child kept the descriptor. Later: it had struck it off, and not yet closed it. Many small
# segments, so that most forks meet one or the other.
def test_children_forked_while_their_parent_compresses_keep_no_segment_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine an open can take longer than a fork is ready to wait for it.
    monkeypatch.setattr("profilis_mp.sharedlog.session._QUIET_S", 10.0)

    def work() -> None:
        exporter = JSONLExporter(tmp_path, rotate_bytes=4096, flush_interval=0.05, **COMPRESSING)
        for number in range(10_000):
            exporter.emit({"seq": number, "noise": os.urandom(100).hex()})
        exporter.flush()
        wait_until(lambda: list(tmp_path.glob("*.tmp")))

        def child() -> None:
            # Directories are opened and closed again by their listing, in C.
            assert not [path for path in open_files() if Path(path).parent == tmp_path and not os.path.isdir(path)]

        for _ in range(100):
            assert reap(fork(child)) == 0
        assert list(tmp_path.glob("*.jsonl")), "everything was compressed before the last fork"
        assert exporter.close()

    assert reap(fork(work)) == 0


# An idle process kept the last segment that it had written to open; expired, it took up space that no `du` could find.
def test_an_idle_process_keeps_no_segment_open_that_has_expired(tmp_path: Path) -> None:
    idle, busy = (JSONLExporter(tmp_path, flush_interval=0.02) for _ in range(2))
    idle.emit({"worker": 0, "seq": 0})
    assert idle.flush()
    busy.emit({"worker": 1, "seq": 0})
    busy.rotate()
    sweep_once(tmp_path, upkeep=Upkeep(max_age_secs=1e-6))
    assert not list(tmp_path.glob("*.jsonl"))
    wait_until(lambda: not [path for path in open_files() if path.startswith(str(tmp_path)) and "deleted" in path])
    idle.emit({"worker": 0, "seq": 0})
    assert idle.close()
    assert busy.close()
    check_log(tmp_path, {0: 1})


def open_files() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:  # that of the listing itself
            pass
    return found


def inotify_descriptors() -> int:
    return open_files().count("anon_inode:inotify")


def test_observer_does_not_outlive_a_fork_nor_an_exec(tmp_path: Path) -> None:
    def work() -> None:
        exporter = JSONLExporter(tmp_path, flush_interval=0.05, max_files=3)
        exporter.emit({"seq": 0})
        wait_until(lambda: _caretaker_of(exporter) and _caretaker_of(exporter)._watch.kind == "inotify")
        assert inotify_descriptors() == 1

        def child() -> None:
            assert inotify_descriptors() == 0
            exporter.emit({"seq": 1})
            assert exporter.close()

        assert reap(fork(child)) == 0
        listing = subprocess.run(
            ["ls", "-l", "/proc/self/fd"], close_fds=False, check=True, capture_output=True, text=True
        )
        assert "inotify" not in listing.stdout
        assert exporter.close()
        wait_until(lambda: inotify_descriptors() == 0)

    assert reap(fork(work)) == 0


def test_process_that_may_not_lead_never_does(tmp_path: Path) -> None:
    with (
        JSONLExporter(tmp_path, flush_interval=0.02, janitor=False, **COMPRESSING) as first,
        JSONLExporter(tmp_path, flush_interval=0.02, janitor="external", **COMPRESSING) as second,
    ):
        for number in range(20):
            for exporter in (first, second):
                exporter.emit({"seq": number})
                assert not exporter.stats()["leading"]
            # Candidates tick all the same: the guarantee of two intervals does not hang on a leader.
            wait_until(lambda: not first.stats()["unflushed_bytes"] and not second.stats()["unflushed_bytes"])
        first.rotate()
    assert compressed_in(tmp_path) == 0


# By itself.


def test_external_janitor_leads_and_applies_the_writers_rules(tmp_path: Path) -> None:
    acknowledged = Acknowledgements(1)
    options = {"janitor": "external", "rotate_bytes": 8192, "max_files": 5, **COMPRESSING}
    stop = Flag()
    swept: list[str] = []
    thread = threading.Thread(
        target=lambda: run_janitor(
            tmp_path, stop=stop, flush_interval=0.05, on_sweep=lambda stream, report: swept.append(stream)
        )
    )
    thread.start()
    try:
        with running(writing(tmp_path, 0, acknowledged, **options)) as (pid,):
            wait_until(lambda: leader_of(tmp_path) == os.getpid())
            wait_until(lambda: acknowledged[0] > 3000)
            assert leader_of(tmp_path) != pid
        count = acknowledged[0]

        # What the dead writer left in its spool is flushed by the janitor.
        def last() -> int:
            events = [orjson.loads(line) for line in Path(segments_of(str(tmp_path))[-1]).read_bytes().splitlines()]
            return max((event["seq"] for event in events), default=0)

        wait_until(lambda: last() >= count - 1)
        wait_until(lambda: compressed_in(tmp_path) == 4 and len(files_in(tmp_path)) == 5)
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()
    assert set(swept) == {STREAM}
    assert leader_of(tmp_path) is None


def test_external_janitor_notices_that_the_rules_changed(tmp_path: Path) -> None:
    stop = Flag()
    with JSONLExporter(tmp_path, janitor="external") as exporter:
        exporter.emit({})
        thread = threading.Thread(target=lambda: run_janitor(tmp_path, stop=stop, flush_interval=0.05))
        thread.start()
        try:
            wait_until(lambda: leader_of(tmp_path) == os.getpid())
            exporter.rotate()
            # A writer of the next deployment.
            with JSONLExporter(tmp_path, janitor="external", **COMPRESSING) as younger:
                younger.emit({})
            wait_until(lambda: compressed_in(tmp_path) >= 1)
        finally:
            stop.set()
            thread.join(30)


# No space.


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", size="2m") as disk:
        yield disk


def test_full_disk_during_compression_costs_nothing(disk: SmallDisk) -> None:
    exporter = JSONLExporter(disk.logs, janitor=False, rotate_bytes=200_000)
    for number in range(900):
        exporter.emit({"worker": 0, "seq": number, "noise": os.urandom(300).hex()})
    assert exporter.close()
    before = files_in(disk.logs)
    assert len(before) >= 3
    disk.fill(leave=8192)
    rules = Upkeep(compress_old_files=True, compress_delay_secs=0)
    report = sweep_once(disk.logs, upkeep=rules)[STREAM]
    assert len(report.failures) == len(before) - 1, "each sealed segment has no room for its copy"
    assert files_in(disk.logs) == before, "and leaves no half of one"
    check_log(disk.logs, {0: 900})
    disk.empty()
    report = sweep_once(disk.logs, upkeep=rules)[STREAM]
    assert not report.failures
    assert compressed_in(disk.logs) == len(before) - 1
    check_log(disk.logs, {0: 900})
