"""What the documents say is checked where it can be."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from profilis_mp import JSONLExporter, recover
from profilis_mp.account import segments_of

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    "README.md",
    "ARCHITECTURE.md",
    "FORMAT.md",
    "CHANGELOG.md",
    *(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")),
]


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / document).read_text(), re.DOTALL | re.MULTILINE)


def test_readme_code_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "example"}
    code = blocks("README.md", "python")
    assert len(code) >= 2
    for block in code:
        exec(block, names)
    exporter = names["exporter"]
    assert isinstance(exporter, JSONLExporter)
    exporter.close()
    assert not recover("./logs").failures
    (segment,) = segments_of("./logs")
    assert '"fn":"get_user_data"' in Path(segment).read_text()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_to_a_file_leads_somewhere(document: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / document).read_text()):
        if not target.startswith("https://"):
            assert ((ROOT / document).parent / target).exists(), f"{document}: {target}"


def test_format_names_tests_that_exist() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    cited = re.findall(r"`(test_\w+)`", (ROOT / "FORMAT.md").read_text())
    assert cited
    assert [name for name in cited if f"def {name}(" not in tests] == []
    for path in re.findall(r"`(tests/[\w/]+\.py)`", (ROOT / "FORMAT.md").read_text()):
        assert (ROOT / path).exists(), path


def test_readme_and_docstring_list_every_option_of_the_exporter() -> None:
    options = list(inspect.signature(JSONLExporter).parameters)
    table = (ROOT / "README.md").read_text()
    docstring = inspect.getdoc(JSONLExporter) or ""
    assert [name for name in options if name != "clock" and f"`{name}`" not in table and name != "dir"] == []
    assert [name for name in options if not re.search(rf"\b{name}\b", docstring)] == []


def test_every_invariant_that_the_code_cites_is_explained() -> None:
    explained = set(re.findall(r"\*\*(I\d+)\*\*", (ROOT / "ARCHITECTURE.md").read_text()))
    code = "".join(path.read_text() for path in (ROOT / "profilis_mp").rglob("*.py"))
    cited = set(re.findall(r"\bI\d+\b(?=:)", code))
    assert cited
    assert cited <= explained


def test_every_page_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"(docs/{page.name})" not in readme] == []
