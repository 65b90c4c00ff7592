"""Threads that emit, flush, rotate, look and close at once: nothing lost, and each thread's events in its order."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest
from checks import check_log
from processes import Acknowledgements, fork, reap

from profilis_mp import JSONLExporter, SharedWriter, recover
from profilis_mp.account import segments_of
from profilis_mp.sharedlog.helping import Helping
from profilis_mp.sharedlog.lock import KeptLock
from profilis_mp.sharedlog.stream import StreamPaths

THREADS = 8
EVENTS = 3_000
PATIENT = 30.0  # a lock_timeout that only a deadlock would use up
STREAM = "profilis-{timestamp}.jsonl"


def exporter_for(directory: Path) -> JSONLExporter:
    return JSONLExporter(directory, buffer_size=4096, rotate_bytes=64 * 1024, flush_interval=0.02, lock_timeout=PATIENT)


def run_together(*works: Callable[[], object]) -> None:
    """Run each in a thread, start them at once, and raise what one of them raised."""
    raised: list[BaseException] = []
    start = threading.Barrier(len(works))

    def run(work: Callable[[], object]) -> None:
        try:
            start.wait(PATIENT)
            work()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENT)
        assert not thread.is_alive(), "a thread hangs"
    if raised:
        raise raised[0]


def emitting(exporter: JSONLExporter, acknowledged: Acknowledgements, worker: int, events: int) -> Callable[[], None]:
    def work() -> None:
        for _ in range(events):
            number = acknowledged[worker]
            exporter.emit({"worker": worker, "seq": number, "fill": "x" * (number % 100)})
            acknowledged[worker] = number + 1

    return work


@contextmanager
def hasty_switches() -> Iterator[None]:
    """Threads take turns a thousand times more often than usual, so that races come about."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


def test_threads_lose_nothing_and_keep_their_order(tmp_path: Path) -> None:
    acknowledged = Acknowledgements(THREADS)
    exporter = exporter_for(tmp_path)
    run_together(*(emitting(exporter, acknowledged, worker, EVENTS) for worker in range(THREADS)))
    stats = exporter.stats()
    assert stats["events"] == THREADS * EVENTS
    assert not stats["dropped"]
    assert exporter.close()
    check_log(tmp_path, acknowledged.by_worker(), rotate_bytes=64 * 1024)


def test_threads_may_flush_rotate_and_look_while_others_emit(tmp_path: Path) -> None:
    acknowledged = Acknowledgements(3)
    exporter = exporter_for(tmp_path)
    exporter.emit({"worker": 0, "seq": 0})
    acknowledged[0] = 1
    flushes: list[bool] = []

    def flush() -> None:
        for _ in range(200):
            flushes.append(exporter.flush())
            time.sleep(0)

    def rotate() -> None:
        for _ in range(40):
            exporter.rotate(timeout_s=PATIENT)
            time.sleep(0)

    def look() -> None:
        for _ in range(400):
            stats = exporter.stats()
            assert stats["unflushed_bytes"] >= 0
            assert exporter._get_current_file_path().startswith(exporter.dir)
            time.sleep(0)

    with hasty_switches():
        run_together(flush, rotate, look, *(emitting(exporter, acknowledged, worker, 2_000) for worker in range(3)))
    assert exporter.close()
    check_log(tmp_path, acknowledged.by_worker(), rotate_bytes=64 * 1024)
    assert all(flushes), f"{flushes.count(False)} of {len(flushes)} flushes failed though nobody kept the lock"


# flush() once took its caller's frame for an append that it had interrupted, and gave up at once.
def test_flush_waits_for_a_thread_that_is_flushing(tmp_path: Path) -> None:
    exporter = exporter_for(tmp_path)
    exporter.emit({"worker": 0, "seq": 0})
    assert exporter.flush()
    exporter.emit({"worker": 0, "seq": 1})
    lock = KeptLock(StreamPaths(str(tmp_path), STREAM).lock, 0o600)
    lock.acquire(PATIENT)
    letting_go = threading.Timer(0.3, lock.release)
    letting_go.start()
    flushed: list[bool] = []
    try:
        run_together(*[lambda: flushed.append(exporter.flush())] * 4)
    finally:
        letting_go.join()
        lock.close()
    assert flushed == [True] * 4
    assert exporter.close()
    check_log(tmp_path, {0: 2})


def test_events_emitted_while_another_thread_closes_are_kept(tmp_path: Path) -> None:
    workers = 4
    acknowledged = Acknowledgements(workers)
    exporter = exporter_for(tmp_path)
    closes = 0

    def close() -> None:
        nonlocal closes
        while closes < 40:
            exporter.close()
            closes += 1
            time.sleep(0.002)

    # A late session, one after close(), flushes every event at once: not so many of them.
    run_together(close, *(emitting(exporter, acknowledged, worker, 400) for worker in range(workers)))
    exporter.close()
    assert not recover(tmp_path).failures
    check_log(tmp_path, acknowledged.by_worker(), rotate_bytes=64 * 1024)


def test_each_thread_may_close_and_go_on(tmp_path: Path) -> None:
    acknowledged = Acknowledgements(THREADS)
    exporter = exporter_for(tmp_path)

    def close_and_emit(worker: int) -> Callable[[], None]:
        emit = emitting(exporter, acknowledged, worker, 1)

        def work() -> None:
            for turn in range(40):
                emit()
                if turn % 5 == worker % 5:
                    exporter.close()

        return work

    with hasty_switches():
        run_together(*(close_and_emit(worker) for worker in range(THREADS)))
    exporter.close()
    assert not recover(tmp_path).failures
    check_log(tmp_path, acknowledged.by_worker(), rotate_bytes=64 * 1024)


