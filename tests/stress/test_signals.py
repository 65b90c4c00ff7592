"""Signal handlers, finalizers and thrown exceptions that interrupt an append, a flush or a fork, wherever they may."""

from __future__ import annotations

import functools
import gc
import itertools
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

import orjson
import pytest
from checks import check_log
from processes import Acknowledgements, alarms, fork, reap, wait_until

from profilis_mp import JSONLExporter, LockTimeout, recover
from profilis_mp.account import segments_of
from profilis_mp.sharedlog.helping import Helping
from profilis_mp.sharedlog.lock import KeptLock
from profilis_mp.sharedlog.stream import StreamPaths
from profilis_mp.threads import serve

LOCK_TIMEOUT_S = 3.0  # what an append that never ends would cost; nothing here comes near it otherwise
STREAM = "profilis-{timestamp}.jsonl"


class Interrupted(BaseException):
    """What Ctrl-C throws is no Exception either."""


class SoftTimeLimit(Exception):
    """A soft time limit, which the application means to catch."""


KINDS: list[type[BaseException]] = [Interrupted, SoftTimeLimit, IndexError]


def exporter_for(directory: object, **options: Any) -> JSONLExporter:
    """Flushes every few events and rotates every few flushes, so that an interruption meets all of it."""
    arguments = {"buffer_size": 600, "rotate_bytes": 4000, "spool_bytes": 20_000, "lock_timeout": LOCK_TIMEOUT_S}
    return JSONLExporter(str(directory), **{**arguments, **options})


def is_busy(exporter: JSONLExporter) -> bool:
    """Whether an append seems to be under way."""
    return exporter._writer._session._fast.is_busy()


def numbers_in(directory: object) -> dict[int, list[int]]:
    """For each worker its events' numbers, in the order of the log; fails at a line that is no event."""
    found: dict[int, list[int]] = {}
    for path in segments_of(str(directory)):
        with open(path, "rb") as segment:
            for line in segment:
                event = orjson.loads(line)
                found.setdefault(event["worker"], []).append(event["seq"])
    return found


def wrongs_of(found: list[int], acknowledged: Collection[int]) -> list[str]:
    """An event whose ``emit`` was interrupted may be there or not; everything else is there once, in order."""
    wrongs = []
    if lost := set(acknowledged) - set(found):
        wrongs.append(f"{len(lost)} lost, the first is {min(lost)}")
    if doubled := [number for number, times in Counter(found).items() if times > 1]:
        wrongs.append(f"doubled: {doubled[:5]}")
    kept = [number for number in found if number in set(acknowledged)]
    if kept != sorted(kept):
        wrongs.append(f"out of order, such as {next((a, b) for a, b in itertools.pairwise(kept) if a > b)}")
    return wrongs


Handler = Callable[[int, FrameType | None], object]


def not_nested(work: Callable[[], object]) -> Handler:
    """A signal handler; on a slow machine each would be interrupted by the next before it can end."""
    busy = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal busy
        if not busy:
            busy = True
            try:
                work()
            finally:
                busy = False

    return handle


# A handler or a finalizer that emits.


def test_handlers_that_emit_while_they_interrupt_emit_lose_nothing(tmp_path: Path) -> None:
    acknowledged = Acknowledgements(2)

    def work() -> None:
        exporter = exporter_for(tmp_path, flush_interval=0.02)

        def emit(worker: int) -> None:
            number = acknowledged[worker]
            exporter.emit({"worker": worker, "seq": number, "fill": "x" * (number % 200)})
            acknowledged[worker] = number + 1

        deadline = time.monotonic() + 30
        with alarms(0.0005, not_nested(lambda: emit(1))):
            while (acknowledged[1] < 1_000 or not exporter.stats()["aside"]) and time.monotonic() < deadline:
                for _ in range(20):
                    emit(0)
        stats = exporter.stats()
        assert stats["aside"] > 0, "no handler has interrupted an append"
        assert (stats["events"], stats["dropped"]) == (acknowledged.total(), {})
        assert exporter.close()

    assert reap(fork(work)) == 0
    found = numbers_in(tmp_path)
    assert not wrongs_of(found[0], range(acknowledged[0]))
    assert sorted(found[1]) == list(range(acknowledged[1]))
    assert not os.listdir(StreamPaths(str(tmp_path), STREAM).spools)


