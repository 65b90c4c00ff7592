"""What the fast path rests on: where CPython can switch threads and run signal handlers, and where it cannot."""

from __future__ import annotations

import _thread
import atexit
import dis
import gc
import os
import signal
import sys
import threading
import types
import weakref
from multiprocessing import util
from pathlib import Path
from typing import Any

import pytest
from checks import check_log
from processes import fork, reap, running

from profilis_mp import AsyncCollector, JSONLExporter, SharedWriter, recover
from profilis_mp.sharedlog import fastpath
from profilis_mp.sharedlog.lock import KeptLock
from profilis_mp.sharedlog.paths import StreamPaths
from profilis_mp.sharedlog.segment import OpenSegment
from profilis_mp.sharedlog.spool import Spool

MOMENTS = ("CALL", "PRECALL", "JUMP_BACKWARD", "RESUME", "SEND", "YIELD", "FOR_ITER")


def append_code(directory: Path) -> types.CodeType:
    code: types.CodeType = JSONLExporter(directory).emit.__code__  # type: ignore[attr-defined]
    assert code.co_name == "append"
    return code


def test_nothing_can_come_between_the_swap_and_the_end_of_an_append(tmp_path: Path) -> None:
    instructions = list(dis.get_instructions(append_code(tmp_path)))
    stores = [number for number, one in enumerate(instructions) if one.opname == "STORE_DEREF" and one.argval == "busy"]
    section = instructions[stores[0] - 3 : stores[1] + 1]
    assert "tail" in [one.argval for one in section if one.opname == "STORE_DEREF"], "this is not the section meant"
    assert not [one.opname for one in section if one.opname.startswith(MOMENTS)]


def test_an_append_is_known_by_the_lines_between_its_first_store_of_busy_and_its_last(tmp_path: Path) -> None:
    code = append_code(tmp_path)
    stores = [one for one in dis.get_instructions(code) if one.opname == "STORE_DEREF" and one.argval == "busy"]
    numbers = [one.positions.lineno for one in stores if one.positions is not None]
    lines = [number - code.co_firstlineno for number in numbers if number is not None]
    assert (min(lines), max(lines) + 1) == (fastpath._USING.start, fastpath._USING.stop)


# Asking whether an append was interrupted looked at the variables of its frame. Up to Python 3.12 a trace function's
# next return then put back what they had been, the closure's too: events of other threads were overwritten.
def test_asking_for_an_append_of_a_traced_thread_changes_nothing(tmp_path: Path) -> None:
    exporter = JSONLExporter(tmp_path, janitor=False)
    exporter.emit({"worker": 0, "seq": 0})
    code, asked = append_code(tmp_path), []

    def trace(frame: types.FrameType, event: str, argument: object) -> Any:
        if frame.f_code is not code:
            return None
        if event == "line" and not asked:
            asked.append(exporter._writer._session._fast.is_append(frame))
            other = threading.Thread(target=exporter.emit, args=({"worker": 1, "seq": 0},))
            other.start()
            other.join(60)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        exporter.emit({"worker": 0, "seq": 1})
    finally:
        sys.settrace(before)
    assert asked == [False]
    assert exporter.close()
    check_log(tmp_path, {0: 2, 1: 1})


def test_trace_functions_in_the_middle_of_appends_cost_nothing(tmp_path: Path) -> None:
    exporter = JSONLExporter(tmp_path, buffer_size=2000, lock_timeout=30.0)
    code, every = append_code(tmp_path), 100
    switch_s = sys.getswitchinterval()

    def trace(frame: types.FrameType, event: str, argument: object) -> Any:
        return trace if frame.f_code is code else None

    def work(worker: int) -> None:
        sys.settrace(trace)
        for number in range(every):
            exporter.emit({"worker": worker, "seq": number})
        sys.settrace(None)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(switch_s)
    assert not any(thread.is_alive() for thread in threads)
    assert exporter.close()
    check_log(tmp_path, dict.fromkeys(range(4), every))


