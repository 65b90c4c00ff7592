"""A process killed after every single step, then recovered, then checked; and the recovering process likewise."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from checks import check_log
from processes import Acknowledgements, fork, reap
from stepping import changing_steps, killed_after

from profilis_mp import JSONLExporter, recover

pytestmark = pytest.mark.sweep

ROTATE_BYTES = 150
MOMENT = 1_800_000_000 * 10**9


def stopped_clock() -> int:
    return MOMENT


def exporter_for(directory: str) -> JSONLExporter:
    # The helper thread sleeps: one thread, so that a step is a step.
    return JSONLExporter(
        directory, rotate_bytes=ROTATE_BYTES, buffer_size=200, spool_bytes=400, flush_interval=1e6, clock=stopped_clock
    )


def writing(directory: str, acknowledged: Acknowledgements) -> Callable[[], None]:
    """From the first record on: spools, flushes by size, rotations, a reset, a larger spool, a rotation on demand."""

    def work() -> None:
        exporter = exporter_for(directory)
        for number in range(6):
            exporter.emit({"worker": 0, "seq": number, "fill": "x" * (700 if number == 4 else 20 * number)})
            acknowledged[0] = number + 1
        exporter.rotate()
        exporter.emit({"worker": 0, "seq": 6})
        acknowledged[0] = 7
        exporter.close()

    return work


def sweep(run: Callable[[int], int]) -> int:
    """Call ``run(steps)`` with 0, 1, 2 … until it reports a clean end; returns how many steps that took."""
    steps = 0
    while run(steps) == -signal.SIGKILL:
        steps += 1
        assert steps < 20_000, "the scenario never ends"
    return steps


def test_writer_killed_after_every_step_loses_nothing(tmp_path: Path) -> None:
    def run(steps: int) -> int:
        directory = str(tmp_path / f"{steps}")
        acknowledged = Acknowledgements(1)
        code = reap(fork(killed_after(steps, writing(directory, acknowledged))))
        assert code in (0, -signal.SIGKILL)
        if os.path.isdir(directory):
            report = recover(directory)
            assert not report.failures, f"step {steps}: {report}"
            check_log(directory, {0: acknowledged[0]}, rotate_bytes=ROTATE_BYTES, context=f"step {steps}")
            shutil.rmtree(directory)
        return code

    assert sweep(run) > 500


def interrupted_states(tmp_path: Path) -> list[tuple[str, int]]:
    """One directory, with its number of acknowledged events, for each state that a killed writer can leave."""
    kept = []
    whole = str(tmp_path / "whole")
    for step in changing_steps(writing(whole, Acknowledgements(1)), whole, tmp_path):
        directory = str(tmp_path / f"killed-{step}")
        acknowledged = Acknowledgements(1)
        assert reap(fork(killed_after(step, writing(directory, acknowledged)))) == -signal.SIGKILL
        if os.path.isdir(directory):
            kept.append((directory, acknowledged[0]))
    return kept


SHARDS = 2


@pytest.mark.parametrize("shard", range(SHARDS))
def test_recovering_process_killed_after_every_step_loses_nothing(tmp_path: Path, shard: int) -> None:
    states = interrupted_states(tmp_path)
    assert len(states) > 50, "the sweep saw too little"
    directory = str(tmp_path / "again")
    kills = 0
    for origin, count in states[shard::SHARDS]:
        shutil.copytree(origin, directory)
        steps = changing_steps(lambda: assert_recovers(directory), directory, tmp_path)
        shutil.rmtree(directory)
        for step in steps:
            shutil.copytree(origin, directory)
            assert reap(fork(killed_after(step, lambda: assert_recovers(directory)))) == -signal.SIGKILL
            assert_recovers(directory)
            check_log(directory, {0: count}, rotate_bytes=ROTATE_BYTES, context=f"{origin}, step {step}")
            shutil.rmtree(directory)
        kills += len(steps)
    assert kills > 5 * len(states) // SHARDS


def assert_recovers(directory: str) -> None:
    report = recover(directory)
    assert not report.failures, report


def test_write_torn_at_every_byte_is_finished_byte_exact(tmp_path: Path) -> None:
    """The file size limit makes the kernel cut the write at that very byte, and kill the process at the next one."""
    lines = 6

    def work(directory: str, acknowledged: Acknowledgements, limit: int) -> None:
        exporter = exporter_for(directory)
        exporter.emit({"worker": 0, "seq": 0})
        exporter.flush()
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it otherwise
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        for number in range(1, lines):
            exporter.emit({"worker": 0, "seq": number})
            acknowledged[0] = number + 1
        exporter.flush()

    torn = 0
    for limit in range(23, ROTATE_BYTES + 1):
        directory = str(tmp_path / f"{limit}")
        acknowledged = Acknowledgements(1)
        code = reap(fork(lambda d=directory, a=acknowledged, n=limit: work(d, a, n)))
        torn += code == -signal.SIGXFSZ
        assert_recovers(directory)
        account = check_log(directory, {0: lines}, rotate_bytes=ROTATE_BYTES, context=f"limit {limit}")
        assert account.on_disk == lines
    assert torn > 50
