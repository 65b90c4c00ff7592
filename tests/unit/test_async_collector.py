"""The collector never makes the application wait, loses nothing silently, and starts afresh in a forked child."""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import gc
import itertools
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from processes import alarms

from profilis_mp.core.async_collector import AsyncCollector
from profilis_mp.errors import ConfigError

Event = dict[str, Any]
LONG = 20.0  # seconds; a deadline against hangs, never waited for
NEVER = 3600.0  # a flush_interval that no test lives to see

# Python 3.12 warns of every fork of a process with threads; these tests are about just that.
pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


class Inline:
    """An exporter that never waits."""

    never_waits = True

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.calls: list[str] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def flush(self) -> None:
        self.calls.append("flush")

    def close(self) -> None:
        self.calls.append("close")


class Batches:
    """An exporter that may wait: keeps its batches, and waits where a test tells it to."""

    def __init__(self) -> None:
        self.batches: list[list[Event]] = []
        self.calls: list[str] = []
        self.threads: set[int] = set()
        self.failures = 0
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def export(self, events: list[Event]) -> None:
        self.threads.add(_thread.get_ident())
        self.entered.set()
        assert self.gate.wait(LONG)
        if self.failures:
            self.failures -= 1
            raise OSError("down")
        self.batches.append(events)

    def flush(self) -> None:
        self.calls.append("flush")

    def close(self) -> None:
        self.calls.append("close")

    @property
    def numbers(self) -> list[int]:
        return [event["n"] for batch in self.batches for event in batch]


@pytest.fixture
def collectors() -> Iterator[Callable[..., AsyncCollector]]:
    """Make collectors that end with the test."""
    made: list[AsyncCollector] = []

    def make(*args: Any, **kwargs: Any) -> AsyncCollector:
        made.append(AsyncCollector(*args, **{"flush_interval": 0.01, **kwargs}))
        return made[-1]

    yield make
    for collector in made:
        collector.close(timeout=1.0)


Make = Callable[..., AsyncCollector]


def balance(collector: AsyncCollector, exporters: int = 1) -> None:
    stats = collector.stats()
    dropped = {**stats["dropped"], "closed": 0}
    assert stats["enqueued"] * exporters == stats["processed"] + stats["queue_depth"] + sum(dropped.values()), stats


def threads(name: str) -> int:
    """How many threads of this process the kernel knows by a name."""
    found = 0
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/self/task/{task}/comm") as comm:
            found += comm.read() == f"{name}\n"
    return found


def until(condition: Callable[[], bool]) -> None:
    """Wait for what nobody tells."""
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# -- an exporter that never waits


def test_an_event_is_with_an_inline_exporter_when_enqueue_returns(collectors: Make) -> None:
    inline = Inline()
    collector = collectors(inline, name="inline")
    event = {"n": 1}
    collector.enqueue(event)
    assert inline.events[0] is event
    assert (collector.enqueued, collector.processed, collector.queue_depth) == (1, 1, 0)
    assert threads("inline") == 0
    balance(collector)


def test_an_exporter_that_replaces_its_emit_is_followed(collectors: Make) -> None:
    inline, seen = Inline(), []
    collector = collectors(inline)
    collector.enqueue({"n": 1})
    inline.emit = seen.append  # type: ignore[method-assign]
    collector.enqueue({"n": 2})
    assert ([event["n"] for event in inline.events], seen) == ([1], [{"n": 2}])


def test_an_inline_exporter_that_raises_is_contained_and_disabled(
    collectors: Make, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Inline):
        def emit(self, event: Event) -> None:
            super().emit(event)
            if event["n"] != 2:
                raise OSError("down")

    broken = Broken()
    collector = collectors(broken, max_consecutive_sink_failures=3)
    with caplog.at_level(logging.WARNING, "profilis_mp"):
        for number in range(10):
            collector.enqueue({"n": number})
    # 0 and 1 fail, 2 goes well, then three in a row fail.
    assert [event["n"] for event in broken.events] == [0, 1, 2, 3, 4, 5]
    stats = collector.stats()
    assert (stats["processed"], stats["flush_errors"], stats["disabled"]) == (1, 5, 1)
    assert stats["dropped"] == {"oldest": 0, "lost": 5, "disabled": 4, "closed": 0}
    (record,) = caplog.records
    assert "Broken failed 3 times in a row" in record.getMessage()
    balance(collector)


