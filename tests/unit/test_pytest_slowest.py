"""How the summary of a test run is made of its log."""

from __future__ import annotations

import orjson

from profilis_mp.pytest_plugin.slowest import slowest_of

RUN = "a" * 32


def line(fn: str, dur_ns: int, *, run: str = RUN, phase: str = "call", worker: str = "gw0", **more: object) -> bytes:
    event = {"trace_id": run, "kind": "FN", "fn": fn, "dur_ns": dur_ns, "phase": phase, "worker": worker, **more}
    return orjson.dumps(event, None, orjson.OPT_APPEND_NEWLINE)


def test_phases_of_one_test_in_one_worker_are_added_up_and_the_slowest_comes_first() -> None:
    ms = 1_000_000
    found = slowest_of(
        [
            line("a", 5 * ms, phase="setup"),
            line("a", 999_999),  # not worth parsing, but counted
            line("b", 9 * ms),
            line("b", 9 * ms, run="b" * 32),  # another run
            line("a", 6 * ms, phase="teardown"),
            line("a", 30 * ms, worker="gw1"),
            line("b", 7 * ms, subtest="[part]"),  # within b's call
            line("b", 1 * ms, rerun=2),
        ],
        RUN,
    )
    assert found.events == 7
    assert [(one.fn, one.worker, one.total, one.runs) for one in found.tests] == [
        ("a", "gw1", 30 * ms, 1),
        ("a", "gw0", 11 * ms, 1),
        ("b", "gw0", 10 * ms, 3),
    ]
    assert found.tests[1].phases == {"setup": 5 * ms, "teardown": 6 * ms}
