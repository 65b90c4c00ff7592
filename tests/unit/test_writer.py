"""One process's writer: what is on disk when, where segments end, who may read them, and what it does not follow."""

from __future__ import annotations

import gc
import gzip
import math
import os
import pickle
import random
import shutil
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from errno import ENOENT
from pathlib import Path
from typing import Any

import pytest
from processes import fork, reap, wait_until
from raw_files import open_descriptors

from profilis_mp import LockTimeout, Segment, SharedWriter, recover
from profilis_mp.account import segments_of
from profilis_mp.sharedlog.control import Control
from profilis_mp.sharedlog.lock import KeptLock
from profilis_mp.sharedlog.names import SegmentNames
from profilis_mp.sharedlog.stream import StreamPaths

TEMPLATE = "profilis-{timestamp}.jsonl"
SECOND = 10**9
MOMENT = 1_735_300_800 * SECOND
FIRST_NAME = "profilis-20241227-120000.jsonl"
SECOND_NAME = "profilis-20241227-120000_001.jsonl"

MakeWriter = Callable[..., SharedWriter]


class Clock:
    """A clock that a test steers."""

    def __init__(self, now_ns: int = MOMENT) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / "logs"


@pytest.fixture
def make(logs: Path) -> Iterator[MakeWriter]:
    """Writers whose helper sleeps, so that only what the test calls happens, and whose clock stands still."""
    made: list[SharedWriter] = []

    def make_writer(directory: Path = logs, **arguments: Any) -> SharedWriter:
        writer = SharedWriter(directory, **{"flush_interval": 1e6, "clock": Clock(), **arguments})
        made.append(writer)
        return writer

    yield make_writer
    for writer in made:
        writer.close(5.0)


def paths_of(writer: SharedWriter, template: str = TEMPLATE) -> StreamPaths:
    return StreamPaths(writer.dir, SegmentNames(template).stream)


def spool_files(writer: SharedWriter) -> list[str]:
    return [f"{root}/{name}" for root, _, names in os.walk(writer.dir) for name in names if root.endswith("/spool")]


def contents(directory: object) -> list[bytes]:
    """What each segment holds, in the order of writing."""
    return [Path(path).read_bytes() for path in segments_of(str(directory))]


def held_lock(writer: SharedWriter, template: str = TEMPLATE) -> KeptLock:
    """The directory lock, as another process would hold it."""
    lock = KeptLock(paths_of(writer, template).lock, 0o600)
    lock.acquire(5.0)
    return lock


def running_threads() -> set[str]:
    """Threads of this process, whoever started them and however."""
    return set(os.listdir("/proc/self/task"))


# Write, flush, close.


def test_record_waits_in_the_spool_until_it_is_flushed(make: MakeWriter) -> None:
    writer = make()
    writer.write(b"line\n")
    (spool,) = spool_files(writer)
    assert b"line\n" in Path(spool).read_bytes()
    assert contents(writer.dir) == []
    assert writer.stats() == {
        "events": 1,
        "dropped": {},
        "flushes": 0,
        "flush_failures": {},
        "aside": 0,
        "unflushed_bytes": 5,
        "spool": "file",
        "leading": False,
    }
    assert writer.flush()
    assert contents(writer.dir) == [b"line\n"]
    assert writer.current_path == f"{writer.dir}/{FIRST_NAME}"
    assert (writer.stats()["flushes"], writer.stats()["unflushed_bytes"]) == (1, 0)


def test_nothing_is_on_disk_before_the_first_record(make: MakeWriter, tmp_path: Path) -> None:
    writer = make()
    assert writer.flush()
    writer.write(b"")
    assert writer.current_path is None
    assert writer.next_path() == f"{writer.dir}/{FIRST_NAME}"
    assert writer.close()
    assert list(tmp_path.iterdir()) == []


def test_rotate_before_the_first_record_creates_nothing(make: MakeWriter, tmp_path: Path) -> None:
    """A master that only rotates may still have privileges to drop: what it created its workers could not write."""
    assert make().rotate() is None
    assert list(tmp_path.iterdir()) == []


def test_writer_flushes_by_itself_once_more_than_the_buffer_waits(make: MakeWriter) -> None:
    writer = make(buffer_size=100)
    for number in range(10):
        writer.write(b"%09d\n" % number)
    assert contents(writer.dir) == []
    writer.write(b"%09d\n" % 10)
    assert contents(writer.dir) == [b"".join(b"%09d\n" % number for number in range(11))]


def test_spool_starts_at_the_front_again_after_each_flush(make: MakeWriter) -> None:
    writer = make(spool_bytes=1000, buffer_size=1000)
    for number in range(50):
        writer.write(b"%099d\n" % number)
        assert writer.flush()
    assert writer.stats()["dropped"] == {}
    (spool,) = spool_files(writer)
    assert os.path.getsize(spool) == 4096 + 1000
    assert len(contents(writer.dir)[0]) == 5000


