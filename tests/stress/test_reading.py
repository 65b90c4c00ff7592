"""Readers and followers beside writers that rotate, are killed, and somebody who compresses and expires."""

from __future__ import annotations

import os
import random
import signal
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import Acknowledgements, reap, running, wait_until

from profilis_mp import JSONLExporter, read_events, recover
from profilis_mp.sharedlog.inventory import segment_files
from profilis_mp.sharedlog.names import SegmentNames

TEMPLATE = "profilis-{timestamp}.jsonl"
SECONDS = 3.0
WRITERS = 3
# What else the processes tell each other, in the words after the writers' counts.
DONE = WRITERS
LOOKING = DONE + 1  # and so many more: one for each follower
FOLLOWERS = 3


def writing(directory: Path, acknowledged: Acknowledgements, worker: int, **options: Any) -> Callable[[], None]:
    """Emits as fast as it can for a while, and flushes now and then, so that segments are small and many."""

    def work() -> None:
        exporter = JSONLExporter(directory, **{"rotate_bytes": 20_000, "flush_interval": 0.05, **options})
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            for _ in range(100):
                exporter.emit({"worker": worker, "seq": acknowledged[worker], "filler": "x" * 20})
                acknowledged[worker] += 1
            exporter.flush()
        assert exporter.close()

    return work


def keeping_house(directory: Path, acknowledged: Acknowledgements, graveyard: Path | None) -> Callable[[], None]:
    """Compresses every sealed segment; with a graveyard, buries there all but the youngest few."""

    def work() -> None:
        names = SegmentNames(TEMPLATE)
        while not acknowledged[DONE]:
            files = segment_files(str(directory), names)
            sealed = [one for one in files if one.segment.age() < files[-1].segment.age()]
            for one in sealed[:-8] if graveyard is not None else []:
                os.rename(one.path, f"{graveyard}/{one.file}")
            for one in sealed[-8:]:
                if not one.suffix:
                    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
                    content = Path(one.path).read_bytes()
                    Path(f"{one.path}.gz.tmp").write_bytes(packer.compress(content) + packer.flush())
                    os.rename(f"{one.path}.gz.tmp", f"{one.path}.gz")
                    os.unlink(one.path)

    return work


class Seen:
    """What a reader has read: each worker's numbers must come in order, each once; gaps only where they may be."""

    def __init__(self, *, gaps: bool = False) -> None:
        self.next: Counter[int] = Counter()
        self.missing: set[tuple[int, int]] = set()
        self._gaps = gaps

    def add(self, event: dict[str, Any]) -> None:
        worker, number = event["worker"], event["seq"]
        expected = self.next[worker]
        if self._gaps and number > expected:
            self.missing.update((worker, gone) for gone in range(expected, number))
        else:
            assert number == expected, f"event {number} of worker {worker} instead of {expected}"
        self.next[worker] = number + 1


def reading_again_and_again(directory: Path, acknowledged: Acknowledgements, **options: Any) -> Callable[[], None]:
    def work() -> None:
        before: Counter[int] = Counter()
        rounds = 0
        while True:
            last = bool(acknowledged[DONE])
            if options.get("unflushed"):
                before = Counter(acknowledged.by_worker())
            seen = Seen()
            with read_events(directory, where=lambda event: "seq" in event, **options) as reader:
                for event in reader:
                    seen.add(event)
            assert reader.report.complete, reader.report
            short = {worker: count for worker, count in before.items() if worker < DONE and seen.next[worker] < count}
            assert not short, f"{short} were there already, now only {seen.next}"
            before = seen.next
            rounds += 1
            if last:
                break
        assert rounds > 2
        assert all(seen.next[worker] >= acknowledged[worker] for worker in range(WRITERS))

    return work