def test_a_subclass_may_override_enqueue(collectors: Make) -> None:
    class Tagging(AsyncCollector):
        def enqueue(self, event: Any) -> None:
            super().enqueue({**event, "tag": "x"})

    inline = Inline()
    collector = Tagging(inline)
    collector.enqueue({"n": 1})
    collector.close()
    assert inline.events == [{"n": 1, "tag": "x"}]


# -- an exporter that may wait


def test_a_queued_exporter_gets_batches_in_order_in_one_other_thread(collectors: Make) -> None:
    exporter = Batches()
    collector = collectors(exporter, batch_max=10)
    for number in range(95):
        collector.enqueue({"n": number})
    assert collector.flush(LONG)
    assert exporter.numbers == list(range(95))
    assert max(map(len, exporter.batches)) == 10
    assert len(exporter.threads) == 1
    assert _thread.get_ident() not in exporter.threads
    assert (collector.processed, collector.queue_depth) == (95, 0)
    balance(collector)


def test_a_callable_is_an_exporter(collectors: Make) -> None:
    seen: list[Event] = []
    collector = collectors(seen.extend)
    collector.enqueue({"n": 1})
    assert collector.flush(LONG)
    assert seen == [{"n": 1}]


def test_an_exporter_that_says_it_may_wait_gets_batches(collectors: Make) -> None:
    class Subclass(Inline):
        never_waits = False

        def export(self, events: list[Event]) -> None:
            self.events += events

    exporter = Subclass()
    collector = collectors(exporter, flush_interval=NEVER)
    collector.enqueue({"n": 1})
    assert exporter.events == []
    assert collector.flush(LONG)
    assert exporter.events == [{"n": 1}]


def test_no_thread_is_started_before_the_first_event(collectors: Make) -> None:
    exporter = Batches()
    collector = collectors(exporter, name="lazy")
    assert threads("lazy") == 0
    collector.enqueue({"n": 0})
    assert exporter.entered.wait(LONG)
    assert threads("lazy") == 1


def test_events_arrive_without_being_asked_for(collectors: Make) -> None:
    exporter = Batches()
    collector = collectors(exporter)
    for _ in range(3):  # asleep again in between
        exporter.entered.clear()
        collector.enqueue({"n": 0})
        assert exporter.entered.wait(LONG)


def test_a_full_batch_does_not_wait_for_the_interval(collectors: Make) -> None:
    exporter = Batches()
    collector = collectors(exporter, batch_max=3, flush_interval=NEVER)
    for _ in range(3):
        exporter.entered.clear()
        for number in range(3):
            collector.enqueue({"n": number})
        assert exporter.entered.wait(LONG)


def test_the_event_is_exported_as_it_was_when_it_was_enqueued(collectors: Make) -> None:
    exporter, other = Batches(), Batches()
    collector = collectors([exporter, other], flush_interval=NEVER)
    event = {"n": 1}
    collector.enqueue(event)
    event["n"] = 2
    collector.enqueue(event)
    assert collector.flush(LONG)
    exporter.batches[0][0]["n"] = 3
    assert (exporter.numbers, other.numbers) == ([3, 2], [1, 2])


def test_a_full_queue_drops_its_oldest_events_and_counts_them(collectors: Make) -> None:
    exporter = Batches()
    exporter.gate.clear()
    collector = collectors(exporter, queue_size=5, batch_max=1)
    collector.enqueue({"n": 0})
    assert exporter.entered.wait(LONG)  # 0 is in the exporter's hands
    for number in range(1, 21):
        collector.enqueue({"n": number})
    assert (collector.dropped_oldest, collector.queue_depth) == (15, 6)
    balance(collector)
    exporter.gate.set()
    assert collector.flush(LONG)
    assert exporter.numbers == [0, 16, 17, 18, 19, 20]
    balance(collector)


def test_enqueue_does_not_wait_for_a_hanging_exporter_and_flush_only_until_its_deadline(collectors: Make) -> None:
    exporter, other = Batches(), Batches()
    exporter.gate.clear()
    collector = collectors([exporter, other], queue_size=10)
    for number in range(1000):
        collector.enqueue({"n": number})
    assert not collector.flush(0.05)
    assert other.numbers[-1] == 999
    exporter.gate.set()
    assert collector.flush(LONG)