def test_finalizers_that_emit_while_they_interrupt_emit_lose_nothing(tmp_path: Path) -> None:
    acknowledged = Acknowledgements(2)

    def work() -> None:
        exporter = exporter_for(tmp_path, flush_interval=0.02)

        class Last:
            def __init__(self) -> None:
                self.me = self  # garbage that only the collector can find

            def __del__(self) -> None:
                number = acknowledged[1]
                acknowledged[1] = number + 1
                exporter.emit({"worker": 1, "seq": number})

        gc.set_threshold(7)
        for number in range(5_000):
            Last()
            exporter.emit({"worker": 0, "seq": number, "fill": "x" * (number % 200)})
            acknowledged[0] = number + 1
        gc.set_threshold(700, 10, 10)

        def all_gone() -> bool:
            gc.collect()  # collects nothing while another thread's collection waits for a finalizer
            return acknowledged[1] == 5_000

        wait_until(all_gone)
        stats = exporter.stats()
        assert stats["events"] == acknowledged.total()
        assert exporter.close()

    assert reap(fork(work)) == 0
    found = numbers_in(tmp_path)
    assert not wrongs_of(found[0], range(acknowledged[0]))
    assert sorted(found[1]) == list(range(acknowledged[1]))


# Seen under load: the helper had the directory lock; a finalizer that ran in its thread emitted, and waited for the
# thread whose spool was full, which waited for that lock. Both gave up after lock_timeout, with an event dropped.
def test_a_finalizer_in_a_helpers_thread_waits_for_nobody(tmp_path: Path) -> None:
    exporter = exporter_for(tmp_path, lock_timeout=20.0, flush_interval=3600, janitor=False)
    exporter.emit({"worker": 0, "seq": 0})
    session = exporter._writer._session
    lock = KeptLock(session.paths.lock, 0o600)
    lock.acquire(0.0)

    def in_a_helpers_thread() -> None:
        serve()
        wait_until(session._mutex.locked, what="the other thread waits for the directory lock")
        exporter.emit({"worker": 1, "seq": 0})
        lock.release()

    helper = threading.Thread(target=in_a_helpers_thread)
    helper.start()
    for number in range(1, 1000):  # more than the spool takes
        exporter.emit({"worker": 0, "seq": number, "fill": "x" * 100})
    helper.join()
    assert exporter.stats()["dropped"] == {}
    assert exporter.close()
    lock.close()
    found = numbers_in(tmp_path)
    assert not wrongs_of(found[0], range(1000))
    assert found[1] == [0]


# A handler that throws.

Emitting = Callable[[JSONLExporter, int], None]


class Thrower:
    """Throws from a timer's handler into whatever ``emitting`` is doing, and keeps the accounts."""

    def __init__(self, directory: object, kinds: list[type[BaseException]], emitting: Emitting) -> None:
        self.exporter = exporter_for(directory, flush_interval=0.02)
        self.acknowledged: list[int] = []
        self.thrown = 0
        self.caught = 0
        self._kinds = kinds
        self._emitting = emitting
        self.is_armed = False
        self._number = 0

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.is_armed:
            self.is_armed = False
            self.thrown += 1
            raise self._kinds[self.thrown % len(self._kinds)]

    def emit(self) -> None:
        self._number += 1
        self._emitting(self.exporter, self._number)
        self.acknowledged.append(self._number)

    def throw(self, times: int, handler: Handler) -> None:
        # What is thrown into a finalizer, or into a callback of the collector's (hypothesis has one), goes nowhere.
        gc.callbacks.clear()
        gc.freeze()
        deadline = time.monotonic() + 40
        with alarms(0.00005, handler):
            while self.thrown < times:
                assert time.monotonic() < deadline, f"{self.thrown} throws in 40 s: does every emit wait?"
                try:
                    self.is_armed = True
                    self.emit()
                    self.is_armed = False
                except tuple(self._kinds):
                    self.caught += 1
                self.is_armed = False

    def end(self) -> None:
        """Nothing waits for anything."""
        assert not is_busy(self.exporter)
        # This one and the helper: a start that was cut short and done again leaves no second helper.
        wait_until(lambda: len(os.listdir("/proc/self/task")) <= 2, what="superfluous threads end")
        started = time.monotonic()
        for _ in range(100):
            self.emit()
        assert self.exporter.flush()
        assert time.monotonic() - started < LOCK_TIMEOUT_S, "an emit waited for nobody"
        assert self.exporter.close()


