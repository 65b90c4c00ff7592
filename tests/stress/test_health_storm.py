"""Health is asked for without a pause while writers and helpers are killed: nothing is harmed, nothing is misread."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from checks import check_log
from processes import Acknowledgements, fork

from profilis_mp import JSONLExporter, check_exporter_health, cleanup_old_files, monitor_log_directory, recover

WRITERS = 4
SECONDS = 5.0
ROTATE_BYTES = 64 * 1024


def writer(directory: str, worker: int, acknowledged: Acknowledgements) -> Callable[[], None]:
    def work() -> None:
        exporter = JSONLExporter(directory, rotate_bytes=ROTATE_BYTES, buffer_size=4096, flush_interval=0.05)
        number = 0
        while True:
            exporter.emit({"worker": worker, "seq": number, "ts_ns": time.time_ns()})
            number += 1
            acknowledged[worker] = number

    return work


@pytest.mark.sweep
def test_health_checks_in_a_kill_storm_harm_nothing_and_misread_nothing(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    directory = str(tmp_path / "logs")
    acknowledged = Acknowledgements(4096)
    workers = iter(range(4096))

    def start() -> int:
        return fork(writer(directory, next(workers), acknowledged))

    def look() -> None:
        exporter = JSONLExporter(directory, rotate_bytes=ROTATE_BYTES)
        checks = Acknowledgements(1)
        told: set[str] = set()
        while True:
            health = check_exporter_health(exporter)
            told.update(health["stream"]["damaged"], health["permissions"])
            monitor_log_directory(directory)
            # The active segment is never among what a cleanup would remove.
            active = exporter.current_path
            removable = cleanup_old_files(directory, 1e-9, dry_run=True)
            if active == exporter.current_path and active in removable:
                told.add(f"{active} would have been removed")
            checks[0] += 1
            Path(tmp_path / "told.new").write_bytes(orjson.dumps([checks[0], sorted(told)]))
            os.rename(tmp_path / "told.new", tmp_path / "told")

    writers = [start() for _ in range(WRITERS)]
    looking = fork(look)
    try:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            time.sleep(dice.uniform(0.0, 0.1))
            victim = dice.randrange(WRITERS)
            os.kill(writers[victim], signal.SIGKILL)
            os.waitpid(writers[victim], 0)
            writers[victim] = start()
    finally:
        for pid in [*writers, looking]:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    report = recover(directory)
    assert not report.failures, report
    check_log(directory, acknowledged.by_worker(), rotate_bytes=ROTATE_BYTES, context=f"seed {seed}")
    checks, told = orjson.loads((tmp_path / "told").read_bytes())
    assert told == [], seed
    assert checks, seed
    assert not os.listdir(f"{directory}/.profilis-mp/profilis-{{timestamp}}.jsonl/spool")
