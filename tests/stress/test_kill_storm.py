"""Many processes, random SIGKILLs, small segments: what was acknowledged is on disk, exactly once."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checks import check_log
from processes import Acknowledgements, fork

from profilis_mp import AsyncCollector, JSONLExporter, recover

WRITERS = 5
SECONDS = 6.0
ROTATE_BYTES = 64 * 1024


def writer(directory: str, worker: int, acknowledged: Acknowledgements, through: str) -> Callable[[], None]:
    def work() -> None:
        # Where many more processes than cores want the lock, one may not get it for a second, and a spool that is full
        # drops what comes, counted. Here it waits instead: who is killed can tell no count.
        exporter = JSONLExporter(
            directory, rotate_bytes=ROTATE_BYTES, buffer_size=4096, flush_interval=0.05, lock_timeout=60
        )
        emit: Callable[[Any], None] = AsyncCollector(exporter).enqueue if through == "enqueue" else exporter.emit
        number = 0
        while True:
            emit({"kind": "FN", "worker": worker, "seq": number, "fill": "x" * (number * 7919 % 300)})
            number += 1
            acknowledged[worker] = number

    return work


def helper(directory: str) -> Callable[[], None]:
    """A process that only helps: it recovers, again and again, while the others write."""

    def work() -> None:
        while True:
            recover(directory)

    return work


@pytest.mark.sweep
@pytest.mark.parametrize("through", ["emit", "enqueue"])
def test_kill_storm_loses_duplicates_and_tears_nothing(tmp_path: Path, through: str) -> None:
    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    directory = str(tmp_path / "logs")
    acknowledged = Acknowledgements(4096)
    workers = iter(range(4096))

    def start() -> int:
        return fork(writer(directory, next(workers), acknowledged, through))

    writers = [start() for _ in range(WRITERS)]
    helping = fork(helper(directory))
    kills = 0
    try:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            time.sleep(dice.uniform(0.0, 0.08))
            victim = dice.randrange(WRITERS + 1)
            pid = helping if victim == WRITERS else writers[victim]
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            kills += 1
            if victim == WRITERS:
                helping = fork(helper(directory))
            else:
                writers[victim] = start()
    finally:
        for pid in [*writers, helping]:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    report = recover(directory)
    assert not report.failures, report
    account = check_log(directory, acknowledged.by_worker(), rotate_bytes=ROTATE_BYTES, context=f"seed {seed}")
    assert kills > 20
    assert account.acknowledged > 10_000
    assert account.segments > 20
    assert not os.listdir(f"{directory}/.profilis-mp/profilis-{{timestamp}}.jsonl/spool")
