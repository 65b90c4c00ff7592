"""A root master and workers that are somebody else: real user ids, and no permission error anywhere."""

from __future__ import annotations

import _strptime  # noqa: F401  # the interpreter may be installed where only root may read
import gzip  # noqa: F401  # as above
import logging
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checks import check_log
from processes import Acknowledgements, fork, reap, running, wait_until

from profilis_mp import JSONLExporter, check_exporter_health, read_events, recover
from profilis_mp.cli.rotation import seal_streams
from profilis_mp.janitor.external import sweep_once
from profilis_mp.janitor.upkeep import Upkeep

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

NOBODY, GROUP = 65534, 65533
EVENTS = 200


@pytest.fixture
def said(shared_directory: Path) -> Iterator[Path]:
    """What the library warns about, in this process and in those forked from it, whoever they become."""
    path = shared_directory / "said"
    handler = logging.FileHandler(path)
    path.chmod(0o666)
    logger = logging.getLogger("profilis_mp")
    logger.addHandler(handler)
    yield path
    logger.removeHandler(handler)
    handler.close()


def become(uid: int = NOBODY, gid: int = GROUP, groups: tuple[int, ...] = ()) -> None:
    os.setgroups(groups)
    os.setgid(gid)
    os.setuid(uid)


def emitting(exporter: JSONLExporter, worker: int, acknowledged: Acknowledgements, as_whom: Callable[[], None]) -> None:
    as_whom()
    for number in range(EVENTS):
        exporter.emit({"worker": worker, "seq": number, "fill": "x" * 100})
        acknowledged[worker] = number + 1


def owners_in(directory: Path) -> set[tuple[int, int]]:
    return {(path.lstat().st_uid, path.lstat().st_gid) for path in (directory, *directory.rglob("*"))}


@pytest.mark.parametrize("given", ["owner", "directory"])
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_workers_of_a_root_master_meet_no_permission_error(
    shared_directory: Path, said: Path, given: str, umask: int
) -> None:
    """The master emits before the fork and after it; files belong to the workers, by owner= or by the directory."""
    directory = shared_directory / "logs"
    options: dict[str, Any] = {"rotate_bytes": 5000, "buffer_size": 1000, "compress_old_files": True}
    if given == "owner":
        options |= {"owner": (NOBODY, GROUP), "dir_mode": 0o750, "file_mode": 0o640}
    else:
        directory.mkdir(mode=0o755)
        os.chown(directory, NOBODY, GROUP)
    acknowledged = Acknowledgements(4)
    old = os.umask(umask)
    try:
        exporter = JSONLExporter(directory, compress_delay_secs=0.0, flush_interval=0.05, **options)
        emitting(exporter, 0, acknowledged, lambda: None)
        assert check_exporter_health(exporter)["permissions"] == []
        workers = [fork(lambda n=n: emitting(exporter, n, acknowledged, become)) for n in (1, 2)]  # type: ignore[misc]
        assert [reap(pid) for pid in workers] == [0, 0]

        def last_worker() -> None:
            become()
            emitting(exporter, 3, acknowledged, lambda: None)
            # It leads once the master is gone, and finds the master's and the others' spools, flushes and removes them.
            wait_until(lambda: exporter.stats()["leading"], what="the worker leads")
            exporter.rotate()
            exporter.emit({"worker": 3, "seq": EVENTS})  # a new segment, by which its janitor hears of the elder ones
            acknowledged[3] = EVENTS + 1
            wait_until(lambda: len(list(directory.glob("*.jsonl"))) == 1, what="the worker compresses what root began")
            assert exporter.stats()["spool"] == "file"
            assert exporter.stats()["flush_failures"] == {}
            assert check_exporter_health(exporter)["permissions"] == []
            assert len(list(directory.rglob("spool/*"))) == 1

        with running(last_worker) as (pid,):
            exporter.close()
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, said.read_text()
    finally:
        os.umask(old)
    assert owners_in(directory) == {(NOBODY, GROUP)}
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.glob("*.gz")} == {0o640}
    assert not recover(directory).failures
    check_log(directory, acknowledged.by_worker(), context=f"{given}, umask {umask:03o}")
    assert "belongs to" not in said.read_text()
    assert "ermission" not in said.read_text()


def test_the_command_line_run_by_root_leaves_nothing_that_stops_the_writers(shared_directory: Path) -> None:
    """The control file is lost, a segment is opened, another compressed, by root without any owner=."""
    directory = shared_directory / "logs"
    acknowledged = Acknowledgements(4)
    for worker, run_by_root in enumerate(
        [
            lambda: recover(directory),
            lambda: seal_streams(str(directory), None),
            lambda: sweep_once(directory, upkeep=Upkeep(compress_old_files=True, compress_delay_secs=0.0)),
            lambda: None,
        ]
    ):
        # By owner= once, in root's own directory: from then on the state directory remembers whose the stream is.
        exporter = JSONLExporter(directory, owner=(NOBODY, GROUP), rotate_bytes=5000, flush_interval=1e6)
        exporter.prepare()
        pid = fork(lambda w=worker, e=exporter: emitting(e, w, acknowledged, become))  # type: ignore[misc]
        assert reap(pid) == 0
        for lost in [*directory.rglob("control"), *directory.rglob("janitor.lock")]:
            lost.unlink()
        run_by_root()
        assert owners_in(directory) == {(NOBODY, GROUP)}, f"after {worker}"

    def finish() -> None:
        become()
        report = recover(directory)
        assert not report.failures, report

    assert reap(fork(finish)) == 0
    check_log(directory, acknowledged.by_worker())