@pytest.mark.parametrize("kinds", [[kind] for kind in KINDS] + [KINDS], ids=["base", "exception", "index", "mixed"])
def test_exceptions_thrown_into_emit_lose_no_acknowledged_event(
    tmp_path: Path, kinds: list[type[BaseException]]
) -> None:
    def emit(exporter: JSONLExporter, number: int) -> None:
        exporter.emit({"worker": 0, "seq": number, "fill": "x" * (number % 150)})

    def work() -> None:
        thrower = Thrower(tmp_path / "log", kinds, emit)
        thrower.throw(5_000, thrower.handle)
        thrower.end()
        (tmp_path / "acknowledged").write_bytes(orjson.dumps(thrower.acknowledged))

    assert reap(fork(work)) == 0
    acknowledged = orjson.loads((tmp_path / "acknowledged").read_bytes())
    assert not recover(tmp_path / "log").failures
    assert not wrongs_of(numbers_in(tmp_path / "log")[0], acknowledged)


def bound_method(handler: Handler) -> Handler:
    return handler


def plain_function(handler: Handler) -> Handler:
    return lambda number, frame: handler(number, frame)


def partial_function(handler: Handler) -> Handler:
    return functools.partial(lambda context, number, frame: handler(number, frame), "context")


def callable_object(handler: Handler) -> Handler:
    class Handling:
        def __call__(self, number: int, frame: FrameType | None) -> None:
            handler(number, frame)

    return Handling()


# Most of an emit's time is the encoder's, so that is where a time limit strikes; the handler that mends what the
# encoder refuses must not take the limit's exception for the encoder's.
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", [bound_method, plain_function, partial_function, callable_object])
def test_no_exception_of_a_signal_handler_is_swallowed(
    tmp_path: Path, kind: type[BaseException], form: Callable[[Handler], Handler]
) -> None:
    fill = ["x" * 50] * 400

    def emit(exporter: JSONLExporter, number: int) -> None:
        exporter.emit({"worker": 0, "seq": number, "fill": fill if number % 2 else None, "odd": {1.5, number}})

    def work() -> None:
        thrower = Thrower(tmp_path, [kind], emit)
        thrower.throw(300, form(thrower.handle))
        assert thrower.caught == thrower.thrown, f"{thrower.thrown} thrown, {thrower.caught} reached the caller"
        thrower.end()

    assert reap(fork(work)) == 0


# A time limit that strikes once takes its handler back before it throws.
@pytest.mark.parametrize("kind", KINDS)
def test_exception_of_a_handler_that_is_no_longer_in_place_is_not_swallowed(
    tmp_path: Path, kind: type[BaseException]
) -> None:
    fill = ["x" * 50] * 4000

    def emit(exporter: JSONLExporter, number: int) -> None:
        exporter.emit({"worker": 0, "seq": number, "fill": fill})

    def work() -> None:
        thrower = Thrower(tmp_path, [kind], emit)

        def once(number: int, frame: FrameType | None) -> None:
            if thrower.is_armed:
                signal.signal(number, signal.SIG_IGN)
                thrower.handle(number, frame)

        for times in range(1, 51):
            thrower.throw(times, once)
        assert thrower.caught == thrower.thrown, f"{thrower.thrown} thrown, {thrower.caught} reached the caller"
        thrower.end()

    assert reap(fork(work)) == 0


# The same without luck: at every moment at which CPython may run a handler.

OURS, FILELOCKS = (
    f"{os.path.dirname(str(spec.origin))}{os.sep}" for spec in map(find_spec, ("profilis_mp", "filelock")) if spec
)
COMPUTING = ("names.py", "settings.py", "diagnostics.py")  # they only compute: thrown there is thrown at their call
FINDINGS = 4  # a session that is no longer usable costs seconds each


