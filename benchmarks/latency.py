"""How long does one call take, at saturation and at a pace that an application might have?

Workload: each process builds a REQ event and times the call that hands it over, every one of them. Saturated: as fast
as it can, 1 and 8 processes on two cores (so most of the largest figures are the scheduler's, who lets somebody else
run; that is what the application sees). Paced: 4 processes, each 500 events per second with a sleep in between. The two
baselines are timed the same way: one ``orjson.dumps`` of the same event and nothing else, and nothing at all (the cost
of looking at the clock, which is in all figures).

Slow peers get fewer events, so that their largest is of fewer. p50, p99 and p99.9 are those of a round; the table has
the median of the rounds and, for max, the largest of all.
"""

from __future__ import annotations

import statistics
import time
from array import array
from collections.abc import Callable
from functools import partial
from typing import Any

import orjson
from common import ROUNDS, Report, ended, event, few, scratch, start_together
from peers import OURS, PEERS, Appended, Buffered, ConcurrentLogHandler, Nothing, Peer, Writer, available, played

EVENTS = few(400_000)  # of all processes together, for the fast
LEAST = few(4_000)
PACE_S = 1 / 500
PACED_EVENTS = few(200)  # per process
SITUATIONS = {"saturated, 1 process": (1, False), "saturated, 8 processes": (8, False), "paced, 4 processes": (4, True)}
SHARES = (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0))


class Dumps(Peer):
    """orjson.dumps and nothing else."""

    name = "orjson.dumps alone"
    bound = True

    def writer(self) -> Writer:
        dumps, option = orjson.dumps, orjson.OPT_APPEND_NEWLINE
        return lambda event: dumps(event, None, option), int


def timed(log: Callable[[Any], object], worker: int, events: int, pace_s: float) -> array[int]:
    """Nanoseconds of each call."""
    clock = time.perf_counter_ns
    took = array("q", bytes(8 * events))
    due = time.perf_counter()
    for number in range(events):
        if pace_s:
            due += pace_s
            time.sleep(max(0.0, due - time.perf_counter()))
        one = event(worker, number)
        started = clock()
        log(one)
        took[number] = clock() - started
    return took


def one_run(kind: type[Peer], processes: int, paced: bool) -> list[int]:
    """Nanoseconds of every call of all processes, sorted."""
    events = PACED_EVENTS if paced else max(int(EVENTS * kind.share), LEAST) // processes
    with scratch() as directory:

        def work(peer: Peer, number: int, ready: Callable[[], None]) -> None:
            log, close = peer.writer()
            log({})
            ready()
            took = timed(log, number, events, PACE_S if paced else 0.0)
            close()
            with open(f"{directory}/{number}.took", "wb") as file:
                took.tofile(file)

        def host() -> None:
            peer = kind(directory)
            pids, _ = start_together(processes, partial(work, peer))
            statuses = ended(pids)
            peer.finish()
            assert not any(statuses), statuses

        played(host)
        calls = array("q")
        for number in range(processes):
            with open(f"{directory}/{number}.took", "rb") as file:
                calls.fromfile(file, events)
    return sorted(calls)


def at(share: float, calls: list[int]) -> int:
    return calls[min(int(len(calls) * share), len(calls) - 1)]


def main() -> None:
    report = Report(
        __file__,
        "How long does one call take?",
        f"{EVENTS:,} calls a run for the fast, {ROUNDS} rounds; microseconds, looking at the clock included",
    )
    kinds = [Nothing, Dumps, Buffered, Appended, *OURS, *PEERS]
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for situation, (processes, paced) in SITUATIONS.items():
        found: dict[type[Peer], list[list[float]]] = {kind: [] for kind in kinds if available(kind)}
        for _ in range(ROUNDS):
            for kind, rounds in found.items():
                calls = one_run(kind, processes, paced)
                rounds.append([at(share, calls) / 1000 for _, share in SHARES])
        rows = []
        figures[situation] = {}
        for kind in kinds:
            if kind not in found:
                rows.append([kind.name, *["not installed"] * len(SHARES)])
                continue
            columns = list(zip(*found[kind], strict=True))
            values = [statistics.median(column) for column in columns[:-1]] + [max(columns[-1])]
            rows.append([kind.name, *(f"{value:,.2f}" if value < 100 else f"{value:,.0f}" for value in values)])
            figures[situation][kind.name] = dict(zip([name for name, _ in SHARES], values, strict=True))
            if situation == "saturated, 8 processes":
                figures[situation][kind.name]["p99.9 of each round"] = columns[2]
                figures[situation][kind.name]["p99 of each round"] = columns[1]
        report.say()
        report.say(situation)
        report.table(["microseconds", *(name for name, _ in SHARES)], rows)
    report.figures = figures
    compare(report)
    report.picture(partial(draw, figures), height=5.5)
    report.save()


def compare(report: Report) -> None:
    """The two goals that are about latency."""
    alone = report.figures["saturated, 1 process"]
    crowd = report.figures["saturated, 8 processes"]
    report.say()
    for ours in OURS:
        # Both without what looking at the clock and calling something costs.
        nothing = alone[Nothing.name]["p50"]
        ratio = (alone[ours.name]["p50"] - nothing) / (alone[Dumps.name]["p50"] - nothing)
        report.figures[f"{ours.name} p50 / orjson.dumps p50"] = ratio
        report.say(f"{ours.name}, p50 against one bare orjson.dumps, both above 'nothing', 1 process: {ratio:.2f}")
        if ConcurrentLogHandler.name in crowd:
            pairs = zip(
                crowd[ours.name]["p99.9 of each round"],
                crowd[ConcurrentLogHandler.name]["p99 of each round"],
                strict=True,
            )
            ratio = statistics.median([one / theirs for one, theirs in pairs])
            report.figures[f"{ours.name} p99.9 / {ConcurrentLogHandler.name} p99"] = ratio
            report.say(f"{ours.name}, p99.9 against {ConcurrentLogHandler.name}'s p99, 8 processes: {ratio:.4f}")


def draw(figures: dict[str, dict[str, dict[str, float]]], axes: Any) -> None:
    names = list(dict.fromkeys(name for situation in SITUATIONS for name in figures[situation] if name != Nothing.name))
    colours = {
        "saturated, 1 process": "tab:blue",
        "saturated, 8 processes": "tab:red",
        "paced, 4 processes": "tab:green",
    }
    for place, situation in enumerate(SITUATIONS):
        for row, name in enumerate(reversed(names)):
            values = figures[situation].get(name)
            if values is None:
                continue
            y = row + 0.25 * (1 - place)
            points = [values[share] for share, _ in SHARES]
            axes.plot(points, [y] * len(points), "-", color=colours[situation], lw=0.8)
            for point, mark in zip(points, "o|d>", strict=True):
                axes.plot([point], [y], mark, color=colours[situation], ms=5)
        axes.plot([], [], "-", color=colours[situation], label=situation)
    axes.set(xscale="log", xlabel="microseconds of one call:  o p50   | p99   ◆ p99.9   ▶ max")
    axes.set_yticks(range(len(names)), list(reversed(names)))
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=8, frameon=False)


if __name__ == "__main__":
    main()
