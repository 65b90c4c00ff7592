"""What the command line is made of: units, histogram, lines, statistics."""

from __future__ import annotations

import random

import pytest

from profilis_mp.cli.histogram import RELATIVE_ERROR, Histogram
from profilis_mp.cli.show import as_error, pretty
from profilis_mp.cli.stats import OTHERS, statistics_of
from profilis_mp.cli.units import moment_of, show_bytes, show_duration, show_seconds


def test_moments_are_how_long_ago_or_an_iso_time() -> None:
    assert moment_of("10m", 10**18) == 10**18 - 600 * 10**9
    assert moment_of("2026-11-22T15:00:00Z", 0) == 1_795_359_600 * 10**9
    assert moment_of("2026-11-22T16:00+01:00", 0) == 1_795_359_600 * 10**9
    with pytest.raises(ValueError, match="yesterday"):
        moment_of("yesterday", 0)


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0ns"),
        (999, "999ns"),
        (1000, "1.00µs"),
        (999_999, "1.00ms"),
        (15_250_000, "15.2ms"),
        (61e9, "61.0s"),
        (3600e9, "60.0m"),
        (3 * 86_400e9, "3.00d"),
    ],
)
def test_durations_are_shown_with_three_digits(nanoseconds: float, text: str) -> None:
    assert show_duration(nanoseconds) == text


def test_sizes_and_longer_times_are_shown_with_a_unit() -> None:
    assert [show_bytes(size) for size in (0, 1023, 1024, 1 << 20, 5 << 40)] == ["0B", "1023B", "1.0K", "1.0M", "5.0T"]
    assert [show_seconds(seconds) for seconds in (0, 0.5, 90, 7200, 86_400 * 3)] == [
        "0s",
        "0.500s",
        "90.0s",
        "2.00h",
        "3.00d",
    ]


@pytest.mark.parametrize("seed", range(5))
def test_percentiles_are_as_near_as_promised(seed: int) -> None:
    dice = random.Random(seed)
    values = sorted(int(dice.lognormvariate(dice.uniform(3, 20), 3)) for _ in range(5000))
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    for percent in (0, 1, 50, 95, 99, 99.9, 100):
        exact = values[max(0, -int(-len(values) * percent // 100) - 1)]
        assert histogram.percentile(percent) == pytest.approx(exact, rel=RELATIVE_ERROR, abs=0.5), (seed, percent)
    assert (histogram.least, histogram.most, histogram.total) == (values[0], values[-1], sum(values))


def test_histogram_takes_any_integer_and_says_0_while_it_is_empty() -> None:
    histogram = Histogram()
    assert histogram.percentile(50) == 0
    for value in (-5, 0, 1 << 200):
        histogram.add(value)
    assert (histogram.count, histogram.least, histogram.most) == (3, 0, (1 << 63) - 1)


def test_groups_are_bounded_and_the_rest_is_counted_together() -> None:
    events = [{"kind": "DB", "query": f"SELECT {number}", "dur_ns": 10} for number in range(100)]
    found = statistics_of(events, ["REQ", "FN", "DB"], most_groups=10)
    assert len(found.groups) == 11
    assert found.groups[0].what == OTHERS
    assert (found.groups[0].events, found.ungrouped, found.events) == (90, 90, 100)


def test_statistics_take_whatever_a_log_may_hold() -> None:
    events = [None, 5, [], {}, {"kind": []}, {"kind": "REQ"}, {"kind": "FN", "fn": None, "dur_ns": "x", "ts_ns": True}]
    found = statistics_of(events, ["REQ", "FN", "DB"])
    assert (found.events, found.first_ns, len(found.groups)) == (7, None, 2)


@pytest.mark.parametrize(
    ("event", "failed"),
    [
        ({}, False),
        ({"error": False}, False),
        ({"error": True}, True),
        ({"status": 499}, False),
        ({"status": 500}, True),
        ({"status": "503"}, False),
        ({"status": 200, "exception_type": "ValueError"}, True),
        ({"kind": "LOG", "level": "WARNING"}, False),
        ({"kind": "LOG", "level": "ERROR"}, True),
        ({"kind": "LOG", "level": ["ERROR"]}, False),
        ({"kind": "FN", "level": "ERROR"}, False),
    ],
)
def test_errors(event: dict[str, object], failed: bool) -> None:
    assert as_error(event) is failed


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"kind": "LOG", "message": "a\nb", "level": []},
        {"ts_ns": "x"},
        {"ts_ns": 10**30},
        {"kind": None, "dur_ns": True},
        {"kind": "DB", "query": {"a": 1}},
        5,
    ],
)
def test_whatever_an_event_holds_is_one_line(event: object) -> None:
    assert "\n" not in pretty(event)


def test_a_log_message_is_shown_as_one_reads_logs() -> None:
    event = {"kind": "LOG", "level": "ERROR", "logger": "shop", "message": "two\nlines", "order": 7}
    assert pretty(event).split(maxsplit=1)[1] == "LOG          ERR ERROR shop: two\\nlines  order=7"
    assert pretty({"kind": "LOG", "level": "INFO", "message": "x"}).endswith("INFO -: x")
