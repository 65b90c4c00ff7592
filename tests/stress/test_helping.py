"""An event gets into its segment whatever its own process does: asleep, stopped, dead, or without threads."""

from __future__ import annotations

import _thread
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from checks import check_log
from processes import Acknowledgements, fork, reap, running, wait_until

from profilis_mp import JSONLExporter, SharedWriter
from profilis_mp.account import take_account
from profilis_mp.sharedlog.lock import KeptLock
from profilis_mp.sharedlog.names import SegmentNames
from profilis_mp.sharedlog.stream import StreamPaths

TEMPLATE = "profilis-{timestamp}.jsonl"
INTERVAL_S = 0.2
NEVER_S = 1e6  # a flush_interval at which no helper ever does anything


def exporter_for(directory: Path, **options: Any) -> JSONLExporter:
    return JSONLExporter(directory, **{"flush_interval": INTERVAL_S, **options})


def paths_in(directory: Path, template: str = TEMPLATE) -> StreamPaths:
    return StreamPaths(str(directory), SegmentNames(template).stream)


def emit(exporter: JSONLExporter, acknowledged: Acknowledgements, worker: int, events: int = 1) -> None:
    for _ in range(events):
        number = acknowledged[worker]
        exporter.emit({"worker": worker, "seq": number})
        acknowledged[worker] = number + 1


def is_logged(directory: Path, acknowledged: Acknowledgements) -> bool:
    """Whether everything acknowledged so far is in a segment."""
    expected = acknowledged.by_worker()
    return take_account(str(directory), expected).lost == 0


def writing(
    directory: Path, acknowledged: Acknowledgements, worker: int, then: Callable[[], object], **options: Any
) -> Callable[[], None]:
    """A process that emits 10 events and does something else then, for as long as it lives."""

    def work() -> None:
        exporter = exporter_for(directory, **options)
        emit(exporter, acknowledged, worker, 10)
        then()
        while True:
            time.sleep(1)

    return work


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("then", [lambda: None, stop, kill], ids=["sleeps", "is stopped", "is killed"])
def test_events_of_a_process_that_does_nothing_more_get_into_the_log(
    tmp_path: Path, then: Callable[[], object]
) -> None:
    acknowledged = Acknowledgements(2)
    exporter = exporter_for(tmp_path)
    emit(exporter, acknowledged, 1)
    # It would never flush by itself.
    with running(writing(tmp_path, acknowledged, 0, then, flush_interval=NEVER_S)):
        wait_until(lambda: acknowledged[0] == 10)
        wait_until(lambda: is_logged(tmp_path, acknowledged))
    assert exporter.close()
    check_log(tmp_path, acknowledged.by_worker())


# The promise is two flush_intervals. This one is long, so that what a busy machine adds is short beside it.
def test_event_is_in_its_segment_within_two_flush_intervals(tmp_path: Path) -> None:
    interval_s = 1.5
    acknowledged = Acknowledgements(2)
    exporter = exporter_for(tmp_path, flush_interval=interval_s)
    emit(exporter, acknowledged, 1)
    with running(writing(tmp_path, acknowledged, 0, stop, flush_interval=interval_s)):
        wait_until(lambda: acknowledged[0] == 10)
        emitted = time.monotonic()
        wait_until(lambda: is_logged(tmp_path, acknowledged))
        assert time.monotonic() - emitted < 2 * interval_s + 1.0
    assert exporter.close()


@pytest.mark.parametrize("fate", [signal.SIGKILL, signal.SIGSTOP])
def test_another_takes_over_when_the_leader_is_killed_or_stopped(tmp_path: Path, fate: signal.Signals) -> None:
    acknowledged = Acknowledgements(4)

    def is_led() -> bool:
        lock = KeptLock(paths_in(tmp_path).janitor_lock, 0o600)
        try:
            return not lock.try_acquire()
        finally:
            lock.close()

    with running(writing(tmp_path, acknowledged, 0, lambda: None)) as (leader,):
        wait_until(lambda: acknowledged[0] == 10 and os.path.exists(paths_in(tmp_path).janitor_lock) and is_led())
        exporter = exporter_for(tmp_path)
        emit(exporter, acknowledged, 3)
        assert not exporter.stats()["leading"]
        # Not while it has the directory lock: a stopped process keeps that, and nobody could go on (test_stopped).
        lock = KeptLock(paths_in(tmp_path).lock, 0o600)
        lock.acquire(30)
        os.kill(leader, fate)
        lock.close()
        if fate == signal.SIGKILL:
            wait_until(lambda: exporter.stats()["leading"])
        # With the leader gone or stopped, those of yet another, stopped process still get out.
        with running(writing(tmp_path, acknowledged, 1, stop)):
            wait_until(lambda: acknowledged[1] == 10)
            wait_until(lambda: is_logged(tmp_path, acknowledged))
        assert exporter.stats()["leading"] == (fate == signal.SIGKILL)
        if fate == signal.SIGSTOP:
            os.kill(leader, signal.SIGCONT)
    assert exporter.close()
    check_log(tmp_path, acknowledged.by_worker())


