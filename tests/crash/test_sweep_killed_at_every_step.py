"""The janitor is killed after each step of a sweep; the next sweep comes to the end that an undisturbed one does."""

from __future__ import annotations

import gzip
import os
import shutil
import signal
from pathlib import Path

import pytest
from processes import fork, reap
from stepping import changing_steps, killed_after

from profilis_mp import JSONLExporter, Upkeep
from profilis_mp.janitor.sweep import Sweeper
from profilis_mp.sharedlog.names import SegmentNames
from profilis_mp.sharedlog.settings import Settings
from profilis_mp.sharedlog.stream import StreamPaths

pytestmark = pytest.mark.sweep

NAMES = SegmentNames("profilis-{timestamp}-{index}.jsonl")
RULES = Upkeep(compress_old_files=True, compress_delay_secs=0, max_files=4)


def make_log(directory: str) -> None:
    """Seven segments, of which the rules keep four; one with a copy that was never finished."""
    exporter = JSONLExporter(directory, filename_template=NAMES.template, janitor=False)
    for number in range(6):
        exporter.emit({"seq": number})
        exporter.rotate()
    exporter.emit({"seq": 6})
    exporter.close()
    sealed = sorted(name for name in os.listdir(directory) if name.endswith(".jsonl"))[4]
    Path(f"{directory}/{sealed}.gz.0123abcd.tmp").write_bytes(b"half a copy")


def sweep(directory: str) -> None:
    sweeper = Sweeper(StreamPaths(directory, NAMES.stream), Settings.of_operator(directory, NAMES), RULES)
    report = sweeper.sweep()
    sweeper.close()
    assert not report.failures, report


def contents(directory: str) -> dict[str, bytes]:
    """What is in each segment, by its file's name."""
    found = {}
    for path in Path(directory).iterdir():
        if path.is_file():
            data = path.read_bytes()
            found[path.name] = gzip.decompress(data) if path.suffix == ".gz" else data
    return found


def test_janitor_killed_after_every_step_leaves_what_the_next_sweep_finishes(tmp_path: Path) -> None:
    origin, directory = str(tmp_path / "origin"), str(tmp_path / "log")
    make_log(origin)
    before = contents(origin)
    shutil.copytree(origin, directory)
    sweep(directory)
    expected = contents(directory)
    assert len(expected) == 4
    assert sum(name.endswith(".gz") for name in expected) == 3
    shutil.rmtree(directory)

    shutil.copytree(origin, directory)
    steps = changing_steps(lambda: sweep(directory), directory, tmp_path, package="janitor")
    shutil.rmtree(directory)
    assert len(steps) > 15, "a sweep has more steps than that"
    for step in steps:
        shutil.copytree(origin, directory)
        assert reap(fork(killed_after(step, lambda: sweep(directory), package="janitor"))) == -signal.SIGKILL
        # At every instant, each segment that stays is there, plain or compressed, and whole.
        for name in expected:
            plain = name.removesuffix(".gz")
            forms = [Path(directory, plain), Path(directory, f"{plain}.gz")]
            whole = [
                path.read_bytes() if path.suffix != ".gz" else gzip.decompress(path.read_bytes())
                for path in forms
                if path.exists()
            ]
            assert whole, f"step {step}: {plain} is in no form there"
            assert set(whole) == {before[plain]}, f"step {step}: {plain}"
        sweep(directory)
        assert contents(directory) == expected, f"step {step}"
        shutil.rmtree(directory)
