"""Which files in a log directory are whose."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from profilis_mp import SharedWriter
from profilis_mp.sharedlog.inventory import segment_files, streams_of
from profilis_mp.sharedlog.names import SegmentNames

NAMES = SegmentNames("profilis-{timestamp}.jsonl")


def make_streams(directory: Path, *templates: str) -> None:
    for template in templates:
        with SharedWriter(directory, filename_template=template) as writer:
            writer.write(b"{}\n")


def test_streams_are_those_with_state(tmp_path: Path) -> None:
    assert streams_of(str(tmp_path)) == []
    make_streams(tmp_path, "b-{timestamp}.jsonl", "a-{index}.jsonl")
    (tmp_path / ".profilis-mp" / "no template").mkdir()
    assert [names.stream for names in streams_of(str(tmp_path))] == ["a-{index}.jsonl", "b-{timestamp}.jsonl"]


def test_segments_come_eldest_first_in_every_form(tmp_path: Path) -> None:
    files = [
        "profilis-20260101-000000.jsonl.zst",
        "profilis-20260102-000000.jsonl",
        "profilis-20260102-000000.jsonl.gz",
        "profilis-20260102-000000_001.jsonl.gz",
        "profilis-20260103-000000.jsonl",
    ]
    for number, file in enumerate(reversed(files)):
        (tmp_path / file).write_bytes(b"x" * number)
    found = segment_files(str(tmp_path), NAMES)
    assert [one.file for one in found] == files
    assert [one.size for one in found] == [4, 3, 2, 1, 0]
    assert [one.suffix for one in found] == [".zst", "", ".gz", ".gz", ""]
    assert found[1].segment == found[2].segment


def test_nothing_but_regular_files_of_the_template_counts(tmp_path: Path) -> None:
    target = tmp_path / "profilis-20260101-000000.jsonl"
    target.touch()
    (tmp_path / "profilis-20260102-000000.jsonl").symlink_to(target)
    (tmp_path / "profilis-20260103-000000.jsonl").mkdir()
    os.mkfifo(tmp_path / "profilis-20260104-000000.jsonl")
    for other in ("profilis-20260105-000000.jsonl.gz.tmp", "profilis-20261399-000000.jsonl", "profilis.jsonl", "x.gz"):
        (tmp_path / other).touch()
    assert [one.path for one in segment_files(str(tmp_path), NAMES)] == [str(target)]


def test_plain_segments_of_a_gz_template_are_not_another_streams_compressed_ones(tmp_path: Path) -> None:
    make_streams(tmp_path, "profilis-{timestamp}.jsonl", "profilis-{timestamp}.jsonl.gz")
    plain, opaque = (
        segment_files(str(tmp_path), NAMES),
        segment_files(str(tmp_path), SegmentNames("profilis-{timestamp}.jsonl.gz")),
    )
    assert len(plain) == len(opaque) == 1
    assert not plain[0].suffix
    assert not opaque[0].suffix
    assert plain[0].path != opaque[0].path


def test_files_that_two_templates_can_have_produced_are_disputed(tmp_path: Path) -> None:
    make_streams(tmp_path, "profilis-{timestamp}.jsonl", "{hostname}-{timestamp}.jsonl")
    (tmp_path / "profilis-20260101-000000.jsonl").touch()
    found = segment_files(str(tmp_path), NAMES)
    assert [one.disputed for one in found] == [True, True]
    hosts = segment_files(str(tmp_path), SegmentNames("{hostname}-{timestamp}.jsonl"))
    assert [one.disputed for one in hosts if not one.file.startswith("profilis-")] == [False]


def test_what_one_stream_compresses_is_not_anothers_plain_segment(tmp_path: Path) -> None:
    make_streams(tmp_path, "profilis-{timestamp}.jsonl")
    (tmp_path / "profilis-20260101-000000.jsonl.gz").touch()
    make_streams(tmp_path, "profilis-{timestamp}.jsonl.gz")
    names = SegmentNames("profilis-{timestamp}.jsonl.gz")
    assert all(one.disputed for one in segment_files(str(tmp_path), names))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_copy_is_no_segment_of_another_host(tmp_path: Path, suffix: str) -> None:
    names = SegmentNames("ev-{timestamp}-{hostname}")
    plain = names.render(1_700_000_000 * 10**9, 0).text
    other = names.render(1_700_000_000 * 10**9, 0, "otherhost").text
    for file in (plain + suffix, other + suffix, f"{plain}{suffix}.01234567.tmp"):
        (tmp_path / file).touch()
    found = segment_files(str(tmp_path), names)
    assert {(one.segment.text, one.suffix) for one in found} == {(plain, suffix), (other, suffix)}


def test_a_file_in_the_place_of_the_state_directory_is_said(tmp_path: Path) -> None:
    (tmp_path / ".profilis-mp").touch()
    with pytest.raises(NotADirectoryError):
        streams_of(str(tmp_path))