def test_streams_and_directories_are_helped_independently(tmp_path: Path) -> None:
    other = "other-{index}.jsonl"
    acknowledged, others, apart = Acknowledgements(2), Acknowledgements(2), Acknowledgements(2)
    exporters = [
        exporter_for(tmp_path),
        exporter_for(tmp_path, filename_template=other),
        exporter_for(tmp_path / "apart"),
    ]
    kinds = [acknowledged, others, apart]
    for exporter, events in zip(exporters, kinds, strict=True):
        emit(exporter, events, 1)
    wait_until(lambda: all(exporter.stats()["leading"] for exporter in exporters))
    # One stream's lock is held for good; only that stream stands still.
    held = KeptLock(paths_in(tmp_path).lock, 0o600)
    held.acquire(10.0)
    with running(
        writing(tmp_path, acknowledged, 0, stop),
        writing(tmp_path, others, 0, stop, filename_template=other),
        writing(tmp_path / "apart", apart, 0, stop),
    ):
        wait_until(lambda: all(events[0] == 10 for events in kinds))
        wait_until(lambda: (tmp_path / "other-001.jsonl").read_bytes().count(b'"worker":0') == 10)
        wait_until(lambda: is_logged(tmp_path / "apart", apart))
        # Both streams number the same workers' events, so what is found is the other stream's 11 alone.
        assert take_account(str(tmp_path), {}).on_disk <= 12
        held.release()
        held.close()
        wait_until(lambda: take_account(str(tmp_path), {}).on_disk == 22)
    for exporter in exporters:
        assert exporter.close()
    check_log(tmp_path / "apart", apart.by_worker())


# Without threads.


@pytest.fixture
def uwsgi_without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = types.ModuleType("uwsgi")
    module.has_threads = 0
    monkeypatch.setitem(sys.modules, "uwsgi", module)


def native_threads() -> set[int]:
    """All of this process, whoever started them."""
    return set(map(int, os.listdir("/proc/self/task")))


@contextmanager
def no_new_thread() -> Iterator[None]:
    before = native_threads()
    yield
    assert native_threads() <= before


@pytest.mark.usefixtures("uwsgi_without_threads")
def test_without_threads_later_events_flush_earlier_ones_and_those_of_others(tmp_path: Path) -> None:
    acknowledged = Acknowledgements(3)
    with no_new_thread():
        exporter = exporter_for(tmp_path)
        emit(exporter, acknowledged, 0, 5)
        with running(
            writing(tmp_path, acknowledged, 1, stop, flush_interval=NEVER_S),
            writing(tmp_path, acknowledged, 2, kill, flush_interval=NEVER_S),
        ):
            wait_until(lambda: acknowledged[1] == acknowledged[2] == 10)

            def emit_and_look() -> bool:
                earlier = acknowledged.by_worker()
                emit(exporter, acknowledged, 0)
                return take_account(str(tmp_path), earlier).lost == 0

            wait_until(emit_and_look)
        assert exporter.close()
    check_log(tmp_path, acknowledged.by_worker())


@pytest.mark.usefixtures("uwsgi_without_threads")
def test_without_threads_an_event_a_second_is_never_more_than_one_behind(tmp_path: Path) -> None:
    """Sparse events: each flushes what came before it, because an interval has passed since."""
    acknowledged = Acknowledgements(1)
    exporter = exporter_for(tmp_path, flush_interval=0.02)
    for _ in range(10):
        earlier = acknowledged.by_worker()
        time.sleep(0.03)  # the interval itself is what is tested here
        emit(exporter, acknowledged, 0)
        assert take_account(str(tmp_path), earlier).lost == 0
    assert exporter.close()


def test_thread_that_cannot_be_started_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    acknowledged = Acknowledgements(1)
    with no_new_thread():
        exporter = exporter_for(tmp_path, flush_interval=0.02)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            patch.setattr(_thread, "start_new_thread", refuse)
            emit(exporter, acknowledged, 0, 100)
            earlier = acknowledged.by_worker()

            def emit_and_look() -> bool:
                emit(exporter, acknowledged, 0)
                return take_account(str(tmp_path), earlier).lost == 0

            wait_until(emit_and_look)
            assert not exporter.stats()["leading"]
    # Once one can be had, it is: who is idle then has its events flushed, and may lead.
    wait_until(lambda: emit(exporter, acknowledged, 0) or exporter.stats()["leading"])
    emit(exporter, acknowledged, 0)
    wait_until(lambda: take_account(str(tmp_path), acknowledged.by_worker()).lost == 0)
    assert exporter.close()
    check_log(tmp_path, acknowledged.by_worker())


# Found under uWSGI, whose master loads the application and emits before it forks the workers: it led the stream for
# the rest of its life, without a thread, so that nobody ever compressed or expired anything.
@pytest.mark.usefixtures("uwsgi_without_threads")
def test_who_has_no_thread_does_not_lead(tmp_path: Path) -> None:
    acknowledged = Acknowledgements(2)
    exporter = exporter_for(tmp_path, flush_interval=0.02)
    wait_until(lambda: emit(exporter, acknowledged, 0) or exporter.stats()["flushes"] >= 2)
    assert not exporter.stats()["leading"]
    del sys.modules["uwsgi"]
    other = exporter_for(tmp_path, flush_interval=0.02)
    emit(other, acknowledged, 1)
    wait_until(lambda: other.stats()["leading"])
    assert exporter.close()
    assert other.close()
    check_log(tmp_path, acknowledged.by_worker())