# The slower of two threads once took away what the faster had already put in place.
def test_threads_that_find_the_session_closed_go_on_with_one(tmp_path: Path) -> None:
    acknowledged = Acknowledgements(THREADS)
    exporter = exporter_for(tmp_path)
    rounds = 40
    together = threading.Barrier(THREADS)

    def work(worker: int) -> Callable[[], None]:
        emit = emitting(exporter, acknowledged, worker, 1)

        def rounds_of_one() -> None:
            for _ in range(rounds):
                if together.wait(PATIENT / 3) == 0:
                    exporter.close()
                together.wait(PATIENT / 3)  # shorter than the wait for what nobody has
                emit()

        return rounds_of_one

    with hasty_switches():
        run_together(*(work(worker) for worker in range(THREADS)))
    exporter.close()
    assert not recover(tmp_path).failures
    check_log(tmp_path, acknowledged.by_worker())


def test_an_event_emitted_after_close_is_in_the_log_at_once_and_survives_a_kill(tmp_path: Path) -> None:
    acknowledged = Acknowledgements(1)

    def work() -> None:
        exporter = exporter_for(tmp_path)
        for number in range(20):
            exporter.emit({"worker": 0, "seq": number})
            acknowledged[0] = number + 1
            if number == 9:
                assert exporter.close()
            if number > 9:
                check_log(tmp_path, {0: number + 1})
        assert exporter.close()
        assert exporter.close()

    assert reap(fork(work)) == 0
    check_log(tmp_path, {0: 20})


def test_an_emit_method_kept_from_before_goes_on_after_close_and_a_larger_spool(tmp_path: Path) -> None:
    exporter = JSONLExporter(tmp_path, buffer_size=4096, spool_bytes=8192, lock_timeout=PATIENT)
    emit = exporter.emit
    numbers = iter(range(1_000))
    for size in (10, 20_000, 10, 40_000, 10):
        emit({"worker": 0, "seq": next(numbers), "fill": "x" * size})
        exporter.emit({"worker": 0, "seq": next(numbers)})
    exporter.close()
    for _ in range(3):
        emit({"worker": 0, "seq": next(numbers)})
        exporter.emit({"worker": 0, "seq": next(numbers)})
    exporter.close()
    check_log(tmp_path, {0: next(numbers)})


# A monitoring thread reads stats() whenever it likes, also while the spool that it looks at is closed or replaced.
def test_stats_never_raise_while_spools_come_and_go(tmp_path: Path) -> None:
    exporter = JSONLExporter(tmp_path, buffer_size=4096, spool_bytes=4096, lock_timeout=PATIENT, flush_interval=1e6)
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            exporter.stats()

    def come_and_go() -> None:
        try:
            for turn in range(300):
                exporter.emit({"worker": 0, "seq": turn, "fill": "x" * (5_000 + 50 * turn if turn % 3 else 10)})
                if turn % 5 == 0:
                    exporter.close()
        finally:
            done.set()

    with hasty_switches():
        run_together(look, look, come_and_go)
    exporter.close()
    check_log(tmp_path, {0: 300})


def worker_numbers(directory: Path) -> list[int]:
    return [
        orjson.loads(line)["seq"]
        for path in segments_of(str(directory))
        for line in Path(path).read_bytes().splitlines()
    ]


# Opaque records go to spools aside, lines to the main one; which of them is flushed first must not depend on chance.
@pytest.mark.parametrize("whose_flush", ["its own", "another's"])
def test_lines_and_opaque_records_that_wait_for_the_lock_keep_their_order(tmp_path: Path, whose_flush: str) -> None:
    for attempt in range(4):
        directory = tmp_path / f"{attempt}"
        with waiting_writer(directory) as writer:
            for number in range(1, 10, 3):
                writer.write(b'{"seq":%d}\n' % number)
                writer.write(b'{"seq":%d}\n{"seq":%d}\n' % (number + 1, number + 2))
        if whose_flush == "another's":
            helping = Helping(StreamPaths(str(directory), STREAM), writer._settings)
            helping.round(PATIENT)
            helping.close()
        assert writer.close()
        assert numbers_in(directory) == list(range(10))


def test_more_opaque_records_than_one_spool_aside_can_take_keep_their_order(tmp_path: Path) -> None:
    with waiting_writer(tmp_path) as writer:
        for number in range(1, 601, 2):
            fill = b"x" * (number * 97 % 1900)
            writer.write(b'{"seq":%d,"fill":"%b"}\n{"seq":%d}\n' % (number, fill, number + 1))
    assert not writer.stats()["dropped"]
    assert writer.close()
    assert numbers_in(tmp_path) == list(range(601))


@contextmanager
def waiting_writer(directory: Path) -> Iterator[SharedWriter]:
    """A writer that has written record 0; somebody else holds the directory lock for the length of the block."""
    writer = SharedWriter(directory, lock_timeout=0.05, flush_interval=1e6)
    writer.write(b'{"seq":0}\n')
    assert writer.flush()
    lock = KeptLock(StreamPaths(str(directory), STREAM).lock, 0o600)
    lock.acquire(PATIENT)
    try:
        yield writer
    finally:
        lock.release()
        lock.close()


def numbers_in(directory: Path) -> list[int]:
    return [
        orjson.loads(line)["seq"]
        for path in segments_of(str(directory))
        for line in Path(path).read_bytes().splitlines()
    ]
