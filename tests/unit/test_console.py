"""The console exporter writes a line per event, whatever is in it and wherever it goes."""

from __future__ import annotations

import io
import json
import os
import sys
from typing import Any

import pytest

from profilis_mp.exporters.console import ConsoleExporter


class BadRepr:
    def __repr__(self) -> str:
        raise ValueError


EVENTS: list[Any] = [{"kind": "FN", "fn": "é\ud800"}, {"x": BadRepr()}, [{1}], {"nan": float("nan")}]


def test_each_event_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    ConsoleExporter().export(EVENTS)
    lines = capsys.readouterr().out.splitlines()
    assert [list(json.loads(line)) for line in lines] == [
        ["kind", "fn", "_altered"],
        ["x", "_altered"],
        ["value", "_altered"],
        ["nan", "_altered"],
    ]


def test_it_is_called_with_a_batch_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    ConsoleExporter()([{"a": 1}])
    assert capsys.readouterr().out == '{"a":1}\n'


def test_pretty_indents(capsys: pytest.CaptureFixture[str]) -> None:
    ConsoleExporter(pretty=True).export([{"a": [1]}, {"b": {1}}])
    out = capsys.readouterr().out
    assert out.startswith('{\n  "a": [\n    1\n  ]\n}\n{\n  "b"')
    assert '"_altered": {\n    "b": "set"\n' in out


def test_standard_output_is_looked_up_at_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = ConsoleExporter()
    first, second = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", first)
    exporter.export([{"a": 1}])
    monkeypatch.setattr(sys, "stdout", second)
    exporter.export([{"a": 2}])
    assert (first.getvalue(), second.getvalue()) == ('{"a":1}\n', '{"a":2}\n')


def test_a_program_without_standard_output_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    ConsoleExporter().export([{"a": 1}])


def test_what_was_printed_before_comes_before() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="utf-8", write_through=False)
    print("first", file=stream)
    ConsoleExporter(stream=stream).export([{"a": 1}])
    assert raw.getvalue() == b'first\n{"a":1}\n'


def test_the_streams_own_encoding_does_not_matter() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    ConsoleExporter(stream=stream).export([{"a": "é"}])
    assert json.loads(raw.getvalue()) == {"a": "é"}


def test_a_text_stream_that_cannot_hold_a_letter_gets_its_escape() -> None:
    class Ascii(io.StringIO):
        def write(self, text: str) -> int:
            return super().write(text.encode("ascii").decode())

    stream = Ascii()
    ConsoleExporter(stream=stream).export([{"a": "é"}])
    assert stream.getvalue() == '{"a":"\\xe9"}\n'


def test_a_reader_who_has_gone_is_no_error() -> None:
    receiving, sending = os.pipe()
    os.close(receiving)
    stream = os.fdopen(sending, "w")
    exporter = ConsoleExporter(stream=stream)
    exporter.export([{"a": 1}])
    exporter.export([{"a": 2}])
    with pytest.raises(BrokenPipeError):
        stream.close()  # what it still holds; its owner's business


def test_a_closed_stream_is_the_collectors_business() -> None:
    stream = io.StringIO()
    stream.close()
    with pytest.raises(ValueError, match="closed"):
        ConsoleExporter(stream=stream).export([{"a": 1}])
