"""Reading a log directory: what is there, each event once, and what is said about the rest."""

from __future__ import annotations

import gzip
import os
import sys
import tempfile
import threading
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from processes import fork, reap, wait_until
from raw_files import open_descriptors

from profilis_mp import (
    ConfigError,
    JSONLExporter,
    LockTimeout,
    LogDirectoryError,
    SharedWriter,
    read_events,
    read_lines,
)
from profilis_mp.compression import PIECE_BYTES, compressor
from profilis_mp.reader import unflushed
from profilis_mp.reader.lines import LineSplitter
from profilis_mp.reader.listing import SegmentListing
from profilis_mp.reader.report import ReadReport
from profilis_mp.reader.sorting import Sorter
from profilis_mp.reader.walk import StreamReader
from profilis_mp.sharedlog.control import Control
from profilis_mp.sharedlog.inventory import SegmentFile, segment_files
from profilis_mp.sharedlog.lock import KeptLock
from profilis_mp.sharedlog.names import SegmentNames
from profilis_mp.sharedlog.spool import Spool
from profilis_mp.sharedlog.stream import StreamPaths

TEMPLATE = "profilis-{timestamp}.jsonl"
NEVER_S = 1e6  # a flush_interval at which no helper ever does anything


def numbered(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"kind": "FN", "seq": number} for number in range(start, start + count)]


def lines_of(events: list[Any]) -> bytes:
    return b"".join(orjson.dumps(event) + b"\n" for event in events)