@pytest.mark.parametrize("record", ["line\n", None, 7, bytearray(b"line\n"), memoryview(b"line\n"), [b"line\n"]])
def test_what_is_not_bytes_is_a_type_error_and_writes_nothing(make: MakeWriter, tmp_path: Path, record: Any) -> None:
    writer = make()
    with pytest.raises(TypeError, match=type(record).__name__):
        writer.write(record)
    assert list(tmp_path.iterdir()) == []


def test_close_flushes_and_leaves_no_spool_no_thread_and_no_descriptor(make: MakeWriter) -> None:
    gc.collect()
    threads = running_threads()
    writer = make()
    writer.write(b"line\n")
    (helper,) = running_threads() - threads
    assert writer.close()
    assert contents(writer.dir) == [b"line\n"]
    assert spool_files(writer) == []
    wait_until(lambda: helper not in running_threads())
    assert open_descriptors(writer.dir) == 0


def test_close_twice_is_closed(make: MakeWriter) -> None:
    writer = make()
    writer.write(b"line\n")
    assert [writer.close(), writer.close(), writer.close(0.0)] == [True, True, True]
    assert contents(writer.dir) == [b"line\n"]


def test_close_without_a_limit_of_time_closes(make: MakeWriter) -> None:
    writer = make()
    writer.write(b"line\n")
    assert writer.flush(math.inf)
    assert writer.close(math.inf)


def test_record_written_after_close_is_on_disk_at_once(make: MakeWriter) -> None:
    writer = make()
    writer.write(b"before\n")
    writer.close()
    threads = running_threads()
    writer.write(b"after\n")
    assert contents(writer.dir) == [b"before\nafter\n"]
    writer.write(b"opaque, after")
    assert contents(writer.dir) == [b"before\nafter\nopaque, after"]
    assert writer.stats()["events"] == 3
    assert running_threads() <= threads
    assert writer.close()
    assert spool_files(writer) == []


def test_record_written_after_close_waits_in_a_spool_while_the_lock_is_busy(make: MakeWriter) -> None:
    writer = make(lock_timeout=0.0)
    writer.write(b"before\n")
    writer.close()
    lock = held_lock(writer)
    writer.write(b"after\n")
    assert writer.stats()["unflushed_bytes"] == 6
    lock.close()
    writer.write(b"later\n")
    assert contents(writer.dir) == [b"before\nafter\nlater\n"]


def test_block_closes_the_writer_even_when_it_fails(make: MakeWriter) -> None:
    writer = make()
    error = RuntimeError()

    def fail() -> None:
        with writer as same:
            assert same is writer
            same.write(b"line\n")
            raise error

    with pytest.raises(RuntimeError) as caught:
        fail()
    assert caught.value is error
    assert contents(writer.dir) == [b"line\n"]
    assert spool_files(writer) == []


def test_forgotten_writer_is_closed_by_the_collector(logs: Path) -> None:
    threads = running_threads()
    writer = SharedWriter(logs, flush_interval=1e6)
    writer.write(b"line\n")
    del writer
    gc.collect()
    assert contents(logs) == [b"line\n"]
    wait_until(lambda: running_threads() <= threads)


def test_closing_and_writing_again_and_again_leaks_no_descriptor(make: MakeWriter) -> None:
    writer = make()

    def once() -> int:
        writer.write(b"line\n")
        writer.write(b"opaque")
        writer.rotate()
        writer.close()
        return open_descriptors(writer.dir)

    once()
    before = once()
    assert max(once() for _ in range(5)) <= before


def test_segment_sealed_by_another_process_leaves_no_descriptor_open(make: MakeWriter) -> None:
    """The helper seals by age, another process by rotate(); either way this process's descriptor is of no more use,
    and keeps the disk space of a segment that was deleted since."""
    writer, other = make(), make()
    counts = []
    for _ in range(8):
        writer.write(b"line\n")
        assert writer.flush()
        other.rotate()
        counts.append(open_descriptors(writer.dir))
    assert counts[-1] <= counts[2], counts


def test_full_spool_drops_the_new_record_and_counts_why(make: MakeWriter, caplog: pytest.LogCaptureFixture) -> None:
    writer = make(spool_bytes=100, buffer_size=100, lock_timeout=0.01)
    writer.write(b"first\n")
    writer.flush()
    lock = held_lock(writer)
    for number in range(15):
        writer.write(b"%09d\n" % number)
    stats = writer.stats()
    assert (stats["events"], stats["dropped"]) == (11, {"lock_timeout": 5})
    assert not writer.flush(0.0)
    lock.close()
    writer.write(b"last\n")
    assert writer.flush()
    assert contents(writer.dir) == [b"first\n" + b"".join(b"%09d\n" % number for number in range(10)) + b"last\n"]
    assert sum("dropped" in record.message for record in caplog.records) == 1


