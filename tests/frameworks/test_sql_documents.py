"""The pages on SQLAlchemy and on PEP 249 drivers: their code runs as it stands, and the log says what they say."""

from __future__ import annotations

import re
from pathlib import Path

import orjson
import pytest

from profilis_mp import recover
from profilis_mp.account import lines_of, segments_of
from profilis_mp.dbapi.redaction import redact_statement

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", ["sqlalchemy.md", "dbapi.md"])
def test_the_pages_code_writes_the_pages_events(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (DOCS / page).read_text()
    names: dict[str, object] = {"__name__": "example"}
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        exec(block, names)
    for name in ("collector", "connection"):
        names[name].close()  # type: ignore[attr-defined]  # both can be closed
    if "engine" in names:
        names["engine"].dispose()  # type: ignore[attr-defined]  # an engine
    assert not recover("./logs").failures
    written = [orjson.loads(line) for path in segments_of("./logs") for _, line in lines_of(path)]
    promised = [orjson.loads(line) for line in re.findall(r'^\{"ts_ns".*\}$', text, re.MULTILINE)]
    assert len(promised) >= 2
    assert [{**event, "dur_ns": 0, "ts_ns": 0, "trace_id": "…", "span_id": "…"} for event in written] == [
        {**event, "dur_ns": 0, "ts_ns": 0} for event in promised
    ]


@pytest.mark.parametrize("page", ["sqlalchemy.md", "dbapi.md"])
def test_every_link_of_the_pages_leads_somewhere(page: str) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", (DOCS / page).read_text())
    assert targets
    assert [target for target in targets if "://" not in target and not (DOCS / target).exists()] == []


def test_the_table_of_redacted_statements_is_true() -> None:
    vendors = {"": "postgresql", " (MySQL)": "mysql"}
    rows = re.findall(
        r"^\| (`+)(.*?)\1( \(MySQL\))? \| (`+)(.*?)\4 \|$", (DOCS / "sqlalchemy.md").read_text(), re.MULTILINE
    )
    statements = [
        (statement, vendor, shown) for _, statement, vendor, _, shown in rows if statement.startswith("SELECT")
    ]
    assert len(statements) == 3
    for statement, vendor, shown in statements:
        assert redact_statement(statement, db_vendor=vendors[vendor]) == shown