def following(
    directory: Path, acknowledged: Acknowledgements, graveyard: Path | None, follower: int
) -> Callable[[], None]:
    def work() -> None:
        pause = random.Random(os.getpid()).choice([0.001, 0.05, 0.5])
        seen = Seen(gaps=graveyard is not None)

        def stop() -> bool:
            acknowledged[LOOKING + follower] = 1
            return bool(acknowledged[DONE])

        reader = read_events(directory, follow=True, stream=TEMPLATE, poll_interval=pause, stop=stop)
        for event in reader:
            seen.add(event)
        report = reader.report
        assert (report.torn, report.damaged_segments, report.oversize) == (0, 0, 0), report
        for worker in range(WRITERS):
            seen.missing.update((worker, gone) for gone in range(seen.next[worker], acknowledged[worker]))
        if graveyard is None:
            assert not seen.missing
            assert report.complete, report
            return
        # Missing is only what was in segments that were expired before they could be opened, and those are counted.
        lost_in: set[str] = set()
        buried = 0
        names = SegmentNames(TEMPLATE)
        for one in segment_files(str(graveyard), names):
            (graveyard / f"of-{os.getpid()}").mkdir(exist_ok=True)
            os.link(one.path, graveyard / f"of-{os.getpid()}" / one.file)
            missing = {
                (event["worker"], event["seq"])
                for event in read_events(graveyard / f"of-{os.getpid()}", stream=TEMPLATE)
            }
            os.unlink(graveyard / f"of-{os.getpid()}" / one.file)
            if missing & seen.missing:
                assert missing <= seen.missing, f"{one.file} was read in part"
                lost_in.add(one.file)
                buried += len(missing)
        assert buried == len(seen.missing)
        assert report.expired_segments == len(lost_in), (report, len(lost_in))

    return work


@pytest.mark.sweep
@pytest.mark.parametrize("expires", [False, True], ids=["compresses", "compresses and expires"])
def test_every_event_is_read_exactly_once_while_segments_come_and_change(tmp_path: Path, expires: bool) -> None:
    logs, graveyard = tmp_path / "logs", tmp_path / "graveyard"
    logs.mkdir()
    graveyard.mkdir()
    acknowledged = Acknowledgements(LOOKING + FOLLOWERS)
    buried = graveyard if expires else None
    readers = [following(logs, acknowledged, buried, follower) for follower in range(FOLLOWERS)]
    if not expires:
        readers.append(reading_again_and_again(logs, acknowledged))
    with running(*readers, keeping_house(logs, acknowledged, buried)) as (*reading, house):
        # What was expired before a follower's first look it does not count.
        wait_until(lambda: all(acknowledged[LOOKING + follower] for follower in range(FOLLOWERS)))
        with running(*(writing(logs, acknowledged, worker) for worker in range(WRITERS))) as writers:
            for pid in writers:
                assert reap(pid) == 0
        assert not recover(logs).failures
        acknowledged[DONE] = 1
        assert reap(house) == 0
        for pid in reading:
            assert reap(pid) == 0
    assert acknowledged[0] > 100


@pytest.mark.sweep
def test_unflushed_shows_every_acknowledged_event_once_while_writers_emit_and_die(tmp_path: Path) -> None:
    acknowledged = Acknowledgements(WRITERS + 1)
    seed = int.from_bytes(os.urandom(4), "big")
    chance = random.Random(seed)
    JSONLExporter(tmp_path).emit({"first": True})
    readers = [reading_again_and_again(tmp_path, acknowledged, unflushed=True) for _ in range(2)]
    # Buffers of all sizes: some flush with nearly every event, some leave it to the helpers.
    sizes = [chance.choice([500, 5_000, 64_000]) for _ in range(WRITERS)]
    print(f"seed {seed}")
    with running(*readers) as reading:
        works = [
            writing(tmp_path, acknowledged, worker, buffer_size=sizes[worker], rotate_bytes=200_000)
            for worker in range(WRITERS)
        ]
        with running(*works) as writers:
            doomed = chance.randrange(WRITERS)
            wait_until(lambda: acknowledged[doomed] > chance.randrange(2_000, 20_000))
            os.kill(writers[doomed], signal.SIGKILL)
            assert [reap(pid) for pid in writers].count(0) == WRITERS - 1
        acknowledged[DONE] = 1
        for pid in reading:
            assert reap(pid) == 0
