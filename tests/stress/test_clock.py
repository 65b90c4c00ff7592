"""Clocks that step back by hours and forward by years, differently in each process, while all of them write."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from checks import check_log
from processes import Acknowledgements, fork, reap

from profilis_mp import JSONLExporter, recover
from profilis_mp.account import segments_of
from profilis_mp.sharedlog.names import SegmentNames

HOUR_NS = 3600 * 10**9
YEAR_NS = 365 * 24 * HOUR_NS
TODAY_NS = 1_800_000_000 * 10**9


class SteppingClock:
    """Runs on, and steps now and then: back by hours, forward by years, and back to what the time really is."""

    def __init__(self, seed: int, *, farthest: int = 20) -> None:
        self._dice = random.Random(seed)
        self._offset_ns = 0
        self._farthest = farthest

    def __call__(self) -> int:
        if self._dice.random() < 0.2:
            steps = (0, -HOUR_NS, -5 * HOUR_NS, YEAR_NS, self._farthest * YEAR_NS, -YEAR_NS)
            self._offset_ns = self._dice.choice(steps)
        return TODAY_NS + self._offset_ns + time.monotonic_ns() % HOUR_NS


def ages_by_last_write(directory: Path, template: str) -> list[tuple[int, int]]:
    """What the segments' names say, in the order of their last writes, of which the kernel keeps account."""
    names = SegmentNames(template)
    parsed = [name for text in os.listdir(directory) if (name := names.parse(text)) is not None]
    # The kernel's account is coarse: of two in the same tick, the name is believed.
    parsed.sort(key=lambda name: ((directory / name.text).stat().st_mtime_ns, name.age()))
    return [name.age() for name in parsed]


@pytest.mark.parametrize(
    "template",
    ["profilis-{timestamp}.jsonl", "{app_name}-{timestamp:%Y%m%d}-{index:05d}.jsonl", "profilis-{index}.jsonl"],
)
def test_stepping_clocks_lose_nothing_and_names_move_forward(tmp_path: Path, template: str) -> None:
    seed = random.randrange(1 << 32)
    workers = 4
    acknowledged = Acknowledgements(workers)

    def writer(worker: int) -> Callable[[], None]:
        def work() -> None:
            exporter = JSONLExporter(
                tmp_path,
                filename_template=template,
                rotate_bytes=6_000,
                buffer_size=500,
                flush_interval=0.02,
                lock_timeout=30.0,
                clock=SteppingClock(seed + worker),
            )
            for number in range(1_000):
                exporter.emit({"worker": worker, "seq": number})
                acknowledged[worker] = number + 1

        return work

    pids = [fork(writer(worker)) for worker in range(workers)]
    assert [reap(pid) for pid in pids] == [0] * workers
    assert not recover(tmp_path).failures
    # check_log reads the segments in the order of their names: were a younger one named before its elder, events of
    # one worker would be out of order, and a name used twice would have overwritten or refused events.
    account = check_log(tmp_path, acknowledged.by_worker(), rotate_bytes=6_000, context=f"seed {seed}")
    assert account.acknowledged == workers * 1_000
    assert account.segments > 15
    ages = ages_by_last_write(tmp_path, template)
    assert len(ages) == account.segments
    assert ages == sorted(ages), f"seed {seed}"


# A shipper or `ls` sorts by text. While there is a clock, text and time agree; a clock that stands still, or has
# stepped back, is where the suffix has to keep the order.
def test_names_sort_as_text_while_the_clock_stands_in_the_past(tmp_path: Path) -> None:
    now_ns = TODAY_NS
    exporter = JSONLExporter(tmp_path, rotate_bytes=100, buffer_size=10, clock=lambda: now_ns)
    for number in range(40):
        if number == 5:
            now_ns -= 7 * HOUR_NS
        if number == 30:
            now_ns -= 3 * YEAR_NS
        exporter.emit({"worker": 0, "seq": number, "fill": "x" * 50})
    assert exporter.close()
    check_log(tmp_path, {0: 40})
    paths = segments_of(str(tmp_path))
    assert len(paths) == 40
    assert paths == sorted(paths)


def test_a_clock_that_stepped_back_does_not_stop_rotation_by_age(tmp_path: Path) -> None:
    now_ns = TODAY_NS + YEAR_NS
    exporter = JSONLExporter(tmp_path, rotate_secs=60, clock=lambda: now_ns)
    for number in range(6):
        if number in (1, 4):
            now_ns -= 100 * 24 * HOUR_NS if number == 1 else 2 * HOUR_NS
        exporter.emit({"worker": 0, "seq": number})
        assert exporter.flush()
    assert exporter.close()
    check_log(tmp_path, {0: 6})
    assert len(segments_of(str(tmp_path))) == 3


def test_names_of_deleted_segments_are_not_used_again_when_the_clock_comes_by_a_second_time(tmp_path: Path) -> None:
    now_ns = TODAY_NS
    exporter = JSONLExporter(tmp_path, clock=lambda: now_ns)
    seen: list[str] = []
    for number in range(8):
        now_ns = TODAY_NS + (number % 2) * 10**9
        exporter.emit({"worker": 0, "seq": number})
        segment = exporter.rotate()
        assert segment is not None
        seen.append(os.path.basename(segment.path))
        os.unlink(segment.path)
    assert exporter.close()
    assert len(set(seen)) == 8
    names = SegmentNames("profilis-{timestamp}.jsonl")
    ages = [name.age() for text in seen if (name := names.parse(text)) is not None]
    assert ages == sorted(ages)
    assert len(ages) == 8


def test_processes_whose_clocks_differ_by_less_than_rotate_secs_share_a_segment(tmp_path: Path) -> None:
    early = JSONLExporter(tmp_path, clock=lambda: TODAY_NS, flush_interval=1e6)
    late = JSONLExporter(tmp_path, clock=lambda: TODAY_NS + 1800 * 10**9, flush_interval=1e6)
    for number in range(20):
        early.emit({"worker": 0, "seq": number})
        assert early.flush()
        late.emit({"worker": 1, "seq": number})
        assert late.flush()
    assert early.close()
    assert late.close()
    check_log(tmp_path, {0: 20, 1: 20})
    assert len(segments_of(str(tmp_path))) == 1
