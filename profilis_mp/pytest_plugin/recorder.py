"""How does pytest's report of a test's phase become one FN event?

The keys of an FN event (`profilis_mp.core.events`), and what pytest knows besides:

    ts_ns      the wall clock at the end of the phase, as in pytest's report
    trace_id   the run: all events of one run have the same, in all of its xdist workers
    span_id    this phase
    fn         the test's node id
    dur_ns     as in pytest's report
    error      whether the phase failed, also where it is run again
    phase      ``setup``, ``call`` or ``teardown``; ``crash`` for a test that took its xdist worker along
    outcome    ``passed``, ``failed``, ``skipped``, ``xfailed``, ``xpassed``, or another plugin's, such as ``rerun``
    worker     xdist's name for the worker, such as ``gw0``; ``master`` without xdist
    subtest    only of a subtest: which one; it is part of its test's call, and reported before that
    rerun      only of a test that a plugin (pytest-rerunfailures) runs again: how often it ran before

Built here and not by `fn_event`, which would cost half as much again: what pytest itself spends on a test that does
nothing is 400 µs, and three of these must not be seen beside that.
"""

from __future__ import annotations

from collections.abc import Callable
from time import time_ns
from typing import Any

import pytest

from profilis_mp.core.context import new_span_id
from profilis_mp.diagnostics import warn
from profilis_mp.exporters.jsonl import JSONLExporter
from profilis_mp.forkmark import ForkMark
from profilis_mp.interrupts import was_thrown_in

__all__ = ["contain", "crash_event", "recording"]

_XFAIL = {"skipped": "xfailed", "passed": "xpassed"}
_FAILED = frozenset({"failed", "rerun"})
_MARKS = frozenset({"wasxfail", "rerun"})
_SUBTESTS_FAIL_THEIR_TEST = pytest.version_tuple >= (9,)


def recording(exporter: JSONLExporter, run: str, worker: str, mark: ForkMark) -> Callable[[pytest.TestReport], None]:
    """Return the hook ``pytest_runtest_logreport`` that emits.

    A closure, because attribute loads would double its cost. Of hooks that ask for no place, pytest calls the one first
    that was registered last, which is this: before xdist's worker sends the report and the terminal shows it. So what
    was reported is in the log, whatever kills the process then.

    Args:
        exporter: Where to.
        run: The run's trace id.
        worker: What ``worker`` says.
        mark: False in a forked child: one that a test has let out of its function goes on as a second pytest, whose
            reports are not this run's.
    """
    ordinary = pytest.TestReport
    failed_within: set[str] = set()

    def pytest_runtest_logreport(report: pytest.TestReport) -> None:
        if not mark:
            return
        try:
            outcome = report.outcome
            event = {
                "ts_ns": int(report.stop * 1e9),
                "trace_id": run,
                "span_id": new_span_id(),
                "kind": "FN",
                "fn": report.nodeid,
                "dur_ns": int(report.duration * 1e9),
                "error": False,
                "phase": report.when,
                "outcome": outcome,
                "worker": worker,
            }
            if (
                outcome != "passed"
                or type(report) is not ordinary
                or failed_within
                or not report.__dict__.keys().isdisjoint(_MARKS)
            ):
                _look_closer(event, report, failed_within)
            exporter.emit(event)
        except Exception as error:
            contain("a phase of a test was not recorded", error)

    return pytest_runtest_logreport


def _look_closer(event: dict[str, Any], report: Any, failed_within: set[str]) -> None:
    """Say what is not plain about a report: it did not pass, or a plugin has left something in it.

    ``failed_within`` collects the tests of which a subtest failed. pytest calls such a test failed only later, when
    its terminal asks how to show it, and in xdist's workers not at all.
    """
    about = vars(report)
    outcome = report.outcome
    if "wasxfail" in about:
        event["outcome"] = _XFAIL.get(outcome, outcome)
    context = about.get("context")
    if context is not None:
        event["subtest"] = _subtest(context)
        if outcome == "failed" and _SUBTESTS_FAIL_THEIR_TEST:
            failed_within.add(report.nodeid)
    elif outcome == "passed" and report.when == "call" and report.nodeid in failed_within:
        event["outcome"] = outcome = "failed"
    event["error"] = outcome in _FAILED
    if not report.stop:  # made by a plugin, not by pytest
        event["ts_ns"] = time_ns()
    if about.get("rerun"):
        event["rerun"] = about["rerun"]


def _subtest(context: Any) -> str:
    """As pytest shows it."""
    parts = [] if context.msg is None else [f"[{context.msg}]"]
    if context.kwargs:
        parts.append("(" + ", ".join(f"{name}={value}" for name, value in context.kwargs.items()) + ")")
    return " ".join(parts) or "(<subtest>)"


def crash_event(nodeid: str, run: str, worker: str) -> dict[str, Any]:
    """Return the event of a test that was running when its worker died; only xdist's controller can tell."""
    return {
        "ts_ns": time_ns(),
        "trace_id": run,
        "span_id": new_span_id(),
        "kind": "FN",
        "fn": nodeid,
        "dur_ns": 0,
        "error": True,
        "phase": "crash",
        "outcome": "failed",
        "worker": worker,
    }


def contain(what: str, error: Exception) -> None:
    """Log what failed here and let the tests go on; what a signal handler threw in is raised again, it is theirs."""
    if was_thrown_in(error):
        raise error
    warn(f"pytest: {what}", f"--profilis-dir: {what}: {error!r}")
