"""Which sealed segments have to go, and when the clock is not believed."""

from __future__ import annotations

from typing import Any

import pytest

from profilis_mp import Upkeep
from profilis_mp.janitor.retention import Clock, expired
from profilis_mp.sharedlog.inventory import SegmentFile
from profilis_mp.sharedlog.names import SegmentName

HOUR_S = 3600
SECOND_NS = 10**9
NOW_NS = 1_800_000_000 * SECOND_NS


def segment(number: int, *, size: int = 10, age_s: float = 0, suffix: str = "", disputed: bool = False) -> SegmentFile:
    file = f"x-{number:03d}.jsonl"
    mtime_ns = NOW_NS - int(age_s * SECOND_NS)
    return SegmentFile(
        f"/{file}{suffix}", file + suffix, SegmentName(0, number, file), suffix, size, mtime_ns, (0, number), disputed
    )


def numbers(files: list[SegmentFile]) -> list[int]:
    return [one.segment.number for one in files]


SEALED = [segment(number) for number in range(5)]
ACTIVE = [segment(5)]


@pytest.mark.parametrize(("max_files", "gone"), [(9, 0), (6, 0), (5, 1), (2, 4), (1, 5)])
def test_max_files_counts_the_active_one_and_keeps_it(max_files: int, gone: int) -> None:
    assert numbers(expired(SEALED, ACTIVE, Upkeep(max_files=max_files), 0)) == list(range(gone))


def test_a_segment_in_two_forms_is_one_and_goes_as_one() -> None:
    both = [segment(0, suffix=""), segment(0, suffix=".gz"), segment(1)]
    assert expired(both, ACTIVE, Upkeep(max_files=3), 0) == []
    assert expired(both, ACTIVE, Upkeep(max_files=2), 0) == both[:2]


@pytest.mark.parametrize(("limit", "gone"), [(60, 0), (59, 1), (41, 2), (10, 5), (1, 5)])
def test_max_total_bytes_takes_the_eldest_first(limit: int, gone: int) -> None:
    assert numbers(expired(SEALED, ACTIVE, Upkeep(max_total_bytes=limit), 0)) == list(range(gone))


def test_age_looks_at_the_last_write_of_each() -> None:
    sealed = [segment(0, age_s=50), segment(1, age_s=200), segment(2, age_s=-500), segment(3, age_s=101)]
    limit = NOW_NS - 100 * SECOND_NS
    assert numbers(expired(sealed, ACTIVE, Upkeep(max_age_secs=100), limit)) == [1, 3]
    assert expired(sealed, ACTIVE, Upkeep(max_age_secs=100), 0) == []


def test_disputed_segments_neither_count_nor_go() -> None:
    disputed = [segment(number, disputed=True, age_s=10**6) for number in range(5)]
    rules = Upkeep(max_files=1, max_total_bytes=1, max_age_secs=1)
    assert expired(disputed, [], rules, NOW_NS) == []


def test_without_rules_nothing_goes() -> None:
    assert expired(SEALED, ACTIVE, Upkeep(compress_old_files=True), 0) == []


class Clocks:
    """A wall clock that somebody steps, and one that nobody can."""

    def __init__(self, max_age_secs: float) -> None:
        self.wall = NOW_NS
        self.monotonic = 10**15
        self.clock = Clock(max_age_secs, lambda: self.wall, lambda: self.monotonic)

    def passes(self, seconds: float) -> None:
        self.wall += int(seconds * SECOND_NS)
        self.monotonic += int(seconds * SECOND_NS)

    def limit_s(self, *sealed: SegmentFile) -> float:
        """How long ago a segment must have been written to be too old; 0 when nobody knows."""
        before = self.clock.too_old_before(sealed)
        return (self.wall - before) / SECOND_NS if before else 0


def test_a_clock_that_goes_on_is_believed() -> None:
    clocks = Clocks(100)
    for _ in range(5):
        assert clocks.limit_s(segment(0, age_s=500), segment(1)) == 100
        clocks.passes(1000)


def test_a_clock_stepped_forward_is_doubted_for_an_hour() -> None:
    clocks = Clocks(24 * HOUR_S)
    young: list[Any] = [segment(0), segment(1)]
    assert clocks.limit_s(*young)
    clocks.wall += 30 * 24 * HOUR_S * SECOND_NS
    assert not clocks.limit_s(*young)
    clocks.passes(HOUR_S - 1)
    assert not clocks.limit_s(*young)
    clocks.passes(2)
    assert clocks.limit_s(*young) == 24 * HOUR_S


def test_a_clock_stepped_back_again_is_believed_at_once() -> None:
    clocks = Clocks(24 * HOUR_S)
    assert clocks.limit_s(segment(0))
    clocks.wall += 30 * 24 * HOUR_S * SECOND_NS
    assert not clocks.limit_s(segment(0))
    clocks.wall -= 30 * 24 * HOUR_S * SECOND_NS
    assert clocks.limit_s(segment(0)) == 24 * HOUR_S


def test_a_first_look_that_would_wipe_everything_waits() -> None:
    clocks = Clocks(1000)
    old: list[Any] = [segment(0, age_s=5000), segment(1, age_s=4000)]
    assert not clocks.limit_s(*old)
    clocks.passes(999)
    assert not clocks.limit_s(*old)
    clocks.passes(2)
    assert clocks.limit_s(*old) == 1000, "no longer than the limit itself"


def test_a_new_leader_doubts_a_clock_that_makes_most_segments_old() -> None:
    """Under the leader that saw the clock step, some were sealed with the new time."""
    clocks = Clocks(1000)
    assert not clocks.limit_s(segment(0, age_s=5000), segment(1, age_s=4000), segment(2))
    assert Clocks(1000).limit_s(segment(0, age_s=5000), segment(1), segment(2)) == 1000


def test_a_single_old_segment_is_no_reason_to_doubt() -> None:
    assert Clocks(1000).limit_s(segment(0, age_s=5000)) == 1000