def at_moment(
    step: int, act: Callable[[], object], work: Callable[[], object], inside: tuple[str, ...] = (OURS, FILELOCKS)
) -> tuple[str | None, str | None]:
    """Run ``work``, and ``act`` at its ``step``-th moment inside certain packages.

    CPython runs signal handlers when a Python function is entered, after a C function has returned, and at backward
    jumps. A profile function sees the first two; what it raises is thrown into the program, as if from a handler.

    Returns:
        Where that was, None when ``work`` has not so many moments; and what was wrong: an exception that ``act`` had
        not raised, or that it had to wait.
    """
    moments = 0
    where: str | None = None
    waited_s = 0.0

    def look(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal moments, where, waited_s
        path = frame.f_code.co_filename
        if event not in ("call", "c_return") or not path.startswith(inside) or path.endswith(COMPUTING):
            return
        moments += 1
        if moments == step + 1:
            sys.setprofile(None)
            after = "" if event == "call" else f" after {argument.__name__}"
            where = f"{os.path.basename(path)}:{frame.f_lineno} {frame.f_code.co_name}{after}"
            started = time.monotonic()
            act()
            waited_s = time.monotonic() - started

    gc.disable()  # the finalizers of earlier rounds are not what is swept
    sys.setprofile(look)
    try:
        work()
    except Interrupted:
        pass
    except Exception as error:
        return where, f"raised {error!r}"
    finally:
        sys.setprofile(None)
        sys.settrace(None)
        gc.enable()
    return where, f"the handler waited {waited_s:.1f} s" if waited_s > LOCK_TIMEOUT_S / 2 else None


class Log:
    """An exporter, what it has acknowledged, and what is wrong with it."""

    def __init__(self, directory: Path) -> None:
        self.directory = str(directory)
        self.acknowledged: dict[int, list[int]] = {0: [], 1: []}
        self.number = 0
        # The helper's thread sleeps, so that a moment is a moment.
        self.exporter = exporter_for(directory, rotate_bytes=400, flush_interval=1e6)
        self.paths = StreamPaths(self.directory, STREAM)

    def emit(self, size: int = 10, worker: int = 0) -> None:
        self.number = number = self.number + 1
        self.exporter.emit({"worker": worker, "seq": number, "fill": "x" * size})
        self.acknowledged[worker].append(number)

    def write_opaque(self) -> None:
        first, self.number = self.number + 1, self.number + 2
        lines = b"".join(b'{"worker":0,"seq":%d}\n' % number for number in (first, first + 1))
        self.exporter._writer.write(lines)
        self.acknowledged[0] += [first, first + 1]

    def rotate(self) -> None:
        try:
            self.exporter.rotate(timeout_s=LOCK_TIMEOUT_S)
        except LockTimeout:  # interrupted itself, it cannot wait for itself
            pass

    def fork(self) -> None:
        pid = os.fork()
        if not pid:
            os._exit(0)
        assert reap(pid) == 0

    def unlink_spools(self) -> None:
        for name in os.listdir(self.paths.spools):
            os.unlink(f"{self.paths.spools}/{name}")

    def keeps_the_lock(self) -> bool:
        """Would another process have to wait, now that nobody is in the middle of anything?"""
        if not os.path.exists(self.paths.lock):
            return False
        lock = KeptLock(self.paths.lock, 0o600)
        try:
            return not lock.try_acquire()
        finally:
            lock.close()

    def wrongs(self, emitted_twice: int | None = None) -> list[str]:
        wrongs = []
        started = time.monotonic()
        try:
            self.emit()  # opens the fast path again
            self.emit()  # takes it
            self.emit(900)
            if not self.exporter.flush():
                wrongs.append(f"flush failed: {self.exporter.stats()}")
        except Exception as error:
            wrongs.append(f"emit or flush raised {error!r}")
        if time.monotonic() - started > LOCK_TIMEOUT_S:
            wrongs.append("emit waited for nobody")
        if is_busy(self.exporter):
            wrongs.append("busy for ever")
        try:
            self.exporter.close(0.1)
        except Exception as error:
            wrongs.append(f"close raised {error!r}")
        helping = Helping(self.paths, self.exporter._writer._settings)
        helping.round(1.0)  # what could not be closed is safe all the same
        helping.close()
        found = numbers_in(self.directory)
        for worker, acknowledged in self.acknowledged.items():
            numbers = found.get(worker, [])
            if emitted_twice in acknowledged and numbers.count(emitted_twice) in (1, 2):
                acknowledged = [number for number in acknowledged if number != emitted_twice]
                numbers = [number for number in numbers if number != emitted_twice]
            wrongs += wrongs_of(numbers, acknowledged)
        return wrongs


Scenario = Callable[[Log], Callable[[], object]]


def appending(log: Log) -> Callable[[], object]:
    log.emit()
    return log.emit


def the_first_record(log: Log) -> Callable[[], object]:
    return log.emit


def flushing_by_size(log: Log) -> Callable[[], object]:
    log.emit(300)
    return lambda: log.emit(500)


def flushing(log: Log) -> Callable[[], object]:
    log.emit()
    return log.exporter.flush


def rotating(log: Log) -> Callable[[], object]:
    log.emit()
    return log.rotate


def a_larger_spool(log: Log) -> Callable[[], object]:
    log.emit()
    return lambda: log.emit(30_000)


def a_lost_spool(log: Log) -> Callable[[], object]:
    log.emit()
    log.unlink_spools()
    return lambda: log.emit(700)


def opaque_records(log: Log) -> Callable[[], object]:
    log.emit()

    def work() -> None:
        log.write_opaque()
        log.write_opaque()
        log.emit()

    return work


SCENARIOS = [
    appending,
    the_first_record,
    flushing_by_size,
    flushing,
    rotating,
    a_larger_spool,
    a_lost_spool,
    opaque_records,
]


def sweep(
    tmp_path: Path,
    scenario: Scenario,
    act: Callable[[Log], object],
    wrongs: Callable[[Log], list[str]] = Log.wrongs,
    inside: tuple[str, ...] = (OURS, FILELOCKS),
    every: int = 1,
) -> None:
    """Fail with what is wrong after ``act`` at each moment of the scenario."""
    found: list[str] = []
    for step in itertools.count(step=every):
        log = Log(tmp_path / f"{step}")
        where, wrong = at_moment(step, functools.partial(act, log), scenario(log), inside)
        found += [f"moment {step} ({where}): {wrong}" for wrong in [wrong, *wrongs(log)] if wrong is not None]
        if where is None or len(found) >= FINDINGS:
            break
    assert not found, "\n".join(found)


def throw(log: Log) -> None:
    raise Interrupted


# Two signals at once: CPython runs the second handler at the very next moment, which is in the middle of whatever
# cleans up after the first.
def throw_twice(log: Log) -> None:
    def again(frame: FrameType, event: str, argument: Any) -> None:
        if frame.f_code.co_filename.startswith(OURS):
            sys.settrace(None)
            raise Interrupted

    sys.settrace(again)
    raise Interrupted


@pytest.mark.parametrize("act", [throw, pytest.param(throw_twice, marks=pytest.mark.sweep)])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_exception_thrown_at_any_moment_leaves_the_session_usable(
    tmp_path: Path, scenario: Scenario, act: Callable[[Log], object]
) -> None:
    sweep(tmp_path, scenario, act)


# A process that was interrupted in a flush and is idle since would stop all others.
@pytest.mark.parametrize("act", [throw, pytest.param(throw_twice, marks=pytest.mark.sweep)])
@pytest.mark.parametrize("scenario", [flushing_by_size, flushing, rotating])
def test_exception_thrown_at_any_moment_leaves_the_directory_lock_free(
    tmp_path: Path, scenario: Scenario, act: Callable[[Log], object]
) -> None:
    def wrongs(log: Log) -> list[str]:
        kept = log.keeps_the_lock()
        log.exporter.close(0.01)
        return ["the directory lock is kept"] if kept else []

    sweep(tmp_path, scenario, act, wrongs)


# The kernel takes its time to copy a process: a signal that comes meanwhile is handled at the first line of the first
# at-fork hook. What a hook raises, CPython prints and forgets, and the hook does not run on.
@pytest.mark.parametrize("act", [throw])
def test_exception_thrown_into_a_fork_hook_leaves_the_session_usable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: Callable[[Log], object]
) -> None:
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)

    def forking(log: Log) -> Callable[[], object]:
        log.emit()
        return log.fork

    def wrongs(log: Log) -> list[str]:
        started = time.monotonic()
        log.fork()
        waited = time.monotonic() - started > LOCK_TIMEOUT_S
        return (["the next fork waited"] if waited else []) + log.wrongs()

    # Not inside filelock's hooks: one that is cut short forbids every later fork.
    sweep(tmp_path, forking, act, wrongs, inside=(OURS,))


