"""Which of the goals are reached?  From the figures that the benchmarks have left in ``results``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from common import RESULTS

BOUND = "orjson + write per 64 KiB"
ENQUEUE = "profilis_mp enqueue"
CLH = "concurrent-log-handler"
LOGURU = "loguru, enqueue=True"

# What is measured, the goal, whether more is better, where it is found, how it is written.
Goal = tuple[str, float, bool, str, Callable[[Any], float], str]
GOALS: list[Goal] = [
    *(
        (
            f"`enqueue` throughput against the 64 KiB bound, P = {processes}",
            0.6,
            True,
            "throughput",
            lambda figures, processes=processes: figures[f"{ENQUEUE} / {BOUND}, P={processes}"],
            ".3f",
        )
        for processes in (1, 4, 16)
    ),
    ("against concurrent-log-handler, P = 4", 40, True, "throughput", lambda f: f[f"{ENQUEUE} / {CLH}, P=4"], ".0f"),
    ("against loguru enqueue, P = 4", 80, True, "throughput", lambda f: f[f"{ENQUEUE} / {LOGURU}, P=4"], ".0f"),
    ("throughput at P = 16 against P = 2", 0.9, True, "throughput", lambda f: f[f"{ENQUEUE}, P=16 / P=2"], ".2f"),
    (
        "caller p50 against one bare `orjson.dumps` of the same event",
        4,
        False,
        "latency",
        lambda f: f[f"{ENQUEUE} p50 / orjson.dumps p50"],
        ".2f",
    ),
    (
        "caller p99.9 at P = 8, saturated, against concurrent-log-handler's p99",
        1 / 20,
        False,
        "latency",
        lambda f: f[f"{ENQUEUE} p99.9 / {CLH} p99"],
        ".4f",
    ),
    (
        "gunicorn requests/s with us (ProfilisFlask) against no event and no hooks",
        0.97,
        True,
        "gunicorn_requests",
        lambda f: f["profilis_mp, ProfilisFlask"]["against no event"],
        ".3f",
    ),
    (
        "the same with us (`enqueue` in two hooks) against these hooks with the event thrown away",
        0.97,
        True,
        "gunicorn_requests",
        lambda f: f["profilis_mp enqueue, in hooks"]["against hooks, event thrown away"],
        ".3f",
    ),
    (
        "events lost after `kill -9`",
        0,
        False,
        "kill",
        lambda f: f[ENQUEUE]["lost"] + f["profilis_mp emit"]["lost"],
        ".0f",
    ),
]


def rows() -> list[str]:
    """The table, as Markdown."""
    lines = ["| measure | goal | measured | |", "|---|---|---|---|"]
    for measure, goal, more, source, find, form in GOALS:
        sign = "≥" if more else "≤" if goal else ""
        try:
            found = find(json.loads((RESULTS / f"{source}.json").read_text()))
        except (OSError, KeyError):
            lines.append(f"| {measure} | {sign} {goal:g} | | not measured |")
            continue
        reached = found >= goal if more else found <= goal
        verdict = "reached" if reached else "**missed**"
        lines.append(f"| {measure} | {sign} {goal:g} | [{found:{form}}]({source}.txt) | {verdict} |")
    return lines


def main() -> None:
    text = "\n".join(
        ["# Goals", "", f"Made by `tox -e bench`, {time.strftime('%Y-%m-%d', time.gmtime())}.", "", *rows()]
    )
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "summary.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
