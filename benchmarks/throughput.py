"""How many events per second, from 1 to 16 processes, and what share of the bounds is that?

Workload: each process builds a REQ event in its loop (145 bytes as JSON) and hands it over, as fast as it can. Time
runs from the moment when all processes have opened what they need until the last event is on disk, and everybody's
files are closed: queues are drained. Peers rotate at 10 MiB. All lines are counted after each run, torn ones too.

Two bounds: ``orjson.dumps`` into a buffer and one ``os.write`` per 64 KiB, to a file of the process's own (no lock, no
rotation, nothing shared, 64 KiB lost with every kill), all in one loop; and one O_APPEND write per event.

Slow peers get fewer events (their share is in `peers`), and are run with 1, 4 and 16 processes only. The fast get as
many as take them a second, against which opening and closing (some milliseconds a process) count for little.

Left out: the page cache's own mood. A 64 KiB write takes 10 us into pages that the machine has at hand and 150 us into
pages it must find first; then both sides mostly wait for that, and the ratio rises. One round warms up.
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import Any

from common import ROUNDS, Report, ended, few, scratch, spread, start_together
from peers import OURS, PEERS, Appended, Buffered, Collector, Peer, available, lines_in, played

EVENTS = few(2_000_000)  # of all processes together
PROCESSES = (1, 2, 4, 8, 16)
PEER_PROCESSES = (1, 4, 16)


def one_run(kind: type[Peer], processes: int) -> tuple[float, float]:
    """Events per second, and which share of them is on disk and whole."""
    events = max(int(EVENTS * kind.share) // processes, 100)
    with scratch() as directory:

        def host() -> float:
            peer = kind(directory)
            pids, started = start_together(processes, lambda number, ready: peer.run(ready, events))
            statuses = ended(pids)
            peer.finish()
            assert not any(statuses), statuses
            return time.perf_counter() - started

        elapsed = played(host)
        whole = sum(line.startswith(b'{"ts_ns"') and line.endswith(b"}\n") for line in lines_in(directory))
    return events * processes / elapsed, whole / (events * processes)


def main() -> None:
    report = Report(
        __file__,
        "How many events per second, and what share of the bounds is that?",
        f"{EVENTS:,} events a run for the fast, {ROUNDS} rounds, alternating; median (min-max); ratios within a round",
    )
    kinds = [Buffered, Appended, *OURS, *PEERS]
    rates: dict[type[Peer], dict[int, list[float]]] = {kind: {} for kind in kinds if available(kind)}
    kept: dict[type[Peer], list[float]] = {kind: [] for kind in rates}
    for kind in (Buffered, *OURS):
        one_run(kind, PROCESSES[0])
    for processes in PROCESSES:
        for _ in range(ROUNDS):
            for kind in rates:
                if kind in PEERS and processes not in PEER_PROCESSES:
                    continue
                rate, share = one_run(kind, processes)
                rates[kind].setdefault(processes, []).append(rate)
                kept[kind].append(share)
    show_rates(report, kinds, rates, kept)
    show_ratios(report, rates)
    report.picture(partial(draw, rates, kept))
    report.save()


def show_rates(report: Report, kinds: list[Any], rates: Any, kept: Any) -> None:
    rows = []
    for kind in kinds:
        if kind not in rates:
            rows.append([kind.name, *["not installed"] * len(PROCESSES), ""])
            continue
        found = rates[kind]
        cells = [
            spread([one / 1000 for one in found[p]], ".1f" if kind.share < 0.1 else ".0f") if p in found else ""
            for p in PROCESSES
        ]
        rows.append([kind.name, *cells, f"{100 * min(kept[kind]):.1f} %"])
        report.figures[kind.name] = {
            "per_s": {str(p): statistics.median(values) for p, values in found.items()},
            "on_disk": min(kept[kind]),
        }
    report.say()
    report.say("thousands of events per second")
    report.table(["processes", *map(str, PROCESSES), "least on disk"], rows)


def show_ratios(report: Report, rates: Any) -> None:
    report.say()
    report.say("ratios")
    rows = []
    for ours in OURS:
        for other in (Buffered, Appended, *PEERS):
            if other not in rates:
                continue
            cells = []
            for processes in PROCESSES:
                pairs = zip(rates[ours][processes], rates[other].get(processes, ()), strict=False)
                ratios = [one / theirs for one, theirs in pairs]
                form = ".2f" if other in (Buffered, Appended) else ".0f"
                cells.append(spread(ratios, form) if ratios else "")
                if ratios:
                    report.figures[f"{ours.name} / {other.name}, P={processes}"] = statistics.median(ratios)
            rows.append([f"{ours.name} / {other.name}", *cells])
    report.table(["processes", *map(str, PROCESSES)], rows)
    for ours in OURS:
        many = [one / two for one, two in zip(rates[ours][16], rates[ours][2], strict=True)]
        report.say(f"{ours.name}, 16 processes against 2: {spread(many)}")
        report.figures[f"{ours.name}, P=16 / P=2"] = statistics.median(many)


def draw(rates: Any, kept: Any, axes: Any) -> None:
    for kind, found in rates.items():
        processes = sorted(found)
        style = "--" if kind.bound else "-"
        width = 2.5 if kind in OURS else 1.2
        axes.plot(
            processes,
            [statistics.median(found[p]) for p in processes],
            style,
            marker="o",
            ms=3,
            lw=width,
            label=kind.name if min(kept[kind]) > 0.999 else f"{kind.name} ({min(kept[kind]):.0%} on disk)",
        )
    axes.set(xscale="log", yscale="log", xlabel="processes", ylabel="events per second")
    axes.set_xticks(PROCESSES, [str(p) for p in PROCESSES])
    axes.minorticks_off()
    axes.set_title(f"Throughput; {Collector.name} costs what emit costs", fontsize=10)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


if __name__ == "__main__":
    main()