def use_everything(log: Log) -> None:
    log.emit(worker=1)
    log.exporter.flush()
    log.rotate()
    log.exporter.stats()
    log.emit(worker=1)


def close(log: Log) -> None:
    log.exporter.close()


@pytest.mark.parametrize("act", [use_everything, pytest.param(close, marks=pytest.mark.sweep)])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_handler_may_use_the_exporter_at_any_moment(
    tmp_path: Path, scenario: Scenario, act: Callable[[Log], object]
) -> None:
    sweep(tmp_path, scenario, act)


@pytest.mark.parametrize("scenario", [appending, the_first_record, flushing_by_size])
def test_handler_may_fork_at_any_moment_and_both_processes_go_on(tmp_path: Path, scenario: Scenario) -> None:
    found: list[str] = []
    for step in itertools.count(step=1 if scenario is appending else 2):  # a fork of the test's own process is slow
        log = Log(tmp_path / f"{step}")
        work = scenario(log)
        pid, number = -1, -1
        codes: list[int] = []

        def split(log: Log = log, codes: list[int] = codes) -> None:
            nonlocal pid, number
            pid, number = os.fork(), log.number
            codes.append(reap(pid) if pid else 0)

        where, error = at_moment(step, split, work)
        if pid == 0:
            if error is None:
                log.emit(worker=1)
            else:
                print(f"moment {step} ({where}) in the child: {error}", file=sys.stderr, flush=True)
            os._exit(0 if error is None else 3)
        error = error or (f"the child ended with {codes[-1]}" if codes and codes[-1] else None)
        if where is not None:
            log.acknowledged[1].append(number + 1)
        # The event that was being emitted at the fork is emitted by both.
        found += [f"moment {step} ({where}): {wrong}" for wrong in log.wrongs(emitted_twice=number)]
        if error is not None:
            found.append(f"moment {step} ({where}): {error}")
        if where is None or len(found) >= FINDINGS:
            break
    assert not found, "\n".join(found)


