"""Configuration from the environment: one variable per option, nothing guessed, mistakes named."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from profilis_mp import ConfigError, JSONLExporter
from profilis_mp.exporters.environment import PREFIX, arguments_from, variable_of
from profilis_mp.exporters.options import options_of

if TYPE_CHECKING:
    NotHere = int  # as a user's module may import what it needs for annotations only

ROOT = Path(__file__).parents[2]

NOT_WRITABLE = {"clock"}
"""Options that no text can stand for: functions."""


def test_every_option_of_the_exporter_has_a_variable() -> None:
    """A new option gets its variable by itself; one whose annotation nobody understands would be missing here."""
    assert set(inspect.signature(JSONLExporter).parameters) - NOT_WRITABLE == set(options_of(JSONLExporter))


def test_every_option_can_be_given_its_default_as_text() -> None:
    """Each default, written as a user would write it, means the default again: no option is of the wrong kind."""
    for name, option in options_of(JSONLExporter).items():
        default = option.default
        text = f"{default:o}" if "mode" in option.kinds and default is not None else str(default).lower()
        assert option.parse(text) == default, name
        assert isinstance(option.parse(text), float if "duration" in option.kinds and default else type(default)), name


def test_the_page_has_the_table_of_variables() -> None:
    rows = [
        f"| `{variable_of(name)}` | {option.expected} | {shown(option.default, option.kinds)} |"
        for name, option in options_of(JSONLExporter).items()
    ]
    page = (ROOT / "docs" / "environment.md").read_text()
    table = re.findall(rf"^\| `{PREFIX}\w+` \|.*$", page, re.MULTILINE)
    assert table == rows, "docs/environment.md should hold:\n" + "\n".join(rows)


def shown(default: Any, kinds: frozenset[str]) -> str:
    if default is None:
        return "none"
    return (
        f"`{default:04o}`" if "mode" in kinds else f"`{str(default).lower() if default in (True, False) else default}`"
    )


def test_an_exporter_is_made_as_the_environment_says(tmp_path: Path) -> None:
    environ = {
        "PROFILIS_DIR": str(tmp_path / "logs"),
        "PROFILIS_ROTATE_BYTES": "64KiB",
        "PROFILIS_ROTATE_SECS": "1h",
        "PROFILIS_APP_NAME": "shop",
        "PROFILIS_FILENAME_TEMPLATE": "{app_name}-{timestamp}.jsonl",
        "PROFILIS_FILE_MODE": "0600",
        "PROFILIS_FSYNC": "Seal",
        "PROFILIS_FLUSH_INTERVAL": "100ms",
        "PROFILIS_COMPRESS_OLD_FILES": "yes",
        "PROFILIS_COMPRESSION_LEVEL": "6",
        "PROFILIS_MAX_AGE_SECS": "7d",
        "PROFILIS_MAX_FILES": "none",
        "PROFILIS_JANITOR": "off",
        "PATH": "/bin",
    }
    with JSONLExporter.from_env(environ=environ) as exporter:
        exporter.emit({"kind": "FN"})
        exporter.flush()
        path = exporter.current_path
        assert path is not None
        assert path.startswith(f"{tmp_path}/logs/shop-")
        assert os.stat(path).st_mode & 0o777 == 0o600
        assert (exporter.rotate_bytes, exporter.rotate_secs) == (65536, 3600.0)
    assert arguments_from(environ, JSONLExporter) == {
        "dir": str(tmp_path / "logs"),
        "rotate_bytes": 65536,
        "rotate_secs": 3600.0,
        "app_name": "shop",
        "filename_template": "{app_name}-{timestamp}.jsonl",
        "file_mode": 0o600,
        "fsync": "seal",
        "flush_interval": 0.1,
        "compress_old_files": True,
        "compression_level": 6,
        "max_age_secs": 604_800.0,
        "max_files": None,
        "janitor": False,
    }


def test_the_processs_own_environment_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROFILIS_DIR", str(tmp_path / "here"))
    assert JSONLExporter.from_env().dir == f"{tmp_path}/here"


@pytest.mark.parametrize(
    ("variable", "text", "reason"),
    [
        ("PROFILIS_ROTATE_BYTES", "10X", "no size"),
        ("PROFILIS_ROTATE_BYTES", "", "is empty"),
        ("PROFILIS_ROTATE_BYTES", "none", "no size"),
        ("PROFILIS_ROTATE_BYTES", "0", "more than 0"),
        ("PROFILIS_SPOOL_BYTES", "1K", "less than buffer_size"),
        ("PROFILIS_ROTATE_SECS", "1y", "no duration"),
        ("PROFILIS_MAX_FILES", "1.5", "no whole number"),
        ("PROFILIS_MAX_FILES", "-1", "above 0"),
        ("PROFILIS_FILE_MODE", "0689", "no octal mode"),
        ("PROFILIS_FILE_MODE", "0440", "no mode that its owner can read and write"),
        ("PROFILIS_FSYNC", "sometimes", "not never, seal, interval, always"),
        ("PROFILIS_JANITOR", "maybe", "not true or false, external"),
        ("PROFILIS_COMPRESS_OLD_FILES", "gzip", "not true or false"),
        ("PROFILIS_APP_NAME", "a/b", "path separator"),
        ("PROFILIS_FILENAME_TEMPLATE", "x.jsonl", "needs {timestamp}"),
        ("PROFILIS_ROTATE_BITES", "1MB", "PROFILIS_ROTATE_BYTES is"),
        ("PROFILIS_CLOCK", "now", "is no option"),
        ("PROFILIS_", "x", "is no option"),
        ("PROFILIS_rotate_bytes", "1MB", "is no option"),
    ],
)
def test_a_value_or_a_name_that_is_wrong_is_refused_by_the_variables_name(
    tmp_path: Path, variable: str, text: str, reason: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)) as caught:
        JSONLExporter.from_env(environ={variable: text}, dir=tmp_path)
    assert caught.value.argument == variable


def test_variables_of_others_with_the_same_beginning_are_let_through() -> None:
    """In a pod beside a service called profilis, or profilis-ui, Kubernetes sets these in every container."""
    environ = dict.fromkeys(
        [
            "PROFILIS_DEBUG",
            "PROFILIS_PORT",
            "PROFILIS_SERVICE_HOST",
            "PROFILIS_SERVICE_PORT",
            "PROFILIS_SERVICE_PORT_HTTP",
            "PROFILIS_PORT_80_TCP",
            "PROFILIS_PORT_80_TCP_ADDR",
            "PROFILIS_UI_PORT_443_TCP_PROTO",
            "PROFILIS_UI_SERVICE_HOST",
        ],
        "",
    )
    assert arguments_from(environ, JSONLExporter) == {}


def test_overrides_count_for_more_and_are_named_as_arguments(tmp_path: Path) -> None:
    environ = {"PROFILIS_DIR": "/nowhere", "PROFILIS_ROTATE_BYTES": "1MB"}
    exporter = JSONLExporter.from_env(environ=environ, dir=tmp_path, rotate_secs=60)
    assert (exporter.dir, exporter.rotate_bytes, exporter.rotate_secs) == (str(tmp_path), 1 << 20, 60)
    with pytest.raises(ConfigError) as caught:
        JSONLExporter.from_env(environ=environ, dir=tmp_path, rotate_bytes=-1)
    assert caught.value.argument == "rotate_bytes"


def test_another_prefix_serves_a_second_log(tmp_path: Path) -> None:
    environ = {"AUDIT_LOG_DIR": str(tmp_path), "PROFILIS_NONSENSE": "1"}
    assert JSONLExporter.from_env(environ=environ, prefix="AUDIT_LOG_").dir == str(tmp_path)
    with pytest.raises(ConfigError, match="prefix"):
        JSONLExporter.from_env(environ=environ, prefix="")


def test_a_subclass_gets_its_own_class_and_its_own_options(tmp_path: Path) -> None:
    class Regional(JSONLExporter):
        def __init__(
            self, dir: str, *, region: str, ports: NotHere = 5, hook: Callable[..., Any] = print, **rest: Any
        ) -> None:
            super().__init__(dir, **rest)
            self.region, self.ports = region, ports

    environ = {"PROFILIS_DIR": str(tmp_path), "PROFILIS_REGION": "eu", "PROFILIS_ROTATE_SECS": "2m"}
    exporter = Regional.from_env(environ=environ)
    assert type(exporter) is Regional
    assert (exporter.region, exporter.ports, exporter.rotate_secs) == ("eu", 5, 120.0)
    assert Regional.from_env(environ={**environ, "PROFILIS_PORTS": "80"}).ports == 80
    with pytest.raises(ConfigError, match="PROFILIS_HOOK"):
        Regional.from_env(environ={**environ, "PROFILIS_HOOK": "print"})
    with pytest.raises(ConfigError, match="PROFILIS_REGION"):
        JSONLExporter.from_env(environ=environ)
