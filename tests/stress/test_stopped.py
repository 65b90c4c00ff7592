"""Processes that are stopped (SIGSTOP) at the worst moment: the others go on, and do not wait again and again."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from checks import check_log
from processes import Acknowledgements, fork, reap, running, wait_until

from profilis_mp import JSONLExporter, LockTimeout, recover
from profilis_mp.account import segments_of, take_account
from profilis_mp.sharedlog.lock import KeptLock
from profilis_mp.sharedlog.stream import StreamPaths

STREAM = "profilis-{timestamp}.jsonl"
LOCK_TIMEOUT_S = 0.5
SPOOL_BYTES = 8192
NEVER_S = 1e6  # a flush_interval at which no helper ever does anything


def exporter_for(directory: Path, **options: Any) -> JSONLExporter:
    arguments: dict[str, Any] = {
        "buffer_size": 2048,
        "spool_bytes": SPOOL_BYTES,
        "lock_timeout": LOCK_TIMEOUT_S,
        "flush_interval": NEVER_S,
    }
    return JSONLExporter(directory, **{**arguments, **options})


def paths_in(directory: Path) -> StreamPaths:
    return StreamPaths(str(directory), STREAM)


class Events:
    """Numbers events so that those that were not dropped are 0, 1, 2 …: a dropped number is given again."""

    def __init__(self, exporter: JSONLExporter, worker: int = 0) -> None:
        self.exporter = exporter
        self.worker = worker
        self.accepted = 0

    def emit(self, fill: int = 100) -> bool:
        """Emit one event; returns whether it was accepted, which is the opposite of counted as dropped."""
        before = self.exporter.stats()
        self.exporter.emit({"worker": self.worker, "seq": self.accepted, "fill": "x" * fill})
        after = self.exporter.stats()
        accepted = after["events"] - before["events"]
        dropped = sum(after["dropped"].values()) - sum(before["dropped"].values())
        assert (accepted, dropped) in ((1, 0), (0, 1))
        self.accepted += accepted
        return accepted == 1

    def fill_the_spool(self) -> None:
        for _ in range(SPOOL_BYTES // 100 + 1):
            if not self.emit():
                return
        raise AssertionError("the spool is never full")


def wait_until_stopped(pid: int) -> None:
    assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])


@contextmanager
def stopped_holder_of(path: str) -> Iterator[Callable[[], None]]:
    """Another process takes the lock at ``path`` and is stopped while it has it; call what this gives to let it go on.

    It gives the lock back then, and ends.
    """

    def hold() -> None:
        lock = KeptLock(path, 0o600)
        lock.acquire(10.0)
        os.kill(os.getpid(), signal.SIGSTOP)
        lock.release()

    with running(hold) as (pid,):
        wait_until_stopped(pid)

        def go_on() -> None:
            os.kill(pid, signal.SIGCONT)
            assert reap(pid) == 0

        yield go_on


def test_emit_waits_once_for_a_stopped_process_and_then_drops_without_waiting(tmp_path: Path) -> None:
    exporter = exporter_for(tmp_path)
    events = Events(exporter)
    events.emit()
    assert exporter.flush()
    with stopped_holder_of(paths_in(tmp_path).lock) as go_on:
        started = time.monotonic()
        events.fill_the_spool()
        for _ in range(200):
            assert not events.emit()
        assert time.monotonic() - started < 3 * LOCK_TIMEOUT_S
        accepted = events.accepted
        assert accepted * 100 > SPOOL_BYTES / 2
        stats = exporter.stats()
        assert stats["dropped"] == {"lock_timeout": 201}
        assert stats["unflushed_bytes"] > SPOOL_BYTES / 2
        assert not exporter.flush(0.05)
        with pytest.raises(LockTimeout):
            exporter.rotate(timeout_s=0.05)
        go_on()
    assert events.emit()
    assert exporter.flush()
    assert exporter.stats()["unflushed_bytes"] == 0
    # The next time it waits again, once.
    with stopped_holder_of(paths_in(tmp_path).lock) as go_on:
        started = time.monotonic()
        events.fill_the_spool()
        assert time.monotonic() - started > LOCK_TIMEOUT_S / 2
        go_on()
    assert exporter.close()
    check_log(tmp_path, {0: events.accepted})


def test_emit_that_blocks_waits_for_every_event_and_keeps_it_when_the_lock_comes_free(tmp_path: Path) -> None:
    exporter = exporter_for(tmp_path, on_full="block", lock_timeout=0.2)
    events = Events(exporter)
    events.emit()
    assert exporter.flush()
    with stopped_holder_of(paths_in(tmp_path).lock) as go_on:
        events.fill_the_spool()
        started = time.monotonic()
        assert not events.emit()
        assert 0.1 < time.monotonic() - started < 10 * 0.2
        assert set(exporter.stats()["dropped"]) == {"lock_timeout"}
        go_on()
    assert exporter.close()
    check_log(tmp_path, {0: events.accepted})
    patient = Events(exporter_for(tmp_path, on_full="block", lock_timeout=30.0), worker=1)
    patient.emit()
    with stopped_holder_of(paths_in(tmp_path).lock) as go_on:
        letting_go = threading.Timer(0.3, go_on)
        letting_go.start()
        for _ in range(2 * SPOOL_BYTES // 100):
            assert patient.emit()
        letting_go.join()
    assert patient.exporter.close()
    check_log(tmp_path, {0: events.accepted, 1: patient.accepted})


def test_threads_and_helper_wait_no_longer_than_one_thread_does(tmp_path: Path) -> None:
    acknowledged = Acknowledgements(1)
    exporter = exporter_for(tmp_path, flush_interval=0.05)
    events = Events(exporter)
    events.emit()
    assert exporter.flush()
    with stopped_holder_of(paths_in(tmp_path).lock) as go_on:
        started = time.monotonic()
        done: list[float] = []

        def emit() -> None:
            for _ in range(100):
                exporter.emit({"worker": 1, "fill": "x" * 100})
            done.append(time.monotonic() - started)

        threads = [threading.Thread(target=emit, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(done) == 4
        # One of them waits for the lock, the others perhaps for that one.
        assert max(done) < 4 * LOCK_TIMEOUT_S
        # A fork waits for the threads that are busy, but not for ever; and the child for nobody.
        pid = fork(lambda: exporter.emit({"worker": 2, "seq": 0}))
        assert reap(pid, 20) == 0
        acknowledged[0] = 1
        go_on()
    stats = exporter.stats()
    assert stats["events"] + sum(stats["dropped"].values()) == 401
    assert exporter.close()
    recover(tmp_path)
    lines = [line for path in segments_of(str(tmp_path)) for line in Path(path).read_bytes().splitlines()]
    assert len(lines) == stats["events"] + 1


def test_first_events_of_new_processes_do_not_need_the_lock(tmp_path: Path) -> None:
    workers = 3
    acknowledged = Acknowledgements(workers + 1)
    first = exporter_for(tmp_path)
    first.emit({"worker": workers, "seq": 0})
    acknowledged[workers] = 1
    assert first.close()

    def writer(worker: int) -> Callable[[], None]:
        def work() -> None:
            exporter = exporter_for(tmp_path, lock_timeout=30.0)
            for number in range(50):
                exporter.emit({"worker": worker, "seq": number})
                acknowledged[worker] = number + 1
            os.kill(os.getpid(), signal.SIGKILL)

        return work

    with stopped_holder_of(paths_in(tmp_path).lock) as go_on:
        pids = [fork(writer(worker)) for worker in range(workers)]
        assert [reap(pid, 20) for pid in pids] == [-signal.SIGKILL] * workers
        assert recover(tmp_path, timeout_s=0.05).failures
        go_on()
    assert recover(tmp_path).dead_spools == workers
    check_log(tmp_path, acknowledged.by_worker())


def test_close_behind_a_stopped_process_ends_and_leaves_its_events_to_others(tmp_path: Path) -> None:
    exporter = exporter_for(tmp_path)
    events = Events(exporter)
    events.emit()
    assert exporter.flush()
    events.emit()
    with stopped_holder_of(paths_in(tmp_path).lock) as go_on:
        started = time.monotonic()
        assert not exporter.close()
        assert not exporter.close()
        assert time.monotonic() - started < 4 * LOCK_TIMEOUT_S
        late = Events(exporter, worker=1)
        assert late.emit()  # kept, though it cannot be flushed at once
        go_on()
    assert not exporter.stats()["dropped"]
    exporter.close()
    assert not recover(tmp_path).failures
    check_log(tmp_path, {0: 2, 1: 1})


def test_events_of_a_stopped_process_get_into_the_log_without_it(tmp_path: Path) -> None:
    acknowledged = Acknowledgements(2)

    def stopping() -> None:
        exporter = exporter_for(tmp_path, flush_interval=0.1, buffer_size=4096)
        for number in range(20):
            exporter.emit({"worker": 0, "seq": number})
            acknowledged[0] = number + 1
        os.kill(os.getpid(), signal.SIGSTOP)
        for number in range(20, 40):
            exporter.emit({"worker": 0, "seq": number})
            acknowledged[0] = number + 1

    exporter = exporter_for(tmp_path, flush_interval=0.1)
    exporter.emit({"worker": 1, "seq": 0})
    with running(stopping) as (pid,):
        wait_until_stopped(pid)
        wait_until(lambda: take_account(str(tmp_path), {0: 20, 1: 1}).lost == 0)
        os.kill(pid, signal.SIGCONT)
        assert reap(pid) == 0
    wait_until(lambda: take_account(str(tmp_path), {0: 40, 1: 1}).lost == 0)
    assert exporter.close()
    check_log(tmp_path, {0: 40, 1: 1})


# Wherever it is stopped (in an append, a flush, a rotation, with the lock or without), nobody else loses anything, and
# neither does it when it goes on.
def test_processes_stopped_at_random_lose_nothing(tmp_path: Path) -> None:
    acknowledged = Acknowledgements(3)

    def writer(worker: int) -> Callable[[], None]:
        def work() -> None:
            exporter = JSONLExporter(
                tmp_path, buffer_size=500, rotate_bytes=8192, lock_timeout=30.0, flush_interval=0.02
            )
            while True:
                number = acknowledged[worker]
                exporter.emit({"worker": worker, "seq": number})
                acknowledged[worker] = number + 1

        return work

    with running(*(writer(worker) for worker in range(3))) as pids:
        wait_until(lambda: all(acknowledged[worker] > 100 for worker in range(3)))
        for turn in range(60):
            pid = pids[turn % 2]
            os.kill(pid, signal.SIGSTOP)
            wait_until_stopped(pid)
            time.sleep(0.005)
            os.kill(pid, signal.SIGCONT)
        seen = acknowledged.by_worker()
        wait_until(lambda: all(acknowledged[worker] > seen[worker] for worker in range(3)))
    assert not recover(tmp_path).failures
    check_log(tmp_path, acknowledged.by_worker(), rotate_bytes=8192)
