"""Whatever was emitted is read back equal, and what is asked for is what a plain filter over all of it would give."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from profilis_mp import JSONLExporter, SharedWriter, read_events, read_lines
from profilis_mp.compression import decompressor
from profilis_mp.reader.lines import LineSplitter
from profilis_mp.reader.sorting import Sorter

utf8 = st.text(st.characters(codec="utf-8"))
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | utf8
)
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(utf8, inner), max_leaves=10)
events = st.dictionaries(utf8, values) | values
times = st.integers(-(2**63), 2**64 - 1) | st.integers(0, 20)
timed_events = (
    st.fixed_dictionaries({}, optional={"ts_ns": times, "kind": st.sampled_from(["FN", "DB"]), "x": leaves}) | values
)
# What happens to the log between two events.
steps = st.sampled_from(["", "", "", "flush", "rotate", "compress"])


def write(directory: str, emitted: list[tuple[Any, str]]) -> JSONLExporter:
    exporter = JSONLExporter(directory, flush_interval=1e6, rotate_bytes=200, filename_template="x-{index}.jsonl")
    for event, step in emitted:
        exporter.emit(event)
        if step == "flush":
            exporter.flush()
        elif step and (sealed := exporter.rotate()) is not None and step == "compress":
            path = Path(sealed.path)
            Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    return exporter


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(events, steps), max_size=30))
def test_whatever_was_emitted_is_read_back_equal(emitted: list[tuple[Any, str]]) -> None:
    expected = [event for event, _ in emitted]
    with tempfile.TemporaryDirectory() as directory:
        exporter = write(directory, emitted)
        with read_events(directory, unflushed=True) as reader:
            assert list(reader) == expected
            assert reader.report.complete
        exporter.close()
        assert list(read_events(directory)) == expected
        assert list(map(orjson.loads, read_lines(directory))) == expected
        with read_events(directory, follow=True, stop=lambda: True) as follower:
            assert list(follower) == expected


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(timed_events, steps), max_size=20),
    st.none() | times,
    st.none() | times,
    st.none() | st.sets(st.sampled_from(["FN", "DB", "REQ"])),
)
def test_what_is_asked_for_is_what_a_plain_filter_gives(
    emitted: list[tuple[Any, str]], since: int | None, until: int | None, kinds: set[str] | None
) -> None:
    def wanted(event: Any) -> bool:
        fields = event if isinstance(event, dict) else {}
        moment = fields.get("ts_ns")
        if isinstance(moment, bool) or not isinstance(moment, int):
            moment = None
        if (since is not None or until is not None) and moment is None:
            return False
        return (
            (since is None or moment >= since)
            and (until is None or moment < until)
            and (kinds is None or fields.get("kind") in kinds)
        )

    expected = [event for event, _ in emitted if wanted(event)]
    with tempfile.TemporaryDirectory() as directory:
        write(directory, emitted).close()
        chosen = {"since": since, "until": until, "kinds": kinds}
        assert list(read_events(directory, **chosen)) == expected
        by_time = list(read_events(directory, order="time", **chosen))
        moments = [one["ts_ns"] for one in by_time if isinstance(one, dict) and type(one.get("ts_ns")) is int]
        assert moments == sorted(moments)
        assert sorted(map(repr, by_time)) == sorted(map(repr, expected))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(min_size=1).map(lambda line: line.replace(b"\n", b"") + b"\n"), max_size=20))
def test_whatever_lines_were_written_are_read_back_equal(lines: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        with SharedWriter(directory, rotate_bytes=100) as writer:
            for line in lines:
                writer.write(line)
            with read_lines(directory, unflushed=True) as reader:
                assert list(reader) == lines
        assert list(read_lines(directory)) == lines


@given(st.binary().map(lambda content: content.replace(b"a", b"\n")), st.lists(st.integers(0, 50)))
def test_lines_are_the_same_wherever_the_content_is_cut(content: bytes, cuts: list[int]) -> None:
    splitter, lines, start = LineSplitter(), [], 0
    for end in [*sorted(cuts), len(content)]:
        _, found = splitter.feed(content[start:end])
        lines += found
        start = max(start, min(end, len(content)))
    assert b"\n".join([*lines, splitter.rest() or b""]) == content


@given(st.lists(st.binary(max_size=300)), st.integers(1, 100))
def test_gzip_members_come_out_wherever_they_are_cut(contents: list[bytes], step: int) -> None:
    packed = b"".join(gzip.compress(content, mtime=0) for content in contents)
    unpacker = decompressor(".gz")
    pieces = [piece for start in range(0, len(packed), step) for piece in unpacker.pieces(packed[start : start + step])]
    assert b"".join(pieces) == b"".join(contents)
    assert unpacker.complete


@given(st.lists(st.tuples(times, st.binary(max_size=20))), st.integers(1, 2000), st.integers(2, 5))
def test_sorting_is_what_sorted_does(lines: list[tuple[int, bytes]], memory_bytes: int, fan_in: int) -> None:
    sorter = Sorter(memory_bytes, fan_in)
    for moment, line in lines:
        sorter.add(moment, line)
    assert list(sorter.drain()) == [line for _, line in sorted(lines, key=lambda pair: pair[0])]
    sorter.close()