def test_flush_also_flushes_the_exporters(collectors: Make) -> None:
    inline, exporter = Inline(), Batches()
    collector = collectors([inline, exporter])
    assert collector.flush(LONG)
    assert (inline.calls, exporter.calls) == (["flush"], ["flush"])


def test_flush_is_false_where_an_exporter_could_not(collectors: Make, caplog: pytest.LogCaptureFixture) -> None:
    class Unwilling(Inline):
        def flush(self) -> bool:  # type: ignore[override]
            return False

    class Failing(Inline):
        def flush(self) -> None:
            raise OSError("down")

    assert not collectors(Unwilling()).flush(LONG)
    with caplog.at_level(logging.WARNING, "profilis_mp"):
        assert not collectors(Failing()).flush(LONG)
    assert "flush of exporter" in caplog.text


def test_an_exporter_that_exits_in_its_flush_does_not_end_its_thread(collectors: Make) -> None:
    class Exiting(Batches):
        def flush(self) -> None:
            sys.exit(1)

    exporter = Exiting()
    collector = collectors(exporter)
    for number in range(3):
        collector.enqueue({"n": number})
        assert not collector.flush(LONG)
    assert exporter.numbers == [0, 1, 2]


def test_a_failed_batch_is_retried_whole_and_the_others_get_it_once(collectors: Make) -> None:
    class Eating(Batches):
        """Takes events out of its list before it fails."""

        def export(self, events: list[Event]) -> None:
            if self.failures:
                events.clear()
            super().export(events)

    failing, steady = Eating(), Batches()
    failing.failures = 3
    collector = collectors([failing, steady], batch_max=4)
    for number in range(10):
        collector.enqueue({"n": number})
    assert collector.flush(LONG)
    assert failing.numbers == steady.numbers == list(range(10))
    assert (collector.flush_errors, collector.processed) == (3, 20)
    balance(collector, exporters=2)


def test_an_exporter_that_keeps_failing_is_disabled_with_one_warning(
    collectors: Make, caplog: pytest.LogCaptureFixture
) -> None:
    failing, steady = Batches(), Batches()
    failing.failures = 10**9
    collector = collectors([failing, steady], max_consecutive_sink_failures=3)
    with caplog.at_level(logging.WARNING, "profilis_mp"):
        for number in range(10):
            collector.enqueue({"n": number})
        assert not collector.flush(LONG)
        for number in range(10, 20):
            collector.enqueue({"n": number})
        assert not collector.flush(LONG)
    assert steady.numbers == list(range(20))
    stats = collector.stats()
    assert (stats["processed"], stats["flush_errors"], stats["disabled"], stats["queue_depth"]) == (20, 3, 1, 0)
    assert stats["dropped"] == {"oldest": 0, "lost": 10, "disabled": 10, "closed": 0}
    (record,) = caplog.records
    assert record.name == "profilis_mp"
    assert "failed 3 times in a row" in record.getMessage()
    balance(collector, exporters=2)


def test_success_in_between_starts_the_count_of_failures_again(collectors: Make) -> None:
    exporter = Batches()
    collector = collectors(exporter, max_consecutive_sink_failures=3)
    for number in range(4):
        exporter.failures = 2
        collector.enqueue({"n": number})
        assert collector.flush(LONG)
    assert exporter.numbers == [0, 1, 2, 3]
    assert (collector.flush_errors, collector.stats()["disabled"]) == (8, 0)


def test_an_exporters_hostile_exception_does_not_end_its_thread(collectors: Make) -> None:
    class Hostile(BaseException):
        def __repr__(self) -> str:
            raise ValueError

    class Exporter(Batches):
        def export(self, events: list[Event]) -> None:
            if self.failures:
                self.failures -= 1
                raise Hostile
            super().export(events)

    exporter = Exporter()
    exporter.failures = 2
    collector = collectors(exporter)
    collector.enqueue({"n": 0})
    assert collector.flush(LONG)
    assert exporter.numbers == [0]