def test_statistics_may_be_asked_for_from_another_thread_at_any_time(make: MakeWriter) -> None:
    """A thread that exports metrics, while records outgrow one spool after another."""
    writer = make(spool_bytes=64, buffer_size=64)
    stop = threading.Event()
    errors: list[Exception] = []

    def watch() -> None:
        while not stop.is_set():
            try:
                writer.stats()
            except Exception as error:
                errors.append(error)
                return

    watcher = threading.Thread(target=watch)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        watcher.start()
        for _ in range(60):
            for size in range(7, 13):
                writer.write(b"x" * (1 << size) + b"\n")
            writer.close()
            if errors:
                break
    finally:
        stop.set()
        watcher.join()
        sys.setswitchinterval(interval)
    assert not errors, errors


def test_spool_that_neither_disk_nor_memory_can_hold_raises_nothing_into_the_application(make: MakeWriter) -> None:
    writer = make(spool_bytes=1 << 50)
    writer.write(b"line\n")
    assert writer.stats()["events"] + sum(writer.stats()["dropped"].values()) == 1


def test_directory_whose_name_is_not_unicode_is_a_directory_like_any_other(make: MakeWriter, tmp_path: Path) -> None:
    writer = make(tmp_path / os.fsdecode(b"logs-\xff\xfe"))
    writer.write(b"line\n")
    assert writer.close()
    assert contents(writer.dir) == [b"line\n"]


# Where to.


def test_current_path_is_none_while_there_is_no_active_segment(make: MakeWriter) -> None:
    writer = make()
    writer.write(b"line\n")
    assert writer.current_path is None
    writer.flush()
    assert writer.current_path == f"{writer.dir}/{FIRST_NAME}"
    assert writer.next_path() == f"{writer.dir}/{SECOND_NAME}"
    writer.rotate()
    assert writer.current_path is None
    assert writer.next_path() == f"{writer.dir}/{SECOND_NAME}"
    writer.write(b"line\n")
    writer.flush()
    assert writer.current_path == f"{writer.dir}/{SECOND_NAME}"


def test_rotate_seals_what_is_there_and_nothing_twice(make: MakeWriter) -> None:
    writer = make()
    writer.write(b"one\n")
    assert writer.rotate() == Segment(f"{writer.dir}/{FIRST_NAME}", 4)
    assert writer.rotate() is None
    writer.write(b"two\n")
    assert writer.rotate() == Segment(f"{writer.dir}/{SECOND_NAME}", 4)
    assert contents(writer.dir) == [b"one\n", b"two\n"]


def test_rotate_seals_what_another_process_wrote(make: MakeWriter) -> None:
    one, other = make(), make()
    one.write(b"one\n")
    one.flush()
    assert other.rotate() == Segment(f"{one.dir}/{FIRST_NAME}", 4)


def test_rotate_after_close_still_rotates(make: MakeWriter) -> None:
    writer = make()
    writer.write(b"one\n")
    writer.close()
    assert writer.rotate() == Segment(f"{writer.dir}/{FIRST_NAME}", 4)


def test_rotate_that_finds_the_lock_busy_seals_nothing(make: MakeWriter) -> None:
    writer = make()
    writer.write(b"one\n")
    writer.flush()
    writer.write(b"two\n")
    lock = held_lock(writer)
    for timeout_s in (0.0, 0.01):
        with pytest.raises(LockTimeout) as caught:
            writer.rotate(timeout_s=timeout_s)
        assert caught.value.path == paths_of(writer).lock
    assert writer.current_path == f"{writer.dir}/{FIRST_NAME}"
    assert contents(writer.dir) == [b"one\n"]
    lock.close()
    assert writer.rotate() == Segment(f"{writer.dir}/{FIRST_NAME}", 8)


def test_pickled_writer_writes_the_same_stream_with_a_state_of_its_own(logs: Path) -> None:
    arguments: dict[str, Any] = {"rotate_bytes": 1000, "app_name": "a", "file_mode": 0o600, "flush_interval": 1e6}
    with SharedWriter(logs, filename_template="{app_name}-{index}.log", **arguments) as writer:
        writer.write(b"parent, before\n")
        with pickle.loads(pickle.dumps(writer)) as again:
            assert type(again) is SharedWriter
            assert again.stats()["events"] == 0
            again.write(b"copy\n")
            assert len(spool_files(writer)) == 2
        writer.write(b"parent, after\n")
    assert contents(logs) == [b"copy\nparent, before\nparent, after\n"]
    (segment,) = segments_of(str(logs))
    assert os.path.basename(segment) == "a-001.log"
    assert stat.S_IMODE(os.stat(segment).st_mode) == 0o600


def test_closed_writer_pickles_too(make: MakeWriter) -> None:
    writer = make()
    writer.write(b"one\n")
    writer.close()
    again = pickle.loads(pickle.dumps(writer))
    again.write(b"two\n")
    assert again.close()
    assert contents(writer.dir) == [b"one\ntwo\n"]


# Opaque records.


