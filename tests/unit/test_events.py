"""Events look as on the user's page, and the emitter hands them over."""

from __future__ import annotations

import time
from typing import Any

import pytest

from profilis_mp.core.context import use_span
from profilis_mp.core.emitter import Emitter
from profilis_mp.core.events import db_event, fn_event, req_event
from profilis_mp.errors import ConfigError


class Seen:
    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def enqueue(self, event: dict[str, Any]) -> None:
        self.events.append(event)


def test_events_have_the_keys_of_the_page_in_its_order() -> None:
    with use_span(trace_id="trace-abc123", span_id="span-def456"):
        request = req_event("/api/users", 200, 15_000_000)
        function = fn_event("get_user_data", 12_000_000)
        query = db_event("SELECT * FROM users", 5_000_000, 1)
    common = {"trace_id": "trace-abc123", "span_id": "span-def456"}
    assert list(request.items())[1:] == [
        *common.items(), ("kind", "REQ"), ("route", "/api/users"), ("status", 200), ("dur_ns", 15_000_000)
    ]  # fmt: skip
    assert list(function.items())[1:] == [
        *common.items(), ("kind", "FN"), ("fn", "get_user_data"), ("dur_ns", 12_000_000), ("error", False)
    ]  # fmt: skip
    assert list(query.items())[1:] == [
        *common.items(), ("kind", "DB"), ("query", "SELECT * FROM users"), ("dur_ns", 5_000_000), ("rows", 1)
    ]  # fmt: skip
    assert [next(iter(event)) for event in (request, function, query)] == ["ts_ns"] * 3


def test_ts_ns_is_the_wall_clock() -> None:
    events = [req_event("/", 200, 1), fn_event("f", 1), db_event("q", 1, 0)]
    for event in events:
        assert abs(event["ts_ns"] - time.time_ns()) < 60 * 10**9


def test_outside_of_a_span_each_event_has_ids_of_its_own() -> None:
    events = [fn_event("f", 1), fn_event("f", 1)]
    assert len({event["trace_id"] for event in events} | {event["span_id"] for event in events}) == 4


def test_further_keywords_are_appended() -> None:
    assert list(fn_event("f", 1, True, tag="x", n=2))[-3:] == ["error", "tag", "n"]
    assert list(req_event("/", 200, 1, method="GET"))[-1] == "method"
    event = db_event("q", 1, 0, db_vendor="sqlite", table="t")
    assert list(event.items())[-2:] == [("db_vendor", "sqlite"), ("table", "t")]


def test_a_keyword_that_names_a_key_replaces_its_value() -> None:
    event = fn_event("f", 1, ts_ns=5, span_id="mine")
    assert (event["ts_ns"], event["span_id"]) == (5, "mine")
    assert list(event)[:3] == ["ts_ns", "trace_id", "span_id"]


def test_the_emitter_enqueues_each_kind() -> None:
    seen = Seen()
    emitter = Emitter(seen)
    emitter.emit_req("/api", 204, 3, method="PUT")
    emitter.emit_fn("load", 4, error=True)
    emitter.emit_db("SELECT 1", 5, 1, db_vendor="sqlite")
    assert [event["kind"] for event in seen.events] == ["REQ", "FN", "DB"]
    assert seen.events[0]["method"] == "PUT"
    assert seen.events[1]["error"] is True
    assert seen.events[2]["db_vendor"] == "sqlite"


def test_the_emitter_takes_an_exporter_as_well() -> None:
    class Exporter:
        def __init__(self) -> None:
            self.emit = seen.append

    seen: list[Any] = []
    Emitter(Exporter()).emit_fn("load", 4)
    assert seen[0]["fn"] == "load"


@pytest.mark.parametrize("collector", [None, print, object()])
def test_the_emitter_refuses_what_can_take_no_event(collector: object) -> None:
    with pytest.raises(ConfigError, match=r"collector: .* has neither"):
        Emitter(collector)