def write_segments(directory: Path, *contents: bytes) -> list[Path]:
    """Plain segments as nobody's who writes any more, the eldest first."""
    paths = [directory / f"profilis-20260101-0000{number:02}.jsonl" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


def compress(path: Path, suffix: str = ".gz") -> Path:
    """As the janitor does it: complete under another name, then renamed, then the original goes."""
    packer = compressor(suffix)
    unfinished, packed = Path(f"{path}{suffix}.tmp"), Path(f"{path}{suffix}")
    unfinished.write_bytes(packer.compress(path.read_bytes()) + packer.flush())
    unfinished.rename(packed)
    path.unlink()
    return packed


def quiet_exporter(directory: Path, **options: Any) -> JSONLExporter:
    """One whose events stay in its spool until it is told to flush."""
    return JSONLExporter(directory, **{"flush_interval": NEVER_S, "buffer_size": 1 << 19, **options})


def test_newest_segments_are_read_and_what_comes_after_them(tmp_path: Path) -> None:
    write_segments(tmp_path, *(lines_of(numbered(10, start)) for start in (0, 10, 20, 30)))
    assert list(read_events(tmp_path, newest_segments=2)) == numbered(20, 20)
    assert list(read_events(tmp_path, newest_segments=9)) == numbered(40)
    with read_events(tmp_path, newest_segments=1, follow=True) as reader:
        assert [next(reader) for _ in range(10)] == numbered(10, 30)
        (tmp_path / "profilis-20260101-000004.jsonl").write_bytes(lines_of(numbered(1, 40)))
        assert [next(reader)] == numbered(1, 40)
    for wrong in (0, -1, 1.0, True, "1"):
        with pytest.raises(ConfigError, match="newest_segments"):
            read_events(tmp_path, newest_segments=wrong)  # type: ignore[arg-type]


# Segments in every form.


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_plain_and_compressed_segments_are_read_in_order(tmp_path: Path, suffix: str) -> None:
    paths = write_segments(tmp_path, *(lines_of(numbered(100, start)) for start in (0, 100, 200, 300)))
    compress(paths[0], suffix)
    compress(paths[2], suffix)
    reader = read_events(tmp_path)
    assert list(reader) == numbered(400)
    assert reader.report == ReadReport(events=400, segments=4, size=len(lines_of(numbered(400))))
    assert reader.report.complete


def test_segment_that_is_there_in_two_forms_is_read_once(tmp_path: Path) -> None:
    first, second = write_segments(tmp_path, lines_of(numbered(10)), lines_of(numbered(10, 10)))
    content = first.read_bytes()
    compress(first)
    first.write_bytes(content)
    (tmp_path / f"{second.name}.gz.tmp").write_bytes(b"half of i")
    assert list(read_events(tmp_path)) == numbered(20)


@pytest.mark.parametrize("moment", ["before the first event", "in the middle of the segment"])
def test_segment_compressed_under_the_reader_is_read_once(tmp_path: Path, moment: str) -> None:
    paths = write_segments(tmp_path, lines_of(numbered(50_000)), lines_of(numbered(50_000, 50_000)))
    reader = read_events(tmp_path)
    seen = [] if moment == "before the first event" else [next(reader)]
    for path in paths:
        compress(path)
    seen += reader
    assert seen == numbered(100_000)
    assert reader.report.complete


def test_segment_expired_under_the_reader_is_counted_unless_it_is_open(tmp_path: Path) -> None:
    paths = write_segments(tmp_path, *(lines_of(numbered(20_000, 20_000 * number)) for number in range(4)))
    reader = read_events(tmp_path)
    seen = [next(reader)]
    for path in paths[:3]:
        path.unlink()
    seen += reader
    assert seen == numbered(20_000) + numbered(20_000, 60_000)
    assert reader.report.expired_segments == 2
    assert paths[1].name in reader.report.findings[0]
    assert not reader.report.complete


def test_opaque_gzip_members_are_read_like_lines(tmp_path: Path) -> None:
    with SharedWriter(tmp_path, filename_template="x-{timestamp}.jsonl.gz", rotate_bytes=1000) as writer:
        for event in numbered(100):
            writer.write(gzip.compress(lines_of([event])))
    reader = read_events(tmp_path)
    assert list(reader) == numbered(100)
    assert reader.report.segments > 3
    assert reader.report.complete


def test_opaque_member_that_is_not_complete_yet_is_neither_error_nor_counted(tmp_path: Path) -> None:
    (tmp_path / "x-001.jsonl.gz").write_bytes(gzip.compress(lines_of(numbered(5))) + gzip.compress(b"[1]\n")[:11])
    reader = read_events(tmp_path, stream="x-{index}.jsonl.gz")
    assert list(reader) == numbered(5)
    assert reader.report.complete


def test_plain_lines_in_a_template_named_gz_are_read(tmp_path: Path) -> None:
    with JSONLExporter(tmp_path, filename_template="x-{timestamp}.jsonl.gz") as exporter:
        exporter.export(numbered(5))
    assert list(read_events(tmp_path)) == numbered(5)


def test_opaque_segments_compressed_once_more_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x-001.jsonl.gz"
    path.write_bytes(gzip.compress(lines_of(numbered(5))))
    compress(path, ".zst")
    assert list(read_events(tmp_path, stream="x-{index}.jsonl.gz")) == numbered(5)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_truncated_compressed_segment_is_read_as_far_as_it_goes_and_counted(tmp_path: Path, suffix: str) -> None:
    first, _ = write_segments(tmp_path, lines_of(numbered(50_000)), lines_of([{"last": 1}]))
    packed = compress(first, suffix)
    packed.write_bytes(packed.read_bytes()[:-20])
    reader = read_events(tmp_path)
    seen = list(reader)
    assert seen[:-1] == numbered(len(seen) - 1)
    assert seen[-1] == {"last": 1}
    assert len(seen) > 10_000
    assert reader.report.damaged_segments == 1
    assert "ends in the middle" in reader.report.findings[0]


def test_garbled_compressed_segment_is_counted_and_the_next_is_read(tmp_path: Path) -> None:
    first, _ = write_segments(tmp_path, lines_of(numbered(50_000)), lines_of([{"last": 1}]))
    packed = compress(first)
    content = bytearray(packed.read_bytes())
    content[len(content) // 2 :] = b"garbage" * (len(content) // 14)
    packed.write_bytes(content)
    reader = read_events(tmp_path)
    seen = list(reader)
    # deflate notices some bytes late: a few lines of nonsense can come out before it does.
    assert seen[:20_000] == numbered(20_000)
    assert seen[-1] == {"last": 1}
    assert reader.report.damaged_segments == 1
    assert packed.name in reader.report.findings[0]


def test_a_file_full_of_torn_lines_takes_no_more_steps_for_each_than_a_short_one(tmp_path: Path) -> None:
    def steps(lines: int) -> int:
        directory = tmp_path / str(lines)
        directory.mkdir()
        write_segments(directory, b"x\n" * lines)
        taken = 0

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal taken
            taken += 1

        reader = read_events(directory)
        sys.setprofile(count)
        try:
            assert list(reader) == []
        finally:
            sys.setprofile(None)
        assert reader.report.torn == lines
        return taken

    assert steps(8_000) < 3 * steps(4_000)


def test_missing_zstd_is_an_error_that_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = write_segments(tmp_path, lines_of(numbered(1)))
    compress(path, ".zst")
    import importlib

    def find(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", find)
    with pytest.raises(ImportError, match=r"pip install \"profilis_mp\[zstd\]\""):
        read_events(tmp_path)


def test_segment_that_may_not_be_read_is_an_error_and_not_a_gap(tmp_path: Path) -> None:
    (path,) = write_segments(tmp_path, lines_of(numbered(1)))
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(PermissionError):
        list(read_events(tmp_path))


# Lines.


def test_torn_and_foreign_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    paths = write_segments(tmp_path, b'{"a":1}\n{"b":\nnonsense\n\n{"c":3}\n{"torn', b'{"d":4}\n')
    reader = read_events(tmp_path)
    assert list(reader) == [{"a": 1}, {"c": 3}, {"d": 4}]
    assert reader.report.torn == 4
    assert reader.report.findings[1] == f"{paths[0]}: torn line at byte 14: b'nonsense'"
    assert reader.report.findings[3] == f"{paths[0]}: torn line at byte 32: b'{{\"torn'"


def test_last_line_of_the_active_segment_is_only_not_complete_yet(tmp_path: Path) -> None:
    with JSONLExporter(tmp_path) as exporter:
        exporter.emit({"a": 1})
        exporter.flush()
        with open(str(exporter.current_path), "ab") as segment:
            segment.write(b'{"b":')
        reader = read_events(tmp_path)
        assert list(reader) == [{"a": 1}]
        assert reader.report.complete


def test_last_line_of_a_segment_sealed_without_a_younger_one_is_torn(tmp_path: Path) -> None:
    with JSONLExporter(tmp_path) as exporter:
        exporter.emit({"a": 1})
        sealed = exporter.rotate()
        assert sealed is not None
        with open(sealed.path, "ab") as segment:
            segment.write(b'{"b":')
        reader = read_events(tmp_path)
        assert list(reader) == [{"a": 1}]
        assert reader.report.torn == 1


def test_events_that_are_no_dicts_come_as_they_are(tmp_path: Path) -> None:
    events = [1, "two", [3], None, True, 4.5, {"five": 5}]
    write_segments(tmp_path, lines_of(events))
    assert list(read_events(tmp_path)) == events


def test_lines_end_at_newlines_only(tmp_path: Path) -> None:
    events = ["a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g"]
    write_segments(tmp_path, lines_of(events) + b'{"a":1}\r\n')
    assert list(read_events(tmp_path)) == [*events, {"a": 1}]


@pytest.mark.parametrize("over", [0, 1])
def test_line_longer_than_the_limit_is_left_out_and_counted(tmp_path: Path, over: int) -> None:
    longest = 2 * PIECE_BYTES
    long = b'"' + b"x" * (longest - 2 + over) + b'"'
    write_segments(tmp_path, b'{"a":1}\n' + long + b'\n{"b":2}\n' + long, b"1\n")
    report = ReadReport()
    reader = StreamReader(str(tmp_path), SegmentNames(TEMPLATE), report, set(), longest=longest)
    lines = []
    while (batch := reader.read()) is not None:
        lines += batch.lines
    reader.close()
    assert lines == [b'{"a":1}', *([long] * (not over)), b'{"b":2}', b"1"]
    assert (report.oversize, report.torn) == (over, 1)
    if over:
        assert "the line at byte 8 is longer than" in report.findings[0]


@pytest.mark.parametrize("step", [1, 3, 7, 100])
def test_lines_do_not_depend_on_how_the_file_is_cut(step: int) -> None:
    content = b"one\n\nthree\nfour is longer\n" + b"five"
    splitter = LineSplitter()
    lines: list[bytes] = []
    for start in range(0, len(content), step):
        offset, found = splitter.feed(content[start : start + step])
        for line in found:
            assert content[offset : offset + len(line) + 1] == line + b"\n"
            offset += len(line) + 1
        lines += found
    assert lines == content.split(b"\n")[:-1]
    assert splitter.rest() == b"five"


# Which events.


@pytest.fixture
def timed(tmp_path: Path) -> Path:
    """Seven events, one per second from 2026-01-01 on, not in order, and three without a time."""
    events: list[Any] = [
        {"ts_ns": (1767225600 + second) * 10**9, "kind": "REQ" if second % 2 else "FN", "second": second}
        for second in (3, 1, 2, 0, 6, 5, 4)
    ]
    write_segments(tmp_path, lines_of([*events, {"kind": "FN"}, {"ts_ns": "1", "kind": "DB"}, [1]]))
    return tmp_path


def seconds(directory: Path, **options: Any) -> list[int]:
    return [event["second"] for event in read_events(directory, **options)]


@pytest.mark.parametrize(
    "moment",
    [
        lambda second: (1767225600 + second) * 10**9,
        lambda second: datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC),
        lambda second: datetime.fromtimestamp(1767225600 + second),
    ],
    ids=["ns", "aware", "naive"],
)
def test_since_is_included_and_until_is_not(timed: Path, moment: Callable[[int], Any]) -> None:
    assert seconds(timed, since=moment(2), until=moment(5)) == [3, 2, 4]
    assert seconds(timed, since=moment(5)) == [6, 5]
    assert seconds(timed, until=moment(2)) == [1, 0]
    microsecond = timedelta(microseconds=1) if isinstance(moment(0), datetime) else 1000
    assert seconds(timed, since=moment(2) + microsecond, until=moment(5)) == [3, 4]


def test_kinds_are_one_or_several(timed: Path) -> None:
    assert seconds(timed, kinds="REQ") == [3, 1, 5]
    assert [event.get("kind") for event in read_events(timed, kinds={"FN", "DB"})] == ["FN"] * 5 + ["DB"]
    assert seconds(timed, kinds=[]) == []


def test_where_sees_what_passed_the_rest_and_its_exception_comes_out(timed: Path) -> None:
    assert seconds(timed, kinds="REQ", where=lambda event: event["second"] > 1) == [3, 5]
    with pytest.raises(KeyError, match="second"):
        seconds(timed, where=lambda event: event["second"] > 1)


def test_order_by_time_keeps_what_has_none_behind_its_predecessor(timed: Path) -> None:
    events = list(read_events(timed, order="time"))
    assert [event["second"] for event in events if type(event) is dict and "second" in event] == list(range(7))
    assert events[5:8] == [{"kind": "FN"}, {"ts_ns": "1", "kind": "DB"}, [1]]


def test_order_by_time_is_over_all_streams(tmp_path: Path) -> None:
    for number, template in enumerate(["a-{timestamp}.jsonl", "b-{timestamp}.jsonl"]):
        with JSONLExporter(tmp_path, filename_template=template) as exporter:
            exporter.export([{"ts_ns": ts_ns} for ts_ns in range(number, 100, 2)])
    reader = read_events(tmp_path, order="time")
    assert [event["ts_ns"] for event in reader] == list(range(100))
    assert reader.report.events == 100


@pytest.mark.parametrize("memory_bytes", [1, 1000, 1 << 20])
def test_sorting_is_stable_and_exact_whatever_fits_into_memory(memory_bytes: int) -> None:
    moments = [(number * 7919) % 101 for number in range(500)] + [-(2**63), 2**64 - 1, 2**63]
    lines = [(moment, b"%d %d" % (moment, number)) for number, moment in enumerate(moments)]
    sorter = Sorter(memory_bytes, fan_in=4)
    for moment, line in lines:
        sorter.add(moment, line)
    assert list(sorter.drain()) == [line for _, line in sorted(lines, key=lambda pair: pair[0])]
    sorter.close()


def test_raw_lines_come_as_they_were_written(timed: Path) -> None:
    (content,) = [path.read_bytes() for path in timed.iterdir()]
    assert b"".join(read_lines(timed)) == content
    assert list(read_lines(timed, kinds="DB")) == [b'{"ts_ns":"1","kind":"DB"}\n']
    by_time = list(read_lines(timed, order="time"))
    assert sorted(by_time) == sorted(read_lines(timed))
    assert orjson.loads(by_time[0])["second"] == 0


def test_raw_lines_that_are_no_json_come_too_unless_something_asks_what_they_say(tmp_path: Path) -> None:
    write_segments(tmp_path, b"not JSON\n1\n\xff\n")
    assert list(read_lines(tmp_path)) == [b"not JSON\n", b"1\n", b"\xff\n"]
    reader = read_lines(tmp_path, where=lambda event: True)
    assert list(reader) == [b"1\n"]
    assert reader.report.torn == 2


# Which streams.


def test_all_streams_are_read_or_the_one_that_is_named(tmp_path: Path) -> None:
    for app in ("a", "b"):
        with JSONLExporter(tmp_path, filename_template="{app_name}-{timestamp:%Y%m%d}.jsonl", app_name=app) as exporter:
            exporter.emit({"app": app})
    assert list(read_events(tmp_path)) == [{"app": "a"}, {"app": "b"}]
    directory_name = sorted(path.name for path in (tmp_path / ".profilis-mp").iterdir())[1]
    assert "%25" in directory_name
    for stream in (directory_name, "b-{timestamp:%Y%m%d}.jsonl"):
        assert list(read_events(tmp_path, stream=stream)) == [{"app": "b"}]
    with pytest.raises(ConfigError, match=r"is no stream of .*, which has "):
        read_events(tmp_path, stream="c-{timestamp}.jsonl")


def test_segment_that_two_streams_claim_is_read_once(tmp_path: Path) -> None:
    for template in (TEMPLATE, "{hostname}-{timestamp}.jsonl"):
        with SharedWriter(tmp_path, filename_template=template) as writer:
            writer.write(b"{}\n")
    assert len(list(read_events(tmp_path))) == 2


def test_directory_without_segments_has_no_events(tmp_path: Path) -> None:
    assert list(read_events(tmp_path)) == []
    assert list(read_events(tmp_path, unflushed=True)) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("stream", {"stream": 1}),
        ("stream", {"stream": "no fields"}),
        ("since", {"since": 1.5}),
        ("until", {"until": True}),
        ("until", {"until": "2026-01-01"}),
        ("kinds", {"kinds": 1}),
        ("kinds", {"kinds": ["FN", 1]}),
        ("where", {"where": "kind"}),
        ("order", {"order": "size"}),
        ("order", {"order": "time", "follow": True}),
        ("unflushed", {"unflushed": 1}),
        ("unflushed", {"unflushed": True, "follow": True}),
        ("follow", {"follow": None}),
        ("poll_interval", {"poll_interval": 0}),
        ("stop", {"stop": True}),
    ],
)
@pytest.mark.parametrize("read", [read_events, read_lines])
def test_bad_argument_is_refused_at_the_call(
    tmp_path: Path, read: Callable[..., Any], argument: str, options: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, **options)
    assert caught.value.argument == argument


