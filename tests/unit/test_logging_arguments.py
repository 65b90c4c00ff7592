"""What the file handlers' arguments become, and which of them are refused by name."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from profilis_mp import ConfigError, JSONLExporter
from profilis_mp.logging import JSONLHandler
from profilis_mp.logging.arguments import NEVER_BY_SIZE, exporter_arguments


def arguments(text: bool = False, **given: Any) -> dict[str, Any]:
    return exporter_arguments(JSONLExporter, given, text=text)[0]


def test_a_files_name_gives_directory_and_template() -> None:
    found = arguments(filename="/var/log/shop/app.log")
    assert (found["dir"], found["filename_template"]) == ("/var/log/shop", "app-{timestamp}.log")
    assert arguments(filename=Path("/l/app"))["filename_template"] == "app-{timestamp}.jsonl"
    assert arguments(text=True, filename="/l/app")["filename_template"] == "app-{timestamp}.log"
    assert arguments(filename="/l/a{b}.log")["filename_template"] == "a{{b}}-{timestamp}.log"
    assert arguments(filename="/l/a-{timestamp:%Y}-{index}.x")["filename_template"] == "a-{timestamp:%Y}-{index}.x"
    assert arguments(filename="app.log")["dir"] == str(Path.cwd())


def test_a_directory_alone_has_the_exporters_own_conventions() -> None:
    assert arguments(dir="/l") == {"dir": "/l", "filename_template": "log-{timestamp}.jsonl"}
    assert arguments(text=True, dir="/l")["filename_template"] == "log-{timestamp}.log"


def test_size_alone_rotates_as_in_the_file_handlers_and_backups_are_counted_without_the_active_segment() -> None:
    """Sealed every hour besides, five backups would be five hours and no longer fifty megabytes."""
    found = arguments(filename="/l/app.log", maxBytes=10_000_000, backupCount=5)
    assert (found["rotate_bytes"], found["max_files"], found["rotate_secs"]) == (10_000_000, 6, 1e9)
    assert arguments(filename="/l/a", maxBytes=0)["rotate_bytes"] == NEVER_BY_SIZE
    assert arguments(filename="/l/a", backupCount=0)["max_files"] is None
    assert "rotate_bytes" not in arguments(filename="/l/a")
    assert arguments(filename="/l/a", rotate_secs="1h")["rotate_secs"] == 3600.0


def test_text_means_what_it_says() -> None:
    """As it comes from YAML, JSON or the environment."""
    found = arguments(
        filename="/l/a",
        maxBytes="10MB",
        backupCount="5",
        chmod="0600",
        use_gzip="true",
        delay="False",
        max_age_secs="7d",
    )
    assert (found["rotate_bytes"], found["max_files"], found["file_mode"]) == (10 << 20, 6, 0o600)
    assert (found["compress_old_files"], found["max_age_secs"]) == (True, 604_800.0)


@pytest.mark.parametrize(
    ("argument", "value", "reason"),
    [
        ("mode", "w", "only added to"),
        ("mode", "x", "only added to"),
        ("encoding", "latin-1", "is UTF-8"),
        ("encoding", "nonsense", "is UTF-8"),
        ("errors", "ignore", "cannot be kept"),
        ("delay", "perhaps", "neither True nor False"),
        ("maxBytes", -1, "whole number"),
        ("maxBytes", True, "whole number"),
        ("maxBytes", 1.5, "whole number"),
        ("maxBytes", "lots", "no size"),
        ("backupCount", "five", "is no whole number"),
        ("backupCount", -1, "whole number"),
        ("use_gzip", "gzip", "neither"),
        ("chmod", "rw", "no octal mode such as 0640"),
        ("chmod", 0o444, "its owner can read and write"),
        ("umask", 0o22, "whatever the umask"),
        ("newline", "\r\n", "always '\\n'"),
        ("terminator", "", "always '\\n'"),
        ("keep_file_open", False, "always True"),
        ("debug", True, "always False"),
        ("lock_file_directory", "/tmp", ".profilis-mp"),
        ("unicode_error_policy", "ignore", "spelled out"),
        ("when", "midnight", "rotate_secs"),
        ("clock", print, "its own time"),
        ("rotate_bites", 5, "no option"),
        ("rotate_bytes", "10X", "no size"),
        ("fsync", "sometimes", "never, seal"),
        ("format", "xml", "json, text"),
        ("exporter", "logs", "no JSONLExporter"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(tmp_path: Path, argument: str, value: Any, reason: str) -> None:
    given: dict[str, Any] = {"filename": tmp_path / "app.log", argument: value}
    with pytest.raises(ConfigError) as caught:
        JSONLHandler(**given)
    assert caught.value.argument == argument
    assert reason in caught.value.reason


@pytest.mark.parametrize(
    ("given", "argument"),
    [
        ({}, "filename"),
        ({"filename": 5}, "filename"),
        ({"filename": b"x"}, "filename"),
        ({"filename": "/l/"}, "filename"),
        ({"filename": "/l/.app.log"}, "filename"),
        ({"filename": "/l/app.tmp"}, "filename"),
        ({"filename": "/l/app.log.gz"}, "filename"),
        ({"filename": "/l/a", "dir": "/l"}, "filename"),
        ({"filename": "/l/a", "filename_template": "b-{timestamp}"}, "filename"),
        ({"filename": "/l/a", "maxBytes": 5, "rotate_bytes": 5}, "rotate_bytes"),
        ({"filename": "/l/a", "backupCount": 5, "max_files": 5}, "max_files"),
    ],
)
def test_what_is_missing_or_said_twice_is_refused_by_name(given: dict[str, Any], argument: str) -> None:
    with pytest.raises(ConfigError) as caught:
        JSONLHandler(**given)
    assert caught.value.argument == argument


def test_a_handler_that_was_refused_is_not_closed_at_exit() -> None:
    """`logging.shutdown` closes every handler whose `__init__` began; one that is half made has nothing to close."""
    before = len(logging._handlerList)  # type: ignore[attr-defined]  # where logging keeps what it closes
    with pytest.raises(ConfigError) as caught:
        JSONLHandler()
    assert len(logging._handlerList) == before, caught  # type: ignore[attr-defined]


def test_w_is_accepted_where_the_file_handlers_ignore_it(tmp_path: Path) -> None:
    JSONLHandler(tmp_path / "a", mode="w", maxBytes=1000).close()


def test_an_exporter_that_is_given_brings_its_own_options(tmp_path: Path) -> None:
    with JSONLExporter(tmp_path) as exporter:
        with pytest.raises(ConfigError) as caught:
            JSONLHandler(exporter=exporter, maxBytes=5)
        assert caught.value.argument == "maxBytes"


def test_namer_and_rotator_cannot_be_set(tmp_path: Path) -> None:
    """As attributes of a handler that does not know them they would be forgotten in silence."""
    handler = JSONLHandler(tmp_path / "a")
    for name in ("namer", "rotator"):
        with pytest.raises(ConfigError) as caught:
            setattr(handler, name, str.upper)
        assert caught.value.argument == name
    handler.close()
