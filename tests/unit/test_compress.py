"""One segment becomes its compressed copy; whatever goes wrong, one of the two is there and whole."""

from __future__ import annotations

import contextlib
import gzip
import os
import stat
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from raw_files import open_descriptors

from profilis_mp.compression import compressor, open_compressed
from profilis_mp.janitor.compress import NotCompressed, Stopped, compress, is_leftover
from profilis_mp.sharedlog.inventory import SegmentFile, segment_files
from profilis_mp.sharedlog.names import SegmentNames

NAMES = SegmentNames("profilis-{timestamp}.jsonl")
NAME = "profilis-20260101-000000.jsonl"
LINES = b"".join(b'{"seq":%d,"fill":"%s"}\n' % (number, b"x" * (number % 50)) for number in range(20_000))
NOISE = os.urandom(1_000_000)


def segment_in(directory: Path, content: bytes = LINES) -> SegmentFile:
    (directory / NAME).write_bytes(content)
    return found_in(directory)


def found_in(directory: Path) -> SegmentFile:
    return next(one for one in segment_files(str(directory), NAMES) if not one.suffix)


def never() -> bool:
    return False


def decompressed(path: Path, suffix: str) -> bytes:
    file = open_compressed(str(path), suffix)
    pieces = []
    while piece := file.read():
        pieces.append(piece)
    assert file.complete
    file.close()
    return b"".join(pieces)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize(
    "content", [LINES, b"", b"\n", os.urandom(200_000)], ids=["lines", "empty", "newline", "noise"]
)
def test_the_copy_has_the_same_bytes_and_takes_the_segments_place(tmp_path: Path, suffix: str, content: bytes) -> None:
    try:
        compressor(suffix)
    except ImportError:
        pytest.skip("zstd is not installed")
    segment = segment_in(tmp_path, content)
    size = compress(segment, suffix, 1, never)
    assert [path.name for path in tmp_path.iterdir()] == [NAME + suffix]
    assert (tmp_path / (NAME + suffix)).stat().st_size == size
    assert decompressed(tmp_path / (NAME + suffix), suffix) == content


def test_other_programs_can_read_it(tmp_path: Path) -> None:
    compress(segment_in(tmp_path), ".gz", 9, never)
    assert gzip.decompress((tmp_path / f"{NAME}.gz").read_bytes()) == LINES


def test_it_keeps_mode_owner_and_time_of_last_write(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_bytes(LINES)
    path.chmod(0o604)
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
    os.utime(path, ns=(10**18, 10**18 + 1))
    before = path.stat()
    compress(found_in(tmp_path), ".gz", 1, never)
    after = (tmp_path / f"{NAME}.gz").stat()
    for field in ("st_mode", "st_uid", "st_gid", "st_mtime_ns"):
        assert getattr(after, field) == getattr(before, field), field


def test_a_large_segment_needs_little_memory(tmp_path: Path) -> None:
    segment = segment_in(tmp_path, LINES * 64)
    assert segment.size > 40_000_000
    tracemalloc.start()
    try:
        compress(segment, ".gz", 1, never)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8_000_000


def assert_untouched(directory: Path, *others: str, content: bytes = LINES) -> None:
    assert sorted(path.name for path in directory.iterdir()) == sorted([NAME, *others])
    assert (directory / NAME).read_bytes() == content


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage", gzip.compress(b"something else"), gzip.compress(LINES)[:-1], gzip.compress(LINES + b"\n")],
    ids=["empty", "garbage", "another", "cut short", "longer"],
)
def test_a_foreign_file_in_the_way_is_left_alone_and_so_is_the_segment(tmp_path: Path, content: bytes) -> None:
    segment = segment_in(tmp_path)
    (tmp_path / f"{NAME}.gz").write_bytes(content)
    with pytest.raises(NotCompressed):
        compress(segment, ".gz", 1, never)
    assert_untouched(tmp_path, f"{NAME}.gz")
    assert (tmp_path / f"{NAME}.gz").read_bytes() == content


def test_a_copy_that_is_there_already_is_proven_and_the_segment_goes(tmp_path: Path) -> None:
    segment = segment_in(tmp_path)
    (tmp_path / f"{NAME}.gz").write_bytes(gzip.compress(LINES[:1000]) + gzip.compress(LINES[1000:]))
    compress(segment, ".gz", 1, never)
    assert [path.name for path in tmp_path.iterdir()] == [f"{NAME}.gz"]


@pytest.mark.parametrize("kind", ["directory", "link", "dangling link"])
def test_what_is_no_file_in_the_way_is_left_alone(tmp_path: Path, kind: str) -> None:
    segment = segment_in(tmp_path)
    final = tmp_path / f"{NAME}.gz"
    if kind == "directory":
        final.mkdir()
    else:
        final.symlink_to(tmp_path / NAME if kind == "link" else tmp_path / "nowhere")
    with pytest.raises((NotCompressed, OSError)):
        compress(segment, ".gz", 1, never)
    assert_untouched(tmp_path, f"{NAME}.gz")