def test_an_exporter_that_enqueues_itself_does_not_deadlock(collectors: Make) -> None:
    class Echo(Batches):
        def export(self, events: list[Event]) -> None:
            super().export(events)
            collector.enqueue({"n": -1})

    echo = Echo()
    collector = collectors(echo)
    collector.enqueue({"n": 0})
    assert collector.flush(LONG)  # ends although each export begets another event
    assert echo.numbers[0] == 0


def test_an_exporter_that_flushes_and_closes_its_collector_does_not_wait_for_itself(collectors: Make) -> None:
    answers: list[bool] = []

    def export(events: list[Event]) -> None:
        answers.append(collector.flush(LONG))
        answers.append(collector.close(timeout=LONG))
        done.set()

    done = threading.Event()
    collector = collectors(export)
    collector.enqueue({"n": 0})
    assert done.wait(LONG / 2)
    assert answers == [False, False]


# -- threads, signals, finalizers


def test_counts_are_exact_under_threads(collectors: Make) -> None:
    inline, exporter = Inline(), Batches()
    collector = collectors([inline, exporter], queue_size=50)
    direct = collectors(Inline())

    def work() -> None:
        for number in range(3000):
            collector.enqueue({"n": number})
            direct.enqueue({"n": number})

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    sys.setswitchinterval(before)
    assert collector.flush(LONG)
    assert (collector.enqueued, direct.enqueued, direct.processed, len(inline.events)) == (12000,) * 4
    assert len(exporter.numbers) + collector.dropped_oldest == 12000
    balance(collector, exporters=2)


def test_enqueue_from_a_signal_handler_that_interrupts_enqueue(collectors: Make) -> None:
    inline, exporter = Inline(), Batches()
    collector = collectors([inline, exporter], queue_size=100, batch_max=3, flush_interval=0.001)
    direct = collectors(Inline())
    from_handler = 0

    def handler() -> None:
        nonlocal from_handler
        from_handler += 1
        collector.enqueue({"n": -1})
        direct.enqueue({"n": -1})

    with alarms(2e-4, lambda *_: handler()):
        for number in range(20_000):
            collector.enqueue({"n": number})
            direct.enqueue({"n": number})
    assert from_handler > 20
    assert collector.flush(LONG)
    assert collector.enqueued == direct.processed == len(inline.events) == 20_000 + from_handler
    balance(collector, exporters=2)
    assert [n for n in exporter.numbers if n >= 0] == sorted(n for n in exporter.numbers if n >= 0)


def test_what_a_signal_handler_throws_in_is_the_applications(collectors: Make) -> None:
    class SoftTimeLimit(Exception):
        pass

    class Slow(Inline):
        def emit(self, event: Event) -> None:
            signal.raise_signal(signal.SIGUSR1)

    def handler(*_: object) -> None:
        raise SoftTimeLimit

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        for collector in (collectors(Slow()), collectors([Slow(), Batches()])):
            with pytest.raises(SoftTimeLimit):
                collector.enqueue({"n": 0})
            assert collector.flush_errors == 0
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_the_first_enqueue_interrupted_by_another_starts_one_thread(collectors: Make) -> None:
    for _ in range(30):
        exporter = Batches()
        collector = collectors(exporter, flush_interval=0.001)
        with alarms(2e-4, lambda *_: collector.enqueue({"n": 1})):  # noqa: B023
            for _ in range(50):
                collector.enqueue({"n": 0})
        assert collector.flush(LONG)
        assert len(exporter.threads) == 1
        assert len(exporter.numbers) == collector.enqueued
        collector.close()


