"""The fast path: as short as it was when it was measured, and still the fast one after a fork, a close, a new spool."""

from __future__ import annotations

import gc
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checks import check_log
from processes import fork, reap

from profilis_mp import AsyncCollector, JSONLExporter
from profilis_mp.sharedlog.stream import StreamPaths

REQUEST = {"trace_id": "trace-abc123", "span_id": "span-def456", "kind": "REQ", "route": "/api/users", "status": 200}

# Bytecodes of one emit(), or enqueue(), of an event that needs no thought. Seconds depend on the machine; these do not.
# Raise one only for something that is worth its nanoseconds: ARCHITECTURE.md, "Where the nanoseconds go".
BYTECODES = {(3, 11): 59, (3, 12): 54, (3, 13): 56}


def bytecodes_of(call: Callable[[Any], object], event: Any) -> tuple[int, int]:
    """Run ``call(event)``; return how many bytecodes of Python that took, in how many functions."""
    steps, entered = 0, 0

    def trace(frame: types.FrameType, what: str, argument: object) -> Any:
        nonlocal steps, entered
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        entered += what == "call"
        steps += what == "opcode"
        return trace

    elder = sys.gettrace()
    sys.settrace(trace)
    try:
        call(event)
    finally:
        sys.settrace(elder)
    return steps, entered


@pytest.mark.parametrize("through", ["emit", "enqueue"])
def test_an_event_takes_a_few_dozen_bytecodes_of_one_function(tmp_path: Path, through: str) -> None:
    with JSONLExporter(tmp_path) as exporter:
        call = exporter.emit if through == "emit" else AsyncCollector(exporter).enqueue
        call(REQUEST)  # opens everything
        bytecodes_of(call, REQUEST)  # Python 3.12 counts nothing the first time
        steps, entered = bytecodes_of(call, REQUEST)
        assert entered == 1
        assert 30 < steps <= BYTECODES.get(sys.version_info[:2], 60)


def test_a_function_that_was_kept_stays_the_fast_one(tmp_path: Path) -> None:
    exporter = JSONLExporter(tmp_path, buffer_size=10_000, spool_bytes=20_000)
    kept = exporter.emit, AsyncCollector(exporter).enqueue

    def are_fast(worker: int, first: int) -> int:
        for number, function in enumerate(kept * 2, first):
            _, entered = bytecodes_of(function, {"worker": worker, "seq": number})
        assert entered == 1
        return first + 4

    following = are_fast(0, 0)  # kept before the first event
    kept[0]({"worker": 0, "seq": following, "fill": "x" * 50_000})  # takes a larger spool
    following = are_fast(0, following + 1)

    def child() -> None:
        assert are_fast(1, 0) == 4
        assert exporter.close()

    assert reap(fork(child)) == 0
    following = are_fast(0, following)
    assert exporter.close()
    check_log(tmp_path, {0: following, 1: 4})


def test_collectors_of_one_exporter_count_their_own_events(tmp_path: Path) -> None:
    exporter = JSONLExporter(tmp_path, buffer_size=1000)
    first, second = AsyncCollector(exporter), AsyncCollector(exporter)
    for number in range(90):
        (first.enqueue, second.enqueue, exporter.emit)[number % 3]({"worker": 0, "seq": number})
    assert (first.enqueued, first.processed) == (30, 30)
    assert (second.enqueued, second.processed) == (30, 30)
    assert exporter.stats()["events"] == 90

    def child() -> None:
        assert (first.enqueued, exporter.stats()["events"]) == (0, 0)
        exporter.emit({"worker": 1, "seq": 0})
        for number in range(1, 20):
            first.enqueue({"worker": 1, "seq": number})
        assert (first.enqueued, second.enqueued, exporter.stats()["events"]) == (19, 0, 20)
        assert exporter.close()

    assert reap(fork(child)) == 0
    assert (first.enqueued, second.enqueued, exporter.stats()["events"]) == (30, 30, 90)
    assert exporter.close()
    check_log(tmp_path, {0: 90, 1: 20})


def test_a_closed_collectors_door_stays_shut_while_others_use_the_exporter(tmp_path: Path) -> None:
    exporter = JSONLExporter(tmp_path)
    exporter.emit({"worker": 0, "seq": 0})
    collector, other = AsyncCollector(exporter), AsyncCollector(exporter)
    enqueue = collector.enqueue

    def child() -> None:
        # It never used the collector here, so that close leaves the exporter open.
        assert collector.close()
        exporter.emit({"worker": 1, "seq": 0})
        enqueue({"worker": 1, "seq": -1})
        other.enqueue({"worker": 1, "seq": 1})
        assert (collector.enqueued, collector.stats()["dropped"]["closed"], other.enqueued) == (0, 1, 1)
        assert exporter.close()

    assert reap(fork(child)) == 0
    enqueue({"worker": 0, "seq": 1})
    assert collector.close()
    enqueue({"worker": 0, "seq": -1})
    other.enqueue({"worker": 0, "seq": 2})
    assert (collector.enqueued, collector.stats()["dropped"]["closed"], other.enqueued) == (1, 1, 1)
    check_log(tmp_path, {0: 3, 1: 2})


def test_an_exporter_whose_emit_was_replaced_is_not_passed_by(tmp_path: Path) -> None:
    with JSONLExporter(tmp_path) as exporter:
        seen: list[Any] = []
        exporter.emit = seen.append
        AsyncCollector(exporter).enqueue({"n": 1})
        assert seen == [{"n": 1}]


# The function did not hold the exporter, which so was closed before the call, and the event went to nobody.
@pytest.mark.parametrize("through", ["emit", "enqueue"])
def test_an_exporter_that_nobody_has_but_its_function_is_open(tmp_path: Path, through: str) -> None:
    if through == "emit":
        JSONLExporter(tmp_path).emit({"worker": 0, "seq": 0})
        emit = JSONLExporter(tmp_path).emit
    else:
        AsyncCollector(JSONLExporter(tmp_path)).enqueue({"worker": 0, "seq": 0})
        emit = AsyncCollector(JSONLExporter(tmp_path)).enqueue
    gc.collect()
    emit({"worker": 0, "seq": 1})
    emit({"worker": 0, "seq": 2})
    del emit
    gc.collect()
    assert not os.listdir(StreamPaths(str(tmp_path), "profilis-{timestamp}.jsonl").spools)
    check_log(tmp_path, {0: 3})