def test_a_pipe_in_the_way_is_not_waited_for(tmp_path: Path) -> None:
    segment = segment_in(tmp_path)
    os.mkfifo(tmp_path / f"{NAME}.gz")
    with pytest.raises((NotCompressed, OSError)):
        compress(segment, ".gz", 1, never)
    assert_untouched(tmp_path, f"{NAME}.gz")


def test_nothing_stays_open(tmp_path: Path) -> None:
    before = open_descriptors(tmp_path)
    for number in (1, 7, 400):
        segment = segment_in(tmp_path)
        with contextlib.suppress(Stopped):
            compress(segment, ".gz", 1, at_look(number, lambda: True))
        (tmp_path / f"{NAME}.gz").unlink(missing_ok=True)
    assert open_descriptors(tmp_path) == before


def at_look(number: int, act: Callable[[], object]) -> Callable[[], bool]:
    """Called between pieces; acts at one of the calls."""
    looks = 0

    def look() -> bool:
        nonlocal looks
        looks += 1
        return bool(act()) if looks == number else False

    return look


def test_a_segment_that_is_written_to_meanwhile_stays(tmp_path: Path) -> None:
    segment = segment_in(tmp_path)

    def write() -> None:
        with open(tmp_path / NAME, "ab") as file:
            file.write(b"late\n")

    with pytest.raises(NotCompressed, match="somebody wrote to it"):
        compress(segment, ".gz", 1, at_look(12, write))
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    assert (tmp_path / NAME).read_bytes() == LINES + b"late\n"


def test_a_segment_that_was_replaced_stays(tmp_path: Path) -> None:
    segment = segment_in(tmp_path)
    (tmp_path / "other").write_bytes(LINES)
    (tmp_path / "other").rename(tmp_path / NAME)
    with pytest.raises(NotCompressed, match="replaced"):
        compress(segment, ".gz", 1, never)
    assert_untouched(tmp_path)


def test_a_file_that_gets_the_copys_name_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    segment = segment_in(tmp_path)
    final = tmp_path / f"{NAME}.gz"
    with pytest.raises(NotCompressed, match="meanwhile"):
        compress(segment, ".gz", 1, at_look(3, lambda: final.write_bytes(b"mine") < 0))
    assert_untouched(tmp_path, final.name)
    assert final.read_bytes() == b"mine"


def test_a_copy_that_somebody_garbled_is_not_trusted(tmp_path: Path) -> None:
    segment = segment_in(tmp_path, NOISE)  # so that the copy is read back in several pieces

    def garble() -> None:
        copy = next(tmp_path.glob("*.tmp"))
        with open(copy, "r+b") as file:
            file.seek(-2, os.SEEK_END)
            file.write(b"!!")

    pieces = -(-len(NOISE) // 65536)
    with pytest.raises(NotCompressed):
        compress(segment, ".gz", 1, at_look(pieces + 1, garble))
    assert_untouched(tmp_path, content=NOISE)


@pytest.mark.parametrize("number", [1, 5, 12])
def test_it_stops_between_pieces_when_asked_to(tmp_path: Path, number: int) -> None:
    segment = segment_in(tmp_path)
    with pytest.raises(Stopped):
        compress(segment, ".gz", 1, at_look(number, lambda: True))
    assert_untouched(tmp_path)


def test_an_unreadable_segment_stays(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    segment = segment_in(tmp_path)
    (tmp_path / NAME).chmod(0)
    with pytest.raises(PermissionError):
        compress(segment, ".gz", 1, never)


def test_a_segment_that_vanished_is_no_disaster(tmp_path: Path) -> None:
    segment = segment_in(tmp_path)
    (tmp_path / NAME).unlink()
    with pytest.raises(FileNotFoundError):
        compress(segment, ".gz", 1, never)
    assert list(tmp_path.iterdir()) == []


def test_the_unfinished_copy_is_private_and_told_by_its_name(tmp_path: Path) -> None:
    segment = segment_in(tmp_path)
    seen: list[tuple[str, int]] = []

    def look() -> bool:
        seen.extend((path.name, stat.S_IMODE(path.stat().st_mode)) for path in tmp_path.glob("*.tmp"))
        return False

    compress(segment, ".gz", 1, look)
    assert {mode for _, mode in seen} == {0o600}
    assert {is_leftover(name) for name, _ in seen} == {NAME}
    for other in (NAME, f"{NAME}.gz", f"{NAME}.gz.tmp", f"{NAME}.gz.12345678.tmpx", f"{NAME}.12345678.tmp"):
        assert is_leftover(other) is None
