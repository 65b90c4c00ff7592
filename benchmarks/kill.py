"""What is lost when half of the processes are killed with ``kill -9``, and do the others go on?

Workload: 8 processes write as fast as they can, with rotation at 256 KiB, so that kills meet rotations. Each notes, in
memory that outlives it, how many of its calls have returned. Half of them are killed at a random moment each, soon
enough that the fastest is still at it; the others go on for a while, and are then asked to end. A survivor that has not
got on for two seconds is frozen, and is killed at the end. Then everything on disk is read.

Lost: calls that had returned, and whose event is not on disk. ("Of survivors" are those of processes that were never
killed: a queue whose reader was lost, or a file that somebody else renamed.) Torn: lines that do not parse.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from common import ROUNDS, Report, Shared, ended, event, scratch, start_together
from peers import OURS, PEERS, Appended, Buffered, Peer, available, numbers_in, played

from profilis_mp import recover

PROCESSES = 8
KILLED = PROCESSES // 2
ROTATE_BYTES = 256 * 1024
BEFORE_S = 0.15
AFTER_S = 0.15
FROZEN_S = 2.0
HUNG_S = 12.0
MOST = 60_000  # events of one process: the memory of those who count must end somewhere


class Outcome(NamedTuple):
    """Of one run; events, but for ``frozen`` survivors."""

    acknowledged: int
    lost: int
    lost_of_survivors: int
    duplicated: int
    torn: int
    frozen: int


def host(kind: type[Peer], directory: str, returned: Shared, seed: int) -> int:
    """Let them write, kill half, wait for the rest; returns how many of these were frozen."""
    dice = random.Random(seed)
    stop = Shared(1)
    peer = kind(directory, ROTATE_BYTES)

    def work(number: int, ready: Callable[[], None]) -> None:
        log, close = peer.writer()
        ready()
        for count in range(MOST):
            log(event(number, count))
            returned[number] = count + 1
            if stop[0]:
                break
        else:
            while not stop[0]:
                time.sleep(0.01)
        close()

    pids, _ = start_together(PROCESSES, work)
    time.sleep(BEFORE_S * dice.uniform(0.6, 1.0))
    for pid in pids[:KILLED]:
        time.sleep(dice.uniform(0, 0.02))
        os.kill(pid, signal.SIGKILL)
    time.sleep(AFTER_S)
    seen = [returned[number] for number in range(PROCESSES)]
    deadline = time.monotonic() + FROZEN_S
    while time.monotonic() < deadline and any(
        returned[number] == seen[number] < MOST for number in range(KILLED, PROCESSES)
    ):
        time.sleep(0.01)
    frozen = sum(returned[number] == seen[number] < MOST for number in range(KILLED, PROCESSES))
    stop[0] = 1
    ended(pids, 3.0 if frozen else 20.0)
    if not frozen:
        peer.finish()
    return frozen


def one_run(kind: type[Peer], seed: int) -> Outcome:
    with scratch() as directory:
        returned = Shared(PROCESSES)
        try:
            frozen = played(partial(host, kind, directory, returned, seed), HUNG_S)
        except RuntimeError:  # the parent itself hangs: nobody gets on
            frozen = PROCESSES - KILLED
        if kind in OURS:
            recover(directory)
        found, torn = numbers_in(directory)
    on_disk = Counter(worker for worker, number in found if number < returned[worker])
    lost = [returned[number] - on_disk[number] for number in range(PROCESSES)]
    acknowledged = sum(returned[number] for number in range(PROCESSES))
    return Outcome(acknowledged, sum(lost), sum(lost[KILLED:]), found.total() - len(found), torn, frozen)


def main() -> None:
    report = Report(
        __file__,
        "What is lost when half of the processes are killed with kill -9?",
        f"{PROCESSES} processes, {KILLED} killed, rotation at {ROTATE_BYTES // 1024} KiB, {ROUNDS} rounds; "
        "median of events (min-max), frozen: sum",
    )
    kinds = [Buffered, Appended, *OURS, *PEERS]
    outcomes: dict[type[Peer], list[Outcome]] = {kind: [] for kind in kinds if available(kind)}
    for number in range(ROUNDS):
        for kind, found in outcomes.items():
            found.append(one_run(kind, number))
    rows = []
    for kind in kinds:
        if kind not in outcomes:
            rows.append([kind.name, "not installed", *[""] * 5])
            continue
        columns = list(zip(*outcomes[kind], strict=True))
        cells = [f"{statistics.median(column):,.0f} ({min(column):,}-{max(column):,})" for column in columns[:5]]
        survivors = ROUNDS * (PROCESSES - KILLED)
        rows.append([kind.name, *cells, f"{sum(columns[5])} of {survivors}"])
        report.figures[kind.name] = {
            "acknowledged": sum(columns[0]),
            "lost": sum(columns[1]),
            "lost, largest": max(columns[1]),
            "duplicated": sum(columns[3]),
            "torn": sum(columns[4]),
            "frozen": sum(columns[5]),
            "share lost": sum(columns[1]) / max(sum(columns[0]), 1),
        }
    report.table(["", "returned", "lost", "of survivors", "duplicated", "torn", "frozen"], rows)
    report.picture(partial(draw, report.figures), height=3.5)
    report.save()


def draw(figures: dict[str, Any], axes: Any) -> None:
    names = list(reversed(figures))
    shares = [100 * figures[name]["share lost"] for name in names]
    axes.barh(names, shares, color=["tab:green" if "profilis_mp" in name else "tab:gray" for name in names])
    for row, name in enumerate(names):
        one = figures[name]
        text = f" {one['lost']:,} of {one['acknowledged']:,}"
        extra = [f"{one[what]:,} {what}" for what in ("torn", "duplicated") if one[what]]
        if one["frozen"]:
            extra.append(f"{one['frozen']} survivors frozen")
        axes.text(shares[row], row, text + ("; " + ", ".join(extra) if extra else ""), va="center", fontsize=7)
    axes.set(xlabel="per cent of the events whose call had returned that are lost", xlim=(0, max(100, *shares) * 1.3))


if __name__ == "__main__":
    main()
