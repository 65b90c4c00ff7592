"""Which files are sealed: those that no process will ever append to again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from errno import ENOSPC
from pathlib import Path

import pytest

from profilis_mp import LockTimeout, SharedWriter
from profilis_mp.sharedlog import sealed as module
from profilis_mp.sharedlog.inventory import SegmentFile, segment_files
from profilis_mp.sharedlog.lock import KeptLock
from profilis_mp.sharedlog.names import SegmentNames
from profilis_mp.sharedlog.sealed import sealed_files
from profilis_mp.sharedlog.settings import Settings
from profilis_mp.sharedlog.stream import Stream, StreamPaths

TEMPLATE = "profilis-{timestamp}.jsonl"


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[Stream]:
    names = SegmentNames(TEMPLATE)
    opened = Stream(StreamPaths(str(tmp_path), names.stream), Settings.of_operator(str(tmp_path), names))
    yield opened
    opened.close()


def write_segments(directory: Path, count: int, **options: object) -> list[str]:
    """Segments within the same second, one record each; the last one stays active. Their names, the eldest first."""
    names = []
    with SharedWriter(directory, rotate_bytes=8, **options) as writer:  # type: ignore[arg-type]
        for _ in range(count):
            writer.write(b"{}     \n")
            writer.flush()
            names.append(os.path.basename(writer.current_path or ""))
    return names


def files(found: list[SegmentFile]) -> list[str]:
    return [one.file for one in found]


def test_all_but_the_active_segment_are_sealed_in_every_form(tmp_path: Path, stream: Stream) -> None:
    names = write_segments(tmp_path, 4)
    (tmp_path / names[0]).rename(tmp_path / f"{names[0]}.gz")
    (tmp_path / f"{names[1]}.gz").touch()
    sealed, rest = sealed_files(stream, 1)
    assert files(sealed) == [f"{names[0]}.gz", names[1], f"{names[1]}.gz", names[2]]
    assert files(rest) == [names[3]]


def test_after_a_rotation_nothing_is_active(tmp_path: Path, stream: Stream) -> None:
    names = write_segments(tmp_path, 2)
    with SharedWriter(tmp_path) as writer:
        writer.rotate()
    assert files(sealed_files(stream, 1)[0]) == names


def test_a_name_from_the_future_is_not_sealed(tmp_path: Path, stream: Stream) -> None:
    names = write_segments(tmp_path, 2)
    (tmp_path / "profilis-20990101-000000.jsonl").touch()
    sealed, rest = sealed_files(stream, 1)
    assert files(sealed) == names[:1]
    assert files(rest) == [names[1], "profilis-20990101-000000.jsonl"]


@pytest.mark.parametrize("rotated", [False, True])
def test_a_segment_opened_while_we_look_is_not_sealed(
    tmp_path: Path, stream: Stream, monkeypatch: pytest.MonkeyPatch, rotated: bool
) -> None:
    """Its name may be of the same second, so it is not by its name alone that it is younger."""
    names = write_segments(tmp_path, 2)
    if rotated:
        with SharedWriter(tmp_path) as writer:
            writer.rotate()

    def slow(log: str, of: SegmentNames) -> list[SegmentFile]:
        names.extend(write_segments(tmp_path, 2))
        return segment_files(log, of)

    monkeypatch.setattr(module, "segment_files", slow)
    sealed, rest = sealed_files(stream, 1)
    assert files(sealed) == names[: 2 if rotated else 1]
    assert files(rest) == names[2 if rotated else 1 :]


def test_coarse_timestamps_and_indices_are_compared_as_names_tell_them(tmp_path: Path) -> None:
    for template in ("day-{timestamp:%Y%m%d}.jsonl", "number-{index}.jsonl", "local-{timestamp}.jsonl"):
        names = write_segments(tmp_path, 3, filename_template=template, local_time=template.startswith("local"))
        known = SegmentNames(template)
        settings = Settings.of_operator(str(tmp_path), known)
        of_template = Stream(StreamPaths(str(tmp_path), known.stream), settings)
        sealed, rest = sealed_files(of_template, 1)
        assert (files(sealed), files(rest)) == (names[:2], names[2:])
        of_template.close()


def test_without_a_control_file_nothing_is_known_to_be_sealed_and_nothing_is_created(
    tmp_path: Path, stream: Stream
) -> None:
    (tmp_path / "profilis-20260101-000000.jsonl").touch()
    sealed, rest = sealed_files(stream, 1)
    assert (files(sealed), files(rest)) == ([], ["profilis-20260101-000000.jsonl"])
    assert os.listdir(tmp_path) == ["profilis-20260101-000000.jsonl"]
    write_segments(tmp_path, 2)
    control = Path(stream.paths.control)
    control.write_bytes(b"garbage" * 1000)
    assert sealed_files(stream, 1)[0] == []
    assert control.read_bytes() == b"garbage" * 1000


def test_a_lock_that_another_keeps_is_said_and_one_that_was_had_is_given_back(tmp_path: Path, stream: Stream) -> None:
    write_segments(tmp_path, 2)
    sealed_files(stream, 1)
    other = KeptLock(stream.paths.lock, 0o600)
    assert other.try_acquire()
    with pytest.raises(LockTimeout):
        sealed_files(stream, 0)
    other.close()
    assert len(sealed_files(stream, 0)[0]) == 1


def test_a_full_disk_does_not_keep_anybody_from_making_room(
    tmp_path: Path, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flush in progress cannot be finished, which must not be the reason why nothing is ever removed."""
    names = write_segments(tmp_path, 3)

    def full(timeout_s: float) -> None:
        raise OSError(ENOSPC, "no space")

    monkeypatch.setattr(stream, "acquire", full)
    assert files(sealed_files(stream, 1)[0]) == names[:2]