def test_an_enqueue_amid_the_start_of_the_thread_leaves_the_work_to_it(
    collectors: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> Any:
        monkeypatch.undo()
        collector.enqueue({"n": 1})
        return queue.SimpleQueue()

    exporter = Batches()
    collector = collectors(exporter)
    monkeypatch.setattr(queue, "SimpleQueue", interrupted)
    collector.enqueue({"n": 0})
    assert collector.flush(LONG)
    assert exporter.numbers == [0, 1]
    assert _thread.get_ident() not in exporter.threads


def test_a_dropped_event_whose_finalizer_enqueues_another(collectors: Make) -> None:
    class Last:
        def __del__(self) -> None:
            collector.enqueue({"n": -1})

    exporter = Batches()
    exporter.gate.clear()
    collector = collectors(exporter, queue_size=3)
    for number in range(50):
        collector.enqueue({"n": number, "last": Last()})
    exporter.gate.set()
    assert collector.flush(LONG)
    balance(collector)


# -- closing


def test_close_delivers_flushes_and_closes_once(collectors: Make) -> None:
    inline, exporter = Inline(), Batches()
    collector = collectors([inline, exporter], flush_interval=NEVER)
    for number in range(10):
        collector.enqueue({"n": number})
    assert collector.close(timeout=LONG)
    assert collector.close(timeout=LONG)
    assert exporter.numbers == list(range(10))
    assert inline.calls == exporter.calls == ["flush", "close"]


def test_close_ends_the_thread_and_closes_exporters_that_saw_no_event(collectors: Make) -> None:
    exporter = Batches()
    assert collectors(exporter, name="closing").close(timeout=LONG)
    assert exporter.calls == ["flush", "close"]
    until(lambda: threads("closing") == 0)


def test_events_after_close_are_counted_and_not_delivered(collectors: Make) -> None:
    inline, exporter = Inline(), Batches()
    for collector in (collectors([inline, exporter]), collectors(inline)):
        collector.close(timeout=LONG)
        collector.enqueue({"n": 0})
        assert collector.flush(LONG)
        assert collector.enqueued == 0
        assert collector.stats()["dropped"]["closed"] == 1
    assert inline.events == exporter.batches == []


def test_close_returns_at_its_deadline_when_exporters_hang(collectors: Make, caplog: pytest.LogCaptureFixture) -> None:
    class Hanging(Inline):
        def close(self) -> None:
            exporter.gate.wait(LONG)

    exporter, steady = Batches(), Batches()
    exporter.gate.clear()
    collector = collectors([exporter, Hanging(), steady])
    for number in range(10):
        collector.enqueue({"n": number})
    began = time.monotonic()
    assert not collector.close(timeout=0.2)
    assert time.monotonic() - began < LONG / 2
    assert steady.numbers == list(range(10))
    assert steady.calls == ["flush", "close"]
    exporter.gate.set()


def test_what_a_failing_exporter_did_not_take_by_the_deadline_is_counted_and_warned_about(
    collectors: Make, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = Batches()
    exporter.failures = 10**9
    collector = collectors(exporter, max_consecutive_sink_failures=10**9)
    for number in range(10):
        collector.enqueue({"n": number})
    with caplog.at_level(logging.WARNING, "profilis_mp"):
        assert not collector.close(timeout=0.1)
        until(lambda: "10 events were not exported" in caplog.text)  # the thread gives up a little later than close
    assert collector.stats()["dropped"]["lost"] == 10
    balance(collector)


def test_a_with_block_closes(collectors: Make) -> None:
    exporter = Batches()
    with collectors(exporter) as collector:
        collector.enqueue({"n": 0})
    assert exporter.numbers == [0]
    assert exporter.calls == ["flush", "close"]


def test_a_forgotten_collector_delivers_and_lets_its_thread_go() -> None:
    exporter = Batches()
    collector = AsyncCollector(exporter, flush_interval=NEVER, name="forgotten")
    collector.enqueue({"n": 0})
    until(lambda: threads("forgotten") == 1)
    reference = weakref.ref(collector)
    del collector
    gc.collect()
    assert reference() is None
    assert exporter.entered.wait(LONG)
    until(lambda: threads("forgotten") == 0)
    assert exporter.numbers == [0]
    assert exporter.calls == []  # it may be in use elsewhere


SCRIPT = """
import os, sys, time
from profilis_mp.core.async_collector import AsyncCollector

PARENT = os.getpid()

class Exporter:
    def export(self, events):
        print("parent" if os.getpid() == PARENT else "child", [event["n"] for event in events], flush=True)
    def close(self):
        print("closed", flush=True)

collector = AsyncCollector(Exporter(), flush_interval=3600)
collector.enqueue({"n": 1})
"""


def run(script: str) -> list[str]:
    """What a program prints that has a collector with one event queued."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", SCRIPT + script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_close_runs_at_exit() -> None:
    assert run("") == ["parent [1]", "closed"]


def test_close_runs_at_exit_after_an_exporter_that_hangs() -> None:
    assert run("slow = AsyncCollector(lambda events: time.sleep(3600)); slow.enqueue({'n': 2})") == [
        "parent [1]",
        "closed",
    ]


def test_close_runs_at_the_exit_of_a_multiprocessing_child() -> None:
    lines = run(
        """
import multiprocessing
def work():
    collector.enqueue({"n": 2})
if __name__ == "__main__":
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
"""
    )
    assert lines == ["child [2]", "closed", "parent [1]", "closed"]


def test_a_child_that_exits_like_its_parent_leaves_the_parents_alone() -> None:
    lines = run("if os.fork() == 0:\n    sys.exit(0)\nos.wait()")
    assert lines == ["parent [1]", "closed"]
    lines = run("if os.fork() == 0:\n    collector.enqueue({'n': 2})\n    sys.exit(0)\nos.wait()")
    assert lines == ["child [2]", "closed", "parent [1]", "closed"]


# -- forks


def in_child(work: Callable[[], Any], fork: Callable[[], int] = os.fork) -> Any:
    """What ``work`` returns in a forked child, which is killed if it hangs."""
    receiving, sending = os.pipe()
    pid = fork()
    if pid == 0:
        answer: Any = "failed"
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(int(LONG))
            answer = work()
        except BaseException as error:
            answer = repr(error)
        finally:
            os.write(sending, json.dumps(answer).encode())
            os._exit(0)
    os.close(sending)
    with os.fdopen(receiving, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the child was killed by signal {status}"
    return json.loads(answer)


def without_hooks() -> int:
    """Fork as uWSGI does: Python's at-fork hooks do not run, and no thread of the parent waits for the GIL."""
    time.sleep(0.05)  # there is nothing to wait on: a thread that wants the GIL looks like one that is asleep
    return int(ctypes.PyDLL(None).fork())


forks = pytest.mark.parametrize("fork", [os.fork, without_hooks], ids=["os.fork", "without hooks"])


@forks
def test_a_forked_child_starts_afresh_and_does_not_replay_its_parents_queue(
    collectors: Make, fork: Callable[[], int]
) -> None:
    inline, exporter = Inline(), Batches()
    collector = collectors([inline, exporter], flush_interval=NEVER)
    direct = collectors(inline)
    for number in range(5):
        collector.enqueue({"n": number})
        direct.enqueue({"n": number})

    def work() -> Any:
        fresh = (collector.enqueued, collector.processed, collector.queue_depth, direct.enqueued)
        collector.enqueue({"n": 100})
        direct.enqueue({"n": 100})
        done = collector.flush(LONG)
        return fresh, done, exporter.numbers, collector.enqueued, direct.enqueued, direct.processed

    assert in_child(work, fork) == [[0, 0, 0, 0], True, [100], 1, 1, 1]
    assert collector.flush(LONG)
    assert exporter.numbers == list(range(5))
    assert (collector.enqueued, direct.enqueued) == (5, 5)


@forks
def test_a_child_of_a_child_starts_afresh_too(collectors: Make, fork: Callable[[], int]) -> None:
    exporter = Batches()
    collector = collectors(exporter, flush_interval=NEVER)
    collector.enqueue({"n": 0})

    def child() -> Any:
        collector.enqueue({"n": 1})
        below = in_child(grandchild, fork)
        return below, collector.flush(LONG), exporter.numbers

    def grandchild() -> Any:
        collector.enqueue({"n": 2})
        return collector.flush(LONG), exporter.numbers

    assert in_child(child, fork) == [[True, [2]], True, [1]]
    assert collector.flush(LONG)
    assert exporter.numbers == [0]


def test_forks_amid_enqueueing_threads_never_deadlock(collectors: Make) -> None:
    # A lock that one of these threads held at the fork would be held in the child for ever. (Not without hooks:
    # there CPython's own GIL is such a lock, as soon as a thread of the parent wants it.)
    class Counting(Inline):
        def emit(self, event: Event) -> None:
            next(taken)

    def export(events: list[Event]) -> None:
        # Not Batches: its thread may hold the lock inside its own Event at the fork.
        for _ in events:
            next(exported)

    taken, exported = itertools.count(), itertools.count()
    collector = collectors([Counting(), export], queue_size=100, batch_max=2, flush_interval=0.001)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            collector.enqueue({"n": 0})

    def child() -> Any:
        before = next(taken), next(exported)
        for number in range(10):
            collector.enqueue({"n": number})
        done = collector.flush(LONG)
        return done, next(taken) - before[0] - 1, next(exported) - before[1] - 1, collector.enqueued

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    interval = sys.getswitchinterval()
    try:
        sys.setswitchinterval(1e-6)  # so that forks meet the threads anywhere
        for _ in range(30):
            assert in_child(child) == [True, 10, 10, 10]
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        for worker in workers:
            worker.join()
    assert collector.flush(LONG)
    balance(collector, exporters=2)


@forks
def test_a_lock_of_threading_held_at_the_fork_does_not_keep_the_child_from_its_thread(
    collectors: Make, fork: Callable[[], int]
) -> None:
    # As when another thread was just starting a third one. Without hooks nobody lets go of it in the child.
    exporter = Batches()
    collector = collectors(exporter)
    collector.enqueue({"n": 0})
    assert collector.flush(LONG)
    exporter.batches.clear()

    def child() -> Any:
        collector.enqueue({"n": 1})
        return collector.flush(LONG), exporter.numbers

    with threading._active_limbo_lock:  # type: ignore[attr-defined]
        assert in_child(child, fork) == [True, [1]]


def test_the_threads_of_a_child_agree_on_one_successor(collectors: Make) -> None:
    exporter = Batches()
    collector = collectors(exporter, queue_size=10**6)
    collector.enqueue({"n": 0})
    assert collector.flush(LONG)
    exporter.batches.clear()

    def child() -> Any:
        sys.setswitchinterval(1e-6)
        start = threading.Barrier(8)

        def work() -> None:
            start.wait()
            for number in range(100):
                collector.enqueue({"n": number})

        workers = [threading.Thread(target=work) for _ in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return collector.flush(LONG), len(exporter.numbers), collector.enqueued, len(exporter.threads)

    for _ in range(5):
        exporter.threads.clear()
        assert in_child(child) == [True, 800, 800, 1]


def test_a_child_that_never_used_the_collector_leaves_the_exporters_alone(collectors: Make) -> None:
    inline, exporter = Inline(), Batches()
    collector = collectors([inline, exporter], flush_interval=NEVER)
    collector.enqueue({"n": 0})

    def child() -> Any:
        closed = collector.close(timeout=LONG)
        collector.enqueue({"n": 1})
        return closed, inline.calls, exporter.calls, exporter.numbers, collector.stats()["dropped"]["closed"]

    assert in_child(child) == [True, [], [], [], 1]
    assert collector.flush(LONG)
    assert exporter.numbers == [0]


def test_a_child_of_a_closed_collector_stays_closed(collectors: Make) -> None:
    inline = Inline()
    collector = collectors(inline)
    collector.close(timeout=LONG)

    def child() -> Any:
        collector.enqueue({"n": 1})
        return len(inline.events), collector.stats()["dropped"]["closed"]

    assert in_child(child) == [0, 1]


# -- where threads cannot run


def uwsgi_module(has_threads: int, worker_id: int) -> types.ModuleType:
    module = types.ModuleType("uwsgi")
    module.has_threads = has_threads  # type: ignore[attr-defined]
    module.worker_id = lambda: worker_id  # type: ignore[attr-defined]
    module.masterpid = os.getpid if worker_id == 0 else os.getppid  # type: ignore[attr-defined]
    return module


@pytest.fixture(params=["uwsgi without threads", "uwsgi before it forks", "refused"])
def threadless(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "refused":

        def refuse(*_: object) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(_thread, "start_new_thread", refuse)
    else:
        module = uwsgi_module(0, 1) if request.param == "uwsgi without threads" else uwsgi_module(1, 0)
        monkeypatch.setitem(sys.modules, "uwsgi", module)


@pytest.mark.usefixtures("threadless")
def test_without_threads_a_full_batch_is_exported_by_whoever_completes_it(collectors: Make) -> None:
    exporter = Batches()
    collector = collectors(exporter, batch_max=3, flush_interval=NEVER)
    for number in range(9):
        collector.enqueue({"n": number})
    assert [[event["n"] for event in batch] for batch in exporter.batches] == [[0], [1, 2, 3], [4, 5, 6]]
    assert exporter.threads == {_thread.get_ident()}
    assert collector.flush(LONG)
    assert exporter.numbers == list(range(9))
    assert collector.close(timeout=LONG)
    assert exporter.calls == ["flush", "flush", "close"]
    balance(collector)


@pytest.mark.usefixtures("threadless")
def test_without_threads_an_old_event_is_exported_with_the_next(collectors: Make) -> None:
    exporter = Batches()
    collector = collectors(exporter, flush_interval=0.01)
    numbers = itertools.count()
    for batches in (1, 2, 3):
        until(lambda: collector.enqueue({"n": next(numbers)}) or len(exporter.batches) == batches)  # noqa: B023
    assert exporter.numbers == list(range(next(numbers)))


@pytest.mark.usefixtures("threadless")
def test_without_threads_failures_are_contained_and_retried(collectors: Make) -> None:
    class Echo(Batches):
        def export(self, events: list[Event]) -> None:
            collector.enqueue({"n": 9})
            super().export(events)

    exporter = Echo()
    exporter.failures = 2
    collector = collectors(exporter, batch_max=1, flush_interval=NEVER)
    for number in range(3):
        collector.enqueue({"n": number})
    assert collector.flush(LONG)
    assert [n for n in exporter.numbers if n != 9] == [0, 1, 2]
    assert collector.flush_errors == 2
    balance(collector)


@pytest.mark.usefixtures("threadless")
def test_without_threads_an_interrupt_is_the_applications(collectors: Make) -> None:
    def export(events: list[Event]) -> None:
        if not seen:
            seen.append({"n": -1})
            raise KeyboardInterrupt
        seen.extend(events)

    seen: list[Event] = []
    collector = collectors(export)
    with pytest.raises(KeyboardInterrupt):
        collector.enqueue({"n": 0})
    assert (collector.flush_errors, collector.queue_depth) == (0, 1)
    assert collector.flush(LONG)
    assert seen == [{"n": -1}, {"n": 0}]


def test_a_uwsgi_worker_gets_a_thread(collectors: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    # With one in the process that forks the workers, one worker in ten waited for the GIL for ever.
    monkeypatch.setitem(sys.modules, "uwsgi", uwsgi_module(1, 0))
    exporter = Batches()
    collector = collectors(exporter, name="worker", batch_max=2, flush_interval=NEVER)
    collector.enqueue({"n": 0})
    collector.enqueue({"n": 1})
    assert exporter.threads == {_thread.get_ident()}
    assert threads("worker") == 0
    monkeypatch.setitem(sys.modules, "uwsgi", uwsgi_module(1, 1))
    collector.enqueue({"n": 2})
    collector.enqueue({"n": 3})
    assert collector.flush(LONG)
    assert exporter.numbers == [0, 1, 2, 3]
    assert len(exporter.threads) == 2


# -- arguments


@pytest.mark.parametrize(
    ("arguments", "refused"),
    [
        ({"queue_size": 0}, "queue_size"),
        ({"queue_size": 1.5}, "queue_size"),
        ({"queue_size": True}, "queue_size"),
        ({"batch_max": -1}, "batch_max"),
        ({"flush_interval": 0}, "flush_interval"),
        ({"flush_interval": float("nan")}, "flush_interval"),
        ({"flush_interval": "1"}, "flush_interval"),
        ({"max_consecutive_sink_failures": 0}, "max_consecutive_sink_failures"),
        ({"name": 5}, "name"),
        ({"exporter": []}, "exporter"),
        ({"exporter": None}, "exporter"),
        ({"exporter": [print, object()]}, "exporter"),
        ({"exporter": Batches}, "exporter"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(arguments: dict[str, Any], refused: str) -> None:
    with pytest.raises(ConfigError) as caught:
        AsyncCollector(**{"exporter": print, **arguments})
    assert caught.value.argument == refused


def test_importing_is_cheap() -> None:
    script = """
import orjson, sys
before = set(sys.modules)
import profilis_mp.core.async_collector, profilis_mp.core.emitter, profilis_mp.exporters.console
costly = {"logging", "asyncio", "multiprocessing", "flask", "threading", "queue", "decimal"}
assert not costly & (set(sys.modules) - before), costly & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