def test_without_a_gil_every_append_takes_the_mutex(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    exporter = JSONLExporter(tmp_path, lock_timeout=30.0)
    for number in range(100):
        exporter.emit({"worker": 0, "seq": number})
    session = exporter._writer._session
    assert session._fast.appended() == 0
    assert exporter.stats()["events"] == 100
    assert exporter.close()
    check_log(tmp_path, {0: 100})


# Seen once, on a busy machine: a thread looked whether anything was aside, another one, which could not get in, put an
# event there, and then the first opened the fast path: the second thread's next events overtook that one.
def test_what_went_aside_while_the_fast_path_was_being_opened_is_not_overtaken(tmp_path: Path) -> None:
    exporter = JSONLExporter(tmp_path)
    exporter.emit({"worker": 0, "seq": 0})
    session = exporter._writer._session
    fast = session._fast

    def resume(tail: int, room: int) -> None:
        session._fast = fast
        session._waited_in_vain = True  # so that it does not wait for us
        other = threading.Thread(target=session.append_record, args=(b'{"worker":0,"seq":1}\n',))
        other.start()
        other.join(60)
        assert exporter.stats()["aside"] == 1
        fast.resume(tail, room)

    session._fast = fast._replace(resume=resume)
    exporter.flush()
    for number in range(2, 10):
        exporter.emit({"worker": 0, "seq": number})
    assert exporter.close()
    check_log(tmp_path, {0: 10})


# A flush or a rotation opened the fast path wherever it was called, also where every record has to be flushed at once:
# with fsync="always", after close, and in a process without threads. What was emitted after that stayed in the spool.
@pytest.mark.parametrize("how", ["fsync", "closed", "no threads"])
@pytest.mark.parametrize("asked", ["flush", "rotate"])
def test_flush_and_rotation_open_no_fast_path_where_each_record_needs_care(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, asked: str
) -> None:
    if how == "no threads":
        monkeypatch.setattr(_thread, "start_new_thread", lambda *_: (_ for _ in ()).throw(RuntimeError("no threads")))
    exporter = JSONLExporter(tmp_path, fsync="always" if how == "fsync" else "never", flush_interval=1e-6)
    exporter.emit({"worker": 0, "seq": 0})
    if how == "closed":
        assert exporter.close()
    exporter.emit({"worker": 0, "seq": 1})
    getattr(exporter, asked)()
    for number in range(2, 20):
        exporter.emit({"worker": 0, "seq": number})
        assert exporter.stats()["unflushed_bytes"] == 0, number
    check_log(tmp_path, {0: 20})
    exporter.close()


# Seen on a busy machine: a helper's thread had the spools aside off, for a finalizer's event, when the main thread
# looked for what must go first. It found none, and its next events overtook those in there.
def test_nothing_overtakes_what_is_in_a_spool_aside_that_somebody_has_off_just_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = JSONLExporter(tmp_path)
    exporter.emit({"worker": 0, "seq": 0})
    session = exporter._writer._session
    taken, go_on = threading.Event(), threading.Event()
    append, theirs = Spool.append, b'{"worker":1,"seq":0}\n'

    def slow(spool: Spool, record: bytes) -> bool:
        if record == theirs:
            taken.set()
            assert go_on.wait(60)
        return append(spool, record)

    monkeypatch.setattr(Spool, "append", slow)
    assert session._outbox.append_aside(b'{"worker":0,"seq":1}\n')
    session._fast.stop()
    other = threading.Thread(target=session._outbox.append_aside, args=(theirs,))
    other.start()
    assert taken.wait(60)
    exporter.emit({"worker": 0, "seq": 2})
    assert not exporter.flush(timeout_s=0.01)
    exporter.emit({"worker": 0, "seq": 3})
    go_on.set()
    other.join(60)
    for number in range(4, 10):
        exporter.emit({"worker": 0, "seq": number})
    assert exporter.close()
    check_log(tmp_path, {0: 10, 1: 1})


# A signal handler forked while its process waited for the directory lock. The child came back into that with nothing
# locked, found the flush of whoever has the lock, and finished it as well: "from X\n X\n".
def test_child_forked_while_it_waits_for_the_lock_finishes_nobodys_flush(tmp_path: Path) -> None:
    writing, go_on = os.pipe(), os.pipe()

    def flushes() -> None:
        writer = SharedWriter(tmp_path, janitor=False, flush_interval=3600)
        append = OpenSegment.append

        def slow(segment: OpenSegment, batch: memoryview) -> None:
            append(segment, batch[:4])
            os.write(writing[1], b".")
            os.read(go_on[0], 1)
            append(segment, batch[4:])

        OpenSegment.append = slow  # type: ignore[method-assign]
        writer.write(b'{"worker":0,"seq":0}\n')
        writer.close()

    def waits() -> None:
        writer = SharedWriter(tmp_path, janitor=False, flush_interval=3600)
        writer.write(b'{"worker":1,"seq":0}\n')
        parent, children = os.getpid(), []

        def split(*_: object) -> None:
            pid = os.fork()
            if pid:
                children.append(pid)

        signal.signal(signal.SIGALRM, split)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        flushed = writer.flush(0.5)
        if os.getpid() != parent:
            os._exit(flushed)
        assert reap(children[0]) == 0
        os.write(go_on[1], b".")
        assert writer.close(10)

    with running(flushes):
        os.read(writing[0], 1)
        assert reap(fork(waits)) == 0
        recover(tmp_path)
    check_log(tmp_path, {0: 1, 1: 1})


# Both are of no use while an append is interrupted in one process; a fork made them matter: with lock_timeout=0 the
# child never took back what a thread of its parent's had, so that all it emitted went aside, with nobody to flush it.
@pytest.mark.parametrize("lock_timeout", [0.0, 1.0])
def test_child_forked_while_a_thread_appends_gets_its_own_fast_path(tmp_path: Path, lock_timeout: float) -> None:
    exporter = JSONLExporter(tmp_path, janitor=False, lock_timeout=lock_timeout)
    exporter.emit({"worker": 0, "seq": 0})
    exporter.emit({"worker": 0, "seq": 1})
    code, inside, go_on = append_code(tmp_path), threading.Event(), threading.Event()

    def trace(frame: types.FrameType, event: str, argument: object) -> Any:
        if frame.f_code is code and frame.f_locals.get("waiting") is False and not inside.is_set():
            inside.set()
            assert go_on.wait(60)
        return trace if frame.f_code is code else None

    def append() -> None:
        sys.settrace(trace)
        exporter.emit({"worker": 0, "seq": 2})
        sys.settrace(None)

    thread = threading.Thread(target=append)
    thread.start()
    assert inside.wait(60)

    def child() -> None:
        exporter.emit({"worker": 1, "seq": 0})
        assert exporter.stats()["aside"] == 0
        assert exporter.close(10)

    assert reap(fork(child)) == 0
    go_on.set()
    thread.join(60)
    assert exporter.close(10)
    check_log(tmp_path, {0: 3, 1: 1})


@pytest.mark.parametrize("fsync", ["never", "always"])
def test_every_event_is_counted_once_however_little_stack_is_left(tmp_path: Path, fsync: Any) -> None:
    exporter = JSONLExporter(tmp_path, janitor=False, fsync=fsync)
    exporter.emit({"worker": 0, "seq": 0})
    emitted = 1

    def deeper() -> None:
        nonlocal emitted
        try:
            deeper()
        except RecursionError:
            pass
        exporter.emit({"worker": 0, "seq": emitted})
        emitted += 1

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(300)
    try:
        deeper()
    finally:
        sys.setrecursionlimit(limit)
    stats = exporter.stats()
    assert stats["events"] + sum(stats["dropped"].values()) == emitted
    assert exporter.close()
    assert sum(path.read_bytes().count(b"\n") for path in tmp_path.glob("*.jsonl")) == stats["events"]


# Threads that cannot get in count what they drop themselves. One that lost the processor between reading and writing
# set the count back by thousands.
def test_threads_that_drop_at_once_count_each_event(tmp_path: Path) -> None:
    outbox = JSONLExporter(tmp_path, janitor=False)._writer._session._outbox
    switch_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=lambda: [outbox.drop() for _ in range(20_000)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(switch_s)
    assert outbox._counters.dropped == {"spool_full": 80_000}


# What close() could not flush stays in its spool. An event emitted after that went straight into the segment, before
# it.
@pytest.mark.parametrize("free", [0, 1, 2])
def test_events_after_a_close_come_after_those_that_it_left_behind(tmp_path: Path, free: int) -> None:
    exporter = JSONLExporter(tmp_path, janitor=False, flush_interval=3600, lock_timeout=0.02)
    exporter.emit({"worker": 0, "seq": 0})
    assert exporter.flush()
    exporter.emit({"worker": 0, "seq": 1})
    lock = KeptLock(StreamPaths(str(tmp_path), "profilis-{timestamp}.jsonl").lock, 0o600)
    assert lock.try_acquire()
    assert not exporter.close()
    for number in range(3):
        if number == free:
            lock.release()
        exporter.emit({"worker": 0, "seq": 2 + number})
    assert exporter.close()
    lock.close()
    check_log(tmp_path, {0: 5})


# Each exporter left an exit hook behind for ever, each close followed by another event one of multiprocessing's, and
# each collector the page of its fork mark.
def test_who_is_forgotten_leaves_no_exit_hook_and_no_page(tmp_path: Path) -> None:
    gc.collect()
    finalizers, hooks = len(util._finalizer_registry), atexit.unregister  # type: ignore[attr-defined]
    unregistered: list[object] = []

    def unregister(hook: Any) -> None:
        unregistered.append(hook)
        hooks(hook)

    exporter = JSONLExporter(tmp_path, janitor=False)
    for number in range(3):
        exporter.emit({"worker": 0, "seq": number})
        assert exporter.close()
    assert len(util._finalizer_registry) <= finalizers + 1  # type: ignore[attr-defined]
    collector = AsyncCollector(exporter)
    collector.enqueue({"worker": 0, "seq": 3})
    hook, mark = exporter._writer._at_exit, weakref.ref(collector._crew.mark)
    atexit.unregister = unregister  # type: ignore[assignment]
    try:
        del collector
        gc.collect()
        assert mark() is None
        assert exporter.close()
        del exporter
        gc.collect()
    finally:
        atexit.unregister = hooks
    assert hook in unregistered
    assert len(util._finalizer_registry) == finalizers  # type: ignore[attr-defined]
    check_log(tmp_path, {0: 4})
