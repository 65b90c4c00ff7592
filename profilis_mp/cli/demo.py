"""Does it keep its promise on this machine?  Workers emit, rotation runs, some are killed; then everything is counted.

What a worker has acknowledged (its ``emit`` returned) is counted in memory that outlives it, so the account at the end
does not rest on anything the killed process could still have said.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial

from profilis_mp.account import Account, take_account
from profilis_mp.core.events import Event, db_event, fn_event, req_event
from profilis_mp.exporters.jsonl import JSONLExporter
from profilis_mp.sharedlog.recovery import RecoveryReport, recover

__all__ = ["run_demo"]

_ROTATE_BYTES = 2 * 1024 * 1024
_MOST_WORKERS = 10_000


def run_demo(directory: str, *, workers: int, seconds: float, seed: int) -> bool:
    """Run the demo and print its account.

    Args:
        directory: The log directory; must not hold anything yet.
        workers: How many processes emit at a time.
        seconds: For how long.
        seed: Decides when which worker is killed.

    Returns:
        Whether the account balances.
    """
    acknowledged = memoryview(mmap.mmap(-1, 8 * _MOST_WORKERS)).cast("Q")
    print(f"{workers} workers emit REQ, FN and DB events into {directory} for {seconds:g} s, and some are killed …")
    started = time.monotonic()
    births, kills = _storm(directory, acknowledged, workers, seconds, random.Random(seed))
    elapsed = time.monotonic() - started
    report = recover(directory)
    counts = {worker: count for worker, count in enumerate(acknowledged[:births]) if count}
    account = take_account(directory, counts, rotate_bytes=_ROTATE_BYTES)
    balances = account.balanced and not report.failures and account.acknowledged > 0
    _print_account(directory, account, report, births, kills, elapsed, balances=balances)
    return balances


def _storm(
    directory: str, acknowledged: memoryview, workers: int, seconds: float, dice: random.Random
) -> tuple[int, int]:
    """Fork workers, kill some with SIGKILL and replace them; returns how many there were and how many were killed."""
    births = kills = 0

    def start() -> int:
        nonlocal births
        births += 1
        return _fork(partial(_work, directory, births - 1, acknowledged))

    pids = [start() for _ in range(workers)]
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end and births < _MOST_WORKERS:
            time.sleep(dice.uniform(0.05, 0.25))
            victim = dice.randrange(workers)
            os.kill(pids[victim], signal.SIGKILL)
            os.waitpid(pids[victim], 0)
            kills += 1
            pids[victim] = start()
    finally:
        # Half of them may close; the rest dies with full spools and nobody left to help, so that recovery has work.
        for position, pid in enumerate(pids):
            os.kill(pid, signal.SIGTERM if position % 2 else signal.SIGSTOP)
        for position, pid in enumerate(pids):
            if position % 2 == 0:
                os.kill(pid, signal.SIGKILL)
                kills += 1
            os.waitpid(pid, 0)
    return births, kills


def _fork(work: Callable[[], None]) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def _work(directory: str, worker: int, acknowledged: memoryview) -> None:
    """One worker: emit until told to stop."""
    stopping = False

    def stop(signum: int, frame: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    exporter = JSONLExporter(directory, rotate_bytes=_ROTATE_BYTES)
    number = 0
    while not stopping:
        exporter.emit(_event(worker, number))
        number += 1
        acknowledged[worker] = number
    exporter.close()


def _event(worker: int, number: int) -> Event:
    kind = number % 3
    if kind == 0:
        return req_event("/api/users/<id>", 200, 15_000_000, worker=worker, seq=number)
    if kind == 1:
        return fn_event("get_user_data", 12_000_000, worker=worker, seq=number)
    return db_event("SELECT * FROM users WHERE id = ?", 5_000_000, 1, worker=worker, seq=number)


def _print_account(
    directory: str,
    account: Account,
    report: RecoveryReport,
    births: int,
    kills: int,
    elapsed: float,
    *,
    balances: bool,
) -> None:
    unacknowledged = account.on_disk - account.acknowledged + account.lost
    rows: list[tuple[str, str]] = [
        ("workers", f"{births:,}, of which {kills:,} were killed with SIGKILL"),
        ("acknowledged", f"{account.acknowledged:,} events whose emit() had returned"),
        ("on disk", f"{account.on_disk:,}, {unacknowledged:,} of them written by an emit() that a kill cut short"),
        ("lost", f"{account.lost:,}"),
        ("duplicated", f"{account.duplicated:,}"),
        ("torn", f"{account.torn:,}"),
        ("out of order", f"{account.out_of_order:,} within their process"),
        ("segments", f"{account.segments:,}, {account.oversize_segments:,} larger than {_ROTATE_BYTES:,} bytes"),
        (
            "recovered",
            f"{report.dead_spools:,} spools of dead processes, {report.flushed_bytes:,} bytes, "
            f"{report.finished_flushes:,} interrupted flushes",
        ),
        ("speed", f"{account.on_disk / elapsed:,.0f} events per second, kills and all"),
        ("files", directory),
    ]
    for label, text in rows:
        print(f"  {label:<13} {text}")
    for finding in [*account.findings, *report.failures]:
        print(f"  ! {finding}")
    print("The account balances." if balances else "THE ACCOUNT DOES NOT BALANCE.")
