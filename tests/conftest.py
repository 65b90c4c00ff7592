"""What holds for every test, and what pytest must not import by itself."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from profilis_mp import diagnostics

# Applications that servers import, with the environment that their tests give them.
collect_ignore = [f"hosts/{name}_app.py" for name in ("gunicorn", "fastapi", "django", "celery", "uwsgi")]


@pytest.fixture(autouse=True)
def _fresh_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test hears its own warnings, which otherwise come once a minute in a process."""
    monkeypatch.setattr(diagnostics, "_last", {})
    monkeypatch.setattr(diagnostics, "_folded", {})


@pytest.fixture
def shared_directory() -> Iterator[Path]:
    """A directory that only this user may write to, and everybody may enter; pytest's own are one user's alone."""
    path = Path(tempfile.mkdtemp(prefix="profilis-mp-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)