def closing(log: Log) -> Callable[[], object]:
    log.emit()
    return log.exporter.close


def forking(log: Log) -> Callable[[], object]:
    log.emit()
    return log.fork


# threading.Event has a lock, and a handler that came while its thread told the helper's to go, and wanted the same,
# waited for that for ever. In a process of one thread beside the helper's, which is sent away before a fork. (A fork
# within a fork: tests/stress/test_fork.py. It hangs by itself where concurrent.futures is imported, as it may be here.)
@pytest.mark.parametrize(("scenario", "act"), [(closing, close), (closing, Log.fork), (forking, close)])
def test_handler_may_close_and_fork_while_a_helper_is_told_to_go(
    tmp_path: Path, scenario: Scenario, act: Callable[[Log], object]
) -> None:
    def work() -> None:
        every = 1 if scenario is closing and act is close else 3  # a fork of the test's own process is slow
        sweep(tmp_path, scenario, act, inside=(OURS, threading.__file__), every=every)

    assert reap(fork(work), 120) == 0


# At the end of a process.

TERMINATED = textwrap.dedent(
    """
    import mmap, signal, sys
    from profilis_mp import JSONLExporter

    def end(number, frame):
        sys.exit(7)

    directory, path = sys.argv[1:]
    with open(path, "r+b") as file:
        acknowledged = memoryview(mmap.mmap(file.fileno(), 8)).cast("Q")
    signal.signal(signal.SIGTERM, end)
    exporter = JSONLExporter(directory, flush_interval=1e6, buffer_size=2000)
    number = 0
    while True:
        exporter.emit({"worker": 0, "seq": number})
        number += 1
        acknowledged[0] = number
    """
)


def test_sigterm_handler_that_exits_leaves_every_event_in_the_log(tmp_path: Path) -> None:
    dice = random.Random(7)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for attempt in range(6):
        directory, counter = tmp_path / f"{attempt}", tmp_path / f"{attempt}.count"
        counter.write_bytes(bytes(8))
        with subprocess.Popen([sys.executable, "-c", TERMINATED, str(directory), str(counter)], env=environment) as run:
            try:
                wait_until(lambda counter=counter: int.from_bytes(counter.read_bytes(), sys.byteorder) > 500)
                time.sleep(dice.uniform(0, 0.002))
                run.send_signal(signal.SIGTERM)
                assert run.wait(30) == 7
            finally:
                run.kill()
        # No recovery: the exit hook has flushed, because the interrupted append gave the session back.
        check_log(directory, {0: int.from_bytes(counter.read_bytes(), sys.byteorder)})
        assert not os.listdir(StreamPaths(str(directory), STREAM).spools)
