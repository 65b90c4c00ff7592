"""Spools aside: whose they are while several threads, a close and a fork are at them at once."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from fcntl import LOCK_EX, LOCK_UN, flock
from pathlib import Path
from typing import Any

import pytest
from checks import check_log
from processes import fork, reap, wait_until

from profilis_mp import JSONLExporter, SharedWriter, read_lines, recover
from profilis_mp.sharedlog.aside import Aside
from profilis_mp.sharedlog.outbox import Outbox
from profilis_mp.sharedlog.paths import StreamPaths
from profilis_mp.sharedlog.spool import Spool

TEMPLATE = "profilis-{timestamp}.jsonl"


def directory_lock(directory: Path) -> int:
    """The directory lock, held as another process holds it."""
    fd = os.open(StreamPaths(str(directory), TEMPLATE).lock, os.O_RDWR)
    flock(fd, LOCK_EX)
    return fd


def lines_in(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(directory.glob("*.jsonl")))


# An empty spool aside was removed by close() while another thread, which had found the session open, took it and
# appended to it: the event was in no file.
def test_close_removes_no_spool_that_another_thread_appends_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = JSONLExporter(tmp_path, janitor=False, lock_timeout=0.0)
    exporter.emit({"worker": 0, "seq": 0})
    exporter._writer._session._outbox.append_aside(b'{"worker":0,"seq":1}\n')
    assert exporter.flush(1.0)
    paused, go_on, emitted = threading.Event(), threading.Event(), threading.Event()
    append_aside, unlink = Outbox.append_aside, Spool.unlink

    def paused_append(outbox: Outbox, record: bytes) -> bool:
        paused.set()
        assert go_on.wait(60)
        return append_aside(outbox, record)

    def slow_unlink(spool: Spool) -> bool:
        removed = unlink(spool)
        go_on.set()
        assert emitted.wait(60)
        return removed

    monkeypatch.setattr(Outbox, "append_aside", paused_append)
    monkeypatch.setattr(Spool, "unlink", slow_unlink)

    def emit() -> None:
        exporter.emit({"worker": 1, "seq": 0})
        emitted.set()

    lock = directory_lock(tmp_path)
    closing, emitting = threading.Thread(target=exporter.close, args=(60,)), threading.Thread(target=emit)
    closing.start()
    wait_until(exporter._writer._session._mutex.locked)
    emitting.start()
    assert paused.wait(10)
    flock(lock, LOCK_UN)
    closing.join(60)
    emitting.join(60)
    os.close(lock)
    recover(tmp_path)
    check_log(tmp_path, {0: 2, 1: 1})


# All threads that had put something aside meanwhile closed the outbox after close(), each the same spools: emit raised.
def test_threads_that_emit_during_a_close_see_no_exception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = JSONLExporter(tmp_path, janitor=False, lock_timeout=0.0)
    exporter.emit({"worker": 4, "seq": 0})
    assert exporter.flush(1.0)
    append_aside, close = Outbox.append_aside, Spool.close
    closed, errors = threading.Event(), []
    all_there, all_done = threading.Barrier(5), threading.Barrier(4)

    def paused_append(outbox: Outbox, record: bytes) -> bool:
        all_there.wait(10)
        assert closed.wait(10)
        fits = append_aside(outbox, record)
        all_done.wait(10)
        return fits

    def slow_close(spool: Spool) -> None:
        time.sleep(0.005)
        close(spool)

    monkeypatch.setattr(Outbox, "append_aside", paused_append)
    monkeypatch.setattr(Spool, "close", slow_close)

    def work(worker: int) -> None:
        try:
            exporter.emit({"worker": worker, "seq": 0})
        except BaseException as error:
            errors.append(error)

    lock = directory_lock(tmp_path)
    closing = threading.Thread(target=exporter.close, args=(60,))
    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    closing.start()
    wait_until(exporter._writer._session._mutex.locked)
    for thread in threads:
        thread.start()
    all_there.wait(10)
    flock(lock, LOCK_UN)
    os.close(lock)
    closing.join(60)
    closed.set()
    for thread in threads:
        thread.join(60)
    assert not errors
    recover(tmp_path)
    check_log(tmp_path, dict.fromkeys(range(5), 1))


# A signal handler forked in the middle of an append to a spool aside. Its child went on with that append, in its
# parent's spool, and set the tail back over what the parent had appended since.
def test_child_forked_in_an_append_aside_leaves_its_parents_spool_alone(tmp_path: Path) -> None:
    def work() -> None:
        writer = SharedWriter(tmp_path, janitor=False, flush_interval=3600)
        writer.write(b"[0]")
        assert writer.flush()
        lock, parent, children = directory_lock(tmp_path), os.getpid(), []
        go_on, told = os.pipe()

        def split(*_: object) -> None:
            pid = os.fork()
            if pid:
                children.append(pid)
            else:
                os.read(go_on, 1)

        frame_bytes: Any = Spool.frame_bytes

        def interrupted(spool: Spool) -> int:
            Spool.frame_bytes = frame_bytes  # type: ignore[method-assign]
            os.kill(os.getpid(), signal.SIGUSR1)
            return int(frame_bytes.fget(spool))

        signal.signal(signal.SIGUSR1, split)
        Spool.frame_bytes = property(interrupted)  # type: ignore[method-assign, assignment]
        writer.write(b"[1]")
        if os.getpid() != parent:
            os._exit(0)
        for number in range(2, 6):
            writer.write(b"[%d]" % number)
        os.write(told, b".")
        assert reap(children[0]) == 0
        flock(lock, LOCK_UN)
        assert writer.close()

    assert reap(fork(work)) == 0
    recover(tmp_path)
    # What was being written at the fork is written by both.
    assert sorted(lines_in(tmp_path)) == sorted(b"[0][1][2][3][4][5][1]")


def test_child_keeps_no_spool_open_that_a_thread_of_its_parents_had_off(tmp_path: Path) -> None:
    writer = SharedWriter(tmp_path, janitor=False, flush_interval=3600)
    writer.write(b"opaque")
    assert writer.flush()
    lock = directory_lock(tmp_path)
    flushing = threading.Thread(target=writer.flush, args=(60,))
    flushing.start()
    wait_until(lambda: not writer._session._outbox.aside.ready)

    def look() -> None:
        os.close(lock)
        numbers = os.listdir("/proc/self/fd")
        files = [
            os.readlink(f"/proc/self/fd/{number}") for number in numbers if os.path.exists(f"/proc/self/fd/{number}")
        ]
        assert not [file for file in files if file.startswith(str(tmp_path))]

    assert reap(fork(look)) == 0
    flock(lock, LOCK_UN)
    os.close(lock)
    flushing.join(60)
    assert writer.close()


# What is in the main spool is elder than what is aside, but the main spool itself may be younger: replaced by a larger
# one, or made only after a signal handler had interrupted the very first record. Others went by that.
def test_others_flush_the_main_spool_before_an_elder_one_aside(tmp_path: Path) -> None:
    def work() -> None:
        writer = SharedWriter(
            tmp_path, janitor=False, flush_interval=3600, lock_timeout=0.01, spool_bytes=4096, buffer_size=4096
        )
        writer.write(b"opaque")
        writer.write(b"x" * 5000 + b"\n")
        assert writer.flush()
        directory_lock(tmp_path)
        writer.write(b"first\n")
        writer.write(b"second\nthird\n")
        os.kill(os.getpid(), signal.SIGKILL)

    assert reap(fork(work)) == -signal.SIGKILL
    with read_lines(tmp_path, unflushed=True) as reader:
        assert list(reader)[1:] == [b"first\n", b"second\n", b"third\n"]
    recover(tmp_path)
    assert lines_in(tmp_path).endswith(b"x\nfirst\nsecond\nthird\n")


# One thread has the youngest spool off, another gives back an elder one just then: a third, whose last event is in the
# youngest, put its next one into the elder.
def test_events_of_a_thread_keep_their_order_whatever_others_have_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = JSONLExporter(tmp_path, janitor=False)
    exporter.emit({"worker": 2, "seq": 0})
    outbox = exporter._writer._session._outbox
    append = Spool.append
    paused = {b'{"worker":%d,"seq":1}\n' % worker: (threading.Event(), threading.Event()) for worker in (1, 2)}

    def slow(spool: Spool, record: bytes) -> bool:
        if record in paused:
            there, go_on = paused[record]
            there.set()
            assert go_on.wait(10)
        return append(spool, record)

    monkeypatch.setattr(Spool, "append", slow)
    threads = {record: threading.Thread(target=outbox.append_aside, args=(record,)) for record in paused}
    assert outbox.append_aside(b'{"worker":1,"seq":0}\n')
    (elder, (elder_there, elder_goes)), (younger, (younger_there, younger_goes)) = paused.items()
    threads[elder].start()  # takes the first spool off
    assert elder_there.wait(10)
    assert outbox.append_aside(b'{"worker":0,"seq":0}\n')  # into a second one
    threads[younger].start()  # takes that off
    assert younger_there.wait(10)
    elder_goes.set()
    threads[elder].join(10)
    assert outbox.append_aside(b'{"worker":0,"seq":1}\n')
    younger_goes.set()
    threads[younger].join(10)
    assert exporter.flush()
    assert len(outbox.aside.ready) == 1
    assert exporter.close()
    check_log(tmp_path, {0: 2, 1: 2, 2: 2})


# What a process without a spool file cannot flush at its end is lost: it must not look as if it were not.
@pytest.mark.parametrize("record", [b"a line\n", b"opaque"])
def test_what_close_cannot_flush_from_memory_is_counted_as_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, record: bytes
) -> None:
    with SharedWriter(tmp_path, janitor=False) as other:
        other.write(b"first\n")
        assert other.flush()

        def no_space(*arguments: Any, **options: Any) -> Spool:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Spool, "create", no_space)
        writer = SharedWriter(tmp_path, janitor=False, flush_interval=3600, lock_timeout=0.02)
        lock = directory_lock(tmp_path)
        writer.write(record)
        writer.write(record)
        assert writer.stats()["events"] == 2
        assert not writer.close()
        os.close(lock)
    assert (writer.stats()["events"], writer.stats()["dropped"]) == (0, {"no_spool_file": 2})
    assert "2 events were dropped at close" in caplog.text
    assert lines_in(tmp_path) == b"first\n"


# A signal handler that emitted in the middle of an append aside made a younger spool. The append, which had the elder
# ones off, had then nowhere to go where no further spool was allowed, and its event was dropped.
def test_an_append_that_was_interrupted_goes_behind_what_came_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = JSONLExporter(tmp_path, janitor=False, buffer_size=4096, spool_bytes=4096)
    exporter.emit({"worker": 0, "seq": 0})
    outbox = exporter._writer._session._outbox
    assert outbox.append_aside(b'{"worker":0,"seq":1}\n')
    behind = Aside._append_behind
    interrupted: list[bool] = []

    def interrupt(this: Aside, taken: list[Spool], record: bytes) -> bool:
        if not interrupted:
            interrupted.append(True)
            assert this.append(b'{"worker":1,"seq":0}\n')
        return behind(this, taken, record)

    monkeypatch.setattr(Aside, "_append_behind", interrupt)
    assert outbox.append_aside(b'{"worker":0,"seq":2}\n')
    assert interrupted
    assert exporter.close()
    check_log(tmp_path, {0: 3, 1: 1})
