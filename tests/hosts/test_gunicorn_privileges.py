"""gunicorn started by root, with workers that are somebody else."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from gunicorn_hosting import clients_of, gunicorn, unaccounted
from processes import wait_until
from serving import is_alive, kill, request, tree_of, workers_of

from profilis_mp import recover

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start workers that are somebody else")

NOBODY, GROUP = 65534, 65533
AS_NOBODY = (f"--user={NOBODY}", f"--group={GROUP}", "--preload")


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that only root may write to, and everybody may enter; pytest's own are root's alone."""
    path = Path(tempfile.mkdtemp(prefix="profilis-mp-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def owners_in(logs: Path) -> set[tuple[int, int]]:
    return {(path.lstat().st_uid, path.lstat().st_gid) for path in (logs, *logs.rglob("*"))}


def stats_of_one_that_has_emitted(port: int) -> dict[str, Any]:
    """Of whichever worker answers; one that has just been forked has nothing to tell yet."""
    found: dict[str, Any] = {}

    def ask() -> bool:
        found.update(orjson.loads(request(port, "/stats") or "{}"))
        return found.get("spool") is not None

    wait_until(ask, what="a worker that has emitted")
    return found


@pytest.mark.parametrize("given", ["owner", "directory", "hook"])
def test_unprivileged_workers_use_what_their_root_master_made(directory: Path, given: str) -> None:
    """The master has emitted before it forks, and goes on; its workers, and it, are killed; it is started again.

    Who completes the account: the workers that are left, then `recover`, run by root.
    """
    logs = directory / "logs"
    ticks = directory / "ticks"
    ticks.write_bytes(bytes(8))
    environment, options = {"TICKS": str(ticks)}, AS_NOBODY
    if given == "owner":
        environment["OWNER"] = f"{NOBODY}:{GROUP}"
    elif given == "directory":
        logs.mkdir()
        os.chown(logs, NOBODY, GROUP)
    else:  # nobody emits before on_starting has made the directory for the workers
        environment = {"PROFILIS_DIR": str(logs)}
        (directory / "gunicorn.conf.py").write_text(
            "from profilis_mp.gunicorn import child_exit, on_exit, on_starting\n"
        )
        options = (*options, "-c", str(directory / "gunicorn.conf.py"))
    answered: list[str] = []
    for _ in range(2):
        with gunicorn(directory, *options, workers=2, environment=environment) as (port, master):
            with clients_of(port, 2) as clients:
                for _ in range(2):
                    clients.wait_for_more(20, "answers")
                    kill(workers_of(master.pid)[0])
                clients.wait_for_more(20, "answers")
            stats = stats_of_one_that_has_emitted(port)
            assert (stats["uid"], stats["spool"], stats["flush_failures"].get("permission")) == (NOBODY, "file", None)
            processes = tree_of(master.pid)
            for pid in processes:
                kill(pid)
            master.wait()
            wait_until(lambda pids=processes: not any(map(is_alive, pids)), what="all are dead")
        answered += clients.answered
    report = recover(logs)
    assert not report.failures, report
    assert unaccounted(logs, answered) == []
    assert owners_in(logs) == {(NOBODY, GROUP)}
    assert "belongs to" not in (directory / "server.log").read_text()


def test_the_access_log_of_a_root_master_belongs_to_its_workers(directory: Path) -> None:
    """As gunicorn's own log files do. Who completes the account: the workers' exit hooks."""
    options = ("--logger-class=profilis_mp.gunicorn.AccessLogger", f"--env=PROFILIS_DIR={directory}/access")
    logs = directory / "logs"
    logs.mkdir()
    os.chown(logs, NOBODY, GROUP)
    with gunicorn(directory, *AS_NOBODY, *options, workers=1) as (port, _):
        assert request(port, "/api/users/1") is not None
    (segment,) = (directory / "access").glob("access-*.jsonl")
    assert "/api/users/1" in segment.read_text()
    assert owners_in(directory / "access") == {(NOBODY, GROUP)}


def test_workers_without_a_usable_directory_answer_and_say_what_is_wrong(directory: Path) -> None:
    """Root made it all, and nobody said whose it should be: the application goes on, with a warning a minute."""
    ticks = directory / "ticks"
    ticks.write_bytes(bytes(8))
    environment = {"TICKS": str(ticks), "PROFILIS_DEBUG": "1"}
    with gunicorn(directory, *AS_NOBODY, workers=1, environment=environment) as (port, master):
        answered = [request(port, f"/api/users/{number}") for number in range(5)]
        stats = stats_of_one_that_has_emitted(port)
        kill(master.pid, signal.SIGTERM)
        master.wait(60)
    assert None not in answered
    assert stats["spool"] == "memory"
    log = (directory / "server.log").read_text()
    assert "events are kept in memory" in log
    assert "belongs to user root" in log
    assert "give owner= to the process of root" in log
