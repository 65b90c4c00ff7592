"""The rules for sealed segments: what is refused, and how they reach an external janitor."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest

from profilis_mp import ConfigError, JSONLExporter, SharedWriter, Upkeep
from profilis_mp.janitor.upkeep import recall, record


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("compress_old_files", 1),
        ("compress_old_files", None),
        ("compression", "bzip2"),
        ("compression", ".gz"),
        ("compression_level", 0),
        ("compression_level", 10),
        ("compression_level", True),
        ("compression_level", 1.0),
        ("compress_delay_secs", -1),
        ("compress_delay_secs", math.nan),
        ("compress_delay_secs", None),
        ("compress_delay_secs", 1e10),
        *((argument, value) for argument in ("max_files", "max_total_bytes") for value in (0, -1, 1.5, True, "3")),
        ("max_total_bytes", 10**20),
        ("max_files", 1 << 62),
        ("max_age_secs", 10**400),
        *(("max_age_secs", value) for value in (0, -1, math.nan, math.inf, True, "3")),
    ],
)
def test_invalid_rules_are_refused_by_name(tmp_path: Path, argument: str, value: Any) -> None:
    for make in (Upkeep, lambda **rules: JSONLExporter(tmp_path, **rules)):
        with pytest.raises(ConfigError, match=f"^{argument}: "):
            make(**{argument: value})


def test_what_is_expected_of_a_number_is_said() -> None:
    with pytest.raises(ConfigError, match=r"^max_files: 1\.5 is not a whole number$"):
        Upkeep(max_files=1.5)  # type: ignore[arg-type]  # that is what is tested
    with pytest.raises(ConfigError, match=r"^max_age_secs: '7d' is not a number$"):
        Upkeep(max_age_secs="7d")  # type: ignore[arg-type]  # that is what is tested


@pytest.mark.parametrize("value", [None, 1, "internal", "External"])
def test_janitor_is_true_false_or_external(tmp_path: Path, value: Any) -> None:
    for kind in (JSONLExporter, SharedWriter):
        with pytest.raises(ConfigError, match=r"^janitor: "):
            kind(tmp_path, janitor=value)


def test_an_upkeep_of_another_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^upkeep: "):
        SharedWriter(tmp_path, upkeep={"max_files": 3})  # type: ignore[arg-type]  # that is what is tested


def test_only_rules_that_ask_for_something_are_work() -> None:
    assert not Upkeep(compression="zstd", compress_delay_secs=5).has_work
    for rules in ({"compress_old_files": True}, {"max_files": 1}, {"max_age_secs": 1}, {"max_total_bytes": 1}):
        assert Upkeep(**rules).has_work


def test_an_external_janitor_finds_the_writers_rules(tmp_path: Path) -> None:
    with JSONLExporter(tmp_path, janitor="external", max_files=7, compress_old_files=True) as exporter:
        assert not os.path.exists(tmp_path / ".profilis-mp"), "nothing is on disk before the first event"
        exporter.emit({})
        assert exporter.stats()["leading"] is False
    state = str(tmp_path / ".profilis-mp" / "profilis-{timestamp}.jsonl")
    assert recall(state) == Upkeep(compress_old_files=True, max_files=7)
    record(Upkeep(max_files=8), state)
    assert recall(state) == Upkeep(max_files=8)
    assert [name for name in os.listdir(state) if name.startswith("upkeep")] == ["upkeep.json"]


def test_writers_that_lead_themselves_leave_no_rules(tmp_path: Path) -> None:
    with JSONLExporter(tmp_path, max_files=7) as exporter:
        exporter.emit({})
    assert recall(str(tmp_path / ".profilis-mp" / "profilis-{timestamp}.jsonl")) == Upkeep()


@pytest.mark.parametrize("text", [b"", b"nonsense", b"[]", b'{"max_files":0}', b'{"max_fils":3}'])
def test_rules_that_somebody_garbled_are_said(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "upkeep.json").write_bytes(text)
    with pytest.raises(ConfigError):
        recall(str(tmp_path))


def test_rules_survive_pickling_with_the_exporter(tmp_path: Path) -> None:
    import pickle

    exporter = pickle.loads(pickle.dumps(JSONLExporter(tmp_path, max_files=3, janitor=False)))
    assert exporter._arguments["max_files"] == 3
    assert exporter._arguments["janitor"] is False
