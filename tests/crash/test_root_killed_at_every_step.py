"""A root master killed after every single step leaves nothing that its unprivileged workers may not use."""

from __future__ import annotations

import _strptime  # noqa: F401  # the interpreter may be installed where only root may read
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from checks import check_log
from processes import Acknowledgements, fork, reap
from stepping import changing_steps, killed_after

from profilis_mp import JSONLExporter, recover

pytestmark = [
    pytest.mark.sweep,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away"),
]

NOBODY = 65534


def exporter_for(directory: str) -> JSONLExporter:
    # The helper thread sleeps: one thread, so that a step is a step.
    return JSONLExporter(directory, owner=(NOBODY, NOBODY), dir_mode=0o750, rotate_bytes=60, flush_interval=1e6)


def as_nobody(work: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        work()

    return run


def test_what_a_killed_root_master_made_can_be_used_by_its_workers(shared_directory: Path, tmp_path: Path) -> None:
    def master(directory: str, acknowledged: Acknowledgements) -> None:
        exporter = exporter_for(directory)
        for number in range(3):
            exporter.emit({"worker": 0, "seq": number, "fill": "x" * 20})
            acknowledged[0] = number + 1
        exporter.flush()

    def worker(directory: str, acknowledged: Acknowledgements) -> None:
        exporter = exporter_for(directory)
        for number in range(3):
            exporter.emit({"worker": 1, "seq": number, "fill": "x" * 20})
            acknowledged[1] = number + 1
        stats = exporter.stats()
        assert stats["spool"] == "file", stats
        assert exporter.close(), exporter.stats()
        report = recover(directory)
        assert not report.failures, report

    def owners(directory: str) -> object:
        paths = sorted(Path(directory).parent.rglob("*"))
        return [(path, status.st_uid, status.st_gid, status.st_mode) for path in paths for status in [path.lstat()]]

    again = str(shared_directory / "again")
    steps = changing_steps(lambda: master(again, Acknowledgements(2)), again, tmp_path, look_at=owners)
    shutil.rmtree(again)
    assert len(steps) > 30, "the sweep saw too little"
    used = 0
    for step in steps:
        directory = str(shared_directory / f"{step}")
        acknowledged = Acknowledgements(2)
        masters, workers = partial(master, directory, acknowledged), partial(worker, directory, acknowledged)
        assert reap(fork(killed_after(step, masters))) == -signal.SIGKILL
        # The log directory itself is not the workers' to make: where the master did not come so far, they wait for it.
        if os.path.isdir(directory):
            assert reap(fork(as_nobody(workers))) == 0, f"step {step}"
            check_log(directory, acknowledged.by_worker(), rotate_bytes=60, context=f"step {step}")
            for path in Path(directory).rglob("*"):
                # Of a file that never got its name nobody takes notice, whosever it is; nor does it take any space.
                if path.suffix == ".new":
                    assert path.is_dir() or path.stat().st_nlink == 1, f"step {step}: {path} outlives its segment"
                else:
                    assert (path.stat().st_uid, path.stat().st_gid) == (NOBODY, NOBODY), f"step {step}: {path}"
            used += 1
    assert used > 20
