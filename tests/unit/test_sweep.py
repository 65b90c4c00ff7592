"""What a sweep does about what it cannot do, cannot know, and was not told."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from processes import wait_until

from profilis_mp import JSONLExporter, Upkeep
from profilis_mp.janitor import sweep as sweep_module
from profilis_mp.janitor.janitor import Janitor
from profilis_mp.janitor.sweep import Sweeper, SweepReport
from profilis_mp.janitor.watch import Watch
from profilis_mp.sharedlog.inventory import SegmentFile
from profilis_mp.sharedlog.names import SegmentNames
from profilis_mp.sharedlog.settings import Settings
from profilis_mp.sharedlog.stream import StreamPaths

NAMES = SegmentNames("x-{index}.jsonl")
COMPRESS = Upkeep(compress_old_files=True, compress_delay_secs=0)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Three sealed segments."""
    with JSONLExporter(tmp_path, filename_template=NAMES.template, janitor=False) as exporter:
        for number in range(3):
            exporter.emit({"seq": number})
            exporter.rotate()
    return tmp_path


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The monotonic clock of sweeps; ``now`` is it, seconds."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(sweep_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was warned about, also what would be folded into a count."""
    warned: list[str] = []
    monkeypatch.setattr(sweep_module.diagnostics, "warn", lambda key, text: warned.append(text))
    return warned


def sweeper_of(log: Path, rules: Upkeep) -> Iterator[Sweeper]:
    sweeper = Sweeper(StreamPaths(str(log), NAMES.stream), Settings.of_operator(str(log), NAMES), rules)
    yield sweeper
    sweeper.close()


def segments(log: Path) -> list[Path]:
    return sorted(log.glob("*.jsonl"))


def test_a_segment_that_keeps_failing_is_set_aside_with_one_warning_and_stops_no_other(
    log: Path, clock: SimpleNamespace, warned: list[str]
) -> None:
    failing = segments(log)[0]
    Path(f"{failing}.gz").write_bytes(b"somebody else's")
    for sweeper in sweeper_of(log, COMPRESS):
        report = sweeper.sweep()
        assert len(report.compressed) == 2, "the others do not wait"
        assert [text.startswith(str(failing)) for text in report.failures] == [True]
        # Tried again after 1 s, after 10 s, and then once an hour; not in between, whatever wakes the janitor.
        for wait_s, next_s in ((1.0, 10.0), (10.0, 60.0), (3600.0, 60.0), (3600.0, 60.0)):
            assert report.next_s <= wait_s
            clock.now += wait_s - 0.01
            assert sweeper.sweep().failures == []
            clock.now += 0.02
            report = sweeper.sweep()
            assert (len(report.failures), report.next_s) == (1, next_s)
    assert [text.startswith(str(failing)) for text in warned] == [True]
    assert failing.read_bytes() == b'{"seq":0}\n'


def test_a_segment_that_cannot_be_removed_is_reported_and_not_tried_again_at_once(
    log: Path, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def refuse(one: SegmentFile) -> bool:
        tried.append(one.path)
        raise PermissionError(1, "Operation not permitted", one.path)

    monkeypatch.setattr(sweep_module, "remove_file", refuse)
    eldest = str(segments(log)[0])
    for sweeper in sweeper_of(log, Upkeep(max_files=2)):
        report = sweeper.sweep()
        assert report.expired == []
        assert report.failures == [f"{eldest} could not be removed: [Errno 1] Operation not permitted: '{eldest}'"]
        for _ in range(5):
            assert sweeper.sweep().failures == []
        assert tried == [eldest]
        clock.now += 1.01
        assert len(sweeper.sweep().failures) == 1
        assert tried == [eldest] * 2


def test_a_segment_from_the_future_is_compressed_when_it_has_been_there_long_enough(
    log: Path, clock: SimpleNamespace
) -> None:
    """And is not expired: what was written in the future is not old."""
    future = time.time() + 10 * 365 * 86_400
    for path in segments(log):
        os.utime(path, (future, future))
    for sweeper in sweeper_of(log, Upkeep(compress_old_files=True, compress_delay_secs=50, max_age_secs=1)):
        report = sweeper.sweep()
        assert (report.compressed, report.expired) == ([], [])
        assert report.next_s <= 50
        clock.now += 50
        report = sweeper.sweep()
        assert (len(report.compressed), report.expired) == (3, [])


def test_the_sweep_that_comes_anyway_finds_what_no_event_told_of(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert SweepReport().next_s == 60
    monkeypatch.setattr(Watch, "ensure", lambda watch: None)  # as where every event gets lost
    really = Sweeper.sweep

    def soon(sweeper: Sweeper) -> SweepReport:
        report = really(sweeper)
        report.next_s = min(report.next_s, 0.05)  # the minute
        return report

    monkeypatch.setattr(Sweeper, "sweep", soon)
    sweeps: list[SweepReport] = []
    janitor = Janitor(Settings.of_operator(str(log), NAMES), COMPRESS, sweeps.append)
    assert janitor.start()
    try:
        wait_until(lambda: sum(len(one.compressed) for one in sweeps) == 3)
        with JSONLExporter(log, filename_template=NAMES.template, janitor=False) as exporter:
            exporter.emit({"seq": 3})
            exporter.rotate()
        wait_until(lambda: sum(len(one.compressed) for one in sweeps) == 4)
    finally:
        janitor.stop(10)