def test_workers_that_may_not_use_roots_directory_are_told_why_and_are_not_stopped(
    shared_directory: Path, said: Path
) -> None:
    """Without owner=, in a directory of root's: events are kept in memory, with a warning that says what to do."""
    directory = shared_directory / "logs"
    exporter = JSONLExporter(directory, flush_interval=0.05)
    exporter.emit({"worker": 0, "seq": 0})
    mended = shared_directory / "mended"

    def work() -> None:
        become()
        exporter.emit({"worker": 1, "seq": 0})
        assert exporter.stats()["spool"] == "memory"
        wait_until(mended.exists)
        wait_until(lambda: exporter.stats()["unflushed_bytes"] == 0, what="what was kept in memory is flushed")
        wait_until(lambda: exporter.stats()["spool"] == "file", what="a spool on disk")
        exporter.emit({"worker": 1, "seq": 1})

    with running(work) as (pid,):
        wait_until(lambda: "no spool can be created" in said.read_text(), what="the warning")
        for path in (directory, *directory.rglob("*")):
            os.chown(path, NOBODY, GROUP)
        mended.touch()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    warning = said.read_text().splitlines()[0]
    assert f"{directory} belongs to user root" in warning or ".profilis-mp belongs to user root" in warning
    assert "this process runs as user nobody" in warning
    assert "give owner= to the process of root" in warning
    exporter.close()
    recover(directory)
    check_log(directory, {0: 1, 1: 2})


def test_a_spool_of_anothers_is_left_to_him_with_one_warning(shared_directory: Path, said: Path) -> None:
    """owner= root, in a user's stream: the leader may not open that spool, and its own process flushes it."""
    directory = shared_directory / "logs"
    directory.mkdir()
    os.chown(directory, NOBODY, GROUP)
    done = shared_directory / "done"

    def lead() -> None:
        become()
        exporter = JSONLExporter(directory, flush_interval=0.05)
        exporter.emit({"worker": 0, "seq": 0})
        wait_until(lambda: exporter.stats()["leading"])
        wait_until(done.exists)

    with running(lead) as (pid,):
        wait_until(lambda: list(directory.rglob("janitor.lock")), what="somebody leads")
        exporter = JSONLExporter(directory, owner="root", flush_interval=0.05)
        exporter.emit({"worker": 1, "seq": 0})
        assert exporter.stats()["spool"] == "file"
        wait_until(lambda: exporter.stats()["unflushed_bytes"] == 0, what="its own process flushes it")
        wait_until(lambda: said.read_text(), what="the leader says that it may not")
        before = time.monotonic()
        wait_until(lambda: time.monotonic() > before + 1.0, what="twenty more ticks")
        assert said.read_text().count("left to its own user") == 1
        done.touch()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    exporter.close()
    assert not recover(directory).failures
    check_log(directory, {0: 1, 1: 1})


def test_users_of_one_group_write_together(shared_directory: Path) -> None:
    """file_mode=0o660 and dir_mode=0o2770: nobody of them is root, and each flushes what the others left."""
    directory = shared_directory / "logs"
    options: dict[str, Any] = {"file_mode": 0o660, "dir_mode": 0o2770, "rotate_bytes": 5000, "flush_interval": 1e6}
    JSONLExporter(directory, owner=(0, GROUP), **options).prepare()
    acknowledged = Acknowledgements(3)
    for worker in range(3):
        exporter = JSONLExporter(directory, **options)
        me = 60_000 + worker
        pid = fork(lambda w=worker, e=exporter, u=me: emitting(e, w, acknowledged, lambda: become(u, u, (GROUP,))))  # type: ignore[misc]
        assert reap(pid) == 0

    def finish() -> None:
        become(60_009, 60_009, (GROUP,))
        report = recover(directory)
        assert not report.failures, report
        with read_events(directory) as events:
            assert len(list(events)) == 3 * EVENTS

    assert reap(fork(finish)) == 0
    check_log(directory, acknowledged.by_worker())
    assert {gid for _, gid in owners_in(directory)} == {GROUP}


def test_whoever_is_not_root_keeps_what_it_makes_and_is_told_once(shared_directory: Path, said: Path) -> None:
    directory = shared_directory / "logs"
    directory.mkdir()
    os.chown(directory, NOBODY, GROUP)

    def work() -> None:
        become()
        with JSONLExporter(directory, owner="root") as exporter:
            exporter.emit({"worker": 0, "seq": 0})

    assert reap(fork(work)) == 0
    (line,) = said.read_text().splitlines()
    assert "as owner= says" in line
    assert "only root can give files away" in line
    assert owners_in(directory) == {(NOBODY, GROUP)}
    check_log(directory, {0: 1})


@pytest.mark.sweep
def test_processes_that_start_at_once_all_have_their_spool_on_disk(shared_directory: Path) -> None:
    """Each of root's renames its own directory into place, over one that another has just made and not yet used."""
    processes = 8
    for attempt in range(40):
        directory = shared_directory / str(attempt) / "logs"
        there, kinds = Acknowledgements(processes), Acknowledgements(processes)

        def start(
            worker: int, directory: Path = directory, there: Acknowledgements = there, kinds: Acknowledgements = kinds
        ) -> None:
            exporter = JSONLExporter(directory, flush_interval=3600)  # nobody replaces a spool in memory meanwhile
            there[worker] = 1
            while there.total() < processes:
                time.sleep(0)
            exporter.emit({"worker": worker, "seq": 0})
            kinds[worker] = 1 + (exporter.stats()["spool"] == "file")

        for pid in [fork(lambda worker=worker: start(worker)) for worker in range(processes)]:
            assert reap(pid) == 0
        assert kinds.by_worker() == dict.fromkeys(range(processes), 2)
