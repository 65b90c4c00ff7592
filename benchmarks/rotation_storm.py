"""What does rotation cost, and what gets lost in it, when segments are 64 KiB?

Workload: 4 processes write as fast as they can; each segment holds some 400 events, so the slowest peer rotates dozens
of times and the fastest thousands. Everything is counted afterwards: events that are missing, there twice, or torn.

The same once more with segments of 10 MiB, in the same round, for the ratio. A bound does not rotate and is not here.
stdlib RotatingFileHandler keeps 50 files here, which is more than its events fill, and the others all.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

from common import ROUNDS, Report, ended, event, few, scratch, spread, start_together
from peers import OURS, PEERS, Peer, available, numbers_in, played

PROCESSES = 4
EVENTS = few(200_000)  # of all processes together, for the fast
LEAST = few(12_000)


def one_run(kind: type[Peer], rotate_bytes: int) -> tuple[float, int, int, int, int]:
    """Events per second; then how many there were, are missing, doubled, torn."""
    events = max(int(EVENTS * kind.share), LEAST) // PROCESSES
    with scratch() as directory:

        def work(peer: Peer, number: int, ready: Callable[[], None]) -> None:
            log, close = peer.writer()
            ready()
            for count in range(events):
                log(event(number, count))
            close()

        def host() -> float:
            peer = kind(directory, rotate_bytes)
            pids, started = start_together(PROCESSES, partial(work, peer))
            ended(pids)
            peer.finish()
            return time.perf_counter() - started

        elapsed = played(host)
        found, torn = numbers_in(directory)
    there = events * PROCESSES
    return there / elapsed, there, there - len(found), found.total() - len(found), torn


def main() -> None:
    report = Report(
        __file__,
        "What does rotation cost, and what gets lost in it, when segments are 64 KiB?",
        f"{PROCESSES} processes, {ROUNDS} rounds, median (min-max); missing, twice and torn: of all rounds",
    )
    kinds = [*OURS, *PEERS]
    rows = []
    storms: dict[type[Peer], list[tuple[float, int, int, int, int]]] = {kind: [] for kind in kinds if available(kind)}
    calm: dict[type[Peer], list[float]] = {kind: [] for kind in storms}
    for _ in range(ROUNDS):
        for kind, found in storms.items():
            found.append(one_run(kind, 64 * 1024))
            calm[kind].append(one_run(kind, 10 * 1024 * 1024)[0])
    for kind in kinds:
        if kind not in storms:
            rows.append([kind.name, "not installed", *[""] * 4])
            continue
        columns = list(zip(*storms[kind], strict=True))
        ratios = [storm / still for storm, still in zip(columns[0], calm[kind], strict=True)]
        missing, twice, torn = (f"{sum(column):,}" for column in columns[2:])
        rate = spread([one / 1000 for one in columns[0]], ".1f")
        rows.append([kind.name, rate, spread(ratios), f"{missing} of {sum(columns[1]):,}", twice, torn])
        report.figures[kind.name] = {
            "per_s": statistics.median(columns[0]),
            "missing": sum(columns[2]) / sum(columns[1]),
            "twice": sum(columns[3]),
            "torn": sum(columns[4]),
        }
    report.table(["", "thousands per second", "against 10 MiB", "missing", "twice", "torn"], rows)
    report.save()


if __name__ == "__main__":
    main()