@pytest.mark.parametrize("order", ["before", "after"])
def test_events_emitted_by_exit_hooks_are_in_the_log(tmp_path: Path, order: str) -> None:
    """``before``: the hook is registered first, so it runs last, when the exporter's own has closed it."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent(
                """
                import atexit, sys
                from profilis_mp import JSONLExporter

                directory, order = sys.argv[1:]

                def last():
                    for number in range(10, 20):
                        exporter.emit({"worker": 0, "seq": number})

                if order == "before":
                    atexit.register(last)
                exporter = JSONLExporter(directory)
                unused = JSONLExporter(directory, app_name="unused", filename_template="{app_name}-{index}.jsonl")
                for number in range(10):
                    exporter.emit({"worker": 0, "seq": number})
                if order == "after":
                    atexit.register(last)
                atexit.register(unused.emit, {"worker": 1, "seq": 0})
                """
            ),
            str(tmp_path),
            order,
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    check_log(tmp_path, {0: 20, 1: 1})


# The end of a writer.


def of_ours() -> tuple[int, list[str]]:
    """How many threads there are, and the open files and maps in log directories."""
    files = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            files.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:
            pass
    files += [line.split(maxsplit=5)[5] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line]
    return len(native_threads()), [file for file in files if ".profilis-mp" in file or file.endswith(".jsonl")]


@pytest.mark.parametrize("kind", ["exporter", "writer"])
def test_writer_that_is_forgotten_leaves_no_thread_and_no_descriptor(tmp_path: Path, kind: str) -> None:
    def work() -> None:
        gc.collect()
        before = of_ours()
        for number in range(5):
            if kind == "exporter":
                exporter: Any = exporter_for(tmp_path, flush_interval=0.05)
                exporter.emit({"worker": 0, "seq": number})
            else:
                exporter = SharedWriter(tmp_path, flush_interval=0.05)
                exporter.write(b'{"worker":0,"seq":%d}\n' % number)
            if number % 2:
                exporter.flush()
            del exporter
            gc.collect()
        wait_until(lambda: of_ours() == before, what=f"{of_ours()} as before, {before}")

    assert reap(fork(work)) == 0
    check_log(tmp_path, {0: 5})
    assert not os.listdir(paths_in(tmp_path).spools)


def test_helper_thread_of_a_closed_writer_ends_even_when_its_lock_was_held(tmp_path: Path) -> None:
    def work() -> None:
        before = of_ours()
        exporter = exporter_for(tmp_path, flush_interval=0.1, lock_timeout=0.1)
        exporter.emit({"worker": 0, "seq": 0})
        wait_until(lambda: os.path.exists(paths_in(tmp_path).lock))
        held = KeptLock(paths_in(tmp_path).lock, 0o600)
        held.acquire(10.0)
        exporter.emit({"worker": 0, "seq": 1})
        wait_until(lambda: exporter.stats()["leading"])
        exporter.close()
        held.release()
        held.close()
        wait_until(lambda: of_ours() == before, what=f"{of_ours()} as before, {before}")

    assert reap(fork(work)) == 0


# Spools that no other process can find.


@pytest.mark.parametrize("what", ["the spool", "the state directory"])
def test_idle_process_whose_spool_was_unlinked_flushes_it_by_itself(tmp_path: Path, what: str) -> None:
    acknowledged = Acknowledgements(1)
    exporter = exporter_for(tmp_path, flush_interval=0.3)
    emit(exporter, acknowledged, 0, 10)
    paths = paths_in(tmp_path)
    if what == "the spool":
        for name in os.listdir(paths.spools):
            os.unlink(f"{paths.spools}/{name}")
    else:
        os.rename(paths.state, tmp_path / "moved away")
    wait_until(lambda: is_logged(tmp_path, acknowledged) if os.path.isdir(paths.state) else False)
    assert exporter.stats()["spool"] == "file"
    wait_until(lambda: len(os.listdir(paths.spools)) == 1, what="a new spool")
    emit(exporter, acknowledged, 0, 10)
    assert exporter.close()
    check_log(tmp_path, acknowledged.by_worker())


def test_idle_process_with_a_spool_in_memory_flushes_it_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    acknowledged = Acknowledgements(1)
    exporter = exporter_for(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", refuse)
        emit(exporter, acknowledged, 0, 10)
        assert exporter.stats()["spool"] == "memory"
        wait_until(lambda: os.path.isdir(paths_in(tmp_path).state) and is_logged(tmp_path, acknowledged))
    wait_until(lambda: exporter.stats()["spool"] == "file", what="a file instead of memory")
    emit(exporter, acknowledged, 0, 10)
    assert exporter.close()
    check_log(tmp_path, acknowledged.by_worker())