def opaque_records(dice: random.Random, count: int) -> list[bytes]:
    """Each is recognisable wherever it lies: none is part of another."""
    kinds = [
        lambda size: b"x" * size,
        lambda size: b"\n" * (size % 9),
        lambda size: b"a\nb\n" * (size // 4),
        lambda size: b"line\n" + b"y" * size,
    ]
    return [b"<%d:" % number + dice.choice(kinds)(dice.randrange(200)) + b">" for number in range(count)]


def test_opaque_records_are_appended_whole_and_never_split_over_segments(make: MakeWriter) -> None:
    dice = random.Random(5)
    records = opaque_records(dice, 120)
    writer = make(rotate_bytes=400, buffer_size=300, spool_bytes=1000)
    for record in records:
        writer.write(record)
        if dice.random() < 0.2:
            writer.flush()
    assert writer.close()
    segments = contents(writer.dir)
    assert b"".join(segments) == b"".join(records)
    for record in records:
        assert sum(segment.count(record) for segment in segments) == 1
    assert len(segments) > 10
    assert max(map(len, segments)) <= 400


def test_gzip_members_decompress_segment_by_segment(make: MakeWriter) -> None:
    writer = make(rotate_bytes=600, filename_template="profilis-{timestamp}.jsonl.gz")
    lines = [b'{"number":%d}\n' % number for number in range(60)]
    for line in lines:
        writer.write(gzip.compress(line))
    writer.close()
    segments = contents(writer.dir)
    assert len(segments) > 3
    assert [line for segment in segments for line in gzip.decompress(segment).splitlines(keepends=True)] == lines


def test_lines_and_opaque_records_stay_in_order(make: MakeWriter) -> None:
    dice = random.Random(6)
    writer = make(rotate_bytes=500, buffer_size=300, spool_bytes=600)
    records = [b"%d%s" % (number, dice.choice([b"\n", b" ", b"\n\n", b"\n "])) for number in range(300)]
    for record in records:
        writer.write(record)
    writer.close()
    assert b"".join(contents(writer.dir)) == b"".join(records)


def test_opaque_records_stay_in_order_while_the_lock_is_busy(make: MakeWriter) -> None:
    """They wait in several spools then, and the spools must be flushed in the order in which they were filled."""
    writer = make(lock_timeout=0.0)
    writer.write(b"line\n")
    writer.flush()
    lock = held_lock(writer)
    records = [b"%d" % number * size for number, size in enumerate((40_000, 40_000, 40_000, 9_000, 30_000, 500))]
    for record in records:
        writer.write(record)
    lock.close()
    assert writer.flush()
    order = list(dict.fromkeys(contents(writer.dir)[0][5:].decode()))
    assert order == list("012345")


def test_line_written_after_an_opaque_record_stays_behind_it_while_the_lock_is_busy(make: MakeWriter) -> None:
    writer = make(lock_timeout=0.0)
    writer.write(b"0\n")
    writer.flush()
    lock = held_lock(writer)
    for record in (b"1\n", b"2 opaque ", b"3\n", b"4 opaque ", b"5\n"):
        writer.write(record)
    lock.close()
    writer.write(b"6\n")
    assert writer.flush()
    assert contents(writer.dir) == [b"0\n1\n2 opaque 3\n4 opaque 5\n6\n"]


# Sizes.


@pytest.mark.parametrize("ending", [b"\n", b"!"])
def test_record_larger_than_the_spool_gets_a_larger_spool(make: MakeWriter, ending: bytes) -> None:
    writer = make(spool_bytes=1000, buffer_size=1000)
    records = [b"small\n", b"x" * 300_000 + ending, b"small again\n", b"y" * 700_000 + ending, b"end\n"]
    for record in records:
        writer.write(record)
    assert writer.stats()["dropped"] == {}
    assert writer.stats()["spool"] == "file"
    assert writer.close()
    assert b"".join(contents(writer.dir)) == b"".join(records)
    assert spool_files(writer) == []


@pytest.mark.parametrize("ending", [b"\n", b"!"])
def test_record_larger_than_a_segment_has_one_alone(make: MakeWriter, ending: bytes) -> None:
    writer = make(rotate_bytes=100)
    large = b"x" * 500 + ending
    for record in (b"one\n", b"two\n", large, b"three\n", large, large, b"four\n"):
        writer.write(record)
    assert writer.close()
    assert contents(writer.dir) == [b"one\ntwo\n", large, b"three\n", large, large, b"four\n"]


def test_segment_takes_what_fits_to_the_last_byte(make: MakeWriter) -> None:
    writer = make(rotate_bytes=10)
    for record in (b"1234\n", b"6789\n", b"b\n", b"12345678\n", b"c\n"):
        writer.write(record)
        writer.flush()
    assert contents(writer.dir) == [b"1234\n6789\n", b"b\n", b"12345678\n", b"c\n"]


@pytest.mark.parametrize("seed", range(4))
def test_no_segment_is_larger_than_allowed_but_for_one_record_alone(make: MakeWriter, seed: int) -> None:
    dice = random.Random(seed)
    writer = make(rotate_bytes=300, buffer_size=dice.choice([100, 1000, 5000]), spool_bytes=6000)
    records = [b"%d:" % number + b"x" * dice.choice([3, 40, 290, 300, 900]) + b"\n" for number in range(150)]
    for record in records:
        writer.write(record)
        if dice.random() < 0.1:
            writer.flush()
    writer.close()
    segments = contents(writer.dir)
    assert b"".join(segments) == b"".join(records)
    for segment in segments:
        assert len(segment) <= 300 or segment.count(b"\n") == 1


# Ages.


def test_segment_is_rotated_when_its_age_is_reached_and_not_before(make: MakeWriter) -> None:
    clock = Clock()
    writer = make(rotate_secs=60, clock=clock)
    for seconds in (0, 30, 59.999, 60, 61, 119.999, 180):
        clock.now_ns = MOMENT + int(seconds * SECOND)
        writer.write(b"%d\n" % int(seconds))
        writer.flush()
    assert contents(writer.dir) == [b"0\n30\n59\n", b"60\n61\n119\n", b"180\n"]
    assert [os.path.basename(path) for path in segments_of(writer.dir)] == [
        FIRST_NAME,
        "profilis-20241227-120100.jsonl",
        "profilis-20241227-120300.jsonl",
    ]


def test_clock_that_steps_back_rotates_at_most_once_and_names_move_forward(make: MakeWriter) -> None:
    clock = Clock()
    writer = make(rotate_secs=60, clock=clock)
    for step in (0, -30, -3600, -3590, -3541, -3540, -(10**6), 0):
        clock.now_ns = MOMENT + step * SECOND
        writer.write(b"%d\n" % step)
        assert writer.flush()
    assert contents(writer.dir) == [b"0\n-30\n", b"-3600\n-3590\n-3541\n", b"-3540\n", b"-1000000\n", b"0\n"]
    names = [os.path.basename(path) for path in segments_of(writer.dir)]
    assert sorted(names) == names
    assert names[:2] == [FIRST_NAME, SECOND_NAME]


def test_helper_seals_an_aged_segment_though_nobody_writes(make: MakeWriter) -> None:
    clock = Clock()
    writer = make(rotate_secs=60, flush_interval=0.02, clock=clock)
    writer.write(b"line\n")
    wait_until(lambda: contents(writer.dir) == [b"line\n"])
    wait_until(lambda: writer.stats()["leading"])
    path = writer.current_path
    assert path is not None
    clock.now_ns += 60 * SECOND
    wait_until(lambda: writer.current_path is None)
    writer.write(b"later\n")
    wait_until(lambda: contents(writer.dir) == [b"line\n", b"later\n"])
    assert writer.current_path == f"{writer.dir}/profilis-20241227-120100.jsonl"


def test_empty_stream_is_not_rotated_by_age(make: MakeWriter) -> None:
    clock = Clock()
    writer = make(rotate_secs=60, clock=clock)
    writer.write(b"line\n")
    writer.rotate()
    clock.now_ns += 3600 * SECOND
    assert writer.rotate() is None
    assert contents(writer.dir) == [b"line\n"]


# Sharing a directory.


def test_streams_in_one_directory_do_not_disturb_each_other(make: MakeWriter) -> None:
    templates = [TEMPLATE, "profilis-{timestamp}-{index}.jsonl", "{app_name}-{index:d}.jsonl", "{timestamp:%Y}.log"]
    writers = [make(filename_template=template, app_name="profilis", rotate_bytes=40) for template in templates]
    for number in range(30):
        for stream, writer in enumerate(writers):
            writer.write(b"%d:%d\n" % (stream, number))
            if (number + stream) % 7 == 0:
                writer.rotate()
    for writer in writers:
        assert writer.close()
    for stream, template in enumerate(templates):
        names = SegmentNames(template, "profilis")
        own = sorted(filter(None, map(names.parse, os.listdir(writers[0].dir))), key=lambda name: name.age())
        written = b"".join((Path(writers[0].dir) / name.text).read_bytes() for name in own)
        assert written == b"".join(b"%d:%d\n" % (stream, number) for number in range(30))
        assert len(own) > 3
    assert len(os.listdir(f"{writers[0].dir}/.profilis-mp")) == len(templates)


def test_segment_of_one_stream_is_never_the_compressed_form_of_anothers(make: MakeWriter) -> None:
    """The user's page keeps plain and gzipped segments of the same name; compressing one must not meet the other."""
    plain, gzipped = make(), make(filename_template=f"{TEMPLATE}.gz")
    for _ in range(3):
        for writer in (plain, gzipped):
            writer.write(b"line\n")
            writer.rotate()
    plain_names, gzipped_names = SegmentNames(TEMPLATE), SegmentNames(f"{TEMPLATE}.gz")
    listing = os.listdir(plain.dir)
    assert sum(gzipped_names.parse(text) is not None for text in listing) == 3
    for text in listing:
        if plain_names.parse(text) is not None:
            assert f"{text}.gz" not in listing


def test_writers_of_one_stream_that_disagree_on_limits_keep_everything(make: MakeWriter) -> None:
    small, large = make(rotate_bytes=50), make(rotate_bytes=400, file_mode=0o600)
    for number in range(100):
        for name, writer in ((b"small", small), (b"large", large)):
            writer.write(b"%s %d\n" % (name, number))
            writer.flush()
    segments = contents(small.dir)
    lines = b"".join(segments).splitlines()
    for name in (b"small", b"large"):
        assert [line for line in lines if line.startswith(name)] == [b"%s %d" % (name, number) for number in range(100)]
    assert max(map(len, segments)) <= 400


def test_template_with_a_host_name_keeps_one_control_file_for_all_its_processes(make: MakeWriter) -> None:
    """A name that is not recognised makes each process take the other's control file for damaged, at every turn."""
    template = "{timestamp}-{hostname}.jsonl"
    one, other = make(filename_template=template), make(filename_template=template)
    for _ in range(3):
        for writer in (one, other):
            writer.write(b"line\n")
            assert writer.flush()
    assert not [name for name in os.listdir(paths_of(one, template).state) if ".bad-" in name]
    assert contents(one.dir) == [b"line\n" * 6]


@pytest.mark.parametrize(
    "name",
    [
        "profilis-99991231-235959.jsonl",
        "profilis-20241227-120000_99999999999999999999999.jsonl",
        "profilis-20241227-120000_999999999999.jsonl.gz",
        "profilis-00000000-000000.jsonl",
        "profilis-19691231-235959.jsonl",
        ".profilis-mp.bad",
    ],
)
def test_odd_file_in_the_directory_raises_nothing_into_the_application(make: MakeWriter, logs: Path, name: str) -> None:
    logs.mkdir()
    (logs / name).write_bytes(b"not ours\n")
    writer = make()
    writer.write(b"line\n")
    assert writer.flush()
    assert writer.current_path is not None
    assert Path(writer.current_path).read_bytes() == b"line\n"
    assert (logs / name).read_bytes() == b"not ours\n"


# Who may read, and what is not followed.


def modes(root: str) -> dict[str, int]:
    found = {}
    for directory, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = os.path.join(directory, name)
            found[os.path.relpath(path, root)] = stat.S_IMODE(os.lstat(path).st_mode)
    return found


@pytest.mark.parametrize("umask", [0, 0o022, 0o027, 0o077])
@pytest.mark.parametrize("file_mode", [None, 0o600, 0o644, 0o777])
def test_modes_are_as_promised_whatever_the_umask(make: MakeWriter, umask: int, file_mode: int | None) -> None:
    old = os.umask(umask)
    try:
        writer = make(**({} if file_mode is None else {"file_mode": file_mode}), rotate_bytes=10)
        for _ in range(5):
            writer.write(b"line\n")
        writer.write(b"opaque")
        writer.flush()
        writer.write(b"in the spool\n")
    finally:
        os.umask(old)
    state = ".profilis-mp"
    for path, mode in modes(writer.dir).items():
        if not path.startswith(state):
            assert mode == (0o640 if file_mode is None else file_mode), path
        elif os.path.isdir(f"{writer.dir}/{path}"):
            assert mode == (0o770 if file_mode == 0o777 else 0o750), path
        else:
            assert mode == (0o666 if file_mode == 0o777 else 0o600), path


def files_outside(tmp_path: Path, inside: Path) -> set[str]:
    return {str(path) for path in tmp_path.rglob("*") if inside not in (path, *path.parents)}


@pytest.mark.parametrize(
    "app_name",
    [
        "{index}",
        "{timestamp}",
        "%2F%2E%2E%2F",
        "%",
        "~",
        "$HOME",
        "-rf *",
        " ",
        "a:b|c?",
        "\u202egpj",
        "\u6f22\u5b57",
        "e\u0301",
    ],
)
def test_odd_app_name_stays_within_the_directory_and_recovers(
    make: MakeWriter, tmp_path: Path, logs: Path, app_name: str
) -> None:
    template = "x{app_name}-{timestamp}.jsonl"
    assert reap(fork(lambda: make(filename_template=template, app_name=app_name).write(b"dead\n"))) == 0
    report = recover(logs)
    assert (report.dead_spools, report.failures) == (1, [])
    writer = make(filename_template=template, app_name=app_name)
    writer.write(b"line\n")
    assert writer.close()
    assert files_outside(tmp_path, logs) == set()
    segments = segments_of(str(logs))
    assert sorted(map(os.path.basename, segments)) == sorted(set(os.listdir(logs)) - {".profilis-mp"})
    assert all(os.path.basename(path).startswith(f"x{app_name}-20") for path in segments)
    assert sorted(contents(logs)) == [b"dead\n", b"line\n"]


def plant_symlink(path: Path, precious: Path) -> None:
    path.symlink_to(precious)


def plant_dangling_symlink(path: Path, precious: Path) -> None:
    path.symlink_to(precious.parent / "not-there-yet")


def plant_hard_link(path: Path, precious: Path) -> None:
    path.hardlink_to(precious)


def plant_directory(path: Path, precious: Path) -> None:
    path.mkdir()


def plant_pipe(path: Path, precious: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("plant", [plant_symlink, plant_dangling_symlink, plant_hard_link, plant_directory, plant_pipe])
def test_what_is_planted_at_the_next_segments_name_is_not_touched(
    make: MakeWriter, tmp_path: Path, logs: Path, plant: Callable[[Path, Path], None]
) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    logs.mkdir()
    writer = make()
    planted = Path(writer.next_path())
    plant(planted, precious)
    writer.write(b"one\n")
    assert writer.flush()
    assert writer.current_path == f"{writer.dir}/{SECOND_NAME}"
    plant(Path(f"{writer.dir}/profilis-20241227-120000_002.jsonl"), precious)
    writer.rotate()
    writer.write(b"two\n")
    assert writer.flush()
    assert writer.current_path == f"{writer.dir}/profilis-20241227-120000_003.jsonl"
    assert precious.read_bytes() == b"precious"
    assert files_outside(tmp_path, logs) == {str(precious)}


def test_active_segment_replaced_by_a_symlink_is_not_followed_by_a_new_process(
    make: MakeWriter, tmp_path: Path
) -> None:
    writer = make()
    writer.write(b"one\n")
    writer.close()
    segment, precious = Path(f"{writer.dir}/{FIRST_NAME}"), tmp_path / "precious"
    segment.rename(precious)
    segment.symlink_to(precious)
    other = make()
    other.write(b"two\n")
    assert other.flush()
    assert precious.read_bytes() == b"one\n"
    assert Path(f"{writer.dir}/{SECOND_NAME}").read_bytes() == b"two\n"


@pytest.mark.parametrize("removed", [False, True], ids=["replaced", "removed"])
def test_directory_that_goes_while_something_is_made_in_it_does_not_cost_the_spool_its_file(
    make: MakeWriter, logs: Path, monkeypatch: pytest.MonkeyPatch, removed: bool
) -> None:
    """Two of root's processes started at the same moment, one renamed its empty directory over the other's: ENOENT. The
    other kept its events in memory then, and lost them when it was killed."""
    real_mkdir, real_open = os.mkdir, os.open
    step, steps = 0, 0

    def go(path: str) -> None:
        nonlocal steps
        steps += path.startswith(f"{logs}")
        if steps == step:
            steps += 1
            if removed:
                shutil.rmtree(logs, ignore_errors=True)
            raise FileNotFoundError(ENOENT, "No such file or directory", path)

    def mkdir(path: str, mode: int = 0o777) -> None:
        go(path)
        real_mkdir(path, mode)

    def opened(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_CREAT:
            go(path)
        return real_open(path, flags, mode, dir_fd=dir_fd)

    while steps >= step:
        step, steps = step + 1, 0
        shutil.rmtree(logs, ignore_errors=True)
        writer = make()
        with monkeypatch.context() as patch:
            patch.setattr(os, "mkdir", mkdir)
            patch.setattr(os, "open", opened)
            writer.write(b"one\n")
        assert writer.stats()["spool"] == "file", step
        assert writer.close()
        assert contents(logs) == [b"one\n"]
    assert step > 3


@pytest.mark.parametrize("part", ["", f"/{TEMPLATE}", f"/{TEMPLATE}/spool"])
@pytest.mark.parametrize("kind", ["symlink", "file"])
def test_state_directory_that_is_none_is_refused_and_events_are_kept(
    make: MakeWriter, tmp_path: Path, logs: Path, part: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = Path(f"{logs}/.profilis-mp{part}")
    path.parent.mkdir(parents=True)
    if kind == "symlink":
        path.symlink_to(elsewhere)
    else:
        path.write_text("a file")
    writer = make(lock_timeout=0.0)
    writer.write(b"one\n")
    writer.write(b"opaque")
    assert not writer.flush()
    assert not writer.flush()
    stats = writer.stats()
    assert (stats["spool"], stats["unflushed_bytes"] >= 10, stats["dropped"]) == ("memory", True, {})
    assert sum(stats["flush_failures"].values()) >= 1
    assert list(elsewhere.iterdir()) == []
    assert sum(str(path) in record.message for record in caplog.records) >= 1
    path.unlink()
    assert writer.flush()
    assert contents(logs) == [b"one\nopaque"]
    assert writer.stats()["spool"] == "file", "and events are safe again"


def test_symlink_in_the_place_of_lock_or_control_file_is_not_followed(make: MakeWriter, tmp_path: Path) -> None:
    writer = make(lock_timeout=0.0)
    writer.write(b"one\n")
    writer.flush()
    writer.close()
    for name in ("lock", "control"):
        original, moved = Path(f"{paths_of(writer).state}/{name}"), tmp_path / name
        original.rename(moved)
        before = moved.read_bytes()
        original.symlink_to(moved)
        other = make(lock_timeout=0.0)
        other.write(b"two\n")
        other.flush()
        assert moved.read_bytes() == before
        assert other.stats()["dropped"] == {}
        if original.is_symlink():
            original.unlink()
            moved.rename(original)
        assert other.close()
    assert b"".join(contents(writer.dir)) == b"one\ntwo\ntwo\n"


# fsync.


class Syncs:
    """The fsync and fdatasync calls really made: (what, its size then, whether it was the active segment then).

    The functions of ``os`` are wrapped, not replaced. A tracer that counts system calls would tell the same, where
    there is one, but neither the file's size nor the control file's state at that moment.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, int, bool]] = []
        self.writer: SharedWriter | None = None
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self._wrapped(getattr(os, name)))

    def _wrapped(self, call: Callable[[int], None]) -> Callable[[int], None]:
        def counted(fd: int) -> None:
            path = os.readlink(f"/proc/self/fd/{fd}")
            active = self.writer is not None and self.writer.current_path == path
            size = os.fstat(fd).st_size if os.path.isfile(path) else -1
            call(fd)
            self.calls.append((os.path.basename(path), size, active))

        return counted

    def taken(self) -> list[tuple[str, int, bool]]:
        """The calls since the last look."""
        calls, self.calls = self.calls, []
        return calls


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> Syncs:
    return Syncs(monkeypatch)


DIRECTORY = ("logs", -1, False)


def test_fsync_never_never_syncs(make: MakeWriter, syncs: Syncs) -> None:
    writer = syncs.writer = make(rotate_bytes=20, fsync="never")
    for _ in range(10):
        writer.write(b"line\n")
        writer.write(b"opaque")
        writer.flush()
    writer.rotate()
    writer.close()
    assert syncs.taken() == []


def test_fsync_seal_syncs_a_segment_before_it_counts_as_sealed(make: MakeWriter, syncs: Syncs) -> None:
    writer = syncs.writer = make(rotate_bytes=10, fsync="seal")
    writer.write(b"one\n")
    writer.flush()
    assert syncs.taken() == [DIRECTORY]
    writer.write(b"three\n")
    writer.flush()
    assert syncs.taken() == []
    writer.write(b"full\n")
    writer.flush()
    assert syncs.taken() == [(FIRST_NAME, 10, True), DIRECTORY]
    writer.rotate()
    assert syncs.taken() == [(SECOND_NAME, 5, True)]
    assert writer.rotate() is None
    assert writer.close()
    assert syncs.taken() == []


def test_fsync_seal_syncs_a_segment_that_others_wrote(make: MakeWriter, syncs: Syncs) -> None:
    other = make(fsync="never")
    other.write(b"theirs\n")
    other.close()
    writer = syncs.writer = make(fsync="seal")
    assert writer.rotate() is not None
    assert syncs.taken() == [(FIRST_NAME, 7, True)]


def test_fsync_seal_is_kept_by_the_helper_that_seals_by_age(make: MakeWriter, syncs: Syncs) -> None:
    clock = Clock()
    writer = syncs.writer = make(rotate_secs=60, flush_interval=0.02, fsync="seal", clock=clock)
    writer.write(b"line\n")
    wait_until(lambda: contents(writer.dir) == [b"line\n"])
    clock.now_ns += 60 * SECOND
    wait_until(lambda: writer.current_path is None)
    assert syncs.taken() == [DIRECTORY, (FIRST_NAME, 5, True)]


def test_fsync_always_syncs_each_record_before_write_returns(make: MakeWriter, syncs: Syncs) -> None:
    writer = syncs.writer = make(fsync="always", rotate_bytes=12)
    writer.write(b"one\n")
    assert syncs.taken() == [DIRECTORY, (FIRST_NAME, 4, True)]
    writer.write(b"two\n")
    assert syncs.taken() == [(FIRST_NAME, 8, True)]
    writer.write(b"tri!")
    assert syncs.taken() == [(FIRST_NAME, 12, True)]
    writer.write(b"four\n")
    assert syncs.taken() == [(FIRST_NAME, 12, True), DIRECTORY, (SECOND_NAME, 5, True)]
    writer.close()
    assert syncs.taken() == []
    writer.write(b"late\n")
    assert syncs.taken() == [(SECOND_NAME, 10, True)]


def test_fsync_interval_syncs_what_was_committed_once_per_change(make: MakeWriter, syncs: Syncs) -> None:
    writer = syncs.writer = make(fsync="interval", flush_interval=0.02)

    def heartbeat() -> int:
        control = Control(paths_of(writer).control)
        try:
            return control.heartbeat_ns
        finally:
            control.close()

    def ticks(count: int) -> None:
        for _ in range(count):
            last = heartbeat()
            wait_until(lambda last=last: heartbeat() != last)

    writer.write(b"one\n")
    wait_until(lambda: (FIRST_NAME, 4, True) in syncs.calls)
    ticks(2)
    assert syncs.taken() == [DIRECTORY, (FIRST_NAME, 4, True)]
    ticks(3)
    assert syncs.taken() == [], "nothing new, nothing to sync"
    other = make(fsync="never")
    other.write(b"theirs\n")
    other.close()
    wait_until(lambda: (FIRST_NAME, 11, True) in syncs.calls)
    ticks(2)
    assert syncs.taken() == [(FIRST_NAME, 11, True)], "by whomever it was written"