def test_directory_that_is_none_is_refused_at_the_call(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(LogDirectoryError) as caught:
            read_events(path)
        assert caught.value.path == str(path)
    for nonsense in (1, "", b"logs"):
        with pytest.raises(ConfigError, match="dir: "):
            read_events(nonsense)  # type: ignore[arg-type]


def test_reading_changes_nothing_and_needs_no_write_permission(tmp_path: Path) -> None:
    exporter = quiet_exporter(tmp_path)
    exporter.emit({"flushed": 1})
    exporter.flush()
    exporter.emit({"flushed": 0})

    def tree() -> list[tuple[str, int, int, bytes]]:
        paths = sorted(path for path in tmp_path.rglob("*") if path.is_file())
        return [(str(path), path.stat().st_mtime_ns, path.stat().st_mode, path.read_bytes()) for path in paths]

    before = tree()
    directories = [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]
    for path in directories:
        path.chmod(0o500)
    try:
        assert list(read_events(tmp_path, unflushed=True)) == [{"flushed": 1}, {"flushed": 0}]
        assert list(read_events(tmp_path, order="time")) == [{"flushed": 1}]
    finally:
        for path in directories:
            path.chmod(0o750)
    assert tree() == before
    assert exporter.close()


def test_another_user_reads_the_segments_it_may_read_and_is_told_what_it_may_not() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs to become another user")
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        with JSONLExporter(directory, file_mode=0o644) as exporter:
            exporter.export(numbered(3))

        def read() -> None:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            assert list(read_events(directory, stream=TEMPLATE)) == numbered(3)
            assert list(read_events(directory, stream=TEMPLATE, follow=True, stop=lambda: True)) == numbered(3)
            with pytest.raises(LogDirectoryError, match="name the stream"):
                read_events(directory)
            with pytest.raises(LogDirectoryError, match="needs to read the state directory"):
                read_events(directory, stream=TEMPLATE, unflushed=True)

        assert reap(fork(read)) == 0


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_reading_needs_the_same_little_memory_for_any_size(tmp_path: Path, suffix: str) -> None:
    (path,) = write_segments(tmp_path, lines_of(numbered(10)) * 100_000)
    size = path.stat().st_size
    if suffix:
        compress(path, suffix)
    tracemalloc.start()
    try:
        reader = read_lines(tmp_path)
        assert sum(map(len, reader)) == size > 20_000_000
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


# What is in no segment yet.


def test_unflushed_shows_living_and_dead_spools_each_event_once(tmp_path: Path) -> None:
    exporter = quiet_exporter(tmp_path)
    exporter.export(numbered(10))
    exporter.flush()
    exporter.export(numbered(10, 10))
    expected = numbered(20)

    def die() -> None:
        quiet_exporter(tmp_path).export(numbered(10, 20))

    assert reap(fork(die)) == 0
    assert list(read_events(tmp_path)) == expected[:10]
    for _ in range(2):
        reader = read_events(tmp_path, unflushed=True)
        assert list(reader) == expected + numbered(10, 20)
        assert reader.report.complete
    exporter.close()


def test_unflushed_sees_what_was_there_at_the_call_and_nothing_later(tmp_path: Path) -> None:
    exporter = quiet_exporter(tmp_path)
    exporter.export(numbered(10))
    exporter.flush()
    exporter.export(numbered(10, 10))
    reader = read_events(tmp_path, unflushed=True)
    exporter.rotate()
    exporter.export(numbered(10, 20))
    exporter.close()
    assert list(reader) == numbered(20)


def test_unflushed_before_anything_was_ever_flushed(tmp_path: Path) -> None:
    exporter = quiet_exporter(tmp_path)
    exporter.export(numbered(3))
    assert list(read_events(tmp_path, unflushed=True)) == numbered(3)
    assert list(read_events(tmp_path, unflushed=True, order="time")) == numbered(3)
    assert list(read_lines(tmp_path, unflushed=True, kinds="FN")) == lines_of(numbered(3)).splitlines(keepends=True)
    exporter.close()


def test_unflushed_opaque_records_follow_those_in_the_segment(tmp_path: Path) -> None:
    writer = SharedWriter(
        tmp_path, filename_template="x-{timestamp}.jsonl.gz", flush_interval=NEVER_S, buffer_size=1 << 19
    )
    for number in range(4):
        writer.write(gzip.compress(lines_of(numbered(1, number))))
        if number == 1:
            writer.flush()
    assert 2 <= len(list(read_events(tmp_path))) < 4
    assert list(read_events(tmp_path, unflushed=True)) == numbered(4)
    writer.close()


def test_unflushed_records_without_newlines_join_as_they_will_in_the_segment(tmp_path: Path) -> None:
    writer = SharedWriter(tmp_path, flush_interval=NEVER_S, buffer_size=1 << 19)
    writer.write(b'{"half":')
    writer.flush()
    writer.write(b"1}\n")
    assert list(read_events(tmp_path)) == []
    assert list(read_events(tmp_path, unflushed=True)) == [{"half": 1}]
    writer.close()
    assert list(read_events(tmp_path)) == [{"half": 1}]


@pytest.mark.parametrize("step", ["begun", "half written", "written", "committed", "left"])
def test_unflushed_shows_an_interrupted_flush_once(tmp_path: Path, step: str) -> None:
    """Step by step, as FORMAT.md has it: killed in 3, in 4, before 5, between 5 and 6."""
    exporter = quiet_exporter(tmp_path)
    exporter.export(numbered(2))
    exporter.flush()
    exporter.export(numbered(2, 2))
    paths = StreamPaths(str(tmp_path), SegmentNames(TEMPLATE).stream)
    control = Control(paths.control)
    (name,) = os.listdir(paths.spools)
    spool = Spool.open(f"{paths.spools}/{name}")
    head, committed = spool.head, control.committed
    batch = lines_of(numbered(2, 2))
    spool.flush_to, spool.expected_end = spool.tail, committed + len(batch)
    control.intent = spool.id
    with open(tmp_path / control.name, "ab") as segment:
        segment.write(batch[: {"begun": 0, "half written": len(batch) // 2 + 3}.get(step, len(batch))])
    if step in ("committed", "left"):
        control.committed = spool.expected_end
    if step == "left":
        spool.head = spool.flush_to
    reader = read_events(tmp_path, unflushed=True)
    assert list(reader) == numbered(4)
    assert reader.report.complete
    assert (spool.head == head) == (step != "left")
    spool.close()
    control.close()
    exporter.close()
    assert list(read_events(tmp_path)) == numbered(4)


def test_unflushed_needs_no_lock_while_its_holder_is_stuck(tmp_path: Path) -> None:
    exporter = quiet_exporter(tmp_path)
    exporter.export(numbered(3))
    exporter.flush()
    exporter.export(numbered(3, 3))
    lock = KeptLock(StreamPaths(str(tmp_path), SegmentNames(TEMPLATE).stream).lock, 0o600)
    assert lock.try_acquire()
    assert list(read_events(tmp_path, unflushed=True)) == numbered(6)
    lock.close()
    exporter.close()


def test_unflushed_takes_the_lock_where_no_look_succeeds_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = quiet_exporter(tmp_path)
    exporter.export(numbered(3))
    exporter.flush()
    monkeypatch.setattr(unflushed, "_FREE_LOOKS", 0)
    assert list(read_events(tmp_path, unflushed=True)) == numbered(3)
    monkeypatch.setattr(unflushed, "_LOCKED_LOOKS", 0)
    with pytest.raises(LockTimeout):
        read_events(tmp_path, unflushed=True)
    exporter.close()


def test_damaged_spool_is_counted_and_left_alone(tmp_path: Path) -> None:
    exporter = quiet_exporter(tmp_path)
    exporter.export(numbered(3))
    paths = StreamPaths(str(tmp_path), SegmentNames(TEMPLATE).stream)
    garbage = Path(paths.spools) / "00000000000000aa"
    garbage.write_bytes(b"garbage" * 2000)
    reader = read_events(tmp_path, unflushed=True)
    assert list(reader) == numbered(3)
    assert reader.report.damaged_spools == 1
    assert str(garbage) in reader.report.findings[0]
    assert garbage.exists()
    exporter.close()


# Following.


class Following:
    """A follower in a thread."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.reader = read_events(directory, follow=True, poll_interval=0.005, **options)
        self.seen: list[Any] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        for event in self.reader:
            self.seen.append(event)

    def __enter__(self) -> Following:
        return self

    def __exit__(self, *exc: object) -> None:
        self.reader.close()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def waits_for(self, count: int) -> None:
        wait_until(lambda: len(self.seen) >= count, what=f"{count} events, {len(self.seen)} are there")


def test_follower_goes_on_across_rotations_and_ends_when_closed(tmp_path: Path) -> None:
    with JSONLExporter(tmp_path, rotate_bytes=200) as exporter:
        exporter.export(numbered(5))
        exporter.flush()
        with Following(tmp_path) as following:
            following.waits_for(5)
            for start in range(5, 200, 5):
                exporter.export(numbered(5, start))
                exporter.flush()
            following.waits_for(200)
            assert following.seen == numbered(200)
            assert following.reader.report.segments > 10
            assert following.reader.report.complete


def test_follower_reads_what_was_rotated_and_compressed_between_two_looks(tmp_path: Path) -> None:
    exporter = JSONLExporter(tmp_path, filename_template="x-{index}.jsonl")
    exporter.export(numbered(5))
    exporter.flush()
    with read_events(tmp_path, follow=True, stop=lambda: True) as ended:
        assert list(ended) == numbered(5)
    go_on = threading.Event()
    reader = read_events(tmp_path, follow=True, poll_interval=0.005, stop=go_on.is_set)
    assert [next(reader) for _ in range(5)] == numbered(5)
    for start in range(5, 25, 5):
        exporter.export(numbered(5, start))
        sealed = exporter.rotate()
        assert sealed is not None
        compress(Path(sealed.path))
    exporter.export(numbered(5, 25))
    exporter.close()
    go_on.set()
    assert list(reader) == numbered(25, 5)
    assert reader.report.complete


def test_follower_counts_what_was_expired_before_it_was_seen(tmp_path: Path) -> None:
    exporter = JSONLExporter(tmp_path, filename_template="x-{index}.jsonl")
    exporter.export(numbered(5))
    exporter.flush()
    go_on = threading.Event()
    reader = read_events(tmp_path, follow=True, poll_interval=0.005, stop=go_on.is_set)
    assert [next(reader) for _ in range(5)] == numbered(5)
    for start in range(5, 25, 5):
        exporter.export(numbered(5, start))
        sealed = exporter.rotate()
        assert sealed is not None
        os.unlink(sealed.path)
    exporter.export(numbered(5, 25))
    exporter.close()
    go_on.set()
    # The first was open: its second half is read although it is gone.
    assert list(reader) == numbered(5, 5) + numbered(5, 25)
    assert reader.report.expired_segments == 3


def test_follower_waits_for_the_rest_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "profilis-20260101-000000.jsonl"
    path.write_bytes(b'{"a":1}\n{"b"')
    with Following(tmp_path) as following:
        following.waits_for(1)
        with open(path, "ab") as segment:
            segment.write(b":2}\n")
        following.waits_for(2)
        assert following.seen == [{"a": 1}, {"b": 2}]
        assert following.reader.report.complete


def test_follower_reads_opaque_members_as_they_become_complete(tmp_path: Path) -> None:
    path = tmp_path / "x-001.jsonl.gz"
    member = gzip.compress(b"2\n")
    path.write_bytes(gzip.compress(b"1\n") + member[:10])
    with Following(tmp_path, stream="x-{index}.jsonl.gz") as following:
        following.waits_for(1)
        with open(path, "ab") as segment:
            segment.write(member[10:])
        following.waits_for(2)
        assert following.seen == [1, 2]
        assert following.reader.report.complete


def test_follower_finds_streams_that_come_later(tmp_path: Path) -> None:
    with Following(tmp_path) as following:
        with JSONLExporter(tmp_path, filename_template="late-{timestamp}.jsonl") as exporter:
            exporter.export(numbered(3))
        following.waits_for(3)
        assert following.seen == numbered(3)


def test_follower_goes_on_when_the_directory_is_replaced(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    exporter = JSONLExporter(logs, filename_template="x-{index}.jsonl")
    exporter.emit(0)
    exporter.flush()
    with Following(logs) as following:
        following.waits_for(1)
        logs.rename(tmp_path / "elsewhere")
        exporter.emit(1)
        exporter.flush()
        following.waits_for(2)
        assert following.seen == [0, 1]
    exporter.close()


def test_closed_reader_has_no_more_events_and_no_open_files(tmp_path: Path) -> None:
    write_segments(tmp_path, lines_of(numbered(10)))
    with read_events(tmp_path) as reader:
        assert next(reader) == {"kind": "FN", "seq": 0}
        assert open_descriptors(tmp_path) == 1
    assert list(reader) == []
    assert open_descriptors(tmp_path) == 0
    reader.close()
    read_events(tmp_path, unflushed=True).close()
    assert open_descriptors(tmp_path) == 0


# A directory that changes while it is listed may show a younger segment and not the elder one, and of one that is being
# compressed neither form. A follower once went past a segment that both happened to, one listing after the other.
@pytest.mark.parametrize("compressed", [False, True])
def test_listing_has_no_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compressed: bool) -> None:
    eldest, elder, younger = (f"profilis-20260101-00000{number}.jsonl" for number in range(3))
    (tmp_path / eldest).touch()
    listdir = os.listdir
    looks = 0

    def changing(path: str) -> list[str]:
        nonlocal looks
        if str(path) != str(tmp_path):
            return listdir(path)
        looks += 1
        if looks == 1:
            (tmp_path / elder).touch()
            (tmp_path / younger).touch()
            return [eldest, younger]
        if looks == 2 and compressed:
            (tmp_path / elder).rename(tmp_path / f"{elder}.gz")
            return [eldest, younger]
        return listdir(path)

    monkeypatch.setattr(os, "listdir", changing)
    listing = SegmentListing(str(tmp_path), SegmentNames(TEMPLATE))
    assert [one.text for one in listing.segments] == [eldest, elder, younger]


# A segment has its name in the control file before its file is created. Created in the middle of a look, it was not
# among the segments that the look showed without a gap, and what had been committed to it by then was passed over.
def test_active_segment_that_comes_in_the_middle_of_the_listing_is_in_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = JSONLExporter(tmp_path, janitor=False)
    exporter.emit({"seq": 0})
    exporter.rotate()
    exporter.emit({"seq": 1})
    assert exporter.flush()
    exporter.emit({"seq": 2})
    listings = 0

    def late(log: str, names: SegmentNames) -> list[SegmentFile]:
        nonlocal listings
        listings += 1
        found = segment_files(log, names)
        return found if listings > 2 else [one for one in found if one.path != exporter.current_path]

    monkeypatch.setattr("profilis_mp.reader.listing.segment_files", late)
    with read_events(tmp_path, unflushed=True) as reader:
        assert [event["seq"] for event in reader] == [0, 1, 2]
    assert listings > 4
    assert exporter.close()


# The youngest segment, sealed by age while nobody writes, is compressed at last: a reader that listed the directory at
# that very moment read all but that one, or, where it was the only one, nothing.
@pytest.mark.parametrize("elders", [0, 1])
def test_youngest_segment_that_is_just_being_compressed_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elders: int
) -> None:
    with JSONLExporter(tmp_path, janitor=False) as exporter:
        for number in range(elders + 1):
            exporter.emit({"seq": number})
            sealed = exporter.rotate()
    assert sealed is not None
    lstat = os.lstat

    def late(path: Any, **options: Any) -> os.stat_result:
        if path == sealed.path and os.path.exists(path):
            Path(f"{path}.gz").write_bytes(gzip.compress(Path(path).read_bytes()))
            os.unlink(path)
        return lstat(path, **options)

    monkeypatch.setattr(os, "lstat", late)
    with read_events(tmp_path) as reader:
        assert [event["seq"] for event in reader] == [*range(elders + 1)]
